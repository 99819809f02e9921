//! A Redis server of this run's own, and what it tells of itself.
//!
//! It listens on the loopback only, keeps nothing, and is killed when this is dropped, however the run ends.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Cmd, ConnectionInfo, IntoConnectionInfo as _, ProtocolVersion, PushInfo};
use tempfile::TempDir;
use tokio::sync::mpsc;

const BOUND: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) port: u16,
    /// Where the other nodes of a cluster talk to it.
    bus: u16,
    pub(crate) version: String,
    process: Child,
    connection: MultiplexedConnection,
    /// The last field: it goes after the process that lives there.
    _directory: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// As the lock's own connections are: multiplexed, RESP3, TCP_NODELAY.
pub(crate) async fn connect(
    url: &str,
) -> anyhow::Result<(MultiplexedConnection, mpsc::UnboundedReceiver<PushInfo>)> {
    let info: ConnectionInfo = url.into_connection_info()?;
    let login = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let info = info
        .set_redis_settings(login)
        .set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let (sender, pushed) = mpsc::unbounded_channel();
    let config = AsyncConnectionConfig::new()
        .set_push_sender(sender)
        .set_response_timeout(Some(BOUND));
    let connection = redis::Client::open(info)?
        .get_multiplexed_async_connection_with_config(&config)
        .await?;
    Ok((connection, pushed))
}

