//! `relatch doctor`: what the server offers and what it lacks, each with its remedy.
//!
//! It does not believe a server's words where it can try: a lock is taken, waited for and handed on, on a name of its own.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use relatch::{Builder, Config, Error, Examination, Relatch};
use serde::Serialize;

use super::{View, all, refusal};
use crate::cli::Outcome;
use crate::cli::reach::Reach;
use crate::cli::words::{brief, colours, hanging, printable, say, width};

pub(crate) const LONG: &str = "\
Looks for what would trouble locks on this server: its version, the way to it, its clock, whether pushes arrive, what this user may do, how it keeps \
its data, what dead clients left, and owners that wait for each other in a circle. It takes and gives back a lock on a name of its own. Each finding comes with its remedy.";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// Good to know.
    Note,
    /// It works, until something happens.
    Warning,
    /// Something does not work.
    Problem,
}

#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    what: String,
    remedy: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    server: String,
    findings: Vec<Finding>,
}

impl Report {
    fn ok(&mut self, what: impl Into<String>) {
        self.findings.push(Finding {
            level: Level::Ok,
            what: what.into(),
            remedy: None,
        });
    }

    fn find(&mut self, level: Level, what: impl Into<String>, remedy: impl Into<String>) {
        self.findings.push(Finding {
            level,
            what: what.into(),
            remedy: Some(remedy.into()),
        });
    }

