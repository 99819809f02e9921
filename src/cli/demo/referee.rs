//! The guarded store, and the referee who sees every entry and exit.
//!
//! The store refuses a fence that is smaller than one it has accepted: all that a resource has to do. The referee believes no
//! fence. Whoever has been granted a hold reports it, with the moment until which the guard vouches for it, and is inside
//! until it reports that it leaves, its process ends, or that moment has come. Two who may not be inside together, at a
//! moment for which both guards vouch, are an overlap: it is seen for certain, and a slow report never looks like one.
//! And a write is stale if somebody who entered later has written before it, whatever the fences say.
//!
//! All reports carry the time of one machine's clock: the demo's processes are on one.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use relatch::{Mode, Owner};
use serde::{Deserialize, Serialize, Serializer};

use super::catalogue::{Catalogue, Folder, Tally};
use crate::cli::picture::{Kind, Picture, Whose};

/// A wait worth the name.
const NOTICEABLE: Duration = Duration::from_millis(1);

/// What a worker says to the referee.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    Enter(Entry),
    Leave(u64),
    /// Which folders are there?
    Folders,
    /// A reader's question, asked from inside.
    Question {
        inside: u64,
        folder: String,
    },
    /// A step of a walk: what the walker sees on the disk.
    Step {
        inside: u64,
        folder: String,
        seen: Tally,
    },
    Put {
        inside: u64,
        fence: u64,
        write: Write,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Write {
    All(Catalogue),
    One(String, Tally),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Entered(u64),
    /// The hold had ended before it was reported: nobody is inside.
    TooLate,
    Done,
    Folders(Vec<String>),
    /// And the fence of the last accepted write.
    Folder(Folder, u64),
    /// Was the write accepted?
    Put(bool),
}

/// A hold, reported right after it was granted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) how: How,
    pub(crate) mode: Mode,
    pub(crate) owner: Owner,
    pub(crate) fence: u64,
    pub(crate) depth: u64,
    pub(crate) waited: Duration,
    /// The guard vouches for it until then: microseconds since 1970.
    pub(crate) until_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum How {
    Acquired,
    Upgraded,
    Downgraded,
}

pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

struct Inside {
    process: usize,
    entry: Entry,
    /// What the store had accepted when it entered.
    version: u64,
}

/// What came of the acquisitions in one mode.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Acquisitions {
    pub(crate) acquired: u64,
    /// Of these: into what the same owner already held.
    pub(crate) reentered: u64,
    /// Of these: for long enough to notice, a millisecond.
    pub(crate) waited: u64,
    /// All those who waited, together.
    #[serde(rename = "waited_ms", serialize_with = "as_ms")]
    pub(crate) waiting: Duration,
    #[serde(rename = "longest_wait_ms", serialize_with = "as_ms")]
    pub(crate) longest: Duration,
}

fn as_ms<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(duration.as_secs_f64() * 1000.0)
}

/// Everything that was counted and everything that was wrong.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Counts {
    pub(crate) read: Acquisitions,
    pub(crate) upgradable: Acquisitions,
    pub(crate) write: Acquisitions,
    pub(crate) upgrades: u64,
    pub(crate) downgrades: u64,
    pub(crate) deepest_reentry: u64,
    pub(crate) fences_issued: u64,
    pub(crate) first_fence: u64,
    pub(crate) last_fence: u64,
    pub(crate) writes_accepted: u64,
    pub(crate) stale_writes_refused: u64,
    pub(crate) questions_answered: u64,
    pub(crate) folders_walked: u64,
    /// Of these: found to be other than in the catalogue.
    pub(crate) folders_changed: u64,
    /// Who was inside together and must not have been.
    pub(crate) overlaps: Vec<String>,
    /// Fences that did not grow, and writes wrongly accepted or refused.
    pub(crate) fence_faults: Vec<String>,
}

pub(crate) struct Referee {
    catalogue: Catalogue,
    /// The greatest fence that the store has accepted, and which entry brought it.
    accepted: u64,
    author: u64,
    /// By number, in order of entry.
    inside: BTreeMap<u64, Inside>,
    entries: u64,
    pub(crate) counts: Counts,
    /// Per process: how many acquisitions, and when the last was.
    pub(crate) seen: HashMap<usize, (u64, Instant)>,
    /// Who was inside when, if that is to be shown, and since when, in microseconds since 1970.
    pub(crate) picture: Option<(Picture, u64)>,
}

impl Referee {
    pub(crate) fn new(catalogue: Catalogue) -> Self {
        Self {
            catalogue,
            accepted: 0,
            author: 0,
            inside: BTreeMap::new(),
            entries: 0,
            counts: Counts::default(),
            seen: HashMap::new(),
            picture: None,
        }
    }

    /// Whoever is inside no longer, as of then.
    fn left(&mut self, numbers: impl IntoIterator<Item = u64>, at_us: u64) {
        for number in numbers {
            self.inside.remove(&number);
            if let Some((picture, begun_us)) = &mut self.picture {
                picture.end(&number.to_string(), at_us.saturating_sub(*begun_us));
            }
        }
    }

