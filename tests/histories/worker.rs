//! A process that uses locks to guard what the keepers keep. It is stopped and killed at any point.
//!
//! It has one client and several tasks. Each task, over and over, takes a hold in one of the ways there are, reads, thinks, writes what
//! depends on what it read, and gives the hold back in one of the ways there are. With the unchecked keeper it is as careless as most
//! programs are: it does not look at its guard between. With the checked one it is careful every other time, and else leaves it to the fence.
//!
//! It tells of everything it does, and judges nothing.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use relatch::{Error, Mode, Owner, ReadGuard, Relatch, RwLock, UpgradableGuard, WriteGuard};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use super::history::{Answer, At, Event, Id, Keeper, Record, Request, Resource};
use super::support::child;

/// Short, so that a run sees many of them end.
pub const LEASE: Duration = Duration::from_millis(400);
pub const CLAIM: Duration = Duration::from_millis(300);

/// How many tasks a worker has.
const TASKS: usize = 2;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A client as workers have it, as soon as the server can be reached.
pub async fn connect(url: &str) -> Relatch {
    loop {
        let connected = Relatch::builder()
            .url(url)
            .lease(LEASE)
            .claim(CLAIM)
            .connect_timeout(ms(800))
            .response_timeout(ms(400))
            .idle_ping(ms(300))
            .connect()
            .await;
        match connected {
            Ok(relatch) => return relatch,
            Err(error) => assert!(error.is_unreachable(), "it could not connect: {error}"),
        }
        tokio::time::sleep(ms(20)).await;
    }
}

/// A worker's life. It ends when it is told to on stdin, after every task got in once more.
pub fn work() {
    let told = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("a worker is told its {name}"));
    let process: u32 = told("PROCESS").parse().expect("PROCESS is a number");
    let seed: u64 = told("SEED").parse().expect("SEED is a number");
    let (url, socket, locks) = (told("URL"), told("SOCKET"), told("LOCKS") == "yes");

    let stop = watch::Sender::new(false);
    let stopped = stop.subscribe();
    // Its parent says when. A parent that is gone says the same.
    std::thread::spawn(move || {
        child::hear();
        stop.send_replace(true);
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let relatch = connect(&url).await;
        let ids = AtomicU64::new(u64::from(process) << 32);
        let tasks = (0..TASKS as u64).map(|task| {
            let seed = seed ^ (u64::from(process) << 8) ^ task;
            Task::live(
                &relatch,
                Path::new(&socket),
                process,
                seed,
                locks,
                &ids,
                stopped.clone(),
            )
        });
        futures_util::future::join_all(tasks).await;
        relatch.close().await.expect("nothing is in the way of an end");
    });
}

/// A guard, or in a run without locks only the word for it.
enum Guard {
    Read(ReadGuard),
    Upgradable(UpgradableGuard),
    Write(WriteGuard),
    None,
}

impl Guard {
    fn is_held(&self) -> bool {
        match self {
            Guard::Read(guard) => guard.is_held(),
            Guard::Upgradable(guard) => guard.is_held(),
            Guard::Write(guard) => guard.is_held(),
            Guard::None => true,
        }
    }

    fn fence(&self) -> u64 {
        match self {
            Guard::Read(guard) => guard.fence(),
            Guard::Upgradable(guard) => guard.fence(),
            Guard::Write(guard) => guard.fence(),
            Guard::None => 1,
        }
    }

    async fn release(self) {
        // That it was lost, or is not known to be back, changes nothing for whoever is done with it.
        let _ = match self {
            Guard::Read(guard) => guard.release().await,
            Guard::Upgradable(guard) => guard.release().await,
            Guard::Write(guard) => guard.release().await,
            Guard::None => Ok(()),
        };
    }
}

/// A guard and what it is called in the history.
struct Hold {
    id: Id,
    resource: Resource,
    owner: (Id, Owner),
    guard: Guard,
}

