//! The link against real servers, and against things that only look like one.
//!
//! Nothing here sleeps and hopes: each test waits for what it claims, for longer than any machine should need.

use std::future::Future;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

mod rights;

use super::*;
use crate::protocol::{
    Acquire, Acquired, Mode, Name, Operation, OwnerId, Push, Release, Released, Reply, RequestId,
};

const AGES: Duration = Duration::from_secs(30);

/// A redis-server of the test's own, killed when it is dropped.
struct Server {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
    args: Vec<String>,
}

impl Server {
    fn start(args: &[&str]) -> Self {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let dir = tempfile::tempdir().unwrap();
        loop {
            let port = free_port();
            if let Some(child) = launch(port, dir.path(), &args) {
                return Self {
                    child,
                    port,
                    dir,
                    args,
                };
            }
        }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start_again(&mut self) {
        let begun = Instant::now();
        while begun.elapsed() < AGES {
            if let Some(child) = launch(self.port, self.dir.path(), &self.args) {
                self.child = child;
                return;
            }
        }
        panic!("the server does not start again");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn admin(&self) -> ::redis::Connection {
        ::redis::Client::open(self.url())
            .unwrap()
            .get_connection()
            .unwrap()
    }

    fn ask<T: ::redis::FromRedisValue>(&self, words: &[&str]) -> T {
        ask(&mut self.admin(), words)
    }

    /// Lines of `CLIENT LIST`, without who asks.
    fn connections(&self) -> Vec<String> {
        let mut admin = self.admin();
        let me: u64 = ask(&mut admin, &["CLIENT", "ID"]);
        let list: String = ask(&mut admin, &["CLIENT", "LIST"]);
        list.lines()
            .filter(|line| !line.starts_with(&format!("id={me} ")))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ask<T: ::redis::FromRedisValue>(connection: &mut ::redis::Connection, words: &[&str]) -> T {
    let mut command = Cmd::new();
    for word in words {
        command.arg(word);
    }
    command.query(connection).unwrap()
}

fn free_port() -> u16 {
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// `None` when somebody else took the port.
fn launch(port: u16, dir: &std::path::Path, args: &[String]) -> Option<Child> {
    // Written once the server listens, and by no other that happens to listen there.
    let pid = dir.join("pid");
    let _ = std::fs::remove_file(&pid);
    let mut child = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--port", &port.to_string(), "--dir"])
        .arg(dir)
        .arg("--pidfile")
        .arg(&pid)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed");
    let begun = Instant::now();
    loop {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        if pid.exists() {
            return Some(child);
        }
        if begun.elapsed() > AGES {
            let _ = child.kill();
            let _ = child.wait();
            panic!("redis-server does not come up");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A backend whose supervisor runs until this is dropped.
struct Driven {
    backend: Arc<RedisBackend>,
    task: JoinHandle<()>,
    pushes: Arc<Mutex<Vec<Push>>>,
}

impl Drop for Driven {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::ops::Deref for Driven {
    type Target = RedisBackend;
    fn deref(&self) -> &RedisBackend {
        &self.backend
    }
}

fn quick(url: &str) -> RedisOptions {
    RedisOptions {
        response_timeout: Duration::from_secs(1),
        idle_ping: Duration::from_millis(200),
        ..RedisOptions::new(url)
    }
}

fn drive(backend: &Arc<RedisBackend>) -> JoinHandle<()> {
    let backend = backend.clone();
    tokio::spawn(async move { backend.drive().await })
}

fn driven(options: RedisOptions) -> Driven {
    driven_as(ClientId::random(), options)
}

fn driven_as(client: ClientId, options: RedisOptions) -> Driven {
    let tuning = Tuning {
        claim_ms: 5_000,
        mark_ms: 60_000,
        retention_ms: 60_000,
    };
    let pushes = Arc::new(Mutex::new(Vec::new()));
    let heard = pushes.clone();
    let sink: Sink = Box::new(move |push, _| heard.lock().push(push));
    let backend = RedisBackend::new(options, client, tuning, Clock::system(), sink).unwrap();
    let task = drive(&backend);
    Driven {
        backend,
        task,
        pushes,
    }
}

async fn linked(options: RedisOptions) -> Driven {
    let driven = driven(options);
    driven.ready(AGES).await.unwrap();
    driven
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(AGES, what).await.expect("in time")
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < AGES, "{what}: never");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn generation_after(backend: &RedisBackend, last: u64) -> u64 {
    *soon(backend.generation().wait_for(|now| *now > last))
        .await
        .unwrap()
}

fn look(name: &str) -> Call {
    Call {
        name: Name::new(name).unwrap(),
        operation: Operation::Inspect(1),
    }
}

/// A call that changes nothing, repeated while its outcome is unknown.
async fn works(backend: &RedisBackend) {
    soon(async {
        loop {
            match backend.call(&look("x")).await {
                Ok(heard) => return assert!(matches!(heard.answer.reply, Reply::Inspect(_))),
                Err(Failure::Unknown(_)) => {}
                Err(Failure::No(error)) => panic!("{error}"),
            }
        }
    })
    .await;
}

async fn first_error(url: &str) -> Error {
    let options = RedisOptions {
        connect_timeout: Duration::from_secs(2),
        ..quick(url)
    };
    let driven = driven(options);
    let error = driven.ready(AGES).await.expect_err("no link");
    assert!(driven.trouble().is_some());
    assert_eq!(*driven.generation().borrow(), 0);
    error
}

#[tokio::test]
async fn a_link_comes_up_and_carries_calls() {
    let server = Server::start(&[]);
    let backend = driven(quick(&server.url()));
    assert_eq!(*backend.generation().borrow(), 0);
    backend.ready(AGES).await.unwrap();
    assert_eq!(*backend.generation().borrow(), 1);
    assert!(backend.trouble().is_none());
    let before = backend.clock.now();
    let heard = soon(backend.call(&look("x"))).await.unwrap();
    assert!(heard.sent >= before);
    assert_eq!(server.connections().len(), 2);
}

#[tokio::test]
async fn a_call_made_before_there_is_a_link_waits_for_it() {
    let mut server = Server::start(&[]);
    server.stop();
    let backend = driven(quick(&server.url()));
    let error = backend.ready(AGES).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert!(
        error.to_string().contains("is a server running there?"),
        "{error}"
    );
    let inner = backend.backend.clone();
    let call = tokio::spawn(async move { inner.call(&look("x")).await });
    server.start_again();
    soon(call).await.unwrap().unwrap();
    assert!(backend.trouble().is_none());
}

#[tokio::test]
async fn losing_either_connection_makes_a_new_generation_of_two() {
    let server = Server::start(&[]);
    let backend = linked(quick(&server.url())).await;
    let mut generation = 1;
    for kind in ["normal", "pubsub", "pubsub", "normal", "normal"] {
        let killed: u64 = server.ask(&["CLIENT", "KILL", "TYPE", kind]);
        assert_eq!(killed, 1, "{kind}");
        generation = generation_after(&backend, generation).await;
        works(&backend).await;
        until("two connections", || server.connections().len() == 2).await;
    }
    let kinds = server.connections();
    assert_eq!(
        kinds.iter().filter(|line| line.contains(" sub=1 ")).count(),
        1,
        "{kinds:?}"
    );
}

#[tokio::test]
async fn a_restarted_server_is_linked_again() {
    let mut server = Server::start(&[]);
    let backend = linked(quick(&server.url())).await;
    server.stop();
    until("trouble", || backend.trouble().is_some()).await;
    assert!(backend.trouble().unwrap().is_unreachable());
    server.start_again();
    generation_after(&backend, 1).await;
    works(&backend).await;
    assert_eq!(server.connections().len(), 2);
}

#[tokio::test]
async fn a_server_that_stands_still_is_noticed_and_taken_back() {
    let server = Server::start(&[]);
    let backend = linked(quick(&server.url())).await;
    server.signal(Signal::STOP);
    let begun = Instant::now();
    until("trouble", || backend.trouble().is_some()).await;
    // idle_ping + response_timeout, and what a busy machine needs.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(backend.trouble().unwrap().is_unreachable());
    server.signal(Signal::CONT);
    generation_after(&backend, 1).await;
    works(&backend).await;
    until("two connections", || server.connections().len() == 2).await;
}

#[tokio::test]
async fn a_lease_is_counted_from_before_the_call_was_sent() {
    let server = Server::start(&[]);
    let backend = linked(RedisOptions::new(server.url())).await;
    works(&backend).await;
    server.signal(Signal::STOP);
    let call = look("x");
    let mut called = backend.call(&call);
    assert!(futures_util::poll!(&mut called).is_pending());
    // It is on its way, and can't have been answered yet.
    let before_the_answer = Clock::system().now();
    server.signal(Signal::CONT);
    let heard = soon(called).await.expect("an answer");
    assert!(heard.sent <= before_the_answer);
}

#[tokio::test]
async fn an_unanswered_call_is_unknown_and_takes_the_link_down() {
    let server = Server::start(&[]);
    let options = RedisOptions {
        idle_ping: AGES * 10,
        ..quick(&server.url())
    };
    let backend = linked(options).await;
    server.signal(Signal::STOP);
    let outcome = soon(backend.call(&look("x"))).await;
    let Err(Failure::Unknown(error)) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(
        error.is_unreachable() && error.to_string().contains("1s"),
        "{error}"
    );
    server.signal(Signal::CONT);
    generation_after(&backend, 1).await;
    works(&backend).await;
}

#[tokio::test]
async fn a_script_that_was_flushed_is_sent_again() {
    let server = Server::start(&[]);
    let backend = linked(quick(&server.url())).await;
    let _: () = server.ask(&["CONFIG", "RESETSTAT"]);
    for _ in 0..3 {
        soon(backend.call(&look("x"))).await.unwrap();
        let _: () = server.ask(&["SCRIPT", "FLUSH"]);
        soon(backend.call(&look("x"))).await.unwrap();
        soon(backend.call(&look("x"))).await.unwrap();
    }
    let stats: String = server.ask(&["INFO", "commandstats"]);
    // Loaded ahead: only the flushes cost a source. Redis 6.2 counts them with the flushes.
    let loads = ["cmdstat_script|load:calls=3,", "cmdstat_script:calls=6,"];
    assert!(loads.iter().any(|loads| stats.contains(loads)), "{stats}");
    assert!(!stats.contains("cmdstat_eval:"), "{stats}");
    assert_eq!(*backend.generation().borrow(), 1);
}

#[tokio::test]
async fn dropping_the_supervisor_closes_both_connections_and_another_links_anew() {
    let server = Server::start(&[]);
    let mut backend = linked(quick(&server.url())).await;
    backend.task.abort();
    until("no connections", || server.connections().is_empty()).await;
    assert!(backend.trouble().unwrap().is_unreachable());
    let inner = backend.backend.clone();
    let waiting = tokio::spawn(async move { inner.call(&look("x")).await });
    backend.task = drive(&backend.backend);
    soon(waiting).await.unwrap().unwrap();
    assert_eq!(*backend.generation().borrow(), 2);
    assert_eq!(server.connections().len(), 2);
}

#[tokio::test]
async fn a_runtime_that_shuts_down_takes_the_link_with_it_and_another_takes_over() {
    let server = Server::start(&[]);
    let mut backend = linked(quick(&server.url())).await;
    backend.task.abort();
    for generation in 2..4 {
        let other = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let inner = backend.backend.clone();
        other.spawn(async move { inner.drive().await });
        assert_eq!(generation_after(&backend, generation - 1).await, generation);
        works(&backend).await;
        other.shutdown_background();
        until("no connections", || server.connections().is_empty()).await;
    }
    backend.task = drive(&backend.backend);
    generation_after(&backend, 3).await;
    works(&backend).await;
}

#[tokio::test]
async fn a_second_supervisor_waits_for_the_first() {
    let server = Server::start(&[]);
    let backend = linked(quick(&server.url())).await;
    let second = drive(&backend.backend);
    works(&backend).await;
    assert_eq!(*backend.generation().borrow(), 1);
    backend.task.abort();
    generation_after(&backend, 1).await;
    second.abort();
}

#[tokio::test]
async fn a_closed_link_stays_closed() {
    let server = Server::start(&[]);
    let mut backend = linked(quick(&server.url())).await;
    works(&backend).await;
    soon(backend.close()).await;
    soon(&mut backend.task).await.unwrap();
    until("no connections", || server.connections().is_empty()).await;
    let outcome = soon(backend.call(&look("x"))).await;
    assert!(
        matches!(&outcome, Err(Failure::No(error)) if error.is_closed()),
        "{outcome:?}"
    );
    assert!(backend.ready(AGES).await.unwrap_err().is_closed());
    assert!(backend.trouble().unwrap().is_closed());
    soon(drive(&backend.backend)).await.unwrap();
}

#[tokio::test]
async fn closing_ends_calls_that_wait_for_a_link() {
    let backend = driven(quick(&format!("redis://127.0.0.1:{}", free_port())));
    let inner = backend.backend.clone();
    let call = tokio::spawn(async move { inner.call(&look("x")).await });
    backend.ready(AGES).await.unwrap_err();
    soon(backend.close()).await;
    let outcome = soon(call).await.unwrap();
    assert!(
        matches!(&outcome, Err(Failure::No(error)) if error.is_closed()),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_grant_reaches_the_sink_of_the_client_that_waits() {
    let server = Server::start(&[]);
    let (holder, waiter) = (ClientId::random(), ClientId::random());
    let (holds, waits) = (
        driven_as(holder, quick(&server.url())),
        driven_as(waiter, quick(&server.url())),
    );
    let ask = |client, owner| Call {
        name: Name::new("x").unwrap(),
        operation: Operation::Acquire(Acquire {
            request: RequestId { client, number: 1 },
            owner,
            mode: Mode::Write,
            wait: true,
            first: false,
            lease_ms: 30_000,
            ticket: 0,
            upgrade_of: None,
            label: String::new(),
        }),
    };
    let owner = OwnerId::random();
    let held = soon(holds.call(&ask(holder, owner))).await.unwrap();
    let Reply::Acquire(Acquired::Granted(grant)) = held.answer.reply else {
        panic!("{held:?}")
    };
    let queued = soon(waits.call(&ask(waiter, OwnerId::random()))).await.unwrap();
    assert!(
        matches!(queued.answer.reply, Reply::Acquire(Acquired::Queued { .. })),
        "{queued:?}"
    );
    let release = Call {
        name: Name::new("x").unwrap(),
        operation: Operation::Release(Release {
            request: RequestId {
                client: holder,
                number: 1,
            },
            owner,
            fence: grant.fence,
            again: false,
            mark: false,
        }),
    };
    let released = soon(holds.call(&release)).await.unwrap();
    assert_eq!(released.answer.reply, Reply::Release(Released::Released));
    until("a grant", || !waits.pushes.lock().is_empty()).await;
    let pushes = waits.pushes.lock().clone();
    let [Push::Granted { grants, .. }] = &pushes[..] else {
        panic!("{pushes:?}")
    };
    assert_eq!(
        grants[0].0,
        RequestId {
            client: waiter,
            number: 1
        }
    );
    assert!(grants[0].1.fence > grant.fence);
    assert!(holds.pushes.lock().is_empty());
}

#[tokio::test]
async fn a_push_that_cannot_be_read_is_ignored() {
    let server = Server::start(&[]);
    let client = ClientId::random();
    let backend = driven_as(client, quick(&server.url()));
    backend.ready(AGES).await.unwrap();
    for payload in ["", "nonsense", "\u{0}\u{1}", "granted", &"9".repeat(100_000)] {
        let heard: u64 = server.ask(&["PUBLISH", &scripts::channel(client), payload]);
        assert_eq!(heard, 1);
    }
    works(&backend).await;
    assert_eq!(*backend.generation().borrow(), 1);
    assert!(backend.pushes.lock().is_empty());
}

#[tokio::test]
async fn clients_are_announced_for_a_time_and_told() {
    let server = Server::start(&[]);
    let (one, other) = (ClientId::random(), ClientId::random());
    let backend = driven_as(one, quick(&server.url()));
    let info = ClientInfo {
        host: "web-1".into(),
        pid: 4711,
        program: "im\nport".into(),
        version: "0.1.0".into(),
    };
    soon(backend.announce(Some(&info), 60_000)).await.unwrap();
    let left: i64 = server.ask(&["PTTL", &client_key(one)]);
    assert!((1..=60_000).contains(&left), "{left}");
    let _: () = server.ask(&["SADD", &client_key(other), "something else"]);

    let told = soon(backend.clients(&[other, one, ClientId::random()]))
        .await
        .unwrap();
    let expected = ClientInfo {
        program: "im port".into(),
        ..info
    };
    assert_eq!(told, [None, Some(expected), None]);
    assert!(soon(backend.clients(&[])).await.unwrap().is_empty());

    soon(backend.announce(None, 0)).await.unwrap();
    assert_eq!(soon(backend.clients(&[one])).await.unwrap(), [None]);
}

#[test]
fn what_clients_announce_is_read_leniently() {
    assert!(read_info(b"h\n1\np\nv").is_some());
    assert!(read_info(b"h\n1\np\nv\nmore\n").is_some());
    for text in ["", "h", "h\n1\np", "h\nx\np\nv", "\n\n\n"] {
        assert!(read_info(text.as_bytes()).is_none(), "{text:?}");
    }
    assert!(read_info(b"\xff\n1\np\nv").is_none());
}

#[tokio::test]
async fn a_key_that_holds_something_else_is_a_no_that_names_it() {
    let server = Server::start(&[]);
    let backend = linked(quick(&server.url())).await;
    let _: () = server.ask(&["SET", "relatch:1:{x}", "mine"]);
    let outcome = soon(backend.call(&look("x"))).await;
    let Err(Failure::No(error)) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(error.is_server(), "{error}");
    assert!(
        error
            .to_string()
            .contains("the key relatch:1:{x} holds something else"),
        "{error}"
    );
    assert_eq!(*backend.generation().borrow(), 1);
}

#[tokio::test]
async fn a_password_is_asked_for_checked_and_never_shown() {
    let server = Server::start(&["--requirepass", "s3cret"]);
    let at = format!("127.0.0.1:{}", server.port);

    let error = first_error(&format!("redis://{at}")).await;
    assert!(
        error.is_server() && error.to_string().contains("redis://[[user]:password@]host"),
        "{error}"
    );
    let error = first_error(&format!("redis://:wr0ng@{at}")).await;
    assert!(
        error.is_server() && error.to_string().contains("WRONGPASS"),
        "{error}"
    );
    assert!(!error.to_string().contains("wr0ng"), "{error}");
    let error = first_error(&format!("redis://nobody:s3cret@{at}")).await;
    assert!(
        error.is_server() && !error.to_string().contains("s3cret"),
        "{error}"
    );

    for right in [
        format!("redis://:s3cret@{at}"),
        format!("redis://default:s3cret@{at}/3"),
    ] {
        let backend = linked(quick(&right)).await;
        works(&backend).await;
        assert!(!format!("{:?} {:?}", backend.backend, quick(&right)).contains("s3cret"));
    }
}

#[tokio::test]
async fn a_database_that_is_not_there_is_told() {
    let server = Server::start(&["--databases", "4"]);
    let error = first_error(&format!("{}/4", server.url())).await;
    assert!(
        error.is_server() && error.to_string().contains("out of range"),
        "{error}"
    );
}

#[tokio::test]
async fn a_socket_works_as_an_address_does() {
    let mut server = Server::start(&["--unixsocket", "redis.sock"]);
    let url = format!("unix://{}/redis.sock?db=1", server.dir.path().display());
    let backend = linked(quick(&url)).await;
    works(&backend).await;
    server.stop();
    until("trouble", || backend.trouble().is_some()).await;
    server.start_again();
    generation_after(&backend, 1).await;
    works(&backend).await;
}

#[tokio::test]
async fn a_replica_is_not_linked_to_and_a_demoted_primary_no_longer() {
    let server = Server::start(&["--replicaof", "127.0.0.1 1"]);
    let backend = driven(quick(&server.url()));
    let error = backend.ready(AGES).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert!(
        error.to_string().contains("read-only replica") && error.to_string().contains("redis+sentinel://"),
        "{error}"
    );
    let _: () = server.ask(&["REPLICAOF", "NO", "ONE"]);
    generation_after(&backend, 0).await;
    works(&backend).await;
    // By hand: nobody closes our connections.
    let _: () = server.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    // DEL on a read-only replica is refused as any write is.
    let Err(Failure::Unknown(error)) = soon(backend.announce(None, 0)).await else {
        panic!("a write on a replica")
    };
    assert!(error.to_string().contains("read-only replica"), "{error}");
    until("trouble", || backend.trouble().is_some()).await;
    let _: () = server.ask(&["REPLICAOF", "NO", "ONE"]);
    generation_after(&backend, 1).await;
    works(&backend).await;
}

/// Takes connections on loopback and answers each command with whatever `answer` says; `None` closes the connection.
struct Fake {
    url: String,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    async fn start(answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let answer = Arc::new(answer);
        let task = tokio::spawn(async move {
            let mut talks = tokio::task::JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let answer = answer.clone();
                talks.spawn(async move {
                    let mut seen = Vec::new();
                    let mut buffer = [0; 4096];
                    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                        seen.extend_from_slice(&buffer[..n]);
                        while let Some(command) = take_command(&mut seen) {
                            let Some(bytes) = answer(&command) else { return };
                            if stream.write_all(&bytes).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self { url, task }
    }
}

/// The words of the next whole command.
fn take_command(seen: &mut Vec<u8>) -> Option<String> {
    let text = String::from_utf8_lossy(seen).into_owned();
    let mut lines = text.split_inclusive("\r\n");
    let count: usize = lines.next()?.strip_prefix('*')?.trim().parse().ok()?;
    let mut words = Vec::new();
    let mut taken = text.split_inclusive("\r\n").next()?.len();
    for _ in 0..count {
        let head = lines.next()?;
        let length: usize = head.strip_prefix('$')?.trim().parse().ok()?;
        let start = taken + head.len();
        words.push(text.get(start..start + length)?.to_owned());
        taken = start + length + 2;
        if taken > text.len() {
            return None;
        }
        lines = text[taken..].split_inclusive("\r\n");
    }
    seen.drain(..taken);
    Some(words.join(" "))
}

fn bulk(text: &str) -> Vec<u8> {
    format!("${}\r\n{text}\r\n", text.len()).into_bytes()
}

/// A script is run, and not the one that asks which rights are missing.
fn is_call(command: &str) -> bool {
    command.starts_with("EVALSHA") && !command.contains("relatch:1:probe:")
}

/// What a server says that is Redis as far as the handshake goes.
fn like_redis(command: &str, version: &str) -> Vec<u8> {
    match command.split(' ').next().unwrap_or_default() {
        "HELLO" => b"%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n".to_vec(),
        "INFO" => bulk(&format!(
            "# Server\r\nredis_version:{version}\r\nredis_mode:standalone\r\n"
        )),
        "SUBSCRIBE" => {
            let channel = command.split_once(' ').map_or("", |(_, channel)| channel);
            [b">3\r\n$9\r\nsubscribe\r\n".as_slice(), &bulk(channel), b":1\r\n"].concat()
        }
        "PING" => b"+PONG\r\n".to_vec(),
        _ => b"+OK\r\n".to_vec(),
    }
}

#[tokio::test]
async fn what_is_no_redis_server_is_told_and_never_hangs() {
    let nobody = format!("redis://127.0.0.1:{}", free_port());
    let error = first_error(&nobody).await;
    assert!(
        error.is_unreachable() && error.to_string().contains("is a server running there?"),
        "{error}"
    );

    for garbage in [
        "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\r\n",
        "*-9\r\n:x\r\n",
        "*9223372036854775807\r\n",
        "%9223372036854775807\r\n",
        "+OK\r\n",
        "$2\r\nno\r\n",
    ] {
        let fake = Fake::start(move |_| Some(garbage.as_bytes().to_vec())).await;
        let error = first_error(&fake.url).await;
        assert!(
            error.is_server() || error.is_unreachable(),
            "{garbage:?}: {error}"
        );
        if garbage.starts_with("HTTP") || garbage.starts_with('+') {
            assert!(
                error.to_string().contains("does not speak like Redis"),
                "{garbage:?}: {error}"
            );
        }
    }

    let closing = Fake::start(|_| None).await;
    let error = first_error(&closing.url).await;
    assert!(
        error.is_unreachable() && error.to_string().contains("closed the connection"),
        "{error}"
    );

    let silent = Fake::start(|_| Some(Vec::new())).await;
    let begun = Instant::now();
    let error = first_error(&silent.url).await;
    assert!(
        error.is_unreachable() && error.to_string().contains("did not answer within"),
        "{error}"
    );
    assert!(begun.elapsed() < Duration::from_secs(10));

    let drip =
        Fake::start(|command| command.starts_with("HELLO").then(|| like_redis(command, "7.0.0"))).await;
    let error = first_error(&drip.url).await;
    assert!(error.is_unreachable(), "{error}");
}

#[tokio::test]
async fn a_server_that_will_not_do_is_told_why() {
    for (version, old) in [
        ("6.0.9", true),
        ("5.0.3", true),
        ("6.2.0", false),
        ("8.4.1", false),
    ] {
        let fake = Fake::start(move |command| Some(like_redis(command, version))).await;
        if old {
            let error = first_error(&fake.url).await;
            assert!(
                error.is_server() && error.to_string().contains("too old"),
                "{error}"
            );
            assert!(error.to_string().contains(version), "{error}");
        } else {
            linked(quick(&fake.url)).await;
        }
    }
    let cases: [(&str, &str, &str); 7] = [
        (
            "HELLO",
            "-ERR unknown command `HELLO`, with args beginning with: `3`, \r\n",
            "too old",
        ),
        ("HELLO", "-ERR unknown command 'HELLO'\r\n", "too old"),
        (
            "HELLO",
            "-DENIED Redis is running in protected mode\r\n",
            "protected mode",
        ),
        ("HELLO", "-ERR max number of clients reached\r\n", "maxclients"),
        (
            "INFO",
            "$42\r\nredis_version:7.0.0\r\nredis_mode:sentinel\r\n\r\n",
            "Sentinel",
        ),
        ("INFO", "+OK\r\n", "does not speak like Redis"),
        ("SUBSCRIBE", "+OK\r\n", "does not speak like Redis"),
    ];
    for (word, reply, expected) in cases {
        let fake = Fake::start(move |command| {
            Some(if command.starts_with(word) {
                reply.as_bytes().to_vec()
            } else {
                like_redis(command, "7.0.0")
            })
        })
        .await;
        let error = first_error(&fake.url).await;
        assert!(error.to_string().contains(expected), "{word}: {error}");
    }
}

#[tokio::test]
async fn a_reply_that_is_not_the_calls_own_makes_it_unknown_and_takes_the_link_down() {
    for reply in [
        "+OK\r\n",
        "*0\r\n",
        ":7\r\n",
        "_\r\n",
        "*2\r\n$1\r\nx\r\n$1\r\n1\r\n",
        "?\r\n",
    ] {
        let fake = Fake::start(move |command| {
            Some(if is_call(command) {
                reply.as_bytes().to_vec()
            } else {
                like_redis(command, "7.0.0")
            })
        })
        .await;
        let backend = linked(quick(&fake.url)).await;
        let outcome = soon(backend.call(&look("x"))).await;
        assert!(
            matches!(&outcome, Err(Failure::Unknown(error)) if error.is_unreachable()),
            "{reply:?}: {outcome:?}"
        );
        generation_after(&backend, 1).await;
    }
}

#[tokio::test]
async fn a_server_that_asks_for_patience_keeps_its_link() {
    let fake = Fake::start(|command| {
        Some(if is_call(command) {
            b"-LOADING Redis is loading the dataset in memory\r\n".to_vec()
        } else {
            like_redis(command, "7.0.0")
        })
    })
    .await;
    let backend = linked(quick(&fake.url)).await;
    for _ in 0..3 {
        let begun = Instant::now();
        let outcome = soon(backend.call(&look("x"))).await;
        assert!(
            matches!(&outcome, Err(Failure::Unknown(error)) if error.to_string().contains("loading")),
            "{outcome:?}"
        );
        assert!(begun.elapsed() >= HELD_BACK.0);
    }
    assert_eq!(*backend.generation().borrow(), 1);
}

#[tokio::test]
async fn a_link_that_breaks_as_soon_as_it_is_up_is_not_made_again_in_a_loop() {
    let links = Arc::new(AtomicU64::new(0));
    let counted = links.clone();
    let fake = Fake::start(move |command| {
        if command.starts_with("SUBSCRIBE") {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        if is_call(command) {
            return None;
        }
        Some(like_redis(command, "7.0.0"))
    })
    .await;
    let backend = linked(quick(&fake.url)).await;
    let begun = Instant::now();
    for _ in 0..10 {
        let outcome = soon(backend.call(&look("x"))).await;
        assert!(matches!(outcome, Err(Failure::Unknown(_))), "{outcome:?}");
    }
    // Pauses of up to 10, 20, 40 … 1000 ms lie between them; that all are tiny does not happen.
    assert!(
        begun.elapsed() > Duration::from_millis(100),
        "{:?}",
        begun.elapsed()
    );
    assert!(links.load(Ordering::Relaxed) <= 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_many_tasks_all_end_while_connections_are_killed() {
    let server = Server::start(&[]);
    let backend = linked(quick(&server.url())).await;
    let mut tasks = tokio::task::JoinSet::new();
    let done = Arc::new(AtomicU64::new(0));
    for _ in 0..32 {
        let inner = backend.backend.clone();
        let done = done.clone();
        tasks.spawn(async move {
            for _ in 0..50 {
                works(&inner).await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for round in 1..=5 {
        until("progress", || done.load(Ordering::Relaxed) >= round * 250).await;
        let kind = if round % 2 == 0 { "pubsub" } else { "normal" };
        let _: u64 = server.ask(&["CLIENT", "KILL", "TYPE", kind]);
    }
    soon(tasks.join_all()).await;
    generation_after(&backend, 1).await;
    until("two connections", || server.connections().len() == 2).await;
}

#[tokio::test]
async fn a_dropped_call_does_not_shift_the_replies_of_others() {
    let server = Server::start(&[]);
    let backend = linked(quick(&server.url())).await;
    for round in 0..200 {
        let call = look("x");
        let mut dropped = backend.call(&call);
        // Polled once: it is on its way.
        std::future::poll_fn(|cx| {
            let _ = dropped.as_mut().poll(cx);
            std::task::Poll::Ready(())
        })
        .await;
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        drop(dropped);
        soon(backend.call(&call)).await.unwrap();
    }
    assert_eq!(*backend.generation().borrow(), 1);
}

#[tokio::test]
async fn a_dead_name_server_is_told_and_recovered_from() {
    use super::dial::names;

    let server = Server::start(&[]);
    let host = format!("cache{}", names::ZONE);
    let options = RedisOptions {
        connect_timeout: Duration::from_millis(700),
        ..quick(&format!("redis://{host}:{}", server.port))
    };
    let backend = linked(options).await;
    works(&backend).await;
    names::dead(&host, true);
    let _: u64 = server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
    soon(async {
        loop {
            let told = backend.trouble().map(|error| error.to_string());
            if told.is_some_and(|told| told.contains("does its name resolve")) {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    names::dead(&host, false);
    let begun = Instant::now();
    works(&backend).await;
    // Its turn is for `docs/deployments.md`.
    println!("recovered from a dead name server after {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_name_with_an_address_that_swallows_everything_is_linked_to() {
    use super::dial::names;

    let server = Server::start(&[]);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    let full = format!("127.0.0.2:{}", server.port).parse().unwrap();
    socket.bind(full).unwrap();
    // Nobody is accepted: soon nobody is answered.
    let _listener = socket.listen(1).unwrap();
    let mut kept = Vec::new();
    while let Ok(taken) =
        tokio::time::timeout(Duration::from_millis(100), tokio::net::TcpStream::connect(full)).await
    {
        kept.push(taken.unwrap());
    }
    let host = format!("two{}", names::ZONE);
    names::tell(&host, vec![[127, 0, 0, 2].into(), [127, 0, 0, 1].into()]);
    let backend = linked(quick(&format!("redis://{host}:{}", server.port))).await;
    works(&backend).await;
}

#[tokio::test]
async fn what_keeps_one_slot_from_replicas_is_in_no_other_slots_way() {
    let server = Server::start(&["--cluster-enabled", "yes"]);
    // As Redis 6.2 knows it, too.
    let slots: Vec<String> = (0..slots::SLOTS).map(|slot| slot.to_string()).collect();
    let mut give = vec!["CLUSTER", "ADDSLOTS"];
    give.extend(slots.iter().map(String::as_str));
    let _: () = server.ask(&give);
    until("the cluster is up", || {
        let info: String = server.ask(&["CLUSTER", "INFO"]);
        info.contains("cluster_state:ok")
    })
    .await;
    let (shut, open) = (Name::new("shut").unwrap(), Name::new("open").unwrap());
    let allow = |keys: &[String]| {
        let keys: Vec<String> = keys.iter().map(|key| format!("~{key}")).collect();
        let mut user = vec![
            "ACL",
            "SETUSER",
            "ann",
            "on",
            "nopass",
            "+@all",
            "&*",
            "resetkeys",
        ];
        user.extend(keys.iter().map(String::as_str));
        let _: () = server.ask(&user);
    };
    allow(&["relatch:1:*".to_owned()]);
    let client = ClientId::random();
    let options = quick(&format!("redis-cluster://ann:x@127.0.0.1:{}", server.port));
    let backend = driven_as(client, options);
    soon(async {
        while backend.ready(AGES).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let owner = OwnerId::random();
    let member = |number| Member {
        request: RequestId { client, number },
        owner,
    };
    for (name, number) in [(&shut, 1), (&open, 2)] {
        let acquire = Call {
            name: name.clone(),
            operation: Operation::Acquire(Acquire {
                request: member(number).request,
                owner,
                mode: Mode::Write,
                wait: false,
                first: false,
                lease_ms: 30_000,
                ticket: 0,
                upgrade_of: None,
                label: String::new(),
            }),
        };
        let held = soon(backend.call(&acquire)).await.unwrap();
        assert!(
            matches!(held.answer.reply, Reply::Acquire(Acquired::Granted(_))),
            "{held:?}"
        );
    }
    let replicas = Replicas {
        number: 1,
        within: Duration::from_millis(50),
    };
    // Its keys may be used, and not what is written before the WAIT.
    let mut keys = scripts::keys(&shut).to_vec();
    keys.push(format!("{}*", scripts::keys(&open)[0]));
    allow(&keys);
    // Both in one slice, in either order.
    for order in [[(&shut, 1), (&open, 2)], [(&open, 2), (&shut, 1)]] {
        let asked = order.map(|(name, number)| backend.replicated(name, member(number), replicas));
        let told = soon(futures_util::future::join_all(asked)).await;
        for ((name, _), told) in order.into_iter().zip(told) {
            if *name == shut {
                assert!(matches!(told, Err(Failure::No(_))), "{told:?}");
            } else {
                assert!(matches!(told, Ok((Polled::Granted(_), 0))), "{told:?}");
            }
        }
    }
}
