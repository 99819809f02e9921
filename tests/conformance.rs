//! One suite, every backend, every deployment. What a call means must not depend on where the truth is kept, nor on how to get there.
//!
//! Each claim is a function that gets a [`World`], here or in a file of `conformance/`; the macro at the end runs all of them on all backends,
//! each in a test of its own, and over all deployments of `support::deployment`, each deployment in one test, so that no combination can be
//! missing. How many claims have held over a deployment is counted, and compared with `docs/deployments.md`.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::time::{Duration, Instant};

use relatch::{
    Builder, Embedded, Error, Inspection, LostCause, Mode, Mutex, Owner, Relatch, RwLock, Striped,
};
#[cfg(feature = "redis")]
use support::RedisServer;
use support::{BOUND, eventually_async};

/// Where a claim is tried: somewhere, under a name that no other claim uses.
struct World {
    place: Place,
    name: String,
}

enum Place {
    Embedded(Embedded),
    #[cfg(feature = "redis")]
    Redis(RedisServer),
    #[cfg(feature = "redis")]
    Deployment(std::sync::Arc<support::deployment::Running>),
}

/// A client whose names are its claim's own: several claims share a deployment.
#[derive(Clone)]
struct Client {
    relatch: Relatch,
    name: String,
}

impl std::ops::Deref for Client {
    type Target = Relatch;
    fn deref(&self) -> &Relatch {
        &self.relatch
    }
}

impl Client {
    /// What a claim locks, unless it says otherwise.
    fn it(&self) -> &'static str {
        "it"
    }

    /// What everybody else calls this name of the claim's.
    fn of(&self, name: &str) -> String {
        format!("{}: {name}", self.name)
    }

    /// All names of this client are in one slot of a cluster, with those of others that are made by this.
    fn in_one_slot(mut self) -> Self {
        self.name = format!("{{{}}}", self.name);
        self
    }

    fn rwlock(&self, name: &str) -> Result<RwLock, Error> {
        self.relatch.rwlock(&self.of(name))
    }

    fn mutex(&self, name: &str) -> Result<Mutex, Error> {
        self.relatch.mutex(&self.of(name))
    }

    fn striped(&self, name: &str, stripes: usize) -> Result<Striped, Error> {
        self.relatch.striped(&self.of(name), stripes)
    }

    async fn inspect(&self, name: &str) -> Result<Inspection, Error> {
        self.relatch.inspect(&self.of(name)).await
    }

    async fn revoke(&self, name: &str) -> Result<u64, Error> {
        self.relatch.revoke(&self.of(name)).await
    }

    async fn revoke_owner(&self, name: &str, owner: &Owner) -> Result<u64, Error> {
        self.relatch.revoke_owner(&self.of(name), owner).await
    }
}

impl World {
    async fn client(&self) -> Client {
        self.client_of(Relatch::builder()).await
    }

    /// A client with leases short enough to wait for, and long enough for a machine that does much else: whoever is not let run for longer
    /// than half of one loses it, and rightly so.
    async fn brisk(&self) -> Client {
        self.client_of(Relatch::builder().lease(LEASE).claim(CLAIM)).await
    }

    async fn client_of(&self, builder: Builder) -> Client {
        let relatch = match &self.place {
            Place::Embedded(server) => builder.embedded_in(server).expect("an embedded client"),
            #[cfg(feature = "redis")]
            Place::Redis(server) => builder.url(server.url()).connect().await.expect("a Redis client"),
            #[cfg(feature = "redis")]
            Place::Deployment(running) => builder
                .url(&running.url)
                .replicas(running.replicas, BOUND)
                .connect()
                .await
                .expect("a client"),
        };
        Client {
            relatch,
            name: self.name.clone(),
        }
    }
}

/// Of a brisk client.
const LEASE: Duration = Duration::from_secs(3);
const CLAIM: Duration = Duration::from_secs(2);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn lock(client: &Client) -> RwLock {
    client.rwlock(client.it()).expect("a name")
}

async fn waiters(client: &Client, n: u64) {
    eventually_async(BOUND, &format!("{n} waiters"), async || {
        client
            .inspect(client.it())
            .await
            .is_ok_and(|seen| seen.waiter_count == n)
    })
    .await;
}

async fn free(client: &Client) {
    eventually_async(BOUND, "the lock is free and nobody waits", async || {
        client
            .inspect(client.it())
            .await
            .is_ok_and(|seen| seen.holder_count == 0 && seen.waiter_count == 0)
    })
    .await;
}

async fn held_as(client: &Client) -> Vec<Mode> {
    let mut modes: Vec<Mode> = client
        .inspect(client.it())
        .await
        .unwrap()
        .holders
        .iter()
        .map(|h| h.mode)
        .collect();
    modes.sort();
    modes
}

/// Resolves within the bound, or the test fails: nothing here may hang.
async fn soon<T>(future: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(BOUND, future.into_future())
        .await
        .expect("it came within the bound")
}

/// Whether a wait has run out and told who is in the way. On a busy machine it may not even be answered in that time, which is another error, or
/// those who are asked who it is do not answer soon enough: then it is to be tried again.
fn has_run_out(error: &Error, since: Instant) -> bool {
    let told = error.blame().is_some_and(|blame| blame.holder_count > 0);
    let busy = error.is_unreachable() || error.is_timeout();
    assert!(busy && since.elapsed() < BOUND, "{error}");
    error.is_timeout() && told
}

/// What a wait says that runs out.
async fn runs_out<T>(mut wait: impl AsyncFnMut() -> Result<T, Error>) -> Error {
    let since = Instant::now();
    loop {
        match soon(wait()).await {
            Ok(_) => panic!("nothing was in the way"),
            Err(error) if has_run_out(&error, since) => return error,
            Err(_) => {}
        }
    }
}

#[allow(unreachable_pub, reason = "a test binary has no outside")]
mod claims {
    use super::*;

    // -- who shares with whom --------------------------------------------------------------------------------------

    pub async fn readers_share(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let one = lock(&a).read().await.unwrap();
        let two = soon(lock(&b).read()).await.unwrap();
        assert_eq!(a.inspect(a.it()).await.unwrap().holder_count, 2);
        assert!(one.is_held() && two.is_held());
    }

