//! A timeline of who held and who waited, as one page that needs no network: for `trace`, the demo and the simulation.
//!
//! What happened is told as it is seen ([`Picture::begin`], [`Picture::end`]) or at once ([`Picture::add`]). The page has the data in it, and draws it on a canvas
//! by a script of its own (`page.html`): only what is in view is drawn, so a hundred thousand spans are as quick as a hundred.
//! Nothing that others wrote is taken for markup: it reaches the page as JSON, without a `<`, and from there only as text.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use relatch::Mode;
use serde::Serialize;

const PAGE: &str = include_str!("picture/page.html");

/// What a span shows. Their words are those of the page's colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Wait,
    Held(Mode),
    /// The hold is lost, and still in use.
    Lost,
    /// Something was done to the world.
    Fault,
    /// The process was stopped, or was killed.
    Paused,
    Gone,
}

const KINDS: [&str; 8] = [
    "wait",
    "read",
    "upgradable",
    "write",
    "lost",
    "fault",
    "paused",
    "gone",
];

impl Kind {
    fn number(self) -> i64 {
        match self {
            Kind::Wait => 0,
            Kind::Held(Mode::Read) => 1,
            Kind::Held(Mode::Upgradable) => 2,
            Kind::Held(Mode::Write) => 3,
            Kind::Lost => 4,
            Kind::Fault => 5,
            Kind::Paused => 6,
            Kind::Gone => 7,
        }
    }
}

/// Whose span it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Whose {
    /// What it is shown under: a name, mostly.
    pub(crate) group: String,
    /// A lane of its own there; else one is found that is free.
    pub(crate) lane: Option<String>,
    /// Spans of one chain are in one lane: those of a request.
    pub(crate) chain: String,
    pub(crate) owner: String,
    pub(crate) who: String,
    pub(crate) label: String,
}

/// What has been seen so far. Times are microseconds from its beginning.
pub(crate) struct Picture {
    title: String,
    /// When it began, in milliseconds since 1970, if that means anything.
    begun_ms: Option<u64>,
    strings: Vec<String>,
    places: HashMap<String, i64>,
    chains: HashMap<String, i64>,
    spans: Vec<i64>,
    open: HashMap<String, (Whose, Kind, u64)>,
}

#[derive(Serialize)]
struct Data<'a> {
    begun: Option<u64>,
    until: u64,
    kinds: [&'static str; 8],
    strings: &'a [String],
    spans: &'a [i64],
}

/// A run of the simulation: a lane for each task, by client.
pub(crate) fn simulated(run: &relatch::simulate::Run) -> Picture {
    let mut picture = Picture::new(format!("relatch simulate, seed {}", run.seed), None);
    for (at, interval) in run.intervals.iter().enumerate() {
        let kind = match interval.kind {
            "wait" => Kind::Wait,
            "read" => Kind::Held(Mode::Read),
            "upgradable" => Kind::Held(Mode::Upgradable),
            "write" => Kind::Held(Mode::Write),
            "lost" => Kind::Lost,
            "paused" => Kind::Paused,
            "gone" => Kind::Gone,
            _ => Kind::Fault,
        };
        // `task 1.2` is one of `client 1`.
        let client = interval
            .lane
            .strip_prefix("task ")
            .and_then(|task| task.split('.').next());
        let (group, lane) = match (kind, client) {
            (Kind::Fault, _) => ("faults".to_owned(), interval.name.clone()),
            (_, Some(client)) => (format!("client {client}"), interval.lane.clone()),
            (_, None) => (interval.lane.clone(), "itself".to_owned()),
        };
        let whose = Whose {
            group,
            lane: Some(lane),
            chain: at.to_string(),
            label: interval.name.clone(),
            ..Whose::default()
        };
        picture.add(&whose, kind, interval.from_ms * 1000, interval.until_ms * 1000);
    }
    picture
}

impl Picture {
    pub(crate) fn new(title: impl Into<String>, begun_ms: Option<u64>) -> Self {
        let mut picture = Self {
            title: title.into(),
            begun_ms,
            strings: Vec::new(),
            places: HashMap::new(),
            chains: HashMap::new(),
            spans: Vec::new(),
            open: HashMap::new(),
        };
        picture.place("");
        picture
    }

