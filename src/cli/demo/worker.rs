//! Readers, walkers and writers: what one process of the demo does, whichever backend it is on.
//!
//! The invariant: the referee hears of a hold right after it was granted and right before it is given back, and has answered
//! before the worker goes on. The workers know nothing of what the referee concludes.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use parking_lot::Mutex;
use relatch::{Acquire, FromHold, Owner, ReadGuard, RwLock, UpgradableGuard, WriteGuard};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::catalogue::{Catalogue, Folder, Tally};
use super::referee::{Answer, Ask, Entry, How, Referee, Write, now_us};

/// How many of each kind there are in a process.
#[derive(Clone, Copy, Debug, clap::Args, Serialize, Deserialize)]
pub(crate) struct Workers {
    /// Readers, who ask the catalogue
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(..=200))]
    pub(crate) readers: u16,
    /// Writers, who refresh it
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(..=200))]
    pub(crate) writers: u16,
    /// Walkers, who re-enter the read lock at every level of the tree
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(..=200))]
    pub(crate) walkers: u16,
}

/// Nobody waits that long while the lock works: more than a killed process' lease.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Of the writer that overstays.
const SHORT_LEASE: Duration = Duration::from_millis(150);
/// A walk ends after so many folders: writers wait for it.
const STEPS: usize = 32;

/// The way to the referee.
#[derive(Clone)]
pub(crate) enum Desk {
    /// In this process.
    Here(usize, Arc<Mutex<Referee>>),
    /// In the process that started this one.
    Away(mpsc::UnboundedSender<(Ask, oneshot::Sender<Answer>)>),
}

impl Desk {
    async fn ask(&self, ask: Ask) -> anyhow::Result<Answer> {
        match self {
            Desk::Here(process, referee) => Ok(referee.lock().hear(*process, ask)),
            Desk::Away(asks) => {
                let (tell, told) = oneshot::channel();
                asks.send((ask, tell)).ok().context(GONE)?;
                told.await.context(GONE)
            }
        }
    }

    async fn leave(&self, inside: u64) -> anyhow::Result<()> {
        self.ask(Ask::Leave(inside)).await.map(drop)
    }

    async fn folder(&self, ask: Ask) -> anyhow::Result<(Folder, u64)> {
        match self.ask(ask).await? {
            Answer::Folder(folder, version) => Ok((folder, version)),
            other => bail!("the referee answered {other:?}"),
        }
    }

    async fn put(&self, inside: u64, fence: u64, write: Write) -> anyhow::Result<bool> {
        match self.ask(Ask::Put { inside, fence, write }).await? {
            Answer::Put(accepted) => Ok(accepted),
            other => bail!("the referee answered {other:?}"),
        }
    }
}

const GONE: &str = "the process that started this one is gone";

/// What the three guards have in common here.
trait Guard: FromHold {
    fn entry(&self, how: How, waited: Duration) -> Entry;
    async fn give_back(self) -> Result<(), relatch::Error>;
}

macro_rules! guard {
    ($($guard:ty)*) => {
        $(impl Guard for $guard {
            fn entry(&self, how: How, waited: Duration) -> Entry {
                Entry {
                    how,
                    mode: self.mode(),
                    owner: self.owner(),
                    fence: self.fence(),
                    depth: self.depth(),
                    waited,
                    // The clock first: if this thread is held up in between, it vouches for less.
                    until_us: now_us() + u64::try_from(self.valid_for().as_micros()).unwrap_or(u64::MAX / 2),
                }
            }

            async fn give_back(self) -> Result<(), relatch::Error> {
                self.release().await
            }
        })*
    };
}

guard! { ReadGuard UpgradableGuard WriteGuard }

/// A hold that the referee knows of, by its number there.
struct Inside<G> {
    guard: G,
    number: u64,
}

/// The hold ended before anything was done with it: this machine stood still for longer than a lease.
#[derive(Debug, thiserror::Error)]
#[error("the hold had ended before it could be used")]
struct TooLate;

/// What all workers of a process share.
pub(crate) struct Crew {
    pub(crate) lock: RwLock,
    pub(crate) desk: Desk,
    pub(crate) root: PathBuf,
    pub(crate) stop: watch::Receiver<bool>,
}

#[derive(Clone, Copy)]
enum Role {
    Reader,
    Walker,
    Writer,
}

