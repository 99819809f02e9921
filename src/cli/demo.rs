//! `relatch demo`: the lock at work on a folder tree, with a referee who sees every entry and exit.
//!
//! Readers answer from a catalogue of the tree, walkers re-enter the read lock at every level of it, writers refresh it with
//! fences. All in this process, or in several on a Redis server. The invariant: the verdict rests on what the referee saw and
//! on what the server says at the end, never on what the lock says of itself.

mod catalogue;
pub(super) mod process;
mod referee;
mod report;
mod worker;

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use relatch::Relatch;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::catalogue::Catalogue;
use self::process::Plan;
use self::referee::{Counts, Referee, now_us};
use self::report::{Ending, Process, Report};
use self::worker::{Crew, Desk, Workers};
use super::Outcome;
use super::picture::{Picture, Place};

#[cfg(any(test, fuzzing))]
pub(crate) use self::process::reads;
pub(crate) use self::process::work;

pub(crate) const EXIT: &str = "\
Exit status: 0 the verdict is good; 1 it is not; 2 the demo could not run.

Examples:
  relatch demo
  relatch demo --tree ~/src --seconds 20
  relatch demo --redis redis://127.0.0.1:6379 --processes 3";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder tree to work on; hidden and ignored files are left out
    #[arg(long, value_name = "PATH", default_value = ".")]
    pub(super) tree: PathBuf,
    /// A Redis server to run on; without one the lock is in this process
    #[arg(long, value_name = "URL", env = "RELATCH_REDIS", hide_env_values = true)]
    pub(super) redis: Option<String>,
    /// Run in so many processes of their own, on the Redis server; kill one and see
    #[arg(long, value_name = "N", requires = "redis", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(super) processes: Option<u8>,
    /// How long, in seconds: 1 to 25
    #[arg(long, value_name = "S", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=25))]
    pub(super) seconds: u64,
    /// Print the result as one JSON object
    #[arg(long)]
    pub(super) json: bool,
    /// Write a page that shows who held and who waited, for any browser
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(super) html: Option<PathBuf>,
    #[command(flatten, next_help_heading = "In each process")]
    pub(super) workers: Workers,
}

/// Short, so that a killed process is soon forgotten; long enough for a machine that is busy.
const LEASE: Duration = Duration::from_secs(2);

/// Whoever was told to stop has done so by then.
const WIND_UP: Duration = Duration::from_secs(12);

/// What a killed process held, or waited for, has lapsed by then.
const LEFT_BEHIND: Duration = Duration::from_secs(5);

fn builder() -> relatch::Builder {
    Relatch::builder()
        .lease(LEASE)
        .claim(LEASE)
        // The last fence is all that a name leaves on a server.
        .fence_retention(Duration::from_secs(60))
        .connect_timeout(Duration::from_secs(3))
        .patience(Duration::from_secs(5))
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Outcome> {
    let root = std::path::absolute(&args.tree).context("the tree has no path")?;
    let scanned = root.clone();
    let catalogue = tokio::task::spawn_blocking(move || Catalogue::scan(&scanned))
        .await
        .context("the scan panicked")??;
    let relatch = match &args.redis {
        None => builder().embedded()?,
        Some(url) => {
            let connected = builder().url(url).connect().await;
            connected.map_err(|error| anyhow!("{error}; without --redis the demo needs no server"))?
        }
    };
    // A name of its own: demos on one server do not meet.
    let name = format!("relatch-demo/{}", relatch::Owner::new());
    let tree = catalogue.look("").unwrap_or_default().total;
    let folders = catalogue.folders().len();
    let mut referee = Referee::new(catalogue);
    let begun_us = now_us();
    let page = args.html.as_deref().map(Place::find).transpose()?;
    if page.is_some() {
        referee.picture = Some((Picture::new("relatch demo", Some(begun_us / 1000)), begun_us));
    }
    let referee = Arc::new(Mutex::new(referee));
    let progress = Progress::new(args.seconds);

    let begun = Instant::now();
    let (stop, stopped) = watch::channel(false);
    let mut crews = Crews::default();
    match (&args.redis, args.processes) {
        (Some(redis), Some(processes)) => {
            let plan = Plan {
                redis: redis.clone(),
                name: name.clone(),
                root: root.clone(),
                workers: args.workers,
            };
            for number in 1..=usize::from(processes) {
                let child = process::start("demo-worker")?;
                let pid = child.id();
                progress.say(&format!("worker {number}: pid {}", pid.unwrap_or_default()));
                let served = process::serve(child, number, plan.clone(), referee.clone(), stopped.clone());
                crews.start(number, pid, async {
                    match served.await {
                        Ok(status) => Ending::of(status),
                        Err(error) => Ending::Failed(format!("{error:#}")),
                    }
                });
            }
        }
        _ => {
            let crew = Crew {
                lock: relatch.rwlock(&name)?,
                desk: Desk::Here(1, referee.clone()),
                root: root.clone(),
                stop: stopped,
            };
            crews.start(1, Some(std::process::id()), async move {
                match crew.work(args.workers).await {
                    Ok(()) => Ending::Finished,
                    Err(error) => Ending::Failed(format!("{error:#}")),
                }
            });
        }
    }

    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs(args.seconds)) => {}
        () = crews.ended() => {}
        () = progress.show(&referee) => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.context("Ctrl-C can't be heard")?,
    }
    stop.send_replace(true);
    let seconds = begun.elapsed().as_secs_f64();
    if tokio::time::timeout(WIND_UP, crews.ended()).await.is_err() {
        crews.give_up();
    }
    let left_behind = left_behind(&relatch, &name).await;
    progress.clear();

    let mut referee = referee.lock();
    if let (Some(page), Some((picture, begun_us))) = (&page, referee.picture.take()) {
        picture.write(now_us().saturating_sub(begun_us), page)?;
    }
    let report = Report {
        tree: root.display().to_string(),
        files: tree.files,
        bytes: tree.bytes,
        folders,
        backend: if args.redis.is_some() { "redis" } else { "embedded" },
        seconds,
        workers: args.workers,
        counts: referee.counts.clone(),
        processes: crews
            .processes
            .into_iter()
            .map(|(number, process)| {
                let seen = referee.seen.get(&number);
                Process {
                    acquired: seen.map_or(0, |(acquired, _)| *acquired),
                    last_acquired_s: seen.map(|(_, at)| at.duration_since(begun).as_secs_f64()),
                    ..process
                }
            })
            .collect(),
        left_behind,
    };
    let text = if args.json {
        report.json()?
    } else {
        report.to_string()
    };
    writeln!(std::io::stdout(), "{text}").context("the result can't be written")?;
    Ok(if report.passed() {
        Outcome::Yes
    } else {
        Outcome::No
    })
}

