//! A Redis Cluster of real nodes: names over all slots, slots that move under load, masters that die and stop.
//!
//! What only reads, or moves a slot of a name of its own, shares one cluster; what kills or moves everything has one of its own. The
//! judge of who may be inside is no lock: see [`Judge`].
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use relatch::{Builder, LostCause, Relatch, RwLock};
use support::{
    BOUND, ChildProcess, FakeServer, Proxy, RedisCluster, RedisServer, Reply, child, eventually,
    eventually_async,
};

/// Three masters that nobody kills.
static SHARED: LazyLock<RedisCluster> = LazyLock::new(|| RedisCluster::start(3));

/// How long a master of these tests is silent before the others take it for dead.
const NODE_TIMEOUT: Duration = Duration::from_millis(1500);

/// A failover takes that, a second for the election, and what a loaded machine adds.
const FAILOVER: Duration = Duration::from_secs(30);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn client(url: String) -> Relatch {
    connected(Relatch::builder().url(url)).await
}

/// On a busy machine one that is quick to give up may have to try again.
async fn connected(builder: Builder) -> Relatch {
    let begun = Instant::now();
    loop {
        match builder.clone().connect().await {
            Ok(relatch) => return relatch,
            Err(error) => assert!(error.is_unreachable() && begun.elapsed() < FAILOVER, "{error}"),
        }
    }
}

/// Quick to notice, quick to give up; claims and leases short enough to wait for.
async fn brisk(url: String) -> Relatch {
    let builder = Relatch::builder()
        .url(url)
        .lease(ms(3000))
        .claim(ms(900))
        .response_timeout(ms(500))
        .idle_ping(ms(500));
    connected(builder).await
}

async fn soon<T>(future: impl IntoFuture<Output = T>) -> T {
    within(BOUND, future).await
}

async fn within<T>(bound: Duration, future: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(bound, future.into_future())
        .await
        .expect("it came within the bound")
}

fn key(name: &str) -> String {
    format!("relatch:1:{{{name}}}")
}

async fn waiters(relatch: &Relatch, name: &str, n: u64) {
    eventually_async(BOUND, &format!("{n} wait for {name}"), async || {
        relatch
            .inspect(name)
            .await
            .is_ok_and(|seen| seen.waiter_count == n)
    })
    .await;
}

async fn free(relatch: &Relatch, name: &str) {
    eventually_async(BOUND, &format!("{name} is free"), async || {
        relatch
            .inspect(name)
            .await
            .is_ok_and(|seen| seen.holder_count == 0 && seen.waiter_count == 0)
    })
    .await;
}

/// One field of a node's `CLUSTER INFO`; those that are 0 may be missing.
fn bus(node: &RedisServer, field: &str) -> u64 {
    let info = node.cli(&["CLUSTER", "INFO"]);
    let value = info
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.map_or(0, |value| value.trim().parse().unwrap())
}

/// How often a node answered with this error.
fn errors(cluster: &RedisCluster, code: &str) -> u64 {
    let count = |node: &RedisServer| {
        let value = node.info("errorstats", &format!("errorstat_{code}"));
        value.map_or(0, |value| {
            value.trim().trim_start_matches("count=").parse().unwrap()
        })
    };
    cluster
        .nodes()
        .iter()
        .filter(|node| node.try_reply(&["PING"]).is_ok())
        .map(count)
        .sum()
}

// -- who serves what ---------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_over_all_slots_are_locked() {
    let cluster = &*SHARED;
    // One starts with all nodes, one has to find the others.
    let (a, b) = (client(cluster.url()).await, client(cluster.url_of(2)).await);
    let mut slots = BTreeSet::new();
    for n in 0..150 {
        let name = match n % 3 {
            0 => format!("name {n}"),
            1 => format!("{{group {n}}} member"),
            _ => format!("}}{{ %{n}"),
        };
        let (one, two) = (a.rwlock(&name).unwrap(), b.rwlock(&name).unwrap());
        let held = soon(one.write()).await.unwrap();
        assert!(two.try_read().await.unwrap().is_none());
        let waiting = tokio::spawn(two.write().into_future());
        waiters(&a, &name, 1).await;
        let fence = held.fence();
        held.release().await.unwrap();
        let next = soon(waiting).await.unwrap().unwrap();
        assert!(next.fence() > fence);
        next.release().await.unwrap();
        let tag = match n % 3 {
            1 => format!("group {n}"),
            _ => name.replace('%', "%25").replace('{', "%7B").replace('}', "%7D"),
        };
        slots.insert(cluster.slot_of(&key(&tag)) / 1024);
    }
    assert_eq!(slots.len(), 16, "from all over: {slots:?}");
    a.close().await.unwrap();
    b.close().await.unwrap();
}

#[tokio::test]
async fn who_is_in_the_way_is_told_from_whichever_node_knows_it() {
    let cluster = &*SHARED;
    let (a, b) = (client(cluster.url()).await, client(cluster.url()).await);
    for master in 0..3 {
        let name = cluster.name_on(master, "blame");
        let _held = a.rwlock(&name).unwrap().write().label("import").await.unwrap();
        let seen = b.inspect(&name).await.unwrap();
        let holder = &seen.holders[0];
        assert_eq!(holder.label.as_deref(), Some("import"));
        assert_eq!(
            holder.client.as_ref().map(|client| client.pid),
            Some(std::process::id())
        );
    }
}

