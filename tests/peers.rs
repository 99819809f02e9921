//! Where locks of this kind fail elsewhere, and what happens here instead. What can be shown on any backend is in
//! `conformance.rs`; here is what shows on a server. `docs/peers.md` lists all of it, and a test holds the list against the code.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use relatch::{Owner, Relatch, RwLock};
use support::{BOUND, RedisServer, eventually_async};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Claims so long that no poll and no renewal disturbs what is counted.
async fn calm(server: &RedisServer) -> Relatch {
    Relatch::builder()
        .url(server.url())
        .claim(Duration::from_secs(600))
        .lease(Duration::from_secs(600))
        .idle_ping(Duration::from_secs(600))
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

async fn waiters(relatch: &Relatch, n: u64) {
    eventually_async(BOUND, &format!("{n} waiters"), async || {
        relatch
            .inspect("it")
            .await
            .is_ok_and(|seen| seen.waiter_count == n)
    })
    .await;
}

fn scripts_run(server: &RedisServer) -> u64 {
    server.command_count("evalsha") + server.command_count("eval")
}

#[tokio::test]
async fn a_release_that_nobody_waits_for_publishes_nothing() {
    let server = RedisServer::start();
    let a = calm(&server).await;
    // A link tries whether it may.
    let before = server.command_count("publish");
    for _ in 0..10 {
        soon(lock(&a).write()).await.unwrap().release().await.unwrap();
        soon(lock(&a).read()).await.unwrap().release().await.unwrap();
    }
    assert_eq!(server.command_count("publish"), before);
}

#[tokio::test]
async fn a_handoff_is_one_script_and_one_message_however_many_wait() {
    let server = RedisServer::start();
    let (a, b) = (calm(&server).await, calm(&server).await);
    // Once, so that the server knows the scripts.
    soon(lock(&a).write()).await.unwrap().release().await.unwrap();
    let held = lock(&a).write().await.unwrap();
    let mut waiting = Vec::new();
    for n in 0..50 {
        waiting.push(tokio::spawn(
            lock(if n % 2 == 0 { &a } else { &b }).write().into_future(),
        ));
        waiters(&a, n + 1).await;
    }
    let (scripts, messages) = (scripts_run(&server), server.command_count("publish"));
    let mut held = held;
    for next in waiting {
        soon(held.release()).await.unwrap();
        held = soon(next).await.unwrap().unwrap();
    }
    assert_eq!(
        scripts_run(&server) - scripts,
        50,
        "one release each, and nobody retries"
    );
    assert_eq!(server.command_count("publish") - messages, 50);
}

#[tokio::test]
async fn readers_of_one_client_enter_by_one_message() {
    let server = RedisServer::start();
    let (a, b) = (calm(&server).await, calm(&server).await);
    let held = lock(&a).write().await.unwrap();
    let waiting: Vec<_> = (0..40)
        .map(|n| tokio::spawn(lock(if n % 2 == 0 { &a } else { &b }).read().into_future()))
        .collect();
    waiters(&a, 40).await;
    let before = server.command_count("publish");
    soon(held.release()).await.unwrap();
    for reader in waiting {
        drop(soon(reader).await.unwrap().unwrap());
    }
    assert_eq!(server.command_count("publish") - before, 2, "one for each client");
}

#[tokio::test]
async fn five_thousand_waits_use_one_channel_and_leave_none() {
    let server = RedisServer::start();
    let a = calm(&server).await;
    for round in 0..50 {
        let held = a.rwlock(&format!("lock {round}")).unwrap().write().await.unwrap();
        let waiting: Vec<_> = (0..100)
            .map(|_| tokio::spawn(a.rwlock(&format!("lock {round}")).unwrap().read().into_future()))
            .collect();
        assert_eq!(server.reply(&["PUBSUB", "CHANNELS"]).items().len(), 1);
        soon(held.release()).await.unwrap();
        for reader in waiting {
            drop(soon(reader).await.unwrap().unwrap());
        }
    }
    soon(a.close()).await.unwrap();
    eventually_async(BOUND, "no channel is left", async || {
        server.reply(&["PUBSUB", "CHANNELS"]).items().is_empty()
    })
    .await;
}

/// So many ask for one name at once, and all get it, one after the other. How long that took.
async fn crowd(relatch: &Relatch, n: u64) -> Duration {
    let begun = std::time::Instant::now();
    let inside = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut crowd = tokio::task::JoinSet::new();
    for _ in 0..n {
        let (lock, inside) = (lock(relatch), inside.clone());
        crowd.spawn(async move {
            let write = lock.write().await?;
            assert_eq!(inside.fetch_add(1, SeqCst), 0, "alone");
            tokio::task::yield_now().await;
            inside.fetch_sub(1, SeqCst);
            write.release().await
        });
    }
    let mut served = 0;
    while let Some(one) = crowd.join_next().await {
        one.unwrap().unwrap();
        served += 1;
    }
    assert_eq!(served, n);
    begun.elapsed()
}

/// As a client is by default, with all its polls and renewals.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_at_one_name_are_all_served() {
    let server = RedisServer::start();
    // Its signs of life come after longer than all of it may take: what is counted is what is needed.
    let relatch = calm(&server).await;
    let mut each = Vec::new();
    for n in [1_000, 10_000] {
        let before = (scripts_run(&server), server.command_count("publish"));
        let took = crowd(&relatch, n).await;
        let scripts = (scripts_run(&server) - before.0) as f64 / n as f64;
        let messages = (server.command_count("publish") - before.1) as f64 / n as f64;
        println!("{n}: {took:?}, for each {scripts:.2} scripts and {messages:.2} messages");
        assert!(messages <= 1.01, "{n}: {messages} messages each");
        each.push(scripts);
        assert!(took < BOUND * 6, "{took:?}");
    }
    // To ask and to give back.
    assert!(
        each.iter().all(|scripts| *scripts <= 2.01),
        "{each:?} scripts each"
    );

    let embedded = Relatch::embedded();
    let took = crowd(&embedded, 10_000).await;
    println!("embedded: {took:?}");
    assert!(took < BOUND * 3, "{took:?}");
}