    pub async fn a_writer_excludes_everybody(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let _write = lock(&a).write().await.unwrap();
        assert!(lock(&b).try_read().await.unwrap().is_none());
        assert!(lock(&b).try_upgradable_read().await.unwrap().is_none());
        assert!(lock(&b).try_write().await.unwrap().is_none());
        assert!(
            lock(&a).try_read().await.unwrap().is_none(),
            "another owner of the same client"
        );
    }

    pub async fn readers_and_one_upgradable_share(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let _read = lock(&a).read().await.unwrap();
        let _upgradable = soon(lock(&b).upgradable_read()).await.unwrap();
        assert!(lock(&a).try_read().await.unwrap().is_some());
        assert!(lock(&a).try_upgradable_read().await.unwrap().is_none());
        assert!(lock(&a).try_write().await.unwrap().is_none());
    }

    pub async fn two_branches_of_one_join_do_not_both_write(world: &World) {
        let a = world.client().await;
        let l = lock(&a);
        let inside = std::sync::atomic::AtomicUsize::new(0);
        let enter = async || {
            let guard = soon(l.write()).await.unwrap();
            assert_eq!(
                inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst),
                0,
                "alone"
            );
            tokio::task::yield_now().await;
            inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            guard.release().await.unwrap();
        };
        tokio::join!(enter(), enter());
    }

    // -- re-entry --------------------------------------------------------------------------------------------------

    pub async fn an_owner_that_writes_enters_every_mode(world: &World) {
        let a = world.client().await;
        let owner = Owner::new();
        owner
            .scope(async {
                let outer = lock(&a).write().await.unwrap();
                assert_eq!(
                    (outer.owner(), Owner::current()),
                    (owner.clone(), Some(owner.clone()))
                );
                let write = soon(lock(&a).write()).await.unwrap();
                let upgradable = soon(lock(&a).upgradable_read()).await.unwrap();
                let read = soon(lock(&a).read()).await.unwrap();
                assert_eq!(
                    (outer.depth(), write.depth(), upgradable.depth(), read.depth()),
                    (1, 2, 1, 1)
                );
                assert_eq!(outer.fence(), write.fence(), "the same hold");
                assert_eq!(
                    held_as(&a).await,
                    [Mode::Read, Mode::Upgradable, Mode::Write, Mode::Write]
                );
            })
            .await;
        free(&a).await;
    }

    pub async fn a_reader_reenters_past_a_waiting_writer(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let owner = Owner::new();
        let outer = lock(&a).read().owner(&owner).await.unwrap();
        let writer = tokio::spawn(lock(&b).write().into_future());
        waiters(&a, 1).await;
        assert!(
            lock(&a).try_read().await.unwrap().is_none(),
            "another owner waits behind the writer"
        );
        let inner = soon(lock(&a).read().owner(&owner)).await.unwrap();
        assert_eq!(inner.depth(), 2);
        inner.release().await.unwrap();
        outer.release().await.unwrap();
        drop(soon(writer).await.unwrap().unwrap());
    }

    pub async fn a_lone_reader_may_write(world: &World) {
        let a = world.client().await;
        let owner = Owner::new();
        let read = lock(&a).read().owner(&owner).await.unwrap();
        let write = soon(lock(&a).write().owner(&owner)).await.unwrap();
        assert!(lock(&a).try_read().await.unwrap().is_none());
        write.release().await.unwrap();
        assert!(read.is_held());
        assert!(lock(&a).try_read().await.unwrap().is_some());
    }

    pub async fn a_reader_beside_another_is_refused_to_write_instead_of_hanging(world: &World) {
        let a = world.client().await;
        let owner = Owner::new();
        let _mine = lock(&a).read().owner(&owner).await.unwrap();
        let _theirs = lock(&a).read().await.unwrap();
        let error = soon(lock(&a).write().owner(&owner)).await.unwrap_err();
        assert!(error.is_refused(), "{error}");
        assert!(
            error.to_string().contains("upgradable_read"),
            "names the remedy: {error}"
        );
        assert!(lock(&a).try_write().owner(&owner).await.unwrap().is_none());
    }

    pub async fn a_reader_is_refused_upgradable_when_another_has_it(world: &World) {
        let a = world.client().await;
        let owner = Owner::new();
        let _theirs = lock(&a).upgradable_read().await.unwrap();
        let _mine = lock(&a).read().owner(&owner).await.unwrap();
        assert!(
            soon(lock(&a).upgradable_read().owner(&owner))
                .await
                .unwrap_err()
                .is_refused()
        );
    }

    pub async fn one_owner_in_two_clients_reenters_and_the_depth_is_the_sum(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let owner = Owner::new();
        let here = lock(&a).write().owner(&owner).await.unwrap();
        let text = owner.to_string();
        let there = soon(lock(&b).write().owner(&text.parse().unwrap()))
            .await
            .unwrap();
        assert_eq!((here.depth(), there.depth()), (1, 2));
        assert_eq!(a.inspect(a.it()).await.unwrap().holders.len(), 2);
        here.release().await.unwrap();
        assert!(
            lock(&a).try_read().await.unwrap().is_none(),
            "the other client's is still held"
        );
        there.release().await.unwrap();
        assert!(lock(&a).try_read().await.unwrap().is_some());
    }

    pub async fn what_an_owner_has_dropped_does_not_refuse_it(world: &World) {
        let a = world.client().await;
        let owner = Owner::new();
        let theirs = lock(&a).read().await.unwrap();
        for _ in 0..10 {
            drop(lock(&a).read().owner(&owner).await.unwrap());
            let error = lock(&a).write().owner(&owner).timeout(ms(20)).await.unwrap_err();
            assert!(!error.is_refused(), "theirs is in the way, not its own: {error}");
        }
        drop(theirs);
        for depth in [1, 1, 1] {
            let write = soon(lock(&a).write().owner(&owner)).await.unwrap();
            assert_eq!(write.depth(), depth);
        }
    }

    pub async fn hold_counts_follow_every_step(world: &World) {
        let a = world.client().await;
        let owner = Owner::new();
        let count = async || a.inspect(a.it()).await.unwrap().holders.len();
        assert_eq!(count().await, 0);
        let one = lock(&a).write().owner(&owner).await.unwrap();
        assert_eq!(count().await, 1);
        one.release().await.unwrap();
        assert_eq!(count().await, 0);
        let one = lock(&a).write().owner(&owner).await.unwrap();
        let two = lock(&a).write().owner(&owner).await.unwrap();
        assert_eq!(count().await, 2);
        two.release().await.unwrap();
        assert_eq!(count().await, 1);
        one.release().await.unwrap();
        assert_eq!(count().await, 0);
    }

    pub async fn a_nested_read_release_keeps_the_write(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let owner = Owner::new();
        let write = lock(&a).write().owner(&owner).await.unwrap();
        let read = lock(&a).read().owner(&owner).await.unwrap();
        read.release().await.unwrap();
        assert!(write.is_held());
        assert!(lock(&b).try_read().await.unwrap().is_none());
    }

    pub async fn a_writer_may_take_read_and_keep_it(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let owner = Owner::new();
        let write = lock(&a).write().owner(&owner).await.unwrap();
        let read = lock(&a).read().owner(&owner).await.unwrap();
        write.release().await.unwrap();
        assert!(read.is_held());
        assert!(lock(&b).try_write().await.unwrap().is_none());
        assert!(lock(&b).try_read().await.unwrap().is_some());
    }

    pub async fn waiting_requests_of_an_owner_enter_with_it(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let owner = Owner::new();
        let held = lock(&a).write().await.unwrap();
        let write = tokio::spawn(lock(&b).write().owner(&owner).into_future());
        waiters(&a, 1).await;
        let read = tokio::spawn(lock(&b).read().owner(&owner).into_future());
        waiters(&a, 2).await;
        held.release().await.unwrap();
        // Granted together: neither must wait behind the other.
        let read = soon(read).await.unwrap().unwrap();
        let write = soon(write).await.unwrap().unwrap();
        assert!(read.is_held() && write.is_held());
    }

    /// If each were let in to read first, each write would wait for the other's read.
    pub async fn owners_that_ask_to_read_and_to_write_at_once_do_not_wait_for_each_other(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let held = lock(&a).write().await.unwrap();
        let both = |client: Client| {
            let lock = lock(&client);
            tokio::spawn(Owner::new().scope(async move {
                let (write, read) = tokio::join!(lock.write(), lock.read());
                (write.unwrap(), read.unwrap())
            }))
        };
        let first = both(a.clone());
        waiters(&a, 2).await;
        let second = both(b.clone());
        waiters(&a, 4).await;
        held.release().await.unwrap();
        drop(soon(first).await.unwrap());
        drop(soon(second).await.unwrap());
        free(&a).await;
    }

    // -- fairness --------------------------------------------------------------------------------------------------

    pub async fn a_new_reader_does_not_pass_a_waiting_writer(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let reading = lock(&a).read().await.unwrap();
        let writer = tokio::spawn(lock(&b).write().into_future());
        waiters(&a, 1).await;
        let late = tokio::spawn(lock(&a).read().into_future());
        waiters(&a, 2).await;
        reading.release().await.unwrap();
        let write = soon(writer).await.unwrap().unwrap();
        assert!(!late.is_finished());
        write.release().await.unwrap();
        drop(soon(late).await.unwrap().unwrap());
    }

    pub async fn twenty_waiting_readers_enter_together_after_a_write(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let write = lock(&a).write().await.unwrap();
        let readers: Vec<_> = (0..20)
            .map(|n| tokio::spawn(lock(if n % 2 == 0 { &a } else { &b }).read().into_future()))
            .collect();
        waiters(&a, 20).await;
        let next = tokio::spawn(lock(&b).write().into_future());
        waiters(&a, 21).await;
        write.release().await.unwrap();
        let mut guards = Vec::new();
        for reader in readers {
            guards.push(soon(reader).await.unwrap().unwrap());
        }
        assert_eq!(a.inspect(a.it()).await.unwrap().holder_count, 20);
        assert!(
            !next.is_finished(),
            "the writer waits for that one phase of readers"
        );
        drop(guards);
        drop(soon(next).await.unwrap().unwrap());
    }

    pub async fn overlapping_readers_do_not_starve_a_writer(world: &World) {
        let a = world.client().await;
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let (l, stop) = (lock(&a), stop.clone());
                tokio::spawn(async move {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let _read = l.read().await.unwrap();
                        tokio::time::sleep(ms(20)).await;
                    }
                })
            })
            .collect();
        for _ in 0..5 {
            soon(lock(&a).write()).await.unwrap().release().await.unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for reader in readers {
            soon(reader).await.unwrap();
        }
    }

    pub async fn writers_enter_in_the_order_they_asked(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let held = lock(&a).write().await.unwrap();
        let order = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for n in 0..6 {
            let (l, order) = (lock(if n % 2 == 0 { &a } else { &b }), order.clone());
            tasks.push(tokio::spawn(async move {
                let guard = l.write().await.unwrap();
                order.lock().push(n);
                guard.release().await.unwrap();
            }));
            waiters(&a, n + 1).await;
        }
        held.release().await.unwrap();
        for task in tasks {
            soon(task).await.unwrap();
        }
        assert_eq!(*order.lock(), [0, 1, 2, 3, 4, 5]);
    }

    pub async fn a_writer_that_leaves_the_line_lets_readers_in(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let _reading = lock(&a).read().await.unwrap();
        let writer = tokio::spawn(lock(&b).write().into_future());
        waiters(&a, 1).await;
        let late = tokio::spawn(lock(&a).read().into_future());
        waiters(&a, 2).await;
        writer.abort();
        drop(soon(late).await.unwrap().unwrap());
        waiters(&a, 0).await;
    }

    // -- upgrade and downgrade -------------------------------------------------------------------------------------

    pub async fn an_upgrade_waits_for_readers_ahead_of_queued_writers(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let upgradable = lock(&a).upgradable_read().await.unwrap();
        let before = upgradable.fence();
        let reading = lock(&b).read().await.unwrap();
        let writer = tokio::spawn(lock(&b).write().into_future());
        waiters(&a, 1).await;
        let upgrade = tokio::spawn(upgradable.upgrade().into_future());
        waiters(&a, 2).await;
        assert!(
            lock(&b).try_read().await.unwrap().is_none(),
            "no new reader passes an upgrade"
        );
        reading.release().await.unwrap();
        let write = soon(upgrade).await.unwrap().unwrap();
        assert!(!writer.is_finished());
        assert!(write.fence() > before);
        assert_eq!(held_as(&a).await, [Mode::Write]);
        write.release().await.unwrap();
        drop(soon(writer).await.unwrap().unwrap());
    }

    pub async fn an_upgrade_that_times_out_keeps_the_upgradable_hold(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let upgradable = lock(&a).upgradable_read().await.unwrap();
        let reading = lock(&b).read().label("slow report").await.unwrap();
        let since = Instant::now();
        let mut kept = Some(upgradable);
        let failed = loop {
            let upgradable = kept.take().expect("it is handed back");
            let failed = soon(upgradable.upgrade().timeout(ms(50))).await.unwrap_err();
            if has_run_out(failed.error(), since) {
                break failed;
            }
            kept = Some(failed.into_guard());
        };
        let blame = failed.error().blame().cloned().unwrap();
        let upgradable = failed.into_guard();
        assert!(upgradable.is_held());
        assert_eq!(blame.holder_count, 1, "it is not in its own way");
        assert_eq!(blame.holders[0].label.as_deref(), Some("slow report"));
        assert_eq!(held_as(&a).await, [Mode::Read, Mode::Upgradable]);
        reading.release().await.unwrap();
        let write = soon(upgradable.upgrade()).await.unwrap();
        write.release().await.unwrap();
        free(&a).await;
    }

    pub async fn try_upgrade_hands_back_what_it_could_not_upgrade(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let upgradable = lock(&a).upgradable_read().await.unwrap();
        let reading = lock(&b).read().await.unwrap();
        let upgradable = upgradable.try_upgrade().await.unwrap().unwrap_err();
        assert!(upgradable.is_held());
        reading.release().await.unwrap();
        let write = upgradable.try_upgrade().await.unwrap().unwrap();
        assert!(write.is_held());
        drop(write);
        free(&a).await;
    }

    pub async fn a_dropped_upgrade_leaves_nothing(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let upgradable = lock(&a).upgradable_read().await.unwrap();
        let reading = lock(&b).read().await.unwrap();
        let upgrade = tokio::spawn(upgradable.upgrade().into_future());
        waiters(&a, 1).await;
        upgrade.abort();
        waiters(&a, 0).await;
        reading.release().await.unwrap();
        free(&a).await;
    }

    pub async fn a_downgrade_has_no_gap_and_lets_waiting_readers_in(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let write = lock(&a).write().await.unwrap();
        let fence = write.fence();
        let reader = tokio::spawn(lock(&b).read().into_future());
        waiters(&a, 1).await;
        let writer = tokio::spawn(lock(&b).write().into_future());
        waiters(&a, 2).await;
        let read = write.downgrade().await.unwrap();
        assert_eq!(read.fence(), fence, "what it reads is what it wrote");
        let other = soon(reader).await.unwrap().unwrap();
        assert!(!writer.is_finished());
        drop((read, other));
        drop(soon(writer).await.unwrap().unwrap());
    }

    pub async fn a_write_downgrades_to_upgradable_and_back_up(world: &World) {
        let a = world.client().await;
        let write = lock(&a).write().await.unwrap();
        let upgradable = write.downgrade_to_upgradable().await.unwrap();
        assert!(lock(&a).try_read().await.unwrap().is_some());
        assert!(lock(&a).try_upgradable_read().await.unwrap().is_none());
        let write = soon(upgradable.upgrade()).await.unwrap();
        let read = write
            .downgrade_to_upgradable()
            .await
            .unwrap()
            .downgrade()
            .await
            .unwrap();
        assert!(lock(&a).try_upgradable_read().await.unwrap().is_some());
        drop(read);
        free(&a).await;
    }

    // -- fences ----------------------------------------------------------------------------------------------------

    pub async fn fences_strictly_grow_with_every_write_hold(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let mut last = 0;
        for n in 0..20 {
            let write = soon(lock(if n % 2 == 0 { &a } else { &b }).write())
                .await
                .unwrap();
            assert!(write.fence() > last);
            last = write.fence();
            write.release().await.unwrap();
            let read = lock(&a).read().await.unwrap();
            assert_eq!(read.fence(), last, "a reader has the version of what it reads");
        }
    }

    // -- time ------------------------------------------------------------------------------------------------------

    pub async fn a_timeout_says_who_is_in_the_way(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let held = lock(&a).write().label("nightly import").await.unwrap();
        let error = runs_out(async || {
            let begun = Instant::now();
            let outcome = lock(&b).read().timeout(ms(300)).await;
            assert!(begun.elapsed() >= ms(300), "not early: {:?}", begun.elapsed());
            outcome
        })
        .await;
        let blame = error.blame().unwrap();
        assert_eq!(blame.holder_count, 1);
        assert_eq!(blame.holders[0].owner, held.owner());
        assert_eq!(blame.holders[0].mode, Mode::Write);
        assert_eq!(blame.holders[0].label.as_deref(), Some("nightly import"));
        assert!(blame.holders[0].held_for >= ms(290));
        let client = blame.holders[0].client.as_ref().expect("its process is known");
        assert_eq!(client.pid, std::process::id());
        assert!(error.to_string().contains("nightly import"), "{error}");
        waiters(&a, 0).await;
    }

    pub async fn a_timeout_of_zero_asks_once(world: &World) {
        let a = world.client().await;
        let read = soon(lock(&a).read().timeout(Duration::ZERO)).await.unwrap();
        assert!(
            soon(lock(&a).write().timeout(Duration::ZERO))
                .await
                .unwrap_err()
                .is_timeout()
        );
        drop(read);
    }

    pub async fn an_absurd_timeout_waits(world: &World) {
        let a = world.client().await;
        let held = lock(&a).write().await.unwrap();
        let waiting = tokio::spawn(lock(&a).write().timeout(Duration::MAX).into_future());
        waiters(&a, 1).await;
        held.release().await.unwrap();
        drop(soon(waiting).await.unwrap().unwrap());
    }

    pub async fn a_fixed_lease_ends_and_the_next_enters(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let held = lock(&a).write().lease(ms(1_000)).await.unwrap();
        assert!(held.valid_for() <= ms(1_000) && held.valid_for() > Duration::ZERO);
        let next = tokio::spawn(lock(&b).write().into_future());
        assert_eq!(soon(held.lost()).await, LostCause::Lapsed);
        assert!(!held.is_held());
        let next = soon(next).await.unwrap().unwrap();
        assert!(next.fence() > held.fence());
        let error = held.release().await.unwrap_err();
        assert_eq!(error.lost_cause(), Some(LostCause::Lapsed));
        assert!(
            next.is_held(),
            "a release after the lease takes nothing from others"
        );
    }

    pub async fn a_fixed_lease_is_counted_from_its_grant(world: &World) {
        let builder = Relatch::builder().claim(CLAIM);
        let (a, b) = (
            world.client_of(builder.clone()).await,
            world.client_of(builder).await,
        );
        let held = lock(&a).write().await.unwrap();
        let next = tokio::spawn(lock(&b).write().lease(ms(10_000)).into_future());
        waiters(&a, 1).await;
        held.release().await.unwrap();
        let next = soon(next).await.unwrap().unwrap();
        // It is granted for a claim, and renewed once when a part of that has passed.
        let mut lease = Duration::ZERO;
        eventually_async(BOUND, "it is renewed", async || {
            let holder = a.inspect(a.it()).await.unwrap().holders.remove(0);
            lease = holder.held_for + holder.lease_left;
            lease > CLAIM
        })
        .await;
        assert_eq!(lease, ms(10_000));
        next.release().await.unwrap();
    }

    pub async fn the_watchdog_renews_for_as_long_as_the_guard_lives(world: &World) {
        let a = world.brisk().await;
        let held = lock(&a).write().await.unwrap();
        let lost = held.lost();
        tokio::time::timeout(LEASE * 3 / 2, lost)
            .await
            .expect_err("a lease and a half later it is still held");
        assert!(held.is_held());
        held.release().await.unwrap();
    }

    pub async fn a_granted_waiter_is_renewed_past_its_claim(world: &World) {
        let (a, b) = (world.brisk().await, world.brisk().await);
        let held = lock(&a).write().await.unwrap();
        let next = tokio::spawn(lock(&b).write().into_future());
        waiters(&a, 1).await;
        held.release().await.unwrap();
        let next = soon(next).await.unwrap().unwrap();
        tokio::time::timeout(CLAIM * 3 / 2, next.lost())
            .await
            .expect_err("a claim and a half later it is still held");
        next.release().await.unwrap();
    }

    pub async fn a_waiter_outlasts_many_claims(world: &World) {
        let (a, b) = (world.brisk().await, world.brisk().await);
        let held = lock(&a).write().await.unwrap();
        let next = tokio::spawn(lock(&b).write().into_future());
        waiters(&a, 1).await;
        tokio::time::timeout(CLAIM * 5 / 2, held.lost())
            .await
            .expect_err("held");
        assert_eq!(a.inspect(a.it()).await.unwrap().waiter_count, 1);
        held.release().await.unwrap();
        drop(soon(next).await.unwrap().unwrap());
    }

    pub async fn max_hold_ends_a_renewed_hold(world: &World) {
        let lease = LEASE / 2;
        let a = world.client_of(Relatch::builder().lease(lease)).await;
        let b = world.client().await;
        let held = lock(&a).write().max_hold(lease * 2).await.unwrap();
        let next = tokio::spawn(lock(&b).write().into_future());
        let begun = Instant::now();
        assert_eq!(soon(held.lost()).await, LostCause::MaxHold);
        assert!(
            begun.elapsed() > lease,
            "it was renewed before: {:?}",
            begun.elapsed()
        );
        drop(soon(next).await.unwrap().unwrap());
    }

    pub async fn a_shorter_reentry_never_shortens_the_lease(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let owner = Owner::new();
        let outer = lock(&a)
            .write()
            .owner(&owner)
            .lease(Duration::from_secs(20))
            .await
            .unwrap();
        let inner = lock(&a).write().owner(&owner).lease(ms(800)).await.unwrap();
        assert_eq!(soon(inner.lost()).await, LostCause::Lapsed);
        assert!(outer.valid_for() > Duration::from_secs(15));
        assert!(lock(&b).try_read().await.unwrap().is_none());
    }

    pub async fn leases_of_reentries_do_not_add_up(world: &World) {
        let a = world.client().await;
        let owner = Owner::new();
        let mut guards = Vec::new();
        for _ in 0..4 {
            guards.push(
                lock(&a)
                    .write()
                    .owner(&owner)
                    .lease(Duration::from_secs(20))
                    .await
                    .unwrap(),
            );
        }
        for holder in a.inspect(a.it()).await.unwrap().holders {
            assert!(holder.lease_left <= Duration::from_secs(20));
        }
    }

    pub async fn one_readers_release_and_renewal_leave_anothers_lease_alone(world: &World) {
        let (a, b) = (world.brisk().await, world.client().await);
        let long = lock(&b).read().lease(Duration::from_secs(60)).await.unwrap();
        let short = lock(&a).read().await.unwrap();
        tokio::time::timeout(LEASE / 2, short.lost())
            .await
            .expect_err("renewed meanwhile");
        short.release().await.unwrap();
        let left = a.inspect(a.it()).await.unwrap().holders[0].lease_left;
        assert!(left > Duration::from_secs(50), "{left:?}");
        assert!(long.valid_for() > Duration::from_secs(50));
    }

    pub async fn a_read_released_inside_a_write_leaves_the_write_renewed(world: &World) {
        let a = world.brisk().await;
        let owner = Owner::new();
        let write = lock(&a).write().owner(&owner).await.unwrap();
        let read = lock(&a).read().owner(&owner).await.unwrap();
        read.release().await.unwrap();
        tokio::time::timeout(LEASE * 3 / 2, write.lost())
            .await
            .expect_err("still renewed");
        write.release().await.unwrap();
    }

    pub async fn an_upgrade_does_not_begin_a_max_hold_anew(world: &World) {
        let (a, b) = (world.brisk().await, world.client().await);
        let upgradable = lock(&a).upgradable_read().max_hold(CLAIM).await.unwrap();
        let reading = lock(&b).read().await.unwrap();
        let begun = Instant::now();
        let upgrade = tokio::spawn(upgradable.upgrade().into_future());
        tokio::time::timeout(ms(500), reading.lost())
            .await
            .expect_err("held");
        drop(reading);
        let write = soon(upgrade).await.unwrap().unwrap();
        let valid = write.valid_for();
        assert!(
            valid + begun.elapsed() <= CLAIM + ms(20),
            "{valid:?} after {:?}",
            begun.elapsed()
        );
        assert_eq!(soon(write.lost()).await, LostCause::MaxHold);
    }

    pub async fn what_was_given_back_is_never_lost(world: &World) {
        let a = world.client().await;
        let held = lock(&a).write().lease(ms(1_000)).await.unwrap();
        let lost = held.lost();
        held.release().await.unwrap();
        tokio::time::timeout(ms(1_200), lost)
            .await
            .expect_err("it was given back in time");
    }

    // -- nothing is left behind ------------------------------------------------------------------------------------

    pub async fn a_dropped_guard_is_released(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        drop(lock(&a).write().await.unwrap());
        drop(soon(lock(&b).write()).await.unwrap());
        free(&a).await;
    }

    pub async fn dropped_futures_leave_nothing(world: &World) {
        let a = world.client().await;
        for n in 0..60_u32 {
            let l = lock(&a);
            let mut future = std::pin::pin!(l.write().into_future());
            // Let it get as far as it gets in so many polls.
            for _ in 0..n % 6 {
                if futures_util::poll!(&mut future).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        free(&a).await;
    }

    pub async fn close_gives_everything_back(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let held = lock(&a).read().await.unwrap();
        let _other = lock(&b).read().await.unwrap();
        let waiting = tokio::spawn(lock(&a).write().into_future());
        waiters(&b, 1).await;
        soon(a.close()).await.unwrap();
        assert_eq!(soon(held.lost()).await, LostCause::Closed);
        assert!(soon(waiting).await.unwrap().unwrap_err().is_closed());
        assert!(lock(&a).read().await.unwrap_err().is_closed());
        let seen = b.inspect(b.it()).await.unwrap();
        assert_eq!((seen.holder_count, seen.waiter_count), (1, 0));
    }

    pub async fn the_last_handle_gives_everything_back(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let guard = lock(&a).write().await.unwrap();
        drop(a);
        assert!(guard.is_held(), "a guard keeps its client going");
        drop(guard);
        free(&b).await;
    }

    // -- operators -------------------------------------------------------------------------------------------------

    pub async fn a_revoked_holder_is_told_before_the_next_enters(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let held = lock(&a).write().await.unwrap();
        let next = tokio::spawn(lock(&b).write().into_future());
        waiters(&a, 1).await;
        assert_eq!(soon(b.revoke(b.it())).await.unwrap(), 1);
        assert!(!held.is_held(), "by the time it is taken the guard knows");
        assert_eq!(soon(held.lost()).await, LostCause::Revoked);
        assert_eq!(
            held.release().await.unwrap_err().lost_cause(),
            Some(LostCause::Revoked)
        );
        drop(soon(next).await.unwrap().unwrap());
        assert_eq!(b.revoke(b.it()).await.unwrap(), 0, "nobody is left to be revoked");
    }

    pub async fn revoking_one_owner_leaves_the_others(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let mine = lock(&a).read().await.unwrap();
        let theirs = lock(&b).read().await.unwrap();
        assert_eq!(soon(b.revoke_owner(b.it(), &mine.owner())).await.unwrap(), 1);
        assert!(!mine.is_held() && theirs.is_held());
        assert_eq!(b.inspect(b.it()).await.unwrap().holder_count, 1);
    }

    pub async fn a_revocation_leaves_those_in_line_alone(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let held = lock(&a).write().await.unwrap();
        let mut queued = Vec::new();
        for n in 1..=5 {
            queued.push(tokio::spawn(lock(&a).write().into_future()));
            waiters(&b, n).await;
        }
        assert_eq!(soon(b.revoke(b.it())).await.unwrap(), 1, "only the one that held");
        assert_eq!(soon(held.lost()).await, LostCause::Revoked);
        for next in queued {
            let next = soon(next).await.unwrap().unwrap();
            let seen = b.inspect(b.it()).await.unwrap();
            assert!(
                seen.holders.iter().all(|holder| !holder.revoked),
                "the server took a hold that came after the revocation was called: {seen:?}"
            );
            assert!(next.is_held());
            next.release().await.unwrap();
        }
        free(&b).await;
    }

    pub async fn a_revocation_ends_while_others_come_and_go(world: &World) {
        use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
        let clients = [world.client().await, world.client().await];
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = (0..4)
            .map(|n| {
                let (l, stop) = (lock(&clients[n % 2]), stop.clone());
                tokio::spawn(async move {
                    while !stop.load(Relaxed) {
                        let write = l.write().await.unwrap();
                        tokio::task::yield_now().await;
                        // Taken or not.
                        let _ = write.release().await;
                    }
                })
            })
            .collect();
        for _ in 0..10 {
            assert!(soon(clients[0].revoke(clients[0].it())).await.unwrap() <= 1);
        }
        stop.store(true, Relaxed);
        for task in tasks {
            soon(task).await.unwrap();
        }
        free(&clients[0]).await;
    }

    pub async fn protect_ends_the_work_when_the_hold_is_lost(world: &World) {
        let a = world.client().await;
        let held = lock(&a).write().await.unwrap();
        assert_eq!(held.protect(async { 7 }).await.unwrap(), 7);
        let (ended, revoked) = tokio::join!(held.protect(std::future::pending::<()>()), a.revoke(a.it()));
        assert_eq!(ended.unwrap_err().lost_cause(), Some(LostCause::Revoked));
        revoked.unwrap();
    }

    // -- input -----------------------------------------------------------------------------------------------------

    pub async fn every_legal_name_is_a_lock_of_its_own(world: &World) {
        let a = world.client().await.relatch;
        let long = "x".repeat(512);
        let names = [
            "{test}:abc:key",
            "}",
            "}{",
            "{}",
            "a}b",
            "a{b",
            "100%",
            "%7D",
            "line\nbreak",
            "nul\0nul",
            "grüße 🔒",
            " ",
            "it",
            "it:queue",
            "it}:queue",
            "it:readers",
            long.as_str(),
        ];
        let mut guards = Vec::new();
        for name in names {
            guards.push(soon(a.rwlock(name).unwrap().write()).await.unwrap());
        }
        for name in names {
            assert!(
                a.rwlock(name).unwrap().try_read().await.unwrap().is_none(),
                "{name:?}"
            );
            assert_eq!(a.inspect(name).await.unwrap().holder_count, 1);
        }
    }

    pub async fn a_bad_name_is_an_error(world: &World) {
        let a = world.client().await.relatch;
        for name in ["", &"x".repeat(513)] {
            assert!(a.rwlock(name).unwrap_err().is_invalid());
            assert!(a.inspect(name).await.unwrap_err().is_invalid());
            assert!(a.revoke(name).await.unwrap_err().is_invalid());
        }
    }

    pub async fn a_bad_lease_is_an_error(world: &World) {
        let a = world.client().await;
        for lease in [Duration::ZERO, Duration::from_nanos(1), ms(9), Duration::MAX] {
            assert!(
                lock(&a).write().lease(lease).await.unwrap_err().is_invalid(),
                "{lease:?}"
            );
            assert!(
                lock(&a).try_write().lease(lease).await.unwrap_err().is_invalid(),
                "{lease:?}"
            );
            assert!(
                lock(&a).write().max_hold(lease).await.unwrap_err().is_invalid(),
                "{lease:?}"
            );
        }
        // Which may be over before it is told, where replicas are waited for.
        if let Err(error) = soon(lock(&a).write().lease(ms(10))).await {
            assert!(error.is_lost(), "{error}");
        }
        drop(
            soon(lock(&a).write().lease(Duration::from_secs(30 * 86_400)))
                .await
                .unwrap(),
        );
        free(&a).await;
    }

    pub async fn any_label_comes_back_as_it_was(world: &World) {
        let a = world.client().await;
        for label in [
            "a,b|c;d",
            "line\nbreak",
            "nul\0",
            "ünï",
            " ",
            "#x",
            &"y".repeat(256),
        ] {
            let held = lock(&a).write().label(label).await.unwrap();
            let waiting = tokio::spawn(lock(&a).read().label(label).into_future());
            waiters(&a, 1).await;
            let seen = a.inspect(a.it()).await.unwrap();
            assert_eq!(seen.holders[0].label.as_deref(), Some(label));
            assert_eq!(seen.waiters[0].label.as_deref(), Some(label));
            held.release().await.unwrap();
            let read = soon(waiting).await.unwrap().unwrap();
            assert_eq!(
                a.inspect(a.it()).await.unwrap().holders[0].label.as_deref(),
                Some(label)
            );
            read.release().await.unwrap();
        }
        assert!(
            lock(&a)
                .read()
                .label("z".repeat(257))
                .await
                .unwrap_err()
                .is_invalid()
        );
    }

    // -- many ------------------------------------------------------------------------------------------------------

    pub async fn many_tasks_on_one_name_never_overlap(world: &World) {
        use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
        let clients = [world.client().await, world.client().await];
        // Readers count up, a writer stands for -1,000,000: any mixture shows.
        let inside = std::sync::Arc::new(AtomicI64::new(0));
        let tasks: Vec<_> = (0..24)
            .map(|n| {
                let (l, inside) = (lock(&clients[n % 2]), inside.clone());
                tokio::spawn(async move {
                    for round in 0..20 {
                        if (n + round) % 4 == 0 {
                            let write = l.write().await.unwrap();
                            assert_eq!(inside.fetch_sub(1_000_000, SeqCst), 0);
                            tokio::task::yield_now().await;
                            inside.fetch_add(1_000_000, SeqCst);
                            write.release().await.unwrap();
                        } else {
                            let read = l.read().await.unwrap();
                            assert!(inside.fetch_add(1, SeqCst) >= 0);
                            tokio::task::yield_now().await;
                            inside.fetch_sub(1, SeqCst);
                            read.release().await.unwrap();
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            tokio::time::timeout(Duration::from_secs(60), task)
                .await
                .expect("no hang")
                .unwrap();
        }
        free(&clients[0]).await;
    }
}

/// Its name, and to try it.
#[cfg(feature = "redis")]
type Claim = (&'static str, fn(&World));

/// Runs every claim over one deployment, and says which did not hold: several at a time, as most of them wait for something most of the
/// time.
#[cfg(feature = "redis")]
fn every_claim_over(deployment: &str) {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    let deployment = support::deployment::ALL
        .iter()
        .find(|known| known.name == deployment)
        .expect("a deployment of that name");
    let running = std::sync::Arc::new((deployment.start)());
    let claims: Vec<&Claim> = CLAIMS.iter().copied().flatten().collect();
    let (next, held) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = parking_lot::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while let Some((name, claim)) = claims.get(next.fetch_add(1, Relaxed)) {
                    let world = World {
                        place: Place::Deployment(running.clone()),
                        name: (*name).to_owned(),
                    };
                    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| claim(&world))) {
                        Ok(()) => _ = held.fetch_add(1, Relaxed),
                        Err(_) => failed.lock().push(*name),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    assert!(
        failed.is_empty(),
        "{}: {failed:?}; what they said is above",
        deployment.what
    );
    page::told(deployment, held.into_inner(), claims.len());
}

/// What `docs/deployments.md` says of this.
#[cfg(feature = "redis")]
mod page {
    use super::support::deployment::{ALL, Deployment};
    use super::support::page::{section, update_or_compare};

    const PLACE: &str = "deployments";
    const HEAD: &str = "| deployment | conformance | `cargo test --test conformance …` |\n|---|---|---|\n";

    fn start_of_row(deployment: &Deployment) -> String {
        format!("| {} |", deployment.what)
    }

    /// The row of a deployment, and those of the others as they are: each is told by a test of its own.
    pub(super) fn told(deployment: &Deployment, held: usize, claims: usize) {
        let row = format!(
            "{} {held} of {claims} claims | `every_claim_holds_over::{}` |",
            start_of_row(deployment),
            deployment.name
        );
        update_or_compare(PLACE, |written| {
            table(|other| {
                if other.name == deployment.name {
                    Some(row.clone())
                } else {
                    row_of(other, written)
                }
            })
        });
    }

    fn row_of(deployment: &Deployment, written: &str) -> Option<String> {
        let start = start_of_row(deployment);
        written
            .lines()
            .find(|row| row.starts_with(&start))
            .map(str::to_owned)
    }

    fn table(row: impl Fn(&Deployment) -> Option<String>) -> String {
        let mut table = HEAD.to_owned();
        for row in ALL.iter().filter_map(row) {
            table.push_str(&row);
            table.push('\n');
        }
        table
    }

    #[test]
    fn the_page_has_a_row_of_each_deployment_and_no_other() {
        let written = section(PLACE);
        let expected = table(|deployment| {
            Some(row_of(deployment, &written).unwrap_or_else(|| format!("{} is missing", deployment.what)))
        });
        assert_eq!(written, expected);
    }
}

/// The claims of this file, and the ones of the files in `conformance/`, each with its own list.
macro_rules! on_every_backend {
    ($file:literal: [$($deployment:ident)*] [$($module:ident)*] $($claim:ident)*) => {
        on_every_backend! { $file: $($claim)* }

        /// Of all files.
        #[cfg(feature = "redis")]
        const CLAIMS: &[&[Claim]] = &[THESE, $($module::THESE),*];

        #[cfg(feature = "redis")]
        mod every_claim_holds_over {
            $(#[test]
            fn $deployment() {
                super::every_claim_over(stringify!($deployment));
            })*
        }

        #[cfg(feature = "redis")]
        #[test]
        fn every_deployment_is_tried() {
            let known: Vec<&str> = support::deployment::ALL.iter().map(|known| known.name).collect();
            assert_eq!([$(stringify!($deployment)),*].as_slice(), known.as_slice(), "the list below names every deployment, in order");
        }
    };
    ($file:literal: $($claim:ident)*) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                let place = crate::Place::Embedded(crate::Embedded::new());
                super::claims::$claim(&crate::World { place, name: "it".into() }).await;
            })*
        }

        #[cfg(feature = "redis")]
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                let place = crate::Place::Redis(crate::RedisServer::start());
                super::claims::$claim(&crate::World { place, name: "it".into() }).await;
            })*
        }

        #[cfg(feature = "redis")]
        pub(crate) const THESE: &[crate::Claim] = &[$((stringify!($claim), |world| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(claims::$claim(world));
        })),*];

        #[test]
        fn every_claim_runs_on_every_backend() {
            let listed = [$(stringify!($claim)),*];
            let written = crate::claims_in(include_str!($file));
            assert_eq!(listed.as_slice(), written.as_slice(), "the list below names every claim, in order");
        }
    };
}

