//! Owners that wait for each other are found and named, and refused where that is asked for. On each backend.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use relatch::{Builder, Circle, Embedded, Error, Mode, Owner, Relatch};
use support::{BOUND, Proxy, RedisServer, eventually_async};
use tokio::task::JoinHandle;

enum World {
    Embedded(Embedded),
    Redis(RedisServer),
}

impl World {
    async fn client_of(&self, builder: Builder) -> Relatch {
        match self {
            World::Embedded(server) => builder.embedded_in(server).unwrap(),
            World::Redis(server) => builder.url(server.url()).connect().await.unwrap(),
        }
    }

    async fn client(&self) -> Relatch {
        self.client_of(Relatch::builder()).await
    }

    async fn careful(&self) -> Relatch {
        self.client_of(Relatch::builder().refuse_deadlocks(true)).await
    }
}

fn both() -> [World; 2] {
    [
        World::Embedded(Embedded::new()),
        World::Redis(RedisServer::start()),
    ]
}

type Wait = JoinHandle<Result<(), Error>>;

/// Waits for a name with what its owner holds in hand, and gives everything back when it is through. Returns when it stands in line.
async fn waits<G: Send + 'static>(
    relatch: &Relatch,
    owner: &Owner,
    name: &str,
    mode: Mode,
    holding: G,
) -> Wait {
    let before = relatch.inspect(name).await.unwrap().waiter_count;
    let (lock, owner) = (relatch.rwlock(name).unwrap(), owner.clone());
    let wait = tokio::spawn(async move {
        let got = match mode {
            Mode::Read => lock.read().owner(&owner).label("second").await.map(drop),
            Mode::Upgradable => lock
                .upgradable_read()
                .owner(&owner)
                .label("second")
                .await
                .map(drop),
            Mode::Write => lock.write().owner(&owner).label("second").await.map(drop),
        };
        drop(holding);
        got
    });
    eventually_async(BOUND, "it stands in line", async || {
        wait.is_finished() || relatch.inspect(name).await.unwrap().waiter_count > before
    })
    .await;
    wait
}

async fn only(relatch: &Relatch) -> Circle {
    let mut circles = relatch.deadlocks().await.unwrap().circles;
    assert_eq!(circles.len(), 1, "{circles:?}");
    circles.remove(0)
}

async fn ended(wait: Wait) -> Result<(), Error> {
    tokio::time::timeout(BOUND, wait).await.expect("it ends").unwrap()
}

/// Of a name that others hold and wait for, and that this user may not read; of a queue that is somebody else's.
#[tokio::test]
async fn what_can_not_be_looked_at_hides_no_circle_among_the_rest() {
    let world = World::Redis(RedisServer::start());
    let World::Redis(server) = &world else { panic!() };
    let rights = "on >word ~relatch:1:[^{]* ~relatch:1:{[^d]* &* +@all";
    let words: Vec<&str> = ["ACL", "SETUSER", "few"]
        .into_iter()
        .chain(rights.split(' '))
        .collect();
    server.cli(&words);
    let as_few = server.url().replace("redis://", "redis://few:word@");
    let others = world.client().await;
    let denied = others.rwlock("denied").unwrap().write().await.unwrap();
    let wait = waits(&others, &Owner::new(), "denied", Mode::Write, ()).await;
    for foreign in [false, true] {
        let (url, more) = match foreign {
            false => (as_few.clone(), None),
            true => (server.url(), Some(["ZADD", "relatch:1:{other}:queue", "1", "x"])),
        };
        if let Some(words) = more {
            server.cli(&words);
            server.cli(&["SET", "relatch:1:{other}", "cached"]);
        }
        let connect = async |refuse| {
            let builder = Relatch::builder().url(&url).refuse_deadlocks(refuse);
            builder.connect().await.unwrap()
        };
        let (one, careful) = (connect(false).await, connect(true).await);
        // That there are none can't be said.
        let found = one.deadlocks().await;
        let error = found.expect_err(if foreign { "foreign" } else { "denied" });
        assert!(error.is_server(), "{foreign}: {error}");
        for client in [&one, &careful] {
            let (ann, ben) = (Owner::new(), Owner::new());
            let x = one.rwlock("ok/x").unwrap().write().owner(&ann).await.unwrap();
            let y = client.rwlock("ok/y").unwrap().write().owner(&ben).await.unwrap();
            let hers = waits(&one, &ann, "ok/y", Mode::Write, x).await;
            let his = waits(client, &ben, "ok/x", Mode::Write, y).await;
            if std::ptr::eq(client, &careful) {
                assert!(ended(his).await.unwrap_err().is_deadlock());
                ended(hers).await.unwrap();
            } else {
                only(&one).await;
                his.abort();
                ended(hers).await.unwrap();
            }
        }
    }
    denied.release().await.unwrap();
    ended(wait).await.unwrap();
}

