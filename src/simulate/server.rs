//! The simulated server: speaks RESP3, and asks the machine of `state.rs` what a script would say.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::backend::redis::simulated::{channel, payload, reply};
use crate::protocol::{
    Acquired, Answer, Call, ClientId, HeldRow, Mode, Name, Operation, Polled, Push, Released, Renewed, Reply,
    Snapshot, Withdrawn, WithdrawnFrom,
};
use crate::state::{Context, LockState, Tuning};

use super::log::Lane;
use super::plan::{Fault, Flaw, Plan};
use super::world::{Event, Meant, State, Words};

/// Its clock when the simulation begins: some time in 2026, in microseconds.
const EPOCH_US: u64 = 1_780_000_000_000_000;

/// How far its clock is set forward at most, in a whole run: less than the 2 ms that every lease bears.
const AHEAD_US: u64 = 1999;
/// How far it is set back at most at once.
pub(super) const BACK_MS: u64 = 400;

pub(super) type Names = BTreeMap<Name, LockState>;

pub(super) struct Server {
    pub(super) up: bool,
    pub(super) stalled_until: u64,
    /// Refuses with this.
    pub(super) refuses: Option<&'static str>,
    scripts: BTreeSet<String>,
    pub(super) names: Names,
    /// What a replica knows, by when it was so.
    past: VecDeque<(u64, Names)>,
    idle_since: BTreeMap<Name, u64>,
    announced: BTreeSet<Vec<u8>>,
    /// How far its clock has been set, in microseconds.
    pub(super) set_us: i64,
    /// How far it may yet be set forward.
    ahead_us: u64,
    trust: bool,
}

impl Server {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            up: true,
            stalled_until: 0,
            refuses: None,
            scripts: BTreeSet::new(),
            names: BTreeMap::new(),
            past: VecDeque::new(),
            idle_since: BTreeMap::new(),
            announced: BTreeSet::new(),
            set_us: 0,
            ahead_us: AHEAD_US,
            trust: plan.trust,
        }
    }

    pub(super) fn now_us(&self, now_ms: u64) -> u64 {
        (EPOCH_US + now_ms * 1000).saturating_add_signed(self.set_us)
    }

    /// When its clock will show this.
    fn when_ms(&self, server_ms: u64) -> u64 {
        let us = (server_ms * 1000).saturating_add_signed(-self.set_us);
        us.saturating_sub(EPOCH_US).div_ceil(1000)
    }

    pub(super) fn flush_scripts(&mut self) {
        self.scripts.clear();
    }

    /// Another process, or another machine: only what is in `names` is left.
    pub(super) fn begin_again(&mut self, names: Names) {
        self.names = names;
        self.idle_since.clear();
        self.scripts.clear();
        self.refuses = None;
    }

    /// What a replica that is so far behind knows.
    pub(super) fn replica(&self, now_ms: u64, behind_ms: u64) -> Names {
        self.past
            .iter()
            .rev()
            .find(|(at_ms, _)| at_ms + behind_ms <= now_ms)
            .map(|(_, names)| names.clone())
            .unwrap_or_default()
    }

    /// Who has been granted a hold, whether or not its lease has run out.
    fn granted(&self, name: &Name) -> Vec<HeldRow> {
        self.names
            .get(name)
            .map(|state| state.snapshot(1000).holding)
            .unwrap_or_default()
    }

    /// Who holds, or would if anybody asked now.
    pub(super) fn holding(&self, name: &Name, now_ms: u64, tuning: Tuning) -> Vec<HeldRow> {
        let Some(state) = self.names.get(name) else {
            return Vec::new();
        };
        let rows = state.snapshot(1000).holding;
        let server_ms = self.now_us(now_ms) / 1000;
        if rows.iter().all(|row| row.deadline_ms > server_ms) {
            return rows;
        }
        self.inspect(&mut state.clone(), now_ms, tuning).holding
    }

    fn inspect(&self, state: &mut LockState, now_ms: u64, tuning: Tuning) -> Snapshot {
        let context = Context {
            now_us: self.now_us(now_ms),
            tuning,
            heard: &|_| true,
        };
        match state.apply(&Operation::Inspect(1000), &context).0.reply {
            Reply::Inspect(snapshot) => snapshot,
            _ => Snapshot::default(),
        }
    }

    /// Who holds and who waits, once what has lapsed is gone.
    pub(super) fn left(&self, now_ms: u64, tuning: Tuning) -> Vec<String> {
        let mut left = Vec::new();
        for (name, state) in &self.names {
            let seen = self.inspect(&mut state.clone(), now_ms, tuning);
            left.extend(
                seen.holding
                    .iter()
                    .map(|row| format!("{} held in {name} by {}", row.mode, row.request)),
            );
            left.extend(
                seen.waiting
                    .iter()
                    .map(|row| format!("{} waiting in {name}: {}", row.mode, row.request)),
            );
        }
        left
    }

    /// A name that nobody uses expires: when its fence has been kept for long enough, and its marks are over.
    /// Tells whether it has.
    fn expire(&mut self, name: &Name, now_ms: u64, tuning: Tuning) -> bool {
        let server_ms = self.now_us(now_ms) / 1000;
        let Some(state) = self.names.get(name) else {
            return false;
        };
        if !state.is_idle() {
            self.idle_since.remove(name);
        } else if let Some(since) = self.idle_since.get(name) {
            // Never before the time that its fence is: the key's expiry is an absolute time after its last lease.
            let fence_ms = state.snapshot(0).fence / 1000;
            if server_ms
                > (since + tuning.retention_ms)
                    .max(fence_ms)
                    .max(state.marked_until_ms())
            {
                self.names.remove(name);
                self.idle_since.remove(name);
                return true;
            }
        } else {
            self.idle_since.insert(name.clone(), server_ms);
        }
        false
    }
}

