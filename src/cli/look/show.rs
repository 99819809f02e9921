//! `relatch show`: one name, with everybody on it.

use std::fmt::Write as _;
use std::time::Duration;

use relatch::Mode;

use super::View;
use crate::cli::Outcome;
use crate::cli::reach::Reach;
use crate::cli::words::{brief, printable, say};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The name
    name: String,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Outcome> {
    let relatch = args.reach.connect().await?;
    let seen = relatch.inspect(&args.name).await?;
    let _ = relatch.close().await;
    let view = View::of(&seen);
    if args.json {
        say(&serde_json::to_string_pretty(&view)?)?;
    } else {
        say(&text(&view))?;
    }
    Ok(if view.is_idle() { Outcome::No } else { Outcome::Yes })
}

/// As a person reads it, in lines that fit into 80 columns unless a name or a label is long.
pub(crate) fn text(view: &View) -> String {
    let mut out = printable(&view.name);
    match view.fence {
        Some(fence) => out.push_str(&format!("   fence {fence}")),
        None => out.push_str("   no fence is known"),
    }
    out.push('\n');
    if view.is_idle() {
        out.push_str("nobody holds it or waits for it\n");
        return out;
    }
    if view.holders.is_empty() {
        out.push_str("nobody holds it\n");
    }
    for holding in &view.holders {
        let _ = writeln!(
            out,
            "\n{:<10} owner {}, depth {}",
            holding.mode.as_str(),
            holding.owner,
            holding.depth
        );
        for entered in &holding.holds {
            let mut line = format!(
                "{:<10} held {} since {}, lease {} left",
                if holding.depth > 1 {
                    entered.mode.as_str()
                } else {
                    ""
                },
                brief(Duration::from_millis(entered.held_ms)),
                entered.since,
                brief(Duration::from_millis(entered.lease_left_ms)),
            );
            if entered.revoked {
                line.push_str(", revoked");
            }
            let _ = writeln!(out, "{line}");
            let label = entered
                .label
                .as_ref()
                .map(|label| format!(", {:?}", printable(label)));
            let _ = writeln!(
                out,
                "{:<10} {}{}",
                "",
                entered.process.words(),
                label.unwrap_or_default()
            );
        }
    }
    more(&mut out, view.holder_count, view.holders.len(), "hold");
    if !view.waiters.is_empty() {
        out.push_str("\nin line\n");
    }
    for waiting in &view.waiters {
        let label = waiting
            .label
            .as_ref()
            .map(|label| format!(", {:?}", printable(label)));
        let _ = writeln!(
            out,
            "{:>4}  {:<10} for {:<8} {}{}\n{:16} owner {}",
            waiting.place,
            Mode::as_str(waiting.mode),
            brief(Duration::from_millis(waiting.waited_ms)),
            waiting.process.words(),
            label.unwrap_or_default(),
            "",
            waiting.owner,
        );
    }
    more(&mut out, view.waiter_count, view.waiters.len(), "wait");
    out
}

fn more(out: &mut String, count: u64, shown: usize, what: &str) {
    let more = count.saturating_sub(shown as u64);
    if more > 0 {
        let _ = writeln!(out, "and {more} more that {what}");
    }
}
