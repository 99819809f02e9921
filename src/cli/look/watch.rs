//! `relatch watch`: the names, live.
//!
//! A task keeps the [`Board`] and says what is new; a thread reads keys; what is on the screen follows from [`Screen`], and nothing else does. The
//! invariant: **the terminal is as it was** when this ends: by a key, a signal, an error or a panic.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table, TableState, Wrap};
use relatch::{Mode, Relatch};
use tokio::sync::mpsc;

use super::board::{Board, Seen};
use super::ls::Sort;
use super::{View, refusal, show};
use crate::cli::Outcome;
use crate::cli::reach::{Reach, interval};
use crate::cli::words::{brief, cut, printable};

pub(crate) const LONG: &str = "\
Shows the names that are held or waited for, as that changes.

  ↑ ↓ PgUp PgDn   choose a name, or scroll      s   sort by name, wait, waiters, held, holders
  Enter           open it: who holds, who waits  /   filter: names with this text in them
  Esc             back, or no filter             a   also idle names, whose last fence is kept
  r               revoke it (asks first)         q   quit";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which names, as for `ls`; all, if nothing is said
    #[arg(default_value = "*", hide_default_value = true)]
    pattern: String,
    /// In which order, at first
    #[arg(short, long, value_enum, default_value_t = Sort::Wait)]
    sort: Sort,
    /// How often to look where the server does not tell
    #[arg(long, value_name = "TIME", value_parser = interval, default_value = "1s")]
    poll: Duration,
    /// Panic once the screen is drawn, to see that the terminal is restored
    #[arg(long, hide = true)]
    crash: Option<Where>,
    #[command(flatten)]
    reach: Reach,
}

/// Of what runs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Where {
    Screen,
    Look,
    Keys,
    Revoke,
}

fn crash_if(crash: bool) {
    assert!(!crash, "as asked for by --crash");
}

/// Why what is seen is not all there is.
#[derive(Default)]
struct Lacks {
    /// The server, or a part of a cluster, is away. It is tried on.
    missing: Option<String>,
    /// A name can't be looked at.
    refused: Option<String>,
}

