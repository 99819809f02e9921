//! One server to talk to: where it is, how to log in there, and what went wrong if that fails.
//!
//! Everything that is said to a server, of whatever kind, goes through a connection that is made here; so here is also where what a
//! server does wrong becomes an error that names it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use ::redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisError, ServerErrorKind};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::backend::redis::options::{Address, RedisOptions, Target};
use crate::backend::redis::refusal::{classify, printable};
use crate::config::Tls;
use crate::error::{Error, ErrorKind};

/// How many commands may wait to be written before the next has to wait for its turn to.
const BUFFERED: usize = 1024;
/// The oldest server whose scripts and pushes are what we build on.
pub(super) const OLDEST: (u64, u64) = (6, 2);

/// How many may ask for one name at a time. A name server that does not answer keeps each for as long as the system has patience, half a minute at
/// times, while attempts to link go on.
const LOOKUPS: usize = 16;
/// How long after one has asked the next may while there is no answer: a name server that is back is heard of by whoever asks then.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long one address of a name has before the next is tried as well (RFC 8305 calls it the connection attempt delay).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// What is asked about one name, by all clients of this process.
#[derive(Default)]
struct Asking {
    state: Mutex<Asked>,
    answered: Notify,
}

#[derive(Default)]
struct Asked {
    /// How many have not been answered yet.
    open: usize,
    /// How many have been asked, and when the last.
    number: u64,
    last: Option<Instant>,
    /// The latest that has been answered.
    answered: u64,
    /// How often an address was told, and what the last time.
    told: u64,
    addresses: Vec<SocketAddr>,
    /// The latest question that brought none, and why.
    failed: Option<(u64, Arc<io::Error>)>,
}

/// A question to the system. However it ends, it is open no more.
struct Question {
    asking: Arc<Asking>,
    number: u64,
    answer: io::Result<Vec<SocketAddr>>,
}

impl Question {
    fn answered(mut self, answer: io::Result<Vec<SocketAddr>>) {
        self.answer = answer;
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        let mut asked = self.asking.state.lock();
        asked.open -= 1;
        asked.answered = asked.answered.max(self.number);
        match std::mem::replace(&mut self.answer, Ok(Vec::new())) {
            Ok(addresses) => {
                asked.told += 1;
                asked.addresses = addresses;
            }
            Err(error) if asked.failed.as_ref().is_none_or(|(last, _)| *last < self.number) => {
                asked.failed = Some((self.number, Arc::new(error)));
            }
            Err(_) => {}
        }
        drop(asked);
        self.asking.answered.notify_waiters();
    }
}

impl Asking {
    /// What is known about this name while anybody asks for it.
    fn of(host: &str) -> Arc<Self> {
        static ALL: Mutex<BTreeMap<String, Weak<Asking>>> = Mutex::new(BTreeMap::new());
        let mut all = ALL.lock();
        all.retain(|_, asking| asking.strong_count() > 0);
        all.get(host).and_then(Weak::upgrade).unwrap_or_else(|| {
            let asking = Arc::new(Self::default());
            all.insert(host.to_owned(), Arc::downgrade(&asking));
            asking
        })
    }

    /// To be asked now, if it is time to.
    fn question(self: &Arc<Self>) -> Option<Question> {
        let mut asked = self.state.lock();
        let now = Instant::now();
        // Whatever still hangs was asked before the name server came back.
        let due = asked.answered == asked.number
            || asked.open < LOOKUPS
                && asked
                    .last
                    .is_none_or(|last| now.duration_since(last) >= ASK_AGAIN);
        due.then(|| {
            asked.open += 1;
            asked.number += 1;
            asked.last = Some(now);
            Question {
                asking: self.clone(),
                number: asked.number,
                answer: Err(io::Error::other("nobody could be asked")),
            }
        })
    }
}

