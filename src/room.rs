//! The thread of a client's own: where its timers run, wherever its futures are polled, and where a thread that blocks may wait for it.
//!
//! A future of ours is polled by whoever awaits it: on a runtime without timers, on one that shuts down, within `block_on` on a
//! thread that has none. What it needs of a runtime (timers of the clock's and of the connection's) it takes from here, if the client has a thread of its
//! own. Code of a user's is never polled within: what that spawns is not ours.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// The runtime of a client whose task has a thread of its own. Who has it keeps that, and its timers, going.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    pub(crate) runtime: Handle,
    _stay: mpsc::Sender<Infallible>,
}

/// A client's room, if it has one: it gets one when its runtime shuts down, and has none when it has ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rooms(Arc<Mutex<Option<Door>>>);

/// Open as long as somebody is inside.
#[derive(Debug)]
struct Door {
    runtime: Handle,
    stay: mpsc::WeakSender<Infallible>,
}

thread_local! {
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// Is this thread a client's own? It must not block: nobody would renew meanwhile, nor hear what is granted.
pub(crate) fn is_ours() -> bool {
    OURS.get()
}

impl Rooms {
    /// Runs `task` on a thread of its own, which stays for as long as somebody is in the room.
    pub(crate) fn open(&self, task: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stay, mut left) = mpsc::channel(1);
        let door = Door {
            runtime: runtime.handle().clone(),
            stay: stay.downgrade(),
        };
        // If there is no thread, `stay` is dropped with this, and the door is shut.
        let live = async move {
            let outcome = std::panic::AssertUnwindSafe(task);
            let outcome = futures_util::FutureExt::catch_unwind(outcome).await;
            drop(stay);
            // Who is still in here has timers that need this runtime.
            let _nobody: Option<Infallible> = left.recv().await;
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic);
            }
        };
        *self.0.lock() = Some(door);
        std::thread::Builder::new()
            .name("relatch".into())
            .spawn(move || {
                OURS.set(true);
                runtime.block_on(live);
            })?;
        Ok(())
    }

    /// The way in, if there is one.
    pub(crate) fn enter(&self) -> Option<Room> {
        let door = self.0.lock();
        let Door { runtime, stay } = door.as_ref()?;
        Some(Room {
            runtime: runtime.clone(),
            _stay: stay.upgrade()?,
        })
    }

    /// Polls `future` within, wherever that happens.
    pub(crate) async fn within<F: Future>(&self, future: F) -> F::Output {
        // Dropped after the future, whose timers are in it.
        let mut room = None;
        let mut future = pin!(future);
        poll_fn(|cx| {
            if room.is_none() {
                room = self.enter();
            }
            let _context = room.as_ref().map(|room| room.runtime.enter());
            future.as_mut().poll(cx)
        })
        .await
    }
}
