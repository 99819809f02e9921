//! Threads: the same lock, blocking.

#[allow(unreachable_pub, reason = "a test binary has no outside")]
mod claims {
    use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    use relatch::blocking::Guard;
    use relatch::{Error, LostCause, Owner, ReadGuard, Relatch, RwLock};

    use crate::support::{BOUND, eventually_blocking};
    use crate::{CLAIM, Client, LEASE, World, free, has_run_out, lock, ms};

    /// A client that threads can wait for.
    async fn client(world: &World) -> Client {
        world.client_of(Relatch::builder().own_thread()).await
    }

    /// Runs it on a thread of its own, that is neither a runtime's nor the test's. It ends within the bound, or the test fails.
    fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || tell.send(work()));
        match told.recv_timeout(BOUND * 3) {
            Ok(value) => value,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("a hang"),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                std::panic::resume_unwind(thread.join().expect_err("it told nothing"))
            }
        }
    }

    /// A wait that ends because somebody is in the way.
    fn runs_out<T>(mut wait: impl FnMut() -> Result<T, Error>) {
        let since = Instant::now();
        loop {
            match wait() {
                Ok(_) => panic!("nothing was in the way"),
                Err(error) if has_run_out(&error, since) => return,
                Err(_) => {}
            }
        }
    }

    fn waiting(relatch: &Client, n: u64) {
        eventually_blocking(BOUND, "so many wait", || {
            relatch
                .block_on(relatch.inspect("it"))
                .is_ok_and(|seen| seen.waiter_count == n)
        });
    }

    fn recurse(lock: &RwLock, levels: u64, guards: &mut Vec<Guard<ReadGuard>>) -> Result<u64, Error> {
        let read = lock.read().wait()?;
        let depth = read.depth();
        guards.push(read);
        if levels == 1 {
            Ok(depth)
        } else {
            recurse(lock, levels - 1, guards)
        }
    }

    pub async fn a_thread_that_recurses_reenters_past_a_waiting_writer(world: &World) {
        let a = client(world).await;
        on_a_thread(move || {
            let l = lock(&a);
            let mut guards = vec![l.read().wait().unwrap()];
            let writer = thread::spawn({
                let l = lock(&a);
                move || l.write().wait().map(|write| write.fence())
            });
            waiting(&a, 1);
            assert_eq!(recurse(&l, 5, &mut guards).unwrap(), 6);
            let fence = guards[0].fence();
            drop(guards);
            assert!(writer.join().unwrap().unwrap() > fence);
        });
    }

    pub async fn a_thread_that_writes_enters_every_mode(world: &World) {
        let a = client(world).await;
        on_a_thread(move || {
            let l = lock(&a);
            let write = l.write().wait().unwrap();
            let again = l.write().timeout(ms(5000)).wait().unwrap();
            let upgradable = l.upgradable_read().wait().unwrap();
            let read = l.try_read().wait().unwrap().expect("its own");
            assert_eq!(
                (write.depth(), again.depth(), upgradable.depth(), read.depth()),
                (1, 2, 1, 1)
            );
            assert_eq!(write.owner(), read.owner());
        });
    }

    pub async fn threads_exclude_each_other(world: &World) {
        let a = client(world).await;
        on_a_thread(move || {
            let inside = AtomicI64::new(0);
            thread::scope(|threads| {
                for n in 0..6 {
                    let (l, inside) = (lock(&a), &inside);
                    threads.spawn(move || {
                        for round in 0..10 {
                            if (n + round) % 3 == 0 {
                                let write = l.write().wait().unwrap();
                                assert_eq!(inside.fetch_sub(1_000, SeqCst), 0);
                                thread::yield_now();
                                inside.fetch_add(1_000, SeqCst);
                                write.release().unwrap();
                            } else {
                                let _read = l.read().wait().unwrap();
                                assert!(inside.fetch_add(1, SeqCst) >= 0);
                                thread::yield_now();
                                inside.fetch_sub(1, SeqCst);
                            }
                        }
                    });
                }
            });
            let busy = lock(&a).write().wait().unwrap();
            thread::scope(|threads| {
                let other = threads.spawn(|| lock(&a).try_write().wait().unwrap().is_none());
                assert!(other.join().unwrap());
                let waiting = threads.spawn(|| runs_out(|| lock(&a).write().timeout(ms(20)).wait()));
                waiting.join().unwrap();
            });
            drop(busy);
        });
    }

    pub async fn a_panic_releases_what_its_thread_held(world: &World) {
        let a = client(world).await;
        let there = a.clone();
        on_a_thread(move || {
            let thread = thread::spawn(move || {
                let _write = lock(&there).write().wait().unwrap();
                std::panic::resume_unwind(Box::new("as asked for"));
            });
            assert!(thread.join().is_err());
        });
        free(&a).await;
    }

    pub async fn an_owner_in_scope_goes_before_the_thread(world: &World) {
        let a = client(world).await;
        on_a_thread(move || {
            let l = lock(&a);
            let owner = Owner::new();
            let mine = l.write().wait().unwrap();
            assert!(owner.sync_scope(|| l.try_read().wait()).unwrap().is_none());
            assert!(l.try_read().owner(&owner).wait().unwrap().is_none());
            mine.release().unwrap();
            let theirs = l.write().owner(&owner).wait().unwrap();
            assert!(l.try_read().wait().unwrap().is_none(), "the thread is another");
            let inner = owner.sync_scope(|| l.read().wait()).unwrap();
            assert_eq!((inner.owner(), theirs.owner()), (owner.clone(), owner));
        });
    }

    pub async fn a_hold_goes_to_another_thread_when_it_is_said(world: &World) {
        let a = client(world).await;
        on_a_thread(move || {
            let write = lock(&a).write().wait().unwrap().into_inner();
            let l = lock(&a);
            thread::spawn(move || {
                assert!(write.is_held());
                assert!(l.try_read().wait().unwrap().is_none(), "it is not this thread's");
                drop(write);
                drop(l.read().wait().unwrap());
            })
            .join()
            .unwrap();
        });
    }

    pub async fn a_thread_upgrades_and_downgrades(world: &World) {
        let a = client(world).await;
        on_a_thread(move || {
            let l = lock(&a);
            let upgradable = l.upgradable_read().wait().unwrap();
            let (tell, told) = mpsc::channel();
            let (go, gone) = mpsc::channel();
            let reader = thread::spawn({
                let l = lock(&a);
                move || {
                    let read = l.read().wait().unwrap();
                    tell.send(()).unwrap();
                    gone.recv().unwrap();
                    drop(read);
                }
            });
            told.recv().unwrap();
            let upgradable = upgradable.try_upgrade().unwrap().unwrap_err();
            let mut kept = Some(upgradable.into_inner());
            runs_out(|| {
                let upgradable = kept.take().expect("it is handed back");
                let failed = upgradable.upgrade().timeout(ms(20)).wait().map(drop).unwrap_err();
                let error = failed.error().clone();
                kept = Some(failed.into_guard());
                Err::<(), _>(error)
            });
            let upgradable = kept.expect("it is handed back");
            assert!(upgradable.is_held());
            go.send(()).unwrap();
            let write = upgradable.upgrade().wait().unwrap();
            reader.join().unwrap();
            let upgradable = write.downgrade_to_upgradable().unwrap();
            let write = upgradable.try_upgrade().unwrap().unwrap();
            let read = write.downgrade().unwrap();
            assert!(thread::scope(|threads| {
                threads
                    .spawn(|| l.try_read().wait().unwrap().is_some())
                    .join()
                    .unwrap()
            }));
            read.release().unwrap();
        });
    }

    pub async fn a_revoked_hold_is_an_error_to_release(world: &World) {
        let a = client(world).await;
        on_a_thread(move || {
            let write = lock(&a).write().wait().unwrap();
            assert_eq!(a.block_on(a.revoke("it")).unwrap(), 1);
            assert!(!write.is_held());
            let cause = a.block_on(async { Ok::<_, Error>(write.lost().await) }).unwrap();
            assert_eq!(cause, LostCause::Revoked);
            assert!(write.release().unwrap_err().is_lost());
        });
    }

    pub async fn a_lease_is_renewed_while_its_thread_is_busy(world: &World) {
        let a = world
            .client_of(Relatch::builder().own_thread().lease(LEASE).claim(CLAIM))
            .await;
        on_a_thread(move || {
            let write = lock(&a).write().wait().unwrap();
            let begun = Instant::now();
            eventually_blocking(BOUND, "a lease and a half", || begun.elapsed() > LEASE * 3 / 2);
            assert!(write.is_held());
            write.release().unwrap();
        });
    }

    // -- inside a runtime -----------------------------------------------------------------------------------------------

    /// Blocks what it is called in, more often than a task may go on without yielding.
    fn many_pairs(relatch: &Client) {
        let l = lock(relatch);
        for _ in 0..300 {
            let read = l.read().wait().unwrap();
            let again = l.read().wait().unwrap();
            assert!(read.depth() < again.depth());
            again.release().unwrap();
        }
    }

    /// A thread holds it until this one waits.
    fn contended(relatch: &Client) {
        thread::scope(|threads| {
            let (tell, told) = mpsc::channel();
            threads.spawn(move || {
                let write = lock(relatch).write().wait().unwrap();
                tell.send(()).unwrap();
                waiting(relatch, 1);
                drop(write);
            });
            told.recv().unwrap();
            drop(lock(relatch).write().wait().unwrap());
            let busy = lock(relatch).write().owner(&Owner::new()).wait().unwrap();
            runs_out(|| lock(relatch).read().timeout(ms(30)).wait());
            drop(busy);
        });
    }

    pub async fn a_task_of_a_runtime_with_one_thread_may_block(world: &World) {
        let a = client(world).await;
        on_a_thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                many_pairs(&a);
                let there = a.clone();
                tokio::spawn(async move {
                    many_pairs(&there);
                    contended(&there);
                })
                .await
                .unwrap();
            });
        });
    }

    pub async fn a_task_of_a_runtime_with_many_threads_may_block(world: &World) {
        let a = client(world).await;
        on_a_thread(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                contended(&a);
                let there = a.clone();
                tokio::spawn(async move {
                    many_pairs(&there);
                    contended(&there);
                })
                .await
                .unwrap();
                let there = a.clone();
                tokio::task::spawn_blocking(move || contended(&there))
                    .await
                    .unwrap();
                let local = tokio::task::LocalSet::new();
                let there = a.clone();
                local
                    .run_until(async { tokio::task::spawn_local(async move { contended(&there) }).await })
                    .await
                    .unwrap();
            });
        });
    }

    /// The holder is queued on the worker that blocks: only if another takes the queue over can it go on.
    pub async fn a_worker_that_blocks_gives_way_to_the_task_that_holds(world: &World) {
        let a = client(world).await;
        on_a_thread(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let (go, gone) = tokio::sync::oneshot::channel::<()>();
                let held = lock(&a).write().await.unwrap();
                tokio::spawn(async move {
                    gone.await.unwrap();
                    drop(held);
                });
                let l = lock(&a);
                tokio::spawn(async move {
                    go.send(()).unwrap();
                    drop(l.write().timeout(BOUND).wait().unwrap());
                })
                .await
                .unwrap();
            });
        });
    }

    /// Tokio can't give way there, and says so by a panic: it must not be asked, as who aborts on a panic is gone.
    pub async fn a_local_set_may_block_and_nothing_panics(world: &World) {
        let a = client(world).await;
        thread_local! {
            static WATCHED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
        }
        static PANICS: AtomicI64 = AtomicI64::new(0);
        static WATCH: std::sync::Once = std::sync::Once::new();
        WATCH.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                PANICS.fetch_add(i64::from(WATCHED.get()), SeqCst);
                before(panic);
            }));
        });
        on_a_thread(move || {
            WATCHED.set(true);
            for many in [true, false] {
                let runtime = match many {
                    true => tokio::runtime::Builder::new_multi_thread()
                        .worker_threads(1)
                        .on_thread_start(|| WATCHED.set(true))
                        .enable_all()
                        .build(),
                    false => tokio::runtime::Builder::new_current_thread().enable_all().build(),
                }
                .unwrap();
                let local = tokio::task::LocalSet::new();
                let there = a.clone();
                let work = async move { contended(&there) };
                local.block_on(&runtime, async { tokio::task::spawn_local(work).await.unwrap() });
                // Within what has given way already, and beside it.
                let there = a.clone();
                let nested = async move {
                    let runtime = tokio::runtime::Handle::current();
                    tokio::task::block_in_place(|| {
                        let local = tokio::task::LocalSet::new();
                        let work = async move { contended(&there) };
                        runtime.block_on(
                            local.run_until(async { tokio::task::spawn_local(work).await.unwrap() }),
                        );
                    });
                };
                if many {
                    runtime.block_on(async { tokio::spawn(nested).await.unwrap() });
                }
            }
        });
        assert_eq!(PANICS.load(SeqCst), 0);
    }

    pub async fn a_runtime_inside_of_another_may_block(world: &World) {
        let a = client(world).await;
        on_a_thread(move || {
            let many = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let one = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            one.block_on(async {
                let _other = many.enter();
                drop(lock(&a).write().wait().unwrap());
            });
        });
    }

    pub async fn what_is_spawned_inside_outlives_the_client_where_the_caller_has_a_runtime(world: &World) {
        let a = client(world).await;
        on_a_thread(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let (go, gone) = tokio::sync::oneshot::channel::<()>();
            let (tell, told) = mpsc::channel();
            runtime.block_on(async {
                let there = a.clone();
                tokio::spawn(async move {
                    let work = async {
                        assert_eq!(tokio::spawn(async { 1 }).await.unwrap(), 1, "it runs meanwhile");
                        // The caller's timers and the client's own.
                        tokio::time::sleep(ms(1)).await;
                        there.inspect("it").await?;
                        tokio::spawn(async move { tell.send(gone.await.is_ok()) });
                        Ok::<_, Error>(())
                    };
                    there.block_on(work).unwrap();
                })
                .await
                .unwrap();
                a.close().await.unwrap();
                drop(a);
            });
            go.send(()).unwrap();
            assert!(told.recv_timeout(BOUND).unwrap(), "it went on");
        });
    }

    /// Ours are on the client's own thread, wherever what needs them is polled.
    pub async fn a_runtime_without_timers_and_one_that_shuts_down_will_do(world: &World) {
        let a = client(world).await;
        let held = lock(&a).write().owner(&Owner::new()).await.unwrap();
        // What needs timers: a call, a wait, and one that runs out.
        async fn calls(beside: &RwLock, lock: &RwLock) -> Result<(), Error> {
            beside.write().timeout(BOUND).await?.release().await?;
            let since = Instant::now();
            loop {
                match lock.read().timeout(ms(30)).await {
                    Err(error) if has_run_out(&error, since) => return Ok(()),
                    Ok(_) => panic!("somebody writes"),
                    Err(_) => {}
                }
            }
        }
        let (there, l, beside) = (a.clone(), lock(&a), a.rwlock("beside").unwrap());
        on_a_thread(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .build()
                .unwrap();
            let (tell, told) = mpsc::channel();
            let (went, gone) = mpsc::channel::<()>();
            runtime.block_on(async {
                tokio::spawn({
                    let (there, l, beside) = (there.clone(), l.clone(), beside.clone());
                    async move {
                        calls(&beside, &l).await.unwrap();
                        there.block_on(calls(&beside, &l)).unwrap();
                    }
                })
                .await
                .unwrap();
            });
            runtime.spawn(async move {
                let begun = tell.clone();
                let work = async {
                    begun.send(()).unwrap();
                    gone.recv().unwrap();
                    calls(&beside, &l).await
                };
                there.block_on(work).unwrap();
                tell.send(()).unwrap();
            });
            told.recv().unwrap();
            runtime.shutdown_background();
            went.send(()).unwrap();
            told.recv().expect("it was done all the same");
        });
        drop(held);
    }

    /// What is spawned where there is no runtime goes to the client's own thread, which must not wait for itself.
    pub async fn a_clients_own_thread_refuses_to_block(world: &World) {
        let (a, b) = (client(world).await, client(world).await);
        on_a_thread(move || {
            for other in [&a, &b] {
                let l = lock(other);
                let work = async {
                    let spawned = tokio::spawn(async move {
                        let error = l.write().wait().unwrap_err();
                        let held = l.upgradable_read().await?;
                        let kept = held.upgrade().wait().unwrap_err();
                        assert!(error.is_invalid() && kept.error().is_invalid(), "{error}");
                        kept.into_guard().release().await
                    });
                    spawned.await.unwrap()
                };
                a.block_on(work).unwrap();
            }
        });
    }

    pub async fn several_names_of_a_closed_client_are_lost(world: &World) {
        let a = client(world).await;
        on_a_thread(move || {
            let names = ["x", "y"].map(|name| a.rwlock(name).unwrap().write());
            let all = a.multi(names).wait().unwrap();
            a.block_on(a.close()).unwrap();
            eventually_blocking(BOUND, "its thread has ended", || lock(&a).read().wait().is_err());
            let error = all.release().unwrap_err();
            assert!(error.is_lost(), "{error}");
        });
    }

    pub async fn a_thread_of_a_scope_is_the_owner_of_that(world: &World) {
        let a = client(world).await;
        let owner = Owner::new();
        owner
            .scope(async {
                let outer = lock(&a).write().await.unwrap();
                let inner = lock(&a).read().timeout(BOUND).wait().unwrap();
                assert_eq!(inner.owner(), outer.owner());
            })
            .await;
    }

    pub async fn waiting_ends_when_the_client_is_closed(world: &World) {
        let a = client(world).await;
        let b = client(world).await;
        on_a_thread(move || {
            let held = lock(&b).write().wait().unwrap();
            let waiter = thread::spawn({
                let l = lock(&a);
                move || l.write().wait().map(drop)
            });
            waiting(&b, 1);
            a.block_on(a.close()).unwrap();
            assert!(waiter.join().unwrap().unwrap_err().is_closed());
            assert!(lock(&a).read().wait().unwrap_err().is_closed());
            b.block_on(b.close()).unwrap();
            assert!(held.release().unwrap_err().is_lost());
        });
    }
}

