//! A network between a client and a server that fails on demand.
//!
//! The invariant: **a fault is in force when the call that asks for it returns**, and it does what a
//! network can do and nothing else. Bytes stay in order; held bytes come late but whole; a stream that
//! has lost bytes never delivers later ones, it is cut. What a client sent before it went away is
//! still delivered, as it may be in life: that is how a request arrives after its withdrawal.
//!
//! It reads RESP only to know where replies begin and end, and which request each answers.

use super::background::Background;
use super::fake::listen;
use super::resp::{Framer, Piece, words};
use parking_lot::Mutex;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
    Both,
}

/// How many connections a proxy has, and had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Open now, towards both ends. Counted down just after the client can see its end.
    pub live: usize,
    /// Ever accepted, the refused ones included.
    pub accepted: usize,
}

/// What goes wrong at the moment. The default: nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    refuse: bool,
    hold_to_server: bool,
    hold_to_client: bool,
    drop_replies: bool,
    hold_accepts: bool,
    delay: Duration,
}

type Matches = Box<dyn FnMut(&[String]) -> bool + Send>;

struct Shared {
    upstream: u16,
    faults: watch::Sender<Faults>,
    /// The next request that this matches loses its reply.
    doom: Mutex<Option<Matches>>,
    live: AtomicUsize,
    accepted: AtomicUsize,
    lost: AtomicUsize,
    /// A connection that carries nothing for so long is closed.
    idle: watch::Sender<Option<Duration>>,
    /// What fills the queue of those that are to be accepted.
    queued: Mutex<Vec<std::net::TcpStream>>,
}

/// Which connections to close; answered when they are closed.
struct Cut {
    only_gapped: bool,
    done: std::sync::mpsc::Sender<()>,
}

/// A TCP proxy on loopback, in front of one server. Dropping it closes everything.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    cuts: mpsc::UnboundedSender<Cut>,
    _background: Background,
}

