//! Many names, kept up to date: what `events` and `watch` look at.
//!
//! The server tells which names change (client-side tracking), and those are looked at. A lease that runs out changes nothing by itself, so a
//! name is looked at as well when one would. Where the server may not tell, all names are looked at from time to time.
//!
//! What was only there between two looks is not seen. A name that was to be looked at and could not be is looked at again with all the others, soon: no server
//! tells of it twice.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use relatch::{Changed, Changes, Error, Inspection, Names, Relatch};

use super::{Found, all, each};

/// What a look found.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) before: Option<Seen>,
    pub(crate) after: Seen,
    /// Whether every change in between was looked at as it was told: nothing was away, and the server tells.
    pub(crate) told: bool,
    /// The server was away in between, or did not answer. It may even have lost what it knew.
    pub(crate) gap: bool,
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
    /// Names of which something was missed, or may have been, since they were seen.
    blind: BTreeSet<String>,
    /// Of all of them, until all were looked at.
    gap: bool,
    /// Names that could not be looked at the last time, and those of them that nobody was told of.
    refused: BTreeMap<String, Error>,
    untold: Vec<(String, Error)>,
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
            blind: BTreeSet::new(),
            gap: false,
            refused: BTreeMap::new(),
            untold: Vec::new(),
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

    /// Names that can't be looked at, as the server says no to them, and could before the last look.
    pub(crate) fn refused(&mut self) -> Vec<(String, Error)> {
        std::mem::take(&mut self.untold)
    }

    /// One of those that can't be looked at now, if there are any.
    pub(crate) fn refused_still(&self) -> Option<(&String, &Error)> {
        self.refused.first_key_value()
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
                        Ok(changed) => {
                            // The link was made anew. Where one of several does not answer, it is that one's, and it is known which names are.
                            let anew = self.begun && self.missing.is_none();
                            self.gap |= anew && matches!(changed, Changed::Anything);
                            Some(changed)
                        }
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
        let (found, asked) = match changed {
            Some(Changed::Names(names)) => {
                let wanted = names.into_iter().filter(|name| self.wanted.matches(name));
                let names: Vec<String> = wanted.collect();
                (
                    each(&self.relatch, names.clone(), self.missing()).await?,
                    Some(names),
                )
            }
            None => {
                let mut names = Vec::new();
                while self.due.first().is_some_and(|(due, _)| *due <= at) {
                    names.extend(self.due.pop_first().map(|(_, name)| name));
                }
                (
                    each(&self.relatch, names.clone(), self.missing()).await?,
                    Some(names),
                )
            }
            Some(_) => {
                let mut found = match all(&self.relatch, &self.pattern, self.missing()).await {
                    Err(error) if error.is_unreachable() => return self.lacks(error),
                    found => found?,
                };
                // Those that are not listed any more have no key: they are idle now. Or their server does not answer: then they are as they were.
                let refused = found.refused.iter().map(|(name, _)| name.as_str());
                let listed: BTreeSet<&str> =
                    found.seen.iter().map(|seen| &*seen.name).chain(refused).collect();
                let gone = self.seen.keys().filter(|name| !listed.contains(name.as_str()));
                let gone = gone.cloned().collect();
                found.and(&self.relatch, gone).await?;
                self.begun = true;
                (found, None)
            }
        };
        let whole = asked.is_none();
        // Where a part does not answer it is the names of that part of which something was missed. And a server that tells of a name is there.
        let gap = self.gap && whole && found.missing.is_none();
        self.miss(&found, asked);
        match found.missing {
            // What changes meanwhile does not put that off.
            Some(error) if whole || self.missing.is_none() => {
                self.missing = Some((error, Instant::now() + AGAIN));
            }
            None if whole => self.missing = None,
            _ => {}
        }
        if whole && self.missing.is_none() {
            // Those that are not listed any more have no key that anybody could say no to.
            let refused: HashSet<&str> = found.refused.iter().map(|(name, _)| name.as_str()).collect();
            self.refused.retain(|name, _| refused.contains(name.as_str()));
        }
        for (name, error) in found.refused {
            if self.refused.insert(name.clone(), error.clone()).is_none() {
                self.untold.push((name, error));
            }
        }
        let looks = found
            .seen
            .into_iter()
            .map(|what| self.keep(Seen { at, what }, gap))
            .collect();
        if whole {
            self.gap = false;
        }
        Ok(looks)
    }

    /// Those that were asked for, all if none are named, and are not among what was found.
    fn miss(&mut self, found: &Found, asked: Option<Vec<String>>) {
        let seen: HashSet<&str> = found.seen.iter().map(|seen| seen.name.as_str()).collect();
        let asked = asked.unwrap_or_else(|| self.seen.keys().cloned().collect());
        let missed = asked.into_iter().filter(|name| !seen.contains(name.as_str()));
        self.blind.extend(missed);
    }

    /// Nobody answers.
    fn lacks(&mut self, error: Error) -> Result<Vec<Look>, Error> {
        if !self.begun {
            return Err(error);
        }
        self.gap = true;
        self.missing = Some((error, Instant::now() + AGAIN));
        Ok(Vec::new())
    }

    fn keep(&mut self, after: Seen, gap: bool) -> Look {
        let name = after.what.name.clone();
        self.refused.remove(&name);
        let gap = self.blind.remove(&name) || gap;
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
        Look {
            before,
            after,
            told: self.changes.is_some() && !gap,
            gap,
        }
    }
}
