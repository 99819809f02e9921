//! Who is measured: relatch, its peers, and the floor, behind one face.
//!
//! A subject opens sessions of some clients. A session does jobs. It is either in this process (`Local`: one worker for all the crates,
//! over a thin adapter each) or the program in Java, which does the same jobs by itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::job::{Desertion, Dropped, Drops, Job, Mode, Turn, Worker, now_ns};
use crate::redisson::Redisson;

pub(crate) type Doing<T> = BoxFuture<'static, anyhow::Result<T>>;

/// A connection to the server, or several, as one process of an application has.
pub(crate) trait Client: Send + Sync {
    /// A handle of a name, where there is such a thing.
    fn lock(&self, name: &str) -> anyhow::Result<Arc<dyn Lock>>;
}

pub(crate) trait Lock: Send + Sync {
    /// `None` if it waited in vain.
    fn acquire(&self, mode: Mode, wait: Duration) -> Doing<Option<Box<dyn Hold>>>;
}

pub(crate) trait Hold: Send {
    fn release(self: Box<Self>) -> Doing<()>;
}

pub(crate) type Opener = fn(String) -> Doing<Arc<dyn Client>>;

pub(crate) enum Kind {
    /// A crate, by what makes a client.
    Crate(Opener),
    /// What a lock needs at least: it excludes nobody.
    Floor(Opener),
    /// Redisson's read-write lock, or its plain one; or why it is not there.
    Java {
        child: Result<Arc<Redisson>, String>,
        plain: bool,
    },
}

pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) kind: Kind,
    /// Whether it has a read mode.
    pub(crate) reads: bool,
}

impl Subject {
    pub(crate) fn is_floor(&self) -> bool {
        matches!(self.kind, Kind::Floor(_))
    }

    pub(crate) async fn open(&self, url: &str, clients: usize) -> anyhow::Result<Session> {
        Ok(match &self.kind {
            Kind::Crate(open) | Kind::Floor(open) => {
                let mut opened = Vec::new();
                for _ in 0..clients {
                    opened.push(open(url.to_owned()).await?);
                }
                Session::Local(Local {
                    clients: opened,
                    crowd: Vec::new(),
                })
            }
            Kind::Java { child, plain } => {
                let child = child.clone().map_err(anyhow::Error::msg)?;
                child.open(url, clients, *plain).await?;
                Session::Java(child)
            }
        })
    }
}

/// Some clients of one subject. Close it, or the program in Java keeps its clients until the next.
pub(crate) enum Session {
    Local(Local),
    Java(Arc<Redisson>),
}

impl Session {
    pub(crate) async fn run(&self, job: &Job) -> anyhow::Result<Vec<Turn>> {
        let mut turns = match self {
            Self::Local(local) => local.run(job).await?,
            Self::Java(child) => child.run(job).await?,
        };
        turns.sort_by_key(|turn| (turn.granted, turn.asked));
        Ok(turns)
    }

    /// So many readers enter through the first client, and stay.
    pub(crate) async fn crowd(&mut self, name: &str, readers: usize) -> anyhow::Result<()> {
        match self {
            Self::Local(local) => local.crowd(name, readers).await,
            Self::Java(child) => child.crowd(name, readers).await,
        }
    }

    pub(crate) async fn drops(&self, drops: &Drops) -> anyhow::Result<Dropped> {
        match self {
            Self::Local(local) => local.drops(drops).await,
            Self::Java(child) => child.drops(drops).await,
        }
    }

    /// How long the newcomer took, in milliseconds; `None`: longer than it was to wait.
    pub(crate) async fn desert(&self, desertion: &Desertion) -> anyhow::Result<Option<f64>> {
        match self {
            Self::Local(local) => local.desert(desertion).await,
            Self::Java(child) => child.desert(desertion).await,
        }
    }

    pub(crate) async fn close(self) -> anyhow::Result<()> {
        match self {
            // Clients end when they are dropped.
            Self::Local(_) => Ok(()),
            Self::Java(child) => child.close().await,
        }
    }
}

/// All the crates', in this process.
pub(crate) struct Local {
    clients: Vec<Arc<dyn Client>>,
    crowd: Vec<Box<dyn Hold>>,
}

impl Local {
    fn client(&self, number: usize) -> anyhow::Result<&Arc<dyn Client>> {
        self.clients
            .get(number)
            .context("a job names a client that is not there")
    }

