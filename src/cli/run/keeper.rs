//! A second process that ends the command when the first can't: when that was killed, or stands still.
//!
//! `relatch run` tells it, by a pipe, when the command must be asked to end and when it must be gone. While the first lives and is in time it does
//! nothing. It is in a group of its own, out of reach of a terminal and of whoever kills the first one's group.
//!
//! Lines on its stdin: `child <pid> <group: 0 or 1>`; `at <ask_ns> <kill_ns>`, by the clock of `stop`, as often as that changes, with `-` for a command that was
//! asked already; `end` when the command has ended. An end without `end` means that the first is dead. There is a `child` before its first `at`: until then it
//! stands still.
//!
//! It acts first and tells afterwards, from a thread of its own: nobody may be reading.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, test_kill_process};

use super::start::this_program;
use super::stop::{Schedule, Target, ahead, now};
use crate::cli::words::Aside;

/// How long it waits at least: for what was said just now, and for a command to be gone.
const LOOKS: Duration = Duration::from_millis(10);
/// How long it sleeps at most: a machine that slept is found out that late, where the first does not.
const NAP: Duration = Duration::from_secs(1);

/// The first one's end of it.
#[derive(Debug)]
pub(super) struct Keeper {
    process: Child,
    to: ChildStdin,
    told: Option<Schedule>,
}

impl Keeper {
    pub(super) fn start() -> io::Result<Self> {
        let mut process = Command::new(this_program()?)
            .arg0("relatch")
            .arg("run-keeper")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let to = process.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        // One that stands still must not make us wait.
        rustix::io::ioctl_fionbio(&to, true)?;
        Ok(Self {
            process,
            to,
            told: None,
        })
    }

    /// A keeper that is gone leaves the first one as it is.
    fn say(&mut self, line: &str) {
        let _ = self.to.write_all(line.as_bytes());
    }

    pub(super) fn watch(&mut self, target: Target) {
        let group = u8::from(target.group);
        self.say(&format!("child {} {group}\n", target.pid.as_raw_nonzero()));
    }

    pub(super) fn at(&mut self, schedule: Schedule) {
        if self.told != Some(schedule) {
            self.told = Some(schedule);
            let ask = match schedule.ask_at {
                Duration::MAX => "-".to_owned(),
                at => at.as_nanos().to_string(),
            };
            self.say(&format!("at {ask} {}\n", schedule.kill_at.as_nanos()));
        }
    }

    /// The command has ended. Tells whether the keeper had to ask it to.
    pub(super) fn end(mut self) -> bool {
        self.say("end\n");
        drop(self.to);
        for _ in 0..ENDS_WITHIN_MS {
            match self.process.try_wait() {
                Ok(Some(status)) => return status.code() == Some(i32::from(ACTED)),
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => break,
            }
        }
        // It stands still.
        let _ = self.process.kill();
        let _ = self.process.wait();
        false
    }
}

const ENDS_WITHIN_MS: u32 = 250;

/// The keeper's status when it had to ask the command to end, or to end it.
const ACTED: u8 = 3;

enum Said {
    Child(Target),
    At(Schedule),
    End,
}

fn read(line: &str) -> Option<Said> {
    let mut words = line.split(' ');
    let time = |word: &str| word.parse().ok().map(Duration::from_nanos);
    let said = match words.next()? {
        "end" => Said::End,
        "child" => Said::Child(Target {
            pid: Pid::from_raw(words.next()?.parse().ok()?)?,
            group: words.next()? == "1",
        }),
        "at" => Said::At(Schedule {
            ask_at: match words.next()? {
                "-" => Duration::MAX,
                at => time(at)?,
            },
            kill_at: time(words.next()?)?,
        }),
        _ => return None,
    };
    words.next().is_none().then_some(said)
}

/// The keeper itself. Ends when the command has, with a status.
pub(crate) fn keep() -> u8 {
    // Without one it is silent.
    let aside = Aside::start().ok();
    let (acted, last_words) = watch_over(|text| {
        if let Some(aside) = &aside {
            aside.tell(text);
        }
    });
    let until = now() + last_words;
    while aside.as_ref().is_some_and(|aside| !aside.is_written()) && now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    acted
}

/// How long what it said may take to be written, where the first waits for its end, and where nobody does.
const LAST_WORDS: Duration = Duration::from_millis(100);
const LAST_WORDS_ALONE: Duration = Duration::from_secs(5);

