//! The plan's own actions, live: what is done line by line, and below it a board of what is not, on a terminal; plain lines without one.
//! Everything also goes to the log.

use super::board::{Board, past};
use super::terminal::{self, paint};
use crate::engine::event::Event;
use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use parking_lot::Mutex;
use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

/// What was done should stay in sight above the board.
const MOST_ROWS: usize = 10;
/// The spinner's.
const MARGIN: usize = 2;

pub struct Progress {
    board: Arc<Mutex<Board>>,
    live: Option<ProgressBar>,
    /// Nothing is drawn before there is something to say: until then somebody may be asked something.
    shown: Once,
}

impl Progress {
    /// Cursor control only on a terminal that has it.
    pub fn start() -> Progress {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let live = std::io::stderr().is_terminal() && !dumb;
        let board = Arc::new(Mutex::new(Board::new(Instant::now())));
        Progress { live: live.then(|| bar(&board)), board, shown: Once::new() }
    }

    pub fn event(&self, event: &Event) {
        tracing::info!("{event}");
        self.board.lock().hear(event, Instant::now());
        match &self.live {
            Some(bar) => {
                self.show(bar);
                record(event).into_iter().for_each(|line| bar.println(line));
            }
            None => self.plain(event),
        }
    }

    /// What the cluster still waits for, replaced by the next.
    pub fn waiting(&self, text: &str) {
        tracing::info!("waiting: {text}");
        self.board.lock().wait(text);
        match &self.live {
            Some(bar) => self.show(bar),
            None => self.line(text),
        }
    }

    /// Takes the live lines away, so that what follows is ordinary output.
    pub fn finish(&self) {
        self.live.iter().for_each(ProgressBar::finish_and_clear);
    }

    /// The clock starts anew: the time in which somebody read the plan is not kprov's.
    pub fn restart(&mut self) {
        self.board.lock().started = Instant::now();
    }

    pub fn elapsed(&self) -> Duration {
        self.board.lock().started.elapsed()
    }

    fn show(&self, bar: &ProgressBar) {
        self.shown.call_once(|| bar.enable_steady_tick(Duration::from_millis(100)));
    }

    fn plain(&self, event: &Event) {
        match event {
            // The plan was printed before anybody agreed to it; the small steps are in the log.
            Event::PlanMade { .. } | Event::Progress { .. } | Event::RoundEnded { .. } | Event::Quiet { .. } | Event::Started { .. } => {}
            Event::Finished { key, .. } => self.line(&format!("{} {}", past(key.verb), key.id)),
            other => self.line(&other.to_string()),
        }
    }

    fn line(&self, text: &str) {
        terminal::talk(format_args!("[{:5.1}s] {text}", self.elapsed().as_secs_f64()));
    }
}

/// What stays on the terminal.
fn record(event: &Event) -> Option<String> {
    match event {
        Event::Finished { key, milliseconds } => {
            let seconds = *milliseconds as f64 / 1000.0;
            Some(format!("{} {} {} ({seconds:.1} s)", paint("32", "✓"), past(key.verb), key.id))
        }
        Event::Failed { key, error } => Some(format!("{} {key}: {error}", paint("31", "✗"))),
        Event::Resolved { key, how } => Some(format!("{} {}: {how}", paint("36", "·"), key.id)),
        _ => None,
    }
}

fn bar(board: &Arc<Mutex<Board>>) -> ProgressBar {
    let board = board.clone();
    let draw = move |_: &ProgressState, out: &mut dyn Write| {
        let (rows, columns) = Term::stderr().size();
        let rows = usize::from(rows).saturating_sub(MARGIN).clamp(1, MOST_ROWS);
        let lines = board.lock().lines(Instant::now(), rows, usize::from(columns).saturating_sub(MARGIN));
        let _ = out.write_str(&lines.join("\n"));
    };
    let style = ProgressStyle::with_template("{spinner} {board}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(20));
    bar.set_style(style.with_key("board", draw));
    bar
}
