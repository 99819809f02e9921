//! A real Redis server for one test: its own port, its own directory, nobody else's data.
//!
//! The invariant: **a `RedisServer` that exists answers, and it is the one that was started.** Every
//! start waits until the process on the port tells the process id of ours, so a test never talks to
//! a neighbour that was quicker to take the port. Dropping it kills it, stopped or not.
//!
//! The methods block, and briefly. They speak to the server directly, past any `Proxy`.

use super::child::{Process, command};
use super::resp::{Client, Reply};
use super::wait::BOUND;
use parking_lot::Mutex;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Ports to try before giving up: each failure means that somebody else took one just then.
const ATTEMPTS: usize = 20;

/// Valkey is what some systems install in Redis' stead; the variable is for trying other versions.
pub(super) static PROGRAM: LazyLock<OsString> = LazyLock::new(|| {
    let named = std::env::var_os("RELATCH_REDIS_SERVER");
    let usual = ["redis-server", "valkey-server"].map(OsString::from);
    named
        .into_iter()
        .chain(usual)
        .find(|program| {
            let version = Command::new(program).arg("--version").output();
            version.is_ok_and(|output| output.status.success())
        })
        .expect("no redis-server found: tests/run installs it")
});

/// A node of a cluster older than 7.0 has its bus 10,000 ports further on, come what may.
static CHOOSES_BUS_PORT: LazyLock<bool> = LazyLock::new(|| {
    let version = Command::new(&*PROGRAM).arg("--version").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    !version.is_ok_and(|version| version.contains("v=6."))
});

/// A running server. The default has no persistence: what it held dies with it.
pub struct RedisServer {
    port: u16,
    /// For the cluster bus, where it is a node of a cluster.
    bus_port: u16,
    /// What was given beyond the defaults; a restart gives the same.
    arguments: Vec<String>,
    persistent: bool,
    /// A mutex, so that tests can share a server and still stop and kill it.
    running: Mutex<Running>,
    /// The last field: it goes after the process that writes there.
    directory: TempDir,
}

struct Running {
    process: Process,
    /// Counts the starts without data: each has a directory of its own.
    generation: u32,
}

impl RedisServer {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further arguments of `redis-server`, for instance `["--maxmemory", "2mb"]`. They win over
    /// the defaults. Of `--requirepass` the methods here know the password; `url()` does not tell it.
    pub fn start_with(arguments: &[&str]) -> Self {
        Self::launch(arguments, false)
    }

    /// A server that has written each change to disk before it answers: see `restart_with_data`.
    pub fn start_persistent() -> Self {
        Self::start_persistent_with(&[])
    }

    /// The same, with further arguments.
    pub fn start_persistent_with(arguments: &[&str]) -> Self {
        let mut all = vec!["--appendonly", "yes", "--appendfsync", "always"];
        all.extend(arguments);
        Self::launch(&all, true)
    }

