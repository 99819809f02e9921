//! `relatch run`: a command under locks.
//!
//! The invariant: **the command does not run on when somebody else may hold its locks.** It is asked to end, and ended, before its holds could
//! lapse, by the clock that goes on while the machine sleeps; a second process (`keeper`) does that when this one was killed or stands
//! still. Whatever is told is told [aside](Aside), after it was done: a stderr that nobody reads keeps neither from it. A hold that is revoked is kept until the command has ended, and given back then.
//!
//! What can't be kept: nothing stops a command while *all* of it stands still, keeper included (a machine that sleeps, a container that is frozen). Its
//! first moment awake, before it is ended, may be after the end. That is what fences are for.

pub(crate) mod keeper;
mod signals;
pub(crate) mod start;
mod stop;
mod wait;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::pin::Pin;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use relatch::{Builder, Error, LostCause, Mode, Owner, ReadGuard, Relatch, WriteGuard};
use rustix::process::{Pid, Signal};
use serde::Serialize;
use tokio::process::{Child, Command};
use tokio::sync::mpsc::UnboundedReceiver;

use self::keeper::Keeper;
use self::signals::Got;
use self::stop::{Schedule, Target, now};
use super::reach::{self, Reach, duration};
use super::words::{Aside, brief, printable};

/// Not granted at once, with `--if-free`.
const BUSY: u8 = 120;
/// The hold was lost, or about to be, and the command was ended.
const LOST: u8 = 121;
/// The server could not be reached.
const UNREACHABLE: u8 = 122;
/// The owner would have waited for itself, or the server says no.
const REFUSED: u8 = 123;
/// Not granted within `--timeout`.
const TIMED_OUT: u8 = 124;
/// What was typed or configured can't be used, or this system lacks something.
pub(crate) const COULD_NOT_RUN: u8 = 125;
/// The command is there but can't be started.
const NOT_STARTED: u8 = 126;
/// There is no such command.
const NOT_FOUND: u8 = 127;

pub(crate) const EXIT: &str = "\
Exit status: the command's own; 128 + n if signal n ended it. Otherwise:
  120  with --if-free: somebody holds it; the command was not started
  121  a hold was lost, or about to be: the command was ended, or not started
  122  the server could not be reached; the command was not started
  123  refused: the owner would wait for itself, or the server said no
  124  not granted within --timeout; the command was not started
  125  what was typed or configured can't be used
  126  the command can't be started
  127  there is no such command

The command gets in its environment:
  RELATCH_OWNER  who holds. A `relatch run` inside it re-enters by this
  RELATCH_NAME   the name; of several, the first --write, else --read
  RELATCH_FENCE  its fence: have the resource refuse what carries a smaller one
  RELATCH_HOLDS  all of them: [{\"name\":…,\"mode\":…,\"fence\":…}, …]

Examples:
  relatch run --write deploy --timeout 10s -- ./deploy.sh
  relatch run --if-free --write nightly -- ./backup.sh || [ $? = 120 ]
  relatch run --read config --write cache -- make";

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("names").required(true).multiple(true).args(["write", "read", "name"])))]
pub(crate) struct Args {
    /// Hold NAME alone, for as long as the command runs; may be given several times
    #[arg(short, long, value_name = "NAME")]
    write: Vec<String>,
    /// Hold NAME together with other readers; may be given several times
    #[arg(short, long, value_name = "NAME")]
    read: Vec<String>,
    /// The same as --write
    #[arg(short, long, value_name = "NAME")]
    name: Vec<String>,
    /// Wait for so long at most, for all names together; without it, as long as it takes
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Do not wait: if anybody is in the way, do not start the command
    #[arg(short = 'i', long, conflicts_with = "timeout")]
    if_free: bool,
    /// The status when the lock could not be had, instead of 120 or 124
    #[arg(short = 'E', long, value_name = "STATUS")]
    conflict_exit_code: Option<u8>,
    /// Re-enter as this owner, a UUID; `new` for one that nobody else is, also inside another `relatch run`
    #[arg(long, value_name = "ID", env = "RELATCH_OWNER")]
    owner: Option<String>,
    /// What others read when they ask who holds it; the command's file name if nothing is said
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// How long a hold outlives this machine; renewed every third of it
    #[arg(long, value_name = "TIME", value_parser = duration)]
    lease: Option<Duration>,
    /// The command is asked to end (TERM) so long before it is ended (KILL); at most a third of the lease
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5s")]
    grace: Duration,
    /// End the command when it has held for so long
    #[arg(long, value_name = "TIME", value_parser = duration)]
    max_hold: Option<Duration>,
    /// Do not tell who is in the way
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    reach: Reach,
    /// The command and its arguments; best after `--`
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND", value_hint = clap::ValueHint::CommandWithArguments)]
    command: Vec<OsString>,
}

