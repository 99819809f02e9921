//! relatch and its peers, measured in one run; and relatch's capacity, held against its formula. `benches/peers/run` builds and starts it.
//!
//! - `subject`, `crates`, `redisson`: who is measured, behind one face;
//! - `job`, `judge`: what they do and note, and what the notes say;
//! - `measure`: the cases; `results`, `report`, `plot`: what comes of them;
//! - `capacity`: the check of docs/capacity.md.
//!
//! The server is this run's own and ends with it. One thread runs the driver and all the crates, as a second would compete with the server.

mod capacity;
mod crates;
mod job;
mod judge;
mod measure;
mod plot;
mod redisson;
mod report;
mod results;
mod server;
mod subject;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::Parser;

use crate::measure::{CASES, Plan, Run};
use crate::redisson::Redisson;
use crate::server::Server;
use crate::subject::{Kind, Subject};

/// relatch and other distributed locks on Redis, measured in one run
#[derive(Parser)]
#[command(name = "benches/peers/run", version)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Less of everything: to see that it works, not what it costs
    #[arg(long)]
    quick: bool,
    /// How often each case is measured [default: 3, or 1 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: Option<u64>,
    /// Only these cases
    #[arg(long, value_name = "CASE", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(CASES))]
    only: Vec<String>,
    /// Only these subjects, besides relatch and the floor: rlock, rds_lock, distkit, rslock, redisson, redisson-plain
    #[arg(long, value_name = "SUBJECT", value_delimiter = ',')]
    subjects: Vec<String>,
    /// Where benchmarks.md is, and benchmarks/ for the plots [default: docs for a whole run, else target/peers]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where Maven has put the program in Java; `run` names it
    #[arg(long, value_name = "DIR", hide = true)]
    redisson: Option<PathBuf>,
    /// Why it has not
    #[arg(long, value_name = "WHY", hide = true, conflicts_with = "redisson")]
    without_redisson: Option<String>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Hold the formula of docs/capacity.md against what this machine can hold
    Capacity(capacity::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let work = async {
        match &args.command {
            Some(Command::Capacity(of)) => capacity::run(of, &root()).await,
            None => compare(&args).await.map(|()| true),
        }
    };
    let ended = tokio::select! {
        ended = work => ended,
        // The server and the children end as what holds them is dropped.
        () = told_to_end() => Err(anyhow::anyhow!("interrupted")),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("benches/peers/run: {why:#}");
            ExitCode::from(2)
        }
    }
}

/// Also by `kill` and `timeout`.
async fn told_to_end() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminated) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

/// Of the repository.
fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).unwrap_or(package).to_owned()
}

/// What is compiled in, by the lock file.
fn locked(name: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    let package = format!("name = \"{name}\"\nversion = \"");
    let version = lock
        .split_once(&package)
        .and_then(|(_, rest)| rest.split_once('"'));
    version.map_or("?", |(version, _)| version).to_owned()
}