on_every_backend! { "threads.rs":
    a_thread_that_recurses_reenters_past_a_waiting_writer
    a_thread_that_writes_enters_every_mode
    threads_exclude_each_other
    a_panic_releases_what_its_thread_held
    an_owner_in_scope_goes_before_the_thread
    a_hold_goes_to_another_thread_when_it_is_said
    a_thread_upgrades_and_downgrades
    a_revoked_hold_is_an_error_to_release
    a_lease_is_renewed_while_its_thread_is_busy
    a_task_of_a_runtime_with_one_thread_may_block
    a_task_of_a_runtime_with_many_threads_may_block
    a_worker_that_blocks_gives_way_to_the_task_that_holds
    a_local_set_may_block_and_nothing_panics
    a_runtime_inside_of_another_may_block
    what_is_spawned_inside_outlives_the_client_where_the_caller_has_a_runtime
    a_runtime_without_timers_and_one_that_shuts_down_will_do
    a_clients_own_thread_refuses_to_block
    several_names_of_a_closed_client_are_lost
    a_thread_of_a_scope_is_the_owner_of_that
    waiting_ends_when_the_client_is_closed
}

#[cfg(feature = "redis")]
mod alone {
    use relatch::Relatch;

    use crate::support::RedisServer;

    #[test]
    fn a_thread_needs_no_runtime_to_connect() {
        let server = RedisServer::start();
        let relatch = relatch::blocking::connect(&server.url()).unwrap();
        let held = relatch.rwlock("it").unwrap().write().wait().unwrap();
        assert_eq!(relatch.block_on(relatch.inspect("it")).unwrap().holder_count, 1);
        held.release().unwrap();
        relatch.block_on(relatch.close()).unwrap();
    }

