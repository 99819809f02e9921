//! Every deployment × every fault: what is said while it lasts, and how long it takes to recover. And the page that tells of it.
//!
//! Each drill has a holder and somebody who waits in line. While the fault lasts, an acquisition fails soon and says why. When it is over,
//! a new one must succeed: that is the time to recover. Then the holder is still held or has been told that it is lost, the one in line
//! enters (or was told no, where the server says no), and its fence is greater.
//!
//! The table in `docs/deployments.md` is written by `RELATCH_WRITE_DOCS=1 cargo test --test deployments`; an ordinary run only compares
//! its rows and columns.
#![cfg(all(feature = "tls", unix))]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use relatch::{Builder, LostCause, Relatch};
use support::{
    BOUND, Certificates, Direction, Proxy, RedisCluster, RedisServer, Watched, eventually_async, free_port,
    page,
};

/// What a user sets as the bound within which a half-open link is noticed: their sum.
const IDLE_PING: Duration = Duration::from_millis(300);
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(700);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a node of a cluster is silent before the others take it for dead.
const NODE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Fail-overs take Sentinels some seconds; and half a minute more when they have seen their own clock jump, as on a busy machine (`TILT`).
const LONG: Duration = Duration::from_secs(75);

fn builder(url: &str) -> Builder {
    Relatch::builder()
        .url(url)
        .lease(LONG)
        .claim(Duration::from_millis(600))
        .patience(LONG)
        .response_timeout(RESPONSE_TIMEOUT)
        .connect_timeout(CONNECT_TIMEOUT)
        .idle_ping(IDLE_PING)
}

/// What runs, and what can be done to it.
struct Site {
    url: String,
    replicas: u32,
    server: Option<Arc<RedisServer>>,
    proxy: Option<Arc<Proxy>>,
    watched: Option<Arc<Watched>>,
    cluster: Option<Arc<RedisCluster>>,
    /// Nothing reads it; it goes when the site goes, after the server.
    _files: Option<Box<dyn Any>>,
}

struct Fault {
    name: &'static str,
    /// In the error of an acquisition that is made meanwhile.
    said: &'static str,
    /// The server says no: who waits in line is told so.
    refuses: bool,
    /// The others see to it, so the time is from its beginning: theirs to decide is most of it.
    by_itself: bool,
    /// Begins it. What comes back ends it, and returns when the server is there again, if it is ours to bring back.
    begin: fn(&Site) -> Box<dyn FnOnce() + Send>,
}

impl Site {
    /// What the names of a fault have in common: in a cluster, the slot that it befalls.
    fn tag(&self, fault: &str) -> String {
        match (&self.cluster, fault) {
            (None, _) => fault.to_owned(),
            (Some(cluster), KILLED) => cluster.name_on(0, fault),
            (Some(cluster), STOPPED) => cluster.name_on(1, fault),
            (Some(cluster), _) => cluster.name_on(2, fault),
        }
    }

    fn slot(&self, fault: &str) -> u16 {
        let cluster = self.cluster.as_ref().expect("this site has slots");
        cluster.slot_of(&format!("relatch:1:{{{}}}", self.tag(fault)))
    }

    /// The server, the primary, or the master that faults befall.
    fn server(&self) -> Server {
        let alone = self.server.clone().map(Server::Alone);
        let watched = self.watched.clone().map(Server::Watched);
        let in_cluster = self.cluster.clone().map(Server::InCluster);
        alone.or(watched).or(in_cluster).expect("every site has one")
    }
}

#[derive(Clone)]
enum Server {
    Alone(Arc<RedisServer>),
    Watched(Arc<Watched>),
    InCluster(Arc<RedisCluster>),
}

impl std::ops::Deref for Server {
    type Target = RedisServer;
    fn deref(&self) -> &RedisServer {
        match self {
            Server::Alone(server) => server,
            Server::Watched(watched) => watched.primary(),
            Server::InCluster(cluster) => cluster.node(2),
        }
    }
}

