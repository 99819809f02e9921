//! Sentinels: who is the primary now?
//!
//! All are asked at once. What most of them say counts, of all that are named, as one that was cut off from the others may still name a primary
//! that has been replaced. Where so many can't be asked, each is asked for more than the address: for the epoch of what it says, as a fail-over
//! has a greater one than all before it; and when it last heard of the other Sentinels, which tell each other every two seconds whom they take for the
//! primary. So one that hears of most of them is as good as they. One that has just been started only seems to: it takes all that are in its
//! file as heard at that moment. Without one of both nobody is *sure*: then the other side may have elected another primary. What is done
//! about that is for `link` to decide.
//!
//! One that is named alone is no majority if it says itself that it has lost the others: an address may be one for all, of which each attempt
//! reaches another. It is if it knows of none, or does not tell.
//!
//! What they name is then asked itself whether it is one (its `INFO`), as that takes a moment to become true.

use std::time::Duration;

use ::redis::Value;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::backend::redis::dial::Peer;
use crate::backend::redis::options::{Address, RedisOptions, Sentinels, Target};
use crate::backend::redis::refusal::{classify, printable};
use crate::error::{Error, ErrorKind};

/// A Sentinel that has heard of another within this time knows what that one knows: twice as long as they let pass, and some.
const RECENT: Duration = Duration::from_secs(5);

/// The server that Sentinels name.
pub(super) struct Named {
    pub(super) peer: Peer,
    /// Which fail-over has made it the primary, as far as is told: a later one has a greater number.
    pub(super) epoch: Option<u64>,
    /// By most of all that are named, not only of those that could be reached; by an only one unless it says that it has lost the others.
    pub(super) agreed: bool,
    /// By one that hears of most of the others.
    in_touch: bool,
    /// How many said anything.
    heard: usize,
}

impl Named {
    /// Nobody whom we can't reach is likely to know better.
    pub(super) fn sure(&self) -> bool {
        self.agreed || self.in_touch
    }

    /// Whether it is another one than this, which was named for that epoch.
    pub(super) fn replaces(&self, peer: &Peer, epoch: Option<u64>) -> bool {
        let later = matches!((self.epoch, epoch), (Some(now), Some(then)) if now > then);
        !self.peer.address.is(&peer.address) && (self.agreed || self.in_touch && later)
    }

    /// Why it is not to be relied on.
    pub(super) fn doubt(&self, target: &Target, sentinels: &Sentinels) -> Error {
        ErrorKind::Unreachable(format!(
            "{}: {} of {} Sentinels could be asked, and none of these has heard of most of the others for long enough: what they name, {}, may have \
             been replaced. Start the others, or see to the network; or, where they are gone for good, have the rest forget them (SENTINEL RESET) \
             and name only those that there are",
            target.place,
            self.heard,
            sentinels.hosts.len(),
            self.peer.address.shown(),
        ))
        .into()
    }
}

/// What one Sentinel says.
struct Said {
    address: Address,
    epoch: Option<u64>,
    /// It hears of most of the others. `None`: it does not tell.
    in_touch: Option<bool>,
}

