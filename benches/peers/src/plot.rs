//! The result as pictures: bars where there is one number, lines where it grows along something. All scales are logarithmic, as the
//! numbers are up to thousands of times each other.
//!
//! Drawn on white, and so readable on a dark page as well.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::measure;
use crate::results::{Results, digits, grouped};
use crate::subject::Subject;

const WIDTH: u32 = 900;
const LEFT: i32 = 190;
const RIGHT: i32 = 130;
const BAR: i32 = 15;

const OURS: RGBColor = RGBColor(0x1b, 0x7f, 0x5c);
const THEIRS: RGBColor = RGBColor(0x6f, 0x7f, 0x93);
const PALE: f64 = 0.55;
const FLOOR: RGBColor = RGBColor(0xa8, 0xa8, 0xa8);
const GRID: RGBColor = RGBColor(0xe2, 0xe2, 0xe2);
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
/// Of lines, in the order of the subjects, relatch's and the floor's apart.
const SERIES: [RGBColor; 6] = [
    RGBColor(0x1f, 0x5f, 0xa8),
    RGBColor(0xd9, 0x82, 0x2b),
    RGBColor(0x6b, 0x4f, 0x9e),
    RGBColor(0xb0, 0x3a, 0x5b),
    RGBColor(0x8a, 0x6d, 0x3b),
    RGBColor(0x3a, 0x9b, 0xb0),
];

type Failed = Box<dyn std::error::Error>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Writes all of them that there are numbers for.
pub(crate) fn all(results: &Results, subjects: &[Subject], into: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(into).with_context(|| format!("{} can't be made", into.display()))?;
    let bars = [
        (
            "handoff",
            measure::HANDOFF,
            "Handoff: from the call that gives back to the next who is in, ms",
            &["median", "9 of 10 are quicker"][..],
        ),
        (
            "waits",
            measure::WAITS,
            "16 writers of 1 ms: longest and mean wait, ms",
            &["longest wait", "mean wait"],
        ),
        (
            "drops",
            measure::DROPS,
            "Dropped before they were in: of 60 in each round, still held a second later",
            &["still held 1 s later"],
        ),
    ];
    for (file, case, title, columns) in bars {
        let columns: Vec<usize> = results
            .of(case)
            .into_iter()
            .filter(|column| columns.contains(&results.columns[*column].what.as_str()))
            .collect();
        if !columns.is_empty() {
            let height = 60 + u32::try_from(subjects.len() * (columns.len() * BAR as usize + 12))?;
            write(into, file, height, |root| {
                draw_bars(root, results, subjects, title, &columns)
            })?;
        }
    }
    let lines = [
        (
            "waiters",
            measure::WAITERS,
            "Commands in Redis per turn, by number of waiters",
            "waiters",
            "commands",
        ),
        (
            "readers",
            measure::READERS,
            "Server time of a read pair, µs, by number of readers inside",
            "readers",
            "server",
        ),
        (
            "throughput",
            measure::THROUGHPUT,
            "Pairs per second, by number of tasks",
            "tasks",
            "task",
        ),
    ];
    for (file, case, title, along, what) in lines {
        let columns: Vec<usize> = results
            .of(case)
            .into_iter()
            .filter(|column| results.columns[*column].what.contains(what))
            .collect();
        if columns.len() > 1 {
            write(into, file, 420, |root| {
                draw_lines(root, results, subjects, title, along, &columns)
            })?;
        }
    }
    Ok(())
}

fn write(
    into: &Path,
    file: &str,
    height: u32,
    draw: impl FnOnce(&Area<'_>) -> Result<(), Failed>,
) -> anyhow::Result<()> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)
            .map_err(|why| anyhow!("{file} can't be drawn: {why}"))?;
        draw(&root).map_err(|why| anyhow!("{file} can't be drawn: {why}"))?;
        root.present()
            .map_err(|why| anyhow!("{file} can't be drawn: {why}"))?;
    }
    let path = into.join(file).with_extension("svg");
    std::fs::write(&path, text).with_context(|| format!("{} can't be written", path.display()))
}

fn text<'a>(size: i32, side: HPos, colour: &'a RGBColor) -> TextStyle<'a> {
    let style = TextStyle::from(("sans-serif", size).into_font()).color(colour);
    style.pos(Pos::new(side, VPos::Center))
}

fn colour(subjects: &[Subject], number: usize) -> RGBColor {
    match subjects.get(number) {
        Some(subject) if subject.name == "relatch" => OURS,
        Some(subject) if subject.is_floor() => FLOOR,
        _ => {
            let before = subjects.iter().take(number);
            let at = before
                .filter(|subject| subject.name != "relatch" && !subject.is_floor())
                .count();
            SERIES[at % SERIES.len()]
        }
    }
}

