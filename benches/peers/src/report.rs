//! The result as Markdown, put between two comments of a page that is otherwise written by hand.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

use crate::measure;
use crate::results::{Results, digits, grouped};
use crate::subject::Subject;

/// What a case's section says above its table, and which plots stand below.
struct Section {
    case: &'static str,
    title: &'static str,
    says: &'static str,
    plots: &'static [&'static str],
}

const SECTIONS: [Section; 9] = [
    Section {
        case: measure::PAIR,
        title: "A pair that nobody is in the way of",
        says: "Acquire and release by one task: the time of the pair, the processor time of the server's main thread for it (reading, \
            scripts, answering), the time of the scripts alone by its own count (INFO commandstats, EVAL and EVALSHA; what is called outside of \
            scripts, as rslock's SET, is not in it), and the commands it ran, those within scripts as well.",
        plots: &[],
    },
    Section {
        case: measure::HANDOFF,
        title: "Handoff",
        says: "One client holds, another waits; at a random moment the first gives back. From that call to the moment when the other is in. \
            The floor is a bare script that writes one field and publishes, to the running of the task that waits for the message.",
        plots: &["handoff"],
    },
    Section {
        case: measure::WAITERS,
        title: "By number of waiters",
        says: "So many ask through four clients while one holds; then each holds for no time, until the line is empty. Time, commands and \
            the server's processor time, per turn: entering, waiting, being told and leaving are all in it.",
        plots: &["waiters"],
    },
    Section {
        case: measure::WAITS,
        title: "Longest wait",
        says: "16 clients that want to write all the time and hold for 1 ms.",
        plots: &["waits"],
    },
    Section {
        case: measure::STARVING,
        title: "A writer among readers",
        says: "Eight readers stay for 20 ms each and come back at once, so that some are always inside. A writer asks again and again, and \
            gives up after nine tenths of the case's time. Counts of all rounds.",
        plots: &[],
    },
    Section {
        case: measure::READERS,
        title: "By number of readers",
        says: "A read pair by one more client while so many read: the processor time of the server's main thread for it.",
        plots: &["readers"],
    },
    Section {
        case: measure::THROUGHPUT,
        title: "Pairs per second",
        says: "Write pairs by one client, each task on a name of its own.",
        plots: &["throughput"],
    },
    Section {
        case: measure::DROPS,
        title: "What dropped acquisitions leave behind",
        says: "Acquisitions dropped at a random time before they were done (in Java: threads interrupted in `lockInterruptibly`), each on a \
            name of its own; a second later, each name is tried for a second. Leases are 30 s. Then: while one holds, 60 writers get in line \
            and are dropped one by one, the holder leaves, and a reader asks (a writer, where there are no readers): until it is in, and \
            5,000 if it was not in after 5 s. Counts of all rounds.",
        plots: &["drops"],
    },
    Section {
        case: measure::OVERLAPS,
        title: "Overlaps",
        says: "Every turn of the cases above in which somebody might be in the way, held against the others by when it was in and when it \
            left, on one clock and outside of the lock. And 8 tasks of one process that write through one and the same handle. Counts of \
            all rounds.",
        plots: &[],
    },
];

/// Everything between the two comments.
pub(crate) fn markdown(results: &Results, subjects: &[Subject], notes: &[String], plots: &str) -> String {
    let mut out = String::new();
    for note in notes {
        let _ = writeln!(out, "{note}\n");
    }
    out.push_str(
        "Medians of the rounds, but for counts. In brackets: how many times relatch's number. The floor excludes nobody; it is what the \
        machine needs at least.\n",
    );
    for section in SECTIONS {
        let columns = results.of(section.case);
        if columns.is_empty() {
            continue;
        }
        let _ = write!(out, "\n### {}\n\n{}\n\n", section.title, section.says);
        table(&mut out, results, subjects, &columns);
        for plot in section.plots {
            let _ = write!(out, "\n![{}]({plots}/{plot}.svg)\n", section.title);
        }
    }
    out
}

