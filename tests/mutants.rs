//! Breaks the lock on purpose, as `tests/mutants.toml` says, and sees whether the tests notice.
//!
//! ```text
//! cargo test --test mutants                      the list is sound: every text is there once, every named check exists
//! cargo test --test mutants -- --list            what there is
//! cargo test --test mutants -- --run             makes every mutant and runs its check
//! cargo test --test mutants -- --run NAME…       these
//! ```
//!
//! The first is part of `cargo test`, so that the list does not rot. A run works in a copy of the tree below the target
//! directory, with a build of its own, so that each mutant costs one incremental build; the working tree is never touched. Every named check must
//! pass on the copy as it is; then each mutant must make its own fail. What does not compile is not caught. What hangs is
//! caught after a time that the list tells. The status is 1 if a mutant survives, or if the list is unsound.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    /// What goes wrong, as a fault.
    breaks: String,
    file: String,
    find: String,
    put: String,
    /// A test target and a test in it.
    check: String,
    /// How long the check may hang, in seconds.
    #[serde(default = "two_minutes")]
    timeout: u64,
}

fn two_minutes() -> u64 {
    120
}

impl Mutant {
    /// The test target and the test's whole name.
    fn check(&self) -> (&str, &str) {
        self.check.split_once(' ').unwrap_or(("", &self.check))
    }

