//! A guard never says that it is held when somebody else may hold; nobody waits for the dead longer than a claim.

use std::future::IntoFuture as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::faulty::{ByHand, Client, Fault, Kind, PAUSE, Pushes, alone, settle, work};
use crate::backend::Heard;
use crate::backend::embedded::Embedded;
use crate::clock::Clock;
use crate::config::Config;
use crate::core::Home;
use crate::error::LostCause;
use crate::owner::Owner;
use crate::protocol::{Answer, Released, Reply};

const STEP: Duration = Duration::from_millis(100);

fn world() -> (Clock, Embedded) {
    let clock = Clock::manual();
    (clock.clone(), Embedded::with_clock(clock))
}

/// Moves the clock step by step.
async fn pass(clock: &Clock, time: Duration) {
    let mut passed = Duration::ZERO;
    while passed < time {
        let step = STEP.min(time - passed);
        clock.advance(step);
        work().await;
        passed += step;
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_guard_ends_before_its_lease_when_renewals_are_not_answered() {
    for fault in [Fault::NeverSent, Fault::LoseRequest, Fault::Refuse] {
        alone(async {
            let (clock, server) = world();
            let config = Config {
                lease: seconds(3),
                ..Config::default()
            };
            let home = Home::Runtime(tokio::runtime::Handle::current());
            let client = Client::with(&server, config, home);
            let guard = client.lock().write().await.expect("free");
            let deadline_ms = client.server_has().holding[0].deadline_ms;
            let mut lost = ByHand::new(guard.lost());
            client.wire.fail(Kind::Renew, fault);
            client.wire.fail(Kind::Release, Fault::NeverSent);
            let cause = loop {
                if let Some(cause) = lost.poll() {
                    break cause;
                }
                assert!(guard.is_held());
                clock.advance(Duration::from_millis(1));
                work().await;
            };
            assert_eq!(cause, LostCause::Lapsed);
            assert!(!guard.is_held());
            assert!(client.server_ms() < deadline_ms);
            // The server still has it, and would not give it to anybody yet.
            assert_eq!(client.server_has().holders, 1);
        });
    }
}

#[test]
fn a_grant_wakes_who_is_granted_once_and_nobody_else() {
    alone(async {
        let (_clock, server) = world();
        let home = || Home::Runtime(tokio::runtime::Handle::current());
        let (holder, client) = (Client::new(&server, home()), Client::new(&server, home()));
        let held = holder.lock().write().await.expect("free");
        let mut line: Vec<_> = (0..5)
            .map(|_| ByHand::new(client.lock().write().into_future()))
            .collect();
        for waiter in &mut line {
            // Until it stands in line; what it is woken for on its way there does not count.
            while waiter.is_woken() {
                assert!(waiter.poll().is_none());
                work().await;
            }
        }
        held.release().await.expect("held");
        work().await;
        let wakes: Vec<u64> = line.iter().map(ByHand::wakes).collect();
        assert_eq!(wakes, [1, 0, 0, 0, 0]);
        let next = line
            .remove(0)
            .poll()
            .expect("it is its own already")
            .expect("granted");
        next.release().await.expect("held");
        work().await;
        let wakes: Vec<u64> = line.iter().map(ByHand::wakes).collect();
        assert_eq!(wakes, [1, 0, 0, 0]);
    });
}

#[test]
fn a_clock_that_jumps_past_the_lease_is_seen_at_the_first_look() {
    alone(async {
        let (clock, server) = world();
        let client = Client::here(&server);
        let guard = client.lock().write().await.expect("free");
        clock.advance(seconds(30));
        assert!(!guard.is_held());
        assert_eq!(guard.valid_for(), Duration::ZERO);
        assert_eq!(ByHand::new(guard.lost()).poll(), Some(LostCause::Lapsed));
    });
}

#[test]
fn a_late_renewal_resurrects_nothing() {
    alone(late_renewal());
}

async fn late_renewal() {
    let (clock, server) = world();
    let client = Client::here(&server);
    let guard = client.lock().write().await.expect("free");
    work().await;
    client.wire.fail(Kind::Renew, Fault::SlowReply);
    pass(&clock, seconds(11)).await;
    assert_eq!(
        client
            .wire
            .calls()
            .iter()
            .filter(|kind| **kind == Kind::Renew)
            .count(),
        1
    );
    clock.advance(seconds(20));
    assert!(!guard.is_held());
    client.wire.let_go();
    for _ in 0..64 {
        tokio::task::yield_now().await;
        assert!(!guard.is_held());
    }
    settle(&clock).await;
    // The server had renewed it: then it is given back.
    assert!(server.is_idle());
}

#[test]
fn a_hold_is_renewed_for_as_long_as_its_guard_lives() {
    alone(async {
        let (clock, server) = world();
        let client = Client::here(&server);
        let guard = client.lock().write().await.expect("free");
        let mut lost = ByHand::new(guard.lost());
        for _ in 0..30 {
            pass(&clock, seconds(10)).await;
            assert!(guard.is_held());
            assert!(lost.poll().is_none());
        }
        // Far fewer renewals than there was time for.
        assert!(client.wire.calls().len() < 35);
        guard.release().await.expect("held");
        assert!(server.is_idle());
    });
}

#[test]
fn holds_of_many_names_are_renewed_a_hundred_a_call() {
    alone(async {
        let (clock, server) = world();
        let client = Client::here(&server);
        let mut guards = Vec::new();
        for n in 0..1000 {
            let lock = client.relatch.rwlock(&format!("name {n}")).expect("a name");
            guards.push(lock.write().await.expect("free"));
            // None falls due together with another.
            clock.advance(Duration::from_millis(9));
        }
        let before = client.wire.calls().len();
        pass(&clock, seconds(30)).await;
        assert!(guards.iter().all(|guard| guard.is_held()));
        let renewals = client.wire.calls().len() - before;
        assert!(
            (30..=40).contains(&renewals),
            "{renewals} calls for 3,000 renewals"
        );
    });
}

#[test]
fn a_revocation_whose_push_is_lost_is_found_by_the_next_renewal() {
    alone(async {
        let (clock, server) = world();
        let (client, other) = (Client::here(&server), Client::here(&server));
        let guard = client.lock().write().await.expect("free");
        let mut lost = ByHand::new(guard.lost());
        work().await;
        client.wire.pushes(Pushes::Lost);
        let relatch = other.relatch.clone();
        let mut revoke = ByHand::new(async move { relatch.revoke(super::faulty::NAME).await });
        assert!(revoke.poll().is_none());
        assert!(lost.poll().is_none());
        pass(&clock, seconds(11)).await;
        assert_eq!(lost.poll(), Some(LostCause::Revoked));
        assert!(!guard.is_held());
        pass(&clock, seconds(1)).await;
        assert!(matches!(revoke.poll(), Some(Ok(1))));
    });
}

#[test]
fn a_revocation_that_is_pushed_is_known_at_once() {
    alone(async {
        let (_clock, server) = world();
        let (client, other) = (Client::here(&server), Client::here(&server));
        let guard = client.lock().write().await.expect("free");
        let mut lost = ByHand::new(guard.lost());
        assert!(lost.poll().is_none());
        let relatch = other.relatch.clone();
        let mut revoke = ByHand::new(async move { relatch.revoke(super::faulty::NAME).await });
        assert!(revoke.poll().is_none());
        work().await;
        assert!(lost.is_woken());
        assert_eq!(lost.poll(), Some(LostCause::Revoked));
        assert!(server.is_idle(), "it was given back");
    });
}

#[test]
fn a_hold_that_another_server_does_not_know_is_lost_at_once_over_a_new_link() {
    alone(async {
        let (_clock, server) = world();
        let client = Client::here(&server);
        let guard = client.lock().write().await.expect("free");
        work().await;
        client.take_back(&client.server_has().holding[0]);
        assert!(guard.is_held());
        client.wire.relink();
        work().await;
        assert!(!guard.is_held());
        assert_eq!(ByHand::new(guard.lost()).poll(), Some(LostCause::Forgotten));
    });
}

#[test]
fn a_hold_that_the_server_forgot_is_lost_at_the_next_renewal() {
    alone(async {
        let (clock, server) = world();
        let client = Client::here(&server);
        let guard = client.lock().write().await.expect("free");
        client.take_back(&client.server_has().holding[0]);
        pass(&clock, seconds(11)).await;
        assert!(!guard.is_held());
        assert_eq!(ByHand::new(guard.lost()).poll(), Some(LostCause::Forgotten));
        assert_eq!(client.leftovers(), None);
    });
}

#[test]
fn a_hold_ends_at_its_max_hold() {
    alone(async {
        let (clock, server) = world();
        let client = Client::here(&server);
        let guard = client.lock().write().max_hold(seconds(45)).await.expect("free");
        pass(&clock, seconds(44)).await;
        assert!(guard.is_held());
        pass(&clock, seconds(1)).await;
        assert_eq!(ByHand::new(guard.lost()).poll(), Some(LostCause::MaxHold));
        settle(&clock).await;
        assert!(server.is_idle());
    });
}

#[test]
fn a_release_under_way_is_no_loss() {
    alone(async {
        let (clock, server) = world();
        let client = Client::here(&server);
        let guard = client.lock().write().await.expect("free");
        let mut lost = ByHand::new(guard.lost());
        assert!(lost.poll().is_none());
        client.wire.fail(Kind::Release, Fault::SlowReply);
        let mut release = ByHand::new(guard.release());
        assert!(release.poll().is_none());
        // A renewal hears that the server does not know it.
        pass(&clock, seconds(11)).await;
        assert!(client.wire.calls().contains(&Kind::Renew));
        assert!(release.poll().is_none());
        client.wire.let_go();
        assert!(release.poll().is_some_and(|released| released.is_ok()));
        settle(&clock).await;
        assert!(lost.poll().is_none());
        assert_eq!(client.leftovers(), None);
    });
}

#[test]
fn an_upgrade_that_timed_out_leaves_its_guard_usable_while_it_is_being_undone() {
    for fault in [Fault::Slow, Fault::NeverSent, Fault::NeverHeard, Fault::SlowReply] {
        alone(async {
            let (clock, server) = world();
            let (client, other) = (Client::here(&server), Client::here(&server));
            let owner = Owner::new();
            let guard = client.lock().upgradable_read().owner(&owner).await.expect("free");
            let read = other.lock().read().await.expect("shared");
            let mut upgrade = ByHand::new(guard.upgrade().timeout(PAUSE).into_future());
            assert!(upgrade.poll().is_none());
            client.wire.pushes(Pushes::Lost);
            client.wire.fail(Kind::Withdraw, fault);
            // The server grants it; the client does not hear of it, and its time is over.
            drop(read);
            work().await;
            clock.advance(PAUSE);
            let failed = loop {
                if let Some(upgraded) = upgrade.poll() {
                    break upgraded.expect_err("its time is over");
                }
                work().await;
                clock.advance(PAUSE);
            };
            assert!(failed.error().is_timeout());
            let guard = failed.into_guard();
            pass(&clock, seconds(11)).await;
            assert!(guard.is_held(), "{fault:?}: the server knows it by its upgrade");
            // Asked again meanwhile, it waits until the first is undone.
            let mut again = ByHand::new(guard.try_upgrade());
            assert!(again.poll().is_none());
            client.wire.heal();
            let guard = loop {
                work().await;
                clock.advance(PAUSE);
                if let Some(upgraded) = again.poll() {
                    break upgraded.expect("held").expect("alone");
                }
            };
            assert!(guard.is_held());
            assert_eq!(client.server_has_of(&owner).len(), 1);
            guard.release().await.expect("held");
            settle(&clock).await;
            assert!(server.is_idle());
            assert_eq!(client.leftovers(), None);
        });
    }
}

#[test]
fn a_grant_whose_push_is_lost_is_found_by_a_poll() {
    alone(async {
        let (clock, server) = world();
        let (client, other) = (Client::here(&server), Client::here(&server));
        let held = other.lock().write().await.expect("free");
        let mut write = ByHand::new(client.lock().write().into_future());
        assert!(write.poll().is_none());
        work().await;
        client.wire.pushes(Pushes::Lost);
        drop(held);
        pass(&clock, seconds(2)).await;
        assert!(write.poll().is_some_and(|got| got.expect("granted").is_held()));
    });
}

#[test]
fn a_grant_whose_push_is_lost_is_found_at_once_over_a_new_link() {
    alone(async {
        let (_clock, server) = world();
        let (client, other) = (Client::here(&server), Client::here(&server));
        let held = other.lock().write().await.expect("free");
        let mut write = ByHand::new(client.lock().write().into_future());
        assert!(write.poll().is_none());
        work().await;
        client.wire.pushes(Pushes::Lost);
        drop(held);
        work().await;
        assert!(write.poll().is_none());
        client.wire.relink();
        work().await;
        assert!(write.poll().is_some_and(|got| got.expect("granted").is_held()));
    });
}

#[test]
fn a_grant_that_is_pushed_before_the_first_reply_is_held() {
    alone(async {
        let (_clock, server) = world();
        let (client, other) = (Client::here(&server), Client::here(&server));
        let held = other.lock().write().await.expect("free");
        // The client has never heard the server's time.
        client.wire.fail(Kind::Acquire, Fault::SlowReply);
        let mut write = ByHand::new(client.lock().write().into_future());
        assert!(write.poll().is_none());
        drop(held);
        work().await;
        client.wire.let_go();
        let guard = write.poll().expect("ready").expect("granted");
        assert!(guard.is_held());
        assert_eq!(client.server_has().holders, 1);
        assert_eq!(client.wire.calls(), [Kind::Acquire], "it was not asked for anew");
    });
}

#[test]
fn a_push_that_comes_when_its_grant_has_run_out_makes_no_guard_that_says_it_is_held() {
    alone(async {
        let (clock, server) = world();
        let (client, other) = (Client::here(&server), Client::here(&server));
        let held = other.lock().write().await.expect("free");
        let mut write = ByHand::new(client.lock().write().into_future());
        assert!(write.poll().is_none());
        work().await;
        client.wire.pushes(Pushes::Kept);
        client.wire.fail(Kind::Poll, Fault::NeverSent);
        drop(held);
        work().await;
        clock.advance(seconds(5));
        let next = other.lock().write().await.expect("the claim has run out");
        client.wire.pushes(Pushes::Through);
        client.wire.deliver_pushes();
        // It asks anew, and waits.
        assert!(write.poll().is_none());
        client.wire.heal();
        drop(next);
        settle(&clock).await;
        let guard = write.poll().expect("ready").expect("granted");
        assert!(guard.is_held());
        assert_eq!(client.server_has().holders, 1);
    });
}

#[test]
fn a_push_is_placed_by_the_clock_of_the_server_that_sent_it() {
    alone(async {
        let (clock, server) = world();
        let (client, other) = (Client::here(&server), Client::here(&server));
        let held = other.lock().write().await.expect("free");
        let mut write = ByHand::new(client.lock().write().into_future());
        assert!(write.poll().is_none());
        work().await;
        // The clock of another server is an hour behind.
        client.core.hear(&Heard {
            sent: clock.now(),
            answer: Answer {
                now_us: Some((client.server_ms() - 3_600_000) * 1000),
                reply: Reply::Release(Released::Released),
            },
        });
        drop(held);
        work().await;
        let guard = write.poll().expect("ready").expect("granted");
        assert!(guard.is_held());
        assert!(
            guard.valid_for() < client.core.config.claim,
            "{:?}",
            guard.valid_for()
        );
    });
}

#[test]
fn the_first_in_line_enters_as_soon_as_the_lease_in_its_way_has_run_out() {
    alone(async {
        let (clock, server) = world();
        let (client, other) = (Client::here(&server), Client::here(&server));
        let _held = other.lock().write().lease(seconds(3)).await.expect("free");
        other.wire.fail(Kind::Release, Fault::NeverSent);
        let mut write = ByHand::new(client.lock().write().into_future());
        assert!(write.poll().is_none());
        pass(&clock, seconds(3)).await;
        assert!(write.poll().is_none());
        // Before the poll that keeps its place is due.
        pass(&clock, STEP).await;
        assert!(write.poll().is_some_and(|got| got.expect("granted").is_held()));
    });
}

#[test]
fn a_waiter_keeps_its_place_for_as_long_as_it_waits() {
    alone(async {
        let (clock, server) = world();
        let (client, other) = (Client::here(&server), Client::here(&server));
        let _held = other.lock().read().await.expect("free");
        let mut write = ByHand::new(client.lock().write().into_future());
        assert!(write.poll().is_none());
        for _ in 0..40 {
            pass(&clock, client.core.config.claim / 10).await;
            // Whoever looks drops those without a sign of life.
            assert_eq!(other.server_has().waiters, 1);
        }
        assert!(write.poll().is_none());
    });
}

#[test]
fn a_waiter_that_was_forgotten_comes_back_to_its_place() {
    alone(async {
        let (clock, server) = world();
        let (client, other, rival) = (
            Client::here(&server),
            Client::here(&server),
            Client::here(&server),
        );
        let held = other.lock().read().await.expect("free");
        let mut first = ByHand::new(client.lock().write().into_future());
        assert!(first.poll().is_none());
        clock.advance(STEP);
        let mut second = ByHand::new(rival.lock().write().into_future());
        assert!(second.poll().is_none());
        work().await;
        // Without a sign of life for a claim it is passed over.
        client.wire.fail(Kind::Poll, Fault::NeverSent);
        pass(&clock, client.core.config.claim + seconds(2)).await;
        assert_eq!(other.server_has().waiters, 1);
        client.wire.heal();
        pass(&clock, seconds(2)).await;
        assert!(first.poll().is_none());
        assert_eq!(other.server_has().waiters, 2);
        drop(held);
        settle(&clock).await;
        assert!(second.poll().is_none());
        assert!(first.poll().is_some_and(|got| got.expect("granted").is_held()));
    });
}

/// A client that is in line and dies.
async fn dead(server: &Embedded) -> (Client, ByHand<Result<crate::WriteGuard, crate::Error>>) {
    let client = Client::here(server);
    let mut write = ByHand::new(client.lock().write().into_future());
    assert!(write.poll().is_none());
    work().await;
    client.wire.pushes(Pushes::Lost);
    client.wire.fail(Kind::Poll, Fault::NeverSent);
    (client, write)
}

#[test]
fn a_grantee_that_died_delays_the_next_by_a_claim_at_most() {
    alone(async {
        let (clock, server) = world();
        let (other, next) = (Client::here(&server), Client::here(&server));
        let held = other.lock().write().await.expect("free");
        let (_dead, _waiting) = dead(&server).await;
        let mut write = ByHand::new(next.lock().write().into_future());
        assert!(write.poll().is_none());
        work().await;
        drop(held);
        work().await;
        assert_eq!((next.server_has().holders, next.server_has().waiters), (1, 1));
        pass(&clock, next.core.config.claim - STEP).await;
        assert!(write.poll().is_none());
        pass(&clock, STEP * 2).await;
        assert!(write.poll().is_some_and(|got| got.expect("granted").is_held()));
    });
}

#[test]
fn a_waiter_without_a_sign_of_life_for_a_claim_is_passed_over() {
    alone(async {
        let (clock, server) = world();
        let (other, next) = (Client::here(&server), Client::here(&server));
        let held = other.lock().write().await.expect("free");
        let (_dead, _waiting) = dead(&server).await;
        let mut write = ByHand::new(next.lock().write().into_future());
        assert!(write.poll().is_none());
        pass(&clock, next.core.config.claim + STEP).await;
        drop(held);
        work().await;
        assert!(write.poll().is_some_and(|got| got.expect("granted").is_held()));
    });
}

#[test]
fn a_grant_that_nobody_hears_goes_to_the_next_at_once() {
    alone(async {
        let (_clock, server) = world();
        let (other, next) = (Client::here(&server), Client::here(&server));
        let held = other.lock().write().await.expect("free");
        let (dead, _waiting) = dead(&server).await;
        let mut write = ByHand::new(next.lock().write().into_future());
        assert!(write.poll().is_none());
        dead.core.backend.close().await;
        drop(held);
        work().await;
        assert!(write.poll().is_some_and(|got| got.expect("granted").is_held()));
        assert_eq!(next.server_has().waiters, 0);
    });
}

#[test]
fn a_waiter_whose_process_was_stopped_asks_before_it_gives_up() {
    alone(async {
        let (clock, server) = world();
        let (client, other) = (Client::here(&server), Client::here(&server));
        let held = other.lock().write().max_hold(seconds(60)).await.expect("free");
        let mut write = ByHand::new(client.lock().write().into_future());
        assert!(write.poll().is_none());
        // It has asked before, and was answered.
        pass(&clock, client.core.config.claim).await;
        clock.advance(client.core.config.patience * 3);
        work().await;
        drop(held);
        settle(&clock).await;
        let got = loop {
            if let Some(got) = write.poll() {
                break got;
            }
            settle(&clock).await;
        };
        assert!(got.expect("the server answers").is_held());
    });
}

/// Out of the buffers of a server that was stopped for longer than a lease, say.
#[test]
fn a_withdrawal_is_repeated_beyond_a_lease_as_its_acquisition_may_still_arrive() {
    alone(async {
        let (clock, server) = world();
        let client = Client::here(&server);
        client.wire.fail(Kind::Acquire, Fault::Late);
        let mut write = ByHand::new(client.lock().write().into_future());
        assert!(write.poll().is_none());
        work().await;
        assert!(client.wire.has_late());
        client.wire.fail(Kind::Withdraw, Fault::NeverSent);
        drop(write);
        pass(&clock, client.core.config.lease * 2).await;
        client.wire.spare(Kind::Withdraw);
        client.wire.heal();
        settle(&clock).await;
        assert!(client.wire.deliver_late() > 0);
        assert!(server.is_idle(), "what arrives late was withdrawn");
        assert_eq!(client.leftovers(), None);
    });
}

#[test]
fn a_waiter_gives_up_when_the_server_has_not_answered_for_its_patience() {
    for fault in [Fault::NeverSent, Fault::LoseRequest, Fault::LoseReply] {
        alone(async {
            let (clock, server) = world();
            let (client, other) = (Client::here(&server), Client::here(&server));
            let held = other.lock().write().await.expect("free");
            let mut write = ByHand::new(client.lock().write().into_future());
            assert!(write.poll().is_none());
            work().await;
            client.wire.fail(Kind::Poll, fault);
            pass(&clock, client.core.config.patience).await;
            assert!(write.poll().is_none());
            pass(&clock, client.core.config.claim).await;
            let got = write.poll().expect("given up");
            assert!(got.is_err_and(|error| error.is_unreachable()));
            client.wire.heal();
            drop((held, write));
            settle(&clock).await;
            assert!(server.is_idle());
            assert_eq!(client.leftovers(), None);
        });
    }
}

#[test]
fn a_hold_whose_upgrade_was_lost_before_it_was_heard_of_is_lost_with_it() {
    alone(async {
        let (clock, server) = world();
        let (client, other) = (Client::here(&server), Client::here(&server));
        let guard = client.lock().upgradable_read().await.expect("free");
        let read = other.lock().read().await.expect("shared");
        client.wire.fail(Kind::Acquire, Fault::SlowReply);
        let mut upgrade = ByHand::new(guard.upgrade().timeout(PAUSE).into_future());
        assert!(upgrade.poll().is_none());
        // It is granted by a push, and revoked, before its caller has had the reply; then its time is over.
        drop(read);
        work().await;
        let operator = Client::here(&server);
        let (relatch, lock) = (operator.relatch.clone(), operator.lock());
        let mut revoked = ByHand::new(async move { relatch.revoke(lock.name()).await });
        let next = loop {
            let _ = revoked.poll();
            work().await;
            if let Some(next) = other.lock().try_write().await.expect("answered") {
                break next;
            }
        };
        clock.advance(PAUSE);
        let failed = upgrade
            .poll()
            .expect("its time is over")
            .expect_err("not heard of");
        assert!(next.is_held());
        assert!(!failed.into_guard().is_held(), "another writes");
    });
}

#[test]
fn a_late_failure_of_a_poll_says_nothing_of_a_request_that_asks_again() {
    alone(async {
        let (clock, server) = world();
        let (client, other) = (Client::here(&server), Client::here(&server));
        let held = other.lock().write().await.expect("free");
        let mut write = ByHand::new(client.lock().write().into_future());
        assert!(write.poll().is_none());
        // It gives no sign of life for a claim, and is passed over.
        client.wire.fail(Kind::Poll, Fault::NeverSent);
        pass(&clock, seconds(6)).await;
        drop(held);
        let held = other.lock().write().await.expect("passed over");
        client.wire.spare(Kind::Poll);
        client.wire.fail(Kind::Acquire, Fault::Slow);
        let asked = |client: &Client| {
            let calls = client.wire.calls();
            calls.into_iter().filter(|kind| *kind == Kind::Acquire).count()
        };
        while asked(&client) < 2 {
            pass(&clock, PAUSE).await;
            assert!(write.poll().is_none());
        }
        // A poll from before fails now, while the acquisition is under way once more.
        client.wire.heal();
        pass(&clock, seconds(1)).await;
        drop(held);
        work().await;
        client.wire.let_go();
        let guard = loop {
            work().await;
            if let Some(outcome) = write.poll() {
                break outcome.expect("granted");
            }
            clock.advance(PAUSE);
        };
        assert!(guard.is_held());
    });
}

#[test]
fn who_is_in_the_way_is_told_though_nobody_tells_which_process_that_is() {
    alone(async {
        let (clock, server) = world();
        let (holds, waits) = (Client::here(&server), Client::here(&server));
        let held = holds.lock().write().label("import").await.expect("free");
        waits.wire.nobody_is_known.store(true, Ordering::Release);
        let mut waiting = ByHand::new(waits.lock().write().timeout(PAUSE).into_future());
        let error = loop {
            if let Some(outcome) = waiting.poll() {
                break outcome.expect_err("somebody else holds it");
            }
            clock.advance(STEP);
            work().await;
        };
        let blame = error.blame().expect("it timed out");
        assert_eq!(blame.holder_count, 1);
        assert_eq!(blame.holders[0].owner, held.owner());
        assert_eq!(blame.holders[0].label.as_deref(), Some("import"));
        assert_eq!(blame.holders[0].client, None);
    });
}
