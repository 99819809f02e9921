//! The scripts on a server of the test's own, against the machine of [`crate::state`], and against what their headers say.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use redis::{Connection, Parser, RedisResult, Value, cmd};
use uuid::Uuid;

use super::*;
use crate::protocol::{Acquire, Downgrade, EPOCH_US, Member, Release, Renewal, Revoke, Withdraw};
use crate::state::{Context, LockState, Normal, WhyNot, would_grant_all};

// -- a server ----------------------------------------------------------------------------------------------------

struct Server {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let dir = tempfile::tempdir().unwrap();
            let child = Command::new("redis-server")
                .args([
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                    "--port",
                ])
                .arg(port.to_string())
                .arg("--dir")
                .arg(dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("redis-server is installed and on the PATH");
            let mut server = Server {
                child,
                port,
                _dir: dir,
            };
            let until = Instant::now() + Duration::from_secs(10);
            while Instant::now() < until && server.child.try_wait().unwrap().is_none() {
                if let Ok(mut con) = server.try_connect()
                    && cmd("PING").query::<String>(&mut con).is_ok()
                {
                    return server;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        panic!("no redis-server would start");
    }

    fn try_connect(&self) -> RedisResult<Connection> {
        redis::Client::open(("127.0.0.1", self.port))?.get_connection()
    }

    fn connect(&self) -> Connection {
        self.try_connect().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hears pushes. A PING after a step is answered after all that the step published.
struct Ears {
    write: TcpStream,
    read: BufReader<TcpStream>,
    parser: Parser,
}

impl Ears {
    fn of(server: &Server) -> Self {
        let write = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        write.set_nodelay(true).unwrap();
        let read = BufReader::new(write.try_clone().unwrap());
        Self {
            write,
            read,
            parser: Parser::new(),
        }
    }

    fn say(&mut self, verb: &str, channel: &str) {
        let mut command = cmd(verb);
        if !channel.is_empty() {
            command.arg(channel);
        }
        self.write.write_all(&command.get_packed_command()).unwrap();
    }

    fn hear(&mut self, client: ClientId, yes: bool) {
        self.say(if yes { "SUBSCRIBE" } else { "UNSUBSCRIBE" }, &channel(client));
        self.parser.parse_value(&mut self.read).unwrap();
    }

    /// What came, per client, kinds put together.
    fn heard(&mut self) -> Vec<(String, Vec<u8>)> {
        self.say("PING", "");
        let mut heard = Vec::new();
        loop {
            match self.parser.parse_value(&mut self.read).unwrap() {
                // Not subscribed to anything: a plain answer.
                Value::SimpleString(_) => return heard,
                Value::Array(parts) => match parts.as_slice() {
                    [
                        Value::BulkString(kind),
                        Value::BulkString(channel),
                        Value::BulkString(payload),
                    ] => {
                        assert_eq!(kind, b"message");
                        heard.push((String::from_utf8(channel.clone()).unwrap(), payload.clone()));
                    }
                    _ => return heard,
                },
                other => panic!("{other:?}"),
            }
        }
    }
}

const TUNING: Tuning = Tuning {
    claim_ms: 5_000,
    mark_ms: 20_000,
    retention_ms: 100_000,
};
/// For tests in real time: a slow machine must not come near it.
const LONG: Tuning = Tuning {
    claim_ms: 600_000,
    mark_ms: 600_000,
    retention_ms: 86_400_000,
};
const CLIENTS: usize = 4;

/// Ids whose order as bytes is their order as base64, so that both sides break ties alike.
fn client(n: usize) -> ClientId {
    // The last of them gets no pushes: see `ClientId::quiet`.
    let first = if n == CLIENTS - 1 { 63 } else { n as u64 + 1 };
    ClientId(first << 58 | 0x8000)
}

fn owner(n: usize) -> OwnerId {
    OwnerId(Uuid::from_u128((n as u128) << 122))
}

/// One of many; in no order that base64 keeps.
fn reader(n: usize) -> OwnerId {
    OwnerId(Uuid::from_u128(n as u128 + 1))
}

fn request(client_n: usize, number: u64) -> RequestId {
    RequestId {
        client: client(client_n),
        number,
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn acquire(request: RequestId, owner: OwnerId, mode: Mode) -> Acquire {
    Acquire {
        request,
        owner,
        mode,
        wait: true,
        first: false,
        lease_ms: 600_000,
        ticket: 0,
        upgrade_of: None,
        label: String::new(),
    }
}

fn release(request: RequestId, owner: OwnerId) -> Operation {
    Operation::Release(Release {
        request,
        owner,
        fence: 0,
        again: false,
        mark: false,
    })
}

/// Of all that is held when it arrives.
fn revoke(owner: Option<OwnerId>) -> Operation {
    Operation::Revoke(Revoke {
        owner,
        granted_by_ms: 1 << 52,
    })
}

fn try_run(con: &mut Connection, name: &Name, operation: Operation) -> Result<Reply, String> {
    let call = Call {
        name: name.clone(),
        operation,
    };
    let encoded = encode(&call, 7, &LONG, true);
    let value: Value = match encoded.evalsha().query(con) {
        Err(error) if error.code() == Some("NOSCRIPT") => encoded.eval().query(con),
        other => other,
    }
    .map_err(|error| error.to_string())?;
    Ok(decode(&call, 7, value).map_err(|error| error.to_string())?.reply)
}

fn run(con: &mut Connection, name: &Name, operation: Operation) -> Reply {
    try_run(con, name, operation).unwrap()
}

fn fence_of(reply: Reply) -> u64 {
    match reply {
        Reply::Acquire(Acquired::Granted(grant)) => grant.fence,
        other => panic!("not granted: {other:?}"),
    }
}

fn text_of(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

// -- against the machine -----------------------------------------------------------------------------------------

const CLOCK: &str = "local time = redis.call('TIME')";

#[test]
fn time_is_read_in_one_place() {
    for script in ALL {
        assert_eq!(script.source.matches(CLOCK).count(), 1, "{}", script.name);
        assert_eq!(script.source.matches("'TIME'").count(), 1, "{}", script.name);
    }
}

#[derive(Clone, Debug)]
struct Step {
    pass_us: i64,
    act: Act,
}

/// Numbers called `which` choose among what was asked for so far.
#[derive(Clone, Debug)]
enum Act {
    Acquire {
        repeat: Option<u8>,
        client: usize,
        owner: usize,
        mode: Mode,
        wait: bool,
        first: bool,
        made: u8,
        lease_ms: u64,
        ticket: u64,
        upgrade: u8,
        label: usize,
    },
    Release {
        which: u8,
        fence: u8,
        again: bool,
        mark: bool,
    },
    Downgrade {
        which: u8,
        fence: u8,
        to: Mode,
    },
    Renew(Vec<(u8, u8, u64, bool)>),
    Withdraw {
        which: u8,
        blame: bool,
        upgrade: u8,
    },
    Poll(Vec<u8>),
    Revoke {
        of: Option<usize>,
        by_ms: i64,
    },
    Inspect(usize),
    Hear(usize, bool),
}

fn some_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![3 => Just(Mode::Read), 2 => Just(Mode::Upgradable), 3 => Just(Mode::Write)]
}

fn some_lease() -> impl Strategy<Value = u64> {
    prop_oneof![1 => Just(1_000), 1 => Just(5_000), 6 => Just(30_000), 1 => Just(500_000), 1 => 1_000..60_000_u64]
}

fn some_act() -> impl Strategy<Value = Act> {
    let mostly_not = || prop::bool::weighted(0.2);
    prop_oneof![
        10 => (
            prop::option::weighted(0.15, any::<u8>()), 0..CLIENTS, 0..8_usize, some_mode(), (prop::bool::weighted(0.9), 0..12_u8, prop::bool::weighted(0.1)), some_lease(),
            prop_oneof![6 => Just(0), 1 => 1..5_000_000_u64], any::<u8>(), 0..8_usize,
        ).prop_map(|(repeat, client, owner, mode, (wait, made, first), lease_ms, ticket, upgrade, label)| Act::Acquire {
            repeat, client, owner, mode, wait, first, made, lease_ms, ticket, upgrade, label
        }),
        7 => (any::<u8>(), any::<u8>(), mostly_not(), mostly_not())
            .prop_map(|(which, fence, again, mark)| Act::Release { which, fence, again, mark }),
        2 => (any::<u8>(), any::<u8>(), some_mode()).prop_map(|(which, fence, to)| Act::Downgrade { which, fence, to }),
        2 => prop::collection::vec((any::<u8>(), any::<u8>(), some_lease(), any::<bool>()), 1..5).prop_map(Act::Renew),
        2 => (any::<u8>(), any::<bool>(), any::<u8>()).prop_map(|(which, blame, upgrade)| Act::Withdraw { which, blame, upgrade }),
        4 => prop::collection::vec(any::<u8>(), 1..7).prop_map(Act::Poll),
        // Mostly of what is held now; or only of what was then, or not at all.
        1 => (prop::option::of(0..5_usize), prop_oneof![4 => Just(0), 2 => -3_000..1_i64, 1 => Just(1), 2 => Just(i64::MIN)])
            .prop_map(|(of, by_ms)| Act::Revoke { of, by_ms }),
        1 => (0..6_usize).prop_map(Act::Inspect),
        1 => (0..CLIENTS, prop::bool::weighted(0.6)).prop_map(|(client, yes)| Act::Hear(client, yes)),
    ]
}

fn some_step() -> impl Strategy<Value = Step> {
    let pass_us = prop_oneof![
        20 => Just(0), 5 => Just(1_000), 2 => Just(1), 2 => Just(999), 4 => 0..2_000_000_i64, 2 => Just(4_999_000), 2 => Just(5_000_000),
        1 => Just(25_000_000), 1 => Just(30_000_000), 1 => 0..120_000_000_i64, 1 => Just(600_000_000),
        // Somebody sets the clock back.
        1 => -40_000_000..0_i64,
    ];
    (pass_us, some_act()).prop_map(|(pass_us, act)| Step { pass_us, act })
}

fn some_steps() -> impl Strategy<Value = (bool, Vec<Step>)> {
    (
        prop::bool::weighted(0.9),
        prop::collection::vec(some_step(), 1..120),
    )
}

const LABELS: [&str; 8] = [
    "",
    "",
    "",
    "",
    "plain",
    "with,commas|and #@+\n lines",
    "nul\0nul",
    "ünï 'quoted' %d %s ]]",
];

struct Bench {
    con: Connection,
    ears: Ears,
    shas: BTreeMap<&'static str, String>,
    names: u64,
    steps: u64,
    /// Which scripts were seen to answer which words.
    words: BTreeSet<(&'static str, String)>,
    _server: Server,
}

impl Bench {
    fn new() -> Self {
        let server = Server::start();
        let mut con = server.connect();
        let shas = ALL
            .iter()
            .map(|script| {
                let source = script
                    .source
                    .replace(CLOCK, "local time = redis.call('HMGET', 'now', 's', 'us')");
                let sha: String = cmd("SCRIPT").arg("LOAD").arg(source).query(&mut con).unwrap();
                (script.name, sha)
            })
            .collect();
        let ears = Ears::of(&server);
        Self {
            con,
            ears,
            shas,
            names: 0,
            steps: 0,
            words: BTreeSet::new(),
            _server: server,
        }
    }

    /// Runs a sequence on a new name, on both sides.
    fn sequence(&mut self, trust: bool, steps: &[Step]) -> Result<(), String> {
        self.names += 1;
        let name = name(&format!("n{}", self.names));
        let mut state = LockState::default();
        let mut hears = [true, true, true, false];
        for (n, yes) in hears.iter().enumerate() {
            self.ears.hear(client(n), *yes);
        }
        // Ahead of the real clock, so that no TTL of the real server's ever ends here.
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(3600);
        let mut now_us = start.as_micros() as u64;
        let mut known: Vec<Member> = Vec::new();
        let mut upgrades: BTreeMap<RequestId, RequestId> = BTreeMap::new();
        let mut numbers = 0;
        for (at, step) in steps.iter().enumerate() {
            self.steps += 1;
            now_us = now_us.saturating_add_signed(step.pass_us);
            let before = state.normal(now_us);
            let pick = |which: u8| match known.as_slice() {
                [] => Member {
                    request: request(0, 999),
                    owner: owner(0),
                },
                // The latest are the likeliest to be there still.
                known if which < 200 => known[known.len() - 1 - usize::from(which) % known.len().min(12)],
                known => Member {
                    request: known[usize::from(which) % known.len()].request,
                    owner: owner(usize::from(which) % 5),
                },
            };
            let fence_like = |n: u8| match n {
                0..=200 => before.fence,
                201..=230 => 0,
                _ => before.fence + 1,
            };
            let operation = match &step.act {
                Act::Hear(n, yes) => {
                    hears[*n] = *yes;
                    self.ears.hear(client(*n), *yes);
                    continue;
                }
                Act::Acquire {
                    repeat,
                    client,
                    owner: by,
                    mode,
                    wait,
                    first,
                    made,
                    lease_ms,
                    ticket,
                    upgrade,
                    label,
                } => {
                    let member = match repeat {
                        // A request is always of one owner.
                        Some(which) if !known.is_empty() => known[usize::from(*which) % known.len()],
                        _ => {
                            numbers += 1;
                            // Made now, some time ago, in time to come; or by a client that does not know the time.
                            let made_us = now_us - EPOCH_US;
                            let number = match made {
                                0 => numbers,
                                1 => made_us + 5_000_000,
                                2 => made_us + 200,
                                3 => made_us - 1_000_000,
                                4 => made_us - 1_001_000,
                                5 => made_us - 1_000,
                                _ => made_us,
                            };
                            let taken = |m: &Member| m.request == request(*client, number);
                            let number = if known.iter().any(taken) { numbers } else { number };
                            let request = request(*client, number);
                            Member {
                                request,
                                owner: match *by {
                                    5 => OwnerId::of(request),
                                    // One that was made for another request, or was not.
                                    6 => known.last().map_or(owner(0), |last| last.owner),
                                    7 if known.len() > 2 => known[known.len() - 2].owner,
                                    7 => OwnerId::of(request),
                                    by => owner(by),
                                },
                            }
                        }
                    };
                    let mut ticket = match ticket {
                        0 => 0,
                        back => now_us - EPOCH_US - back,
                    };
                    if before.queue.iter().any(|(_, other, _, _)| *other == ticket) {
                        ticket = 0;
                    }
                    let upgradable = before
                        .holds
                        .get(&member.owner)
                        .and_then(|hold| hold.iter().find(|g| g.1 == Mode::Upgradable))
                        .map(|g| g.0);
                    let upgrade_of = match upgrade {
                        0..=90 => upgradable.filter(|_| *mode == Mode::Write),
                        91..=94 => Some(pick(*label as u8).request),
                        _ => None,
                    };
                    known.push(member);
                    upgrades.extend(upgrade_of.map(|from| (member.request, from)));
                    Operation::Acquire(Acquire {
                        request: member.request,
                        owner: member.owner,
                        mode: *mode,
                        wait: *wait,
                        first: *first,
                        lease_ms: *lease_ms,
                        ticket,
                        upgrade_of,
                        label: LABELS[*label].into(),
                    })
                }
                Act::Release {
                    which,
                    fence,
                    again,
                    mark,
                } => {
                    let Member { request, owner } = pick(*which);
                    Operation::Release(Release {
                        request,
                        owner,
                        fence: fence_like(*fence),
                        again: *again,
                        mark: *mark,
                    })
                }
                Act::Downgrade { which, fence, to } => {
                    let Member { request, owner } = pick(*which);
                    Operation::Downgrade(Downgrade {
                        request,
                        owner,
                        fence: fence_like(*fence),
                        to: *to,
                    })
                }
                Act::Renew(renewals) => Operation::Renew(
                    renewals
                        .iter()
                        .map(|(which, fence, lease_ms, fixed)| {
                            let Member { request, owner } = pick(*which);
                            Renewal {
                                name: name.clone(),
                                request,
                                owner,
                                fence: fence_like(*fence),
                                lease_ms: *lease_ms,
                                fixed: *fixed,
                            }
                        })
                        .collect(),
                ),
                Act::Withdraw {
                    which,
                    blame,
                    upgrade,
                } => {
                    let Member { request, owner } = pick(*which);
                    // A request is always of one owner.
                    let same_owner = |from: &RequestId| {
                        known.contains(&Member {
                            request: *from,
                            owner,
                        })
                    };
                    let upgrade_of = match upgrade {
                        0..=200 => upgrades.get(&request).copied().filter(same_owner),
                        201..=210 => Some(pick(*upgrade).request).filter(same_owner),
                        _ => None,
                    };
                    Operation::Withdraw(Withdraw {
                        request,
                        owner,
                        blame: *blame,
                        upgrade_of,
                    })
                }
                Act::Poll(members) => Operation::Poll(members.iter().map(|which| pick(*which)).collect()),
                Act::Revoke { of, by_ms } => Operation::Revoke(Revoke {
                    owner: of.map(owner),
                    granted_by_ms: (now_us / 1000).saturating_add_signed(*by_ms),
                }),
                Act::Inspect(limit) => Operation::Inspect(*limit),
            };
            let call = Call {
                name: name.clone(),
                operation,
            };
            self.step(&mut state, &call, now_us, trust, hears)
                .map_err(|why| {
                    format!(
                        "step {at}, {call:?}\nat {now_us}, hearing {hears:?}, before it {before:#?}\n{why}"
                    )
                })?;
        }
        Ok(())
    }

    fn step(
        &mut self,
        state: &mut LockState,
        call: &Call,
        now_us: u64,
        trust: bool,
        hears: [bool; CLIENTS],
    ) -> Result<(), String> {
        let hears = |of: ClientId| (0..CLIENTS).any(|n| client(n) == of && hears[n]);
        let heard = |of: ClientId| !trust || hears(of);
        let cx = Context {
            now_us,
            tuning: TUNING,
            heard: &heard,
        };
        let (expected, pushes) = state.apply(&call.operation, &cx);
        let pushes: BTreeMap<_, _> = pushes
            .into_iter()
            .filter(|(to, _)| hears(*to))
            .map(|(to, push)| ((to, matches!(push, Push::Revoked { .. })), push))
            .collect();

        let answer = self.ask_as(call, now_us, trust)?;

        let mut told: BTreeMap<(ClientId, bool), Push> = BTreeMap::new();
        for (to, payload) in self.ears.heard() {
            let to = (0..CLIENTS)
                .map(client)
                .find(|c| channel(*c) == to)
                .expect("a channel of a client");
            let push = decode_push(&payload).map_err(|error| error.to_string())?;
            let key = (to, matches!(push, Push::Revoked { .. }));
            match (told.get_mut(&key), push) {
                (None, push) => {
                    told.insert(key, push);
                }
                (Some(Push::Granted { grants, .. }), Push::Granted { grants: more, .. }) => {
                    grants.extend(more)
                }
                (_, push) => return Err(format!("told again: {push:?}")),
            }
        }
        let normal = self.read(keys(&call.name), now_us)?;
        same("the reply", &answer, &expected)?;
        same("the pushes", &told, &pushes)?;
        same("the state", &normal, &state.normal(now_us))
    }

    /// One call at a time of the test's.
    fn ask(&mut self, name: &Name, now_us: u64, operation: Operation) -> Result<Reply, String> {
        let call = Call {
            name: name.clone(),
            operation,
        };
        Ok(self.ask_as(&call, now_us, false)?.reply)
    }

    fn set_time(&mut self, now_us: u64) {
        let _: () = cmd("HSET")
            .arg("now")
            .arg(&[
                "s".to_owned(),
                (now_us / 1_000_000).to_string(),
                "us".into(),
                (now_us % 1_000_000).to_string(),
            ])
            .query(&mut self.con)
            .unwrap();
    }

    fn ask_as(&mut self, call: &Call, now_us: u64, trust: bool) -> Result<Answer, String> {
        self.set_time(now_us);
        let encoded = encode(call, self.steps, &TUNING, trust);
        let value = self.send(&encoded)?;
        decode(call, self.steps, value).map_err(|error| error.to_string())
    }

    fn send(&mut self, encoded: &Encoded) -> Result<Value, String> {
        let value: Value = cmd("EVALSHA")
            .arg(&self.shas[encoded.script.name])
            .arg(encoded.keys().count())
            .arg(encoded.keys().collect::<Vec<_>>())
            .arg(encoded.args().collect::<Vec<_>>())
            .query(&mut self.con)
            .map_err(|error| error.to_string())?;
        self.note(encoded.script.name, &value);
        Ok(value)
    }

    fn note(&mut self, script: &'static str, value: &Value) {
        if let Value::BulkString(text) = value {
            let word = text_of(text).split(' ').nth(1).unwrap_or_default().to_owned();
            self.words.insert((script, word));
        }
        let Value::Array(fields) = value else { return };
        let mut word = |field: Option<&Value>| {
            if let Some(Value::BulkString(word)) = field {
                self.words.insert((script, text_of(word)));
            }
        };
        word(fields.get(2));
        if let ("renew" | "poll", Some(Value::Array(rows))) = (script, fields.get(3)) {
            for row in rows {
                if let Value::Array(row) = row {
                    word(row.first());
                }
            }
        }
    }

    /// What the keys say, after a look at whether they say it in a consistent way.
    fn read(&mut self, keys: [String; 5], now_us: u64) -> Result<Normal, String> {
        let now = now_us / 1000;
        let mut pipe = redis::pipe();
        pipe.cmd("HGETALL").arg(&keys[0]);
        pipe.cmd("ZRANGE").arg(&keys[1]).arg(0).arg(-1).arg("WITHSCORES");
        pipe.cmd("ZRANGE").arg(&keys[2]).arg(0).arg(-1).arg("WITHSCORES");
        pipe.cmd("HGETALL").arg(&keys[3]);
        pipe.cmd("ZRANGE").arg(&keys[4]).arg(0).arg(-1).arg("WITHSCORES");
        for key in &keys {
            pipe.cmd("PEXPIRETIME").arg(key);
        }
        type Bytes = BTreeMap<String, Vec<u8>>;
        type Scored = Vec<(String, f64)>;
        type Read = (Bytes, Scored, Scored, Bytes, Scored, i64, i64, i64, i64, i64);
        let read: Read = pipe.query(&mut self.con).map_err(|error| error.to_string())?;
        let (hash, readers, queue, waiting, marks, ttl_hash, ttl_readers, ttl_queue, ttl_waiters, ttl_marks) =
            read;
        let field = |of: &str| hash.get(of).map(|value| text_of(value));
        let number = |of: &str| field(of).map_or(0, |value| value.parse::<u64>().unwrap());

        let mut normal = Normal {
            fence: number("fence"),
            last_ticket: number("ticket"),
            ..Normal::default()
        };
        let owner_of = |wire: &str| OwnerId::from_wire(wire).unwrap();
        let mode_of = |letter: &str| match letter.to_lowercase().as_str() {
            "r" => Mode::Read,
            "u" => Mode::Upgradable,
            "w" => Mode::Write,
            other => panic!("{other:?} is no mode"),
        };
        let mut holds: Vec<(String, String)> = Vec::new();
        if let Some(top) = field("top") {
            let parts: Vec<_> = top.splitn(3, ',').collect();
            let (of, requests) = parts[2].split_once('|').unwrap();
            normal.top = Some((mode_of(parts[0]), owner_of(of), parts[1].parse().unwrap()));
            holds.push((of.to_owned(), requests.to_owned()));
        }
        for (of, value) in &hash {
            let Some(of) = of.strip_prefix('@') else { continue };
            let value = text_of(value);
            holds.push((of.to_owned(), value.strip_prefix('|').unwrap().to_owned()));
        }
        let readers_kept = readers
            .iter()
            .any(|(of, score)| of.is_empty() && score.is_infinite());
        let readers: Scored = readers.into_iter().filter(|(of, _)| !of.is_empty()).collect();
        let mut latest = 0;
        for (of, due) in &readers {
            if !hash.contains_key(&format!("@{of}")) {
                let request = RequestId::from_wire(of).unwrap();
                let since = request.made_ms();
                let due = *due as u64;
                latest = latest.max(due);
                let lone = (request, Mode::Read, due, since, false, String::new());
                normal.holds.insert(owner_of(of), vec![lone]);
            }
        }
        let mut labels = BTreeSet::new();
        for (of, requests) in holds {
            let hold: Vec<_> = requests
                .split('|')
                .map(|text| {
                    let parts: Vec<_> = text.split(',').collect();
                    let label = parts[1].strip_suffix('+').map(|_| format!("#{}", parts[0]));
                    let letter = parts[1].trim_end_matches('+');
                    let text = label
                        .as_ref()
                        .map_or(String::new(), |label| text_of(&hash[label]));
                    labels.extend(label);
                    let (deadline, lasts): (u64, u64) =
                        (parts[2].parse().unwrap(), parts[3].parse().unwrap());
                    let since = deadline - lasts;
                    latest = latest.max(deadline);
                    let revoked = letter.chars().all(char::is_uppercase);
                    (
                        RequestId::from_wire(parts[0]).unwrap(),
                        mode_of(letter),
                        deadline,
                        since,
                        revoked,
                        text,
                    )
                })
                .collect();
            let due = hold.iter().map(|g| g.2).min().unwrap();
            let is_top = normal.top.filter(|top| top.1 == owner_of(&of));
            let kept = match is_top {
                Some((_, _, due)) => Some(due),
                None => readers
                    .iter()
                    .find(|(reader, _)| *reader == of)
                    .map(|r| r.1 as u64),
            };
            same("the earliest deadline of a hold", &kept, &Some(due))?;
            normal.holds.insert(owner_of(&of), hold);
        }
        let kept: BTreeSet<_> = hash.keys().filter(|of| of.starts_with('#')).cloned().collect();
        same("the labels", &kept, &labels)?;

        normal.readers = readers
            .iter()
            .map(|(of, due)| (*due as u64, owner_of(of)))
            .collect();
        // Of those that end together, the server's order is that of their texts.
        normal.readers.sort();
        same("whether due is there", &field("due").is_some(), &readers_kept)?;
        if let Some((due, _)) = normal.readers.first()
            && number("due") > *due
        {
            return Err(format!("due is {} and a reader's is {due}", number("due")));
        }

        for (member, score) in &queue {
            let (request, owner) = member.split_once(',').unwrap();
            let score = *score as i64;
            let (band, ticket) = (score.div_euclid(1 << 51), score.rem_euclid(1 << 51) as u64);
            normal.queue.push((
                band,
                ticket,
                RequestId::from_wire(request).unwrap(),
                owner_of(owner),
            ));
        }
        same("the count of waiters", &number("waiting"), &(queue.len() as u64))?;
        for (key, value) in &waiting {
            if let Some(of) = key.strip_prefix('@') {
                let requests = text_of(value)
                    .split(' ')
                    .map(|r| RequestId::from_wire(r).unwrap())
                    .collect();
                normal.waiting_of.insert(owner_of(of), requests);
                continue;
            }
            let value = text_of(value);
            let parts: Vec<_> = value.splitn(7, ',').collect();
            let request = RequestId::from_wire(key).unwrap();
            let numbers: Vec<i64> = parts[1..5].iter().map(|n| n.parse().unwrap()).collect();
            let mode = match numbers[0] {
                -1 | 0 => Mode::Write,
                1 => Mode::Upgradable,
                _ => Mode::Read,
            };
            let place = (numbers[0], numbers[1] as u64, request, owner_of(parts[0]));
            if !normal.queue.contains(&place) {
                return Err(format!("{place:?} is not in the queue"));
            }
            latest = latest.max(numbers[3] as u64);
            let from = RequestId::from_wire(parts[5]);
            normal.waiters.insert(
                request,
                (
                    place.3,
                    mode,
                    numbers[2] as u64,
                    numbers[3] as u64,
                    from,
                    parts[6].to_owned(),
                ),
            );
        }
        let mut last_mark = 0;
        for (request, score) in &marks {
            let until_ms = score.floor() as u64;
            let ending =
                ["lapsed", "revoked", "withdrawn", "replaced"][((score - score.floor()) * 4.0) as usize];
            last_mark = last_mark.max(until_ms);
            if until_ms > now {
                normal
                    .marks
                    .insert(RequestId::from_wire(request).unwrap(), (ending, until_ms));
            }
        }
        if last_mark > number("marks") {
            return Err(format!("a mark ends at {last_mark}, after {}", number("marks")));
        }

        let gc = number("warm")
            + if hash.contains_key("warm") {
                TUNING.retention_ms
            } else {
                0
            };
        latest = latest.max(last_mark);
        if latest > 0 && gc < latest + TUNING.retention_ms {
            return Err(format!(
                "the keys expire at {gc}, too soon for a deadline at {latest}"
            ));
        }
        let expected = |there: bool, at: u64| if there { at as i64 } else { -2 };
        same("the TTL of the hash", &ttl_hash, &expected(!hash.is_empty(), gc))?;
        same(
            "the TTL of the readers",
            &ttl_readers,
            &expected(readers_kept, gc - u64::from(gc > 0)),
        )?;
        same(
            "the TTL of the queue",
            &ttl_queue,
            &expected(!queue.is_empty(), gc - u64::from(gc > 0)),
        )?;
        same(
            "the TTL of the waiters",
            &ttl_waiters,
            &expected(!waiting.is_empty(), gc - u64::from(gc > 0)),
        )?;
        if !marks.is_empty() && (ttl_marks < last_mark as i64 || ttl_marks >= gc as i64) {
            return Err(format!(
                "the marks expire at {ttl_marks}; the last ends at {last_mark}, gc {gc}"
            ));
        }
        if normal.holds.is_empty() && normal.queue.is_empty() {
            let left: Vec<_> = hash
                .keys()
                .filter(|f| !["fence", "warm", "ticket", "marks", "due", "waiting"].contains(&f.as_str()))
                .collect();
            if !left.is_empty() {
                return Err(format!("nobody holds, and {left:?} is left"));
            }
        }
        Ok(normal)
    }
}

fn same<T: PartialEq + fmt::Debug>(what: &str, server: &T, expected: &T) -> Result<(), String> {
    if server == expected {
        Ok(())
    } else {
        Err(format!(
            "{what} differs\n  scripts: {server:#?}\n  machine: {expected:#?}"
        ))
    }
}

/// Runs sequences from a seed; on a difference panics with the shortest one found.
fn sequences(bench: &RefCell<Bench>, seed: u64, cases: u32) {
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 3000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let result = runner.run(&some_steps(), |(trust, steps)| {
        bench
            .borrow_mut()
            .sequence(trust, &steps)
            .map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, (trust, steps))) => {
            panic!(
                "{why}\nin {} steps, trust {trust}, seed {seed}: {steps:#?}",
                steps.len()
            )
        }
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

/// A number from the environment, if it is there.
fn asked_for(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable} is {text:?}; a number is wanted")))
}

/// 400 sequences, or `RELATCH_SEQUENCES`; from seed 0 on, or `RELATCH_SEED`, 25 of each.
#[test]
fn scripts_do_what_the_machine_does() {
    let wanted = asked_for("RELATCH_SEQUENCES").unwrap_or(400);
    let first_seed = asked_for("RELATCH_SEED").unwrap_or(0);
    let bench = RefCell::new(Bench::new());
    let begun = Instant::now();
    for round in 0..wanted.div_ceil(25) {
        sequences(&bench, first_seed.wrapping_add(round), 25);
    }
    let steps = bench.borrow().steps;
    println!("{steps} steps in {wanted} sequences, {:.0?}", begun.elapsed());
}

/// What random sequences seldom come to.
#[test]
fn a_hold_that_has_lapsed_is_not_handed_over_as_if_it_were_held() {
    for mode in [Mode::Write, Mode::Read] {
        let mut bench = Bench::new();
        let hears = [true; CLIENTS];
        for n in 0..CLIENTS {
            bench.ears.hear(client(n), true);
        }
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(3600);
        let mut now_us = start.as_micros() as u64;
        let mut state = LockState::default();
        let late = Acquire {
            lease_ms: 1_000,
            ..acquire(request(0, 1), owner(0), mode)
        };
        for (pass_us, operation) in [
            (0, Operation::Acquire(late)),
            (
                1_000,
                Operation::Acquire(acquire(request(1, 2), owner(1), Mode::Write)),
            ),
            (1_500_000, release(request(0, 1), owner(0))),
        ] {
            now_us += pass_us;
            bench.steps += 1;
            let call = Call {
                name: name("n"),
                operation,
            };
            bench
                .step(&mut state, &call, now_us, true, hears)
                .unwrap_or_else(|why| panic!("{mode}, {call:?}\n{why}"));
        }
        assert_eq!(state.snapshot(1).holding[0].owner, owner(1));
    }
}

#[test]
fn one_call_renews_many_names_each_as_if_it_were_alone() {
    let mut bench = Bench::new();
    let hears = [true; CLIENTS];
    for n in 0..CLIENTS {
        bench.ears.hear(client(n), true);
    }
    let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(3600);
    let mut now_us = start.as_micros() as u64;
    let lone = request(0, now_us - EPOCH_US);
    let short = |acquire: Acquire| {
        Operation::Acquire(Acquire {
            lease_ms: 1_000,
            ..acquire
        })
    };
    let asks = |n, of, mode| Operation::Acquire(acquire(request(n, n as u64 + 1), owner(of), mode));
    let lives: [(&str, Vec<Operation>); 8] = [
        (
            "lone",
            vec![Operation::Acquire(acquire(lone, OwnerId::of(lone), Mode::Read))],
        ),
        ("write", vec![asks(0, 0, Mode::Write)]),
        (
            "waited for",
            vec![
                asks(0, 0, Mode::Write),
                asks(1, 1, Mode::Write),
                asks(2, 2, Mode::Read),
            ],
        ),
        (
            "read",
            vec![
                asks(0, 0, Mode::Read),
                asks(1, 1, Mode::Upgradable),
                asks(2, 2, Mode::Write),
            ],
        ),
        (
            "nested",
            vec![
                asks(0, 0, Mode::Write),
                asks(1, 0, Mode::Read),
                asks(2, 0, Mode::Write),
            ],
        ),
        (
            "lapsed",
            vec![
                short(acquire(request(0, 1), owner(0), Mode::Write)),
                asks(1, 1, Mode::Write),
            ],
        ),
        ("revoked", vec![asks(0, 0, Mode::Write), revoke(None)]),
        ("nobody's", vec![]),
    ];
    let mut states: Vec<LockState> = Vec::new();
    for (of, life) in &lives {
        let mut state = LockState::default();
        for operation in life {
            now_us += 1;
            bench.steps += 1;
            let call = Call {
                name: name(of),
                operation: operation.clone(),
            };
            bench.step(&mut state, &call, now_us, true, hears).unwrap();
        }
        states.push(state);
    }
    for lease_ms in [600_001, 900_000, 50_000_000] {
        now_us += 1_500_000;
        bench.steps += 1;
        let renewals = lives.iter().flat_map(|(of, life)| {
            let requests = if *of == "lone" {
                vec![(lone, OwnerId::of(lone))]
            } else if *of == "nested" {
                (0..3).map(|n| (request(n, n as u64 + 1), owner(0))).collect()
            } else {
                vec![(request(0, 1), owner(0)), (request(1, 2), owner(1))][..life.len().clamp(1, 2)].to_vec()
            };
            requests.into_iter().map(|(request, owner)| Renewal {
                name: name(of),
                request,
                owner,
                fence: 0,
                lease_ms,
                fixed: false,
            })
        });
        let call = Call {
            name: name(lives[0].0),
            operation: Operation::Renew(renewals.collect()),
        };
        let answer = bench.ask_as(&call, now_us, true).unwrap();
        let cx = Context {
            now_us,
            tuning: TUNING,
            heard: &|_| true,
        };
        let parts = call.parts();
        assert_eq!(parts.len(), lives.len());
        let expected: Vec<Answer> = parts
            .iter()
            .zip(&mut states)
            .map(|(part, state)| state.apply(&part.operation, &cx).0)
            .collect();
        assert_eq!(answer, Answer::joined(expected));
        for (part, state) in parts.iter().zip(&states) {
            assert_eq!(
                bench.read(keys(&part.name), now_us).unwrap(),
                state.normal(now_us),
                "{:?}",
                part.name
            );
        }
    }
}

/// What random sequences seldom come to.
#[test]
fn an_upgrade_that_nobody_heard_becomes_what_it_was() {
    let mut bench = Bench::new();
    let hears = [true, true, true, false];
    for (n, yes) in hears.iter().enumerate() {
        bench.ears.hear(client(n), *yes);
    }
    let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(3600);
    let mut now_us = start.as_micros() as u64;
    let mut state = LockState::default();
    let labelled = |acquire: Acquire, label: &str| {
        Operation::Acquire(Acquire {
            label: label.into(),
            ..acquire
        })
    };
    let upgrade = Acquire {
        upgrade_of: Some(request(0, 1)),
        ..acquire(request(3, 3), owner(0), Mode::Write)
    };
    let withdraw = Withdraw {
        request: request(0, 6),
        owner: owner(0),
        blame: true,
        upgrade_of: Some(request(0, 1)),
    };
    let steps = [
        labelled(
            acquire(request(0, 1), owner(0), Mode::Upgradable),
            "an upgradable one",
        ),
        labelled(acquire(request(1, 2), owner(1), Mode::Read), "in its way"),
        labelled(upgrade, "deaf"),
        release(request(1, 2), owner(1)),
        Operation::Inspect(5),
        // And one that was heard, and is not wanted any more.
        labelled(
            Acquire {
                upgrade_of: Some(request(0, 1)),
                ..acquire(request(0, 6), owner(0), Mode::Write)
            },
            "not wanted",
        ),
        revoke(Some(owner(0))),
        Operation::Withdraw(withdraw),
        Operation::Inspect(5),
        release(request(0, 1), owner(0)),
    ];
    for (at, operation) in steps.into_iter().enumerate() {
        now_us += 1_000;
        bench.steps += 1;
        let call = Call {
            name: name("n"),
            operation,
        };
        bench
            .step(&mut state, &call, now_us, true, hears)
            .unwrap_or_else(|why| panic!("step {at}, {call:?}\n{why}"));
    }
}

/// As above: its write waits behind another's, goes to the head with the upgradable hold, which comes back to an old place, and enters when
/// the readers have left.
#[test]
fn a_write_that_its_owners_upgradable_hold_brings_to_the_head_enters_first() {
    let mut bench = Bench::new();
    let hears = [true; CLIENTS];
    for n in 0..CLIENTS {
        bench.ears.hear(client(n), true);
    }
    let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(3600);
    let mut now_us = start.as_micros() as u64;
    let mut state = LockState::default();
    let steps = [
        Operation::Acquire(acquire(request(1, 1), owner(1), Mode::Read)),
        Operation::Acquire(acquire(request(2, 2), owner(2), Mode::Write)),
        Operation::Acquire(acquire(request(0, 3), owner(0), Mode::Write)),
        Operation::Acquire(Acquire {
            ticket: 1,
            ..acquire(request(0, 4), owner(0), Mode::Upgradable)
        }),
        release(request(1, 1), owner(1)),
    ];
    for (at, operation) in steps.into_iter().enumerate() {
        now_us += 1_000;
        bench.steps += 1;
        let call = Call {
            name: name("n"),
            operation,
        };
        bench
            .step(&mut state, &call, now_us, true, hears)
            .unwrap_or_else(|why| panic!("step {at}, {call:?}\n{why}"));
    }
    let top = state.normal(now_us).top;
    assert!(
        matches!(top, Some((Mode::Write, of, _)) if of == owner(0)),
        "{top:?}"
    );
}

/// As above. The write requests of two owners die in line, their reads enter, and the polls come after all: if these revived them, each would
/// wait for the other's read.
#[test]
fn a_request_that_died_in_line_does_not_come_back_behind_its_owners_read() {
    let mut bench = Bench::new();
    let hears = [true; CLIENTS];
    for n in 0..CLIENTS {
        bench.ears.hear(client(n), true);
    }
    let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(3600);
    let mut now_us = start.as_micros() as u64;
    let mut state = LockState::default();
    let poll = |n, number, by| {
        Operation::Poll(vec![Member {
            request: request(n, number),
            owner: owner(by),
        }])
    };
    let steps = [
        (
            0,
            Operation::Acquire(acquire(request(0, 1), owner(0), Mode::Write)),
        ),
        (
            0,
            Operation::Acquire(acquire(request(0, 2), owner(3), Mode::Write)),
        ),
        (
            0,
            Operation::Acquire(acquire(request(1, 1), owner(1), Mode::Write)),
        ),
        (
            0,
            Operation::Acquire(acquire(request(2, 1), owner(2), Mode::Write)),
        ),
        (TUNING.claim_ms / 2, poll(0, 2, 3)),
        (TUNING.claim_ms / 2 + 1, poll(0, 2, 3)),
        (
            0,
            Operation::Acquire(acquire(request(1, 2), owner(1), Mode::Read)),
        ),
        (
            0,
            Operation::Acquire(acquire(request(2, 2), owner(2), Mode::Read)),
        ),
        (0, release(request(0, 1), owner(0))),
        (0, poll(1, 1, 1)),
        (0, poll(2, 1, 2)),
    ];
    for (at, (pass_ms, operation)) in steps.into_iter().enumerate() {
        now_us += pass_ms * 1_000;
        bench.steps += 1;
        let call = Call {
            name: name("n"),
            operation,
        };
        bench
            .step(&mut state, &call, now_us, true, hears)
            .unwrap_or_else(|why| panic!("step {at}, {call:?}\n{why}"));
    }
    let normal = state.normal(now_us);
    let waiting: Vec<_> = normal.queue.iter().map(|(_, _, request, _)| *request).collect();
    assert_eq!(waiting, [request(0, 2)], "{normal:#?}");
}

/// As above: an owner that was made for an upgradable request reads alone after the downgrade, and a copy of the request arrives.
#[test]
fn a_late_copy_of_what_was_downgraded_to_a_lone_read_hears_of_that() {
    let mut bench = Bench::new();
    let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(3600);
    let now_us = start.as_micros() as u64;
    let mut state = LockState::default();
    let made = request(0, now_us - EPOCH_US);
    let copy = || Operation::Acquire(acquire(made, OwnerId::of(made), Mode::Upgradable));
    let to_read = Operation::Downgrade(Downgrade {
        request: made,
        owner: OwnerId::of(made),
        fence: 0,
        to: Mode::Read,
    });
    for (at, operation) in [copy(), to_read, copy()].into_iter().enumerate() {
        bench.steps += 1;
        let call = Call {
            name: name("n"),
            operation,
        };
        bench
            .step(&mut state, &call, now_us, true, [false; CLIENTS])
            .unwrap_or_else(|why| panic!("step {at}, {call:?}\n{why}"));
    }
}

// -- against their headers ---------------------------------------------------------------------------------------

fn parts(script: &Script) -> (&'static str, &'static str) {
    let start = script
        .source
        .find(&format!("\n-- {}: ", script.name))
        .expect("a header")
        + 1;
    let own = &script.source[start..];
    let end = own.find("\nlocal ").expect("code after the header");
    (&own[..end], &own[end..])
}

fn section<'a>(header: &'a str, from: &str, to: &str) -> &'a str {
    let start = header
        .find(from)
        .unwrap_or_else(|| panic!("{from:?} in {header}"))
        + from.len();
    let end = header[start..]
        .find(to)
        .unwrap_or_else(|| panic!("{to:?} in {header}"));
    &header[start..start + end]
}

/// The numbers before the names of parameters.
fn numbered(section: &str) -> Vec<usize> {
    section
        .lines()
        .flat_map(|line| line.trim_start_matches('-').split("  "))
        .filter_map(|piece| {
            let (number, name) = piece.trim().split_once(' ')?;
            name.starts_with(char::is_alphabetic).then_some(())?;
            number.parse().ok()
        })
        .collect()
}

fn documented_words(script: &Script) -> BTreeSet<String> {
    section(parts(script).0, "-- Replies\n", "-- Wakes")
        .lines()
        .filter_map(|line| line.strip_prefix("--   "))
        .filter(|line| !line.starts_with(' '))
        .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        .collect()
}

/// Two names in one step, against the machine: looked at one after the other, and taken one after the other if both would be granted. Other steps in between.
fn take_together(bench: &mut Bench, rounds: usize) {
    let hears = [true; CLIENTS];
    for n in 0..CLIENTS {
        bench.ears.hear(client(n), true);
    }
    let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(7200);
    let mut now_us = start.as_micros() as u64;
    let mut random = fastrand::Rng::with_seed(17);
    let names = ["one", "two", "three"].map(|of| name(&format!("{of} {}", bench.names)));
    let mut states: Vec<LockState> = names.iter().map(|_| LockState::default()).collect();
    let mut known: Vec<(usize, Member)> = Vec::new();
    let mut copies = Vec::new();
    for round in 0..rounds {
        now_us += random.u64(1..=1_500_000);
        bench.steps += 1;
        let number = round as u64 * 10 + 1;
        let some = |random: &mut fastrand::Rng, at: u64| Acquire {
            mode: [Mode::Read, Mode::Upgradable, Mode::Write][random.usize(..3)],
            lease_ms: random.u64(1_000..20_000),
            first: random.u8(..6) == 0,
            label: ["", "it"][random.usize(..2)].into(),
            ..acquire(
                request(random.usize(..CLIENTS), number + at),
                owner(random.usize(..3)),
                Mode::Read,
            )
        };
        let at = random.usize(..3);
        match random.u8(..6) {
            // Whatever else happens to one of them: it is held, waited for, given back.
            0..=2 => {
                let mine: Vec<_> = known
                    .iter()
                    .filter(|(of, _)| *of == at)
                    .map(|(_, m)| *m)
                    .collect();
                let operation = match (random.u8(..3), mine.is_empty()) {
                    (0, _) | (_, true) => {
                        let op = some(&mut random, 0);
                        known.push((
                            at,
                            Member {
                                request: op.request,
                                owner: op.owner,
                            },
                        ));
                        Operation::Acquire(op)
                    }
                    (1, _) => Operation::Poll(mine),
                    _ => {
                        let Member { request, owner } = mine[random.usize(..mine.len())];
                        release(request, owner)
                    }
                };
                let call = Call {
                    name: names[at].clone(),
                    operation,
                };
                bench.step(&mut states[at], &call, now_us, true, hears).unwrap();
            }
            what => {
                let by = random.usize(..3);
                let parts: Vec<(usize, Acquire)> = match copies.last() {
                    Some(last) if what == 3 => Vec::clone(last),
                    _ => (0..3)
                        .filter(|n| *n != at)
                        .map(|n| {
                            let op = Acquire {
                                wait: false,
                                owner: owner(by),
                                ..some(&mut random, n as u64)
                            };
                            (n, op)
                        })
                        .collect(),
                };
                copies.push(parts.clone());
                let cx = Context {
                    now_us,
                    tuning: TUNING,
                    heard: &|_| true,
                };
                let mut pushed = 0;
                let why_not = would_grant_all(parts.iter().map(|(_, op)| op), |at, op| {
                    let (would, pushes) = states[parts[at].0].would_grant(op, &cx);
                    pushed += pushes.len();
                    would
                });
                let expected: Result<Vec<Grant>, WhyNot> = why_not.map_or_else(
                    || {
                        Ok(parts
                            .iter()
                            .map(|(n, op)| {
                                let (answer, pushes) = states[*n].apply(&Operation::Acquire(op.clone()), &cx);
                                pushed += pushes.len();
                                known.push((
                                    *n,
                                    Member {
                                        request: op.request,
                                        owner: op.owner,
                                    },
                                ));
                                match answer.reply {
                                    Reply::Acquire(Acquired::Granted(grant)) => grant,
                                    other => panic!("it would have been granted: {other:?}"),
                                }
                            })
                            .collect())
                    },
                    Err,
                );
                let asked: Vec<_> = parts
                    .iter()
                    .map(|(n, op)| (names[*n].clone(), op.clone()))
                    .collect();
                bench.set_time(now_us);
                let encoded = encode_all(&asked, bench.steps, &TUNING, true, CHANNEL);
                let value = bench.send(&encoded).unwrap();
                let answer = decode_all(asked.len(), bench.steps, value).unwrap();
                assert_eq!(answer, (now_us, expected), "round {round}: {asked:?}");
                assert_eq!(bench.ears.heard().is_empty(), pushed == 0, "round {round}");
                for n in 0..3 {
                    if parts.iter().any(|(of, _)| *of == n) {
                        let there = bench.read(keys(&names[n]), now_us).unwrap();
                        assert_eq!(there, states[n].normal(now_us), "round {round}, {}", names[n]);
                    }
                }
            }
        }
    }
}

#[test]
fn several_names_are_taken_as_the_machine_takes_them() {
    let mut bench = Bench::new();
    take_together(&mut bench, 1_500);
}

#[test]
fn names_that_begin_with_the_same_tag_share_a_slot() {
    let first = |of: &str| keys(&name(of))[0].clone();
    assert_eq!(first("{order:17}items"), "relatch:1:{order:17}=items");
    assert_eq!(keys(&name("{a%}b:c}"))[1], "relatch:1:{a%25}:readers=b:c%7D");
    for whole in ["{}x", "{x}", "{", "}", "{x", "x{y}z", "{{x}"] {
        assert!(!first(whole).contains('='), "{whole}: {}", first(whole));
    }
}

#[test]
fn headers_number_what_the_codec_sends() {
    let member = Member {
        request: request(0, 1),
        owner: owner(0),
    };
    let Member { request, owner } = member;
    let operations = [
        Operation::Acquire(Acquire {
            label: "all there is".into(),
            ..acquire(request, owner, Mode::Read)
        }),
        release(request, owner),
        Operation::Downgrade(Downgrade {
            request,
            owner,
            fence: 1,
            to: Mode::Read,
        }),
        Operation::Renew(vec![Renewal {
            name: name("n"),
            request,
            owner,
            fence: 1,
            lease_ms: 1,
            fixed: false,
        }]),
        Operation::Withdraw(Withdraw {
            request,
            owner,
            blame: true,
            upgrade_of: None,
        }),
        Operation::Poll(vec![member]),
        revoke(None),
        Operation::Inspect(1),
    ];
    for (operation, script) in operations.into_iter().zip(ALL) {
        let encoded = encode(
            &Call {
                name: name("n"),
                operation,
            },
            1,
            &TUNING,
            true,
        );
        assert_eq!(encoded.script.name, script.name);
        let header = parts(script).0;
        let keys = numbered(section(header, "-- KEYS\n", "-- ARGV\n"));
        assert_eq!(
            keys,
            (1..=encoded.keys().count()).collect::<Vec<_>>(),
            "KEYS of {}",
            script.name
        );
        let args = numbered(section(header, "-- ARGV\n", "-- Replies\n"));
        assert_eq!(
            args,
            (1..=encoded.args().count()).collect::<Vec<_>>(),
            "ARGV of {}",
            script.name
        );
    }
}

#[test]
fn headers_list_every_reply_and_every_reply_comes() {
    let bench = RefCell::new(Bench::new());
    sequences(&bench, 200, 120);
    take_together(&mut bench.borrow_mut(), 200);
    let all: BTreeSet<_> = ALL.iter().flat_map(|script| documented_words(script)).collect();
    let came = &bench.borrow().words;
    for script in ALL {
        let documented = documented_words(script);
        let coded: BTreeSet<_> = parts(script)
            .1
            .split('\'')
            .skip(1)
            .step_by(2)
            .filter(|word| all.contains(*word))
            .map(str::to_owned)
            .collect();
        assert_eq!(
            coded, documented,
            "words in the code of {}, and in its header",
            script.name
        );
        let came: BTreeSet<_> = came
            .iter()
            .filter(|(of, _)| *of == script.name)
            .map(|(_, word)| word.clone())
            .collect();
        assert_eq!(
            came, documented,
            "words that {} answered, and those in its header",
            script.name
        );
    }
}

// -- the codec ---------------------------------------------------------------------------------------------------

fn bulk(text: &str) -> Value {
    Value::BulkString(text.as_bytes().to_vec())
}

#[test]
fn a_reply_to_another_call_is_told_from_a_broken_one() {
    let call = Call {
        name: name("n"),
        operation: release(request(0, 1), owner(0)),
    };
    let reply = |text: &str| decode(&call, 7, bulk(text));
    assert!(reply("7 released").is_ok());
    assert_eq!(
        reply("8 released"),
        Err(Malformed::CallId {
            asked: 7,
            answered: "8".into()
        })
    );
    let polled = Call {
        name: name("n"),
        operation: Operation::Poll(vec![]),
    };
    let fields = |fields: &[Value]| decode(&polled, 7, Value::Array(fields.to_vec()));
    assert!(fields(&[bulk("7"), Value::Int(5), bulk("poll"), Value::Array(vec![])]).is_ok());
    assert!(matches!(
        fields(&[bulk("8"), Value::Int(5), bulk("poll"), Value::Array(vec![])]),
        Err(Malformed::CallId { asked: 7, .. })
    ));
    let broken = [
        reply("7"),
        reply("7 "),
        reply("7 granted"),
        reply("7 not_held"),
        reply("7 not_held asleep"),
        reply("7 released 1"),
        reply("7  released"),
        reply(&format!("7 {}", "ü".repeat(500))),
        decode(&call, 7, Value::Nil),
        decode(&call, 7, Value::Okay),
        decode(&call, 7, Value::Array(vec![bulk("7"), bulk("released")])),
        decode(&call, 7, Value::BulkString(vec![b'7', b' ', 0xff])),
        fields(&[]),
        fields(&[bulk("7"), Value::Int(-1), bulk("poll"), Value::Array(vec![])]),
        fields(&[bulk("7"), Value::Int(5), bulk("poll")]),
        fields(&[bulk("7"), Value::Int(5), Value::Nil]),
        decode(&polled, 7, bulk("7 poll")),
    ];
    for (at, result) in broken.into_iter().enumerate() {
        assert!(matches!(result, Err(Malformed::Content(_))), "{at}: {result:?}");
    }
}

#[test]
fn a_broken_push_is_refused() {
    let r = request(0, 1);
    assert_eq!(
        decode_push(format!("granted 5 {r},1,2,3").as_bytes()),
        Ok(Push::Granted {
            now_us: 5,
            grants: vec![(
                r,
                Grant {
                    fence: 1,
                    deadline_ms: 2,
                    depth: 3
                }
            )]
        })
    );
    assert_eq!(
        decode_push(format!("revoked 5 {r} {r}").as_bytes()),
        Ok(Push::Revoked { requests: vec![r, r] })
    );
    for broken in [
        "",
        "granted",
        "granted 5",
        "granted x",
        "revoked 5",
        "revoked 5 x",
        "told 5 x",
        "granted 5 a,1,2,3",
        "\u{fffd}",
        &format!("granted 5 {r},1,2"),
        &format!("granted 5 {r},1,2,3,4"),
        &format!("granted 5 {r},1,-2,3"),
        &format!("revoked 5 {r} "),
    ] {
        assert!(decode_push(broken.as_bytes()).is_err(), "{broken:?}");
    }
    assert!(decode_push(b"granted 5 \xff").is_err());
}

// -- keys --------------------------------------------------------------------------------------------------------

const NASTY: [&str; 16] = [
    "plain",
    "{",
    "}",
    "{}",
    "}{",
    "{a}b",
    "}a",
    "%",
    "%7D",
    "%7B",
    "a:readers",
    "a}:readers",
    " \n\0\t",
    "ünï",
    "%25",
    "{a}:queue",
];

#[test]
fn all_keys_of_a_name_are_in_one_slot() {
    let server = Server::start();
    let mut con = server.connect();
    for text in NASTY {
        let slots: BTreeSet<u64> = keys(&name(text))
            .iter()
            .map(|key| {
                cmd("CLUSTER")
                    .arg("KEYSLOT")
                    .arg(key)
                    .query(&mut con)
                    .unwrap_or_else(|_| u64::from(slot(key)))
            })
            .collect();
        assert_eq!(slots.len(), 1, "{text:?}");
        let computed: BTreeSet<_> = keys(&name(text)).iter().map(|key| slot(key)).collect();
        assert_eq!(computed.len(), 1, "{text:?}");
    }
    assert_eq!(slot("123456789"), 12739); // from the specification of Redis Cluster: crc16 0x31C3
}

#[test]
fn a_channel_with_a_hash_tag_is_published_within_its_shard() {
    let server = Server::start();
    let mut con = server.connect();
    let counts = |con: &mut Connection| {
        let info: String = cmd("INFO").arg("commandstats").query(con).unwrap();
        ["cmdstat_publish:", "cmdstat_spublish:"].map(|stat| info.contains(stat))
    };
    for (channels, published) in [
        (CHANNEL.to_owned(), [true, false]),
        (channels_of(7), [false, true]),
    ] {
        let name = name(&channels);
        let _: () = cmd("CONFIG").arg("RESETSTAT").query(&mut con).unwrap();
        for operation in [
            Operation::Acquire(acquire(request(1, 1), owner(1), Mode::Write)),
            Operation::Acquire(acquire(request(2, 1), owner(2), Mode::Write)),
            release(request(1, 1), owner(1)),
        ] {
            let call = Call {
                name: name.clone(),
                operation,
            };
            let encoded = encode_for(&call, 7, &LONG, false, &channels);
            let value: Value = encoded.eval().query(&mut con).unwrap();
            decode(&call, 7, value).unwrap();
        }
        assert_eq!(counts(&mut con), published, "{channels}");
    }
}

/// As the specification of Redis Cluster has it; a server without cluster mode may refuse to tell.
fn slot(key: &str) -> u16 {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty())
        .unwrap_or(key);
    let crc = tag.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            }
        })
    });
    crc % 16384
}

