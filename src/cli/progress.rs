//! The plan's own actions, live: one line each while they run on a terminal, plain lines without one. Everything also goes to the log.

use super::terminal::{self, paint};
use crate::engine::event::Event;
use crate::engine::{Key, Verb};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

pub struct Progress {
    started: Instant,
    live: Option<Live>,
}

struct Live {
    bars: MultiProgress,
    running: Mutex<HashMap<Key, ProgressBar>>,
    /// The line for what no action stands for: waiting for workloads.
    waiting: ProgressBar,
}

impl Progress {
    /// Cursor control only on a terminal that has it.
    pub fn start() -> Progress {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let live = std::io::stderr().is_terminal() && !dumb;
        Progress { started: Instant::now(), live: live.then(Live::new) }
    }

    pub fn event(&self, event: &Event) {
        tracing::info!("{event}");
        match &self.live {
            Some(live) => live.event(event),
            None => self.plain(event),
        }
    }

    /// What the cluster still waits for, replaced by the next.
    pub fn waiting(&self, text: &str) {
        tracing::info!("waiting: {text}");
        match &self.live {
            Some(live) => {
                live.waiting.set_message(cut(text));
                live.waiting.tick();
            }
            None => self.line(text),
        }
    }

    /// Takes the live lines away, so that what follows is ordinary output.
    pub fn finish(&self) {
        if let Some(live) = &self.live {
            live.running.lock().drain().for_each(|(_, bar)| bar.finish_and_clear());
            live.waiting.finish_and_clear();
        }
    }

    /// The clock starts anew: the time in which somebody read the plan is not kprov's.
    pub fn restart(&mut self) {
        self.started = Instant::now();
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
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
        terminal::talk(format_args!("[{:5.1}s] {text}", self.started.elapsed().as_secs_f64()));
    }
}

impl Live {
    fn new() -> Live {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(20));
        let waiting = bars.add(ProgressBar::new_spinner());
        waiting.set_style(style());
        Live { bars, running: Mutex::new(HashMap::new()), waiting }
    }

    fn event(&self, event: &Event) {
        match event {
            Event::Started { key, summary } => {
                let bar = self.bars.insert_before(&self.waiting, ProgressBar::new_spinner());
                bar.set_style(style());
                bar.set_prefix(format!("{} {}", key.verb, key.id));
                bar.set_message(cut(summary));
                bar.enable_steady_tick(Duration::from_millis(100));
                self.running.lock().insert(key.clone(), bar);
            }
            Event::Progress { key, text } => self.say(key, text),
            Event::Retrying { key, error, .. } => self.say(key, &format!("again: {error}")),
            Event::Waiting { key, why } => self.say(key, why),
            Event::Finished { key, milliseconds } => {
                let seconds = *milliseconds as f64 / 1000.0;
                self.end(key, &format!("{} {} {} ({seconds:.1} s)", paint("32", "✓"), past(key.verb), key.id));
            }
            Event::Failed { key, error } => self.end(key, &format!("{} {key}: {error}", paint("31", "✗"))),
            Event::Resolved { key, how } => self.print(&format!("{} {}: {how}", paint("36", "·"), key.id)),
            Event::PlanMade { .. } | Event::RoundEnded { .. } | Event::Quiet { .. } => {}
        }
    }

    fn say(&self, key: &Key, text: &str) {
        if let Some(bar) = self.running.lock().get(key) {
            bar.set_message(cut(text));
        }
    }

    fn end(&self, key: &Key, line: &str) {
        if let Some(bar) = self.running.lock().remove(key) {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
        self.print(line);
    }

    fn print(&self, line: &str) {
        let _ = self.bars.println(line);
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn past(verb: Verb) -> &'static str {
    match verb {
        Verb::Create => "created",
        Verb::Update => "updated",
        Verb::Repair => "repaired",
        Verb::Delete => "deleted",
        Verb::Await => "ready",
    }
}

/// Live lines are one line: what comes from elsewhere may hold line breaks.
fn cut(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_string()
}
