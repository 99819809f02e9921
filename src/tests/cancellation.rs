//! Nothing is left behind: every operation × every fault of every call it makes × a drop after every number of polls.
//!
//! Leases may not help: no case moves the clock by as much as a claim.

use std::future::{Future, IntoFuture as _};
use std::pin::Pin;
use std::time::Duration;

use super::faulty::{Any, ByHand, Client, Fault, PAUSE, alone, settle, work};
use crate::backend::embedded::Embedded;
use crate::clock::Clock;
use crate::error::Error;
use crate::guard::{UpgradableGuard, WriteGuard};
use crate::owner::Owner;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Read,
    Upgradable,
    Write,
    Reenter,
    TryWrite,
    TryWriteBusy,
    ReadQueued,
    UpgradableQueued,
    WriteQueued,
    WriteAtMost,
    UpgradeAtOnce,
    UpgradeQueued,
    UpgradeAtMost,
    TryUpgrade,
    TryUpgradeBusy,
    Downgrade,
    DowngradeToUpgradable,
    DowngradeUpgradable,
    ReleaseRead,
    ReleaseWrite,
    Inspect,
    Revoke,
    CloseHolding,
    CloseWaiting,
}

impl Op {
    /// It waits for somebody else to leave.
    fn waits(self) -> bool {
        use Op::*;
        matches!(
            self,
            ReadQueued | UpgradableQueued | WriteQueued | WriteAtMost | UpgradeQueued | UpgradeAtMost
        )
    }

    fn times_out(self) -> bool {
        matches!(self, Op::WriteAtMost | Op::UpgradeAtMost)
    }
}

const TIMEOUT: Duration = Duration::from_millis(50);

/// What happens while the future waits, when nothing else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nudge {
    /// What is slow goes on.
    Go,
    /// Who is in the way leaves.
    Unblock,
    /// The timeout passes.
    Time,
    /// No more faults.
    Heal,
}

/// When copies arrive that were given up for lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LateAt {
    /// As soon as the future is ready or dropped.
    AtOnce,
    /// When everything that was begun is done.
    Settled,
    /// When everything is given back.
    GivenBack,
}

#[derive(Clone, Debug)]
struct Case {
    op: Op,
    faults: Vec<(usize, Fault)>,
    order: Vec<Nudge>,
    late_at: LateAt,
    /// Drop the future after so many polls.
    drop_after: usize,
}

struct World {
    clock: Clock,
    server: Embedded,
    client: Client,
    other: Client,
    owner: Owner,
    /// Others that are in the way.
    in_the_way: Vec<Any>,
    /// What the client under test holds besides.
    kept: Vec<Any>,
    also: Option<ByHand<Outcome>>,
}

type Outcome = Result<Vec<Any>, (Error, Vec<Any>)>;
type Running = Pin<Box<dyn Future<Output = Outcome>>>;

fn only<G>(wrap: fn(G) -> Any) -> impl FnOnce(Result<G, Error>) -> Outcome {
    move |got| {
        got.map(|guard| vec![wrap(guard)])
            .map_err(|error| (error, Vec::new()))
    }
}

async fn nothing<T>(done: impl Future<Output = Result<T, Error>>) -> Outcome {
    done.await
        .map(|_| Vec::new())
        .map_err(|error| (error, Vec::new()))
}

impl World {
    fn new() -> Self {
        let clock = Clock::manual();
        let server = Embedded::with_clock(clock.clone());
        Self {
            client: Client::here(&server),
            other: Client::here(&server),
            clock,
            server,
            owner: Owner::new(),
            in_the_way: Vec::new(),
            kept: Vec::new(),
            also: None,
        }
    }

    async fn others_write(&mut self) {
        let guard = self.other.lock().write().await.expect("free");
        self.in_the_way.push(Any::Write(guard));
    }

    async fn others_read(&mut self) {
        let guard = self.other.lock().read().await.expect("free");
        self.in_the_way.push(Any::Read(guard));
    }

    async fn upgradable(&self) -> UpgradableGuard {
        let lock = self.client.lock();
        lock.upgradable_read().owner(&self.owner).await.expect("free")
    }

