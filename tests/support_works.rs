//! The helpers of the integration tests do what they say. A fault that does not strike would let
//! every test that relies on it pass.

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};
use support::resp::{Client, Framer, Piece, is_timeout};
use support::{
    BOUND, ChildProcess, Connections, Direction, FakeServer, Proxy, RedisCluster, RedisServer, Reply,
    Watched, child, eventually, eventually_async, eventually_blocking,
};

/// Long enough for a reply on loopback to come if it were on its way. Only ever waited out in vain,
/// so a slow machine makes a test that uses it weaker, never red.
const QUIET: Duration = Duration::from_millis(100);

fn connect(port: u16) -> Client {
    Client::connect(port, BOUND).expect("something listens there")
}

fn refuses(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err()
}

fn ok() -> Reply {
    Reply::Simple("OK".to_owned())
}

fn bulk(text: &str) -> Reply {
    Reply::Bulk(text.to_owned())
}

// --- the server ---

#[test]
fn server_answers_and_counts_commands() {
    let server = RedisServer::start();
    assert_eq!(server.cli(&["SET", "b", "1"]), "OK");
    assert_eq!(server.cli(&["SET", "a", "2"]), "OK");
    assert_eq!(server.keys(), ["a", "b"]);
    assert_eq!(server.reply(&["GET", "a"]), bulk("2"));
    assert_eq!(server.reply(&["GET", "nothing"]), Reply::Nil);
    assert!(server.reply(&["NO-SUCH-COMMAND"]).is_error());
    assert_eq!(server.command_count("set"), 2);
    assert_eq!(server.command_count("evalsha"), 0);
    server.reset_stats();
    assert_eq!(server.command_count("set"), 0);
    let url = format!("redis://127.0.0.1:{}", server.port());
    assert_eq!(server.url(), url);
}

#[test]
fn two_servers_are_strangers() {
    let (one, other) = (RedisServer::start(), RedisServer::start());
    one.cli(&["SET", "key", "1"]);
    assert!(other.keys().is_empty());
    assert_ne!(one.pid(), other.pid());
}

#[test]
fn server_takes_further_arguments_and_knows_its_password() {
    let server = RedisServer::start_with(&["--requirepass", "secret", "--maxclients", "77"]);
    assert_eq!(server.cli(&["CONFIG", "GET", "maxclients"]), "maxclients\n77");
    let stranger = connect(server.port()).command(&["GET", "key"]);
    assert!(stranger.expect("it answers").text().starts_with("NOAUTH"));
}

#[test]
fn server_that_cannot_start_shows_its_log() {
    let start = || RedisServer::start_with(&["--maxmemory", "nonsense"]);
    let panic = std::panic::catch_unwind(|| drop(start())).expect_err("it cannot start");
    let message = panic.downcast::<String>().expect("a formatted message");
    assert!(message.contains("argument must be a memory value"), "{message}");
}

#[test]
fn restart_empty_keeps_the_port_and_loses_the_data() {
    for server in [RedisServer::start(), RedisServer::start_persistent()] {
        let (port, pid) = (server.port(), server.pid());
        server.cli(&["SET", "key", "1"]);
        server.restart_empty();
        assert_eq!(server.port(), port);
        assert_ne!(server.pid(), pid);
        assert!(server.keys().is_empty());
    }
}

#[test]
fn restart_with_data_keeps_what_was_answered() {
    let server = RedisServer::start_persistent();
    server.cli(&["SET", "key", "1"]);
    server.restart_with_data();
    assert_eq!(server.keys(), ["key"]);
    server.kill();
    assert!(refuses(server.port()));
    server.restart_with_data();
    assert_eq!(server.keys(), ["key"]);
}

