//! The link: one connection for commands, one for pushes, and the supervisor that keeps both up. (A third, for what must be
//! acknowledged by replicas, is `replicas`' own, and ends with the link.)
//!
//! The engine is the crate's `MultiplexedConnection`; its own ways to reconnect are not used, as they give up, and say
//! nothing when pushes were missed. What this file keeps:
//!
//! - **A link is whole or it is not there.** Both connections are made, checked and subscribed before the link is published;
//!   when either fails both go, as pushes may have been missed, and the next link has the next generation.
//! - **Everything lives in [`Linker::run`].** The tasks that drive the connections belong to `JoinSet`s that it owns: dropping it
//!   closes both connections, and ends every call that waits on them. Whatever a server sends that the crate's parser can't
//!   bear ends a task, not the supervisor.
//! - **It never gives up.** The first attempt after a loss is made at once, the further ones after a growing, capped,
//!   random pause. A link that breaks as soon as it is up, before any call was answered, counts as a failed attempt.
//!
//! It refuses to know what a call means: that is for `super` and `scripts`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{PushInfo, PushKind, RedisError, ServerError, ServerErrorKind, Value};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::backend::redis::check::{Mode, check};
use crate::backend::redis::dial::Peer;
use crate::backend::redis::options::{RedisOptions, Target, Where};
use crate::backend::redis::refusal::{CHANNELS, printable};
use crate::backend::redis::replicas::{Ask, confirm};
use crate::backend::redis::{scripts, sentinel, slots};
use crate::backend::{Sink, Told};
use crate::clock::{Clock, Moment};
use crate::entropy;
use crate::error::{Error, ErrorKind};
use crate::looking::ChangeSet;
use crate::protocol::ClientId;

/// The longest pause between two attempts, and how long a link that answered nothing must have been up to count as a success.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// What the pause can be at most after the first failed attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// How often Sentinels are asked again while a server that they named does not answer.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// An answer of a cluster's node that took longer is in doubt. No failover is quicker: before it stands for election a replica waits that
/// long, after the others have missed the master for as long as they are set to.
pub(super) const LATE: Duration = Duration::from_millis(500);

/// Where the link is in its life.
pub(super) enum State {
    /// There is none; with why, once anything was tried.
    Down(Option<Error>),
    Up(Arc<Live>),
    Closed,
}

/// A link, and whose it is: where a command goes.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) linker: Arc<Linker>,
    pub(super) live: Arc<Live>,
}

