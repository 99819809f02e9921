//! What users do with the lock: a random program per task, over the public interface alone.
//!
//! Names are taken in one order, so that nobody waits for whom it keeps waiting. What may come of an acquisition is judged here: the
//! errors that the documentation names, each only where it may come of what was asked, and within the time it names (G9).
//!
//! When the troubles are over everybody takes every name once more, to write and to read, and waits for as long as it takes: an
//! error is no way out then.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use crate::core::Core;
use crate::guard::{FromHold, ReadGuard, UpgradableGuard, WriteGuard};
use crate::lock::{Acquire, RwLock};
use crate::protocol::{Mode, Name};
use crate::watchdog::Held;
use crate::{Error, Owner, Relatch};

use super::Tally;
use super::gate::Gate;
use super::log::{Lane, Mark};
use super::plan::{Fault, Flaw};
use super::referee::Guarded;
use super::world::World;

/// How much longer than it says something may take: ticks of the timer, and a clock that runs slow.
const LATE: Duration = Duration::from_millis(20);

pub(super) struct User {
    pub(super) world: Arc<World>,
    pub(super) gate: Arc<Gate>,
    pub(super) relatch: Relatch,
    pub(super) core: Arc<Core>,
    pub(super) client: usize,
    pub(super) task: usize,
    pub(super) owner: Owner,
    /// One that another client has as well.
    pub(super) shared: Owner,
    pub(super) locks: Vec<RwLock>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) tally: Arc<parking_lot::Mutex<Tally>>,
}

enum Guard {
    Read(ReadGuard),
    Upgradable(UpgradableGuard),
    Write(WriteGuard),
}

macro_rules! each {
    ($guard:expr, $inner:ident => $what:expr) => {
        match $guard {
            Guard::Read($inner) => $what,
            Guard::Upgradable($inner) => $what,
            Guard::Write($inner) => $what,
        }
    };
}

impl Guard {
    fn mode(&self) -> Mode {
        each!(self, guard => guard.mode())
    }

    fn is_held(&self) -> bool {
        each!(self, guard => guard.is_held())
    }

    fn held(&self) -> &Arc<Held> {
        each!(self, guard => guard.0.held())
    }
}

/// A guard that the referee looks at.
struct Watched {
    guard: Guard,
    number: u64,
}

/// When a future is dropped.
#[derive(Clone, Copy)]
enum Patience {
    Endless,
    Polls(u64),
    Time(Duration),
}

/// An acquisition as it was drawn.
struct Wish {
    lock: RwLock,
    mode: Mode,
    owner: Owner,
    tries: bool,
    timeout: Option<Duration>,
    lease: Option<Duration>,
    max_hold: Option<Duration>,
    patience: Patience,
}

