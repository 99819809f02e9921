//! A read among many: what another reader's pair costs when one reads already, and when thousands do.
//!
//! Both names are measured round by round, so that the ratio is that of one run: the floor is the same pair with one other reader.

use futures_util::future::try_join_all;
use relatch::{ReadGuard, RwLock};

use super::ground::{Ground, median, micros, some};
use super::pair::reads;
use super::report::{Bar, Measured, Row};

const READERS: [usize; 4] = [1, 100, 1000, 10_000];
const WITH_ONE: &str = "the same with one reader";

pub(crate) async fn measure(ground: &Ground) -> anyhow::Result<Measured> {
    let client = ground.client().await?;
    let pairs = if ground.quick { 20 } else { 100 };
    let mut inside = Vec::new();
    for readers in READERS {
        let lock = client.rwlock(&ground.name(format_args!("readers/{readers}")))?;
        inside.push((enter(&lock, readers).await?, lock));
    }
    let mut ours = READERS.map(|_| Vec::new());
    let mut servers = READERS.map(|_| Vec::new());
    ground
        .rounds(5, async |_| {
            for (at, (_, lock)) in inside.iter().enumerate() {
                let before = match &ground.redis {
                    Some(redis) => redis.stats().await?,
                    None => Default::default(),
                };
                let took = micros(reads(lock, pairs).await?);
                if let Some(ours) = ours.get_mut(at) {
                    ours.push(took);
                }
                if let (Some(redis), Some(servers)) = (&ground.redis, servers.get_mut(at)) {
                    let (_, usec) = redis.stats().await?.since(&before).scripts();
                    servers.push(usec / f64::from(pairs));
                }
            }
            Ok(())
        })
        .await?;
    drop(inside);
    let most = READERS.last();
    let mut rows = Vec::new();
    let mut tell = |what: &'static str, of: &[Vec<f64>], judged: bool| {
        let one = of.first().map_or(f64::NAN, |times| median(times));
        for (readers, times) in READERS.iter().zip(of) {
            let row = Row::new(
                format!("read pair with {}{what}", some(*readers, "reader")),
                median(times),
                "µs",
            )
            .floor(WITH_ONE, one)
            .at(
                if judged {
                    "server time, µs"
                } else {
                    "by our clock, µs"
                },
                "readers",
                *readers,
            );
            rows.push(match judged && Some(readers) == most {
                true => row.bar(Bar::RatioAtMost(1.3)),
                false => row,
            });
        }
    };
    if ground.redis.is_some() {
        tell(", server time", &servers, true);
    }
    tell("", &ours, false);
    Ok(Measured::Rows(rows))
}

/// So many owners enter to read, some at a time.
pub(crate) async fn enter(lock: &RwLock, readers: usize) -> anyhow::Result<Vec<ReadGuard>> {
    let mut inside = Vec::with_capacity(readers);
    while inside.len() < readers {
        let some = (readers - inside.len()).min(200);
        inside.extend(try_join_all((0..some).map(|_| lock.read().into_future())).await?);
    }
    Ok(inside)
}