#[test]
fn stopped_server_is_silent_until_continued() {
    let server = RedisServer::start();
    let mut client = connect(server.port());
    assert_eq!(client.command(&["SET", "key", "1"]).ok(), Some(ok()));
    server.stop();
    client.send(&["GET", "key"]).expect("the kernel takes it");
    assert_eq!(client.hears_within(QUIET).expect("still open"), None);
    server.cont();
    assert_eq!(client.receive().ok(), Some(bulk("1")));
}

#[test]
fn server_dies_on_drop_even_when_stopped() {
    for stopped in [false, true] {
        let server = RedisServer::start();
        let port = server.port();
        if stopped {
            server.stop();
        }
        drop(server);
        assert!(refuses(port), "stopped: {stopped}");
    }
}

#[test]
fn server_dies_when_its_test_panics() {
    let server = RedisServer::start();
    let port = server.port();
    let test = std::thread::spawn(move || {
        let _owned = server;
        std::panic::resume_unwind(Box::new("as a failed assertion would"));
    });
    assert!(test.join().is_err());
    assert!(refuses(port));
}

#[test]
fn server_outlives_the_thread_that_started_it() {
    // As one that tests share does: the kernel counts the thread that forked as its parent.
    let server = std::thread::spawn(RedisServer::start).join().expect("it starts");
    assert_eq!(server.cli(&["PING"]), "PONG");
}

#[test]
fn child_with_a_server() {
    if !child::is_child() {
        return;
    }
    let server = RedisServer::start();
    server.stop();
    child::say(&server.port().to_string());
    child::hear();
}

#[test]
fn server_dies_with_a_killed_test_binary() {
    if !child::dies_with_us() {
        eprintln!("nothing to see: this system has no setpriv");
        return;
    }
    // It cannot clean up after itself: the server's directory goes with this one.
    let leftovers = tempfile::tempdir().expect("the system has a directory for temporary files");
    let path = leftovers.path().to_str().expect("a path in UTF-8");
    let mut owner = ChildProcess::spawn("child_with_a_server", &[("TMPDIR", path)]);
    let port = owner.next().parse().expect("it says a port");
    assert!(!refuses(port), "the kernel accepts for a stopped server");
    owner.kill();
    eventually_blocking(BOUND, "the server died too", || refuses(port));
}

// --- children ---

#[test]
fn child_that_echoes() {
    if !child::is_child() {
        return;
    }
    println!("noise that is nobody's line");
    child::say(&std::env::var("GREETING").unwrap_or_default());
    while let Some(line) = child::hear() {
        child::say(&line);
    }
}

#[test]
fn child_speaks_stops_goes_on_and_ends() {
    let mut child = ChildProcess::spawn("child_that_echoes", &[("GREETING", "hello")]);
    child.expect("hello");
    child.tell("one");
    child.expect("one");
    child.stop();
    child.tell("two");
    assert_eq!(child.line(QUIET), None, "it stands still");
    child.cont();
    child.expect("two");
    child.hang_up();
    assert!(child.wait(BOUND).success());
    assert_eq!(child.line(BOUND), None);
}

#[test]
fn killed_child_is_reaped() {
    let mut child = ChildProcess::spawn("child_that_echoes", &[]);
    child.expect("");
    assert!(!child.kill().success());
    child.tell("nobody hears this");
    assert_eq!(child.line(BOUND), None);
}

#[test]
#[should_panic(expected = "it ended")]
fn child_that_does_not_exist_is_a_failure() {
    ChildProcess::spawn("no_such_test", &[]).next();
}

// --- the proxy ---

fn proxied() -> (RedisServer, Proxy) {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    (server, proxy)
}

#[test]
fn proxy_carries_what_it_is_given() {
    let (server, proxy) = proxied();
    let mut client = connect(proxy.port());
    let large = "x".repeat(1 << 20);
    assert_eq!(client.command(&["SET", "key", &large]).ok(), Some(ok()));
    assert_eq!(client.command(&["GET", "key"]).ok(), Some(bulk(&large)));
    assert_eq!(server.keys(), ["key"]);
    let one = Connections { live: 1, accepted: 1 };
    assert_eq!(proxy.connections(), one);
    drop(client);
    eventually_blocking(BOUND, "the connection ended", || proxy.connections().live == 0);
}

