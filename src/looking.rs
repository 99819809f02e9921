//! What operators look at, beside the locks: which names there are, and which of them change.
//!
//! Both are hints about a world that goes on meanwhile: a name that is listed may be gone, one that changed may have changed back.
//! [`Relatch::inspect`](crate::Relatch::inspect) tells what is so now.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::backend::{Failure, Later, Look};
use crate::clock::Moment;
use crate::core::{Core, Handle};
use crate::error::{Error, ErrorKind};
use crate::protocol::Name;

/// Which names are meant, as Redis writes patterns: `*` is anything, `?` one character, `[a-f0]` one of these, `[^a-f]` one of no
/// such, and `\` takes what follows it literally.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Char(char),
    One,
    Any,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Pattern {
    pub(crate) fn new(text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            pieces.push(match c {
                // Two in a row say no more than one, and take longer.
                '*' if pieces.last() == Some(&Piece::Any) => continue,
                '*' => Piece::Any,
                '?' => Piece::One,
                '\\' => Piece::Char(rest.next().unwrap_or('\\')),
                '[' => {
                    let negated = rest.next_if_eq(&'^').is_some();
                    let mut ranges = Vec::new();
                    // One that is not closed reaches to the end, as in Redis.
                    while let Some(c) = rest.next() {
                        let first = match c {
                            ']' => break,
                            '\\' => rest.next().unwrap_or('\\'),
                            c => c,
                        };
                        let mut ahead = rest.clone();
                        match (ahead.next(), ahead.next()) {
                            (Some('-'), Some(last)) if last != ']' => {
                                rest = ahead;
                                ranges.push((first.min(last), first.max(last)));
                            }
                            _ => ranges.push((first, first)),
                        }
                    }
                    Piece::Class { negated, ranges }
                }
                c => Piece::Char(c),
            });
        }
        Self(pieces)
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut at, mut piece) = (0, 0);
        // Where the last `*` was, and how far it reaches: only that one needs to reach farther.
        let mut star: Option<(usize, usize)> = None;
        while at < name.len() {
            let fits = match self.0.get(piece) {
                Some(Piece::Any) => {
                    star = Some((piece, at));
                    piece += 1;
                    continue;
                }
                Some(Piece::One) => true,
                Some(Piece::Char(c)) => *c == name[at],
                Some(Piece::Class { negated, ranges }) => {
                    *negated
                        != ranges
                            .iter()
                            .any(|(first, last)| (*first..=*last).contains(&name[at]))
                }
                None => false,
            };
            if fits {
                (piece, at) = (piece + 1, at + 1);
            } else if let Some((any, reach)) = star {
                star = Some((any, reach + 1));
                (piece, at) = (any + 1, reach + 1);
            } else {
                return false;
            }
        }
        self.0[piece..].iter().all(|piece| *piece == Piece::Any)
    }

    /// The texts that a name which matches has, in this order, with anything in between; what is before the first and after the last
    /// is empty if there is nothing.
    pub(crate) fn literals(&self) -> Vec<String> {
        let mut literals = vec![String::new()];
        for piece in &self.0 {
            match piece {
                Piece::Char(c) => literals.last_mut().into_iter().for_each(|text| text.push(*c)),
                _ => literals.push(String::new()),
            }
        }
        literals
    }
}

/// Where a listing goes on. Its default is the beginning.
///
/// What one server gives as a cursor means nothing to another, so it is kept with the link on which it was given: when that has ended, its server
/// is begun anew. And slots move between servers while they are listed: a slot is listed when whoever had it all the while has been gone
/// through. So a name may be told twice, and none is left out that was there all the time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// By slot, whether it is listed; a single server is one. Empty at the beginning.
    pub(crate) listed: Vec<bool>,
    /// The server that is gone through, if one is.
    pub(crate) stand: Option<Stand>,
    /// Slots that were found half moved, and the servers to which, as long as they have not been gone through since.
    pub(crate) moving: BTreeSet<u16>,
    pub(crate) besides: BTreeSet<(String, u16)>,
}

/// How far one server is gone through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stand {
    /// The number of the link on which the server gave `at`.
    pub(crate) link: u64,
    pub(crate) at: u64,
    /// The slots that it has had from the beginning.
    pub(crate) covers: Vec<bool>,
}

/// Some names, and where the next ones begin; `None` at the end.
pub(crate) type Page = (Vec<Name>, Option<Cursor>);

fn look(core: &Core) -> Result<&dyn Look, Error> {
    core.backend
        .look()
        .ok_or_else(|| ErrorKind::Invalid("this backend does not tell which names it has".into()).into())
}

fn failed(failure: Failure) -> Error {
    match failure {
        Failure::No(error) | Failure::Unknown(error) => error,
    }
}

