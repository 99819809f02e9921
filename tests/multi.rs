//! Several names at once, on a server: in one script where that can be, and whatever the network does.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::time::Duration;

use relatch::{Multi, Relatch};
use support::{BOUND, Direction, Proxy, RedisServer, eventually_async};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn all(relatch: &Relatch) -> Multi {
    relatch.multi(NAMES.map(|name| relatch.rwlock(name).unwrap().write()))
}

async fn soon<T>(future: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(BOUND, future.into_future())
        .await
        .expect("it came within the bound")
}

/// How many hold, of all names.
async fn held(relatch: &Relatch) -> u64 {
    let mut held = 0;
    for name in NAMES {
        let seen = relatch.inspect(name).await.unwrap();
        assert_eq!(seen.waiter_count, 0);
        held += seen.holders.len() as u64;
    }
    held
}

#[tokio::test]
async fn several_names_are_taken_by_one_script_and_stripes_too() {
    let server = RedisServer::start();
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    // The first use brings the script.
    soon(soon(all(&relatch)).await.unwrap().release()).await.unwrap();
    for free in [true, false] {
        let busy = match free {
            true => None,
            false => Some(relatch.rwlock("c").unwrap().write().await.unwrap()),
        };
        let before = server.command_count("evalsha");
        let taken = soon(all(&relatch).at_once()).await.unwrap();
        assert_eq!(server.command_count("evalsha") - before, 1);
        assert_eq!(taken.is_some(), free);
        drop(taken);
        drop(busy);
        eventually_async(BOUND, "given back", async || held(&relatch).await == 0).await;
    }
    let stock = relatch.striped("stock", 100).unwrap();
    let before = server.command_count("evalsha");
    let total = soon(stock.read_all()).await.unwrap();
    assert_eq!(server.command_count("evalsha") - before, 1);
    assert_eq!(total.names().count(), 100);
    total.release().await.unwrap();
    // More than one script takes.
    let more = relatch.striped("more", 200).unwrap();
    soon(soon(more.write_all()).await.unwrap().release())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_lost_reply_takes_no_name_twice() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    let there = Relatch::connect(&server.url()).await.unwrap();
    let relatch = Relatch::builder()
        .url(proxy.url())
        .response_timeout(ms(300))
        .connect()
        .await
        .unwrap();
    for _ in 0..5 {
        proxy.drop_reply_then_cut(|words| words[0].eq_ignore_ascii_case("EVALSHA") && words.len() > 30);
        let lost = proxy.lost_replies();
        let taken = soon(all(&relatch)).await.unwrap();
        assert_eq!(proxy.lost_replies(), lost + 1);
        assert_eq!(held(&there).await, 4, "each once");
        assert!(taken.is_held());
        taken.release().await.unwrap();
        assert_eq!(held(&there).await, 0);
    }
}

#[tokio::test]
async fn an_acquisition_that_is_dropped_on_its_way_leaves_nothing() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    let there = Relatch::connect(&server.url()).await.unwrap();
    let relatch = Relatch::connect(&proxy.url()).await.unwrap();
    // From now on the server knows the script: what arrives is done.
    soon(soon(all(&relatch)).await.unwrap().release()).await.unwrap();
    for direction in [Direction::ToServer, Direction::ToClient] {
        proxy.silence(direction);
        let asking = tokio::time::timeout(ms(60), all(&relatch).into_future()).await;
        assert!(asking.is_err(), "it was on its way");
        let fence = async || there.inspect("d").await.unwrap().fence;
        let before = fence().await;
        proxy.heal();
        eventually_async(BOUND, "it has arrived", async || {
            matches!(direction, Direction::ToClient) || fence().await > before
        })
        .await;
        eventually_async(BOUND, "nothing is left", async || held(&there).await == 0).await;
        assert!(fence().await.is_some(), "it was taken for a moment");
    }
}

#[tokio::test]
async fn a_name_that_is_something_else_on_the_server_is_an_error_and_leaves_nothing() {
    let server = RedisServer::start();
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    server.reply(&["SET", "relatch:1:{c}", "it is a string"]);
    let error = soon(all(&relatch)).await.unwrap_err();
    assert!(error.is_server(), "{error}");
    server.reply(&["DEL", "relatch:1:{c}"]);
    eventually_async(BOUND, "nothing is left", async || held(&relatch).await == 0).await;
}

#[tokio::test]
async fn a_key_of_another_type_that_only_a_write_would_find_takes_none_of_them() {
    let server = RedisServer::start();
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    let (a, c) = (relatch.rwlock("a").unwrap(), relatch.rwlock("c").unwrap());
    server.reply(&["SET", "relatch:1:{c}:readers", "it is a string"]);
    let error = soon(relatch.multi((a.write(), c.read()))).await.unwrap_err();
    assert!(error.is_server(), "{error}");
    let fence = server.reply(&["HGET", "relatch:1:{a}", "fence"]);
    assert!(
        format!("{fence:?}").contains("Nil"),
        "a was taken for a moment: {fence:?}"
    );
}

/// Its script is not loaded ahead. Where it may not be sent along it is loaded when it is first used, and after it was forgotten.
#[tokio::test]
async fn several_names_are_taken_where_scripts_go_only_by_their_hash() {
    let server = RedisServer::start();
    server.cli(&["ACL", "SETUSER", "default", "-eval"]);
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    let connections = || server.info("stats", "total_connections_received").unwrap();
    for _ in 0..2 {
        let before = connections();
        let taken = soon(all(&relatch)).await.unwrap();
        assert_eq!(held(&relatch).await, 4);
        taken.release().await.unwrap();
        let (before, after) = (
            before.parse::<u64>().unwrap(),
            connections().parse::<u64>().unwrap(),
        );
        assert_eq!(after, before + 1, "only the one that asks: the links stayed");
        server.cli(&["SCRIPT", "FLUSH"]);
    }
}
