//! The scripts, and the codec between them and [`crate::protocol`]: a [`Call`] to KEYS and ARGV, a reply to an [`Answer`], a
//! message to a [`Push`].
//!
//! Strict: what does not look exactly as the scripts' headers say is a [`Malformed`], never a guess and never a panic. Every
//! reply begins with the id of its call; one that does not belong to the call means that replies got out of step on that
//! connection, and nothing more that comes over it can be trusted.
//!
//! No connection here, and no policy.

use std::borrow::Cow;
use std::fmt;
use std::sync::LazyLock;

use redis::Value;

use crate::looking::Pattern;
use crate::protocol::{
    Acquire, Acquired, Answer, Call, ClientId, Downgraded, Ending, Grant, HeldRow, Mode, Name, Operation,
    OwnerId, Polled, Push, Release, Released, Renewal, Renewed, Reply, RequestId, Revoking, Snapshot,
    WaitRow, Withdrawn, WithdrawnFrom, number_from_wire, number_to_wire,
};
use crate::state::{BLAME_ROWS, Tuning};

#[cfg(test)]
mod tests;

mod together;
pub(super) use together::{decode_all, encode_all};

/// A script: the prelude and one file of `scripts/`.
pub(super) struct Script {
    #[cfg(test)]
    name: &'static str,
    pub(super) source: &'static str,
    sha1: LazyLock<String>,
}

impl Script {
    /// What the server knows it by, once it has been loaded.
    pub(super) fn sha1(&self) -> &str {
        &self.sha1
    }
}

macro_rules! script {
    ($name:literal) => {{
        const SOURCE: &str = concat!(
            include_str!("../../../scripts/prelude.lua"),
            include_str!(concat!("../../../scripts/", $name, ".lua"))
        );
        Script {
            #[cfg(test)]
            name: $name,
            source: SOURCE,
            sha1: LazyLock::new(|| redis::Script::new(SOURCE).get_hash().to_owned()),
        }
    }};
}

static ACQUIRE: Script = script!("acquire");
static RELEASE: Script = script!("release");
static DOWNGRADE: Script = script!("downgrade");
static RENEW: Script = script!("renew");
static WITHDRAW: Script = script!("withdraw");
static POLL: Script = script!("poll");
static REVOKE: Script = script!("revoke");
static INSPECT: Script = script!("inspect");
pub(super) static ACQUIRE_ALL: Script = script!("acquire_all");

/// Every link loads all of them ahead: who may send scripts only by their hash has no other way to bring one.
pub(super) static ALL: [&Script; 9] = [
    &ACQUIRE,
    &RELEASE,
    &DOWNGRADE,
    &RENEW,
    &WITHDRAW,
    &POLL,
    &REVOKE,
    &INSPECT,
    &ACQUIRE_ALL,
];

/// A client's pushes come on this, followed by its id.
pub(super) const CHANNEL: &str = "relatch:1:client:";

/// The channel that a client listens to.
pub(super) fn channel(client: ClientId) -> String {
    format!("{CHANNEL}{client}")
}

/// In a cluster: what the channels of a slot begin with. `tag` is one of the slot.
pub(super) fn channels_of(tag: impl fmt::Display) -> String {
    format!("{CHANNEL}{{{tag}}}:")
}

/// A name as it stands between the braces of a key: whatever is between the first `{` and the next `}` decides the slot, so a
/// name must not have any of its own.
fn in_braces(name: &str) -> Cow<'_, str> {
    if name.contains(['%', '{', '}']) {
        name.replace('%', "%25")
            .replace('{', "%7B")
            .replace('}', "%7D")
            .into()
    } else {
        name.into()
    }
}

/// What a name begins with in braces, and what follows: both something.
fn tagged(name: &str) -> Option<(&str, &str)> {
    let (tag, rest) = name.strip_prefix('{')?.split_once('}')?;
    (!tag.is_empty() && !rest.is_empty()).then_some((tag, rest))
}