/// Why there is no status of the command's.
#[derive(Debug)]
struct Failure {
    status: u8,
    why: anyhow::Error,
}

impl Failure {
    fn of(error: Error) -> Self {
        let status = if error.is_timeout() {
            TIMED_OUT
        } else if error.is_lost() {
            LOST
        } else if error.is_unreachable() {
            UNREACHABLE
        } else if error.is_invalid() {
            COULD_NOT_RUN
        } else {
            REFUSED
        };
        Self {
            status,
            why: error.into(),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(why: anyhow::Error) -> Self {
        match why.downcast::<Error>() {
            Ok(error) => Self::of(error),
            Err(why) => Self {
                status: COULD_NOT_RUN,
                why,
            },
        }
    }
}

/// What became of it: a status, or a signal that ended us while we waited.
enum End {
    Status(u8),
    Signal(Got),
}

enum Guard {
    Read(ReadGuard),
    Write(WriteGuard),
}

macro_rules! each {
    ($guard:expr, $held:ident => $do:expr) => {
        match $guard {
            Guard::Read($held) => $do,
            Guard::Write($held) => $do,
        }
    };
}

/// One name that is held, and what is known of its time.
struct Held {
    guard: Guard,
    /// When it could lapse, by `stop::now`, as last seen while it was held.
    until: Duration,
    /// The longest that it was ever known to be valid for.
    most: Duration,
}

impl Held {
    fn new(guard: Guard) -> Self {
        let mut held = Self {
            guard,
            until: Duration::ZERO,
            most: Duration::ZERO,
        };
        held.look();
        held
    }

    fn name(&self) -> &str {
        each!(&self.guard, held => held.name())
    }

    fn is_held(&self) -> bool {
        each!(&self.guard, held => held.is_held())
    }

    fn look(&mut self) {
        // The clock first: a moment in between then only makes it end earlier here.
        let at = now();
        let left = each!(&self.guard, held => held.valid_for());
        if !left.is_zero() {
            self.until = at + left;
            self.most = self.most.max(left);
        }
    }

    fn lost(&self) -> Pin<Box<dyn Future<Output = LostCause> + Send>> {
        match &self.guard {
            Guard::Read(held) => Box::pin(held.lost()),
            Guard::Write(held) => Box::pin(held.lost()),
        }
    }
}

/// As the command finds it in `RELATCH_HOLDS`.
#[derive(Serialize)]
struct Told<'a> {
    name: &'a str,
    mode: Mode,
    fence: u64,
}

pub(crate) async fn run(args: Args) -> u8 {
    let started = signals::listen()
        .context("signals can't be heard")
        .and_then(|signals| Ok((signals, Aside::start().context("no thread can be started")?)));
    let (mut signals, aside) = match started {
        Ok(started) => started,
        Err(error) => {
            super::words::tell(&format!("{error:#}"));
            return COULD_NOT_RUN;
        }
    };
    let (status, signal) = match try_run(&args, &mut signals, &aside).await {
        Ok(End::Status(status)) => (status, None),
        // Where it does not end us after all.
        Ok(End::Signal(got)) => (u8::try_from(128 + got.number).unwrap_or(COULD_NOT_RUN), Some(got)),
        Err(Failure { status, why }) => {
            aside.tell(printable(&format!("{why:#}")));
            let instead = args.conflict_exit_code;
            let instead = instead.filter(|_| matches!(status, BUSY | TIMED_OUT));
            (instead.unwrap_or(status), None)
        }
    };
    // Nothing is held any more. As with any program, its last words take as long as somebody takes to read them, or until a signal ends it.
    let written = async {
        while !aside.is_written() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        signal
    };
    let signal = tokio::select! {
        biased;
        signal = written => signal,
        got = until_ended(&mut signals) => Some(got),
    };
    if let Some(got) = signal {
        got.obey();
    }
    status
}

async fn try_run(args: &Args, signals: &mut UnboundedReceiver<Got>, aside: &Aside) -> Result<End, Failure> {
    let wanted = wanted(args)?;
    let (owner, label) = (owner(args)?, label(args));
    let mut config = args.reach.settings()?;
    if let Some(lease) = args.lease {
        config.lease = lease;
    }
    if args.grace > config.lease / 3 && args.grace != DEFAULT_GRACE {
        return Err(anyhow!(
            "a --grace of {} leaves too little of a lease of {}: at most a third of it; make --lease longer",
            brief(args.grace),
            brief(config.lease)
        )
        .into());
    }
    let begun = Instant::now();
    // The whole wait has a limit, connecting too.
    if let Some(timeout) = args.timeout {
        config.connect_timeout = config.connect_timeout.min(timeout.max(LEAST_TO_CONNECT));
    }
    let relatch = tokio::select! {
        connected = Builder::from(config).connect() => connected.map_err(Failure::of)?,
        got = until_ended(signals) => return Ok(End::Signal(got)),
    };

    let mut holds = Vec::new();
    for (name, mode) in &wanted {
        let lock = relatch.rwlock(name).map_err(Failure::of)?;
        let timeout = args
            .timeout
            .map(|timeout| timeout.saturating_sub(begun.elapsed()));
        let acquired = async {
            macro_rules! acquire {
                ($try:ident, $wait:ident, $guard:ident) => {{
                    if args.if_free {
                        let mut asked = lock.$try().owner(&owner).label(&label).keep_until_dropped();
                        if let Some(max) = args.max_hold {
                            asked = asked.max_hold(max);
                        }
                        asked.await.map(|held| held.map(Guard::$guard))
                    } else {
                        let mut asked = lock
                            .$wait()
                            .owner(&owner)
                            .label(&label)
                            .keep_until_dropped();
                        if let Some(max) = args.max_hold {
                            asked = asked.max_hold(max);
                        }
                        if let Some(timeout) = timeout {
                            asked = asked.timeout(timeout);
                        }
                        asked.await.map(|held| Some(Guard::$guard(held)))
                    }
                }};
            }
            match mode {
                Mode::Write => acquire!(try_write, write, Write),
                _ => acquire!(try_read, read, Read),
            }
        };
        let waiting = wait::Waiting {
            relatch: &relatch,
            name,
            mode: *mode,
            owner: &owner,
            quiet: args.quiet || args.if_free,
            aside,
        };
        let acquired = tokio::select! {
            acquired = acquired => acquired.map_err(Failure::of),
            never = waiting.tell() => match never {},
            // All or none: what the command is to have together is given back together.
            (at, cause) = first_lost(&holds) => Err(Failure {
                status: LOST,
                why: anyhow!(
                    "the hold on {:?} was lost while {:?} was waited for ({cause}); the command was not started",
                    printable(holds[at].name()),
                    printable(name)
                ),
            }),
            got = until_ended(signals) => {
                drop(holds);
                close(&relatch, aside).await;
                return Ok(End::Signal(got));
            }
        };
        let failure = match acquired {
            Ok(Some(guard)) => {
                holds.push(Held::new(guard));
                continue;
            }
            Ok(None) => {
                // First of all: it may take a while to find out who is in the way.
                holds.clear();
                let who = tokio::select! {
                    who = waiting.who() => who,
                    got = until_ended(signals) => {
                        close(&relatch, aside).await;
                        return Ok(End::Signal(got));
                    }
                };
                Failure {
                    status: BUSY,
                    why: anyhow!("{:?} is not free{who}", printable(name)),
                }
            }
            Err(failure) => failure,
        };
        drop(holds);
        close(&relatch, aside).await;
        return Err(failure);
    }

    let told: Vec<Told<'_>> = wanted
        .iter()
        .zip(&holds)
        .map(|((name, mode), held)| Told {
            name,
            mode: *mode,
            fence: each!(&held.guard, held => held.fence()),
        })
        .collect();
    let command = command(args, &owner, &told);
    let end = match command {
        Ok(command) => supervise(command, args, &mut holds, signals, aside).await,
        Err(failure) => Err(failure),
    };
    // In the other order than they were taken.
    while let Some(held) = holds.pop() {
        drop(held);
    }
    close(&relatch, aside).await;
    end
}

const DEFAULT_GRACE: Duration = Duration::from_secs(5);
const LEAST_TO_CONNECT: Duration = Duration::from_millis(100);

/// Each name once, in the stronger mode, sorted: whoever takes several takes them in this order, and no two wait for each other.
fn wanted(args: &Args) -> anyhow::Result<BTreeMap<&str, Mode>> {
    let mut wanted = BTreeMap::new();
    wanted.extend(args.read.iter().map(|name| (name.as_str(), Mode::Read)));
    wanted.extend(
        args.write
            .iter()
            .chain(&args.name)
            .map(|name| (name.as_str(), Mode::Write)),
    );
    for name in wanted.keys() {
        if name.contains('\0') {
            return Err(anyhow!(
                "the name {name:?} has a NUL byte in it, which no environment can carry"
            ));
        }
    }
    Ok(wanted)
}

fn owner(args: &Args) -> anyhow::Result<Owner> {
    match args.owner.as_deref() {
        None | Some("" | "new") => Ok(Owner::new()),
        Some(id) => id.parse::<Owner>().context("--owner, or RELATCH_OWNER"),
    }
}

/// Not the whole command: its arguments may have passwords in them, and everybody may read this.
fn label(args: &Args) -> String {
    let of_command = || {
        let program = Path::new(&args.command[0]);
        program
            .file_name()
            .unwrap_or(program.as_os_str())
            .to_string_lossy()
            .into_owned()
    };
    let label = args.label.clone().unwrap_or_else(of_command);
    let mut end = label.len().min(256);
    while !label.is_char_boundary(end) {
        end -= 1;
    }
    label[..end].to_owned()
}

/// Which of them is lost, and how, one after the other.
fn losses(holds: &[Held]) -> FuturesUnordered<impl Future<Output = (usize, LostCause)> + use<>> {
    let lost = |(at, held): (usize, &Held)| {
        let lost = held.lost();
        async move { (at, lost.await) }
    };
    holds.iter().enumerate().map(lost).collect()
}

/// The first of them that is lost.
async fn first_lost(holds: &[Held]) -> (usize, LostCause) {
    match losses(holds).next().await {
        Some(lost) => lost,
        None => std::future::pending().await,
    }
}

/// The first signal that would have ended us.
async fn until_ended(signals: &mut UnboundedReceiver<Got>) -> Got {
    loop {
        match signals.recv().await {
            Some(got) if got.ends() => return got,
            Some(got) if got.stops() => got.obey(),
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// Gives back what was dropped; a server that is away must not keep the caller.
async fn close(relatch: &Relatch, aside: &Aside) {
    if tokio::time::timeout(GIVE_BACK, relatch.close())
        .await
        .map_or(true, |closed| closed.is_err())
    {
        aside.tell("the server did not confirm that the hold was given back; its lease will end it");
    }
}

const GIVE_BACK: Duration = Duration::from_secs(2);

fn command(args: &Args, owner: &Owner, told: &[Told<'_>]) -> Result<Command, Failure> {
    let mut command =
        start::command(&args.command).context("this program can't be found to be started again")?;
    let typed_first = [&args.write, &args.read, &args.name];
    // clap keeps no order between options; of one option it does.
    let first = typed_first.iter().find_map(|names| names.first());
    let first = told
        .iter()
        .find(|told| Some(told.name) == first.map(String::as_str));
    if let Some(first) = first.or(told.first()) {
        command.env("RELATCH_NAME", first.name);
        command.env("RELATCH_FENCE", first.fence.to_string());
    }
    let holds = serde_json::to_string(told).context("the holds can't be written down")?;
    command
        .env("RELATCH_HOLDS", holds)
        .env("RELATCH_OWNER", owner.to_string())
        .envs(args.reach.environment())
        .kill_on_drop(true);
    Ok(command)
}

/// Runs it, and sees to it that it ends in time.
async fn supervise(
    mut command: Command,
    args: &Args,
    holds: &mut [Held],
    signals: &mut UnboundedReceiver<Got>,
    aside: &Aside,
) -> Result<End, Failure> {
    // The first of several may be lost by now. Nothing has been begun under it.
    if let Some(held) = holds.iter().find(|held| !held.is_held()) {
        let why = anyhow!(
            "the hold on {:?} was lost while others were waited for",
            printable(held.name())
        );
        return Err(Failure { status: LOST, why });
    }
    // At a terminal the command is in our group, as anybody expects who types Ctrl-C or has it ask a question. Elsewhere it leads a group of its
    // own, so that whatever it starts can be ended with it.
    let group = File::open("/dev/tty").is_err();
    if group {
        command.process_group(0);
    }
    let mut keeper = Keeper::start()
        .inspect_err(|error| {
            aside.tell(format!(
                "no second process could be started ({error}): if this one is killed, its command goes on"
            ));
        })
        .ok();
    let program = printable(&args.command[0].to_string_lossy());
    let child = command.spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            if let Some(keeper) = keeper {
                keeper.end();
            }
            let why = anyhow!("no process can be started for {program}: {error}");
            return Err(Failure {
                status: NOT_STARTED,
                why,
            });
        }
    };
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let Some(pid) = pid else {
        return Err(anyhow!("{program} has no process id").into());
    };
    let target = Target { pid, group };
    // Before it waits: what waits for somebody who is dead is ended.
    if let Some(keeper) = &mut keeper {
        keeper.watch(target);
    }
    start::until_it_waits(pid).await;
    let mut watch = Watch {
        aside,
        target,
        grace: args.grace,
        program,
        stopping: None,
        lost: false,
    };
    let due = watch.look(holds);
    if let (Some(keeper), Some(schedule)) = (&mut keeper, due) {
        keeper.at(schedule);
    }
    // Now it becomes the command.
    target.send(Signal::CONT);
    let ended = watch.over(&mut child, holds, signals, keeper.as_mut()).await;
    // It may have been in time where we were not.
    let kept = keeper.is_some_and(Keeper::end);
    watch.lost |= kept;
    if group && (kept || watch.stopping.is_some()) {
        // What the command had started, and left.
        target.send(Signal::KILL);
    }
    let status = ended.context("the command can't be waited for")?;
    // It ended by itself; but was all of it under the locks?
    if !watch.lost
        && let Some(held) = holds.iter().find(|held| !held.is_held())
    {
        watch.lost = true;
        aside.tell(format!(
            "the hold on {:?} was lost before {} ended",
            printable(held.name()),
            watch.program
        ));
    }
    Ok(End::Status(if watch.lost { LOST } else { status_of(status) }))
}

fn status_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(COULD_NOT_RUN)
}

struct Watch<'a> {
    aside: &'a Aside,
    target: Target,
    grace: Duration,
    program: String,
    /// When it is killed: it was asked to end.
    stopping: Option<Duration>,
    lost: bool,
}

/// How often the holds are looked at, at least: a machine that slept is found out that late. Nearer to the end, more often.
const LOOKS: Duration = Duration::from_millis(250);

impl Watch<'_> {
    /// Until the command has ended.
    async fn over(
        &mut self,
        child: &mut Child,
        holds: &mut [Held],
        signals: &mut UnboundedReceiver<Got>,
        mut keeper: Option<&mut Keeper>,
    ) -> std::io::Result<ExitStatus> {
        let mut losses = losses(holds);
        loop {
            let due = self.look(holds);
            if let (Some(keeper), Some(schedule)) = (keeper.as_deref_mut(), due) {
                keeper.at(schedule);
            }
            let left = due.map(|due| due.ask_at.min(due.kill_at).saturating_sub(now()));
            let next = left.map_or(LOOKS, |left| (left / 4).clamp(Duration::from_millis(2), LOOKS));
            tokio::select! {
                biased;
                status = child.wait() => return status,
                Some((at, cause)) = losses.next() => self.lose(&mut holds[at], cause),
                Some(got) = signals.recv() => self.pass_on(got, holds),
                () = tokio::time::sleep(next) => {}
            }
        }
    }

