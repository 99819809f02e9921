//! Owners that wait for each other in a circle: over several names, from several processes.
//!
//! The graph is one of requests in line. A request waits for what stands ahead of it in its line, and for every owner that holds its name in a
//! mode that excludes it; and such an owner is taken to keep what it holds for as long as any request of its own waits. That is what an owner
//! is here: one course of work. (Two branches of a `join!` under one owner may hold and wait independently of each other; a circle over such an owner may yet
//! dissolve by itself.)
//!
//! Looks at several names are not made at one moment. But a request has one id for as long as it waits, and one for as long as it holds: **what stands
//! in two looks, one after the other, stood in between**, so a circle is only told when all of it was seen twice.
//!
//! The rules of who is in whose way are those of [`crate::state`], read off a [`Snapshot`]; a test holds them against the machine.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use serde::Serialize;

use crate::client::{Waiting, ask};
use crate::clock::Moment;
use crate::core::Core;
use crate::error::{Error, Holder};
use crate::lock::{holders, waiters};
use crate::looking::{Cursor, patiently_for};
use crate::protocol::{HeldRow, Mode, Name, Operation, OwnerId, Reply, RequestId, Snapshot, WaitRow};

/// Owners that wait for each other, so that none of them gets on unless one gives up: each waits for the next, and the last for the first.
///
/// From [`Relatch::deadlocks`](crate::Relatch::deadlocks), or from an error of a client that was told to
/// [refuse](crate::Builder::refuse_deadlocks) what would close one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Circle {
    /// The waits, of which the last is the youngest: the one that closed the circle.
    pub waits: Vec<CircleWait>,
}

/// What [`Relatch::deadlocks`](crate::Relatch::deadlocks) found. Iterates over its circles.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Deadlocks {
    /// Each was there when it was looked at.
    pub circles: Vec<Circle>,
    /// Names of which not all holds and requests were looked at, as there are more than 1,000: there may be circles over the rest of them.
    pub cut: Vec<String>,
}

impl IntoIterator for Deadlocks {
    type Item = Circle;
    type IntoIter = std::vec::IntoIter<Circle>;

    fn into_iter(self) -> Self::IntoIter {
        self.circles.into_iter()
    }
}

/// One wait of a [`Circle`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CircleWait {
    /// What it waits for.
    pub name: String,
    /// Who waits.
    pub waiting: Waiting,
    /// What the next in the circle holds of that name; `None` where the next only stands ahead in line.
    pub holder: Option<Holder>,
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "";
        for wait in &self.waits {
            let CircleWait {
                name,
                waiting,
                holder,
            } = wait;
            write!(f, "{before}owner {}", waiting.owner)?;
            if let Some(client) = &waiting.client {
                write!(f, " ({client})")?;
            }
            if let Some(label) = &waiting.label {
                write!(f, ", {label:?},")?;
            }
            write!(f, " waits to have {name:?} ({})", waiting.mode)?;
            match holder {
                Some(holder) => write!(f, ", held ({}) by", holder.mode)?,
                None => f.write_str(", behind")?,
            }
            before = " ";
        }
        match self.waits.first() {
            Some(first) => write!(f, " owner {}", first.waiting.owner),
            None => Ok(()),
        }
    }
}

/// Every name that somebody waits for.
type Seen = BTreeMap<Name, Snapshot>;

/// One wait: this request, for this name, behind a hold of the next request's owner, or behind the next request itself.
#[derive(Clone, Debug)]
struct Step {
    name: Name,
    waiting: WaitRow,
    held: Option<HeldRow>,
}

/// How many rows of a name are looked at.
const ROWS: usize = 1000;
/// How many names are looked at at once.
const AT_ONCE: usize = 64;

// -- the rules --------------------------------------------------------------------------------------------------