/// The keys of a name, in the order of KEYS. The whole name is the hash tag; or what it begins with, in braces: names that begin with the same are then
/// in one slot. The rest of such a name follows a `=`, which no other key has after the braces.
pub(super) fn keys(name: &Name) -> [String; 5] {
    let keys = Keys::of(name);
    PARTS.map(|part| {
        let mut key = String::new();
        keys.write(part, &mut key);
        key
    })
}

/// What the keys of a name have in common.
struct Keys<'a> {
    tag: Cow<'a, str>,
    rest: Option<Cow<'a, str>>,
}

impl<'a> Keys<'a> {
    fn of(name: &'a Name) -> Self {
        match tagged(name.as_str()) {
            Some((tag, rest)) => Self {
                tag: in_braces(tag),
                rest: Some(in_braces(rest)),
            },
            None => Self {
                tag: in_braces(name.as_str()),
                rest: None,
            },
        }
    }

    fn write(&self, part: &str, to: &mut String) {
        to.extend([LOCKS, &self.tag, "}", part]);
        if let Some(rest) = &self.rest {
            to.extend(["=", rest]);
        }
    }
}

/// The hash tag of a name's keys: what decides their slot.
pub(super) fn tag_of(name: &Name) -> Cow<'_, str> {
    in_braces(tagged(name.as_str()).map_or(name.as_str(), |(tag, _)| tag))
}

/// What every key of a lock begins with.
pub(super) const LOCKS: &str = "relatch:1:{";

/// What follows the braces in the keys of a name.
const PARTS: [&str; 5] = ["", ":readers", LINE, ":waiters", ":marks"];
/// In the key of a line.
pub(super) const LINE: &str = ":queue";

/// Whose key it is, and what follows the braces: nothing in the one that every name has.
pub(super) fn name_of(key: &[u8]) -> Option<(Name, &'static str)> {
    let key = std::str::from_utf8(key).ok()?;
    let (tag, rest) = key.strip_prefix(LOCKS)?.split_once('}')?;
    let plain = |text: &str| text.replace("%7D", "}").replace("%7B", "{").replace("%25", "%");
    let name = match rest.split_once('=') {
        Some((_, rest)) => format!("{{{}}}{}", plain(tag), plain(rest)),
        None => plain(tag),
    };
    let name = Name::new(&name).ok()?;
    // Only what we write: others may keep keys that look alike.
    let at = keys(&name).iter().position(|own| own == key)?;
    Some((name, PARTS.get(at)?))
}

/// A server's pattern for the keys of the names that match, and for some of others: what is literal in it, in this order. Braces are in a key or
/// are not, as a name begins with a tag or does not.
pub(super) fn keys_like(pattern: &Pattern) -> String {
    let mut glob = String::from(LOCKS);
    for (at, literal) in pattern.literals().iter().enumerate() {
        if at > 0 {
            glob.push('*');
        }
        for c in literal.chars() {
            match c {
                '{' | '}' => glob.push('*'),
                '%' => glob.push_str("%25"),
                '*' | '?' | '[' | ']' | '\\' | '^' | '-' => glob.extend(['\\', c]),
                c => glob.push(c),
            }
        }
    }
    // The end of the tag, or what follows it.
    glob.push('*');
    glob
}

/// A call, ready to be sent: its keys, then its arguments, one behind the other in one text. Every call comes by here.
pub(super) struct Encoded {
    pub(super) script: &'static Script,
    text: String,
    /// Where each of them ends.
    ends: Vec<usize>,
    /// How many of them are keys.
    keys: usize,
}

impl Encoded {
    /// With room for what is said of so many names.
    fn new(script: &'static Script, names: usize) -> Self {
        Self {
            script,
            text: String::with_capacity(500 * names),
            ends: Vec::with_capacity(16 * names),
            keys: 0,
        }
    }

    fn keys_of(&mut self, name: &Name) {
        let keys = Keys::of(name);
        for part in PARTS {
            keys.write(part, &mut self.text);
            self.end();
        }
        self.keys = self.ends.len();
    }

