//! `relatch simulate`: seed after seed, and what was seen; on a broken promise everything that led to it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ValueEnum as _;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use relatch::simulate::{Fault, Flaw, Options, Run, Tally, hexadecimal};
use serde::Serialize;

use super::Outcome;
use super::picture::{Place, simulated};

pub(crate) const EXIT: &str = "\
Exit status: 0 every promise was kept; 1 one was broken; 2 it could not run.

Examples:
  relatch simulate
  relatch simulate --seeds 100000 --jobs 2
  relatch simulate --from 4711 --trace";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many seeds; 1000, or 1 with --trace
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
    /// The first seed; the others follow it
    #[arg(long, value_name = "S", default_value_t = 1)]
    from: u64,
    /// On so many threads; what a seed does is the same on each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Stop after so many seconds, wherever it is then
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// Print everything that happens in the first seed, also when all is well
    #[arg(long, conflicts_with = "json")]
    trace: bool,
    /// Write a page that shows who held and who waited in the first seed, or in the one that broke a promise, for any browser
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    html: Option<PathBuf>,
    /// Break the world on purpose, to see what is reported then
    #[arg(long, value_name = "NAME", hide = true)]
    flaw: Option<Flaw>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// All runs together.
#[derive(Default, Serialize)]
struct Report {
    from: u64,
    seeds: u64,
    seconds: f64,
    seeds_per_second: f64,
    steps: u64,
    virtual_hours: f64,
    faults: BTreeMap<Fault, u64>,
    acquired: u64,
    turned: u64,
    lost: u64,
    timeouts: u64,
    busy: u64,
    unreachable: u64,
    stale_writes_refused: u64,
    excused_looks: u64,
    /// Of all hashes, in whichever order they came.
    #[serde(serialize_with = "hexadecimal")]
    hash: u64,
    /// The run that broke a promise.
    #[serde(skip_serializing_if = "Option::is_none")]
    broken: Option<Run>,
    #[serde(skip)]
    virtual_ms: u64,
}

impl Report {
    fn add(&mut self, run: &Run) {
        self.seeds += 1;
        self.steps += run.steps;
        self.virtual_ms += run.virtual_ms;
        self.hash ^= run.hash.rotate_left((run.seed % 64) as u32);
        for (fault, times) in &run.faults {
            *self.faults.entry(*fault).or_default() += times;
        }
        let Tally {
            acquired,
            turned,
            lost,
            busy,
            timeouts,
            unreachable,
            stale_writes,
            excused,
        } = run.tally;
        self.acquired += acquired;
        self.turned += turned;
        self.lost += lost;
        self.busy += busy;
        self.timeouts += timeouts;
        self.unreachable += unreachable;
        self.stale_writes_refused += stale_writes;
        self.excused_looks += excused;
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let seeds = args.seeds.unwrap_or(if args.trace { 1 } else { 1000 });
    let options = Options {
        flaw: args.flaw,
        ..Options::default()
    };
    let page = args.html.as_deref().map(Place::find).transpose()?;
    let progress = progress(seeds);
    let begun = Instant::now();
    let until = args.seconds.map(|seconds| begun + Duration::from_secs(seconds));
    let report = Mutex::new(Report {
        from: args.from,
        ..Report::default()
    });
    let next = AtomicU64::new(0);
    let broken = AtomicU64::new(u64::MAX);
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let over = until.is_some_and(|until| Instant::now() >= until);
                    if at >= seeds || over || broken.load(Ordering::Relaxed) != u64::MAX {
                        return;
                    }
                    let seed = args.from.wrapping_add(at);
                    let run = relatch::simulate::run(seed, options);
                    if run.broken.is_some() {
                        broken.fetch_min(seed, Ordering::Relaxed);
                    }
                    report.lock().add(&run);
                    progress.inc(1);
                }
            });
        }
    });
    progress.finish_and_clear();
    let mut report = report.into_inner();
    report.seconds = begun.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "they are for people")]
    {
        report.seeds_per_second = report.seeds as f64 / report.seconds.max(0.001);
        report.virtual_hours = report.virtual_ms as f64 / 3_600_000.0;
    }
    let record = Options {
        record: true,
        ..options
    };
    let broken = broken.into_inner();
    if broken != u64::MAX {
        // Once more, written down: it is the same run.
        report.broken = Some(relatch::simulate::run(broken, record));
    }
    if let Some(page) = &page {
        let first;
        let run = match &report.broken {
            Some(run) => run,
            None => {
                first = relatch::simulate::run(args.from, record);
                &first
            }
        };
        simulated(run).write(run.virtual_ms * 1000, page)?;
    }
    let mut out = String::new();
    if args.trace {
        let mut run =
            relatch::simulate::run(report.broken.as_ref().map_or(args.from, |run| run.seed), record);
        run.trace = std::mem::take(&mut run.whole_trace);
        show(&mut out, &run);
    } else if let (Some(run), false) = (&report.broken, args.json) {
        show(&mut out, run);
    }
    if args.json {
        out = serde_json::to_string(&report).context("the result can't be written")?;
    } else {
        tell(&mut out, &report, args.flaw);
    }
    match writeln!(std::io::stdout(), "{out}") {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written.context("the result can't be written")?,
    }
    Ok(if report.broken.is_some() {
        Outcome::No
    } else {
        Outcome::Yes
    })
}

/// The trace, the timeline, and what was broken, as what is printed last is read first.
fn show(out: &mut String, run: &Run) {
    for line in run.trace.iter().chain(&run.timeline) {
        let _ = writeln!(out, "{line}");
    }
    let _ = writeln!(out);
}

fn tell(out: &mut String, report: &Report, flaw: Option<Flaw>) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    for (fault, times) in &report.faults {
        table.add_row([fault.as_str().to_owned(), HumanCount(*times).to_string()]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let count = |number: u64| HumanCount(number).to_string();
    let _ = writeln!(out, "{table}\n");
    let _ = writeln!(
        out,
        "{} guards, {} of them lost while in use; {} upgrades and downgrades; {} waits that ran out, {} refused at once; \
         {} not answered; {} stale writes refused by the store; {} looks at what a server had lost",
        count(report.acquired),
        count(report.lost),
        count(report.turned),
        count(report.timeouts),
        count(report.busy),
        count(report.unreachable),
        count(report.stale_writes_refused),
        count(report.excused_looks),
    );
    let _ = writeln!(
        out,
        "{} seeds from {} in {:.1} s, {:.1} a second; {} steps, {:.2} virtual hours; hash {:016x}",
        count(report.seeds),
        report.from,
        report.seconds,
        report.seeds_per_second,
        count(report.steps),
        report.virtual_hours,
        report.hash,
    );
    match &report.broken {
        None => out.push_str("\nevery promise was kept"),
        Some(run) => {
            let what = run
                .broken
                .as_deref()
                .unwrap_or("this time it was kept: the run can't be repeated");
            let flaw = flaw
                .and_then(|flaw| flaw.to_possible_value())
                .map_or(String::new(), |flaw| format!(" --flaw {}", flaw.get_name()));
            let _ = write!(
                out,
                "\nBROKEN in seed {}: {what}\nagain: relatch simulate --from {} --trace{flaw}",
                run.seed, run.seed
            );
        }
    }
}

fn progress(seeds: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(seeds);
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {bar:20} {human_pos} of {human_len} seeds, {per_sec}, {eta}")
    {
        bar.set_style(style);
    }
    bar
}