/// The processes at work, of which this one may be the only.
#[derive(Default)]
struct Crews {
    tasks: JoinSet<(usize, Ending)>,
    processes: BTreeMap<usize, Process>,
}

impl Crews {
    fn start(
        &mut self,
        number: usize,
        pid: Option<u32>,
        work: impl Future<Output = Ending> + Send + 'static,
    ) {
        let process = Process {
            worker: number,
            pid,
            ..Process::default()
        };
        self.processes.insert(number, process);
        self.tasks.spawn(async move { (number, work.await) });
    }

    /// Cancel safe.
    async fn ended(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            // A crew that panicked stays as what it was: one that has not ended.
            if let Ok((number, ending)) = ended
                && let Some(process) = self.processes.get_mut(&number)
            {
                process.ending = ending;
            }
        }
    }

    /// Whoever has not ended by now is stuck; dropping its task kills its process.
    fn give_up(&mut self) {
        self.tasks.abort_all();
    }
}

/// Who still holds or waits on the server, in words.
async fn left_behind(relatch: &Relatch, name: &str) -> Option<String> {
    let bound = Instant::now() + LEFT_BEHIND;
    loop {
        match relatch.inspect(name).await {
            Ok(seen) if seen.holder_count == 0 && seen.waiter_count == 0 => break,
            // What a killed process held ends with its lease.
            Ok(_) if Instant::now() < bound => tokio::time::sleep(Duration::from_millis(20)).await,
            Ok(seen) => {
                return Some(format!(
                    "{} hold and {} wait",
                    seen.holder_count, seen.waiter_count
                ));
            }
            Err(error) => return Some(format!("the server can't be asked: {error}")),
        }
    }
    let closed = relatch.close().await;
    closed
        .err()
        .map(|error| format!("the client did not close: {error}"))
}

/// What the demo shows while it works: a line that changes, or where stderr is no terminal a new one now and then.
struct Progress {
    bar: Option<ProgressBar>,
    begun: Instant,
    seconds: u64,
}

impl Progress {
    fn new(seconds: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(seconds * 1000);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:20} {wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        let begun = Instant::now();
        Self { bar, begun, seconds }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| tell(line)),
            None => tell(line),
        }
    }

    /// Goes on for ever.
    async fn show(&self, referee: &Mutex<Referee>) {
        let each = if self.bar.is_some() { 100 } else { 2000 };
        loop {
            tokio::time::sleep(Duration::from_millis(each)).await;
            let elapsed = self.begun.elapsed();
            let counts = counts_line(&referee.lock().counts);
            match &self.bar {
                Some(bar) => {
                    bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
                    bar.set_message(counts);
                }
                None => tell(&format!(
                    "{:2.0} of {} s: {counts}",
                    elapsed.as_secs_f64(),
                    self.seconds
                )),
            }
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn counts_line(counts: &Counts) -> String {
    format!(
        "{} read, {} upgradable, {} write, {} deep; {} stale refused",
        HumanCount(counts.read.acquired),
        HumanCount(counts.upgradable.acquired),
        HumanCount(counts.write.acquired),
        counts.deepest_reentry,
        counts.stale_writes_refused,
    )
}

fn tell(line: &str) {
    // Progress that nobody can see is no reason to stop.
    let _ = writeln!(std::io::stderr(), "{line}");
}
