//! The program in Java, as a child: a line of JSON in, a line out.
//!
//! It is started once, so that its virtual machine is warm, and ends when its input does.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::job::{Desertion, Dropped, Drops, Job, Turn};

/// No job takes so long.
const BOUND: Duration = Duration::from_secs(180);

pub(crate) struct Redisson {
    pub(crate) version: String,
    wire: Mutex<Wire>,
}

struct Wire {
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// Whether the last question was answered: else the next answer would be taken for another's.
    in_step: bool,
    /// Killed when this is dropped.
    _child: Child,
}

impl Redisson {
    /// `target` is where Maven has put the program and its libraries.
    pub(crate) async fn start(target: &Path) -> anyhow::Result<Self> {
        let classes = [target.join("peer-redisson.jar"), target.join("lib").join("*")];
        let mut child = Command::new("java")
            .args(["-Xmx1g", "-XX:+UseSerialGC", "-cp"])
            .arg(std::env::join_paths(classes)?)
            .arg("Peer")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .context("java can't be started")?;
        let stdin = child.stdin.take().context("its stdin is piped")?;
        let stdout = child.stdout.take().context("its stdout is piped")?;
        let wire = Wire {
            stdin,
            lines: BufReader::new(stdout).lines(),
            in_step: true,
            _child: child,
        };
        let mut redisson = Self {
            version: String::new(),
            wire: Mutex::new(wire),
        };
        redisson.version = redisson.ask("hello", json!({})).await?;
        Ok(redisson)
    }

    async fn ask<T: DeserializeOwned>(&self, what: &str, with: impl Serialize) -> anyhow::Result<T> {
        let mut asked = serde_json::to_value(with)?;
        asked["op"] = what.into();
        let mut wire = self.wire.lock().await;
        ensure!(
            wire.in_step,
            "Redisson's program was left in the middle of something else"
        );
        wire.in_step = false;
        let mut line = serde_json::to_string(&asked)?;
        line.push('\n');
        let answer = timeout(BOUND, async {
            wire.stdin.write_all(line.as_bytes()).await?;
            wire.stdin.flush().await?;
            wire.lines.next_line().await
        });
        let answer = answer
            .await
            .with_context(|| format!("Redisson's program has not done {what} in {BOUND:?}"))??
            .context("Redisson's program has ended")?;
        wire.in_step = true;
        let mut answer: Value = serde_json::from_str(&answer)?;
        if let Some(why) = answer.get("failed").and_then(Value::as_str) {
            bail!("{why}");
        }
        Ok(serde_json::from_value(answer["ok"].take())?)
    }

    pub(crate) async fn open(&self, url: &str, clients: usize, plain: bool) -> anyhow::Result<()> {
        let lease_ms = crate::crates::LEASE.as_millis() as u64;
        let with = json!({"url": url, "clients": clients, "plain": plain, "lease_ms": lease_ms});
        self.ask("open", with).await
    }

    pub(crate) async fn run(&self, job: &Job) -> anyhow::Result<Vec<Turn>> {
        self.ask("run", job).await
    }

    pub(crate) async fn crowd(&self, name: &str, readers: usize) -> anyhow::Result<()> {
        self.ask("crowd", json!({"name": name, "readers": readers})).await
    }

    pub(crate) async fn drops(&self, drops: &Drops) -> anyhow::Result<Dropped> {
        self.ask("drops", drops).await
    }

    pub(crate) async fn desert(&self, desertion: &Desertion) -> anyhow::Result<Option<f64>> {
        self.ask("desert", desertion).await
    }

    pub(crate) async fn close(&self) -> anyhow::Result<()> {
        self.ask("close", json!({})).await
    }
}
