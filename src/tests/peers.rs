//! What other locks get wrong, each by its name.

use std::future::IntoFuture as _;
use std::time::Duration;

use super::faulty::{ByHand, Client, Fault, Kind, PAUSE, alone, settle, work};
use crate::backend::embedded::Embedded;
use crate::clock::Clock;
use crate::owner::Owner;

fn world() -> (Clock, Embedded) {
    let clock = Clock::manual();
    (clock.clone(), Embedded::with_clock(clock))
}

#[test]
fn a_resent_acquire_counts_once() {
    alone(async {
        let (clock, server) = world();
        let client = Client::here(&server);
        let owner = Owner::new();
        client.wire.fail(Kind::Acquire, Fault::LoseReply);
        let mut write = ByHand::new(client.lock().write().owner(&owner).into_future());
        for _ in 0..5 {
            assert!(write.poll().is_none());
            clock.advance(PAUSE);
        }
        client.wire.heal();
        clock.advance(PAUSE);
        let guard = write.poll().expect("answered").expect("granted");
        assert_eq!(client.wire.calls().len(), 6);
        assert_eq!(guard.depth(), 1);
        assert_eq!(client.server_has_of(&owner).len(), 1);
        guard.release().await.expect("held");
        assert!(server.is_idle());
    });
}

#[test]
fn a_resent_release_gives_back_once() {
    alone(async {
        let (clock, server) = world();
        let client = Client::here(&server);
        let owner = Owner::new();
        let outer = client.lock().write().owner(&owner).await.expect("free");
        let inner = client.lock().write().owner(&owner).await.expect("re-entered");
        assert_eq!(inner.depth(), 2);
        client.wire.fail(Kind::Release, Fault::LoseReply);
        let mut release = ByHand::new(inner.release());
        for _ in 0..5 {
            assert!(release.poll().is_none());
            clock.advance(PAUSE);
        }
        client.wire.heal();
        clock.advance(PAUSE);
        assert!(release.poll().is_some_and(|released| released.is_ok()));
        assert_eq!(client.server_has_of(&owner).len(), 1);
        outer.release().await.expect("held");
        assert!(server.is_idle());
    });
}

#[test]
fn a_dropped_queued_writer_does_not_block_readers() {
    alone(async {
        let (_clock, server) = world();
        let (client, other) = (Client::here(&server), Client::here(&server));
        let _reading = other.lock().read().await.expect("free");
        let mut write = ByHand::new(client.lock().write().into_future());
        assert!(write.poll().is_none());
        let mut read = ByHand::new(other.lock().read().into_future());
        assert!(read.poll().is_none(), "a reader passes a queued writer");
        drop(write);
        work().await;
        assert!(read.poll().is_some_and(|got| got.is_ok()));
    });
}

#[test]
fn a_late_acquire_after_its_withdrawal_takes_nothing() {
    alone(async {
        let (clock, server) = world();
        let client = Client::here(&server);
        client.wire.fail(Kind::Acquire, Fault::Slow);
        let mut write = ByHand::new(client.lock().write().into_future());
        assert!(write.poll().is_none());
        drop(write);
        settle(&clock).await;
        assert_eq!(client.wire.deliver_late(), 1);
        assert!(server.is_idle());
    });
}

#[test]
fn a_late_acquire_after_its_release_takes_nothing() {
    for queued in [false, true] {
        alone(async {
            let (clock, server) = world();
            let (client, other) = (Client::here(&server), Client::here(&server));
            let held = match queued {
                true => Some(other.lock().write().await.expect("free")),
                false => None,
            };
            client.wire.fail(Kind::Acquire, Fault::Late);
            let mut write = ByHand::new(client.lock().write().into_future());
            assert!(write.poll().is_none());
            client.wire.spare(Kind::Acquire);
            clock.advance(PAUSE);
            let mut ready = write.poll();
            drop(held);
            work().await;
            ready = ready.or_else(|| write.poll());
            ready
                .expect("ready")
                .expect("granted")
                .release()
                .await
                .expect("held");
            assert_eq!(client.wire.deliver_late(), 1);
            assert!(server.is_idle());
        });
    }
}

