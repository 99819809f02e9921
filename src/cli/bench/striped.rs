//! What stripes gain where one lock is too coarse: writes per second by a crowd that wants any of 2,000 items, a third of it one of ten, and keeps
//! the lock for a millisecond, as with a database behind it.
//!
//! The floor is one lock for all items, in the same run. What it comes to at best is one write at a time.

use std::time::{Duration, Instant};

use relatch::Striped;
use tokio::task::JoinSet;

use super::ground::{Ground, median, some};
use super::report::{Measured, Row};

const STRIPES: [usize; 3] = [1, 10, 100];
const ONE_LOCK: &str = "one lock";
const ITEMS: usize = 2_000;
const HELD: Duration = Duration::from_millis(1);

pub(crate) async fn measure(ground: &Ground) -> anyhow::Result<Measured> {
    let client = ground.client().await?;
    let tasks = ground.size(256, 64);
    let name = ground.name("striped");
    let mut locks = Vec::new();
    for stripes in STRIPES {
        for stripe in 0..stripes {
            // These are the locks that are used.
            ground.name(format_args!("striped#{stripe}/{stripes}"));
        }
        locks.push(client.striped(&name, stripes)?);
    }
    let slice = ground.seconds() / (3 * STRIPES.len() as u32);
    let mut reached = STRIPES.map(|_| Vec::new());
    ground
        .rounds(3, async |_| {
            for (striped, reached) in locks.iter().zip(&mut reached) {
                reached.push(writes_per_second(striped, tasks, slice).await?);
            }
            Ok(())
        })
        .await?;
    let one = reached.first().map_or(f64::NAN, |reached| median(reached));
    let rows = STRIPES.iter().zip(&reached).map(|(stripes, reached)| {
        let what = format!("{} by {tasks} tasks", some(*stripes, "stripe"));
        Row::new(what, median(reached), "writes/s")
            .floor(ONE_LOCK, one)
            .at("writes/s", "stripes", *stripes)
    });
    Ok(Measured::Rows(rows.collect()))
}

async fn writes_per_second(striped: &Striped, tasks: usize, slice: Duration) -> anyhow::Result<f64> {
    let mut crew = JoinSet::new();
    let begun = Instant::now();
    for task in 0..tasks {
        let striped = striped.clone();
        crew.spawn(async move {
            let mut writes = 0_u32;
            // Who is in line when the time is over is served all the same: nobody is counted who was not.
            for wish in (task..).step_by(tasks) {
                if begun.elapsed() >= slice {
                    break;
                }
                let item = match wish % 3 {
                    0 => wish / 3 % 10,
                    _ => wish.wrapping_mul(7919) % ITEMS,
                };
                let write = striped.lock_for(&item).write().await?;
                tokio::time::sleep(HELD).await;
                write.release().await?;
                writes += 1;
            }
            anyhow::Ok(writes)
        });
    }
    let mut writes = 0.0;
    while let Some(done) = crew.join_next().await {
        writes += f64::from(done??);
    }
    Ok(writes / begun.elapsed().as_secs_f64())
}
