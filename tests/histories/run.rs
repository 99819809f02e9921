//! One run: a server, keepers, workers and faults; and what is left when they are gone.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::history::{At, Event, Resource, wall_clock_ahead};
use super::judge::{Circumstances, Judgement, judge};
use super::keeper::Keepers;
use super::nemesis::{Fault, Kind, Nemesis, Victims};
use super::support::{RedisServer, Reply, eventually_async};
use super::worker::connect;

/// How many processes work.
pub const WORKERS: usize = 5;

/// A hang guard: the ends of all waits and of all leases that faults left behind fit in many times.
const END: Duration = Duration::from_secs(60);

/// How long the faults go on after the last client was killed. Long enough for a request to get stuck in one of them, and then to
/// be found at the end.
const SPARED: Duration = Duration::from_secs(5);

pub struct Plan {
    /// What it is called in files and reports.
    pub title: &'static str,
    pub seed: u64,
    /// The server keeps what it acknowledged over a restart.
    pub keeps_data: bool,
    /// Without, the workers only say that they hold.
    pub locks: bool,
    pub faults: bool,
}

/// A run that has ended.
pub struct Run {
    pub plan: Plan,
    begun: At,
    pub lasted: Duration,
    /// How many processes there were, one after the other in the same places.
    pub processes: u32,
    /// How far the wall clock moved against the monotonic one.
    pub clock_moved: Duration,
    pub server_version: String,
    pub judgement: Judgement,
    pub faults: Vec<Fault>,
    /// For each fault how long it took after its end until somebody whom it had struck was granted a hold.
    pub recoveries: Vec<(Fault, Duration)>,
    /// What the names' keys still said about holds and waiters at the end.
    pub left_behind: Vec<String>,
    keepers: Keepers,
}

impl Run {
    /// Goes on until `enough` says so; it is asked again and again, and may block for a while.
    pub fn go(plan: Plan, mut enough: impl FnMut(&Keepers) -> bool) -> Self {
        let keepers = Keepers::start();
        let server = match plan.keeps_data {
            true => RedisServer::start_persistent(),
            false => RedisServer::start(),
        };
        let server_version = server
            .info("server", "redis_version")
            .unwrap_or_else(|| "unknown".to_owned());
        let dump = Dump(&keepers, plan.title);
        let (begun, ahead) = (At::now(), wall_clock_ahead());
        let victims = Arc::new(Victims::start(server, &keepers, &plan));
        let nemesis = plan.faults.then(|| Nemesis::begin(&victims, plan.seed));
        while !enough(&keepers) {}
        if let Some(nemesis) = nemesis {
            victims.spare_clients();
            let end = Instant::now() + SPARED;
            while Instant::now() < end {
                std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
            }
            nemesis.end();
        }
        let lasted = At::now().since(begun);
        let moved = (wall_clock_ahead() - ahead).unsigned_abs();
        victims.finish(END);
        let left_behind = match plan.locks {
            true => left_behind(victims.server()),
            false => Vec::new(),
        };
        drop(dump);

        let faults = victims.faults();
        let circumstances = Circumstances {
            begun,
            losses: match plan.keeps_data {
                true => Vec::new(),
                false => losses(&faults),
            },
            killed: victims.killed(),
        };
        let judgement = judge(&keepers.books.lock(), &circumstances);
        let recoveries = recoveries(&keepers, &victims, &faults);
        Self {
            plan,
            begun,
            lasted,
            processes: victims.processes(),
            clock_moved: Duration::from_nanos(u64::try_from(moved).unwrap_or(u64::MAX)),
            server_version,
            judgement,
            faults,
            recoveries,
            left_behind,
            keepers,
        }
    }

    /// Panics if anything was wrong, or if nothing was done, and then leaves the history in a file.
    #[track_caller]
    pub fn assert_right(&self) {
        let mut wrong = self.judgement.violations.clone();
        wrong.extend(self.left_behind.iter().map(|what| format!("left behind: {what}")));
        if self.judgement.checked.acknowledged == 0 || self.faults.is_empty() {
            wrong.push("nothing was done, or nothing went wrong".to_owned());
        }
        if !wrong.is_empty() {
            let file = write_history(&self.keepers, self.plan.title);
            let count = wrong.len();
            wrong.truncate(20);
            let since = |at: At| at.since(self.begun).as_millis();
            for fault in &self.faults {
                let (kind, worker) = (fault.kind, fault.worker);
                wrong.push(format!(
                    "{:>8} to {:>8} ms: {kind:?} {worker:?}",
                    since(fault.from),
                    since(fault.to)
                ));
            }
            panic!(
                "{}, seed {}: {count} violations; the wall clock moved by {:?}; the history is in {}\n{}",
                self.plan.title,
                self.plan.seed,
                self.clock_moved,
                file.display(),
                wrong.join("\n"),
            );
        }
    }
}

