//! A cluster: which node a call goes to, and where a client must listen to hear of its names.
//!
//! Each master has a [`Linker`] of its own, which keeps a link up as it would to a single server. What this file adds:
//!
//! - **The map**, slot by slot: who serves it, and since which epoch. It is read from whichever node answers, anew whenever something
//!   contradicts it (`MOVED`, a lost link, a slot that nobody serves) and every so often. A node that was stopped and wakes up believes
//!   in the past: a claim with an epoch earlier than what is known is not believed, as long as the later owner is there.
//! - **The ears**, slot by slot: the channel on which the master of a slot tells this client of that slot's names. It is subscribed
//!   to before a request is sent that may have to wait, and as long as that may hold or wait; and again, by itself, whenever the
//!   slot has another master or the link is another. Whoever missed something by that polls: see [`Cluster::relinked`].
//!
//! Shard channels are subscribed to on the subscriber's connection alone, where no lock command ever is: a server that moves a slot says
//! so in a message that the crate `redis` takes for the reply to the oldest command. So no reply is believed here either, but for its
//! being an error; that a subscription stands is known by the message that says so, by its channel.
//!
//! A node older than 7.0 has no shard channels. There a client listens to its one channel on every link, and what is published
//! is told to all nodes.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::redis::Value;
use ::redis::aio::MultiplexedConnection;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::backend::Sink;
use crate::backend::redis::dial::Peer;
use crate::backend::redis::link::{Ear, LATE, Linker, Remarks, Way, is_closed_to_us, jitter, no_messages};
use crate::backend::redis::options::{Address, RedisOptions, Target};
use crate::backend::redis::refusal::{classify, printable};
use crate::backend::redis::slots::{self, Place, SLOTS, View};
use crate::clock::{Clock, Moment};
use crate::error::{Error, ErrorKind};
use crate::protocol::{ClientId, Name};

/// How often the map is read when nothing contradicts it.
const LOOK: Duration = Duration::from_secs(15);
/// How often while something is amiss: a slot without a master, a master without a link.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// After how long without an answer the next node is asked as well.
const STAGGER: Duration = Duration::from_millis(150);
/// How long a node is kept that serves nothing: it may be about to.
const SPARE: Duration = Duration::from_secs(60);
/// How long a slot is listened to after its last use, on top of the longest lease.
const IDLE: Duration = Duration::from_secs(60);
/// How often ears that could not be had are tried again, and idle ones dropped.
const SWEEP: Duration = Duration::from_millis(500);
/// How long a request waits for its ear. Without it it polls.
const LISTENING: Duration = Duration::from_secs(1);
/// How long ears that moved are gathered, before all that concerns them is polled.
const GATHER: Duration = Duration::from_millis(5);

/// One master, or one that is about to be.
struct Node {
    place: Place,
    linker: Arc<Linker>,
    /// It has been somebody's master.
    served: AtomicBool,
    /// When a call was last sent here.
    used: Mutex<Moment>,
}

#[derive(Clone)]
struct Owner {
    node: Arc<Node>,
    epoch: u64,
}

struct Map {
    slots: Vec<Option<Owner>>,
    nodes: HashMap<Place, Arc<Node>>,
    /// Every node that was ever named last: whoever may be asked.
    known: Vec<Place>,
    /// Why nobody could be asked, the last time.
    trouble: Option<Error>,
}

