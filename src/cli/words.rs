//! How the command says things: times, names that others chose, output that may be cut off.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use relatch::{ClientInfo, Holder};

/// A time as a person reads it, in at most eight characters: `350ms`, `4.2s`, `12m 05s`, `3h 04m`, `2d 07h`.
pub(crate) fn brief(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{}ms", time.as_millis()),
        1..10 => format!("{}.{}s", seconds, time.subsec_millis() / 100),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// What others wrote, without anything that a terminal would obey: control characters, and those that turn the direction of a text.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_control() => out.extend(c.escape_default()),
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
                out.extend(c.escape_unicode());
            }
            c => out.push(c),
        }
    }
    out
}

/// At most so many characters, the last of which says that there was more.
pub(crate) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(most.saturating_sub(1)).collect();
    out.push('…');
    out
}

/// How many columns there are; without a terminal, as many as anybody wants.
pub(crate) fn width() -> usize {
    let size = io::stdout()
        .is_terminal()
        .then(ratatui::crossterm::terminal::size);
    match size {
        Some(Ok((columns, _))) if columns > 0 => usize::from(columns),
        _ => usize::MAX,
    }
}

/// A text that begins in this column and goes on there in further lines, broken between words. One that is too long for a line is left whole.
pub(crate) fn hanging(text: &str, column: usize, width: usize) -> String {
    let (mut out, mut at) = (String::new(), column);
    for word in text.split(' ') {
        let long = word.chars().count();
        if at > column && at + 1 + long > width {
            let _ = write!(out, "\n{:column$}", "");
            at = column;
        } else if !out.is_empty() {
            out.push(' ');
            at += 1;
        }
        out.push_str(word);
        at += long;
    }
    out
}

/// A process, in a few words.
pub(crate) fn process(client: Option<&ClientInfo>, connected: Option<bool>) -> String {
    match (client, connected) {
        (Some(client), Some(false)) => format!("{} (not connected)", printable(&client.to_string())),
        (Some(client), _) => printable(&client.to_string()),
        (None, _) => nobody(connected).into(),
    }
}

/// A process of which nothing is known but, perhaps, whether it is connected.
pub(crate) fn nobody(connected: Option<bool>) -> &'static str {
    match connected {
        Some(true) => "a process that has not said who it is",
        Some(false) => "a process that is gone",
        None => "an unknown process",
    }
}

/// A holder, in a line.
pub(crate) fn holder(holder: &Holder) -> String {
    let mut line = format!("{} for {}", holder.mode, brief(holder.held_for));
    if let Some(label) = &holder.label {
        let _ = write!(line, ", {:?}", printable(label));
    }
    let _ = write!(line, " by {}", process(holder.client.as_ref(), holder.connected));
    if holder.revoked {
        line.push_str(", revoked");
    }
    line
}

/// Results go to stdout. Whoever reads them may have had enough: that is told by an error of the kind `BrokenPipe`, which ends a command quietly.
pub(crate) fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.is_empty() && !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Everything else goes to stderr, where nobody may be.
pub(crate) fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "relatch: {text}");
}

/// The same from a thread of its own, in order. For whoever has something to see to: where stderr is a pipe that nobody reads for now (a pager), or a
/// terminal that was told to wait (Ctrl-S), whoever writes to it stands still.
#[derive(Debug)]
pub(crate) struct Aside {
    to: mpsc::Sender<String>,
    unwritten: Arc<AtomicUsize>,
}

impl Aside {
    /// The thread ends with this, or with the process.
    pub(crate) fn start() -> io::Result<Self> {
        let (to, told) = mpsc::channel::<String>();
        let unwritten = Arc::new(AtomicUsize::new(0));
        let left = unwritten.clone();
        std::thread::Builder::new().name("tells".into()).spawn(move || {
            for text in told {
                tell(&text);
                left.fetch_sub(1, Ordering::SeqCst);
            }
        })?;
        Ok(Self { to, unwritten })
    }

    pub(crate) fn tell(&self, text: impl Into<String>) {
        self.unwritten.fetch_add(1, Ordering::SeqCst);
        // The thread is there for as long as this is.
        let _ = self.to.send(text.into());
    }

    /// Nothing is left to be written.
    pub(crate) fn is_written(&self) -> bool {
        self.unwritten.load(Ordering::SeqCst) == 0
    }
}

/// Whether stdout is a terminal that shows colours, and whoever sits there wants them.
pub(crate) fn colours() -> bool {
    let unset = |name: &str| std::env::var_os(name).is_none_or(|value| value.is_empty());
    io::stdout().is_terminal()
        && unset("NO_COLOR")
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A table without lines, as wide as the terminal at most.
pub(crate) fn table(titles: &[&str]) -> comfy_table::Table {
    use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(titles.iter().map(|title| {
            let cell = Cell::new(title);
            if colours() {
                cell.add_attribute(Attribute::Bold)
            } else {
                cell
            }
        }));
    if colours() {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table
}

/// As [`comfy_table::Table`] shows itself, without the blanks at the ends of lines and the one before them.
pub(crate) fn lines(table: &comfy_table::Table) -> String {
    let lines: Vec<String> = table
        .lines()
        .map(|line| {
            let line = line.trim_end();
            line.strip_prefix(' ').unwrap_or(line).to_owned()
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let of = |ms| brief(Duration::from_millis(ms));
        assert_eq!(
            [
                of(0),
                of(350),
                of(4299),
                of(59_999),
                of(725_000),
                of(11_040_000),
                of(198_000_000)
            ],
            ["0ms", "350ms", "4.2s", "59s", "12m 05s", "3h 04m", "2d 07h"]
        );
        assert!(brief(Duration::MAX).len() < 30);
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        assert_eq!(
            printable("a\u{1b}[2J\nb\u{202e}c\u{7f}"),
            "a\\u{1b}[2J\\nb\\u{202e}c\\u{7f}"
        );
        assert_eq!(printable("größe {a} 50%"), "größe {a} 50%");
    }

    #[test]
    fn a_text_hangs_from_its_column() {
        assert_eq!(
            hanging("aa bbb c dddddddd e", 2, 8),
            "aa bbb\n  c\n  dddddddd\n  e"
        );
        assert_eq!(hanging("one two", 10, usize::MAX), "one two");
    }

    #[test]
    fn what_is_too_long_says_so() {
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("äöü", 3), "äöü");
    }
}
