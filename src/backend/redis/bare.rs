//! Past the lock, for `relatch bench`: the server that has a name, connections to it like a link's own, and the calls of a pair, word for word.

use std::fmt;

use parking_lot::Mutex;
use redis::PushInfo;
use redis::aio::MultiplexedConnection;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::backend::Failure;
use crate::backend::redis::dial::Peer;
use crate::backend::redis::options::Address;
use crate::backend::redis::{RedisBackend, scripts, slots};
use crate::error::Error;
use crate::protocol::{Call, Name, RequestId};

/// The server that has a name: the one that was named, the primary that Sentinels name, or the master of a cluster's slot.
#[doc(hidden)]
pub struct Bare {
    peer: Peer,
    /// What a client sends for a write pair of the name.
    pub acquire: Vec<Vec<u8>>,
    pub release: Vec<Vec<u8>>,
    /// The connections end with this.
    drivers: Mutex<Vec<JoinSet<()>>>,
}

impl fmt::Debug for Bare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bare").field(&self.peer.place).finish()
    }
}

impl Bare {
    /// A connection, and what is pushed to it.
    pub async fn connect(&self) -> Result<(MultiplexedConnection, mpsc::UnboundedReceiver<PushInfo>), Error> {
        let (pushes, pushed) = mpsc::unbounded_channel();
        let mut drivers = JoinSet::new();
        let config = self.peer.config().set_push_sender(pushes);
        let connection = self.peer.connect(&mut drivers, config, || ()).await?;
        self.drivers.lock().push(drivers);
        Ok((connection, pushed))
    }

    /// How redis-benchmark is told of the server, or why it is not.
    pub fn for_redis_benchmark(&self) -> Result<Vec<String>, &'static str> {
        if self.peer.login().password().is_some() {
            return Err("redis-benchmark takes a password only where everybody can read it");
        }
        if self.peer.is_secured() {
            return Err("redis-benchmark is not everywhere built with TLS");
        }
        let mut address = match &self.peer.address {
            Address::Tcp(host, port) => vec!["-h".to_owned(), host.clone(), "-p".into(), port.to_string()],
            #[cfg(unix)]
            Address::Unix(path) => vec!["-s".into(), path.display().to_string()],
            Address::Simulated(_) => return Err("a simulation has no address"),
        };
        address.extend(["--dbnum".into(), self.peer.login().db().to_string()]);
        Ok(address)
    }

    /// The keys of a name.
    pub fn keys(name: &str) -> Result<[String; 5], Error> {
        Ok(scripts::keys(&Name::new(name)?))
    }
}

impl RedisBackend {
    pub(super) async fn bare(&self, name: &Name, lease_ms: u64) -> Result<Bare, Failure> {
        let slot = self.route.slot(|| slots::slot_of(name));
        let way = self.way(slot).await?;
        let request = RequestId {
            client: self.client,
            number: 50_000_000_000_000,
        };
        let words = |operation| {
            let call = Call {
                name: name.clone(),
                operation,
            };
            let encoded = self.encode(&call, 1, slot, &way.live, way.live.trust);
            let evalsha = encoded.evalsha();
            let words = evalsha.args_iter().filter_map(|arg| match arg {
                redis::Arg::Simple(word) => Some(word.to_vec()),
                _ => None,
            });
            words.collect::<Vec<_>>()
        };
        let [acquire, release] = scripts::write_pair(request, lease_ms).map(words);
        Ok(Bare {
            acquire,
            release,
            peer: way.live.peer.clone(),
            drivers: Mutex::default(),
        })
    }
}
