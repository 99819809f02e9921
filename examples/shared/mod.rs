//! What the examples share: where the lock is kept.

use relatch::{Error, Relatch};

/// On a server with `--redis URL`; without, in this process. It has a thread of its own, so that threads may wait for it as well.
pub(crate) async fn connect() -> Result<Relatch, Error> {
    let mut arguments = std::env::args()
        .skip_while(|argument| argument != "--redis")
        .skip(1);
    let url = arguments.next().unwrap_or_else(|| "embedded".into());
    Relatch::builder().url(url).own_thread().connect().await
}