    /// Asks the command to end, or ends it, if it is time to. When that would be.
    fn look(&mut self, holds: &mut [Held]) -> Option<Schedule> {
        for held in holds.iter_mut() {
            held.look();
        }
        let schedules = holds
            .iter()
            .map(|held| Schedule::of(held.until, held.most, self.grace));
        let mut due = schedules.min_by_key(|schedule| schedule.kill_at)?;
        if let Some(kill_at) = self.stopping {
            due = Schedule {
                ask_at: Duration::MAX,
                kill_at: due.kill_at.min(kill_at),
            };
        }
        let at = now();
        if at >= due.kill_at {
            self.kill("its hold is about to lapse");
        } else if at >= due.ask_at {
            self.ask(due.kill_at);
            self.aside.tell(format!(
                "the hold is not renewed and lapses in {}: asking {} to end",
                brief(due.kill_at.saturating_sub(at)),
                self.program
            ));
            due.ask_at = Duration::MAX;
        }
        Some(due)
    }

    fn ask(&mut self, kill_at: Duration) {
        if self.stopping.is_none() {
            self.target.ask();
        }
        self.stopping = Some(self.stopping.unwrap_or(kill_at).min(kill_at));
        self.lost = true;
    }

    fn kill(&mut self, why: &str) {
        self.target.send(Signal::KILL);
        self.lost = true;
        if self.stopping.replace(Duration::ZERO) != Some(Duration::ZERO) {
            self.aside.tell(format!("{why}: ending {}", self.program));
        }
    }

