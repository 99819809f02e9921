//! What operators look at, on a Redis Cluster of real nodes: names, changes, inspections and circles over all masters, while slots move, and when a
//! master does not answer, is replaced, or its link is made anew.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use relatch::{Changed, Changes, Mode, Owner, Relatch};
use support::{BOUND, RedisCluster, RedisServer, eventually_async};

/// Three masters that nobody kills, and whose links nobody cuts.
static SHARED: LazyLock<RedisCluster> = LazyLock::new(|| RedisCluster::start(3));

/// How long a master of these tests is silent before the others take it for dead, and how long a failover may take on a loaded machine.
const NODE_TIMEOUT: Duration = Duration::from_millis(1500);
const FAILOVER: Duration = Duration::from_secs(30);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn client(cluster: &RedisCluster) -> Relatch {
    Relatch::connect(&cluster.url()).await.unwrap()
}

/// Quick to notice, quick to give up.
async fn brisk(cluster: &RedisCluster) -> Relatch {
    let builder = Relatch::builder().url(cluster.url());
    let builder = builder.response_timeout(ms(400)).idle_ping(ms(400));
    builder.patience(ms(1500)).connect().await.unwrap()
}

async fn soon<T>(future: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(BOUND, future.into_future())
        .await
        .expect("it came within the bound")
}

fn key(name: &str) -> String {
    format!("relatch:1:{{{name}}}")
}

/// One name on each master.
fn on_each(cluster: &RedisCluster, seed: &str) -> Vec<String> {
    (0..3).map(|master| cluster.name_on(master, seed)).collect()
}

async fn listed(relatch: &Relatch, pattern: &str) -> BTreeSet<String> {
    let mut names = relatch.names(pattern);
    let mut all = BTreeSet::new();
    while let Some(page) = soon(names.next_page()).await.unwrap() {
        for name in page {
            assert!(all.insert(name.clone()), "{name} was told twice");
        }
    }
    all
}

/// Until each of these has been told of a change that was made since.
async fn told_of(changes: &mut Changes, by: &Relatch, names: &[String]) {
    let all: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let mut left = all;
    let locks: Vec<_> = names.iter().map(|name| by.rwlock(name).unwrap()).collect();
    let told = async {
        while !left.is_empty() {
            if let Ok(Changed::Names(names)) = changes.next().await {
                left.retain(|name| !names.iter().any(|told| told == name));
            }
        }
    };
    let change = async {
        loop {
            for lock in &locks {
                let held = lock.write().timeout(BOUND).await.unwrap();
                held.release().await.unwrap();
            }
            tokio::time::sleep(ms(10)).await;
        }
    };
    tokio::select! {
        biased;
        told = tokio::time::timeout(FAILOVER, told) => told.expect("all of them are told"),
        () = change => {}
    }
}

// -- all is well -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn names_of_all_masters_are_listed_once_and_looked_at() {
    let cluster = &*SHARED;
    let relatch = client(cluster).await;
    let mut held = Vec::new();
    let mut all = BTreeSet::new();
    for n in 0..60 {
        let name = format!("listed/{n}");
        held.push(relatch.rwlock(&name).unwrap().write().await.unwrap());
        all.insert(name);
    }
    for name in on_each(cluster, "listed/each") {
        let hold = relatch.rwlock(&name).unwrap().write().label("here");
        held.push(hold.await.unwrap());
        let seen = relatch.inspect(&name).await.unwrap();
        assert_eq!(seen.holder_count, 1);
        assert_eq!(seen.holders[0].label.as_deref(), Some("here"));
        let process = seen.holders[0].client.as_ref().unwrap();
        assert_eq!(process.pid, std::process::id(), "wherever its key is");
        all.insert(name);
    }
    assert_eq!(listed(&relatch, "listed/*").await, all);
}

#[tokio::test]
async fn changes_on_all_masters_are_told_also_by_a_link_that_was_made_anew() {
    // Of its own, as it cuts everybody's links.
    let cluster = RedisCluster::start(3);
    let (relatch, other) = (client(&cluster).await, client(&cluster).await);
    let names = on_each(&cluster, "changes");
    let (mut changes, mut second) = (relatch.changes(), relatch.changes());
    for changes in [&mut changes, &mut second] {
        assert_eq!(soon(changes.next()).await.unwrap(), Changed::Anything);
        told_of(changes, &other, &names).await;
    }
    for node in cluster.masters() {
        node.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        // What was missed meanwhile is among "anything", which both are told; and what comes later is told again.
        for changes in [&mut changes, &mut second] {
            while !matches!(soon(changes.next()).await, Ok(Changed::Anything)) {}
        }
    }
    for changes in [&mut changes, &mut second] {
        told_of(changes, &other, &names).await;
    }
}

