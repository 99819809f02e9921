//! Sentinels: who is the primary now?
//!
//! All are asked at once, and what most of them say counts: one that was cut off from the others may still name a primary that has
//! been replaced. What they name is then asked itself whether it is one (its `INFO`), as that takes a moment to become true.

use ::redis::Value;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::backend::redis::dial::Peer;
use crate::backend::redis::options::{Address, RedisOptions, Sentinels, Target};
use crate::backend::redis::refusal::{classify, printable};
use crate::error::{Error, ErrorKind};

/// The server that Sentinels name.
pub(super) struct Named {
    pub(super) peer: Peer,
    /// By most of all that there are, not only of those that could be reached.
    pub(super) agreed: bool,
}

/// The server that is the primary now, as most of those say that can be reached.
pub(super) async fn primary(
    options: &RedisOptions,
    target: &Target,
    sentinels: &Sentinels,
) -> Result<Named, Error> {
    let mut asked: FuturesUnordered<_> = sentinels
        .hosts
        .iter()
        .map(|host| {
            let sentinel = Peer::new(options, target, host.clone()).logged_in_as(sentinels.login.clone());
            async move {
                let place = sentinel.place.clone();
                match timeout(options.response_timeout, ask(&sentinel, &sentinels.primary)).await {
                    Ok(answer) => answer,
                    Err(_) => Err(ErrorKind::Unreachable(format!(
                        "{place}, a Sentinel, did not answer within {:?}",
                        options.response_timeout
                    ))
                    .into()),
                }
            }
        })
        .collect();
    let mut votes: Vec<(Address, usize)> = Vec::new();
    let mut trouble = None;
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(address) => {
                let at = votes
                    .iter()
                    .position(|(named, _)| named.is(&address))
                    .unwrap_or_else(|| {
                        votes.push((address, 0));
                        votes.len() - 1
                    });
                votes[at].1 += 1;
                if votes[at].1 * 2 > sentinels.hosts.len() {
                    break;
                }
            }
            // What one says that is there says more than that another is not.
            Err(error) => {
                if trouble.as_ref().is_none_or(Error::is_unreachable) {
                    trouble = Some(error);
                }
            }
        }
    }
    match votes.into_iter().max_by_key(|(_, count)| *count) {
        Some((address, count)) => {
            let peer = Peer::new(options, target, address);
            let place = format!(
                "{} ({} of {})",
                peer.place,
                printable(&sentinels.primary),
                target.place
            );
            Ok(Named {
                peer: peer.called(place),
                agreed: count * 2 > sentinels.hosts.len(),
            })
        }
        None => Err(trouble.unwrap_or_else(|| {
            ErrorKind::Unreachable(format!("{} could not be asked", target.place)).into()
        })),
    }
}

/// Asks one Sentinel. The connection ends with the answer.
async fn ask(sentinel: &Peer, primary: &str) -> Result<Address, Error> {
    let mut drivers = JoinSet::new();
    let mut connection = sentinel.connect(&mut drivers, sentinel.config(), || ()).await?;
    let mut ask = ::redis::cmd("SENTINEL");
    ask.arg("GET-MASTER-ADDR-BY-NAME").arg(primary);
    let no_sentinel = || {
        sentinel.unfit(
            "is not a Sentinel: name the Sentinels' addresses (their port is 26379 unless set), or write redis:// for a server",
        )
    };
    match connection.send_packed_command(&ask).await {
        Ok(Value::Array(found)) => match &found[..] {
            [Value::BulkString(host), Value::BulkString(port)] => {
                let port = std::str::from_utf8(port).ok().and_then(|port| port.parse().ok());
                match (String::from_utf8(host.clone()), port) {
                    (Ok(host), Some(port)) => Ok(Address::Tcp(host, port)),
                    _ => Err(sentinel.strange("it names no address")),
                }
            }
            _ => Err(no_sentinel()),
        },
        Ok(Value::Nil) => Err(sentinel.unfit(format_args!(
            "is a Sentinel that watches no primary called {:?}: correct the name at the end of the address",
            printable(primary)
        ))),
        Ok(Value::ServerError(error)) => {
            let details = error.details().unwrap_or_default();
            Err(if details.starts_with("unknown command") {
                no_sentinel()
            } else {
                classify(&sentinel.place, "a Sentinel", &error).into_error()
            })
        }
        Ok(_) => Err(no_sentinel()),
        Err(error) => Err(sentinel.handshake_failed(&error)),
    }
}
