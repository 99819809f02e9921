//! Holds that replicas must have acknowledged; and what is lost where they need not.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::time::{Duration, Instant};

use relatch::{Owner, Relatch, RwLock};
use support::deployment::least_rights;
use support::{BOUND, Proxy, RedisServer, eventually_async, primary, replica_of, replica_through};

/// What is waited for in vain.
const SOON: Duration = Duration::from_millis(150);

async fn client(server: &RedisServer) -> Relatch {
    Relatch::builder()
        .url(server.url())
        .lease(Duration::from_secs(20))
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
async fn a_guard_is_handed_out_when_enough_replicas_know_of_it_and_else_the_hold_is_given_back() {
    let first = primary();
    let (one, two) = (replica_of(&first), replica_of(&first));
    let a = client(&first).await;
    // Before the connection for WAIT is made: one that has written nothing would count everybody.
    two.stop();
    let too_few = async |wanted: u32, said: &str| {
        // The others may take longer than that to acknowledge it, on a busy machine: then fewer are told.
        eventually_async(BOUND, said, async || {
            let begun = Instant::now();
            let error = soon(lock(&a).write().replicas(wanted, SOON)).await.unwrap_err();
            assert!(error.is_unreplicated(), "{error}");
            assert!(begun.elapsed() >= SOON, "{:?}", begun.elapsed());
            error.to_string().contains(said)
        })
        .await;
        free(&a).await;
    };
    too_few(2, "1 of 2 replicas").await;

    let held = soon(lock(&a).write().replicas(1, BOUND)).await.unwrap();
    assert!(held.is_held());
    // What it waited for is there: the hold, on the replica.
    assert_eq!(one.cli(&["HEXISTS", "relatch:1:{it}", "top"]), "1");
    // Again on the same connection, which has written something by now.
    held.release().await.unwrap();
    let error = soon(lock(&a).try_write().replicas(2, SOON)).await.unwrap_err();
    assert!(error.is_unreplicated(), "{error}");
    free(&a).await;

    two.cont();
    let held = soon(lock(&a).write().replicas(2, BOUND)).await.unwrap();
    assert_eq!(two.cli(&["HEXISTS", "relatch:1:{it}", "top"]), "1");
    held.release().await.unwrap();
    too_few(3, "2 of 3 replicas").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_what_is_not_to_be_had_holds_up_nobody() {
    let first = primary();
    let (_one, two) = (replica_of(&first), replica_of(&first));
    let a = client(&first).await;
    two.stop();
    let many = a.rwlock("many").unwrap();
    let in_vain = tokio::spawn(many.write().replicas(2, BOUND * 6).into_future());
    eventually_async(BOUND, "it is waited for", async || {
        first.command_count("wait") > 0
    })
    .await;
    for _ in 0..20 {
        soon(lock(&a).write().replicas(1, BOUND))
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    assert!(!in_vain.is_finished());
    // Nor is it waited for when nobody wants to know any more.
    in_vain.abort();
    eventually_async(BOUND, "its hold is given back", async || {
        a.inspect("many").await.is_ok_and(|seen| seen.holder_count == 0)
    })
    .await;
    two.cont();
    drop(soon(many.write().replicas(2, BOUND)).await.unwrap());
}

/// Each of them writes something, which the replica has not acknowledged when the next one comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_come_later_do_not_put_off_who_waits_for_a_replica_that_is_far_away() {
    let first = primary();
    let far = Proxy::start(first.port());
    let _replica = replica_through(&first, far.port());
    let a = client(&first).await;
    far.delay(Duration::from_millis(100));
    let ask = |n: u32| {
        let l = a.rwlock(&format!("lock {n}")).unwrap();
        tokio::spawn(l.read().replicas(1, BOUND * 6).into_future())
    };
    let waited_for = ask(0);
    let mut later = Vec::new();
    eventually_async(BOUND, "the first has what it asks for", async || {
        later.push(ask(1 + later.len() as u32));
        waited_for.is_finished()
    })
    .await;
    drop(soon(waited_for).await.unwrap().unwrap());
    for one in later {
        drop(soon(one).await.unwrap().unwrap());
    }
}

#[tokio::test]
async fn the_right_to_wait_is_named_where_it_is_missing_and_the_hold_is_given_back() {
    let first = primary();
    let _replica = replica_of(&first);
    let allow = |taken: &[&str]| {
        let mut words = vec!["ACL", "SETUSER", "relatch", "reset"];
        words.extend(least_rights());
        words.extend(taken);
        first.cli(&words);
    };
    allow(&[]);
    let a = Relatch::builder()
        .url(format!("redis://relatch:password@127.0.0.1:{}", first.port()))
        .replicas(1, BOUND)
        .connect()
        .await
        .unwrap();
    drop(soon(lock(&a).write()).await.unwrap());
    free(&a).await;
    // On the connection that there is, and on a new one.
    for _ in 0..2 {
        allow(&["-wait"]);
        let error = soon(lock(&a).write()).await.unwrap_err();
        assert!(
            error.is_server() && error.to_string().contains("ACL SETUSER <user> +wait"),
            "{error}"
        );
        free(&a).await;
        drop(soon(lock(&a).write().replicas(0, BOUND)).await.unwrap());
        allow(&[]);
        drop(soon(lock(&a).write()).await.unwrap());
        free(&a).await;
        first.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    }
    // What `INFO` would say is not needed to count those who have everything.
    allow(&["-info"]);
    drop(soon(lock(&a).write()).await.unwrap());
}

#[tokio::test]
async fn a_grant_to_a_waiter_an_upgrade_and_a_reentry_wait_for_replicas_as_well() {
    let first = primary();
    let replica = replica_of(&first);
    let (a, b) = (client(&first).await, client(&first).await);
    let held = lock(&a).write().await.unwrap();
    let waiting = tokio::spawn(lock(&b).write().replicas(1, SOON).into_future());
    eventually_async(BOUND, "it waits", async || {
        a.inspect("it").await.is_ok_and(|seen| seen.waiter_count == 1)
    })
    .await;
    replica.stop();
    held.release().await.unwrap();
    let error = soon(waiting).await.unwrap().unwrap_err();
    assert!(error.is_unreplicated(), "{error}");
    free(&a).await;
    replica.cont();

    let owner = Owner::new();
    let outer = soon(lock(&a).upgradable_read().owner(&owner).replicas(1, BOUND))
        .await
        .unwrap();
    replica.stop();
    let error = soon(lock(&a).read().owner(&owner).replicas(1, SOON))
        .await
        .unwrap_err();
    assert!(error.is_unreplicated(), "{error}");
    drop(outer);
    replica.cont();
    free(&a).await;

    // Several names in one step.
    let l = |name: &str, within| a.rwlock(name).unwrap().write().replicas(1, within);
    drop(soon(a.multi((l("it", BOUND), l("other", BOUND)))).await.unwrap());
    replica.stop();
    let error = soon(a.multi((l("it", SOON), l("other", SOON))))
        .await
        .unwrap_err();
    assert!(error.is_unreplicated(), "{error}");
    replica.cont();
    free(&a).await;

    let short = loop {
        // As long as that takes, on a busy machine: it is how long the upgrade below waits in vain.
        match soon(lock(&a).upgradable_read().replicas(1, SOON)).await {
            Ok(short) => break short,
            Err(error) => assert!(error.is_unreplicated(), "{error}"),
        }
    };
    replica.stop();
    // The upgrade asks for as many as the hold that it goes on from, and hands that back.
    let failed = soon(short.upgrade()).await.unwrap_err();
    assert!(failed.error().is_unreplicated(), "{failed}");
    let kept = failed.into_guard();
    assert!(kept.is_held());
    eventually_async(BOUND, "it is upgradable again", async || {
        a.inspect("it")
            .await
            .is_ok_and(|seen| seen.holders.len() == 1 && seen.holders[0].mode == relatch::Mode::Upgradable)
    })
    .await;
    replica.cont();
    let mut kept = Some(kept);
    eventually_async(BOUND, "the replica is there again", async || {
        match soon(kept.take().expect("it is kept").upgrade()).await {
            Ok(write) => {
                drop(write);
                true
            }
            Err(failed) => {
                assert!(failed.error().is_unreplicated(), "{failed}");
                kept = Some(failed.into_guard());
                false
            }
        }
    })
    .await;
    free(&a).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_wait_together() {
    let first = primary();
    let _replica = replica_of(&first);
    let a = Relatch::builder()
        .url(first.url())
        .replicas(1, BOUND)
        .connect()
        .await
        .unwrap();
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let l = a.rwlock(&format!("lock {n}")).unwrap();
            tokio::spawn(async move { l.write().await.unwrap().release().await.unwrap() })
        })
        .collect();
    for task in tasks {
        soon(task).await.unwrap();
    }
    let rounds = first.command_count("wait");
    assert!((1..150).contains(&rounds), "{rounds} rounds for 200 acquisitions");
    // Two for the link, one for WAIT.
    let clients = first.cli(&["CLIENT", "LIST", "TYPE", "normal"]);
    assert!(clients.lines().count() <= 3, "{clients}");
}

#[tokio::test]
async fn dropped_while_replicas_are_waited_for_it_leaves_nothing() {
    let first = primary();
    let replica = replica_of(&first);
    let a = client(&first).await;
    replica.stop();
    let acquiring = tokio::spawn(lock(&a).write().replicas(1, BOUND).into_future());
    eventually_async(BOUND, "it holds", async || {
        a.inspect("it").await.is_ok_and(|seen| seen.holder_count == 1)
    })
    .await;
    acquiring.abort();
    free(&a).await;
}

#[tokio::test]
async fn an_embedded_client_has_no_replicas_and_says_so() {
    let a = Relatch::embedded();
    let error = lock(&a).write().replicas(1, SOON).await.unwrap_err();
    assert!(error.is_invalid(), "{error}");
    free(&a).await;
    lock(&a)
        .write()
        .replicas(0, SOON)
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    for within in [Duration::ZERO, Duration::MAX] {
        let error = lock(&a).write().replicas(1, within).await.unwrap_err();
        assert!(error.is_invalid(), "{error}");
    }
}

/// The replica that takes over has not heard of a hold that was handed out without waiting for it.
#[tokio::test]
async fn without_replicas_a_fail_over_may_give_a_lock_to_two() {
    let first = primary();
    let replica = replica_of(&first);
    let a = client(&first).await;
    // What the primary says no longer arrives.
    replica.stop();
    first.cli(&["CLIENT", "KILL", "TYPE", "replica"]);
    let error = soon(lock(&a).write().replicas(1, SOON)).await.unwrap_err();
    assert!(
        error.is_unreplicated(),
        "with it, nobody is told that it holds: {error}"
    );
    free(&a).await;
    let held = soon(lock(&a).write()).await.unwrap();
    first.kill();
    replica.cont();
    replica.cli(&["REPLICAOF", "NO", "ONE"]);

    let b = client(&replica).await;
    let other = soon(lock(&b).write()).await.unwrap();
    assert!(
        held.is_held() && other.is_held(),
        "two writers: this is what is not guaranteed"
    );
    assert!(other.fence() > held.fence(), "and this is what remains");
}