impl Server {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Self::start_with(false).await
    }

    /// Masters that have the slots of a cluster between them.
    pub(crate) async fn start_cluster(masters: u16) -> anyhow::Result<Vec<Self>> {
        const SLOTS: u32 = 16_384;
        let mut servers = Vec::new();
        for _ in 0..masters {
            servers.push(Self::start_with(true).await?);
        }
        let share = |number: usize| SLOTS * number as u32 / u32::from(masters);
        for (number, server) in servers.iter().enumerate() {
            let mut slots = redis::cmd("CLUSTER");
            slots
                .arg("ADDSLOTSRANGE")
                .arg(share(number))
                .arg(share(number + 1) - 1);
            server.ask::<()>(&slots).await?;
            let mut meet = redis::cmd("CLUSTER");
            meet.arg("MEET")
                .arg("127.0.0.1")
                .arg(servers[0].port)
                .arg(servers[0].bus);
            server.ask::<()>(&meet).await?;
        }
        let until = Instant::now() + BOUND;
        for server in &servers {
            let known = |text: &str| {
                text.contains("cluster_state:ok")
                    && text.contains(&format!("cluster_known_nodes:{masters}\r"))
            };
            while !known(&server.ask::<String>(redis::cmd("CLUSTER").arg("INFO")).await?) {
                ensure!(Instant::now() < until, "the servers do not come to be a cluster");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(servers)
    }

    async fn start_with(cluster: bool) -> anyhow::Result<Self> {
        let named = std::env::var("RELATCH_REDIS_SERVER").ok();
        let program = named
            .into_iter()
            .chain(["redis-server", "valkey-server"].map(String::from))
            .find(|program| {
                let version = Command::new(program).arg("--version").output();
                version.is_ok_and(|output| output.status.success())
            })
            .context("no redis-server found: tests/run installs it, or name one in RELATCH_REDIS_SERVER")?;
        for _ in 0..10 {
            let [one, other] = [
                TcpListener::bind("127.0.0.1:0")?,
                TcpListener::bind("127.0.0.1:0")?,
            ];
            let ports = [one.local_addr()?.port(), other.local_addr()?.port()];
            drop([one, other]);
            let directory = tempfile::Builder::new().prefix("relatch-peers-").tempdir()?;
            let mut command = Command::new(&program);
            if cluster {
                command.args([
                    "--cluster-enabled",
                    "yes",
                    "--cluster-port",
                    &ports[1].to_string(),
                ]);
            }
            let process = command
                .args(["--port", &ports[0].to_string(), "--bind", "127.0.0.1"])
                .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
                .args(["--maxclients", "10000"])
                .arg("--dir")
                .arg(directory.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .with_context(|| format!("{program} can't be started"))?;
            if let Some(server) = Self::reach(ports, process, directory).await? {
                return Ok(server);
            }
        }
        bail!("redis-server could not be started on ten ports that had been free")
    }

    /// `None`: it ended, as somebody else had the port.
    async fn reach(
        [port, bus]: [u16; 2],
        mut process: Child,
        directory: TempDir,
    ) -> anyhow::Result<Option<Self>> {
        let url = format!("redis://127.0.0.1:{port}");
        let until = Instant::now() + BOUND;
        loop {
            if process.try_wait()?.is_some() {
                return Ok(None);
            }
            if let Ok((connection, _)) = connect(&url).await {
                let mut server = Self {
                    url: url.clone(),
                    port,
                    bus,
                    version: String::new(),
                    process,
                    connection,
                    _directory: directory,
                };
                let info = server.info("server").await?;
                let pid = info.get("process_id").map(String::as_str);
                if pid != Some(server.process.id().to_string().as_str()) {
                    return Ok(None);
                }
                let version = info.get("valkey_version").or(info.get("redis_version"));
                server.version = version.cloned().unwrap_or_default();
                return Ok(Some(server));
            }
            if Instant::now() > until {
                let _ = process.kill();
                bail!("redis-server does not answer on port {port}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn ask<T: redis::FromRedisValue>(&self, command: &Cmd) -> anyhow::Result<T> {
        Ok(command.query_async(&mut self.connection.clone()).await?)
    }

    pub(crate) async fn info(&self, section: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let text: String = self.ask(redis::cmd("INFO").arg(section)).await?;
        let field = |line: &str| {
            let (field, value) = line.split_once(':')?;
            Some((field.to_owned(), value.trim().to_owned()))
        };
        Ok(text.lines().filter_map(field).collect())
    }

    /// A number of `INFO`.
    pub(crate) async fn number(&self, section: &str, field: &str) -> anyhow::Result<f64> {
        let info = self.info(section).await?;
        let value = info
            .get(field)
            .with_context(|| format!("the server does not tell {field}"))?;
        Ok(value.parse()?)
    }

    /// Deletes everything: the server is this run's own.
    pub(crate) async fn flush(&self) -> anyhow::Result<()> {
        self.ask::<()>(redis::cmd("FLUSHALL").arg("SYNC")).await
    }

    pub(crate) async fn spent(&self) -> anyhow::Result<Spent> {
        let cpu = self.info("cpu").await?;
        let seconds = |field: &str| cpu.get(field).and_then(|value| value.parse::<f64>().ok());
        // What its one thread that runs commands did; older servers tell only of all threads.
        let main = seconds("used_cpu_user_main_thread").zip(seconds("used_cpu_sys_main_thread"));
        let all = seconds("used_cpu_user").zip(seconds("used_cpu_sys"));
        let (user, system) = main
            .or(all)
            .context("the server does not tell what time it took")?;
        let mut spent = Spent {
            seconds: crate::job::now_ns() as f64 / 1e9,
            cpu_us: (user + system) * 1e6,
            ..Spent::default()
        };
        for (command, numbers) in self.info("commandstats").await? {
            let Some(command) = command.strip_prefix("cmdstat_") else {
                continue;
            };
            let number = |wanted: &str| {
                let find = |part: &str| part.strip_prefix(wanted)?.strip_prefix('=')?.parse::<f64>().ok();
                numbers.split(',').find_map(find).unwrap_or(0.0)
            };
            // But for our own looking.
            if command != "info" {
                spent.commands += number("calls");
            }
            if command.starts_with("eval") {
                spent.scripts += number("calls");
                spent.script_us += number("usec");
            }
            if matches!(command, "publish" | "spublish") {
                spent.published += number("calls");
            }
        }
        let stats = self.info("stats").await?;
        let stat = |field: &str| stats.get(field).and_then(|value| value.parse::<f64>().ok());
        spent.bytes_in = stat("total_net_input_bytes").unwrap_or(f64::NAN);
        spent.bytes_out = stat("total_net_output_bytes").unwrap_or(f64::NAN);
        Ok(spent)
    }

    /// Between two looks, so that what is looked at is not the looking.
    pub(crate) async fn looking(&self) -> anyhow::Result<Spent> {
        let before = self.spent().await?;
        Ok(self.spent().await?.since(before))
    }

    pub(crate) async fn memory(&self) -> anyhow::Result<f64> {
        self.number("memory", "used_memory").await
    }

    pub(crate) async fn script(&self, source: &str) -> anyhow::Result<Cmd> {
        let sha: String = self.ask(redis::cmd("SCRIPT").arg("LOAD").arg(source)).await?;
        ensure!(sha.len() == 40, "the server calls a script {sha}");
        let mut call = redis::cmd("EVALSHA");
        call.arg(sha);
        Ok(call)
    }
}

/// What the server has done since it started; or, as a difference, in a while.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// By our clock, when it was told; as a difference, how long the while was.
    pub(crate) seconds: f64,
    pub(crate) cpu_us: f64,
    /// All of them, those within scripts as well.
    pub(crate) commands: f64,
    pub(crate) scripts: f64,
    /// With all that they called, by the clock.
    pub(crate) script_us: f64,
    pub(crate) published: f64,
    pub(crate) bytes_in: f64,
    pub(crate) bytes_out: f64,
}

impl Spent {
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            seconds: self.seconds - earlier.seconds,
            cpu_us: self.cpu_us - earlier.cpu_us,
            commands: self.commands - earlier.commands,
            scripts: self.scripts - earlier.scripts,
            script_us: self.script_us - earlier.script_us,
            published: self.published - earlier.published,
            bytes_in: self.bytes_in - earlier.bytes_in,
            bytes_out: self.bytes_out - earlier.bytes_out,
        }
    }
}