/// Faults of a server, however it is reached.
const OF_A_SERVER: &[Fault] = &[
    Fault {
        name: "killed, comes back empty",
        said: "",
        refuses: false,
        by_itself: false,
        begin: |site| {
            let server = site.server();
            server.kill();
            Box::new(move || server.restart_empty())
        },
    },
    Fault {
        name: "stands still",
        said: "did not answer",
        refuses: false,
        by_itself: false,
        begin: |site| {
            let server = site.server();
            server.stop();
            Box::new(move || server.cont())
        },
    },
    Fault {
        name: "loads its data",
        said: "loading",
        refuses: false,
        by_itself: false,
        begin: |site| {
            let server = site.server();
            // Each takes some 0.06 ms to load, and the connections are served between every 1,024 of them.
            let fill = "for i = 1, 30000 do redis.call('SET', 'filler:' .. i, i) end";
            server.cli(&["EVAL", fill, "0"]);
            let restart = std::thread::spawn(move || server.restart_with_data());
            Box::new(move || restart.join().unwrap())
        },
    },
    Fault {
        name: "is made a replica (`READONLY`)",
        said: "read-only replica",
        refuses: false,
        by_itself: false,
        begin: |site| {
            let server = site.server();
            server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
            Box::new(move || {
                server.cli(&["REPLICAOF", "NO", "ONE"]);
            })
        },
    },
    Fault {
        name: "is a replica that lost its primary (`MASTERDOWN`)",
        said: "replica",
        refuses: false,
        by_itself: false,
        begin: |site| {
            let server = site.server();
            server.cli(&["CONFIG", "SET", "replica-serve-stale-data", "no"]);
            server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
            Box::new(move || {
                server.cli(&["REPLICAOF", "NO", "ONE"]);
            })
        },
    },
    Fault {
        name: "runs a slow script (`BUSY`)",
        said: "busy with a slow script",
        refuses: false,
        by_itself: false,
        begin: |site| {
            let server = site.server();
            server.cli(&["CONFIG", "SET", "lua-time-limit", "20"]);
            let slow = server.clone();
            // Ends with an error when it is killed.
            let script = std::thread::spawn(move || slow.try_reply(&["EVAL", "while true do end", "0"]));
            support::eventually_blocking(BOUND, "it is busy", || server.reply(&["PING"]).is_error());
            Box::new(move || {
                server.cli(&["SCRIPT", "KILL"]);
                let _ = script.join();
            })
        },
    },
];

/// Of a server by itself, and of one primary among others.
const ANYWHERE: &[Fault] = &[
    Fault {
        name: "is out of memory (`OOM`)",
        said: "out of memory",
        refuses: false,
        by_itself: false,
        begin: |site| {
            let server = site.server();
            server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
            Box::new(move || {
                server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
            })
        },
    },
    Fault {
        name: "takes a right away (`NOPERM`)",
        said: "ACL SETUSER <user> +evalsha",
        refuses: true,
        by_itself: false,
        begin: |site| {
            let server = site.server();
            server.cli(&["ACL", "SETUSER", "default", "-evalsha"]);
            Box::new(move || {
                server.cli(&["ACL", "SETUSER", "default", "+evalsha"]);
            })
        },
    },
];