/// Its status, and how long it may take to have said all.
fn watch_over(tell: impl Fn(&'static str)) -> (u8, Duration) {
    // Whoever ends a whole service tells its processes to end, this one as well; it ends with the command.
    let never = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in [
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGHUP,
        signal_hook::consts::SIGQUIT,
    ] {
        let _ = signal_hook::flag::register(signal, never.clone());
    }
    let (tell_it, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(io::stdin()).lines().map_while(Result::ok) {
            if read(&line).is_none_or(|said| tell_it.send(said).is_err()) {
                return;
            }
        }
    });

    let mut command: Option<Watched> = None;
    let mut schedule: Option<Schedule> = None;
    let (mut orphaned, mut acted) = (false, 0);
    // It is due, and nothing else was said since: if we stood still as well, what was said meanwhile comes first.
    let mut sure = false;
    loop {
        let due = schedule.map(|schedule| Due::of(schedule, orphaned));
        let left = due.map_or(NAP, |due| due.ask_at.min(due.kill_at).saturating_sub(now()));
        let said = if orphaned {
            std::thread::sleep(LOOKS);
            Err(mpsc::RecvTimeoutError::Timeout)
        } else {
            told.recv_timeout(left.clamp(LOOKS, NAP))
        };
        match said {
            Ok(Said::Child(target)) => {
                command = Some(Watched::of(target));
                continue;
            }
            Ok(Said::At(new)) => {
                (schedule, sure) = (Some(new), false);
                continue;
            }
            Ok(Said::End) => return (acted, LAST_WORDS),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                // The first is dead, and with it whoever renews.
                (orphaned, sure) = (true, true);
                let Some(watched) = &command else {
                    return (acted, LAST_WORDS_ALONE);
                };
                let Some(schedule) = &mut schedule else {
                    // It has not become the command yet, and never will.
                    watched.send(Signal::KILL);
                    return (acted, LAST_WORDS_ALONE);
                };
                if watched.is_there() {
                    tell("`relatch run` was killed: ending its command before the hold lapses");
                }
                if schedule.ask_at != Duration::MAX {
                    let grace = schedule.kill_at.saturating_sub(schedule.ask_at);
                    schedule.kill_at = schedule.kill_at.min(now() + grace);
                    schedule.ask_at = schedule.ask_at.min(now());
                }
            }
        }
        let (Some(watched), Some(told)) = (&command, &mut schedule) else {
            continue;
        };
        if orphaned && !watched.is_there() {
            // And what it had started.
            if watched.target.group {
                watched.target.send(Signal::KILL);
            }
            return (acted, LAST_WORDS_ALONE);
        }
        let due = Due::of(*told, orphaned);
        // Of a command that has ended the first will say so. But of a group that was asked to end the leader may be all that did.
        let asked = acted == ACTED && watched.target.group;
        if now() < due.ask_at.min(due.kill_at)
            || !(watched.is_there() || asked)
            || !std::mem::replace(&mut sure, true)
        {
            continue;
        }
        acted = ACTED;
        if now() >= due.kill_at {
            watched.send(Signal::KILL);
        } else {
            told.ask_at = Duration::MAX;
            watched.send(Signal::TERM);
            watched.send(Signal::CONT);
            if !orphaned {
                tell("`relatch run` stands still, and its hold is not renewed: asking the command to end");
            }
        }
    }
}

/// When the keeper acts: while the first lives, so much later than that, as a machine may be busy.
#[derive(Clone, Copy)]
struct Due {
    ask_at: Duration,
    kill_at: Duration,
}

impl Due {
    fn of(schedule: Schedule, orphaned: bool) -> Self {
        let Schedule { ask_at, kill_at } = schedule;
        let grace = kill_at.saturating_sub(ask_at);
        let (asks, kills) = if orphaned {
            (Duration::ZERO, Duration::ZERO)
        } else {
            (grace / 5, ahead(grace) / 2)
        };
        Self {
            ask_at: ask_at.saturating_add(asks),
            kill_at: kill_at.saturating_add(kills),
        }
    }
}

/// A process that is not our child: its id may be another's once it is gone, so it is held by a descriptor where there are such.
struct Watched {
    target: Target,
    #[cfg(target_os = "linux")]
    fd: Option<OwnedFd>,
}

impl Watched {
    fn of(target: Target) -> Self {
        Self {
            target,
            #[cfg(target_os = "linux")]
            fd: rustix::process::pidfd_open(target.pid, rustix::process::PidfdFlags::empty()).ok(),
        }
    }

    fn is_there(&self) -> bool {
        #[cfg(target_os = "linux")]
        if let Some(fd) = &self.fd {
            use rustix::event::{PollFd, PollFlags, Timespec, poll};
            let fd = fd.as_fd();
            let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
            let at_once = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            return poll(&mut polled, Some(&at_once)) == Ok(0);
        }
        test_kill_process(self.target.pid).is_ok()
    }

    fn send(&self, signal: Signal) {
        #[cfg(target_os = "linux")]
        if let (Some(fd), false) = (&self.fd, self.target.group) {
            let _ = rustix::process::pidfd_send_signal(fd, signal);
            return;
        }
        self.target.send(signal);
    }
}
