//! Judges a run by its history, after it has ended.
//!
//! Nothing here is judged by how long something took: a process that was kept from running for a while must not look guilty. All
//! that counts is which moments certainly were before which others.
//!
//! | claim | what would break it |
//! |---|---|
//! | holds that exclude each other do not overlap | two guards of different owners that both said `is_held()` at one moment |
//! | a guard that is lost stays lost | `is_held()` after it said no |
//! | fences strictly grow | a write hold that was asked for after another was granted, with a fence that is not larger; two with the same |
//! | no update is lost where fences are checked | a value that was acknowledged and that the last one does not build on |
//! | the checked register and log are linearizable | see `linear.rs` |
//! | the checked log has each entry that was acknowledged once, in the order of fences | |
//! | every request is answered | one that never ended, though its process lived on |
//! | everybody gets in when the faults have ended | a task whose last acquisition failed |
//! | errors are those that the faults explain | any other |

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use relatch::Mode;

use super::history::{Answer, At, Event, Id, Keeper, Record, Request, Resource};
use super::keeper::{Books, Kept};
use super::linear::{Operation, Step, linearizable};

/// What became of a hold that was asked for.
#[derive(Clone, Debug)]
pub struct Hold {
    pub process: u32,
    pub resource: Resource,
    pub mode: Mode,
    pub owner: Id,
    pub asked: At,
    pub got: Option<(At, u64)>,
    /// The last moment at which it certainly was held.
    pub held: Option<At>,
    pub lost: Option<At>,
    pub failed: Option<String>,
    pub last: bool,
}

/// How the updates of one keeper fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Updates {
    pub acknowledged: u64,
    pub lost: u64,
    pub refused: u64,
    /// Both of its resources are.
    pub linearizable: bool,
}

#[derive(Debug, Default)]
pub struct Judgement {
    pub violations: Vec<String>,
    pub requests: u64,
    pub holds: BTreeMap<Mode, u64>,
    pub lost_holds: u64,
    pub failures: BTreeMap<String, u64>,
    pub calls: u64,
    pub checked: Updates,
    pub unchecked: Updates,
    /// How often two holds overlapped that exclude each other.
    pub overlaps: u64,
    /// How often a reader that was still held saw the checked resource change.
    pub changed_under_reader: u64,
    /// How long each granted hold was waited for, in order.
    pub waits: Vec<Duration>,
    /// The same for those asked for after the last fault.
    pub last_waits: Vec<Duration>,
}

/// What must be known beside the history.
pub struct Circumstances {
    pub begun: At,
    /// When the server lost what it had acknowledged: from when it was killed until it was there again, empty.
    pub losses: Vec<(At, At)>,
    /// The processes that were killed. All others ended by themselves.
    pub killed: HashSet<u32>,
}

impl Circumstances {
    /// May the server have forgotten the first hold when it granted the second?
    fn forgot_between(&self, first: &Hold, second: &Hold) -> bool {
        let granted = second.got.map_or(At(u64::MAX), |(got, _)| got);
        self.losses
            .iter()
            .any(|(from, to)| *from < granted && first.asked < *to)
    }
}

