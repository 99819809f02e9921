//! The crates, each behind [`Client`]: as thin as their interfaces let it be, with their own defaults.
//!
//! The same for all, where they can be told: a lease of 30 s, so that what is left behind shows, and the wait that the job says.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use tokio::time::timeout;

use crate::job::Mode;
use crate::server;
use crate::subject::{Client, Doing, Hold, Lock};

pub(crate) const LEASE: Duration = Duration::from_secs(30);

fn client(client: impl Client + 'static) -> Arc<dyn Client> {
    Arc::new(client)
}

// relatch

struct Ours(relatch::Relatch);

pub(crate) fn relatch(url: String) -> Doing<Arc<dyn Client>> {
    Box::pin(async move { Ok(client(Ours(relatch::Relatch::connect(&url).await?))) })
}

impl Client for Ours {
    fn lock(&self, name: &str) -> anyhow::Result<Arc<dyn Lock>> {
        Ok(Arc::new(self.0.rwlock(name)?))
    }
}

impl Lock for relatch::RwLock {
    fn acquire(&self, mode: Mode, wait: Duration) -> Doing<Option<Box<dyn Hold>>> {
        let lock = self.clone();
        Box::pin(async move {
            let entered = match mode {
                Mode::Read => lock
                    .read()
                    .timeout(wait)
                    .await
                    .map(|guard| Box::new(guard) as Box<dyn Hold>),
                Mode::Write => lock
                    .write()
                    .timeout(wait)
                    .await
                    .map(|guard| Box::new(guard) as Box<dyn Hold>),
            };
            match entered {
                Ok(hold) => Ok(Some(hold)),
                Err(error) if error.is_timeout() => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }
}

impl Hold for relatch::ReadGuard {
    fn release(self: Box<Self>) -> Doing<()> {
        Box::pin(async move { Ok((*self).release().await?) })
    }
}

impl Hold for relatch::WriteGuard {
    fn release(self: Box<Self>) -> Doing<()> {
        Box::pin(async move { Ok((*self).release().await?) })
    }
}

// rlock

struct Rlock(Arc<rlock::async_lock::RLock>);

struct RlockName(Arc<rlock::async_lock::RLock>, String);

pub(crate) fn rlock(url: String) -> Doing<Arc<dyn Client>> {
    Box::pin(async move {
        let manager = rlock::async_lock::RLock::new(url).await?;
        Ok(client(Rlock(Arc::new(manager))))
    })
}

impl Client for Rlock {
    fn lock(&self, name: &str) -> anyhow::Result<Arc<dyn Lock>> {
        Ok(Arc::new(RlockName(self.0.clone(), name.to_owned())))
    }
}

impl Lock for RlockName {
    fn acquire(&self, mode: Mode, wait: Duration) -> Doing<Option<Box<dyn Hold>>> {
        let (manager, name) = (self.0.clone(), self.1.clone());
        Box::pin(async move {
            let options = rlock::AcquireOptions::builder()
                .ttl(LEASE)
                .lock_timeout(Some(wait))
                .build()?;
            let entered = match mode {
                Mode::Read => manager
                    .acquire_read_with_options(&name, options)
                    .await
                    .map(|guard| Box::new(guard) as Box<dyn Hold>),
                Mode::Write => manager
                    .acquire_write_with_options(&name, options)
                    .await
                    .map(|guard| Box::new(guard) as Box<dyn Hold>),
            };
            match entered {
                Ok(hold) => Ok(Some(hold)),
                Err(rlock::AcquireError::LockTimeout) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }
}

impl Hold for rlock::async_lock::RReadLockGuard {
    fn release(mut self: Box<Self>) -> Doing<()> {
        Box::pin(async move { Ok((*self).release().await?) })
    }
}

impl Hold for rlock::async_lock::RWriteLockGuard {
    fn release(mut self: Box<Self>) -> Doing<()> {
        Box::pin(async move { Ok((*self).release().await?) })
    }
}

// rds_lock

type RdsConnection = redis_of_rds_lock::aio::ConnectionManager;

struct Rds(RdsConnection);

struct RdsName(RdsConnection, String);

/// Its guard is a future that gives back.
struct RdsHold(BoxFuture<'static, anyhow::Result<()>>);

pub(crate) fn rds_lock(url: String) -> Doing<Arc<dyn Client>> {
    Box::pin(async move {
        let opened = redis_of_rds_lock::Client::open(url)?;
        Ok(client(Rds(RdsConnection::new(opened).await?)))
    })
}

impl Client for Rds {
    fn lock(&self, name: &str) -> anyhow::Result<Arc<dyn Lock>> {
        Ok(Arc::new(RdsName(self.0.clone(), name.to_owned())))
    }
}

impl Lock for RdsName {
    fn acquire(&self, mode: Mode, wait: Duration) -> Doing<Option<Box<dyn Hold>>> {
        let (connection, name) = (self.0.clone(), self.1.clone());
        let mode = match mode {
            Mode::Read => rds_lock::Mode::R,
            Mode::Write => rds_lock::Mode::W,
        };
        Box::pin(async move {
            let lease = u64::try_from(LEASE.as_millis())?;
            let locker = rds_lock::Locker::new(connection)
                .mode(&mode)
                .to(lease)
                .ext_int(lease / 3)
                .rty_to(i64::try_from(wait.as_millis())?);
            match locker.lock(name).await {
                Ok(unlock) => Ok(Some(Box::new(RdsHold(Box::pin(unlock))) as Box<dyn Hold>)),
                // It has no other way to say so.
                Err(error) if error.to_string() == "Timed out" => Ok(None),
                Err(error) => Err(error),
            }
        })
    }
}

impl Hold for RdsHold {
    fn release(self: Box<Self>) -> Doing<()> {
        self.0
    }
}

// rslock: only exclusive

struct Rs(rslock::LockManager);

struct RsName(rslock::LockManager, String);

struct RsHold(rslock::LockGuard);

pub(crate) fn rslock(url: String) -> Doing<Arc<dyn Client>> {
    Box::pin(async move { Ok(client(Rs(rslock::LockManager::new(vec![url])))) })
}

impl Client for Rs {
    fn lock(&self, name: &str) -> anyhow::Result<Arc<dyn Lock>> {
        Ok(Arc::new(RsName(self.0.clone(), name.to_owned())))
    }
}

impl Lock for RsName {
    fn acquire(&self, _: Mode, wait: Duration) -> Doing<Option<Box<dyn Hold>>> {
        let (manager, name) = (self.0.clone(), self.1.clone());
        Box::pin(async move {
            // It has no bound of its own.
            match timeout(wait, manager.acquire(name.as_bytes(), LEASE)).await {
                Ok(guard) => Ok(Some(Box::new(RsHold(guard?)) as Box<dyn Hold>)),
                Err(_) => Ok(None),
            }
        })
    }
}

impl Hold for RsHold {
    fn release(self: Box<Self>) -> Doing<()> {
        Box::pin(async move {
            self.0.release().await;
            Ok(())
        })
    }
}

// distkit

struct Distkit(redis::aio::ConnectionManager);

struct DistkitHandle(Arc<distkit::lock::RwLock>);

pub(crate) fn distkit(url: String) -> Doing<Arc<dyn Client>> {
    Box::pin(async move {
        let opened = redis::Client::open(url)?;
        Ok(client(Distkit(redis::aio::ConnectionManager::new(opened).await?)))
    })
}

impl Client for Distkit {
    fn lock(&self, name: &str) -> anyhow::Result<Arc<dyn Lock>> {
        let key = distkit::DistkitRedisKey::new(name.to_owned())?;
        let options = distkit::lock::LockOptions::builder(key, self.0.clone())
            .ttl(LEASE)
            .build();
        Ok(Arc::new(DistkitHandle(distkit::lock::RwLock::new(options))))
    }
}

impl Lock for DistkitHandle {
    fn acquire(&self, mode: Mode, wait: Duration) -> Doing<Option<Box<dyn Hold>>> {
        use distkit::DistkitError::LockError;
        let lock = self.0.clone();
        Box::pin(async move {
            let entered = match mode {
                Mode::Read => lock
                    .try_read_with_timeout(wait)
                    .await
                    .map(|guard| Box::new(guard) as Box<dyn Hold>),
                Mode::Write => lock
                    .try_write_with_timeout(wait)
                    .await
                    .map(|guard| Box::new(guard) as Box<dyn Hold>),
            };
            match entered {
                Ok(hold) => Ok(Some(hold)),
                Err(LockError(distkit::lock::LockError::Timeout { .. })) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }
}

impl Hold for distkit::lock::RwLockReadGuard {
    fn release(self: Box<Self>) -> Doing<()> {
        Box::pin(async move {
            (*self).release().await?;
            Ok(())
        })
    }
}

impl Hold for distkit::lock::RwLockWriteGuard {
    fn release(self: Box<Self>) -> Doing<()> {
        Box::pin(async move {
            (*self).release().await?;
            Ok(())
        })
    }
}

// The floor: a bare script each for entering and leaving

#[derive(Clone)]
struct Bare {
    connection: redis::aio::MultiplexedConnection,
    call: redis::Cmd,
}

pub(crate) fn floor(url: String) -> Doing<Arc<dyn Client>> {
    Box::pin(async move {
        let (connection, _) = server::connect(&url).await?;
        let sha: String = redis::cmd("SCRIPT")
            .arg("LOAD")
            .arg("return 1")
            .query_async(&mut connection.clone())
            .await
            .context("the server refuses a script")?;
        let mut call = redis::cmd("EVALSHA");
        call.arg(sha).arg(0);
        Ok(client(Bare { connection, call }))
    })
}

impl Bare {
    async fn call(mut self) -> anyhow::Result<()> {
        let _: i64 = self.call.query_async(&mut self.connection).await?;
        Ok(())
    }
}

impl Client for Bare {
    fn lock(&self, _: &str) -> anyhow::Result<Arc<dyn Lock>> {
        Ok(Arc::new(self.clone()))
    }
}

impl Lock for Bare {
    fn acquire(&self, _: Mode, _: Duration) -> Doing<Option<Box<dyn Hold>>> {
        let bare = self.clone();
        Box::pin(async move {
            bare.clone().call().await?;
            Ok(Some(Box::new(bare) as Box<dyn Hold>))
        })
    }
}

impl Hold for Bare {
    fn release(self: Box<Self>) -> Doing<()> {
        Box::pin((*self).call())
    }
}