/// What a node of a cluster says of a channel of one of its slots.
#[derive(Clone, Copy)]
pub(super) enum Ear<'a> {
    /// We listen to it.
    Heard(&'a [u8]),
    /// We do not any more.
    Gone(&'a [u8]),
}

/// Who wants to know, with the number of the link.
type Ears = Box<dyn Fn(u64, Ear<'_>) + Send + Sync>;

/// What is not as it should be, by the place where it was found. Nodes of one cluster share it: what is found at several is said once.
#[derive(Default)]
pub(super) struct Remarks(Mutex<HashMap<String, Vec<String>>>);

impl Remarks {
    /// At this place it is that, from now on. What is new about it: said of no place so far.
    pub(super) fn remember<'a>(&self, place: &str, remarks: &'a [String]) -> Vec<&'a String> {
        let mut known = self.0.lock();
        let new = remarks
            .iter()
            .filter(|remark| !known.values().any(|said| said.contains(remark)));
        let new = new.collect();
        known.insert(place.to_owned(), remarks.to_vec());
        new
    }

    /// Of no concern any more.
    pub(super) fn forget(&self, place: &str) {
        self.0.lock().remove(place);
    }

    /// Of all places, each once.
    pub(super) fn all(&self) -> Vec<String> {
        let mut all: Vec<String> = self.0.lock().values().flatten().cloned().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// That waiters have to poll. `sharded`: at a node of a cluster, by messages of its slots.
pub(super) fn no_messages(sharded: bool) -> String {
    let rights = if sharded {
        "+ssubscribe +sunsubscribe +spublish"
    } else {
        "+subscribe +publish"
    };
    format!(
        "the server carries no messages for this user, so waiters poll for their grants, which takes them longer: give it the rights \
         {rights} {CHANNELS}, and the same to everybody who uses the same names, or set `spin`"
    )
}

/// A link that is up.
pub(super) struct Live {
    /// No other link of this process has it.
    pub(super) number: u64,
    /// Whom it links to.
    pub(super) peer: Peer,
    /// Since which fail-over that is the primary, where Sentinels say so.
    epoch: Option<u64>,
    /// For commands. Clone it: it is a handle.
    pub(super) connection: MultiplexedConnection,
    /// The number of clients that `PUBLISH` says heard a message is all of them.
    pub(super) trust: bool,
    /// Messages arrive. Otherwise grants are found by asking.
    pub(super) pushes: bool,
    /// Scripts are sent whole, as the server does not take them by their hash.
    pub(super) by_source: bool,
    /// What is not as it should be.
    remarks: Vec<String>,
    /// What replicas must know.
    pub(super) asks: mpsc::UnboundedSender<Ask>,
    /// It has channels of slots, and this client listens to those; otherwise to one for all.
    pub(super) sharded: bool,
    /// None where there are no pushes.
    subscriber: Option<MultiplexedConnection>,
    /// The server lets us listen.
    listens: bool,
    /// What a cluster knows it by, if it is a node of one.
    pub(super) node: Option<String>,
    /// What its clock said last, and whether it keeps up.
    pub(super) pace: Arc<Pace>,
    /// It tells which names change. Held while it is asked to.
    pub(super) tracks: tokio::sync::Mutex<bool>,
    /// It has carried an answer that made sense.
    proved: AtomicBool,
    faults: mpsc::Sender<Error>,
}

impl Live {
    /// Slots are listened to here, one by one.
    pub(super) fn has_ears(&self) -> bool {
        self.sharded && self.listens
    }

    /// Asks to listen to a channel of a slot, or not to any more. That it came true is told by an [`Ear`]; here only what was said
    /// against it, if it came to that. It may have been meant for another such command: see `cluster`.
    pub(super) async fn hear(&self, channel: &str, wanted: bool) -> Result<(), Option<ServerError>> {
        let Some(subscriber) = &self.subscriber else {
            return Err(None);
        };
        match ask_to_hear(subscriber, channel, wanted).await {
            Ok(Some(error)) => Err(Some(error)),
            Ok(None) => Ok(()),
            // The link's supervisor sees that as well.
            Err(_) => Err(None),
        }
    }

    /// A call that was sent then got its answer, which may tell the time.
    pub(super) fn prove(&self, sent: Moment, now_us: Option<u64>) {
        if let Some(now_us) = now_us {
            let mut beats = self.pace.beats.lock();
            if beats.told.is_none_or(|told| told.sent <= sent) {
                beats.told = Some(Told { sent, now_us });
            }
        }
        // Looked at first, as every call comes by here and the value changes once.
        if !self.proved.load(Ordering::Relaxed) {
            self.proved.store(true, Ordering::Relaxed);
        }
    }
}

/// Whether a server answers at once. One that was stopped for long enough may have been replaced without knowing, and answers as if
/// nothing had happened when it goes on; so what comes late is in doubt until others have confirmed that it is still in charge.
#[derive(Default)]
pub(super) struct Pace {
    beats: Mutex<Beats>,
    /// Others are asked by one at a time, for all who wait meanwhile.
    pub(super) asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Beats {
    told: Option<Told>,
    /// Calls that were not answered yet, and when the last was answered, or the first of these was sent.
    open: usize,
    since: Option<Moment>,
    doubted: bool,
    /// When others were last asked who then said that it is in charge.
    vouched: Option<Moment>,
    /// When others were last asked and nobody said anything.
    in_vain: Option<Moment>,
}

impl Pace {
    /// A call is sent. Until it is answered or given up.
    pub(super) fn open(&self, now: Moment) -> OpenCall<'_> {
        let mut beats = self.beats.lock();
        if beats.open == 0 {
            beats.since = Some(now);
        }
        beats.open += 1;
        OpenCall(self)
    }

    /// It was answered late.
    pub(super) fn doubt(&self) {
        self.beats.lock().doubted = true;
    }

    /// It is in charge, others say who were asked then.
    pub(super) fn vouch(&self, asked: Moment) {
        let mut beats = self.beats.lock();
        beats.doubted = false;
        beats.vouched = Some(asked);
    }

    /// Whether somebody has been asked since `then`.
    pub(super) fn is_vouched(&self, then: Moment) -> bool {
        self.beats.lock().vouched.is_some_and(|asked| asked >= then)
    }

    /// Nobody could say whether it is in charge, who was asked then.
    pub(super) fn ask_in_vain(&self, asked: Moment) {
        self.beats.lock().in_vain = Some(asked);
    }

    /// Whether others have been asked in vain since `then`.
    pub(super) fn is_asked_in_vain(&self, then: Moment) -> bool {
        self.beats.lock().in_vain.is_some_and(|asked| asked >= then)
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.beats.lock().doubted
    }

    /// Whether what it says unasked is to be ignored: it is in doubt, or has not answered what it was asked.
    fn is_behind(&self, now: Moment) -> bool {
        let beats = self.beats.lock();
        beats.doubted || beats.open > 0 && beats.since.is_some_and(|since| now.since(since) > LATE)
    }
}

/// A call that is not answered yet.
pub(super) struct OpenCall<'a>(&'a Pace);

impl OpenCall<'_> {
    pub(super) fn answered(self, now: Moment) {
        self.0.beats.lock().since = Some(now);
    }
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        self.0.beats.lock().open -= 1;
    }
}

