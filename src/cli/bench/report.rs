//! What was measured, judged against the bars: as a table, or as JSON.
//!
//! Judging is arithmetic on rows and knows nothing of how they came about.

use std::fmt;

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, TableComponent, presets};
use serde::{Serialize, Serializer};

use super::ground::Ground;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Case {
    /// An uncontended acquisition and its release
    Pair,
    /// Pairs per second by 1 to 1,024 tasks on names of their own
    Throughput,
    /// From a release in one process to the next holder in another, with 1 to 1,000 in line
    Handoff,
    /// A read among 1 to 10,000 readers
    Readers,
    /// Who waits for how long: 16 clients; a writer against readers that overlap
    Fair,
    /// 10,000 holds kept by one client
    Renew,
    /// What a lock takes in the server's memory
    Memory,
    /// Entering what its owner already holds
    Reentry,
    /// What stripes gain where one lock is too coarse
    Striped,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("?", |value| value.get_name()))
    }
}

pub(crate) enum Measured {
    Rows(Vec<Row>),
    /// And why.
    Skipped(&'static str),
}

/// One number, and what it is to be compared with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) floor: Option<Floor>,
    pub(crate) bar: Option<Bar>,
    /// Of a series over something that grows.
    pub(crate) point: Option<Point>,
}

/// What the same machine did at the same time with less.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Floor {
    /// In the unit of the row.
    pub(crate) value: f64,
    pub(crate) what: &'static str,
}

/// What must hold of a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bar {
    RatioAtMost(f64),
    RatioAtLeast(f64),
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Point {
    pub(crate) series: &'static str,
    pub(crate) of: &'static str,
    pub(crate) at: u32,
}

/// Whether a row is as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// Its floor could not be measured.
    Unknown,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            value,
            unit,
            ..Self::default()
        }
    }

    pub(crate) fn floor(mut self, what: &'static str, value: f64) -> Self {
        self.floor = Some(Floor { value, what });
        self
    }

    pub(crate) fn bar(mut self, bar: Bar) -> Self {
        self.bar = Some(bar);
        self
    }

    pub(crate) fn at(mut self, series: &'static str, of: &'static str, at: usize) -> Self {
        let at = u32::try_from(at).unwrap_or(u32::MAX);
        self.point = Some(Point { series, of, at });
        self
    }

    pub(crate) fn ratio(&self) -> Option<f64> {
        self.floor.as_ref().map(|floor| self.value / floor.value)
    }

    /// Nothing that is not a number meets a bar.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        let met = |met| if met { Verdict::Met } else { Verdict::Missed };
        Some(match (self.bar?, self.ratio()) {
            (Bar::AtMost(bar), _) => met(self.value <= bar),
            (Bar::AtLeast(bar), _) => met(self.value >= bar),
            (Bar::RatioAtMost(bar), Some(ratio)) => met(ratio <= bar),
            (Bar::RatioAtLeast(bar), Some(ratio)) => met(ratio >= bar),
            (Bar::RatioAtMost(_) | Bar::RatioAtLeast(_), None) => Verdict::Unknown,
        })
    }

    /// How much of its bar it takes: more than 1 is too much.
    pub(crate) fn share_of_bar(&self) -> Option<f64> {
        match self.bar? {
            Bar::AtMost(bar) => Some(self.value / bar),
            Bar::AtLeast(bar) => Some(bar / self.value),
            Bar::RatioAtMost(bar) => self.ratio().map(|ratio| ratio / bar),
            Bar::RatioAtLeast(bar) => self.ratio().map(|ratio| bar / ratio),
        }
        // Nothing of nothing is nothing.
        .map(|share| if share.is_nan() { 0.0 } else { share })
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Json<'a> {
            what: &'a str,
            value: f64,
            unit: &'a str,
            floor: &'a Option<Floor>,
            ratio: Option<f64>,
            bar: Option<Bar>,
            /// Absent where there is no bar; null where it can't be said.
            #[serde(skip_serializing_if = "Option::is_none")]
            met: Option<Option<bool>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            point: Option<Point>,
        }
        let met = |verdict| match verdict {
            Verdict::Met => Some(true),
            Verdict::Missed => Some(false),
            Verdict::Unknown => None,
        };
        Json {
            what: &self.what,
            value: self.value,
            unit: self.unit,
            floor: &self.floor,
            ratio: self.ratio(),
            bar: self.bar,
            met: self.verdict().map(met),
            point: self.point,
        }
        .serialize(serializer)
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Section {
    pub(crate) case: Case,
    pub(crate) skipped: Option<&'static str>,
    pub(crate) rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    relatch: &'static str,
    pub(crate) backend: &'static str,
    server: Option<String>,
    seconds: u64,
    quick: bool,
    optimised: bool,
    notes: Vec<String>,
    #[serde(rename = "cases")]
    pub(crate) sections: Vec<Section>,
}

