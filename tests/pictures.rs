//! The pages that show who held and who waited, in a real browser: drawn, zoomed and searched, from a server, from the demo and from the simulation.
#![cfg(all(feature = "cli", unix))]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "support/browser.rs"]
mod browser;
mod support;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use browser::Browser;
use relatch::{Owner, Relatch};
use serde_json::{Value, json};
use support::child::{Process, command};
use support::{BOUND, RedisServer, eventually_blocking, free_port};

fn relatch(arguments: &[&str]) -> Command {
    let mut relatch = command(OsStr::new(env!("CARGO_BIN_EXE_relatch")));
    relatch
        .args(arguments)
        .env_remove("RELATCH_REDIS")
        .env_remove("RELATCH_CONFIG")
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null());
    relatch
}

/// How long what is shown is, in seconds: what the range ends with.
fn shown(range: &str) -> f64 {
    let length = range.rsplit(", ").next().unwrap();
    let (number, unit) = length.split_once(' ').unwrap();
    let unit = match unit {
        "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "min" => 60.0,
        other => panic!("{other}"),
    };
    number.parse::<f64>().unwrap() * unit
}

/// How many points of the picture have the colour that the page gives this kind.
fn painted(browser: &Browser, kind: &str) -> u64 {
    let script = format!(
        "const probe = document.createElement('i'); probe.style.color = 'var(--{kind})'; document.body.append(probe);
         const [r, g, b] = getComputedStyle(probe).color.match(/[0-9]+/g).map(Number); probe.remove();
         const canvas = document.querySelector('canvas');
         const {{ data }} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
         let count = 0;
         for (let i = 0; i < data.length; i += 4) if (data[i] === r && data[i + 1] === g && data[i + 2] === b) count++;
         return count;"
    );
    browser.run(&script).as_u64().unwrap()
}

