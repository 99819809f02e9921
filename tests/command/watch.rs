//! `relatch watch`, and `relatch run` where somebody sits at a terminal.

use relatch::Relatch;
use rustix::process::Signal;

use crate::support::{BOUND, RedisServer, child, eventually_blocking};
use crate::terminal::Terminal;
use crate::{RELATCH, client, done, send, until_waiting};

/// Watches, and says afterwards how the terminal was left.
fn watching(url: &str, more: &str) -> Terminal {
    let script = format!(
        "{RELATCH} watch {more}; echo \"status $?\"; stty -a | tr ' ;' '\\n\\n' | grep -E '^-?(icanon|echo|isig)$' | xargs echo; exec sleep 100"
    );
    Terminal::start(url, "bash", &["-c", &script])
}

#[track_caller]
fn assert_restored(terminal: &Terminal, status: &str) {
    terminal.until_it_shows("icanon");
    let seen = terminal.shows();
    assert!(seen.contains(status), "{seen}");
    assert!(seen.contains("isig icanon echo"), "{seen}");
    terminal.screen(|screen| {
        assert!(!screen.alternate_screen());
        assert!(!screen.hide_cursor());
    });
}

/// Three names, two of them with a line.
async fn scene(
    one: &Relatch,
    other: &Relatch,
) -> (relatch::WriteGuard, relatch::ReadGuard, relatch::UpgradableGuard) {
    let deploy = one
        .rwlock("deploy")
        .unwrap()
        .write()
        .label("release 4.2")
        .await
        .unwrap();
    let catalog = one.rwlock("catalog").unwrap().read().await.unwrap();
    let config = one
        .rwlock("config/main")
        .unwrap()
        .upgradable_read()
        .label("migration")
        .await
        .unwrap();
    for (name, count) in [("deploy", 2), ("catalog", 1)] {
        for _ in 0..count {
            let lock = other.rwlock(name).unwrap();
            tokio::spawn(async move { lock.write().await.map(drop) });
        }
        until_waiting(one, name, count).await;
    }
    (deploy, catalog, config)
}