impl Report {
    pub(crate) fn new(ground: &Ground, seconds: u64) -> Self {
        let optimised = !cfg!(debug_assertions);
        let mut notes = Vec::new();
        if !optimised {
            notes.push("built without optimisation: build with --release before you believe a ratio".into());
        }
        if ground.quick {
            notes.push("--quick: shows that it works; too short to judge by".into());
        }
        notes.extend(ground.redis.as_ref().and_then(|redis| redis.others.clone()));
        Self {
            relatch: env!("CARGO_PKG_VERSION"),
            backend: if ground.redis.is_some() {
                "redis"
            } else {
                "embedded"
            },
            server: ground.redis.as_ref().map(|redis| redis.version.clone()),
            seconds,
            quick: ground.quick,
            optimised,
            notes,
            sections: Vec::new(),
        }
    }

    pub(crate) fn note(&mut self, notes: Vec<String>) {
        self.notes.extend(notes);
    }

    pub(crate) fn add(&mut self, case: Case, measured: Measured) {
        let (rows, skipped) = match measured {
            Measured::Rows(rows) => (rows, None),
            Measured::Skipped(why) => (Vec::new(), Some(why)),
        };
        self.sections.push(Section { case, skipped, rows });
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = (Case, &Row)> {
        self.sections
            .iter()
            .flat_map(|section| section.rows.iter().map(|row| (section.case, row)))
    }

    fn with(&self, verdict: Verdict) -> Vec<(Case, &Row)> {
        self.rows()
            .filter(|(_, row)| row.verdict() == Some(verdict))
            .collect()
    }

    pub(crate) fn missed(&self) -> Vec<(Case, &Row)> {
        self.with(Verdict::Missed)
    }

    /// A line for each bar that was missed or can't be judged, and one that counts.
    pub(crate) fn check_lines(&self) -> Vec<String> {
        let (missed, unknown) = (self.missed(), self.with(Verdict::Unknown));
        let mut lines = Vec::new();
        for (case, row) in &missed {
            lines.push(format!(
                "✗ missed: {case}, {}: {}, and the bar is {}",
                row.what,
                row.judged(),
                row.bar_text()
            ));
        }
        for (case, row) in &unknown {
            lines.push(format!(
                "? not judged: {case}, {}: its floor could not be measured",
                row.what
            ));
        }
        lines.push(format!(
            "{} of {} bars met, {} missed, {} not judged",
            self.with(Verdict::Met).len(),
            self.rows().filter(|(_, row)| row.bar.is_some()).count(),
            missed.len(),
            unknown.len()
        ));
        lines
    }

    pub(crate) fn json(&self) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct Json<'a> {
            #[serde(flatten)]
            report: &'a Report,
            missed: Vec<String>,
        }
        let missed = self
            .missed()
            .into_iter()
            .map(|(case, row)| format!("{case}: {}", row.what))
            .collect();
        serde_json::to_string_pretty(&Json { report: self, missed })
    }

    pub(crate) fn title(&self) -> String {
        match &self.server {
            None => format!("relatch {} on its embedded backend", self.relatch),
            Some(version) => format!("relatch {} on server {version}", self.relatch),
        }
    }
}

