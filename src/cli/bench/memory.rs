//! What a lock takes in the server's memory, by `MEMORY USAGE` of its keys, every member looked at.
//!
//! The floor of a reader is a member of a bare sorted set that is as long as a request's id: what Redis itself spends on remembering one.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use indicatif::HumanCount;
use relatch::Bare;
use relatch::Owner;

use super::ground::{Ground, builder};
use super::readers::enter;
use super::report::{Bar, Measured, Row};
use super::server::Server;

/// `<client>.<number>`.
const ID: usize = 28;
/// Of the name that is to go away.
const SHORT: Duration = Duration::from_millis(500);
/// Its keys are gone by then, or they stay.
const GONE_BY: Duration = Duration::from_secs(15);

pub(crate) async fn measure(ground: &Ground) -> anyhow::Result<Measured> {
    let Some(redis) = &ground.redis else {
        return super::needs_redis();
    };
    let readers = ground.size(10_000, 1000);
    let each = |all: f64, one: f64| (all - one) / (readers as f64 - 1.0);
    let client = ground.client().await?;

    let short = ground
        .client_of(builder().lease(SHORT).claim(SHORT).fence_retention(SHORT))
        .await?;
    let idle = ground.name("idle");
    short.rwlock(&idle)?.write().await?.release().await?;
    short.rwlock(&idle)?.read().await?.release().await?;
    let released = Instant::now();
    let bytes_idle = redis.memory(&idle).await?;

    ground.progress.show(0.2, "readers");
    let name = ground.name("alone");
    let lock = client.rwlock(&name)?;
    let first = enter(&lock, 1).await?;
    let one = redis.memory(&name).await?;
    let others = enter(&lock, readers - 1).await?;
    let lone = each(redis.memory(&name).await?, one);
    drop((first, others));

    ground.progress.show(0.5, "readers with owners");
    let name = ground.name("owned");
    let lock = client.rwlock(&name)?;
    let mut owned = Vec::new();
    let mut one = 0.0;
    while owned.len() < readers {
        let owners: Vec<Owner> = (0..if owned.is_empty() { 1 } else { 200 })
            .map(|_| Owner::new())
            .collect();
        let entered = owners.iter().take(readers - owned.len());
        owned.extend(try_join_all(entered.map(|owner| lock.read().owner(owner).into_future())).await?);
        if owned.len() == 1 {
            one = redis.memory(&name).await?;
        }
    }
    let with_owner = each(redis.memory(&name).await?, one);
    drop(owned);

    ground.progress.show(0.8, "a bare sorted set");
    let bare = bare_members(ground, redis, readers).await?;

    let name = ground.name("held");
    let lock = client.rwlock(&name)?;
    let _held = lock.write().await?;
    let held = redis.memory(&name).await?;

    let left = loop {
        let mut exists = redis::cmd("EXISTS");
        exists.arg(&Bare::keys(&idle)?);
        let left: u32 = redis.ask(&exists).await?;
        if left == 0 || released.elapsed() > GONE_BY {
            break left;
        }
        ground.progress.show(0.9, "an idle name");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let count = HumanCount(readers as u64);
    const BARE: &str = "a member of a bare sorted set, as long";
    Ok(Measured::Rows(vec![
        Row::new(format!("each further reader, of {count}"), lone, "bytes")
            .floor(BARE, bare)
            .bar(Bar::AtMost(150.0)),
        Row::new(
            format!("each further reader with an owner, of {count}"),
            with_owner,
            "bytes",
        )
        .floor(BARE, bare),
        Row::new("a name held to write", held, "bytes"),
        Row::new("an idle name, until its fence lapses", bytes_idle, "bytes"),
        Row::new("an idle name, once its fence has lapsed", f64::from(left), "keys").bar(Bar::AtMost(0.0)),
    ]))
}

async fn bare_members(ground: &Ground, redis: &Server, members: usize) -> anyhow::Result<f64> {
    let name = ground.name("bare");
    // A key that is deleted with the others.
    let key = Bare::keys(&name)?.last().cloned().unwrap_or(name);
    let add = |from: usize, to: usize| {
        let mut add = redis::cmd("ZADD");
        add.arg(&key);
        for member in from..to {
            add.arg(1_700_000_000_000_u64 + member as u64)
                .arg(format!("{member:0ID$}"));
        }
        add
    };
    redis.ask::<u64>(&add(0, 1)).await?;
    redis
        .ask::<bool>(redis::cmd("PEXPIRE").arg(&key).arg(60_000))
        .await?;
    // As with the readers: from what it is when it is large.
    redis.ask::<u64>(&add(1, members)).await?;
    Ok(redis.key_memory(&key).await? / members as f64)
}