#[test]
fn a_late_try_that_was_answered_busy_takes_nothing() {
    alone(async {
        let (clock, server) = world();
        let (client, other) = (Client::here(&server), Client::here(&server));
        let held = other.lock().write().await.expect("free");
        client.wire.fail(Kind::Acquire, Fault::Late);
        let mut write = ByHand::new(client.lock().try_write().into_future());
        assert!(write.poll().is_none());
        client.wire.spare(Kind::Acquire);
        clock.advance(PAUSE);
        assert!(matches!(write.poll(), Some(Ok(None))));
        drop(held);
        settle(&clock).await;
        assert_eq!(client.wire.deliver_late(), 1);
        assert!(server.is_idle());
    });
}

#[test]
fn two_tasks_that_share_a_lock_do_not_both_write() {
    alone(async {
        let (_clock, server) = world();
        let client = Client::here(&server);
        let lock = client.lock();
        let _held = lock.write().await.expect("free");
        assert!(lock.clone().try_write().await.expect("an answer").is_none());
    });
}

#[test]
fn a_nested_read_that_is_released_keeps_the_write_lease() {
    alone(async {
        let (clock, server) = world();
        let client = Client::here(&server);
        let owner = Owner::new();
        let write = client.lock().write().owner(&owner).await.expect("free");
        let deadline_ms = client.server_has().holding[0].deadline_ms;
        let short = Duration::from_secs(2);
        let read = client
            .lock()
            .read()
            .owner(&owner)
            .lease(short)
            .await
            .expect("re-entered");
        read.release().await.expect("held");
        assert_eq!(client.server_has().holding[0].deadline_ms, deadline_ms);
        // And it is still renewed.
        for _ in 0..12 {
            clock.advance(Duration::from_secs(5));
            work().await;
        }
        assert!(write.is_held());
        assert_eq!(client.server_has().holders, 1);
    });
}

#[test]
fn one_readers_renewal_and_release_leave_anothers_lease_alone() {
    alone(async {
        let (clock, server) = world();
        let (client, other) = (Client::here(&server), Client::here(&server));
        let owner = Owner::new();
        let long = Duration::from_secs(60);
        let _long = other.lock().read().owner(&owner).lease(long).await.expect("free");
        let deadline_ms = other.server_has_of(&owner)[0].deadline_ms;
        let renewed = client.lock().read().await.expect("shared");
        clock.advance(Duration::from_secs(11));
        work().await;
        assert!(client.wire.calls().contains(&Kind::Renew));
        renewed.release().await.expect("held");
        assert_eq!(other.server_has_of(&owner)[0].deadline_ms, deadline_ms);
    });
}

#[test]
fn leases_of_one_owner_do_not_add_up() {
    alone(async {
        let (_clock, server) = world();
        let client = Client::here(&server);
        let owner = Owner::new();
        let lease = Duration::from_secs(30);
        let mut guards = Vec::new();
        for _ in 0..4 {
            guards.push(
                client
                    .lock()
                    .write()
                    .owner(&owner)
                    .lease(lease)
                    .await
                    .expect("entered"),
            );
        }
        let now_ms = client.server_ms();
        let rows = client.server_has_of(&owner);
        assert_eq!(rows.len(), 4);
        assert!(rows.iter().all(|row| row.deadline_ms <= now_ms + 30_000));
    });
}

#[test]
fn an_uncontended_pair_is_two_calls() {
    alone(async {
        let (_clock, server) = world();
        let client = Client::here(&server);
        client
            .lock()
            .write()
            .await
            .expect("free")
            .release()
            .await
            .expect("held");
        work().await;
        assert_eq!(client.wire.calls(), [Kind::Acquire, Kind::Release]);
    });
}