/// How patient an acquisition is.
#[derive(Clone, Copy)]
enum Patience {
    /// As patient as its client.
    Endless,
    Timeout(Duration),
    /// Its future is dropped.
    Abandon(Duration),
    /// It does not wait.
    None,
}

struct Task<'a> {
    relatch: &'a Relatch,
    process: u32,
    locks: bool,
    ids: &'a AtomicU64,
    rng: Rng,
    from: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
    last: bool,
}

impl<'a> Task<'a> {
    async fn live(
        relatch: &'a Relatch,
        socket: &Path,
        process: u32,
        seed: u64,
        locks: bool,
        ids: &'a AtomicU64,
        stopped: watch::Receiver<bool>,
    ) {
        let stream = UnixStream::connect(socket).await.expect("the keepers are there");
        let (from, to) = stream.into_split();
        let mut task = Task {
            relatch,
            process,
            locks,
            ids,
            rng: Rng::with_seed(seed),
            from: BufReader::new(from),
            to,
            last: false,
        };
        while !*stopped.borrow() {
            let resource = task.rng.choice(Resource::ALL).expect("there are two");
            task.operate(resource).await;
        }
        task.last = true;
        for resource in Resource::ALL {
            task.update(resource, Patience::Endless).await;
        }
    }

    // -- what it tells and asks ---------------------------------------------------------------------------------

    fn id(&self) -> Id {
        self.ids.fetch_add(1, Ordering::Relaxed) + 1
    }

    async fn tell(&mut self, at: At, event: Event) {
        let record = Record {
            process: self.process,
            at,
            event,
        };
        let mut line = serde_json::to_string(&record).expect("a record can be written");
        line.push('\n');
        // One write, so that a record is there whole or not at all but for a kill in its midst.
        self.to
            .write_all(line.as_bytes())
            .await
            .expect("the keepers are there");
    }

    async fn ask(&mut self, hold: &Hold, keeper: Keeper, request: Request) -> (Id, Answer) {
        let call = self.id();
        let event = Event::Calls {
            call,
            resource: hold.resource,
            keeper,
            fence: hold.guard.fence(),
            hold: hold.id,
            request,
        };
        self.tell(At::now(), event).await;
        let mut line = String::new();
        let length = self.from.read_line(&mut line).await;
        assert!(length.is_ok_and(|length| length > 0), "the keepers answer");
        let answer = serde_json::from_str(&line).expect("the keepers answer in their own words");
        self.tell(At::now(), Event::Hears { call, answer }).await;
        (call, answer)
    }

    async fn get(&mut self, hold: &Hold, keeper: Keeper) -> (Id, u64) {
        match self.ask(hold, keeper, Request::Get).await {
            (call, Answer::Is(value)) => (call, value),
            (_, other) => panic!("a get is answered by a value, not by {other:?}"),
        }
    }

    async fn put(&mut self, hold: &Hold, keeper: Keeper, (after, base): (Id, u64)) {
        let value = self.id();
        self.ask(hold, keeper, Request::Put { after, base, value }).await;
    }

    /// Looks at the guard, and tells what it said.
    async fn look(&mut self, hold: &Hold) -> bool {
        let before = At::now();
        let held = hold.guard.is_held();
        let (at, event) = match held {
            true => (before, Event::Holds { hold: hold.id }),
            false => (At::now(), Event::Loses { hold: hold.id }),
        };
        self.tell(at, event).await;
        held
    }

    /// Takes its time, most often a few milliseconds.
    async fn think(&mut self) {
        let think = match self.rng.u8(0..20) {
            0 => self.rng.u64(20..80),
            1..=5 => 0,
            _ => self.rng.u64(1..6),
        };
        tokio::time::sleep(ms(think)).await;
    }

    // -- holds --------------------------------------------------------------------------------------------------

    fn lock(&self, resource: Resource) -> RwLock {
        self.relatch.rwlock(resource.name()).expect("a name")
    }

    async fn asks(&mut self, resource: Resource, mode: Mode, owner: Id) -> Id {
        let hold = self.id();
        let event = Event::Asks {
            hold,
            resource,
            mode,
            owner,
            last: self.last,
        };
        self.tell(At::now(), event).await;
        hold
    }