/// Does what can be repeated, for as long as patience lasts.
pub(crate) async fn patiently<'a, T>(
    core: &'a Core,
    step: impl Fn(&'a dyn Look) -> Later<'a, Result<T, Failure>>,
) -> Result<T, Error> {
    patiently_for(core, core.config.patience, step).await
}

/// The same, for another while.
pub(crate) async fn patiently_for<'a, T>(
    core: &'a Core,
    patience: Duration,
    step: impl Fn(&'a dyn Look) -> Later<'a, Result<T, Failure>>,
) -> Result<T, Error> {
    let look = look(core)?;
    let patience = core.clock.now().plus(patience);
    let mut last = None;
    loop {
        let outcome = tokio::select! {
            biased;
            outcome = step(look) => outcome,
            () = core.clock.sleep_until(patience) => {
                return Err(core.backend.trouble().or(last).unwrap_or_else(|| {
                    ErrorKind::Unreachable("the server does not answer".into()).into()
                }));
            }
        };
        match outcome {
            Ok(value) => return Ok(value),
            Err(Failure::No(error)) => return Err(error),
            Err(unknown) => {
                last = Some(failed(unknown));
                core.pause().await;
            }
        }
    }
}

/// The names that are there, page by page. From [`Relatch::names`](crate::Relatch::names).
///
/// A name that is there from the beginning of the listing to its end is told, once; one that comes or goes meanwhile may be.
#[must_use = "a listing asks nobody before its first page"]
pub struct Names {
    client: Arc<Handle>,
    pattern: Pattern,
    from: Option<Cursor>,
    told: HashSet<Name>,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names")
            .field("told", &self.told.len())
            .field("at_end", &self.from.is_none())
            .finish_non_exhaustive()
    }
}

impl Names {
    pub(crate) fn new(client: Arc<Handle>, pattern: &str) -> Self {
        Self {
            client,
            pattern: Pattern::new(pattern),
            from: Some(Cursor::default()),
            told: HashSet::new(),
        }
    }

    /// Whether a name is one that would be listed, if it is there.
    pub fn matches(&self, name: &str) -> bool {
        self.pattern.matches(name)
    }

    /// The next names, in no order; `None` at the end. A page has a few hundred, and may be empty.
    ///
    /// # Errors
    ///
    /// [`is_unreachable`](Error::is_unreachable) when the server does not answer within [`Config::patience`](crate::Config::patience).
    /// In a cluster those that answer are gone through first: then what is missing are the names of the server that the error tells of, or of the slots that
    /// nobody serves, and another call goes on waiting for these. [`is_server`](Error::is_server) when a server does not let us list.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the page is told by the next call.
    pub async fn next_page(&mut self) -> Result<Option<Vec<String>>, Error> {
        let Some(from) = &self.from else { return Ok(None) };
        let pattern = &self.pattern;
        let (names, next) = patiently(&self.client, |look| look.names(pattern, from)).await?;
        self.from = next;
        let mut page = Vec::new();
        for name in names {
            if self.pattern.matches(name.as_str()) && self.told.insert(name.clone()) {
                page.push(name.as_str().to_owned());
            }
        }
        Ok(Some(page))
    }
}

/// What changed. From [`Changes::next`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Changed {
    /// These names did.
    Names(Vec<String>),
    /// Any may have: at the beginning, and whenever the link was made anew. List them.
    Anything,
}

/// The names that changed since a client last looked, told together.
#[derive(Default)]
pub(crate) struct ChangeSet {
    since: Mutex<Since>,
    grew: Notify,
}

#[derive(Default)]
struct Since {
    names: HashSet<Name>,
    anything: bool,
}

impl ChangeSet {
    pub(crate) fn name(&self, name: Name) {
        self.since.lock().names.insert(name);
        self.grew.notify_one();
    }

    pub(crate) fn anything(&self) {
        self.since.lock().anything = true;
        self.grew.notify_one();
    }

    fn take(&self) -> Option<Changed> {
        let Since { names, anything } = std::mem::take(&mut *self.since.lock());
        if anything {
            return Some(Changed::Anything);
        }
        let names: Vec<String> = names.iter().map(|name| name.as_str().to_owned()).collect();
        (!names.is_empty()).then_some(Changed::Names(names))
    }
}

/// How often it is looked whether there still is a link to be told over.
const LOOKS: Duration = Duration::from_secs(1);

