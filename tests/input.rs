//! Bad input: addresses, servers and keys that are not what they should be. Each is a clear error that says what to do.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::time::Duration;

use relatch::{Builder, Config, Error, Owner, Relatch};
use support::{BOUND, FakeServer, RedisServer, free_port};

async fn refused(url: &str) -> Error {
    let builder = Relatch::builder()
        .url(url)
        .connect_timeout(Duration::from_millis(500));
    tokio::time::timeout(BOUND, builder.connect())
        .await
        .expect("an answer within the bound")
        .expect_err("no client")
}

#[tokio::test]
async fn an_address_that_does_not_parse_is_invalid() {
    for url in [
        "",
        " ",
        "127.0.0.1:6379",
        "http://127.0.0.1/",
        "redis://",
        "redis://127.0.0.1:notaport",
        "redis://127.0.0.1:6379/notanumber",
        "redis://user:secret@127.0.0.1:99999",
    ] {
        let error = refused(url).await;
        assert!(error.is_invalid(), "{url:?}: {error:?}");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(
            error.to_string().contains("redis://"),
            "says what it takes: {error}"
        );
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    let error = refused(&url).await;
    assert!(error.is_unreachable(), "{error:?}");
    assert!(error.to_string().contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_unreachable_in_time() {
    let fake = FakeServer::silent();
    let error = refused(&fake.url()).await;
    assert!(error.is_unreachable(), "{error:?}");
}

#[tokio::test]
async fn something_that_is_no_redis_server_is_an_error() {
    let fakes = [
        FakeServer::garbage("HTTP/1.1 400 Bad Request\r\n\r\n"),
        FakeServer::garbage(vec![0xff, 0x00, 0x13, 0x37]),
        FakeServer::closing(),
        FakeServer::replying(|_| b"+OK\r\n".to_vec()),
        FakeServer::replying(|_| b"*3\r\n:1\r\n:2\r\n:3\r\n".to_vec()),
    ];
    for fake in fakes {
        let error = refused(&fake.url()).await;
        assert!(error.is_unreachable() || error.is_server(), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_too_old_says_so() {
    let info = "# Server\r\nredis_version:6.0.9\r\nredis_mode:standalone\r\n";
    let fake = FakeServer::replying(move |words| match words[0].to_ascii_uppercase().as_str() {
        "INFO" => format!("${}\r\n{info}\r\n", info.len()).into_bytes(),
        "HELLO" => b"%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n".to_vec(),
        "PING" => b"+PONG\r\n".to_vec(),
        _ => b"+OK\r\n".to_vec(),
    });
    let error = refused(&fake.url()).await;
    assert!(error.is_server(), "{error:?}");
    assert!(
        error.to_string().contains("6.0.9") && error.to_string().contains("6.2"),
        "{error}"
    );
}

#[tokio::test]
async fn a_password_that_is_missing_or_wrong_says_so() {
    let server = RedisServer::start_with(&["--requirepass", "sesame"]);
    let error = refused(&server.url()).await;
    assert!(error.is_server(), "{error:?}");
    assert!(error.to_string().to_lowercase().contains("password"), "{error}");
    let wrong = format!("redis://:opensesame@127.0.0.1:{}", server.port());
    let error = refused(&wrong).await;
    assert!(error.is_server(), "{error:?}");
    assert!(!error.to_string().contains("opensesame"), "{error}");
    let right = format!("redis://:sesame@127.0.0.1:{}/3", server.port());
    let relatch = Relatch::connect(&right).await.unwrap();
    assert!(!format!("{relatch:?} {:?}", Relatch::builder().url(&right)).contains("sesame"));
    relatch
        .rwlock("it")
        .unwrap()
        .write()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

/// Everything that is logged on this thread, as text.
#[derive(Clone, Default)]
struct Log(std::sync::Arc<parking_lot::Mutex<String>>);

impl tracing::field::Visit for Log {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write as _;
        let _ = write!(self.0.lock(), "{field}={value:?} ");
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("relatch")
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        span.record(&mut self.clone());
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut self.clone());
    }
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
        self.0.lock().push('\n');
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn no_user_and_no_password_is_logged_and_what_is_amiss_once() {
    let server = RedisServer::start();
    server.cli(&[
        "ACL",
        "SETUSER",
        "annabel",
        "on",
        ">sesame",
        "~*",
        "&*",
        "+@all",
        "-subscribe",
    ]);
    let log = Log::default();
    let _here = tracing::subscriber::set_default(log.clone());
    let at = format!("127.0.0.1:{}", server.port());
    // No such user, no such server, no such Sentinel; and one that works, if slowly, whose link is lost.
    refused(&format!("redis://annabel:opensesame@{at}")).await;
    refused(&format!("redis://annabel:sesame@127.0.0.1:{}", free_port())).await;
    refused(&format!(
        "redis+sentinel://annabel:sesame@{at}/main?sentinel_user=annabel&sentinel_password=sesame"
    ))
    .await;
    let relatch = Relatch::connect(&format!("redis://annabel:sesame@{at}"))
        .await
        .unwrap();
    let remarks = relatch.remarks();
    assert!(
        remarks.len() == 1 && remarks[0].contains("+subscribe"),
        "{remarks:?}"
    );
    for _ in 0..2 {
        server.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        let lock = relatch.rwlock("it").unwrap();
        lock.write().await.unwrap().release().await.unwrap();
    }
    server.cli(&["ACL", "SETUSER", "annabel", "-evalsha"]);
    let error = relatch.rwlock("it").unwrap().write().await.unwrap_err();
    assert!(!error.to_string().contains("annabel"), "{error}");

    let log = log.0.lock().clone();
    assert!(log.contains("link lost") && log.contains(&at), "{log}");
    assert_eq!(log.matches("+subscribe +publish").count(), 1, "{log}");
    for secret in ["sesame", "annabel"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[tokio::test]
async fn a_key_of_another_type_is_an_error_and_stays_as_it_is() {
    let server = RedisServer::start();
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    server.cli(&["SET", "relatch:1:{mine}", "precious"]);
    let lock = relatch.rwlock("mine").unwrap();
    for error in [
        lock.read().await.unwrap_err(),
        lock.write().timeout(Duration::from_secs(1)).await.unwrap_err(),
        lock.try_write().await.unwrap_err(),
        relatch.inspect("mine").await.unwrap_err(),
        relatch.revoke("mine").await.unwrap_err(),
    ] {
        assert!(error.is_server(), "{error:?}");
        assert!(
            error.to_string().contains("relatch:1:{mine}"),
            "names the key: {error}"
        );
    }
    assert_eq!(server.cli(&["GET", "relatch:1:{mine}"]), "precious");
}

#[tokio::test]
async fn a_key_of_another_type_keeps_no_other_name_from_being_renewed() {
    let server = RedisServer::start();
    let builder = Relatch::builder()
        .url(server.url())
        .lease(Duration::from_millis(600));
    let relatch = builder.connect().await.unwrap();
    let mut held = Vec::new();
    for name in ["one", "mine", "two"] {
        held.push(relatch.rwlock(name).unwrap().write().await.unwrap());
    }
    server.cli(&["SET", "relatch:1:{mine}", "precious"]);
    let cause = tokio::time::timeout(BOUND, held[1].lost()).await.unwrap();
    assert_eq!(cause, relatch::LostCause::Lapsed);
    // Their leases have ended as well by now, had nobody renewed them.
    assert!(held[0].is_held() && held[2].is_held());
    for guard in [held.remove(0), held.remove(1)] {
        guard.release().await.unwrap();
    }
    assert_eq!(server.cli(&["GET", "relatch:1:{mine}"]), "precious");
}

#[tokio::test]
async fn a_deleted_key_is_a_forgotten_hold() {
    let server = RedisServer::start();
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    let held = relatch.rwlock("it").unwrap().write().await.unwrap();
    server.cli(&["FLUSHALL"]);
    let error = held.release().await.unwrap_err();
    assert_eq!(error.lost_cause(), Some(relatch::LostCause::Forgotten), "{error}");
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_invalid() {
    let zero = Duration::ZERO;
    for builder in [
        Relatch::builder().lease(zero),
        Relatch::builder().claim(zero),
        Relatch::builder().lease(Duration::MAX),
        Relatch::builder().patience(zero),
        Relatch::builder().response_timeout(zero),
        Relatch::builder().connect_timeout(zero),
        Relatch::builder().idle_ping(zero),
        Relatch::builder().fence_retention(Duration::MAX),
    ] {
        assert!(
            builder.clone().embedded().unwrap_err().is_invalid(),
            "{builder:?}"
        );
        let connecting = builder.url("redis://127.0.0.1:1").connect();
        assert!(connecting.await.unwrap_err().is_invalid());
    }
}

#[test]
fn a_configuration_says_which_field_is_wrong() {
    let error = serde_json::from_str::<Config>(r#"{ "leese": "10s" }"#).unwrap_err();
    assert!(error.to_string().contains("leese"), "{error}");
    assert!(serde_json::from_str::<Config>(r#"{ "lease": "soon" }"#).is_err());
    let config: Config = serde_json::from_str(r#"{ "url": "redis://:secret@h", "lease": "10s" }"#).unwrap();
    assert!(!format!("{:?}", Builder::from(config)).contains("secret"));
}

#[test]
fn an_owner_reads_what_it_writes_and_nothing_else() {
    let owner = Owner::new();
    assert_eq!(owner.to_string().parse::<Owner>().unwrap(), owner);
    let json = serde_json::to_string(&owner).unwrap();
    assert_eq!(serde_json::from_str::<Owner>(&json).unwrap(), owner);
    for text in ["", "me", "0", "\0", &"f".repeat(1000)] {
        assert!(text.parse::<Owner>().unwrap_err().is_invalid(), "{text:?}");
    }
}
