//! `relatch bench`: what the lock costs, as ratios to floors that were measured in the same run.
//!
//! A floor is what the same machine needs for the least that could do: two bare scripts for a pair, a bare write and publish for a
//! handoff. Times differ from machine to machine and from minute to minute; ratios within a run do so far less, and what the server counts
//! (`INFO commandstats`) hardly at all. So floor and measurement alternate, round by round, and medians of the rounds are told.
//!
//! The invariant: it reports as measured. Nothing is left out because it missed its bar; what could not be measured says why. And nothing is
//! left behind: every name has this run's prefix, its keys are deleted after each case, also after Ctrl-C, and expire if even that was prevented.

mod calls;
mod fair;
mod ground;
mod handoff;
mod memory;
mod pair;
mod plot;
mod readers;
mod redis_benchmark;
mod reentry;
mod renew;
mod report;
mod server;
mod striped;
mod throughput;

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum as _;

use self::ground::Ground;
use self::report::{Case, Measured, Report};
use super::Outcome;

pub(crate) use self::handoff::work;

pub(crate) const EXIT: &str = "\
Exit status: 0 it was measured; 1 with --check, a bar was missed; 2 it could not run.

Examples:
  relatch bench
  relatch bench --redis redis://127.0.0.1:6379 --plot bench.svg
  relatch bench --redis redis://127.0.0.1:6379 pair handoff --seconds 10 --check";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure [default: all of it]
    #[arg(value_name = "CASE")]
    cases: Vec<Case>,
    /// Where to measure: redis://…, rediss://…, unix://…, redis+sentinel://… (the primary) or redis-cluster://…
    /// (one master of it); without one the lock is in this process
    #[arg(long, value_name = "URL", env = "RELATCH_REDIS", hide_env_values = true)]
    redis: Option<String>,
    /// About how long each case takes, in seconds: 1 to 600 [default: 5, or 1 with --quick]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: Option<u64>,
    /// Fewer waiters, holds and rounds: to see that it works, not what it costs
    #[arg(long)]
    quick: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    /// Draw the result into this file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Hold the ratios against the bars; a missed one is exit status 1
    #[arg(long)]
    check: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Outcome> {
    let cases = match args.cases.as_slice() {
        [] => Case::value_variants().to_vec(),
        named => named.to_vec(),
    };
    if let Some(path) = &args.plot {
        // Now, not after minutes.
        let opened = std::fs::File::options().append(true).create(true).open(path);
        opened.with_context(|| format!("{} can't be written", path.display()))?;
    }
    let seconds = args.seconds.unwrap_or(if args.quick { 1 } else { 5 });
    let ground = Ground::new(args.redis.as_deref(), seconds, args.quick).await?;
    let mut report = Report::new(&ground, seconds);
    let interrupted = tokio::select! {
        measured = measure(&ground, &cases, &mut report) => measured.map(|()| false),
        heard = tokio::signal::ctrl_c() => heard.context("Ctrl-C can't be heard").map(|()| true),
    };
    // Also when it was interrupted, and when it failed: that says more than a failure to clean up after it.
    let cleaned = ground.clean().await;
    ground.progress.clear();
    let interrupted = interrupted?;
    cleaned.context("this run's keys could not be deleted; they expire")?;
    anyhow::ensure!(!interrupted, "interrupted: nothing was left behind");

    if let Some(path) = &args.plot {
        let svg = plot::svg(&report)?;
        std::fs::write(path, svg).with_context(|| format!("{} can't be written", path.display()))?;
    }
    let text = if args.json {
        report.json()?
    } else {
        report.to_string()
    };
    writeln!(std::io::stdout(), "{text}").context("the result can't be written")?;
    if !args.check {
        return Ok(Outcome::Yes);
    }
    for line in report.check_lines() {
        // The status says it, too.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    Ok(if report.missed().is_empty() {
        Outcome::Yes
    } else {
        Outcome::No
    })
}

async fn measure(ground: &Ground, cases: &[Case], report: &mut Report) -> anyhow::Result<()> {
    for (at, case) in cases.iter().enumerate() {
        ground.progress.begin(*case, at, cases.len());
        let measured = match case {
            Case::Pair => pair::measure(ground).await,
            Case::Throughput => throughput::measure(ground).await,
            Case::Handoff => handoff::measure(ground).await,
            Case::Readers => readers::measure(ground).await,
            Case::Fair => fair::measure(ground).await,
            Case::Renew => renew::measure(ground).await,
            Case::Memory => memory::measure(ground).await,
            Case::Reentry => reentry::measure(ground).await,
            Case::Striped => striped::measure(ground).await,
        };
        let measured = measured.with_context(|| format!("the case {case} could not be measured"))?;
        ground.clean().await?;
        report.note(ground.take_notes());
        report.add(*case, measured);
    }
    Ok(())
}

/// What needs a server says so without one.
fn needs_redis() -> anyhow::Result<Measured> {
    Ok(Measured::Skipped(
        "it measures what a server does: name one with --redis",
    ))
}