fn bulk(bytes: &[u8]) -> Vec<u8> {
    let mut out = format!("${}\r\n", bytes.len()).into_bytes();
    out.extend(bytes);
    out.extend(b"\r\n");
    out
}

impl State {
    /// A command has arrived. Over a connection, or as a copy whose answer nobody hears.
    pub(super) fn execute(&mut self, wire: Option<u64>, client: usize, words: &Words) {
        let word = |at: usize| words.get(at).map_or(&b""[..], Vec::as_slice);
        let verb = word(0).to_ascii_uppercase();
        let mut is_call = false;
        let bytes = match verb.as_slice() {
            b"HELLO" => b"%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n".to_vec(),
            b"PING" => b"+PONG\r\n".to_vec(),
            b"INFO" => {
                let mode = if self.server.trust {
                    "standalone"
                } else {
                    "proxied"
                };
                bulk(format!("redis_version:7.0.15\r\nredis_mode:{mode}\r\n").as_bytes())
            }
            b"SCRIPT" => {
                let sha1 = sha1(word(2));
                self.server.scripts.insert(sha1.clone());
                bulk(sha1.as_bytes())
            }
            b"SUBSCRIBE" => {
                if let Some(wire) = wire.and_then(|id| self.wires.get_mut(&id)) {
                    let of = self.referee.clients.get(&wire.client).copied();
                    wire.subscribed = of.filter(|of| channel(*of).as_bytes() == word(1));
                }
                let mut out = b">3\r\n$9\r\nsubscribe\r\n".to_vec();
                out.extend(bulk(word(1)));
                out.extend(b":1\r\n");
                out
            }
            b"SET" => {
                self.server.announced.insert(word(1).to_vec());
                b"+OK\r\n".to_vec()
            }
            b"DEL" => {
                self.server.announced.remove(word(1));
                b":1\r\n".to_vec()
            }
            // What processes say of themselves differs from run to run; so all say the same here.
            b"GET" if self.server.announced.contains(word(1)) => bulk(b"host\n1\nsimulation\n0"),
            b"GET" => b"_\r\n".to_vec(),
            b"EVALSHA" | b"EVAL" => {
                is_call = true;
                self.script(client, verb == b"EVAL", words)
            }
            _ => b"+OK\r\n".to_vec(),
        };
        if let Some(wire) = wire {
            self.reply(wire, bytes, is_call);
        }
    }

