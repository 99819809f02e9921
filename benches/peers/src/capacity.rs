//! docs/capacity.md: what a number of names, holds, waiters and clients costs, from what one of each costs, and a check of that at the size
//! that this machine can hold.
//!
//! The unit costs are differences of what the server tells of itself around a known number of each. A [`Load`] times the unit costs is a
//! [`Cost`]; the check makes a load for real and holds what the server then tells against it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use relatch::{Relatch, WriteGuard};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::job::{Job, Mode, Worker};
use crate::report;
use crate::results::{digits, grouped};
use crate::server::{Server, Spent};
use crate::subject::{Kind, Subject};

/// Defaults of relatch, which the formula is in.
const LEASE_S: f64 = 30.0;
const CLAIM_S: f64 = 5.0;
const PING_S: f64 = 5.0;
const ANNOUNCE_S: f64 = 30.0;

/// Names while units are measured.
const SAMPLE: usize = 4000;
/// Clients while units are measured.
const CROWD: usize = 200;
/// The lease of those whose renewals are measured, a third of which is a round, and how many rounds of it.
const BRISK: Duration = Duration::from_secs(6);
const ROUNDS: u32 = 4;
/// Calls under way at once while something is set up.
const AT_ONCE: usize = 64;

/// How far the check may be off: how many names share a call, which depends on when they were acquired; what is bytes; and what is time,
/// which others on the machine have a part in.
const SHARED: f64 = 0.25;
const BYTES: f64 = 0.25;
const TIME: f64 = 0.6;
const CHANCE: f64 = 0.05;

/// The check on a cluster: masters, and at most so many names and clients.
const MASTERS: u16 = 3;
const CLUSTERED: (u32, u32) = (12_000, 200);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Names that are held in the check
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1000..=1_000_000))]
    names: u32,
    /// Clients that hold them
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=4000))]
    clients: u32,
    /// Write docs/capacity.md; else only tell
    #[arg(long)]
    write: bool,
}

/// What one of each costs on a server.
#[derive(Clone, Copy, Debug, Default)]
struct Units {
    // bytes
    idle_name: f64,
    hold: f64,
    reader: f64,
    waiter: f64,
    client: f64,
    /// A channel of a slot that a client listens to, in a cluster.
    ear: f64,
    /// Per write pair, read pair, handoff, call of a renewal and name in it, poll, and second of an idle client.
    pair: Each,
    read_pair: Each,
    handoff: Each,
    renewal: Each,
    renewed: Each,
    poll: Each,
    idle: Each,
    /// Beginning to listen to a slot, and no longer.
    listening: Each,
    /// Names in a renewal's call, of a client that holds many.
    names_a_call: f64,
}

/// What something costs each time.
#[derive(Clone, Copy, Debug, Default)]
struct Each {
    cpu_us: f64,
    bytes_in: f64,
    bytes_out: f64,
    published: f64,
}

impl Each {
    fn of(spent: Spent, times: f64) -> Self {
        Self {
            cpu_us: spent.cpu_us / times,
            bytes_in: spent.bytes_in / times,
            bytes_out: spent.bytes_out / times,
            published: spent.published / times,
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            cpu_us: self.cpu_us + other.cpu_us,
            bytes_in: self.bytes_in + other.bytes_in,
            bytes_out: self.bytes_out + other.bytes_out,
            published: self.published + other.published,
        }
    }

    fn times(self, times: f64) -> Self {
        Self {
            cpu_us: self.cpu_us * times,
            bytes_in: self.bytes_in * times,
            bytes_out: self.bytes_out * times,
            published: self.published * times,
        }
    }
}

/// What there is, and what is done each second.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    clients: f64,
    /// Used within the last hour or so, held ones too.
    names: f64,
    holds: f64,
    /// Beyond the first of a name.
    readers: f64,
    waiters: f64,
    pairs: f64,
    handoffs: f64,
    names_a_call: f64,
    /// In a cluster: the slots that clients use here, each client's counted.
    ears: f64,
}

/// In how many slots of a cluster so many names are.
fn slots(names: f64) -> f64 {
    const SLOTS: f64 = 16_384.0;
    SLOTS * (1.0 - (1.0 - 1.0 / SLOTS).powf(names))
}

/// What a server pays for a load.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    memory: f64,
    /// Each second.
    calls: f64,
    renewals: f64,
    each: Each,
    connections: f64,
    channels: f64,
}

