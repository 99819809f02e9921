//! Processes that are killed or stopped in the middle. Real ones.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::time::{Duration, Instant};

use relatch::{LostCause, Relatch, RwLock};
use support::{BOUND, ChildProcess, RedisServer, child, eventually_async};

const LEASE: Duration = Duration::from_millis(1200);
const CLAIM: Duration = Duration::from_millis(500);

async fn client(url: &str) -> Relatch {
    Relatch::builder()
        .url(url)
        .lease(LEASE)
        .claim(CLAIM)
        .connect()
        .await
        .expect("a client")
}

fn lock(relatch: &Relatch) -> RwLock {
    relatch.rwlock("it").expect("a name")
}

async fn soon<T>(future: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(BOUND, future.into_future())
        .await
        .expect("it came within the bound")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// A child's body: connects, does as it is told, and then waits to be killed.
#[test]
fn child_that_does_as_it_is_told() {
    if !child::is_child() {
        return;
    }
    let url = std::env::var("URL").expect("URL");
    let task = std::env::var("TASK").expect("TASK");
    runtime().block_on(async {
        let relatch = client(&url).await;
        let l = lock(&relatch);
        match task.as_str() {
            "write" => {
                let held = l.write().await.expect("a hold");
                child::say(&held.fence().to_string());
                let cause = held.lost().await;
                child::say(&format!("{cause:?} {}", held.is_held()));
                child::hear();
            }
            "look" => {
                // It looks without letting anything else run first: what a guard says must not depend on a timer.
                let held = l.write().await.expect("a hold");
                child::say("held");
                child::hear();
                child::say(&format!("{} {:?}", held.is_held(), held.valid_for()));
                child::hear();
            }
            "queue" => {
                child::say("queueing");
                let _held = l.write().await.expect("a hold");
                child::say("entered");
                std::future::pending::<()>().await;
            }
            other => panic!("no such task: {other}"),
        }
    });
}

fn child_doing(task: &str, server: &RedisServer) -> ChildProcess {
    ChildProcess::spawn(
        "child_that_does_as_it_is_told",
        &[("URL", &server.url()), ("TASK", task)],
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_holders_lock_frees_within_its_lease() {
    let server = RedisServer::start();
    let relatch = client(&server.url()).await;
    let mut holder = child_doing("write", &server);
    let fence: u64 = holder.next().parse().unwrap();
    assert!(lock(&relatch).try_read().await.unwrap().is_none());
    holder.kill();
    let begun = Instant::now();
    let next = soon(lock(&relatch).write()).await.unwrap();
    assert!(next.fence() > fence);
    assert!(
        begun.elapsed() < LEASE + Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_waiter_delays_readers_by_a_claim_at_most() {
    let server = RedisServer::start();
    let relatch = client(&server.url()).await;
    let _reading = lock(&relatch).read().await.unwrap();
    let mut waiter = child_doing("queue", &server);
    waiter.expect("queueing");
    eventually_async(BOUND, "a writer waits", async || {
        relatch
            .inspect("it")
            .await
            .is_ok_and(|seen| seen.waiter_count == 1)
    })
    .await;
    assert!(lock(&relatch).try_read().await.unwrap().is_none());
    waiter.kill();
    let begun = Instant::now();
    // The first read is held all along: only the dead writer is in the way.
    drop(soon(lock(&relatch).read()).await.unwrap());
    assert!(
        begun.elapsed() < CLAIM + Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_waiter_is_passed_over_when_its_turn_comes() {
    let server = RedisServer::start();
    let relatch = client(&server.url()).await;
    let held = lock(&relatch).write().await.unwrap();
    let mut waiter = child_doing("queue", &server);
    waiter.expect("queueing");
    eventually_async(BOUND, "the child waits", async || {
        relatch
            .inspect("it")
            .await
            .is_ok_and(|seen| seen.waiter_count == 1)
    })
    .await;
    let next = tokio::spawn(lock(&relatch).write().into_future());
    eventually_async(BOUND, "both wait", async || {
        relatch
            .inspect("it")
            .await
            .is_ok_and(|seen| seen.waiter_count == 2)
    })
    .await;
    waiter.kill();
    held.release().await.unwrap();
    drop(soon(next).await.unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_to_a_stopped_process_ends_after_a_claim() {
    let server = RedisServer::start();
    let relatch = client(&server.url()).await;
    let held = lock(&relatch).write().await.unwrap();
    let mut waiter = child_doing("queue", &server);
    waiter.expect("queueing");
    eventually_async(BOUND, "the child waits", async || {
        relatch
            .inspect("it")
            .await
            .is_ok_and(|seen| seen.waiter_count == 1)
    })
    .await;
    // Its connection is open, so the server takes its message for heard.
    waiter.stop();
    held.release().await.unwrap();
    // Nobody else has it yet, and it has said nothing that would make its claim a lease.
    let seen = relatch.inspect("it").await.unwrap();
    assert!(
        seen.holders.iter().all(|holder| holder.lease_left <= CLAIM),
        "{seen:?}"
    );
    drop(soon(lock(&relatch).write()).await.unwrap());
    waiter.cont();
    waiter.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_stopped_past_its_lease_knows_when_it_wakes() {
    let server = RedisServer::start();
    let relatch = client(&server.url()).await;
    let mut holder = child_doing("look", &server);
    holder.expect("held");
    holder.stop();
    let next = soon(lock(&relatch).write()).await.unwrap();
    assert!(next.is_held());
    holder.cont();
    holder.tell("look");
    holder.expect("false 0ns");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_process_is_told_by_lost_when_it_wakes() {
    let server = RedisServer::start();
    let relatch = client(&server.url()).await;
    let mut holder = child_doing("write", &server);
    let fence: u64 = holder.next().parse().unwrap();
    holder.stop();
    let next = soon(lock(&relatch).write()).await.unwrap();
    assert!(next.fence() > fence);
    holder.cont();
    holder.expect(&format!("{:?} false", LostCause::Lapsed));
}