fn line_of(seen: &str, words: &str) -> Option<usize> {
    seen.lines().position(|line| line.contains(words))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_screen_follows_what_happens_and_can_be_sorted_filtered_opened_and_revoked() {
    let server = RedisServer::start();
    let (one, other) = (client(&server.url()).await, client(&server.url()).await);
    let (deploy, _catalog, _config) = scene(&one, &other).await;
    let mut terminal = Terminal::start(&server.url(), RELATCH, &["watch"]);
    terminal.until_it_shows("3 held, 3 waiting, by wait");
    terminal.until("the longest wait first", |seen| {
        seen.contains("release 4.2")
            && line_of(seen, "deploy ") < line_of(seen, "catalog ")
            && line_of(seen, "catalog ") < line_of(seen, "config/main ")
    });
    terminal.until_it_shows("upgradable");

    // However little room there is.
    for (rows, columns) in [(4, 20), (1, 1), (24, 80)] {
        terminal.resize(rows, columns);
        terminal.type_in("r");
        terminal.type_in("n");
    }
    terminal.until_it_shows("3 held, 3 waiting, by wait");

    // What is new is there by itself.
    let late = other.rwlock("late").unwrap().read().await.unwrap();
    terminal.until_it_shows("4 held");
    late.release().await.unwrap();
    terminal.until_it_shows("3 held");

    // Sort: waiters, held, holders, name.
    terminal.type_in("ssss");
    terminal.until_it_shows("by name");
    terminal.until("by name", |seen| {
        line_of(seen, "catalog ") < line_of(seen, "config/main ")
            && line_of(seen, "config/main ") < line_of(seen, "deploy ")
    });

    terminal.type_in("/CONF");
    terminal.until("filtered", |seen| {
        seen.contains("config/main") && !seen.contains("deploy") && seen.contains("/CONF")
    });
    terminal.type_in("\x1b");
    terminal.until_it_shows("deploy");

    // Down to deploy (below catalog and config), which the keys chose before as well.
    terminal.type_in("/deploy\r\r");
    terminal.until("opened", |seen| {
        seen.contains("fence ")
            && seen.contains("in line")
            && seen.contains("depth 1")
            && seen.contains("\"release 4.2\"")
    });
    terminal.type_in("r");
    terminal.until_it_shows("Take \"deploy\" away");
    terminal.type_in("n");
    terminal.until_it_shows("nothing was revoked");
    assert!(deploy.is_held());
    terminal.type_in("ry");
    terminal.until_it_shows("revoked 1 hold on \"deploy\"");
    assert!(!deploy.is_held());
    terminal.type_in("q");
    assert_eq!(terminal.ended().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_terminal_is_as_it_was_after_a_key_a_signal_and_a_panic() {
    let server = RedisServer::start();
    let one = client(&server.url()).await;
    let _held = one.rwlock("it").unwrap().write().await.unwrap();

    let terminal = watching(&server.url(), "");
    terminal.until_it_shows("1 held");
    assert!(terminal.screen(vt100::Screen::alternate_screen));
    terminal.type_in("\x03");
    assert_restored(&terminal, "status 0");

    for (signal, status) in [(Signal::TERM, "status 143"), (Signal::HUP, "status 129")] {
        let terminal = watching(&server.url(), "");
        terminal.until_it_shows("1 held");
        send(watch_of(&terminal), signal);
        assert_restored(&terminal, status);
    }

    for (place, keys) in [("screen", ""), ("look", ""), ("keys", "s"), ("revoke", "ry")] {
        let terminal = watching(&server.url(), &format!("--crash {place}"));
        if !keys.is_empty() {
            terminal.until_it_shows("1 held");
            terminal.type_in(keys);
        }
        assert_restored(&terminal, "status 101");
        terminal.until_it_shows("as asked for by --crash");
    }
}

/// All of it before the screen can be drawn again: what stood there is gone, and the size is what it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_beside_a_change_of_size_does_not_hide_it() {
    let server = RedisServer::start();
    let one = client(&server.url()).await;
    let _held = one.rwlock("it").unwrap().write().await.unwrap();
    let terminal = Terminal::start(&server.url(), RELATCH, &["watch"]);
    terminal.until_it_shows("1 held");
    for _ in 0..5 {
        send(terminal.pid(), Signal::STOP);
        eventually_blocking(BOUND, "it stands still", || crate::is_stopped(terminal.pid()));
        terminal.type_in("s");
        terminal.resize(1, 1);
        terminal.resize(24, 80);
        send(terminal.pid(), Signal::CONT);
        terminal.until("all of it is there again", |seen| {
            seen.contains("1 held") && seen.contains("NAME") && seen.contains("q quit")
        });
    }
}

/// The process of `relatch watch` that the shell in this terminal has started.
fn watch_of(terminal: &Terminal) -> rustix::process::Pid {
    let shell = terminal.pid().as_raw_nonzero().to_string();
    let children = std::process::Command::new("ps")
        .args(["-o", "pid=", "--ppid", &shell])
        .output()
        .unwrap();
    let pid = crate::text(&children.stdout).trim().parse().unwrap();
    rustix::process::Pid::from_raw(pid).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away_is_told_and_followed_when_it_is_back() {
    let server = RedisServer::start();
    let terminal = Terminal::start(&server.url(), RELATCH, &["watch"]);
    terminal.until_it_shows("no name is held");
    server.kill();
    terminal.until_it_shows("can't be connected to");
    server.restart_empty();
    let other = client(&server.url()).await;
    let _held = other.rwlock("back").unwrap().write().await.unwrap();
    terminal.until("it is followed", |seen| {
        seen.contains("back") && !seen.contains("can't be")
    });
}

#[test]
fn without_a_terminal_it_says_what_to_use() {
    let server = RedisServer::start();
    done(Some(&server.url()), &["watch"]).assert(2, "relatch ls");
}

/// A child's body: says each signal at once, where a shell would say several as one.
#[test]
fn child_that_says_its_interrupts() {
    use tokio::signal::unix::{SignalKind, signal};
    if !child::is_child() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut interrupts = signal(SignalKind::interrupt()).unwrap();
        let mut passed_on = signal(SignalKind::user_defined2()).unwrap();
        let mut over = signal(SignalKind::user_defined1()).unwrap();
        println!("ready");
        loop {
            tokio::select! {
                _ = interrupts.recv() => println!("GOT"),
                _ = passed_on.recv() => println!("PASSED ON"),
                _ = over.recv() => std::process::exit(5),
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_reaches_the_command_once_and_its_status_is_ours() {
    let server = RedisServer::start();
    let this = std::env::current_exe().unwrap();
    let says = [
        "env",
        "RELATCH_CHILD=1",
        this.to_str().unwrap(),
        "--exact",
        "watch::child_that_says_its_interrupts",
        "--nocapture",
    ];
    let run = ["run", "-w", "it", "--"];
    let mut terminal = Terminal::start(&server.url(), RELATCH, &[&run[..], &says].concat());
    terminal.until_it_shows("ready");
    let count = |seen: &str| seen.matches("GOT").count();
    // The command gets it first, and then this one looks at its own: two at once would be said as one.
    send(terminal.pid(), Signal::STOP);
    terminal.type_in("\x03");
    terminal.until("one", |seen| count(seen) == 1);
    send(terminal.pid(), Signal::CONT);
    send(terminal.pid(), Signal::USR2);
    terminal.until_it_shows("PASSED ON");
    assert_eq!(count(&terminal.shows()), 1, "{}", terminal.shows());
    // What a process sends is passed on.
    send(terminal.pid(), Signal::INT);
    terminal.until("another", |seen| count(seen) == 2);
    send(terminal.pid(), Signal::USR1);
    assert_eq!(terminal.ended().code(), Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_can_ask_questions_at_the_terminal() {
    let server = RedisServer::start();
    let script = "read -p 'your name? ' name < /dev/tty; echo \"hello $name\"";
    let mut terminal = Terminal::start(
        &server.url(),
        RELATCH,
        &["run", "-w", "it", "--", "bash", "-c", script],
    );
    terminal.until_it_shows("your name?");
    terminal.type_in("ann\n");
    terminal.until_it_shows("hello ann");
    assert_eq!(terminal.ended().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_at_a_terminal_sees_one_line_that_changes_and_goes() {
    let server = RedisServer::start();
    let one = client(&server.url()).await;
    let held = one.rwlock("it").unwrap().write().label("first").await.unwrap();
    let mut terminal = Terminal::start(&server.url(), RELATCH, &["run", "-w", "it", "--", "echo", "mine"]);
    terminal.until_it_shows("\"first\"");
    held.release().await.unwrap();
    terminal.until_it_shows("mine");
    assert_eq!(terminal.ended().code(), Some(0));
    assert!(!terminal.shows().contains("waiting"), "{}", terminal.shows());
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_z_stops_both_and_both_go_on_under_the_lock() {
    let server = RedisServer::start();
    let inside = "echo ready; read x; echo got $x";
    let script = format!(
        "set -m; {RELATCH} run -w it -- bash -c '{inside}'; echo \"stopped $?\"; fg > /dev/null; echo \"ended $?\""
    );
    let mut terminal = Terminal::start(&server.url(), "bash", &["-c", &script]);
    terminal.until_it_shows("ready");
    terminal.type_in("\x1a");
    terminal.until("both are stopped", |seen| seen.contains("stopped 14"));
    terminal.type_in("hi\n");
    terminal.until_it_shows("got hi");
    terminal.until_it_shows("ended 0");
    assert_eq!(terminal.ended().code(), Some(0));
}