    fn broken(&self, source: &str) -> Result<String, String> {
        match source.matches(&self.find).count() {
            1 if self.find != self.put => Ok(source.replacen(&self.find, &self.put, 1)),
            1 => Err(format!("{}: it changes nothing", self.name)),
            n => Err(format!("{}: its text is {n} times in {}", self.name, self.file)),
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let list: List = match toml::from_str(include_str!("mutants.toml")) {
        Ok(list) => list,
        Err(error) => {
            eprintln!("tests/mutants.toml: {error}");
            return ExitCode::FAILURE;
        }
    };
    let faults = faults(&list);
    for fault in &faults {
        eprintln!("{fault}");
    }
    // Whatever else stands there is meant for the other tests.
    let done = match arguments.iter().position(|word| word == "--run") {
        Some(at) => run(&list.mutant, &arguments[at + 1..]),
        None => {
            for mutant in list
                .mutant
                .iter()
                .filter(|_| arguments.iter().any(|word| word == "--list"))
            {
                println!("{:40} {}", mutant.name, mutant.breaks);
            }
            println!(
                "{} mutants; `cargo test --test mutants -- --run` makes them",
                list.mutant.len()
            );
            Ok(true)
        }
    };
    match done {
        Ok(true) if faults.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What makes the list unsound.
fn faults(list: &List) -> Vec<String> {
    let mut faults = Vec::new();
    let mut sources = String::new();
    for folder in ["src", "tests"] {
        for file in files(&Path::new(ROOT).join(folder)) {
            if file.extension().is_some_and(|extension| extension == "rs") {
                sources.push_str(&fs::read_to_string(file).unwrap_or_default());
            }
        }
    }
    let mut names = BTreeSet::new();
    for mutant in &list.mutant {
        let name = &mutant.name;
        if !names.insert(name) {
            faults.push(format!("{name}: it is twice in the list"));
        }
        match fs::read_to_string(Path::new(ROOT).join(&mutant.file)) {
            Ok(source) => faults.extend(mutant.broken(&source).err()),
            Err(error) => faults.push(format!("{name}: {}: {error}", mutant.file)),
        }
        let (target, test) = mutant.check();
        let target_is_there = target == "lib"
            || [format!("tests/{target}.rs"), format!("tests/{target}/main.rs")]
                .iter()
                .any(|file| Path::new(ROOT).join(file).is_file());
        // As a function, or as a name in a list that a macro makes functions of.
        let claim = test.rsplit("::").next().unwrap_or(test);
        let test_is_there = [format!("fn {claim}("), format!("    {claim}: ")]
            .iter()
            .any(|text| sources.contains(text));
        if !target_is_there || !test_is_there {
            faults.push(format!("{name}: there is no check {:?}", mutant.check));
        }
    }
    if list.mutant.len() < 25 {
        faults.push(format!("only {} mutants", list.mutant.len()));
    }
    faults
}

// -- running -----------------------------------------------------------------------------------------------------

/// A copy of the tree with a build of its own.
struct Copy {
    tree: PathBuf,
    build: PathBuf,
    /// What the last build made of each test target.
    programs: BTreeMap<String, PathBuf>,
}

fn run(mutants: &[Mutant], names: &[String]) -> Result<bool, String> {
    if let Some(name) = names.iter().find(|name| mutants.iter().all(|m| m.name != **name)) {
        return Err(format!("there is no mutant {name}"));
    }
    let chosen: Vec<&Mutant> = mutants
        .iter()
        .filter(|m| names.is_empty() || names.contains(&m.name))
        .collect();
    let begun = Instant::now();
    let mut copy = Copy::new()?;
    let targets: BTreeSet<&str> = chosen.iter().map(|m| m.check().0).collect();
    let checks: BTreeSet<&str> = chosen.iter().map(|m| &*m.check).collect();

    println!("the tree as it is: {} checks", checks.len());
    for target in targets {
        copy.build(target)
            .map_err(|said| format!("the tree does not compile:\n{said}"))?;
    }
    let mut all_well = true;
    let mut sound = BTreeSet::new();
    for mutant in &chosen {
        if checks.contains(&*mutant.check) && !sound.contains(&*mutant.check) {
            let (target, test) = mutant.check();
            match copy.check(target, test, Duration::from_secs(two_minutes()))? {
                Checked::Passed => drop(sound.insert(&*mutant.check)),
                other => {
                    all_well = false;
                    println!("  {:?} {}", mutant.check, other.of_the_tree());
                }
            }
        }
    }

    println!("{} mutants", chosen.len());
    let mut caught = 0;
    for mutant in &chosen {
        let since = Instant::now();
        let verdict = if sound.contains(&*mutant.check) {
            copy.try_out(mutant)?
        } else {
            "its check does not pass without it".to_owned()
        };
        let is_caught = verdict.starts_with("caught");
        caught += usize::from(is_caught);
        println!(
            "  {:40} {:5.1} s  {verdict}  ({})",
            mutant.name,
            since.elapsed().as_secs_f64(),
            mutant.check
        );
        if !is_caught {
            println!("      {}", mutant.breaks);
        }
    }
    println!(
        "{caught} of {} caught, in {} s",
        chosen.len(),
        begun.elapsed().as_secs()
    );
    Ok(all_well && caught == chosen.len())
}

enum Checked {
    Passed,
    Failed,
    Hung,
    /// Not one test of that name.
    Missing,
}

impl Checked {
    fn of_the_tree(&self) -> &'static str {
        match self {
            Checked::Passed => "passes",
            Checked::Failed => "fails on the tree as it is",
            Checked::Hung => "hangs on the tree as it is",
            Checked::Missing => "is no test",
        }
    }
}

impl Copy {
    fn new() -> Result<Self, String> {
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
        let copy = Self {
            tree: home.join("tree"),
            build: home.join("build"),
            programs: BTreeMap::new(),
        };
        let mut there = BTreeSet::new();
        for part in [
            "Cargo.toml",
            "Cargo.lock",
            "README.md",
            "src",
            "scripts",
            "tests",
            "docs",
            "benches",
            "examples",
        ] {
            for file in files(&Path::new(ROOT).join(part)) {
                let to = copy
                    .tree
                    .join(file.strip_prefix(ROOT).map_err(|error| error.to_string())?);
                let content = fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
                write(&to, &content)?;
                there.insert(to);
            }
        }
        for old in files(&copy.tree).into_iter().filter(|old| !there.contains(old)) {
            fs::remove_file(&old).map_err(|error| format!("{}: {error}", old.display()))?;
        }
        Ok(copy)
    }

    /// Makes a mutant, sees what its check says, and undoes it.
    fn try_out(&mut self, mutant: &Mutant) -> Result<String, String> {
        let file = self.tree.join(&mutant.file);
        let whole = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let broken = match mutant.broken(&whole) {
            Ok(broken) => broken,
            Err(fault) => return Ok(fault),
        };
        write(&file, broken.as_bytes())?;
        let (target, test) = mutant.check();
        let verdict = match self.build(target) {
            Err(said) => Ok(format!("does not compile:\n{said}")),
            Ok(()) => self
                .check(target, test, Duration::from_secs(mutant.timeout))
                .map(|checked| match checked {
                    Checked::Failed => "caught".into(),
                    Checked::Hung => format!("caught: hangs for {} s", mutant.timeout),
                    Checked::Passed => "SURVIVED".into(),
                    Checked::Missing => "SURVIVED: its check is gone".into(),
                }),
        };
        write(&file, whole.as_bytes())?;
        verdict
    }

    /// Builds a test target; what the compiler said if it can't be.
    fn build(&mut self, target: &str) -> Result<(), String> {
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(["test", "--no-run", "--message-format=json-render-diagnostics"])
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.build);
        match target {
            "lib" => cargo.arg("--lib"),
            "command" => cargo.args(["--features", "cli", "--test", "command"]),
            other => cargo.args(["--test", other]),
        };
        let output = cargo.output().map_err(|error| format!("cargo: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let program = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|message| message["profile"]["test"] == true)
            .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
            .ok_or("cargo built no test program")?;
        self.programs.insert(target.to_owned(), program);
        Ok(())
    }

    /// Runs one test.
    fn check(&self, target: &str, test: &str, patience: Duration) -> Result<Checked, String> {
        let said = self.build.join("said");
        let file = File::create(&said).map_err(|error| format!("{}: {error}", said.display()))?;
        let mut program = Command::new(self.programs.get(target).ok_or("it was not built")?);
        program
            .args(["--exact", test])
            .current_dir(&self.tree)
            .env("CARGO_MANIFEST_DIR", &self.tree)
            // As much work on every machine, however busy: by itself that check goes by time.
            .env("RELATCH_SEQUENCES", "600")
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(Stdio::null());
        // A group of its own, as a test that hangs may have started servers.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut program, 0);
        let mut child = program.spawn().map_err(|error| format!("{target}: {error}"))?;
        let until = Instant::now() + patience;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
                break status;
            }
            if Instant::now() >= until {
                end(&mut child);
                return Ok(Checked::Hung);
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let said = fs::read_to_string(&said).unwrap_or_default();
        Ok(if !said.contains("running 1 test") {
            Checked::Missing
        } else if status.success() {
            Checked::Passed
        } else {
            Checked::Failed
        })
    }
}

fn end(child: &mut Child) {
    #[cfg(unix)]
    if let Some(group) = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Every file at or below a path.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let mut below: Vec<PathBuf> = fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|entry| files(&entry.path()))
        .collect();
    below.sort();
    below
}

/// What is there already is left as it is, so that cargo does not build it again.
fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, content))
        .map_err(|error| format!("{}: {error}", path.display()))
}