/// What is in the way of a request in line: holds, and requests ahead of it. By their places in the snapshot. Of requests that are ahead
/// of each other only the nearest is told.
fn in_the_way(seen: &Snapshot, at: usize) -> (Vec<usize>, Vec<usize>) {
    let row = &seen.waiting[at];
    let line = || seen.waiting.iter().enumerate();
    // Of those that are in line for themselves the nearest, as that has the others before it; of those that enter after another of their
    // owner's, which is ahead too, only a write after an upgradable counts: it has the readers in its way.
    let ahead_of = |wanted: &dyn Fn(usize, &WaitRow) -> bool| {
        let mut nearest = None;
        let mut ahead = Vec::new();
        for (place, other) in line().filter(|(place, other)| *place != at && wanted(*place, other)) {
            match older_of_its_owner(seen, other) {
                None => nearest = Some(place),
                Some(older) if other.mode > seen.waiting[older].mode => ahead.push(place),
                Some(_) => {}
            }
        }
        ahead.extend(nearest);
        ahead
    };
    let own = older_of_its_owner(seen, row);
    let mut ahead = Vec::new();
    let mut behind_a_writer = false;
    match (row.mode, own) {
        (Mode::Write, _) if is_upgrade(seen, row) => {}
        (Mode::Write, Some(place)) => {
            ahead.push(place);
            behind_a_writer = seen.waiting[place].mode == Mode::Write;
        }
        (_, Some(place)) => return (Vec::new(), vec![place]),
        // In the snapshot upgrades come first, then writes, each in the order of their tickets.
        (Mode::Write, None) => {
            let writers = ahead_of(&|place, other| other.mode == Mode::Write && place < at);
            behind_a_writer = !writers.is_empty();
            ahead.extend(writers);
            ahead.extend(ahead_of(&|_, other| {
                other.mode == Mode::Upgradable && is_before(other, row)
            }));
        }
        (Mode::Upgradable, None) => {
            ahead.extend(ahead_of(&|place, other| {
                other.mode == Mode::Upgradable && place < at
            }));
            ahead.extend(ahead_of(&|_, other| {
                other.mode == Mode::Write && is_before(other, row)
            }));
        }
        (Mode::Read, None) => {
            // After a writer all readers enter; else they let the first in line pass.
            let writing = seen
                .holding
                .iter()
                .any(|held| held.mode == Mode::Write && held.owner != row.owner);
            if !writing {
                ahead.extend(line().find_map(|(place, other)| (other.mode == Mode::Write).then_some(place)));
            }
        }
    }
    let excludes = |held: &HeldRow| match row.mode {
        Mode::Read => held.mode == Mode::Write,
        Mode::Upgradable => held.mode > Mode::Read,
        // Whoever is in its way is in that of the writer before it.
        Mode::Write => !behind_a_writer,
    };
    let holds = seen
        .holding
        .iter()
        .enumerate()
        .filter(|(_, held)| held.owner != row.owner && excludes(held))
        .map(|(place, _)| place)
        .collect();
    (holds, ahead)
}

/// The oldest that its owner has asked for as well, and after which it enters: a read enters with any, everything else after what is older.
fn older_of_its_owner(seen: &Snapshot, row: &WaitRow) -> Option<usize> {
    seen.waiting
        .iter()
        .enumerate()
        .filter(|(_, other)| other.owner == row.owner && other.mode > Mode::Read)
        .filter(|(_, other)| row.mode == Mode::Read || is_before(other, row))
        .min_by_key(|(_, other)| age(other))
        .map(|(place, _)| place)
}

/// Does it wait at the head, for the readers beside its owner's upgradable hold to leave?
fn is_upgrade(seen: &Snapshot, row: &WaitRow) -> bool {
    seen.holding
        .iter()
        .any(|held| held.owner == row.owner && held.mode == Mode::Upgradable)
}

/// By their tickets, as far as a snapshot has them.
fn is_before(one: &WaitRow, other: &WaitRow) -> bool {
    age(one) < age(other)
}

/// The smaller, the older.
fn age(row: &WaitRow) -> (u64, u64, RequestId) {
    (row.since_ms, row.request.number, row.request)
}

// -- circles ----------------------------------------------------------------------------------------------------

struct Graph {
    nodes: Vec<Node>,
    place: HashMap<RequestId, usize>,
}

struct Node {
    name: Name,
    row: WaitRow,
    /// To which request, and behind which hold of its owner.
    edges: Vec<(usize, Option<HeldRow>)>,
}