    async fn written(&self) -> WriteGuard {
        self.client.lock().write().owner(&self.owner).await.expect("free")
    }

    /// All that comes before the first poll of the operation under test.
    async fn begin(&mut self, op: Op) -> Running {
        let lock = self.client.lock();
        let owner = self.owner.clone();
        let relatch = self.client.relatch.clone();
        match op {
            Op::Read => {
                let read = lock.read().owner(&owner).into_future();
                Box::pin(async { only(Any::Read)(read.await) })
            }
            Op::Upgradable => {
                let upgradable = lock.upgradable_read().owner(&owner).into_future();
                Box::pin(async { only(Any::Upgradable)(upgradable.await) })
            }
            Op::Write => {
                let write = lock.write().owner(&owner).into_future();
                Box::pin(async { only(Any::Write)(write.await) })
            }
            Op::Reenter => {
                self.kept.push(Any::Write(self.written().await));
                let write = lock.write().owner(&owner).into_future();
                Box::pin(async { only(Any::Write)(write.await) })
            }
            Op::TryWrite | Op::TryWriteBusy => {
                if op == Op::TryWriteBusy {
                    self.others_read().await;
                }
                let write = lock.try_write().owner(&owner).into_future();
                Box::pin(async {
                    match write.await {
                        Ok(got) => Ok(got.into_iter().map(Any::Write).collect()),
                        Err(error) => Err((error, Vec::new())),
                    }
                })
            }
            Op::ReadQueued => {
                self.others_write().await;
                let read = lock.read().owner(&owner).into_future();
                Box::pin(async { only(Any::Read)(read.await) })
            }
            Op::UpgradableQueued => {
                self.others_write().await;
                let upgradable = lock.upgradable_read().owner(&owner).into_future();
                Box::pin(async { only(Any::Upgradable)(upgradable.await) })
            }
            Op::WriteQueued => {
                self.others_read().await;
                let write = lock.write().owner(&owner).into_future();
                Box::pin(async { only(Any::Write)(write.await) })
            }
            Op::WriteAtMost => {
                self.others_read().await;
                let write = lock.write().owner(&owner).timeout(TIMEOUT).into_future();
                Box::pin(async { only(Any::Write)(write.await) })
            }
            Op::UpgradeAtOnce | Op::UpgradeQueued | Op::UpgradeAtMost => {
                let guard = self.upgradable().await;
                if op != Op::UpgradeAtOnce {
                    self.others_read().await;
                }
                let mut upgrade = guard.upgrade();
                if op == Op::UpgradeAtMost {
                    upgrade = upgrade.timeout(TIMEOUT);
                }
                Box::pin(async {
                    match upgrade.await {
                        Ok(guard) => Ok(vec![Any::Write(guard)]),
                        Err(failed) => {
                            let error = failed.error().clone();
                            Err((error, vec![Any::Upgradable(failed.into_guard())]))
                        }
                    }
                })
            }
            Op::TryUpgrade | Op::TryUpgradeBusy => {
                let guard = self.upgradable().await;
                if op == Op::TryUpgradeBusy {
                    self.others_read().await;
                }
                Box::pin(async {
                    match guard.try_upgrade().await {
                        Ok(Ok(guard)) => Ok(vec![Any::Write(guard)]),
                        Ok(Err(guard)) => Ok(vec![Any::Upgradable(guard)]),
                        Err(failed) => {
                            let error = failed.error().clone();
                            Err((error, vec![Any::Upgradable(failed.into_guard())]))
                        }
                    }
                })
            }
            Op::Downgrade => {
                let guard = self.written().await;
                Box::pin(async { only(Any::Read)(guard.downgrade().await) })
            }
            Op::DowngradeToUpgradable => {
                let guard = self.written().await;
                Box::pin(async { only(Any::Upgradable)(guard.downgrade_to_upgradable().await) })
            }
            Op::DowngradeUpgradable => {
                let guard = self.upgradable().await;
                Box::pin(async { only(Any::Read)(guard.downgrade().await) })
            }
            Op::ReleaseRead => {
                let guard = lock.read().owner(&owner).await.expect("free");
                Box::pin(nothing(guard.release()))
            }
            Op::ReleaseWrite => {
                let guard = self.written().await;
                Box::pin(nothing(guard.release()))
            }
            Op::Inspect => {
                self.kept.push(Any::Write(self.written().await));
                Box::pin(nothing(async move {
                    let seen = relatch.inspect(super::faulty::NAME).await?;
                    assert_eq!((seen.holder_count, seen.holders.len()), (1, 1));
                    Ok(())
                }))
            }
            Op::Revoke => {
                self.others_write().await;
                Box::pin(nothing(async move { relatch.revoke(super::faulty::NAME).await }))
            }
            Op::CloseHolding => {
                self.kept.push(Any::Write(self.written().await));
                Box::pin(nothing(async move { relatch.close().await }))
            }
            Op::CloseWaiting => {
                self.others_write().await;
                let waiting = lock.read().owner(&owner).into_future();
                let mut waiting = ByHand::new(async { only(Any::Read)(waiting.await) });
                // Not known to be in line yet when the client closes.
                self.client
                    .wire
                    .fail(super::faulty::Kind::Acquire, Fault::SlowReply);
                assert!(waiting.poll().is_none());
                self.client.wire.spare(super::faulty::Kind::Acquire);
                self.also = Some(waiting);
                Box::pin(nothing(async move { relatch.close().await }))
            }
        }
    }