/// One client's view of a cluster.
pub(super) struct Cluster {
    options: RedisOptions,
    target: Target,
    seeds: Vec<Place>,
    clock: Clock,
    client: ClientId,
    sink: Arc<Sink>,
    /// For the nodes' links, which tell what they hear.
    this: Weak<Self>,
    map: Mutex<Map>,
    /// The map has changed, or a link to a node.
    changed: Notify,
    /// Something contradicts the map.
    doubt: Notify,
    /// There are nodes that nobody drives yet.
    undriven: Notify,
    ears: Mutex<Ears>,
    /// What is not as it should be with the nodes, and, of no place, with what is listened to.
    remarks: Arc<Remarks>,
    /// There is something to do for the ears.
    ears_changed: Notify,
    generation: watch::Sender<u64>,
    /// Counts links that are up, and changes of the map: who looks must look at another server, perhaps. Ears have no part in it.
    relinks: watch::Sender<u64>,
    closed: AtomicBool,
    closing: Notify,
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Ears {
    slots: HashMap<u16, Listening>,
    /// To be looked at.
    due: Vec<u16>,
    /// All are.
    all_due: bool,
    /// Some moved since the last generation.
    moved: bool,
    /// Some may not be heard.
    lacking: bool,
    /// Links on which the server forbids to listen, and until when it is not asked again.
    refused: HashMap<u64, Moment>,
}

struct Listening {
    /// Nobody needs it from then on.
    until: Moment,
    on: Option<On>,
    /// Something counts on it that was sent already: whenever it comes to stand, that may have missed something.
    counted_on: bool,
    /// The generation in which it came to be heard where it is.
    generation: u64,
    waiting: Vec<oneshot::Sender<()>>,
}

/// A subscription, on the link with this number.
#[derive(Clone, Copy)]
struct On {
    link: u64,
    asked: Moment,
    heard: bool,
}

impl Cluster {
    pub(super) fn new(
        options: RedisOptions,
        target: Target,
        seeds: &[Address],
        client: ClientId,
        clock: Clock,
        sink: Sink,
    ) -> Arc<Self> {
        let seeds = seeds
            .iter()
            .filter_map(|address| match address {
                Address::Tcp(host, port) => Some((host.clone(), *port)),
                _ => None,
            })
            .collect();
        Arc::new_cyclic(|this| Self {
            options,
            target,
            seeds,
            clock,
            client,
            sink: Arc::new(sink),
            this: this.clone(),
            map: Mutex::new(Map {
                slots: vec![None; usize::from(SLOTS)],
                nodes: HashMap::new(),
                known: Vec::new(),
                trouble: None,
            }),
            changed: Notify::new(),
            doubt: Notify::new(),
            undriven: Notify::new(),
            ears: Mutex::default(),
            remarks: Arc::default(),
            ears_changed: Notify::new(),
            generation: watch::channel(1).0,
            relinks: watch::channel(1).0,
            closed: AtomicBool::new(false),
            closing: Notify::new(),
            turn: tokio::sync::Mutex::new(()),
        })
    }

    pub(super) fn place(&self) -> &str {
        &self.target.place
    }

