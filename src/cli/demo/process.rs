//! A demo over several processes: each is this program again, and speaks JSON lines with the parent over its stdin and stdout.
//!
//! The parent says first what there is to do; then every line of the child is a question to the referee, answered in order; last,
//! the parent says that it is time to stop. The invariant: an end of either is an end of the pipe, and the other notices.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncBufReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};

use super::referee::{Answer, Referee};
use super::worker::{Crew, Desk, Workers, until};

/// What a child is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) redis: String,
    pub(crate) name: String,
    pub(crate) root: PathBuf,
    pub(crate) workers: Workers,
}

#[derive(Debug, Serialize, Deserialize)]
enum Tell {
    Begin(Plan),
    Answer(Answer),
    Stop,
}

pub(in crate::cli) async fn send(
    pipe: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    pipe.write_all(&line).await?;
    pipe.flush().await?;
    Ok(())
}

/// The line is not repeated: the plan has the server's address in it, and that its password.
pub(in crate::cli) fn parse<T: DeserializeOwned>(line: &str) -> anyhow::Result<T> {
    serde_json::from_str(line).map_err(|error| {
        let (kind, column) = (error.classify(), error.column());
        anyhow!("not a line of this program ({kind:?}, at its byte {column})")
    })
}

/// Whether either side takes it for one of its lines; the error if neither does.
#[cfg(any(test, fuzzing))]
pub(crate) fn reads(line: &str) -> anyhow::Result<()> {
    parse::<Tell>(line)
        .map(drop)
        .or_else(|_| parse::<super::referee::Ask>(line).map(drop))
}

/// This program again, as its hidden command `worker`.
pub(in crate::cli) fn start(worker: &str) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("this program does not know where it is")?;
    let mut command = Command::new(program);
    command
        .arg(worker)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    // Ctrl-C is for the parent, who tells its children to stop.
    #[cfg(unix)]
    command.process_group(0);
    command.spawn().context("a process could not be started")
}

/// Answers a child until it ends, and says how it ended.
pub(crate) async fn serve(
    mut child: Child,
    number: usize,
    plan: Plan,
    referee: Arc<Mutex<Referee>>,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<ExitStatus> {
    let mut stdin = child.stdin.take().context("the child's stdin is piped")?;
    let stdout = child.stdout.take().context("the child's stdout is piped")?;
    let mut lines = BufReader::new(stdout).lines();
    let talk = async {
        send(&mut stdin, &Tell::Begin(plan)).await?;
        let mut told = false;
        loop {
            let line = tokio::select! {
                line = lines.next_line() => line?,
                () = until(&mut stop), if !told => {
                    told = true;
                    send(&mut stdin, &Tell::Stop).await?;
                    continue;
                }
            };
            let Some(line) = line else { return Ok(()) };
            let answer = referee.lock().hear(number, parse(&line)?);
            send(&mut stdin, &Tell::Answer(answer)).await?;
        }
    };
    // A child that was killed breaks the pipe: how it ended says more than that.
    let talked: anyhow::Result<()> = talk.await;
    drop(stdin);
    referee.lock().gone(number);
    let status = child.wait().await?;
    match talked {
        Err(error) if status.success() => Err(error),
        _ => Ok(status),
    }
}

/// The child's side: works until the parent says stop, or is gone.
pub(crate) async fn work() -> anyhow::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let first = lines.next_line().await?.unwrap_or_default();
    let Tell::Begin(plan) = parse(&first).context("this command is for `relatch demo` to start")? else {
        anyhow::bail!("the parent began with something else than a plan");
    };
    let (asks, mut asked) = mpsc::unbounded_channel();
    let (answered, mut unanswered) = mpsc::unbounded_channel::<oneshot::Sender<Answer>>();
    let (stop, stopped) = watch::channel(false);

    // Two tasks, so that neither side ever waits to write while the other does.
    tokio::spawn(async move {
        let mut stdout = tokio::io::stdout();
        while let Some((ask, tell)) = asked.recv().await {
            if answered.send(tell).is_err() || send(&mut stdout, &ask).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            match parse(&line) {
                Ok(Tell::Answer(answer)) => {
                    let Some(tell) = unanswered.recv().await else {
                        break;
                    };
                    // Nobody waits for it if its worker has ended.
                    let _ = tell.send(answer);
                }
                Ok(Tell::Stop) => drop(stop.send_replace(true)),
                _ => break,
            }
        }
        // The parent is gone. Whoever still waits for an answer hears so by the end of the channel.
        stop.send_replace(true);
    });

    let relatch = super::builder().url(plan.redis).connect().await?;
    let crew = Crew {
        lock: relatch.rwlock(&plan.name)?,
        desk: Desk::Away(asks),
        root: plan.root,
        stop: stopped,
    };
    let worked = crew.work(plan.workers).await;
    // Whatever went wrong, nothing is left behind.
    let closed = relatch.close().await;
    worked?;
    Ok(closed?)
}