async fn subjects(args: &Args) -> anyhow::Result<Vec<Subject>> {
    let subject = |name, kind, reads| Subject {
        name,
        version: locked(name),
        kind,
        reads,
    };
    let mut all = vec![
        Subject {
            version: String::new(),
            ..subject("floor", Kind::Floor(crates::floor), true)
        },
        subject("relatch", Kind::Crate(crates::relatch), true),
        subject("rlock", Kind::Crate(crates::rlock), true),
        subject("rds_lock", Kind::Crate(crates::rds_lock), true),
        subject("distkit", Kind::Crate(crates::distkit), true),
        subject("rslock", Kind::Crate(crates::rslock), false),
    ];
    let wanted = |name: &str| args.subjects.is_empty() || args.subjects.iter().any(|subject| subject == name);
    let java = [("redisson", false), ("redisson-plain", true)];
    let child = match &args.redisson {
        _ if !java.iter().any(|(name, _)| wanted(name)) => Err("it was not asked for".into()),
        Some(target) => Redisson::start(target)
            .await
            .map(Arc::new)
            .map_err(|why| format!("{why:#}")),
        None => Err(args
            .without_redisson
            .clone()
            .unwrap_or("it was not built: start benches/peers/run".into())),
    };
    for (name, plain) in java {
        let version = child
            .as_ref()
            .map_or(String::new(), |child| child.version.clone());
        let child = child.clone();
        all.push(Subject {
            version,
            ..subject(name, Kind::Java { child, plain }, !plain)
        });
    }
    let unknown = args
        .subjects
        .iter()
        .find(|name| all.iter().all(|subject| subject.name != *name));
    if let Some(unknown) = unknown {
        let names: Vec<&str> = all.iter().map(|subject| subject.name).collect();
        bail!("{unknown} is no subject: there are {}", names.join(", "));
    }
    all.retain(|subject| wanted(subject.name) || ["floor", "relatch"].contains(&subject.name));
    Ok(all)
}

async fn compare(args: &Args) -> anyhow::Result<()> {
    let begun = Instant::now();
    let whole = !args.quick && args.only.is_empty() && args.subjects.is_empty();
    let out = match &args.out {
        Some(out) => out.clone(),
        None if whole => root().join("docs"),
        None => root().join("target/peers"),
    };
    let page = out.join("benchmarks.md");
    if !page.exists() {
        std::fs::create_dir_all(&out).with_context(|| format!("{} can't be made", out.display()))?;
        std::fs::write(&page, "<!-- peers: begin -->\n<!-- peers: end -->\n")
            .with_context(|| format!("{} can't be written", page.display()))?;
    }
    let subjects = subjects(args).await?;
    let server = Server::start().await?;
    let rounds = args.rounds.map(usize::try_from).transpose()?;
    let cases: Vec<&'static str> = CASES
        .into_iter()
        .filter(|case| args.only.is_empty() || args.only.iter().any(|only| only == case))
        .collect();
    let before = load();
    let plan = Plan::new(args.quick, rounds);
    let rounds = plan.rounds;
    let mut run = Run::new(&server, &subjects, plan);
    run.run(&cases).await?;
    let results = run.results;

    let mut notes = vec![machine(&server, &before, rounds)];
    if args.quick {
        notes.push("A quick run: it shows that everything works, and is too short to judge by.".into());
    }
    if cfg!(debug_assertions) {
        notes.push("Built without optimisation: not to be judged by.".into());
    }
    let versions = subjects
        .iter()
        .filter(|subject| !subject.version.is_empty())
        .map(|subject| format!("{} {}", subject.name, subject.version));
    notes.push(format!("Measured: {}.", versions.collect::<Vec<_>>().join(", ")));
    for subject in &subjects {
        if let Kind::Java { child: Err(why), .. } = &subject.kind {
            notes.push(format!("{} is missing: {why}.", subject.name));
        }
    }
    let text = report::markdown(&results, &subjects, &notes, "benchmarks");
    report::splice(&page, "peers", &text)?;
    plot::all(&results, &subjects, &out.join("benchmarks"))?;
    println!("{text}");
    eprintln!("written: {} in {} s", page.display(), begun.elapsed().as_secs());
    Ok(())
}

/// How many wanted to run, where the system tells it.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .filter(|load| !load.is_empty())
        .unwrap_or("?")
        .to_owned()
}

fn machine(server: &Server, before: &str, rounds: usize) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{}, on {cores} cores, Redis {} without persistence on the same machine, {rounds} round{}. Load of the machine just before it \
        began: {before}; when it was done: {}. What was there before is others' work; it goes on, and hits all subjects alike.",
        today(),
        server.version,
        if rounds == 1 { "" } else { "s" },
        load(),
    )
}

/// The date, as in 2026-11-21, in UTC. By Howard Hinnant's `civil_from_days`.
fn today() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}