    fn script(&mut self, client: usize, with_source: bool, words: &Words) -> Vec<u8> {
        if let Some(refusal) = self.server.refuses {
            return format!("-{refusal}\r\n").into_bytes();
        }
        let word = |at: usize| {
            words
                .get(at)
                .map_or("", |word| std::str::from_utf8(word).unwrap_or(""))
        };
        if with_source {
            self.server.scripts.insert(sha1(word(1).as_bytes()));
        } else if !self.server.scripts.contains(word(1)) {
            return b"-NOSCRIPT No matching script. Please use EVAL.\r\n".to_vec();
        }
        // Which rights are missing? A call has five keys.
        if word(2) == "1" {
            return b"*0\r\n".to_vec();
        }
        // The first argument is the call's number; what it means was told beside the bytes.
        let keys: usize = word(2).parse().unwrap_or(0);
        let number: u64 = word(3 + keys).parse().unwrap_or(0);
        match self.meant.get(&(client, number)).cloned() {
            Some(meant) => {
                let meant = match self.plan.flaw {
                    Some(Flaw::ResentIsNew) if self.referee.knows(&meant.call) => Arc::new(meant.as_new()),
                    _ => meant,
                };
                let answer = self.step(client, &meant);
                reply(&meant.call, number, &answer)
            }
            None => {
                self.violate(|| format!("client {client} sent a call that it never made: {number}"));
                b"-ERR no such call\r\n".to_vec()
            }
        }
    }

    /// One step of the machine.
    fn step(&mut self, client: usize, meant: &Meant) -> Answer {
        let Meant { call, tuning, trust } = meant;
        let parts = call.parts();
        if !parts.is_empty() {
            let part = |call| Meant {
                call,
                tuning: *tuning,
                trust: *trust,
            };
            return Answer::joined(parts.into_iter().map(|call| self.step(client, &part(call))));
        }
        let now_us = self.server.now_us(self.now_ms);
        if let Some(answer) = self.forget(call, now_us) {
            return answer;
        }
        let listening: BTreeSet<ClientId> = self
            .wires
            .values()
            .filter(|wire| wire.open)
            .filter_map(|wire| wire.subscribed)
            .collect();
        let context = Context {
            now_us,
            tuning: *tuning,
            heard: &|client| !trust || listening.contains(&client),
        };
        if self.server.expire(&call.name, self.now_ms, *tuning) {
            self.referee.expired(&call.name);
        }
        let state = self.server.names.entry(call.name.clone()).or_default();
        let mut before = state.snapshot(1000);
        before.holding.retain(|row| row.deadline_ms > now_us / 1000);
        let (mut answer, mut pushes) = state.apply(&call.operation, &context);
        if self.plan.flaw == Some(Flaw::LongGrants) {
            pushes.iter_mut().for_each(|(_, push)| lengthen(push));
        }
        if self.plan.flaw == Some(Flaw::FencesReused)
            && let Operation::Acquire(op) = &call.operation
            && let Reply::Acquire(Acquired::Granted(grant)) = &mut answer.reply
            && op.mode == Mode::Write
            && before.holding.is_empty()
            && self.referee.wrote(&call.name, before.fence) == Some(op.owner)
        {
            grant.fence = before.fence;
        }
        self.log.event(self.now_ms, Lane::Server, now_us, || {
            let told: String = pushes
                .iter()
                .map(|(to, push)| format!("; tells {to} {}", payload(push)))
                .collect();
            format!(
                "client {client}: {} {} -> {}{told}",
                call.name,
                say(&call.operation),
                answered(&answer.reply)
            )
        });
        let believed_us = match self.plan.flaw {
            // Of which the referee must not know.
            Some(Flaw::FencesByCount) => u64::MAX,
            _ => now_us,
        };
        self.referee.step(call, &answer, &pushes, &before, believed_us);
        if self.plan.flaw == Some(Flaw::LossDenied) {
            self.deny_losses(call, &mut answer, now_us);
        }
        if let Some(wrong) = self.referee.wrong.take() {
            self.violate(|| wrong);
        }
        if self.plan.flaw == Some(Flaw::GrantsWithheld) {
            pushes.retain(|(_, push)| !matches!(push, Push::Granted { .. }));
            if let Reply::Poll(rows) = &mut answer.reply {
                rows.fill(Polled::Queued { wake_ms: 0 });
            }
        }
        for (to, push) in pushes {
            let payload = payload(&push);
            let mut bytes = b">3\r\n$7\r\nmessage\r\n".to_vec();
            bytes.extend(bulk(channel(to).as_bytes()));
            bytes.extend(bulk(payload.as_bytes()));
            let to: Vec<u64> = self
                .wires
                .iter()
                .filter(|(_, wire)| wire.open && wire.subscribed == Some(to))
                .map(|(id, _)| *id)
                .collect();
            for wire in to {
                self.push(wire, bytes.clone());
            }
        }
        // From now on it may be idle.
        if self.server.expire(&call.name, self.now_ms, *tuning) {
            self.referee.expired(&call.name);
        }
        if self.plan.does(Fault::FailOver) {
            self.remember();
        }
        self.look(&call.name.clone());
        answer
    }