/// The server that is the primary now.
pub(super) async fn primary(
    options: &RedisOptions,
    target: &Target,
    sentinels: &Sentinels,
) -> Result<Named, Error> {
    // Those that say nothing must leave the attempt time for the server that the others name.
    let within = options.response_timeout.min(options.connect_timeout / 2);
    let mut asked: FuturesUnordered<_> = sentinels
        .hosts
        .iter()
        .map(|host| {
            let sentinel = Peer::new(options, target, host.clone()).logged_in_as(sentinels.login.clone());
            async move {
                let place = sentinel.place.clone();
                match timeout(within, ask(&sentinel, sentinels)).await {
                    Ok(answer) => answer,
                    Err(_) => Err(ErrorKind::Unreachable(format!(
                        "{place}, a Sentinel, did not answer within {within:?}"
                    ))
                    .into()),
                }
            }
        })
        .collect();
    // With how many say the same.
    let mut votes: Vec<(Said, usize)> = Vec::new();
    let mut heard = 0;
    let mut trouble = None;
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(said) => {
                heard += 1;
                let same = votes
                    .iter_mut()
                    .find(|(other, _)| other.address.is(&said.address));
                let count = match same {
                    Some((other, count)) => {
                        // The later of two fail-overs to one server; and what is not told is less than what is.
                        if said.epoch > other.epoch {
                            (other.epoch, other.in_touch) = (said.epoch, said.in_touch);
                        } else if said.epoch == other.epoch {
                            other.in_touch = other.in_touch.max(said.in_touch);
                        }
                        *count += 1;
                        *count
                    }
                    None => {
                        votes.push((said, 1));
                        1
                    }
                };
                if count * 2 > sentinels.hosts.len() {
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
    let most = |count: usize| count * 2 > sentinels.hosts.len();
    let best = votes
        .into_iter()
        .max_by_key(|(said, count)| (most(*count), said.epoch, said.in_touch, *count));
    match best {
        Some((said, count)) => {
            let peer = Peer::new(options, target, said.address);
            let place = format!(
                "{} ({} of {})",
                peer.place,
                printable(&sentinels.primary),
                target.place
            );
            Ok(Named {
                peer: peer.called(place),
                epoch: said.epoch,
                agreed: most(count) && (sentinels.hosts.len() > 1 || said.in_touch != Some(false)),
                in_touch: said.in_touch == Some(true),
                heard,
            })
        }
        None => Err(trouble.unwrap_or_else(|| {
            ErrorKind::Unreachable(format!("{} could not be asked", target.place)).into()
        })),
    }
}

/// Asks one Sentinel. The connection ends with the answer.
async fn ask(sentinel: &Peer, sentinels: &Sentinels) -> Result<Said, Error> {
    let primary = sentinels.primary.as_str();
    let mut drivers = JoinSet::new();
    let mut connection = sentinel.connect(&mut drivers, sentinel.config(), || ()).await?;
    let mut ask = ::redis::Pipeline::with_capacity(4);
    for what in ["GET-MASTER-ADDR-BY-NAME", "MASTER", "SENTINELS"] {
        ask.cmd("SENTINEL").arg(what).arg(primary);
    }
    ask.cmd("INFO").arg("server");
    let no_sentinel = || {
        sentinel.unfit(
            "is not a Sentinel: name the Sentinels' addresses (their port is 26379 unless set), or write redis:// for a server",
        )
    };
    let answers = connection.send_packed_commands(&ask, 0, 4).await;
    let mut answers = answers
        .map_err(|error| sentinel.handshake_failed(&error))?
        .into_iter();
    match answers.next() {
        Some(Value::Array(found)) => match &found[..] {
            [Value::BulkString(host), Value::BulkString(port)] => {
                let port = std::str::from_utf8(port).ok().and_then(|port| port.parse().ok());
                let (Ok(host), Some(port)) = (String::from_utf8(host.clone()), port) else {
                    return Err(sentinel.strange("it names no address"));
                };
                // Its user may not have the right to these: then it says nothing but a name.
                let epoch = answers
                    .next()
                    .and_then(|about| number(&fields(&about)?, "config-epoch"));
                let others = answers.next().and_then(|others| heard_of(&others));
                let up = answers.next().and_then(|info| uptime(&info));
                Ok(Said {
                    address: Address::Tcp(host, port),
                    epoch,
                    in_touch: others.map(|others| others.is_in_touch(sentinels.hosts.len(), up)),
                })
            }
            _ => Err(no_sentinel()),
        },
        Some(Value::Nil) => Err(sentinel.unfit(format_args!(
            "is a Sentinel that watches no primary called {:?}: correct the name at the end of the address",
            printable(primary)
        ))),
        Some(Value::ServerError(error)) => {
            let details = error.details().unwrap_or_default();
            Err(if details.starts_with("unknown command") {
                no_sentinel()
            } else {
                classify(&sentinel.place, "a Sentinel", &error).into_error()
            })
        }
        _ => Err(no_sentinel()),
    }
}

/// What a Sentinel says of somebody, whichever protocol it speaks. `None`: that is something else.
fn fields(about: &Value) -> Option<Vec<(&[u8], &[u8])>> {
    fn text(value: &Value) -> Option<&[u8]> {
        match value {
            Value::BulkString(text) => Some(text),
            Value::SimpleString(text) => Some(text.as_bytes()),
            _ => None,
        }
    }
    match about {
        Value::Map(pairs) => pairs
            .iter()
            .map(|(key, value)| Some((text(key)?, text(value)?)))
            .collect(),
        Value::Array(flat) => flat
            .chunks_exact(2)
            .map(|pair| Some((text(&pair[0])?, text(&pair[1])?)))
            .collect(),
        _ => None,
    }
}

fn number(fields: &[(&[u8], &[u8])], name: &str) -> Option<u64> {
    let (_, value) = fields.iter().find(|(key, _)| *key == name.as_bytes())?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// How long it has been running. `None`: that is not told.
fn uptime(info: &Value) -> Option<Duration> {
    let info = match info {
        Value::BulkString(info) => std::str::from_utf8(info).ok()?,
        Value::VerbatimString { text, .. } => text,
        _ => return None,
    };
    let mut lines = info.lines();
    let seconds = lines.find_map(|line| line.trim().strip_prefix("uptime_in_seconds:"))?;
    seconds.parse().ok().map(Duration::from_secs)
}

/// The others, as a Sentinel says.
#[derive(Debug, PartialEq, Eq)]
struct Others {
    known: usize,
    /// As many have told it something lately.
    heard: usize,
}

/// `None`: that is something else.
fn heard_of(others: &Value) -> Option<Others> {
    let Value::Array(others) = others else {
        return None;
    };
    let lately = |other: &Value| {
        let age = fields(other).and_then(|fields| number(&fields, "last-hello-message"));
        age.is_some_and(|age| u128::from(age) <= RECENT.as_millis())
    };
    Some(Others {
        known: others.len(),
        heard: others.iter().filter(|other| lately(other)).count(),
    })
}

impl Others {
    /// Whether it knows what most of all Sentinels know, of which we `named` so many. It has been `up` for so long: at first all that it knows
    /// from its file count as just heard of.
    fn is_in_touch(&self, named: usize, up: Option<Duration>) -> bool {
        let has_listened = self.known == 0 || up.is_some_and(|up| up > RECENT);
        has_listened && (1 + self.heard) * 2 > (1 + self.known).max(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(age: &str) -> Vec<(Value, Value)> {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        vec![(text("name"), text("x")), (text("last-hello-message"), text(age))]
    }

    #[test]
    fn a_sentinel_that_hears_of_most_of_all_that_there_are_is_in_touch() {
        let map = |ages: &[&str]| Value::Array(ages.iter().map(|age| Value::Map(of(age))).collect());
        let flat = |ages: &[&str]| {
            let one = |age: &&str| Value::Array(of(age).into_iter().flat_map(|(k, v)| [k, v]).collect());
            Value::Array(ages.iter().map(one).collect())
        };
        for (ages, named, expected) in [
            (&[][..], 1, true),
            // It has not met the others yet.
            (&[], 2, false),
            (&["900"], 2, true),
            (&["5001"], 2, false),
            (&["100", "70000"], 3, true),
            (&["7000", "70000"], 3, false),
            // Of some of those that are named nobody knows any more; others are not named.
            (&["0", "0"], 4, true),
            (&["0", "0", "9000", "9000"], 1, true),
            (&["0", "9000", "9000", "9000"], 1, false),
            (&["-1", "", "x", "99999999999999999999"], 1, false),
        ] {
            let up = Some(Duration::from_secs(6));
            for others in [map(ages), flat(ages)] {
                let others = heard_of(&others).unwrap();
                assert_eq!(others.is_in_touch(named, up), expected, "{ages:?} {named}");
                let first = others.known == 0 && expected;
                for up in [None, Some(RECENT)] {
                    assert_eq!(others.is_in_touch(named, up), first, "{ages:?} {named}");
                }
            }
        }
        assert_eq!((heard_of(&Value::Nil), heard_of(&Value::Int(3))), (None, None));
        let strange = heard_of(&Value::Array(vec![Value::Nil, Value::Int(1)])).unwrap();
        assert_eq!(strange, Others { known: 2, heard: 0 });
        let told = |info: &str| uptime(&Value::BulkString(info.as_bytes().to_vec()));
        let info = "# Server\r\nuptime_in_days:9\r\nuptime_in_seconds:7\r\n";
        assert_eq!(told(info), Some(Duration::from_secs(7)));
        for other in ["", "uptime_in_seconds:", "uptime_in_seconds:-1"] {
            assert_eq!(told(other), None, "{other:?}");
        }
    }
}