    async fn run(&self, job: &Job) -> anyhow::Result<Vec<Turn>> {
        let mut shared = HashMap::new();
        let mut locks = Vec::new();
        for worker in &job.workers {
            let client = self.client(worker.client)?;
            let key = (worker.client, worker.name.clone());
            let known = shared.get(&key).filter(|_| job.shared).cloned();
            let lock: Arc<dyn Lock> = match known {
                Some(lock) => lock,
                None => client.lock(&worker.name)?,
            };
            shared.insert(key, lock.clone());
            locks.push(lock);
        }
        let until = Instant::now() + Duration::from_millis(job.for_ms);
        let wait = Duration::from_millis(job.wait_ms);
        let mut workers = job.workers.iter().cloned().zip(locks).enumerate();
        let mut running = JoinSet::new();
        let mut turns = Vec::new();
        let first = match job.settle_us.and_then(|settle| Some((settle, workers.next()?))) {
            Some((settle, (number, (worker, lock)))) => {
                let asked = now_ns();
                let hold = lock
                    .acquire(worker.mode, wait)
                    .await?
                    .context("the first was not let in")?;
                Some((settle, number, asked, now_ns(), hold))
            }
            None => None,
        };
        for (number, (worker, lock)) in workers {
            running.spawn(work(number, worker, lock, job.turns, until, wait));
        }
        if let Some((settle, worker, asked, granted, hold)) = first {
            sleep(Duration::from_micros(settle)).await;
            let leaving = now_ns();
            hold.release().await?;
            turns.push(Turn {
                worker,
                asked,
                granted,
                leaving,
                left: now_ns(),
            });
        }
        while let Some(worked) = running.join_next().await {
            turns.extend(worked??);
        }
        Ok(turns)
    }

    async fn crowd(&mut self, name: &str, readers: usize) -> anyhow::Result<()> {
        let client = self.client(0)?.clone();
        let mut left = readers;
        while left > 0 {
            let mut entering = JoinSet::new();
            for _ in 0..left.min(100) {
                let lock = client.lock(name)?;
                entering.spawn(lock.acquire(Mode::Read, Duration::from_secs(10)));
            }
            left -= entering.len();
            while let Some(entered) = entering.join_next().await {
                self.crowd.push(entered??.context("a reader was not let in")?);
            }
        }
        Ok(())
    }

    async fn drops(&self, drops: &Drops) -> anyhow::Result<Dropped> {
        let client = self.client(0)?;
        let mut dropped = Dropped::default();
        for number in 0..drops.count * 10 {
            if dropped.names.len() == drops.count {
                break;
            }
            let lock = client.lock(&format!("{}{number}", drops.name))?;
            let until = Instant::now() + Duration::from_micros(fastrand::u64(0..=drops.within_us));
            let acquired = tokio::select! {
                biased;
                acquired = lock.acquire(drops.mode, Duration::from_secs(10)) => Some(acquired?),
                () = spin(until) => None,
            };
            match acquired {
                Some(Some(hold)) => hold.release().await?,
                Some(None) => {}
                None => dropped.names.push(number),
            }
        }
        Ok(dropped)
    }

    async fn desert(&self, desertion: &Desertion) -> anyhow::Result<Option<f64>> {
        let wait = Duration::from_millis(desertion.wait_ms);
        let holder = self.client(0)?.lock(&desertion.name)?;
        let hold = holder
            .acquire(Mode::Write, wait)
            .await?
            .context("the holder was not let in")?;
        let mut waiting = JoinSet::new();
        for _ in 0..desertion.waiters {
            let lock = self.client(1)?.lock(&desertion.name)?;
            waiting.spawn(async move {
                let patience = Duration::from_millis(fastrand::u64(1..=200));
                let acquiring = lock.acquire(Mode::Write, Duration::from_secs(60));
                // What was let in although somebody holds is dropped like the others.
                drop(tokio::time::timeout(patience, acquiring).await);
            });
        }
        while waiting.join_next().await.is_some() {}
        sleep(Duration::from_millis(100)).await;
        let newcomer = self.client(2)?.lock(&desertion.name)?;
        hold.release().await?;
        let asked = Instant::now();
        let entered = newcomer.acquire(desertion.mode, wait).await?;
        let took = asked.elapsed();
        if let Some(hold) = entered {
            hold.release().await?;
            return Ok(Some(took.as_secs_f64() * 1e3));
        }
        Ok(None)
    }
}

async fn work(
    number: usize,
    worker: Worker,
    lock: Arc<dyn Lock>,
    turns: u64,
    until: Instant,
    wait: Duration,
) -> anyhow::Result<Vec<Turn>> {
    pause(worker.start_us).await;
    let mut noted = Vec::new();
    for _ in 0..turns {
        if Instant::now() >= until {
            break;
        }
        let asked = now_ns();
        let Some(hold) = lock.acquire(worker.mode, wait).await? else {
            let left = now_ns();
            noted.push(Turn {
                worker: number,
                asked,
                granted: 0,
                leaving: left,
                left,
            });
            continue;
        };
        let granted = now_ns();
        pause(worker.hold_us).await;
        let leaving = now_ns();
        hold.release().await?;
        noted.push(Turn {
            worker: number,
            asked,
            granted,
            leaving,
            left: now_ns(),
        });
        pause(worker.rest_us).await;
    }
    Ok(noted)
}

async fn pause(micros: u64) {
    if micros > 0 {
        sleep(Duration::from_micros(micros)).await;
    }
}

/// To the microsecond, where a timer knows milliseconds; the others have their turns meanwhile.
async fn spin(until: Instant) {
    while Instant::now() < until {
        tokio::task::yield_now().await;
    }
}
