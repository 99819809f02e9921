//! A picture of a terminal's screen: docs/watch.svg, made anew with
//! `RELATCH_PICTURE=docs/watch.svg cargo test --all-features --test command picture`.

use std::fmt::Write as _;

use relatch::Relatch;

use crate::support::RedisServer;
use crate::terminal::Terminal;
use crate::{RELATCH, client, until_waiting};

const WIDTH: f64 = 8.4;
const HEIGHT: f64 = 18.0;
const EDGE: f64 = 12.0;

/// The sixteen colours of a terminal, and the two it has without one.
const PALETTE: [&str; 16] = [
    "#1d1f21", "#cc6666", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#c8ccd4", "#7f848e",
    "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#ffffff",
];
const INK: &str = "#c8ccd4";
const PAPER: &str = "#1d1f21";

fn colour(of: vt100::Color, without: &str) -> String {
    match of {
        vt100::Color::Default => without.to_owned(),
        vt100::Color::Idx(at) => (*PALETTE.get(usize::from(at)).unwrap_or(&without)).to_owned(),
        vt100::Color::Rgb(r, g, b) => format!("#{r:02x}{g:02x}{b:02x}"),
    }
}

/// Runs of cells that look alike, each at its place, whatever font there is.
fn picture(screen: &vt100::Screen) -> String {
    let (rows, columns) = screen.size();
    let (rows, columns) = (u16::from(rows), u16::from(columns));
    let (width, height) = (
        f64::from(columns) * WIDTH + 2.0 * EDGE,
        f64::from(rows) * HEIGHT + 2.0 * EDGE,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace\" font-size=\"14\">\n\
         <title>relatch watch</title>\n<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{PAPER}\"/>\n"
    );
    for row in 0..rows {
        let mut column = 0;
        while column < columns {
            let look = |column: u16| {
                let cell = screen.cell(row, column)?;
                let (mut ink, mut paper) = (colour(cell.fgcolor(), INK), colour(cell.bgcolor(), PAPER));
                if cell.inverse() {
                    std::mem::swap(&mut ink, &mut paper);
                }
                Some((ink, paper, cell.bold(), cell.dim()))
            };
            let (from, style) = (column, look(column));
            let mut text = String::new();
            while column < columns && look(column) == style {
                let contents = screen.cell(row, column).map_or("", |cell| cell.contents());
                text.push_str(if contents.is_empty() { " " } else { contents });
                column += 1;
            }
            let Some((ink, paper, bold, dim)) = style else {
                continue;
            };
            let (x, y) = (EDGE + f64::from(from) * WIDTH, EDGE + f64::from(row) * HEIGHT);
            let run = f64::from(column - from) * WIDTH;
            if paper != PAPER {
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{run:.1}\" height=\"{HEIGHT}\" fill=\"{paper}\"/>"
                );
            }
            if text.trim().is_empty() {
                continue;
            }
            let text = text
                .replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;");
            let weight = if bold { " font-weight=\"bold\"" } else { "" };
            let faint = if dim { " opacity=\"0.6\"" } else { "" };
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{:.1}\" textLength=\"{run:.1}\" xml:space=\"preserve\" fill=\"{ink}\"{weight}{faint}>{text}</text>",
                y + HEIGHT * 0.75
            );
        }
    }
    svg + "</svg>\n"
}

/// A process as others see it: `host pid program`.
async fn process(server: &RedisServer, who: &str) -> Relatch {
    let before = server.keys();
    let client = client(&server.url()).await;
    let mut own = None;
    crate::support::eventually_async(crate::support::BOUND, "it has said who it is", async || {
        own = server
            .keys()
            .into_iter()
            .find(|key| key.contains(":client:") && !before.contains(key));
        own.is_some()
    })
    .await;
    server.reply(&[
        "SET",
        &own.unwrap(),
        &format!("{}\n0.1.0", who.replace(' ', "\n")),
        "EX",
        "90",
    ]);
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_shows_what_stands_on_the_screen() {
    let server = RedisServer::start();
    let shop = process(&server, "web-1 811 shop").await;
    let other = process(&server, "web-2 907 shop").await;
    let jobs = process(&server, "jobs-1 4112 importer").await;
    let ops = process(&server, "ops 30771 relatch").await;
    let _deploy = ops
        .rwlock("deploy")
        .unwrap()
        .write()
        .label("release 4.2")
        .await
        .unwrap();
    let _import = jobs
        .rwlock("jobs/nightly-import")
        .unwrap()
        .write()
        .label("2026-11-20")
        .await
        .unwrap();
    let _migration = jobs
        .rwlock("schema")
        .unwrap()
        .upgradable_read()
        .label("migration 81")
        .await
        .unwrap();
    let mut reads = Vec::new();
    for client in [&shop, &other, &jobs] {
        for name in ["catalog", "prices/eu", "config"] {
            reads.push(client.rwlock(name).unwrap().read().await.unwrap());
        }
    }
    for (name, count) in [("deploy", 2), ("jobs/nightly-import", 1), ("catalog", 3)] {
        for _ in 0..count {
            let lock = other.rwlock(name).unwrap();
            tokio::spawn(async move { lock.write().await.map(drop) });
        }
        until_waiting(&ops, name, count).await;
    }
    let terminal = Terminal::start(&server.url(), RELATCH, &["watch"]);
    terminal.until_it_shows("6 held, 6 waiting, by wait");
    terminal.until("everything", |seen| {
        seen.contains("release 4.2") && seen.contains("migration 81")
    });
    let wait = std::env::var("RELATCH_PICTURE").is_ok();
    if wait {
        // For times that are worth looking at.
        tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    }
    let picture = terminal.screen(picture);
    for words in ["jobs/nightly-import", "upgradable", "release 4.2", "q quit"] {
        assert!(picture.contains(words), "no {words:?} in:\n{picture}");
    }
    if let Ok(path) = std::env::var("RELATCH_PICTURE") {
        std::fs::write(path, picture).unwrap();
    }
}