/// Asks the system for an address. On a thread of its own: a name server that does not answer keeps it for long, and a runtime that shuts
/// down would wait for threads of its own. An address that is told to one is told to all who wait for that name; that there is none only to
/// those who have waited for as long as that was asked.
async fn resolved<A>(host: &str, ask: A) -> io::Result<Vec<SocketAddr>>
where
    A: Fn() -> io::Result<Vec<SocketAddr>> + Clone + Send + 'static,
{
    let asking = Asking::of(host);
    let (before, told) = {
        let asked = asking.state.lock();
        (asked.number, asked.told)
    };
    loop {
        // Enrol first, look afterwards.
        let answered = asking.answered.notified();
        {
            let asked = asking.state.lock();
            if asked.told > told {
                return Ok(asked.addresses.clone());
            }
            if let Some((_, error)) = asked.failed.as_ref().filter(|(number, _)| *number > before) {
                return Err(io::Error::new(error.kind(), error.to_string()));
            }
        }
        if let Some(question) = asking.question() {
            let ask = ask.clone();
            std::thread::Builder::new()
                .name("relatch-resolver".into())
                .spawn(move || {
                    question.answered(match ask() {
                        Ok(none) if none.is_empty() => Err(io::Error::other("it has no address")),
                        answer => answer,
                    });
                })?;
        }
        let _ = timeout(ASK_AGAIN, answered).await;
    }
}

/// A connection to the first of these that takes one. Each has some time to itself: of one that drops what is sent to it the system hears nothing
/// for minutes.
async fn first_of(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut rest = addresses.into_iter();
    let mut trying = FuturesUnordered::new();
    let mut refused = None;
    loop {
        trying.extend(rest.next().map(TcpStream::connect));
        tokio::select! {
            biased;
            tried = trying.next() => match tried {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => refused = Some(error),
                None => return Err(refused.unwrap_or_else(|| io::Error::other("it has no address"))),
            },
            () = sleep(NEXT_ADDRESS) => {}
        }
    }
}

/// What the system says; in tests of this crate there are names of a name server that they can stop.
fn look_up(host: &str) -> io::Result<Vec<SocketAddr>> {
    #[cfg(test)]
    if let Some(answer) = names::look_up(host) {
        return answer;
    }
    // The port is whoever asks' own.
    Ok((host, 0).to_socket_addrs()?.collect())
}

/// A server, and how to talk to it.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) address: Address,
    /// What it is called in errors and logs. No credentials.
    pub(super) place: String,
    login: RedisConnectionInfo,
    tls: Option<Tls>,
    pub(super) response_timeout: Duration,
    idle_ping: Duration,
}

impl Peer {
    /// A server of the target.
    pub(super) fn new(options: &RedisOptions, target: &Target, address: Address) -> Self {
        let place = target.server(address.clone()).place;
        Self {
            address,
            place,
            login: target.login.clone(),
            tls: target.tls.clone(),
            response_timeout: options.response_timeout,
            idle_ping: options.idle_ping,
        }
    }

    pub(super) fn called(mut self, place: String) -> Self {
        self.place = place;
        self
    }

    pub(super) fn logged_in_as(mut self, login: RedisConnectionInfo) -> Self {
        self.login = login;
        self
    }

    #[cfg(feature = "cli")]
    pub(super) fn login(&self) -> &RedisConnectionInfo {
        &self.login
    }

    #[cfg(feature = "cli")]
    pub(super) fn is_secured(&self) -> bool {
        self.tls.is_some()
    }

    /// Settings for a connection: without a limit for making it, as the whole attempt has one.
    pub(super) fn config(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(Some(self.response_timeout))
            .set_pipeline_buffer_size(BUFFERED)
    }

    /// A connection, logged in. Its driver is put among `drivers`; the connection ends with it. `accepted` is called when somebody took
    /// the connection.
    pub(super) async fn connect(
        &self,
        drivers: &mut JoinSet<()>,
        config: AsyncConnectionConfig,
        accepted: impl FnOnce(),
    ) -> Result<MultiplexedConnection, Error> {
        match &self.address {
            Address::Tcp(host, port) => {
                let stream = self.reach(host, *port).await?;
                accepted();
                match &self.tls {
                    None => self.log_in(drivers, stream, config).await,
                    #[cfg(feature = "tls")]
                    Some(tls) => {
                        let stream = super::tls::wrap(tls, host, stream)
                            .await
                            .map_err(|error| self.untrusted(&error))?;
                        self.log_in(drivers, stream, config).await
                    }
                    #[cfg(not(feature = "tls"))]
                    Some(_) => Err(self.strange("it wants TLS, which this program was built without")),
                }
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                let stream = tokio::net::UnixStream::connect(path)
                    .await
                    .map_err(|error| self.refused(&error))?;
                accepted();
                self.log_in(drivers, stream, config).await
            }
            #[cfg(feature = "cli")]
            Address::Simulated(network) => {
                let stream = network.connect().await.map_err(|error| self.refused(&error))?;
                accepted();
                self.log_in(drivers, stream, config).await
            }
        }
    }