    /// An error says what to do itself.
    fn failed(&mut self, level: Level, what: &str, error: &Error) {
        self.findings.push(Finding {
            level,
            what: format!("{what}: {error}"),
            remedy: None,
        });
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Outcome> {
    let config = args.reach.settings()?;
    let relatch = args.reach.connect().await?;
    let mut report = Report::default();
    let found = relatch.examine().await;
    match &found {
        Ok(found) => {
            report.server.clone_from(&found.place);
            server(&mut report, found);
            way(&mut report, found);
            clock(&mut report, found);
            memory(&mut report, found);
            data(&mut report, found);
            connections(&mut report, found, &config);
        }
        Err(error) => report.failed(Level::Problem, "the server could not be examined", error),
    }
    handoff(&mut report, &relatch, &config).await;
    looking(&mut report, &relatch, found.as_ref().ok()).await;
    deadlocks(&mut report, &relatch).await;
    let _ = relatch.close().await;

    if args.json {
        say(&serde_json::to_string_pretty(&report)?)?;
    } else {
        say(&text(&report)).context("the report can't be written")?;
    }
    let well = report
        .findings
        .iter()
        .all(|finding| finding.level < Level::Warning);
    Ok(if well { Outcome::Yes } else { Outcome::No })
}

fn text(report: &Report) -> String {
    let (coloured, width) = (colours(), width());
    let mut out = format!("{}\n", printable(&report.server));
    for finding in &report.findings {
        let (sign, colour) = match finding.level {
            Level::Ok => ("✓ ok      ", 32),
            Level::Note => ("· note    ", 36),
            Level::Warning => ("! warning ", 33),
            Level::Problem => ("✗ problem ", 31),
        };
        if coloured {
            out.push_str(&format!("\x1b[{colour}m{sign}\x1b[0m"));
        } else {
            out.push_str(sign);
        }
        out.push_str(&hanging(&printable(&finding.what), 10, width));
        out.push('\n');
        if let Some(remedy) = &finding.remedy {
            let remedy = hanging(&printable(remedy), 12, width);
            out.push_str(&format!("          → {remedy}\n"));
        }
    }
    let worst = report
        .findings
        .iter()
        .filter(|finding| finding.level >= Level::Warning)
        .count();
    out.push_str(&match worst {
        0 => "all is well\n".to_owned(),
        1 => "1 thing needs attention\n".to_owned(),
        more => format!("{more} things need attention\n"),
    });
    out
}

fn server(report: &mut Report, found: &Examination) {
    if found.info.is_empty() {
        report.find(
            Level::Note,
            "this user may not ask for INFO, so version, memory and persistence are not known",
            "to have them looked at, give the user +info (ACL SETUSER … +info)",
        );
        return;
    }
    let field = |name: &str| found.info.get(name).map_or("", String::as_str);
    let (program, version) = match field("valkey_version") {
        "" => ("Redis", field("redis_version")),
        version => ("Valkey", version),
    };
    let days = field("uptime_in_days");
    report.ok(format!(
        "{program} {version}, {}, up for {days} days",
        field("redis_mode")
    ));
    if field("role") == "slave" {
        report.find(
            Level::Problem,
            "it is a replica: nothing can be locked there",
            "name its primary",
        );
    }
    if field("loading") == "1" {
        report.find(
            Level::Problem,
            "it is still loading its data",
            "wait until it has",
        );
    }
}

fn way(report: &mut Report, found: &Examination) {
    let mut trips = found.round_trips.clone();
    trips.sort();
    let (Some(best), Some(worst)) = (trips.first(), trips.last()) else {
        return;
    };
    let median = trips[trips.len() / 2];
    let what = format!(
        "a round trip takes {} (best {}, worst {} of {})",
        fine(median),
        fine(*best),
        fine(*worst),
        trips.len()
    );
    if median > Duration::from_millis(50) {
        report.find(
            Level::Warning,
            what,
            "an acquisition takes one; move the program nearer to the server, or hold for longer at a time",
        );
    } else if *worst > Duration::from_millis(100) {
        report.find(
            Level::Note,
            what,
            "see whether something holds the server up (SLOWLOG GET), or the network drops packets",
        );
    } else {
        report.ok(what);
    }
}

fn fine(time: Duration) -> String {
    if time < Duration::from_millis(10) {
        format!("{:.2}ms", time.as_secs_f64() * 1000.0)
    } else {
        brief(time)
    }
}

fn clock(report: &mut Report, found: &Examination) {
    let Some((theirs_us, took)) = found.time_us else {
        return;
    };
    let ours = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let ours_us = u64::try_from(ours.as_micros()).unwrap_or(u64::MAX);
    let apart = Duration::from_micros(theirs_us.abs_diff(ours_us)).saturating_sub(took);
    let direction = if theirs_us > ours_us { "ahead of" } else { "behind" };
    if apart > Duration::from_secs(2) {
        report.find(
            Level::Note,
            format!("its clock is {} {direction} this machine's", brief(apart)),
            "leases do not mind; but fences are times of the server: have its clock kept by NTP, and slewed, not stepped, and servers that replace each other on one time",
        );
    } else {
        report.ok(format!(
            "its clock and this machine's agree within {}",
            fine(apart.max(took))
        ));
    }
}

fn memory(report: &mut Report, found: &Examination) {
    let number = |name: &str| found.info.get(name).and_then(|value| value.parse::<u64>().ok());
    let policy = found
        .settings
        .get("maxmemory-policy")
        .or_else(|| found.info.get("maxmemory_policy"));
    let limit = number("maxmemory").unwrap_or(0);
    match policy.map(String::as_str) {
        None => {}
        Some("noeviction") => report.ok("it evicts no keys (maxmemory-policy noeviction)"),
        Some(policy) => report.find(
            if limit > 0 { Level::Warning } else { Level::Note },
            format!("it may evict locks when its memory is full (maxmemory-policy {policy})"),
            "CONFIG SET maxmemory-policy noeviction, or a server of its own for locks",
        ),
    }
    if let Some(used) = number("used_memory").filter(|used| limit > 0 && *used > limit / 10 * 9) {
        report.find(
            Level::Warning,
            format!(
                "{} % of its memory is used",
                used.saturating_mul(100) / limit.max(1)
            ),
            "raise maxmemory, or free some: when it is full, nothing can be acquired",
        );
    }
    if let Some(evicted) = number("evicted_keys").filter(|evicted| *evicted > 0) {
        report.find(
            Level::Warning,
            format!("it has evicted {evicted} keys since it was started; locks may have been among them"),
            "raise maxmemory, and CONFIG SET maxmemory-policy noeviction",
        );
    }
}

fn data(report: &mut Report, found: &Examination) {
    let setting = |name: &str| found.settings.get(name).map(String::as_str);
    let field = |name: &str| found.info.get(name).map_or("", String::as_str);
    let aof = setting("appendonly").map_or(field("aof_enabled") == "1", |value| value == "yes");
    match (aof, setting("appendfsync")) {
        _ if found.info.is_empty() && found.settings.is_empty() => {}
        (true, Some("always")) => report.ok("it writes every lock to its disk before it says so (appendfsync always)"),
        (true, _) => report.find(
            Level::Note,
            "a crash may lose the locks of its last second (appendonly yes)",
            "where locks must survive a crash: CONFIG SET appendfsync always; where data is guarded, check fences",
        ),
        (false, _) => report.find(
            Level::Note,
            "a restart or a crash loses its locks: they are granted again before their holders hear of it (appendonly no)",
            "where that matters: appendonly yes and appendfsync always; where data is guarded, check fences",
        ),
    }
    if field("rdb_last_bgsave_status") == "err" || field("aof_last_write_status") == "err" {
        report.find(
            Level::Warning,
            "it could not save its data the last time",
            "see its log; it refuses writes meanwhile unless it was told not to",
        );
    }
    let replicas: u64 = field("connected_slaves").parse().unwrap_or(0);
    if replicas > 0 && setting("min-replicas-to-write") == Some("0") {
        report.find(
            Level::Note,
            format!("{replicas} replicas follow it; one that takes over may not have heard of the last locks"),
            "where data is guarded, check fences; min-replicas-to-write keeps a cut-off primary from granting",
        );
    }
}

fn connections(report: &mut Report, found: &Examination, config: &Config) {
    let timeout = found.settings.get("timeout").and_then(|value| value.parse().ok());
    if let Some(timeout) = timeout.map(Duration::from_secs)
        && !timeout.is_zero()
        && timeout <= config.idle_ping
    {
        report.find(
            Level::Warning,
            format!("it closes connections that say nothing for {}", brief(timeout)),
            "CONFIG SET timeout 0, or set idle_ping to less than that",
        );
    }
    let number = |name: &str| found.info.get(name).and_then(|value| value.parse::<u64>().ok());
    if let (Some(clients), Some(most)) = (number("connected_clients"), number("maxclients"))
        && clients > most / 10 * 9
    {
        report.find(
            Level::Warning,
            format!("{clients} of at most {most} clients are connected"),
            "raise maxclients: a client that can't connect can't renew what it holds",
        );
    }
}

/// How long a handoff may take before it is one of the slow ones, that came by a poll.
const BY_PUSH: Duration = Duration::from_millis(500);

/// What it locks itself begins with this.
const OWN: &str = "relatch-doctor/";

/// Two clients, one lock: acquire, wait in line, hand on.
async fn handoff(report: &mut Report, relatch: &Relatch, config: &Config) {
    let name = format!("{OWN}{}", relatch::Owner::new());
    let try_it = async {
        let patience = Duration::from_secs(5);
        let other = Builder::from(config.clone())
            .fence_retention(Duration::from_secs(60))
            .patience(patience.min(config.patience))
            .connect()
            .await?;
        let held = other
            .rwlock(&name)?
            .write()
            .label("relatch doctor")
            .timeout(patience)
            .await?;
        let lock = relatch.rwlock(&name)?;
        let waiter = tokio::spawn(async move {
            let granted = lock.write().label("relatch doctor").timeout(patience).await;
            (std::time::Instant::now(), granted)
        });
        while relatch.inspect(&name).await?.waiter_count == 0 && !waiter.is_finished() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let released = std::time::Instant::now();
        held.release().await?;
        let (at, granted) = match waiter.await {
            Ok((at, granted)) => (at, granted?),
            Err(_) => return Ok(None),
        };
        granted.release().await?;
        other.close().await?;
        Ok::<_, Error>(Some(at.saturating_duration_since(released)))
    };
    match try_it.await {
        Ok(Some(took)) if took < BY_PUSH => {
            report.ok(format!("a lock is taken, handed on in {}, and given back: scripts and pushes work", fine(took)));
        }
        Ok(took) => report.find(
            Level::Warning,
            format!("a lock was handed on only after {}: the push did not arrive", brief(took.unwrap_or_default())),
            "see whether something between here and the server, such as a proxy, drops messages (SUBSCRIBE), or whether the server is overloaded",
        ),
        Err(error) => report.failed(Level::Problem, "a lock can't be taken and handed on", &error),
    }
}

/// Each circle is told with all of its owners: to end it takes one of them.
async fn deadlocks(report: &mut Report, relatch: &Relatch) {
    match relatch.deadlocks().await {
        Ok(found) => {
            match found.cut.len() {
                0 if found.circles.is_empty() => report.ok("no owners wait for each other in a circle"),
                0 => {}
                more => report.find(
                    Level::Note,
                    format!(
                        "not all who hold or wait were looked at for deadlocks: of {} there are more than 1,000",
                        match more {
                            1 => format!("{:?}", printable(&found.cut[0])),
                            more => format!("{more} names, such as {:?},", printable(&found.cut[0])),
                        }
                    ),
                    "look again when fewer do; owners that wait for each other there are not told",
                ),
            }
            for circle in found {
                let remedy = circle
                    .waits
                    .iter()
                    .find_map(|wait| Some((wait.name.clone(), wait.holder.as_ref()?)))
                    .map_or_else(String::new, |(name, holder)| {
                        format!(
                            "to end it, take one hold away: relatch revoke {} --owner {}; ",
                            quoted(name.as_str()),
                            holder.owner
                        )
                    });
                report.find(
                    Level::Problem,
                    format!("a deadlock: {circle}"),
                    format!("{remedy}so that it does not happen, take names in one order, set timeouts, or set refuse_deadlocks"),
                );
            }
        }
        Err(error) => report.failed(
            Level::Problem,
            "it could not be seen whether owners wait for each other",
            &error,
        ),
    }
}

/// At most so many leftovers are told one by one.
const TOLD: usize = 10;

async fn looking(report: &mut Report, relatch: &Relatch, found: Option<&Examination>) {
    match relatch.changes().next().await {
        Ok(_) => {
            report.ok("it tells which names change (CLIENT TRACKING): `events` and `watch` are told at once");
        }
        Err(error) => report.find(
            Level::Note,
            format!("it does not tell which names change: {error}"),
            "`events` and `watch` look from time to time; to have them told, give the user +client|tracking",
        ),
    }
    let looked = match all(relatch, "*", None).await {
        Ok(looked) => looked,
        Err(error) => return report.failed(Level::Problem, "the names can't be listed", &error),
    };
    if let Some(error) = &looked.missing {
        report.failed(Level::Problem, "not all names can be listed", error);
    }
    for (name, error) in looked.refused.iter().take(TOLD) {
        report.find(
            Level::Problem,
            refusal(name, error),
            "if a key of it is another program's, delete or rename that; nothing can be locked there meanwhile",
        );
    }
    let others = looked
        .seen
        .iter()
        .filter(|seen| !seen.name.starts_with(OWN) || seen.holder_count + seen.waiter_count > 0);
    let views: Vec<View> = others.map(View::of).collect();
    let busy = views.iter().filter(|view| !view.is_idle()).count();
    let mut left = Vec::new();
    let mut unknown = Unknown::default();
    for view in &views {
        unknown.see(view);
        for holding in &view.holders {
            for entered in holding.holds.iter().filter(|entered| entered.process.is_gone()) {
                left.push((
                    format!(
                        "{:?} is held ({}) by {}, owner {}",
                        printable(&view.name),
                        entered.mode,
                        entered.process.words(),
                        holding.owner
                    ),
                    format!(
                        "nothing to do: it ends with its lease, in {}",
                        brief(Duration::from_millis(entered.lease_left_ms))
                    ),
                ));
            }
        }
        for waiting in view.waiters.iter().filter(|waiting| waiting.process.is_gone()) {
            left.push((
                format!(
                    "{} is in line for {:?}",
                    waiting.process.words(),
                    printable(&view.name)
                ),
                "nothing to do: it is passed over when its turn comes".to_owned(),
            ));
        }
    }
    report.ok(match views.len() {
        0 => "no name is known there".to_owned(),
        1 => format!("1 name is known there, {busy} of them held or waited for"),
        more => format!("{more} names are known there, {busy} of them held or waited for"),
    });
    unknown.tell(report, left.is_empty(), found);
    let more = left.len().saturating_sub(TOLD);
    for (what, remedy) in left.into_iter().take(TOLD) {
        report.find(Level::Warning, what, remedy);
    }
    if more > 0 {
        report.find(
            Level::Warning,
            format!("{more} more leftovers of dead clients"),
            "see `relatch ls` and `relatch show NAME`",
        );
    }
}

/// Of what it can't be told whether a dead client has left it.
#[derive(Default)]
struct Unknown {
    holds: usize,
    waits: usize,
    /// Not on the lists, which are cut.
    unlisted: u64,
}

impl Unknown {
    fn see(&mut self, view: &View) {
        let holds = view.holders.iter().flat_map(|holding| &holding.holds);
        self.holds += holds
            .filter(|entered| entered.process.connected.is_none())
            .count();
        let waits = view
            .waiters
            .iter()
            .filter(|waiting| waiting.process.connected.is_none());
        self.waits += waits.count();
        self.unlisted += view.holder_count.saturating_sub(view.holders.len() as u64);
        self.unlisted += view.waiter_count.saturating_sub(view.waiters.len() as u64);
    }

    fn tell(&self, report: &mut Report, nothing: bool, found: Option<&Examination>) {
        if self.holds + self.waits > 0 {
            let (why, remedy) = match found {
                Some(found) if found.refused.iter().any(|(what, _)| what.starts_with("PUBSUB")) => (
                    "this user may not ask who is connected (PUBSUB NUMSUB)",
                    "give the user +pubsub|numsub",
                ),
                Some(found) if found.info.get("redis_mode").is_some_and(|mode| mode == "cluster") => (
                    "in a cluster a client listens where it waits, and no node knows of all",
                    "nothing to do: what a dead client left ends with its lease, or is passed over",
                ),
                _ => (
                    "their processes listen to no messages of the server, or it did not answer",
                    "nothing to do: what a dead client left ends with its lease, or is passed over",
                ),
            };
            report.find(
                Level::Note,
                format!(
                    "of {} holds and {} requests in line it is not known whether their processes are connected: {why}",
                    self.holds, self.waits
                ),
                remedy,
            );
        }
        if self.unlisted > 0 {
            report.find(
                Level::Note,
                format!(
                    "{} that hold or wait were not looked at, as a name tells 1,000 of each at most",
                    self.unlisted
                ),
                "see `relatch ls` for the names with so many",
            );
        }
        if nothing && self.holds + self.waits == 0 && self.unlisted == 0 {
            report.ok("dead clients have left nothing");
        }
    }
}

/// For a shell to paste into: others chose the name.
fn quoted(name: &str) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    format!(
        "'{}'",
        name.chars().map(plain).collect::<String>().replace('\'', r"'\''")
    )
}

#[cfg(test)]
mod quoting {
    #[test]
    fn a_name_in_a_remedy_is_nothing_but_a_name_to_a_shell() {
        assert_eq!(super::quoted("$(reboot) `x` \"y\""), "'$(reboot) `x` \"y\"'");
        assert_eq!(super::quoted("it's\n"), r"'it'\''s?'");
    }
}
