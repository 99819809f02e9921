//! The command `relatch`: parse, run, one exit status.

mod cli;

/// A door for `fuzz/`.
#[cfg(fuzzing)]
pub(crate) use cli::fuzz::command_lines;

fn main() -> std::process::ExitCode {
    cli::main()
}