    pub(super) fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    pub(super) fn relinks(&self) -> watch::Receiver<u64> {
        self.relinks.subscribe()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn unreachable(&self, what: impl std::fmt::Display) -> Error {
        ErrorKind::Unreachable(format!("{} {what}", self.target.place)).into()
    }

    /// Why there is no link at the moment, if something is amiss.
    pub(super) fn trouble(&self) -> Option<Error> {
        if self.is_closed() {
            return Some(ErrorKind::Closed.into());
        }
        let map = self.map.lock();
        let down = map.masters().find_map(|node| node.linker.trouble());
        down.or_else(|| map.trouble.clone()).or_else(|| {
            let slot = map.slots.iter().position(Option::is_none)?;
            Some(self.unserved(slot))
        })
    }

    /// The same for what is in this slot.
    pub(super) fn trouble_of(&self, slot: u16) -> Option<Error> {
        if self.is_closed() {
            return Some(ErrorKind::Closed.into());
        }
        let map = self.map.lock();
        match &map.slots[usize::from(slot)] {
            Some(owner) => owner.node.linker.trouble(),
            None => Some(
                map.trouble
                    .clone()
                    .unwrap_or_else(|| self.unserved(usize::from(slot))),
            ),
        }
    }

    fn unserved(&self, slot: usize) -> Error {
        self.unreachable(format_args!("has no node that serves slot {slot}"))
    }

    /// Whether grants come by messages, as far as is known.
    pub(super) fn pushes(&self) -> bool {
        let refused = !self.ears.lock().refused.is_empty();
        !refused && self.map.lock().nodes.values().all(|node| node.linker.pushes())
    }

    /// What is not as it should be with its nodes.
    pub(super) fn remarks(&self) -> Vec<String> {
        self.remarks.all()
    }

    /// Remarks what has become of the ears, if that is new.
    fn remark(&self, ears: &Ears) {
        let remarks = if ears.refused.is_empty() {
            Vec::new()
        } else {
            vec![no_messages(true)]
        };
        for remark in self.remarks.remember("", &remarks) {
            tracing::warn!(cluster = %self.target.place, remark, "linked, but");
        }
    }

    /// Resolves when every slot's master is linked, or can't be reached while another is; or with what is in the way. What a server says against
    /// us is: it would be in the way of every name that it serves.
    pub(super) async fn ready(&self, within: Duration) -> Result<(), Error> {
        let known = async {
            loop {
                let changed = self.changed.notified();
                if self.is_closed() {
                    return Err(ErrorKind::Closed.into());
                }
                {
                    let map = self.map.lock();
                    let states: Vec<_> = map
                        .masters()
                        .map(|node| (node.linker.up().is_some(), node.linker.trouble()))
                        .collect();
                    let against_us = states.iter().filter_map(|(_, trouble)| trouble.as_ref());
                    if let Some(error) = against_us.into_iter().find(|error| !error.is_unreachable()) {
                        return Err(error.clone());
                    }
                    let settled =
                        !states.is_empty() && states.iter().all(|(up, trouble)| *up || trouble.is_some());
                    if settled && states.iter().any(|(up, _)| *up) {
                        return Ok(());
                    }
                    let in_the_way = states.into_iter().find_map(|(_, trouble)| trouble);
                    if settled && let Some(error) = in_the_way {
                        return Err(error);
                    }
                    if map.nodes.is_empty()
                        && let Some(error) = &map.trouble
                    {
                        return Err(error.clone());
                    }
                }
                changed.await;
            }
        };
        match timeout(within + Duration::from_millis(250), known).await {
            Ok(known) => known,
            Err(_) => Err(self.unreachable(format_args!("gave no answer within {within:?}"))),
        }
    }

    // -- the way of a call ---------------------------------------------------------------------------------------

    /// The link to the master of a slot; waits until there is one. `None` once it is closed.
    pub(super) async fn way(&self, slot: u16) -> Option<Way> {
        loop {
            // Enrol first, look afterwards.
            let changed = self.changed.notified();
            if self.is_closed() {
                return None;
            }
            let owner = self.map.lock().slots[usize::from(slot)].clone();
            if let Some(way) = owner.and_then(|owner| owner.node.way()) {
                return Some(way);
            }
            changed.await;
        }
    }

    /// The link to the node that a server named for one call; waits for it, but not for long. `None` if it can't be had.
    pub(super) async fn way_by(&self, place: &Place) -> Option<Way> {
        let node = {
            let mut map = self.map.lock();
            self.node(&mut map, place)
        };
        let linked = async {
            loop {
                let changed = self.changed.notified();
                if self.is_closed() {
                    return None;
                }
                if let Some(way) = node.way() {
                    *node.used.lock() = self.clock.now();
                    return Some(way);
                }
                changed.await;
            }
        };
        timeout(self.options.connect_timeout, linked).await.ok().flatten()
    }

    /// The links to all masters that have one.
    pub(super) fn linked(&self) -> Vec<Way> {
        let map = self.map.lock();
        map.masters().filter_map(|node| node.way()).collect()
    }

    /// The link with this number, as long as it is up.
    pub(super) fn link(&self, number: u64) -> Option<Way> {
        let map = self.map.lock();
        let mut links = map.nodes.values().filter_map(|node| node.way());
        links.find(|way| way.live.number == number)
    }

    /// The link to the master of the first of these slots whose master has one.
    pub(super) fn linked_to(&self, wanted: impl Iterator<Item = u16>) -> Option<Way> {
        let map = self.map.lock();
        let mut owners = wanted.filter_map(|slot| map.slots.get(usize::from(slot))?.as_ref());
        owners.find_map(|owner| owner.node.way())
    }

    pub(super) fn is_linked(&self, slot: u16) -> bool {
        let map = self.map.lock();
        let owner = map.slots[usize::from(slot)].as_ref();
        owner.is_some_and(|owner| owner.node.linker.up().is_some())
    }

    /// Which slots are served there, by slot.
    pub(super) fn served_by(&self, way: &Way) -> Vec<bool> {
        let map = self.map.lock();
        let serves = |owner: &Owner| Arc::ptr_eq(&owner.node.linker, &way.linker);
        map.slots
            .iter()
            .map(|owner| owner.as_ref().is_some_and(serves))
            .collect()
    }

    /// Hears from a server itself who serves what, and tells which slots it is moving to whom.
    pub(super) async fn hear_of_moves(&self, way: &Way) -> Result<Vec<(u16, Place)>, Error> {
        let live = &way.live;
        let view = self
            .ask_on(&live.peer, live.connection.clone(), &place_of(way))
            .await?;
        self.adopt(&view);
        Ok(view.moving)
    }

    /// `from` says that this slot is served there, from now on.
    pub(super) fn moved(&self, slot: u16, place: &Place, from: &Way) {
        let mut map = self.map.lock();
        let node = self.node(&mut map, place);
        let known = &mut map.slots[usize::from(slot)];
        // Whoever is not taken for the owner can't give it away: a call may be answered late.
        let gives = known
            .as_ref()
            .is_none_or(|owner| Arc::ptr_eq(&owner.node.linker, &from.linker));
        if gives {
            let epoch = known.as_ref().map_or(0, |owner| owner.epoch);
            node.served.store(true, Ordering::Relaxed);
            *known = Some(Owner { node, epoch });
        }
        drop(map);
        if gives {
            self.remapped();
        }
        self.doubt.notify_one();
    }

    /// Whether an answer that took so long is to be believed. A master that was stopped may have been replaced, and goes on as if
    /// nothing had happened: then it executes what had been sent to it, for nobody.
    pub(super) async fn believes(&self, way: &Way, took: Duration) -> bool {
        // It serves nothing any more.
        if way.linker.is_closed() {
            return self.is_closed();
        }
        let pace = &way.live.pace;
        if took > LATE {
            pace.doubt();
        } else if !pace.is_doubted() {
            return true;
        }
        let came = self.clock.now();
        let _one = pace.asking.lock().await;
        if pace.is_vouched(came) {
            return !way.linker.is_closed();
        }
        // What one has found out who asked meanwhile is told to all, also that there is nobody to ask: each would wait for that in turn.
        if pace.is_asked_in_vain(came) {
            return false;
        }
        let asked = self.clock.now();
        match self.look(Some(way)).await {
            Ok(Some(view)) => self.adopt(&view),
            // There is no other node, so none that could have replaced it.
            Ok(None) => {}
            // Nor can one that is not there: masters vote for who replaces one, and it is the only one, so it would have had to itself. (But for
            // CLUSTER FAILOVER TAKEOVER, which asks nobody.) In doubt for as long as its replica is away nothing would be believed any more.
            Err(_) if self.is_only_master(way) => {}
            Err(error) => {
                pace.ask_in_vain(asked);
                tracing::debug!(server = %way.live.peer.place, %error, "nobody vouches for it");
                return false;
            }
        }
        // Whoever has lost all that it served has been taken off the map by that.
        if way.linker.is_closed() {
            return false;
        }
        pace.vouch(asked);
        // What it said unasked in the meantime was ignored.
        let next = *self.generation.borrow() + 1;
        let mut ears = self.ears.lock();
        for listening in ears.slots.values_mut() {
            if listening.on.is_some_and(|on| on.link == way.live.number) {
                listening.generation = next;
            }
        }
        ears.moved = true;
        drop(ears);
        self.ears_changed.notify_one();
        true
    }

    /// Whether it serves all that is served.
    fn is_only_master(&self, way: &Way) -> bool {
        let map = self.map.lock();
        let mut masters = map.masters();
        let first = masters.next();
        first.is_some_and(|node| Arc::ptr_eq(&node.linker, &way.linker)) && masters.next().is_none()
    }

    /// Something contradicts what is known of who serves what: it is read anew.
    pub(super) fn suspect(&self) {
        self.doubt.notify_one();
    }

    /// Nobody serves it, says its master: whatever the next view says of it is believed.
    pub(super) fn doubt(&self, slot: u16) {
        if let Some(owner) = &mut self.map.lock().slots[usize::from(slot)] {
            owner.epoch = 0;
        }
        self.doubt.notify_one();
    }

    fn remapped(&self) {
        self.changed.notify_waiters();
        self.relinks.send_modify(|number| *number += 1);
        self.ears.lock().all_due = true;
        self.ears_changed.notify_one();
    }

    /// The node at this place.
    fn node(&self, map: &mut Map, place: &Place) -> Arc<Node> {
        if let Some(node) = map.nodes.get(place) {
            return node.clone();
        }
        let sink = self.sink.clone();
        let ears = self.this.clone();
        let linker = Linker::new(
            self.options.clone(),
            self.target.server(Address::Tcp(place.0.clone(), place.1)),
            self.client,
            self.clock.clone(),
            Box::new(move |push, told| sink(push, told)),
        );
        let node = Arc::new(Node {
            place: place.clone(),
            linker: Arc::new(linker.of_cluster(
                Box::new(move |link, ear| {
                    if let Some(cluster) = ears.upgrade() {
                        cluster.on_ear(link, ear);
                    }
                }),
                self.remarks.clone(),
            )),
            served: AtomicBool::new(false),
            used: Mutex::new(self.clock.now()),
        });
        map.nodes.insert(place.clone(), node.clone());
        self.undriven.notify_one();
        node
    }

    // -- the map -------------------------------------------------------------------------------------------------

    fn adopt(&self, view: &View) {
        let mut map = self.map.lock();
        let mut changed = map.trouble.take().is_some();
        map.known.clone_from(&view.nodes);
        for claim in &view.claims {
            let node = self.node(&mut map, &claim.master);
            let mut given = false;
            for slot in claim.first..=claim.last {
                let known = &mut map.slots[usize::from(slot)];
                match known {
                    Some(owner) if Arc::ptr_eq(&owner.node, &node) => owner.epoch = claim.epoch,
                    // Of two that claim it the later is right. One that is there would say so itself if it were not the owner.
                    Some(owner) if claim.epoch <= owner.epoch && owner.node.linker.trouble().is_none() => {}
                    _ => {
                        given = true;
                        *known = Some(Owner {
                            node: node.clone(),
                            epoch: claim.epoch,
                        });
                        changed = true;
                    }
                }
            }
            if given {
                node.served.store(true, Ordering::Relaxed);
            }
        }
        // Those that serve nothing: at once if they did before, as whatever they still say comes from somebody who has been replaced;
        // otherwise when they have not been asked for anything lately.
        let now = self.clock.now();
        let serving: Vec<Place> = map.masters().map(|node| node.place.clone()).collect();
        let spare: Vec<Place> = map
            .nodes
            .values()
            .filter(|node| !serving.contains(&node.place))
            .filter(|node| node.served.load(Ordering::Relaxed) || now.since(*node.used.lock()) > SPARE)
            .map(|node| node.place.clone())
            .collect();
        for place in spare {
            if let Some(node) = map.nodes.remove(&place) {
                node.linker.end();
                self.remarks.forget(&node.linker.target.place);
            }
        }
        drop(map);
        if changed {
            self.remapped();
        }
    }

    /// Nothing is known to be amiss.
    fn is_whole(&self) -> bool {
        let map = self.map.lock();
        map.trouble.is_none()
            && map.slots.iter().all(Option::is_some)
            && map.masters().all(|node| node.linker.up().is_some())
    }

    async fn keep_map(&self) -> std::convert::Infallible {
        let mut amiss: u32 = 0;
        loop {
            match self.look(None).await {
                Ok(Some(view)) => self.adopt(&view),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(cluster = %self.target.place, %error, "nobody tells who serves what");
                    self.map.lock().trouble = Some(error);
                    self.changed.notify_waiters();
                }
            }
            amiss = if self.is_whole() {
                0
            } else {
                amiss.saturating_add(1)
            };
            // Slower and slower, as that may be how the cluster is meant to be.
            let rest = match amiss {
                0 => LOOK,
                _ => LOOK_AGAIN * (1 + amiss / 25).min(5),
            };
            tokio::select! {
                () = sleep(rest + jitter(rest / 4)) => {}
                // One look for all that is in doubt at the same time.
                () = self.doubt.notified() => sleep(LOOK_AGAIN / 4).await,
            }
        }
    }

