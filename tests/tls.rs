//! TLS against a real server: who is trusted, who we say we are, and what is said when either is not so.
#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::time::Duration;

use relatch::{Error, Relatch, Tls};
use support::{BOUND, Certificates, RedisServer, Watched, eventually_async, free_port};

struct Secure {
    server: RedisServer,
    port: u16,
    files: Certificates,
}

impl Secure {
    fn start(both: bool) -> Self {
        let (files, port) = (Certificates::new("cache.example"), free_port());
        let arguments = files.arguments(port, both);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Self {
            server: RedisServer::start_with(&arguments),
            port,
            files,
        }
    }

    fn url(&self, host: &str, parameters: &str) -> String {
        format!("rediss://{host}:{}?{parameters}", self.port)
    }
}

async fn works(url: String) -> Relatch {
    let relatch = Relatch::connect(&url).await.unwrap();
    let lock = relatch.rwlock("it").unwrap();
    lock.write().await.unwrap().release().await.unwrap();
    relatch
}

async fn refused(url: &str) -> Error {
    let connecting = Relatch::connect(url);
    tokio::time::timeout(BOUND, connecting)
        .await
        .unwrap()
        .unwrap_err()
}

#[tokio::test]
async fn a_server_is_trusted_by_the_authority_that_is_named() {
    let secure = Secure::start(false);
    let ca = secure.files.parameters(false);
    works(secure.url("127.0.0.1", &ca)).await;

    let error = refused(&format!("rediss://127.0.0.1:{}", secure.port)).await;
    assert!(error.to_string().contains("?ca=/path/to/ca.pem"), "{error}");
    let other = Certificates::new("cache.example");
    let error = refused(&secure.url("127.0.0.1", &other.parameters(false))).await;
    assert!(
        error.is_server() && error.to_string().contains("signed by nobody we trust"),
        "{error}"
    );

    // In a configuration, as in the address.
    let mut tls = Tls::default();
    tls.ca = Some(secure.files.path("ca.pem"));
    let url = format!("rediss://127.0.0.1:{}", secure.port);
    let relatch = Relatch::builder().url(url).tls(tls).connect().await.unwrap();
    drop(relatch.rwlock("it").unwrap().write().await.unwrap());
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_unless_that_name_is_said() {
    let secure = Secure::start(false);
    let ca = secure.files.parameters(false);
    let error = refused(&secure.url("localhost", &ca)).await;
    assert!(
        error.is_server() && error.to_string().contains("server_name"),
        "{error}"
    );
    works(secure.url("localhost", &format!("{ca}&server_name=cache.example"))).await;
    let error = refused(&secure.url("127.0.0.1", &format!("{ca}&server_name=other.example"))).await;
    assert!(
        error.is_server() && error.to_string().contains("for another name"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_gets_ours_or_says_so() {
    let secure = Secure::start(true);
    works(secure.url("127.0.0.1", &secure.files.parameters(true))).await;
    let error = refused(&secure.url("127.0.0.1", &secure.files.parameters(false))).await;
    assert!(
        error.to_string().contains("?cert=") || error.to_string().contains("let you in"),
        "{error}"
    );
    let half = format!(
        "{}&cert={}",
        secure.files.parameters(false),
        secure.files.path("client.pem").display()
    );
    let error = refused(&secure.url("127.0.0.1", &half)).await;
    assert!(
        error.is_invalid() && error.to_string().contains("without its key"),
        "{error}"
    );
    let swapped = format!(
        "{}&cert={}&key={}",
        secure.files.parameters(false),
        secure.files.path("client.pem").display(),
        secure.files.path("server.key").display()
    );
    let error = refused(&secure.url("127.0.0.1", &swapped)).await;
    assert!(
        error.is_invalid() && error.to_string().contains("do not go together"),
        "{error}"
    );
}

#[tokio::test]
async fn tls_where_there_is_none_and_none_where_there_is_is_told() {
    let secure = Secure::start(false);
    let ca = secure.files.parameters(false);
    let url = format!("rediss://127.0.0.1:{}?{ca}", secure.server.port());
    // It waits for a line's end that never comes.
    let quick = Relatch::builder()
        .url(&url)
        .connect_timeout(Duration::from_millis(300));
    let error = quick.connect().await.unwrap_err();
    assert!(error.to_string().contains("TLS"), "{error}");
    let error = refused(&format!("redis://127.0.0.1:{}", secure.port)).await;
    assert!(error.to_string().contains("rediss://"), "{error}");
}

#[tokio::test]
async fn a_certificate_that_is_replaced_is_used_by_the_next_link() {
    let secure = Secure::start(true);
    let relatch = Relatch::builder()
        .url(secure.url("127.0.0.1", &secure.files.parameters(true)))
        .lease(Duration::from_secs(2))
        .connect()
        .await
        .unwrap();
    let held = relatch.rwlock("it").unwrap().write().await.unwrap();
    // A client of this authority is let in no more: only the new pair is.
    let renewed = Certificates::new("cache.example");
    for file in ["ca.pem", "client.pem", "client.key", "server.pem", "server.key"] {
        std::fs::copy(renewed.path(file), secure.files.path(file)).unwrap();
    }
    for file in ["tls-ca-cert-file", "tls-cert-file", "tls-key-file"] {
        // Read again when any of them is set; until all are, they may not go together.
        let path = secure.server.cli(&["CONFIG", "GET", file]);
        let path = path.lines().last().unwrap().to_owned();
        let _ = secure.server.reply(&["CONFIG", "SET", file, &path]);
    }
    secure.server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    secure.server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    eventually_async(BOUND, "it links by the new certificates", async || {
        relatch
            .inspect("it")
            .await
            .is_ok_and(|seen| seen.holder_count == 1)
    })
    .await;
    held.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_servers_that_speak_tls_are_followed_through_a_fail_over() {
    let watched = Watched::start_tls(Certificates::new("cache.example"));
    let long = BOUND * 7;
    let client = async || {
        Relatch::builder()
            .url(watched.url())
            .patience(long)
            .idle_ping(Duration::from_millis(300))
            .lease(long)
            .connect()
            .await
            .unwrap()
    };
    let (a, b) = (client().await, client().await);
    let of = |relatch: &Relatch| relatch.rwlock("it").unwrap();
    let held = of(&a).write().replicas(2, long).await.unwrap();
    let waiting = tokio::spawn(of(&b).write().into_future());
    eventually_async(BOUND, "it waits", async || {
        a.inspect("it").await.is_ok_and(|seen| seen.waiter_count == 1)
    })
    .await;
    let old = watched.primary();
    old.kill();
    tokio::task::block_in_place(|| watched.replaced(old));
    let fence = held.fence();
    drop(held);
    let next = tokio::time::timeout(long, waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(next.fence() > fence);
    next.release().await.unwrap();

    // Sentinels as well are told who we are, and trusted for a reason only.
    let url = watched.url();
    let plain = url.replacen("rediss", "redis", 1);
    let nobody = &url[..url.find("&cert=").unwrap()];
    let stranger = Certificates::new("cache.example");
    let (start, _) = url.split_once("&ca=").unwrap();
    for (url, said) in [
        (plain.split_once("&ca=").unwrap().0.to_owned(), "TLS (rediss://)"),
        (nobody.to_owned(), "?cert=/path/to.pem&key=/path/to.key"),
        (
            format!("{start}&{}", stranger.parameters(true)),
            "?ca=/path/to/ca.pem",
        ),
    ] {
        let error = refused(&url).await;
        assert!(error.to_string().contains(said), "{url}: {error}");
    }
}
