//! A primary with two replicas, watched by three Sentinels. Real ones, on loopback.
//!
//! The invariant: **a `Watched` that exists could fail over**: the Sentinels know each other and the replicas, and the replicas
//! have what the primary has.

use super::child::{Process, command};
use super::fake::FakeServer;
use super::resp::{Client, Reply};
use super::server::{PROGRAM, RedisServer};
use super::tls::Certificates;
use super::wait::{BOUND, eventually_blocking};
use parking_lot::Mutex;
use std::fs::{self, File};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// By what name the Sentinels know the primary.
pub const PRIMARY: &str = "main";

/// What servers and Sentinels want to hear, where they want anything.
const PASSWORD: &str = "sesame";
const SENTINEL_PASSWORD: &str = "simsim";

/// How long a server must be silent to be taken for down.
pub const DOWN_AFTER: Duration = Duration::from_millis(500);

pub struct Watched {
    how: How,
    servers: Vec<Server>,
    sentinels: Vec<Sentinel>,
}

/// What is asked of those who connect.
#[derive(Clone, Default)]
struct How {
    /// Passwords: one for the servers, one for the Sentinels.
    passwords: bool,
    /// TLS, from everybody to everybody, with certificates on both sides.
    tls: Option<Arc<Certificates>>,
}

/// Tests ask it on a port of its own, in plain.
struct Server {
    /// By which everybody else knows it.
    port: u16,
    server: RedisServer,
}

struct Sentinel {
    /// By which everybody else knows it.
    port: u16,
    /// For tests.
    plain_port: u16,
    passwords: bool,
    // Ends before its folder does.
    process: Process,
    _directory: TempDir,
}

/// A server without persistence that takes replicas at once.
pub fn primary() -> RedisServer {
    RedisServer::start_with(&TAKES_REPLICAS)
}

/// A replica that has what its primary has.
pub fn replica_of(primary: &RedisServer) -> RedisServer {
    replica_through(primary, primary.port())
}

/// The same, over another port: a proxy in front of the primary.
pub fn replica_through(primary: &RedisServer, port: u16) -> RedisServer {
    follow(primary, port, &TAKES_REPLICAS.map(str::to_owned))
}

const TAKES_REPLICAS: [&str; 2] = ["--repl-diskless-sync-delay", "0"];

impl How {
    /// Of a server, or of a Sentinel; the port that everybody else is to use.
    fn tls_arguments(&self, port: u16) -> Vec<String> {
        let Some(certificates) = &self.tls else {
            return Vec::new();
        };
        let mut all = certificates.arguments(port, true);
        all.extend(["--tls-replication", "yes"].map(str::to_owned));
        all
    }

    fn arguments(&self, port: u16) -> Vec<String> {
        let mut all = TAKES_REPLICAS.map(str::to_owned).to_vec();
        if self.passwords {
            all.extend(["--requirepass", PASSWORD, "--masterauth", PASSWORD].map(str::to_owned));
        }
        all.extend(self.tls_arguments(port));
        all
    }

    /// Starts one; it follows the other, if there is one.
    fn start(&self, primary: Option<&Server>) -> Server {
        let tls_port = super::free_port();
        let arguments = self.arguments(tls_port);
        let server = match primary {
            Some(primary) => follow(&primary.server, primary.port, &arguments),
            None => RedisServer::start_with(&arguments.iter().map(String::as_str).collect::<Vec<_>>()),
        };
        let port = if self.tls.is_some() {
            tls_port
        } else {
            server.port()
        };
        Server { port, server }
    }
}

fn follow(primary: &RedisServer, port: u16, arguments: &[String]) -> RedisServer {
    let port = port.to_string();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["--replicaof", "127.0.0.1", &port]);
    let replica = RedisServer::start_with(&arguments);
    // In both views: to its primary a replica is one only when it has acknowledged something.
    eventually_blocking(BOUND, "the replica follows", || {
        let follow = primary
            .info("replication", "connected_slaves")
            .unwrap_or_default();
        let acknowledged = primary.client().and_then(|mut client| {
            client.command(&["SET", "a write", "", "PX", "1"])?;
            client.command(&["WAIT", &follow, "100"])
        });
        replica.try_info("replication", "master_link_status").as_deref() == Some("up")
            && acknowledged.is_ok_and(|count| count.integer().unwrap_or(0).to_string() == follow)
    });
    replica
}