#[test]
fn cut_closes_what_is_there_and_welcomes_what_comes() {
    let (_server, proxy) = proxied();
    let mut clients = [connect(proxy.port()), connect(proxy.port())];
    // The second is perhaps not accepted yet: it counts as there.
    assert!(clients[0].command(&["PING"]).is_ok());
    proxy.cut();
    assert_eq!(proxy.connections().live, 0);
    for client in &mut clients {
        let error = client.command(&["PING"]).expect_err("it was cut");
        assert!(!is_timeout(&error), "{error}");
    }
    assert!(connect(proxy.port()).command(&["PING"]).is_ok());
}

#[test]
fn refuse_turns_away_only_new_connections() {
    let (_server, proxy) = proxied();
    let mut old = connect(proxy.port());
    assert!(old.command(&["PING"]).is_ok());
    proxy.refuse(true);
    assert!(connect(proxy.port()).command(&["PING"]).is_err());
    assert!(old.command(&["PING"]).is_ok());
    proxy.refuse(false);
    assert!(connect(proxy.port()).command(&["PING"]).is_ok());
    assert_eq!(proxy.connections().accepted, 3);
}

#[test]
fn lost_reply_was_executed_and_cuts_its_connection_only() {
    let (server, proxy) = proxied();
    let (mut hit, mut spared) = (connect(proxy.port()), connect(proxy.port()));
    assert!(hit.command(&["PING"]).is_ok());
    assert!(spared.command(&["PING"]).is_ok());

    proxy.drop_next_reply_then_cut();
    let error = hit.command(&["INCR", "key"]).expect_err("the reply is lost");
    assert!(!is_timeout(&error), "{error}");
    assert_eq!(server.cli(&["GET", "key"]), "1");
    assert_eq!(proxy.lost_replies(), 1);
    // Once: the next one is answered.
    assert_eq!(spared.command(&["INCR", "key"]).ok(), Some(Reply::Integer(2)));
    eventually_blocking(BOUND, "one connection is left", || proxy.connections().live == 1);
}

#[test]
fn lost_reply_is_the_named_request_s_among_pipelined_ones_and_pushes() {
    let (server, proxy) = proxied();
    let mut client = connect(proxy.port());
    client.command(&["HELLO", "3"]).expect("it is new enough");
    // Its own messages come between the replies, and answer nothing.
    let subscribed = client.command(&["SUBSCRIBE", "channel"]);
    assert!(subscribed.is_ok_and(|reply| reply.is_push()));

    proxy.drop_reply_then_cut(|words| words[0] == "INCR");
    client.send(&["SET", "before", "1"]).expect("open");
    client.send(&["PUBLISH", "channel", "news"]).expect("open");
    client.send(&["INCR", "key"]).expect("open");
    client.send(&["SET", "after", "1"]).expect("open");

    let heard: Vec<Reply> = std::iter::from_fn(|| client.receive().ok()).collect();
    let replies: Vec<&Reply> = heard.iter().filter(|reply| !reply.is_push()).collect();
    assert_eq!(replies, [&ok(), &Reply::Integer(1)]);
    assert_eq!(heard.iter().filter(|reply| reply.is_push()).count(), 1);
    assert_eq!(server.cli(&["GET", "key"]), "1");
}