#[tokio::test]
async fn what_is_no_cluster_or_no_single_server_is_told_apart() {
    let cluster = &*SHARED;
    let single = RedisServer::start();
    let error = Relatch::connect(&cluster.url_of(0).replace("redis-cluster", "redis"))
        .await
        .unwrap_err();
    assert!(
        error.is_server() && error.to_string().contains("redis-cluster://"),
        "{error}"
    );
    let error = Relatch::connect(&single.url().replace("redis:", "redis-cluster:"))
        .await
        .unwrap_err();
    assert!(
        error.is_server() && error.to_string().contains("redis://"),
        "{error}"
    );
    // Seeds that are not there, or are something else, are passed over.
    let seeds = format!(
        "redis-cluster://127.0.0.1:1,127.0.0.1:{},127.0.0.1:{}",
        single.port(),
        cluster.node(1).port()
    );
    let relatch = Relatch::connect(&seeds).await.unwrap();
    drop(soon(relatch.rwlock("seeds").unwrap().write()).await.unwrap());
    let error = Relatch::connect("redis-cluster://ann:s3cret@127.0.0.1:1,127.0.0.1:2")
        .await
        .unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert!(!error.to_string().contains("s3cret"), "{error}");
}

// -- pushes ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_push_costs_no_broadcast_and_is_heard_at_once() {
    let cluster = &*SHARED;
    // Polls come every third of a claim: too late for this test.
    let patient = |url| {
        Relatch::builder()
            .url(url)
            .claim(Duration::from_secs(60))
            .connect()
    };
    let (a, b) = (
        patient(cluster.url()).await.unwrap(),
        patient(cluster.url()).await.unwrap(),
    );
    let before: Vec<u64> = cluster
        .masters()
        .iter()
        .map(|node| bus(node, "cluster_stats_messages_publish_sent"))
        .collect();
    let spublished = cluster.command_count("spublish");
    for master in 0..3 {
        let name = cluster.name_on(master, "push");
        let mut guard = a.rwlock(&name).unwrap().write().await.unwrap();
        for n in 0..20 {
            let other = if n % 2 == 0 { &b } else { &a };
            let waiting = tokio::spawn(other.rwlock(&name).unwrap().write().into_future());
            waiters(&a, &name, 1).await;
            guard.release().await.unwrap();
            guard = soon(waiting).await.unwrap().unwrap();
        }
    }
    let after: Vec<u64> = cluster
        .masters()
        .iter()
        .map(|node| bus(node, "cluster_stats_messages_publish_sent"))
        .collect();
    assert_eq!(before, after, "nothing was told to every node");
    assert!(cluster.command_count("spublish") >= spublished + 60);
}

#[tokio::test]
async fn a_revoked_holder_hears_of_it_at_once() {
    let cluster = &*SHARED;
    let (a, b) = (client(cluster.url()).await, client(cluster.url()).await);
    for master in 0..3 {
        let name = cluster.name_on(master, "revoked");
        let held = a
            .rwlock(&name)
            .unwrap()
            .write()
            .lease(Duration::from_secs(600))
            .await
            .unwrap();
        let (lost, revoked) = tokio::join!(soon(held.lost()), soon(b.revoke(&name)));
        assert_eq!(lost, LostCause::Revoked);
        assert_eq!(revoked.unwrap(), 1);
    }
}

#[test]
fn child_that_waits_in_line() {
    if !child::is_child() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let relatch = Relatch::builder()
            .url(std::env::var("URL").unwrap())
            .claim(Duration::from_secs(60))
            .connect()
            .await
            .unwrap();
        let lock = relatch.rwlock(&std::env::var("NAME").unwrap()).unwrap();
        child::say("waits");
        let _held = lock.write().await;
        child::say("held");
        child::hear();
    });
}

#[tokio::test]
async fn a_client_that_died_in_line_is_passed_over_at_once() {
    let cluster = &*SHARED;
    let a = Relatch::builder()
        .url(cluster.url())
        .claim(Duration::from_secs(60))
        .connect()
        .await
        .unwrap();
    let name = cluster.name_on(0, "dead");
    let held = a.rwlock(&name).unwrap().write().await.unwrap();
    let mut dead = ChildProcess::spawn(
        "child_that_waits_in_line",
        &[("URL", &cluster.url()), ("NAME", &name)],
    );
    dead.expect("waits");
    waiters(&a, &name, 1).await;
    let next = tokio::spawn(a.rwlock(&name).unwrap().write().into_future());
    waiters(&a, &name, 2).await;
    dead.kill();
    // The nodes notice that its connections have gone.
    let slot = cluster.slot_of(&key(&name));
    let listeners = || {
        let channels = cluster.node(0).reply(&["PUBSUB", "SHARDCHANNELS"]);
        let channels: Vec<String> = channels.items().iter().map(Reply::text).collect();
        channels
            .iter()
            .filter(|channel| cluster.slot_of(channel) == slot)
            .count()
    };
    eventually(BOUND, "only one client listens", || listeners() == 1).await;
    held.release().await.unwrap();
    // Its claim would have been a minute.
    drop(soon(next).await.unwrap().unwrap());
}

