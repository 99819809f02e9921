//! The signals that this process gets and its command may have to get.
//!
//! A terminal sends its signals (Ctrl-C, Ctrl-\, Ctrl-Z, its size, its end) to a whole group of processes: a command in our group has got
//! those already. So what the kernel sent is told apart from what a process did. What was ignored when we were started (`nohup`) stays
//! ignored, by us and by the command.

use std::io;

use rustix::process::Signal;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::Cause;
use tokio::sync::mpsc;

const PASSED_ON: [i32; 9] = [
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT, SIGTSTP,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Got {
    pub(super) number: i32,
    /// By the kernel, to the group of whoever sits at the terminal.
    pub(super) by_terminal: bool,
}

impl Got {
    pub(super) fn signal(self) -> Option<Signal> {
        Signal::from_named_raw(self.number)
    }

    /// A process without a say in it would have ended.
    pub(super) fn ends(self) -> bool {
        !matches!(self.number, SIGWINCH | SIGCONT | SIGTSTP)
    }

    pub(super) fn stops(self) -> bool {
        self.number == SIGTSTP
    }

    pub(super) fn continues(self) -> bool {
        self.number == SIGCONT
    }

    /// Does to this process what the signal would have done.
    pub(super) fn obey(self) {
        // An error would mean that there is no such signal.
        let _ = signal_hook::low_level::emulate_default_handler(self.number);
    }
}

/// From now on. The thread that listens ends with the process.
pub(super) fn listen() -> io::Result<mpsc::UnboundedReceiver<Got>> {
    let ignored = ignored();
    let wanted = PASSED_ON
        .into_iter()
        .filter(|number| ignored >> (number - 1) & 1 == 0);
    let mut signals = SignalsInfo::<WithOrigin>::new(wanted)?;
    let (tell, told) = mpsc::unbounded_channel();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for origin in signals.forever() {
                let got = Got {
                    number: origin.signal,
                    by_terminal: matches!(origin.cause, Cause::Kernel),
                };
                if tell.send(got).is_err() {
                    return;
                }
            }
        })?;
    Ok(told)
}

/// The signals that were ignored when this process was started, a bit each. Where nobody tells, none.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