/// Their names.
fn claims_in(source: &str) -> Vec<&str> {
    source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub async fn ")?.split('(').next())
        .collect()
}

/// Whatever is added to the folder.
#[cfg(feature = "redis")]
#[test]
fn every_claim_of_every_file_runs_over_every_deployment() {
    let tests = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let folder = std::fs::read_dir(tests.join("conformance")).unwrap();
    let mut files: Vec<_> = folder.map(|file| file.unwrap().path()).collect();
    files.push(tests.join("conformance.rs"));
    let sources: Vec<_> = files
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect();
    let mut written: Vec<&str> = sources.iter().flat_map(|source| claims_in(source)).collect();
    let mut run: Vec<&str> = CLAIMS.iter().copied().flatten().map(|(name, _)| *name).collect();
    written.sort_unstable();
    run.sort_unstable();
    assert_eq!(run, written);
    run.dedup();
    assert_eq!(
        run.len(),
        written.len(),
        "each has a name, and what it locks, for itself"
    );
}

#[path = "conformance/layers.rs"]
mod layers;
#[path = "conformance/threads.rs"]
mod threads;

on_every_backend! { "conformance.rs":
    [tcp socket tls least_rights no_messages only_evalsha only_eval proxy replicas sentinel cluster cluster_secured]
    [layers threads]
    readers_share
    a_writer_excludes_everybody
    readers_and_one_upgradable_share
    two_branches_of_one_join_do_not_both_write
    an_owner_that_writes_enters_every_mode
    a_reader_reenters_past_a_waiting_writer
    a_lone_reader_may_write
    a_reader_beside_another_is_refused_to_write_instead_of_hanging
    a_reader_is_refused_upgradable_when_another_has_it
    one_owner_in_two_clients_reenters_and_the_depth_is_the_sum
    what_an_owner_has_dropped_does_not_refuse_it
    hold_counts_follow_every_step
    a_nested_read_release_keeps_the_write
    a_writer_may_take_read_and_keep_it
    waiting_requests_of_an_owner_enter_with_it
    owners_that_ask_to_read_and_to_write_at_once_do_not_wait_for_each_other
    a_new_reader_does_not_pass_a_waiting_writer
    twenty_waiting_readers_enter_together_after_a_write
    overlapping_readers_do_not_starve_a_writer
    writers_enter_in_the_order_they_asked
    a_writer_that_leaves_the_line_lets_readers_in
    an_upgrade_waits_for_readers_ahead_of_queued_writers
    an_upgrade_that_times_out_keeps_the_upgradable_hold
    try_upgrade_hands_back_what_it_could_not_upgrade
    a_dropped_upgrade_leaves_nothing
    a_downgrade_has_no_gap_and_lets_waiting_readers_in
    a_write_downgrades_to_upgradable_and_back_up
    fences_strictly_grow_with_every_write_hold
    a_timeout_says_who_is_in_the_way
    a_timeout_of_zero_asks_once
    an_absurd_timeout_waits
    a_fixed_lease_ends_and_the_next_enters
    a_fixed_lease_is_counted_from_its_grant
    the_watchdog_renews_for_as_long_as_the_guard_lives
    a_granted_waiter_is_renewed_past_its_claim
    a_waiter_outlasts_many_claims
    max_hold_ends_a_renewed_hold
    a_shorter_reentry_never_shortens_the_lease
    leases_of_reentries_do_not_add_up
    one_readers_release_and_renewal_leave_anothers_lease_alone
    a_read_released_inside_a_write_leaves_the_write_renewed
    an_upgrade_does_not_begin_a_max_hold_anew
    what_was_given_back_is_never_lost
    a_dropped_guard_is_released
    dropped_futures_leave_nothing
    close_gives_everything_back
    the_last_handle_gives_everything_back
    a_revoked_holder_is_told_before_the_next_enters
    revoking_one_owner_leaves_the_others
    a_revocation_leaves_those_in_line_alone
    a_revocation_ends_while_others_come_and_go
    protect_ends_the_work_when_the_hold_is_lost
    every_legal_name_is_a_lock_of_its_own
    a_bad_name_is_an_error
    a_bad_lease_is_an_error
    any_label_comes_back_as_it_was
    many_tasks_on_one_name_never_overlap
}