    /// A flaw made on purpose: the server answers and does nothing.
    fn forget(&self, call: &Call, now_us: u64) -> Option<Answer> {
        let reply = match (&call.operation, self.plan.flaw?) {
            (Operation::Withdraw(_), Flaw::WithdrawalsForgotten) => Reply::Withdraw(Withdrawn {
                was: WithdrawnFrom::Queued,
                blame: Snapshot::default(),
                ahead: 0,
            }),
            (Operation::Acquire(op), Flaw::RefusedForNothing) if op.wait && op.request.number % 8 == 0 => {
                Reply::Acquire(Acquired::Refused)
            }
            (Operation::Release(_), Flaw::ReleasesForgotten) => Reply::Release(Released::Released),
            _ => return None,
        };
        let now_us = (!matches!(reply, Reply::Release(_))).then_some(now_us);
        Some(Answer { now_us, reply })
    }

    /// A flaw made on purpose: what was lost is said to have been renewed.
    fn deny_losses(&self, call: &Call, answer: &mut Answer, now_us: u64) {
        let (Operation::Renew(renewals), Reply::Renew(rows)) = (&call.operation, &mut answer.reply) else {
            return;
        };
        for (renewal, row) in renewals.iter().zip(rows) {
            if matches!(row, Renewed::NotHeld(_)) && self.referee.is_excused(renewal.request) {
                *row = Renewed::Renewed {
                    deadline_ms: now_us / 1000 + renewal.lease_ms,
                };
            }
        }
    }

    /// What a replica may know later.
    fn remember(&mut self) {
        let past = &mut self.server.past;
        if past.back().is_none_or(|(at_ms, _)| at_ms + 20 <= self.now_ms) {
            past.push_back((self.now_ms, self.server.names.clone()));
            if past.len() > 64 {
                past.pop_front();
            }
        }
    }

    /// Its clock is set: back, or now and then forward by less than leases bear. Tells by how much, in microseconds.
    pub(super) fn set_clock(&mut self) -> i64 {
        let forward = self.rng.u8(0..4) == 0;
        let most = if forward {
            self.server.ahead_us
        } else {
            BACK_MS * 1000
        };
        let by_us = self.rng.u64(0..=most);
        let set_us = i64::try_from(by_us).unwrap_or(0);
        if forward {
            self.server.ahead_us -= by_us;
            self.server.set_us += set_us;
            set_us
        } else {
            self.server.set_us -= set_us;
            -set_us
        }
    }

    /// The referee looks at a name, and again when the next lease ends there.
    pub(super) fn look(&mut self, name: &Name) {
        let tuning = self.plan.config.tuning();
        let rows = self.server.holding(name, self.now_ms, tuning);
        let next = rows.iter().map(|row| row.deadline_ms).min();
        let granted = self.server.granted(name);
        let server = &self.server;
        self.referee
            .look(name, &granted, &rows, self.now_ms, |server_ms| {
                server.when_ms(server_ms)
            });
        if let Some(wrong) = self.referee.wrong.take() {
            self.violate(|| wrong);
        }
        if let Some(deadline_ms) = next {
            let at_ms = self.server.when_ms(deadline_ms);
            if at_ms > self.now_ms && self.referee.will_look(name, at_ms, self.now_ms) {
                self.at(at_ms, Event::Look(name.clone()));
            }
        }
    }