#[track_caller]
fn no_complaints(browser: &Browser) {
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[tokio::test]
async fn a_trace_shows_who_held_and_waited_and_is_zoomed_and_searched() {
    let server = RedisServer::start();
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("page.html");
    let mut trace = relatch(&[
        "trace",
        "--for",
        "1m",
        "--html",
        page.to_str().unwrap(),
        "--redis",
        &server.url(),
    ]);
    let said = directory.path().join("said");
    trace
        .stderr(fs::File::create(&said).unwrap())
        .stdout(Stdio::null());
    let mut trace = Process::spawn(trace).unwrap();
    let until = async |words: &str| {
        support::eventually(BOUND, words, || {
            fs::read_to_string(&said)
                .unwrap()
                .lines()
                .last()
                .is_some_and(|line| line.contains(words))
        })
        .await;
    };
    until("watching for").await;

    let relatch = Relatch::connect(&server.url()).await.unwrap();
    let owner = Owner::new();
    let lock = relatch.rwlock("jobs/nightly").unwrap();
    let held = lock.write().owner(&owner).label("nightly import").await.unwrap();
    let waits = tokio::spawn(async move { lock.read().label("<b>report</b>").await });
    let other = relatch.rwlock("catalog").unwrap();
    let reads = (other.read().await.unwrap(), other.read().await.unwrap());
    until("4 go on, 0 are over").await;
    held.release().await.unwrap();
    let granted = waits.await.unwrap().unwrap();
    until("3 go on, 2 are over").await;
    drop((granted, reads));
    relatch.close().await.unwrap();
    until("0 go on, 5 are over").await;
    // Interrupted, it writes what it has seen.
    trace.signal(rustix::process::Signal::INT);
    until("shows 5 spans").await;

    let browser = Browser::start();
    browser.open(&page);
    let whole = browser.until("range", "it is drawn", |text| text.contains(" to "));
    no_complaints(&browser);
    for kind in ["write", "read", "wait"] {
        assert!(painted(&browser, kind) > 50, "{kind} is painted");
    }
    assert_eq!(painted(&browser, "upgradable"), 0);

    // The wheel zooms, and 0 shows all again.
    browser.wheel(700, 300, -400);
    let near = browser.until("range", "nearer", |text| shown(text) < shown(&whole) / 2.0);
    browser.keys("-");
    browser.until("range", "farther", |text| shown(text) > shown(&near) * 1.5);
    browser.keys("0");
    browser.until("range", "all", |text| *text == whole);

    // Whatever is pointed at is told.
    let place = browser.run(
        "const canvas = document.querySelector('canvas'), g = canvas.getContext('2d'), scale = canvas.width / canvas.clientWidth;
         const probe = document.createElement('i'); probe.style.color = 'var(--write)'; document.body.append(probe);
         const [r, g_, b] = getComputedStyle(probe).color.match(/[0-9]+/g).map(Number); probe.remove();
         const { data } = g.getImageData(0, 0, canvas.width, canvas.height), box = canvas.getBoundingClientRect();
         for (let i = 0; i < data.length; i += 4) if (data[i] === r && data[i + 1] === g_ && data[i + 2] === b)
           return [Math.round(box.left + (i / 4 % canvas.width) / scale) + 3, Math.round(box.top + Math.floor(i / 4 / canvas.width) / scale) + 3];",
    );
    browser.point(place[0].as_i64().unwrap(), place[1].as_i64().unwrap());
    let told = browser.until("detail", "what is there", |text| text.starts_with("held (write)"));
    for word in [
        "jobs/nightly",
        &owner.to_string(),
        "nightly import",
        &format!("(pid {})", std::process::id()),
    ] {
        assert!(told.contains(word), "no {word} in {told}");
    }

    // A search by label, by name, by owner and by process.
    browser.keys("/nightly\u{e007}");
    browser.until("found", "what is about it", |text| text.starts_with("1 of "));
    browser.until("detail", "who held it", |text| text.contains("jobs/nightly"));
    let found = |words: &str| {
        browser.run(&format!(
            "const s = document.getElementById('search'); s.value = {}; s.dispatchEvent(new Event('input'));",
            json!(words)
        ));
        let text = browser.text("found");
        text.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(found("nightly import"), 1, "one hold has that label");
    assert_eq!(found(&owner.to_string()), 1);
    assert_eq!(found("jobs/nightly wait"), 1);
    assert_eq!(found("catalog"), 2);
    assert_eq!(
        found(&format!("pid {}", std::process::id())),
        5,
        "all of them are ours"
    );
    assert_eq!(found("nobody at all"), 0);

    // What others wrote is text.
    assert_eq!(found("<b>report</b>"), 2);
    browser.keys("\u{e007}");
    browser.until("detail", "its label", |text| text.contains("<b>report</b>"));
    assert_eq!(browser.run("return document.querySelectorAll('b').length;"), 0);

    // By night it is dark.
    let ground = |browser: &Browser| {
        browser.run(
            "return [...document.querySelector('canvas').getContext('2d').getImageData(2, 2, 1, 1).data];",
        )
    };
    browser.prefers("light");
    let light = ground(&browser);
    browser.prefers("dark");
    eventually_blocking(BOUND, "it is dark", || {
        let dark = ground(&browser);
        light[0].as_u64().unwrap() > 200 && dark[0].as_u64().unwrap() < 60
    });
    no_complaints(&browser);
}

#[test]
fn the_demo_and_the_simulation_draw_what_they_did_and_a_hundred_thousand_spans_are_quick() {
    let directory = tempfile::tempdir().unwrap();
    let (demo, simulation) = (
        directory.path().join("demo.html"),
        directory.path().join("simulation.html"),
    );
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "some").unwrap();
    let run = |arguments: &[&str]| {
        let output = relatch(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    run(&[
        "demo",
        "--tree",
        tree.to_str().unwrap(),
        "--seconds",
        "1",
        "--json",
        "--html",
        demo.to_str().unwrap(),
    ]);
    run(&[
        "simulate",
        "--seeds",
        "1",
        "--from",
        "7",
        "--json",
        "--html",
        simulation.to_str().unwrap(),
    ]);

    let browser = Browser::start();
    browser.open(&demo);
    browser.until("range", "it is drawn", |text| text.contains(" to "));
    for kind in ["read", "write"] {
        assert!(painted(&browser, kind) > 50, "{kind} is painted");
    }
    browser.open(&simulation);
    let range = browser.until("range", "it is drawn", |text| text.contains(" to "));
    assert!(range.starts_with("0.000 s"), "a simulation has no date: {range}");
    assert!(painted(&browser, "fault") > 0 && painted(&browser, "write") > 0);
    no_complaints(&browser);

    // The same page, with more in it than anybody looks at.
    let many = directory.path().join("many.html");
    fill(&simulation, &many);
    browser.open(&many);
    browser.until("range", "it is drawn", |text| text.contains(" to "));
    assert!(painted(&browser, "write") > 50);
    // A search, a zoom and three moves, each drawn before the next.
    let begun = Instant::now();
    browser.keys("/owner-4711-");
    browser.until("found", "one of all", |text| text == "1 of 100000");
    browser.keys("\u{e007}\u{e00c}");
    for key in ["+", "\u{e014}", "\u{e012}", "-"] {
        browser.keys(key);
    }
    let frame = browser.run(
        "const begun = performance.now();
         for (let i = 0; i < 10; i++) document.querySelector('canvas').dispatchEvent(new WheelEvent('wheel', { deltaY: i % 2 ? 300 : -300, clientX: 700 }));
         return performance.now() - begun;",
    );
    assert!(frame.as_f64().unwrap() < 1000.0, "{frame} ms");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    no_complaints(&browser);
}

/// 100,000 spans of 2,000 names.
fn fill(page: &Path, to: &Path) {
    let text = fs::read_to_string(page).unwrap();
    let (head, rest) = text.split_once("type=\"application/json\">").unwrap();
    let (data, rest) = rest.split_once("</script>").unwrap();
    let mut data: Value = serde_json::from_str(data).unwrap();
    let mut strings: Vec<String> = vec![String::new()];
    strings.extend((0..2000).map(|name| format!("name {name}")));
    strings.extend((0..100_000).map(|owner| format!("owner-{owner}-")));
    let spans: Vec<u64> = (0..100_000_u64)
        .flat_map(|span| {
            let from = span * 100;
            [
                1 + span % 2000,
                0,
                span,
                2001 + span,
                0,
                0,
                span % 4,
                from,
                from + 90_000,
            ]
        })
        .collect();
    data["strings"] = json!(strings);
    data["until"] = json!(10_100_000);
    let mut spans = json!(spans);
    // No lane of their own.
    for at in (1..900_000).step_by(9) {
        spans[at] = json!(-1);
    }
    data["spans"] = spans;
    fs::write(
        to,
        format!("{head}type=\"application/json\">{data}</script>{rest}"),
    )
    .unwrap();
}

#[test]
fn a_page_that_can_not_be_written_is_told_at_once() {
    let port = free_port();
    let url = format!("redis://127.0.0.1:{port}");
    for arguments in [
        &["trace", "--html", "/nonexistent/page.html", "--redis", &url][..],
        &["demo", "--html", "/nonexistent/page.html"],
        &["simulate", "--seeds", "1", "--html", "/nonexistent/page.html"],
    ] {
        let output = relatch(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("/nonexistent/page.html can't be written"), "{said}");
    }
}