impl Crew {
    /// Works until it is told to stop, or until one of the workers can't go on.
    pub(crate) async fn work(self, workers: Workers) -> anyhow::Result<()> {
        let Answer::Folders(folders) = self.desk.ask(Ask::Folders).await? else {
            bail!("the referee did not say which folders there are");
        };
        let (crew, folders) = (Arc::new(self), Arc::<[String]>::from(folders));
        let mut tasks = JoinSet::new();
        for (role, count) in [
            (Role::Reader, workers.readers),
            (Role::Walker, workers.walkers),
            (Role::Writer, workers.writers),
        ] {
            for number in 0..usize::from(count) {
                let worker = Worker {
                    crew: crew.clone(),
                    folders: folders.clone(),
                    role,
                    number,
                };
                tasks.spawn(worker.go_on());
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended.context("a worker panicked")??;
        }
        Ok(())
    }
}

struct Worker {
    crew: Arc<Crew>,
    folders: Arc<[String]>,
    role: Role,
    /// Among those of its role.
    number: usize,
}

impl Worker {
    /// One round after another, with a pause between them.
    async fn go_on(self) -> anyhow::Result<()> {
        let mut stop = self.crew.stop.clone();
        for round in 0.. {
            let pause = match self.role {
                Role::Reader => Duration::from_millis(6),
                Role::Walker => Duration::from_millis(100),
                Role::Writer => Duration::from_millis(120),
            };
            // They do not all begin at once.
            let pause = if round == 0 {
                pause * (self.number as u32 + 1) / 4
            } else {
                pause
            };
            tokio::select! {
                biased;
                () = until(&mut stop) => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            match self.round(round).await {
                // This machine stood still for longer than a lease. The guard has told us: that is no fault of the lock.
                Err(error) if is_lost(&error) => {}
                done => done?,
            }
        }
        Ok(())
    }

    async fn round(&self, round: usize) -> anyhow::Result<()> {
        match self.role {
            Role::Reader => self.read(round).await,
            Role::Walker => Owner::new().scope(self.walk(round)).await,
            Role::Writer if round % 8 == 1 && self.number == 0 => self.overstay(round).await,
            Role::Writer if round.is_multiple_of(3) => self.refresh_all().await,
            Role::Writer => Owner::new().scope(self.refresh(round)).await,
        }
    }

    /// Some folder, another one each time.
    fn folder(&self, round: usize) -> &str {
        let at = (round * 7919 + self.number * 31) % self.folders.len();
        &self.folders[at]
    }

    /// Two questions to the catalogue, under one read hold.
    async fn read(&self, round: usize) -> anyhow::Result<()> {
        let inside = self.enter(self.crew.lock.read().label("reader")).await?;
        for folder in [self.folder(round), ""] {
            let (number, folder) = (inside.number, folder.into());
            self.crew
                .desk
                .folder(Ask::Question {
                    inside: number,
                    folder,
                })
                .await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.leave(inside).await
    }

    /// From the root down, with a read hold for each level inside that of the level above.
    async fn walk(&self, round: usize) -> anyhow::Result<()> {
        let mut steps = STEPS;
        self.descend(String::new(), round, &mut steps).await.map(drop)
    }

    /// What there is in a folder and below, or `None` where the walk ended before it had seen all of it.
    fn descend<'a>(
        &'a self,
        folder: String,
        round: usize,
        steps: &'a mut usize,
    ) -> Pin<Box<dyn Future<Output = anyhow::Result<Option<Tally>>> + Send + 'a>> {
        Box::pin(async move {
            *steps -= 1;
            let inside = self.enter(self.crew.lock.read().label("walker")).await?;
            let seen = Catalogue::count(&self.crew.root, &folder);
            let step = Ask::Step {
                inside: inside.number,
                folder: folder.clone(),
                seen,
            };
            let (found, _) = self.crew.desk.folder(step).await?;
            let mut total = Some(found.here);
            // Each walk begins with another subfolder, so that together they see a big tree.
            let from = round % found.folders.len().max(1);
            for below in found.folders[from..].iter().chain(&found.folders[..from]) {
                let seen = match *steps {
                    0 => None,
                    _ => self.descend(below.clone(), round, steps).await?,
                };
                total = total.zip(seen).map(|(mut total, seen)| {
                    total += seen;
                    total
                });
            }
            ensure!(
                total.is_none_or(|total| total == found.total),
                "the catalogue changed under a walker: {folder:?} has {total:?} below it, and {:?} was told",
                found.total
            );
            self.leave(inside).await?;
            Ok(total)
        })
    }