/// Sentinels can't reach such a primary either, and replace it.
const TAKES_NONE: &[Fault] = &[Fault {
    name: "closes every connection, takes none",
    said: "",
    refuses: false,
    by_itself: false,
    begin: |site| {
        let server = site.server();
        // The one that says so stays, until the end.
        let mut admin = server.client().unwrap();
        admin.command(&["CONFIG", "SET", "maxclients", "1"]).unwrap();
        for kind in ["normal", "pubsub"] {
            admin
                .command(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"])
                .unwrap();
        }
        Box::new(move || {
            admin.command(&["CONFIG", "SET", "maxclients", "1000"]).unwrap();
        })
    },
}];

/// Faults of the network in between.
const OF_A_NETWORK: &[Fault] = &[
    Fault {
        name: "connections cut",
        said: "",
        refuses: false,
        by_itself: false,
        begin: |site| {
            let proxy = site.proxy.clone().unwrap();
            proxy.refuse(true);
            proxy.cut();
            Box::new(move || proxy.refuse(false))
        },
    },
    Fault {
        name: "half-open: nothing arrives, nobody is told",
        said: "did not answer",
        refuses: false,
        by_itself: false,
        begin: |site| {
            let proxy = site.proxy.clone().unwrap();
            proxy.silence(Direction::Both);
            Box::new(move || proxy.heal())
        },
    },
    Fault {
        name: "accepts nobody: its backlog is full",
        said: "could not be connected to within",
        refuses: false,
        by_itself: false,
        begin: |site| {
            let proxy = site.proxy.clone().unwrap();
            proxy.accept_nobody(true);
            Box::new(move || proxy.accept_nobody(false))
        },
    },
    Fault {
        name: "answers are lost",
        said: "did not answer",
        refuses: false,
        by_itself: false,
        begin: |site| {
            let proxy = site.proxy.clone().unwrap();
            proxy.drop_replies(true);
            Box::new(move || proxy.drop_replies(false))
        },
    },
];

/// What Sentinels see to.
const OF_SENTINELS: &[Fault] = &[
    Fault {
        name: KILLED,
        said: "",
        refuses: false,
        by_itself: true,
        begin: |site| {
            let watched = site.watched.clone().unwrap();
            watched.primary().kill();
            Box::new(|| ())
        },
    },
    Fault {
        name: STOPPED,
        said: "",
        refuses: false,
        by_itself: true,
        begin: |site| {
            let watched = site.watched.clone().unwrap();
            watched.primary().stop();
            Box::new(|| ())
        },
    },
    Fault {
        name: "fail-over by command",
        said: "",
        refuses: false,
        by_itself: true,
        begin: |site| {
            let watched = site.watched.clone().unwrap();
            watched.fail_over();
            Box::new(|| ())
        },
    },
];

/// What happens to a cluster, each to another part of it. What leaves nodes behind that do not answer comes last.
const OF_A_CLUSTER: &[Fault] = &[
    Fault {
        name: MOVES,
        said: "moving this key",
        refuses: false,
        by_itself: false,
        begin: |site| {
            let (cluster, slot) = (site.cluster.clone().unwrap(), site.slot(MOVES));
            cluster.begin_move(slot, 2, 1);
            while cluster.move_keys(slot, 2, 1, 10) > 0 {}
            Box::new(move || cluster.end_move(slot, 1))
        },
    },
    Fault {
        name: NOBODYS,
        said: "CLUSTERDOWN",
        refuses: false,
        by_itself: false,
        begin: |site| {
            let (cluster, slot) = (site.cluster.clone().unwrap(), site.slot(NOBODYS).to_string());
            cluster.node(2).cli(&["CLUSTER", "DELSLOTS", &slot]);
            Box::new(move || {
                cluster.node(2).cli(&["CLUSTER", "ADDSLOTS", &slot]);
            })
        },
    },
    Fault {
        name: KILLED,
        said: "",
        refuses: false,
        by_itself: true,
        begin: |site| {
            site.cluster.as_ref().unwrap().node(0).kill();
            Box::new(|| ())
        },
    },
    Fault {
        name: STOPPED,
        said: "",
        refuses: false,
        by_itself: true,
        begin: |site| {
            site.cluster.as_ref().unwrap().node(1).stop();
            Box::new(|| ())
        },
    },
];

const MOVES: &str = "a slot moves to another primary";
const NOBODYS: &str = "a slot is nobody's (`CLUSTERDOWN`)";
const KILLED: &str = "primary killed";
const STOPPED: &str = "primary stands still";

impl Kind {
    fn faults(&self) -> impl Iterator<Item = &'static Fault> {
        self.faults.iter().copied().flatten()
    }
}

