//! Many names, kept up to date: what `events` and `watch` look at.
//!
//! The server tells which names change (client-side tracking), and those are looked at. A lease that runs out changes nothing by itself, so a
//! name is looked at as well when one would. Where the server may not tell, all names are looked at from time to time.
//!
//! What was only there between two looks is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use relatch::{Changed, Changes, Error, Inspection, Names, Relatch};

use super::{all, each};

/// What a look found.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) before: Option<Seen>,
    pub(crate) after: Seen,
}

#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) what: Inspection,
}

impl Seen {
    pub(crate) fn is_idle(&self) -> bool {
        self.what.holder_count == 0 && self.what.waiter_count == 0
    }

    /// When a lease there has run out, unless it is renewed.
    fn due(&self) -> Option<Instant> {
        let left = self.what.holders.iter().map(|held| held.lease_left).min()?;
        Some(self.at + left + AFTER)
    }
}

pub(crate) struct Board {
    relatch: Relatch,
    pattern: String,
    wanted: Names,
    changes: Option<Changes>,
    poll: Duration,
    seen: BTreeMap<String, Seen>,
    /// When to look at a name again, as a lease there would have run out.
    due: BTreeSet<(Instant, String)>,
    /// Looked at all of them once.
    begun: bool,
    /// Why not all of them are seen, if not all are, and when to look again.
    missing: Option<(Error, Instant)>,
}

/// How soon all names are looked at again when some could not be seen.
const AGAIN: Duration = Duration::from_secs(5);

/// So much after a lease's end it has ended, whatever is rounded.
const AFTER: Duration = Duration::from_millis(5);

impl Board {
    pub(crate) fn new(relatch: Relatch, pattern: &str, poll: Duration) -> Self {
        let changes = Some(relatch.changes());
        Self {
            wanted: relatch.names(pattern),
            relatch,
            pattern: pattern.to_owned(),
            changes,
            poll,
            seen: BTreeMap::new(),
            due: BTreeSet::new(),
            begun: false,
            missing: None,
        }
    }

    /// Why what is seen is not all there is, since the last look: a server, or a part of a cluster, does not answer. It is tried on.
    pub(crate) fn missing(&self) -> Option<&Error> {
        self.missing.as_ref().map(|(error, _)| error)
    }

    /// Whether names are looked at as they change, not only from time to time.
    pub(crate) fn is_told(&self) -> bool {
        self.changes.is_some()
    }

    /// What is new since the last call: at first everything that is there. Not cancel safe: drop the board as well.
    ///
    /// That a server does not answer is an error only if nothing was seen before; later nothing is new then, and [`missing`](Self::missing) says why.
    pub(crate) async fn next(&mut self) -> Result<Vec<Look>, Error> {
        let changed = match &mut self.changes {
            Some(changes) => {
                let at = |at: Option<Instant>| async move {
                    match at {
                        Some(at) => tokio::time::sleep_until(at.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    changed = changes.next() => match changed {
                        Ok(changed) => Some(changed),
                        Err(error) if error.is_server() => {
                            // Not allowed: from time to time, then.
                            self.changes = None;
                            Some(Changed::Anything)
                        }
                        Err(error) => return self.lacks(error),
                    },
                    () = at(self.missing.as_ref().map(|(_, again)| *again)) => Some(Changed::Anything),
                    () = at(self.due.first().map(|(due, _)| *due)) => None,
                }
            }
            None => {
                if self.begun {
                    tokio::time::sleep(self.poll).await;
                }
                Some(Changed::Anything)
            }
        };
        // The time before a look: what had a lease left then may have had less of it, never more.
        let at = Instant::now();
        let (found, whole) = match changed {
            Some(Changed::Names(names)) => {
                let wanted = names.into_iter().filter(|name| self.wanted.matches(name));
                (each(&self.relatch, wanted.collect()).await?, false)
            }
            None => {
                let mut names = Vec::new();
                while self.due.first().is_some_and(|(due, _)| *due <= at) {
                    names.extend(self.due.pop_first().map(|(_, name)| name));
                }
                (each(&self.relatch, names).await?, false)
            }
            Some(_) => {
                let mut found = match all(&self.relatch, &self.pattern, self.missing()).await {
                    Err(error) if error.is_unreachable() => return self.lacks(error),
                    found => found?,
                };
                // Those that are not listed any more have no key: they are idle now. Or their server does not answer: then they are as they were.
                let listed: BTreeSet<&str> = found.seen.iter().map(|seen| seen.name.as_str()).collect();
                let gone = self.seen.keys().filter(|name| !listed.contains(name.as_str()));
                let gone = gone.cloned().collect();
                found.and(&self.relatch, gone).await?;
                self.begun = true;
                (found, true)
            }
        };
        match found.missing {
            Some(error) => self.missing = Some((error, Instant::now() + AGAIN)),
            None if whole => self.missing = None,
            None => {}
        }
        Ok(found
            .seen
            .into_iter()
            .map(|what| self.keep(Seen { at, what }))
            .collect())
    }

    /// Nobody answers.
    fn lacks(&mut self, error: Error) -> Result<Vec<Look>, Error> {
        if !self.begun {
            return Err(error);
        }
        self.missing = Some((error, Instant::now() + AGAIN));
        Ok(Vec::new())
    }

    fn keep(&mut self, after: Seen) -> Look {
        let name = after.what.name.clone();
        let before = self.seen.remove(&name);
        if let Some(due) = before.as_ref().and_then(Seen::due) {
            self.due.remove(&(due, name.clone()));
        }
        if let Some(due) = after.due() {
            self.due.insert((due, name.clone()));
        }
        // An idle name is remembered for as long as the server does, by its fence.
        if !after.is_idle() || after.what.fence.is_some() {
            self.seen.insert(name, after.clone());
        }
        Look { before, after }
    }
}
