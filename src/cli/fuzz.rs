//! Command lines, and the lines between the processes of a demo, put to inputs that nobody would write: by the test here over
//! seeded bytes, and by libFuzzer through `fuzz/`. See the library's `src/fuzz.rs`.

use arbitrary::{Result, Unstructured};
use clap::Parser as _;

use super::{Cli, Command, demo};

const SECRET: &str = "redis://ann:s3cret@cache";

const WORDS: [&str; 59] = [
    "run",
    "run-start",
    "ls",
    "show",
    "watch",
    "events",
    "revoke",
    "trace",
    "--html",
    "--for",
    "exporter",
    "--listen",
    "doctor",
    "completions",
    "man",
    "bash",
    "--write",
    "-w",
    "--name",
    "--timeout",
    "--grace",
    "--owner",
    "--if-free",
    "--sort",
    "--config",
    "demo",
    "bench",
    "bench-worker",
    "pair",
    "--check",
    "demo-worker",
    "simulate",
    "--seeds",
    "--from",
    "--trace",
    "help",
    "--help",
    "--version",
    "--tree",
    ".",
    "--redis",
    SECRET,
    "--processes",
    "3",
    "16",
    "17",
    "--seconds",
    "25",
    "26",
    "0",
    "--json",
    "--readers",
    "--writers",
    "--walkers",
    "200",
    "201",
    "--",
    "-",
    "=",
];

pub(crate) fn command_lines(data: &[u8]) {
    let _ = try_command_lines(&mut Unstructured::new(data));
}

fn try_command_lines(u: &mut Unstructured<'_>) -> Result<()> {
    // What was meant is what is understood.
    let seconds = u.int_in_range(1..=25)?;
    let processes: u8 = u.int_in_range(1..=16)?;
    let readers: u16 = u.int_in_range(0..=200)?;
    let json: bool = u.arbitrary()?;
    let mut line = vec![
        "relatch".to_owned(),
        "demo".into(),
        format!("--seconds={seconds}"),
    ];
    line.extend([format!("--processes={processes}"), format!("--redis={SECRET}")]);
    line.extend(["--readers".into(), readers.to_string()]);
    if json {
        line.insert(u.int_in_range(2..=4)?, "--json".into());
    }
    match Cli::try_parse_from(&line) {
        Ok(Cli {
            command: Command::Demo(args),
        }) => {
            assert_eq!(
                (args.seconds, args.processes, args.json),
                (seconds, Some(processes), json)
            );
            assert_eq!(
                (args.workers.readers, args.redis.as_deref()),
                (readers, Some(SECRET))
            );
        }
        Ok(_) => panic!("{line:?}"),
        Err(error) => panic!("{error}: {line:?}"),
    }

    let mut line = vec!["relatch".to_owned()];
    for _ in 0..u.int_in_range(0..=8)? {
        line.push(match u.int_in_range(0..=8)? {
            0 => u.arbitrary()?,
            1 => format!("{}={}", u.choose(&WORDS)?, u.choose(&WORDS)?),
            2 => u.arbitrary::<i64>()?.to_string(),
            _ => (*u.choose(&WORDS)?).to_owned(),
        });
    }
    match Cli::try_parse_from(&line) {
        Ok(Cli {
            command: Command::Demo(args),
        }) => {
            assert!((1..=25).contains(&args.seconds), "{line:?}");
            assert!(
                args.processes
                    .is_none_or(|n| (1..=16).contains(&n) && args.redis.is_some()),
                "{line:?}"
            );
            let workers = args.workers;
            assert!(
                [workers.readers, workers.writers, workers.walkers]
                    .iter()
                    .all(|n| *n <= 200),
                "{line:?}"
            );
            assert!(!args.tree.as_os_str().is_empty(), "{line:?}");
        }
        Ok(Cli { command }) => {
            let typed = match command {
                Command::Demo(_) => "demo",
                Command::DemoWorker => "demo-worker",
                Command::Simulate(_) => "simulate",
                Command::Bench(_) => "bench",
                Command::BenchWorker => "bench-worker",
                #[cfg(unix)]
                Command::Run(_) => "run",
                #[cfg(unix)]
                Command::RunKeeper => "run-keeper",
                #[cfg(unix)]
                Command::RunStart(_) => "run-start",
                Command::Ls(_) => "ls",
                Command::Show(_) => "show",
                Command::Watch(_) => "watch",
                Command::Events(_) => "events",
                Command::Revoke(_) => "revoke",
                Command::Doctor(_) => "doctor",
                Command::Completions(_) => "completions",
                Command::Man(_) => "man",
                Command::Trace(_) => "trace",
                Command::Exporter(_) => "exporter",
            };
            assert!(line.iter().any(|word| word == typed), "{line:?}");
        }
        Err(error) => {
            assert_eq!(
                error.exit_code(),
                if error.use_stderr() { 2 } else { 0 },
                "{line:?}"
            );
            // A password where it belongs is shown to nobody, whatever else is wrong with the line.
            let misplaced = |at: usize| {
                let word = &line[at];
                // The error leaves out what is no letter, so letters are looked at.
                let letters: String = word.chars().filter(char::is_ascii_alphanumeric).collect();
                letters.contains("s3cret")
                    && word != &format!("--redis={SECRET}")
                    && line[at - 1] != "--redis"
            };
            if !(1..line.len()).any(misplaced) {
                assert!(!error.to_string().contains("s3cret"), "{line:?}: {error}");
            }
        }
    }

    let line = if u.arbitrary()? {
        String::from_utf8_lossy(u.bytes(u.len())?).into_owned()
    } else {
        let mut line = String::new();
        let words = [
            "{\"Begin\":",
            "{\"redis\":\"",
            SECRET,
            "\"",
            "}",
            ",",
            "\"Stop\"",
            "{\"Answer\":",
            "{\"Leave\":",
            "7",
            "\"Done\"",
            "null",
        ];
        for _ in 0..u.int_in_range(0..=8)? {
            line.push_str(u.choose(&words)?);
        }
        line
    };
    if let Err(error) = demo::reads(&line) {
        let said = format!("{error:#}");
        assert!(said.len() < 200 && !said.contains("s3cret"), "{said}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::Rng as _;
    use proptest::test_runner::{RngAlgorithm, TestRng};

    #[test]
    fn a_line_is_understood_as_meant_or_refused_and_shows_no_password() {
        let runs = std::env::var("RELATCH_FUZZ").map_or(1000_u64, |runs| runs.parse().expect("a number"));
        for run in 0..runs {
            let mut seed = [0; 32];
            seed[..8].copy_from_slice(&run.to_le_bytes());
            let mut data = vec![0; 256];
            TestRng::from_seed(RngAlgorithm::ChaCha, &seed).fill_bytes(&mut data);
            super::command_lines(&data);
        }
    }
}