proptest! {
    #[test]
    fn keys_of_different_names_differ(a in "[%{}257BDab:]{1,6}", b in "[%{}257BDab:]{1,6}") {
        let (a_keys, b_keys) = (keys(&name(&a)), keys(&name(&b)));
        prop_assert_eq!(a == b, a_keys.iter().any(|key| b_keys.contains(key)));
    }
}

// -- cost --------------------------------------------------------------------------------------------------------

/// How many commands the scripts called while this ran.
fn calls(con: &mut Connection, run: impl FnOnce(&mut Connection)) -> u64 {
    let _: () = cmd("CONFIG").arg("RESETSTAT").query(con).unwrap();
    run(con);
    let stats: String = cmd("INFO").arg("commandstats").query(con).unwrap();
    stats
        .lines()
        .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="))
        .filter(|(command, _)| !["evalsha", "config|resetstat", "info"].contains(command))
        .map(|(_, rest)| rest.split(',').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

fn load(con: &mut Connection) {
    for script in ALL {
        let sha: String = cmd("SCRIPT").arg("LOAD").arg(script.source).query(con).unwrap();
        assert_eq!(sha, script.sha1());
    }
}

fn many(con: &mut Connection, name: &Name, operations: impl Iterator<Item = Operation>) {
    let mut pipe = redis::pipe();
    for operation in operations {
        pipe.add_command(
            encode(
                &Call {
                    name: name.clone(),
                    operation,
                },
                7,
                &LONG,
                true,
            )
            .evalsha(),
        );
    }
    let _: Vec<Value> = pipe.query(con).unwrap();
}

/// A request made now, and the owner made for it.
fn lone(client_n: usize) -> Member {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let made = now.as_micros() as u64 - EPOCH_US;
    let last = LAST.fetch_max(made, Ordering::Relaxed);
    let number = if made > last {
        made
    } else {
        LAST.fetch_add(1, Ordering::Relaxed) + 1
    };
    let request = request(client_n, number);
    Member {
        request,
        owner: OwnerId::of(request),
    }
}

fn pair(con: &mut Connection, name: &Name, mode: Mode, of: Member) -> (u64, u64) {
    let taken = calls(con, |con| {
        fence_of(run(
            con,
            name,
            Operation::Acquire(acquire(of.request, of.owner, mode)),
        ));
    });
    let given = calls(con, |con| {
        assert_eq!(
            run(con, name, release(of.request, of.owner)),
            Reply::Release(Released::Released)
        );
    });
    (taken, given)
}

#[test]
fn an_uncontended_pair_costs_few_calls() {
    let server = Server::start();
    let mut con = server.connect();
    load(&mut con);
    let name = name("n");
    let named = || Member {
        request: lone(0).request,
        owner: owner(0),
    };
    for mode in [Mode::Write, Mode::Read, Mode::Write] {
        pair(&mut con, &name, mode, lone(0));
    }
    assert_eq!(pair(&mut con, &name, Mode::Write, lone(0)), (3, 2), "write");
    assert_eq!(
        pair(&mut con, &name, Mode::Upgradable, lone(0)),
        (3, 2),
        "upgradable"
    );
    assert_eq!(
        pair(&mut con, &name, Mode::Write, named()),
        (3, 2),
        "write, named owner"
    );
    assert_eq!(
        pair(&mut con, &name, Mode::Read, lone(0)),
        (4, 2),
        "the first read after a write"
    );
    assert_eq!(pair(&mut con, &name, Mode::Read, lone(0)), (3, 2), "read");
    assert_eq!(
        pair(&mut con, &name, Mode::Read, named()),
        (4, 3),
        "read, named owner"
    );
    assert_eq!(
        pair(&mut con, &name, Mode::Write, lone(0)),
        (4, 2),
        "the first write after a read"
    );
}

/// What a name with so many readers takes in memory.
fn bytes(con: &mut Connection, name: &Name) -> u64 {
    keys(name)
        .iter()
        .map(|key| {
            cmd("MEMORY")
                .arg("USAGE")
                .arg(key)
                .arg("SAMPLES")
                .arg(0)
                .query::<Option<u64>>(con)
                .unwrap()
                .unwrap_or(0)
        })
        .sum()
}

#[test]
fn a_read_pair_costs_the_same_with_any_number_of_readers() {
    let server = Server::start();
    let mut con = server.connect();
    load(&mut con);
    let name = name("n");
    let mut held = 0;
    for readers in [1, 10_000] {
        // A few at a time: a request that is a second old when it comes, on a busy machine, is not stored as a lone reader's.
        while held < readers {
            let some = (readers - held).min(500);
            many(
                &mut con,
                &name,
                (0..some).map(|_| {
                    let Member { request, owner } = lone(1);
                    Operation::Acquire(acquire(request, owner, Mode::Read))
                }),
            );
            held += some;
        }
        assert_eq!(
            pair(&mut con, &name, Mode::Read, lone(0)),
            (3, 2),
            "with {readers} others"
        );
    }
    let per_reader = bytes(&mut con, &name) / 10_000;
    println!("{per_reader} bytes for each of 10,000 readers");
    assert!(per_reader <= 150, "{per_reader} bytes for each reader");
}

#[test]
fn a_handoff_costs_the_same_with_any_number_of_waiters() {
    let server = Server::start();
    let mut con = server.connect();
    load(&mut con);
    let mut ears = Ears::of(&server);
    ears.hear(client(1), true);
    for (mode, cost) in [(Mode::Write, 10), (Mode::Read, 0)] {
        let mut costs = BTreeSet::new();
        // A phase of readers is one more call to look at than a single one.
        for waiters in [1, 2, 1000].into_iter().skip(usize::from(mode == Mode::Read)) {
            let name = name(&format!("{mode} {waiters}"));
            fence_of(run(
                &mut con,
                &name,
                Operation::Acquire(acquire(request(0, 1), owner(0), Mode::Write)),
            ));
            many(
                &mut con,
                &name,
                (0..waiters).map(|n| Operation::Acquire(acquire(request(1, n as u64), reader(n), mode))),
            );
            costs.insert(calls(&mut con, |con| {
                assert_eq!(
                    run(con, &name, release(request(0, 1), owner(0))),
                    Reply::Release(Released::Released)
                );
            }));
            assert!(!ears.heard().is_empty());
        }
        println!("a handoff to {mode}: {costs:?} calls");
        assert_eq!(costs.len(), 1, "{costs:?}");
        assert!(cost == 0 || costs.contains(&cost), "{costs:?}");
    }
}

// -- what may go wrong -------------------------------------------------------------------------------------------

/// All that the server has: by key its type, when it expires and what is in it, in an order that means nothing.
fn dump(con: &mut Connection) -> BTreeMap<String, (String, i64, BTreeSet<String>)> {
    let all: Vec<String> = cmd("KEYS").arg("*").query(con).unwrap();
    all.into_iter()
        .map(|key| {
            let kind: String = cmd("TYPE").arg(&key).query(con).unwrap();
            let expires = cmd("PEXPIRETIME").arg(&key).query(con).unwrap();
            let content: Vec<(String, String)> = match kind.as_str() {
                "hash" => cmd("HGETALL").arg(&key).query(con).unwrap(),
                "zset" => cmd("ZRANGE")
                    .arg(&key)
                    .arg(0)
                    .arg(-1)
                    .arg("WITHSCORES")
                    .query(con)
                    .unwrap(),
                _ => vec![("".into(), cmd("GET").arg(&key).query(con).unwrap())],
            };
            let content = content.into_iter().map(|(a, b)| format!("{a}={b}")).collect();
            (key, (kind, expires, content))
        })
        .collect()
}

#[test]
fn a_key_of_another_type_is_an_error_and_changes_nothing() {
    let server = Server::start();
    let mut con = server.connect();
    load(&mut con);
    let mut ears = Ears::of(&server);
    for n in 0..CLIENTS {
        ears.hear(client(n), true);
    }
    let held = |mode| Operation::Acquire(acquire(request(0, 1), owner(0), mode));
    let second = |mode| Operation::Acquire(acquire(request(1, 2), owner(1), mode));
    let marking = Operation::Release(Release {
        request: request(0, 1),
        owner: owner(0),
        fence: 0,
        again: false,
        mark: true,
    });
    let withdraw = Operation::Withdraw(Withdraw {
        request: request(1, 2),
        owner: owner(1),
        blame: true,
        upgrade_of: None,
    });
    let poll = Operation::Poll(vec![Member {
        request: request(1, 2),
        owner: owner(1),
    }]);
    let free = || release(request(0, 1), owner(0));
    // What comes before, which key is spoilt then, and what must fail.
    let cases: Vec<(Vec<Operation>, usize, Operation)> = vec![
        (vec![], 0, held(Mode::Write)),
        (vec![held(Mode::Write)], 0, free()),
        (vec![held(Mode::Write)], 0, Operation::Inspect(1)),
        (vec![], 1, held(Mode::Read)),
        (vec![held(Mode::Write), free()], 1, held(Mode::Read)),
        (vec![held(Mode::Read)], 1, free()),
        (vec![held(Mode::Read)], 1, marking.clone()),
        (
            vec![held(Mode::Read)],
            1,
            Operation::Renew(vec![Renewal {
                name: name("k"),
                request: request(0, 1),
                owner: owner(0),
                fence: 0,
                lease_ms: 900_000,
                fixed: false,
            }]),
        ),
        (vec![held(Mode::Read)], 1, second(Mode::Write)),
        (vec![held(Mode::Write), second(Mode::Read)], 1, free()),
        (
            vec![held(Mode::Write)],
            1,
            Operation::Downgrade(Downgrade {
                request: request(0, 1),
                owner: owner(0),
                fence: 0,
                to: Mode::Read,
            }),
        ),
        (vec![held(Mode::Read)], 1, revoke(None)),
        (vec![held(Mode::Write)], 2, second(Mode::Read)),
        (vec![held(Mode::Write), second(Mode::Read)], 2, free()),
        (vec![held(Mode::Write), second(Mode::Write)], 2, withdraw.clone()),
        (vec![held(Mode::Write), second(Mode::Write)], 2, poll.clone()),
        (vec![held(Mode::Write)], 3, second(Mode::Read)),
        (vec![held(Mode::Write), second(Mode::Read)], 3, free()),
        (vec![held(Mode::Write), second(Mode::Write)], 3, withdraw.clone()),
        (vec![held(Mode::Write), second(Mode::Write)], 3, poll),
        (vec![held(Mode::Write)], 4, marking.clone()),
        (vec![held(Mode::Read)], 4, marking.clone()),
        (vec![held(Mode::Write), second(Mode::Read)], 4, marking),
        (vec![held(Mode::Write), second(Mode::Write)], 4, withdraw),
    ];
    for (at, (before, spoilt, mut operation)) in cases.into_iter().enumerate() {
        let name = name(&format!("n{at}"));
        if let Operation::Renew(renewals) = &mut operation {
            renewals[0].name = name.clone();
        }
        for operation in before {
            run(&mut con, &name, operation);
        }
        let key = &keys(&name)[spoilt];
        let _: () = cmd("DEL").arg(key).query(&mut con).unwrap();
        let _: () = cmd("SET").arg(key).arg("spoilt").query(&mut con).unwrap();
        ears.heard();
        let before = dump(&mut con);
        let error = try_run(&mut con, &name, operation.clone()).expect_err(&format!("{at}: {operation:?}"));
        assert!(error.contains("WRONGTYPE"), "{at}: {error}");
        assert_eq!(dump(&mut con), before, "{at}: {operation:?}");
        assert_eq!(ears.heard(), vec![], "{at}: {operation:?}");
    }
}

#[test]
fn without_memory_nothing_is_taken_and_everything_can_be_given_back() {
    let server = Server::start();
    let mut con = server.connect();
    load(&mut con);
    let mut ears = Ears::of(&server);
    for n in 0..CLIENTS {
        ears.hear(client(n), true);
    }
    let memory = |con: &mut Connection, limit: &str| {
        let _: () = cmd("CONFIG")
            .arg("SET")
            .arg("maxmemory")
            .arg(limit)
            .query(con)
            .unwrap();
    };
    let name = name("n");
    let ask =
        |number: u64, by: usize, mode| Operation::Acquire(acquire(request(by, number), owner(by), mode));
    for first in [Mode::Read, Mode::Write] {
        for (number, by, mode) in [(1, 0, first), (2, 0, Mode::Read)] {
            fence_of(run(&mut con, &name, ask(number, by, mode)));
        }
        run(&mut con, &name, ask(3, 1, Mode::Write));
        memory(&mut con, "1");
        let before = dump(&mut con);
        for (number, by, mode) in [(4, 0, Mode::Read), (4, 2, Mode::Read), (4, 3, Mode::Write)] {
            let error = try_run(&mut con, &name, ask(number, by, mode)).unwrap_err();
            assert!(error.contains("OOM") || error.contains("maxmemory"), "{error}");
            assert_eq!(dump(&mut con), before);
            assert_eq!(ears.heard(), vec![]);
        }
        let renewal = Renewal {
            name: name.clone(),
            request: request(0, 1),
            owner: owner(0),
            fence: 0,
            lease_ms: 900_000,
            fixed: false,
        };
        let reply = run(&mut con, &name, Operation::Renew(vec![renewal]));
        assert!(
            matches!(&reply, Reply::Renew(rows) if matches!(rows[0], Renewed::Renewed { .. })),
            "{reply:?}"
        );
        for number in [1, 2] {
            assert_eq!(
                run(&mut con, &name, release(request(0, number), owner(0))),
                Reply::Release(Released::Released)
            );
        }
        assert_eq!(ears.heard().len(), 1, "the waiter was granted and told");
        let withdraw = Operation::Withdraw(Withdraw {
            request: request(1, 3),
            owner: owner(1),
            blame: false,
            upgrade_of: None,
        });
        let reply = run(&mut con, &name, withdraw);
        assert!(
            matches!(&reply, Reply::Withdraw(w) if w.was == WithdrawnFrom::Held),
            "{reply:?}"
        );
        memory(&mut con, "0");
        let _: () = cmd("FLUSHALL").query(&mut con).unwrap();
    }
}

/// Evicted, or deleted by hand: nothing stays stuck for longer than the leases that were there.
#[test]
fn a_lock_goes_on_when_any_of_its_keys_was_deleted() {
    let mut bench = Bench::new();
    let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(3600);
    for (at, deleted) in (0..5).chain(0..5).enumerate() {
        let name = name(&format!("deleted {at}"));
        let modes = if at < 5 {
            [Mode::Write, Mode::Read, Mode::Write]
        } else {
            [Mode::Read, Mode::Write, Mode::Read]
        };
        let mut now_us = start.as_micros() as u64;
        for (n, mode) in modes.into_iter().enumerate() {
            let acquire = Acquire {
                lease_ms: 30_000,
                ..acquire(request(n, 1), owner(n), mode)
            };
            bench.ask(&name, now_us, Operation::Acquire(acquire)).unwrap();
        }
        let _: () = cmd("DEL")
            .arg(&keys(&name)[deleted])
            .query(&mut bench.con)
            .unwrap();
        now_us += 40_000_000;
        let reply = bench
            .ask(
                &name,
                now_us,
                Operation::Acquire(acquire(request(0, 2), owner(3), Mode::Write)),
            )
            .unwrap();
        fence_of(reply);
        let reply = bench
            .ask(&name, now_us, release(request(0, 2), owner(3)))
            .unwrap();
        assert_eq!(reply, Reply::Release(Released::Released));
    }
}

#[test]
fn a_batch_as_large_as_any_fits() {
    let server = Server::start();
    let mut con = server.connect();
    load(&mut con);
    let mut ears = Ears::of(&server);
    ears.hear(client(1), true);
    let name = name("n");
    fence_of(run(
        &mut con,
        &name,
        Operation::Acquire(acquire(request(0, 1), owner(0), Mode::Write)),
    ));
    let readers = 9_000;
    many(
        &mut con,
        &name,
        (0..readers).map(|n| Operation::Acquire(acquire(request(1, n as u64), reader(n), Mode::Read))),
    );
    assert_eq!(
        run(&mut con, &name, release(request(0, 1), owner(0))),
        Reply::Release(Released::Released)
    );
    let heard = ears.heard();
    let Ok(Push::Granted { grants, .. }) = decode_push(&heard[0].1) else {
        panic!("{heard:?}")
    };
    assert_eq!(
        (heard.len(), grants.len()),
        (1, readers),
        "one message with all of a client's grants"
    );
    let renewals = (0..crate::protocol::MAX_BATCH)
        .map(|n| Renewal {
            name: name.clone(),
            request: request(1, n as u64),
            owner: reader(n),
            fence: 0,
            lease_ms: 30_000,
            fixed: false,
        })
        .collect();
    let Reply::Renew(rows) = run(&mut con, &name, Operation::Renew(renewals)) else {
        panic!()
    };
    assert!(rows.iter().all(|row| matches!(row, Renewed::Renewed { .. })));
    let reply = run(&mut con, &name, revoke(None));
    assert!(
        matches!(reply, Reply::Revoke(Revoking { requests: 9_000, .. })),
        "{reply:?}"
    );
    let Reply::Inspect(snapshot) = run(&mut con, &name, Operation::Inspect(20_000)) else {
        panic!()
    };
    assert_eq!((snapshot.holders, snapshot.holding.len()), (9_000, readers));
}