/// Makes links, one after the other.
pub(super) struct Linker {
    pub(super) options: RedisOptions,
    pub(super) target: Target,
    pub(super) clock: Clock,
    pub(super) client: ClientId,
    sink: Sink,
    /// It is a node of a cluster: links of it are told apart by whoever keeps the ears.
    ears: Option<Ears>,
    state: Mutex<State>,
    /// The state has changed. Wakes in the order in which was waited.
    changed: Notify,
    generation: watch::Sender<u64>,
    /// Who wants to hear which names change, once a link was told to say so.
    observers: Mutex<Vec<Weak<ChangeSet>>>,
    remarks: Arc<Remarks>,
    /// Whoever runs the supervisor. A second one waits for the first to be dropped.
    turn: tokio::sync::Mutex<()>,
}

impl Linker {
    pub(super) fn new(
        options: RedisOptions,
        target: Target,
        client: ClientId,
        clock: Clock,
        sink: Sink,
    ) -> Self {
        Self {
            options,
            target,
            clock,
            client,
            sink,
            ears: None,
            state: Mutex::new(State::Down(None)),
            changed: Notify::new(),
            generation: watch::channel(0).0,
            observers: Mutex::default(),
            remarks: Arc::default(),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// Of a node of a cluster. What it says of channels goes to `ears`, with the number of the link; what is not as it should be to what
    /// all its nodes share.
    pub(super) fn of_cluster(mut self, ears: Ears, remarks: Arc<Remarks>) -> Self {
        self.ears = Some(ears);
        self.remarks = remarks;
        self
    }

    pub(super) fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    pub(super) fn trouble(&self) -> Option<Error> {
        match &*self.state.lock() {
            State::Down(why) => why.clone(),
            State::Up(_) => None,
            State::Closed => Some(ErrorKind::Closed.into()),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(&*self.state.lock(), State::Closed)
    }

    /// The link, if there is one.
    pub(super) fn up(&self) -> Option<Arc<Live>> {
        match &*self.state.lock() {
            State::Up(live) => Some(live.clone()),
            _ => None,
        }
    }

    /// Resolves at the next change of its state after this call.
    pub(super) fn changes(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// The link; waits for one if there is none. `None` once it is closed.
    pub(super) async fn live(&self) -> Option<Arc<Live>> {
        self.when(|state| match state {
            State::Up(live) => Some(Some(live.clone())),
            State::Closed => Some(None),
            State::Down(_) => None,
        })
        .await
    }

    /// Waits until `look` finds what it looks for in the state. Cancel safe.
    async fn when<T>(&self, look: impl Fn(&State) -> Option<T>) -> T {
        // Nearly always it is there already.
        if let Some(found) = look(&self.state.lock()) {
            return found;
        }
        loop {
            // Enrol first, look afterwards: a change in between is not missed.
            let changed = self.changed.notified();
            if let Some(found) = look(&self.state.lock()) {
                return found;
            }
            changed.await;
        }
    }

    /// `change` tells whether it did; then all who wait look again.
    fn change(&self, change: impl FnOnce(&mut State) -> bool) -> bool {
        let changed = change(&mut self.state.lock());
        if changed {
            self.changed.notify_waiters();
        }
        changed
    }

    /// Resolves on the first link, or with the first thing that went wrong.
    pub(super) async fn ready(&self, within: Duration) -> Result<(), Error> {
        let known = self.when(|state| match state {
            State::Down(None) => None,
            State::Down(Some(error)) => Some(Err(error.clone())),
            State::Closed => Some(Err(ErrorKind::Closed.into())),
            State::Up(_) => Some(Ok(())),
        });
        // An attempt that may take as long as this has more to tell than that time is up.
        match timeout(within + Duration::from_millis(250), known).await {
            Ok(known) => known,
            Err(_) => Err(self.unreachable(format_args!("gave no answer within {within:?}"))),
        }
    }

    /// `what` happened at the server's place.
    pub(super) fn unreachable(&self, what: impl std::fmt::Display) -> Error {
        ErrorKind::Unreachable(format!("{} {what}", self.target.place)).into()
    }

    /// The supervisor. Ends when the link is closed for good.
    pub(super) async fn run(self: &Arc<Self>) {
        let _turn = self.turn.lock().await;
        let _down = DownOnDrop(self);
        // What was wrong with an earlier runtime is of no concern to this one.
        self.take_down(None);
        let closed = self.when(|state| matches!(state, State::Closed).then_some(()));
        tokio::select! {
            biased;
            never = self.keep_linked() => match never {},
            () = closed => {}
        }
    }

    /// There will be no link any more. The supervisor ends.
    pub(super) fn end(&self) {
        self.change(|state| {
            *state = State::Closed;
            true
        });
    }

    /// Once it is closed, and the supervisor has ended or does not within `patience`.
    pub(super) async fn close(&self, patience: Duration) {
        self.end();
        let _ = timeout(patience, self.turn.lock()).await;
    }

    async fn keep_linked(self: &Arc<Self>) -> std::convert::Infallible {
        let mut failures = 0;
        loop {
            if failures > 0 {
                sleep(pause(failures)).await;
            }
            let link = match self.attempt().await {
                Ok(link) => link,
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(server = %self.target.place, %error, "no link");
                    } else {
                        tracing::debug!(server = %self.target.place, %error, failures, "still no link");
                    }
                    self.take_down(Some(error));
                    failures = failures.saturating_add(1);
                    continue;
                }
            };
            let up = self.clock.now();
            let live = link.live.clone();
            self.put_up(&live);
            let error = self.watch_over(link).await;
            if live.proved.load(Ordering::Relaxed) || self.clock.now().since(up) >= LONGEST_PAUSE {
                failures = 0;
            } else {
                failures = failures.saturating_add(1);
            }
            tracing::warn!(server = %self.target.place, %error, "link lost");
        }
    }

    fn put_up(&self, live: &Arc<Live>) {
        let up = self.change(|state| {
            let open = !matches!(state, State::Closed);
            if open {
                *state = State::Up(live.clone());
            }
            open
        });
        if up {
            for remark in self.remember(&live.remarks) {
                tracing::warn!(server = %live.peer.place, remark, "linked, but");
            }
            // After the link itself, so that whoever polls because of it finds one.
            self.generation.send_modify(|n| *n += 1);
            tracing::info!(server = %self.target.place, generation = *self.generation.borrow(), "linked");
        }
    }

    /// What is new about that.
    pub(super) fn remember<'a>(&self, remarks: &'a [String]) -> Vec<&'a String> {
        self.remarks.remember(&self.target.place, remarks)
    }