    async fn reach(&self, host: &str, port: u16) -> Result<TcpStream, Error> {
        let mut addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => {
                let name = host.to_owned();
                resolved(host, move || look_up(&name)).await.map_err(|error| {
                    self.unreachable(format_args!(
                        "has a name that can't be resolved ({error}): correct it, or see to the name server"
                    ))
                })?
            }
        };
        for address in &mut addresses {
            address.set_port(port);
        }
        let stream = first_of(addresses).await.map_err(|error| self.refused(&error))?;
        let tune = || -> std::io::Result<()> {
            stream.set_nodelay(true)?;
            let socket = SockRef::from(&stream);
            let keepalive = TcpKeepalive::new().with_time(self.idle_ping);
            #[cfg(any(
                target_os = "linux",
                target_os = "android",
                target_os = "macos",
                target_os = "windows"
            ))]
            let keepalive = keepalive.with_interval(self.idle_ping);
            socket.set_tcp_keepalive(&keepalive)?;
            #[cfg(any(target_os = "linux", target_os = "android"))]
            socket.set_tcp_user_timeout(Some(self.idle_ping + self.response_timeout))?;
            Ok(())
        };
        if let Err(error) = tune() {
            // It works without; only the PINGs then find a half-open link.
            tracing::debug!(server = %self.place, %error, "can't tune the socket");
        }
        Ok(stream)
    }

    async fn log_in<S>(
        &self,
        drivers: &mut JoinSet<()>,
        stream: S,
        config: AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (connection, driver) = MultiplexedConnection::new_with_config(&self.login, stream, config)
            .await
            .map_err(|error| self.handshake_failed(&error))?;
        drivers.spawn(driver);
        Ok(connection)
    }

    // -- what went wrong ----------------------------------------------------------------------------------------

    /// `what` happened at the server's place.
    pub(super) fn unreachable(&self, what: impl std::fmt::Display) -> Error {
        ErrorKind::Unreachable(format!("{} {what}", self.place)).into()
    }

    /// `what` is the matter with the server at this place.
    pub(super) fn unfit(&self, what: impl std::fmt::Display) -> Error {
        ErrorKind::Server(format!("{} {what}", self.place)).into()
    }

    pub(super) fn strange(&self, what: impl std::fmt::Display) -> Error {
        self.unfit(format_args!(
            "does not speak like Redis: {what}; is it another kind of server, or does it want TLS (rediss://)?"
        ))
    }

    pub(super) fn too_old(&self, what: impl std::fmt::Display) -> Error {
        self.unfit(format_args!(
            "is {what}: too old; relatch needs Redis {}.{} or newer, or Valkey",
            OLDEST.0, OLDEST.1
        ))
    }

    fn refused(&self, error: &std::io::Error) -> Error {
        self.unreachable(format_args!(
            "can't be connected to ({error}); is a server running there? Start one, or correct the address"
        ))
    }

    #[cfg(feature = "tls")]
    fn untrusted(&self, error: &std::io::Error) -> Error {
        use rustls::CertificateError as Bad;
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let what = match tls {
            Some(rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature)) => {
                "its certificate is signed by nobody we trust: name the authority that did, ?ca=/path/to/ca.pem".to_owned()
            }
            Some(rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. })) => {
                "its certificate is for another name: write that as the host, or say what it is, ?server_name=…".to_owned()
            }
            Some(rustls::Error::InvalidCertificate(bad)) => format!("its certificate can't be trusted ({bad:?})"),
            Some(rustls::Error::AlertReceived(alert)) => format!(
                "it does not take what we showed it ({alert:?}): if it wants a certificate, ?cert=/path/to.pem&key=/path/to.key"
            ),
            Some(rustls::Error::InvalidMessage(_)) => {
                "it does not speak TLS there: name its TLS port, or write redis://".to_owned()
            }
            // It hung up, or a file of ours can't be read any more.
            _ => return self.unreachable(format_args!("let no TLS connection be made ({error})")),
        };
        self.unfit(format_args!("is not connected to by TLS: {what}"))
    }

    /// What a failure of a connection that had worked means.
    pub(super) fn broken(&self, error: &RedisError) -> Error {
        if error.is_timeout() {
            self.unreachable(format_args!("did not answer within {:?}", self.response_timeout))
        } else if error.kind() == ::redis::ErrorKind::Parse {
            self.unreachable(format_args!(
                "sent something unreadable ({})",
                printable(&error.to_string())
            ))
        } else if error.is_connection_dropped() {
            self.unreachable("closed the connection")
        } else {
            self.unreachable(format_args!(
                "can't be reached ({})",
                printable(&error.to_string())
            ))
        }
    }

    pub(super) fn handshake_failed(&self, error: &RedisError) -> Error {
        use ::redis::ErrorKind as Kind;
        match error.kind() {
            Kind::Parse => return self.strange(printable(&error.to_string())),
            Kind::RESP3NotSupported => return self.too_old("a server that does not know HELLO"),
            Kind::Io if error.is_timeout() => {
                return self.unreachable(format_args!(
                    "took the connection but did not answer within {:?}; is it a Redis server, and is it stopped or overloaded?",
                    self.response_timeout
                ));
            }
            Kind::Io => {
                // TLS 1.3 tells of a certificate that is not taken only when we already speak.
                #[cfg(feature = "tls")]
                if self.tls.is_some() && printable(&error.to_string()).contains("alert") {
                    return self.unfit(format_args!(
                        "does not take what we showed it by TLS ({}): if it wants a certificate, ?cert=/path/to.pem&key=/path/to.key",
                        printable(&error.to_string())
                    ));
                }
                return self.unreachable(format_args!(
                    "closed the connection at once ({}); is it a Redis server, does it want TLS (rediss://), and does it let you in?",
                    printable(&error.to_string())
                ));
            }
            _ => {}
        }
        // The crate hides what the server said to SELECT within an error of its own.
        if let Ok(server) = ::redis::ServerError::try_from(error.clone()) {
            if server.kind() == Some(ServerErrorKind::ResponseError)
                && server
                    .details()
                    .unwrap_or_default()
                    .starts_with("unknown command")
            {
                return self.too_old("a server, or a proxy, that does not know HELLO");
            }
            return classify(&self.place, "a connection", &server).into_error();
        }
        self.unfit(format_args!(
            "did not let us in: {}",
            printable(&error.to_string())
        ))
    }
}