/// What the tasks around the screen tell it.
enum News {
    Looks(Vec<Seen>, Lacks),
    /// Nothing more will come.
    Failed(anyhow::Error),
    Key(KeyEvent),
    /// Draw again: the terminal has another size.
    Resized,
    Revoked(String),
    /// One of them is no more. It has been said how.
    Panicked,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Outcome> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        bail!("`watch` needs a terminal; elsewhere use `relatch ls`, or `relatch events --json`");
    }
    let relatch = args.reach.connect().await?;
    let place = relatch
        .examine()
        .await
        .map(|found| found.place)
        .unwrap_or_default();
    let (news, mut heard) = mpsc::unbounded_channel();
    tokio::spawn(look(
        Board::new(relatch.clone(), &args.pattern, args.poll),
        news.clone(),
        args.crash == Some(Where::Look),
    ));

    // Heard from here on: one that came before the screen is first drawn must not leave the terminal to nobody.
    let mut ended = std::pin::pin!(ended());
    // From here to `restore` the terminal is ours, even where only half of what that takes can be had. A panic restores it, too, by the hook that
    // this sets.
    let panicked = Arc::new(AtomicBool::new(false));
    let restored = Restored(panicked.clone());
    let mut terminal = ratatui::try_init().context("the terminal can't be used")?;
    on_panic(panicked.clone(), news.clone());
    resizes(news.clone()).context("the terminal's size can't be followed")?;
    keys(news.clone(), args.crash == Some(Where::Keys)).context("keys can't be read")?;
    let mut screen = Screen::new(place, args.sort, !args.pattern.eq("*"));
    let outcome = loop {
        // The terminal is not ours any more after a panic, which is told next.
        if !panicked.load(Ordering::SeqCst)
            && let Err(error) = terminal.draw(|frame| screen.draw(frame))
        {
            break Err(anyhow::Error::from(error).context("the screen can't be drawn"));
        }
        crash_if(args.crash == Some(Where::Screen));
        let mut told = tokio::select! {
            told = heard.recv() => told,
            // Times go on.
            () = tokio::time::sleep(TICK) => continue,
            number = &mut ended => break Ok(Outcome::Status(u8::try_from(128 + number).unwrap_or(1))),
        };
        // Whatever else has come is drawn with it.
        let over = loop {
            match told {
                None => break Some(Ok(Outcome::Yes)),
                Some(News::Failed(error)) => break Some(Err(error)),
                Some(News::Panicked) => break Some(Ok(Outcome::Status(PANICKED))),
                Some(News::Looks(looks, lacks)) => screen.see(looks, lacks),
                Some(News::Revoked(what)) => screen.status = Some((false, what)),
                // It may be as large as it was again, and have lost what stood on it. (`clear` would ask the terminal where its cursor is, and
                // the thread that reads keys would get the answer.)
                Some(News::Resized) => {
                    let size = terminal.size();
                    if let Err(error) =
                        size.and_then(|size| terminal.resize(Rect::from((Position::ORIGIN, size))))
                    {
                        break Some(Err(error.into()));
                    }
                }
                Some(News::Key(key)) => match screen.press(key) {
                    Does::Nothing => {}
                    Does::Quit => break Some(Ok(Outcome::Yes)),
                    Does::Revoke(name) => {
                        screen.status = Some((false, format!("revoking {:?} …", printable(&name))));
                        let crash = args.crash == Some(Where::Revoke);
                        tokio::spawn(revoke(relatch.clone(), name, news.clone(), crash));
                    }
                },
            }
            match heard.try_recv() {
                Ok(more) => told = Some(more),
                Err(_) => break None,
            }
        };
        if let Some(outcome) = over {
            break outcome;
        }
    };
    drop(restored);
    let _ = tokio::time::timeout(Duration::from_secs(1), relatch.close()).await;
    outcome
}

const TICK: Duration = Duration::from_millis(500);

/// As that of any program that has panicked.
const PANICKED: u8 = 101;

/// Unless a panic has done it: done twice it would put the cursor back over what was said since.
struct Restored(Arc<AtomicBool>);

impl Drop for Restored {
    fn drop(&mut self) {
        if !self.0.load(Ordering::SeqCst) {
            ratatui::restore();
        }
    }
}

/// Whatever panics, wherever it runs: nothing is drawn any more, the terminal is restored and the panic told (by the hooks before this one),
/// and then the screen is ended.
fn on_panic(panicked: Arc<AtomicBool>, news: mpsc::UnboundedSender<News>) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        panicked.store(true, Ordering::SeqCst);
        before(panic);
        let _ = news.send(News::Panicked);
    }));
}

/// Keeps the board, and says what is new.
async fn look(mut board: Board, news: mpsc::UnboundedSender<News>, crash: bool) {
    loop {
        let told = match board.next().await {
            Ok(looks) => {
                // A line is all there is for it: that none is told twice does not matter here.
                drop(board.refused());
                let lacks = Lacks {
                    missing: board.missing().map(ToString::to_string),
                    refused: board.refused_still().map(|(name, error)| refusal(name, error)),
                };
                News::Looks(looks.into_iter().map(|look| look.after).collect(), lacks)
            }
            // It was there when this began: it will be again.
            Err(error) if error.is_unreachable() => {
                let missing = Some(error.to_string());
                News::Looks(
                    Vec::new(),
                    Lacks {
                        missing,
                        ..Lacks::default()
                    },
                )
            }
            Err(error) => News::Failed(error.into()),
        };
        let over = matches!(told, News::Failed(_));
        if news.send(told).is_err() || over {
            return;
        }
        crash_if(crash);
    }
}