    /// Asks who serves what: first those that are linked, and the next as well if one takes its time. `None`: there is nobody but `except`,
    /// whose own word, under whichever of its names, does not count.
    async fn look(&self, except: Option<&Way>) -> Result<Option<View>, Error> {
        let mut places: Vec<Place> = Vec::new();
        let same = except.map(place_of);
        let same_node = except.and_then(|way| way.live.node.as_deref());
        {
            let map = self.map.lock();
            let mut linked: Vec<&Arc<Node>> = map.masters().collect();
            linked.sort_by_key(|node| node.linker.up().is_none());
            // Not always the same one: it may be the one that is cut off.
            let up = linked.iter().filter(|node| node.linker.up().is_some()).count();
            if up > 1 {
                let turns = usize::try_from(crate::entropy::bits() % up as u64).unwrap_or(0);
                linked[..up].rotate_left(turns);
            }
            let linked = linked.into_iter().map(|node| &node.place);
            for place in linked.chain(&map.known).chain(&self.seeds) {
                if !places.contains(place) && same.as_ref() != Some(place) {
                    places.push(place.clone());
                }
            }
        }
        let mut next = places.into_iter();
        let mut asked = FuturesUnordered::new();
        let mut trouble: Option<Error> = None;
        loop {
            match next.next() {
                Some(place) => asked.push(self.ask(place)),
                None if asked.is_empty() => {
                    return match trouble {
                        Some(trouble) => Err(trouble),
                        None if except.is_some() => Ok(None),
                        None => Err(self.unreachable("names no node")),
                    };
                }
                None => {}
            }
            tokio::select! {
                biased;
                Some(answer) = asked.next() => match answer {
                    Ok(view) if same_node.is_some() && view.by.as_deref() == same_node => {}
                    Ok(view) => return Ok(Some(view)),
                    // What one says that is there says more than that another is not.
                    Err(error) => if trouble.as_ref().is_none_or(Error::is_unreachable) {
                        trouble = Some(error);
                    }
                },
                () = sleep(STAGGER) => {}
            }
        }
    }

