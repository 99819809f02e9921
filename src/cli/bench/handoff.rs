//! From "release called" in one process to "running as the next holder" in another, with 1 to 1,000 in line.
//!
//! This program starts itself twice. The parent holds; so many requests get in line, in turns from the two children, and the parent's own
//! last; then the parent releases, and everybody in line holds and releases at once, up to the parent again. Each notes, by the clock that all processes of a
//! machine share, when it was running and when it called release; sorted by their fences these are the handoffs. Those within one process are left out.
//!
//! The floor is the least that could do this between two processes: a script that writes one hash field and publishes, from its call to
//! the running of the task that waits for the message. Floor and handoffs alternate, as many in a row and after the same rest: a processor that
//! has had nothing to do takes its time to wake up, and one that is busy does not. The chain has one release per handoff and nothing else, so
//! the server's own count tells what a handoff costs it.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use indicatif::HumanCount;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, PushInfo, PushKind, Value};
use relatch::{Bare, Relatch, RwLock, WriteGuard};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::ground::{Ground, builder, median, percentile};
use super::report::{Bar, Measured, Row};
use super::server::{self, Server};
use crate::cli::demo::process::{parse, send, start};

const WAITERS: [usize; 5] = [1, 2, 10, 100, 1000];
/// How often each is done in a round.
const TIMES: [usize; 5] = [50, 50, 10, 1, 1];
/// Before the first of a row, for those who wait: their processes have nothing to do.
const REST: Duration = Duration::from_millis(2);
/// Nothing here takes so long.
const BOUND: Duration = Duration::from_secs(30);

const BARE: &str = "a bare script that writes one hash field and publishes";
const SCRIPT: &str = "redis.call('HSET', KEYS[1], 'owner', ARGV[1]) \
    redis.call('PUBLISH', ARGV[2], ARGV[1]) return 1";

/// What a child is told.
#[derive(Debug, Serialize, Deserialize)]
enum Tell {
    Begin {
        redis: String,
        name: String,
        /// The hash that the bare script writes to.
        hash: String,
        /// Where it hears, and where it answers.
        channels: [String; 2],
    },
    /// Get in line, once.
    Enter,
    /// Tell what you have noted.
    Report,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Ready,
    Turns(Vec<Turn>),
    Failed(String),
}

/// One hold, by the clock that all processes share.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Turn {
    fence: u64,
    running_ns: u64,
    released_ns: u64,
}

/// The machine's clock: the same in all of its processes.
#[cfg(unix)]
fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(time).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(not(unix))]
fn now_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// One side of the floor: calls the bare script, and hears of the other's calls.
struct Wire {
    connection: MultiplexedConnection,
    script: Cmd,
    hash: String,
    to: String,
    pushed: mpsc::UnboundedReceiver<PushInfo>,
    /// Messages come here, as in the lock's client.
    _subscriber: MultiplexedConnection,
}

impl Wire {
    async fn new(bare: &Bare, hash: String, [here, to]: [String; 2]) -> anyhow::Result<Self> {
        let (connection, _) = bare.connect().await?;
        let (mut subscriber, pushed) = bare.connect().await?;
        subscriber.subscribe(&here).await?;
        Ok(Self {
            script: server::load(&connection, SCRIPT).await?,
            connection,
            hash,
            to,
            pushed,
            _subscriber: subscriber,
        })
    }

    /// Hands over, with when, and with what else there is to say.
    async fn call(&self, said: u64) -> anyhow::Result<()> {
        let mut call = self.script.clone();
        call.arg(1).arg(&self.hash);
        let now = now_ns();
        call.arg(format!("{now} {said}")).arg(&self.to);
        let _: i64 = call.query_async(&mut self.connection.clone()).await?;
        Ok(())
    }

    /// How long ago the other handed over, and what it said. `None` when the connection is gone.
    async fn hear(&mut self) -> Option<(u64, u64)> {
        loop {
            let push = self.pushed.recv().await?;
            let now = now_ns();
            if push.kind == PushKind::Message
                && let Some(Value::BulkString(message)) = push.data.get(1)
                && let Ok(message) = std::str::from_utf8(message)
                && let Some((called, said)) = message.split_once(' ')
            {
                let called: u64 = called.parse().ok()?;
                return Some((now.saturating_sub(called), said.parse().ok()?));
            }
        }
    }
}