/// Leaves the history in a file if the run does not come to its end.
struct Dump<'a>(&'a Keepers, &'static str);

impl Drop for Dump<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let file = write_history(self.0, self.1);
            eprintln!("the history is in {}", file.display());
        }
    }
}

fn write_history(keepers: &Keepers, title: &str) -> PathBuf {
    let file =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.history", title.replace(' ', "-")));
    let write = || -> std::io::Result<()> {
        let mut to = std::io::BufWriter::new(std::fs::File::create(&file)?);
        for record in &keepers.books.lock().history {
            serde_json::to_writer(&mut to, record)?;
            to.write_all(b"\n")?;
        }
        to.flush()
    };
    // Whatever went wrong before is what must be told.
    if let Err(error) = write() {
        eprintln!("the history could not be written: {error}");
    }
    file
}

/// Takes and gives back each lock once more, and then tells what the server still has of holds and waiters.
fn left_behind(server: &RedisServer) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let relatch = connect(&server.url()).await;
        for resource in Resource::ALL {
            let lock = relatch.rwlock(resource.name()).expect("a name");
            eventually_async(END, "nobody holds and nobody waits", async || {
                // What a killed process left ends when its time is over and somebody looks.
                if let Ok(held) = lock.write().await {
                    let _ = held.release().await;
                }
                let seen = relatch.inspect(resource.name()).await;
                seen.is_ok_and(|seen| seen.holder_count == 0 && seen.waiter_count == 0)
            })
            .await;
        }
        relatch.close().await.expect("nothing is in the way of an end");
    });
    still_there(server)
}

/// What docs/protocol.md keeps of holds and waiters, in fields and keys; the rest is an idle name's, and ends by itself.
pub fn still_there(server: &RedisServer) -> Vec<String> {
    let mut left = Vec::new();
    for key in server.keys() {
        // A name where somebody waited once keeps the count, of none.
        let of_holds = |(field, value): &(&str, &str)| {
            field.starts_with(['@', '#']) || *field == "top" || (*field == "waiting" && *value != "0")
        };
        let lines =
            |words: &[&str]| -> Vec<String> { server.reply(words).items().iter().map(Reply::text).collect() };
        if key.ends_with('}') {
            let all = lines(&["HGETALL", &key]);
            let pairs = all
                .chunks_exact(2)
                .map(|pair| (pair[0].as_str(), pair[1].as_str()));
            let fields = pairs.filter(of_holds);
            left.extend(fields.map(|(field, _)| format!("{field} in {key}")));
        } else if key.ends_with(":readers") {
            let readers = lines(&["ZRANGE", &key, "0", "-1"]).into_iter();
            left.extend(
                readers
                    .filter(|owner| !owner.is_empty())
                    .map(|owner| format!("{owner} in {key}")),
            );
        } else if key.ends_with(":queue") || key.ends_with(":waiters") {
            left.push(key);
        }
    }
    left
}

/// When the server was killed and came back empty.
fn losses(faults: &[Fault]) -> Vec<(At, At)> {
    let lost = faults
        .iter()
        .filter(|fault| matches!(fault.kind, Kind::KillServer | Kind::RestartAll));
    lost.map(|fault| (fault.from, fault.to)).collect()
}

fn recoveries(keepers: &Keepers, victims: &Victims, faults: &[Fault]) -> Vec<(Fault, Duration)> {
    let books = keepers.books.lock();
    let mut granted: Vec<(At, usize)> = books
        .history
        .iter()
        .filter(|record| matches!(record.event, Event::Gets { .. }))
        .map(|record| (record.at, victims.worker(record.process)))
        .collect();
    granted.sort_unstable();
    faults
        .iter()
        .filter_map(|fault| {
            let from = granted.partition_point(|(at, _)| *at < fault.to);
            let mut after = granted[from..].iter();
            let (at, _) = after.find(|(_, worker)| fault.worker.is_none_or(|struck| struck == *worker))?;
            Some((fault.clone(), at.since(fault.to)))
        })
        .collect()
}
