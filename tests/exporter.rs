//! What Prometheus scrapes from the built command, and that the dashboard and the documentation speak of nothing else.
#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Stdio;

use relatch::{Owner, Relatch};
use support::child::{Process, command};
use support::{BOUND, RedisCluster, RedisServer, eventually, eventually_async, free_port};

struct Exporter {
    port: u16,
    _process: Process,
}

impl Exporter {
    async fn start(url: &str, arguments: &[&str]) -> Self {
        let port = free_port();
        let mut exporter = command(OsStr::new(env!("CARGO_BIN_EXE_relatch")));
        exporter
            .args([
                "exporter",
                "--interval",
                "10ms",
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--redis",
                url,
            ])
            .args(arguments)
            .env("HOME", "/nonexistent")
            .env_remove("RELATCH_CONFIG")
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let process = Process::spawn(exporter).unwrap();
        eventually(BOUND, "it listens", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        })
        .await;
        Self {
            port,
            _process: process,
        }
    }

    /// The head and the body of the answer.
    async fn ask(&self, request: &str) -> (String, String) {
        let (port, request) = (self.port, request.to_owned());
        tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            stream.set_read_timeout(Some(BOUND)).unwrap();
            write!(
                stream,
                "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
            .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head.to_owned(), body.to_owned())
        })
        .await
        .unwrap()
    }

    async fn scrape(&self) -> Scrape {
        let (head, body) = self.ask("GET /metrics").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(
            head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
            "{head}"
        );
        parse(&body)
    }
}

/// Every sample, by name and labels; every family.
#[derive(Debug, Default)]
struct Scrape {
    samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
    families: BTreeSet<String>,
}

impl Scrape {
    fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels
            .iter()
            .map(|(label, text)| (label.to_string(), text.to_string()));
        self.samples.get(&(name.to_owned(), labels.collect())).copied()
    }
}

/// The text format as its description has it; whatever is not in that is an error here.
fn parse(text: &str) -> Scrape {
    fn is_name(name: &str) -> bool {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
    }
    let mut scrape = Scrape::default();
    let (mut family, mut helped) = (String::new(), String::new());
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').unwrap();
            assert!(is_name(name) && !words.is_empty(), "{line}");
            helped = name.to_owned();
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!((name, kind), (helped.as_str(), "gauge"));
            assert!(
                scrape.families.insert(name.to_owned()),
                "{name} is told in two places"
            );
            family = name.to_owned();
            continue;
        }
        let end = line.find(['{', ' ']).unwrap();
        let (name, rest) = line.split_at(end);
        assert_eq!(name, family, "each family stands together");
        let mut labels = BTreeMap::new();
        let mut rest = rest;
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            loop {
                let (label, value) = rest.split_once("=\"").unwrap();
                assert!(is_name(label), "{line}");
                let (mut text, mut chars) = (String::new(), value.char_indices());
                let end = loop {
                    match chars.next().unwrap() {
                        (at, '"') => break at,
                        (_, '\\') => match chars.next().unwrap().1 {
                            'n' => text.push('\n'),
                            c @ ('\\' | '"') => text.push(c),
                            c => panic!("\\{c} in {line}"),
                        },
                        (_, c) => text.push(c),
                    }
                };
                labels.insert(label.to_owned(), text);
                rest = &value[end + 1..];
                match rest.strip_prefix(',') {
                    Some(more) => rest = more,
                    None => break,
                }
            }
            rest = rest.strip_prefix('}').unwrap();
        }
        let value: f64 = rest.strip_prefix(' ').unwrap().parse().unwrap();
        let sample = scrape.samples.insert((name.to_owned(), labels), value);
        assert!(sample.is_none(), "{line} is told twice");
    }
    scrape
}