    /// Refreshes one folder: a short write hold. It looks at what is there by re-entering to read.
    async fn refresh(&self, round: usize) -> anyhow::Result<()> {
        let folder = self.folder(round).to_owned();
        let writing = self.enter(self.crew.lock.write().label("writer")).await?;
        let tally = Catalogue::count(&self.crew.root, &folder);

        let reading = self.enter(self.crew.lock.read().label("writer")).await?;
        let question = Ask::Question {
            inside: reading.number,
            folder: folder.clone(),
        };
        self.crew.desk.folder(question).await?;
        self.leave(reading).await?;

        self.put(&writing, Write::One(folder, tally)).await?;
        self.leave(writing).await
    }

    /// Refreshes everything: reads the tree while readers go on, and keeps them out only for the moment of the write.
    async fn refresh_all(&self) -> anyhow::Result<()> {
        let lock = &self.crew.lock;
        let upgradable = self.enter(lock.upgradable_read().label("refresh")).await?;
        let root = self.crew.root.clone();
        let catalogue = tokio::task::spawn_blocking(move || Catalogue::scan(&root))
            .await
            .context("the scan panicked")??;

        let asked = Instant::now();
        let upgraded = upgradable.guard.upgrade().timeout(GIVE_UP).await;
        let writing = upgraded.map_err(relatch::Error::from)?;
        let writing = self.report(writing, How::Upgraded, asked.elapsed()).await?;
        self.crew.desk.leave(upgradable.number).await?;
        self.put(&writing, Write::All(catalogue)).await?;

        let fence = writing.guard.fence();
        self.crew.desk.leave(writing.number).await?;
        let reading = writing.guard.downgrade().await?;
        let reading = self.report(reading, How::Downgraded, Duration::ZERO).await?;
        let question = Ask::Question {
            inside: reading.number,
            folder: String::new(),
        };
        let (_, version) = self.crew.desk.folder(question).await?;
        ensure!(version == fence, "somebody wrote in the gap of a downgrade");
        self.leave(reading).await
    }

    /// A writer that keeps at it for longer than its lease: it is told so, somebody else writes, and it tries all the same.
    async fn overstay(&self, round: usize) -> anyhow::Result<()> {
        let acquire = self.crew.lock.write().lease(SHORT_LEASE).label("overstays");
        let writing = self.enter(acquire).await?;
        let folder = self.folder(round).to_owned();
        let tally = Catalogue::count(&self.crew.root, &folder);
        writing.guard.lost().await;
        self.crew.desk.leave(writing.number).await?;
        Owner::new().scope(self.refresh(round + 1)).await?;
        let late = Write::One(folder, tally);
        // The referee judges the answer.
        self.crew
            .desk
            .put(writing.number, writing.guard.fence(), late)
            .await?;
        Ok(())
    }

    /// A write that must be accepted, unless the hold is lost by now.
    async fn put(&self, writing: &Inside<WriteGuard>, write: Write) -> anyhow::Result<()> {
        let fence = writing.guard.fence();
        let put = self.crew.desk.put(writing.number, fence, write).await?;
        ensure!(
            put || !writing.guard.is_held(),
            "the store refused the fence of a writer who holds"
        );
        Ok(())
    }

    async fn enter<G: Guard>(&self, acquire: Acquire<G>) -> anyhow::Result<Inside<G>> {
        let asked = Instant::now();
        let guard = acquire.timeout(GIVE_UP).await?;
        self.report(guard, How::Acquired, asked.elapsed()).await
    }

    async fn report<G: Guard>(&self, guard: G, how: How, waited: Duration) -> anyhow::Result<Inside<G>> {
        match self.crew.desk.ask(Ask::Enter(guard.entry(how, waited))).await? {
            Answer::Entered(number) => Ok(Inside { guard, number }),
            Answer::TooLate => Err(TooLate.into()),
            other => bail!("the referee answered {other:?}"),
        }
    }

    async fn leave<G: Guard>(&self, inside: Inside<G>) -> anyhow::Result<()> {
        self.crew.desk.leave(inside.number).await?;
        Ok(inside.guard.give_back().await?)
    }
}

/// Until it is time to stop, or until nobody is left who could say so. Cancel safe.
pub(crate) async fn until(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn is_lost(error: &anyhow::Error) -> bool {
    error.is::<TooLate>()
        || error
            .downcast_ref::<relatch::Error>()
            .is_some_and(relatch::Error::is_lost)
}