// -- slots that move ---------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_takes_its_listeners_along() {
    let cluster = &*SHARED;
    let patient = |url| {
        Relatch::builder()
            .url(url)
            .claim(Duration::from_secs(60))
            .connect()
    };
    let (a, b) = (
        patient(cluster.url()).await.unwrap(),
        patient(cluster.url()).await.unwrap(),
    );
    let name = cluster.name_on(0, "listeners");
    let slot = cluster.slot_of(&key(&name));
    let mut held = a.rwlock(&name).unwrap().write().await.unwrap();
    let mut at = 0;
    for to in [1, 2, 0] {
        let waiting = tokio::spawn(b.rwlock(&name).unwrap().write().into_future());
        waiters(&a, &name, 1).await;
        cluster.move_slot(slot, at, to);
        at = to;
        // By itself: neither of the two sends anything in the meantime.
        eventually(BOUND, "both listen at the new master", || {
            let channels = cluster.node(to).reply(&["PUBSUB", "SHARDCHANNELS"]);
            channels
                .items()
                .iter()
                .filter(|channel| cluster.slot_of(&channel.text()) == slot)
                .count()
                == 2
        })
        .await;
        let fence = held.fence();
        assert!(held.is_held());
        held.release().await.unwrap();
        // A poll would come after 20 s.
        held = soon(waiting).await.unwrap().unwrap();
        assert!(held.fence() > fence);
        held.release().await.unwrap();
        held = soon(a.rwlock(&name).unwrap().write()).await.unwrap();
    }
    held.release().await.unwrap();
    free(&a, &name).await;
}

#[tokio::test]
async fn an_ask_is_followed_and_what_is_half_moved_is_waited_for() {
    follows_an_ask(&SHARED, &SHARED.url(), "ask", None).await;
}

#[tokio::test]
async fn an_ask_is_followed_by_a_user_with_the_least_rights() {
    SHARED.allow("asks", (0, &[]));
    follows_an_ask(&SHARED, &SHARED.url_as("asks"), "asks", None).await;
}

/// With a proxy in front of node 2, that loses the answer to what is asked there.
async fn follows_an_ask(cluster: &RedisCluster, url: &str, seed: &str, loses: Option<&Proxy>) {
    // A grant that is heard of while its keys are on their way must last until they have arrived.
    let slow = Relatch::builder().url(url).claim(Duration::from_secs(60));
    let (a, b) = (brisk(url.to_owned()).await, connected(slow).await);
    let name = cluster.name_on(1, seed);
    let slot = cluster.slot_of(&key(&name));
    let lock = |relatch: &Relatch| relatch.rwlock(&name).unwrap();
    // All five keys: a reader, a waiting writer, and the mark of one that left.
    let read = lock(&a).read().lease(Duration::from_secs(60)).await.unwrap();
    lock(&b).write().timeout(ms(50)).await.unwrap_err();
    let waiting = tokio::spawn(lock(&b).write().into_future());
    waiters(&a, &name, 1).await;
    eventually(BOUND, "it has all its keys", || {
        let keys = cluster.node(1).keys();
        keys.iter().filter(|k| k.starts_with(&key(&name))).count() == 5
    })
    .await;
    let asked = cluster.command_count("asking");

    cluster.begin_move(slot, 1, 2);
    while cluster.move_keys(slot, 1, 2, 10) > 0 {}
    if let Some(proxy) = loses {
        let key = key(&name);
        proxy.drop_reply_then_cut(move |words| words[0] == "EVALSHA" && words[3] == key);
    }
    let released = tokio::spawn(read.release());
    let granted = || {
        let mut there = cluster.node(2).client().unwrap();
        there.command(&["ASKING"]).unwrap();
        let top = there.command(&["HGET", &key(&name), "top"]).unwrap();
        top.text().starts_with("w,")
    };
    // Nobody listens at the new master yet: that is no reason to pass it over.
    eventually(BOUND, "the writer that waited is granted", granted).await;
    assert!(
        cluster.command_count("asking") > asked + 1,
        "where its keys had gone already"
    );

    // The writer is in, and its line is empty: so is the key of it, and the new master can't tell whether it is still to come.
    match loses {
        None => soon(released).await.unwrap().unwrap(),
        Some(proxy) => {
            eventually(BOUND, "the answer is lost", || proxy.lost_replies() == 1).await;
            assert!(!released.is_finished(), "nobody has told it");
        }
    }
    let error = lock(&a).try_read().await.unwrap_err();
    assert!(
        error.is_unreachable() && error.to_string().contains("moving this key") || loses.is_some(),
        "{error}"
    );
    assert!(granted(), "what was asked again changed nothing");
    cluster.end_move(slot, 2);
    let write = soon(waiting).await.unwrap().unwrap();
    assert!(write.is_held());
    assert_eq!(write.depth(), 1, "it was entered once");
    assert!(lock(&a).try_read().await.unwrap().is_none());
    write.release().await.unwrap();
    free(&a, &name).await;
    cluster.move_slot(slot, 2, 1);
}

/// Who is inside, as seen by those who are.
#[derive(Default)]
struct Judge {
    writers: AtomicI64,
    readers: AtomicI64,
    fence: AtomicU64,
    entered: AtomicU64,
}

impl Judge {
    async fn write(&self, lock: &RwLock) {
        let guard = lock.write().await.unwrap();
        assert_eq!(guard.depth(), 1, "its acquisition ran once");
        assert_eq!(self.writers.fetch_add(1, Ordering::SeqCst), 0, "two writers");
        assert_eq!(self.readers.load(Ordering::SeqCst), 0, "a writer beside readers");
        let last = self.fence.swap(guard.fence(), Ordering::SeqCst);
        assert!(guard.fence() > last, "{} after {last}", guard.fence());
        tokio::time::sleep(ms(1)).await;
        assert!(guard.is_held());
        self.writers.fetch_sub(1, Ordering::SeqCst);
        self.entered.fetch_add(1, Ordering::SeqCst);
        // Answered or not: what was not heard is repeated, and changes nothing.
        let _ = guard.release().await;
    }

