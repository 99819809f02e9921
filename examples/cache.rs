//! A cache that many read and that goes stale now and then. When it does, all readers see it at once, and without care all of them ask the
//! database: a stampede. Here one refreshes, and the others wait for that one. What is cached carries the stamp of the lock when it was
//! read, so whether it still stands is one question without a hold.
//!
//! `cargo run --example cache [-- --redis redis://127.0.0.1:6379]`

mod shared;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;
use relatch::{Error, Relatch, RwLock, Stamp};

/// A process' view of the prices.
pub(crate) struct Cache {
    /// Who changes the prices writes it.
    prices: RwLock,
    /// Who refreshes this cache holds it.
    refresh: relatch::Mutex,
    kept: Mutex<Option<(Stamp, u64)>>,
    /// How often the database was asked.
    asked: AtomicU64,
}

/// What is slow, and kept from being asked twice.
pub(crate) struct Database(AtomicU64);

impl Cache {
    pub(crate) fn new(relatch: &Relatch) -> Result<Self, Error> {
        Ok(Self {
            prices: relatch.rwlock("example/prices")?,
            refresh: relatch.mutex("example/prices/refresh")?,
            kept: Mutex::new(None),
            asked: AtomicU64::new(0),
        })
    }

    /// The price as of a moment ago, at most.
    pub(crate) async fn price(&self, database: &Database) -> Result<u64, Error> {
        if let Some(price) = self.fresh().await? {
            return Ok(price);
        }
        let refreshing = self.refresh.lock().await?;
        // Whoever was first has done it for those who waited.
        if let Some(price) = self.fresh().await? {
            return Ok(price);
        }
        let read = self.prices.read().await?;
        self.asked.fetch_add(1, SeqCst);
        tokio::task::yield_now().await;
        let price = database.0.load(SeqCst);
        *self.kept.lock() = Some((Stamp::from(&read), price));
        read.release().await?;
        refreshing.release().await?;
        Ok(price)
    }

    async fn fresh(&self) -> Result<Option<u64>, Error> {
        let kept = *self.kept.lock();
        match kept {
            Some((stamp, price)) if self.prices.validate(stamp).await? => Ok(Some(price)),
            _ => Ok(None),
        }
    }
}

/// So many readers, before and after a price change. How often the database was asked.
pub(crate) async fn run(relatch: &Relatch, readers: usize) -> Result<u64, Error> {
    let cache = Arc::new(Cache::new(relatch)?);
    let database = Arc::new(Database(AtomicU64::new(100)));
    for price in [100, 120] {
        let write = cache.prices.write().await?;
        database.0.store(price, SeqCst);
        write.release().await?;
        let mut crowd = tokio::task::JoinSet::new();
        for _ in 0..readers {
            let (cache, database) = (cache.clone(), database.clone());
            crowd.spawn(async move { cache.price(&database).await });
        }
        while let Some(read) = crowd.join_next().await {
            assert_eq!(
                read.expect("a reader does not panic")?,
                price,
                "never an old price"
            );
        }
    }
    Ok(cache.asked.load(SeqCst))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let relatch = shared::connect().await?;
    let asked = run(&relatch, 200).await?;
    println!("2 prices, each read by 200; the database was asked {asked} times");
    relatch.close().await
}