impl Units {
    /// The formula; docs/capacity.md has it in words.
    fn cost(&self, load: &Load) -> Cost {
        let kept = load.holds + load.readers;
        let rounds = kept / (LEASE_S / 3.0);
        let renewals = rounds / load.names_a_call;
        let polls = load.waiters / (CLAIM_S / 3.0);
        let each = self
            .pair
            .times(load.pairs)
            .and(self.handoff.times(load.handoffs))
            .and(self.renewal.times(renewals))
            .and(self.renewed.times(rounds))
            .and(self.poll.times(polls))
            .and(self.idle.times(load.clients));
        let alive = load.clients * (2.0 / PING_S + 1.0 / ANNOUNCE_S);
        Cost {
            memory: load.names * self.idle_name
                + load.holds * self.hold
                + load.readers * self.reader
                + load.waiters * self.waiter
                + load.clients * self.client
                + load.ears * self.ear,
            calls: 2.0 * (load.pairs + load.handoffs) + renewals + polls + alive,
            renewals,
            each,
            connections: 2.0 * load.clients,
            channels: if load.ears > 0.0 { load.ears } else { load.clients },
        }
    }
}

pub(crate) async fn run(args: &Args, root: &Path) -> anyhow::Result<bool> {
    let server = Server::start().await?;
    eprintln!("the server by itself");
    let meter = Meter::of_idle(&server).await?;
    eprintln!("unit costs");
    let mut units = units(&meter).await?;
    server.flush().await?;
    eprintln!("the check: {} names, {} clients", args.names, args.clients);
    let rows = check(&[&server], &server.url, &units, args).await?;
    let version = server.version.clone();
    drop(server);
    // Slots have channels of their own since then.
    let major = version
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    let few = Args {
        names: args.names.min(CLUSTERED.0),
        // Each has names on every master.
        clients: args.clients.min(CLUSTERED.1).min(args.names / 60),
        write: false,
    };
    let of_cluster = if major.is_some_and(|major| major >= 7) {
        eprintln!("a cluster: what it costs to listen to slots");
        let one = Server::start_cluster(1).await?;
        listening(&one[0], &mut units).await?;
        drop(one);
        eprintln!(
            "the check on {MASTERS} masters: {} names, {} clients",
            few.names, few.clients
        );
        let masters = Server::start_cluster(MASTERS).await?;
        let servers: Vec<&Server> = masters.iter().collect();
        check(&servers, &cluster_url(&masters), &units, &few).await?
    } else {
        Vec::new()
    };
    let held = rows.iter().chain(&of_cluster).all(Checked::holds);

    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut measured = format!(
        "`benches/peers/run capacity --names {} --clients {}`: {}, on {cores} cores, Redis {} without persistence, jemalloc's \
        `used_memory`.\n",
        args.names,
        args.clients,
        crate::today(),
        version,
    );
    units_table(&mut measured, &units);
    measured.push_str("\n### What follows\n\n");
    scenarios(&mut measured, &units);
    measured.push_str("\n### Checked\n\n");
    check_table(&mut measured, &rows, args, 1);
    measured.push('\n');
    if of_cluster.is_empty() {
        measured.push_str("No cluster: that takes Redis 7.0 or newer.\n");
    } else {
        check_table(&mut measured, &of_cluster, &few, MASTERS);
    }
    println!("{measured}");
    if args.write {
        let page = root.join("docs/capacity.md");
        report::splice(&page, "capacity", &measured)?;
        eprintln!("written: {}", page.display());
    }
    Ok(held)
}

fn cluster_url(servers: &[Server]) -> String {
    let seeds: Vec<String> = servers
        .iter()
        .map(|server| format!("127.0.0.1:{}", server.port))
        .collect();
    format!("redis-cluster://{}", seeds.join(","))
}

async fn client(url: &str) -> anyhow::Result<Relatch> {
    client_of(url, Duration::from_secs_f64(LEASE_S)).await
}

async fn client_of(url: &str, lease: Duration) -> anyhow::Result<Relatch> {
    let client = Relatch::builder()
        .url(url)
        .lease(lease)
        .claim(lease / 6)
        .response_timeout(Duration::from_secs(20));
    Ok(client.connect().await?)
}