pub fn judge(books: &Books, circumstances: &Circumstances) -> Judgement {
    let mut judgement = Judgement::default();
    let holds = holds(&books.history, &mut judgement);
    judgement.requests = holds.len() as u64;
    for hold in holds.values() {
        if let Some((got, _)) = hold.got {
            *judgement.holds.entry(hold.mode).or_default() += 1;
            let wait = got.since(hold.asked);
            match hold.last {
                true => judgement.last_waits.push(wait),
                false => judgement.waits.push(wait),
            }
        }
        judgement.lost_holds += u64::from(hold.lost.is_some());
        if let Some(why) = &hold.failed {
            *judgement.failures.entry(why.clone()).or_default() += 1;
        }
    }
    judgement.waits.sort_unstable();
    judgement.last_waits.sort_unstable();

    answered(&holds, circumstances, &mut judgement);
    for resource in Resource::ALL {
        exclusion(resource, &holds, circumstances, &mut judgement);
        fences(resource, &holds, circumstances, &mut judgement);
    }
    let calls = calls(&books.history);
    judgement.calls = calls.len() as u64;
    judgement.changed_under_reader = changed_under_readers(&calls, &holds);
    for keeper in Keeper::ALL {
        let mut updates = Updates {
            linearizable: true,
            ..Updates::default()
        };
        for resource in Resource::ALL {
            let kept = books.kept(keeper, resource);
            let calls: Vec<&Call> = calls
                .values()
                .filter(|call| (call.keeper, call.resource) == (keeper, resource))
                .collect();
            count(&calls, &kept, resource, &mut updates);
            let order = in_order(&calls, resource);
            updates.linearizable &= order.is_ok();
            if keeper == Keeper::Checked {
                if let Err(operation) = order {
                    judgement.violations.push(format!(
                        "the checked {} is not linearizable: no order is left when {operation:?} returns, {:?} after the beginning",
                        resource.name(),
                        operation.returned.unwrap_or_default().since(circumstances.begun),
                    ));
                }
                if resource == Resource::Log {
                    log_is_whole(&calls, &kept, &mut judgement);
                }
            }
        }
        match keeper {
            Keeper::Checked => judgement.checked = updates,
            Keeper::Unchecked => judgement.unchecked = updates,
        }
    }
    if judgement.checked.lost > 0 {
        let lost = judgement.checked.lost;
        judgement
            .violations
            .push(format!("{lost} updates were lost although fences were checked"));
    }
    judgement
}

// -- holds ------------------------------------------------------------------------------------------------------

fn holds(history: &[Record], judgement: &mut Judgement) -> BTreeMap<Id, Hold> {
    let mut holds: BTreeMap<Id, Hold> = BTreeMap::new();
    for Record { process, at, event } in history {
        let (id, at) = match event {
            Event::Asks {
                hold,
                resource,
                mode,
                owner,
                last,
            } => {
                let asked = Hold {
                    process: *process,
                    resource: *resource,
                    mode: *mode,
                    owner: *owner,
                    asked: *at,
                    got: None,
                    held: None,
                    lost: None,
                    failed: None,
                    last: *last,
                };
                holds.insert(*hold, asked);
                continue;
            }
            Event::Gets { hold, .. }
            | Event::Fails { hold, .. }
            | Event::Holds { hold }
            | Event::Loses { hold } => (*hold, *at),
            Event::Calls { .. } | Event::Hears { .. } => continue,
        };
        let Some(hold) = holds.get_mut(&id) else {
            judgement.violations.push(format!("nobody asked for hold {id}"));
            continue;
        };
        match event {
            Event::Gets { fence, .. } => hold.got = Some((at, *fence)),
            Event::Fails { why, .. } => hold.failed = Some(why.clone()),
            Event::Holds { .. } => {
                if hold.lost.is_some() {
                    judgement
                        .violations
                        .push(format!("a guard that was lost said that it is held: {hold:?}"));
                }
                hold.held = Some(at);
            }
            Event::Loses { .. } => hold.lost = Some(hold.lost.unwrap_or(at)),
            Event::Asks { .. } | Event::Calls { .. } | Event::Hears { .. } => {}
        }
    }
    holds
}

/// Every request came to an end, and to one that the faults explain; the last of each task to the best.
fn answered(holds: &BTreeMap<Id, Hold>, circumstances: &Circumstances, judgement: &mut Judgement) {
    let mut lasts: BTreeMap<u32, u64> = holds.values().map(|hold| (hold.process, 0)).collect();
    for hold in holds.values() {
        match &hold.failed {
            Some(why) if hold.last || !EXPLAINED.contains(&why.as_str()) => {
                judgement
                    .violations
                    .push(format!("failed with {why:?}: {hold:?}"));
            }
            None if hold.got.is_none() && !circumstances.killed.contains(&hold.process) => {
                judgement.violations.push(format!("never ended: {hold:?}"));
            }
            _ => {}
        }
        if hold.last && hold.got.is_some() {
            *lasts.entry(hold.process).or_default() += 1;
        }
    }
    for (process, got_in) in lasts {
        if got_in == 0 && !circumstances.killed.contains(&process) {
            judgement.violations.push(format!(
                "process {process} did not get in when the faults had ended"
            ));
        }
    }
}

