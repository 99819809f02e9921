//! What operators look at: which names there are, which change, who is still there. On each backend.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use relatch::{Backoff, Builder, Changed, Changes, Embedded, LostCause, Relatch};
use support::{BOUND, RedisServer, eventually_async};

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
}

fn both() -> [World; 2] {
    [
        World::Embedded(Embedded::new()),
        World::Redis(RedisServer::start()),
    ]
}

async fn soon<T>(future: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(BOUND, future.into_future())
        .await
        .expect("it came within the bound")
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

/// Until this name is among those that changed.
async fn until_changed(changes: &mut Changes, name: &str) {
    loop {
        match soon(changes.next()).await.unwrap() {
            Changed::Names(names) if names.iter().any(|other| other == name) => return,
            _ => {}
        }
    }
}

#[tokio::test]
async fn every_name_is_listed_once_and_only_what_matches() {
    for world in both() {
        let relatch = world.client().await;
        let odd = [
            "{order:17}items",
            "{order:17}=",
            "{}x",
            "{x}{y}%",
            "{a}",
            "}b",
            "50%",
            "%7D",
            "a*b",
            "a?b",
            "[c]",
            "d\\e",
            "tab\there",
            "größe",
            "f-g",
            "^h",
        ];
        let mut held = Vec::new();
        for name in odd {
            held.push(relatch.rwlock(name).unwrap().read().await.unwrap());
        }
        let _line = relatch.rwlock("written").unwrap().write().await.unwrap();
        let expected: BTreeSet<String> = odd.iter().chain(&["written"]).map(ToString::to_string).collect();
        assert_eq!(listed(&relatch, "*").await, expected);
        for name in odd {
            // Each of its characters taken literally finds it, and nothing else.
            let literally: String = name.chars().flat_map(|c| ['\\', c]).collect();
            assert_eq!(
                listed(&relatch, &literally).await,
                BTreeSet::from([name.to_owned()])
            );
        }
        let of = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        assert_eq!(listed(&relatch, "a?b").await, of(&["a*b", "a?b"]));
        assert_eq!(listed(&relatch, "gr??e").await, of(&["größe"]));
        assert_eq!(listed(&relatch, "[w{][ar]*").await, of(&["written", "{a}"]));
        assert_eq!(listed(&relatch, "*}").await, of(&["{a}"]));
        assert_eq!(listed(&relatch, "*items").await, of(&["{order:17}items"]));
        assert_eq!(
            listed(&relatch, "{order*").await,
            of(&["{order:17}=", "{order:17}items"])
        );
        assert_eq!(listed(&relatch, "no*").await, of(&[]));
    }
}

#[tokio::test]
async fn ten_thousand_names_come_in_pages_and_strangers_keys_are_left_out() {
    let server = RedisServer::start();
    let mut client = server.client().unwrap();
    for at in 0..100 {
        let keys: Vec<String> = (0..100)
            .map(|n| format!("relatch:1:{{job/{}}}", at * 100 + n))
            .collect();
        for key in &keys {
            client.send(&["HSET", key, "fence", "1"]).unwrap();
        }
        for _ in &keys {
            client.receive().unwrap();
        }
    }
    for stranger in [
        "relatch:1:{}",
        "relatch:1:{a%}",
        "relatch:1:{x}}",
        "relatch:1:{x}:y}",
        "relatch:2:{z}",
        "job/1",
    ] {
        server.reply(&["HSET", stranger, "a", "b"]);
    }
    server.reply(&["SET", "relatch:1:{text}", "1"]);
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    server.reset_stats();
    let mut names = relatch.names("*");
    let (mut pages, mut all) = (0, BTreeSet::new());
    while let Some(page) = names.next_page().await.unwrap() {
        pages += 1;
        assert!(page.len() < 2000, "{} on a page", page.len());
        all.extend(page);
    }
    assert_eq!(all.len(), 10_000);
    assert!(pages >= 5, "{pages} pages");
    assert_eq!(server.command_count("keys"), 0);
}

#[tokio::test]
async fn a_change_is_told_and_by_whom_it_was_made_does_not_matter() {
    for world in both() {
        let (one, other) = (world.client().await, world.client().await);
        let mut changes = one.changes();
        assert_eq!(soon(changes.next()).await.unwrap(), Changed::Anything);
        let held = other.rwlock("{odd}").unwrap().write().await.unwrap();
        until_changed(&mut changes, "{odd}").await;
        held.release().await.unwrap();
        until_changed(&mut changes, "{odd}").await;
        let _own = one.rwlock("own").unwrap().read().await.unwrap();
        until_changed(&mut changes, "own").await;
    }
}

#[tokio::test]
async fn after_a_new_link_anything_may_have_changed_and_changes_are_told_again() {
    let server = RedisServer::start();
    let (one, other) = (
        Relatch::connect(&server.url()).await.unwrap(),
        Relatch::connect(&server.url()).await.unwrap(),
    );
    let (mut changes, mut second) = (one.changes(), one.changes());
    for changes in [&mut changes, &mut second] {
        assert_eq!(soon(changes.next()).await.unwrap(), Changed::Anything);
    }
    server.reply(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    until_anything(&mut second).await;
    let lock = other.rwlock("later").unwrap();
    for changes in [&mut changes, &mut second] {
        // What changed before it is told so again is part of "anything".
        let told = tokio::time::timeout(BOUND, until_changed(changes, "later"));
        let work = async {
            loop {
                lock.write().await.unwrap().release().await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            told = told => told.expect("it was told"),
            () = work => {}
        }
    }
    server.reply(&["FLUSHALL"]);
    until_anything(&mut changes).await;
}

async fn until_anything(changes: &mut Changes) {
    while soon(changes.next()).await.unwrap() != Changed::Anything {}
}

#[tokio::test]
async fn a_user_who_may_not_track_is_told_so() {
    let server = RedisServer::start();
    server.reply(&[
        "ACL",
        "SETUSER",
        "ann",
        "on",
        ">pw",
        "~relatch:1:*",
        "&relatch:1:*",
        "+@all",
        "-client|tracking",
    ]);
    let url = server.url().replace("redis://", "redis://ann:pw@");
    let relatch = Relatch::connect(&url).await.unwrap();
    let error = soon(relatch.changes().next()).await.unwrap_err();
    assert!(error.is_server(), "{error}");
}

#[tokio::test]
async fn an_inspection_tells_whose_process_is_gone() {
    for world in both() {
        let (one, other) = (world.client().await, world.client().await);
        let _held = one.rwlock("it").unwrap().read().await.unwrap();
        let seen = other.inspect("it").await.unwrap();
        assert_eq!(seen.holders[0].connected, Some(true));
        let _waits = tokio::spawn({
            let lock = one.rwlock("it").unwrap();
            async move { lock.write().await.map(drop) }
        });
        eventually_async(BOUND, "a waiter that is connected", async || {
            let seen = other.inspect("it").await.unwrap();
            seen.waiters
                .first()
                .is_some_and(|waiting| waiting.connected == Some(true))
        })
        .await;
        let quiet = world.client_of(Relatch::builder().spin(Backoff::default())).await;
        let _quiet = quiet.rwlock("quiet").unwrap().read().await.unwrap();
        let seen = other.inspect("quiet").await.unwrap();
        assert_eq!(seen.holders[0].connected, None, "it never listens");
        if let World::Redis(server) = &world {
            server.reply(&[
                "HSET",
                "relatch:1:{left}",
                "fence",
                "7",
                "top",
                "w,99999999999999,AAAAAAAAgAA.1|AAAAAAAAgAA.1,w,99999999999999,5",
            ]);
            let seen = other.inspect("left").await.unwrap();
            assert_eq!(seen.holders[0].connected, Some(false), "{seen:?}");
            assert_eq!(seen.holders[0].client, None);
        }
    }
}

#[tokio::test]
async fn what_is_kept_until_dropped_goes_to_nobody_before_that() {
    for world in both() {
        let (one, other) = (world.client().await, world.client().await);
        let held = one
            .rwlock("it")
            .unwrap()
            .write()
            .keep_until_dropped()
            .await
            .unwrap();
        let revoking = tokio::spawn({
            let other = other.clone();
            async move { other.revoke("it").await }
        });
        assert_eq!(soon(held.lost()).await, LostCause::Revoked);
        assert!(!held.is_held());
        assert!(other.rwlock("it").unwrap().try_write().await.unwrap().is_none());
        assert!(other.inspect("it").await.unwrap().holders[0].revoked);
        drop(held);
        assert_eq!(soon(revoking).await.unwrap().unwrap(), 1);
        assert!(other.rwlock("it").unwrap().try_write().await.unwrap().is_some());
    }
}

#[tokio::test]
async fn what_is_kept_until_dropped_lapses_all_the_same() {
    for world in both() {
        let brisk = Relatch::builder().lease(Duration::from_millis(300));
        let (one, other) = (world.client_of(brisk).await, world.client().await);
        let held = one
            .rwlock("it")
            .unwrap()
            .write()
            .keep_until_dropped()
            .await
            .unwrap();
        assert_eq!(soon(other.revoke("it")).await.unwrap(), 1);
        assert!(!held.is_held());
        assert!(other.rwlock("it").unwrap().try_write().await.unwrap().is_some());
    }
}
