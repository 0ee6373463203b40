//! Progress for a person: bars on a terminal, a plain line every few seconds elsewhere.

use crate::{
    Standing, Status, plain_line,
    words::{grouped, millis, per_second, seconds},
};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

const PLAIN_EVERY: Duration = Duration::from_secs(5);
const BAR: &str = "{prefix:>12} [{bar:30}] {msg}";
const LINE: &str = "{prefix:>12} {msg}";

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminalMode {
    /// Bars if standard error is a terminal, lines otherwise.
    Auto,
    /// Lines.
    Plain,
    /// Nothing.
    Quiet,
}

/// Shows a status again and again, on standard error.
#[derive(Debug)]
pub struct Terminal(Shown);

#[derive(Debug)]
enum Shown {
    Bars { all: MultiProgress, copy: ProgressBar, stream: ProgressBar },
    Plain { said: Option<Duration>, last: Option<(String, Standing, bool)> },
    Quiet,
}

impl Terminal {
    /// Progress in this mode.
    pub fn new(mode: TerminalMode) -> Self {
        match mode {
            TerminalMode::Quiet => Self(Shown::Quiet),
            TerminalMode::Auto if std::io::stderr().is_terminal() => Self::bars(ProgressDrawTarget::stderr()),
            TerminalMode::Auto | TerminalMode::Plain => Self(Shown::Plain { said: None, last: None }),
        }
    }

    fn bars(target: ProgressDrawTarget) -> Self {
        let all = MultiProgress::with_draw_target(target);
        let style = |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let copy = all.add(ProgressBar::no_length().with_style(style(BAR).progress_chars("=> ")).with_prefix("copy"));
        let stream = all.add(ProgressBar::no_length().with_style(style(LINE)));
        Self(Shown::Bars { all, copy, stream })
    }

    /// Shows a status at a time of a monotonic clock. Call it a few times a second.
    pub fn show(&mut self, at: Duration, status: &Status) {
        match &mut self.0 {
            Shown::Quiet => {}
            Shown::Bars { copy, stream, .. } => show_bars(copy, stream, status),
            Shown::Plain { said, last } => {
                if is_due(at, status, said, last) {
                    say(&plain_line(status));
                }
            }
        }
    }

    /// Says something above the bars.
    pub fn say(&self, line: &str) {
        match &self.0 {
            Shown::Quiet => {}
            Shown::Plain { .. } => say(line),
            Shown::Bars { all, .. } => {
                // A terminal that is gone takes nothing any more; the run goes on.
                let _ = all.println(line);
            }
        }
    }

    /// Takes the bars away.
    pub fn finish(&self) {
        if let Shown::Bars { all, copy, stream } = &self.0 {
            copy.finish_and_clear();
            stream.finish_and_clear();
            let _ = all.clear();
        }
    }
}

fn say(line: &str) {
    // A reader that is gone takes nothing any more; the run goes on.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// A line is due every five seconds, and at once when the phase, the standing or the retrying is another.
fn is_due(
    at: Duration,
    status: &Status,
    said: &mut Option<Duration>,
    last: &mut Option<(String, Standing, bool)>,
) -> bool {
    let now = (status.phase.clone(), status.standing, status.retrying.is_some());
    let due = said.is_none_or(|said| at.saturating_sub(said) >= PLAIN_EVERY);
    if !due && last.as_ref() == Some(&now) {
        return false;
    }
    *said = Some(at);
    *last = Some(now);
    true
}

fn show_bars(copy: &ProgressBar, stream: &ProgressBar, status: &Status) {
    if let Some(overall) = &status.overall {
        copy.set_length(overall.rows_total);
        copy.set_position(overall.rows_loaded.min(overall.rows_total));
        copy.set_message(copy_message(status));
    } else if !copy.is_finished() {
        copy.finish_and_clear();
    }
    stream.set_prefix(status.phase.clone());
    stream.set_message(stream_message(status));
}

fn copy_message(status: &Status) -> String {
    let Some(overall) = &status.overall else { return String::new() };
    let rate = if overall.rows_loaded == 0 { status.rates.copied_rows_per_s } else { status.rates.loaded_rows_per_s };
    let eta = overall.eta_s.map_or(String::new(), |left| format!(", {} left", seconds(left)));
    format!("{}/{} rows, {}{eta}", grouped(overall.rows_loaded), grouped(overall.rows_total), per_second(rate))
}

fn stream_message(status: &Status) -> String {
    let mut message =
        format!("{} applied, {}", grouped(status.conservation.applied), per_second(status.rates.applied_per_s));
    if let (None, Some(ms)) = (&status.overall, status.lag.ms) {
        message.push_str(&format!(", lag {}", millis(ms)));
    }
    if status.conservation.quarantined > 0 {
        message.push_str(&format!(", {} in quarantine", grouped(status.conservation.quarantined)));
    }
    if let Some(reason) = &status.reason {
        message.push_str(&format!(" · {reason}"));
    }
    if let Some(retrying) = &status.retrying {
        message.push_str(&format!(" · {} retrying: {}", retrying.side, retrying.failure));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Counters, Rates};
    use crossfade_control::Migration;
    use crossfade_event::TableName;
    use indicatif::TermLike;
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    fn status() -> Status {
        let counters = Counters::new();
        let table = TableName::new("main", "orders");
        counters.estimate(&table, 1_000);
        counters.ingested(500, 1, [(&table, 500)]);
        let rates = Rates { copied_rows_per_s: 250.0, ..Rates::default() };
        let mut status = Status::new("shop", 0, &Migration::default(), &counters.totals(), rates).run_by(1);
        status.phase = "backfilling".into();
        status
    }

    /// A terminal that keeps what was written to it.
    #[derive(Debug, Clone, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl Screen {
        fn take(&self) -> String {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            120
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)?;
            self.write_str("\n")
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn plain_lines_come_every_five_seconds_and_at_every_change() {
        let (mut said, mut last) = (None, None);
        let mut status = status();
        let mut due = |s: u64, status: &Status| is_due(Duration::from_secs(s), status, &mut said, &mut last);
        assert!(due(0, &status));
        assert!(!due(4, &status));
        assert!(due(5, &status));
        status.phase = "catching up".into();
        assert!(due(6, &status));
        assert!(!due(10, &status));
        status.standing = Standing::Paused;
        assert!(due(10, &status));
        assert!(due(15, &status));
    }

    #[test]
    fn bars_show_rate_and_time_left_and_go_when_the_copy_is_in() {
        let screen = Screen::default();
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(screen.clone()), 255);
        let mut terminal = Terminal::bars(target);
        let mut status = status();
        terminal.show(Duration::ZERO, &status);
        redraw(&terminal);
        let seen = screen.take();
        assert!(seen.contains("copy [") && seen.contains("0/1,000 rows, 250/s, 2 s left"), "{seen}");
        assert!(seen.contains("backfilling 0 applied"), "{seen}");
        status.overall = None;
        status.lag.ms = Some(30);
        status.phase = "shadowing".into();
        terminal.show(Duration::from_secs(1), &status);
        screen.take();
        redraw(&terminal);
        let seen = screen.take();
        assert!(!seen.contains("rows,") && seen.contains("shadowing 0 applied, 0/s, lag 30 ms"), "{seen}");
        terminal.say("made the target's tables");
        terminal.finish();
        assert!(screen.take().contains("made the target's tables"));
    }

    fn redraw(terminal: &Terminal) {
        if let Shown::Bars { copy, stream, .. } = &terminal.0 {
            if !copy.is_finished() {
                copy.force_draw();
            }
            stream.force_draw();
        }
    }
}