/// What was asked for, as far as it decides which errors may come of it.
struct Asked<'a> {
    begun_ms: u64,
    /// It had a timeout, and nothing else ends it with one.
    timed: bool,
    /// It is not kept for patience, but for an answer or for its timeout.
    hurried: bool,
    /// An acquisition may be refused to this owner of this name, if the server did so.
    refused: Option<(&'a Name, &'a Owner)>,
    /// It goes on from a hold, which may be lost.
    has_hold: bool,
}

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl User {
    pub(super) async fn run(self: Arc<Self>) {
        while !self.stop.load(Ordering::Relaxed) {
            self.rest().await;
            match self.world.draw(39) {
                0 => self.revoke().await,
                1 => self.inspect().await,
                _ => self.acquire_one(0, None, 0).await,
            }
        }
    }

    /// When all is well.
    pub(super) async fn get_everything(self: Arc<Self>) {
        for lock in &self.locks {
            for mode in [Mode::Write, Mode::Read] {
                self.must_get(lock, mode).await;
            }
        }
    }

    /// After the last fault: whoever waits gets in. Until the link is made anew, which it tells, it may say that it can't reach the server.
    async fn must_get(&self, lock: &RwLock, mode: Mode) {
        let (name, owner) = (&lock.name, Owner::new());
        self.mark(Mark::Waiting, name);
        let guard = loop {
            self.say("asks", || format!("must get {mode} in {name}"));
            let asked = self.asks(false, false, Some((name, &owner)));
            let outcome = match mode {
                Mode::Read => lock.read().owner(&owner).await.map(Guard::Read),
                _ => lock.write().owner(&owner).await.map(Guard::Write),
            };
            match outcome {
                Ok(guard) => break guard,
                Err(error) => {
                    let (calm_ms, now_ms, link) = {
                        let state = self.world.state();
                        (state.calm_ms, state.now_ms, state.plan.link())
                    };
                    let may_be_cut_off =
                        Duration::from_millis(now_ms - calm_ms) <= link * 3 + self.core.config.patience;
                    self.judge(&error, &asked);
                    if !error.is_unreachable() || !may_be_cut_off {
                        self.world.violate(|| {
                            format!(
                                "{} does not get on: {mode} in {name}, with no fault any more: {error}",
                                self.lane()
                            )
                        });
                        return;
                    }
                }
            }
        };
        self.count(|tally| tally.acquired += 1);
        let watched = self.watch(guard, lock);
        self.store(&watched, lock);
        let guard = self.unwatch(watched);
        let asked = self.asks_of_hold();
        if let Err(error) = each!(guard, guard => guard.release().await) {
            self.judge(&error, &asked);
        }
        self.idle();
    }

    fn asks<'a>(&self, timed: bool, hurried: bool, refused: Option<(&'a Name, &'a Owner)>) -> Asked<'a> {
        Asked {
            begun_ms: self.world.state().now_ms,
            timed,
            hurried,
            refused,
            has_hold: false,
        }
    }

    /// A release or a downgrade: it has patience.
    fn asks_of_hold(&self) -> Asked<'static> {
        Asked {
            has_hold: true,
            ..self.asks(false, false, None)
        }
    }

    fn lane(&self) -> Lane {
        Lane::Task(self.client, self.task)
    }

    fn say(&self, what: &'static str, text: impl FnOnce() -> String) {
        self.world.event(self.lane(), what, text);
    }

    fn mark(&self, mark: Mark, name: &Name) {
        self.world.mark(self.lane(), mark, name.as_str());
    }

    fn idle(&self) {
        self.world.mark(self.lane(), Mark::Idle, "");
    }

    fn count(&self, count: impl FnOnce(&mut Tally)) {
        count(&mut self.tally.lock());
    }

    async fn rest(&self) {
        let most = self.world.state().plan.rest_ms;
        let rest = self.world.draw(most);
        if rest > 0 {
            tokio::time::sleep(Duration::from_millis(rest)).await;
        }
    }

    fn wish(&self, from: usize, within: Option<(&RwLock, &Owner)>) -> Wish {
        let (mode, kind, keep, drop) = {
            let state = &mut *self.world.state();
            let drops = state.plan.does(Fault::Drop) && !state.calm;
            (
                state.rng.u8(0..10),
                state.rng.u8(0..10),
                state.rng.u8(0..12),
                if drops { state.rng.u8(0..8) } else { 9 },
            )
        };
        let mode = match mode {
            0..=4 => Mode::Read,
            5..=6 => Mode::Upgradable,
            _ => Mode::Write,
        };
        let lease_ms = self.world.state().plan.lease_ms;
        let some = |most: u64| Duration::from_millis(10 + self.world.draw(most));
        let (lock, owner) = match within {
            Some((lock, owner)) => (lock.clone(), owner.clone()),
            None => {
                let at = from
                    + usize::try_from(self.world.draw((self.locks.len() - from - 1) as u64)).unwrap_or(0);
                let owner = match self.world.draw(5) {
                    0 => self.shared.clone(),
                    1 => Owner::new(),
                    _ => self.owner.clone(),
                };
                (self.locks[at].clone(), owner)
            }
        };
        Wish {
            lock,
            mode,
            owner,
            tries: kind < 2,
            timeout: match kind {
                2..=4 => Some(some(lease_ms)),
                5 => Some(Duration::ZERO),
                // Whoever waits for its own owner's other task may wait for itself.
                _ if within.is_some() => Some(some(lease_ms * 2)),
                _ => None,
            },
            lease: (keep < 2).then(|| some(lease_ms)),
            max_hold: (keep == 2).then(|| some(lease_ms * 2)),
            patience: match drop {
                0 => Patience::Polls(self.world.draw(6)),
                1 => Patience::Time(Duration::from_millis(self.world.draw(lease_ms.min(500)))),
                _ => Patience::Endless,
            },
        }
    }

    /// One acquisition and what is done within it; deeper ones take later names, or the same one again.
    fn acquire_one<'a>(
        &'a self,
        from: usize,
        within: Option<(&'a RwLock, &'a Owner)>,
        depth: usize,
    ) -> Boxed<'a, ()> {
        Box::pin(async move {
            let wish = self.wish(from, within);
            self.say("asks", || {
                format!(
                    "asks for {} in {}{}{}, owner {:.8}",
                    wish.mode,
                    wish.lock.name(),
                    if wish.tries { " at once" } else { "" },
                    wish.timeout.map_or(String::new(), |t| format!(" within {t:?}")),
                    wish.owner.to_string(),
                )
            });
            if depth == 0 {
                self.mark(Mark::Waiting, &wish.lock.name);
            }
            let hurried = wish.tries || wish.timeout.is_some();
            let timed = !wish.tries && wish.timeout.is_some();
            let asked = self.asks(timed, hurried, Some((&wish.lock.name, &wish.owner)));
            let flaw = self.world.state().plan.flaw;
            let asking = async {
                match wish.mode {
                    Mode::Read => Ok(ask(&wish, flaw, wish.lock.read(), wish.lock.try_read())
                        .await?
                        .map(Guard::Read)),
                    Mode::Upgradable => Ok(ask(
                        &wish,
                        flaw,
                        wish.lock.upgradable_read(),
                        wish.lock.try_upgradable_read(),
                    )
                    .await?
                    .map(Guard::Upgradable)),
                    Mode::Write => Ok(ask(&wish, flaw, wish.lock.write(), wish.lock.try_write())
                        .await?
                        .map(Guard::Write)),
                }
            };
            let outcome = self.abandon(wish.patience, asking).await;
            self.judge_time(&wish, asked.begun_ms);
            match outcome {
                None => {}
                Some(Ok(Some(guard))) => {
                    self.count(|tally| tally.acquired += 1);
                    self.hold(guard, &wish, depth).await;
                }
                Some(Ok(None)) => {
                    self.count(|tally| tally.busy += 1);
                    self.say("busy", || "somebody is in the way".into());
                    if !wish.tries {
                        self.world.violate(|| format!("{} was told nothing", self.lane()));
                    }
                }
                Some(Err(error)) => self.judge(&error, &asked),
            }
            if depth == 0 {
                self.idle();
            }
        })
    }

    /// An error that may come of it.
    fn judge(&self, error: &Error, asked: &Asked<'_>) {
        let (refuses, patient, refused) = {
            let state = self.world.state();
            // On its own clock, which may run slow or fast.
            let took = Duration::from_millis(state.now_ms - asked.begun_ms) + LATE;
            let refused = asked
                .refused
                .is_some_and(|(name, owner)| state.referee.was_refused(name, owner.id()));
            (
                state.plan.does(Fault::Refuse),
                took.mul_f64(1.02) >= state.plan.config.patience,
                refused,
            )
        };
        let (word, allowed) = if error.is_timeout() {
            self.count(|tally| tally.timeouts += 1);
            ("timeout", asked.timed)
        } else if error.is_unreachable() {
            self.count(|tally| tally.unreachable += 1);
            ("unreachable", asked.hurried || patient)
        } else if error.is_refused() {
            ("refused", refused)
        } else if error.is_lost() {
            ("lost", asked.has_hold)
        } else if error.is_closed() {
            ("closed", self.core.is_ending())
        } else {
            ("server", error.is_server() && refuses)
        };
        self.say(word, || error.to_string());
        if !allowed {
            let promise = if error.is_refused() { "G4" } else { "G9" };
            self.world.violate(|| {
                format!(
                    "{promise} {}: an error that may not come of this: {error}",
                    self.lane()
                )
            });
        }
    }

    /// G9: a timeout holds, whatever the server does.
    fn judge_time(&self, wish: &Wish, begun: u64) {
        let state = &mut *self.world.state();
        let took = Duration::from_millis(state.now_ms - begun);
        let bound = match wish.timeout {
            _ if wish.tries => state.plan.config.response_timeout * 2,
            Some(timeout) if timeout.is_zero() => state.plan.config.response_timeout * 2 + BLAME,
            Some(timeout) => timeout + BLAME,
            None => return,
        };
        // A clock that runs slow, by more if that is the flaw.
        let slow = if state.plan.flaw.is_some() {
            bound / 10
        } else {
            bound / 50
        };
        let bound = bound + slow + LATE;
        // Time that passed while it was stopped is nobody's fault.
        if self.gate.open_since().is_some_and(|open_ms| open_ms <= begun) && took > bound {
            let lane = self.lane();
            state.violate(|| format!("G9 {lane}: took {took:?}, and {bound:?} is the most"));
        }
    }

    /// Runs it, and drops it when patience ends.
    async fn abandon<T>(&self, patience: Patience, work: impl Future<Output = T>) -> Option<T> {
        let limit = async {
            match patience {
                Patience::Time(time) => tokio::time::sleep(time).await,
                _ => std::future::pending().await,
            }
        };
        let mut left = match patience {
            Patience::Polls(polls) => polls,
            _ => u64::MAX,
        };
        let mut work = Box::pin(work);
        let mut limit = Box::pin(limit);
        let done = std::future::poll_fn(|cx| {
            if left == 0 || limit.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            left -= 1;
            let polled = work.as_mut().poll(cx).map(Some);
            if left == 0 && polled.is_pending() {
                return Poll::Ready(None);
            }
            polled
        })
        .await;
        if done.is_none() {
            drop(work);
            let lane = self.lane();
            self.world
                .state()
                .note(Fault::Drop, lane, || "drops what it waits for".into());
        }
        done
    }

    fn watch(&self, guard: Guard, lock: &RwLock) -> Watched {
        let told = Arc::new(AtomicBool::new(false));
        let lost = each!(&guard, guard => Box::pin(guard.lost()) as Boxed<'static, _>);
        let late = self.world.state().plan.flaw == Some(Flaw::LostUnheard);
        self.gate.spawn(self.lane(), {
            let told = told.clone();
            async move {
                let _ = lost.await;
                if late {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                told.store(true, Ordering::Relaxed);
            }
        });
        let mode = guard.mode();
        let held = guard.held().clone();
        self.mark(
            match mode {
                Mode::Read => Mark::Read,
                Mode::Upgradable => Mark::Upgradable,
                Mode::Write => Mark::Write,
            },
            &lock.name,
        );
        let (name, request, fence) = (lock.name.clone(), held.member.request, held.fence);
        self.say("holds", || {
            format!("holds {mode} in {name} by {request}, fence {fence}")
        });
        let number = {
            let state = &mut *self.world.state();
            state.referee.enter(Guarded {
                who: format!("{} with {request}", self.lane()),
                name: name.clone(),
                mode,
                held,
                core: self.core.clone(),
                gate: self.gate.clone(),
                told,
                ended_ms: None,
            })
        };
        self.look(&name);
        Watched { guard, number }
    }

    fn look(&self, name: &crate::protocol::Name) {
        self.world.state().look(name);
        self.world.settle();
    }

    /// Takes the guard out of the referee's sight, as its user has done with it.
    fn unwatch(&self, watched: Watched) -> Guard {
        self.world.state().referee.leave(watched.number);
        watched.guard
    }

    /// What is done with a guard, until it is given back.
    async fn hold(&self, guard: Guard, wish: &Wish, depth: usize) {
        let lock = &wish.lock;
        let at = self.locks.iter().position(|l| l.name == lock.name).unwrap_or(0);
        let mut watched = self.watch(guard, lock);
        let steps = self.world.draw(3);
        for _ in 0..steps {
            if !watched.guard.is_held() {
                self.count(|tally| tally.lost += 1);
                self.mark(Mark::Lost, &lock.name);
                self.say("sees", || "sees that it is lost".into());
                break;
            }
            match self.world.draw(11) {
                0..=2 => self.rest().await,
                3 | 4 => self.store(&watched, lock),
                5 => {
                    let work = async {
                        self.rest().await;
                        self.rest().await;
                    };
                    let done = each!(&watched.guard, guard => guard.protect(work).await);
                    self.say("protected", || format!("did protected work: {}", done.is_ok()));
                    if done.is_err() && watched.guard.is_held() {
                        self.world
                            .violate(|| format!("G2 {}: protect() ended, but it is held", self.lane()));
                    }
                }
                6 if at + 1 < self.locks.len() => self.acquire_one(at + 1, None, depth + 1).await,
                7 if depth < 3 => self.acquire_one(at, Some((lock, &wish.owner)), depth + 1).await,
                8..=11 => match self.turn(watched, lock).await {
                    Some(turned) => watched = turned,
                    None => return,
                },
                _ => self.rest().await,
            }
        }
        self.store(&watched, lock);
        let guard = self.unwatch(watched);
        match self.world.draw(3) {
            0 => {
                self.say("drops", || "drops its guard".into());
                drop(guard);
            }
            1 if self.world.state().plan.does(Fault::Drop) => {
                self.say("releases", || "begins to release".into());
                let patience = Patience::Polls(self.world.draw(4));
                let _ = self
                    .abandon(patience, async { each!(guard, guard => guard.release().await) })
                    .await;
            }
            _ => {
                self.say("releases", || "releases".into());
                let asked = self.asks_of_hold();
                match each!(guard, guard => guard.release().await) {
                    Ok(()) => self.say("released", || "released".into()),
                    Err(error) => self.judge(&error, &asked),
                }
            }
        }
    }

    /// Upgrades or downgrades.
    async fn turn(&self, watched: Watched, lock: &RwLock) -> Option<Watched> {
        let kind = self.world.draw(3);
        let guard = self.unwatch(watched);
        let owner = each!(&guard, guard => guard.owner());
        let asked = self.asks_of_hold();
        let of_upgrade = |timed| Asked {
            has_hold: true,
            ..self.asks(timed, true, Some((&lock.name, &owner)))
        };
        let turned = match guard {
            Guard::Read(guard) => Ok(Guard::Read(guard)),
            Guard::Write(guard) if kind == 0 => {
                self.say("downgrades", || "downgrades to read".into());
                guard.downgrade().await.map(Guard::Read)
            }
            Guard::Write(guard) if kind == 1 => {
                self.say("downgrades", || "downgrades to upgradable".into());
                guard.downgrade_to_upgradable().await.map(Guard::Upgradable)
            }
            Guard::Write(guard) => Ok(Guard::Write(guard)),
            Guard::Upgradable(guard) if kind == 0 => {
                self.say("downgrades", || "downgrades to read".into());
                guard.downgrade().await.map(Guard::Read)
            }
            Guard::Upgradable(guard) if kind == 1 => {
                self.say("upgrades", || "tries to upgrade".into());
                let asked = of_upgrade(false);
                match guard.try_upgrade().await {
                    Ok(Ok(guard)) => Ok(Guard::Write(guard)),
                    Ok(Err(guard)) => Ok(Guard::Upgradable(guard)),
                    Err(failed) => {
                        self.judge(failed.error(), &asked);
                        Ok(Guard::Upgradable(failed.into_guard()))
                    }
                }
            }
            Guard::Upgradable(guard) => {
                let asked = of_upgrade(true);
                let lease_ms = self.world.state().plan.lease_ms;
                let patience = if self.world.state().plan.does(Fault::Drop) && self.world.draw(4) == 0 {
                    Patience::Polls(self.world.draw(6))
                } else {
                    Patience::Endless
                };
                let timeout = Duration::from_millis(self.world.draw(lease_ms));
                self.say("upgrades", || format!("upgrades within {timeout:?}"));
                let upgrade = guard.upgrade().timeout(timeout);
                match self.abandon(patience, upgrade.into_future()).await {
                    None => return None,
                    Some(Ok(guard)) => Ok(Guard::Write(guard)),
                    Some(Err(failed)) => {
                        self.judge(failed.error(), &asked);
                        Ok(Guard::Upgradable(failed.into_guard()))
                    }
                }
            }
        };
        match turned {
            Ok(guard) => {
                self.count(|tally| tally.turned += 1);
                Some(self.watch(guard, lock))
            }
            Err(error) => {
                self.judge(&error, &asked);
                None
            }
        }
    }

    /// Writes what the lock guards, with the fence; as a slow program would, whether or not it still holds.
    fn store(&self, watched: &Watched, lock: &RwLock) {
        if let Guard::Write(guard) = &watched.guard {
            let held = guard.0.held();
            let accepted = self.world.state().referee.store(&lock.name, held);
            self.say("writes", || {
                format!("writes with fence {}: accepted {accepted}", held.fence)
            });
        }
    }

    async fn revoke(&self) {
        let lock = &self.locks[usize::try_from(self.world.draw(self.locks.len() as u64 - 1)).unwrap_or(0)];
        self.say("revokes", || format!("revokes {}", lock.name()));
        let asked = self.asks(false, false, None);
        match self.relatch.revoke(lock.name()).await {
            Ok(taken) => self.say("revoked", || format!("{taken} revoked")),
            Err(error) => self.judge(&error, &asked),
        }
    }

    async fn inspect(&self) {
        let lock = &self.locks[usize::try_from(self.world.draw(self.locks.len() as u64 - 1)).unwrap_or(0)];
        let asked = self.asks(false, false, None);
        match self.relatch.inspect(lock.name()).await {
            Ok(seen) => self.say("inspects", || {
                format!("sees {} hold and {} wait", seen.holder_count, seen.waiter_count)
            }),
            Err(error) => self.judge(&error, &asked),
        }
    }
}

/// How long a wait that ran out is kept to learn who was in the way.
const BLAME: Duration = Duration::from_millis(250);

async fn ask<G: FromHold>(
    wish: &Wish,
    flaw: Option<Flaw>,
    acquire: Acquire<G>,
    tries: crate::TryAcquire<G>,
) -> Result<Option<G>, Error> {
    if wish.tries {
        let mut tries = tries.owner(&wish.owner);
        if let Some(lease) = wish.lease {
            tries = tries.lease(lease);
        }
        if let Some(max_hold) = wish.max_hold {
            tries = tries.max_hold(max_hold);
        }
        return tries.await;
    }
    let mut acquire = acquire.owner(&wish.owner);
    let timeout = match flaw {
        Some(Flaw::TimeoutsForgotten) => None,
        Some(Flaw::TimeoutsUnasked) => wish.timeout.or(Some(Duration::from_millis(100))),
        _ => wish.timeout,
    };
    if let Some(timeout) = timeout {
        acquire = acquire.timeout(timeout);
    }
    if let Some(lease) = wish.lease {
        acquire = acquire.lease(lease);
    }
    if let Some(max_hold) = wish.max_hold {
        acquire = acquire.max_hold(max_hold);
    }
    acquire.await.map(Some)
}
