//! Makes things fail, by a schedule that a seed decides: what, whom, for how long, and how long until the next.
//!
//! Three threads do it, one for processes, one for links and one for the server, so that their faults meet. Each fault ends before the
//! next of the same thread begins, and all have ended when [`Nemesis::end`] returns.

use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;

use super::history::{At, Event, Keeper, Record, Request, Resource};
use super::keeper::{Books, Keepers};
use super::run::{Plan, WORKERS};
use super::support::{ChildProcess, Direction, Proxy, RedisServer};
use super::worker::connect;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    KillClient,
    StopClient,
    Revoke,
    CutLink,
    HoldToServer,
    HoldToClient,
    HoldBoth,
    LoseReplies,
    Delay,
    KillServer,
    StopServer,
    RestartAll,
}

impl Kind {
    const OF_PROCESSES: [Kind; 4] = [Kind::KillClient, Kind::StopClient, Kind::StopClient, Kind::Revoke];
    const OF_LINKS: [Kind; 6] = [
        Kind::CutLink,
        Kind::HoldToServer,
        Kind::HoldToClient,
        Kind::HoldBoth,
        Kind::LoseReplies,
        Kind::Delay,
    ];
    const OF_THE_SERVER: [Kind; 3] = [Kind::KillServer, Kind::StopServer, Kind::RestartAll];

    pub fn words(self) -> &'static str {
        match self {
            Kind::KillClient => "client killed (SIGKILL), a new one started",
            Kind::StopClient => "client stopped past its lease (SIGSTOP, SIGCONT)",
            Kind::Revoke => "an operator revokes all who hold one of the two",
            Kind::CutLink => "client's link cut and refused",
            Kind::HoldToServer => "client's link silent towards the server",
            Kind::HoldToClient => "client's link silent towards the client",
            Kind::HoldBoth => "client's link silent both ways",
            Kind::LoseReplies => "client's replies lost",
            Kind::Delay => "client's link slow",
            Kind::KillServer => "server killed (SIGKILL) and restarted",
            Kind::StopServer => "server stopped (SIGSTOP, SIGCONT)",
            Kind::RestartAll => "server and every client killed and restarted",
        }
    }

    /// For how long, in milliseconds. Leases last 400.
    fn lasts(self, rng: &mut Rng) -> Duration {
        Duration::from_millis(match self {
            Kind::KillClient => rng.u64(0..300),
            Kind::StopClient => rng.u64(450..1300),
            Kind::Revoke => 0,
            Kind::CutLink => rng.u64(0..800),
            Kind::HoldToServer | Kind::HoldToClient | Kind::HoldBoth => rng.u64(50..1200),
            Kind::LoseReplies => rng.u64(20..600),
            Kind::Delay => rng.u64(300..1500),
            Kind::KillServer => rng.u64(0..1200),
            Kind::StopServer => rng.u64(50..1500),
            Kind::RestartAll => rng.u64(0..500),
        })
    }
}

/// A fault that was, from when it was asked for to when it was over.
#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: Kind,
    /// The worker that it struck; `None` is all of them.
    pub worker: Option<usize>,
    pub from: At,
    pub to: At,
}

/// A place for a worker: its link stays, its process may be replaced.
struct Place {
    proxy: Proxy,
    running: Mutex<Running>,
}

struct Running {
    child: ChildProcess,
    process: u32,
}

/// What faults can strike.
pub struct Victims {
    server: RedisServer,
    keeps_data: bool,
    places: Vec<Place>,
    books: Arc<Mutex<Books>>,
    socket: PathBuf,
    seed: u64,
    locks: bool,
    processes: AtomicU32,
    killed: Mutex<HashSet<u32>>,
    /// No client is killed any more.
    spared: AtomicBool,
    /// Which worker each process was.
    worked: Mutex<Vec<usize>>,
    faults: Mutex<Vec<Fault>>,
}

impl Victims {
    pub fn start(server: RedisServer, keepers: &Keepers, plan: &Plan) -> Self {
        let mut victims = Self {
            keeps_data: plan.keeps_data,
            places: Vec::new(),
            books: Arc::clone(&keepers.books),
            socket: keepers.socket().to_owned(),
            seed: plan.seed,
            locks: plan.locks,
            processes: AtomicU32::new(0),
            killed: Mutex::default(),
            spared: AtomicBool::new(false),
            worked: Mutex::default(),
            faults: Mutex::default(),
            server,
        };
        for worker in 0..WORKERS {
            let proxy = Proxy::start(victims.server.port());
            let running = Mutex::new(victims.spawn(worker, &proxy));
            victims.places.push(Place { proxy, running });
        }
        victims
    }