    /// What is not as it should be with the server, as found on the last link.
    pub(super) fn remarks(&self) -> Vec<String> {
        self.remarks.all()
    }

    /// Whether grants come by messages. True while there is no link: then nothing comes.
    pub(super) fn pushes(&self) -> bool {
        match &*self.state.lock() {
            State::Up(live) => live.pushes,
            State::Down(_) | State::Closed => true,
        }
    }

    fn take_down(&self, why: Option<Error>) {
        self.change(|state| {
            let open = !matches!(state, State::Closed);
            if open {
                *state = State::Down(why);
            }
            open
        });
    }

    /// Until the link is of no use any more; says why. Both connections are closed then.
    async fn watch_over(&self, link: Link) -> Error {
        let Link {
            live,
            subscriber,
            mut drivers,
            mut faults,
            asked,
        } = link;
        let pulse = async {
            loop {
                sleep(self.options.idle_ping).await;
                let both = tokio::try_join!(ping(&live.peer, &live.connection), async {
                    match &subscriber {
                        Some(subscriber) => ping(&live.peer, subscriber).await,
                        None => Ok(()),
                    }
                });
                if let Err(error) = both {
                    return error;
                }
            }
        };
        let error = tokio::select! {
            biased;
            Some(error) = faults.recv() => error,
            _ = drivers.join_next() => live.peer.unreachable("closed the connection"),
            error = pulse => error,
            error = self.moved(&live.peer, live.epoch, self.options.idle_ping) => error,
            never = confirm(&live.peer, &self.clock, self.options.connect_timeout, asked) => match never {},
        };
        // First nobody finds it any more, then it ends: a call that fails with it waits for the next one.
        self.take_down(Some(error.clone()));
        drivers.shutdown().await;
        error
    }