fn draw_bars(
    root: &Area<'_>,
    results: &Results,
    subjects: &[Subject],
    title: &str,
    columns: &[usize],
) -> Result<(), Failed> {
    root.draw(&Text::new(title.to_owned(), (16, 20), text(16, HPos::Left, &INK)))?;
    let shown: Vec<usize> = (0..subjects.len())
        .filter(|number| {
            columns
                .iter()
                .any(|column| results.number(*column, *number).is_some())
        })
        .collect();
    let numbers = || {
        let of = |column: &usize| {
            shown
                .iter()
                .map(|number| results.number(*column, *number))
                .collect::<Vec<_>>()
        };
        columns.iter().flat_map(of).flatten().filter(|value| *value > 0.0)
    };
    let counts = columns.iter().all(|column| results.columns[*column].adds);
    let most = numbers().fold(f64::MIN_POSITIVE, f64::max);
    // Counts begin at nothing; times, a little below the least.
    let least = if counts {
        0.8
    } else {
        numbers().fold(most, f64::min) / 1.6
    };
    let full = f64::from(i32::try_from(WIDTH)? - LEFT - RIGHT);
    let reach = |value: f64| {
        if value <= least {
            return LEFT;
        }
        let share = (value / least).ln() / (most.max(least * 2.0) / least).ln();
        LEFT + (share.clamp(0.0, 1.0) * full) as i32
    };
    let mut y = 44;
    for number in shown {
        let of_subject = i32::try_from(columns.len())? * BAR;
        let name = subjects[number].name.to_owned();
        root.draw(&Text::new(
            name,
            (LEFT - 10, y + of_subject / 2),
            text(14, HPos::Right, &INK),
        ))?;
        for (at, column) in columns.iter().enumerate() {
            let middle = y + BAR / 2;
            let base = match subjects[number].name {
                "relatch" => OURS,
                _ if subjects[number].is_floor() => FLOOR,
                _ => THEIRS,
            };
            let fill = if at == 0 {
                base.filled()
            } else {
                base.mix(PALE).filled()
            };
            match results.number(*column, number) {
                Some(value) => {
                    let end = reach(value);
                    root.draw(&Rectangle::new([(LEFT, y + 1), (end, y + BAR - 1)], fill))?;
                    let what = &results.columns[*column].what;
                    let said = match columns.len() {
                        1 => digits(value),
                        _ => format!("{} {what}", digits(value)),
                    };
                    // Inside where it does not fit beside.
                    if end > i32::try_from(WIDTH)? - RIGHT - 60 && columns.len() > 1 {
                        root.draw(&Text::new(
                            said,
                            (end - 6, middle),
                            text(11, HPos::Right, if at == 0 { &WHITE } else { &INK }),
                        ))?;
                    } else {
                        root.draw(&Text::new(said, (end + 6, middle), text(11, HPos::Left, &INK)))?;
                    }
                }
                None => root.draw(&Text::new("–", (LEFT + 6, middle), text(12, HPos::Left, &INK)))?,
            }
            y += BAR;
        }
        y += 12;
    }
    Ok(())
}

fn draw_lines(
    root: &Area<'_>,
    results: &Results,
    subjects: &[Subject],
    title: &str,
    along: &str,
    columns: &[usize],
) -> Result<(), Failed> {
    let line = |number: usize| -> Vec<(f64, f64)> {
        let point = |column: &usize| {
            let at = results.columns.get(*column)?.at?;
            Some((f64::from(at), results.number(*column, number)?))
        };
        columns.iter().filter_map(point).collect()
    };
    let lines: Vec<(usize, Vec<(f64, f64)>)> = (0..subjects.len())
        .map(|number| (number, line(number)))
        .filter(|(_, line)| !line.is_empty())
        .collect();
    let points = || lines.iter().flat_map(|(_, line)| line).filter(|(_, y)| *y > 0.0);
    let last = points().map(|(x, _)| *x).fold(2.0, f64::max);
    let most = points().map(|(_, y)| *y).fold(f64::MIN_POSITIVE, f64::max);
    let least = points().map(|(_, y)| *y).fold(most, f64::min);
    let (chart_area, legend) = root.split_horizontally(WIDTH - 190);
    let mut chart = ChartBuilder::on(&chart_area)
        .caption(title, ("sans-serif", 16).into_font().color(&INK))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(
            (0.9..last * 1.1).log_scale(),
            (least / 1.5..most * 1.5).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc(along)
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(("sans-serif", 12).into_font().color(&INK))
        .x_label_formatter(&|value| grouped(*value))
        .y_label_formatter(&|value| digits(*value))
        .draw()?;
    // The end of a line says whose it is; ends that are too near each other make room.
    let mut ends: Vec<(i32, usize, f64)> = Vec::new();
    for (number, line) in &lines {
        let colour = colour(subjects, *number);
        let width = if subjects[*number].name == "relatch" { 3 } else { 2 };
        let seen: Vec<(f64, f64)> = line.iter().copied().filter(|(_, y)| *y > 0.0).collect();
        chart.draw_series(LineSeries::new(seen.iter().copied(), colour.stroke_width(width)))?;
        chart.draw_series(seen.iter().map(|at| Circle::new(*at, 3, colour.filled())))?;
        if let Some(end) = seen.last() {
            ends.push((chart.backend_coord(end).1, *number, end.1));
        }
    }
    ends.sort_by_key(|(y, ..)| *y);
    let mut free = 0;
    for (y, number, value) in ends {
        let y = y.max(free);
        free = y + 15;
        let said = format!("{} {}", subjects[number].name, digits(value));
        legend.draw(&Text::new(
            said,
            (4, y),
            text(12, HPos::Left, &colour(subjects, number)),
        ))?;
    }
    Ok(())
}
