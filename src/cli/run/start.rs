//! Starting a command such that it never runs unwatched.
//!
//! Between the moment when a process exists and the moment when the keeper knows of it this one may be killed or stopped. So what is started first is this
//! program again: it stands still until the keeper has been told of it and of its time, and only then becomes the command. The keeper ends one that stands still
//! for somebody who is dead.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpid, getppid, kill_process, waitid};

use super::{NOT_FOUND, NOT_STARTED};
use crate::cli::words::{printable, tell};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Whose child it must still be
    parent: i32,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// This program. The file may have been replaced since we were started.
pub(super) fn this_program() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") {
        Ok("/proc/self/exe".into())
    } else {
        std::env::current_exe()
    }
}

/// What becomes the command, once it is told to.
pub(super) fn command(of: &[OsString]) -> io::Result<tokio::process::Command> {
    let mut command = tokio::process::Command::new(this_program()?);
    command
        .arg0("relatch")
        .arg("run-start")
        .arg(getpid().as_raw_nonzero().to_string())
        .arg("--")
        .args(of);
    Ok(command)
}

/// Waits until it stands still; or has ended, which whoever waits for it finds out.
pub(super) async fn until_it_waits(child: Pid) {
    let wait = move || {
        let either = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(child), either)
    };
    // An error means that it is gone.
    let _ = tokio::task::spawn_blocking(wait).await;
}

/// The process that becomes the command. Returns a status if it does not.
pub(crate) fn start(args: &Args) -> u8 {
    let has_parent = || getppid().map(|pid| pid.as_raw_nonzero().get()) == Some(args.parent);
    // Whoever started us goes on with us, or is dead: then nobody does, before we stand still, or the keeper ends us, or the system continues us.
    if !has_parent() || kill_process(getpid(), Signal::STOP).is_err() || !has_parent() {
        return NOT_STARTED;
    }
    let program = &args.command[0];
    let error = Command::new(program).args(&args.command[1..]).exec();
    tell(&format!(
        "{} can't be started: {error}",
        printable(&program.to_string_lossy())
    ));
    match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_STARTED,
    }
}