    pub fn server(&self) -> &RedisServer {
        &self.server
    }

    /// How many there ever were.
    pub fn processes(&self) -> u32 {
        self.processes.load(Ordering::Relaxed)
    }

    /// From now on no client is killed: who waits in vain is not put out of its misery.
    pub fn spare_clients(&self) {
        self.spared.store(true, Ordering::Relaxed);
    }

    pub fn killed(&self) -> HashSet<u32> {
        self.killed.lock().clone()
    }

    /// Which worker this process was.
    pub fn worker(&self, process: u32) -> usize {
        self.worked.lock()[process as usize - 1]
    }

    pub fn faults(&self) -> Vec<Fault> {
        self.faults.lock().clone()
    }

    fn spawn(&self, worker: usize, proxy: &Proxy) -> Running {
        let mut worked = self.worked.lock();
        worked.push(worker);
        let process = self.processes.fetch_add(1, Ordering::Relaxed) + 1;
        let child = ChildProcess::spawn(
            "child_that_works",
            &[
                ("URL", &proxy.url()),
                ("SOCKET", &self.socket.to_string_lossy()),
                ("PROCESS", &process.to_string()),
                ("SEED", &self.seed.to_string()),
                ("LOCKS", if self.locks { "yes" } else { "no" }),
            ],
        );
        Running { child, process }
    }

    fn kill(&self, worker: usize) {
        let mut running = self.places[worker].running.lock();
        let process = running.process;
        // Before it is dead: whoever sees its last word knows why there is no other.
        let fresh = self.killed.lock().insert(process);
        let status = running.child.kill();
        assert!(
            !fresh || died_of_it(status),
            "worker {worker} (process {process}) had ended by itself: {status}"
        );
    }

    /// Unless the other thread has done so already.
    fn replace(&self, worker: usize) {
        let place = &self.places[worker];
        let mut running = place.running.lock();
        if self.killed.lock().contains(&running.process) {
            *running = self.spawn(worker, &place.proxy);
        }
    }

    /// A worker that has just read, and is going to write what depends on it: a fault tells most there.
    fn vulnerable(&self, since: usize) -> Option<usize> {
        let books = self.books.lock();
        let reads = |record: &&Record| {
            matches!(
                record.event,
                Event::Calls {
                    keeper: Keeper::Checked,
                    request: Request::Get,
                    ..
                }
            )
        };
        let record = books.history.get(since..)?.iter().rev().find(reads)?;
        Some(self.worker(record.process))
    }

    fn begin(&self, kind: Kind, worker: usize, rng: &mut Rng) {
        let place = &self.places[worker];
        match kind {
            Kind::KillClient => self.kill(worker),
            Kind::StopClient => place.running.lock().child.stop(),
            Kind::Revoke => self.revoke(rng.choice(Resource::ALL).expect("there are two")),
            Kind::CutLink => {
                place.proxy.refuse(true);
                place.proxy.cut();
            }
            Kind::HoldToServer => place.proxy.silence(Direction::ToServer),
            Kind::HoldToClient => place.proxy.silence(Direction::ToClient),
            Kind::HoldBoth => place.proxy.silence(Direction::Both),
            Kind::LoseReplies => place.proxy.drop_replies(true),
            Kind::Delay => place.proxy.delay(Duration::from_millis(rng.u64(5..150))),
            Kind::KillServer => self.server.kill(),
            Kind::StopServer => self.server.stop(),
            Kind::RestartAll => {
                (0..self.places.len()).for_each(|worker| self.kill(worker));
                self.server.kill();
            }
        }
    }

    fn end(&self, kind: Kind, worker: usize) {
        let place = &self.places[worker];
        match kind {
            Kind::KillClient => self.replace(worker),
            Kind::StopClient => place.running.lock().child.cont(),
            Kind::Revoke => {}
            Kind::CutLink
            | Kind::HoldToServer
            | Kind::HoldToClient
            | Kind::HoldBoth
            | Kind::LoseReplies
            | Kind::Delay => place.proxy.heal(),
            Kind::KillServer => self.restart(),
            Kind::StopServer => self.server.cont(),
            Kind::RestartAll => {
                self.restart();
                (0..self.places.len()).for_each(|worker| self.replace(worker));
            }
        }
    }

