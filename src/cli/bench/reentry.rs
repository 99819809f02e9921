//! What entering costs whoever is inside already: on its way down, an owner enters at once, past everybody, and needs its request noted.
//!
//! No bar: its floor is that of an uncontended pair.

use relatch::{Owner, RwLock};

use super::ground::{Ground, median, micros};
use super::pair::{TOKIO, TWO_BARE, bare, tokio_pairs};
use super::report::{Measured, Row};

/// Its depth before the measured pair.
const DEPTHS: [usize; 3] = [1, 10, 100];

pub(crate) async fn measure(ground: &Ground) -> anyhow::Result<Measured> {
    let client = ground.client().await?;
    let pairs = if ground.quick { 20 } else { 100 };
    let mut inside = Vec::new();
    for depth in DEPTHS {
        let owner = Owner::new();
        let (write, read) = (
            client.rwlock(&ground.name(format_args!("write/{depth}")))?,
            client.rwlock(&ground.name(format_args!("read/{depth}")))?,
        );
        let (mut writes, mut reads) = (Vec::new(), Vec::new());
        for _ in 0..depth {
            writes.push(write.write().owner(&owner).await?);
            reads.push(read.read().owner(&owner).await?);
        }
        inside.push((owner, write, read, writes, reads));
    }
    let mut floors = Vec::new();
    let mut times = DEPTHS.map(|_| (Vec::new(), Vec::new()));
    ground
        .rounds(5, async |_| {
            floors.push(micros(match &ground.redis {
                Some(redis) => bare(redis, pairs).await?,
                None => tokio_pairs(pairs * 10).await,
            }));
            for ((owner, write, read, ..), (writes, reads)) in inside.iter().zip(&mut times) {
                writes.push(reenter(write, owner, pairs, true).await?);
                reads.push(reenter(read, owner, pairs, false).await?);
            }
            Ok(())
        })
        .await?;
    let floor = median(&floors);
    let what = if ground.redis.is_some() { TWO_BARE } else { TOKIO };
    let row = |mode: &'static str, depth: usize, times: &[f64]| {
        Row::new(format!("{mode} pair at depth {depth}"), median(times), "µs")
            .floor(what, floor)
            .at(mode, "depth", depth)
    };
    let rows = DEPTHS
        .iter()
        .zip(&times)
        .flat_map(|(depth, (writes, reads))| [row("write", *depth, writes), row("read", *depth, reads)]);
    Ok(Measured::Rows(rows.collect()))
}

async fn reenter(lock: &RwLock, owner: &Owner, pairs: u32, write: bool) -> anyhow::Result<f64> {
    let begun = std::time::Instant::now();
    for _ in 0..pairs {
        if write {
            lock.write().owner(owner).await?.release().await?;
        } else {
            lock.read().owner(owner).await?.release().await?;
        }
    }
    Ok(micros(begun.elapsed() / pairs))
}