    /// This link is of no use any more. Does nothing to the links after it.
    pub(super) fn fault(&self, live: &Arc<Live>, error: &Error) {
        // From now on nobody finds it, before the supervisor has even heard of it: callers that repeat at once would find it
        // again and again, and on a small runtime leave the supervisor no turn to take it down.
        self.change(|state| {
            let current = matches!(state, State::Up(up) if Arc::ptr_eq(up, live));
            if current {
                *state = State::Down(Some(error.clone()));
            }
            current
        });
        // One is enough.
        let _ = live.faults.try_send(error.clone());
    }

    /// One attempt, in a task of its own, so that it can be ended, and so that it can end badly.
    async fn attempt(self: &Arc<Self>) -> Result<Link, Error> {
        let accepted = Arc::new(AtomicBool::new(false));
        let mut task = JoinSet::new();
        task.spawn({
            let linker = self.clone();
            let accepted = accepted.clone();
            async move { linker.link(&accepted).await }
        });
        let within = self.options.connect_timeout;
        match timeout(within, task.join_next()).await {
            Ok(Some(Ok(link))) => link,
            Ok(Some(Err(_)) | None) => Err(ErrorKind::Server(format!(
                "{} sent something that can't be read; is it another kind of server?",
                self.target.place
            ))
            .into()),
            Err(_) if accepted.load(Ordering::Relaxed) => Err(self.unreachable(format_args!(
                "took the connection but did not answer within {within:?}; is it a Redis server{}, and is it stopped or overloaded?",
                if self.target.tls.is_some() { " that speaks TLS there" } else { "" }
            ))),
            Err(_) => Err(self.unreachable(format_args!(
                "could not be connected to within {within:?}; is a server running there, does its name resolve, and does a firewall let you through?"
            ))),
        }
    }

    /// Where the server is now, and since which fail-over.
    async fn find(&self) -> Result<(Peer, Option<u64>), Error> {
        match &self.target.at {
            Where::One(address) => {
                let peer = Peer::new(&self.options, &self.target, address.clone());
                Ok((peer.called(self.target.place.clone()), None))
            }
            Where::Sentinel(sentinels) => {
                let named = sentinel::primary(&self.options, &self.target, sentinels).await?;
                if !named.sure() {
                    // Locks of a primary that has been replaced are none.
                    return Err(named.doubt(&self.target, sentinels));
                }
                Ok((named.peer, named.epoch))
            }
            Where::Cluster(_) => Err(self.unreachable("is many servers: a link is to one")),
        }
    }

    /// Resolves when another server has taken over; asks so often. One that is demoted is told so by a Sentinel, and closes its connections;
    /// one that the Sentinels can't reach goes on, or stands still, and only they know.
    async fn moved(&self, peer: &Peer, epoch: Option<u64>, every: Duration) -> Error {
        let Where::Sentinel(sentinels) = &self.target.at else {
            return std::future::pending().await;
        };
        loop {
            sleep(every).await;
            if let Ok(named) = sentinel::primary(&self.options, &self.target, sentinels).await
                && named.replaces(peer, epoch)
            {
                return peer.unreachable(format_args!("is replaced: {} is", named.peer.place));
            }
        }
    }

