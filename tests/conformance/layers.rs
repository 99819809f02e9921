//! The layers over the lock: a mutex, several names at once, stripes.

#[allow(unreachable_pub, reason = "a test binary has no outside")]
mod claims {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

    use relatch::{Backoff, LostCause, Mode, Owner, Part, Relatch, Stamp};

    use crate::support::{BOUND, eventually_async};
    use crate::{Client, LEASE, World, free, lock, ms, runs_out, soon, waiters};

    /// Nobody holds any of these names and nobody waits for one.
    async fn all_free(client: &Client, names: &[&str]) {
        for name in names {
            eventually_async(BOUND, "it is free", async || {
                client
                    .inspect(name)
                    .await
                    .is_ok_and(|seen| seen.holder_count == 0 && seen.waiter_count == 0)
            })
            .await;
        }
    }

    // -- the mutex -----------------------------------------------------------------------------------------------------

    pub async fn a_mutex_is_the_write_mode_of_its_name(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let mutex = a.mutex("it").unwrap();
        let owner = Owner::new();
        let held = mutex.lock().owner(&owner).await.unwrap();
        let again = soon(mutex.lock().owner(&owner)).await.unwrap();
        assert_eq!(
            (held.mode(), again.depth(), held.fence()),
            (Mode::Write, 2, again.fence())
        );
        assert!(b.mutex("it").unwrap().try_lock().await.unwrap().is_none());
        assert!(lock(&b).try_read().await.unwrap().is_none());
        again.release().await.unwrap();
        held.release().await.unwrap();
        assert!(b.mutex("it").unwrap().try_lock().await.unwrap().is_some());
        assert!(a.relatch.mutex("").unwrap_err().is_invalid());
    }

    pub async fn a_lock_that_is_not_to_be_reentered_refuses_its_own_owner(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let once = lock(&a).non_reentrant();
        let owner = Owner::new();
        let there = lock(&b).non_reentrant();
        let held = once.read().owner(&owner).await.unwrap();
        for error in [
            soon(once.read().owner(&owner)).await.map(drop).unwrap_err(),
            soon(once.write().owner(&owner)).await.map(drop).unwrap_err(),
            soon(there.try_upgradable_read().owner(&owner))
                .await
                .map(drop)
                .unwrap_err(),
        ] {
            assert!(
                error.is_refused() && error.to_string().contains("non_reentrant"),
                "{error}"
            );
        }
        // Others share, and who may re-enter does.
        assert!(there.try_read().await.unwrap().is_some());
        let inner = soon(lock(&b).read().owner(&owner)).await.unwrap();
        drop(held);
        assert!(
            soon(once.read().owner(&owner)).await.unwrap_err().is_refused(),
            "one is left"
        );
        inner.release().await.unwrap();
        let write = soon(once.write().owner(&owner)).await.unwrap();
        // In line it is the same: of two that wait for it, the second is refused.
        let other = Owner::new();
        let waiting = tokio::spawn(there.write().owner(&other).into_future());
        waiters(&a, 1).await;
        assert!(soon(once.read().owner(&other)).await.unwrap_err().is_refused());
        write.release().await.unwrap();
        let write = soon(waiting).await.unwrap().unwrap();
        let mutex = a.mutex("it").unwrap().non_reentrant();
        assert!(
            soon(mutex.try_lock().owner(&other))
                .await
                .unwrap_err()
                .is_refused()
        );
        assert!(mutex.try_lock().await.unwrap().is_none(), "another owner");
        drop(write);
        let upgradable = soon(once.upgradable_read()).await.unwrap();
        drop(soon(upgradable.upgrade()).await.unwrap());
    }

    // -- several names ---------------------------------------------------------------------------------------------------

    pub async fn several_names_are_held_at_once_each_in_its_mode(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let l = |name: &str| a.rwlock(name).unwrap();
        let all = soon(a.multi((l("c").write(), l("a").read(), l("b").upgradable_read())))
            .await
            .unwrap();
        assert_eq!(
            all.names().collect::<Vec<_>>(),
            ["a", "b", "c"].map(|name| a.of(name))
        );
        assert!(all.is_held() && all.valid_for() > ms(1000));
        let theirs = |name: &str| b.rwlock(name).unwrap();
        assert!(theirs("a").try_read().await.unwrap().is_some());
        assert!(theirs("b").try_read().await.unwrap().is_some());
        assert!(theirs("b").try_write().await.unwrap().is_none());
        assert!(theirs("c").try_read().await.unwrap().is_none());
        for name in ["a", "b", "c"] {
            let seen = b.inspect(name).await.unwrap();
            assert_eq!(seen.fence, all.fence(&a.of(name)));
            assert_eq!(seen.holders[0].owner, all.owner());
        }
        assert_eq!(all.fence(&a.of("d")), None);
        all.release().await.unwrap();
        all_free(&b, &["a", "b", "c"]).await;
    }