#[test]
fn silence_holds_bytes_and_heal_delivers_them() {
    for direction in [Direction::ToServer, Direction::ToClient, Direction::Both] {
        let (server, proxy) = proxied();
        let mut client = connect(proxy.port());
        assert!(client.command(&["PING"]).is_ok());
        proxy.silence(direction);
        client.send(&["INCR", "key"]).expect("open");
        client.send(&["INCR", "key"]).expect("open");
        if direction == Direction::ToClient {
            eventually_blocking(BOUND, "the server executed both", || {
                server.cli(&["GET", "key"]) == "2"
            });
        }
        assert_eq!(client.hears_within(QUIET).expect("open"), None);
        if direction != Direction::ToClient {
            assert!(server.keys().is_empty(), "the requests are held");
        }
        proxy.heal();
        assert_eq!(client.receive().ok(), Some(Reply::Integer(1)));
        assert_eq!(client.receive().ok(), Some(Reply::Integer(2)));
        assert_eq!(proxy.connections().accepted, 1);
    }
}

#[test]
fn request_arrives_after_its_sender_left() {
    let (server, proxy) = proxied();
    let mut client = connect(proxy.port());
    assert!(client.command(&["PING"]).is_ok());
    proxy.silence(Direction::ToServer);
    client.send(&["SET", "late", "1"]).expect("open");
    drop(client);
    server.cli(&["SET", "early", "1"]);
    assert_eq!(server.keys(), ["early"]);
    // The proxy may not have read it yet; then it reads it before the end of the stream.
    proxy.heal();
    eventually_blocking(BOUND, "the late request arrived", || {
        server.keys() == ["early", "late"]
    });
    eventually_blocking(BOUND, "then its connection ended", || {
        proxy.connections().live == 0
    });
}

#[test]
fn connections_can_be_made_and_cut_in_silence() {
    let (_server, proxy) = proxied();
    proxy.silence(Direction::Both);
    let mut client = connect(proxy.port());
    client.send(&["PING"]).expect("open");
    assert_eq!(client.hears_within(QUIET).expect("open"), None);
    proxy.cut();
    let error = client.receive().expect_err("it was cut");
    assert!(!is_timeout(&error), "{error}");
}

#[test]
fn dropped_replies_never_come_and_the_gap_ends_the_connection() {
    let (server, proxy) = proxied();
    let (mut gapped, mut idle) = (connect(proxy.port()), connect(proxy.port()));
    assert!(idle.command(&["PING"]).is_ok());
    proxy.drop_replies(true);
    gapped.send(&["INCR", "key"]).expect("open");
    assert_eq!(gapped.hears_within(QUIET).expect("open"), None);
    assert_eq!(server.cli(&["GET", "key"]), "1");
    proxy.drop_replies(false);
    assert!(gapped.command(&["PING"]).is_err());
    assert!(idle.command(&["PING"]).is_ok(), "it lost nothing");
}

#[test]
fn delay_counts_both_ways_and_heal_ends_it() {
    let (_server, proxy) = proxied();
    let mut client = connect(proxy.port());
    assert!(client.command(&["PING"]).is_ok());
    let delay = Duration::from_millis(60);
    proxy.delay(delay);
    let sent = Instant::now();
    assert!(client.command(&["PING"]).is_ok());
    assert!(sent.elapsed() >= 2 * delay, "{:?}", sent.elapsed());

    proxy.delay(Duration::from_secs(3600));
    client.send(&["PING"]).expect("open");
    assert_eq!(client.hears_within(QUIET).expect("open"), None);
    proxy.heal();
    assert!(client.receive().is_ok());
}

#[test]
fn proxy_closes_when_its_server_dies() {
    let (server, proxy) = proxied();
    let mut client = connect(proxy.port());
    assert!(client.command(&["PING"]).is_ok());
    server.kill();
    let error = client.command(&["PING"]).expect_err("the server is gone");
    assert!(!is_timeout(&error), "{error}");
    assert!(connect(proxy.port()).command(&["PING"]).is_err());
    server.restart_empty();
    assert!(connect(proxy.port()).command(&["PING"]).is_ok());
}

#[tokio::test]
async fn proxy_works_under_a_test_that_blocks_its_only_thread() {
    let (_server, proxy) = proxied();
    let mut client = connect(proxy.port());
    assert!(client.command(&["PING"]).is_ok());
    proxy.cut();
    assert!(client.command(&["PING"]).is_err());
}