/// A child, seen from the parent.
struct Helper {
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Helper {
    async fn new(ground: &Ground, begin: &Tell) -> anyhow::Result<Self> {
        let mut child = start("bench-worker")?;
        let mut helper = Self {
            stdin: child.stdin.take().context("the child's stdin is piped")?,
            lines: BufReader::new(child.stdout.take().context("the child's stdout is piped")?).lines(),
        };
        // By what it keeps here it is told to end, whatever becomes of us.
        ground.child(child);
        helper.tell(begin).await?;
        match helper.answer().await? {
            Answer::Ready => Ok(helper),
            other => bail!("the child began with {other:?}"),
        }
    }

    async fn tell(&mut self, tell: &Tell) -> anyhow::Result<()> {
        send(&mut self.stdin, tell)
            .await
            .context("a child of this program is gone")
    }

    async fn answer(&mut self) -> anyhow::Result<Answer> {
        let line = timeout(BOUND, self.lines.next_line())
            .await
            .context("a child of this program does not answer")??;
        match parse(&line.context("a child of this program is gone")?)? {
            Answer::Failed(why) => bail!("a child of this program failed: {why}"),
            answer => Ok(answer),
        }
    }

    async fn turns(&mut self) -> anyhow::Result<Vec<Turn>> {
        self.tell(&Tell::Report).await?;
        match self.answer().await? {
            Answer::Turns(turns) => Ok(turns),
            other => bail!("the child answered {other:?}"),
        }
    }
}

/// What was measured with so many in line.
#[derive(Default)]
struct Chain {
    latencies: Vec<f64>,
    /// The same of the bare script.
    floors: Vec<f64>,
    /// Per handoff, a number for each chain.
    commands: Vec<f64>,
    server: Vec<f64>,
    bare: Vec<f64>,
}

pub(crate) async fn measure(ground: &Ground) -> anyhow::Result<Measured> {
    let Some(redis) = &ground.redis else {
        return super::needs_redis();
    };
    let client = ground.client().await?;
    let name = ground.name("handed");
    let lock = client.rwlock(&name)?;
    // The last of a name's keys: deleted with it, and of no use to a lock without marks.
    let hash_name = ground.name("bare");
    let hash = Bare::keys(&hash_name)?.last().cloned().unwrap_or(hash_name);
    let channel = |of: usize| format!("{name}/{of}");
    let mut helpers = Vec::new();
    for number in 1..=2 {
        let begin = Tell::Begin {
            redis: ground.url().into(),
            name: name.clone(),
            hash: hash.clone(),
            channels: [channel(number), channel(0)],
        };
        helpers.push(Helper::new(ground, &begin).await?);
    }
    let mut wire = Wire::new(&redis.bare_server, hash.clone(), [channel(0), channel(1)]).await?;
    wire.call(0).await?;
    ensure!(wire.hear().await.is_some(), "the connection is gone");
    redis
        .ask::<bool>(redis::cmd("PEXPIRE").arg(&hash).arg(120_000))
        .await?;

    let sizes: Vec<(usize, usize)> = WAITERS
        .into_iter()
        .zip(TIMES)
        .filter(|(waiters, _)| !ground.quick || *waiters <= 100)
        .map(|(waiters, times)| (waiters, if ground.quick { times.div_ceil(5) } else { times }))
        .collect();
    let mut chains: Vec<Chain> = sizes.iter().map(|_| Chain::default()).collect();
    let mut held = Some(lock.write().await?);
    ground
        .rounds(if ground.quick { 1 } else { 3 }, async |_| {
            for ((waiters, times), chain) in sizes.iter().zip(&mut chains) {
                for _ in 0..*times {
                    let guard = held.take().context("the parent holds between two chains")?;
                    held = Some(go_round(redis, &client, &lock, &mut helpers, guard, *waiters, chain).await?);
                    exchange(redis, &mut wire, waiters.div_ceil(2), chain).await?;
                }
            }
            Ok(())
        })
        .await?;
    drop(held);

    let alone = chains.first().map_or(f64::NAN, |chain| median(&chain.commands));
    let most = sizes.last().map(|(waiters, _)| *waiters);
    let mut rows = Vec::new();
    for ((waiters, _), chain) in sizes.iter().zip(&chains) {
        let judged = *waiters == 2 || Some(*waiters) == most;
        let judge = |row: Row, bar| if judged { row.bar(bar) } else { row };
        // With one in line the parent hands over to itself.
        if *waiters > 1 {
            let row = Row::new(
                format!("{} in line, median", HumanCount(*waiters as u64)),
                median(&chain.latencies),
                "µs",
            )
            .floor(BARE, median(&chain.floors))
            .at("median, µs", "in line", *waiters);
            rows.push(judge(row, Bar::RatioAtMost(1.3)));
            let late = percentile(&chain.latencies, 0.99);
            let row = Row::new(
                format!("{} in line, 99 of 100 are quicker", HumanCount(*waiters as u64)),
                late,
                "µs",
            )
            .floor("the bare script's median", median(&chain.floors))
            .at("99 of 100, µs", "in line", *waiters);
            rows.push(judge(row, Bar::RatioAtMost(4.0)));
            let late = percentile(&chain.floors, 0.99);
            rows.push(
                Row::new(
                    format!(
                        "the bare script, {} in a row, 99 of 100",
                        HumanCount(*waiters as u64)
                    ),
                    late,
                    "µs",
                )
                .floor("its median", median(&chain.floors)),
            );
        }
    }
    for ((waiters, _), chain) in sizes.iter().zip(&chains) {
        let row = Row::new(
            format!(
                "{} in line, commands in Redis per handoff",
                HumanCount(*waiters as u64)
            ),
            median(&chain.commands),
            "commands",
        )
        .floor("with one in line", alone);
        rows.push(if Some(*waiters) == most {
            row.bar(Bar::RatioAtMost(1.0))
        } else {
            row
        });
    }
    for ((waiters, _), chain) in sizes.iter().zip(&chains) {
        rows.push(
            Row::new(
                format!("{} in line, server time per handoff", HumanCount(*waiters as u64)),
                median(&chain.server),
                "µs",
            )
            .floor(BARE, median(&chain.bare)),
        );
    }
    Ok(Measured::Rows(rows))
}

/// Everybody in line once, from the parent to the parent.
async fn go_round(
    redis: &Server,
    client: &Relatch,
    lock: &RwLock,
    helpers: &mut [Helper],
    guard: WriteGuard,
    waiters: usize,
    chain: &mut Chain,
) -> anyhow::Result<WriteGuard> {
    let count = helpers.len().max(1);
    for number in 0..waiters - 1 {
        if let Some(helper) = helpers.get_mut(number % count) {
            helper.tell(&Tell::Enter).await?;
        }
    }
    in_line(client, lock, waiters - 1).await?;
    let again = lock.write().into_future();
    let mut again = JoinSet::from_iter([async move {
        let guard = again.await;
        (guard, now_ns())
    }]);
    in_line(client, lock, waiters).await?;
    sleep(REST).await;

    let before = redis.stats().await?;
    let mut turns = vec![(
        count,
        Turn {
            fence: guard.fence(),
            running_ns: 0,
            released_ns: now_ns(),
        },
    )];
    guard.release().await?;
    let (guard, running_ns) = timeout(BOUND, again.join_next())
        .await
        .context("the chain broke")?
        .context("one task was started")??;
    let guard = guard?;
    let after = redis.stats().await?.since(&before);
    turns.push((
        count,
        Turn {
            fence: guard.fence(),
            running_ns,
            released_ns: 0,
        },
    ));
    if waiters > 1 {
        for (number, helper) in helpers.iter_mut().enumerate() {
            turns.extend(helper.turns().await?.into_iter().map(|turn| (number, turn)));
        }
    }
    ensure!(
        turns.len() == waiters + 1,
        "{} turns were noted, {waiters} in line",
        turns.len()
    );
    turns.sort_by_key(|(_, turn)| turn.fence);
    let handed = turns.iter().zip(turns.iter().skip(1));
    let across = handed.filter(|((from, _), (to, _))| from != to);
    chain.latencies.extend(
        across.map(|((_, from), (_, to))| to.running_ns.saturating_sub(from.released_ns) as f64 / 1000.0),
    );
    let handoffs = waiters as f64;
    chain.commands.push(after.commands() / handoffs);
    chain.server.push(after.scripts().1 / handoffs);
    Ok(guard)
}

/// The floor: from the parent to a child and back, so many times in a row.
async fn exchange(redis: &Server, wire: &mut Wire, times: usize, chain: &mut Chain) -> anyhow::Result<()> {
    sleep(REST).await;
    let before = redis.stats().await?;
    for _ in 0..times {
        wire.call(0).await?;
        // How long ours took it tells with its own.
        let (theirs, ours) = timeout(BOUND, wire.hear())
            .await?
            .context("the connection is gone")?;
        chain.floors.extend([theirs, ours].map(|ns| ns as f64 / 1000.0));
    }
    let (calls, usec) = redis.stats().await?.since(&before).scripts();
    chain.bare.push(usec / calls);
    Ok(())
}

/// Until so many wait.
async fn in_line(client: &Relatch, lock: &RwLock, waiters: usize) -> anyhow::Result<()> {
    let until = tokio::time::Instant::now() + BOUND;
    let mut rest = Duration::from_micros(200);
    while client.inspect(lock.name()).await?.waiter_count != waiters as u64 {
        ensure!(tokio::time::Instant::now() < until, "they do not get in line");
        sleep(rest).await;
        rest = (rest * 2).min(Duration::from_millis(20));
    }
    Ok(())
}

/// The child's side: until the parent is gone.
pub(crate) async fn work() -> anyhow::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let first = lines.next_line().await?.unwrap_or_default();
    let Tell::Begin {
        redis,
        name,
        hash,
        channels,
    } = parse(&first).context("this command is for `relatch bench` to start")?
    else {
        bail!("the parent began with something else");
    };
    let mut stdout = tokio::io::stdout();
    let client = match builder().url(&redis).connect().await {
        Ok(client) => client,
        Err(error) => {
            send(&mut stdout, &Answer::Failed(error.to_string())).await?;
            return Ok(());
        }
    };
    let lock = client.rwlock(&name)?;
    let bare = client.bare(&name).await?;
    let mut wire = Wire::new(&bare, hash, channels).await?;
    tokio::spawn(async move {
        while let Some((took, _)) = wire.hear().await {
            if wire.call(took).await.is_err() {
                return;
            }
        }
    });
    send(&mut stdout, &Answer::Ready).await?;

    let mut waiting = JoinSet::new();
    while let Some(line) = lines.next_line().await? {
        match parse(&line)? {
            Tell::Enter => {
                let asked = lock.write();
                waiting.spawn(async move {
                    let guard = asked.await?;
                    let running_ns = now_ns();
                    let (fence, released_ns) = (guard.fence(), now_ns());
                    guard.release().await?;
                    Ok::<_, relatch::Error>(Turn {
                        fence,
                        running_ns,
                        released_ns,
                    })
                });
            }
            Tell::Report => {
                let mut turns = Vec::new();
                let mut failed = None;
                while let Some(done) = waiting.join_next().await {
                    match done? {
                        Ok(turn) => turns.push(turn),
                        Err(error) => failed = Some(error.to_string()),
                    }
                }
                let answer = failed.map_or(Answer::Turns(turns), Answer::Failed);
                send(&mut stdout, &answer).await?;
            }
            Tell::Begin { .. } => bail!("the parent began twice"),
        }
    }
    // The parent is gone, or has enough: whoever is in line leaves it.
    waiting.shutdown().await;
    Ok(client.close().await?)
}
