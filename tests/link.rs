//! What becomes of holds and waits when the link or the server fails. On a real server, through a network that fails on demand.
//!
//! Two promises: nothing hangs, and no guard says that it is held when somebody else may hold.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::time::{Duration, Instant};

use relatch::{LostCause, Relatch, RwLock};
use support::{BOUND, Direction, Proxy, RedisServer, eventually_async};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Quick to notice, quick to give up.
async fn brisk(url: String) -> Relatch {
    Relatch::builder()
        .url(url)
        .lease(ms(1500))
        .claim(ms(600))
        .response_timeout(ms(300))
        .idle_ping(ms(300))
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

async fn free(relatch: &Relatch) {
    eventually_async(BOUND, "the lock is free and nobody waits", async || {
        relatch
            .inspect("it")
            .await
            .is_ok_and(|seen| seen.holder_count == 0 && seen.waiter_count == 0)
    })
    .await;
}

#[tokio::test]
async fn a_client_has_two_connections_however_many_locks() {
    let server = RedisServer::start();
    let relatch = brisk(server.url()).await;
    let mut guards = Vec::new();
    for n in 0..300 {
        let l = relatch.rwlock(&format!("lock {n}")).unwrap();
        guards.push(l.write().await.unwrap());
        // Contended, so that each has somebody who listens for it.
        tokio::spawn(l.write().timeout(ms(400)).into_future());
    }
    let clients = server.cli(&["CLIENT", "LIST"]);
    let ours = clients
        .lines()
        .filter(|line| !line.contains("cmd=client"))
        .count();
    assert_eq!(ours, 2, "{clients}");
    let channels = server.reply(&["PUBSUB", "CHANNELS"]);
    assert_eq!(channels.items().len(), 1, "{channels:?}");
}

#[tokio::test]
async fn a_cut_connection_loses_no_hold_and_no_place_in_line() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    let (a, b) = (brisk(proxy.url()).await, brisk(server.url()).await);
    let held = lock(&a).write().await.unwrap();
    let first = tokio::spawn(lock(&a).write().into_future());
    waiters(&b, 1).await;
    let second = tokio::spawn(lock(&b).write().into_future());
    waiters(&b, 2).await;
    proxy.cut();
    assert!(held.is_held());
    soon(held.release()).await.unwrap();
    let first = soon(first).await.unwrap().unwrap();
    assert!(!second.is_finished(), "it kept its place");
    drop(first);
    drop(soon(second).await.unwrap().unwrap());
}

#[tokio::test]
async fn a_grant_whose_push_was_lost_is_found_by_a_poll() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    let (a, b) = (brisk(proxy.url()).await, brisk(server.url()).await);
    let held = lock(&b).write().await.unwrap();
    let waiting = tokio::spawn(lock(&a).write().into_future());
    waiters(&b, 1).await;
    // The server believes that its messages arrive.
    proxy.silence(Direction::ToClient);
    held.release().await.unwrap();
    eventually_async(BOUND, "granted on the server", async || {
        b.inspect("it").await.is_ok_and(|seen| seen.holder_count == 1)
    })
    .await;
    proxy.cut();
    proxy.heal();
    let guard = soon(waiting).await.unwrap().unwrap();
    assert!(guard.is_held());
}

#[tokio::test]
async fn a_lost_reply_makes_nothing_happen_twice() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    let (a, b) = (brisk(proxy.url()).await, brisk(server.url()).await);
    for round in 0..10 {
        let owner = relatch::Owner::new();
        proxy.drop_reply_then_cut(|words| words[0].eq_ignore_ascii_case("EVALSHA"));
        let one = soon(lock(&a).write().owner(&owner)).await.unwrap();
        let two = soon(lock(&a).read().owner(&owner)).await.unwrap();
        assert_eq!(proxy.lost_replies(), round * 3 + 1);
        assert_eq!(
            b.inspect("it").await.unwrap().holders.len(),
            2,
            "each counts once"
        );
        proxy.drop_reply_then_cut(|words| words[0].eq_ignore_ascii_case("EVALSHA"));
        soon(two.release())
            .await
            .expect("a release that is asked again says the same");
        proxy.drop_reply_then_cut(|words| words[0].eq_ignore_ascii_case("EVALSHA"));
        let one = soon(one.downgrade())
            .await
            .expect("a downgrade that is asked again says the same");
        assert_eq!(b.inspect("it").await.unwrap().holders.len(), 1);
        soon(one.release()).await.unwrap();
        free(&b).await;
    }
}

