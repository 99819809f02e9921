//! Pairs per second by more and more tasks of one client, each on a name of its own.
//!
//! On Redis against what `redis-benchmark -P 16` reaches with the same two scripts. On the embedded backend against Tokio's `RwLock`.

use std::time::{Duration, Instant};

use relatch::{Relatch, RwLock};
use tokio::task::JoinSet;

use super::ground::{Ground, median, some};
use super::redis_benchmark::{RedisBenchmark, Unable};
use super::report::{Bar, Measured, Row};
use super::server::Stats;

const TASKS: [usize; 6] = [1, 4, 16, 64, 256, 1024];
/// Where the bar is.
const JUDGED: usize = 256;
/// On the embedded backend nothing ever waits, so tasks take turns of so many pairs.
const TURN: u32 = 16;

pub(crate) async fn measure(ground: &Ground) -> anyhow::Result<Measured> {
    let client = ground.client().await?;
    let most = TASKS.last().copied().unwrap_or(1);
    let locks: Vec<RwLock> = (0..most)
        .map(|task| client.rwlock(&ground.name(format_args!("task/{task}"))))
        .collect::<Result<_, _>>()?;
    futures_util::future::try_join_all(locks.iter().map(warm)).await?;
    let (bench, unable) = match &ground.redis {
        None => (None, None),
        Some(redis) => match RedisBenchmark::find(redis).await {
            Ok(bench) => (Some((bench, redis)), None),
            Err(Unable(why)) => (None, Some(why)),
        },
    };
    // Three rounds and a floor in each.
    let slice = ground.seconds() / (3 * (TASKS.len() as u32 + 1));
    let mut reached = TASKS.map(|_| Vec::new());
    let mut floors = Vec::new();
    let mut server = Vec::new();
    ground
        .rounds(3, async |_| {
            for (tasks, reached) in TASKS.iter().zip(&mut reached) {
                let before = stats(ground).await?;
                let rate = pairs_per_second(&client, &locks, *tasks, slice).await?;
                if *tasks == JUDGED {
                    let (scripts, usec) = stats(ground).await?.since(&before).scripts();
                    server.push(2.0 * usec / scripts);
                }
                reached.push(rate);
            }
            floors.push(match &bench {
                Some((bench, redis)) => bench.pairs_per_second(ground, redis).await?,
                None => tokio_pairs_per_second(slice).await,
            });
            Ok(())
        })
        .await?;
    let what = match &ground.redis {
        Some(_) => "redis-benchmark -P 16 with the same two scripts",
        None => "pairs on tokio::sync::RwLock",
    };
    let rows = TASKS.iter().zip(&reached).map(|(tasks, reached)| {
        let row = Row::new(some(*tasks, "task"), median(reached), "pairs/s").at("pairs/s", "tasks", *tasks);
        let row = match &unable {
            None => row.floor(what, median(&floors)),
            Some(_) => row,
        };
        match (*tasks, &ground.redis) {
            (JUDGED, Some(_)) => row.bar(Bar::RatioAtLeast(0.85)),
            _ => row,
        }
    });
    let mut rows: Vec<Row> = rows.collect();
    if ground.redis.is_some() {
        rows.push(Row::new(
            format!("{JUDGED} tasks, server time of a pair"),
            median(&server),
            "µs",
        ));
    }
    if let Some(why) = unable {
        ground.note(format!("throughput has no floor: {why}"));
    }
    Ok(Measured::Rows(rows))
}

/// Nothing, where nothing counts.
async fn stats(ground: &Ground) -> anyhow::Result<Stats> {
    match &ground.redis {
        Some(redis) => redis.stats().await,
        None => Ok(Stats::default()),
    }
}

async fn warm(lock: &RwLock) -> Result<(), relatch::Error> {
    lock.write().await?.release().await
}

async fn pairs_per_second(
    client: &Relatch,
    locks: &[RwLock],
    tasks: usize,
    slice: Duration,
) -> anyhow::Result<f64> {
    let mut crew = JoinSet::new();
    let begun = Instant::now();
    for lock in locks.iter().take(tasks) {
        let lock = client.rwlock(lock.name())?;
        crew.spawn(async move {
            let mut pairs = 0_u32;
            while begun.elapsed() < slice {
                lock.write().await?.release().await?;
                pairs += 1;
                if pairs.is_multiple_of(TURN) {
                    tokio::task::yield_now().await;
                }
            }
            anyhow::Ok(pairs)
        });
    }
    let mut pairs = 0.0;
    while let Some(done) = crew.join_next().await {
        pairs += f64::from(done??);
    }
    Ok(pairs / begun.elapsed().as_secs_f64())
}

async fn tokio_pairs_per_second(slice: Duration) -> f64 {
    let lock = tokio::sync::RwLock::new(());
    let begun = Instant::now();
    let mut pairs = 0.0;
    while begun.elapsed() < slice {
        for _ in 0..1000 {
            drop(std::hint::black_box(lock.write().await));
        }
        pairs += 1000.0;
        tokio::task::yield_now().await;
    }
    pairs / begun.elapsed().as_secs_f64()
}