impl Graph {
    fn new(seen: &Seen) -> Self {
        let mut nodes = Vec::new();
        let mut place = HashMap::new();
        let mut of_owner: HashMap<OwnerId, Vec<usize>> = HashMap::new();
        for (name, snapshot) in seen {
            for row in &snapshot.waiting {
                place.insert(row.request, nodes.len());
                of_owner.entry(row.owner).or_default().push(nodes.len());
                nodes.push(Node {
                    name: name.clone(),
                    row: row.clone(),
                    edges: Vec::new(),
                });
            }
        }
        for snapshot in seen.values() {
            for (at, row) in snapshot.waiting.iter().enumerate() {
                let (holds, ahead) = in_the_way(snapshot, at);
                let ahead = ahead
                    .into_iter()
                    .filter_map(|at| Some((*place.get(&snapshot.waiting[at].request)?, None)));
                let held = holds.into_iter().flat_map(|at| {
                    let held = &snapshot.holding[at];
                    let waits = of_owner.get(&held.owner).into_iter().flatten();
                    waits.map(move |node| (*node, Some(held.clone())))
                });
                let edges = ahead.chain(held).collect();
                if let Some(node) = place.get(&row.request) {
                    nodes[*node].edges = edges;
                }
            }
        }
        Self { nodes, place }
    }

    /// The shortest circle that this request is in.
    fn circle(&self, request: RequestId) -> Option<Vec<Step>> {
        let start = *self.place.get(&request)?;
        // Which node led to which, breadth first.
        let mut from: HashMap<usize, usize> = HashMap::new();
        let mut next = VecDeque::from([start]);
        while let Some(node) = next.pop_front() {
            for (to, _) in &self.nodes[node].edges {
                if *to == start {
                    let mut path = vec![node];
                    while let Some(before) = path.last().and_then(|node| from.get(node)) {
                        path.push(*before);
                    }
                    path.reverse();
                    return Some(self.steps(&path));
                }
                if *to != start && !from.contains_key(to) {
                    from.insert(*to, node);
                    next.push_back(*to);
                }
            }
        }
        None
    }

    /// The youngest comes last.
    fn steps(&self, path: &[usize]) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        for (at, node) in path.iter().enumerate() {
            let to = path[(at + 1) % path.len()];
            let Node { name, row, edges } = &self.nodes[*node];
            // A hold of the same owner in the strongest mode says most.
            let held = edges
                .iter()
                .filter(|(node, _)| *node == to)
                .map(|(_, held)| held)
                .max_by_key(|held| held.as_ref().map(|held| held.mode))
                .cloned()
                .flatten();
            steps.push(Step {
                name: name.clone(),
                waiting: row.clone(),
                held,
            });
        }
        let youngest = (0..steps.len()).max_by_key(|at| age(&steps[*at].waiting));
        if let Some(youngest) = youngest {
            let count = steps.len();
            steps.rotate_left((youngest + 1) % count);
        }
        steps
    }

    /// So many that each request that is in a circle is in one of them.
    fn circles(&self) -> Vec<Vec<Step>> {
        let mut told = BTreeSet::new();
        let mut circles = Vec::new();
        for node in self.stuck() {
            let request = self.nodes[node].row.request;
            if !told.contains(&request)
                && let Some(circle) = self.circle(request)
            {
                told.extend(circle.iter().map(|step| step.waiting.request));
                circles.push(circle);
            }
        }
        circles
    }

    /// Those that may be in a circle: whoever waits for nobody that waits can't be, nor whoever waits for such.
    fn stuck(&self) -> Vec<usize> {
        let mut left: Vec<usize> = self.nodes.iter().map(|node| node.edges.len()).collect();
        let mut behind: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for (at, node) in self.nodes.iter().enumerate() {
            for (to, _) in &node.edges {
                behind[*to].push(at);
            }
        }
        let mut free: Vec<usize> = (0..left.len()).filter(|at| left[*at] == 0).collect();
        while let Some(at) = free.pop() {
            for waiting in &behind[at] {
                left[*waiting] -= 1;
                if left[*waiting] == 0 {
                    free.push(*waiting);
                }
            }
        }
        (0..left.len()).filter(|at| left[*at] > 0).collect()
    }
}

