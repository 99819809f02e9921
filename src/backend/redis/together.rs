//! Several names in one script, where one server and one slot has them all.

use std::sync::atomic::Ordering;

use redis::{ServerErrorKind, Value};

use super::refusal::printable;
use super::{RedisBackend, scripts};
use crate::backend::{Backend as _, Failure, Heard, Together};
use crate::protocol::{Acquire, Acquired, Answer, Name, Reply};

/// How many names one script takes: it keeps the server busy for some microseconds each.
const MOST: usize = 128;

impl RedisBackend {
    /// Sends it once; a second time only when the server did not know the script, which then did not run.
    pub(super) async fn acquire_together(&self, parts: &[(Name, Acquire)]) -> Result<Together, Failure> {
        let mut places = parts.iter().map(|(name, _)| self.together(name));
        let first = places.next();
        if parts.len() > MOST || places.any(|place| Some(place) != first) {
            return Ok(Together::Apart);
        }
        let live = self.live().await?;
        let id = self.calls.fetch_add(1, Ordering::Relaxed);
        let encoded = scripts::encode_all(parts, id, &self.tuning, live.trust);
        let mut connection = live.connection.clone();
        let mut sent = self.linker.clock.now();
        let mut value = connection.send_packed_command(&encoded.evalsha()).await;
        if matches!(&value, Ok(Value::ServerError(error)) if error.kind() == Some(ServerErrorKind::NoScript))
        {
            sent = self.linker.clock.now();
            value = connection.send_packed_command(&encoded.eval()).await;
        }
        let value = match value {
            Ok(Value::ServerError(error)) => {
                let key = encoded.keys.first().map_or("", AsRef::as_ref);
                return Err(self
                    .refused(&live, &format!("the key {key}, or one of those with it"), &error)
                    .await);
            }
            Ok(value) => value,
            Err(error) => return Err(self.lost(&live, &error)),
        };
        match scripts::decode_all(parts.len(), id, value) {
            Ok((now_us, grants)) => {
                live.prove();
                Ok(match grants {
                    None => Together::Busy,
                    Some(grants) => Together::Granted(
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
                let error = self.linker.unreachable(format_args!(
                    "gave no answer to what it was asked ({})",
                    printable(&malformed.to_string())
                ));
                self.linker.fault(&live, &error);
                Err(Failure::Unknown(error))
            }
        }
    }
}