#[tokio::test]
async fn a_scrape_tells_holds_waits_and_deadlocks_and_leaves_out_what_is_too_much() {
    let server = RedisServer::start();
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    let exporter = Exporter::start(&server.url(), &["--names", "2"]).await;
    let empty = exporter.scrape().await;
    assert_eq!(empty.get("relatch_server_up", &[]), Some(1.0));
    assert_eq!(empty.get("relatch_server_holds", &[("mode", "write")]), Some(0.0));

    // A name with everything in it that a label must not have as it is, two that cross, and two that only are held.
    let odd = "odd \"name\\\n";
    let (ann, ben) = (Owner::new(), Owner::new());
    let lock = |name: &str| relatch.rwlock(name).unwrap();
    let first = lock(odd).write().owner(&ann).await.unwrap();
    let second = lock("y").write().owner(&ben).await.unwrap();
    let reads = (lock("z").read().await.unwrap(), lock("zz").read().await.unwrap());
    let (hers, his) = (lock("y"), lock(odd));
    let hers = tokio::spawn(async move { hers.write().owner(&ann).await });
    let his = tokio::spawn(async move { his.read().owner(&ben).await });
    eventually_async(BOUND, "both wait", async || {
        let scrape = exporter.scrape().await;
        scrape.get("relatch_server_deadlocks", &[]) == Some(1.0)
    })
    .await;
    let seen = exporter.scrape().await;
    for (name, labels, value) in [
        ("relatch_server_names", &[][..], 4.0),
        ("relatch_server_names_left_out", &[], 0.0),
        ("relatch_server_names_held", &[], 4.0),
        ("relatch_server_names_waited", &[], 2.0),
        ("relatch_server_holds", &[("mode", "write")], 2.0),
        ("relatch_server_holds", &[("mode", "read")], 2.0),
        ("relatch_server_waiters", &[("mode", "write")], 1.0),
        ("relatch_server_waiters", &[("mode", "read")], 1.0),
        ("relatch_server_holds_of_gone_clients", &[], 0.0),
        ("relatch_server_holds_of_unknown_clients", &[], 0.0),
        ("relatch_server_name_holders", &[("name", odd)], 1.0),
        ("relatch_server_name_waiters", &[("name", "y")], 1.0),
    ] {
        assert_eq!(
            seen.get(name, labels),
            Some(value),
            "{name} {labels:?} in {seen:#?}"
        );
    }
    assert!(seen.get("relatch_server_longest_hold_seconds", &[]).unwrap() > 0.0);
    assert!(
        seen.get("relatch_server_name_longest_wait_seconds", &[("name", "y")])
            .unwrap()
            > 0.0
    );
    assert_eq!(
        seen.get("relatch_server_name_holders", &[("name", "z")]),
        None,
        "only the two with a line have series of their own"
    );
    // Whatever is left out of the rest.
    let few = Exporter::start(&server.url(), &["--looks", "1"]).await;
    let seen_by_few = few.scrape().await;
    assert_eq!(seen_by_few.get("relatch_server_names_left_out", &[]), Some(3.0));
    assert_eq!(seen_by_few.get("relatch_server_deadlocks", &[]), Some(1.0));
    hers.abort();
    his.abort();
    drop((first, second, reads));

    // What is not asked for as it should be is told so.
    assert!(exporter.ask("GET /").await.1.contains("/metrics"));
    assert!(exporter.ask("GET /other").await.0.starts_with("HTTP/1.1 404 "));
    assert!(exporter.ask("POST /metrics").await.0.starts_with("HTTP/1.1 405 "));

    // Everything that the dashboard asks for is there.
    let root = env!("CARGO_MANIFEST_DIR");
    let read = |path: &str| fs::read_to_string(format!("{root}/{path}")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&read("docs/grafana.json")).unwrap();
    let mut asked = BTreeSet::new();
    expressions(&dashboard, &mut |expression| {
        asked.extend(names_in(expression));
    });
    let client = names_in(&read("src/observe.rs"));
    assert!(asked.len() > 15, "{asked:?}");
    for name in &asked {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(name);
        assert!(
            seen.families.contains(family) || client.contains(family),
            "the dashboard asks for {name}, which nobody tells"
        );
    }
    // And all that is told is in the documentation, and nothing else.
    let told: BTreeSet<String> = seen.families.iter().cloned().chain(client).collect();
    assert_eq!(names_in(&read("docs/observability.md")), told);
}