    fn lose(&mut self, held: &mut Held, cause: LostCause) {
        let name = printable(held.name());
        match cause {
            // It is kept until the command has ended.
            LostCause::Revoked => {
                self.ask(now() + self.grace);
                self.aside.tell(format!(
                    "the hold on {name:?} was revoked: asking {} to end",
                    self.program
                ));
            }
            cause => self.kill(&format!("the hold on {name:?} is lost: {cause}")),
        }
    }

    fn pass_on(&mut self, got: Got, holds: &mut [Held]) {
        if got.continues() {
            // We stood still, and time did not: the holds are looked at before the command goes on.
            self.look(holds);
            if self.stopping == Some(Duration::ZERO) {
                return;
            }
        }
        if (!got.by_terminal || self.target.group)
            && let Some(signal) = got.signal()
        {
            self.target.send(signal);
        }
        if got.stops() {
            got.obey();
        }
    }
}

pub(crate) const LONG: &str = "\
Runs a command while it holds locks, and gives them back when it has ended.

With several names they are taken in the order of their text, so that no two such commands wait for each other; all or none: if one is lost while the next is \
waited for, all are given back. A `relatch run` inside the command re-enters what the \
outer one holds, as it finds its owner in RELATCH_OWNER; two of them side by side inside it do not exclude each other, being one owner.

If the hold can't be renewed, or is revoked, the command gets TERM, and KILL after a grace, before anybody else can hold it. So it is also when this process is \
killed or stopped: a second one sees to it. Away from a terminal the command leads a process group, and all of it is ended; at a terminal only the command itself \
is: have a script `exec` what must not outlive it. HUP, INT, QUIT, TERM, USR1, USR2, WINCH, TSTP and CONT are passed on; what a terminal sends the command gets from the terminal. A signal that another process sends \
to the whole group at a terminal (kill -- -GROUP) reaches the command twice: from there, and passed on.";

/// For the list of what is documented together.
pub(crate) fn help() -> String {
    format!("{EXIT}\n\n{}", reach::HELP)
}