    /// Asks one node: on its link, if there is one, and otherwise on a connection that ends with the answer.
    async fn ask(&self, place: Place) -> Result<View, Error> {
        let linked = self.map.lock().nodes.get(&place).and_then(|node| node.way());
        if let Some(Way { live, .. }) = linked {
            return self.ask_on(&live.peer, live.connection.clone(), &place).await;
        }
        let peer = Peer::new(
            &self.options,
            &self.target,
            Address::Tcp(place.0.clone(), place.1),
        );
        let within = self.options.connect_timeout;
        let asked = async {
            let mut drivers = JoinSet::new();
            let connection = peer.connect(&mut drivers, peer.config(), || ()).await?;
            self.ask_on(&peer, connection, &place).await
        };
        match timeout(within, asked).await {
            Ok(view) => view,
            Err(_) => Err(peer.unreachable(format_args!("did not answer within {within:?}"))),
        }
    }

    async fn ask_on(
        &self,
        peer: &Peer,
        mut connection: MultiplexedConnection,
        place: &Place,
    ) -> Result<View, Error> {
        let mut both = ::redis::Pipeline::with_capacity(2);
        both.cmd("CLUSTER").arg("SLOTS").cmd("CLUSTER").arg("NODES");
        let answer = connection
            .send_packed_commands(&both, 0, 2)
            .await
            .map_err(|error| peer.broken(&error))?;
        match answer.as_slice() {
            [Value::ServerError(error), ..] => {
                let said = error.details().unwrap_or_default();
                if said.contains("cluster support disabled") {
                    return Err(peer.unfit("is no node of a cluster: write redis:// for a single server"));
                }
                Err(classify(&peer.place, "CLUSTER SLOTS", error).into_error())
            }
            // Without it nobody could tell which of two that claim a slot is right.
            [_, Value::ServerError(error)] => Err(classify(&peer.place, "CLUSTER NODES", error).into_error()),
            [slots, nodes] => match View::read(slots, nodes, place) {
                Some(view) if view.claims.is_empty() => {
                    Err(peer.unreachable("knows of nobody who serves anything: is the cluster made?"))
                }
                Some(view) => Ok(view),
                None => Err(peer.strange("its CLUSTER SLOTS can't be read")),
            },
            _ => Err(peer.strange("it does not answer to CLUSTER SLOTS")),
        }
    }

