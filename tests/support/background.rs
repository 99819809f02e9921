//! A thread with a runtime of its own.
//!
//! The proxy and the fake servers run here and not in the test's runtime: a test that blocks its
//! only thread, or that stopped tokio's clock, must not stop the network too. Dropping it ends the
//! runtime, and with it every task and socket, before `drop` returns. (A process that another thread
//! is just starting has a copy of each socket until its exec: a port may refuse a moment later.)

use std::thread::JoinHandle;
use tokio::sync::oneshot;

pub struct Background {
    // An Option only because `drop` must let go of it before it joins.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Runs what `make` makes until it ends or this is dropped. `make` runs inside the runtime.
    pub fn run<F: Future<Output = ()>>(name: &str, make: impl FnOnce() -> F + Send + 'static) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime needs a few file descriptors, and there are some");
                runtime.block_on(async {
                    tokio::select! {
                        () = async { make().await } => {}
                        _ = stopped => {}
                    }
                });
            })
            .expect("the system has room for one more thread");
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It panicked: it said so on stderr, and a second panic here would abort the test binary.
            let _ = thread.join();
        }
    }
}
