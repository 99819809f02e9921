//! What the examples share: what they are told, and where the lock is kept.

use relatch::{Error, Relatch};

/// What is said after `name` on the command line.
pub(crate) fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != name).nth(1)
}

/// On a server with `--redis URL`; without, in this process. It has a thread of its own, so that threads may wait for it as well.
pub(crate) async fn connect() -> Result<Relatch, Error> {
    let url = argument("--redis").unwrap_or_else(|| "embedded".into());
    Relatch::builder().url(url).own_thread().connect().await
}