    async fn link(self: Arc<Self>, accepted: &AtomicBool) -> Result<Link, Error> {
        let (peer, epoch) = self.find().await?;
        tokio::select! {
            biased;
            link = self.link_to(peer.clone(), epoch, accepted) => link,
            // One that stands still would be waited for while another is there.
            error = self.moved(&peer, epoch, ASK_AGAIN) => Err(error),
        }
    }

    async fn link_to(
        self: &Arc<Self>,
        peer: Peer,
        epoch: Option<u64>,
        accepted: &AtomicBool,
    ) -> Result<Link, Error> {
        let mut drivers = JoinSet::new();
        // One place: whatever comes first takes the link down.
        let (report, faults) = mpsc::channel(1);

        let mut connection = self
            .connect(&peer, &mut drivers, accepted, Linker::on_change, &report)
            .await?;
        let found = check(&peer, &mut connection, self.client, self.target.cluster).await?;
        let sharded = self.ears.is_some() && found.shards;
        let mut remarks = found.remarks;

        let (asks, asked) = mpsc::unbounded_channel();
        let pace = Arc::new(Pace::default());
        let number = next_number();
        let (subscriber, listens) = if self.options.pushes {
            let (subscriber, listens) = self
                .subscribe(
                    &peer,
                    &mut drivers,
                    accepted,
                    &report,
                    (number, pace.clone()),
                    sharded,
                )
                .await?;
            (Some(subscriber), listens)
        } else {
            (None, false)
        };
        // Who does without them by intent asks by a back-off of its own, and its id says so.
        let pushes = listens && found.publishes || !self.options.pushes;
        if !pushes {
            remarks.push(no_messages(sharded));
        }

        Ok(Link {
            live: Arc::new(Live {
                number,
                peer,
                epoch,
                connection,
                // Who listens to a slot does so at its master, which counts them. To a message for all a cluster's node counts its own
                // subscribers only. Where the mode is unknown nothing is assumed. And where we hear nothing, others may not either, and
                // wait all the same.
                trust: (found.mode == Mode::Standalone || sharded) && pushes,
                pushes,
                sharded,
                subscriber: subscriber.clone(),
                listens,
                node: found.node,
                by_source: found.by_source,
                remarks,
                asks,
                pace,
                tracks: tokio::sync::Mutex::new(false),
                proved: AtomicBool::new(false),
                faults: report,
            }),
            subscriber,
            drivers,
            faults,
            asked,
        })
    }

    /// The connection that pushes come on, and whether they do: where the server forbids it, or does not have it, the connection is kept all the
    /// same, as it tells as soon as the other one that the server is gone.
    async fn subscribe(
        self: &Arc<Self>,
        peer: &Peer,
        drivers: &mut JoinSet<()>,
        accepted: &AtomicBool,
        report: &mpsc::Sender<Error>,
        (number, pace): (u64, Arc<Pace>),
        sharded: bool,
    ) -> Result<(MultiplexedConnection, bool), Error> {
        let confirmed = Arc::new(AtomicBool::new(false));
        let subscribed = confirmed.clone();
        let mut subscriber = self
            .connect(
                peer,
                drivers,
                accepted,
                move |linker, push| linker.on_push(push, number, &subscribed, &pace),
                report,
            )
            .await?;
        if sharded {
            // To each slot when it is used. That this user may is found out now; where the slot is does not matter to that.
            let probe = format!("{}:ear", slots::channel(0, self.client));
            let (on, off) = tokio::join!(
                ask_to_hear(&subscriber, &probe, true),
                ask_to_hear(&subscriber, &probe, false),
            );
            let mut listens = true;
            for refused in [on, off] {
                let refused = refused.map_err(|error| peer.handshake_failed(&error))?;
                listens &= !refused.is_some_and(|error| is_closed_to_us(&error));
            }
            return Ok((subscriber, listens));
        }
        let channel = scripts::channel(self.client);
        match subscriber.subscribe(channel.as_str()).await {
            Ok(()) if confirmed.load(Ordering::Acquire) => Ok((subscriber, true)),
            Ok(()) => Err(peer.strange("it did not confirm a subscription")),
            Err(error) if ServerError::try_from(error.clone()).is_ok_and(|error| is_closed_to_us(&error)) => {
                Ok((subscriber, false))
            }
            Err(error) => Err(peer.handshake_failed(&error)),
        }
    }