struct Kind {
    what: &'static str,
    start: fn() -> Site,
    faults: &'static [&'static [Fault]],
}

fn site(url: String) -> Site {
    Site {
        url,
        replicas: 0,
        server: None,
        proxy: None,
        watched: None,
        cluster: None,
        _files: None,
    }
}

/// Keeps its data, so that it has something to load.
fn server(more: &[&str]) -> RedisServer {
    // What a process has written survives it, flushed or not.
    let mut arguments = vec!["--key-load-delay", "1", "--appendfsync", "everysec"];
    arguments.extend(more);
    RedisServer::start_persistent_with(&arguments)
}

const KINDS: &[Kind] = &[
    Kind {
        what: "TCP",
        start: || {
            let server = server(&[]);
            Site {
                server: Some(Arc::new(server)),
                ..site(String::new())
            }
            .reached(|server| server.url())
        },
        faults: &[OF_A_SERVER, TAKES_NONE, ANYWHERE],
    },
    Kind {
        what: "unix socket",
        start: || {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("redis.sock").display().to_string();
            let server = server(&["--unixsocket", &path]);
            Site {
                server: Some(Arc::new(server)),
                _files: Some(Box::new(folder)),
                ..site(format!("unix://{path}"))
            }
        },
        faults: &[OF_A_SERVER, TAKES_NONE, ANYWHERE],
    },
    Kind {
        what: "TLS",
        start: || {
            let (files, port) = (Certificates::new("cache.example"), free_port());
            let arguments = files.arguments(port, true);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            Site {
                server: Some(Arc::new(server(&arguments))),
                url: format!("rediss://127.0.0.1:{port}?{}", files.parameters(true)),
                _files: Some(Box::new(files)),
                ..site(String::new())
            }
        },
        faults: &[OF_A_SERVER, TAKES_NONE, ANYWHERE],
    },
    Kind {
        what: "a proxy in between",
        start: || {
            let server = server(&[]);
            let proxy = Proxy::start(server.port());
            Site {
                url: proxy.url(),
                server: Some(Arc::new(server)),
                proxy: Some(Arc::new(proxy)),
                ..site(String::new())
            }
        },
        faults: &[OF_A_NETWORK],
    },
    Kind {
        what: "Sentinel",
        start: || {
            let watched = Watched::start();
            Site {
                url: watched.url(),
                replicas: 2,
                watched: Some(Arc::new(watched)),
                ..site(String::new())
            }
        },
        faults: &[ANYWHERE, OF_SENTINELS],
    },
    Kind {
        what: "Cluster",
        start: || {
            let cluster = RedisCluster::start_with(3, 1, NODE_TIMEOUT, &[]);
            Site {
                url: cluster.url(),
                replicas: 1,
                cluster: Some(Arc::new(cluster)),
                ..site(String::new())
            }
        },
        faults: &[TAKES_NONE, ANYWHERE, OF_A_CLUSTER],
    },
];

impl Site {
    fn reached(mut self, by: impl FnOnce(&RedisServer) -> String) -> Self {
        self.url = by(&self.server());
        self
    }
}

async fn soon<T>(future: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(LONG, future.into_future())
        .await
        .expect("it came within the bound")
}

/// Whatever else the machine does at the moment.
async fn connected(site: &Site) -> Relatch {
    let begun = Instant::now();
    loop {
        match builder(&site.url).connect().await {
            Ok(relatch) => return relatch,
            Err(error) => assert!(error.is_unreachable() && begun.elapsed() < BOUND, "{error}"),
        }
    }
}

