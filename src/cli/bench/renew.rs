//! What it costs a client to keep 10,000 holds, each on a name of its own, at the default lease of 30 s: the share of one core.
//!
//! They are held with a shorter lease, so that there is something to measure, and the time is told as if it had been spent over the default's.
//! The floor is as many bare calls, made as many at a time as the lock may make.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::ground::{Ground, builder, median, some};
use super::report::{Bar, Measured, Row};

/// A default lease's third.
const DEFAULT_ROUND: Duration = Duration::from_secs(10);
/// How many bare calls are under way at once.
const AT_ONCE: usize = 64;

pub(crate) async fn measure(ground: &Ground) -> anyhow::Result<Measured> {
    let Some(redis) = &ground.redis else {
        return super::needs_redis();
    };
    let holds = ground.size(10_000, 500);
    // A third of it is a round; a few rounds fit into the case's time, and a round is long enough for a busy machine.
    let round = (ground.seconds() / 2).clamp(Duration::from_secs(2), Duration::from_secs(5));
    let client = ground.client_of(builder().lease(round * 3)).await?;
    let locks = (0..holds)
        .map(|number| client.rwlock(&ground.name(format_args!("held/{number}"))))
        .collect::<Result<Vec<_>, _>>()?;
    let guards: Vec<_> = stream::iter(&locks)
        .map(|lock| lock.write().into_future())
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    ground.progress.show(0.2, "held");

    let (mut shares, mut floors, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    // Whole rounds, so that it does not matter when in one they begin.
    for done in 0..2 {
        let before = redis.stats().await?;
        let (cpu, begun) = (cpu_time(), Instant::now());
        tokio::time::sleep(round).await;
        let (spent, rounds) = (
            cpu_time().saturating_sub(cpu),
            begun.elapsed().as_secs_f64() / round.as_secs_f64(),
        );
        let (scripts, _) = redis.stats().await?.since(&before).scripts();
        calls.push(scripts / rounds);
        shares.push(percent(spent.div_f64(rounds)));

        let cpu = cpu_time();
        stream::iter(0..holds)
            .map(|_| redis.bare())
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        floors.push(percent(cpu_time().saturating_sub(cpu)));
        ground.progress.show(0.5 + 0.5 * f64::from(done), "renewed");
    }
    anyhow::ensure!(
        guards.iter().all(|guard| guard.is_held()),
        "a hold was lost although it was renewed"
    );
    Ok(Measured::Rows(vec![
        Row::new(
            format!("{}, client time", some(holds, "hold")),
            median(&shares),
            "% of a core",
        )
        .floor("as many bare EVALSHA \"return 1\"", median(&floors))
        .bar(Bar::AtMost(2.0)),
        Row::new(
            "names in a renewal's call",
            holds as f64 / median(&calls),
            "names",
        )
        .bar(Bar::AtLeast(90.0)),
    ]))
}

fn percent(spent: Duration) -> f64 {
    100.0 * spent.as_secs_f64() / DEFAULT_ROUND.as_secs_f64()
}

/// Of this process.
#[cfg(unix)]
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Where it can't be asked for, nothing is claimed: 0 % of 0.
#[cfg(not(unix))]
fn cpu_time() -> Duration {
    Duration::ZERO
}
