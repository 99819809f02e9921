//! A flash sale: 10,000 buyers at once, 2,000 items, a few pieces of each. A sale reads what is left, asks a slow database, and writes what is left then.
//! Without a lock it sells what it has not got. With one lock for the shop it is right, and slow: all wait for each other. With 100 stripes
//! it is right, and who buys something else goes on.
//!
//! `cargo run --release --example flash_sale [-- --redis redis://127.0.0.1:6379] [--seconds 5] [--buyers 10000]`: how long the shop is open each
//! time, and how many come.

mod shared;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use relatch::{Error, Relatch};

pub(crate) const ITEMS: usize = 2_000;
pub(crate) const STRIPES: usize = 100;
pub(crate) const BUYERS: usize = 10_000;
const PIECES: i64 = 4;
/// What the database takes.
const LATENCY: Duration = Duration::from_millis(1);

/// What became of a sale.
#[derive(Debug)]
pub(crate) struct Sale {
    pub(crate) sold: u64,
    pub(crate) sold_out: u64,
    /// They were still in line when time was up.
    pub(crate) waiting: u64,
    /// Pieces that were sold and did not exist.
    pub(crate) oversold: i64,
    /// Until the last buyer was served.
    pub(crate) took: Duration,
}

impl Sale {
    /// Buyers served in a second.
    pub(crate) fn rate(&self) -> f64 {
        (self.sold + self.sold_out) as f64 / self.took.as_secs_f64()
    }
}

/// A sale with so many stripes. It closes after a while: who is still in line then goes home.
pub(crate) async fn sell(
    relatch: &Relatch,
    stripes: usize,
    buyers: usize,
    closes: Duration,
) -> Result<Sale, Error> {
    let shop = relatch.striped(&format!("example/shop/{stripes}"), stripes)?;
    let left: Arc<[AtomicI64]> = (0..ITEMS).map(|_| AtomicI64::new(PIECES)).collect();
    let (sold, sold_out) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let mut crowd = tokio::task::JoinSet::new();
    for buyer in 0..buyers {
        // A third of them wants one of ten items.
        let item = if buyer % 3 == 0 {
            buyer / 3 % 10
        } else {
            buyer * 7919 % ITEMS
        };
        let lock = shop.lock_for(&item);
        let (left, sold, sold_out) = (left.clone(), sold.clone(), sold_out.clone());
        crowd.spawn(async move {
            let write = match lock.write().timeout(closes.saturating_sub(began.elapsed())).await {
                Ok(write) => write,
                Err(error) if error.is_timeout() => return Ok(Duration::ZERO),
                Err(error) => return Err(error),
            };
            let there = left[item].load(SeqCst);
            tokio::time::sleep(LATENCY).await;
            if there > 0 {
                left[item].store(there - 1, SeqCst);
                sold.fetch_add(1, SeqCst);
            } else {
                sold_out.fetch_add(1, SeqCst);
            }
            write.release().await?;
            Ok(began.elapsed())
        });
    }
    let mut took = Duration::ZERO;
    while let Some(buyer) = crowd.join_next().await {
        took = took.max(buyer.expect("a buyer does not panic")?);
    }
    let (sold, sold_out) = (sold.load(SeqCst), sold_out.load(SeqCst));
    // The totals, with nobody selling. What was sold twice was sold once too often.
    let total = shop.read_all().await?;
    let gone: i64 = left.iter().map(|left| PIECES - left.load(SeqCst)).sum();
    total.release().await?;
    Ok(Sale {
        sold,
        sold_out,
        waiting: buyers as u64 - sold - sold_out,
        oversold: i64::try_from(sold).unwrap_or(i64::MAX) - gone,
        took,
    })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let relatch = shared::connect().await?;
    let number = |name: &str| shared::argument(name).map(|number| number.parse()).transpose();
    let open = Duration::from_secs(number("--seconds")?.unwrap_or(5));
    let buyers = number("--buyers")?.map_or(BUYERS, |buyers| buyers as usize);
    println!("{buyers} buyers, {ITEMS} items, {PIECES} of each; the shop closes after {open:?}");
    let mut rates = Vec::new();
    for stripes in [1, STRIPES] {
        let sale = sell(&relatch, stripes, buyers, open).await?;
        let (sold, out, waiting, oversold) = (sale.sold, sale.sold_out, sale.waiting, sale.oversold);
        println!(
            "{stripes:>4} stripes: {:>6.0} buyers/s ({sold} bought, {out} came too late, {waiting} were never served), {oversold} oversold",
            sale.rate()
        );
        rates.push(sale.rate());
    }
    println!(
        "{STRIPES} stripes serve {:.0} times as many as one lock",
        rates[1] / rates[0]
    );
    Ok(relatch.close().await?)
}