#[tokio::test]
async fn eventually_waits_for_what_comes_later() {
    let (server, proxy) = proxied();
    let mut client = connect(proxy.port());
    proxy.delay(Duration::from_millis(20));
    client.send(&["SET", "key", "1"]).expect("open");
    eventually(BOUND, "it arrived", || server.keys() == ["key"]).await;
    eventually_async(BOUND, "it still is", async || server.keys() == ["key"]).await;
}

#[tokio::test]
#[should_panic(expected = "in vain: pigs fly")]
async fn eventually_ends_at_its_bound() {
    eventually(Duration::from_millis(20), "pigs fly", || false).await;
}

#[test]
fn idle_connections_are_dropped_and_busy_ones_stay() {
    let (_server, proxy) = proxied();
    let (mut idle, mut busy) = (connect(proxy.port()), connect(proxy.port()));
    assert!(idle.command(&["PING"]).is_ok() && busy.command(&["PING"]).is_ok());
    proxy.drop_idle(Some(Duration::from_millis(400)));
    eventually_blocking(BOUND, "one is left", || {
        assert!(busy.command(&["PING"]).is_ok());
        proxy.connections().live == 1
    });
    assert!(idle.command(&["PING"]).is_err());
    proxy.drop_idle(None);
    assert!(busy.command(&["PING"]).is_ok());
}

// --- Sentinels ---

#[test]
fn sentinels_can_fail_over_from_the_start_and_leave_no_process_behind() {
    let watched = Watched::start_secured();
    let pids = watched.pids();
    assert_eq!(pids.len(), 6);
    let old = watched.primary();
    watched.fail_over();
    watched.replaced(old);
    drop(watched);
    for pid in pids {
        assert!(
            !std::path::Path::new(&format!("/proc/{pid}")).exists(),
            "{pid} lives on"
        );
    }
}

// --- servers that are not Redis ---

#[test]
fn fake_server_answers_from_its_script() {
    let fake = FakeServer::replying(|words| match words[0].as_str() {
        "INFO" => b"$20\r\nredis_version:2.8.0\r\n\r\n".to_vec(),
        "SILENCE" => Vec::new(),
        _ => b"-ERR unknown command\r\n".to_vec(),
    });
    let mut client = connect(fake.port());
    assert!(client.command(&["PING"]).is_ok_and(|reply| reply.is_error()));
    client.send(&["SILENCE"]).expect("open");
    assert_eq!(client.hears_within(QUIET).expect("open"), None);
    assert!(fake.requests().contains(&vec!["SILENCE".to_owned()]));
    assert_eq!(fake.connections(), 1);
}

#[test]
fn fake_server_answers_some_in_place_of_another() {
    let server = RedisServer::start();
    let fake = FakeServer::before(server.port(), |words| {
        (words[0] == "GET").then(|| b"$5\r\nnever\r\n".to_vec())
    });
    let mut client = connect(fake.port());
    assert_eq!(client.command(&["SET", "key", "a\r\nb"]).expect("open"), ok());
    assert_eq!(client.command(&["GET", "key"]).expect("open"), bulk("never"));
    assert_eq!(server.reply(&["GET", "key"]), bulk("a\r\nb"));
    assert_eq!(server.command_count("get"), 1);
}

#[test]
fn fake_servers_talk_nonsense_keep_silent_and_close() {
    let garbage = FakeServer::garbage(*b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, garbage.port())).expect("listens");
    let mut said = [0; 28];
    stream.read_exact(&mut said).expect("it speaks first");
    assert_eq!(&said, b"HTTP/1.1 400 Bad Request\r\n\r\n");

    let silent = FakeServer::silent();
    let mut client = connect(silent.port());
    client.send(&["PING"]).expect("open");
    assert_eq!(client.hears_within(QUIET).expect("open"), None);
    let port = silent.port();
    drop(silent);
    // Another test's thread may be between fork and exec, with a copy of the socket.
    eventually_blocking(BOUND, "its port refuses", || refuses(port));

    let closing = FakeServer::closing();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, closing.port())).expect("listens");
    let _ = stream.write_all(b"PING\r\n");
    assert!(matches!(stream.read(&mut said), Ok(0) | Err(_)));
}