    fn nudge(&mut self, nudge: Nudge) {
        match nudge {
            Nudge::Go => self.client.wire.let_go(),
            Nudge::Unblock => self.in_the_way.clear(),
            Nudge::Time => self.clock.advance(TIMEOUT + PAUSE),
            Nudge::Heal => self.client.wire.heal(),
        }
    }

    /// Until nothing is being given back any more, within less than a claim.
    async fn settle(&self) {
        work().await;
        for _ in 0..12 {
            if self.client.core.reaper.is_settled() && self.other.core.reaper.is_settled() {
                return;
            }
            self.clock.advance(PAUSE);
            work().await;
        }
    }

    /// What a guard says is so.
    fn check_truth(&self, case: &Case, guards: &[Any], settled: bool) {
        let mut there: Vec<_> = self
            .client
            .server_has_of(&self.owner)
            .iter()
            .map(|row| row.mode)
            .collect();
        let mut said: Vec<_> = guards
            .iter()
            .chain(&self.kept)
            .filter(|guard| guard.is_held())
            .map(Any::mode)
            .collect();
        there.sort();
        said.sort();
        if settled {
            assert_eq!(there, said, "the server has, the guards say: {case:?}");
        } else {
            // An undoing may still be under way: then there is more on the server than is said.
            assert!(there.len() >= said.len(), "{there:?} {said:?} {case:?}");
        }
    }
}

/// How a case went: the polls it took, the calls it made, and whether anything arrived late.
struct Went {
    polls: usize,
    calls: usize,
    late: bool,
}