    fn place(&mut self, text: &str) -> i64 {
        if let Some(place) = self.places.get(text) {
            return *place;
        }
        let place = i64::try_from(self.strings.len()).unwrap_or(i64::MAX);
        self.strings.push(text.to_owned());
        self.places.insert(text.to_owned(), place);
        place
    }

    pub(crate) fn add(&mut self, whose: &Whose, kind: Kind, from_us: u64, to_us: u64) {
        let next = i64::try_from(self.chains.len()).unwrap_or(i64::MAX);
        let chain = *self.chains.entry(whose.chain.clone()).or_insert(next);
        let lane = whose.lane.as_ref().map_or(-1, |lane| self.place(lane));
        let number = |us: u64| i64::try_from(us).unwrap_or(i64::MAX);
        let row = [
            self.place(&whose.group),
            lane,
            chain,
            self.place(&whose.owner),
            self.place(&whose.who),
            self.place(&whose.label),
            kind.number(),
            number(from_us),
            number(to_us.max(from_us)),
        ];
        self.spans.extend(row);
    }

    /// Something goes on from now on, until it is something else or ends.
    pub(crate) fn begin(&mut self, key: &str, whose: Whose, kind: Kind, at_us: u64) {
        if self.goes_on(key) == Some(kind) {
            return;
        }
        self.end(key, at_us);
        self.open.insert(key.to_owned(), (whose, kind, at_us));
    }

    /// What goes on under this key.
    pub(crate) fn goes_on(&self, key: &str) -> Option<Kind> {
        self.open.get(key).map(|(_, kind, _)| *kind)
    }

    pub(crate) fn end(&mut self, key: &str, at_us: u64) {
        if let Some((whose, kind, from_us)) = self.open.remove(key) {
            self.add(&whose, kind, from_us, at_us);
        }
    }

    /// What goes on, of those that are not to be kept.
    pub(crate) fn end_where(&mut self, at_us: u64, is_over: impl Fn(&str, &Whose, Kind) -> bool) {
        let mut over: Vec<String> = self
            .open
            .iter()
            .filter(|(key, (whose, kind, _))| is_over(key, whose, *kind))
            .map(|(key, _)| key.clone())
            .collect();
        // In an order that does not hang on a hasher.
        over.sort_unstable();
        for key in over {
            self.end(&key, at_us);
        }
    }

    /// How many spans go on, and how many are over.
    pub(crate) fn count(&self) -> (usize, usize) {
        (self.open.len(), self.spans.len() / 9)
    }

    /// The page. What goes on ends here.
    pub(crate) fn page(mut self, until_us: u64) -> anyhow::Result<String> {
        self.end_where(until_us, |_, _, _| true);
        let data = serde_json::to_string(&Data {
            begun: self.begun_ms,
            until: until_us,
            kinds: KINDS,
            strings: &self.strings,
            spans: &self.spans,
        })?;
        // In a script a `<` could end it.
        let data = data.replace('<', "\\u003c");
        let title = self
            .title
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        let (head, rest) = PAGE
            .split_once("DATA")
            .context("the page has no place for its data")?;
        Ok(format!("{}{data}{rest}", head.replace("TITLE", &title)))
    }

    /// What stood there before is replaced at once, when all of it is written.
    pub(crate) fn write(self, until_us: u64, to: &Place) -> anyhow::Result<()> {
        let page = self.page(until_us)?;
        to.write(page.as_bytes())
            .with_context(|| format!("{} can't be written", to.shown.display()))
    }
}

/// Where a page is to be written.
pub(crate) struct Place {
    /// As it was typed.
    shown: PathBuf,
    /// The file, where links have led to.
    file: PathBuf,
    /// The page is written there first, and renamed; `None` for what can't be replaced: a pipe, a terminal.
    beside: Option<PathBuf>,
}

impl Place {
    /// Before anybody waits for it: can it be written at all? What stands there is left as it is.
    pub(crate) fn find(shown: &Path) -> anyhow::Result<Self> {
        Self::of(shown)
            .and_then(|mut place| place.try_it().map(|()| place))
            .with_context(|| format!("{} can't be written", shown.display()))
    }