impl Watched {
    pub fn start() -> Self {
        Self::launch(How::default())
    }

    /// Servers and Sentinels want passwords, each their own.
    pub fn start_secured() -> Self {
        Self::launch(How {
            passwords: true,
            tls: None,
        })
    }

    /// The same, and they speak TLS to everybody, who all need a certificate of this authority.
    pub fn start_tls(certificates: Certificates) -> Self {
        Self::launch(How {
            passwords: true,
            tls: Some(Arc::new(certificates)),
        })
    }

    fn launch(how: How) -> Self {
        let first = how.start(None);
        let replicas = [(); 2].map(|()| how.start(Some(&first)));
        let servers: Vec<Server> = std::iter::once(first).chain(replicas).collect();
        let ports: Vec<u16> = (0..3).map(|_| super::free_port()).collect();
        let sentinels = (0..3)
            .map(|at| Sentinel::start(at, &ports, &servers, &how))
            .collect();
        let watched = Self {
            how,
            servers,
            sentinels,
        };
        eventually_blocking(BOUND, "the Sentinels know each other and the replicas", || {
            watched.sentinels.iter().all(Sentinel::could_fail_over)
        });
        watched
    }

    /// `redis+sentinel://…/main`, with passwords and certificates.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self
            .sentinels
            .iter()
            .map(|sentinel| format!("127.0.0.1:{}", sentinel.port))
            .collect();
        let hosts = hosts.join(",");
        let mut parameters = Vec::new();
        let mut user = String::new();
        if self.how.passwords {
            user = format!(":{PASSWORD}@");
            parameters.push(format!("sentinel_password={SENTINEL_PASSWORD}"));
        }
        let mut scheme = "redis";
        if let Some(certificates) = &self.how.tls {
            scheme = "rediss";
            parameters.push(certificates.parameters(true));
        }
        let url = format!("{scheme}+sentinel://{user}{hosts}/{PRIMARY}");
        match parameters.is_empty() {
            true => url,
            false => format!("{url}?{}", parameters.join("&")),
        }
    }

    /// Of every process.
    pub fn pids(&self) -> Vec<u32> {
        let sentinels = self.sentinels.iter().map(|sentinel| sentinel.process.pid());
        sentinels.chain(self.servers().map(RedisServer::pid)).collect()
    }

    pub fn servers(&self) -> impl Iterator<Item = &RedisServer> {
        self.servers.iter().map(|watched| &watched.server)
    }

    /// The primary, as the first Sentinel says.
    pub fn primary(&self) -> &RedisServer {
        &self.named().server
    }

    fn named(&self) -> &Server {
        let port = self.sentinels[0].primary();
        self.servers
            .iter()
            .find(|watched| watched.port == port)
            .expect("it names one of ours")
    }

    pub fn replicas(&self) -> Vec<&RedisServer> {
        let primary = self.primary().port();
        self.servers().filter(|server| server.port() != primary).collect()
    }

    /// Says it to every Sentinel; whether each did it.
    pub fn tell_sentinels(&self, words: &[&str]) -> bool {
        let told = |sentinel: &Sentinel| sentinel.ask(words).is_some_and(|reply| !reply.is_error());
        let told: Vec<bool> = self.sentinels.iter().map(told).collect();
        told.into_iter().all(|done| done)
    }

    /// Stops all Sentinels but the first, or lets them go on.
    pub fn only_the_first_sentinel(&mut self, alone: bool) {
        for sentinel in &mut self.sentinels[1..] {
            if alone {
                sentinel.process.stop();
            } else {
                sentinel.process.cont();
            }
        }
    }

    /// The address of the first Sentinel only.
    pub fn url_of_the_first(&self) -> String {
        format!("redis+sentinel://127.0.0.1:{}/{PRIMARY}", self.sentinels[0].port)
    }

    /// Has another server take over, by command. Returns when the Sentinels have begun to.
    pub fn fail_over(&self) {
        eventually_blocking(BOUND, "a Sentinel takes the command", || {
            let reply = self.sentinels[0].ask(&["SENTINEL", "FAILOVER", PRIMARY]);
            matches!(reply, Some(Reply::Simple(ok)) if ok == "OK")
        });
    }

    /// Waits until every Sentinel names one primary that is not this one, and that is one.
    #[track_caller]
    pub fn replaced(&self, old: &RedisServer) {
        eventually_blocking(BOUND * 7, "another server took over", || {
            let named = self.named();
            named.server.port() != old.port()
                && self
                    .sentinels
                    .iter()
                    .all(|sentinel| sentinel.primary() == named.port)
                && named.server.try_info("replication", "role").as_deref() == Some("master")
        });
    }

    /// Waits until all but one of the servers are replicas that follow it. One that was the primary is left in that belief for eight
    /// seconds by the Sentinels.
    #[track_caller]
    pub fn whole(&self) {
        eventually_blocking(BOUND * 7, "everybody follows the primary", || {
            self.replicas().iter().all(|replica| {
                replica.try_info("replication", "master_link_status").as_deref() == Some("up")
                    && replica.try_info("replication", "master_port") == Some(self.named().port.to_string())
            })
        });
    }
}