    async fn read(&self, lock: &RwLock) {
        let guard = lock.read().await.unwrap();
        assert_eq!(guard.depth(), 1, "its acquisition ran once");
        self.readers.fetch_add(1, Ordering::SeqCst);
        assert_eq!(self.writers.load(Ordering::SeqCst), 0, "a reader beside a writer");
        tokio::time::sleep(ms(1)).await;
        assert!(guard.is_held());
        self.readers.fetch_sub(1, Ordering::SeqCst);
        self.entered.fetch_add(1, Ordering::SeqCst);
        let _ = guard.release().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_under_load_and_nobody_meets_or_is_left_out() {
    const MOVES: usize = 150;
    let cluster = Arc::new(RedisCluster::start(3));
    let clients = [
        client(cluster.url()).await,
        client(cluster.url()).await,
        client(cluster.url()).await,
    ];
    let names: Vec<String> = (0..6)
        .map(|n| cluster.name_on(n % 3, &format!("load {n}")))
        .collect();
    let judges: Vec<Judge> = names.iter().map(|_| Judge::default()).collect();
    let going = AtomicBool::new(true);
    let worker = async |n: usize| {
        let client = &clients[n % 3];
        let mut turn = n;
        let mut longest = Duration::ZERO;
        while going.load(Ordering::Relaxed) {
            let at = turn % names.len();
            let lock = client.rwlock(&names[at]).unwrap();
            let begun = Instant::now();
            if turn.is_multiple_of(3) {
                within(FAILOVER, judges[at].write(&lock)).await;
            } else {
                within(FAILOVER, judges[at].read(&lock)).await;
            }
            longest = longest.max(begun.elapsed());
            turn += 1 + n;
        }
        longest
    };
    let mover = {
        let (cluster, names) = (cluster.clone(), names.clone());
        tokio::task::spawn_blocking(move || {
            let mut at: Vec<usize> = (0..names.len()).map(|n| n % 3).collect();
            let begun = Instant::now();
            // And until what is to be followed has come up.
            let enough = || errors(&cluster, "MOVED") > 0 && errors(&cluster, "TRYAGAIN") > 0;
            let mut moves = 0..;
            while let Some(n) = moves
                .next()
                .filter(|n| *n < MOVES || begun.elapsed() < FAILOVER && !enough())
            {
                let which = n % names.len();
                let (from, to) = (at[which], (at[which] + 1 + n % 2) % 3);
                cluster.move_slot(cluster.slot_of(&key(&names[which])), from, to);
                at[which] = to;
            }
        })
    };
    let mover = async {
        let moved = mover.await;
        going.store(false, Ordering::Relaxed);
        moved.unwrap();
    };
    let begun = Instant::now();
    let workers = futures_util::future::join_all((0..12).map(worker));
    let (longest, ()) = tokio::join!(workers, mover);
    let entered: u64 = judges
        .iter()
        .map(|judge| judge.entered.load(Ordering::SeqCst))
        .sum();
    eprintln!(
        "{MOVES} moves in {:?}; {entered} holds; the longest turn took {:?}; MOVED {}, ASK {}, TRYAGAIN {}",
        begun.elapsed(),
        longest.iter().max().unwrap(),
        errors(&cluster, "MOVED"),
        errors(&cluster, "ASK"),
        errors(&cluster, "TRYAGAIN"),
    );
    assert!(errors(&cluster, "MOVED") > 0 && errors(&cluster, "TRYAGAIN") > 0);
    assert!(entered > 200, "{entered}");
    for name in &names {
        free(&clients[0], name).await;
    }
}

// -- masters that die and stop -----------------------------------------------------------------------------------

/// Waits until a replica has all that its master has.
async fn replicated(cluster: &RedisCluster, master: usize, replica: usize) {
    eventually(BOUND, "the replica has everything", || {
        let offset = |node: usize, field: &str| cluster.node(node).info("replication", field);
        offset(master, "master_repl_offset") == offset(replica, "slave_repl_offset")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masters_that_are_killed_or_stopped_are_replaced() {
    let cluster = RedisCluster::start_with(3, 1, NODE_TIMEOUT, &[]);
    a_killed_masters_holds_and_lines_go_on(&cluster).await;
    cluster.settled();
    what_the_replica_never_had_is_told_lost(&cluster).await;
    cluster.settled();
    what_a_stopped_master_says_when_it_goes_on_is_not_believed(&cluster).await;
}

/// Quick to notice, with leases that outlast a failover.
async fn steady(cluster: &RedisCluster) -> Relatch {
    let builder = Relatch::builder()
        .url(cluster.url())
        .lease(3 * FAILOVER)
        .response_timeout(ms(500))
        .idle_ping(ms(500))
        .claim(ms(1500));
    connected(builder).await
}

/// Of master 0.
async fn a_killed_masters_holds_and_lines_go_on(cluster: &RedisCluster) {
    let (a, b) = (steady(cluster).await, steady(cluster).await);
    let (name, elsewhere) = (cluster.name_on(0, "killed"), cluster.name_on(1, "killed"));
    let held = a.rwlock(&name).unwrap().write().await.unwrap();
    let waiting = tokio::spawn(b.rwlock(&name).unwrap().write().into_future());
    waiters(&a, &name, 1).await;
    replicated(cluster, 0, 3).await;

    // Until it goes on there is no failover, however long the rest takes. (The nodes would say CLUSTERDOWN then, which is set aside.)
    cluster.node(3).stop();
    let whole = |whole: &str| {
        for node in [1, 2, 4, 5] {
            cluster
                .node(node)
                .cli(&["CONFIG", "SET", "cluster-require-full-coverage", whole]);
        }
    };
    whole("no");
    let killed = Instant::now();
    cluster.node(0).kill();
    // The others' names are served as ever.
    let other = within(FAILOVER, b.rwlock(&elsewhere).unwrap().write())
        .await
        .unwrap();
    soon(other.release()).await.unwrap();
    whole("yes");
    cluster.node(3).cont();
    // A new name of the dead master's, as soon as there is another one.
    let next = cluster.name_on(0, "after");
    let fresh = within(FAILOVER, a.rwlock(&next).unwrap().write()).await.unwrap();
    eprintln!(
        "a master was killed: its names were served again after {:?} (node timeout {NODE_TIMEOUT:?})",
        killed.elapsed()
    );
    fresh.release().await.unwrap();

    assert!(held.is_held(), "the replica knew of it");
    let fence = held.fence();
    assert!(b.rwlock(&name).unwrap().try_read().await.unwrap().is_none());
    assert!(!waiting.is_finished());
    soon(held.release()).await.unwrap();
    let next = soon(waiting).await.unwrap().unwrap();
    assert!(next.fence() > fence);
    soon(next.release()).await.unwrap();
    // Whoever begins now, with the dead node among the seeds.
    let c = client(cluster.url()).await;
    drop(soon(c.rwlock(&name).unwrap().read()).await.unwrap());
}

/// Of master 1.
async fn what_the_replica_never_had_is_told_lost(cluster: &RedisCluster) {
    let (a, b) = (steady(cluster).await, steady(cluster).await);
    let name = cluster.name_on(1, "forgotten");
    // The fence of an earlier hold is there; the hold is not.
    let first = a.rwlock(&name).unwrap().write().await.unwrap();
    let first_fence = first.fence();
    first.release().await.unwrap();
    replicated(cluster, 1, 4).await;
    cluster.node(4).stop();
    // What it is sent while it stands still would wait for it.
    cluster.node(1).cli(&["CLIENT", "KILL", "TYPE", "replica"]);
    let held = a.rwlock(&name).unwrap().write().await.unwrap();
    let waiting = tokio::spawn(b.rwlock(&name).unwrap().write().into_future());
    waiters(&a, &name, 1).await;
    cluster.node(1).kill();
    cluster.node(4).cont();

    assert_eq!(within(FAILOVER, held.lost()).await, LostCause::Forgotten);
    let next = within(FAILOVER, waiting).await.unwrap().unwrap();
    assert!(next.fence() > held.fence() && held.fence() > first_fence);
    soon(next.release()).await.unwrap();
}

/// Of master 2.
async fn what_a_stopped_master_says_when_it_goes_on_is_not_believed(cluster: &RedisCluster) {
    // It would wait for the stopped master for longer than that stands still.
    let patient = Relatch::builder()
        .url(cluster.url())
        .response_timeout(2 * FAILOVER)
        .connect()
        .await
        .unwrap();
    let b = steady(cluster).await;
    let name = cluster.name_on(2, "stopped");
    // So that it listens, and has nothing else to ask.
    drop(soon(patient.rwlock(&name).unwrap().write()).await.unwrap());
    free(&b, &name).await;
    let scripts = |node: usize| cluster.node(node).command_count("evalsha");
    let before = scripts(2);

    let stopped = Instant::now();
    cluster.node(2).stop();
    let late = tokio::spawn(patient.rwlock(&name).unwrap().write().into_future());
    let held = within(FAILOVER, b.rwlock(&name).unwrap().write()).await.unwrap();
    eprintln!(
        "a master was stopped: its names were served again after {:?} (node timeout {NODE_TIMEOUT:?})",
        stopped.elapsed()
    );
    assert!(!late.is_finished(), "nobody has answered it");
    cluster.node(2).cont();
    eventually(BOUND, "it executes what it was sent before", || {
        scripts(2) > before
    })
    .await;
    // Its answer was not believed: it asks the new master, and waits there.
    waiters(&b, &name, 1).await;
    assert!(held.is_held() && !late.is_finished());
    let fence = held.fence();
    soon(held.release()).await.unwrap();
    let late = soon(late).await.unwrap().unwrap();
    assert!(late.is_held() && late.fence() > fence);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_nobody_serves_is_told_and_waited_for() {
    let cluster = RedisCluster::start(3);
    let a = client(cluster.url()).await;
    let name = cluster.name_on(0, "down");
    let slot = cluster.slot_of(&key(&name)).to_string();
    let lock = a.rwlock(&name).unwrap();
    drop(lock.write().await.unwrap());
    cluster.node(0).cli(&["CLUSTER", "DELSLOTS", &slot]);
    let down = || cluster.node(0).reply(&["GET", &key(&name)]).text();
    eventually(BOUND, "it is down", || down().starts_with("CLUSTERDOWN")).await;

    let error = soon(lock.write().timeout(ms(600))).await.unwrap_err();
    assert!(error.to_string().contains("CLUSTERDOWN"), "{error}");
    let waiting = tokio::spawn(lock.write().into_future());
    cluster.node(0).cli(&["CLUSTER", "ADDSLOTS", &slot]);
    drop(soon(waiting).await.unwrap().unwrap());
    // Who begins while nobody serves it.
    cluster.node(0).cli(&["CLUSTER", "DELSLOTS", &slot]);
    eventually(BOUND, "it is down", || down().starts_with("CLUSTERDOWN")).await;
    let b = client(cluster.url()).await;
    let error = soon(b.rwlock(&name).unwrap().write().timeout(ms(600)))
        .await
        .unwrap_err();
    assert!(
        error.is_unreachable() || error.to_string().contains("slot"),
        "{error}"
    );
    let waiting = tokio::spawn(b.rwlock(&name).unwrap().write().into_future());
    cluster.node(0).cli(&["CLUSTER", "ADDSLOTS", &slot]);
    drop(soon(waiting).await.unwrap().unwrap());
}

// -- nodes that do not agree -------------------------------------------------------------------------------------

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// What is said to who subscribes.
fn heard(words: &[String]) -> String {
    format!(
        ">3\r\n{}{}:1\r\n",
        bulk(&words[0].to_lowercase()),
        bulk(&words[1])
    )
}

/// A node that knows of this master for everything, which it is itself, and of its replicas, and answers every command on a key like this.
fn fake_node(nodes: Vec<Arc<AtomicU64>>, says: impl Fn() -> String + Send + 'static) -> FakeServer {
    fake_node_of(vec![nodes], says)
}

/// The same with several masters, each of so many slots, and its replicas.
fn fake_node_of(shards: Vec<Vec<Arc<AtomicU64>>>, says: impl Fn() -> String + Send + 'static) -> FakeServer {
    FakeServer::replying(move |words| {
        let subcommand = words.get(1).map(|word| word.to_uppercase());
        let reply = match (words[0].to_uppercase().as_str(), subcommand.as_deref()) {
            ("HELLO", _) => format!("%1\r\n{}:3\r\n", bulk("proto")),
            ("INFO", _) => bulk("redis_version:7.0.15\r\nredis_mode:cluster\r\nrole:master\r\n"),
            ("PING", _) => "+PONG\r\n".to_owned(),
            ("SCRIPT", _) => bulk("0"),
            ("CLUSTER", Some("SLOTS")) => {
                let each = 16384 / shards.len();
                let shard = |(shard, nodes): (usize, &Vec<Arc<AtomicU64>>)| {
                    let node = |(at, port): (usize, &Arc<AtomicU64>)| {
                        let port = port.load(Ordering::Relaxed);
                        let id = bulk(&format!("id{shard}{at}"));
                        format!("*3\r\n{}:{port}\r\n{id}", bulk("127.0.0.1"))
                    };
                    let (first, last) = (shard * each, (shard + 1) * each - 1);
                    let listed: String = nodes.iter().enumerate().map(node).collect();
                    format!("*{}\r\n:{first}\r\n:{last}\r\n{listed}", 2 + nodes.len())
                };
                let listed: String = shards.iter().enumerate().map(shard).collect();
                format!("*{}\r\n{listed}", shards.len())
            }
            ("CLUSTER", _) => bulk("id00 127.0.0.1:1@2 myself,master - 0 0 1 connected 0-16383\n"),
            ("SSUBSCRIBE" | "SUNSUBSCRIBE", _) => heard(words),
            ("EVALSHA" | "EVAL", _) if words.iter().any(|word| word.contains(":probe:")) => {
                "*0\r\n".to_owned()
            }
            ("EVALSHA" | "EVAL" | "SET" | "GET" | "DEL", _) => says(),
            _ => "+OK\r\n".to_owned(),
        };
        reply.into_bytes()
    })
}

#[tokio::test]
async fn nodes_that_send_us_to_each_other_are_not_asked_without_end() {
    let slot = SHARED.slot_of(&key("pingpong"));
    let (one, other) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let to = |there: &Arc<AtomicU64>| {
        let there = there.clone();
        move || format!("-MOVED {slot} 127.0.0.1:{}\r\n", there.load(Ordering::Relaxed))
    };
    let a = fake_node(vec![one.clone()], to(&other));
    let b = fake_node(vec![one.clone()], to(&one));
    one.store(u64::from(a.port()), Ordering::Relaxed);
    other.store(u64::from(b.port()), Ordering::Relaxed);
    let url = a.url().replace("redis:", "redis-cluster:");
    let relatch = soon(Relatch::connect(&url)).await.unwrap();
    let error = soon(relatch.rwlock("pingpong").unwrap().write().timeout(ms(800)))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("another node"), "{error}");
    let scripts = |node: &FakeServer| {
        let asked = |words: &&Vec<String>| words[0] == "EVALSHA" && words[3] == key("pingpong");
        node.requests().iter().filter(asked).count()
    };
    let asked = scripts(&a) + scripts(&b);
    assert!(scripts(&b) > 0 && asked < 400, "{asked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_least_rights_and_over_tls_nothing_is_remarked_and_pushes_come() {
    let secured = support::deployment::ALL
        .iter()
        .find(|known| known.name == "cluster_secured")
        .unwrap();
    let running = (secured.start)();
    let patient = || {
        Relatch::builder()
            .url(&running.url)
            .claim(Duration::from_secs(60))
            .connect()
    };
    let (a, b) = (patient().await.unwrap(), patient().await.unwrap());
    let begun = Instant::now();
    for n in 0..12 {
        let name = format!("secured {n}");
        let held = soon(a.rwlock(&name).unwrap().write()).await.unwrap();
        let waiting = tokio::spawn(b.rwlock(&name).unwrap().write().into_future());
        waiters(&a, &name, 1).await;
        soon(held.release()).await.unwrap();
        drop(soon(waiting).await.unwrap().unwrap());
    }
    eprintln!("{:?}", begun.elapsed());
    assert_eq!(a.remarks(), Vec::<String>::new());
}

// -- rights ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn each_right_that_one_master_denies_is_named() {
    let cluster = &*SHARED;
    // Of no use in a cluster, or it works without, if not as well; `.replicas` alone needs `+wait`.
    let spared = [
        "+subscribe",
        "+publish",
        "+info",
        "+evalsha",
        "+eval",
        "+script|load",
        "+ping",
        "+wait",
        "+select",
    ];
    let of_messages = ["+ssubscribe", "+sunsubscribe", "+spublish"];
    let rules = support::deployment::least_rights()
        .into_iter()
        .chain(support::deployment::least_rights_in_a_cluster());
    let needed: Vec<&str> = rules
        .filter(|rule| rule.starts_with('+') && !spared.contains(rule))
        .collect();
    assert!(needed.len() > 20, "{needed:?}");
    for (at, rule) in needed.iter().enumerate() {
        let without = rule.replacen('+', "-", 1);
        cluster.allow("denied", (at % 3, &[&without]));
        let connecting = soon(Relatch::connect(&cluster.url_as("denied"))).await;
        if of_messages.contains(rule) {
            let relatch = connecting.expect(rule);
            works(&relatch, &cluster.name_on(at % 3, "denied")).await;
            let remarks = relatch.remarks();
            assert!(remarks.len() == 1 && remarks[0].contains(rule), "{remarks:?}");
            continue;
        }
        let error = connecting.expect_err(rule);
        assert!(
            error.is_server() && error.to_string().contains(&format!("ACL SETUSER <user> {rule}")),
            "{rule}: {error}"
        );
        assert!(!error.to_string().contains("denied"), "{error}");
    }
    cluster.allow("denied", (1, &["resetkeys", "~other:*"]));
    let error = soon(Relatch::connect(&cluster.url_as("denied")))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("ACL SETUSER <user> ~relatch:1:*"),
        "{error}"
    );
}

/// A name is handed on from one that holds to one that waits.
async fn works(relatch: &Relatch, name: &str) {
    let lock = relatch.rwlock(name).unwrap();
    let held = soon(lock.write()).await.unwrap();
    let waiting = tokio::spawn(lock.write().into_future());
    waiters(relatch, name, 1).await;
    soon(held.release()).await.unwrap();
    drop(soon(waiting).await.unwrap().unwrap());
}

#[tokio::test]
async fn without_messages_at_any_master_it_polls_and_says_so_once() {
    let cluster = &*SHARED;
    cluster.allow("deaf", (0, &[]));
    for node in cluster.nodes() {
        node.cli(&[
            "ACL",
            "SETUSER",
            "deaf",
            "resetchannels",
            "-ssubscribe",
            "-spublish",
        ]);
    }
    let relatch = client(cluster.url_as("deaf")).await;
    for master in 0..3 {
        works(&relatch, &cluster.name_on(master, "deaf")).await;
    }
    let remarks = relatch.remarks();
    assert_eq!(remarks.len(), 1, "{remarks:?}");
    assert!(
        remarks[0].contains("+ssubscribe +sunsubscribe +spublish &relatch:1:client:*"),
        "{remarks:?}"
    );
}

#[tokio::test]
async fn a_right_that_goes_while_linked_is_named_by_who_needs_it() {
    let cluster = &*SHARED;
    cluster.allow("shrinks", (0, &[]));
    let relatch = client(cluster.url_as("shrinks")).await;
    let name = |master: usize| cluster.name_on(master, "shrinks");
    works(&relatch, &name(2)).await;
    // Two join anew, each with less than before.
    for (at, taken) in [(1, "-zrem"), (2, "-zrank")] {
        let node = cluster.node(at);
        node.cli(&["ACL", "SETUSER", "shrinks", taken]);
        node.cli(&["CLIENT", "KILL", "USER", "shrinks"]);
    }
    for (at, rule) in [(1, "+zrem"), (2, "+zrank")] {
        eventually_async(BOUND, "its master says no", async || {
            let outcome = relatch.rwlock(&name(at)).unwrap().write().timeout(ms(100)).await;
            outcome.is_err_and(|error| error.to_string().ends_with(&format!("ACL SETUSER <user> {rule}")))
        })
        .await;
    }
    works(&relatch, &name(0)).await;
    for (at, rule) in [(1, "+zrem"), (2, "+zrank")] {
        cluster.node(at).cli(&["ACL", "SETUSER", "shrinks", rule]);
        works(&relatch, &name(at)).await;
    }
    let node = cluster.node(2);

    // A right to listen, which is asked for again with each slot that is new.
    node.cli(&["ACL", "SETUSER", "shrinks", "-ssubscribe"]);
    works(&relatch, &cluster.name_on(2, "shrinks again")).await;
    let remarks = relatch.remarks();
    assert!(
        remarks.len() == 1 && remarks[0].contains("+ssubscribe"),
        "{remarks:?}"
    );
}

// -- what gets lost ----------------------------------------------------------------------------------------------

/// In front of each master, and all that anybody is told of.
fn proxied(cluster: &RedisCluster) -> (Vec<Proxy>, String) {
    let proxies: Vec<Proxy> = cluster
        .masters()
        .iter()
        .map(|node| Proxy::start(node.port()))
        .collect();
    for (at, proxy) in proxies.iter().enumerate() {
        cluster.announce(at, proxy.port());
    }
    let url = proxies[0].url().replace("redis:", "redis-cluster:");
    (proxies, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_reply_makes_nothing_happen_twice_wherever_the_slot_is() {
    const LOSSES: usize = 12;
    let cluster = RedisCluster::start(3);
    let (proxies, url) = proxied(&cluster);
    follows_an_ask(&cluster, &url, "lost", Some(&proxies[2])).await;

    let steady = || connected(Relatch::builder().url(&url).claim(ms(900)));
    let clients = [steady().await, steady().await];
    let names: Vec<String> = (0..5)
        .map(|n| cluster.name_on(n % 3, &format!("losses {n}")))
        .collect();
    let judges: Vec<Judge> = names.iter().map(|_| Judge::default()).collect();
    let going = AtomicBool::new(true);
    let worker = async |n: usize| {
        let mut turn = n;
        while going.load(Ordering::Relaxed) {
            let at = turn % names.len();
            let lock = clients[n % 2].rwlock(&names[at]).unwrap();
            if turn.is_multiple_of(2) {
                within(FAILOVER, judges[at].write(&lock)).await;
            } else {
                within(FAILOVER, judges[at].read(&lock)).await;
            }
            turn += 1 + n;
        }
    };
    let loser = async {
        let mut home = true;
        for n in 0..LOSSES {
            let proxy = &proxies[n % 3];
            let lost = proxy.lost_replies();
            let of_ours = |word: &String| word.starts_with("relatch:1:{losses");
            proxy.drop_reply_then_cut(move |words| words[0] == "EVALSHA" && words.iter().any(of_ours));
            eventually(BOUND, "a reply is lost", || proxy.lost_replies() > lost).await;
            // Where it is asked again may be somewhere else.
            if n % 4 == 3 {
                let slot = cluster.slot_of(&key(&names[0]));
                let (from, to) = if home { (0, 1) } else { (1, 0) };
                tokio::task::block_in_place(|| cluster.move_slot(slot, from, to));
                home = !home;
            }
        }
        going.store(false, Ordering::Relaxed);
    };
    tokio::join!(futures_util::future::join_all((0..6).map(worker)), loser);
    for name in &names {
        free(&clients[0], name).await;
    }
}

#[tokio::test]
async fn a_late_node_does_not_vouch_for_itself_by_another_name() {
    let mut names = (0..).map(|at| format!("late {at}"));
    let name = names.find(|name| SHARED.slot_of(&key(name)) < 8192).unwrap();
    let away = || Arc::new(AtomicU64::new(1));
    // Another node, which does not answer: a master, a replica, none. One that could have replaced it is voted for by the masters: where there
    // is no other there is none, and an answer that was late once is not doubted for as long as the replica is away.
    for (kind, said) in [
        ("master", "answered late"),
        ("replica", "out of memory"),
        ("none", "out of memory"),
    ] {
        let here = Arc::new(AtomicU64::new(0));
        let shards = match kind {
            "master" => vec![vec![here.clone()], vec![away()]],
            "replica" => vec![vec![here.clone(), away()]],
            _ => vec![vec![here.clone()]],
        };
        let node = fake_node_of(shards, || {
            // Longer than any failover is quick.
            std::thread::sleep(ms(700));
            "-OOM it says\r\n".to_owned()
        });
        here.store(u64::from(node.port()), Ordering::Relaxed);
        let url = format!("redis-cluster://localhost:{}", node.port());
        let relatch = soon(Relatch::connect(&url)).await.unwrap();
        let error = soon(relatch.rwlock(&name).unwrap().write().timeout(ms(2500)))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(said), "{kind}: {error}");
    }
}

#[tokio::test]
async fn what_was_sent_before_anybody_listened_is_polled_when_somebody_does() {
    let cluster = RedisCluster::start(1);
    let listening = Arc::new(AtomicBool::new(false));
    let front = {
        let listening = listening.clone();
        FakeServer::before(cluster.node(0).port(), move |words| {
            if !matches!(words[0].as_str(), "SSUBSCRIBE" | "SUNSUBSCRIBE") {
                return None;
            }
            let stands = listening.load(Ordering::SeqCst) || words[1].ends_with(":ear");
            let said = if stands {
                heard(words)
            } else {
                "-TRYAGAIN in a moment\r\n".to_owned()
            };
            Some(said.into_bytes())
        })
    };
    cluster.announce(0, front.port());
    // A poll would come after 20 s.
    let patient = || {
        let url = front.url().replace("redis:", "redis-cluster:");
        connected(Relatch::builder().url(url).claim(Duration::from_secs(60)))
    };
    let (a, b) = (patient().await, patient().await);
    let held = soon(a.rwlock("ear").unwrap().write()).await.unwrap();
    let waiting = tokio::spawn(b.rwlock("ear").unwrap().write().into_future());
    waiters(&a, "ear", 1).await;
    // Nobody is told, as nobody listens.
    soon(held.release()).await.unwrap();
    assert!(!waiting.is_finished());
    listening.store(true, Ordering::SeqCst);
    drop(soon(waiting).await.unwrap().unwrap());
    assert_eq!(b.remarks(), Vec::<String>::new(), "nothing was forbidden");
}