/// Does every wait of it stand in this look as well?
fn stands(circle: &[Step], seen: &Seen) -> bool {
    circle.iter().enumerate().all(|(at, step)| {
        let next = &circle[(at + 1) % circle.len()];
        let Some(snapshot) = seen.get(&step.name) else {
            return false;
        };
        let waits = |request| snapshot.waiting.iter().any(|row| row.request == request);
        waits(step.waiting.request)
            && match &step.held {
                Some(held) => snapshot
                    .holding
                    .iter()
                    .any(|row| row.request == held.request && row.mode == held.mode),
                None => waits(next.waiting.request),
            }
    })
}

// -- looking ----------------------------------------------------------------------------------------------------

/// What is seen of these names, and what keeps the rest from being seen: a server of several that does not answer until `patience` is over, or a name that the
/// server says no to, as a key of it is another program's, or not for this user to read. A circle among what is seen is one whatever the rest is.
async fn look(core: &Core, names: BTreeSet<Name>, patience: Moment) -> Result<(Seen, Option<Error>), Error> {
    let mut looks = futures_util::stream::iter(names)
        .map(|name| async move {
            let answer = tokio::select! {
                biased;
                answer = ask(core, &name, Operation::Inspect(ROWS)) => answer,
                () = core.clock.sleep_until(patience) => Err(core.unreachable(&name)),
            };
            answer.map(|answer| (name, answer.reply))
        })
        .buffer_unordered(AT_ONCE);
    let (mut seen, mut missing) = (Seen::new(), None);
    while let Some(look) = looks.next().await {
        match look {
            Ok((name, Reply::Inspect(snapshot))) if snapshot.waiters > 0 => {
                seen.insert(name, snapshot);
            }
            Ok(_) => {}
            Err(error) if error.is_unreachable() || error.is_server() => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    Ok((seen, missing))
}

/// The same of every name that somebody waits for. `patience` is for each server that does not answer.
async fn look_around(core: &Core, patience: Duration) -> Result<(Seen, Option<Error>), Error> {
    let (mut names, mut missing) = (BTreeSet::new(), None);
    let mut from = Some(Cursor::default());
    while let Some(cursor) = from {
        let page = patiently_for(core, patience, |look| look.lines(&cursor)).await;
        from = match page {
            Ok((page, next)) => {
                names.extend(page);
                next
            }
            // Those that answer came first.
            Err(error) if error.is_unreachable() => {
                missing = Some(error);
                None
            }
            Err(error) => return Err(error),
        };
    }
    let (seen, unseen) = look(core, names, core.clock.now().plus(patience)).await?;
    Ok((seen, missing.or(unseen)))
}

/// All of it at once: while the youngest finds out whom to name it still stands in line, and the next youngest gives up if that takes long.
async fn tell(core: &Core, circle: &[Step]) -> Circle {
    let said = circle.iter().enumerate().filter(|(at, step)| {
        // Of those that stand behind each other in one line the first and the last say enough.
        let last = at + 1 == circle.len();
        last || *at == 0 || step.held.is_some() || circle[at - 1].held.is_some()
    });
    let waits = said.map(|(_, step)| async move {
        let held = Snapshot {
            holding: step.held.iter().cloned().collect(),
            ..Snapshot::default()
        };
        let (mut waiting, mut holder) = tokio::join!(
            waiters(core, std::slice::from_ref(&step.waiting)),
            holders(core, &held)
        );
        Some(CircleWait {
            name: step.name.as_str().into(),
            waiting: waiting.pop()?,
            holder: holder.pop(),
        })
    });
    Circle {
        waits: join_all(waits).await.into_iter().flatten().collect(),
    }
}

/// Every circle there is now.
pub(crate) async fn deadlocks(core: &Core) -> Result<Deadlocks, Error> {
    let patience = core.config.patience;
    let (seen, mut missing) = look_around(core, patience).await?;
    let cut = seen.iter().filter(|(_, snapshot)| is_cut(snapshot));
    let cut = cut.map(|(name, _)| name.as_str().into()).collect();
    let circles = Graph::new(&seen).circles();
    let mut told = Vec::new();
    if !circles.is_empty() {
        let names = circles.iter().flatten().map(|step| step.name.clone()).collect();
        let (again, unseen) = look(core, names, core.clock.now().plus(patience)).await?;
        missing = missing.or(unseen);
        for circle in circles.iter().filter(|circle| stands(circle, &again)) {
            told.push(tell(core, circle).await);
        }
    }
    match missing {
        // That there are none can't be said.
        Some(error) if told.is_empty() => Err(error),
        _ => Ok(Deadlocks { circles: told, cut }),
    }
}

/// Are there more than it has rows for?
fn is_cut(seen: &Snapshot) -> bool {
    let owners: BTreeSet<OwnerId> = seen.holding.iter().map(|row| row.owner).collect();
    seen.waiters > seen.waiting.len() as u64 || seen.holders > owners.len() as u64
}

/// How soon after it got in line a request is looked at, how soon again when it was found in a circle, and how rarely at last.
const FIRST: Duration = Duration::from_millis(50);
const AGAIN: Duration = Duration::from_millis(100);
const RARELY: Duration = Duration::from_secs(5);
/// How many looks more an older request waits, for each younger one, before it gives up in its place.
const GRACE: usize = 4;

/// Resolves when this request, which waits, is the one to give up of a circle that it is in: the youngest, as it closed the circle. That may be of a client
/// that does not look; then the next youngest gives up, some looks later.
pub(crate) async fn closed_by(core: &Core, request: RequestId) -> Circle {
    let mut rest = FIRST;
    let mut found: Option<(Vec<Step>, usize)> = None;
    loop {
        core.clock.sleep_until(core.clock.now().plus(rest)).await;
        rest = (rest * 2).min(RARELY);
        // Of what does not answer at once nothing is said: the others are looked at again soon.
        let seen = match look_around(core, core.config.response_timeout).await {
            Ok((seen, _)) => seen,
            Err(error) => {
                tracing::debug!(%error, "could not look for deadlocks; waiting on");
                found = None;
                continue;
            }
        };
        found = match found {
            Some((circle, times)) if stands(&circle, &seen) => Some((circle, times + 1)),
            _ => Graph::new(&seen).circle(request).map(|circle| (circle, 1)),
        };
        if let Some((circle, times)) = &found {
            let mine = circle.iter().find(|step| step.waiting.request == request);
            let younger = circle
                .iter()
                .filter(|step| mine.is_some_and(|mine| age(&step.waiting) > age(&mine.waiting)))
                .count();
            if *times >= 2 + GRACE * younger {
                return tell(core, circle).await;
            }
            rest = AGAIN;
        }
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;
    use crate::protocol::{Acquire, ClientId, Release, Withdraw};
    use crate::state::{Context, LockState, Tuning};

    /// A machine, driven by chance.
    #[derive(Clone)]
    struct World {
        state: LockState,
        now_us: u64,
    }

    impl World {
        fn apply(&mut self, operation: &Operation) -> Reply {
            self.now_us += 1000;
            let tuning = Tuning {
                claim_ms: 1_000_000,
                mark_ms: 1_000_000,
                retention_ms: 1_000_000,
            };
            let context = Context {
                now_us: self.now_us,
                tuning,
                heard: &|_| true,
            };
            self.state.apply(operation, &context).0.reply
        }

        fn seen(&self) -> Snapshot {
            self.state.snapshot(1000)
        }

        fn release(&mut self, row: &HeldRow) {
            let fence = self.seen().fence;
            self.apply(&Operation::Release(Release {
                request: row.request,
                owner: row.owner,
                fence,
                again: false,
                mark: false,
            }));
        }

        fn withdraw(&mut self, row: &WaitRow) {
            self.apply(&Operation::Withdraw(Withdraw {
                request: row.request,
                owner: row.owner,
                blame: false,
                upgrade_of: None,
            }));
        }

        /// Everybody but these gives back and leaves, until nothing of theirs is left.
        fn clear(&mut self, but: impl Fn(OwnerId, RequestId) -> bool) {
            loop {
                let seen = self.seen();
                let held = seen.holding.iter().find(|row| !but(row.owner, row.request));
                let waiting = seen.waiting.iter().find(|row| !but(row.owner, row.request));
                match (held, waiting) {
                    (_, Some(row)) => self.withdraw(row),
                    (Some(row), None) => self.release(row),
                    (None, None) => return,
                }
            }
        }

        fn waits(&self, request: RequestId) -> bool {
            self.seen().waiting.iter().any(|row| row.request == request)
        }
    }

    /// What is said to be in the way is, and nothing else: whoever waits gets in when all of it is gone, and not while any of it is there.
    #[test]
    fn what_is_in_the_way_is_what_the_machine_waits_for() {
        let client = ClientId::random();
        let owners: Vec<OwnerId> = (0..5).map(|_| OwnerId::random()).collect();
        let (mut looked, mut numbers) = (0, 0);
        for seed in 0..40 {
            let mut rng = Rng::with_seed(seed);
            let mut world = World {
                state: LockState::default(),
                now_us: 1_800_000_000_000_000,
            };
            for _ in 0..40 {
                let seen = world.seen();
                if rng.u8(..3) == 0
                    && let Some(row) = rng.choice(&seen.holding)
                {
                    world.release(row);
                } else {
                    numbers += 1;
                    let owner = owners[rng.usize(..owners.len())];
                    let mode = [Mode::Read, Mode::Upgradable, Mode::Write][rng.usize(..3)];
                    world.apply(&Operation::Acquire(Acquire {
                        request: RequestId {
                            client,
                            number: numbers,
                        },
                        owner,
                        mode,
                        wait: true,
                        first: false,
                        lease_ms: 1_000_000,
                        ticket: 0,
                        upgrade_of: None,
                        label: String::new(),
                    }));
                }
                let seen = world.seen();
                for (at, row) in seen.waiting.iter().enumerate() {
                    looked += 1;
                    let (holds, ahead) = in_the_way(&seen, at);
                    let mine = |owner, request| owner == row.owner || request == row.request;
                    for held in holds.iter().map(|at| &seen.holding[*at]) {
                        let mut world = world.clone();
                        world.clear(|owner, request| mine(owner, request) || request == held.request);
                        assert!(
                            world.waits(row.request),
                            "{held:?} is not in the way of {row:?}: {seen:?}"
                        );
                    }
                    for other in ahead.iter().map(|at| &seen.waiting[*at]) {
                        if other.owner == row.owner {
                            continue;
                        }
                        let mut world = world.clone();
                        world.clear(|owner, request| mine(owner, request) || owner == other.owner);
                        assert!(
                            world.waits(row.request),
                            "{other:?} is not ahead of {row:?}: {seen:?}"
                        );
                    }
                    // All that is in the way, and in the way of what is ahead: when that has come and gone, it is in.
                    let (mut way, mut next) = (BTreeSet::new(), vec![at]);
                    while let Some(at) = next.pop() {
                        let (holds, ahead) = in_the_way(&seen, at);
                        way.extend(holds.iter().map(|at| seen.holding[*at].owner));
                        for at in ahead {
                            way.insert(seen.waiting[at].owner);
                            next.push(at);
                        }
                    }
                    assert!(!way.is_empty(), "nothing is in the way of {row:?}: {seen:?}");
                    way.remove(&row.owner);
                    // Between two writers the readers in line have their turn: whoever waits for them waits for the writer before them, too.
                    let reads = seen.waiting.iter().filter(|other| other.mode == Mode::Read);
                    way.extend(reads.map(|other| other.owner).filter(|owner| *owner != row.owner));
                    let mut world = world.clone();
                    loop {
                        let seen = world.seen();
                        let mut left = seen.holding.iter().filter(|held| way.contains(&held.owner));
                        // Whoever waits gives back last: as long as it can, it gets what it waits for.
                        let waits = |owner| seen.waiting.iter().any(|other| other.owner == owner);
                        let idle = left.clone().find(|held| !waits(held.owner));
                        match idle.or_else(|| left.next()) {
                            Some(held) => world.release(held),
                            None => break,
                        }
                    }
                    assert!(
                        !world.waits(row.request),
                        "only {way:?} were in the way of {row:?}: {seen:?}, then {:?}",
                        world.seen()
                    );
                }
            }
        }
        assert!(looked > 2_000, "{looked}");
    }
}