    /// Tells what became of an acquisition.
    async fn outcome(
        &mut self,
        id: Id,
        resource: Resource,
        owner: (Id, Owner),
        got: Result<Guard, String>,
    ) -> Option<Hold> {
        let at = At::now();
        match got {
            Ok(guard) => {
                let hold = Hold {
                    id,
                    resource,
                    owner,
                    guard,
                };
                let fence = hold.guard.fence();
                self.tell(at, Event::Gets { hold: id, fence }).await;
                self.look(&hold).await;
                Some(hold)
            }
            Err(why) => {
                self.tell(at, Event::Fails { hold: id, why }).await;
                None
            }
        }
    }

    async fn acquire(
        &mut self,
        resource: Resource,
        mode: Mode,
        owner: Option<(Id, Owner)>,
        patience: Patience,
    ) -> Option<Hold> {
        let owner = owner.unwrap_or_else(|| (self.id(), Owner::new()));
        let id = self.asks(resource, mode, owner.0).await;
        let lock = self.lock(resource);
        let locks = self.locks;
        let acquiring = async {
            macro_rules! acquired {
                ($request:expr, $try:expr, $guard:path) => {
                    match patience {
                        Patience::Timeout(timeout) => {
                            $request.owner(&owner.1).timeout(timeout).await.map($guard)
                        }
                        Patience::None => match $try.owner(&owner.1).await {
                            Ok(Some(guard)) => Ok($guard(guard)),
                            Ok(None) => return Err("busy".to_owned()),
                            Err(error) => Err(error),
                        },
                        _ => $request.owner(&owner.1).await.map($guard),
                    }
                };
            }
            let got = match mode {
                _ if !locks => return Ok(Guard::None),
                Mode::Read => acquired!(lock.read(), lock.try_read(), Guard::Read),
                Mode::Upgradable => {
                    acquired!(
                        lock.upgradable_read(),
                        lock.try_upgradable_read(),
                        Guard::Upgradable
                    )
                }
                Mode::Write => acquired!(lock.write(), lock.try_write(), Guard::Write),
            };
            got.map_err(|error| why(&error, patience))
        };
        let got = match patience {
            Patience::Abandon(after) => tokio::time::timeout(after, acquiring)
                .await
                .unwrap_or_else(|_| Err("abandoned".to_owned())),
            _ => acquiring.await,
        };
        self.outcome(id, resource, owner, got).await
    }

    fn patience(&mut self) -> Patience {
        match self.rng.u8(0..20) {
            0..=4 => Patience::Timeout(ms(self.rng.u64(20..1500))),
            5 => Patience::Abandon(ms(self.rng.u64(0..40))),
            6 => Patience::None,
            _ => Patience::Endless,
        }
    }

    /// Looks a last time, and gives it back, one way or the other.
    async fn end(&mut self, hold: Hold) {
        self.look(&hold).await;
        match self.rng.u8(0..5) {
            0 => drop(hold),
            _ => hold.guard.release().await,
        }
    }

    // -- what it does -------------------------------------------------------------------------------------------

    async fn operate(&mut self, resource: Resource) {
        let patience = self.patience();
        match self.rng.u8(0..20) {
            0..=8 => self.update(resource, patience).await,
            9..=10 => self.update_upgraded(resource, patience).await,
            11..=12 => self.update_then_read(resource, patience).await,
            13 => self.update_within_read_of_its_own(resource, patience).await,
            14 if self.rng.u8(0..10) == 0 => self.linger(resource, patience).await,
            _ => self.read(resource, patience).await,
        }
    }

    async fn update(&mut self, resource: Resource, patience: Patience) {
        if let Some(hold) = self.acquire(resource, Mode::Write, None, patience).await {
            self.change(&hold).await;
            self.end(hold).await;
        }
    }