impl Proxy {
    pub fn start(upstream: u16) -> Self {
        let (port, listener) = listen();
        let shared = Arc::new(Shared {
            upstream,
            faults: watch::Sender::new(Faults::default()),
            doom: Mutex::new(None),
            live: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
            idle: watch::Sender::new(None),
            queued: Mutex::default(),
        });
        let (cuts, orders) = mpsc::unbounded_channel();
        let theirs = Arc::clone(&shared);
        let background = Background::run("proxy", move || accept_all(listener, theirs, orders));
        Self {
            port,
            shared,
            cuts,
            _background: background,
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `redis://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Closes every connection there is, with what it still carried. New ones are welcome.
    pub fn cut(&self) {
        self.close(false);
    }

    /// Whether new connections are closed as soon as they come. Those that exist stay.
    pub fn refuse(&self, refuse: bool) {
        self.shared.faults.send_modify(|now| now.refuse = refuse);
    }

    /// Closes connections, those that there are and those to come, that carry nothing for so long; `None` for none.
    pub fn drop_idle(&self, after: Option<Duration>) {
        self.shared.idle.send_replace(after);
    }

    /// Holds what is sent that way from now on, an end of stream too, and delivers it on `heal`.
    /// Connections stay open and can be made; nobody is told.
    pub fn silence(&self, direction: Direction) {
        self.shared.faults.send_modify(|now| {
            now.hold_to_server |= direction != Direction::ToClient;
            now.hold_to_client |= direction != Direction::ToServer;
        });
    }

    /// Whether to throw away what the server sends. A connection that has lost something this way is
    /// cut when this ends: TCP delivers nothing after a gap.
    pub fn drop_replies(&self, drop: bool) {
        self.shared.faults.send_modify(|now| now.drop_replies = drop);
        if !drop {
            self.close(true);
        }
    }

    /// The lost reply: the next request, on whichever connection, reaches the server; when its reply
    /// comes it is thrown away, and that connection is cut. Once. See `lost_replies`.
    ///
    /// A client's handshake or ping is a request too: `drop_reply_then_cut` names the one meant.
    pub fn drop_next_reply_then_cut(&self) {
        self.drop_reply_then_cut(|_| true);
    }

    /// [`drop_next_reply_then_cut`](Self::drop_next_reply_then_cut) for the next request that matches,
    /// given as its words: `|words| words[0] == "EVALSHA"`. Replaces one that has not come yet.
    pub fn drop_reply_then_cut(&self, matches: impl FnMut(&[String]) -> bool + Send + 'static) {
        *self.shared.doom.lock() = Some(Box::new(matches));
    }

    /// How many replies these two have lost so far.
    pub fn lost_replies(&self) -> usize {
        self.shared.lost.load(Ordering::SeqCst)
    }

    /// Each byte takes this long, one way; a request and its reply twice that.
    pub fn delay(&self, delay: Duration) {
        self.shared.faults.send_modify(|now| now.delay = delay);
    }

    /// Whether to accept nobody. Those who connect are not refused: the queue for that is full, so the system does not answer them. Closes
    /// every connection that there is.
    pub fn accept_nobody(&self, nobody: bool) {
        self.shared.faults.send_modify(|now| now.hold_accepts = nobody);
        let mut queued = self.shared.queued.lock();
        queued.clear();
        if !nobody {
            return;
        }
        // Answered when the loop has seen that it is to accept nobody.
        self.close(false);
        let place = (Ipv4Addr::LOCALHOST, self.port).into();
        let mut in_vain = 0;
        // One may be late only.
        while in_vain < 3 {
            match std::net::TcpStream::connect_timeout(&place, Duration::from_millis(50)) {
                Ok(stream) => queued.push(stream),
                Err(_) => in_vain += 1,
            }
        }
    }

    /// Ends every fault, also one that has not struck yet. What was held goes out now, in order.
    pub fn heal(&self) {
        *self.shared.doom.lock() = None;
        self.shared.queued.lock().clear();
        self.shared.faults.send_replace(Faults::default());
        self.close(true);
    }

    pub fn connections(&self) -> Connections {
        Connections {
            live: self.shared.live.load(Ordering::SeqCst),
            accepted: self.shared.accepted.load(Ordering::SeqCst),
        }
    }

    fn close(&self, only_gapped: bool) {
        let (done, closed) = std::sync::mpsc::channel();
        let cut = Cut { only_gapped, done };
        let sent = self.cuts.send(cut).is_ok();
        assert!(sent && closed.recv().is_ok(), "the proxy's thread has panicked");
    }
}

/// A connection as the accepting loop knows it.
struct Connection {
    task: JoinHandle<()>,
    gapped: Arc<AtomicBool>,
}

async fn accept_all(
    listener: std::net::TcpListener,
    shared: Arc<Shared>,
    mut cuts: mpsc::UnboundedReceiver<Cut>,
) {
    let backlog = listener.try_clone().expect("a listener can be shared");
    let listener = TcpListener::from_std(listener).expect("inside a runtime");
    let mut connections: Vec<Connection> = Vec::new();
    let mut faults = shared.faults.subscribe();
    loop {
        let held = faults.borrow_and_update().hold_accepts;
        tokio::select! {
            _ = faults.changed() => {}
            accepted = listener.accept(), if !held => {
                let Ok((client, _)) = accepted else { continue };
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                if shared.faults.borrow().refuse {
                    continue;
                }
                connections.retain(|connection| !connection.task.is_finished());
                let gapped = Arc::new(AtomicBool::new(false));
                let carried = carry(client, Arc::clone(&shared), Arc::clone(&gapped));
                connections.push(Connection { task: tokio::spawn(carried), gapped });
            }
            Some(cut) = cuts.recv() => {
                // Made before the cut, though this loop has not come to it: cut as well.
                while !cut.only_gapped && let Ok((client, _)) = backlog.accept() {
                    shared.accepted.fetch_add(1, Ordering::SeqCst);
                    drop(client);
                }
                let mut kept = Vec::new();
                for connection in connections {
                    if cut.only_gapped && !connection.gapped.load(Ordering::SeqCst) {
                        kept.push(connection);
                    } else {
                        connection.task.abort();
                        let _ = connection.task.await;
                    }
                }
                connections = kept;
                // Whoever asked may be gone by now.
                let _ = cut.done.send(());
            }
        }
    }
}

/// Counts a connection for as long as it is carried, however that ends.
struct Live(Arc<Shared>);

impl Live {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.live.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Bytes and when they came. No bytes: the end of the stream, which can be held like any byte.
type Chunk = (Instant, Vec<u8>);

/// Which reply answers the request that is to lose it.
#[derive(Default)]
struct Ledger {
    requests: u64,
    replies: u64,
    doomed: Option<u64>,
}

/// Carries one connection until the server's side ends. The client's end is only passed on: what the
/// client had sent is still to be delivered, perhaps late.
async fn carry(client: TcpStream, shared: Arc<Shared>, gapped: Arc<AtomicBool>) {
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.upstream)).await else {
        return;
    };
    let _live = Live::new(&shared);
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (requests_in, requests) = mpsc::unbounded_channel();
    let (replies_in, replies) = mpsc::unbounded_channel();
    let ledger = Mutex::new(Ledger::default());
    let busy = Mutex::new(Instant::now());

    let upwards = async {
        tokio::join!(
            read_all(from_client, requests_in, &busy),
            forward_requests(requests, to_server, &shared, &ledger),
        );
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = upwards => {}
        // Its end is the connection's, whatever the reader behind it still waits for.
        () = forward_replies(replies, to_client, &shared, &ledger, &gapped) => {}
        () = idle(shared.idle.subscribe(), &busy) => {}
        () = async {
            read_all(from_server, replies_in, &busy).await;
            std::future::pending::<()>().await;
        } => {}
    }
}

/// Until the connection has carried nothing for too long.
async fn idle(mut after: watch::Receiver<Option<Duration>>, busy: &Mutex<Instant>) {
    loop {
        let limit = *after.borrow_and_update();
        let Some(limit) = limit else {
            if after.changed().await.is_err() {
                std::future::pending::<()>().await; // The proxy is being dropped.
            }
            continue;
        };
        let due = *busy.lock() + limit;
        if due <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(due).await;
    }
}

/// Reads at once what comes, so that a held stream never pushes back on its sender.
async fn read_all(mut from: impl AsyncRead + Unpin, to: mpsc::UnboundedSender<Chunk>, busy: &Mutex<Instant>) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        // A reset ends the stream too; what came before it counts.
        let length = from.read(&mut bytes).await.unwrap_or(0);
        *busy.lock() = Instant::now();
        let chunk = (Instant::now(), bytes[..length].to_vec());
        if to.send(chunk).is_err() || length == 0 {
            return;
        }
    }
}

/// Waits until bytes that came at `came` may go on, and tells under which faults.
async fn pass(faults: &mut watch::Receiver<Faults>, holds: fn(&Faults) -> bool, came: Instant) -> Faults {
    loop {
        let now = *faults.borrow_and_update();
        let due = came + now.delay;
        let changed = if holds(&now) {
            faults.changed().await
        } else if due <= Instant::now() {
            return now;
        } else {
            // Looks again in either case: a healed delay ends at once.
            tokio::time::timeout_at(due, faults.changed())
                .await
                .unwrap_or(Ok(()))
        };
        if changed.is_err() {
            std::future::pending::<()>().await; // The proxy is being dropped.
        }
    }
}

async fn forward_requests(
    mut requests: mpsc::UnboundedReceiver<Chunk>,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
    ledger: &Mutex<Ledger>,
) {
    let mut faults = shared.faults.subscribe();
    let mut framer = Framer::default();
    while let Some((came, bytes)) = requests.recv().await {
        pass(&mut faults, |now| now.hold_to_server, came).await;
        if bytes.is_empty() {
            let _ = to.shutdown().await;
            return;
        }
        // Before they are written: the reply must not be quicker than the ledger.
        for piece in framer.feed(&bytes) {
            if let Piece::Value(value, _) = piece {
                note(&words(&value).unwrap_or_default(), shared, ledger);
            }
        }
        if to.write_all(&bytes).await.is_err() {
            return; // The server is gone: its own stream's end closes the connection.
        }
    }
}

fn note(request: &[String], shared: &Shared, ledger: &Mutex<Ledger>) {
    let verb = request.first().map(String::as_str).unwrap_or_default();
    // These are answered by pushes, which the other side does not count either.
    if verb.to_ascii_lowercase().ends_with("subscribe") {
        return;
    }
    let mut ledger = ledger.lock();
    ledger.requests += 1;
    let mut doom = shared.doom.lock();
    if ledger.doomed.is_none() && doom.as_mut().is_some_and(|matches| matches(request)) {
        *doom = None;
        ledger.doomed = Some(ledger.requests);
    }
}

/// Ends when the connection is to be closed.
async fn forward_replies(
    mut replies: mpsc::UnboundedReceiver<Chunk>,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
    ledger: &Mutex<Ledger>,
    gapped: &AtomicBool,
) {
    let mut faults = shared.faults.subscribe();
    let mut framer = Framer::default();
    let mut client_gone = false;
    while let Some((came, bytes)) = replies.recv().await {
        let now = pass(&mut faults, |now| now.hold_to_client, came).await;
        let ended = bytes.is_empty();
        let mut out = Vec::new();
        let mut cut = ended;
        for piece in framer.feed(&bytes) {
            let raw = match piece {
                Piece::Value(value, raw) => {
                    if !value.is_push() {
                        let mut ledger = ledger.lock();
                        ledger.replies += 1;
                        if ledger.doomed == Some(ledger.replies) {
                            shared.lost.fetch_add(1, Ordering::SeqCst);
                            cut = true;
                            break;
                        }
                    }
                    raw
                }
                Piece::Raw(raw) => raw,
            };
            if now.drop_replies {
                gapped.store(true, Ordering::SeqCst);
            } else if gapped.load(Ordering::SeqCst) {
                cut = true; // Nothing follows a gap.
                break;
            } else {
                out.extend(raw);
            }
        }
        if ended && !now.drop_replies && !gapped.load(Ordering::SeqCst) {
            out.extend(framer.rest());
        }
        if !client_gone {
            // A client that is gone may have left requests that are still on their way: go on.
            client_gone = to.write_all(&out).await.is_err();
        }
        if cut {
            return;
        }
    }
}