/// Waits for a name with what its owner holds in hand. Returns when it stands in line.
async fn waits(
    relatch: &Relatch,
    owner: &Owner,
    name: &str,
    holding: relatch::WriteGuard,
) -> tokio::task::JoinHandle<Result<(), relatch::Error>> {
    let (lock, owner) = (relatch.rwlock(name).unwrap(), owner.clone());
    let before = relatch.inspect(name).await.unwrap().waiter_count;
    let wait = tokio::spawn(async move {
        let got = lock.write().owner(&owner).await.map(drop);
        drop(holding);
        got
    });
    eventually_async(BOUND, "it stands in line", async || {
        wait.is_finished() || relatch.inspect(name).await.unwrap().waiter_count > before
    })
    .await;
    wait
}

#[tokio::test]
async fn a_circle_over_three_masters_is_found_and_the_one_that_closes_it_refused() {
    let cluster = &*SHARED;
    let names = on_each(cluster, "circle");
    for refuse in [false, true] {
        let owners: Vec<Owner> = (0..3).map(|_| Owner::new()).collect();
        let (mut clients, mut holds, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for (owner, name) in owners.iter().zip(&names) {
            let builder = Relatch::builder().url(cluster.url()).refuse_deadlocks(refuse);
            let relatch = builder.connect().await.unwrap();
            let hold = relatch.rwlock(name).unwrap().write().owner(owner);
            holds.push(soon(hold).await.unwrap());
            clients.push(relatch);
        }
        for (at, hold) in holds.into_iter().enumerate() {
            all.push(waits(&clients[at], &owners[at], &names[(at + 1) % 3], hold).await);
        }
        if refuse {
            let last = all.pop().unwrap();
            let error = soon(last).await.unwrap().unwrap_err();
            assert!(error.is_deadlock(), "{error}");
            assert_eq!(error.circle().unwrap().waits.len(), 3);
            for wait in all {
                soon(wait).await.unwrap().unwrap();
            }
        } else {
            let circles = soon(clients[0].deadlocks()).await.unwrap().circles;
            assert_eq!(circles.len(), 1, "{circles:?}");
            let waits: Vec<_> = circles[0].waits.iter().collect();
            let found: Vec<_> = waits.iter().map(|wait| wait.waiting.owner.clone()).collect();
            assert_eq!(found, owners, "the youngest comes last");
            assert!(waits.iter().all(|wait| wait.waiting.client.is_some()));
            let held = waits[2].holder.as_ref().unwrap();
            assert_eq!((&held.owner, held.mode), (&owners[0], Mode::Write));
            // Each gets on when the next has gone.
            for wait in all {
                wait.abort();
            }
            eventually_async(BOUND, "they have gone", async || {
                let mut idle = true;
                for name in &names {
                    let seen = clients[0].inspect(name).await.unwrap();
                    idle &= seen.holder_count == 0 && seen.waiter_count == 0;
                }
                idle
            })
            .await;
        }
    }
}

// -- slots that move ---------------------------------------------------------------------------------------------

/// A name of the last master, of which the first comes to know only when it has been gone through.
#[tokio::test]
async fn a_name_that_moves_while_it_is_listed_is_not_left_out() {
    let cluster = RedisCluster::start(3);
    // Whoever looks uses no slot, so nobody tells it of what moves.
    let (relatch, other) = (client(&cluster).await, client(&cluster).await);
    for whole in [false, true] {
        let name = cluster.name_on(2, &format!("moving {whole}"));
        let slot = cluster.slot_of(&key(&name));
        let _held = other.rwlock(&name).unwrap().write().await.unwrap();
        let mut names = relatch.names(&format!("moving {whole}*"));
        let page = soon(names.next_page()).await.unwrap().unwrap();
        assert_eq!(page, [] as [&str; 0], "the first master has none");
        cluster.begin_move(slot, 2, 0);
        while cluster.move_keys(slot, 2, 0, 10) > 0 {}
        if whole {
            cluster.end_move(slot, 0);
        }
        let mut told = Vec::new();
        while let Some(page) = soon(names.next_page()).await.unwrap() {
            told.extend(page);
        }
        let mine = told.iter().filter(|told| **told == name);
        assert_eq!(mine.count(), 1, "whole: {whole}, {told:?}");
        cluster.end_move(slot, 0);
    }
}

/// As a cursor of another server's, or of an earlier life of the same, means nothing.
#[tokio::test]
async fn a_listing_goes_on_after_its_server_was_replaced_and_leaves_no_name_out() {
    let server = RedisServer::start_persistent();
    let mut stranger = server.client().unwrap();
    for n in 0..4000 {
        let key = format!("relatch:1:{{job/{n}}}");
        stranger.send(&["HSET", &key, "fence", "1"]).unwrap();
    }
    for _ in 0..4000 {
        stranger.receive().unwrap();
    }
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    let mut names = relatch.names("*");
    let mut told: Vec<String> = Vec::new();
    for _ in 0..2 {
        told.extend(soon(names.next_page()).await.unwrap().unwrap());
    }
    server.restart_with_data();
    while let Some(page) = soon(names.next_page()).await.unwrap() {
        told.extend(page);
    }
    assert_eq!(told.len(), 4000, "each once");
    assert_eq!(told.iter().collect::<BTreeSet<_>>().len(), 4000);
}

// -- a master that does not answer -------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_master_down_the_others_are_seen_and_the_one_is_named() {
    let cluster = RedisCluster::start(3);
    let relatch = brisk(&cluster).await;
    let names = on_each(&cluster, "down");
    let mut held = Vec::new();
    // Of another client, whose key may be anywhere.
    let other = client(&cluster).await;
    for name in &names {
        held.push(other.rwlock(name).unwrap().write().await.unwrap());
    }
    let mut changes = relatch.changes();
    assert_eq!(soon(changes.next()).await.unwrap(), Changed::Anything);

    // Clients that say who they are on whichever server it falls to.
    let mut readers = Vec::new();
    let read = cluster.name_on(1, "readers");
    for _ in 0..12 {
        let reader = client(&cluster).await;
        readers.push(reader.rwlock(&read).unwrap().read().await.unwrap());
    }

    // The first: what is asked of any server is asked of another.
    cluster.node(0).stop();
    let begun = Instant::now();
    let mut pages = relatch.names("down*");
    let mut told = BTreeSet::new();
    let error = loop {
        match soon(pages.next_page()).await {
            Ok(page) => told.extend(page.expect("it can't come to its end")),
            Err(error) => break error,
        }
    };
    assert!(error.is_unreachable(), "{error}");
    let port = cluster.node(0).port().to_string();
    assert!(error.to_string().contains(&port), "{error}");
    assert_eq!(told, names[1..].iter().cloned().collect());
    for name in &names[1..] {
        let seen = soon(relatch.inspect(name)).await.unwrap();
        assert_eq!(seen.holder_count, 1);
    }
    let seen = soon(relatch.inspect(&read)).await.unwrap();
    let known = seen.holders.iter().filter(|held| held.client.is_some());
    assert!(known.count() > 0, "those whom the others know are known");
    // It was waited for once, as long as patience lasts.
    assert!(begun.elapsed() < ms(6000), "{:?}", begun.elapsed());
    soon(relatch.examine()).await.unwrap();

    // A circle over the two others is a circle. Without one, nobody knows.
    let error = soon(relatch.deadlocks()).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    let (ann, ben) = (Owner::new(), Owner::new());
    let two = [cluster.name_on(1, "circle"), cluster.name_on(2, "circle")];
    let one = relatch
        .rwlock(&two[0])
        .unwrap()
        .write()
        .owner(&ann)
        .await
        .unwrap();
    let careful = Relatch::builder().url(cluster.url()).refuse_deadlocks(true);
    let careful = careful
        .response_timeout(ms(400))
        .connect_timeout(ms(400))
        .connect()
        .await
        .unwrap();
    let two_held = careful
        .rwlock(&two[1])
        .unwrap()
        .write()
        .owner(&ben)
        .await
        .unwrap();
    let hers = waits(&relatch, &ann, &two[1], one).await;
    let his = waits(&careful, &ben, &two[0], two_held).await;
    assert!(soon(his).await.unwrap().unwrap_err().is_deadlock());
    soon(hers).await.unwrap().unwrap();

    // What changes elsewhere is told, and that not all is, however much that may be.
    told_of(&mut changes, &relatch, &two).await;
    let lock = relatch.rwlock(&two[0]).unwrap();
    let change = async {
        loop {
            lock.write().await.unwrap().release().await.unwrap();
        }
    };
    let error = async {
        loop {
            if let Err(error) = changes.next().await {
                return error;
            }
        }
    };
    tokio::select! {
        error = soon(error) => assert!(error.is_unreachable(), "{error}"),
        () = change => {}
    }

    cluster.node(0).cont();
    while !matches!(soon(changes.next()).await, Ok(Changed::Anything)) {}
    told_of(&mut changes, &relatch, &[cluster.name_on(0, "again")]).await;
    assert_eq!(listed(&relatch, "down*").await, names.into_iter().collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_master_was_killed_the_one_that_replaces_it_is_looked_at() {
    let cluster = RedisCluster::start_with(3, 1, NODE_TIMEOUT, &[]);
    let relatch = brisk(&cluster).await;
    let names = on_each(&cluster, "killed");
    let mut changes = relatch.changes();
    assert_eq!(soon(changes.next()).await.unwrap(), Changed::Anything);
    told_of(&mut changes, &relatch, &names).await;
    cluster.node(1).kill();
    let acquire = relatch.rwlock(&names[1]).unwrap().write().timeout(FAILOVER);
    acquire.await.unwrap().release().await.unwrap();
    told_of(&mut changes, &relatch, &names).await;
    assert_eq!(listed(&relatch, "killed*").await, names.into_iter().collect());
}
