//! An uncontended acquisition and its release, by one task: against two bare scripts, by the clock and by what the server counts.
//!
//! On the embedded backend against a pair on Tokio's `RwLock`.

use std::time::{Duration, Instant};

use relatch::RwLock;

use super::ground::{Ground, median, micros};
use super::report::{Bar, Measured, Row};
use super::server::Server;

/// Pairs in a row: long enough for the clock, short enough to alternate within what else the machine does.
const ON_REDIS: u32 = 200;
const EMBEDDED: u32 = 2000;

pub(crate) const TWO_BARE: &str = "two bare EVALSHA \"return 1\"";
pub(crate) const TOKIO: &str = "a pair on tokio::sync::RwLock";

pub(crate) async fn measure(ground: &Ground) -> anyhow::Result<Measured> {
    let client = ground.client().await?;
    let (write, read) = (
        client.rwlock(&ground.name("write"))?,
        client.rwlock(&ground.name("read"))?,
    );
    let rows = match &ground.redis {
        Some(redis) => on_redis(ground, redis, &write, &read).await?,
        None => embedded(ground, &write, &read).await?,
    };
    Ok(Measured::Rows(rows))
}

pub(crate) async fn writes(lock: &RwLock, pairs: u32) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    for _ in 0..pairs {
        lock.write().await?.release().await?;
    }
    Ok(begun.elapsed() / pairs)
}

pub(crate) async fn reads(lock: &RwLock, pairs: u32) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    for _ in 0..pairs {
        lock.read().await?.release().await?;
    }
    Ok(begun.elapsed() / pairs)
}

pub(crate) async fn bare(redis: &Server, pairs: u32) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    for _ in 0..pairs {
        redis.bare_pair().await?;
    }
    Ok(begun.elapsed() / pairs)
}

pub(crate) async fn tokio_pairs(pairs: u32) -> Duration {
    let lock = tokio::sync::RwLock::new(());
    let begun = Instant::now();
    for _ in 0..pairs {
        drop(std::hint::black_box(lock.write().await));
    }
    begun.elapsed() / pairs
}

/// One kind of pair: by our clock and by the server's, a number per round.
#[derive(Default)]
struct Kind {
    ours: Vec<f64>,
    servers: Vec<f64>,
}

async fn on_redis(
    ground: &Ground,
    redis: &Server,
    write: &RwLock,
    read: &RwLock,
) -> anyhow::Result<Vec<Row>> {
    let pairs = if ground.quick { ON_REDIS / 4 } else { ON_REDIS };
    // The first pair of a name is dearer: it makes its keys.
    writes(write, 1).await?;
    reads(read, 1).await?;
    let mut kinds = [Kind::default(), Kind::default(), Kind::default()];
    ground
        .rounds(5, async |_| {
            for which in 0..3 {
                let before = redis.stats().await?;
                let took = match which {
                    0 => bare(redis, pairs).await?,
                    1 => writes(write, pairs).await?,
                    _ => reads(read, pairs).await?,
                };
                let (_, usec) = redis.stats().await?.since(&before).scripts();
                if let Some(kind) = kinds.get_mut(which) {
                    kind.ours.push(micros(took));
                    kind.servers.push(usec / f64::from(pairs));
                }
            }
            Ok(())
        })
        .await?;
    let [bare, write, read] = kinds;
    let row = |what: &str, kind: &Kind| {
        Row::new(format!("{what} pair"), median(&kind.ours), "µs")
            .floor(TWO_BARE, median(&bare.ours))
            .bar(Bar::RatioAtMost(1.2))
    };
    let server_row = |what: &str, kind: &Kind| {
        Row::new(format!("{what} pair, server time"), median(&kind.servers), "µs")
            .floor(TWO_BARE, median(&bare.servers))
            .bar(Bar::AtMost(8.0))
    };
    Ok(vec![
        row("write", &write),
        row("read", &read),
        server_row("write", &write),
        server_row("read", &read),
    ])
}

async fn embedded(ground: &Ground, write: &RwLock, read: &RwLock) -> anyhow::Result<Vec<Row>> {
    let pairs = if ground.quick { EMBEDDED / 10 } else { EMBEDDED };
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    ground
        .rounds(5, async |_| {
            let round = [
                tokio_pairs(pairs).await,
                writes(write, pairs).await?,
                reads(read, pairs).await?,
            ];
            for (times, took) in times.iter_mut().zip(round) {
                times.push(micros(took));
            }
            Ok(())
        })
        .await?;
    let [floor, write, read] = times.map(|times| median(&times));
    let row = |what: &str, took| {
        Row::new(format!("{what} pair"), took, "µs")
            .floor(TOKIO, floor)
            .bar(Bar::AtMost(2.0))
    };
    Ok(vec![row("write", write), row("read", read)])
}