    /// One connection to a server; what happens to it is reported, and its pushes go to `on_push`.
    async fn connect(
        self: &Arc<Self>,
        peer: &Peer,
        drivers: &mut JoinSet<()>,
        accepted: &AtomicBool,
        on_push: impl Fn(&Linker, PushInfo) + Send + Sync + 'static,
        report: &mpsc::Sender<Error>,
    ) -> Result<MultiplexedConnection, Error> {
        let linker = self.clone();
        let report = report.clone();
        let closed = peer.unreachable("closed the connection");
        let config = peer.config().set_push_sender(move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                let _ = report.try_send(closed.clone());
            } else {
                on_push(&linker, push);
            }
            Ok::<(), ()>(())
        });
        peer.connect(drivers, config, || accepted.store(true, Ordering::Relaxed))
            .await
    }

    /// This set hears which names change, for as long as it lives. Whether it did not before.
    pub(super) fn observe(&self, set: &Arc<ChangeSet>) -> bool {
        let mut observers = self.observers.lock();
        observers.retain(|other| other.strong_count() > 0);
        let new = !observers.iter().any(|other| other.as_ptr() == Arc::as_ptr(set));
        if new {
            observers.push(Arc::downgrade(set));
        }
        new
    }

    pub(super) fn anything_changed(&self) {
        self.each_observer(ChangeSet::anything);
    }

    fn each_observer(&self, tell: impl Fn(&ChangeSet)) {
        for set in self.observers.lock().iter().filter_map(Weak::upgrade) {
            tell(&set);
        }
    }

    /// What comes on the connection for commands.
    fn on_change(&self, push: PushInfo) {
        match (push.kind, push.data.first()) {
            (PushKind::Invalidate, Some(Value::Array(keys))) => {
                for key in keys {
                    if let Value::BulkString(key) = key
                        && let Some((name, _)) = scripts::name_of(key)
                    {
                        self.each_observer(|set| set.name(name.clone()));
                    }
                }
            }
            // All of them: the data was flushed.
            (PushKind::Invalidate, _) => self.anything_changed(),
            (kind, _) => no_concern(&kind),
        }
    }

    fn on_push(&self, push: PushInfo, number: u64, subscribed: &AtomicBool, pace: &Pace) {
        match push.kind {
            PushKind::Subscribe => subscribed.store(true, Ordering::Release),
            PushKind::SSubscribe | PushKind::SUnsubscribe => {
                if let (Some(ears), Some(Value::BulkString(channel))) = (&self.ears, push.data.first()) {
                    let ear = match push.kind {
                        PushKind::SSubscribe => Ear::Heard(channel),
                        _ => Ear::Gone(channel),
                    };
                    ears(number, ear);
                }
            }
            // A push is a hint: what it tells of is found by asking, and that is answered by whoever is in charge.
            PushKind::Message | PushKind::SMessage
                if self.ears.is_some() && pace.is_behind(self.clock.now()) =>
            {
                tracing::debug!(server = %self.target.place, "a push of a server that is behind");
            }
            PushKind::Message | PushKind::SMessage => match push.data.get(1) {
                Some(Value::BulkString(payload)) => match scripts::decode_push(payload) {
                    Ok(push) => {
                        let told = pace.beats.lock().told;
                        (self.sink)(push, told);
                    }
                    Err(malformed) => {
                        let malformed = printable(&malformed.to_string());
                        tracing::warn!(server = %self.target.place, malformed, "a push that can't be read");
                    }
                },
                _ => tracing::warn!(server = %self.target.place, "a push that can't be read"),
            },
            kind => no_concern(&kind),
        }
    }
}

/// No two links of a process have the same.
fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn no_concern(kind: &PushKind) {
    tracing::debug!(%kind, "a push of no concern");
}

