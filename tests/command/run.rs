//! `relatch run`.

use std::os::unix::process::ExitStatusExt as _;

use relatch::{Owner, Relatch};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::support::{
    BOUND, FakeServer, Proxy, RedisServer, eventually_async, eventually_blocking, free_port,
};
use crate::{Running, client, done, relatch, runs, send, until_gone, until_waiting};

/// Says its process id, and goes on when it is asked to end.
const STUBBORN: &str =
    "trap 'echo TERM >> term' TERM; echo $$ > pid; i=0; while [ $((i+=1)) -lt 3000 ]; do sleep 0.02; done";

#[test]
fn the_command_gets_names_fences_and_owner_and_its_status_is_ours() {
    let server = RedisServer::start();
    let url = server.url();
    let script = "echo \"$RELATCH_NAME|$RELATCH_FENCE|$RELATCH_OWNER|$RELATCH_REDIS\"; echo \"$RELATCH_HOLDS\"; exit 7";
    let done = done(
        Some(&url),
        &[
            "run", "--read", "b", "-w", "c", "--write", "a", "--name", "d", "--", "sh", "-c", script,
        ],
    )
    .assert(7, "");
    let (first, holds) = done.out.split_once('\n').unwrap();
    let [name, fence, owner, redis] = <[&str; 4]>::try_from(first.split('|').collect::<Vec<_>>()).unwrap();
    assert_eq!((name, redis), ("c", url.as_str()));
    assert!(owner.parse::<Owner>().is_ok(), "{owner}");
    let holds: Value = serde_json::from_str(holds).unwrap();
    let told: Vec<_> = holds
        .as_array()
        .unwrap()
        .iter()
        .map(|hold| (hold["name"].as_str().unwrap(), hold["mode"].as_str().unwrap()))
        .collect();
    assert_eq!(
        told,
        [("a", "write"), ("b", "read"), ("c", "write"), ("d", "write")]
    );
    assert_eq!(holds[2]["fence"].to_string(), fence);
    // And it was given back.
    assert_eq!(server.cli(&["HEXISTS", "relatch:1:{c}", "top"]).trim(), "0");
}