    // -- the ears ------------------------------------------------------------------------------------------------

    /// Before a request is sent on `way` that may wait or hold for as long as `lease`: listens, and returns when that stands. Not
    /// later than after [`LISTENING`]: a push is a hint.
    pub(super) async fn listen(&self, slot: u16, way: &Way, lease: Duration) {
        let until = self.clock.now().plus(lease + IDLE);
        let waiting = {
            let mut ears = self.ears.lock();
            let Ears {
                slots, due, refused, ..
            } = &mut *ears;
            let listening = slots.entry(slot).or_insert_with(Listening::new);
            listening.until = listening.until.max(until);
            if listening.is_heard_on(way) {
                return;
            }
            if refused.contains_key(&way.live.number) {
                listening.counted_on = true;
                return;
            }
            let (tell, told) = oneshot::channel();
            listening.waiting.push(tell);
            due.push(slot);
            told
        };
        self.ears_changed.notify_one();
        let _ = timeout(LISTENING, waiting).await;
        // The request is sent now, heard or not. What comes of it before it is heard is missed.
        if let Some(listening) = self.ears.lock().slots.get_mut(&slot)
            && !listening.is_heard_on(way)
        {
            listening.counted_on = true;
        }
    }

    /// It is in use for as long as `lease` from now on.
    pub(super) fn keep_listening(&self, slot: u16, lease: Duration) {
        let until = self.clock.now().plus(lease + IDLE);
        let mut ears = self.ears.lock();
        let mut due = false;
        let listening = ears.slots.entry(slot).or_insert_with(|| {
            due = true;
            // What is held or waited for there was asked for before.
            Listening {
                counted_on: true,
                ..Listening::new()
            }
        });
        listening.until = listening.until.max(until);
        if due {
            ears.due.push(slot);
            drop(ears);
            self.ears_changed.notify_one();
        }
    }

    /// Whether a name's pushes may have been missed after `since` was counted.
    pub(super) fn relinked(&self, name: &Name, since: u64) -> bool {
        let ears = self.ears.lock();
        let listening = ears.slots.get(&slots::slot_of(name));
        listening.is_none_or(|listening| listening.generation > since)
    }