/// How a request may fail under faults. `unreachable`: before the timeout that it had. `lost`: the hold that was to become another one.
const EXPLAINED: [&str; 5] = ["timeout", "busy", "unreachable", "abandoned", "lost"];

fn excludes(a: Mode, b: Mode) -> bool {
    a == Mode::Write || b == Mode::Write || (a == Mode::Upgradable && b == Mode::Upgradable)
}

fn exclusion(
    resource: Resource,
    holds: &BTreeMap<Id, Hold>,
    circumstances: &Circumstances,
    judgement: &mut Judgement,
) {
    let mut spans: Vec<(At, At, &Hold)> = holds
        .values()
        .filter(|hold| hold.resource == resource)
        .filter_map(|hold| Some((hold.got?.0, hold.held?, hold)))
        // It was looked at before it was known to be granted: no time at all.
        .filter(|(from, to, _)| from < to)
        .collect();
    spans.sort_unstable_by_key(|(from, to, _)| (*from, *to));
    let mut open: Vec<(At, At, &Hold)> = Vec::new();
    for span in spans {
        open.retain(|(_, to, _)| *to > span.0);
        for other in &open {
            if other.2.owner != span.2.owner && excludes(other.2.mode, span.2.mode) {
                judgement.overlaps += 1;
                if !circumstances.forgot_between(other.2, span.2) {
                    judgement.violations.push(format!(
                        "two holds on the {} that exclude each other were both held {:?} after the beginning: {:?} and {:?}",
                        resource.name(),
                        span.0.since(circumstances.begun),
                        other.2,
                        span.2,
                    ));
                }
            }
        }
        open.push(span);
    }
}

fn fences(
    resource: Resource,
    holds: &BTreeMap<Id, Hold>,
    circumstances: &Circumstances,
    judgement: &mut Judgement,
) {
    let of = |mode: Mode| {
        let mut granted: Vec<(At, u64, &Hold)> = holds
            .values()
            .filter(|hold| hold.resource == resource && hold.mode == mode)
            .filter_map(|hold| hold.got.map(|(at, fence)| (at, fence, hold)))
            .collect();
        granted.sort_unstable_by_key(|(at, ..)| *at);
        granted
    };
    let (writes, reads) = (of(Mode::Write), of(Mode::Read));
    let mut violation = |what: &str, older: &Hold, newer: &Hold| {
        judgement
            .violations
            .push(format!("{what}: {older:?} and then {newer:?}"));
    };

    let mut by_fence: HashMap<u64, &Hold> = HashMap::new();
    for (_, fence, hold) in &writes {
        if let Some(other) = by_fence.insert(*fence, hold) {
            violation("two write holds with one fence", other, hold);
        }
    }
    let (of_writes, of_reads) = (Largest::of(&writes), Largest::of(&reads));
    for (_, fence, hold) in &writes {
        if let Some(other) = of_writes.before(hold.asked).filter(|(other, _)| other >= fence) {
            violation("a write hold's fence did not grow", other.1, hold);
        }
        if let Some(other) = of_reads.before(hold.asked).filter(|(other, _)| other >= fence) {
            violation(
                "a write hold's fence is not larger than a read's before it",
                other.1,
                hold,
            );
        }
    }
    for (_, fence, hold) in &reads {
        if let Some(other) = of_writes.before(hold.asked).filter(|(other, _)| other > fence) {
            violation(
                "a read hold's fence is smaller than a write's before it",
                other.1,
                hold,
            );
        }
    }
    // Where holds exclude each other, those that were held at all stand in the order in which they were seen.
    if circumstances.losses.is_empty() {
        let held = writes
            .iter()
            .filter(|(at, _, hold)| hold.held.is_some_and(|held| held > *at));
        let held: Vec<_> = held.collect();
        for pair in held.windows(2) {
            if pair[0].1 >= pair[1].1 {
                violation("fences do not grow in the order of holds", pair[0].2, pair[1].2);
            }
        }
    }
}