#[tokio::test]
async fn a_server_that_is_away_is_told_as_down_and_the_exporter_goes_on() {
    let server = RedisServer::start();
    let exporter = Exporter::start(&server.url(), &[]).await;
    assert_eq!(exporter.scrape().await.get("relatch_server_up", &[]), Some(1.0));
    server.kill();
    // What was seen a moment ago may be told again.
    eventually_async(BOUND, "it is told as down", async || {
        let away = exporter.scrape().await;
        let down = away.get("relatch_server_up", &[]) == Some(0.0);
        assert_eq!(away.get("relatch_server_names", &[]).is_none(), down);
        down
    })
    .await;
}

#[tokio::test]
async fn where_it_is_not_known_who_is_connected_none_is_not_told() {
    let server = RedisServer::start();
    server.reply(&[
        "ACL",
        "SETUSER",
        "ann",
        "on",
        ">pw",
        "~*",
        "&*",
        "+@all",
        "-pubsub|numsub",
    ]);
    let exporter = Exporter::start(&server.url().replace("redis://", "redis://ann:pw@"), &[]).await;
    let told = async || {
        let seen = exporter.scrape().await;
        let of = |kind: &str| seen.get(&format!("relatch_server_holds_of_{kind}_clients"), &[]);
        (of("gone"), of("unknown"))
    };
    assert_eq!(told().await, (Some(0.0), Some(0.0)), "there is no hold");
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    let _held = relatch.rwlock("it").unwrap().write().await.unwrap();
    eventually_async(BOUND, "it is not known", async || {
        told().await == (None, Some(1.0))
    })
    .await;
}

#[tokio::test]
async fn what_the_masters_of_a_cluster_know_is_told_and_that_one_is_missing() {
    let cluster = RedisCluster::start(3);
    let relatch = Relatch::connect(&cluster.url()).await.unwrap();
    let mut held = Vec::new();
    for master in 0..3 {
        let name = cluster.name_on(master, "it");
        held.push(relatch.rwlock(&name).unwrap().read().await.unwrap());
    }
    // Quick to give up.
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("brisk.toml");
    fs::write(&config, "response_timeout = \"400ms\"\npatience = \"1s\"\n").unwrap();
    let exporter = Exporter::start(&cluster.url(), &["--config", config.to_str().unwrap()]).await;
    let told = async || {
        let seen = exporter.scrape().await;
        let value = |name| seen.get(name, &[]);
        (
            value("relatch_server_up"),
            value("relatch_server_incomplete"),
            seen.get("relatch_server_holds", &[("mode", "read")]),
        )
    };
    assert_eq!(told().await, (Some(1.0), Some(0.0), Some(3.0)));
    cluster.node(2).stop();
    // What was seen a moment ago may be told again.
    eventually_async(BOUND, "the others", async || {
        told().await == (Some(1.0), Some(1.0), Some(2.0))
    })
    .await;
    cluster.node(2).cont();
    eventually_async(BOUND, "all of them", async || {
        told().await == (Some(1.0), Some(0.0), Some(3.0))
    })
    .await;
}

fn expressions(value: &serde_json::Value, tell: &mut impl FnMut(&str)) {
    match value {
        serde_json::Value::Object(fields) => {
            for (field, value) in fields {
                match value.as_str() {
                    Some(expression) if field == "expr" || field == "query" => tell(expression),
                    _ => expressions(value, tell),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| expressions(value, tell)),
        _ => {}
    }
}

/// Everything that could be the name of a family.
fn names_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("relatch_") && !word.ends_with('_'))
        .map(str::to_owned)
        .collect()
}