// --- RESP ---

#[test]
fn framer_cuts_at_values_however_the_bytes_come() {
    let stream = b"+OK\r\n-ERR no\r\n:-7\r\n$4\r\na\r\nb\r\n$-1\r\n_\r\n*2\r\n$1\r\nx\r\n*0\r\n\
        >2\r\n$7\r\nmessage\r\n:1\r\n%1\r\n+k\r\n#t\r\n,1.5\r\n|1\r\n+ttl\r\n:3\r\n$1\r\ny\r\n=5\r\ntxt:z\r\n";
    let simple = |text: &str| Reply::Simple(text.to_owned());
    let expected = vec![
        ok(),
        Reply::Error("ERR no".to_owned()),
        Reply::Integer(-7),
        bulk("a\r\nb"),
        Reply::Nil,
        Reply::Nil,
        Reply::Array(vec![bulk("x"), Reply::Array(Vec::new())]),
        Reply::Push(vec![bulk("message"), Reply::Integer(1)]),
        Reply::Array(vec![simple("k"), simple("t")]),
        simple("1.5"),
        bulk("y"),
        bulk("z"),
    ];
    for size in [1, 2, 3, 7, stream.len()] {
        let mut framer = Framer::default();
        let mut values = Vec::new();
        let mut bytes = Vec::new();
        for piece in stream.chunks(size).flat_map(|chunk| framer.feed(chunk)) {
            let Piece::Value(value, raw) = piece else {
                panic!("not RESP: {piece:?}");
            };
            values.push(value);
            bytes.extend(raw);
        }
        assert_eq!(values, expected);
        assert_eq!(bytes, stream);
        assert!(framer.rest().is_empty());
    }
}

#[test]
fn framer_hands_through_what_is_not_resp() {
    let mut framer = Framer::default();
    let pieces = framer.feed(b"+OK\r\nHTTP/1.1 400\r\n");
    assert!(
        matches!(&pieces[..], [Piece::Value(..), Piece::Raw(raw)] if raw == b"HTTP/1.1 400\r\n"),
        "{pieces:?}"
    );
    assert!(matches!(&framer.feed(b"+OK\r\n")[..], [Piece::Raw(_)]));
}

// --- the cluster ---

#[test]
fn cluster_is_whole_and_moves_slots() {
    let began = Instant::now();
    let cluster = RedisCluster::start_with(3, 1, Duration::from_secs(30), &[]);
    eprintln!("a cluster of six nodes took {:?}", began.elapsed());
    assert_eq!(cluster.nodes().len(), 6);
    let name = cluster.name_on(1, "moved");
    let key = format!("relatch:1:{{{name}}}");
    let slot = cluster.slot_of(&key);
    assert_eq!(cluster.master_of(slot, 5), Some(1), "a replica knows it as well");
    cluster.node(1).cli(&["SET", &key, "1"]);

    cluster.begin_move(slot, 1, 2);
    let other = format!("{key}:other");
    let asked = cluster.node(1).reply(&["GET", &other]).text();
    assert!(asked.starts_with("ASK"), "{asked}");
    assert_eq!(cluster.move_keys(slot, 1, 2, 10), 1);
    cluster.end_move(slot, 2);
    assert_eq!(cluster.node(2).cli(&["GET", &key]), "1");
    let moved = cluster.node(1).reply(&["GET", &key]).text();
    assert!(moved.starts_with("MOVED"), "{moved}");
    cluster.settled();
    assert_eq!(cluster.master_of(slot, 0), Some(2));
    cluster.flush();
    assert!(cluster.nodes().iter().all(|node| node.keys().is_empty()));
}