/// Returns the time to recover.
async fn drill(site: &Site, fault: &Fault) -> Duration {
    let (a, b) = (connected(site).await, connected(site).await);
    let tag = tokio::task::block_in_place(|| site.tag(fault.name));
    let name = format!("{{{tag}}} it");
    let held = soon(a.rwlock(&name).unwrap().write().replicas(site.replicas, LONG))
        .await
        .unwrap();
    let fence = held.fence();
    let waiting = tokio::spawn(b.rwlock(&name).unwrap().write().into_future());
    eventually_async(BOUND, "somebody waits", async || {
        a.inspect(&name).await.is_ok_and(|seen| seen.waiter_count == 1)
    })
    .await;

    let other = b.rwlock(&format!("{{{tag}}} meanwhile")).unwrap();
    let watched = site.watched.as_ref().filter(|_| fault.by_itself);
    let before = watched.map(|watched| watched.primary().port());
    let begun = Instant::now();
    let end = tokio::task::block_in_place(|| (fault.begin)(site));
    let after = if !fault.by_itself {
        // Soon, and with the reason. A call that was under way may still be answered by the server as it was, and what it was before it is
        // what it is now has a reason as well.
        let asked = Instant::now();
        loop {
            let each = Instant::now();
            match soon(other.write().timeout(IDLE_PING + RESPONSE_TIMEOUT + IDLE_PING)).await {
                Ok(held) => drop(held),
                Err(error) => {
                    assert!(
                        // One that was let go just before the fault may still be in the way: the server has not heard of it.
                        error.is_unreachable() || error.is_server() || error.is_timeout(),
                        "{}: {error}",
                        fault.name
                    );
                    assert!(each.elapsed() < BOUND, "{}: {:?}", fault.name, each.elapsed());
                    if error.to_string().contains(fault.said) {
                        break;
                    }
                    assert!(asked.elapsed() < BOUND, "{}: {error}", fault.name);
                    continue;
                }
            }
            assert!(asked.elapsed() < BOUND, "{}: nothing is noticed", fault.name);
        }
        tokio::task::block_in_place(end);
        Instant::now()
    } else {
        begun
    };
    loop {
        // Until then it may be the old one that grants.
        let replaced = watched
            .is_none_or(|watched| tokio::task::block_in_place(|| Some(watched.primary().port())) != before);
        match soon(other.write().timeout(LONG)).await {
            Ok(held) => {
                let released = soon(held.release()).await;
                if replaced && released.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => assert!(after.elapsed() < LONG, "{}: {error}", fault.name),
        }
    }
    let recovered = after.elapsed();

    if held.is_held() {
        // It may yet be told: the server has come back empty.
        match held.release().await {
            Ok(()) => {}
            Err(error) => assert_eq!(
                error.lost_cause(),
                Some(LostCause::Forgotten),
                "{}: {error}",
                fault.name
            ),
        }
    } else {
        assert_eq!(soon(held.lost()).await, LostCause::Forgotten, "{}", fault.name);
    }
    match soon(waiting).await.unwrap() {
        Ok(next) => assert!(next.fence() > fence, "{}: fences keep growing", fault.name),
        Err(error) => assert!(fault.refuses && error.is_server(), "{}: {error}", fault.name),
    }
    recovered
}

#[test]
fn every_fault_of_every_deployment_is_told_and_recovered_from() {
    let times: Mutex<BTreeMap<(&str, &str), Duration>> = Mutex::default();
    std::thread::scope(|scope| {
        for kind in KINDS {
            let times = &times;
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .unwrap();
                let mut site = (kind.start)();
                let mut replaced = false;
                for fault in kind.faults() {
                    // Sentinels take their time to have all as it was.
                    if replaced && site.watched.is_some() {
                        site = (kind.start)();
                    }
                    replaced = fault.by_itself;
                    let drilled =
                        runtime.block_on(async { tokio::time::timeout(LONG * 3, drill(&site, fault)).await });
                    let time = drilled.unwrap_or_else(|_| panic!("{}, {}: hangs", kind.what, fault.name));
                    times.lock().insert((fault.name, kind.what), time);
                }
            });
        }
    });
    let times = times.into_inner();
    let table = table(|fault, kind| {
        times
            .get(&(fault, kind))
            .map_or_else(|| "–".to_owned(), |time| format!("{} ms", time.as_millis()))
    });
    println!("{table}");
    // Whatever the machine does: back-off is capped at a second, and Sentinels and clusters decide within some.
    for ((fault, kind), time) in &times {
        let by_itself =
            |of: &&Kind| of.what == *kind && of.faults().any(|of| of.name == *fault && of.by_itself);
        let bound = if KINDS.iter().any(|of| by_itself(&of)) {
            LONG
        } else {
            BOUND
        };
        assert!(*time < bound, "{kind}, {fault}: {time:?}");
    }
    page::update_or_compare("faults", |written| {
        // Times differ: rows and columns are compared, and where there is one.
        if page::writes() || shape(written) != shape(&table) {
            table.clone()
        } else {
            written.to_owned()
        }
    });
}

