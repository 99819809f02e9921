//! Pairs per second by more and more tasks of one client, each on names of its own.
//!
//! On Redis against what `redis-benchmark -P 16` reaches with the same two scripts. On the embedded backend against Tokio's `RwLock`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use relatch::RwLock;
use tokio::task::JoinSet;

use super::ground::{Ground, median, some};
use super::redis_benchmark::{RedisBenchmark, Unable, names};
use super::report::{Bar, Measured, Row};
use super::server::Stats;

const TASKS: [usize; 6] = [1, 4, 16, 64, 256, 1024];
/// Where the bar is.
const JUDGED: usize = 256;
/// On the embedded backend nothing ever waits, so tasks take turns of so many pairs.
const TURN: u32 = 16;

pub(crate) async fn measure(ground: &Ground) -> anyhow::Result<Measured> {
    let client = ground.client().await?;
    // As many as the floor's, so that neither finds them nearer in the server's memory.
    let names = match &ground.redis {
        Some(_) => names(ground),
        None => TASKS.into_iter().max().unwrap_or(1),
    };
    let locks: Arc<[RwLock]> = (0..names)
        .map(|number| client.rwlock(&ground.name(format_args!("own/{number}"))))
        .collect::<Result<_, _>>()?;
    for some in locks.chunks(256) {
        futures_util::future::try_join_all(some.iter().map(warm)).await?;
    }
    let (bench, unable) = match &ground.redis {
        None => (None, None),
        Some(redis) => match RedisBenchmark::find(redis).await {
            Ok(bench) => (Some(bench), None),
            Err(Unable(why)) => (None, Some(why)),
        },
    };
    // Three rounds and a floor in each.
    let slice = ground.seconds() / (3 * (TASKS.len() as u32 + 1));
    let mut reached = TASKS.map(|_| Vec::new());
    let mut floors = Vec::new();
    let (mut server, mut server_floors) = (Vec::new(), Vec::new());
    ground
        .rounds(3, async |_| {
            for (tasks, reached) in TASKS.iter().zip(&mut reached) {
                let before = stats(ground).await?;
                let rate = pairs_per_second(&locks, *tasks, slice).await?;
                if *tasks == JUDGED {
                    let (scripts, usec) = stats(ground).await?.since(&before).scripts();
                    server.push(2.0 * usec / scripts);
                }
                reached.push(rate);
            }
            match (&bench, &ground.redis) {
                (Some(bench), Some(redis)) => {
                    let reached = bench.measure(ground, redis).await?;
                    floors.push(reached.pairs_per_second);
                    server_floors.push(reached.server_us);
                }
                (_, None) => floors.push(tokio_pairs_per_second(slice).await),
                (None, Some(_)) => {}
            }
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
        let row = Row::new(
            format!("{JUDGED} tasks, server time of a pair"),
            median(&server),
            "µs",
        );
        rows.push(match server_floors.is_empty() {
            true => row,
            false => row.floor(what, median(&server_floors)),
        });
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

async fn pairs_per_second(locks: &Arc<[RwLock]>, tasks: usize, slice: Duration) -> anyhow::Result<f64> {
    let mut crew = JoinSet::new();
    let begun = Instant::now();
    for task in 0..tasks {
        let locks = locks.clone();
        crew.spawn(async move {
            let mut pairs = 0_u32;
            // Its own share of the names, again and again.
            let mut own = locks.iter().skip(task).step_by(tasks).cycle();
            while begun.elapsed() < slice {
                let Some(lock) = own.next() else { break };
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