/// A Sentinel that says what it is told to.
pub struct FakeSentinel {
    server: FakeServer,
    says: Arc<Mutex<Says>>,
}

#[derive(Clone)]
struct Says {
    port: u16,
    epoch: u64,
    hellos: Vec<Duration>,
    up: Duration,
}

impl FakeSentinel {
    /// It names the server at this port, in its first epoch, and has heard of two others just now.
    pub fn naming(port: u16) -> Self {
        let says = Arc::new(Mutex::new(Says {
            port,
            epoch: 1,
            hellos: vec![Duration::ZERO; 2],
            up: Duration::from_secs(3600),
        }));
        let theirs = Arc::clone(&says);
        let server = FakeServer::replying(move |words| {
            let says = theirs.lock().clone();
            let upper = |at: usize| words.get(at).map(|word: &String| word.to_ascii_uppercase());
            let texts = |texts: &[&str]| {
                let mut out = format!("*{}\r\n", texts.len());
                for text in texts {
                    out.push_str(&format!("${}\r\n{text}\r\n", text.len()));
                }
                out
            };
            match (upper(0).as_deref(), upper(1).as_deref()) {
                (Some("HELLO"), _) => "%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n".to_owned(),
                (Some("SENTINEL"), Some("GET-MASTER-ADDR-BY-NAME")) => {
                    texts(&["127.0.0.1", &says.port.to_string()])
                }
                (Some("SENTINEL"), Some("MASTER")) => {
                    texts(&["name", PRIMARY, "config-epoch", &says.epoch.to_string()])
                }
                (Some("SENTINEL"), Some("SENTINELS")) => {
                    let of = |age: &Duration| texts(&["last-hello-message", &age.as_millis().to_string()]);
                    let others: String = says.hellos.iter().map(of).collect();
                    format!("*{}\r\n{others}", says.hellos.len())
                }
                (Some("INFO"), _) => {
                    let info = format!("# Server\r\nuptime_in_seconds:{}\r\n", says.up.as_secs());
                    format!("${}\r\n{info}\r\n", info.len())
                }
                _ => "+OK\r\n".to_owned(),
            }
            .into_bytes()
        });
        Self { server, says }
    }

    /// Names another server from now on, as after a fail-over.
    pub fn names_now(&self, port: u16) {
        let mut says = self.says.lock();
        says.port = port;
        says.epoch += 1;
    }

    /// It has not heard of the others for so long.
    pub fn cut_off(&self, since: Duration) {
        self.says.lock().hellos.fill(since);
    }

    /// It knows of nobody else any more.
    pub fn forgets_the_others(&self) {
        self.says.lock().hellos.clear();
    }

    /// It was started so long ago.
    pub fn up_for(&self, time: Duration) {
        self.says.lock().up = time;
    }

    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// How often it was asked.
    pub fn connections(&self) -> usize {
        self.server.connections()
    }
}

