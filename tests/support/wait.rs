//! Waiting for a condition, with a bound. The only place in the tests that lets time pass.
//!
//! The bound is real time, whatever a test did to tokio's clock. A condition that holds at once
//! costs nothing; one that never holds ends in a panic that names it and the line that waited.

use std::panic::Location;
use std::time::{Duration, Instant};

/// Generous: a bound is there to end a hang, not to measure. A loaded machine must not fail a test.
pub const BOUND: Duration = Duration::from_secs(10);

/// Short, so that a test goes on soon after its condition holds.
const POLL: Duration = Duration::from_millis(2);

/// Waits until `condition` holds, and lets the runtime's other tasks run meanwhile.
#[track_caller]
pub fn eventually(
    bound: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> impl Future<Output = ()> {
    eventually_async(bound, what, async move || condition())
}

/// [`eventually`] for a condition that must itself be awaited.
#[track_caller]
pub fn eventually_async(
    bound: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> bool,
) -> impl Future<Output = ()> {
    let caller = Location::caller();
    async move {
        let end = Instant::now() + bound;
        let mut polls = tokio::time::interval(POLL);
        polls.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            polls.tick().await;
            // The condition has the last word: it may have come true while this task starved.
            let over = Instant::now() >= end;
            if condition().await {
                return;
            }
            assert!(!over, "{caller}: waited {bound:?} in vain: {what}");
        }
    }
}

/// [`eventually`] for threads. It blocks: inside a runtime of one thread nothing else would run.
#[track_caller]
pub fn eventually_blocking(bound: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + bound;
    loop {
        let over = Instant::now() >= end;
        if condition() {
            return;
        }
        assert!(!over, "waited {bound:?} in vain: {what}");
        // Nobody unparks this thread on purpose; if somebody does, it only polls sooner.
        std::thread::park_timeout(POLL);
    }
}