/// The largest fence that was granted before a moment.
struct Largest<'a>(Vec<(At, (u64, &'a Hold))>);

impl<'a> Largest<'a> {
    /// From holds in the order in which they were granted.
    fn of(granted: &[(At, u64, &'a Hold)]) -> Self {
        let mut largest: Vec<(At, (u64, &'a Hold))> = Vec::with_capacity(granted.len());
        for (at, fence, hold) in granted {
            let so_far = match largest.last() {
                Some((_, before)) if before.0 >= *fence => *before,
                _ => (*fence, *hold),
            };
            largest.push((*at, so_far));
        }
        Self(largest)
    }

    fn before(&self, moment: At) -> Option<(u64, &'a Hold)> {
        let count = self.0.partition_point(|(at, _)| *at < moment);
        count.checked_sub(1).map(|last| self.0[last].1)
    }
}

// -- what was kept ----------------------------------------------------------------------------------------------

/// A request to a keeper, and its answer if one was heard.
#[derive(Clone, Debug)]
struct Call {
    id: Id,
    hold: Id,
    resource: Resource,
    keeper: Keeper,
    request: Request,
    called: At,
    heard: Option<(At, Answer)>,
}

fn calls(history: &[Record]) -> BTreeMap<Id, Call> {
    let mut calls = BTreeMap::new();
    for Record { at, event, .. } in history {
        match *event {
            Event::Calls {
                call,
                resource,
                keeper,
                hold,
                request,
                ..
            } => {
                let made = Call {
                    id: call,
                    hold,
                    resource,
                    keeper,
                    request,
                    called: *at,
                    heard: None,
                };
                calls.insert(call, made);
            }
            Event::Hears { call, answer } => {
                if let Some(call) = calls.get_mut(&call) {
                    call.heard = Some((*at, answer));
                }
            }
            _ => {}
        }
    }
    calls
}

/// What was acknowledged of a resource, and how much of that is not in what is there at the end.
fn count(calls: &[&Call], kept: &Kept, resource: Resource, updates: &mut Updates) {
    let there: HashSet<Id> = match resource {
        Resource::Log => kept.entries.iter().map(|entry| entry.value).collect(),
        // What the last value builds on, back to the beginning.
        Resource::Register => {
            let bases: HashMap<Id, u64> = kept
                .writes
                .iter()
                .map(|write| (write.value, write.base))
                .collect();
            let mut chain = HashSet::new();
            let mut value = kept.value;
            while let Some(base) = bases.get(&value) {
                chain.insert(value);
                value = *base;
            }
            chain
        }
    };
    for call in calls {
        if let (Request::Put { value, .. }, Some((_, answer))) = (call.request, call.heard) {
            match answer {
                Answer::Done => {
                    updates.acknowledged += 1;
                    updates.lost += u64::from(!there.contains(&value));
                }
                Answer::Stale => updates.refused += 1,
                Answer::Is(_) => {}
            }
        }
    }
}

/// An update counts as one operation, from its read to its write; a log as a register of its length.
fn in_order(calls: &[&Call], resource: Resource) -> Result<(), Operation> {
    let gets: HashMap<Id, &Call> = calls
        .iter()
        .filter(|call| call.request == Request::Get)
        .map(|call| (call.id, *call))
        .collect();
    let mut operations = Vec::new();
    let mut swapped = HashSet::new();
    for call in calls {
        let Request::Put { after, base, value } = call.request else {
            continue;
        };
        let returned = match call.heard {
            Some((_, Answer::Stale)) => continue,
            Some((at, _)) => Some(at),
            None => None,
        };
        let to = match resource {
            Resource::Register => value,
            Resource::Log => base + 1,
        };
        let called = gets.get(&after).map_or(call.called, |get| get.called);
        swapped.extend(returned.map(|_| after));
        operations.push(Operation {
            step: Step::Swap(base, to),
            called,
            returned,
        });
    }
    for get in gets.values() {
        if let (Some((at, Answer::Is(value))), false) = (get.heard, swapped.contains(&get.id)) {
            operations.push(Operation {
                step: Step::Read(value),
                called: get.called,
                returned: Some(at),
            });
        }
    }
    linearizable(0, &operations).map_err(|index| operations[index])
}

/// The checked log has what was acknowledged, once, in the order of fences, and nothing that nobody wrote.
fn log_is_whole(calls: &[&Call], kept: &Kept, judgement: &mut Judgement) {
    let written: HashSet<Id> = calls
        .iter()
        .filter_map(|call| match call.request {
            Request::Put { value, .. } => Some(value),
            Request::Get => None,
        })
        .collect();
    let mut seen = BTreeSet::new();
    for entry in &kept.entries {
        if !seen.insert(entry.value) {
            judgement.violations.push(format!("twice in the log: {entry:?}"));
        }
        if !written.contains(&entry.value) {
            judgement
                .violations
                .push(format!("nobody wrote this in the log: {entry:?}"));
        }
    }
    for pair in kept.entries.windows(2) {
        if pair[0].fence >= pair[1].fence {
            judgement.violations.push(format!(
                "the log is not in the order of fences: {:?} before {:?}",
                pair[0], pair[1]
            ));
        }
    }
}

/// Two reads of the checked resource under one read hold that was held all along, with different answers. A late write may do that, as fences
/// do not guard reads: it is counted and not judged.
fn changed_under_readers(calls: &BTreeMap<Id, Call>, holds: &BTreeMap<Id, Hold>) -> u64 {
    let mut reads: HashMap<Id, u64> = HashMap::new();
    let mut changed = 0;
    for call in calls.values() {
        if let (Keeper::Checked, Request::Get, Some((at, Answer::Is(value)))) =
            (call.keeper, call.request, call.heard)
            && let Some(hold) = holds.get(&call.hold)
            && hold.mode != Mode::Write
            && hold.held.is_some_and(|held| at <= held)
            && reads
                .insert(call.hold, value)
                .is_some_and(|before| before != value)
        {
            changed += 1;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history as it is written, one moment per record.
    #[derive(Default)]
    struct Tale {
        books: Books,
        now: u64,
        next: Id,
    }

    impl Tale {
        fn at(&mut self, process: u32, event: Event) -> Option<Answer> {
            self.now += 1;
            let at = At(self.now);
            self.books.take(Record { process, at, event })
        }

        fn id(&mut self) -> Id {
            self.next += 1;
            self.next
        }

        fn asks(&mut self, process: u32, mode: Mode) -> Id {
            let hold = self.id();
            let asks = Event::Asks {
                hold,
                resource: Resource::Log,
                mode,
                owner: hold,
                last: true,
            };
            self.at(process, asks);
            hold
        }

        fn gets(&mut self, process: u32, hold: Id, fence: u64) {
            self.at(process, Event::Gets { hold, fence });
        }

        fn holds(&mut self, process: u32, hold: Id) {
            self.at(process, Event::Holds { hold });
        }

        fn held(&mut self, process: u32, mode: Mode, fence: u64) -> Id {
            let hold = self.asks(process, mode);
            self.gets(process, hold, fence);
            self.holds(process, hold);
            hold
        }

        fn call(
            &mut self,
            process: u32,
            hold: Id,
            fence: u64,
            keeper: Keeper,
            request: Request,
        ) -> (Id, Answer) {
            let call = self.id();
            let calls = Event::Calls {
                call,
                resource: Resource::Log,
                keeper,
                fence,
                hold,
                request,
            };
            let answer = self.at(process, calls).expect("it is a request");
            self.at(process, Event::Hears { call, answer });
            (call, answer)
        }

        fn get(&mut self, process: u32, hold: Id, fence: u64, keeper: Keeper) -> (Id, u64) {
            match self.call(process, hold, fence, keeper, Request::Get) {
                (call, Answer::Is(value)) => (call, value),
                other => panic!("{other:?}"),
            }
        }

        fn put(
            &mut self,
            process: u32,
            hold: Id,
            fence: u64,
            keeper: Keeper,
            (after, base): (Id, u64),
        ) -> Answer {
            let value = self.id();
            self.call(process, hold, fence, keeper, Request::Put { after, base, value })
                .1
        }

        fn judge(&self) -> Judgement {
            self.judge_on(&[], &[])
        }

        fn judge_on(&self, losses: &[(At, At)], killed: &[u32]) -> Judgement {
            let circumstances = Circumstances {
                begun: At(0),
                losses: losses.to_vec(),
                killed: killed.iter().copied().collect(),
            };
            judge(&self.books, &circumstances)
        }
    }

    #[track_caller]
    fn found(judgement: &Judgement, what: &str) {
        assert!(
            judgement
                .violations
                .iter()
                .any(|violation| violation.contains(what)),
            "{what:?} is not among {:?}",
            judgement.violations
        );
    }

    #[test]
    fn a_proper_history_is_found_proper() {
        let mut tale = Tale::default();
        for fence in 1..5 {
            let hold = tale.held(1, Mode::Write, fence);
            for keeper in Keeper::ALL {
                let read = tale.get(1, hold, fence, keeper);
                assert_eq!(tale.put(1, hold, fence, keeper, read), Answer::Done);
            }
            tale.holds(1, hold);
            let (a, b) = (tale.held(1, Mode::Read, fence), tale.held(2, Mode::Read, fence));
            tale.get(2, b, fence, Keeper::Checked);
            tale.holds(1, a);
            tale.holds(2, b);
        }
        let judgement = tale.judge();
        assert_eq!(judgement.violations, Vec::<String>::new());
        assert_eq!(judgement.checked.acknowledged, 4);
        assert_eq!((judgement.checked.lost, judgement.unchecked.lost), (0, 0));
        assert!(judgement.checked.linearizable && judgement.unchecked.linearizable);
        assert_eq!(judgement.holds[&Mode::Read], 8);
    }

    /// One that was stopped writes over what came after it: lost where nobody checks, refused where fences are checked.
    #[test]
    fn a_late_write_is_a_lost_update_without_fences_and_a_refused_one_with() {
        let mut tale = Tale::default();
        let late = tale.held(1, Mode::Write, 1);
        let read = Keeper::ALL.map(|keeper| tale.get(1, late, 1, keeper));
        let next = tale.held(2, Mode::Write, 2);
        for keeper in Keeper::ALL {
            let read = tale.get(2, next, 2, keeper);
            assert_eq!(tale.put(2, next, 2, keeper, read), Answer::Done);
        }
        assert_eq!(tale.put(1, late, 1, Keeper::Checked, read[0]), Answer::Stale);
        assert_eq!(tale.put(1, late, 1, Keeper::Unchecked, read[1]), Answer::Done);
        let judgement = tale.judge();
        assert_eq!(judgement.violations, Vec::<String>::new());
        let lost = |updates: Updates| {
            (
                updates.acknowledged,
                updates.lost,
                updates.refused,
                updates.linearizable,
            )
        };
        assert_eq!(lost(judgement.checked), (1, 0, 1, true));
        assert_eq!(lost(judgement.unchecked), (2, 1, 0, false));
    }

    #[test]
    fn a_lost_update_is_found_where_fences_were_checked_but_did_not_grow() {
        let mut tale = Tale::default();
        let (a, b) = (tale.held(1, Mode::Write, 1), tale.held(2, Mode::Write, 1));
        let read = [
            tale.get(1, a, 1, Keeper::Checked),
            tale.get(2, b, 1, Keeper::Checked),
        ];
        tale.put(2, b, 1, Keeper::Checked, read[1]);
        tale.put(1, a, 1, Keeper::Checked, read[0]);
        let judgement = tale.judge();
        found(&judgement, "1 updates were lost");
        found(&judgement, "is not linearizable");
        found(&judgement, "two write holds with one fence");
    }

    #[test]
    fn holds_that_overlap_are_found() {
        for (first, second, wrong) in [
            (Mode::Write, Mode::Write, true),
            (Mode::Read, Mode::Write, true),
            (Mode::Write, Mode::Upgradable, true),
            (Mode::Upgradable, Mode::Upgradable, true),
            (Mode::Upgradable, Mode::Read, false),
            (Mode::Read, Mode::Read, false),
        ] {
            let mut tale = Tale::default();
            let a = tale.held(1, first, 1);
            let b = tale.held(2, second, 2);
            tale.holds(1, a);
            tale.holds(2, b);
            let judgement = tale.judge();
            assert_eq!(judgement.overlaps, u64::from(wrong), "{first} {second}");
            assert_eq!(
                !judgement.violations.is_empty(),
                wrong,
                "{:?}",
                judgement.violations
            );
            // A server that forgot the first before it granted the second is known to do that; one that forgot at another time has no
            // excuse.
            let always = (At(0), At(u64::MAX));
            assert!(tale.judge_on(&[always], &[]).violations.is_empty());
            let before = (At(0), At(0));
            assert_eq!(!tale.judge_on(&[before], &[]).violations.is_empty(), wrong);
            let after = (At(u64::MAX), At(u64::MAX));
            assert_eq!(!tale.judge_on(&[after], &[]).violations.is_empty(), wrong);
        }
    }

    #[test]
    fn holds_that_may_have_followed_each_other_are_not_accused() {
        let mut tale = Tale::default();
        let a = tale.held(1, Mode::Write, 1);
        let b = tale.held(2, Mode::Write, 2);
        tale.at(1, Event::Loses { hold: a });
        tale.holds(2, b);
        assert_eq!(tale.judge().violations, Vec::<String>::new());
    }

    #[test]
    fn a_guard_that_comes_back_to_life_is_found() {
        let mut tale = Tale::default();
        let a = tale.held(1, Mode::Write, 1);
        tale.at(1, Event::Loses { hold: a });
        tale.holds(1, a);
        found(&tale.judge(), "a guard that was lost said");
    }

    #[test]
    fn fences_that_do_not_grow_are_found() {
        let mut tale = Tale::default();
        tale.held(1, Mode::Write, 5);
        tale.held(1, Mode::Write, 4);
        found(
            &tale.judge_on(&[(At(0), At(u64::MAX))], &[]),
            "a write hold's fence did not grow",
        );

        let mut tale = Tale::default();
        tale.held(1, Mode::Write, 5);
        tale.held(1, Mode::Read, 4);
        found(&tale.judge(), "a read hold's fence is smaller");

        let mut tale = Tale::default();
        tale.held(1, Mode::Read, 5);
        tale.held(1, Mode::Write, 5);
        found(&tale.judge(), "not larger than a read's");

        // Asked for at the same time, but held one after the other.
        let mut tale = Tale::default();
        let (a, b) = (tale.asks(1, Mode::Write), tale.asks(2, Mode::Write));
        tale.gets(1, a, 5);
        tale.holds(1, a);
        tale.gets(2, b, 4);
        tale.holds(2, b);
        found(&tale.judge(), "in the order of holds");
    }

    #[test]
    fn a_request_without_an_end_is_found_unless_its_process_was_killed() {
        let mut tale = Tale::default();
        tale.held(1, Mode::Read, 1);
        tale.asks(1, Mode::Write);
        found(&tale.judge(), "never ended");
        assert!(tale.judge_on(&[], &[1]).violations.is_empty());
    }

    #[test]
    fn a_failure_that_no_fault_explains_is_found() {
        let mut tale = Tale::default();
        let hold = tale.asks(1, Mode::Write);
        let why = "the server answered something else".to_owned();
        tale.at(1, Event::Fails { hold, why });
        let judgement = tale.judge();
        found(&judgement, "failed with");
        found(&judgement, "did not get in");
    }

    #[test]
    fn a_value_that_changes_under_a_reader_is_counted() {
        let mut tale = Tale::default();
        let writer = tale.held(1, Mode::Write, 1);
        let read = tale.get(1, writer, 1, Keeper::Checked);
        let reader = tale.held(2, Mode::Read, 1);
        tale.get(2, reader, 1, Keeper::Checked);
        assert_eq!(tale.put(1, writer, 1, Keeper::Checked, read), Answer::Done);
        tale.get(2, reader, 1, Keeper::Checked);
        tale.holds(2, reader);
        let judgement = tale.judge();
        assert_eq!(judgement.violations, Vec::<String>::new());
        assert_eq!(judgement.changed_under_reader, 1);
    }
}