/// A table without its times.
fn shape(table: &str) -> Vec<Vec<&str>> {
    table
        .lines()
        .map(|line| {
            let cells = line.split('|').map(str::trim);
            cells
                .map(|cell| if cell.ends_with(" ms") { "… ms" } else { cell })
                .collect()
        })
        .collect()
}

/// Rows are faults, columns deployments.
fn table(cell: impl Fn(&'static str, &'static str) -> String) -> String {
    let mut out = String::from("| fault |");
    for kind in KINDS {
        out.push_str(&format!(" {} |", kind.what));
    }
    out.push_str(&format!("\n|---|{}\n", "---|".repeat(KINDS.len())));
    let mut seen = Vec::new();
    for fault in KINDS.iter().flat_map(Kind::faults) {
        if seen.contains(&fault.name) {
            continue;
        }
        seen.push(fault.name);
        out.push_str(&format!("| {} |", fault.name));
        for kind in KINDS {
            out.push_str(&format!(" {} |", cell(fault.name, kind.what)));
        }
        out.push('\n');
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_link_is_noticed_within_the_bound_that_is_set() {
    let server = RedisServer::start();
    for (idle_ping, response_timeout) in [(100, 200), (400, 300)] {
        let proxy = Proxy::start(server.port());
        let a = Relatch::builder()
            .url(proxy.url())
            .idle_ping(Duration::from_millis(idle_ping))
            .response_timeout(Duration::from_millis(response_timeout))
            .connect()
            .await
            .unwrap();
        drop(soon(a.rwlock("it").unwrap().write()).await.unwrap());
        proxy.silence(Direction::Both);
        let begun = Instant::now();
        let accepted = proxy.connections().accepted;
        // A new connection is what shows that the old one is given up.
        eventually_async(BOUND, "it is noticed", async || {
            proxy.connections().accepted > accepted
        })
        .await;
        let bound = Duration::from_millis(idle_ping + response_timeout);
        assert!(
            begun.elapsed() < bound + Duration::from_secs(2),
            "{:?}",
            begun.elapsed()
        );
        println!("noticed after {:?}; the bound is {bound:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_slow_accept_and_a_name_that_does_not_resolve_are_told_in_time() {
    let silent = support::FakeServer::silent();
    for (url, said) in [
        (silent.url(), "took the connection but did not answer"),
        ("redis://no-such-host.invalid".to_owned(), "name"),
    ] {
        let begun = Instant::now();
        let connecting = Relatch::builder()
            .url(&url)
            .connect_timeout(Duration::from_millis(500))
            .connect();
        let error = soon(connecting).await.unwrap_err();
        assert!(error.is_unreachable(), "{url}: {error}");
        assert!(
            error.to_string().contains(said) || begun.elapsed() > Duration::from_millis(400),
            "{url}: {error}"
        );
        assert!(begun.elapsed() < BOUND, "{url}: {:?}", begun.elapsed());
    }
    // Behind a network that takes its time, it only takes longer.
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port());
    proxy.delay(Duration::from_millis(40));
    let a = soon(builder(&proxy.url()).connect_timeout(BOUND).connect())
        .await
        .unwrap();
    drop(soon(a.rwlock("it").unwrap().write()).await.unwrap());
}