    /// What every script but `fenced` is told first, after all keys.
    fn begin(&mut self, call_id: u64, tuning: &Tuning, trust: bool, channels: &str) {
        self.number(call_id);
        for setting in [
            tuning.claim_ms,
            tuning.mark_ms,
            tuning.retention_ms,
            u64::from(trust),
        ] {
            number_to_wire(setting, &mut self.text);
            self.text.push(' ');
        }
        self.say(channels);
    }

    /// What was written since the last one is the next.
    fn end(&mut self) {
        self.ends.push(self.text.len());
    }

    fn say(&mut self, text: &str) {
        self.text.push_str(text);
        self.end();
    }

    fn number(&mut self, number: u64) {
        number_to_wire(number, &mut self.text);
        self.end();
    }

    fn flag(&mut self, yes: bool) {
        self.say(if yes { "1" } else { "0" });
    }

    fn request(&mut self, request: RequestId) {
        request.write(&mut self.text);
        self.end();
    }

    fn member(&mut self, request: RequestId, owner: OwnerId) {
        self.request(request);
        owner.write(&mut self.text);
        self.end();
    }

    /// Empty for none.
    fn maybe(&mut self, request: Option<RequestId>) {
        if let Some(request) = request {
            request.write(&mut self.text);
        }
        self.end();
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(from, to)| &self.text[from..*to])
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.all().take(self.keys)
    }

    #[cfg(test)]
    fn args(&self) -> impl Iterator<Item = &str> {
        self.all().skip(self.keys)
    }

    /// By its hash: what is sent at first.
    pub(super) fn evalsha(&self) -> redis::Cmd {
        self.command("EVALSHA", self.script.sha1())
    }

    /// By its source: for who may not load scripts. The server knows the script from then on.
    pub(super) fn eval(&self) -> redis::Cmd {
        self.command("EVAL", self.script.source)
    }

    fn command(&self, verb: &str, script: &str) -> redis::Cmd {
        // All of it at once: growing it step by step is a tenth of what a call costs.
        let size = verb.len() + script.len() + 4 + self.text.len();
        let mut command = redis::Cmd::with_capacity(3 + self.ends.len(), size);
        command.arg(verb).arg(script).arg(self.keys);
        for word in self.all() {
            command.arg(word);
        }
        command
    }
}

/// `trust`: whether PUBLISH on this server counts everybody who hears.
#[cfg(test)]
pub(super) fn encode(call: &Call, call_id: u64, tuning: &Tuning, trust: bool) -> Encoded {
    encode_for(call, call_id, tuning, trust, CHANNEL)
}

/// The script that does it.
pub(super) fn script_of(operation: &Operation) -> &'static Script {
    match operation {
        Operation::Acquire(_) => &ACQUIRE,
        Operation::Release(_) => &RELEASE,
        Operation::Downgrade(_) => &DOWNGRADE,
        Operation::Renew(_) => &RENEW,
        Operation::Withdraw(_) => &WITHDRAW,
        Operation::Poll(_) => &POLL,
        Operation::Revoke(_) => &REVOKE,
        Operation::Inspect(_) => &INSPECT,
    }
}