#[tokio::test]
async fn an_acquisition_that_arrives_after_its_withdrawal_takes_nothing() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    let (a, b) = (brisk(proxy.url()).await, brisk(server.url()).await);
    proxy.silence(Direction::ToServer);
    let error = soon(lock(&a).write().timeout(ms(100))).await.unwrap_err();
    assert!(error.is_unreachable() || error.is_timeout(), "{error}");
    // Everything that was under way arrives now, in whatever order the connections have.
    proxy.heal();
    free(&b).await;
    drop(soon(lock(&a).write()).await.unwrap());
    free(&b).await;
}

#[tokio::test]
async fn a_flushed_script_is_sent_again() {
    let server = RedisServer::start();
    let a = brisk(server.url()).await;
    for _ in 0..3 {
        let held = soon(lock(&a).write()).await.unwrap();
        server.cli(&["SCRIPT", "FLUSH"]);
        soon(held.release()).await.unwrap();
    }
    free(&a).await;
}

#[tokio::test]
async fn a_restart_with_data_keeps_holds_and_waits() {
    let server = RedisServer::start_persistent();
    let (a, b) = (brisk(server.url()).await, brisk(server.url()).await);
    let held = lock(&a).write().lease(Duration::from_secs(20)).await.unwrap();
    let fence = held.fence();
    let waiting = tokio::spawn(lock(&b).write().into_future());
    waiters(&a, 1).await;
    server.restart_with_data();
    soon(held.release()).await.unwrap();
    let next = soon(waiting).await.unwrap().unwrap();
    assert!(next.fence() > fence);
}

#[tokio::test]
async fn a_server_that_comes_back_empty_tells_holders_and_serves_waiters() {
    let server = RedisServer::start();
    let (a, b) = (brisk(server.url()).await, brisk(server.url()).await);
    let held = lock(&a).write().lease(Duration::from_secs(20)).await.unwrap();
    let fence = held.fence();
    let waiting = tokio::spawn(lock(&b).write().into_future());
    waiters(&a, 1).await;
    server.restart_empty();
    assert_eq!(soon(held.lost()).await, LostCause::Forgotten);
    let next = soon(waiting).await.unwrap().unwrap();
    assert!(next.fence() > fence, "fences grow over lost data");
    let error = held.release().await.unwrap_err();
    assert_eq!(error.lost_cause(), Some(LostCause::Forgotten));
    assert!(next.is_held());
}

#[tokio::test]
async fn after_a_restart_a_new_hold_is_renewed_again() {
    let server = RedisServer::start();
    let a = brisk(server.url()).await;
    drop(soon(lock(&a).write()).await.unwrap());
    server.restart_empty();
    let held = soon(lock(&a).write()).await.unwrap();
    tokio::time::timeout(ms(3500), held.lost())
        .await
        .expect_err("two leases later it is held");
    soon(held.release()).await.unwrap();
}

#[tokio::test]
async fn a_silent_link_ends_holds_before_the_server_could_give_them_away() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    let (a, b) = (brisk(proxy.url()).await, brisk(server.url()).await);
    let held = lock(&a).write().await.unwrap();
    let watched = tokio::spawn({
        let lost = held.lost();
        async move { (lost.await, Instant::now()) }
    });
    let waiting = tokio::spawn({
        let wait = lock(&b).write().into_future();
        async move { (wait.await, Instant::now()) }
    });
    waiters(&b, 1).await;
    proxy.silence(Direction::Both);
    let (next, entered) = soon(waiting).await.unwrap();
    let (cause, told) = soon(watched).await.unwrap();
    assert_eq!(cause, LostCause::Lapsed);
    assert!(!held.is_held());
    assert!(
        told <= entered,
        "told {:?} after the next entered",
        told - entered
    );
    assert!(next.unwrap().is_held());
}

#[tokio::test]
async fn a_stopped_server_is_an_error_by_the_timeout_and_no_hang() {
    let server = RedisServer::start();
    // It believes in the link for a minute; the timeout must not.
    let a = Relatch::builder()
        .url(server.url())
        .response_timeout(Duration::from_secs(60))
        .connect()
        .await
        .unwrap();
    let b = brisk(server.url()).await;
    let held = lock(&b).write().await.unwrap();
    server.stop();
    let begun = Instant::now();
    let error = soon(a.rwlock("other").unwrap().write().timeout(ms(200)))
        .await
        .unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let error = soon(b.rwlock("other").unwrap().try_write()).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert_eq!(soon(held.lost()).await, LostCause::Lapsed);
    let error = soon(held.release()).await.unwrap_err();
    assert!(error.is_lost(), "{error}");
    server.cont();
    drop(soon(b.rwlock("other").unwrap().write()).await.unwrap());
    free(&b).await;
}

#[tokio::test]
async fn a_release_that_is_not_answered_ends_with_patience_and_is_done_later() {
    let server = RedisServer::start();
    let a = Relatch::builder()
        .url(server.url())
        .patience(ms(300))
        .connect()
        .await
        .unwrap();
    let held = lock(&a).write().lease(Duration::from_secs(3600)).await.unwrap();
    server.stop();
    let error = soon(held.release()).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    server.cont();
    free(&brisk(server.url()).await).await;
}

