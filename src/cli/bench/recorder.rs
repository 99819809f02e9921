//! What a client of the lock sends for one pair, word for word.
//!
//! A floor that runs "the same two scripts" needs their very calls, and the deletion of a name's keys needs their names. Both could be built here a second
//! time, and would then be wrong one day. Instead one client makes one pair through a relay in this process that notes what passes.

use std::sync::Arc;

use anyhow::Context as _;
use parking_lot::Mutex;
use redis::{Cmd, ConnectionAddr, ConnectionInfo};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::ground::builder;

/// A command and its arguments.
type Words = Vec<Vec<u8>>;

/// The calls of a pair in write mode.
pub(crate) struct Recorded {
    name: String,
    pub(crate) acquire: Words,
    pub(crate) release: Words,
}

impl Recorded {
    /// The keys of another name.
    pub(crate) fn keys(&self, name: &str) -> Vec<String> {
        let count = self
            .acquire
            .get(2)
            .and_then(|count| String::from_utf8_lossy(count).parse().ok())
            .unwrap_or(0);
        self.acquire
            .iter()
            .skip(3)
            .take(count)
            .map(|key| String::from_utf8_lossy(key).replace(&self.name, name))
            .collect()
    }

    /// As [`call`](Self::call), for a command line.
    pub(crate) fn words(&self, words: &[Vec<u8>], name: &str) -> anyhow::Result<Vec<String>> {
        let keys = 3 + self.keys(name).len();
        let word = |(at, word): (usize, &Vec<u8>)| {
            let text = std::str::from_utf8(word).context("an argument that no command line takes")?;
            // The others are not touched, and a number in each would be another in each.
            let named = if (4..keys).contains(&at) {
                text.into()
            } else {
                text.replace(&self.name, name)
            };
            anyhow::Ok(named)
        };
        words.iter().enumerate().map(word).collect()
    }

    /// A recorded call, for another name.
    pub(crate) fn call(&self, words: &[Vec<u8>], name: &str) -> Cmd {
        let mut call = Cmd::new();
        for word in words {
            match std::str::from_utf8(word) {
                Ok(text) => call.arg(text.replace(&self.name, name)),
                Err(_) => call.arg(word),
            };
        }
        call
    }
}

pub(crate) async fn record(info: &ConnectionInfo, name: String) -> anyhow::Result<Recorded> {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .context("a port for the recorder")?;
    let port = listener.local_addr()?.port();
    let noted = Arc::new(Mutex::new(Vec::new()));
    let mut relays = JoinSet::new();
    let relay = {
        let (noted, addr) = (noted.clone(), info.addr().clone());
        async move {
            loop {
                let (client, _) = listener.accept().await?;
                client.set_nodelay(true)?;
                let (noted, addr) = (noted.clone(), addr.clone());
                relays.spawn(async move { pass(client, &addr, &noted).await });
            }
        }
    };
    let pair = async {
        let client = builder().url(here(info, port)?).connect().await?;
        client.rwlock(&name)?.write().await?.release().await?;
        client.close().await?;
        anyhow::Ok(())
    };
    tokio::select! {
        broken = relay => {
            let broken: std::io::Result<()> = broken;
            broken.context("the recorder")?;
        }
        paired = pair => paired.context("one pair, to see what is sent for it")?,
    }
    let mut calls = std::mem::take(&mut *noted.lock());
    // What a new link asks first is of no name.
    calls.retain(|words: &Words| {
        words
            .iter()
            .any(|word| String::from_utf8_lossy(word).contains(&name))
    });
    let count = calls.len();
    let [acquire, release]: [Words; 2] = calls
        .try_into()
        .ok()
        .with_context(|| format!("a pair took {count} calls instead of two"))?;
    Ok(Recorded {
        name,
        acquire,
        release,
    })
}

/// Ourselves, with the user, password and database of the server.
fn here(info: &ConnectionInfo, port: u16) -> anyhow::Result<String> {
    let mut here = redis::parse_redis_url("redis://127.0.0.1").context("an address of our own")?;
    let login = info.redis_settings();
    // It is a URL with a host: none of these can fail.
    let set = here.set_port(Some(port)).is_ok()
        && here.set_username(login.username().unwrap_or_default()).is_ok()
        && here.set_password(login.password()).is_ok();
    anyhow::ensure!(set, "the server's user or password can't be used here");
    here.set_path(&login.db().to_string());
    Ok(here.into())
}

async fn pass(client: TcpStream, to: &ConnectionAddr, noted: &Mutex<Vec<Words>>) -> anyhow::Result<()> {
    match to {
        ConnectionAddr::Tcp(host, port) => {
            let server = TcpStream::connect((host.as_str(), *port)).await?;
            server.set_nodelay(true)?;
            both_ways(client, server, noted).await
        }
        #[cfg(unix)]
        ConnectionAddr::Unix(path) => {
            both_ways(client, tokio::net::UnixStream::connect(path).await?, noted).await
        }
        _ => anyhow::bail!("that kind of connection is not supported"),
    }
}

async fn both_ways(
    client: TcpStream,
    server: impl AsyncRead + AsyncWrite,
    noted: &Mutex<Vec<Words>>,
) -> anyhow::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let there = async {
        let mut sent = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            let read = from_client.read(&mut buffer).await?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                return anyhow::Ok(());
            };
            sent.extend_from_slice(bytes);
            while let Some((words, length)) = command(&sent) {
                sent.drain(..length);
                if words.first().is_some_and(|verb| verb == b"EVALSHA") {
                    noted.lock().push(words);
                }
            }
            to_server.write_all(bytes).await?;
        }
    };
    let back = async {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        anyhow::Ok(())
    };
    tokio::select! {
        there = there => there,
        back = back => back,
    }
}

/// The first command of what was sent, if all of it is there, and its length.
fn command(sent: &[u8]) -> Option<(Words, usize)> {
    let mut at = 0;
    let number = |kind: u8, at: &mut usize| -> Option<usize> {
        let rest = sent.get(*at..)?;
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let (first, digits) = rest.get(..end)?.split_first()?;
        *at += end + 2;
        (*first == kind).then_some(())?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    };
    let count = number(b'*', &mut at)?;
    let mut words = Vec::new();
    for _ in 0..count {
        let length = number(b'$', &mut at)?;
        words.push(sent.get(at..at.checked_add(length)?)?.to_vec());
        at += length + 2;
    }
    (at <= sent.len()).then_some((words, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_noted_once_all_of_it_is_there() {
        let sent = b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n*1\r\n$4\r\nPING\r\n";
        let whole = 23;
        for part in 0..whole {
            assert_eq!(command(&sent[..part]), None, "after {part} bytes");
        }
        let words = vec![b"GET".to_vec(), b"a\r\nb".to_vec()];
        assert_eq!(command(sent), Some((words, whole)));
    }

    #[test]
    fn a_recorded_call_is_made_for_another_name() {
        let words = |text: &str| text.split(' ').map(|word| word.as_bytes().to_vec()).collect();
        let recorded = Recorded {
            name: "old".into(),
            acquire: words("EVALSHA sha 2 k:{old} k:{old}:more 7"),
            release: words("EVALSHA sha 1 k:{old}"),
        };
        assert_eq!(recorded.keys("new"), ["k:{new}", "k:{new}:more"]);
        let call = recorded.call(&recorded.release, "new").get_packed_command();
        assert!(String::from_utf8_lossy(&call).ends_with("$1\r\n1\r\n$7\r\nk:{new}\r\n"));
    }
}