impl Row {
    /// What its bar is about.
    fn judged(&self) -> String {
        match (self.bar, self.ratio()) {
            (Some(Bar::RatioAtMost(_) | Bar::RatioAtLeast(_)), Some(ratio)) => format!("{} ×", number(ratio)),
            _ => with_unit(self.value, self.unit),
        }
    }

    pub(crate) fn bar_text(&self) -> String {
        match self.bar {
            None => String::new(),
            Some(Bar::RatioAtMost(bar)) => format!("≤ {} ×", number(bar)),
            Some(Bar::RatioAtLeast(bar)) => format!("≥ {} ×", number(bar)),
            Some(Bar::AtMost(bar)) => format!("≤ {}", with_unit(bar, self.unit)),
            Some(Bar::AtLeast(bar)) => format!("≥ {}", with_unit(bar, self.unit)),
        }
    }
}

pub(crate) fn with_unit(value: f64, unit: &str) -> String {
    let one = |unit| match unit {
        "bytes" => "byte",
        "commands" => "command",
        "keys" => "key",
        "names" => "name",
        "phases" => "phase",
        unit => unit,
    };
    format!(
        "{} {}",
        number(value),
        if value == 1.0 { one(unit) } else { unit }
    )
}

/// Three digits, or all before the point.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size == size.trunc() && size < 1e15 => 0,
        ..1.0 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    match text.parse::<u64>() {
        Ok(whole) => indicatif::HumanCount(whole).to_string(),
        Err(_) => text,
    }
}