/// Where clients listen to `channels` and their ids. With a hash tag in it messages are sent by SPUBLISH.
pub(super) fn encode_for(call: &Call, call_id: u64, tuning: &Tuning, trust: bool, channels: &str) -> Encoded {
    let names = match &call.operation {
        Operation::Renew(ops) => ops.len(),
        _ => 1,
    };
    let mut to = Encoded::new(script_of(&call.operation), names);
    match &call.operation {
        Operation::Renew(ops) => {
            for of in ops.chunk_by(|a, b| a.name == b.name) {
                to.keys_of(&of[0].name);
            }
        }
        _ => to.keys_of(&call.name),
    }
    to.begin(call_id, tuning, trust, channels);
    match &call.operation {
        Operation::Acquire(op) => {
            to.member(op.request, op.owner);
            to.say(&op.mode.as_str()[..1]);
            to.number(op.lease_ms);
            to.number(u64::from(op.wait) + 2 * u64::from(op.first));
            if op.ticket > 0 || op.upgrade_of.is_some() || !op.label.is_empty() {
                to.number(op.ticket);
                to.maybe(op.upgrade_of);
                to.say(&op.label);
            }
        }
        Operation::Release(op) => {
            to.member(op.request, op.owner);
            to.number(op.fence);
            to.flag(op.again);
            to.flag(op.mark);
        }
        Operation::Downgrade(op) => {
            to.member(op.request, op.owner);
            to.number(op.fence);
            to.say(op.to.as_str());
        }
        Operation::Withdraw(op) => {
            to.member(op.request, op.owner);
            to.number(if op.blame { BLAME_ROWS as u64 } else { 0 });
            to.maybe(op.upgrade_of);
        }
        Operation::Poll(members) => {
            for member in members {
                to.member(member.request, member.owner);
            }
        }
        Operation::Revoke(op) => {
            if let Some(owner) = op.owner {
                owner.write(&mut to.text);
            }
            to.end();
            to.number(op.granted_by_ms);
        }
        Operation::Inspect(limit) => to.number(*limit as u64),
        Operation::Renew(ops) => {
            for of in ops.chunk_by(|a, b| a.name == b.name) {
                to.number(of.len() as u64);
                for op in of {
                    to.member(op.request, op.owner);
                    to.number(op.fence);
                    to.number(op.lease_ms);
                    to.flag(op.fixed);
                }
            }
        }
    }
    to
}

/// As long as fences are.
const FENCE: u64 = 1_795_277_412_238_121;

/// What a client asks and gives back where nobody is in the way, for whoever measures that.
pub(super) fn write_pair(request: RequestId, lease_ms: u64) -> [Operation; 2] {
    let owner = OwnerId::of(request);
    let acquire = Operation::Acquire(Acquire {
        request,
        owner,
        mode: Mode::Write,
        wait: true,
        first: false,
        lease_ms,
        ticket: 0,
        upgrade_of: None,
        label: String::new(),
    });
    let release = Operation::Release(Release {
        request,
        owner,
        fence: FENCE,
        again: false,
        mark: false,
    });
    [acquire, release]
}

/// What is said to a server, for `benches/` to weigh.
#[doc(hidden)]
#[derive(Debug)]
pub struct CallEncoding(Vec<Call>);

impl CallEncoding {
    /// An acquisition and its release; and a renewal of so many names.
    #[must_use]
    pub fn of(names: u32) -> [Self; 2] {
        let client = ClientId(1);
        let name = |number: u32| Name::new(&format!("orders/{number}")).ok();
        let request = |number: u32| RequestId {
            client,
            number: 50_000_000_000_000 + u64::from(number),
        };
        let owner = |number| OwnerId::of(request(number));
        let pair = name(0).into_iter().flat_map(|name| {
            write_pair(request(0), 30_000).map(|operation| Call {
                name: name.clone(),
                operation,
            })
        });
        let renewals: Vec<Renewal> = (0..names)
            .filter_map(|number| {
                Some(Renewal {
                    name: name(number)?,
                    request: request(number),
                    owner: owner(number),
                    fence: FENCE,
                    lease_ms: 30_000,
                    fixed: false,
                })
            })
            .collect();
        let renewal = name(0).map(|name| Call {
            name,
            operation: Operation::Renew(renewals),
        });
        [Self(pair.collect()), Self(renewal.into_iter().collect())]
    }

    /// As it goes to the server: how many bytes.
    #[must_use]
    pub fn encode(&self) -> usize {
        let tuning = crate::Config::default().tuning();
        let bytes = |call| {
            encode_for(call, 1, &tuning, true, CHANNEL)
                .evalsha()
                .get_packed_command()
                .len()
        };
        self.0.iter().map(bytes).sum()
    }
}

/// Something came that no script of ours says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// It can't be read.
    Content(String),
    /// It is the reply to another call: replies on this connection are out of step.
    CallId { asked: u64, answered: String },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Content(what) => write!(f, "the server sent what no script of relatch says: {what}"),
            Malformed::CallId { asked, answered } => write!(
                f,
                "the server's reply to call {asked} says that it is for call {answered:?}: replies are out of step"
            ),
        }
    }
}

