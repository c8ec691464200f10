//! The last lines of the log, for whoever asks over NodeManager: a layer that the embedder may
//! install beside its own.

use std::{
    collections::VecDeque,
    fmt::{self, Write},
    sync::Arc,
    time::SystemTime,
};

use parking_lot::Mutex;
use tokio::sync::broadcast;
use tracing::{Event, Level, Subscriber, field::Visit};
use tracing_subscriber::{Layer, layer::Context};

/// Lines that are kept.
pub const LINES: usize = 1000;

/// Longest line in bytes; longer ones are cut.
pub const LINE_MAX: usize = 4096;

/// One line.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LogLine {
    /// When it was written.
    pub at: SystemTime,
    /// How bad it is.
    pub level: Level,
    /// Where in the program.
    pub target: &'static str,
    /// Text and fields.
    pub message: Arc<str>,
}

/// The last lines of the log. Clones are one.
#[derive(Debug, Clone)]
pub struct LogRing {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    lines: Mutex<VecDeque<LogLine>>,
    live: broadcast::Sender<LogLine>,
}

impl Default for LogRing {
    fn default() -> Self {
        Self::new()
    }
}

impl LogRing {
    /// Returns an empty ring.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                lines: Mutex::default(),
                live: broadcast::Sender::new(LINES),
            }),
        }
    }

    /// Returns a layer that writes into the ring; debug and above.
    pub fn layer<S: Subscriber>(&self) -> impl Layer<S> + use<S> {
        RingLayer(self.clone())
    }

    /// Returns up to `count` of the last lines at `level` or worse, and what follows them.
    pub fn tail(&self, count: usize, level: Level) -> (Vec<LogLine>, broadcast::Receiver<LogLine>) {
        let lines = self.inner.lines.lock();
        let mut last: Vec<_> = lines
            .iter()
            .rev()
            .filter(|line| line.level <= level)
            .take(count.min(LINES))
            .cloned()
            .collect();
        last.reverse();
        (last, self.inner.live.subscribe())
    }

    fn push(&self, line: LogLine) {
        let mut lines = self.inner.lines.lock();
        if lines.len() >= LINES {
            lines.pop_front();
        }
        lines.push_back(line.clone());
        // Fails when nobody follows.
        let _ = self.inner.live.send(line);
    }
}

struct RingLayer(LogRing);

impl<S: Subscriber> Layer<S> for RingLayer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let metadata = event.metadata();
        if *metadata.level() > Level::DEBUG {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let mut message = text.message;
        message.push_str(&text.fields);
        if message.len() > LINE_MAX {
            let mut end = LINE_MAX;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        self.0.push(LogLine {
            at: SystemTime::now(),
            level: *metadata.level(),
            target: metadata.target(),
            message: message.into(),
        });
    }
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn the_last_lines_are_kept_by_level_and_followed() {
        let ring = LogRing::new();
        let subscriber = tracing_subscriber::registry().with(ring.layer());
        let (_, mut live) = ring.tail(0, Level::INFO);
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..LINES + 100 {
                tracing::info!(n, "counted");
            }
            tracing::debug!("detail");
            tracing::trace!("too much");
        });
        let (lines, _) = ring.tail(2, Level::INFO);
        let texts: Vec<_> = lines.iter().map(|line| &*line.message).collect();
        assert_eq!(texts, ["counted n=1098", "counted n=1099"]);
        let (lines, _) = ring.tail(usize::MAX, Level::DEBUG);
        assert_eq!(lines.len(), LINES);
        assert_eq!(&*lines[LINES - 1].message, "detail");
        assert!(matches!(
            live.try_recv(),
            Err(broadcast::error::TryRecvError::Lagged(_))
        ));
    }
}