/// A name server for tests, that answers or does not.
#[cfg(test)]
pub(super) mod names {
    use std::net::Ipv4Addr;

    use super::*;

    /// Names of it end with this.
    pub(in crate::backend::redis) const ZONE: &str = ".relatch-test.invalid";

    static DEAD: Mutex<Vec<String>> = Mutex::new(Vec::new());
    static TOLD: Mutex<BTreeMap<String, Vec<IpAddr>>> = Mutex::new(BTreeMap::new());

    /// Whether nobody answers for this name. Who has asked meanwhile waits on when that ends, as the system has patience.
    pub(in crate::backend::redis) fn dead(host: &str, dead: bool) {
        let mut all = DEAD.lock();
        all.retain(|other| other != host);
        if dead {
            all.push(host.to_owned());
        }
    }

    /// What it has for this name; otherwise it is this machine's.
    pub(in crate::backend::redis) fn tell(host: &str, addresses: Vec<IpAddr>) {
        TOLD.lock().insert(host.to_owned(), addresses);
    }

    pub(super) fn look_up(host: &str) -> Option<io::Result<Vec<SocketAddr>>> {
        if !host.ends_with(ZONE) {
            return None;
        }
        let asked_in_vain = DEAD.lock().iter().any(|other| other == host);
        if asked_in_vain {
            loop {
                std::thread::park();
            }
        }
        let told = TOLD.lock().get(host).cloned();
        let addresses = told.unwrap_or_else(|| vec![Ipv4Addr::LOCALHOST.into()]);
        Some(Ok(addresses
            .into_iter()
            .map(|ip| SocketAddr::new(ip, 0))
            .collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_name_server_that_does_not_answer_holds_up_no_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        // Until this test lets it go.
        let (let_go, wait) = std::sync::mpsc::channel::<()>();
        let begun = Instant::now();
        runtime.block_on(async {
            let wait = Arc::new(Mutex::new(wait));
            let resolving = resolved("hangs", move || {
                let _ = wait.lock().recv();
                Ok(Vec::new())
            });
            let outcome = tokio::time::timeout(Duration::from_millis(20), resolving).await;
            assert!(outcome.is_err());
        });
        drop(runtime);
        assert!(begun.elapsed() < Duration::from_secs(10));
        drop(let_go);
    }

    #[tokio::test]
    async fn a_name_is_resolved_or_it_is_said_why_not() {
        let found = resolved("localhost", || look_up("localhost")).await;
        assert!(found.unwrap().iter().all(|address| address.ip().is_loopback()));
        let error = resolved("x", || Ok(Vec::new())).await.unwrap_err();
        assert!(error.to_string().contains("no address"), "{error}");
        assert!(resolved("x", || Err(io::Error::other("no"))).await.is_err());
        // What was asked before says nothing about now.
        assert!(resolved("x", || look_up("localhost")).await.is_ok());
        let panicked = resolved("x", || panic!("as a resolver does not")).await;
        assert!(panicked.is_err());
    }

    /// Virtual time: no second of it passes here.
    #[tokio::test(start_paused = true)]
    async fn a_name_server_that_does_not_answer_keeps_few_threads_and_no_other_name() {
        let threads = Arc::new(());
        // Until this test lets them go.
        let (let_go, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let hangs = || {
            let (thread, wait) = (threads.clone(), wait.clone());
            resolved("dead", move || {
                let _ = (wait.lock().recv(), &thread);
                Err(io::ErrorKind::TimedOut.into())
            })
        };
        // Each is begun, and given up as an attempt is.
        for asked in 1..=LOOKUPS * 2 {
            for _ in 0..3 {
                let mut attempt = std::pin::pin!(hangs());
                assert!(futures_util::poll!(attempt.as_mut()).is_pending());
            }
            assert_eq!(Arc::strong_count(&threads), 1 + asked.min(LOOKUPS));
            tokio::time::advance(ASK_AGAIN).await;
        }
        let other = resolved("localhost", || look_up("localhost"));
        assert!(other.await.is_ok());
        // Those who asked are told nothing; then the next has its turn, and tells all.
        drop(let_go);
        let find = || resolved("dead", || Ok(vec![SocketAddr::from(([127, 0, 0, 1], 1))]));
        let (one, other) = tokio::join!(find(), find());
        assert!(one.is_ok() && other.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_server_that_is_back_is_heard_of_although_those_who_asked_before_still_hang() {
        let (_never, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let asked = Arc::new(AtomicUsize::new(0));
        // The first three.
        let find = || {
            let (asked, wait) = (asked.clone(), wait.clone());
            resolved("back", move || {
                if asked.fetch_add(1, Ordering::Relaxed) < 3 {
                    let _ = wait.lock().recv();
                }
                Ok(vec![SocketAddr::from(([127, 0, 0, 1], 1))])
            })
        };
        let began = Instant::now();
        let all = futures_util::future::join_all([find(), find(), find()]).await;
        assert!(all.iter().all(Result::is_ok));
        assert!(began.elapsed() >= ASK_AGAIN * 3);
    }

    #[tokio::test]
    async fn an_address_that_swallows_everything_does_not_hide_the_next() {
        let listen = |ip: [u8; 4], port| {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from((ip, port))).unwrap();
            socket.listen(1).unwrap()
        };
        let there = listen([127, 0, 0, 1], 0);
        let there = there.local_addr().unwrap();
        let full = listen([127, 0, 0, 2], there.port());
        let full = full.local_addr().unwrap();
        // Nobody is accepted: soon nobody is answered.
        let mut kept = Vec::new();
        while let Ok(taken) = timeout(Duration::from_millis(100), TcpStream::connect(full)).await {
            kept.push(taken.unwrap());
        }
        let found = timeout(Duration::from_secs(10), first_of(vec![full, there])).await;
        assert_eq!(found.unwrap().unwrap().peer_addr().unwrap(), there);
        let nobody = SocketAddr::from(([127, 0, 0, 3], there.port()));
        let error = first_of(vec![nobody]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(
            first_of(vec![nobody, there]).await.unwrap().peer_addr().unwrap(),
            there
        );
    }
}