impl std::error::Error for Malformed {}

type Decoded<T> = Result<T, Malformed>;

/// For what was wanted and what came instead; cut, as a server may send anything.
fn instead(wanted: &str, came: &dyn fmt::Debug) -> Malformed {
    let mut came = format!("{came:?}");
    if came.len() > 200 {
        let cut = came
            .char_indices()
            .map(|(at, _)| at)
            .take_while(|at| *at <= 200)
            .last();
        came.truncate(cut.unwrap_or(0));
        came.push('…');
    }
    Malformed::Content(format!("{wanted} expected, {came} came"))
}

/// The words of a reply that is text, taken one by one.
struct Words<'a>(std::str::Split<'a, char>);

impl<'a> Words<'a> {
    fn word(&mut self, what: &str) -> Decoded<&'a str> {
        self.0
            .next()
            .ok_or_else(|| Malformed::Content(format!("{what} expected, the reply ended")))
    }

    fn number(&mut self, what: &str) -> Decoded<u64> {
        let word = self.word(what)?;
        number_from_wire(word).ok_or_else(|| instead(what, &word))
    }

    fn ending(&mut self) -> Decoded<Ending> {
        let word = self.word("an ending")?;
        Ending::from_wire(word).ok_or_else(|| instead("an ending", &word))
    }

    fn end<T>(mut self, value: T) -> Decoded<T> {
        match self.0.next() {
            None => Ok(value),
            Some(more) => Err(instead("the end of a reply", &more)),
        }
    }
}

/// The fields of a reply or of a row in it, taken one by one.
struct Fields(std::vec::IntoIter<Value>);

impl Fields {
    fn of(value: Value, what: &str) -> Decoded<Self> {
        match value {
            Value::Array(fields) => Ok(Self(fields.into_iter())),
            other => Err(instead(what, &other)),
        }
    }

    fn value(&mut self, what: &str) -> Decoded<Value> {
        self.0
            .next()
            .ok_or_else(|| Malformed::Content(format!("{what} expected, the reply ended")))
    }

    fn number(&mut self, what: &str) -> Decoded<u64> {
        match self.value(what)? {
            Value::Int(number) => u64::try_from(number).map_err(|_| instead(what, &number)),
            other => Err(instead(what, &other)),
        }
    }

    fn text(&mut self, what: &str) -> Decoded<String> {
        match self.value(what)? {
            Value::BulkString(bytes) => {
                String::from_utf8(bytes).map_err(|error| instead(what, &error.into_bytes()))
            }
            other => Err(instead(what, &other)),
        }
    }

    fn parsed<T>(&mut self, what: &str, parse: impl FnOnce(&str) -> Option<T>) -> Decoded<T> {
        let text = self.text(what)?;
        parse(&text).ok_or_else(|| instead(what, &text))
    }

    fn request(&mut self) -> Decoded<RequestId> {
        self.parsed("a request", RequestId::from_wire)
    }

    fn owner(&mut self) -> Decoded<OwnerId> {
        self.parsed("an owner", OwnerId::from_wire)
    }

    fn mode(&mut self) -> Decoded<Mode> {
        self.parsed("a mode", |word| word.parse().ok())
    }

    fn ending(&mut self) -> Decoded<Ending> {
        self.parsed("an ending", Ending::from_wire)
    }