    /// A link heard something about a channel.
    fn on_ear(&self, link: u64, ear: Ear<'_>) {
        let (Ear::Heard(channel) | Ear::Gone(channel)) = ear;
        let Some(slot) = slots::slot_of_channel(channel) else {
            return;
        };
        let mut ears = self.ears.lock();
        let next = *self.generation.borrow() + 1;
        let Some(listening) = ears.slots.get_mut(&slot) else {
            return;
        };
        let Some(on) = &mut listening.on else { return };
        if on.link != link {
            return;
        }
        match ear {
            Ear::Heard(_) => {
                if !on.heard {
                    on.heard = true;
                    ears.stands(slot, next);
                }
            }
            // It was taken away: the slot has another master by now.
            Ear::Gone(_) => {
                listening.on = None;
                ears.due.push(slot);
                ears.lacking = true;
                self.doubt.notify_one();
            }
        }
        drop(ears);
        self.ears_changed.notify_one();
    }

    /// Makes ears, drops them, and counts a generation when some have moved.
    async fn keep_ears(&self) -> std::convert::Infallible {
        let mut asked = FuturesUnordered::new();
        let mut swept = self.clock.now();
        loop {
            let sweep = self.clock.now().since(swept) >= SWEEP;
            if sweep {
                swept = self.clock.now();
            }
            for (slot, way, wanted) in self.due_ears(sweep) {
                asked.push(self.ask_to_hear(slot, way, wanted));
            }
            let rest = if self.ears.lock().lacking { SWEEP } else { IDLE / 4 };
            if std::mem::take(&mut self.ears.lock().moved) {
                sleep(GATHER).await;
                // Those that move from here on belong to the next.
                self.generation.send_modify(|number| *number += 1);
                continue;
            }
            tokio::select! {
                biased;
                () = self.ears_changed.notified() => {}
                Some(()) = asked.next() => {}
                () = sleep(rest) => {}
            }
        }
    }

    /// Those that are to be subscribed to, or not any more, and where.
    fn due_ears(&self, sweep: bool) -> Vec<(u16, Way, bool)> {
        let now = self.clock.now();
        let map = self.map.lock();
        let mut ears = self.ears.lock();
        let all = std::mem::take(&mut ears.all_due) || sweep;
        let mut due = std::mem::take(&mut ears.due);
        if all {
            due = ears.slots.keys().copied().collect();
            ears.lacking = false;
        }
        let mut lacking = false;
        let next = *self.generation.borrow() + 1;
        let mut found = Vec::new();
        if !ears.refused.is_empty() {
            let links: HashSet<u64> = map
                .nodes
                .values()
                .filter_map(|node| Some(node.linker.up()?.number))
                .collect();
            ears.refused
                .retain(|link, until| *until > now && links.contains(link));
            self.remark(&ears);
        }
        for slot in due {
            let owner = map.slots[usize::from(slot)].as_ref();
            let Ears { slots, refused, .. } = &mut *ears;
            let Some(listening) = slots.get_mut(&slot) else {
                continue;
            };
            if sweep && listening.until < now && listening.waiting.is_empty() {
                let on = listening.on;
                ears.slots.remove(&slot);
                if let (Some(on), Some(way)) = (on, owner.and_then(|owner| owner.node.way()))
                    && on.link == way.live.number
                    && way.live.has_ears()
                {
                    found.push((slot, way, false));
                }
                continue;
            }
            let Some(way) = owner.and_then(|owner| owner.node.way()) else {
                lacking = true;
                continue;
            };
            if let Some(on) = &listening.on
                && on.link == way.live.number
            {
                lacking |= !on.heard;
                if on.heard || now.since(on.asked) < SWEEP {
                    continue;
                }
            }
            if refused.contains_key(&way.live.number) {
                lacking = true;
                listening.waiting.clear();
                continue;
            }
            lacking |= way.live.has_ears();
            listening.on = Some(On {
                link: way.live.number,
                asked: now,
                heard: !way.live.has_ears(),
            });
            if way.live.has_ears() {
                found.push((slot, way, true));
            } else {
                // All channels in one, which the link has from the start.
                ears.stands(slot, next);
            }
        }
        ears.lacking |= lacking;
        found
    }