#[test]
fn a_command_that_a_signal_ended_has_128_and_its_number() {
    let server = RedisServer::start();
    for (signal, status) in [("KILL", 137), ("TERM", 143), ("INT", 130)] {
        let script = format!("kill -{signal} $$; sleep 10");
        done(Some(&server.url()), &["run", "-w", "it", "sh", "-c", &script]).assert(status, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_not_to_run_it_has_a_status_of_its_own() {
    let server = RedisServer::start();
    let url = server.url();
    let held = client(&url)
        .await
        .rwlock("held")
        .unwrap()
        .write()
        .label("the test")
        .await
        .unwrap();
    for (arguments, status, says) in [
        (&["-w", "held", "--if-free"][..], 120, "not free: held as write"),
        (&["-r", "held", "--if-free"], 120, "\"the test\""),
        (&["-w", "held", "-i", "-E", "0"], 0, "not free"),
        (&["-w", "held", "-t", "0.5"], 124, "the test"),
        (&["-w", "held", "--timeout=500ms", "-E", "9"], 9, "no write hold"),
        (
            &["-w", "it", "--redis", "redis://127.0.0.1:1"],
            122,
            "is a server running there",
        ),
        (&["-w", "it", "--redis", "localhost"], 125, "redis://"),
        (&["-w", "it", "--owner", "me"], 125, "an owner is a UUID"),
        (&["-w", "it", "--grace", "20s"], 125, "at most a third"),
        (&["-w", "it", "--timeout", "soon"], 125, "write 10s"),
        (&["-w", "it", "--timeout=-1"], 125, "it is negative; write 10s"),
        (&["-w", ""], 125, "name is empty"),
        (&[], 125, "--write <NAME>"),
        (&["-w", "it", "--lease", "1ms", "--grace", "0s"], 125, "too short"),
    ] {
        let arguments = [&["run"], arguments, &["--", "sh", "-c", "echo ran"]].concat();
        let done = done(Some(&url), &arguments).assert(status, says);
        assert_eq!(done.out, "", "{arguments:?}");
    }
    held.release().await.unwrap();
    for (command, status, says) in [
        (&["no/such/command"][..], 127, "No such file"),
        (&["/dev/null"], 126, "can't be started"),
        (&[crate::RELATCH, "run", "-w", "it", "true"], 123, "upgradable"),
    ] {
        // Beside another reader, so that the nested one can't be let in.
        let other = client(&url).await.rwlock("it").unwrap().read().await.unwrap();
        done(Some(&url), &[&["run", "-r", "it", "--"], command].concat()).assert(status, says);
        other.release().await.unwrap();
    }
    let silent = FakeServer::silent();
    done(Some(&silent.url()), &["run", "-w", "it", "-t", "300ms", "true"]).assert(122, "did not answer");
}

#[test]
fn a_run_within_a_run_re_enters_by_the_environment() {
    let server = RedisServer::start();
    let (url, relatch) = (server.url(), crate::RELATCH);
    let script = format!("echo $RELATCH_OWNER; {relatch} run -i -w it -r it -- sh -c 'echo $RELATCH_OWNER'");
    let both = done(Some(&url), &["run", "-w", "it", "--", "sh", "-c", &script]).assert(0, "");
    let owners: Vec<&str> = both.out.lines().collect();
    assert!(owners.len() == 2 && owners[0] == owners[1], "{owners:?}");
    let script = format!("{relatch} run -i -w it --owner new -- true");
    done(Some(&url), &["run", "-w", "it", "--", "sh", "-c", &script]).assert(120, "not free");
    // The server is found as well when it was typed.
    let script = format!("{relatch} run -i -w it -- echo inside");
    let inner = done(
        None,
        &["run", "--redis", &url, "-w", "it", "--", "sh", "-c", &script],
    )
    .assert(0, "");
    assert_eq!(inner.out, "inside\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_taken_in_their_order_whatever_order_was_typed() {
    let server = RedisServer::start();
    let other = client(&server.url()).await;
    let held = other.rwlock("a").unwrap().write().await.unwrap();
    let mut run = Running::start(&server.url(), &["run", "-w", "b", "-w", "a", "--", "true"]);
    until_waiting(&other, "a", 1).await;
    // Whoever holds a and wants b gets it.
    let b = other
        .rwlock("b")
        .unwrap()
        .try_write()
        .await
        .unwrap()
        .expect("b is free");
    b.release().await.unwrap();
    held.release().await.unwrap();
    assert_eq!(run.ended().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_while_the_others_are_waited_for_loses_all_of_them() {
    let server = RedisServer::start();
    let other = client(&server.url()).await;
    let held = other.rwlock("b").unwrap().write().await.unwrap();
    let mut run = Running::start(
        &server.url(),
        &["run", "-w", "a", "-w", "b", "--", "sh", "-c", "echo ran"],
    );
    until_waiting(&other, "b", 1).await;
    assert_eq!(other.revoke("a").await.unwrap(), 1);
    assert_eq!(run.ended().code(), Some(121), "{}", run.said("err"));
    let said = run.said("err");
    assert!(
        said.contains("\"a\" was lost while \"b\" was waited for"),
        "{said}"
    );
    assert_eq!(run.said("out"), "");
    until_waiting(&other, "b", 0).await;
    held.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_is_told_who_is_in_the_way_and_leaves_the_line_when_told_to_end() {
    let server = RedisServer::start();
    let other = client(&server.url()).await;
    let held = other
        .rwlock("it")
        .unwrap()
        .read()
        .label("a report")
        .await
        .unwrap();
    let mut run = Running::start(&server.url(), &["run", "-w", "it", "--", "true"]);
    run.until_it_says("err", "to write \"it\": held as read for");
    run.until_it_says("err", "\"a report\"");
    until_waiting(&other, "it", 1).await;
    run.process.signal(Signal::TERM);
    assert_eq!(run.ended().signal(), Some(15));
    until_waiting(&other, "it", 0).await;
    held.release().await.unwrap();
}

#[test]
fn signals_are_passed_on() {
    let server = RedisServer::start();
    let script = "for s in HUP INT QUIT USR1 USR2 WINCH; do trap \"echo $s >> got\" $s; done; trap 'echo TERM >> got; exit 3' TERM;
        echo ready; while :; do sleep 0.02; done";
    let mut run = Running::start(&server.url(), &["run", "-w", "it", "--", "bash", "-c", script]);
    run.until_it_says("out", "ready");
    let signals = [
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::WINCH, "WINCH"),
        (Signal::TERM, "TERM"),
    ];
    let mut expected = String::new();
    for (signal, name) in signals {
        run.process.signal(signal);
        expected += &format!("{name}\n");
        eventually_blocking(BOUND, name, || run.said("got") == expected);
    }
    assert_eq!(run.ended().code(), Some(3));
}

#[test]
fn what_was_ignored_stays_ignored() {
    let server = RedisServer::start();
    let mut command = relatch(
        Some(&server.url()),
        &[
            "run",
            "-w",
            "it",
            "--",
            "sh",
            "-c",
            "echo $$ > pid; kill -HUP $PPID; kill -HUP $$; echo alive",
        ],
    );
    let nohup = std::mem::replace(&mut command, std::process::Command::new("sh"));
    command
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh"])
        .arg(nohup.get_program())
        .args(nohup.get_args());
    for (name, value) in nohup.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut run = Running::start_as(command);
    assert_eq!(run.ended().code(), Some(0), "{}", run.said("err"));
    assert_eq!(run.said("out"), "alive\n");
}

/// Where a test waits for the end of a lease.
const BRIEF: [&str; 6] = ["run", "-w", "it", "--lease=3s", "--grace=1s", "--"];

/// Waits in line; tells whether the command still ran when it held.
fn next_in_line(one: &Relatch, name: &str, command: Pid) -> JoinHandle<bool> {
    let lock = one.rwlock(name).unwrap();
    tokio::spawn(async move {
        let _held = lock.write().await.unwrap();
        runs(command)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_ends_the_command_before_its_hold_could_lapse() {
    let (server, reachable) = (RedisServer::start(), RedisServer::start());
    let proxy = Proxy::start(reachable.port());
    // Stopped, and cut off for good: two ways to be silent. Others can still reach the second.
    let mut runs = [
        Running::start(&server.url(), &[&BRIEF[..], &["sh", "-c", STUBBORN]].concat()),
        Running::start(
            &proxy.url(),
            &[
                &["run", "-r", "it2", "--lease=3s", "--grace=1s", "--"],
                &["sh", "-c", STUBBORN][..],
            ]
            .concat(),
        ),
    ];
    let pids = runs.each_ref().map(|run| run.pid("pid"));
    let other = client(&reachable.url()).await;
    proxy.refuse(true);
    proxy.cut();
    server.stop();
    let next = next_in_line(&other, "it2", pids[1]);
    assert!(!next.await.unwrap(), "the command ran when the next held");
    pids.into_iter().for_each(until_gone);
    for run in &mut runs {
        assert_eq!(
            run.said("term"),
            "TERM\n",
            "it was asked first, once: {}",
            run.said("err")
        );
        assert_eq!(run.ended().code(), Some(121));
        assert!(
            run.said("err").contains("asking sh to end"),
            "{}",
            run.said("err")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_run_does_not_let_its_command_outlive_the_hold() {
    let server = RedisServer::start();
    let other = client(&server.url()).await;
    let mut run = Running::start(&server.url(), &[&BRIEF[..], &["sh", "-c", STUBBORN]].concat());
    let pid = run.pid("pid");
    run.process.stop();
    let next = next_in_line(&other, "it", pid);
    assert!(!next.await.unwrap(), "the command ran when the next held");
    assert_eq!(run.said("term"), "TERM\n", "it was asked first");
    run.process.cont();
    assert_eq!(run.ended().code(), Some(121), "{}", run.said("err"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_does_not_leave_its_command_running() {
    let server = RedisServer::start();
    let other = client(&server.url()).await;
    for (script, asked) in [(STUBBORN, true), ("echo $$ > pid; exec sleep 100", false)] {
        let mut run = Running::start(&server.url(), &[&BRIEF[..], &["sh", "-c", script]].concat());
        let pid = run.pid("pid");
        run.process.kill();
        // Once its lease has ended.
        let next = next_in_line(&other, "it", pid);
        assert!(!next.await.unwrap(), "the command ran when the next held");
        assert_eq!(run.said("term"), if asked { "TERM\n" } else { "" });
        assert!(run.said("err").contains("was killed"), "{}", run.said("err"));
    }
}

/// A pipe that takes nothing more, and whoever could read it.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while std::io::Write::write(&mut writer, &[b'.'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stderr_that_nobody_reads_does_not_let_the_command_outlive_the_hold() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    let other = client(&server.url()).await;
    let names = ["killed", "stopped", "cut off", "revoked"];
    let (_reader, writer) = full_pipe();
    // The shell itself would tell what has ended.
    let script = format!("exec 2> /dev/null; {STUBBORN}");
    let mut runs = names.map(|name| {
        let arguments = [
            "run",
            "-w",
            name,
            "--lease=3s",
            "--grace=1s",
            "--",
            "bash",
            "-c",
            &script,
        ];
        let url = if name == "cut off" {
            proxy.url()
        } else {
            server.url()
        };
        Running::start_with(relatch(Some(&url), &arguments), writer.try_clone().unwrap())
    });
    let pids = runs.each_ref().map(|run| run.pid("pid"));
    let nexts = [0, 1, 2, 3].map(|at| next_in_line(&other, names[at], pids[at]));
    for name in names {
        until_waiting(&other, name, 1).await;
    }
    runs[0].process.kill();
    runs[1].process.stop();
    proxy.refuse(true);
    proxy.cut();
    assert_eq!(other.revoke("revoked").await.unwrap(), 1);
    for (name, next) in names.into_iter().zip(nexts) {
        assert!(!next.await.unwrap(), "{name}: the command ran when the next held");
    }
    for (name, run) in names.iter().zip(&runs) {
        assert_eq!(run.said("term"), "TERM\n", "{name}: it was asked first");
    }
    // Whoever has nothing to say it to ends when it is told to.
    runs[3].process.signal(Signal::TERM);
    assert_eq!(runs[3].ended().signal(), Some(15));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_leaves_behind_when_it_is_asked_to_end_is_ended_as_well() {
    let server = RedisServer::start();
    let other = client(&server.url()).await;
    let script = "(trap '' TERM; sleep 100) & echo $! > pid; wait";
    let mut run = Running::start(&server.url(), &[&BRIEF[..], &["sh", "-c", script]].concat());
    let pid = run.pid("pid");
    run.process.stop();
    let next = next_in_line(&other, "it", pid);
    assert!(!next.await.unwrap(), "it ran when the next held");
    run.process.cont();
    assert_eq!(run.ended().code(), Some(121), "{}", run.said("err"));
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_to_become_the_command_does_not_wait_for_somebody_who_is_dead() {
    // It has another parent by now.
    done(None, &["run-start", "1", "--", "echo", "ran"]).assert(126, "");
    // Or dies while it waits, before any time is told.
    let waits = Running::start_as(relatch(
        None,
        &["run-start", &std::process::id().to_string(), "true"],
    ));
    let pid = Pid::from_raw(i32::try_from(waits.process.pid()).unwrap()).unwrap();
    eventually_blocking(BOUND, "it stands still", || crate::state(pid) == Some('T'));
    let mut keeper = relatch(None, &["run-keeper"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let told = format!("child {} 0\n", pid.as_raw_nonzero());
    std::io::Write::write_all(&mut keeper.stdin.take().unwrap(), told.as_bytes()).unwrap();
    keeper.wait().unwrap();
    until_gone(pid);
}

/// As near to a machine that slept as it gets: nothing of it ran, and time went on.
#[cfg(target_os = "linux")]
#[test]
fn after_everything_stood_still_past_the_lease_the_command_is_ended_at_once() {
    let server = RedisServer::start();
    let mut run = Running::start(&server.url(), &[&BRIEF[..], &["sh", "-c", STUBBORN]].concat());
    let pid = run.pid("pid");
    let this = Pid::from_raw(i32::try_from(run.process.pid()).unwrap()).unwrap();
    let of_this = crate::processes(|stat| stat.parent == run.process.pid());
    assert_eq!(of_this.len(), 2, "the command and the keeper");
    run.process.stop();
    for child in &of_this {
        send(*child, Signal::STOP);
    }
    let next = done(Some(&server.url()), &["run", "-w", "it", "-t", "20s", "true"]);
    next.assert(0, "");
    for pid in [&[this][..], &of_this].concat() {
        send(pid, Signal::CONT);
    }
    until_gone(pid);
    assert_eq!(run.said("term"), "", "there was no time to ask it");
    assert_eq!(run.ended().code(), Some(121), "{}", run.said("err"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_hold_goes_on_when_the_command_has_ended() {
    let server = RedisServer::start();
    let other = client(&server.url()).await;
    // With something in the background that hears nothing of it.
    let script = "(trap '' TERM; echo $BASHPID > background; sleep 100) & ".to_owned() + STUBBORN;
    let mut run = Running::start(
        &server.url(),
        &["run", "-w", "it", "--grace=1s", "--", "bash", "-c", &script],
    );
    let pids = [run.pid("pid"), run.pid("background")];
    let waiter = tokio::spawn({
        let lock = other.rwlock("it").unwrap();
        async move {
            let held = lock.write().await.unwrap();
            (pids.map(runs), held)
        }
    });
    until_waiting(&other, "it", 1).await;
    assert_eq!(other.revoke("it").await.unwrap(), 1);
    let (running, held) = waiter.await.unwrap();
    assert!(!running[0], "the command ran when the next held");
    assert_eq!(run.said("term"), "TERM\n");
    assert_eq!(run.ended().code(), Some(121));
    assert!(run.said("err").contains("was revoked"), "{}", run.said("err"));
    until_gone(pids[1]);
    held.release().await.unwrap();
}

#[test]
fn a_command_that_held_for_too_long_is_ended() {
    let server = RedisServer::start();
    done(
        Some(&server.url()),
        &[
            "run",
            "-w",
            "it",
            "--max-hold",
            "1s",
            "--grace",
            "200ms",
            "sleep",
            "100",
        ],
    )
    .assert(121, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_is_renewed_for_as_long_as_the_command_runs() {
    let server = RedisServer::start();
    let other = client(&server.url()).await;
    let mut run = Running::start(&server.url(), &[&BRIEF[..], &["sleep", "100"]].concat());
    let lease = std::time::Duration::from_secs(3);
    eventually_async(BOUND, "it is held for longer than a lease", async || {
        let seen = other.inspect("it").await.unwrap();
        seen.holders.iter().any(|held| held.held_for > lease)
    })
    .await;
    assert_eq!(run.process.ended(), None, "{}", run.said("err"));
    run.process.signal(Signal::TERM);
    assert_eq!(run.ended().code(), Some(143), "{}", run.said("err"));
}

#[test]
fn the_server_is_found_where_it_is_said_first() {
    let server = RedisServer::start();
    let home = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = home.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (good, nowhere) = (server.url(), format!("redis://127.0.0.1:{}", free_port()));
    let run = |url: Option<&str>, arguments: &[&str]| {
        let arguments = [
            &["run", "-w", "it"],
            arguments,
            &["--", "sh", "-c", "echo $RELATCH_REDIS"],
        ]
        .concat();
        let mut command = relatch(url, &arguments);
        crate::Done::from(command.env("HOME", home.path()).output().unwrap())
    };
    run(None, &[]).assert(125, "no server is named");
    write(
        ".config/relatch/config.toml",
        &format!("url = {good:?}\nlease = \"20s\"\n"),
    );
    // What is in a file stays there.
    assert_eq!(run(None, &[]).assert(0, "").out, "\n");
    let file = write("other.toml", &format!("url = {nowhere:?}"));
    run(None, &["--config", &file]).assert(122, "connected");
    assert_eq!(
        run(Some(&good), &["--config", &file]).assert(0, "").out,
        format!("{good}\n")
    );
    run(Some(&good), &["--redis", &nowhere]).assert(122, "connected");

    // An empty variable says nothing.
    run(Some(""), &["--config", &file]).assert(122, "connected");
    run(None, &["--config", "no/such"]).assert(125, "can't be read");
    let file = write(
        "bad.toml",
        "lease = \"10s\"\nurl = \"redis://:s3cret@x\nclaim = \"1s\"",
    );
    let bad = run(None, &["--config", &file]).assert(125, "bad.toml, line 2");
    assert!(!bad.err.contains("s3cret"), "{}", bad.err);
    let file = write("unknown.toml", "leash = \"10s\"");
    run(None, &["--config", &file]).assert(125, "leash");
    let file = write("embedded.toml", "url = \"embedded\"");
    run(None, &["--config", &file]).assert(125, "name a Redis server");
}
