//! Every example, on every backend: what they claim is asserted. Its parts are called from here; and each is run as it is, as a user would.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]
#![allow(
    dead_code,
    clippy::duplicate_mod,
    reason = "each example is a program of its own, with a `main` that is not called from here"
)]

mod support;

#[path = "../examples/cache.rs"]
mod cache;
#[path = "../examples/flash_sale.rs"]
mod flash_sale;
#[path = "../examples/handover.rs"]
mod handover;
#[path = "../examples/leader.rs"]
mod leader;
#[path = "../examples/make_directory.rs"]
mod make_directory;
#[path = "../examples/menu_tree.rs"]
mod menu_tree;
#[path = "../examples/web.rs"]
mod web;

use std::time::Duration;

use relatch::{Embedded, Relatch};
use support::BOUND;
#[cfg(feature = "redis")]
use support::{ChildProcess, RedisServer, child};

enum Place {
    Embedded(Embedded),
    #[cfg(feature = "redis")]
    Redis(RedisServer),
}

impl Place {
    async fn client(&self) -> Relatch {
        match self {
            Place::Embedded(server) => Relatch::builder().embedded_in(server).unwrap(),
            #[cfg(feature = "redis")]
            Place::Redis(server) => {
                let builder = Relatch::builder().url(server.url()).own_thread();
                builder.connect().await.unwrap()
            }
        }
    }
}

mod examples {
    use super::*;

    pub(crate) async fn menu_tree(place: &Place) {
        let (lines, deepest) = menu_tree::run(&place.client().await).unwrap();
        assert_eq!(
            lines,
            ["file", "  open", "    recent", "      today", "edit", "  paste"]
        );
        assert_eq!(deepest, 6, "once outside, then at each level");
    }

    pub(crate) async fn make_directory(place: &Place) {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("it");
        let made = make_directory::run(&place.client().await, directory.clone(), 8).await;
        assert_eq!(made.unwrap(), 1);
        assert_eq!(std::fs::read_to_string(directory.join("index")).unwrap(), "empty");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "and nothing beside it"
        );
    }

    pub(crate) async fn flash_sale(place: &Place) {
        let relatch = place.client().await;
        // The whole crowd with stripes; a part of it without, as long as that goes on.
        let striped = flash_sale::sell(&relatch, flash_sale::STRIPES, flash_sale::BUYERS, BOUND * 6);
        let striped = striped.await.unwrap();
        assert_eq!((striped.oversold, striped.waiting), (0, 0), "{striped:?}");
        assert!(striped.sold > 5_000 && striped.sold_out > 2_000, "{striped:?}");
        let coarse = flash_sale::sell(&relatch, 1, 2_000, Duration::from_secs(1))
            .await
            .unwrap();
        assert_eq!(coarse.oversold, 0);
        assert!(coarse.sold > 0);
        assert!(striped.rate() > 2.0 * coarse.rate(), "{striped:?} {coarse:?}");
    }

    pub(crate) async fn cache(place: &Place) {
        assert_eq!(
            cache::run(&place.client().await, 100).await.unwrap(),
            2,
            "no stampede"
        );
    }

    pub(crate) async fn handover(place: &Place) {
        let (one, other) = (place.client().await, place.client().await);
        let (begun, finished) =
            handover::begin(&one, async |owner| Ok(handover::finish(&other, owner).await?))
                .await
                .unwrap();
        assert_eq!(begun, finished, "the same hold");
    }

    pub(crate) async fn leader(place: &Place) {
        let (events, terms) = leader::run(place.client().await, place.client().await)
            .await
            .unwrap();
        assert_eq!(terms, ["Ada", "Grace", "Ada"]);
        assert_eq!(events.len(), 5, "{events:?}");
    }

    pub(crate) async fn web(place: &Place) {
        let bank = web::Bank::new(&place.client().await).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(axum::serve(listener, bank.router()).into_future());
        let ask = async |request: &str| {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("{request} HTTP/1.1\r\nhost: it\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
        };
        let there = async || ask("POST /move/alice/bob/30").await.0;
        let back = async || ask("POST /move/bob/alice/10").await.0;
        let (one, two, three, four) = tokio::join!(there(), there(), there(), there());
        let mut answers = [one, two, three, four];
        answers.sort();
        assert_eq!(
            answers,
            ["200", "200", "200", "409"],
            "90 of 100, and then it is refused"
        );
        let (one, two) = tokio::join!(there(), back());
        assert!(one == "200" || one == "409");
        assert_eq!(two, "200");
        assert_eq!(ask("GET /total").await, ("200".into(), "100".into()));
        server.abort();
    }
}