    pub async fn a_name_given_twice_is_held_once_in_the_strongest_mode(world: &World) {
        let a = world.client().await;
        let l = lock(&a);
        let all = soon(a.multi((l.read(), l.write(), l.read()))).await.unwrap();
        let seen = a.inspect("it").await.unwrap();
        assert_eq!(
            seen.holders.iter().map(|h| h.mode).collect::<Vec<_>>(),
            [Mode::Write]
        );
        drop(all);
        all_free(&a, &["it"]).await;
    }

    pub async fn what_is_said_of_any_part_of_a_name_goes_for_it_and_different_things_are_an_error(
        world: &World,
    ) {
        let a = world.client().await;
        let l = lock(&a);
        let parts = [
            Part::from(l.write()),
            l.read().label("sale").into(),
            l.upgradable_read().lease(LEASE).label("sale").into(),
        ];
        let all = soon(a.multi(parts)).await.unwrap();
        let seen = a.inspect("it").await.unwrap();
        let held = &seen.holders[0];
        assert_eq!((held.label.as_deref(), held.mode), (Some("sale"), Mode::Write));
        assert!(all.valid_for() <= LEASE, "{:?}", all.valid_for());
        all.release().await.unwrap();

        for (other, option) in [
            (l.read().lease(ms(70)), "lease"),
            (l.read().max_hold(ms(70)), "max_hold"),
            (l.read().label("count"), "label"),
            (l.read().spin(Backoff::new(ms(7), ms(70))), "back-off"),
            (l.read().replicas(2, ms(70)), "replicas"),
        ] {
            let said = l.write().lease(LEASE).max_hold(LEASE).label("sale");
            let said = said.spin(Backoff::default()).replicas(1, ms(70));
            let error = soon(a.multi([Part::from(said), other.into()])).await.unwrap_err();
            assert!(
                error.is_invalid() && error.to_string().contains(option),
                "{error}"
            );
        }
        let kept = a.multi([Part::from(l.write()), l.read().keep_until_dropped().into()]);
        assert!(
            format!("{kept:?}").contains("keep_until_dropped: true"),
            "{kept:?}"
        );
    }

    pub async fn no_name_at_all_is_held_at_once(world: &World) {
        let a = world.client().await;
        let none = soon(a.multi(Vec::<Part>::new())).await.unwrap();
        assert!(none.is_held());
        none.release().await.unwrap();
    }

