//! Who waits for how long.
//!
//! - 16 clients, each with connections of its own, want to write under one name all the time, and hold it for 1 ms. In a fair queue everybody waits for the
//!   15 others, so the mean has that for its floor, and the longest wait has the mean.
//! - One writer against 8 readers that hold for 20 ms each and overlap, all on one client. A connection keeps order: a reader that asked after the
//!   writer did and entered before it has passed it. A writer that nobody passes waits for one reader phase, which lasts at most as long as one reader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::ground::{Ground, millis};
use super::report::{Bar, Measured, Row};

const CLIENTS: usize = 16;
const HELD: Duration = Duration::from_millis(1);
const READERS: u32 = 8;
const READ: Duration = Duration::from_millis(20);

pub(crate) async fn measure(ground: &Ground) -> anyhow::Result<Measured> {
    let mut rows = writers(ground).await?;
    ground.clean().await?;
    rows.extend(writer_among_readers(ground).await?);
    Ok(Measured::Rows(rows))
}

async fn writers(ground: &Ground) -> anyhow::Result<Vec<Row>> {
    let name = ground.name("writers");
    let mut clients = JoinSet::new();
    let mut locks = Vec::new();
    for _ in 0..CLIENTS {
        locks.push(ground.client().await?.rwlock(&name)?);
    }
    let until = Instant::now() + ground.seconds() / 2;
    for lock in locks {
        clients.spawn(async move {
            let mut waits = Vec::new();
            let mut holds = Vec::new();
            // The first turn does not count.
            while Instant::now() < until || waits.len() < 2 {
                let asked = Instant::now();
                let guard = lock.write().await?;
                let granted = Instant::now();
                sleep(HELD).await;
                guard.release().await?;
                waits.push(millis(granted - asked));
                holds.push(millis(granted.elapsed()));
            }
            anyhow::Ok((waits, holds))
        });
    }
    let (mut waits, mut holds) = (Vec::new(), Vec::new());
    while let Some(client) = clients.join_next().await {
        let (waited, held) = client??;
        // The first found the line still short.
        waits.extend(waited.into_iter().skip(1));
        holds.extend(held);
    }
    let longest = waits.iter().copied().fold(f64::NAN, f64::max);
    Ok(vec![
        Row::new(format!("{CLIENTS} clients, longest wait"), longest, "ms")
            .floor("the mean wait", mean(&waits))
            .bar(Bar::RatioAtMost(3.0)),
        Row::new(format!("{CLIENTS} clients, mean wait"), mean(&waits), "ms").floor(
            "15 mean holds, with their releases",
            mean(&holds) * (CLIENTS as f64 - 1.0),
        ),
    ])
}

/// Of a reader: when it asked, was let in, and had given back.
struct Stay {
    asked: Instant,
    granted: Instant,
    left: Instant,
}

async fn writer_among_readers(ground: &Ground) -> anyhow::Result<Vec<Row>> {
    let client = ground.client().await?;
    let name = ground.name("among-readers");
    let until = Instant::now() + ground.seconds() / 2;
    let stays: Arc<Mutex<Vec<(u32, Stay)>>> = Arc::default();
    let mut readers = JoinSet::new();
    for reader in 0..READERS {
        let (lock, stays) = (client.rwlock(&name)?, stays.clone());
        readers.spawn(async move {
            // So that one is always inside.
            sleep(READ * reader / READERS).await;
            while Instant::now() < until {
                let asked = Instant::now();
                let guard = lock.read().await?;
                let granted = Instant::now();
                sleep(READ).await;
                guard.release().await?;
                let left = Instant::now();
                stays.lock().push((reader, Stay { asked, granted, left }));
            }
            anyhow::Ok(())
        });
    }
    let lock = client.rwlock(&name)?;
    let mut waits = Vec::new();
    while Instant::now() < until {
        sleep(READ * 2).await;
        let asked = Instant::now();
        let guard = lock.write().await?;
        waits.push((asked, Instant::now()));
        guard.release().await?;
    }
    while let Some(reader) = readers.join_next().await {
        reader??;
    }
    let stays = stays.lock();
    let phases = waits.iter().map(|wait| phases(*wait, &stays)).max().unwrap_or(0);
    let longest = waits.iter().map(|(asked, granted)| millis(*granted - *asked));
    let longest_stay = stays
        .iter()
        .map(|(_, stay)| millis(stay.left - stay.asked.max(stay.granted)));
    Ok(vec![
        Row::new(
            format!("a writer among {READERS} readers of 20 ms, phases waited for"),
            f64::from(phases),
            "phases",
        )
        .bar(Bar::AtMost(1.0)),
        Row::new(
            format!("a writer among {READERS} readers of 20 ms, longest wait"),
            longest.fold(f64::NAN, f64::max),
            "ms",
        )
        .floor(
            "the longest stay of a reader",
            longest_stay.fold(f64::NAN, f64::max),
        ),
    ])
}

/// How many reader phases passed while a writer waited: one, and as many as the reader that passed it most often passed it.
fn phases((asked, granted): (Instant, Instant), stays: &[(u32, Stay)]) -> u32 {
    let passed = |reader| {
        let passes = stays
            .iter()
            .filter(|(of, stay)| *of == reader && stay.asked > asked && stay.left < granted);
        u32::try_from(passes.count()).unwrap_or(u32::MAX - 1)
    };
    1 + (0..READERS).map(passed).max().unwrap_or(0)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_passes_a_waiting_writer_is_another_phase() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let stay = |asked, granted, left| Stay {
            asked: at(asked),
            granted: at(granted),
            left: at(left),
        };
        let wait = (at(10), at(60));
        // Inside before; waiting behind the writer.
        let fair = [(0, stay(0, 1, 30)), (1, stay(5, 6, 59)), (0, stay(31, 62, 80))];
        assert_eq!(phases(wait, &fair), 1);
        let unfair = [
            (0, stay(0, 1, 12)),
            (0, stay(13, 14, 34)),
            (0, stay(35, 36, 58)),
            (1, stay(20, 21, 40)),
        ];
        assert_eq!(phases(wait, &unfair), 3);
    }
}
