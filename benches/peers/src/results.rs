//! What was measured: numbers of subjects, and for each that is missing, why.
//!
//! A number that is measured in several rounds is told as their median; counts are added up.

use std::collections::BTreeMap;

/// A column of a case's table.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) case: &'static str,
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    /// Counts of all rounds together.
    pub(crate) adds: bool,
    /// Of a series over something that grows, where along it.
    pub(crate) at: Option<u32>,
}

#[derive(Default)]
pub(crate) struct Results {
    pub(crate) columns: Vec<Column>,
    numbers: BTreeMap<(usize, usize), Vec<f64>>,
    why_not: BTreeMap<(usize, usize), String>,
}

impl Results {
    /// The same column is the same again in every round.
    pub(crate) fn column(&mut self, case: &'static str, what: String, unit: &'static str) -> usize {
        let known = |column: &Column| column.case == case && column.what == what;
        self.columns.iter().position(known).unwrap_or_else(|| {
            self.columns.push(Column {
                case,
                what,
                unit,
                adds: false,
                at: None,
            });
            self.columns.len() - 1
        })
    }

    pub(crate) fn adding(&mut self, case: &'static str, what: &str) -> usize {
        let column = self.column(case, what.into(), "");
        self.columns[column].adds = true;
        column
    }

    pub(crate) fn point(&mut self, case: &'static str, what: String, unit: &'static str, at: u32) -> usize {
        let column = self.column(case, what, unit);
        self.columns[column].at = Some(at);
        column
    }

    pub(crate) fn note(&mut self, column: usize, subject: usize, value: f64) {
        self.numbers.entry((column, subject)).or_default().push(value);
    }

    pub(crate) fn missing(&mut self, column: usize, subject: usize, why: &str) {
        self.why_not.insert((column, subject), why.to_owned());
    }

    pub(crate) fn missing_all(&mut self, columns: &[usize], subject: usize, why: &str) {
        for column in columns {
            self.missing(*column, subject, why);
        }
    }

    pub(crate) fn number(&self, column: usize, subject: usize) -> Option<f64> {
        let adds = self.columns.get(column).is_some_and(|column| column.adds);
        let values = self.numbers.get(&(column, subject))?;
        Some(if adds { values.iter().sum() } else { median(values) })
    }

    /// Why there is no number, or not one of every round.
    pub(crate) fn why_not(&self, column: usize, subject: usize) -> Option<&str> {
        let why = self.why_not.get(&(column, subject)).map(String::as_str);
        why.or((!self.numbers.contains_key(&(column, subject))).then_some("not measured"))
    }

    /// The columns of a case, as they came up.
    pub(crate) fn of(&self, case: &str) -> Vec<usize> {
        let of_case = |(_, column): &(usize, &Column)| column.case == case;
        self.columns
            .iter()
            .enumerate()
            .filter(of_case)
            .map(|(at, _)| at)
            .collect()
    }
}

/// The middle one, or the mean of the two in the middle; not a number if there is none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (
        sorted.get(middle),
        middle.checked_sub(1).and_then(|below| sorted.get(below)),
    ) {
        (Some(upper), Some(lower)) if sorted.len().is_multiple_of(2) => (upper + lower) / 2.0,
        (Some(upper), _) => *upper,
        (None, _) => f64::NAN,
    }
}

/// The one below which such a share of them is.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (share * sorted.len() as f64) as usize;
    sorted
        .get(at.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

/// Three digits of it.
pub(crate) fn digits(value: f64) -> String {
    let rounded = match value.abs() {
        _ if !value.is_finite() => return "–".into(),
        size if size >= 100.0 => return grouped(value.round()),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size > 0.0 => format!("{value:.3}"),
        _ => return "0".into(),
    };
    let short = rounded.trim_end_matches('0').trim_end_matches('.');
    short.to_owned()
}

/// 1,234,567.
pub(crate) fn grouped(whole: f64) -> String {
    let text = format!("{whole:.0}");
    let (sign, number) = match text.strip_prefix('-') {
        Some(number) => ("-", number),
        None => ("", text.as_str()),
    };
    let mut out = String::new();
    for (at, digit) in number.chars().enumerate() {
        if at > 0 && (number.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    format!("{sign}{out}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_with_three_digits() {
        let told: Vec<String> = [0.0, 0.1234, 1.0, 12.34, 1234.5, 1e6, f64::NAN]
            .map(digits)
            .into();
        assert_eq!(told, ["0", "0.123", "1", "12.3", "1,235", "1,000,000", "–"]);
    }

    #[test]
    fn rounds_are_told_as_their_median_and_counts_as_their_sum() {
        let mut results = Results::default();
        let time = results.column("case", "time".into(), "ms");
        let count = results.adding("case", "count");
        for value in [9.0, 1.0, 2.0] {
            results.note(time, 0, value);
            results.note(count, 0, value);
        }
        assert_eq!(results.column("case", "time".into(), "ms"), time);
        assert_eq!(results.number(time, 0), Some(2.0));
        assert_eq!(results.number(count, 0), Some(12.0));
        assert!(results.number(time, 1).is_none());
    }
}