fn letter(at: usize) -> char {
    u8::try_from(at).map_or('?', |at| char::from(b'a'.saturating_add(at)))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, about {} s for each case\n", self.title(), self.seconds)?;
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_style(TableComponent::HeaderLines, '─');
        table.set_style(TableComponent::MiddleHeaderIntersections, '─');
        table.set_header(["case", "what", "measured", "its floor", "ratio", "bar", ""]);
        // What the floors are, in the order of their letters.
        let mut floors: Vec<&str> = Vec::new();
        for (case, row) in self.rows() {
            let floor = row.floor.as_ref().map(|floor| {
                let known = floors.iter().position(|what| *what == floor.what);
                let at = known.unwrap_or_else(|| {
                    floors.push(floor.what);
                    floors.len() - 1
                });
                format!("{} ({})", with_unit(floor.value, row.unit), letter(at))
            });
            table.add_row([
                case.to_string(),
                row.what.clone(),
                with_unit(row.value, row.unit),
                floor.unwrap_or_else(|| "-".into()),
                row.ratio()
                    .map_or("-".into(), |ratio| format!("{} ×", number(ratio))),
                row.bar_text(),
                match row.verdict() {
                    None => "",
                    Some(Verdict::Met) => "✓",
                    Some(Verdict::Missed) => "✗",
                    Some(Verdict::Unknown) => "?",
                }
                .into(),
            ]);
        }
        for column in table.column_iter_mut().skip(2).take(4) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        if self.rows().next().is_some() {
            writeln!(f, "{table}\n")?;
        }
        for (at, what) in floors.iter().enumerate() {
            writeln!(f, "({}) {what}", letter(at))?;
        }
        writeln!(f)?;
        for section in &self.sections {
            if let Some(why) = section.skipped {
                writeln!(f, "{} was skipped: {why}", section.case)?;
            }
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        let (met, missed) = (self.with(Verdict::Met).len(), self.missed().len());
        write!(f, "bars: {met} met, {missed} missed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(value: f64, floor: Option<f64>, bar: Bar) -> Option<Verdict> {
        let row = Row::new("it", value, "µs").bar(bar);
        match floor {
            Some(floor) => row.floor("bare", floor),
            None => row,
        }
        .verdict()
    }

    #[test]
    fn a_bar_is_met_up_to_its_last_and_missed_beyond() {
        assert_eq!(
            verdict(12.0, Some(10.0), Bar::RatioAtMost(1.2)),
            Some(Verdict::Met)
        );
        assert_eq!(
            verdict(12.1, Some(10.0), Bar::RatioAtMost(1.2)),
            Some(Verdict::Missed)
        );
        assert_eq!(
            verdict(8.5, Some(10.0), Bar::RatioAtLeast(0.85)),
            Some(Verdict::Met)
        );
        assert_eq!(
            verdict(8.4, Some(10.0), Bar::RatioAtLeast(0.85)),
            Some(Verdict::Missed)
        );
        assert_eq!(verdict(8.0, None, Bar::AtMost(8.0)), Some(Verdict::Met));
        assert_eq!(verdict(8.1, None, Bar::AtMost(8.0)), Some(Verdict::Missed));
        assert_eq!(verdict(99.0, None, Bar::AtLeast(100.0)), Some(Verdict::Missed));
        assert_eq!(Row::new("it", 1.0, "µs").verdict(), None);
    }

    #[test]
    fn what_is_no_number_meets_no_bar_and_no_floor_is_no_verdict() {
        assert_eq!(verdict(f64::NAN, None, Bar::AtMost(8.0)), Some(Verdict::Missed));
        assert_eq!(
            verdict(1.0, Some(0.0), Bar::RatioAtMost(1.2)),
            Some(Verdict::Missed)
        );
        assert_eq!(verdict(1.0, None, Bar::RatioAtMost(1.2)), Some(Verdict::Unknown));
    }

    fn report(rows: Vec<Row>) -> Report {
        let mut report = Report {
            relatch: "0",
            backend: "embedded",
            server: None,
            seconds: 1,
            quick: false,
            optimised: true,
            notes: Vec::new(),
            sections: Vec::new(),
        };
        report.add(Case::Pair, Measured::Rows(rows));
        report
    }

    #[test]
    fn each_missed_bar_has_a_line_with_its_numbers() {
        let report = report(vec![
            Row::new("write pair", 30.0, "µs")
                .floor("bare", 20.0)
                .bar(Bar::RatioAtMost(1.2)),
            Row::new("server time", 6.5, "µs").bar(Bar::AtMost(8.0)),
            Row::new("unfloored", 6.5, "µs").bar(Bar::RatioAtMost(8.0)),
            Row::new("just so", 6.5, "µs"),
        ]);
        assert_eq!(
            report.check_lines(),
            [
                "✗ missed: pair, write pair: 1.50 ×, and the bar is ≤ 1.20 ×",
                "? not judged: pair, unfloored: its floor could not be measured",
                "1 of 3 bars met, 1 missed, 1 not judged",
            ]
        );
        assert_eq!(report.missed().len(), 1);
    }

    #[test]
    fn json_tells_met_missed_and_unknown_apart() {
        let report = report(vec![
            Row::new("met", 1.0, "µs")
                .bar(Bar::AtMost(8.0))
                .at("a", "tasks", 3),
            Row::new("missed", 9.0, "µs")
                .floor("bare", 3.0)
                .bar(Bar::RatioAtMost(2.0)),
            Row::new("unknown", 9.0, "µs").bar(Bar::RatioAtMost(2.0)),
            Row::new("no bar", 9.0, "µs"),
        ]);
        let json: serde_json::Value =
            serde_json::from_str(&report.json().expect("it can be written")).expect("it is JSON");
        let rows = &json["cases"][0]["rows"];
        assert_eq!(rows[0]["met"], true);
        assert_eq!(rows[0]["point"]["at"], 3);
        assert_eq!(rows[1]["met"], false);
        assert_eq!(rows[1]["ratio"], 3.0);
        assert_eq!(rows[1]["floor"]["what"], "bare");
        assert_eq!(rows[1]["bar"]["ratio_at_most"], 2.0);
        assert_eq!(rows[2].get("met"), Some(&serde_json::Value::Null));
        assert_eq!(rows[3].get("met"), None);
        assert_eq!(json["missed"], serde_json::json!(["pair: missed"]));
    }

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [
            (0.12345, "0.123"),
            (1.2, "1.20"),
            (12.34, "12.3"),
            (123.4, "123"),
            (12345.6, "12,346"),
            (3.0, "3"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
