//! Histories from the real thing: processes that guard something by locks on a real server, while they, their links and the
//! server are killed, stopped, cut and slowed down; and a judgement of what they did and saw.
//!
//! | file | what it is |
//! |---|---|
//! | `worker.rs` | the processes: what they do, and that they tell of it |
//! | `keeper.rs` | what they guard, outside of the server and of every process that fails; with fences checked, and without |
//! | `nemesis.rs` | what fails, when, by a seed |
//! | `history.rs` | what is written down |
//! | `judge.rs`, `linear.rs` | what is claimed, and whether the history bears it out |
//! | `run.rs`, `report.rs` | a run from its beginning to its end; its table |
//!
//! A slice of it runs with the other tests. `RELATCH_HISTORIES` says for how many seconds each run goes on instead, and
//! `RELATCH_HISTORIES_SEED` which schedule of faults it follows: see docs/testing.md. What a seed fixes is the schedule, not how
//! the machine interleaves the processes; a run that failed leaves its history in a file.
#![cfg(all(feature = "redis", unix))]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]
#![allow(unreachable_pub, reason = "modules of one test binary speak to each other")]

mod history;
mod judge;
mod keeper;
mod linear;
mod nemesis;
mod report;
mod run;
#[path = "../support/mod.rs"]
mod support;
mod worker;

use std::time::{Duration, Instant};

use history::{Keeper, Resource};
use parking_lot::Mutex;
use run::{Plan, Run};
use support::child;

/// A worker's body.
#[test]
fn child_that_works() {
    if child::is_child() {
        worker::work();
    }
}

/// One run at a time: they fill the machine.
static ALONE: Mutex<()> = Mutex::new(());

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")),
    )
}

fn seed() -> u64 {
    number("RELATCH_HISTORIES_SEED").unwrap_or(1)
}

/// For so long, or for as long as the environment says.
fn until(slice: Duration) -> impl FnMut(&keeper::Keepers) -> bool {
    let lasts = number("RELATCH_HISTORIES").map_or(slice, Duration::from_secs);
    let end = Instant::now() + lasts;
    move |_| {
        std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
        Instant::now() >= end
    }
}

#[test]
fn under_faults_holds_exclude_each_other_and_no_update_is_lost_where_fences_are_checked() {
    let _alone = ALONE.lock();
    let plan = Plan {
        title: "A server that keeps its data",
        seed: seed(),
        keeps_data: true,
        locks: true,
        faults: true,
    };
    let run = Run::go(plan, until(Duration::from_secs(10)));
    println!("{run}");
    run.assert_right();
}

/// Holds may overlap then, as the guarantees say. Fences still grow, and where they are checked nothing is lost.
#[test]
fn under_faults_of_a_server_that_forgets_no_update_is_lost_where_fences_are_checked() {
    let _alone = ALONE.lock();
    let plan = Plan {
        title: "A server that loses its data",
        seed: seed(),
        keeps_data: false,
        locks: true,
        faults: true,
    };
    let run = Run::go(plan, until(Duration::from_secs(4)));
    println!("{run}");
    run.assert_right();
}

/// What the runs above would say of a lock that does not exclude, and whose fences do not grow.
#[test]
fn a_lock_that_does_not_work_is_found_out() {
    let _alone = ALONE.lock();
    let plan = Plan {
        title: "No lock at all",
        seed: seed(),
        keeps_data: true,
        locks: false,
        faults: false,
    };
    let hang = Instant::now() + support::BOUND * 3;
    let run = Run::go(plan, |keepers| {
        std::thread::park_timeout(Duration::from_millis(20));
        assert!(
            Instant::now() < hang,
            "workers without locks get into each other's way"
        );
        let books = keepers.books.lock();
        Resource::ALL
            .iter()
            .all(|resource| books.kept(Keeper::Checked, *resource).blind > 0)
    });
    let found = run.judgement.violations.join("\n");
    for what in [
        "that exclude each other were both held",
        "two write holds with one fence",
        "a write hold's fence did not grow",
        "the checked register is not linearizable",
        "the checked log is not linearizable",
        "updates were lost although fences were checked",
    ] {
        assert!(found.contains(what), "{what:?} was not found");
    }
    assert!(!run.judgement.unchecked.linearizable);
}

/// What the runs above would say if a hold or a waiter were left behind.
#[tokio::test]
async fn what_is_left_behind_is_seen() {
    let server = support::RedisServer::start();
    let relatch = relatch::Relatch::connect(&server.url()).await.unwrap();
    let lock = relatch.rwlock("it").unwrap();
    for labelled in ["", "with a label"] {
        let reading = lock.read().label(labelled).await.unwrap();
        assert!(!run::still_there(&server).is_empty());
        reading.release().await.unwrap();
        assert_eq!(run::still_there(&server), Vec::<String>::new());
    }
    let writing = lock.write().await.unwrap();
    let held = run::still_there(&server).len();
    assert!(held > 0);
    let mut waiting = std::pin::pin!(lock.read().into_future());
    support::eventually_async(support::BOUND, "a reader waits", async || {
        assert!(futures_util::poll!(&mut waiting).is_pending());
        run::still_there(&server).len() > held
    })
    .await;
    writing.release().await.unwrap();
    waiting.await.unwrap().release().await.unwrap();
    assert_eq!(run::still_there(&server), Vec::<String>::new());
    relatch.close().await.unwrap();
}