    pub async fn whatever_the_order_nobody_waits_for_each_other(world: &World) {
        let a = world.client().await;
        let b = world.client().await;
        let names = ["n0", "n1", "n2", "n3"];
        let inside: Arc<[AtomicI64; 4]> = Arc::default();
        let tasks: Vec<_> = (0..8)
            .map(|task| {
                let client = if task % 2 == 0 { a.clone() } else { b.clone() };
                let inside = inside.clone();
                tokio::spawn(async move {
                    for round in 0..12 {
                        // Three of the four, in each of their orders; one of them to read.
                        let at = |n: usize| (task + round * 3 + n * (1 + 2 * (round % 2))) % 4;
                        let l = |n: usize| client.rwlock(names[at(n)]).unwrap();
                        let all = client
                            .multi((l(0).write(), l(1).write(), l(2).read()))
                            .timeout(BOUND * 3)
                            .await
                            .unwrap();
                        for n in [0, 1] {
                            assert_eq!(inside[at(n)].fetch_sub(1000, SeqCst), 0, "alone");
                        }
                        assert!(inside[at(2)].fetch_add(1, SeqCst) >= 0);
                        tokio::task::yield_now().await;
                        inside[at(2)].fetch_sub(1, SeqCst);
                        for n in [0, 1] {
                            inside[at(n)].fetch_add(1000, SeqCst);
                        }
                        if round % 2 == 0 {
                            all.release().await.unwrap();
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            soon(task).await.unwrap();
        }
        all_free(&a, &names).await;
    }

    pub async fn several_names_have_one_deadline_and_leave_nothing_when_it_passes(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let l = |name: &str| a.rwlock(name).unwrap();
        let busy = b.rwlock("b").unwrap().write().label("theirs").await.unwrap();
        let all = || a.multi([l("a").write(), l("b").write(), l("c").write()]);
        let error = runs_out(async || all().timeout(ms(50)).await).await;
        assert!(
            error.is_timeout() && error.to_string().contains(&format!("{:?}", a.of("b"))),
            "{error}"
        );
        let blame = error.blame().unwrap();
        assert_eq!(blame.holders[0].label.as_deref(), Some("theirs"));
        all_free(&b, &["a", "c"]).await;
        assert!(soon(all().at_once()).await.unwrap().is_none());
        assert!(
            soon(a.try_multi((l("a").read(), l("b").read())))
                .await
                .unwrap()
                .is_none()
        );
        all_free(&b, &["a", "c"]).await;
        drop(busy);
        all_free(&b, &["b"]).await;
        assert!(soon(all().at_once()).await.unwrap().is_some());
    }

    pub async fn what_cannot_be_had_whole_at_once_is_not_touched(world: &World) {
        // Elsewhere in a cluster it is one name after the other.
        let (a, b) = (
            world.client().await.in_one_slot(),
            world.client().await.in_one_slot(),
        );
        let l = |name: &str| a.rwlock(name).unwrap();
        soon(a.multi([l("a").write(), l("b").write()]))
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
        let fence = async |name: &str| b.inspect(name).await.unwrap().fence;
        let before = fence("a").await;
        assert!(before.is_some());
        let busy = b.rwlock("b").unwrap().read().await.unwrap();
        for _ in 0..5 {
            assert!(
                soon(a.try_multi([l("a").write(), l("b").write()]))
                    .await
                    .unwrap()
                    .is_none()
            );
        }
        assert_eq!(fence("a").await, before, "nobody has written it meanwhile");
        busy.release().await.unwrap();
        let all = soon(a.try_multi([l("a").write(), l("b").write()]))
            .await
            .unwrap()
            .unwrap();
        assert!(all.fence(&a.of("a")) > before);
        // A line is respected: who waits to write is not passed by who reads several.
        let waiting = tokio::spawn(b.rwlock("a").unwrap().write().into_future());
        eventually_async(BOUND, "in line", async || {
            b.inspect("a").await.is_ok_and(|seen| seen.waiter_count == 1)
        })
        .await;
        all.release().await.unwrap();
        let write = soon(waiting).await.unwrap().unwrap();
        assert!(
            soon(a.try_multi([l("a").read(), l("b").read()]))
                .await
                .unwrap()
                .is_none()
        );
        drop(write);
        // Of a part that does not re-enter it is said, also if another is busy, and nothing else is taken for a moment.
        let owner = Owner::new();
        let held = l("b").read().owner(&owner).await.unwrap();
        let fence = async || b.inspect("a").await.unwrap().fence;
        let before = fence().await;
        let parts = || (l("a").write(), l("b").non_reentrant().read());
        for busy in [false, true] {
            let other = match busy {
                true => Some(b.rwlock("a").unwrap().read().await.unwrap()),
                false => None,
            };
            let error = soon(a.try_multi(parts()).owner(&owner)).await.unwrap_err();
            assert!(
                error.is_refused() && error.to_string().contains(&a.of("b")),
                "{error}"
            );
            let error = soon(a.multi(parts()).owner(&owner)).await.unwrap_err();
            assert!(error.is_refused(), "{error}");
            drop(other);
        }
        assert_eq!(fence().await, before, "nobody has written");
        drop(held);
        all_free(&b, &["a", "b"]).await;
    }

    pub async fn a_dropped_acquisition_of_several_names_leaves_nothing(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let l = |name: &str| a.rwlock(name).unwrap();
        let busy = b.rwlock("it").unwrap().write().await.unwrap();
        let waiting = tokio::spawn(a.multi([l("a").write(), l("it").write()]).into_future());
        waiters(&b, 1).await;
        assert_eq!(b.inspect("a").await.unwrap().holder_count, 1);
        waiting.abort();
        all_free(&b, &["a"]).await;
        waiters(&b, 0).await;
        busy.release().await.unwrap();
        all_free(&b, &["it"]).await;
    }

    pub async fn a_part_that_is_lost_loses_the_whole(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let l = |name: &str| a.rwlock(name).unwrap();
        let all = a.multi([l("a").write(), l("b").write()]).await.unwrap();
        let lost = all.lost();
        b.revoke("b").await.unwrap();
        let lost = soon(lost).await;
        assert_eq!((&*lost.name, lost.cause), (&*a.of("b"), LostCause::Revoked));
        assert!(!all.is_held() && all.valid_for().is_zero());
        let error = soon(all.protect(std::future::pending::<()>())).await.unwrap_err();
        assert!(
            error.is_lost() && error.to_string().contains(&format!("{:?}", a.of("b"))),
            "{error}"
        );
        assert!(
            b.rwlock("a").unwrap().try_read().await.unwrap().is_none(),
            "until it is given back"
        );
        assert!(all.release().await.unwrap_err().is_lost());
        all_free(&b, &["a", "b"]).await;
    }

    pub async fn a_part_that_is_lost_ends_the_wait_for_the_others(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let l = |name: &str| a.rwlock(name).unwrap();
        let busy = b.rwlock("it").unwrap().write().await.unwrap();
        let waiting = tokio::spawn(a.multi([l("a").write(), l("it").write()]).into_future());
        waiters(&b, 1).await;
        b.revoke("a").await.unwrap();
        let error = soon(waiting).await.unwrap().unwrap_err();
        assert!(error.is_lost(), "{error}");
        waiters(&b, 0).await;
        drop(busy);
    }

    pub async fn an_owner_reenters_several_names(world: &World) {
        let a = world.client().await;
        let l = |name: &str| a.rwlock(name).unwrap();
        let owner = Owner::new();
        owner
            .scope(async {
                let outer = a.multi((l("a").write(), l("b").read())).await.unwrap();
                let inner = soon(a.multi([l("b").read(), l("a").read()])).await.unwrap();
                assert_eq!((outer.owner(), inner.owner()), (owner.clone(), owner.clone()));
            })
            .await;
        let named = a.multi([l("c").write()]).owner(&owner).await.unwrap();
        assert_eq!(named.owner(), owner);
        all_free(&a, &["a", "b"]).await;
    }

    pub async fn parts_that_do_not_go_together_are_an_error(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        for part in [
            Part::from(b.rwlock("it").unwrap().read()),
            lock(&a).read().owner(&Owner::new()).into(),
            lock(&a).write().timeout(ms(5)).into(),
            lock(&a).write().label("x".repeat(257)).into(),
        ] {
            let error = soon(a.multi([part])).await.unwrap_err();
            assert!(error.is_invalid(), "{error}");
        }
    }

    pub async fn threads_take_several_names(world: &World) {
        let a = world.client_of(Relatch::builder().own_thread()).await;
        tokio::task::spawn_blocking(move || {
            let l = |name: &str| a.rwlock(name).unwrap();
            let all = a
                .multi((l("b").write(), l("a").read()))
                .timeout(BOUND)
                .wait()
                .unwrap();
            let again = l("b").read().timeout(BOUND).wait().unwrap();
            assert_eq!(again.owner(), all.owner());
            std::thread::scope(|threads| {
                let other = threads.spawn(|| a.try_multi([l("a").write()]).wait().unwrap().is_none());
                assert!(other.join().unwrap());
            });
            all.release().unwrap();
        })
        .await
        .unwrap();
    }

    // -- versions ----------------------------------------------------------------------------------------------------------

    pub async fn a_stamp_stands_until_somebody_writes(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let l = lock(&a);
        let first = l.stamp().await.unwrap().expect("nobody has ever been here");
        assert!(l.validate(first).await.unwrap());
        let read = lock(&b).read().await.unwrap();
        assert_eq!(Stamp::from(&read), first, "a reader sees the same version");
        assert!(lock(&b).validate(first).await.unwrap());
        drop(read);

        let write = soon(lock(&b).write()).await.unwrap();
        assert_eq!(l.stamp().await.unwrap(), None, "somebody writes");
        assert!(!l.validate(first).await.unwrap());
        let written = Stamp::from(&write);
        assert!(!l.validate(written).await.unwrap(), "it is not done yet");
        write.release().await.unwrap();
        assert!(l.validate(written).await.unwrap());
        assert_eq!(l.stamp().await.unwrap(), Some(written));
        assert!(!l.validate(first).await.unwrap());
        assert_eq!(written.fence(), a.inspect("it").await.unwrap().fence.unwrap());
    }

    pub async fn a_stamp_does_not_keep_a_writer_out(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let stamp = lock(&a).stamp().await.unwrap().unwrap();
        let upgradable = lock(&b).upgradable_read().await.unwrap();
        assert!(lock(&a).validate(stamp).await.unwrap(), "upgradable only reads");
        let write = soon(upgradable.upgrade()).await.unwrap();
        assert!(!lock(&a).validate(stamp).await.unwrap());
        drop(write);
        free(&a).await;
    }

    // -- stripes -----------------------------------------------------------------------------------------------------------

    pub async fn keys_of_other_stripes_do_not_wait(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let (mine, theirs) = (a.striped("stock", 8).unwrap(), b.striped("stock", 8).unwrap());
        let same = (1..).find(|n| mine.stripe_of(n) == mine.stripe_of(&0)).unwrap();
        let other = (1..).find(|n| mine.stripe_of(n) != mine.stripe_of(&0)).unwrap();
        let held = mine.lock_for(&0).write().await.unwrap();
        assert!(theirs.lock_for(&same).try_read().await.unwrap().is_none());
        assert!(theirs.lock_for(&other).try_write().await.unwrap().is_some());
        assert!(soon(theirs.read_all().at_once()).await.unwrap().is_none());
        held.release().await.unwrap();
        let keys = soon(mine.write_for([0, other, same])).await.unwrap();
        assert_eq!(keys.names().count(), 2);
        assert!(theirs.lock_for(&same).try_read().await.unwrap().is_none());
        keys.release().await.unwrap();
    }

    pub async fn stripes_that_are_not_to_be_reentered_refuse_their_own_owner(world: &World) {
        let a = world.client().await;
        let (stock, once) = (
            a.striped("stock", 8).unwrap(),
            a.striped("stock", 8).unwrap().non_reentrant(),
        );
        let owner = Owner::new();
        let held = once.write_for([1, 2]).owner(&owner).await.unwrap();
        for key in [1, 2] {
            let error = once.lock_for(&key).read().owner(&owner).await.unwrap_err();
            assert!(error.is_refused(), "{error}");
        }
        assert!(
            soon(once.read_all().owner(&owner))
                .await
                .unwrap_err()
                .is_refused()
        );
        drop(soon(stock.lock_for(&1).read().owner(&owner)).await.unwrap());
        held.release().await.unwrap();
    }

    pub async fn all_stripes_keep_everybody_out_and_see_one_state(world: &World) {
        let (a, b) = (world.client().await, world.client().await);
        let stock = a.striped("stock", 5).unwrap();
        // Moved between two keys at a time: the total is 100 whenever nobody writes.
        let left: Arc<[AtomicI64; 10]> = Arc::new(std::array::from_fn(|_| AtomicI64::new(10)));
        let movers: Vec<_> = (0..4_usize)
            .map(|n| {
                let (stock, left) = (b.striped("stock", 5).unwrap(), left.clone());
                tokio::spawn(async move {
                    for round in 0..15 {
                        let (from, to) = ((n + round) % 10, (n * 3 + round * 7 + 1) % 10);
                        let both = stock.write_for([from, to]).await.unwrap();
                        left[from].fetch_sub(1, SeqCst);
                        tokio::task::yield_now().await;
                        left[to].fetch_add(1, SeqCst);
                        both.release().await.unwrap();
                    }
                })
            })
            .collect();
        for _ in 0..8 {
            let all = soon(stock.read_all()).await.unwrap();
            assert_eq!(left.iter().map(|n| n.load(SeqCst)).sum::<i64>(), 100);
            all.release().await.unwrap();
        }
        for mover in movers {
            soon(mover).await.unwrap();
        }
        let all = soon(stock.write_all()).await.unwrap();
        assert!(
            b.striped("stock", 5)
                .unwrap()
                .lock_for("x")
                .try_read()
                .await
                .unwrap()
                .is_none()
        );
        drop(all);
    }
}

on_every_backend! { "layers.rs":
    a_mutex_is_the_write_mode_of_its_name
    a_lock_that_is_not_to_be_reentered_refuses_its_own_owner
    several_names_are_held_at_once_each_in_its_mode
    a_name_given_twice_is_held_once_in_the_strongest_mode
    what_is_said_of_any_part_of_a_name_goes_for_it_and_different_things_are_an_error
    no_name_at_all_is_held_at_once
    whatever_the_order_nobody_waits_for_each_other
    several_names_have_one_deadline_and_leave_nothing_when_it_passes
    what_cannot_be_had_whole_at_once_is_not_touched
    a_dropped_acquisition_of_several_names_leaves_nothing
    a_part_that_is_lost_loses_the_whole
    a_part_that_is_lost_ends_the_wait_for_the_others
    an_owner_reenters_several_names
    parts_that_do_not_go_together_are_an_error
    threads_take_several_names
    a_stamp_stands_until_somebody_writes
    a_stamp_does_not_keep_a_writer_out
    keys_of_other_stripes_do_not_wait
    stripes_that_are_not_to_be_reentered_refuse_their_own_owner
    all_stripes_keep_everybody_out_and_see_one_state
}
