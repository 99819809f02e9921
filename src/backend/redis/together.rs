//! Several names in one script, where one server and one slot has them all.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::refusal::printable;
use super::{Answered, RedisBackend, Route, scripts, slots};
use crate::backend::{Backend as _, Failure, Heard, Together};
use crate::protocol::{Acquire, Acquired, Answer, Name, Reply};

/// How many names one script takes: it keeps the server busy for some microseconds each.
const MOST: usize = 128;

impl RedisBackend {
    /// Sends it once; again only where a server said that it had not executed it.
    pub(super) async fn acquire_together(&self, parts: &[(Name, Acquire)]) -> Result<Together, Failure> {
        let mut places = parts.iter().map(|(name, _)| self.together(name));
        let first = places.next();
        if parts.len() > MOST || places.any(|place| Some(place) != first) {
            return Ok(Together::Apart);
        }
        let Some((name, _)) = parts.first() else {
            return Ok(Together::Apart);
        };
        let slot = self.route.slot(|| slots::slot_of(name));
        let way = self.way(slot).await?;
        if let Route::Cluster(cluster) = &self.route {
            let longest = parts.iter().map(|(_, op)| op.lease_ms).max().unwrap_or(0);
            let lease = Duration::from_millis(longest);
            cluster.listen(slot, &way, lease).await;
        }
        let id = self.calls.fetch_add(1, Ordering::Relaxed);
        let what = || format!("the key {}, or one of those with it", scripts::keys(name)[0]);
        let answered = self
            .deliver(
                slot,
                way,
                what,
                Some(scripts::ACQUIRE_ALL.source),
                |live, form| {
                    let trust = live.trust && !form.asking;
                    let channels = self.channels(slot, live);
                    let encoded = scripts::encode_all(parts, id, &self.tuning, trust, &channels);
                    if form.full || live.by_source {
                        encoded.eval()
                    } else {
                        encoded.evalsha()
                    }
                },
            )
            .await?;
        let Answered { way, sent, value } = answered;
        match scripts::decode_all(parts.len(), id, value) {
            Ok((now_us, grants)) => {
                way.live.prove(sent, Some(now_us));
                Ok(match grants {
                    Err(why_not) => Together::Not(why_not),
                    Ok(grants) => Together::Granted(
                        grants
                            .into_iter()
                            .map(|grant| Heard {
                                sent,
                                answer: Answer {
                                    now_us: Some(now_us),
                                    reply: Reply::Acquire(Acquired::Granted(grant)),
                                },
                            })
                            .collect(),
                    ),
                })
            }
            Err(malformed) => {
                let error = way.live.peer.unreachable(format_args!(
                    "gave no answer to what it was asked ({})",
                    printable(&malformed.to_string())
                ));
                way.linker.fault(&way.live, &error);
                Err(Failure::Unknown(error))
            }
        }
    }
}
