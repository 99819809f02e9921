//! The command `relatch`: parse, run, one exit status.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
