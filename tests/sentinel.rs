//! Sentinels: a primary that dies, stands still, is replaced by command, and comes back.
//!
//! A client finds the primary by itself. Waiters end up granted; a holder that the new primary does not know is told *lost*; fences
//! keep growing.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::time::Duration;

use relatch::{Builder, LostCause, Relatch, RwLock, WriteGuard};
use support::{BOUND, FakeSentinel, FakeServer, RedisServer, Watched, eventually_async, free_port};

/// A fail-over takes Sentinels some seconds; and half a minute more when they have seen their own clock jump, as on a busy machine (`TILT`).
const LONG: Duration = Duration::from_secs(75);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn client(watched: &Watched) -> Relatch {
    Relatch::builder()
        .url(watched.url())
        .lease(LONG)
        .claim(ms(600))
        .patience(LONG)
        .response_timeout(ms(500))
        .idle_ping(ms(300))
        .connect()
        .await
        .expect("a client")
}

fn lock(relatch: &Relatch) -> RwLock {
    relatch.rwlock("it").unwrap()
}

async fn soon<T>(future: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(LONG, future.into_future())
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

/// Lets go, and sees the next in line enter with a greater fence.
async fn hand_on(
    held: WriteGuard,
    next: tokio::task::JoinHandle<Result<WriteGuard, relatch::Error>>,
) -> WriteGuard {
    let fence = held.fence();
    drop(held);
    let next = soon(next).await.unwrap().unwrap();
    assert!(next.fence() > fence);
    next
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_dies_is_replaced_and_a_hold_that_replicas_knew_lives_on() {
    let watched = Watched::start();
    let (a, b) = (client(&watched).await, client(&watched).await);
    let held = soon(lock(&a).write().replicas(2, LONG)).await.unwrap();
    let waiting = tokio::spawn(lock(&b).write().into_future());
    waiters(&a, 1).await;
    let old = watched.primary();
    old.kill();
    watched.replaced(old);
    // The new primary is asked, and knows.
    let seen = soon(a.inspect("it")).await.unwrap();
    assert_eq!((seen.holder_count, seen.waiter_count), (1, 1));
    assert!(held.is_held());
    let next = hand_on(held, waiting).await;
    soon(next.release()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_that_the_new_primary_does_not_know_is_lost_and_its_waiters_enter() {
    let watched = Watched::start();
    let (a, b) = (client(&watched).await, client(&watched).await);
    soon(lock(&a).write()).await.unwrap().release().await.unwrap();
    let old = watched.primary();
    let replicas = watched.replicas();
    for replica in &replicas {
        replica.stop();
    }
    old.cli(&["CLIENT", "KILL", "TYPE", "replica"]);
    let held = soon(lock(&a).write()).await.unwrap();
    let fence = held.fence();
    let waiting = tokio::spawn(lock(&b).write().into_future());
    waiters(&a, 1).await;
    old.kill();
    for replica in &replicas {
        replica.cont();
    }
    assert_eq!(soon(held.lost()).await, LostCause::Forgotten);
    assert!(!held.is_held());
    let next = soon(waiting).await.unwrap().unwrap();
    assert!(next.fence() > fence, "fences keep growing");
    assert_ne!(watched.primary().port(), old.port());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_stands_still_is_left_and_becomes_a_replica() {
    let watched = Watched::start();
    let (a, b) = (client(&watched).await, client(&watched).await);
    let held = soon(lock(&a).write().replicas(2, LONG)).await.unwrap();
    let waiting = tokio::spawn(lock(&b).write().into_future());
    waiters(&a, 1).await;
    let old = watched.primary();
    old.stop();
    watched.replaced(old);
    let next = hand_on(held, waiting).await;
    // It goes on as if nothing had been, until a Sentinel tells it.
    old.cont();
    watched.whole();
    assert!(next.is_held());
    soon(next.release()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_replaced_by_command_is_left_and_nothing_is_lost() {
    let watched = Watched::start();
    let (a, b) = (client(&watched).await, client(&watched).await);
    let held = soon(lock(&a).write().replicas(2, LONG)).await.unwrap();
    let waiting = tokio::spawn(lock(&b).write().into_future());
    waiters(&a, 1).await;
    let old = watched.primary();
    watched.fail_over();
    watched.replaced(old);
    let next = hand_on(held, waiting).await;
    soon(next.release()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_primary_that_comes_back_empty_takes_nobody_from_the_new_one() {
    let watched = Watched::start();
    let a = client(&watched).await;
    let held = soon(lock(&a).write().replicas(2, LONG)).await.unwrap();
    let old = watched.primary();
    old.kill();
    watched.replaced(old);
    // It believes for a while that it is still the primary.
    old.restart_empty();
    assert_eq!(old.info("replication", "role").as_deref(), Some("master"));
    let b = client(&watched).await;
    assert!(
        soon(lock(&b).try_write()).await.unwrap().is_none(),
        "the new one is asked"
    );
    watched.whole();
    assert!(held.is_held());
    soon(held.release()).await.unwrap();
}

/// An address of these Sentinels.
fn url_of(ports: &[u16]) -> String {
    let hosts: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("redis+sentinel://{}/main", hosts.join(","))
}

/// Asks the Sentinels often.
fn inquisitive(url: String) -> Builder {
    Relatch::builder()
        .url(url)
        .idle_ping(ms(100))
        .response_timeout(BOUND)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_most_sentinels_say_counts_and_dead_ones_do_not_hold_up() {
    let (server, silent) = (RedisServer::start(), FakeServer::silent());
    let right = [(); 4].map(|()| FakeSentinel::naming(server.port()));
    // Cut off from the others, they still name another.
    let [stale, other] = [(); 2].map(|()| FakeSentinel::naming(free_port()));
    let mut ports = vec![stale.port(), silent.port(), other.port()];
    ports.splice(1..1, right.iter().map(FakeSentinel::port));
    // Whoever answers first.
    for _ in 0..10 {
        soon(inquisitive(url_of(&ports)).connect()).await.unwrap();
        ports.rotate_left(1);
    }
    let a = soon(inquisitive(url_of(&ports)).connect()).await.unwrap();
    let held = soon(lock(&a).write()).await.unwrap();
    let before = stale.connections();
    eventually_async(BOUND, "they are asked again while linked", async || {
        stale.connections() > before + 3
    })
    .await;
    soon(held.release()).await.unwrap();
    let linked = || {
        server
            .info("stats", "total_connections_received")
            .map(|n| n.parse::<u64>().unwrap())
    };
    let (links, before) = (linked().unwrap(), stale.connections());
    eventually_async(BOUND, "and again", async || stale.connections() > before + 3).await;
    assert_eq!(linked(), Some(links + 1), "it stays linked: this one only is new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sentinel_that_is_cut_off_from_most_of_them_is_not_believed() {
    let (server, dead) = (RedisServer::start(), [free_port(), free_port()]);
    let left = FakeSentinel::naming(server.port());
    // It does not become two by being named twice.
    let url = url_of(&[dead[0], left.port(), dead[1], left.port()]);
    let refused = async |url: &str, of: &str| {
        let error = inquisitive(url.to_owned()).connect().await.unwrap_err();
        assert!(
            error.is_unreachable() && error.to_string().contains(of),
            "{error}"
        );
    };
    left.cut_off(BOUND);
    refused(&url, "1 of 3 Sentinels could be asked").await;
    // Just started, it takes the others as heard of at that moment.
    left.cut_off(Duration::ZERO);
    left.up_for(Duration::from_secs(1));
    refused(&url, "1 of 3 Sentinels could be asked").await;
    assert_eq!(
        server.info("commandstats", "cmdstat_hello"),
        None,
        "nobody has been there"
    );
    // It hears of the others, whom we can't reach: it would know.
    left.up_for(Duration::from_secs(6));
    let a = soon(inquisitive(url).connect()).await.unwrap();
    drop(soon(lock(&a).write()).await.unwrap());
    // Its address may be one for all of them, so by itself it is no majority either, unless it knows of nobody else.
    let alone = url_of(&[left.port()]);
    left.cut_off(BOUND);
    refused(&alone, "1 of 1 Sentinels could be asked").await;
    left.forgets_the_others();
    left.up_for(Duration::ZERO);
    soon(inquisitive(alone).connect()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_that_say_nothing_leave_the_attempt_time_to_link() {
    let server = RedisServer::start();
    let (silent, one) = (
        [(); 2].map(|()| FakeServer::silent()),
        FakeSentinel::naming(server.port()),
    );
    let url = url_of(&[silent[0].port(), one.port(), silent[1].port()]);
    let linked = Relatch::builder()
        .url(url)
        .connect_timeout(ms(1500))
        .response_timeout(BOUND)
        .connect();
    soon(linked).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_latest_fail_over_is_followed_before_most_sentinels_know_of_it() {
    let (old, new, dead) = (RedisServer::start(), RedisServer::start(), free_port());
    let (one, two) = (FakeSentinel::naming(old.port()), FakeSentinel::naming(old.port()));
    let url = url_of(&[one.port(), two.port(), dead]);
    let a = soon(inquisitive(url.clone()).connect()).await.unwrap();
    let held = soon(lock(&a).write()).await.unwrap();
    two.names_now(new.port());
    assert_eq!(soon(held.lost()).await, LostCause::Forgotten);
    // The other one hears of it as well, and has not understood: it is the older of both.
    let b = soon(inquisitive(url).connect()).await.unwrap();
    let held = soon(lock(&b).write()).await.unwrap();
    assert!(soon(lock(&a).try_write()).await.unwrap().is_none());
    let there = |server: &RedisServer| server.cli(&["HEXISTS", "relatch:1:{it}", "top"]);
    assert_eq!((there(&old), there(&new)), ("1".to_owned(), "1".to_owned()));
    soon(held.release()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reaches_a_minority_that_is_cut_off_waits_until_more_are_there() {
    let mut watched = Watched::start();
    let a = client(&watched).await;
    watched.only_the_first_sentinel(true);
    let url = watched.url();
    let connect = async || {
        Relatch::builder()
            .url(&url)
            .response_timeout(ms(500))
            .connect()
            .await
    };
    eventually_async(
        BOUND * 2,
        "it is not believed any more",
        async || match connect().await {
            Ok(_) => false,
            Err(error) => error.to_string().contains("1 of 3 Sentinels"),
        },
    )
    .await;
    // Whoever was linked goes on.
    soon(lock(&a).write()).await.unwrap().release().await.unwrap();
    let error = Relatch::connect(&watched.url_of_the_first()).await.unwrap_err();
    assert!(error.to_string().contains("1 of 1 Sentinels"), "{error}");
    watched.only_the_first_sentinel(false);
    eventually_async(BOUND * 2, "it is believed again", async || {
        connect().await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_only_the_sentinels_have_replaced_is_left_within_the_idle_ping() {
    // Cut off from the Sentinels, but not from us: nobody tells the old one.
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let sentinel = FakeSentinel::naming(old.port());
    let a = inquisitive(url_of(&[sentinel.port()])).connect().await.unwrap();
    let held = soon(lock(&a).write()).await.unwrap();
    sentinel.names_now(new.port());
    assert_eq!(soon(held.lost()).await, LostCause::Forgotten);
    let _held = soon(lock(&a).write()).await.unwrap();
    assert_eq!(
        new.keys().iter().filter(|key| *key == "relatch:1:{it}").count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sentinels_user_needs_one_right_and_is_told_which() {
    let watched = Watched::start();
    let plain = watched.url();
    let hosts = plain.strip_prefix("redis+sentinel://").unwrap();
    let url = format!("redis+sentinel://{hosts}?sentinel_user=ann&sentinel_password=pw");
    let rule = "+sentinel|get-master-addr-by-name";
    watched.tell_sentinels(&["ACL", "SETUSER", "ann", "on", ">pw", "-@all"]);
    let error = Relatch::connect(&url).await.unwrap_err();
    assert!(
        error.is_server() && error.to_string().contains("+sentinel") && !error.to_string().contains("ann"),
        "{error}"
    );
    if !watched.tell_sentinels(&["ACL", "SETUSER", "ann", rule]) {
        // Redis 6.2 knows it as a whole only.
        assert!(watched.tell_sentinels(&["ACL", "SETUSER", "ann", "+sentinel"]));
    }
    let a = Relatch::connect(&url).await.unwrap();
    soon(lock(&a).write()).await.unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_the_sentinels_is_told_with_its_remedy() {
    let refused = async |hosts: &str, name: &str| {
        Relatch::builder()
            .url(format!("redis+sentinel://{hosts}/{name}"))
            .response_timeout(ms(300))
            .connect()
            .await
            .unwrap_err()
    };
    let server = RedisServer::start();
    let error = refused(&format!("127.0.0.1:{}", server.port()), "main").await;
    assert!(
        error.is_server() && error.to_string().contains("is not a Sentinel"),
        "{error}"
    );
    let error = refused(&format!("127.0.0.1:{}", free_port()), "main").await;
    assert!(
        error.is_unreachable() && error.to_string().contains("is a server running there?"),
        "{error}"
    );
    let silent = FakeServer::silent();
    let error = refused(&format!("127.0.0.1:{}", silent.port()), "main").await;
    assert!(
        error.is_unreachable() && error.to_string().contains("did not answer within"),
        "{error}"
    );

    let watched = Watched::start();
    let url = watched.url();
    let hosts = url
        .strip_prefix("redis+sentinel://")
        .unwrap()
        .strip_suffix("/main")
        .unwrap();
    // One that is not there says less than one that knows better.
    let hosts = format!("127.0.0.1:{},{hosts}", free_port());
    let error = refused(&hosts, "mian").await;
    assert!(
        error.is_server() && error.to_string().contains("watches no primary called \"mian\""),
        "{error}"
    );
    let one = hosts.rsplit(',').next().unwrap();
    let error = Relatch::connect(&format!("redis://{one}")).await.unwrap_err();
    assert!(
        error.is_server() && error.to_string().contains("write redis+sentinel://"),
        "{error}"
    );
}