    fn launch(arguments: &[&str], persistent: bool) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
        let directory = tempfile::Builder::new()
            .prefix("relatch-redis-")
            .tempdir()
            .expect("the system has a directory for temporary files");
        for _ in 0..ATTEMPTS {
            let port = super::free_port();
            let bus_port = if *CHOOSES_BUS_PORT {
                super::free_port()
            } else {
                port + 10_000
            };
            if let Some(process) = spawn(port, bus_port, &arguments, &directory, 0) {
                let running = Mutex::new(Running {
                    process,
                    generation: 0,
                });
                return Self {
                    port,
                    bus_port,
                    arguments,
                    persistent,
                    running,
                    directory,
                };
            }
        }
        panic!("{ATTEMPTS} free ports in a row were taken before redis-server could bind them");
    }

    /// `redis://127.0.0.1:PORT`, without a password.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn bus_port(&self) -> u16 {
        self.bus_port
    }

    pub fn pid(&self) -> u32 {
        self.running.lock().process.pid()
    }

    /// SIGSTOP. On return it stands still; the kernel still accepts connections on its behalf.
    pub fn stop(&self) {
        self.running.lock().process.stop();
    }

    /// SIGCONT: it goes on with what it has received meanwhile.
    pub fn cont(&self) {
        self.running.lock().process.cont();
    }

    /// SIGKILL. On return it is gone and its port refuses.
    pub fn kill(&self) {
        self.running.lock().process.kill();
    }

    /// Kills it and starts it on the same port, with nothing of what it held.
    pub fn restart_empty(&self) {
        let mut running = self.running.lock();
        running.generation += 1;
        self.restart(&mut running);
    }

    /// Kills it and starts it on the same port, with what it had written to disk.
    ///
    /// # Panics
    /// It is not persistent: that would be `restart_empty` by another name.
    pub fn restart_with_data(&self) {
        assert!(
            self.persistent,
            "only start_persistent() keeps data over a restart"
        );
        self.restart(&mut self.running.lock());
    }

    fn restart(&self, running: &mut Running) {
        running.process.kill();
        for _ in 0..ATTEMPTS {
            let started = spawn(
                self.port,
                self.bus_port,
                &self.arguments,
                &self.directory,
                running.generation,
            );
            if let Some(process) = started {
                running.process = process;
                return;
            }
        }
        panic!("somebody took port {} between kill and restart", self.port);
    }

    /// A connection to the server itself.
    ///
    /// # Errors
    /// The server is killed, or stopped and the password is not accepted in time.
    pub fn client(&self) -> io::Result<Client> {
        connect(self.port, &self.arguments)
    }

    /// Runs one command; an error reply is a value.
    ///
    /// # Errors
    /// The server is killed, or stopped: then after 10 s.
    pub fn try_reply(&self, words: &[&str]) -> io::Result<Reply> {
        self.client()?.command(words)
    }

    /// Runs one command; an error reply is a value, no reply a panic.
    #[track_caller]
    pub fn reply(&self, words: &[&str]) -> Reply {
        match self.try_reply(words) {
            Ok(reply) => reply,
            Err(error) => panic!("{words:?} got no reply: {error}"),
        }
    }

    /// Runs one command and gives its reply as text, arrays one element a line, nil as "". An error
    /// reply is a panic.
    #[track_caller]
    pub fn cli(&self, words: &[&str]) -> String {
        let reply = self.reply(words);
        assert!(!reply.is_error(), "{words:?} was refused: {reply:?}");
        reply.text()
    }

    /// Every key there is, sorted.
    #[track_caller]
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self
            .reply(&["KEYS", "*"])
            .items()
            .iter()
            .map(Reply::text)
            .collect();
        keys.sort_unstable();
        keys
    }

    /// One field of `INFO`, for instance `("clients", "connected_clients")`.
    #[track_caller]
    pub fn info(&self, section: &str, field: &str) -> Option<String> {
        field_of(&self.cli(&["INFO", section]), field)
    }

    /// The same of a server that may be away, or just closing connections.
    pub fn try_info(&self, section: &str, field: &str) -> Option<String> {
        let reply = self.try_reply(&["INFO", section]).ok()?;
        field_of(&reply.text(), field)
    }

    /// How often a command ran since the start or `reset_stats`; of commands called by scripts too.
    /// In lower case, `evalsha`; a subcommand as `client|setname`. The helpers here run `info`, `keys`
    /// and what they were asked to.
    #[track_caller]
    pub fn command_count(&self, command: &str) -> u64 {
        self.command_stat(command, "calls")
    }

    /// The server's own time for a command, in microseconds, of all its calls.
    #[track_caller]
    pub fn command_micros(&self, command: &str) -> u64 {
        self.command_stat(command, "usec")
    }

    #[track_caller]
    fn command_stat(&self, command: &str, stat: &str) -> u64 {
        let Some(stats) = self.info("commandstats", &format!("cmdstat_{command}")) else {
            return 0; // A command that never ran has no line.
        };
        stats
            .split(',')
            .find_map(|pair| pair.strip_prefix(stat)?.strip_prefix('=')?.parse().ok())
            .unwrap_or_else(|| panic!("no {stat} in {stats:?}"))
    }

    /// Sets every command's count to 0.
    #[track_caller]
    pub fn reset_stats(&self) {
        self.cli(&["CONFIG", "RESETSTAT"]);
    }

    /// What the server printed, over all its starts.
    pub fn log(&self) -> String {
        log(&self.directory)
    }
}

