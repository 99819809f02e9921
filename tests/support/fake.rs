//! Servers that are not Redis: what a client meets behind a wrong port, an old version, a load
//! balancer with nothing behind it.

use super::background::Background;
use super::resp::{Client, Framer, Piece, words};
use super::wait::BOUND;
use parking_lot::Mutex;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Answer = Box<dyn FnMut(&[String]) -> Vec<u8> + Send>;

/// What it does with whoever connects.
enum Script {
    Reply(Mutex<Answer>),
    Say(Vec<u8>),
    Nothing,
    Close,
}

/// A listener on loopback that follows a script. Dropping it closes everything.
pub struct FakeServer {
    port: u16,
    seen: Arc<Seen>,
    _background: Background,
}

#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<Vec<String>>>,
    connections: AtomicUsize,
}

impl FakeServer {
    /// Answers each command with the bytes that the closure gives, for instance `b"+OK\r\n"`. No
    /// bytes: no answer. The connections share the closure.
    pub fn replying(answer: impl FnMut(&[String]) -> Vec<u8> + Send + 'static) -> Self {
        Self::start(Script::Reply(Mutex::new(Box::new(answer))))
    }

    /// Stands in front of the server on this port, which answers over one connection whatever `instead` does not. It does not pass on pushes.
    pub fn before(
        upstream: u16,
        mut instead: impl FnMut(&[String]) -> Option<Vec<u8>> + Send + 'static,
    ) -> Self {
        let mut server = None;
        Self::replying(move |words| {
            let server = server.get_or_insert_with(|| Client::connect(upstream, BOUND).expect("a server"));
            instead(words).unwrap_or_else(|| {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                server.command_raw(&words).unwrap_or_default()
            })
        })
    }

    /// Sends these bytes to whoever connects, then listens without a word.
    pub fn garbage(bytes: impl Into<Vec<u8>>) -> Self {
        Self::start(Script::Say(bytes.into()))
    }

    /// Accepts, reads, and never answers.
    pub fn silent() -> Self {
        Self::start(Script::Nothing)
    }

    /// Accepts and closes.
    pub fn closing() -> Self {
        Self::start(Script::Close)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `redis://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The commands that came so far, of all connections, in order.
    pub fn requests(&self) -> Vec<Vec<String>> {
        self.seen.requests.lock().clone()
    }

    /// How many connections it has accepted.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    fn start(script: Script) -> Self {
        let (port, listener) = listen();
        let seen = Arc::new(Seen::default());
        let theirs = Arc::clone(&seen);
        let background = Background::run("fake server", move || async move {
            let listener = TcpListener::from_std(listener).expect("inside a runtime");
            let script = Arc::new(script);
            // It ends with the runtime. A failed accept is the client's to notice.
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                theirs.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, Arc::clone(&script), Arc::clone(&theirs)));
            }
        });
        Self {
            port,
            seen,
            _background: background,
        }
    }
}

/// A listener that a runtime can take over.
pub(super) fn listen() -> (u16, std::net::TcpListener) {
    loop {
        let port = super::free_port();
        // Somebody may have been quicker: try the next one.
        let Ok(listener) = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)) else {
            continue;
        };
        listener
            .set_nonblocking(true)
            .expect("a listener can be made non-blocking");
        return (port, listener);
    }
}

/// Follows the script until the client leaves.
async fn serve(mut stream: TcpStream, script: Arc<Script>, seen: Arc<Seen>) {
    let _ = stream.set_nodelay(true);
    let greeting = match &*script {
        Script::Close => return,
        Script::Say(bytes) => bytes.as_slice(),
        Script::Reply(_) | Script::Nothing => &[],
    };
    if stream.write_all(greeting).await.is_err() {
        return;
    }
    let mut framer = Framer::default();
    let mut bytes = [0; 16 * 1024];
    loop {
        let Ok(length @ 1..) = stream.read(&mut bytes).await else {
            return;
        };
        for piece in framer.feed(&bytes[..length]) {
            let Piece::Value(value, _) = piece else {
                continue;
            };
            let Some(request) = words(&value) else {
                continue;
            };
            seen.requests.lock().push(request.clone());
            if let Script::Reply(answer) = &*script {
                let answer = (answer.lock())(&request);
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        }
    }
}