async fn run(case: &Case) -> Went {
    let mut world = World::new();
    let running = world.begin(case.op).await;
    work().await;
    world.client.wire.arm(&case.faults);
    let mut nudges = case.order.iter().copied();
    let mut future = ByHand::new(running);
    let mut polls = 0;
    let mut ticks = 0;
    let outcome = loop {
        if polls == case.drop_after {
            break None;
        }
        polls += 1;
        if let Some(outcome) = future.poll() {
            break Some(outcome);
        }
        work().await;
        if !future.is_woken() {
            match nudges.next() {
                Some(nudge) => world.nudge(nudge),
                None => {
                    ticks += 1;
                    assert!(ticks < 60, "never ready: {case:?}");
                    world.clock.advance(PAUSE);
                }
            }
            work().await;
        }
    };
    drop(future);
    let guards = match outcome {
        None => Vec::new(),
        Some(Ok(guards)) => guards,
        Some(Err((error, guards))) => {
            let refused = case.faults.iter().any(|(_, fault)| *fault == Fault::Refuse);
            // A timeout that comes while the server owes an answer says so.
            let unanswered = error.is_unreachable() && !case.faults.is_empty();
            let expected =
                ((error.is_timeout() || unanswered) && case.op.times_out()) || (error.is_server() && refused);
            assert!(expected, "{error}: {case:?}");
            guards
        }
    };
    world.check_truth(case, &guards, false);
    let mut late = world.client.wire.has_late();
    if case.late_at == LateAt::AtOnce {
        world.client.wire.deliver_late();
    }
    // What was dropped is handed in while faults are still there.
    work().await;
    world.client.wire.heal();
    world.settle().await;
    if case.op != Op::Revoke {
        late |= world.client.wire.has_late();
        if case.late_at == LateAt::Settled {
            world.client.wire.deliver_late();
            work().await;
        }
        world.in_the_way.clear();
        if let Some(mut also) = world.also.take() {
            while also.is_woken() {
                if let Some(outcome) = also.poll() {
                    // Granted before the client was closed, or not at all.
                    assert!(
                        outcome.is_ok_and(|guards| !guards.iter().any(Any::is_held))
                            || case.op == Op::CloseWaiting
                    );
                    break;
                }
                work().await;
            }
        }
        world.settle().await;
        world.check_truth(case, &guards, true);
    }
    let kept = std::mem::take(&mut world.kept);
    for (at, guard) in guards.into_iter().chain(kept).enumerate() {
        if at == 0 {
            // The first is given back aloud, the others by a drop.
            let was_held = guard.is_held();
            let released = guard.release().await;
            assert_eq!(released.is_ok(), was_held, "{released:?}: {case:?}");
        }
    }
    world.in_the_way.clear();
    world.settle().await;
    late |= world.client.wire.has_late();
    world.client.wire.deliver_late();
    world.settle().await;

    let calls = world.client.wire.calls().len();
    assert!(
        world.server.is_idle(),
        "{:?}: {case:?}",
        world.client.server_has()
    );
    assert_eq!(world.client.leftovers(), None, "{case:?}");
    let mut next = ByHand::new(world.other.lock().write().into_future());
    assert!(next.poll().is_some_and(|got| got.is_ok()), "{case:?}");
    // When the last handle has gone, so does the client's task.
    let core = world.client.core.clone();
    drop(world.client);
    drop(world.other);
    settle(&world.clock).await;
    assert!(
        ByHand::new(async move { core.ended().await }).poll().is_some(),
        "{case:?}"
    );
    Went { polls, calls, late }
}

/// Every drop of one course of events.
async fn every_drop(case: Case, cases: &mut usize) -> Went {
    let whole = run(&case).await;
    *cases += 1;
    let late_ats = if whole.late {
        &[LateAt::AtOnce, LateAt::Settled, LateAt::GivenBack][..]
    } else {
        &[LateAt::AtOnce][..]
    };
    for &late_at in late_ats {
        for drop_after in 0..=whole.polls {
            let dropped = Case {
                late_at,
                drop_after,
                ..case.clone()
            };
            run(&dropped).await;
            *cases += 1;
        }
    }
    whole
}

fn orders(op: Op) -> Vec<Vec<Nudge>> {
    use Nudge::{Go, Heal, Time, Unblock};
    match (op.waits(), op.times_out()) {
        (true, true) => vec![
            vec![Go, Unblock, Time, Heal],
            vec![Go, Time, Unblock, Heal],
            vec![Unblock, Go, Time, Heal],
            vec![Unblock, Time, Go, Heal],
            vec![Time, Go, Unblock, Heal],
            vec![Time, Unblock, Go, Heal],
        ],
        (true, false) => vec![vec![Go, Unblock, Heal], vec![Unblock, Go, Heal]],
        (false, _) => vec![vec![Go, Heal]],
    }
}

