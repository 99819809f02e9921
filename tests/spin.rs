//! Without pub/sub: who waits asks, and the queue is on the server all the same.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use relatch::{Backoff, LostCause, Relatch, RwLock};
use support::{BOUND, RedisServer, eventually_async};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A server with a user who may not use pub/sub in any way.
fn server() -> RedisServer {
    let server = RedisServer::start();
    let user = "ACL SETUSER quiet on >secret ~* resetchannels +@all -@pubsub";
    server.reply(&user.split(' ').collect::<Vec<_>>());
    server
}

/// A client of that user. It can't be told anything.
async fn quiet(server: &RedisServer) -> Relatch {
    Relatch::builder()
        .url(format!("redis://quiet:secret@127.0.0.1:{}", server.port()))
        .spin(Backoff::new(ms(2), ms(20)))
        .connect()
        .await
        .unwrap()
}

fn lock(relatch: &Relatch) -> RwLock {
    relatch.rwlock("it").unwrap()
}

async fn soon<T>(future: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(BOUND, future.into_future())
        .await
        .expect("it came within the bound")
}

async fn waiters(relatch: &Relatch, n: u64) {
    eventually_async(BOUND, &format!("{n} waiters"), async || {
        relatch
            .inspect("it")
            .await
            .is_ok_and(|seen| seen.waiter_count == n)
    })
    .await;
}

#[tokio::test]
async fn without_pubsub_a_client_that_wants_pushes_says_so_and_one_that_spins_asks_for_none() {
    let server = server();
    let url = format!("redis://quiet:secret@127.0.0.1:{}", server.port());
    let wants = Relatch::connect(&url).await.unwrap();
    assert!(!wants.remarks().is_empty(), "it works, but slowly");
    wants.close().await.unwrap();
    let relatch = quiet(&server).await;
    drop(lock(&relatch).write().await.unwrap());
    assert_eq!(relatch.remarks(), Vec::<String>::new());
    // Those of the first attempt may still be going.
    eventually_async(BOUND, "one connection, none for pushes", async || {
        let clients = server.cli(&["CLIENT", "LIST"]);
        clients.lines().filter(|line| line.contains("user=quiet")).count() == 1
    })
    .await;
}

/// Writers in the order they asked, whether they are told or ask; and all readers between, together.
#[tokio::test]
async fn who_spins_enters_in_its_turn() {
    let server = server();
    let (told, asks) = (
        Relatch::connect(&server.url()).await.unwrap(),
        quiet(&server).await,
    );
    for holder in [&told, &asks] {
        let entered = Arc::new(Mutex::new(Vec::new()));
        let held = lock(holder).write().await.unwrap();
        let mut crowd = tokio::task::JoinSet::new();
        for n in 0..8_usize {
            let l = lock(if n % 3 == 0 { &told } else { &asks });
            let entered = entered.clone();
            crowd.spawn(async move {
                let write = l.write().await.unwrap();
                entered.lock().push(n);
                write.release().await.unwrap();
            });
            waiters(holder, n as u64 + 1).await;
        }
        held.release().await.unwrap();
        while let Some(done) = soon(crowd.join_next()).await {
            done.unwrap();
        }
        assert_eq!(*entered.lock(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}

#[tokio::test]
async fn a_reader_that_spins_waits_for_one_writer_phase() {
    let server = server();
    let (told, asks) = (
        Relatch::connect(&server.url()).await.unwrap(),
        quiet(&server).await,
    );
    let first = lock(&told).write().await.unwrap();
    let reader = tokio::spawn(lock(&asks).read().into_future());
    waiters(&told, 1).await;
    let second = tokio::spawn(lock(&told).write().into_future());
    waiters(&told, 2).await;
    first.release().await.unwrap();
    let read = soon(reader).await.unwrap().unwrap();
    assert!(!second.is_finished(), "the readers have their turn");
    read.release().await.unwrap();
    drop(soon(second).await.unwrap().unwrap());
}

#[tokio::test]
async fn a_grant_is_found_by_asking_and_a_revocation_by_renewing() {
    let server = server();
    let (told, asks) = (
        Relatch::connect(&server.url()).await.unwrap(),
        quiet(&server).await,
    );
    let held = lock(&told).write().await.unwrap();
    let waiting = tokio::spawn(lock(&asks).write().lease(ms(60_000)).into_future());
    waiters(&told, 1).await;
    // A client that only polls to show that it is there does so every 1.7 s.
    let before = server.command_count("evalsha");
    let often = u64::try_from(BOUND.as_millis() / 200).unwrap();
    eventually_async(BOUND, "it asks again and again", async || {
        server.command_count("evalsha") > before + often
    })
    .await;
    held.release().await.unwrap();
    let write = soon(waiting).await.unwrap().unwrap();
    drop(write);

    let brief = Relatch::builder()
        .url(format!("redis://quiet:secret@127.0.0.1:{}", server.port()))
        .spin(Backoff::default())
        .lease(ms(900))
        .connect()
        .await
        .unwrap();
    let write = soon(lock(&brief).write()).await.unwrap();
    let (revoked, cause) = tokio::join!(soon(told.revoke("it")), soon(write.lost()));
    assert_eq!((revoked.unwrap(), cause), (1, LostCause::Revoked));
}

#[tokio::test]
async fn thousands_of_requests_at_one_name_all_get_it() {
    let server = server();
    let (told, asks) = (
        Relatch::connect(&server.url()).await.unwrap(),
        quiet(&server).await,
    );
    let mut crowd = tokio::task::JoinSet::new();
    for n in 0..5_000 {
        // A few of them ask: each question is a call, that is the price.
        let l = lock(if n % 1000 == 0 { &asks } else { &told });
        crowd.spawn(async move {
            let write = l.write().await.unwrap();
            write.release().await.unwrap();
        });
    }
    let all = async {
        while let Some(done) = crowd.join_next().await {
            done.unwrap();
        }
    };
    tokio::time::timeout(BOUND * 6, all)
        .await
        .expect("no request fails, and none hangs");
    assert_eq!(told.inspect("it").await.unwrap().waiter_count, 0);
}

#[tokio::test]
async fn one_acquisition_may_spin_and_a_backoff_that_cannot_be_is_an_error() {
    let relatch = Relatch::embedded();
    let l = lock(&relatch);
    let held = l.write().await.unwrap();
    let waiting = tokio::spawn(l.write().spin(Backoff::new(ms(1), ms(3))).into_future());
    waiters(&relatch, 1).await;
    drop(held);
    drop(soon(waiting).await.unwrap().unwrap());
    let error = l.write().spin(Backoff::new(ms(5), ms(3))).await.unwrap_err();
    assert!(error.is_invalid(), "{error}");
}