async fn revoke(relatch: Relatch, name: String, news: mpsc::UnboundedSender<News>, crash: bool) {
    crash_if(crash);
    let what = match relatch.revoke(&name).await {
        Ok(0) => format!("nobody held {:?}", printable(&name)),
        Ok(1) => format!("revoked 1 hold on {:?}", printable(&name)),
        Ok(taken) => format!("revoked {taken} holds on {:?}", printable(&name)),
        Err(error) => format!("not revoked: {error}"),
    };
    let _ = news.send(News::Revoked(what));
}

/// A thread reads keys: it ends with the process.
fn keys(news: mpsc::UnboundedSender<News>, crash: bool) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("keys".into())
        .spawn(move || {
            loop {
                let told = match event::read() {
                    Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => News::Key(key),
                    // On Unix it is not always among these: see `resizes`.
                    Ok(Event::Resize(..)) if !cfg!(unix) => News::Resized,
                    Ok(_) => continue,
                    Err(error) => News::Failed(anyhow::Error::from(error).context("the terminal is gone")),
                };
                crash_if(crash);
                if news.send(told).is_err() {
                    return;
                }
            }
        })
        .map(drop)
}

/// Tells that the terminal has another size, or had one for a moment. Not what `event::read` says of that: where a key comes at the same moment it says
/// the key and forgets the rest, and a terminal that is as large as it was by then would stay without what stood on it.
fn resizes(news: mpsc::UnboundedSender<News>) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut resized = signal(SignalKind::window_change())?;
        tokio::spawn(
            async move { while resized.recv().await.is_some() && news.send(News::Resized).is_ok() {} },
        );
    }
    #[cfg(not(unix))]
    drop(news);
    Ok(())
}

/// The number of the signal that ends us. It is heard from now on, not only once this is awaited.
fn ended() -> impl Future<Output = i32> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let kinds = [
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::quit(),
        ];
        let waits: Vec<_> = kinds
            .into_iter()
            .filter_map(|kind| Some((kind, signal(kind).ok()?)))
            .map(|(kind, mut signal)| {
                Box::pin(async move {
                    signal.recv().await;
                    kind.as_raw_value()
                })
            })
            .collect();
        async move { futures_util::future::select_all(waits).await.0 }
    }
    #[cfg(not(unix))]
    std::future::pending()
}

enum Does {
    Nothing,
    Quit,
    Revoke(String),
}

/// What lies over the list.
enum Over {
    List,
    /// A name is open, scrolled so far.
    Open(String, u16),
    Filter,
    /// Shall this be revoked? And what to go back to.
    Revoke(String, Box<Over>),
}

struct Screen {
    place: String,
    /// Only names that match a pattern are looked at.
    some: bool,
    seen: BTreeMap<String, Seen>,
    begun: bool,
    sort: Sort,
    filter: String,
    idle: bool,
    over: Over,
    /// The one that is chosen stays so, wherever it comes to stand.
    chosen: Option<String>,
    table: TableState,
    /// Whether it is a trouble, and what.
    status: Option<(bool, String)>,
    /// What was lacking when it was looked last.
    lack: Option<String>,
}

impl Screen {
    fn new(place: String, sort: Sort, some: bool) -> Self {
        Self {
            place,
            some,
            seen: BTreeMap::new(),
            begun: false,
            sort,
            filter: String::new(),
            idle: false,
            over: Over::List,
            chosen: None,
            table: TableState::default(),
            status: None,
            lack: None,
        }
    }

    fn see(&mut self, looks: Vec<Seen>, lacks: Lacks) {
        self.begun |= lacks.missing.is_none() || !looks.is_empty();
        let away = lacks.missing.is_some();
        let lack = lacks.missing.or(lacks.refused);
        if away || lack != self.lack {
            let told = self.status.take().filter(|(trouble, _)| !trouble);
            self.status = lack.clone().map(|why| (true, why)).or(told);
        }
        self.lack = lack;
        for seen in looks {
            if seen.is_idle() && seen.what.fence.is_none() {
                self.seen.remove(&seen.what.name);
            } else {
                self.seen.insert(seen.what.name.clone(), seen);
            }
        }
    }