#[tokio::test]
async fn a_waiter_whose_server_is_stopped_for_a_while_gets_its_grant() {
    let server = RedisServer::start();
    let (a, b) = (brisk(server.url()).await, brisk(server.url()).await);
    let held = lock(&a).write().lease(ms(500)).await.unwrap();
    let waiting = tokio::spawn(lock(&b).write().timeout(Duration::from_secs(8)).into_future());
    waiters(&a, 1).await;
    server.stop();
    assert_eq!(soon(held.lost()).await, LostCause::Lapsed);
    server.cont();
    drop(soon(waiting).await.unwrap().unwrap());
}

#[tokio::test]
async fn patience_ends_an_acquisition_without_a_timeout() {
    let server = RedisServer::start();
    let a = Relatch::builder()
        .url(server.url())
        .patience(ms(500))
        .response_timeout(ms(200))
        .idle_ping(ms(200))
        .claim(ms(300))
        .connect()
        .await
        .unwrap();
    let _held = lock(&a).write().await.unwrap();
    let waiting = tokio::spawn(lock(&a).write().into_future());
    waiters(&a, 1).await;
    server.kill();
    let error = soon(lock(&a).read()).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert!(error.to_string().contains("could not be reached"), "{error}");
    let error = soon(waiting).await.unwrap().unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert!(soon(a.close()).await.unwrap_err().is_unreachable());
}

#[tokio::test]
async fn a_hold_dropped_while_the_link_is_down_is_given_back_when_it_is_up() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    let (a, b) = (brisk(proxy.url()).await, brisk(server.url()).await);
    let held = lock(&a).write().lease(Duration::from_secs(60)).await.unwrap();
    proxy.refuse(true);
    proxy.cut();
    drop(held);
    proxy.refuse(false);
    free(&b).await;
}

#[tokio::test]
async fn a_revocation_whose_push_was_lost_is_found_by_the_next_renewal() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    let (a, b) = (brisk(proxy.url()).await, brisk(server.url()).await);
    let held = lock(&a).write().await.unwrap();
    proxy.refuse(true);
    proxy.cut();
    let revoking = tokio::spawn({
        let b = b.clone();
        async move { b.revoke("it").await }
    });
    eventually_async(BOUND, "revoked on the server", async || {
        b.inspect("it")
            .await
            .is_ok_and(|seen| seen.holders.iter().all(|h| h.revoked))
    })
    .await;
    proxy.refuse(false);
    let cause = soon(held.lost()).await;
    assert!(matches!(cause, LostCause::Revoked | LostCause::Lapsed), "{cause}");
    assert_eq!(soon(revoking).await.unwrap().unwrap(), 1);
}

#[test]
fn a_runtime_that_shuts_down_leaves_nothing_and_its_guards_live_on() {
    let server = RedisServer::start();
    let observer = tokio::runtime::Runtime::new().unwrap();
    let b = observer.block_on(brisk(server.url()));

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (kept, dropped) = runtime.block_on(async {
        let a = brisk(server.url()).await;
        let kept = a.rwlock("kept").unwrap().write().await.unwrap();
        let dropped = a
            .rwlock("dropped")
            .unwrap()
            .write()
            .lease(Duration::from_secs(60))
            .await
            .unwrap();
        let spawned = lock(&a).write().lease(Duration::from_secs(60)).await.unwrap();
        // It and its guard die with the runtime.
        tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop(spawned);
        });
        tokio::spawn(a.rwlock("kept").unwrap().write().into_future());
        eventually_async(BOUND, "the task waits", async || {
            a.inspect("kept").await.is_ok_and(|seen| seen.waiter_count == 1)
        })
        .await;
        (kept, dropped)
    });
    drop(runtime);
    drop(dropped);
    observer.block_on(async {
        free(&b).await;
        for name in ["it", "dropped"] {
            eventually_async(BOUND, name, async || {
                b.inspect(name)
                    .await
                    .is_ok_and(|seen| seen.holder_count == 0 && seen.waiter_count == 0)
            })
            .await;
        }
        eventually_async(BOUND, "the waiter that died has left the line", async || {
            b.inspect("kept")
                .await
                .is_ok_and(|seen| seen.holder_count == 1 && seen.waiter_count == 0)
        })
        .await;
        tokio::time::timeout(ms(3500), kept.lost())
            .await
            .expect_err("two leases later it is still renewed");
        soon(kept.release()).await.unwrap();
    });
    drop(b);
    support::eventually_blocking(BOUND, "both clients are gone", || {
        server.cli(&["CLIENT", "LIST"]).lines().count() == 1
    });
}