#[tokio::test]
async fn a_lapsed_reader_does_not_count_while_others_read() {
    let server = RedisServer::start();
    let (a, b) = (calm(&server).await, calm(&server).await);
    let lapsing = lock(&a).read().lease(ms(50)).await.unwrap();
    let _living = lock(&b).read().await.unwrap();
    soon(lapsing.lost()).await;
    eventually_async(BOUND, "it is gone from the server", async || {
        b.inspect("it")
            .await
            .is_ok_and(|seen| seen.holder_count == 1 && seen.holders.len() == 1)
    })
    .await;
}

#[tokio::test]
async fn revoking_a_stranger_leaves_the_holder_renewed() {
    let server = RedisServer::start();
    let a = Relatch::builder()
        .url(server.url())
        .lease(ms(300))
        .connect()
        .await
        .unwrap();
    let held = lock(&a).write().await.unwrap();
    assert_eq!(a.revoke_owner("it", &Owner::new()).await.unwrap(), 0);
    tokio::time::timeout(ms(900), held.lost())
        .await
        .expect_err("three leases later it is held");
    held.release().await.unwrap();
}

#[tokio::test]
async fn every_key_expires_and_an_idle_name_keeps_its_fence_and_nothing_that_grows() {
    let server = RedisServer::start();
    let (a, b) = (calm(&server).await, calm(&server).await);
    let held = lock(&a).write().label("label").await.unwrap();
    let waiting = tokio::spawn(lock(&b).read().into_future());
    waiters(&a, 1).await;
    // A waiter that leaves, so that there is a mark as well.
    assert!(
        soon(lock(&b).write().timeout(ms(20)))
            .await
            .unwrap_err()
            .is_timeout()
    );
    let all_expire = || {
        for key in server.keys() {
            let left = server.reply(&["PTTL", &key]).integer();
            assert!(left.is_some_and(|left| left > 0), "{key}: {left:?}");
        }
    };
    all_expire();
    soon(held.release()).await.unwrap();
    let read = soon(waiting).await.unwrap().unwrap();
    all_expire();
    soon(read.release()).await.unwrap();
    all_expire();
    let locks: Vec<String> = server
        .keys()
        .into_iter()
        .filter(|key| !key.starts_with("relatch:1:client:"))
        .collect();
    assert_eq!(
        locks,
        ["relatch:1:{it}", "relatch:1:{it}:marks", "relatch:1:{it}:readers"]
    );
    // What keeps its TTL.
    assert_eq!(
        server.reply(&["ZCARD", "relatch:1:{it}:readers"]).integer(),
        Some(1)
    );
    let fields = server.reply(&["HKEYS", "relatch:1:{it}"]);
    for field in fields.items().iter().map(support::Reply::text) {
        assert!(
            ["fence", "due", "ticket", "marks", "warm"].contains(&field.as_str()),
            "{field}"
        );
    }
}

#[tokio::test]
async fn nothing_but_its_lease_ends_a_hold_of_a_process_that_never_comes_back() {
    let server = RedisServer::start();
    let b = calm(&server).await;
    let runtime = std::thread::spawn({
        let url = server.url();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let a = Relatch::builder()
                    .url(url)
                    .lease(ms(400))
                    .connect()
                    .await
                    .unwrap();
                let held = lock(&a).write().await.unwrap();
                // As if the process had ended here: nothing of it runs any more.
                std::mem::forget(held);
            });
            std::mem::forget(runtime);
        }
    });
    runtime.join().unwrap();
    let begun = std::time::Instant::now();
    drop(
        soon(lock(&b).write().timeout(Duration::from_secs(8)))
            .await
            .unwrap(),
    );
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
