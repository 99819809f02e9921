//! A runtime that shuts down takes nothing with it: the client goes on, on a thread of its own.

use std::future::IntoFuture as _;
use std::time::Duration;

use super::faulty::{ByHand, Client, Fault, Kind, work};
use crate::backend::embedded::Embedded;
use crate::clock::Clock;
use crate::core::Home;

struct World {
    clock: Clock,
    server: Embedded,
    client: Client,
    other: Client,
    runtime: tokio::runtime::Runtime,
}

impl World {
    fn new() -> Self {
        let clock = Clock::manual();
        let server = Embedded::with_clock(clock.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let world = Self {
            client: Client::new(&server, Home::Runtime(runtime.handle().clone())),
            other: Client::new(&server, Home::Thread),
            clock,
            server,
            runtime,
        };
        world.runtime.block_on(work());
        world
    }
}

/// Waits for other threads to have done something.
fn eventually(what: &str, so: impl Fn() -> bool) {
    for _ in 0..20_000_000 {
        if so() {
            return;
        }
        std::thread::yield_now();
    }
    panic!("never: {what}");
}

#[test]
fn a_guard_is_renewed_after_its_runtime_has_shut_down() {
    let world = World::new();
    let guard = world
        .runtime
        .block_on(world.client.lock().write().into_future())
        .expect("free");
    drop(world.runtime);
    for _ in 0..10 {
        // The next renewal may have been planned a step later; without any, two steps would end it.
        world.clock.advance(Duration::from_secs(11));
        eventually("renewed", || guard.valid_for() > Duration::from_secs(15));
    }
    drop(guard);
    eventually("given back", || world.server.is_idle());
    eventually("settled", || world.client.leftovers().is_none());
}

#[test]
fn a_guard_is_renewed_whose_renewal_was_under_way_when_its_runtime_shut_down() {
    let world = World::new();
    let guard = world
        .runtime
        .block_on(world.client.lock().write().into_future())
        .expect("free");
    world.runtime.block_on(work());
    world.client.wire.fail(Kind::Renew, Fault::NeverSent);
    world.clock.advance(Duration::from_secs(11));
    world.runtime.block_on(work());
    assert!(world.client.wire.calls().contains(&Kind::Renew));
    world.client.wire.spare(Kind::Renew);
    drop(world.runtime);
    eventually("renewed", || guard.valid_for() > Duration::from_secs(25));
}

#[test]
fn what_was_dropped_is_given_back_before_a_runtime_has_shut_down() {
    for under_way in [false, true] {
        let world = World::new();
        let guard = world
            .runtime
            .block_on(world.client.lock().write().into_future())
            .expect("free");
        if under_way {
            world.client.wire.fail(Kind::Release, Fault::NeverSent);
        }
        drop(guard);
        if under_way {
            world.runtime.block_on(work());
            world.client.wire.spare(Kind::Release);
        }
        assert!(!world.server.is_idle());
        drop(world.runtime);
        assert!(world.server.is_idle());
        assert!(world.client.leftovers().is_none());
    }
}

#[test]
fn a_future_that_dies_with_its_runtime_is_withdrawn() {
    for fault in [None, Some(Fault::SlowReply), Some(Fault::NeverHeard)] {
        let world = World::new();
        let held = world
            .runtime
            .block_on(world.other.lock().write().into_future())
            .expect("free");
        if let Some(fault) = fault {
            world.client.wire.fail(Kind::Acquire, fault);
        }
        let write = world.client.lock().write().into_future();
        world.runtime.spawn(write);
        world.runtime.block_on(work());
        assert_eq!(world.other.server_has().waiters, 1);
        drop(world.runtime);
        // The order in which a runtime drops its tasks is its own: the client's may have gone first.
        eventually("withdrawn", || world.other.server_has().waiters == 0);
        assert_eq!(world.other.server_has().holders, 1);
        drop(held);
        eventually("given back", || world.server.is_idle());
        eventually("settled", || world.client.leftovers().is_none());
    }
}

#[test]
fn a_future_that_outlives_its_runtime_is_granted() {
    let world = World::new();
    let held = world
        .runtime
        .block_on(world.other.lock().write().into_future())
        .expect("free");
    let mut write = ByHand::new(world.client.lock().write().into_future());
    assert!(write.poll().is_none());
    world.runtime.block_on(work());
    drop(world.runtime);
    // Its place is kept by the client's own thread.
    for _ in 0..6 {
        let before = world.client.wire.answered();
        world.clock.advance(Duration::from_secs(2));
        // The next is planned from when the clock shows that the answer was heard: it must not move before.
        eventually("polled", || {
            world.client.wire.answered() > before && world.client.core.waiters.has_planned()
        });
    }
    drop(held);
    eventually("granted", || write.is_woken());
    let guard = write.poll().expect("ready").expect("granted");
    assert!(guard.is_held());
    drop(guard);
    eventually("given back", || world.server.is_idle());
}

#[test]
fn a_client_that_is_dropped_with_its_runtime_ends() {
    let world = World::new();
    let guard = world
        .runtime
        .block_on(world.client.lock().write().into_future())
        .expect("free");
    let core = world.client.core.clone();
    drop(guard);
    drop(world.client);
    drop(world.runtime);
    assert!(world.server.is_idle());
    let mut ended = ByHand::new(async move { core.ended().await });
    let ready = ended.poll().is_some();
    assert!(
        ready || {
            eventually("ended", || ended.is_woken());
            ended.poll().is_some()
        }
    );
}