fn field_of(info: &str, field: &str) -> Option<String> {
    info.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .map(str::to_owned)
}

fn connect(port: u16, arguments: &[String]) -> io::Result<Client> {
    let mut client = Client::connect(port, BOUND)?;
    let mut pairs = arguments.windows(2);
    if let Some(pair) = pairs.find(|pair| pair[0] == "--requirepass") {
        client.command(&["AUTH", &pair[1]])?;
    }
    Ok(client)
}

fn log(directory: &TempDir) -> String {
    let bytes = fs::read(directory.path().join("server.log")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Starts a server and waits until it answers. `None`: somebody else has the port.
fn spawn(
    port: u16,
    bus_port: u16,
    arguments: &[String],
    directory: &TempDir,
    generation: u32,
) -> Option<Process> {
    let fail = |what: &str, error: &dyn std::fmt::Display| -> ! {
        panic!("{what}: {error}\nredis-server said:\n{}", log(directory))
    };
    let data = directory.path().join(format!("data-{generation}"));
    fs::create_dir_all(&data).unwrap_or_else(|error| fail("cannot make a directory", &error));
    let output = File::options()
        .create(true)
        .append(true)
        .open(directory.path().join("server.log"))
        .unwrap_or_else(|error| fail("cannot write a log", &error));
    let errors = output
        .try_clone()
        .unwrap_or_else(|error| fail("cannot write a log", &error));
    let before = log(directory).len();

    let mut command = command(&*PROGRAM);
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
        .arg("--dir")
        .arg(&data)
        .args(arguments)
        .args(bus(arguments, bus_port))
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    let mut process =
        Process::spawn(command).unwrap_or_else(|error| fail("cannot start redis-server", &error));

    let end = Instant::now() + BOUND;
    loop {
        if let Some(status) = process.ended() {
            let text = log(directory);
            if text[before..].contains("Address already in use") {
                return None;
            }
            fail("redis-server ended at once", &status);
        }
        if answers(port, arguments, process.pid()) {
            return Some(process);
        }
        if Instant::now() >= end {
            process.kill();
            fail("redis-server is not ready", &format!("within {BOUND:?}"));
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// The usual bus port may be anybody's.
fn bus(arguments: &[String], bus_port: u16) -> Vec<String> {
    let enabled = arguments
        .windows(2)
        .any(|pair| pair[0] == "--cluster-enabled" && pair[1] == "yes");
    match enabled && *CHOOSES_BUS_PORT {
        true => vec!["--cluster-port".to_owned(), bus_port.to_string()],
        false => Vec::new(),
    }
}

/// Whether the server on this port is ready, and is the process that we started.
fn answers(port: u16, arguments: &[String], pid: u32) -> bool {
    let pong = |client: &mut Client| client.command(&["PING"]);
    let Ok(mut client) = connect(port, arguments) else {
        return false;
    };
    // Not yet: it loads its data, or is a neighbour with a password.
    if !matches!(pong(&mut client), Ok(Reply::Simple(word)) if word == "PONG") {
        return false;
    }
    match client.command(&["INFO", "server"]) {
        Ok(Reply::Bulk(info)) => field_of(&info, "process_id") == Some(pid.to_string()),
        // A test took INFO away from everybody. Then the answer to PING has to do.
        Ok(reply) => reply.is_error(),
        Err(_) => false,
    }
}