    fn show(&mut self, number: u64, process: usize, entry: &Entry, now_us: u64) {
        let Some((picture, begun_us)) = &mut self.picture else {
            return;
        };
        let now_us = now_us.saturating_sub(*begun_us);
        let whose = Whose {
            group: "the catalogue".into(),
            chain: number.to_string(),
            owner: entry.owner.to_string(),
            who: format!("worker {process}"),
            label: format!("depth {}, fence {}", entry.depth, entry.fence),
            ..Whose::default()
        };
        if entry.waited >= NOTICEABLE {
            let waited_us = u64::try_from(entry.waited.as_micros()).unwrap_or(u64::MAX);
            picture.add(&whose, Kind::Wait, now_us.saturating_sub(waited_us), now_us);
        }
        picture.begin(&number.to_string(), whose, Kind::Held(entry.mode), now_us);
    }

    pub(crate) fn hear(&mut self, process: usize, ask: Ask) -> Answer {
        match ask {
            Ask::Enter(entry) => self.enter(process, entry),
            Ask::Leave(inside) => {
                self.left([inside], now_us());
                Answer::Done
            }
            Ask::Folders => Answer::Folders(self.catalogue.folders()),
            Ask::Question { inside, folder } => {
                self.counts.questions_answered += 1;
                self.look(inside, &folder)
            }
            Ask::Step { inside, folder, seen } => {
                self.counts.folders_walked += 1;
                let answer = self.look(inside, &folder);
                if matches!(&answer, Answer::Folder(found, _) if found.here != seen) {
                    self.counts.folders_changed += 1;
                }
                answer
            }
            Ask::Put { inside, fence, write } => Answer::Put(self.put(inside, fence, write)),
        }
    }

    /// A process has ended: whatever it was inside of, nobody acts there any more.
    pub(crate) fn gone(&mut self, process: usize) {
        let inside = self.inside.iter().filter(|(_, inside)| inside.process == process);
        let gone: Vec<u64> = inside.map(|(number, _)| *number).collect();
        self.left(gone, now_us());
    }

    fn enter(&mut self, process: usize, entry: Entry) -> Answer {
        let now = now_us();
        // As the lock itself: first drop what has lapsed, then look.
        let lapsed = self
            .inside
            .iter()
            .filter(|(_, inside)| inside.entry.until_us <= now);
        let lapsed: Vec<u64> = lapsed.map(|(number, _)| *number).collect();
        self.left(lapsed, now);
        if entry.until_us <= now {
            return Answer::TooLate;
        }
        self.count(process, &entry);
        for other in self.inside.values() {
            if other.entry.owner != entry.owner && excludes(other.entry.mode, entry.mode) {
                self.counts.overlaps.push(format!(
                    "{} of worker {process} came in while {} of worker {} was inside",
                    entry.mode, other.entry.mode, other.process
                ));
            }
        }
        if entry.mode == Mode::Read && entry.fence < self.accepted {
            self.counts.fence_faults.push(format!(
                "a reader got the fence {}, but reads what was written with {}",
                entry.fence, self.accepted
            ));
        }
        self.entries += 1;
        self.show(self.entries, process, &entry, now);
        let inside = Inside {
            process,
            entry,
            version: self.accepted,
        };
        self.inside.insert(self.entries, inside);
        Answer::Entered(self.entries)
    }

    fn count(&mut self, process: usize, entry: &Entry) {
        let counts = &mut self.counts;
        counts.deepest_reentry = counts.deepest_reentry.max(entry.depth);
        if entry.mode == Mode::Write && entry.depth == 1 {
            if entry.fence <= counts.last_fence {
                counts.fence_faults.push(format!(
                    "the fence {} was issued after {}",
                    entry.fence, counts.last_fence
                ));
            }
            if counts.fences_issued == 0 {
                counts.first_fence = entry.fence;
            }
            counts.fences_issued += 1;
            counts.last_fence = entry.fence;
        }
        match entry.how {
            How::Acquired => {}
            How::Upgraded => counts.upgrades += 1,
            How::Downgraded => {
                counts.downgrades += 1;
                return; // No acquisition: it can't have waited.
            }
        }
        let reentered = self
            .inside
            .values()
            .any(|inside| inside.entry.owner == entry.owner);
        let mode = match entry.mode {
            Mode::Read => &mut counts.read,
            Mode::Upgradable => &mut counts.upgradable,
            Mode::Write => &mut counts.write,
        };
        mode.acquired += 1;
        mode.reentered += u64::from(reentered && entry.how == How::Acquired);
        if entry.waited >= NOTICEABLE {
            mode.waited += 1;
            mode.waiting += entry.waited;
        }
        mode.longest = mode.longest.max(entry.waited);
        let acquired = self.seen.get(&process).map_or(0, |(acquired, _)| *acquired);
        self.seen.insert(process, (acquired + 1, Instant::now()));
    }

    /// What one looks at must not change while one is inside.
    fn look(&mut self, inside: u64, folder: &str) -> Answer {
        if let Some(inside) = self.inside.get(&inside)
            && inside.version != self.accepted
            && inside.entry.until_us > now_us()
        {
            self.counts
                .overlaps
                .push(format!("{folder:?} was written while it was being read"));
        }
        // A folder may have gone away with the last refresh.
        let found = self.catalogue.look(folder).unwrap_or_default();
        Answer::Folder(found, self.accepted)
    }

