//! `ls`, `show`, `events`, `revoke`, `doctor`; completions and man pages.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use relatch::Owner;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{BOUND, Proxy, RedisCluster, RedisServer, eventually_blocking, free_port};
use crate::terminal::Terminal;
use crate::{Running, client, done, relatch, until_waiting};

fn json_lines(out: &str) -> Vec<Value> {
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_listed_with_who_is_on_them() {
    let server = RedisServer::start();
    let url = server.url();
    let empty = done(Some(&url), &["ls"]).assert(0, "no name is held");
    assert_eq!(empty.out, "");
    let one = client(&url).await;
    let _write = one.rwlock("jobs/nightly").unwrap().write().await.unwrap();
    let _reads = (
        one.rwlock("catalog").unwrap().read().await.unwrap(),
        one.rwlock("catalog").unwrap().read().await.unwrap(),
    );
    one.rwlock("idle")
        .unwrap()
        .write()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let lock = one.rwlock("jobs/nightly").unwrap();
    tokio::spawn(async move { lock.read().await.map(drop) });
    until_waiting(&one, "jobs/nightly", 1).await;

    let out = done(Some(&url), &["ls"]).assert(0, "").out;
    let words: Vec<Vec<&str>> = out
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        words[0],
        [
            "NAME", "MODE", "HOLDERS", "WAITERS", "LONGEST", "WAIT", "HELD", "FOR"
        ]
    );
    assert_eq!(words[1][..5], ["catalog", "read", "2", "0", "-"], "{out}");
    assert_eq!(words[2][..4], ["jobs/nightly", "write", "1", "1"], "{out}");
    assert_eq!(words.len(), 3, "{out}");
    assert!(
        out.lines().all(|line| line.len() <= 80) && !out.contains('\x1b'),
        "{out}"
    );

    let by_wait = done(Some(&url), &["ls", "--sort", "wait", "--json"])
        .assert(0, "")
        .out;
    let by_wait = json_lines(&by_wait);
    assert_eq!(by_wait[0]["name"], "jobs/nightly");
    assert!(
        by_wait[0]["longest_wait_ms"].is_u64() && by_wait[0]["fence"].is_u64(),
        "{by_wait:?}"
    );
    assert_eq!(
        json_lines(&done(Some(&url), &["ls", "j*", "--json"]).out).len(),
        1
    );
    assert_eq!(
        json_lines(&done(Some(&url), &["ls", "--all", "--json"]).out).len(),
        3
    );
    assert_eq!(server.command_count("keys"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_is_shown_with_owner_depth_label_process_times_and_line() {
    let server = RedisServer::start();
    let url = server.url();
    done(Some(&url), &["show", "it"]).assert(1, "");
    let (one, owner) = (client(&url).await, Owner::new());
    let lock = one.rwlock("it").unwrap();
    let outer = lock.write().owner(&owner).label("nightly import").await.unwrap();
    let _inner = lock.read().owner(&owner).await.unwrap();
    let waiting = one.rwlock("it").unwrap();
    tokio::spawn(async move { waiting.write().label("next").await.map(drop) });
    until_waiting(&one, "it", 1).await;

    let out = done(Some(&url), &["show", "it"]).assert(0, "").out;
    let pid = format!("(pid {})", std::process::id());
    for words in [
        &format!("fence {}", outer.fence()),
        &format!("owner {owner}, depth 2"),
        "\"nightly import\"",
        &pid,
        "since 20",
        "lease ",
        "in line",
        "   1  write",
        "\"next\"",
    ] {
        assert!(out.contains(words), "no {words:?} in:\n{out}");
    }
    let shown: Value =
        serde_json::from_str(&done(Some(&url), &["show", "it", "--json"]).assert(0, "").out).unwrap();
    let holding = &shown["holders"][0];
    assert_eq!(
        (&holding["owner"], &holding["depth"]),
        (&owner.to_string().into(), &2.into())
    );
    assert_eq!(
        (&holding["holds"][0]["mode"], &holding["holds"][1]["mode"]),
        (&"write".into(), &"read".into())
    );
    assert_eq!(
        (&holding["holds"][0]["pid"], &holding["holds"][0]["connected"]),
        (&std::process::id().into(), &true.into())
    );
    assert_eq!(
        (&shown["waiters"][0]["label"], &shown["waiters"][0]["place"]),
        (&"next".into(), &1.into())
    );
    assert_eq!(shown["fence"], outer.fence());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_others_wrote_reaches_the_terminal_as_it_is() {
    let server = RedisServer::start();
    let one = client(&server.url()).await;
    let evil = "evil\u{1b}[2J\n\u{202e}name";
    let _held = one
        .rwlock(evil)
        .unwrap()
        .write()
        .label("la\u{1b}[31mbel")
        .await
        .unwrap();
    for arguments in [
        &["ls"][..],
        &["show", evil],
        &["doctor"],
        &["run", "-i", "-w", evil, "true"],
    ] {
        let done = done(Some(&server.url()), arguments);
        let said = done.out + &done.err;
        assert!(
            !said.contains('\x1b') && !said.contains('\u{202e}'),
            "{arguments:?}: {said:?}"
        );
    }
    let mut listed = json_lines(&done(Some(&server.url()), &["ls", "--json"]).out);
    assert_eq!(listed.remove(0)["name"], evil, "machines get it as it is");
}

#[test]
fn whoever_stops_reading_ends_it_quietly() {
    let server = RedisServer::start();
    for at in 0..2000 {
        server.reply(&[
            "HSET",
            &format!("relatch:1:{{{}{at}}}", "x".repeat(200)),
            "fence",
            "1",
        ]);
    }
    let mut ls = relatch(Some(&server.url()), &["ls", "--all", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::with_capacity(100, ls.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let done = crate::Done::from(ls.wait_with_output().unwrap());
    done.assert(0, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_is_revoked_from_everybody_or_from_one_owner() {
    let server = RedisServer::start();
    let url = server.url();
    done(Some(&url), &["revoke", "it"]).assert(1, "nobody holds \"it\"\n");
    let nobody = Owner::new().to_string();
    done(Some(&url), &["revoke", "it", "--owner", &nobody]).assert(1, "does not hold \"it\"");
    let (one, ann, ben) = (client(&url).await, Owner::new(), Owner::new());
    let lock = one.rwlock("it").unwrap();
    let (hers, his) = (
        lock.read().owner(&ann).await.unwrap(),
        lock.read().owner(&ben).await.unwrap(),
    );
    let revoke = async |arguments: Vec<String>| {
        let url = url.clone();
        tokio::task::spawn_blocking(move || {
            done(
                Some(&url),
                &arguments.iter().map(String::as_str).collect::<Vec<_>>(),
            )
        })
        .await
        .unwrap()
    };
    let of = |text: &[&str]| text.iter().map(ToString::to_string).collect::<Vec<_>>();
    let done_ = revoke(of(&["revoke", "it", "--owner", &ann.to_string()]))
        .await
        .assert(0, "");
    assert_eq!(done_.out, "revoked 1 hold on \"it\"\n");
    assert!(!hers.is_held() && his.is_held());
    let done_ = revoke(of(&["revoke", "it", "--json"])).await.assert(0, "");
    assert_eq!(done_.out, "{\"name\":\"it\",\"revoked\":1}\n");
    assert!(!his.is_held());
    revoke(of(&["revoke", "it", "--owner", "ann"]))
        .await
        .assert(2, "is not an owner");
}

/// What happened to `it`, as (event, mode).
fn events(run: &Running) -> Vec<(String, String)> {
    let lines = run.said("out");
    // The last may not be whole yet.
    let whole = lines.rfind('\n').map_or("", |end| &lines[..end]);
    json_lines(whole)
        .iter()
        .map(|event| {
            (
                event["event"].as_str().unwrap().to_owned(),
                event["mode"].as_str().unwrap_or("").to_owned(),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_told_as_they_happen() {
    let server = RedisServer::start();
    let url = server.url();
    // Once told by the server, once where it may not tell.
    server.reply(&[
        "ACL",
        "SETUSER",
        "ann",
        "on",
        ">pw",
        "~*",
        "&*",
        "+@all",
        "-client|tracking",
    ]);
    let may_not = url.replace("redis://", "redis://ann:pw@");
    let mut told = [
        Running::start(&url, &["events", "i*", "--json"]),
        Running::start(&may_not, &["events", "--json", "--poll", "10ms"]),
    ];
    let expect = |run: &Running, expected: &[(&str, &str)]| {
        let expected: Vec<_> = expected
            .iter()
            .map(|(event, mode)| (event.to_string(), mode.to_string()))
            .collect();
        let end = std::time::Instant::now() + BOUND;
        while events(run) != expected && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(events(run), expected);
    };
    for run in &told {
        run.until_it_says("err", "watching; 0 names");
    }
    assert!(
        told[1].said("err").contains("CLIENT TRACKING"),
        "{}",
        told[1].said("err")
    );
    let one = client(&url).await;
    // Or its first event is of a process that has not said who it is yet.
    eventually_blocking(BOUND, "all three have said who they are", || {
        let keys = server.keys();
        keys.iter().filter(|key| key.contains(":client:")).count() == 3
    });
    let lock = one.rwlock("it").unwrap();
    let both = |expected: &[(&str, &str)]| told.iter().for_each(|run| expect(run, expected));

    let held = lock.write().label("first").await.unwrap();
    let mut so_far = vec![("acquire", "write")];
    both(&so_far);
    let next = tokio::spawn({
        let lock = lock.clone();
        async move { lock.upgradable_read().await.unwrap() }
    });
    until_waiting(&one, "it", 1).await;
    so_far.push(("queue", "upgradable"));
    both(&so_far);
    let gives_up = tokio::spawn({
        let lock = lock.clone();
        async move { lock.read().await.map(drop) }
    });
    so_far.push(("queue", "read"));
    both(&so_far);
    gives_up.abort();
    so_far.push(("leave", "read"));
    both(&so_far);
    held.release().await.unwrap();
    let next = next.await.unwrap();
    so_far.extend([("release", "write"), ("grant", "upgradable")]);
    both(&so_far);
    let write = next.upgrade().await.unwrap();
    so_far.push(("upgrade", "write"));
    both(&so_far);
    let read = write.downgrade().await.unwrap();
    so_far.push(("downgrade", "read"));
    both(&so_far);
    drop(read);
    so_far.push(("release", "read"));
    both(&so_far);

    // A client that dies, and one that is slow to give back.
    let mut dies = Running::start(&url, &["run", "-w", "it", "--lease", "2s", "--", "sleep", "100"]);
    so_far.push(("acquire", "write"));
    both(&so_far);
    dies.process.kill();
    so_far.push(("lapse", "write"));
    both(&so_far);
    let slow = lock.write().keep_until_dropped().await.unwrap();
    so_far.push(("acquire", "write"));
    both(&so_far);
    let revoking = tokio::spawn(async move { one.revoke("it").await });
    so_far.push(("revoke", "write"));
    both(&so_far);
    drop(slow);
    revoking.await.unwrap().unwrap();
    so_far.push(("release", "write"));
    both(&so_far);

    for run in &mut told {
        run.process.signal(Signal::TERM);
        assert_eq!(run.ended().code(), Some(0), "{}", run.said("err"));
    }
    let first: Value = json_lines(&told[0].said("out")).remove(0);
    assert_eq!(
        (&first["name"], &first["label"], &first["pid"]),
        (&"it".into(), &"first".into(), &std::process::id().into())
    );
}

#[test]
fn a_write_that_nobody_saw_is_told_by_its_fence() {
    let server = RedisServer::start();
    done(Some(&server.url()), &["run", "-w", "it", "true"]).assert(0, "");
    let run = Running::start(&server.url(), &["events", "--json"]);
    run.until_it_says("err", "watching");
    // As a write hold leaves it that came and went.
    server.reply(&["HINCRBY", "relatch:1:{it}", "fence", "1000"]);
    eventually_blocking(BOUND, "an event", || !events(&run).is_empty());
    assert_eq!(events(&run), [("passed".to_owned(), String::new())]);
}

#[test]
fn events_go_on_when_the_server_was_away() {
    let server = RedisServer::start();
    let run = Running::start(&server.url(), &["events"]);
    run.until_it_says("err", "watching");
    server.kill();
    run.until_it_says("err", "trying on");
    server.restart_empty();
    run.until_it_says("err", "the server is back");
    done(Some(&server.url()), &["run", "-w", "it", "sleep", "0.1"]).assert(0, "");
    run.until_it_says("out", "acquire   it  write");
    run.until_it_says("out", "release   it  write after");
}

/// Quick to give up on a server that does not answer; with time to connect to another one then.
fn brisk(directory: &tempfile::TempDir, url: &str) -> String {
    let file = directory.path().join("brisk.toml");
    let brief = "\"400ms\"";
    let text = format!(
        "url = \"{url}\"\nresponse_timeout = {brief}\nconnect_timeout = \"4s\"\nidle_ping = {brief}\npatience = \"2s\"\n"
    );
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_master_down_the_others_are_told_and_that_they_are_not_all() {
    let cluster = RedisCluster::start(3);
    let directory = tempfile::tempdir().unwrap();
    let config = brisk(&directory, &cluster.url());
    let one = client(&cluster.url()).await;
    let names: Vec<String> = (0..3).map(|master| cluster.name_on(master, "it")).collect();
    let mut held = Vec::new();
    for name in &names {
        held.push(one.rwlock(name).unwrap().write().await.unwrap());
    }
    let listed = |done: &crate::Done| -> Vec<String> {
        let text = |line: &Value| line["name"].as_str().unwrap().to_owned();
        json_lines(&done.out).iter().map(text).collect()
    };
    let ls = ["ls", "--json", "--config", &config];
    assert_eq!(listed(&done(None, &ls).assert(0, "")).len(), 3);
    let run = Running::start(&cluster.url(), &["events", "--config", &config]);
    run.until_it_says("err", "3 names are held");

    cluster.node(0).stop();
    let port = cluster.node(0).port().to_string();
    let two = done(None, &ls).assert(1, "these are not all");
    assert!(two.err.contains(&port), "{}", two.err);
    assert_eq!(listed(&two).len(), 2);
    assert!(!listed(&two).contains(&names[0]));
    // Whoever began before goes on telling what can be seen, and nothing of what can't.
    run.until_it_says("err", "trying on");
    held.pop().unwrap().release().await.unwrap();
    run.until_it_says("out", &format!("release   {}  write", names[2]));
    assert!(!run.said("out").contains(&names[0]), "{}", run.said("out"));

    cluster.node(0).cont();
    run.until_it_says("err", "the server is back");
    held.remove(0).release().await.unwrap();
    run.until_it_says("out", &format!("release   {}  write", names[0]));
    assert_eq!(listed(&done(None, &ls).assert(0, "")).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ends_at_a_master_that_is_down_holds_up_nothing_that_the_others_tell() {
    let cluster = RedisCluster::start(3);
    let directory = tempfile::tempdir().unwrap();
    let config = brisk(&directory, &cluster.url());
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("patience = \"2s\"", "patience = \"4s\"")).unwrap();
    let one = client(&cluster.url()).await;
    let [gone, there] = [0, 1].map(|master| cluster.name_on(master, "it"));
    let held = one.rwlock(&there).unwrap().write().await.unwrap();
    let lease = Duration::from_secs(7);
    let _lapses = one.rwlock(&gone).unwrap().write().lease(lease).await.unwrap();
    let lapsed = tokio::time::Instant::now() + lease + Duration::from_millis(100);
    let run = Running::start(&cluster.url(), &["events", "--config", &config]);
    run.until_it_says("err", "2 names are held");
    cluster.node(0).stop();
    run.until_it_says("err", "trying on");
    // It looks at the name whose lease has ended, and gets no answer.
    tokio::time::sleep_until(lapsed).await;
    let released = Instant::now();
    held.release().await.unwrap();
    run.until_it_says("out", &format!("release   {there}"));
    let took = released.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_said_to_be_revoked_before_the_server_says_so() {
    let server = Arc::new(RedisServer::start());
    let one = client(&server.url()).await;
    let _held = one.rwlock("it").unwrap().write().await.unwrap();
    let proxy = Proxy::start(server.port());
    // It stands still when it is asked for that.
    let stops = server.clone();
    proxy.drop_reply_then_cut(move |words| {
        if words[0] == "EVALSHA" && words.iter().any(|word| word == "relatch:1:{it}") {
            stops.stop();
        }
        false
    });
    let mut run = Running::start(&proxy.url(), &["revoke", "it"]);
    run.until_it_says("err", "the server has not answered yet");
    assert!(!run.said("err").contains("revoked"), "{}", run.said("err"));
    proxy.heal();
    server.cont();
    assert_eq!(run.ended().code(), Some(0), "{}", run.said("err"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_while_the_server_was_slow_is_looked_at_when_it_is_not() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("relatch.toml");
    // Impatient with an answer, not with the link.
    std::fs::write(&config, format!("url = {:?}\npatience = \"1s\"\n", proxy.url())).unwrap();
    let mut command = relatch(None, &["events", "--json", "--config"]);
    command.arg(&config);
    let run = Running::start_as(command);
    run.until_it_says("err", "watching; 0 names");
    let links = proxy.connections();
    proxy.delay(Duration::from_millis(700));
    let one = client(&server.url()).await;
    // Nothing renews it: nothing is told of it again.
    let lease = Duration::from_secs(100);
    let _held = one.rwlock("it").unwrap().write().lease(lease).await.unwrap();
    run.until_it_says("err", "trying on");
    proxy.heal();
    run.until_it_says("err", "the server is back");
    eventually_blocking(BOUND, "an event", || !events(&run).is_empty());
    assert_eq!(events(&run), [("acquire".to_owned(), "write".to_owned())]);
    assert_eq!(proxy.connections(), links, "the link stayed");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_hold_ended_while_the_server_was_away_is_not_guessed() {
    let server = RedisServer::start();
    let (url, proxy) = (server.url(), Proxy::start(server.port()));
    let one = client(&url).await;
    let given_back = one.rwlock("given back").unwrap().write().await.unwrap();
    let _forgotten = one.rwlock("forgotten").unwrap().write().await.unwrap();
    let run = Running::start(&proxy.url(), &["events", "--json"]);
    run.until_it_says("err", "watching; 2 names");
    proxy.refuse(true);
    proxy.cut();
    run.until_it_says("err", "trying on");
    given_back.release().await.unwrap();
    server.reply(&["DEL", "relatch:1:{forgotten}"]);
    proxy.refuse(false);
    eventually_blocking(BOUND, "both ends", || events(&run).len() == 2);
    let end = ("end".to_owned(), "write".to_owned());
    assert_eq!(events(&run), [end.clone(), end]);
}

#[test]
fn the_doctor_finds_nothing_wrong_with_a_good_server() {
    let server = RedisServer::start();
    let well = done(Some(&server.url()), &["doctor"]).assert(0, "");
    for words in [
        "Redis ",
        "a round trip takes",
        "its clock",
        "noeviction",
        "handed on in",
        "CLIENT TRACKING",
        "no owners wait for each other",
        "all is well",
    ] {
        assert!(well.out.contains(words), "no {words:?} in:\n{}", well.out);
    }
    let report: Value =
        serde_json::from_str(&done(Some(&server.url()), &["doctor", "--json"]).assert(0, "").out).unwrap();
    assert!(
        report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .all(|finding| finding["level"] == "ok" || finding["level"] == "note"),
        "{report:#}"
    );
}

#[test]
fn the_doctor_finds_what_is_wrong_and_says_what_to_do() {
    let server = RedisServer::start_with(&[
        "--maxmemory",
        "100mb",
        "--maxmemory-policy",
        "allkeys-lru",
        "--timeout",
        "3",
    ]);
    let mut dies = Running::start(
        &server.url(),
        &["run", "-w", "left", "--", "sh", "-c", "echo $$ > pid; sleep 100"],
    );
    dies.pid("pid");
    dies.process.kill();
    let ill = done(Some(&server.url()), &["doctor"]).assert(1, "");
    for words in [
        "it may evict locks",
        "maxmemory-policy noeviction",
        "it closes connections",
        "CONFIG SET timeout 0",
        "\"left\" is held (write)",
        "it ends with its lease",
        "3 things need attention",
    ] {
        assert!(ill.out.contains(words), "no {words:?} in:\n{}", ill.out);
    }
}

#[tokio::test]
async fn the_doctor_names_owners_that_wait_for_each_other_in_a_circle() {
    let server = RedisServer::start();
    let url = server.url();
    let (one, other) = (client(&url).await, client(&url).await);
    let (ann, ben) = (Owner::new(), Owner::new());
    let x = one.rwlock("x y").unwrap().write().owner(&ann).await.unwrap();
    let y = other.rwlock("y").unwrap().read().owner(&ben).await.unwrap();
    let (hers, his) = (one.rwlock("y").unwrap(), other.rwlock("x y").unwrap());
    let (her, him) = (ann.clone(), ben.clone());
    let hers = tokio::spawn(async move { hers.write().owner(&her).await.map(|got| drop((got, x))) });
    let his = tokio::spawn(async move { his.write().owner(&him).await.map(|got| drop((got, y))) });
    until_waiting(&one, "x y", 1).await;
    until_waiting(&one, "y", 1).await;
    let command = async |arguments: Vec<String>| {
        let url = url.clone();
        let arguments = move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            done(Some(&url), &arguments)
        };
        tokio::task::spawn_blocking(arguments).await.unwrap()
    };
    let ill = command(vec!["doctor".into()]).await.assert(1, "");
    let told: Vec<&str> = ill
        .out
        .lines()
        .skip_while(|line| !line.contains("a deadlock: "))
        .collect();
    let [circle, remedy, ..] = told[..] else {
        panic!("{}", ill.out)
    };
    for words in [
        &format!("owner {ann}"),
        &format!("owner {ben}"),
        "waits to have \"y\" (write), held (read) by",
        "waits to have \"x y\" (write), held (write) by",
        &format!("(pid {})", std::process::id()),
    ] {
        assert!(circle.contains(words), "no {words:?} in {circle}");
    }
    // What it says to do ends it.
    let (name, owner) = (
        remedy.split('\'').nth(1).unwrap(),
        remedy
            .split("--owner ")
            .nth(1)
            .unwrap()
            .split(';')
            .next()
            .unwrap(),
    );
    let revoke = ["revoke", name, "--owner", owner].map(str::to_owned);
    command(revoke.into()).await.assert(0, "");
    let (hers, his) = tokio::join!(hers, his);
    hers.unwrap().unwrap();
    his.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_does_not_say_that_nobody_waits_in_a_circle_where_it_did_not_look_at_all() {
    let server = RedisServer::start();
    let one = client(&server.url()).await;
    let lock = one.rwlock("long").unwrap();
    let reads: Vec<_> = (0..1001).map(|_| lock.read().into_future()).collect();
    let _reads = futures_util::future::try_join_all(reads).await.unwrap();
    let writer = tokio::spawn(lock.write().into_future());
    until_waiting(&one, "long", 1).await;
    let url = server.url();
    let doctor = tokio::task::spawn_blocking(move || done(Some(&url), &["doctor"]));
    let doctor = doctor.await.unwrap().assert(0, "").out;
    assert!(
        doctor.contains("of \"long\" there are more than 1,000"),
        "{doctor}"
    );
    assert!(!doctor.contains("no owners wait"), "{doctor}");
    writer.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_fails_shows_what_was_seen() {
    let server = RedisServer::start();
    let one = client(&server.url()).await;
    let _held = one.rwlock("seen before").unwrap().write().await.unwrap();
    server.reply(&["ACL", "SETUSER", "some", "on", ">word", "~*", "&*", "+@all"]);
    let url = server.url().replace("redis://", "redis://some:word@");
    let arguments = ["trace", "--for", "60s", "--html", "page.html"];
    let mut run = Running::start(&url, &arguments);
    run.until_it_says("err", "1 go on");
    // Its links go as well.
    server.reply(&["ACL", "DELUSER", "some"]);
    assert_eq!(run.ended().code(), Some(2), "{}", run.said("err"));
    assert!(run.said("page.html").contains("seen before"));
}

#[test]
fn the_doctor_tells_which_rights_are_missing() {
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
        "-@admin",
        "-@dangerous",
        "-client|tracking",
        "-scan",
    ]);
    let url = server.url().replace("redis://", "redis://ann:pw@");
    let ill = done(Some(&url), &["doctor"]).assert(1, "");
    for words in [
        "may not ask for INFO",
        "+info",
        "handed on in",
        "does not tell which names change",
        "+client|tracking",
        "the names can't be listed",
    ] {
        assert!(ill.out.contains(words), "no {words:?} in:\n{}", ill.out);
    }
    assert!(!ill.out.contains("pw@"), "{}", ill.out);
}

#[test]
fn the_doctor_does_not_take_what_it_cannot_know_for_well() {
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
    let mut holds = Running::start(
        &server.url(),
        &["run", "-w", "it", "--", "sh", "-c", "echo $$ > pid; sleep 100"],
    );
    holds.pid("pid");
    // Whether it is dead is not known, whether it is or not.
    for dead in [false, true] {
        let url = server.url().replace("redis://", "redis://ann:pw@");
        let doctor = done(Some(&url), &["doctor"]).assert(0, "").out;
        for words in ["of 1 holds and 0 requests", "(PUBSUB NUMSUB)", "+pubsub|numsub"] {
            assert!(doctor.contains(words), "no {words:?} in:\n{doctor}");
        }
        assert!(!doctor.contains("left nothing"), "{doctor}");
        let shown = done(Some(&url), &["show", "it"]).assert(0, "").out;
        assert!(!shown.contains("not connected"), "{shown}");
        // Who may ask, knows.
        let known = done(Some(&server.url()), &["doctor"]).out;
        assert_eq!(known.contains("left nothing"), !dead, "{known}");
        holds.process.kill();
    }
}

#[test]
fn what_could_not_be_looked_at_says_why_with_status_2() {
    let server = RedisServer::start();
    let nowhere = format!("redis://127.0.0.1:{}", free_port());
    for command in ["ls", "show it", "revoke it", "events", "doctor"] {
        let words: Vec<&str> = command.split(' ').collect();
        done(Some(&nowhere), &words).assert(2, "is a server running there");
        done(None, &words).assert(2, "no server is named");
    }
    server.reply(&["SET", "relatch:1:{text}", "1"]);
    done(Some(&server.url()), &["show", "text"]).assert(2, "holds something else");
    done(Some(&server.url()), &["show", ""]).assert(2, "name is empty");
    server.reply(&["CONFIG", "SET", "requirepass", "s3cret"]);
    done(Some(&server.url()), &["ls"]).assert(2, "wants a password");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_can_not_be_looked_at_hides_no_other() {
    let server = RedisServer::start();
    let url = server.url();
    let one = client(&url).await;
    let _held = one.rwlock("good").unwrap().write().await.unwrap();
    let run = Running::start(&url, &["events", "--json"]);
    run.until_it_says("err", "watching; 1 name is");
    // Of somebody who thinks that this is a place for a cache.
    server.reply(&["SET", "relatch:1:{bad}:queue", "cached"]);
    server.reply(&["HSET", "relatch:1:{bad}", "waiting", "1"]);
    let says = "\"bad\" can't be looked at: ";
    run.until_it_says("err", says);
    let listed = done(Some(&url), &["ls", "--json"]).assert(2, says).out;
    assert_eq!(json_lines(&listed)[0]["name"], "good");
    let doctor = done(Some(&url), &["doctor"]).assert(1, "").out;
    assert!(
        doctor.contains(says) && doctor.contains("1 name is known"),
        "{doctor}"
    );
    let terminal = Terminal::start(&url, crate::RELATCH, &["watch"]);
    terminal.until_it_shows(says);
    terminal.until_it_shows("1 held");
    let next = one.rwlock("next").unwrap().write().await.unwrap();
    terminal.until_it_shows("2 held");
    terminal.until_it_shows(says);
    run.until_it_says("out", "\"event\":\"acquire\",\"name\":\"next\"");
    assert_eq!(run.said("err").matches(says).count(), 1, "it is told once");
    next.release().await.unwrap();
    server.reply(&["DEL", "relatch:1:{bad}", "relatch:1:{bad}:queue"]);
    terminal.until("nothing is wrong any more", |seen| !seen.contains(says));
    server.reply(&["SET", "relatch:1:{bad}:queue", "cached"]);
    server.reply(&["HSET", "relatch:1:{bad}", "waiting", "1"]);
    // Where there is no other, that is the answer.
    done(Some(&url), &["ls", "ba*"]).assert(2, "holds something else");
}

#[test]
fn what_makes_no_sense_is_refused_before_anybody_is_asked() {
    for (words, says) in [
        ("watch --poll 0s", "at least 10ms"),
        ("events --poll 9ms", "at least 10ms"),
        ("trace --html it --poll 0", "at least 10ms"),
        ("exporter --interval 0", "at least 10ms"),
        ("exporter --listen localhost", "write 127.0.0.1:9188"),
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        done(None, &words).assert(2, says);
    }
}

#[test]
fn completions_and_man_pages_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let out = done(None, &["completions", shell]).assert(0, "").out;
        assert!(out.contains("doctor") && out.contains("if-free"), "{out}");
    }
    let folder = tempfile::tempdir().unwrap();
    done(None, &["man", "--dir", folder.path().to_str().unwrap()]).assert(0, "pages");
    let help = done(None, &["--help"]).assert(0, "").out;
    for command in [
        "run",
        "ls",
        "show",
        "watch",
        "events",
        "revoke",
        "doctor",
        "demo",
        "completions",
        "man",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
        let page = crate::read(&folder.path().join(format!("relatch-{command}.1")));
        assert!(page.contains(".SH SYNOPSIS"), "{command}: {page}");
    }
    assert!(crate::read(&folder.path().join("relatch.1")).contains("relatch\\-run(1)"));
    assert!(done(None, &["man", "run"]).assert(0, "").out.contains("121"));
    assert!(!folder.path().join("relatch-run-keeper.1").exists());
    done(None, &["man", "nosuch"]).assert(2, "no page");
}