    /// As an operator would: it takes until those who held have given back, or until their leases end, if the server can be reached at all.
    fn revoke(&self, resource: Resource) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let revoke = async { connect(&self.server.url()).await.revoke(resource.name()).await };
            // Whether it was done, or is done half, is one more thing that must not matter.
            let _ = tokio::time::timeout(Duration::from_secs(1), revoke).await;
        });
    }

    fn restart(&self) {
        match self.keeps_data {
            true => self.server.restart_with_data(),
            false => self.server.restart_empty(),
        }
    }

    /// Tells every worker to come to an end, and waits until all have.
    pub fn finish(&self, bound: Duration) {
        for place in &self.places {
            place.running.lock().child.tell("stop");
        }
        for (worker, place) in self.places.iter().enumerate() {
            let mut running = place.running.lock();
            let status = running.child.wait(bound);
            let process = running.process;
            assert!(
                status.success(),
                "worker {worker} (process {process}) ended with {status}"
            );
        }
    }
}

fn died_of_it(status: ExitStatus) -> bool {
    status.signal() == Some(9)
}

/// The three threads.
pub struct Nemesis {
    threads: Vec<(mpsc::Sender<()>, JoinHandle<()>)>,
}

impl Nemesis {
    pub fn begin(victims: &Arc<Victims>, seed: u64) -> Self {
        let thread = |name: &str, seed: u64, kinds: &'static [Kind], rests: std::ops::Range<u64>| {
            let (end, ended) = mpsc::channel();
            let victims = Arc::clone(victims);
            let strike = move || haunt(&victims, Rng::with_seed(seed), kinds, rests, &ended);
            let thread = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(strike)
                .expect("the system has room for one more thread");
            (end, thread)
        };
        Self {
            threads: vec![
                thread(
                    "faults of processes",
                    seed ^ 1 << 60,
                    &Kind::OF_PROCESSES,
                    50..500,
                ),
                thread("faults of links", seed ^ 2 << 60, &Kind::OF_LINKS, 50..500),
                thread(
                    "faults of the server",
                    seed ^ 3 << 60,
                    &Kind::OF_THE_SERVER,
                    1000..4000,
                ),
            ],
        }
    }

    /// Ends every fault; on return all have ended.
    pub fn end(self) {
        let threads: Vec<_> = self
            .threads
            .into_iter()
            .map(|(end, thread)| (drop(end), thread))
            .collect();
        for ((), thread) in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// How often, and how many times, is looked for somebody who is worth it, before anybody will do.
const LOOK: Duration = Duration::from_millis(1);
const LOOKS: usize = 200;

fn haunt(
    victims: &Victims,
    mut rng: Rng,
    kinds: &[Kind],
    rests: std::ops::Range<u64>,
    ended: &mpsc::Receiver<()>,
) {
    // Lets time pass, unless it is over.
    let passes = |time: Duration| ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
    // Every kind once before one comes again: also a short run sees them all.
    let mut left: Vec<Kind> = Vec::new();
    while passes(Duration::from_millis(rng.u64(rests.clone()))) {
        if left.is_empty() {
            left = kinds.to_vec();
            rng.shuffle(&mut left);
        }
        let kind = left.pop().expect("there are kinds");
        let kills = matches!(kind, Kind::KillClient | Kind::RestartAll);
        if kills && victims.spared.load(Ordering::Relaxed) {
            continue;
        }
        let lasts = kind.lasts(&mut rng);
        let mut worker = rng.usize(0..victims.places.len());
        if rng.u8(0..4) > 0 {
            let now = victims.books.lock().history.len();
            let looks = std::iter::repeat_with(|| passes(LOOK).then(|| victims.vulnerable(now)));
            let found = looks.take(LOOKS).map_while(|look| look).find_map(|found| found);
            worker = found.unwrap_or(worker);
        }
        let from = At::now();
        victims.begin(kind, worker, &mut rng);
        passes(lasts);
        victims.end(kind, worker);
        let fault = Fault {
            kind,
            worker: (kind != Kind::Revoke && !Kind::OF_THE_SERVER.contains(&kind)).then_some(worker),
            from,
            to: At::now(),
        };
        victims.faults.lock().push(fault);
    }
}