    /// A label may be cut or broken by whoever writes into the lock by hand; it is for people only.
    fn label(&mut self) -> Decoded<String> {
        match self.value("a label")? {
            Value::BulkString(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            other => Err(instead("a label", &other)),
        }
    }

    fn grant(&mut self) -> Decoded<Grant> {
        Ok(Grant {
            fence: self.number("a fence")?,
            deadline_ms: self.number("a deadline")?,
            depth: self.number("a depth")?,
        })
    }

    fn rows<T>(&mut self, what: &str, read: impl Fn(&mut Fields) -> Decoded<T>) -> Decoded<Vec<T>> {
        Fields::of(self.value(what)?, what)?
            .0
            .map(|row| {
                let mut row = Fields::of(row, what)?;
                let value = read(&mut row)?;
                row.end(value)
            })
            .collect()
    }

    fn end<T>(mut self, value: T) -> Decoded<T> {
        match self.0.next() {
            None => Ok(value),
            Some(more) => Err(instead("the end of a reply", &more)),
        }
    }

    fn held_row(&mut self) -> Decoded<HeldRow> {
        Ok(HeldRow {
            request: self.request()?,
            owner: self.owner()?,
            mode: self.mode()?,
            since_ms: self.number("a time")?,
            deadline_ms: self.number("a deadline")?,
            revoked: match self.number("0 or 1")? {
                0 => false,
                1 => true,
                other => return Err(instead("0 or 1", &other)),
            },
            label: self.label()?,
        })
    }

    fn wait_row(&mut self) -> Decoded<WaitRow> {
        Ok(WaitRow {
            request: self.request()?,
            owner: self.owner()?,
            mode: self.mode()?,
            since_ms: self.number("a time")?,
            label: self.label()?,
        })
    }
}

/// The answer to `call`, which was sent as `call_id`.
pub(super) fn decode(call: &Call, call_id: u64, value: Value) -> Decoded<Answer> {
    match &call.operation {
        Operation::Acquire(_) | Operation::Release(_) => decode_text(call, call_id, value),
        _ => decode_fields(call, call_id, value),
    }
}

fn check_call_id(asked: u64, answered: &str) -> Decoded<()> {
    if answered == asked.to_string() {
        Ok(())
    } else {
        Err(Malformed::CallId {
            asked,
            answered: answered.chars().take(40).collect(),
        })
    }
}

/// What is asked most is answered as text, which costs a server less than fields.
fn decode_text(call: &Call, call_id: u64, value: Value) -> Decoded<Answer> {
    let Value::BulkString(text) = value else {
        return Err(instead("a script's reply", &value));
    };
    let text = String::from_utf8(text).map_err(|error| instead("a script's reply", &error.into_bytes()))?;
    let mut words = Words(text.split(' '));
    check_call_id(call_id, words.word("a call's id")?)?;
    let word = words.word("a word")?;
    let mut now_us = None;
    let reply = match (&call.operation, word) {
        (Operation::Release(_), "released") => Reply::Release(Released::Released),
        (Operation::Release(_), "not_held") => Reply::Release(Released::NotHeld(words.ending()?)),
        (Operation::Acquire(_), word) => {
            now_us = Some(words.number("a time")?);
            Reply::Acquire(match word {
                "granted" => Acquired::Granted(Grant {
                    fence: words.number("a fence")?,
                    deadline_ms: words.number("a deadline")?,
                    depth: words.number("a depth")?,
                }),
                "queued" => Acquired::Queued {
                    ticket: words.number("a ticket")?,
                    wake_ms: words.number("a time")?,
                },
                "busy" => Acquired::Busy,
                "refused" => Acquired::Refused,
                "ended" => Acquired::Ended(words.ending()?),
                _ => return Err(instead("a reply to this call", &word)),
            })
        }
        _ => return Err(instead("a reply to this call", &word)),
    };
    words.end(Answer { now_us, reply })
}

fn decode_fields(call: &Call, call_id: u64, value: Value) -> Decoded<Answer> {
    let mut fields = Fields::of(value, "a script's reply")?;
    check_call_id(call_id, &fields.text("a call's id")?)?;
    let now_us = fields.number("a time")?;
    let word = fields.text("a word")?;
    let reply = match (&call.operation, word.as_str()) {
        (Operation::Downgrade(_), "downgraded") => Reply::Downgrade(Downgraded::Downgraded(fields.grant()?)),
        (Operation::Downgrade(_), "not_held") => Reply::Downgrade(Downgraded::NotHeld(fields.ending()?)),
        (Operation::Renew(asked), "renew") => {
            let rows = fields.rows("a renewal", |row| match row.text("a word")?.as_str() {
                "renewed" => Ok(Renewed::Renewed {
                    deadline_ms: row.number("a deadline")?,
                }),
                "not_held" => Ok(Renewed::NotHeld(row.ending()?)),
                other => Err(instead("renewed or not_held", &other)),
            })?;
            Reply::Renew(as_many(asked.len(), rows)?)
        }
        (Operation::Withdraw(op), "held" | "queued" | "absent") => {
            let was = match word.as_str() {
                "held" => WithdrawnFrom::Held,
                "queued" => WithdrawnFrom::Queued,
                _ => WithdrawnFrom::Absent,
            };
            let ahead = fields.number("a place in line")?;
            let mut blame = Snapshot::default();
            if op.blame {
                blame.fence = fields.number("a fence")?;
                blame.holders = fields.number("a count")?;
                blame.waiters = fields.number("a count")?;
                blame.holding = fields.rows("a holder", Fields::held_row)?;
            }
            Reply::Withdraw(Withdrawn { was, blame, ahead })
        }
        (Operation::Poll(asked), "poll") => {
            let rows = fields.rows("a request's state", |row| match row.text("a word")?.as_str() {
                "granted" => Ok(Polled::Granted(row.grant()?)),
                "queued" => Ok(Polled::Queued {
                    wake_ms: row.number("a time")?,
                }),
                "not_held" => Ok(Polled::NotHeld(row.ending()?)),
                other => Err(instead("granted, queued or not_held", &other)),
            })?;
            Reply::Poll(as_many(asked.len(), rows)?)
        }
        (Operation::Revoke(_), "revoke") => Reply::Revoke(Revoking {
            requests: fields.number("a count")?,
            deadline_ms: fields.number("a deadline")?,
        }),
        (Operation::Inspect(_), "inspect") => Reply::Inspect(Snapshot {
            fence: fields.number("a fence")?,
            holders: fields.number("a count")?,
            waiters: fields.number("a count")?,
            holding: fields.rows("a holder", Fields::held_row)?,
            waiting: fields.rows("a waiter", Fields::wait_row)?,
        }),
        _ => return Err(instead("a reply to this call", &word)),
    };
    fields.end(Answer {
        now_us: Some(now_us),
        reply,
    })
}

fn as_many<T>(asked: usize, rows: Vec<T>) -> Decoded<Vec<T>> {
    if rows.len() == asked {
        Ok(rows)
    } else {
        Err(instead(&format!("{asked} rows"), &rows.len()))
    }
}

/// `granted <now_us> <request>,<fence>,<deadline_ms>,<depth> …` or `revoked <now_us> <request> …`.
pub(super) fn decode_push(payload: &[u8]) -> Decoded<Push> {
    let wanted = "a push";
    let text = std::str::from_utf8(payload).map_err(|_| instead(wanted, &payload))?;
    let fail = || instead(wanted, &text);
    let mut words = text.split(' ');
    let kind = words.next().ok_or_else(fail)?;
    let now_us: u64 = words.next().and_then(number_from_wire).ok_or_else(fail)?;
    let push = match kind {
        "granted" => Push::Granted {
            now_us,
            grants: words.map(pushed_grant).collect::<Option<_>>().ok_or_else(fail)?,
        },
        "revoked" => Push::Revoked {
            requests: words
                .map(RequestId::from_wire)
                .collect::<Option<_>>()
                .ok_or_else(fail)?,
        },
        _ => return Err(fail()),
    };
    let empty = match &push {
        Push::Granted { grants, .. } => grants.is_empty(),
        Push::Revoked { requests } => requests.is_empty(),
    };
    if empty { Err(fail()) } else { Ok(push) }
}

fn pushed_grant(word: &str) -> Option<(RequestId, Grant)> {
    let mut fields = word.split(',');
    let request = RequestId::from_wire(fields.next()?)?;
    let grant = Grant {
        fence: number_from_wire(fields.next()?)?,
        deadline_ms: number_from_wire(fields.next()?)?,
        depth: number_from_wire(fields.next()?)?,
    };
    fields.next().is_none().then_some((request, grant))
}