macro_rules! on_every_backend {
    ($($example:ident)*) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $example() {
                super::examples::$example(&super::Place::Embedded(super::Embedded::new())).await;
            })*
        }

        #[cfg(feature = "redis")]
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $example() {
                super::examples::$example(&super::Place::Redis(super::RedisServer::start())).await;
            })*
        }

        #[test]
        fn every_example_is_run_and_in_the_cookbook() {
            let mut there: Vec<String> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples"))
                .unwrap()
                .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".rs")?.to_owned()))
                .collect();
            there.sort();
            let mut run = vec![$(stringify!($example)),*];
            run.sort();
            assert_eq!(there, run);
            let cookbook = include_str!("../docs/cookbook.md");
            for example in run {
                assert!(cookbook.contains(&format!("examples/{example}.rs")), "{example}");
            }
        }
    };
}

on_every_backend! { cache flash_sale handover leader make_directory menu_tree web }

#[cfg(feature = "redis")]
#[test]
fn child_that_finishes_the_job() {
    let (true, Ok(url), Ok(owner)) = (child::is_child(), std::env::var("URL"), std::env::var("OWNER")) else {
        return;
    };
    let relatch = relatch::blocking::connect(&url).unwrap();
    let fence = relatch
        .block_on(handover::finish(&relatch, &owner.parse().unwrap()))
        .unwrap();
    child::say(&format!("fence {fence}"));
    relatch.block_on(relatch.close()).unwrap();
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn a_job_is_handed_to_another_process() {
    let server = RedisServer::start();
    let relatch = Relatch::connect(&server.url()).await.unwrap();
    let url = server.url();
    let (begun, finished) = handover::begin(&relatch, async |owner| {
        let owner = owner.to_string();
        let said = tokio::task::spawn_blocking(move || {
            let variables = [("URL", &*url), ("OWNER", &*owner)];
            ChildProcess::spawn("child_that_finishes_the_job", &variables).next()
        })
        .await?;
        Ok(said.strip_prefix("fence ").ok_or("a fence")?.parse()?)
    })
    .await
    .unwrap();
    assert_eq!(begun, finished);
}

// -- as a user runs them ---------------------------------------------------------------------------------------------------

mod programs {
    use super::*;
    use std::collections::HashMap;
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::path::PathBuf;
    use std::process::{Command, ExitStatus, Output, Stdio};
    use std::sync::OnceLock;
    use std::thread::JoinHandle;

    use rustix::process::Signal;
    use support::child::{Process, command};

    /// Has them built as this test is: there is nothing to do where all tests are run.
    fn programs() -> &'static HashMap<String, PathBuf> {
        static PROGRAMS: OnceLock<HashMap<String, PathBuf>> = OnceLock::new();
        PROGRAMS.get_or_init(|| {
            let features = [
                ("default", cfg!(feature = "default")),
                ("redis", cfg!(feature = "redis")),
                ("tls", cfg!(feature = "tls")),
                ("cli", cfg!(feature = "cli")),
                ("metrics", cfg!(feature = "metrics")),
            ];
            let features: Vec<_> = features.iter().filter(|(_, on)| *on).map(|(of, _)| *of).collect();
            let mut cargo = command(env!("CARGO"));
            cargo
                .args([
                    "build",
                    "--examples",
                    "--message-format=json",
                    "--no-default-features",
                ])
                .args(["--features", &features.join(",")])
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .stderr(Stdio::inherit());
            if !cfg!(debug_assertions) {
                cargo.arg("--release");
            }
            let Output { status, stdout, .. } = cargo.output().unwrap();
            assert!(status.success(), "the examples are built: {status}");
            String::from_utf8(stdout)
                .unwrap()
                .lines()
                .filter_map(|line| {
                    let said: serde_json::Value = serde_json::from_str(line).ok()?;
                    let program = said["executable"].as_str()?;
                    (said["target"]["kind"][0] == "example").then(|| {
                        (
                            said["target"]["name"].as_str().unwrap().to_owned(),
                            program.into(),
                        )
                    })
                })
                .collect()
        })
    }

    fn program(name: &str, more: &[&str]) -> Command {
        let mut program = command(&programs()[name]);
        program.args(more).stdin(Stdio::null());
        program
    }

    /// How it ends, what it says, and what of errors. If it does not end in time it is killed, and the test fails.
    fn ran(name: &str, more: &[&str]) -> (ExitStatus, String, String) {
        fn all(mut from: impl std::io::Read + Send + 'static) -> JoinHandle<String> {
            std::thread::spawn(move || {
                let mut text = String::new();
                from.read_to_string(&mut text).unwrap();
                text
            })
        }
        let mut program = program(name, more);
        program.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::spawn(program).unwrap();
        let (out, err) = (all(process.stdout().unwrap()), all(process.stderr().unwrap()));
        support::eventually_blocking(BOUND * 4, &format!("{name} ends"), || process.ended().is_some());
        (process.ended().unwrap(), out.join().unwrap(), err.join().unwrap())
    }

    /// What it says; it ends well.
    fn said(name: &str, more: &[&str]) -> String {
        let (status, said, errors) = ran(name, more);
        assert!(status.success(), "{name}: {said}{errors}");
        said
    }

    fn all(place: &[&str]) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let said = said("menu_tree", place);
                assert!(
                    said.starts_with("file\n  open\n    recent\n      today\nedit\n  paste\n"),
                    "{said}"
                );
                assert!(said.contains("6 deep, past a waiting writer"), "{said}");
            });
            scope.spawn(|| {
                let said = said("make_directory", place);
                assert!(said.starts_with("2 workers, 1 of them made "), "{said}");
                let directory = said.trim_end().rsplit(' ').next().unwrap();
                assert!(!std::path::Path::new(directory).exists(), "{directory}");
            });
            scope.spawn(|| {
                let said = said("cache", place);
                assert!(
                    said.contains("each read by 200; the database was asked 2 times"),
                    "{said}"
                );
            });
            scope.spawn(|| {
                let said = said("handover", place);
                let fences: Vec<u64> = said
                    .split([' ', ',', ':'])
                    .filter_map(|word| word.parse().ok())
                    .collect();
                assert!(fences.len() == 2 && fences[0] == fences[1], "{said}");
            });
            scope.spawn(|| {
                let said = said("leader", place);
                assert!(said.ends_with("who led: Ada, Grace, Ada\n"), "{said}");
                assert_eq!(said.matches("steps down: ").count(), 2, "{said}");
            });
            scope.spawn(|| {
                let said = said(
                    "flash_sale",
                    &[place, &["--seconds", "1", "--buyers", "1000"]].concat(),
                );
                assert_eq!(said.matches(" 0 oversold").count(), 2, "{said}");
                let times = said
                    .trim_end()
                    .split(' ')
                    .find_map(|word| word.parse::<u64>().ok().filter(|n| *n != 100));
                assert!(said.contains(" stripes serve ") && times.is_some(), "{said}");
            });
            scope.spawn(|| served(place));
        });
    }

    /// The one that goes on until it is told to stop.
    fn served(place: &[&str]) {
        let mut web = program("web", &[place, &["--listen", "127.0.0.1:0"]].concat());
        web.stdout(Stdio::piped());
        let mut web = Process::spawn(web).unwrap();
        let mut out = BufReader::new(web.stdout().unwrap());
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            tell.send((line, out))
        });
        let (line, _out) = told.recv_timeout(BOUND).expect("it says where it listens");
        let address = line
            .trim_end()
            .strip_prefix("listening on http://")
            .unwrap()
            .to_owned();
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        write!(
            stream,
            "POST /move/alice/bob/30 HTTP/1.1\r\nhost: it\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("alice has 70"),
            "{answer}"
        );
        web.signal(Signal::INT);
        support::eventually_blocking(BOUND, "it stops", || web.ended().is_some());
        assert!(web.ended().unwrap().success());
    }

    #[test]
    fn every_example_says_what_it_claims_in_one_process() {
        all(&[]);
    }

    #[cfg(feature = "redis")]
    #[test]
    fn every_example_says_what_it_claims_on_a_server() {
        let server = RedisServer::start();
        all(&["--redis", &server.url()]);
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error() {
        let port = support::free_port();
        let url = format!("redis://127.0.0.1:{port}");
        let (status, _, said) = ran("cache", &["--redis", &url]);
        assert!(!status.success());
        if cfg!(feature = "redis") {
            assert!(said.contains(&port.to_string()), "{said}");
        }
    }
}