    /// Reads, thinks and writes what depends on what was read.
    async fn change(&mut self, hold: &Hold) {
        let unchecked = self.get(hold, Keeper::Unchecked).await;
        let checked = self.get(hold, Keeper::Checked).await;
        self.think().await;
        self.put(hold, Keeper::Unchecked, unchecked).await;
        let careful = self.rng.bool();
        if self.look(hold).await || !careful {
            self.put(hold, Keeper::Checked, checked).await;
        }
    }

    async fn read(&mut self, resource: Resource, patience: Patience) {
        if let Some(hold) = self.acquire(resource, Mode::Read, None, patience).await {
            self.peruse(&hold).await;
            self.end(hold).await;
        }
    }

    /// Holds for longer than a lease and looks all the time: what a guard says while its lease cannot be renewed counts most.
    async fn linger(&mut self, resource: Resource, patience: Patience) {
        let modes = [Mode::Read, Mode::Upgradable, Mode::Write];
        let mode = self.rng.choice(modes).expect("there are three");
        let Some(hold) = self.acquire(resource, mode, None, patience).await else {
            return;
        };
        for _ in 0..self.rng.u32(20..80) {
            tokio::time::sleep(ms(8)).await;
            if !self.look(&hold).await {
                break;
            }
        }
        self.end(hold).await;
    }

    async fn peruse(&mut self, hold: &Hold) {
        self.get(hold, Keeper::Unchecked).await;
        self.get(hold, Keeper::Checked).await;
        self.think().await;
        self.get(hold, Keeper::Checked).await;
    }

    /// What an upgradable hold has read is old news once it is upgraded: under the new fence it is read again.
    async fn update_upgraded(&mut self, resource: Resource, patience: Patience) {
        let Some(hold) = self.acquire(resource, Mode::Upgradable, None, patience).await else {
            return;
        };
        self.peruse(&hold).await;
        if !self.look(&hold).await {
            return self.end(hold).await;
        }
        let id = self.asks(resource, Mode::Write, hold.owner.0).await;
        let got = match hold.guard {
            Guard::Upgradable(guard) => guard
                .upgrade()
                .await
                .map(Guard::Write)
                .map_err(|failed| why(failed.error(), Patience::Endless)),
            other => Ok(other),
        };
        if let Some(hold) = self.outcome(id, resource, hold.owner, got).await {
            self.change(&hold).await;
            self.end(hold).await;
        }
    }

    async fn update_then_read(&mut self, resource: Resource, patience: Patience) {
        let Some(hold) = self.acquire(resource, Mode::Write, None, patience).await else {
            return;
        };
        self.change(&hold).await;
        if !self.look(&hold).await {
            return self.end(hold).await;
        }
        let id = self.asks(resource, Mode::Read, hold.owner.0).await;
        let got = match hold.guard {
            Guard::Write(guard) => guard
                .downgrade()
                .await
                .map(Guard::Read)
                .map_err(|error| why(&error, Patience::Endless)),
            other => Ok(other),
        };
        if let Some(hold) = self.outcome(id, resource, hold.owner, got).await {
            self.peruse(&hold).await;
            self.end(hold).await;
        }
    }

    async fn update_within_read_of_its_own(&mut self, resource: Resource, patience: Patience) {
        let Some(hold) = self.acquire(resource, Mode::Write, None, patience).await else {
            return;
        };
        let owner = Some(hold.owner.clone());
        let within = self.acquire(resource, Mode::Read, owner, Patience::Endless).await;
        self.change(&hold).await;
        if let Some(within) = within {
            self.end(within).await;
        }
        self.end(hold).await;
    }
}

/// In a word, for the judge to know whether faults explain it.
fn why(error: &Error, patience: Patience) -> String {
    let hurried = matches!(patience, Patience::Timeout(_) | Patience::None);
    match () {
        () if error.is_timeout() && hurried => "timeout".to_owned(),
        () if error.is_unreachable() && hurried => "unreachable".to_owned(),
        // It was patient for far longer than any fault lasts.
        () if error.is_unreachable() => "out of patience".to_owned(),
        () if error.is_lost() => "lost".to_owned(),
        () => error.to_string(),
    }
}
