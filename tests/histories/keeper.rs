//! What the locks guard: a register and a log, kept outside of the locks' server and of every process that is killed.
//!
//! Each is kept twice. The *checked* keeper remembers the largest fence it has seen on a resource, with reads as well as with writes, and
//! refuses a write with a smaller one; the *unchecked* one believes in the lock alone. A read must count: whoever has read under a newer
//! fence is going to write what depends on it.
//!
//! It is also where the history is written: a worker's records come on the same stream as its requests, and what a killed process had
//! written to its socket still arrives. A request is on record before it takes effect.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::history::{Answer, Event, Id, Keeper, Record, Request, Resource};
use super::support::Background;

/// A write that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    pub base: u64,
    pub value: Id,
    pub fence: u64,
}

/// One resource, as one keeper has it.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// The largest fence seen.
    pub fence: u64,
    /// Every write there was, in order.
    pub writes: Vec<Write>,
    /// How many writes did not build on what was there: each made somebody's update undone.
    pub blind: u64,
    /// The register's value.
    pub value: Id,
    /// The log's entries.
    pub entries: Vec<Write>,
}

impl Kept {
    fn serve(&mut self, resource: Resource, checks: bool, fence: u64, request: Request) -> Answer {
        let stale = fence < self.fence;
        self.fence = self.fence.max(fence);
        let (base, value) = match request {
            Request::Get => {
                return Answer::Is(match resource {
                    Resource::Register => self.value,
                    Resource::Log => self.entries.len() as u64,
                });
            }
            Request::Put { .. } if checks && stale => return Answer::Stale,
            Request::Put { base, value, .. } => (base, value),
        };
        let write = Write { base, value, fence };
        self.writes.push(write);
        match resource {
            Resource::Register => {
                self.blind += u64::from(self.value != base);
                self.value = value;
            }
            Resource::Log => {
                let place = usize::try_from(base).expect("it is a length that was told");
                self.blind += u64::from(self.entries.len() != place);
                match self.entries.get_mut(place) {
                    Some(entry) => *entry = write,
                    // Nothing is ever taken away: what was the length once is not beyond the end.
                    None => self.entries.push(write),
                }
            }
        }
        Answer::Done
    }
}

#[derive(Default)]
pub struct Books {
    pub history: Vec<Record>,
    pub kept: HashMap<(Keeper, Resource), Kept>,
}

impl Books {
    /// Writes it down, and answers if it is a request.
    pub fn take(&mut self, record: Record) -> Option<Answer> {
        let answer = match record.event {
            Event::Calls {
                resource,
                keeper,
                fence,
                request,
                ..
            } => Some(self.kept.entry((keeper, resource)).or_default().serve(
                resource,
                keeper == Keeper::Checked,
                fence,
                request,
            )),
            _ => None,
        };
        self.history.push(record);
        answer
    }

    pub fn kept(&self, keeper: Keeper, resource: Resource) -> Kept {
        self.kept.get(&(keeper, resource)).cloned().unwrap_or_default()
    }
}

/// Both keepers, on a socket.
pub struct Keepers {
    pub books: Arc<Mutex<Books>>,
    socket: PathBuf,
    _background: Background,
    /// The last field: it goes after the socket.
    _directory: TempDir,
}

impl Keepers {
    pub fn start() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("relatch-keepers-")
            .tempdir()
            .expect("the system has a directory for temporary files");
        let socket = directory.path().join("socket");
        let listener =
            std::os::unix::net::UnixListener::bind(&socket).expect("a new socket in a new directory");
        listener
            .set_nonblocking(true)
            .expect("a socket can be non-blocking");
        let books = Arc::<Mutex<Books>>::default();
        let theirs = Arc::clone(&books);
        let background = Background::run("keepers", move || async move {
            let listener = UnixListener::from_std(listener).expect("inside a runtime");
            loop {
                let (stream, _) = listener.accept().await.expect("room for one more connection");
                tokio::spawn(serve(stream, Arc::clone(&theirs)));
            }
        });
        Self {
            books,
            socket,
            _background: background,
            _directory: directory,
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

async fn serve(stream: UnixStream, books: Arc<Mutex<Books>>) {
    let (from, mut to) = stream.into_split();
    let mut from = BufReader::new(from);
    let mut line = String::new();
    loop {
        line.clear();
        // The last line of a killed process may have no end. It never happened.
        if from.read_line(&mut line).await.unwrap_or(0) == 0 || !line.ends_with('\n') {
            return;
        }
        let record =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?} is no record: {error}"));
        let answer = books.lock().take(record);
        if let Some(answer) = answer {
            let mut answer = serde_json::to_string(&answer).expect("an answer can be written");
            answer.push('\n');
            // Whoever asked may be dead by now.
            if to.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}