/// One fault; and in one order of events each two faults that follow each other.
fn nothing_is_left(op: Op) {
    let mut cases = 0;
    alone(async {
        for (at, order) in orders(op).into_iter().enumerate() {
            let case = |faults: Vec<(usize, Fault)>| Case {
                op,
                faults,
                order: order.clone(),
                late_at: LateAt::GivenBack,
                drop_after: usize::MAX,
            };
            let mut number = 0;
            let mut calls = every_drop(case(Vec::new()), &mut cases).await.calls;
            while number < calls {
                for first in Fault::ALL {
                    let went = every_drop(case(vec![(number, first)]), &mut cases).await;
                    if number == 0 {
                        calls = calls.max(went.calls.min(6));
                    }
                    let seconds = [Fault::Refuse, Fault::LoseReply, Fault::Late, Fault::Slow];
                    for second in seconds.into_iter().filter(|_| at == usize::from(op.times_out())) {
                        every_drop(case(vec![(number, first), (number + 1, second)]), &mut cases).await;
                    }
                }
                number += 1;
            }
        }
    });
    println!("{op:?}: {cases} cases");
}

macro_rules! nothing_is_left_by {
    ($($claim:ident: $op:ident,)*) => {
        $(#[test]
        fn $claim() {
            nothing_is_left(Op::$op);
        })*
        /// Every operation is in the table.
        #[test]
        fn every_operation_is_tried() {
            let tried = [$(Op::$op),*];
            assert_eq!(tried.len(), Op::CloseWaiting as usize + 1);
            assert!(tried.iter().enumerate().all(|(at, op)| *op as usize == at));
        }
    };
}

nothing_is_left_by! {
    nothing_is_left_by_a_read: Read,
    nothing_is_left_by_an_upgradable_read: Upgradable,
    nothing_is_left_by_a_write: Write,
    nothing_is_left_by_a_reentry: Reenter,
    nothing_is_left_by_a_try_that_succeeds: TryWrite,
    nothing_is_left_by_a_try_that_does_not: TryWriteBusy,
    nothing_is_left_by_a_queued_read: ReadQueued,
    nothing_is_left_by_a_queued_upgradable_read: UpgradableQueued,
    nothing_is_left_by_a_queued_write: WriteQueued,
    nothing_is_left_by_a_write_with_a_timeout: WriteAtMost,
    nothing_is_left_by_an_upgrade_at_once: UpgradeAtOnce,
    nothing_is_left_by_a_queued_upgrade: UpgradeQueued,
    nothing_is_left_by_an_upgrade_with_a_timeout: UpgradeAtMost,
    nothing_is_left_by_a_tried_upgrade_that_succeeds: TryUpgrade,
    nothing_is_left_by_a_tried_upgrade_that_does_not: TryUpgradeBusy,
    nothing_is_left_by_a_downgrade: Downgrade,
    nothing_is_left_by_a_downgrade_to_upgradable: DowngradeToUpgradable,
    nothing_is_left_by_a_downgrade_of_an_upgradable: DowngradeUpgradable,
    nothing_is_left_by_a_read_release: ReleaseRead,
    nothing_is_left_by_a_write_release: ReleaseWrite,
    nothing_is_left_by_an_inspection: Inspect,
    nothing_is_left_by_a_revocation: Revoke,
    nothing_is_left_by_closing_while_holding: CloseHolding,
    nothing_is_left_by_closing_while_waiting: CloseWaiting,
}

#[test]
fn closing_gives_back_what_is_being_released() {
    for fault in [Fault::Slow, Fault::NeverSent, Fault::NeverHeard, Fault::SlowReply] {
        alone(async {
            let world = World::new();
            let guard = world.written().await;
            world.client.wire.arm(&[(0, fault)]);
            let mut release = ByHand::new(guard.release());
            assert!(release.poll().is_none());
            let relatch = world.client.relatch.clone();
            let mut close = ByHand::new(async move { relatch.close().await });
            assert!(close.poll().is_none());
            work().await;
            assert!(close.poll().is_some_and(|closed| closed.is_ok()));
            assert!(
                release
                    .poll()
                    .is_some_and(|released| released.is_err_and(|error| error.is_lost()))
            );
            drop(release);
            world.client.wire.heal();
            world.client.wire.deliver_late();
            assert!(world.server.is_idle());
            assert_eq!(world.client.leftovers(), None);
        });
    }
}