fn table(out: &mut String, results: &Results, subjects: &[Subject], columns: &[usize]) {
    let mut footnotes: Vec<String> = Vec::new();
    let ours = subjects.iter().position(|subject| subject.name == "relatch");
    out.push('|');
    for column in columns {
        let column = &results.columns[*column];
        let comma = if column.unit.is_empty() { "" } else { ", " };
        let _ = write!(out, " | {}{comma}{}", column.what, column.unit);
    }
    out.push_str(" |\n|---|");
    out.push_str(&"---:|".repeat(columns.len()));
    out.push('\n');
    for (number, subject) in subjects.iter().enumerate() {
        let _ = write!(out, "| {}", subject.name);
        for column in columns {
            out.push_str(" | ");
            let adds = results.columns[*column].adds;
            match results.number(*column, number) {
                Some(value) if adds => out.push_str(&grouped(value)),
                Some(value) => {
                    out.push_str(&digits(value));
                    let own = ours.filter(|ours| *ours != number);
                    let own = own.and_then(|ours| results.number(*column, ours));
                    if let Some(own) = own.filter(|own| *own > 0.0) {
                        let _ = write!(out, " ({} ×)", digits(value / own));
                    }
                }
                None => out.push('–'),
            }
            if let Some(why) = results.why_not(*column, number) {
                let known = footnotes.iter().position(|footnote| footnote == why);
                let at = known.unwrap_or_else(|| {
                    footnotes.push(why.to_owned());
                    footnotes.len() - 1
                });
                let _ = write!(out, " ({})", letter(at));
            }
        }
        out.push_str(" |\n");
    }
    for (at, why) in footnotes.iter().enumerate() {
        // A paragraph each: in Markdown lines run on.
        let _ = write!(out, "\n({}) {}.\n", letter(at), why.replace('\n', " "));
    }
}

fn letter(at: usize) -> char {
    char::from(b'a' + u8::try_from(at % 26).unwrap_or(0))
}

/// Puts `text` between `<!-- NAME: begin … -->` and `<!-- NAME: end -->` of the page.
pub(crate) fn splice(page: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let old = std::fs::read_to_string(page).with_context(|| format!("{} can't be read", page.display()))?;
    let new = spliced(&old, name, text).with_context(|| {
        format!(
            "{} has no comments `{name}: begin` and `{name}: end`",
            page.display()
        )
    })?;
    std::fs::write(page, new).with_context(|| format!("{} can't be written", page.display()))
}

fn spliced(page: &str, name: &str, text: &str) -> Option<String> {
    let begin = page.find(&format!("<!-- {name}: begin"))?;
    let from = begin + page.get(begin..)?.find("-->")? + "-->".len();
    let to = from + page.get(from..)?.find(&format!("<!-- {name}: end"))?;
    Some(format!(
        "{}\n\n{}\n\n{}",
        page.get(..from)?,
        text.trim(),
        page.get(to..)?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_comments_is_replaced() {
        let page = "by hand\n<!-- it: begin, by a command -->\nold\n<!-- it: end -->\nby hand\n";
        let new = spliced(page, "it", "new\n");
        let expected = "by hand\n<!-- it: begin, by a command -->\n\nnew\n\n<!-- it: end -->\nby hand\n";
        assert_eq!(new.as_deref(), Some(expected));
        assert_eq!(spliced(expected, "it", "new").as_deref(), Some(expected));
        assert_eq!(spliced(page, "other", "new"), None);
    }

    #[test]
    fn what_is_missing_has_a_footnote() {
        let mut results = Results::default();
        let column = results.column(measure::PAIR, "read pair".into(), "µs");
        results.note(column, 0, 50.0);
        results.missing(column, 1, "it has no read mode");
        results.note(column, 2, 100.0);
        let subject = |name| Subject {
            name,
            version: String::new(),
            kind: crate::subject::Kind::Floor(crate::crates::floor),
            reads: true,
        };
        let subjects = ["relatch", "one", "two"].map(subject);
        let text = markdown(&results, &subjects, &[], "benchmarks");
        assert!(
            text.contains(
                "| relatch | 50 |\n| one | – (a) |\n| two | 100 (2 ×) |\n\n(a) it has no read mode.\n"
            ),
            "{text}"
        );
    }
}
