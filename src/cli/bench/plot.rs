//! The result as a picture: how much of its bar each judged number takes, and how the others grow.

use std::collections::BTreeMap;

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::{Case, Point, Report, Row, Verdict, number, with_unit};

const WIDTH: u32 = 1200;
const LINE: u32 = 26;
const PANEL: u32 = 300;
/// Where the bars begin, and where the one that is just met ends.
const LEFT: i32 = 460;
const FULL: i32 = 280;
/// A bar that is longer is cut.
const LONGEST: f64 = 1.4;

const GOOD: RGBColor = RGBColor(0x2a, 0x7f, 0x62);
const BAD: RGBColor = RGBColor(0xc0, 0x39, 0x2b);
const QUIET: RGBColor = RGBColor(0x66, 0x66, 0x66);
const SERIES: [RGBColor; 3] = [
    RGBColor(0x1f, 0x5f, 0xa8),
    RGBColor(0xd9, 0x82, 0x2b),
    RGBColor(0x6b, 0x4f, 0x9e),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A standalone SVG.
pub(crate) fn svg(report: &Report) -> anyhow::Result<String> {
    let judged: Vec<(Case, &Row)> = report.rows().filter(|(_, row)| row.bar.is_some()).collect();
    let panels = panels(report);
    let table = 70 + LINE * u32::try_from(judged.len())?;
    let rows = u32::try_from(panels.len().div_ceil(2))?;
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, table + PANEL * rows + 10)).into_drawing_area();
        draw(&root, report, &judged, &panels, table)
            .map_err(|why| anyhow!("the plot can't be drawn: {why}"))?;
    }
    Ok(text)
}

/// The lines of one panel, by what they show.
type Lines<'a> = BTreeMap<&'static str, Vec<(Point, &'a Row)>>;

fn panels(report: &Report) -> Vec<(Case, Lines<'_>)> {
    report
        .sections
        .iter()
        .filter_map(|section| {
            let mut lines = Lines::new();
            for row in &section.rows {
                if let Some(point) = row.point {
                    lines.entry(point.series).or_default().push((point, row));
                }
            }
            (!lines.is_empty()).then_some((section.case, lines))
        })
        .collect()
}

fn draw(
    root: &Area<'_>,
    report: &Report,
    judged: &[(Case, &Row)],
    panels: &[(Case, Lines<'_>)],
    table: u32,
) -> Result<(), Box<dyn std::error::Error>> {
    root.fill(&WHITE)?;
    let (head, charts) = root.split_vertically(table);
    let title = ("sans-serif", 20).into_font();
    head.draw(&Text::new(report.title(), (20, 12), title))?;
    let small = ("sans-serif", 13).into_font();
    let beside = |side, colour: &'static RGBColor| {
        let style = TextStyle::from(small.clone()).color(colour);
        style.pos(Pos::new(side, VPos::Center))
    };
    for (at, (case, row)) in judged.iter().enumerate() {
        let y = 62 + i32::try_from(at)? * i32::try_from(LINE)?;
        let verdict = row.verdict();
        let colour: &RGBColor = match verdict {
            Some(Verdict::Met) => &GOOD,
            Some(Verdict::Missed) => &BAD,
            Some(Verdict::Unknown) | None => &QUIET,
        };
        head.draw(&Text::new(
            format!("{case}: {}", row.what),
            (LEFT - 12, y),
            beside(HPos::Right, &BLACK),
        ))?;
        // Not a number: as far as it goes.
        let share = row.share_of_bar().unwrap_or(0.0).min(LONGEST);
        let end = LEFT + (share * f64::from(FULL)) as i32;
        head.draw(&Rectangle::new([(LEFT, y - 7), (end, y + 7)], colour.filled()))?;
        let ratio = row
            .ratio()
            .map(|ratio| format!(", {} × its floor", number(ratio)));
        let said = match verdict {
            Some(Verdict::Unknown) => "no floor".into(),
            _ => with_unit(row.value, row.unit) + &ratio.unwrap_or_default(),
        };
        let said = format!("{said} (bar {})", row.bar_text());
        let beyond = end.max(LEFT + FULL) + 10;
        head.draw(&Text::new(said, (beyond, y), beside(HPos::Left, colour)))?;
    }
    if !judged.is_empty() {
        let bottom = i32::try_from(table)? - 12;
        let bar = [(LEFT + FULL, 46), (LEFT + FULL, bottom)];
        head.draw(&PathElement::new(bar, BLACK.stroke_width(2)))?;
        let what = "what ends left of the line meets its bar";
        head.draw(&Text::new(
            what,
            (LEFT + FULL + 10, 38),
            beside(HPos::Left, &QUIET),
        ))?;
    }
    let panes = charts.split_evenly((panels.len().div_ceil(2).max(1), 2));
    for ((case, lines), pane) in panels.iter().zip(&panes) {
        panel(pane, *case, lines)?;
    }
    root.present()?;
    Ok(())
}

fn panel(pane: &Area<'_>, case: Case, lines: &Lines<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let points = || lines.values().flatten();
    let floors = || points().filter_map(|(_, row)| row.floor.as_ref());
    let most = points()
        .map(|(_, row)| row.value)
        .chain(floors().map(|floor| floor.value))
        .filter(|value| value.is_finite())
        .fold(0.0, f64::max);
    let last = points().map(|(point, _)| point.at).max().unwrap_or(1).max(2);
    let of = points().next().map_or("", |(point, _)| point.of);
    let mut chart = ChartBuilder::on(pane)
        .caption(case.to_string(), ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(34)
        .y_label_area_size(64)
        .build_cartesian_2d((1..last).log_scale(), 0.0..(most * 1.6).max(f64::MIN_POSITIVE))?;
    chart
        .configure_mesh()
        .x_desc(of)
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(0xe4, 0xe4, 0xe4))
        .y_label_formatter(&|value| number(*value))
        .draw()?;
    for ((series, line), colour) in lines.iter().zip(SERIES.iter().cycle()) {
        let at = || line.iter().map(|(point, row)| (point.at, row.value));
        chart
            .draw_series(LineSeries::new(at(), colour.stroke_width(2)))?
            .label(*series)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart.draw_series(at().map(|at| Circle::new(at, 3, colour.filled())))?;
    }
    if let Some(floor) = floors().next() {
        let dashes = DashedLineSeries::new(
            [(1, floor.value), (last, floor.value)],
            6,
            4,
            QUIET.stroke_width(1),
        );
        chart
            .draw_series(dashes)?
            .label(floor.what)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], QUIET.stroke_width(1)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 12))
        .draw()?;
    Ok(())
}