#[tokio::test]
async fn a_line_that_is_too_long_to_be_looked_at_whole_is_named() {
    for world in both() {
        let relatch = world.client().await;
        let lock = relatch.rwlock("long").unwrap();
        let reads: Vec<_> = (0..1001).map(|_| lock.read().into_future()).collect();
        let reads = futures_util::future::try_join_all(reads).await.unwrap();
        assert_eq!(relatch.deadlocks().await.unwrap().cut, [""; 0], "nobody waits");
        let wait = waits(&relatch, &Owner::new(), "long", Mode::Write, ()).await;
        assert_eq!(relatch.deadlocks().await.unwrap().cut, ["long"]);
        drop(reads);
        ended(wait).await.unwrap();
    }
}

#[tokio::test]
async fn two_owners_that_cross_two_names_are_found_and_named() {
    for world in both() {
        let (one, other) = (world.client().await, world.client().await);
        let (ann, ben) = (Owner::new(), Owner::new());
        let lock = |client: &Relatch, name: &str| client.rwlock(name).unwrap();
        let x = lock(&one, "x").write().owner(&ann).label("first").await.unwrap();
        let y = lock(&other, "y").write().owner(&ben).await.unwrap();
        assert_eq!(one.deadlocks().await.unwrap().circles, []);
        let hers = waits(&one, &ann, "y", Mode::Write, x).await;
        assert_eq!(
            one.deadlocks().await.unwrap().circles,
            [],
            "one that waits is no circle"
        );
        let his = waits(&other, &ben, "x", Mode::Write, y).await;

        let circle = only(&world.client().await).await;
        let waits: Vec<_> = circle
            .waits
            .iter()
            .map(|wait| (wait.name.as_str(), wait.waiting.owner.clone()))
            .collect();
        assert_eq!(
            waits,
            [("y", ann.clone()), ("x", ben.clone())],
            "the youngest comes last"
        );
        let [_, last] = &circle.waits[..] else { panic!() };
        let holder = last.holder.as_ref().unwrap();
        assert_eq!((&holder.owner, holder.mode), (&ann, Mode::Write));
        assert_eq!(holder.label.as_deref(), Some("first"));
        assert_eq!(last.waiting.label.as_deref(), Some("second"));
        assert_eq!(last.waiting.client.as_ref().unwrap().pid, std::process::id());
        let text = circle.to_string();
        for word in [
            &ann.to_string(),
            &ben.to_string(),
            "\"x\"",
            "\"y\"",
            "(write)",
            &format!("(pid {})", std::process::id()),
        ] {
            assert!(text.contains(word), "no {word} in {text}");
        }
        // One lets go, and the other gets through.
        hers.abort();
        ended(his).await.unwrap();
        assert_eq!(one.deadlocks().await.unwrap().circles, []);
    }
}

#[tokio::test]
async fn three_owners_in_a_circle_are_found_among_others_that_wait() {
    for world in both() {
        let mut clients = Vec::new();
        let owners: Vec<Owner> = (0..3).map(|_| Owner::new()).collect();
        let mut holds = Vec::new();
        for (at, owner) in owners.iter().enumerate() {
            let client = world.client().await;
            let name = format!("name {at}");
            holds.push(client.rwlock(&name).unwrap().write().owner(owner).await.unwrap());
            clients.push(client);
        }
        // Somebody who only waits is in no circle, also not the one he waits for.
        let aside = waits(&clients[0], &Owner::new(), "name 1", Mode::Read, ()).await;
        let mut all = Vec::new();
        for (at, hold) in holds.into_iter().enumerate() {
            let next = format!("name {}", (at + 1) % 3);
            all.push(waits(&clients[at], &owners[at], &next, Mode::Write, hold).await);
        }
        let circle = only(&clients[0]).await;
        let found: Vec<_> = circle
            .waits
            .iter()
            .map(|wait| wait.waiting.owner.clone())
            .collect();
        assert_eq!(found, owners);
        for wait in all.into_iter().chain([aside]) {
            wait.abort();
        }
    }
}