impl Sentinel {
    fn start(at: usize, ports: &[u16], servers: &[Server], how: &How) -> Self {
        let port = ports[at];
        let directory = tempfile::Builder::new()
            .prefix("relatch-sentinel-")
            .tempdir()
            .expect("the system has a directory for temporary files");
        let id = |at: usize| format!("{at:040x}");
        let plain_port = if how.tls.is_some() {
            super::free_port()
        } else {
            port
        };
        let mut lines = vec![
            format!("port {plain_port}"),
            "bind 127.0.0.1".to_owned(),
            format!("dir {}", directory.path().display()),
            format!("sentinel myid {}", id(at + 1)),
            format!("sentinel monitor {PRIMARY} 127.0.0.1 {} 2", servers[0].port),
            format!(
                "sentinel down-after-milliseconds {PRIMARY} {}",
                DOWN_AFTER.as_millis()
            ),
            format!("sentinel failover-timeout {PRIMARY} 4000"),
            format!("sentinel parallel-syncs {PRIMARY} 2"),
        ];
        for pair in how.tls_arguments(port).chunks_exact(2) {
            lines.push(format!("{} {}", pair[0].trim_start_matches('-'), pair[1]));
        }
        if how.passwords {
            lines.push(format!("requirepass {SENTINEL_PASSWORD}"));
            lines.push(format!("sentinel sentinel-pass {SENTINEL_PASSWORD}"));
            lines.push(format!("sentinel auth-pass {PRIMARY} {PASSWORD}"));
        }
        // They would find each other, within some seconds.
        for replica in &servers[1..] {
            lines.push(format!(
                "sentinel known-replica {PRIMARY} 127.0.0.1 {}",
                replica.port
            ));
        }
        for (other, port) in ports.iter().enumerate().filter(|(other, _)| *other != at) {
            lines.push(format!(
                "sentinel known-sentinel {PRIMARY} 127.0.0.1 {port} {}",
                id(other + 1)
            ));
        }
        let config = directory.path().join("sentinel.conf");
        fs::write(&config, lines.join("\n") + "\n").expect("a file can be written");
        let output = File::create(directory.path().join("sentinel.log")).expect("a file can be written");
        let mut command = command(&*PROGRAM);
        command
            .arg(&config)
            .arg("--sentinel")
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(Stdio::null());
        let process = Process::spawn(command).expect("the server's program starts as a Sentinel");
        let sentinel = Self {
            port,
            plain_port,
            passwords: how.passwords,
            process,
            _directory: directory,
        };
        eventually_blocking(BOUND, "the Sentinel answers", || {
            sentinel.ask(&["PING"]).is_some()
        });
        sentinel
    }

    fn ask(&self, words: &[&str]) -> Option<Reply> {
        let mut client = Client::connect(self.plain_port, BOUND).ok()?;
        if self.passwords {
            client.command(&["AUTH", SENTINEL_PASSWORD]).ok()?;
        }
        client.command(words).ok()
    }

    fn primary(&self) -> u16 {
        let named = self.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY]);
        named
            .as_ref()
            .and_then(|named| named.items().get(1)?.text().parse().ok())
            .unwrap_or(0)
    }

    /// A quorum, and replicas that may be chosen.
    fn could_fail_over(&self) -> bool {
        let quorum = self.ask(&["SENTINEL", "CKQUORUM", PRIMARY]);
        let Some(replicas) = self.ask(&["SENTINEL", "REPLICAS", PRIMARY]) else {
            return false;
        };
        let fit = |replica: &Reply| {
            let fields: Vec<String> = replica.items().iter().map(Reply::text).collect();
            let field = |name: &str| {
                fields
                    .chunks(2)
                    .find(|pair| pair[0] == name)
                    .map(|pair| pair[1].clone())
            };
            field("flags").as_deref() == Some("slave") && field("master-link-status").as_deref() == Some("ok")
        };
        matches!(quorum, Some(Reply::Simple(ok)) if ok.starts_with("OK 3"))
            && replicas.items().iter().filter(|replica| fit(replica)).count() == 2
    }
}

impl std::fmt::Debug for Sentinel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sentinel {} (pid {})", self.port, self.process.pid())
    }
}