    #[test]
    fn a_client_with_a_thread_of_its_own_is_awaited_without_any_runtime() {
        let server = RedisServer::start();
        pollster::block_on(async {
            let builder = Relatch::builder().url(server.url()).own_thread();
            let relatch = builder.connect().await.unwrap();
            let lock = relatch.rwlock("it").unwrap();
            let held = lock.write().await.unwrap();
            let error = lock.read().timeout(crate::ms(5)).await.unwrap_err();
            assert!(error.is_timeout(), "{error}");
            held.release().await.unwrap();
            relatch.close().await.unwrap();
        });
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error_within_its_time() {
        let port = crate::support::free_port();
        let error = Relatch::builder()
            .url(format!("redis://127.0.0.1:{port}"))
            .connect_timeout(crate::ms(200))
            .connect_blocking()
            .unwrap_err();
        assert!(error.is_unreachable(), "{error}");
    }

    #[tokio::test]
    async fn a_client_whose_task_could_be_blocked_refuses_to_block() {
        let server = RedisServer::start();
        let relatch = Relatch::connect(&server.url()).await.unwrap();
        let lock = relatch.rwlock("it").unwrap();
        let error = lock.read().wait().unwrap_err();
        assert!(
            error.is_invalid() && error.to_string().contains("own_thread"),
            "{error}"
        );
        assert!(lock.try_read().wait().unwrap_err().is_invalid());
        let upgradable = lock.upgradable_read().await.unwrap();
        let failed = upgradable.upgrade().wait().unwrap_err();
        assert!(failed.error().is_invalid());
        assert!(failed.into_guard().is_held());
    }
}