#[test]
fn closing_takes_out_of_the_line_who_does_not_look() {
    alone(async {
        let world = World::new();
        let other = Client::here(&world.server);
        let held = other.lock().write().await.expect("free");
        let mut write = ByHand::new(world.client.lock().write().into_future());
        assert!(write.poll().is_none());
        work().await;
        assert_eq!(other.server_has().waiters, 1);
        let relatch = world.client.relatch.clone();
        let mut close = ByHand::new(async move { relatch.close().await });
        assert!(close.poll().is_none());
        work().await;
        assert!(close.poll().is_some_and(|closed| closed.is_ok()));
        assert_eq!(other.server_has().waiters, 0);
        drop(held);
        work().await;
        assert!(world.server.is_idle());
        assert!(
            write
                .poll()
                .is_some_and(|got| got.is_err_and(|error| error.is_closed()))
        );
    });
}

#[test]
fn nothing_is_acquired_after_closing() {
    alone(async {
        let mut world = World::new();
        // Its task ends only when that is confirmed.
        world.kept.push(Any::Write(world.written().await));
        world.client.wire.arm(&[(0, Fault::NeverSent)]);
        let mut early = ByHand::new(world.client.lock().write().into_future());
        let relatch = world.client.relatch.clone();
        let mut close = ByHand::new(async move { relatch.close().await });
        assert!(close.poll().is_none());
        assert!(
            early
                .poll()
                .is_some_and(|got| got.is_err_and(|error| error.is_closed()))
        );
        assert_eq!(world.client.wire.calls(), []);
        world.client.wire.heal();
        settle(&world.clock).await;
        assert!(close.poll().is_some_and(|closed| closed.is_ok()));
        assert!(world.server.is_idle());
    });
}

#[test]
fn a_grant_that_is_pushed_while_the_client_closes_is_given_back() {
    alone(async {
        let mut world = World::new();
        world.others_write().await;
        let mut write = ByHand::new(world.client.lock().write().into_future());
        assert!(write.poll().is_none());
        world.client.wire.pushes(super::faulty::Pushes::Kept);
        world.client.wire.fail(super::faulty::Kind::Withdraw, Fault::Slow);
        world.in_the_way.clear();
        work().await;
        let relatch = world.client.relatch.clone();
        let mut close = ByHand::new(async move { relatch.close().await });
        assert!(close.poll().is_none());
        world.client.wire.deliver_pushes();
        work().await;
        assert!(close.poll().is_none(), "the server still has it");
        world.client.wire.heal();
        settle(&world.clock).await;
        assert!(close.poll().is_some_and(|closed| closed.is_ok()));
        assert!(
            write
                .poll()
                .is_some_and(|got| got.is_err_and(|error| error.is_closed()))
        );
        drop(write);
        assert!(world.server.is_idle());
        assert_eq!(world.client.leftovers(), None);
    });
}

#[test]
fn what_is_handed_in_again_is_done_even_if_the_first_is_answered_meanwhile() {
    alone(async {
        let world = World::new();
        let guard = world.written().await;
        let requests = vec![world.client.server_has().holding[0].request];
        world
            .client
            .wire
            .arm(&[(0, Fault::SlowReply), (1, Fault::LoseRequest)]);
        // Lost, and given back; then the guard is dropped, and gives back again.
        world
            .client
            .core
            .push(crate::protocol::Push::Revoked { requests }, None);
        work().await;
        drop(guard);
        work().await;
        world.client.wire.let_go();
        work().await;
        assert_eq!(world.client.wire.calls().len(), 2);
        world.clock.advance(PAUSE);
        work().await;
        assert_eq!(world.client.wire.calls().len(), 3);
        assert_eq!(world.client.leftovers(), None);
    });
}

#[test]
fn what_the_server_refuses_to_take_back_is_handed_in_again() {
    alone(async {
        let world = World::new();
        let guard = world.written().await;
        world
            .client
            .wire
            .fail(super::faulty::Kind::Release, Fault::Refuse);
        drop(guard);
        settle(&world.clock).await;
        assert!(!world.server.is_idle());
        world.client.wire.heal();
        // As rarely as it asks at last.
        world.clock.advance(std::time::Duration::from_secs(5));
        settle(&world.clock).await;
        assert!(world.server.is_idle());
        assert_eq!(world.client.leftovers(), None);
    });
}