    /// The store decides by the fence alone; the referee, who knows who entered when, says whether it did well.
    fn put(&mut self, inside: u64, fence: u64, write: Write) -> bool {
        let accept = fence >= self.accepted;
        let stale = inside < self.author;
        if accept == stale {
            let what = if accept { "stale" } else { "good" };
            let did = if accept { "accepted" } else { "refused" };
            self.counts.fence_faults.push(format!(
                "a {what} write with the fence {fence} was {did}, after one with {}",
                self.accepted
            ));
        }
        if !accept {
            self.counts.stale_writes_refused += 1;
            return false;
        }
        self.counts.writes_accepted += 1;
        (self.accepted, self.author) = (fence, inside);
        let owner = self.inside.get(&inside).map(|inside| inside.entry.owner.clone());
        for other in self.inside.values_mut() {
            // What the writer itself holds sees what it writes.
            if Some(&other.entry.owner) == owner.as_ref() {
                other.version = fence;
            }
        }
        match write {
            Write::All(catalogue) => self.catalogue = catalogue,
            Write::One(folder, tally) => self.catalogue.set(&folder, tally),
        }
        true
    }
}

/// May two owners not be inside together in these modes?
fn excludes(a: Mode, b: Mode) -> bool {
    a == Mode::Write || b == Mode::Write || (a == Mode::Upgradable && b == Mode::Upgradable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(mode: Mode, owner: &Owner, fence: u64) -> Ask {
        Ask::Enter(Entry {
            how: How::Acquired,
            mode,
            owner: owner.clone(),
            fence,
            depth: 1,
            waited: Duration::ZERO,
            until_us: now_us() + 60_000_000,
        })
    }

    fn entered(answer: &Answer) -> u64 {
        match answer {
            Answer::Entered(number) => *number,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn two_owners_overlap_where_a_mode_excludes() {
        for (a, b, together) in [
            (Mode::Read, Mode::Read, true),
            (Mode::Read, Mode::Upgradable, true),
            (Mode::Upgradable, Mode::Upgradable, false),
            (Mode::Read, Mode::Write, false),
            (Mode::Write, Mode::Write, false),
        ] {
            let mut referee = Referee::new(Catalogue::default());
            referee.hear(1, entry(a, &Owner::new(), 1));
            referee.hear(2, entry(b, &Owner::new(), 2));
            assert_eq!(referee.counts.overlaps.is_empty(), together, "{a} and {b}");
        }
    }

    #[test]
    fn reentry_is_no_overlap() {
        let mut referee = Referee::new(Catalogue::default());
        let owner = Owner::new();
        referee.hear(1, entry(Mode::Write, &owner, 1));
        referee.hear(1, entry(Mode::Read, &owner, 1));
        assert_eq!(referee.counts.overlaps, Vec::<String>::new());
        assert_eq!(referee.counts.read.reentered, 1);
    }

    #[test]
    fn who_left_lapsed_or_died_is_not_inside() {
        let mut referee = Referee::new(Catalogue::default());
        let first = entered(&referee.hear(1, entry(Mode::Write, &Owner::new(), 1)));
        referee.hear(1, Ask::Leave(first));
        referee.hear(2, entry(Mode::Write, &Owner::new(), 2));
        referee.gone(2);
        let Ask::Enter(mut short) = entry(Mode::Write, &Owner::new(), 3) else {
            unreachable!("it is an entry");
        };
        short.until_us = now_us();
        assert!(matches!(referee.hear(3, Ask::Enter(short)), Answer::TooLate));
        referee.hear(4, entry(Mode::Write, &Owner::new(), 4));
        assert_eq!(referee.counts.overlaps, Vec::<String>::new());
    }

    #[test]
    fn a_stale_write_is_refused_and_a_fence_that_does_not_grow_is_a_fault() {
        let mut referee = Referee::new(Catalogue::default());
        let put = |inside, fence| Ask::Put {
            inside,
            fence,
            write: Write::One(String::new(), Tally::default()),
        };
        let old = entered(&referee.hear(1, entry(Mode::Write, &Owner::new(), 5)));
        referee.hear(1, Ask::Leave(old));
        let new = entered(&referee.hear(2, entry(Mode::Write, &Owner::new(), 6)));
        assert!(matches!(referee.hear(2, put(new, 6)), Answer::Put(true)));
        assert!(matches!(referee.hear(1, put(old, 5)), Answer::Put(false)));
        assert_eq!(referee.counts.stale_writes_refused, 1);
        assert_eq!(referee.counts.fence_faults, Vec::<String>::new());

        // A lock whose fences do not grow lets the store accept what is stale.
        assert!(matches!(referee.hear(1, put(old, 6)), Answer::Put(true)));
        referee.hear(3, entry(Mode::Write, &Owner::new(), 6));
        assert_eq!(referee.counts.fence_faults.len(), 2);
    }
}