/// Tells which names change, as they do. From [`Relatch::changes`](crate::Relatch::changes).
///
/// Changes that follow one another closely are told as one. That a lease ran out changes nothing on a server before somebody looks.
#[must_use = "changes are told to whoever asks for the next"]
pub struct Changes {
    client: Arc<Handle>,
    set: Arc<ChangeSet>,
    relinks: watch::Receiver<u64>,
    begun: bool,
    /// Servers are to be asked (again) to tell.
    stale: bool,
    /// When it is looked next whether there is a link, and whether there was none the last time.
    look_at: Moment,
    troubled: bool,
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

impl Changes {
    pub(crate) fn new(client: Arc<Handle>) -> Self {
        let relinks = client.backend.relinks();
        let look_at = client.clock.now().plus(LOOKS);
        Self {
            client,
            set: Arc::default(),
            relinks,
            begun: false,
            stale: true,
            look_at,
            troubled: false,
        }
    }

    /// What changed since the last call; waits until something has. The first call says [`Changed::Anything`] at once.
    ///
    /// # Errors
    ///
    /// [`is_server`](Error::is_server) when the server does not tell: its rules for this user forbid `CLIENT TRACKING`. List the names from time to time then.
    /// [`is_unreachable`](Error::is_unreachable) when there is no link to it, or to a part of a cluster, whose others go on telling; call again: once there is,
    /// the next says [`Changed::Anything`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what changed is told by the next call.
    pub async fn next(&mut self) -> Result<Changed, Error> {
        let core: &Core = &self.client;
        loop {
            if self.stale || self.relinks.has_changed().unwrap_or(false) {
                // If this is dropped half way, it is still to be done.
                self.stale = true;
                self.relinks.mark_unchanged();
                let set = &self.set;
                let missed = patiently(&self.client, |look| look.changes(set)).await?;
                self.stale = false;
                if missed || !std::mem::replace(&mut self.begun, true) {
                    self.set.anything();
                }
            }
            if self.troubled && core.backend.trouble().is_none() {
                self.troubled = false;
                self.set.anything();
            }
            // Nothing is told over a link that is down, not even that. Others may tell so much that nobody ever waits.
            let now = core.clock.now();
            if self.look_at <= now {
                self.look_at = now.plus(LOOKS);
                if let Some(error) = core.backend.trouble() {
                    self.troubled = true;
                    return Err(error);
                }
            }
            if let Some(changed) = self.set.take() {
                return Ok(changed);
            }
            tokio::select! {
                () = self.set.grew.notified() => {}
                Ok(()) = self.relinks.changed() => self.stale = true,
                () = core.clock.sleep_until(self.look_at) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_redis() {
        for (pattern, yes, no) in [
            ("*", vec!["", "a", "a/b"], vec![]),
            ("a*", vec!["a", "abc"], vec!["", "ba"]),
            ("*a*b", vec!["ab", "xaxaxb", "aab"], vec!["ba", "abx"]),
            ("a?c", vec!["abc", "aäc"], vec!["ac", "abbc"]),
            ("[a-c]x", vec!["ax", "cx"], vec!["dx", "x"]),
            ("[c-a]x", vec!["bx"], vec!["dx"]),
            ("[^a-c]x", vec!["dx"], vec!["ax"]),
            ("[a\\]]", vec!["a", "]"], vec!["b"]),
            ("\\*", vec!["*"], vec!["a"]),
            ("{a}%", vec!["{a}%"], vec!["a"]),
            ("[ab", vec!["a", "b"], vec!["[ab"]),
            ("", vec![""], vec!["a"]),
            ("a\\", vec!["a\\"], vec!["a"]),
            ("***a", vec!["a", "ba"], vec!["ab"]),
        ] {
            let p = Pattern::new(pattern);
            for name in yes {
                assert!(p.matches(name), "{pattern} {name}");
            }
            for name in no {
                assert!(!p.matches(name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn whatever_matches_has_the_literals_in_order() {
        assert_eq!(Pattern::new("a*b?c").literals(), ["a", "b", "c"]);
        assert_eq!(Pattern::new("*[xy]z").literals(), ["", "", "z"]);
        assert_eq!(Pattern::new("plain").literals(), ["plain"]);
    }

    #[test]
    fn a_long_pattern_does_not_take_for_ever() {
        let pattern = Pattern::new(&"*a".repeat(100));
        assert!(!pattern.matches(&"a".repeat(99)));
        assert!(!pattern.matches(&format!("{}b", "a".repeat(500))));
    }

    #[test]
    fn changes_are_told_once_and_together() {
        let set = ChangeSet::default();
        assert_eq!(set.take(), None);
        for name in ["a", "a"] {
            set.name(Name::new(name).expect("a name"));
        }
        assert_eq!(set.take(), Some(Changed::Names(vec!["a".into()])));
        set.anything();
        set.name(Name::new("b").expect("a name"));
        assert_eq!(set.take(), Some(Changed::Anything));
        assert_eq!(set.take(), None);
    }
}