    fn try_it(&mut self) -> io::Result<()> {
        // A directory is replaced by nothing, whoever may write beside it.
        if self.file.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let Some(beside) = &self.beside else { return Ok(()) };
        // What may not be written to is not to be replaced, either.
        let there = self.file.exists();
        if there {
            drop(OpenOptions::new().write(true).open(&self.file)?);
        }
        match File::create(beside) {
            Ok(_) => fs::remove_file(beside),
            // It may be written to, but nothing beside it.
            Err(_) if there => {
                self.beside = None;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn of(shown: &Path) -> io::Result<Self> {
        let file = fs::canonicalize(shown).unwrap_or_else(|_| shown.to_owned());
        let whole = fs::metadata(&file).map_or(true, |found| found.is_file());
        let beside = if whole {
            let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            let mut beside = OsString::from(".");
            beside.push(name);
            beside.push(format!(".{}.tmp", std::process::id()));
            Some(file.with_file_name(beside))
        } else {
            None
        };
        Ok(Self {
            shown: shown.to_owned(),
            file,
            beside,
        })
    }

    fn write(&self, page: &[u8]) -> io::Result<()> {
        let Some(beside) = &self.beside else {
            return fs::write(&self.file, page);
        };
        let written = fs::write(beside, page).and_then(|()| {
            // Whoever could read the old one can read the new one.
            if let Ok(old) = fs::metadata(&self.file) {
                fs::set_permissions(beside, old.permissions())?;
            }
            // A file that is mounted can be written, not replaced.
            fs::rename(beside, &self.file).or_else(|_| fs::copy(beside, &self.file).map(drop))
        });
        // Where it was renamed there is nothing.
        let _ = fs::remove_file(beside);
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_others_wrote_ends_the_script_or_is_markup() {
        let mut picture = Picture::new("<b>&", None);
        let whose = Whose {
            group: "</script><script>alert(1)</script>DATA TITLE".into(),
            ..Whose::default()
        };
        picture.begin("it", whose, Kind::Wait, 0);
        let page = picture.page(1000).unwrap_or_default();
        assert!(page.contains("<title>&lt;b&gt;&amp;</title>"));
        assert_eq!(page.matches("</script>").count(), 2);
        assert!(page.contains("\\u003c/script>\\u003cscript>alert(1)\\u003c/script>DATA TITLE"));
    }

    #[cfg(unix)]
    #[test]
    fn a_page_that_stands_there_is_replaced_by_a_whole_one_or_not_at_all() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let folder = tempfile::tempdir().expect("the system has a directory for temporary files");
        let (page, link) = (folder.path().join("page.html"), folder.path().join("link.html"));
        fs::write(&page, "the old page").expect("it can be written");
        fs::set_permissions(&page, fs::Permissions::from_mode(0o640)).expect("it is ours");
        symlink(&page, &link).expect("links can be made");
        let place = Place::find(&link).expect("it can be written");
        let read = || fs::read_to_string(&page).unwrap_or_default();
        let files = || fs::read_dir(folder.path()).map_or(0, Iterator::count);
        assert_eq!((read().as_str(), files()), ("the old page", 2));
        // Once it is begun, the old one is there until the new one is.
        let reader = File::open(&page).expect("it is there");
        Picture::new("it", None)
            .write(1000, &place)
            .expect("it can be written");
        assert!(read().contains("<title>it</title>"));
        assert_eq!(io::read_to_string(reader).expect("it is text"), "the old page");
        let mode = fs::metadata(&page).map(|found| found.permissions().mode() & 0o777);
        assert_eq!(mode.ok(), Some(0o640));
        assert!(link.is_symlink() && files() == 2, "nothing is left beside it");

        // What is not a file is written to, not replaced.
        let null = Place::find(Path::new("/dev/null")).expect("it can be written");
        assert!(null.beside.is_none());
        Picture::new("it", None)
            .write(0, &null)
            .expect("it can be written");
        for wrong in ["/no/such/folder/page.html", "/", ""] {
            assert!(Place::find(Path::new(wrong)).is_err(), "{wrong}");
        }
        assert!(Place::find(folder.path()).is_err());
    }

    #[test]
    fn what_goes_on_is_told_once_and_ends_with_the_picture() {
        let mut picture = Picture::new("it", None);
        for at in [10, 20] {
            picture.begin("a", Whose::default(), Kind::Wait, at);
        }
        picture.begin("a", Whose::default(), Kind::Held(Mode::Write), 30);
        assert_eq!(picture.spans, [0, -1, 0, 0, 0, 0, 0, 10, 30]);
        let page = picture.page(50).unwrap_or_default();
        assert!(
            page.contains("[0,-1,0,0,0,0,0,10,30,0,-1,0,0,0,0,3,30,50]"),
            "{page}"
        );
    }
}