async fn clients(url: &str, count: usize) -> anyhow::Result<Vec<Relatch>> {
    stream::iter(0..count)
        .map(|_| client(url))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

async fn close(clients: Vec<Relatch>) -> anyhow::Result<()> {
    let close = |client: Relatch| async move { client.close().await };
    Ok(stream::iter(clients)
        .map(close)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?)
}

async fn hold(client: &Relatch, names: impl Iterator<Item = String>) -> anyhow::Result<Vec<WriteGuard>> {
    let hold = |name: String| async move { client.rwlock(&name)?.write().await };
    Ok(stream::iter(names)
        .map(hold)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?)
}

async fn give_back(guards: Vec<WriteGuard>) -> anyhow::Result<()> {
    let give_back = |guard: WriteGuard| guard.release();
    Ok(stream::iter(guards)
        .map(give_back)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?)
}

/// What the server spends, without what our looking costs it and what it does by itself.
struct Meter<'a> {
    server: &'a Server,
    /// Its processor time each second when nothing happens.
    alone_us: f64,
}

impl<'a> Meter<'a> {
    /// Of a server that has nothing to do.
    async fn of_idle(server: &'a Server) -> anyhow::Result<Self> {
        let mut meter = Self {
            server,
            alone_us: 0.0,
        };
        let spent = meter.during(Duration::from_secs(5)).await?;
        meter.alone_us = spent.cpu_us / spent.seconds;
        Ok(meter)
    }