#[tokio::test]
async fn readers_and_writers_that_wait_for_each_other_are_found() {
    for world in both() {
        let relatch = world.client().await;
        let (ann, ben, cat) = (Owner::new(), Owner::new(), Owner::new());
        let x = relatch.rwlock("x").unwrap().read().owner(&ann).await.unwrap();
        let y = relatch.rwlock("y").unwrap().read().owner(&ben).await.unwrap();
        // Ann reads x. A writer, who holds nothing, waits for her; Ben waits to read behind him, with y in hand; and she waits for that.
        let writer = waits(&relatch, &cat, "x", Mode::Write, ()).await;
        let his = waits(&relatch, &ben, "x", Mode::Read, y).await;
        assert_eq!(relatch.deadlocks().await.unwrap().circles, []);
        let hers = waits(&relatch, &ann, "y", Mode::Write, x).await;
        let circle = only(&relatch).await;
        let found: Vec<_> = circle
            .waits
            .iter()
            .map(|wait| {
                (
                    wait.waiting.owner.clone(),
                    wait.name.as_str(),
                    wait.holder.as_ref().map(|held| held.mode),
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                (ben, "x", None),
                (cat, "x", Some(Mode::Read)),
                (ann, "y", Some(Mode::Read))
            ]
        );
        // Without the writer the reader is let in, and everybody gets through.
        writer.abort();
        ended(his).await.unwrap();
        ended(hers).await.unwrap();
    }
}

#[tokio::test]
async fn the_acquisition_that_closes_a_circle_is_refused_and_no_other() {
    for world in both() {
        let (one, other) = (world.careful().await, world.careful().await);
        let (ann, ben) = (Owner::new(), Owner::new());
        let x = one.rwlock("x").unwrap().write().owner(&ann).await.unwrap();
        let y = other.rwlock("y").unwrap().read().owner(&ben).await.unwrap();
        let hers = waits(&one, &ann, "y", Mode::Write, x).await;
        let his = waits(&other, &ben, "x", Mode::Upgradable, y).await;
        let error = ended(his).await.unwrap_err();
        assert!(error.is_deadlock(), "{error}");
        assert_eq!(error.circle().unwrap().waits.len(), 2);
        assert!(
            error.to_string().contains(&ann.to_string()) && error.to_string().contains("\"y\""),
            "{error}"
        );
        ended(hers).await.unwrap();
        let seen = one.inspect("x").await.unwrap();
        assert_eq!(
            (seen.waiter_count, seen.holder_count),
            (0, 0),
            "nothing is left of it"
        );
    }
}

/// In a ring, all at the same time: each closes it as much as any other.
async fn only_one_of_a_ring_gives_up(clients: &[Relatch], size: usize) {
    let owners: Vec<Owner> = (0..size).map(|_| Owner::new()).collect();
    let mut holds = Vec::new();
    for (at, owner) in owners.iter().enumerate() {
        let lock = clients[at % clients.len()].rwlock(&format!("ring {at}")).unwrap();
        holds.push(async move { lock.write().owner(owner).await.unwrap() });
    }
    let holds = futures_util::future::join_all(holds).await;
    let waits = holds.into_iter().enumerate().map(|(at, hold)| {
        let lock = clients[at % clients.len()].rwlock(&format!("ring {}", (at + 1) % size));
        let (lock, owner) = (lock.unwrap(), owners[at].clone());
        tokio::spawn(async move {
            let got = lock.write().owner(&owner).await.map(drop);
            drop(hold);
            got
        })
    });
    let waits: Vec<Wait> = waits.collect();
    let mut refused = 0;
    for wait in waits {
        match ended(wait).await {
            Ok(()) => {}
            Err(error) if error.is_deadlock() => {
                assert_eq!(error.circle().unwrap().waits.len(), size);
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(refused, 1, "of {size}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_those_that_close_a_circle_at_the_same_time_one_gives_up() {
    for world in both() {
        let clients = [world.careful().await, world.careful().await];
        for size in [2, 2, 2, 3, 5] {
            only_one_of_a_ring_gives_up(&clients, size).await;
        }
    }
}

/// While the youngest finds out whom to name it stands in line, and others wait for it to give up.
#[tokio::test]
async fn a_large_circle_is_named_in_a_few_round_trips() {
    const SIZE: usize = 20;
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    let near = Relatch::connect(&server.url()).await.unwrap();
    let far = Relatch::connect(&proxy.url()).await.unwrap();
    let owners: Vec<Owner> = (0..SIZE).map(|_| Owner::new()).collect();
    let (mut holds, mut all) = (Vec::new(), Vec::new());
    for (at, owner) in owners.iter().enumerate() {
        let lock = near.rwlock(&format!("ring {at}")).unwrap();
        holds.push(lock.write().owner(owner).await.unwrap());
    }
    for (at, hold) in holds.into_iter().enumerate() {
        let next = format!("ring {}", (at + 1) % SIZE);
        all.push(waits(&near, &owners[at], &next, Mode::Write, hold).await);
    }
    proxy.delay(Duration::from_millis(100));
    let begun = Instant::now();
    let circle = only(&far).await;
    assert_eq!(circle.waits.len(), SIZE);
    // The names, a look, another, and who they are. One after the other it would be more than 20.
    let trips = begun.elapsed().as_millis() / 200;
    assert!(trips < 12, "{trips} round trips");
    for wait in all {
        wait.abort();
    }
}

#[tokio::test]
async fn where_the_youngest_is_not_told_to_look_an_older_one_gives_up() {
    for world in both() {
        let (careful, other) = (world.careful().await, world.client().await);
        let (ann, ben) = (Owner::new(), Owner::new());
        let x = careful.rwlock("x").unwrap().write().owner(&ann).await.unwrap();
        let y = other.rwlock("y").unwrap().write().owner(&ben).await.unwrap();
        let hers = waits(&careful, &ann, "y", Mode::Write, x).await;
        let his = waits(&other, &ben, "x", Mode::Write, y).await;
        assert!(ended(hers).await.unwrap_err().is_deadlock());
        ended(his).await.unwrap();
    }
}

/// Tasks that take several names in one order, read and write and re-enter, with many waits: no circle is ever there, and none is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_circle_is_told_where_there_is_none() {
    for world in both() {
        let over = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        for number in 0..8u64 {
            let (relatch, over, rounds) = (world.careful().await, over.clone(), rounds.clone());
            tasks.push(tokio::spawn(async move {
                let mut rng = fastrand::Rng::with_seed(number);
                while !over.load(Ordering::Relaxed) {
                    let work = async {
                        let first = relatch.rwlock("a").unwrap().read().await?;
                        let second = relatch.rwlock("b").unwrap();
                        let second = match rng.bool() {
                            true => second.write().await?.downgrade().await?,
                            false => second.read().await?,
                        };
                        let again = relatch.rwlock("a").unwrap().read().await?;
                        let third = relatch.rwlock("c").unwrap().write().await?;
                        tokio::time::sleep(Duration::from_millis(rng.u64(..30))).await;
                        drop((first, second, again, third));
                        Ok::<(), Error>(())
                    };
                    Owner::new().scope(work).await.unwrap();
                    rounds.fetch_add(1, Ordering::Relaxed);
                    let writer = relatch.rwlock("a").unwrap().write().await;
                    drop(writer.unwrap());
                }
            }));
        }
        let looker = world.client().await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(700) || rounds.load(Ordering::Relaxed) < 20 {
            assert_eq!(looker.deadlocks().await.unwrap().circles, []);
            assert!(begun.elapsed() < BOUND * 3, "they get on");
        }
        over.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.unwrap();
        }
    }
}