    /// The server goes on with what is in `names`.
    pub(super) fn restore(&mut self, names: Names) {
        // Who waits there may be granted something soon, which is another grant.
        let all: Vec<Name> = self.server.names.keys().cloned().collect();
        let before: Vec<Vec<HeldRow>> = all.iter().map(|name| self.server.granted(name)).collect();
        self.server.begin_again(names);
        for (name, rows) in all.iter().zip(before) {
            let left = self.server.granted(name);
            let server = &self.server;
            self.referee
                .data_lost(name, &rows, &left, |server_ms| server.when_ms(server_ms));
            // Nobody may believe in what was lost for longer than this.
            for row in &rows {
                let at_ms = self.server.when_ms(row.deadline_ms) + 1;
                self.at(at_ms, Event::Look(name.clone()));
            }
        }
    }
}

impl Meant {
    /// As if it had never been made before.
    fn as_new(&self) -> Self {
        let mut call = self.call.clone();
        if let Operation::Acquire(op) = &mut call.operation {
            op.request.number += 1_000_000;
        }
        Self { call, ..*self }
    }
}

fn lengthen(push: &mut Push) {
    if let Push::Granted { grants, .. } = push {
        for (_, grant) in grants {
            grant.deadline_ms += 100;
        }
    }
}

/// Of a script; there are only a few.
fn sha1(source: &[u8]) -> String {
    use std::cell::RefCell;
    thread_local! {
        static KNOWN: RefCell<BTreeMap<Vec<u8>, String>> = const { RefCell::new(BTreeMap::new()) };
    }
    KNOWN.with_borrow_mut(|known| {
        if let Some(sha1) = known.get(source) {
            return sha1.clone();
        }
        let text = String::from_utf8_lossy(source);
        let sha1 = redis::Script::new(&text).get_hash().to_owned();
        known.insert(source.to_vec(), sha1.clone());
        sha1
    })
}

fn say(operation: &Operation) -> String {
    match operation {
        Operation::Acquire(op) => {
            let wait = if op.wait { "" } else { " without waiting" };
            let of = op
                .upgrade_of
                .map_or(String::new(), |of| format!(" upgrading {of}"));
            let back = if op.ticket > 0 { " with its ticket" } else { "" };
            format!(
                "acquire {} {} for {} ms{wait}{of}{back}, owner {:.8}",
                op.mode,
                op.request,
                op.lease_ms,
                op.owner.0.to_string()
            )
        }
        Operation::Release(op) => {
            let again = if op.again { " again" } else { "" };
            format!("release {}{again}", op.request)
        }
        Operation::Downgrade(op) => format!("downgrade {} to {}", op.request, op.to),
        Operation::Renew(ops) => {
            let all: String = ops
                .iter()
                .map(|op| format!(" {} for {} ms", op.request, op.lease_ms))
                .collect();
            format!("renew{all}")
        }
        Operation::Withdraw(op) => {
            let of = op.upgrade_of.map_or(String::new(), |of| format!(" back to {of}"));
            format!("withdraw {}{of}", op.request)
        }
        Operation::Poll(members) => {
            let all: String = members
                .iter()
                .map(|member| format!(" {}", member.request))
                .collect();
            format!("poll{all}")
        }
        Operation::Revoke(op) => format!("revoke what was granted by {}", op.granted_by_ms),
        Operation::Inspect(limit) => format!("inspect {limit}"),
    }
}

fn answered(reply: &Reply) -> String {
    match reply {
        Reply::Withdraw(withdrawn) => format!("{:?}", withdrawn.was),
        Reply::Inspect(seen) => format!("{} hold, {} wait", seen.holders, seen.waiters),
        Reply::Acquire(reply) => format!("{reply:?}"),
        Reply::Release(reply) => format!("{reply:?}"),
        Reply::Downgrade(reply) => format!("{reply:?}"),
        Reply::Renew(reply) => format!("{reply:?}"),
        Reply::Poll(reply) => format!("{reply:?}"),
        Reply::Revoke(reply) => format!("{reply:?}"),
    }
}