    async fn ask_to_hear(&self, slot: u16, way: Way, wanted: bool) {
        let channel = slots::channel(slot, self.client);
        let Err(error) = way.live.hear(&channel, wanted).await else {
            return;
        };
        let mut refused = false;
        if let Some(error) = &error {
            match (error.code(), error.details().unwrap_or_default()) {
                ("MOVED", details) => {
                    if let Some((slot, place)) = slots::redirection(details, &place_of(&way)) {
                        self.moved(slot, &place, &way);
                    }
                }
                ("CLUSTERDOWN", _) => self.doubt(slot),
                // Whatever else is in the way passes.
                _ => refused = wanted && is_closed_to_us(error),
            }
        }
        let mut ears = self.ears.lock();
        if refused {
            let until = self.clock.now().plus(IDLE);
            ears.refused.insert(way.live.number, until);
            self.remark(&ears);
        }
        if let Some(listening) = ears.slots.get_mut(&slot)
            && let Some(on) = listening.on
            && on.link == way.live.number
            && !on.heard
        {
            // Tried again when the map has changed, or at the next sweep. Until then it is polled.
            tracing::debug!(slot, server = %way.live.peer.place, error = ?error.map(|error| printable(&error.to_string())), "can't listen");
            listening.on = None;
            listening.waiting.clear();
            ears.lacking = true;
        }
    }

    // -- the supervisor ------------------------------------------------------------------------------------------

    pub(super) async fn run(&self) {
        let _turn = self.turn.lock().await;
        let closed = async {
            loop {
                let closing = self.closing.notified();
                if self.is_closed() {
                    return;
                }
                closing.await;
            }
        };
        tokio::select! {
            biased;
            () = closed => {}
            never = self.keep_map() => match never {},
            never = self.keep_ears() => match never {},
            never = self.keep_nodes() => match never {},
        }
    }

    async fn keep_nodes(&self) -> std::convert::Infallible {
        let mut driven: HashMap<Place, Arc<Node>> = HashMap::new();
        let mut running = FuturesUnordered::new();
        loop {
            let nodes: Vec<Arc<Node>> = self.map.lock().nodes.values().cloned().collect();
            driven.retain(|_, node| nodes.iter().any(|known| Arc::ptr_eq(known, node)));
            for node in nodes {
                if !driven.contains_key(&node.place) {
                    driven.insert(node.place.clone(), node.clone());
                    running.push(self.drive(node));
                }
            }
            tokio::select! {
                biased;
                () = self.undriven.notified() => {}
                Some(()) = running.next() => {}
            }
        }
    }

    async fn drive(&self, node: Arc<Node>) {
        let follow = async {
            let mut last = None;
            loop {
                let changes = node.linker.changes();
                self.changed.notify_waiters();
                let up = node.linker.up().map(|live| live.number);
                if up != last {
                    if up.is_some() {
                        self.relinks.send_modify(|number| *number += 1);
                        self.ears.lock().all_due = true;
                        self.ears_changed.notify_one();
                    } else {
                        self.doubt.notify_one();
                    }
                    last = up;
                }
                changes.await;
            }
        };
        tokio::select! {
            biased;
            () = follow => {}
            () = node.linker.run() => {}
        }
    }

    pub(super) async fn close(&self, patience: Duration) {
        self.closed.store(true, Ordering::Release);
        let nodes: Vec<Arc<Node>> = self.map.lock().nodes.values().cloned().collect();
        for node in nodes {
            node.linker.end();
        }
        self.closing.notify_waiters();
        self.changed.notify_waiters();
        let _ = timeout(patience, self.turn.lock()).await;
    }
}

/// Where a link leads to.
pub(super) fn place_of(way: &Way) -> Place {
    match &way.live.peer.address {
        Address::Tcp(host, port) => (host.clone(), *port),
        // A cluster has no others.
        _ => (String::new(), 0),
    }
}

impl Node {
    fn way(&self) -> Option<Way> {
        Some(Way {
            live: self.linker.up()?,
            linker: self.linker.clone(),
        })
    }
}

impl Map {
    /// Those that serve something, each once.
    fn masters(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values().filter(|node| {
            self.slots
                .iter()
                .flatten()
                .any(|owner| Arc::ptr_eq(&owner.node, node))
        })
    }
}

impl Listening {
    fn new() -> Self {
        Self {
            until: Moment(Duration::ZERO),
            on: None,
            counted_on: false,
            generation: 0,
            waiting: Vec::new(),
        }
    }

    fn is_heard_on(&self, way: &Way) -> bool {
        self.on.is_some_and(|on| on.link == way.live.number && on.heard)
    }
}

impl Ears {
    /// It is listened to from now on.
    fn stands(&mut self, slot: u16, generation: u64) {
        let Some(listening) = self.slots.get_mut(&slot) else {
            return;
        };
        if listening.counted_on {
            listening.generation = generation;
            self.moved = true;
        }
        // From now on: it may come to stand elsewhere.
        listening.counted_on = true;
        for told in listening.waiting.drain(..) {
            let _ = told.send(());
        }
    }
}