/// Whatever it answers, it is there.
async fn ping(peer: &Peer, connection: &MultiplexedConnection) -> Result<(), Error> {
    let mut connection = connection.clone();
    match connection.send_packed_command(&::redis::cmd("PING")).await {
        Ok(_) => Ok(()),
        Err(error) => Err(peer.broken(&error)),
    }
}

/// A link that is whole, not published yet.
struct Link {
    live: Arc<Live>,
    /// None where there are no pushes.
    subscriber: Option<MultiplexedConnection>,
    drivers: JoinSet<()>,
    faults: mpsc::Receiver<Error>,
    asked: mpsc::UnboundedReceiver<Ask>,
}

/// When the supervisor is dropped its link goes too: nobody shall find it any more.
struct DownOnDrop<'a>(&'a Linker);

impl Drop for DownOnDrop<'_> {
    fn drop(&mut self) {
        let why = self
            .0
            .unreachable("is not linked: the runtime that kept the link was shut down");
        self.0.take_down(Some(why));
    }
}

/// Sends a command about a channel of a slot; what was said against it, if anything.
async fn ask_to_hear(
    subscriber: &MultiplexedConnection,
    channel: &str,
    wanted: bool,
) -> Result<Option<ServerError>, RedisError> {
    let mut command = ::redis::cmd(if wanted { "SSUBSCRIBE" } else { "SUNSUBSCRIBE" });
    command.arg(channel);
    match subscriber.clone().send_packed_command(&command).await? {
        Value::ServerError(error) => Ok(Some(error)),
        _ => Ok(None),
    }
}

/// The server says that this is not to be had, or not for us.
pub(super) fn is_closed_to_us(error: &ServerError) -> bool {
    error.kind() == Some(ServerErrorKind::NoPerm)
        || error.details().unwrap_or_default().starts_with("unknown command")
}

/// The most that is waited, doubled with each failure; then any part of that, so that clients which lost the same server
/// do not come back as one.
fn pause(failures: u32) -> Duration {
    let most = FIRST_PAUSE
        .saturating_mul(1 << failures.saturating_sub(1).min(10))
        .min(LONGEST_PAUSE);
    jitter(most)
}

/// Between nothing and `most`.
pub(super) fn jitter(most: Duration) -> Duration {
    #[allow(clippy::cast_precision_loss)] // a random number stays one
    most.mul_f64((entropy::bits() >> 11) as f64 / (u64::MAX >> 11) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_were_asked_meanwhile_holds_for_all_who_wait_to_ask() {
        let at = |seconds| Moment(Duration::from_secs(seconds));
        let pace = Pace::default();
        assert!(!pace.is_asked_in_vain(at(0)) && !pace.is_vouched(at(0)));
        pace.ask_in_vain(at(2));
        pace.vouch(at(4));
        for (came, in_vain, vouched) in [
            (1, true, true),
            (2, true, true),
            (3, false, true),
            (5, false, false),
        ] {
            assert_eq!(pace.is_asked_in_vain(at(came)), in_vain, "{came}");
            assert_eq!(pace.is_vouched(at(came)), vouched, "{came}");
        }
    }

    #[test]
    fn pauses_grow_and_are_capped() {
        for failures in 1..100 {
            let most = Duration::from_millis(10 << (failures - 1).min(10)).min(LONGEST_PAUSE);
            assert!(pause(failures) <= most);
        }
        assert!((0..100).map(|_| pause(30)).max().unwrap() > LONGEST_PAUSE / 2);
        let _ = pause(u32::MAX);
    }

    #[test]
    fn what_several_nodes_lack_is_said_once_and_again_when_it_comes_back() {
        let (remarks, lacks) = (Remarks::default(), [no_messages(true)]);
        assert_eq!(remarks.remember("a", &lacks).len(), 1);
        for place in ["b", "c", "a"] {
            assert_eq!(remarks.remember(place, &lacks).len(), 0, "{place}");
        }
        assert_eq!(remarks.all(), lacks);
        for place in ["a", "b"] {
            remarks.remember(place, &[]);
        }
        assert_eq!(remarks.remember("a", &lacks).len(), 0, "c has it still");
        remarks.remember("a", &[]);
        remarks.forget("c");
        assert_eq!(remarks.all(), Vec::<String>::new());
        assert_eq!(remarks.remember("b", &lacks).len(), 1);
    }
}
