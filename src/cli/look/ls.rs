//! `relatch ls`: the names, and who is on them.

use std::cmp::Reverse;
use std::time::Duration;

use comfy_table::{Attribute, Cell, CellAlignment, Color};
use relatch::Mode;
use serde_json::json;

use super::{View, all, refusal};
use crate::cli::Outcome;
use crate::cli::reach::Reach;
use crate::cli::words::{brief, colours, lines, printable, say, table, tell};

pub(crate) const EXAMPLES: &str = "\
PATTERN: * is anything, ? one character, [a-f] one of these, [^a-f] one of no such, \\ takes what follows literally.

Examples:
  relatch ls
  relatch ls 'jobs/*' --sort wait
  relatch ls --json | jq -r 'select(.waiter_count > 10) | .name'";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which names; all, if nothing is said
    #[arg(default_value = "*", hide_default_value = true)]
    pattern: String,
    /// Also names that nobody holds or waits for, but of which the last fence is kept
    #[arg(short, long)]
    all: bool,
    /// In which order
    #[arg(short, long, value_enum, default_value_t)]
    sort: Sort,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sort {
    #[default]
    /// By name
    Name,
    /// The longest wait first
    Wait,
    /// The most in line first
    Waiters,
    /// The longest hold first
    Held,
    /// The most holders first
    Holders,
}

impl Sort {
    pub(crate) fn sort(self, views: &mut [View]) {
        views.sort_by(|a, b| a.name.cmp(&b.name));
        match self {
            Sort::Name => {}
            Sort::Wait => views.sort_by_key(|view| Reverse(view.longest_wait_ms)),
            Sort::Waiters => views.sort_by_key(|view| Reverse(view.waiter_count)),
            Sort::Held => views.sort_by_key(|view| Reverse(view.longest_held_ms)),
            Sort::Holders => views.sort_by_key(|view| Reverse(view.holder_count)),
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Sort::Name => "name",
            Sort::Wait => "wait",
            Sort::Waiters => "waiters",
            Sort::Held => "held",
            Sort::Holders => "holders",
        }
    }

    pub(crate) fn next(self) -> Self {
        match self {
            Sort::Name => Sort::Wait,
            Sort::Wait => Sort::Waiters,
            Sort::Waiters => Sort::Held,
            Sort::Held => Sort::Holders,
            Sort::Holders => Sort::Name,
        }
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Outcome> {
    let relatch = args.reach.connect().await?;
    let found = all(&relatch, &args.pattern, None).await?;
    let mut views: Vec<View> = found
        .seen
        .iter()
        .map(View::of)
        .filter(|view| args.all || !view.is_idle())
        .collect();
    let _ = relatch.close().await;
    let outcome = match &found.missing {
        Some(error) => {
            tell(&format!("these are not all: {error}"));
            Outcome::No
        }
        None => Outcome::Yes,
    };
    args.sort.sort(&mut views);
    if args.json {
        let mut text = String::new();
        for view in &views {
            let line = json!({
                "name": view.name, "mode": view.mode, "fence": view.fence,
                "holder_count": view.holder_count, "waiter_count": view.waiter_count,
                "longest_held_ms": view.longest_held_ms, "longest_wait_ms": view.longest_wait_ms,
            });
            text.push_str(&line.to_string());
            text.push('\n');
        }
        say(&text)?;
    } else if views.is_empty() {
        tell("no name is held or waited for");
    } else {
        say(&lines(&tabulated(&views)))?;
    }
    for (name, error) in &found.refused {
        tell(&refusal(name, error));
    }
    // As `ls` does where it could not look at all of them.
    Ok(if found.refused.is_empty() {
        outcome
    } else {
        Outcome::Status(2)
    })
}

fn tabulated(views: &[View]) -> comfy_table::Table {
    let mut table = table(&["NAME", "MODE", "HOLDERS", "WAITERS", "LONGEST WAIT", "HELD FOR"]);
    for at in 2..=5 {
        if let Some(column) = table.column_mut(at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let coloured = colours();
    for view in views {
        let time = |ms: Option<u64>| ms.map_or_else(|| "-".into(), |ms| brief(Duration::from_millis(ms)));
        let mode = view.mode.map_or("-", Mode::as_str);
        let mut mode = Cell::new(mode);
        let mut wait = Cell::new(time(view.longest_wait_ms));
        if coloured {
            mode = match view.mode {
                Some(Mode::Write) => mode.fg(Color::Yellow),
                Some(_) => mode.fg(Color::Green),
                None => mode.add_attribute(Attribute::Dim),
            };
            if view.longest_wait_ms > Some(10_000) {
                wait = wait.fg(Color::Red);
            }
        }
        table.add_row([
            Cell::new(printable(&view.name)),
            mode,
            Cell::new(view.holder_count),
            Cell::new(view.waiter_count),
            wait,
            Cell::new(time(view.longest_held_ms)),
        ]);
    }
    table
}