    /// As of now: times go on since it was looked at.
    fn view(seen: &Seen) -> View {
        let since = seen.at.elapsed();
        let mut what = seen.what.clone();
        for held in &mut what.holders {
            held.held_for += since;
            held.lease_left = held.lease_left.saturating_sub(since);
        }
        for waiting in &mut what.waiters {
            waiting.waited += since;
        }
        View::of(&what)
    }

    fn shown(&self) -> Vec<View> {
        let mut views: Vec<View> = self
            .seen
            .values()
            .filter(|seen| self.idle || !seen.is_idle())
            .filter(|seen| {
                seen.what
                    .name
                    .to_lowercase()
                    .contains(&self.filter.to_lowercase())
            })
            .map(Self::view)
            .collect();
        self.sort.sort(&mut views);
        views
    }

    // -- keys ---------------------------------------------------------------------------------------------------

    fn press(&mut self, key: KeyEvent) -> Does {
        if key.modifiers.contains(KeyModifiers::CONTROL) && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return Does::Quit;
        }
        match &mut self.over {
            Over::Filter => match key.code {
                KeyCode::Enter => self.over = Over::List,
                KeyCode::Esc => {
                    self.filter.clear();
                    self.over = Over::List;
                }
                KeyCode::Backspace => {
                    self.filter.pop();
                }
                KeyCode::Char(c) if !c.is_control() => self.filter.push(c),
                _ => {}
            },
            Over::Revoke(..) => {
                let Over::Revoke(name, back) = std::mem::replace(&mut self.over, Over::List) else {
                    return Does::Nothing;
                };
                self.over = *back;
                if matches!(key.code, KeyCode::Char('y' | 'Y')) {
                    return Does::Revoke(name);
                }
                self.status = Some((false, "nothing was revoked".into()));
            }
            Over::Open(name, scrolled) => match key.code {
                KeyCode::Esc | KeyCode::Enter | KeyCode::Left | KeyCode::Char('h') => self.over = Over::List,
                KeyCode::Char('q') => return Does::Quit,
                KeyCode::Up | KeyCode::Char('k') => *scrolled = scrolled.saturating_sub(1),
                KeyCode::Down | KeyCode::Char('j') => *scrolled = scrolled.saturating_add(1),
                KeyCode::PageUp => *scrolled = scrolled.saturating_sub(PAGE),
                KeyCode::PageDown | KeyCode::Char(' ') => *scrolled = scrolled.saturating_add(PAGE),
                KeyCode::Home => *scrolled = 0,
                KeyCode::Char('r') => {
                    let name = name.clone();
                    let back = std::mem::replace(&mut self.over, Over::List);
                    self.over = Over::Revoke(name, Box::new(back));
                }
                _ => {}
            },
            Over::List => match key.code {
                KeyCode::Char('q') => return Does::Quit,
                KeyCode::Esc => self.filter.clear(),
                KeyCode::Char('/') => self.over = Over::Filter,
                KeyCode::Char('s') => self.sort = self.sort.next(),
                KeyCode::Char('a') => self.idle = !self.idle,
                KeyCode::Up | KeyCode::Char('k') => self.choose(-1),
                KeyCode::Down | KeyCode::Char('j') => self.choose(1),
                KeyCode::PageUp => self.choose(-isize::from(PAGE as i16)),
                KeyCode::PageDown | KeyCode::Char(' ') => self.choose(isize::from(PAGE as i16)),
                KeyCode::Home => self.choose(isize::MIN),
                KeyCode::End => self.choose(isize::MAX),
                KeyCode::Enter | KeyCode::Right | KeyCode::Char('l') => {
                    if let Some(name) = self.chosen_now() {
                        self.over = Over::Open(name, 0);
                    }
                }
                KeyCode::Char('r') => {
                    if let Some(name) = self.chosen_now() {
                        self.over = Over::Revoke(name, Box::new(Over::List));
                    }
                }
                _ => {}
            },
        }
        Does::Nothing
    }

    fn at(&self, views: &[View]) -> Option<usize> {
        let chosen = views
            .iter()
            .position(|view| Some(&view.name) == self.chosen.as_ref());
        chosen.or((!views.is_empty()).then(|| self.table.selected().unwrap_or(0).min(views.len() - 1)))
    }

    fn chosen_now(&self) -> Option<String> {
        let mut views = self.shown();
        let at = self.at(&views)?;
        Some(views.swap_remove(at).name)
    }

    fn choose(&mut self, by: isize) {
        let views = self.shown();
        if let Some(at) = self.at(&views) {
            let at = at.saturating_add_signed(by).min(views.len() - 1);
            self.chosen = Some(views[at].name.clone());
        }
    }

    // -- the screen ---------------------------------------------------------------------------------------------

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let [head, body, status, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(3),
            Constraint::Length(1),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let views = self.shown();
        self.draw_head(frame, head, &views);
        match &self.over {
            Over::Open(name, scrolled) => {
                let (name, scrolled) = (name.clone(), *scrolled);
                self.draw_open(frame, body, &name, scrolled);
            }
            Over::Revoke(name, back) => {
                let (name, open) = (
                    name.clone(),
                    match **back {
                        Over::Open(_, scrolled) => Some(scrolled),
                        _ => None,
                    },
                );
                match open {
                    Some(scrolled) => self.draw_open(frame, body, &name, scrolled),
                    None => self.draw_list(frame, body, &views),
                }
                self.draw_question(frame, body, &name);
            }
            _ => self.draw_list(frame, body, &views),
        }
        if let Some((trouble, what)) = &self.status {
            let style = if *trouble {
                Style::new().fg(Color::Red)
            } else {
                Style::new().fg(Color::Cyan)
            };
            frame.render_widget(Paragraph::new(printable(what)).style(style), status);
        }
        let keys = match &self.over {
            Over::Filter => {
                return frame.render_widget(
                    Paragraph::new(format!("/{}▏  Enter keeps it, Esc drops it", self.filter)),
                    foot,
                );
            }
            Over::List => "↑↓ choose  Enter open  s sort  / filter  a idle  r revoke  q quit",
            Over::Open(..) => "↑↓ scroll  Esc back  r revoke  q quit",
            Over::Revoke(..) => "y revoke  any other key: no",
        };
        frame.render_widget(
            Paragraph::new(keys).style(Style::new().add_modifier(Modifier::DIM)),
            foot,
        );
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect, views: &[View]) {
        let held = views.iter().filter(|view| view.holder_count > 0).count();
        let waiting: u64 = views.iter().map(|view| view.waiter_count).sum();
        let mut line = vec![
            Span::styled("relatch ", Style::new().add_modifier(Modifier::BOLD)),
            Span::raw(format!("{}  ", printable(&self.place))),
            Span::raw(format!("{held} held, {waiting} waiting, by {}", self.sort.word())),
        ];
        if !self.filter.is_empty() {
            line.push(Span::styled(
                format!("  /{}", self.filter),
                Style::new().fg(Color::Cyan),
            ));
        }
        if self.some {
            line.push(Span::raw("  (some names)"));
        }
        frame.render_widget(Line::from(line), area);
    }

    fn draw_list(&mut self, frame: &mut Frame<'_>, area: Rect, views: &[View]) {
        if views.is_empty() {
            let what = match (self.begun, self.filter.is_empty()) {
                (false, _) => "looking …",
                (true, true) => "no name is held or waited for",
                (true, false) => "no such name is held or waited for",
            };
            return frame.render_widget(Paragraph::new(format!("\n{what}")), area);
        }
        let at = self.at(views);
        self.table.select(at);
        self.chosen = at.map(|at| views[at].name.clone());
        let time = |ms: Option<u64>| ms.map_or_else(|| "-".into(), |ms| brief(Duration::from_millis(ms)));
        // What the other columns leave, shared by the name and by who holds.
        let room = usize::from(area.width.saturating_sub(11 + 5 + 5 + 8 + 8 + 6));
        let longest = views
            .iter()
            .map(|view| printable(&view.name).chars().count())
            .max()
            .unwrap_or(0);
        let for_name = longest.clamp(8, (room * 3 / 5).max(8));
        let rows = views.iter().map(|view| {
            let mode = view.mode.map_or("-", Mode::as_str);
            let colour = match view.mode {
                Some(Mode::Write) => Color::Yellow,
                Some(_) => Color::Green,
                None => Color::DarkGray,
            };
            let wait = Style::new().fg(if view.longest_wait_ms > Some(10_000) {
                Color::Red
            } else {
                Color::Reset
            });
            let right = |text: String| Line::from(text).right_aligned();
            Row::new([
                Cell::from(cut(&printable(&view.name), for_name)),
                Cell::from(mode).style(Style::new().fg(colour)),
                Cell::from(right(view.holder_count.to_string())),
                Cell::from(right(view.waiter_count.to_string())),
                Cell::from(right(time(view.longest_wait_ms))).style(wait),
                Cell::from(right(time(view.longest_held_ms))),
                Cell::from(view.holder_words()),
            ])
        });
        let widths = [
            Constraint::Length(u16::try_from(for_name).unwrap_or(u16::MAX)),
            Constraint::Length(10),
            Constraint::Length(4),
            Constraint::Length(4),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Min(8),
        ];
        let right = |text: &'static str| Cell::from(Line::from(text).right_aligned());
        let head = Row::new([
            Cell::from("NAME"),
            Cell::from("MODE"),
            right("HOLD"),
            right("WAIT"),
            right("LONGEST"),
            right("HELD FOR"),
            Cell::from("BY"),
        ])
        .style(Style::new().add_modifier(Modifier::BOLD));
        let table = Table::new(rows, widths)
            .header(head)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        frame.render_stateful_widget(table, area, &mut self.table);
    }

    fn draw_open(&mut self, frame: &mut Frame<'_>, area: Rect, name: &str, scrolled: u16) {
        let text = match self.seen.get(name) {
            Some(seen) => show::text(&Self::view(seen)),
            None => format!("{}\nnobody holds it or waits for it", printable(name)),
        };
        let lines = u16::try_from(text.lines().count()).unwrap_or(u16::MAX);
        let most = lines.saturating_sub(area.height.saturating_sub(2));
        if let Over::Open(_, scrolled) = &mut self.over {
            *scrolled = (*scrolled).min(most);
        }
        let open = Paragraph::new(text)
            .block(Block::bordered())
            .scroll((scrolled.min(most), 0));
        frame.render_widget(open, area);
    }

    fn draw_question(&self, frame: &mut Frame<'_>, area: Rect, name: &str) {
        let holders = self.seen.get(name).map_or(0, |seen| seen.what.holder_count);
        let text = format!(
            "Take {:?} away from everybody who holds it ({holders})?\n\nThey are told, and give it back.   y: yes   any other key: no",
            cut(&printable(name), 200)
        );
        let width = area.width.saturating_sub(8).min(70);
        let inner = usize::from(width.saturating_sub(2)).max(1);
        let rows: usize = text
            .lines()
            .map(|line| line.chars().count().div_ceil(inner).max(1))
            .sum();
        let height = u16::try_from(rows + 3).unwrap_or(u16::MAX).min(area.height);
        let place = Rect {
            x: area.x + (area.width - width) / 2,
            y: area.y + (area.height - height) / 2,
            width,
            height,
        };
        frame.render_widget(Clear, place);
        let block = Block::bordered()
            .title(" revoke ")
            .border_style(Style::new().fg(Color::Red));
        frame.render_widget(
            Paragraph::new(text).wrap(Wrap { trim: false }).block(block),
            place,
        );
    }
}

const PAGE: u16 = 10;

#[cfg(all(test, unix))]
mod tests {
    /// One that came while nothing listened would end this process.
    #[tokio::test]
    async fn a_signal_is_heard_before_it_is_waited_for() {
        let ended = super::ended();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP)
            .expect("it may be sent to itself");
        assert_eq!(ended.await, 1);
    }
}