    async fn of(&self, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<Spent> {
        let looking = self.server.looking().await?;
        let before = self.server.spent().await?;
        work.await?;
        let all = self.server.spent().await?.since(before);
        let mut spent = all.since(looking);
        // On a busy machine a while is longer than it was to be.
        spent.seconds = all.seconds;
        spent.cpu_us -= self.alone_us * all.seconds;
        Ok(spent)
    }

    async fn during(&self, time: Duration) -> anyhow::Result<Spent> {
        let wait = async {
            sleep(time).await;
            Ok(())
        };
        self.of(wait).await
    }
}

async fn units(meter: &Meter<'_>) -> anyhow::Result<Units> {
    let server = meter.server;
    let mut units = Units::default();
    let sample = SAMPLE as f64;
    let one = client(&server.url).await?;
    let ours = Subject {
        name: "relatch",
        version: String::new(),
        kind: Kind::Crate(crate::crates::relatch),
        reads: true,
    };

    // The scripts are loaded, and buffers are as large as they get.
    give_back(hold(&one, names("warm", SAMPLE / 4)).await?).await?;
    let before = server.memory().await?;
    give_back(hold(&one, names("name", SAMPLE)).await?).await?;
    let idle = server.memory().await?;
    units.idle_name = (idle - before) / sample;
    let held = hold(&one, names("name", SAMPLE)).await?;
    units.hold = (server.memory().await? - idle) / sample;
    give_back(held).await?;

    eprintln!("  renewals of one client that holds many");
    let brisk = client_of(&server.url, BRISK).await?;
    let held = hold(&brisk, names("name", SAMPLE)).await?;
    let many = rounds(meter).await?;
    give_back(held).await?;
    close(vec![brisk]).await?;

    eprintln!("  readers and waiters");
    let lock = one.rwlock("read")?;
    let first = lock.read().await?;
    let before = server.memory().await?;
    let readers: Vec<_> = stream::iter(0..SAMPLE)
        .map(|_| lock.read().into_future())
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    units.reader = (server.memory().await? - before) / sample;
    drop((first, readers));

    // Each on a name of its own: others of the same name share a poll, and take less memory.
    let held = hold(&one, names("waited", SAMPLE / 8)).await?;
    let other = client(&server.url).await?;
    let before = server.memory().await?;
    let mut line = JoinSet::new();
    for name in names("waited", SAMPLE / 8) {
        line.spawn(other.rwlock(&name)?.write().into_future());
    }
    let waiters = line.len() as f64;
    in_line(&other, names("waited", SAMPLE / 8)).await?;
    units.waiter = (server.memory().await? - before) / waiters;
    // Three polls each. Their holders are renewed as well, and the clients are there; that is taken off below.
    let polled = meter.during(Duration::from_secs_f64(CLAIM_S)).await?;
    line.shutdown().await;
    give_back(held).await?;

    eprintln!("  clients");
    let before = server.memory().await?;
    let crowd = clients(&server.url, CROWD).await?;
    // All there is to an idle client comes by once in this time, and buffers of its beginning are given back.
    let time = Duration::from_secs_f64(ANNOUNCE_S);
    let idle = meter.during(time).await?;
    units.idle = Each::of(idle, CROWD as f64 * idle.seconds);
    units.client = (server.memory().await? - before) / CROWD as f64;
    close(crowd).await?;

    eprintln!("  renewals of clients that hold one each");
    let crowd = stream::iter(0..CROWD).map(|_| client_of(&server.url, BRISK));
    let crowd: Vec<Relatch> = crowd.buffer_unordered(AT_ONCE).try_collect().await?;
    let mut held = Vec::new();
    for (number, client) in crowd.iter().enumerate() {
        held.extend(hold(client, names(&format!("one-{number}"), 1)).await?);
    }
    let few = rounds(meter).await?;
    give_back(held).await?;
    close(crowd).await?;
    renewals(&mut units, many, few);
    let renewed = waiters * polled.seconds / (LEASE_S / 3.0);
    let background = units
        .idle
        .times(2.0 * polled.seconds)
        .and(units.renewal.times(renewed / units.names_a_call))
        .and(units.renewed.times(renewed));
    let polls = waiters * polled.seconds / (CLAIM_S / 3.0);
    units.poll = Each::of(polled, polls).and(background.times(-1.0 / polls));

    eprintln!("  pairs and handoffs");
    let session = ours.open(&server.url, 2).await?;
    for (mode, into) in [(Mode::Write, &mut units.pair), (Mode::Read, &mut units.read_pair)] {
        // As many at once as an application has; alone, most of the time is the waking up of the server.
        let workers = (0..16).map(|number| Worker::new(0, &format!("pair-{number}"), mode));
        let mut job = Job::new(workers.collect());
        job.turns = 200;
        session.run(&job).await?;
        job.turns = 1000;
        let spent = meter.of(async { session.run(&job).await.map(drop) }).await?;
        *into = Each::of(spent, 16_000.0);
    }
    let mut job = Job::new(
        (0..10)
            .map(|worker| Worker::new(worker % 2, "handed", Mode::Write))
            .collect(),
    );
    job.turns = 500;
    let spent = meter.of(async { session.run(&job).await.map(drop) }).await?;
    units.handoff = Each::of(spent, 5000.0);
    session.close().await?;
    close(vec![one, other]).await?;
    Ok(units)
}

/// What each slot costs that a client begins to use, from names that another client has used: they are there, and the first client listens to
/// their slots already.
async fn listening(server: &Server, units: &mut Units) -> anyhow::Result<()> {
    let meter = Meter::of_idle(server).await?;
    let url = cluster_url(std::slice::from_ref(server));
    let (one, other) = (client(&url).await?, client(&url).await?);
    for _ in 0..2 {
        give_back(hold(&one, names("name", SAMPLE)).await?).await?;
    }
    let ears = async || server.number("stats", "pubsubshard_channels").await;
    let before = (server.memory().await?, ears().await?);
    let first = meter
        .of(async { give_back(hold(&other, names("name", SAMPLE)).await?).await })
        .await?;
    let after = (server.memory().await?, ears().await?);
    let again = meter
        .of(async { give_back(hold(&other, names("name", SAMPLE)).await?).await })
        .await?;
    let count = after.1 - before.1;
    ensure!(count > 0.0, "nothing is listened to");
    units.ear = (after.0 - before.0) / count;
    units.listening = Each::of(first.since(again), count);
    close(vec![one, other]).await
}

/// Some rounds of renewals of brisk clients.
async fn rounds(meter: &Meter<'_>) -> anyhow::Result<Spent> {
    // From the middle of a round to the middle of another: whole ones, whatever is late.
    sleep(BRISK / 6).await;
    meter.during(BRISK / 3 * ROUNDS).await
}

/// From rounds of one client with many names and of many clients with a name each: what a call costs, and each name in it.
fn renewals(units: &mut Units, many: Spent, few: Spent) {
    let rounds = |spent: Spent| spent.seconds / (BRISK.as_secs_f64() / 3.0);
    let (names, crowd) = (SAMPLE as f64 * rounds(many), CROWD as f64 * rounds(few));
    // That they are there costs as well.
    let idle = units.idle.times(BRISK.as_secs_f64() / 3.0);
    units.names_a_call = (names / many.scripts).max(1.0);
    let single = Each::of(few, crowd).and(idle.times(-1.0));
    let batched = Each::of(many, names).and(idle.times(-1.0 / SAMPLE as f64));
    if units.names_a_call < 1.5 {
        units.renewal = batched;
        return;
    }
    // single = call + name; batched = call / names_a_call + name
    let share = 1.0 / (1.0 - 1.0 / units.names_a_call);
    units.renewal = single.and(batched.times(-1.0)).times(share);
    units.renewed = single.and(units.renewal.times(-1.0));
}

fn names(what: &str, count: usize) -> impl Iterator<Item = String> + use<> {
    let what = what.to_owned();
    (0..count).map(move |number| format!("{what}-{number}"))
}

/// Until somebody waits for each of them.
async fn in_line(client: &Relatch, names: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(20);
    for name in names {
        while client.inspect(&name).await?.waiter_count == 0 {
            ensure!(Instant::now() < until, "they do not get in line");
            sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(())
}

/// A number of the check.
struct Checked {
    what: &'static str,
    unit: &'static str,
    expected: f64,
    measured: f64,
    /// How far off it may be, as a share of what was expected.
    tolerance: f64,
}

impl Checked {
    fn holds(&self) -> bool {
        (self.measured / self.expected - 1.0).abs() <= self.tolerance
    }
}

/// On one server, or on the masters of a cluster: for these the mean of what they tell.
async fn check(servers: &[&Server], url: &str, units: &Units, args: &Args) -> anyhow::Result<Vec<Checked>> {
    let (names, count) = (args.names as usize, args.clients as usize);
    let masters = servers.len() as f64;
    let sum = async |section: &str, field: &str| {
        let mut sum = 0.0;
        for server in servers {
            sum += server.number(section, field).await?;
        }
        anyhow::Ok(sum / masters)
    };
    let mut meters = Vec::new();
    for server in servers {
        meters.push(Meter::of_idle(server).await?);
    }
    let before = sum("memory", "used_memory").await?;
    let others = sum("clients", "connected_clients").await?;
    let crowd = clients(url, count).await?;
    let mut held = Vec::new();
    for (number, client) in crowd.iter().enumerate() {
        // As even as it goes.
        let share = names / count + usize::from(number < names % count);
        held.extend(hold(client, self::names(&format!("held-{number}"), share)).await?);
    }
    let connections = sum("clients", "connected_clients").await? - others;
    let in_cluster = servers.len() > 1;
    let channels = sum(
        "stats",
        if in_cluster {
            "pubsubshard_channels"
        } else {
            "pubsub_channels"
        },
    )
    .await?;
    eprintln!("  held; two rounds of renewals");
    // Whole rounds, from between two of them if all were held within less than one.
    sleep(Duration::from_secs_f64(LEASE_S / 6.0)).await;
    let time = Duration::from_secs_f64(2.0 * LEASE_S / 3.0);
    let all = try_join_all(meters.iter().map(|meter| meter.during(time))).await?;
    let mean = |of: fn(&Spent) -> f64| all.iter().map(of).sum::<f64>() / masters;
    let seconds = mean(|spent| spent.seconds);
    let memory = sum("memory", "used_memory").await? - before;
    ensure!(
        held.iter().all(WriteGuard::is_held),
        "a hold was lost although it was renewed"
    );
    let names_a_call = units.names_a_call.min((names / count) as f64).max(1.0);
    let load = Load {
        clients: count as f64,
        names: names as f64 / masters,
        holds: names as f64 / masters,
        names_a_call,
        ..Load::default()
    };
    let load = if in_cluster {
        let (each, all) = ((names / count) as f64, count as f64);
        Load {
            ears: all * slots(each) / masters,
            // Names of a call share a slot.
            names_a_call: each / slots(each),
            ..load
        }
    } else {
        load
    };
    let cost = units.cost(&load);
    let row = |what, unit, expected, measured, tolerance| Checked {
        what,
        unit,
        expected,
        measured,
        tolerance,
    };
    let rows = vec![
        row("connections", "", cost.connections, connections, 0.0),
        // Which names share a slot is chance.
        row(
            "channels",
            "",
            cost.channels,
            channels,
            if in_cluster { CHANCE } else { 0.0 },
        ),
        row("memory", "MB", cost.memory / 1e6, memory / 1e6, BYTES),
        row(
            "renewals",
            "calls/s",
            cost.renewals,
            mean(|spent| spent.scripts) / seconds,
            SHARED,
        ),
        row(
            "received",
            "kB/s",
            cost.each.bytes_in / 1e3,
            mean(|spent| spent.bytes_in) / seconds / 1e3,
            BYTES,
        ),
        row(
            "sent",
            "kB/s",
            cost.each.bytes_out / 1e3,
            mean(|spent| spent.bytes_out) / seconds / 1e3,
            BYTES,
        ),
        row(
            "processor",
            "% of a core",
            cost.each.cpu_us / 1e4,
            mean(|spent| spent.cpu_us) / seconds / 1e4,
            TIME,
        ),
        row(
            "messages",
            "/s",
            0.0,
            mean(|spent| spent.published) / seconds,
            0.0,
        ),
    ];
    // The server ends with the run; there is nothing to give back to.
    for guard in held {
        std::mem::forget(guard);
    }
    drop(crowd);
    Ok(rows
        .into_iter()
        .map(|mut row| {
            // Nothing of nothing is as expected.
            if row.expected == 0.0 && row.measured == 0.0 {
                (row.expected, row.measured) = (1e-9, 1e-9);
            }
            row
        })
        .collect())
}

fn units_table(out: &mut String, units: &Units) {
    out.push_str("\n| memory of | bytes |\n|---|---:|\n");
    for (what, bytes) in [
        (
            "a name that was used, until its fence lapses (some hour)",
            units.idle_name,
        ),
        ("a write hold, on top of its name", units.hold),
        ("a further reader of a name", units.reader),
        ("a waiter, the first of its name", units.waiter),
        ("a slot of a cluster that a client uses", units.ear),
        (
            "a client: two connections, a subscription, who it is",
            units.client,
        ),
    ] {
        let _ = writeln!(out, "| {what} | {} |", digits(bytes));
    }
    out.push_str(
        "\n| what it costs each time | processor, µs | received, bytes | sent, bytes | messages |\n",
    );
    out.push_str("|---|---:|---:|---:|---:|\n");
    for (what, each) in [
        ("a write pair", units.pair),
        ("a read pair", units.read_pair),
        ("a turn in a line: acquire, wait, be told, release", units.handoff),
        ("a renewal's call", units.renewal),
        ("each name in it", units.renewed),
        ("a poll of a waiter", units.poll),
        ("a second of an idle client", units.idle),
        ("a slot of a cluster that a client begins to use", units.listening),
    ] {
        let [cpu, received, sent, published] =
            [each.cpu_us, each.bytes_in, each.bytes_out, each.published].map(|value| digits(value.max(0.0)));
        let _ = writeln!(out, "| {what} | {cpu} | {received} | {sent} | {published} |");
    }
    let _ = writeln!(
        out,
        "\nNames in a renewal's call, of a client with {} of them: {}.",
        grouped(SAMPLE as f64),
        digits(units.names_a_call)
    );
}

fn scenarios(out: &mut String, units: &Units) {
    let names_a_call = units.names_a_call.min(100.0);
    let base = Load {
        names_a_call,
        ..Load::default()
    };
    let busy = Load {
        clients: 100.0,
        names: 10_000.0,
        holds: 1000.0,
        readers: 1000.0,
        waiters: 200.0,
        pairs: 5000.0,
        handoffs: 1000.0,
        ..base
    };
    let million = Load {
        clients: 10_000.0,
        names: 1e6,
        holds: 1e6,
        ..base
    };
    // What is a name's is spread over the masters; every client talks to each of them, and names of a call share a slot.
    let of_masters = |load: Load, masters: f64| Load {
        clients: load.clients,
        names: load.names / masters,
        holds: load.holds / masters,
        readers: load.readers / masters,
        waiters: load.waiters / masters,
        pairs: load.pairs / masters,
        handoffs: load.handoffs / masters,
        names_a_call: 1.0,
        ears: load.clients * slots(load.names / load.clients) / masters,
    };
    out.push_str(
        "On one server, or on each master of a cluster:\n\n\
        | load | memory, MB | processor, % of a core | calls/s | messages/s | received, MB/s | sent, MB/s | connections |\n\
        |---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let rows = [
        (
            "100 clients, 10,000 names, 1,000 write holds, 1,000 more readers, 200 waiters, 5,000 pairs/s and 1,000 handoffs/s",
            busy,
        ),
        (
            "10,000 clients that do nothing",
            Load {
                clients: 10_000.0,
                ..base
            },
        ),
        (
            "a million names that were used within the hour",
            Load {
                clients: 100.0,
                names: 1e6,
                ..base
            },
        ),
        ("a million holds of 10,000 clients", million),
        (
            "the same, one name in a renewal's call",
            Load {
                names_a_call: 1.0,
                ..million
            },
        ),
        ("the same, each of 3 masters", of_masters(million, 3.0)),
        ("the same, each of 6 masters", of_masters(million, 6.0)),
        ("the same, each of 12 masters", of_masters(million, 12.0)),
        (
            "10,000 clients with 2 pairs/s each",
            Load {
                clients: 10_000.0,
                names: 100_000.0,
                pairs: 20_000.0,
                ..base
            },
        ),
        (
            "the same, each of 3 masters",
            of_masters(
                Load {
                    clients: 10_000.0,
                    names: 100_000.0,
                    pairs: 20_000.0,
                    ..base
                },
                3.0,
            ),
        ),
        (
            "1,000 clients, a lock that 1,000 wait for, 1,000 handoffs/s",
            Load {
                clients: 1000.0,
                names: 1.0,
                holds: 1.0,
                waiters: 1000.0,
                handoffs: 1000.0,
                ..base
            },
        ),
    ];
    for (what, load) in rows {
        let cost = units.cost(&load);
        let _ = writeln!(
            out,
            "| {what} | {} | {} | {} | {} | {} | {} | {} |",
            digits(cost.memory / 1e6),
            digits(cost.each.cpu_us / 1e4),
            digits(cost.calls),
            digits(cost.each.published),
            digits(cost.each.bytes_in / 1e6),
            digits(cost.each.bytes_out / 1e6),
            grouped(cost.connections),
        );
    }
}

fn check_table(out: &mut String, rows: &[Checked], args: &Args, masters: u16) {
    let place = match masters {
        1 => "one server".to_owned(),
        _ => format!("a cluster of {masters} masters (each of them, the mean)"),
    };
    let _ = write!(
        out,
        "{} names held to write by {} clients on {place}, at the defaults, over two rounds of renewals:\n\n\
        | what | by the formula | measured | ratio | may be off by | |\n|---|---:|---:|---:|---:|---|\n",
        grouped(f64::from(args.names)),
        grouped(f64::from(args.clients)),
    );
    for row in rows {
        let comma = if row.unit.is_empty() { "" } else { ", " };
        let verdict = if row.holds() { "holds" } else { "**does not hold**" };
        let _ = writeln!(
            out,
            "| {}{comma}{} | {} | {} | {} | {:.0} % | {verdict} |",
            row.what,
            row.unit,
            digits(if row.expected < 1e-6 { 0.0 } else { row.expected }),
            digits(if row.measured < 1e-6 { 0.0 } else { row.measured }),
            digits(row.measured / row.expected),
            row.tolerance * 100.0,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_at_two_sizes_of_a_call_gives_back_both() {
        let mut units = Units::default();
        let (call, name) = (20.0, 3.0);
        let spent = |cpu_us, scripts| Spent {
            seconds: BRISK.as_secs_f64() / 3.0 * f64::from(ROUNDS),
            cpu_us,
            scripts,
            ..Spent::default()
        };
        let rounds = f64::from(ROUNDS);
        let (names, crowd) = (SAMPLE as f64 * rounds, CROWD as f64 * rounds);
        let calls = names / 100.0;
        let many = spent(calls * call + names * name, calls);
        let few = spent(crowd * (call + name), crowd);
        renewals(&mut units, many, few);
        assert!((units.names_a_call - 100.0).abs() < 1e-6);
        assert!((units.renewal.cpu_us - call).abs() < 1e-6, "{units:?}");
        assert!((units.renewed.cpu_us - name).abs() < 1e-6, "{units:?}");
    }

    #[test]
    fn a_load_costs_the_sum_of_its_parts() {
        let units = Units {
            idle_name: 300.0,
            hold: 100.0,
            client: 10_000.0,
            renewal: Each {
                cpu_us: 10.0,
                ..Each::default()
            },
            ..Units::default()
        };
        let load = Load {
            clients: 10.0,
            names: 1000.0,
            holds: 1000.0,
            names_a_call: 100.0,
            ..Load::default()
        };
        let cost = units.cost(&load);
        assert_eq!(cost.memory, 500_000.0);
        assert_eq!(cost.renewals, 1.0);
        assert_eq!(cost.each.cpu_us, 10.0);
        assert_eq!(cost.connections, 20.0);
    }
}
