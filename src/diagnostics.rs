//! gracekeeper's own diagnostics (`--log-level`, `--log-format`), as a subscriber of `tracing`: one line on stderr each.
//!
//! Invariant: a line that nobody takes at once is dropped. A reader that is stuck holds up neither the ladder nor the seal.

use crate::audit::stderr::StderrSink;
use crate::audit::time::rfc3339;
use crate::settings::LogFormat;
use crate::settings::cli::is_hidden;
use crate::switches::without;
use serde_json::Value;
use std::fmt::{Debug, Write as _};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber, level_filters::LevelFilter};

/// What a pipe takes in one piece or not at all (pipe(7), PIPE_BUF), the newline included.
const LONGEST: usize = 4095;

/// From here on lines of `level` and above are written.
pub fn start(level: Level, format: LogFormat) {
    // Refused only where there is one already: in a test that runs more than once in a process.
    let _ = tracing::subscriber::set_global_default(Diagnostics { level, format, sink: Mutex::new(None) });
}

#[derive(Debug)]
struct Diagnostics {
    level: Level,
    format: LogFormat,
    /// Opened for the first line: most runs have none.
    sink: Mutex<Option<StderrSink>>,
}

/// An event's message and its other fields.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" { self.message = text } else { self.others.push((field.name(), text.into())) }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.others.push((field.name(), value.into()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

impl Fields {
    fn text(&self, time: &str, level: Level, target: &str) -> String {
        let mut line = format!("{time} {level:>5} {target}: {}", self.message);
        for (name, value) in &self.others {
            // A String takes every write.
            let _ = match value {
                Value::String(text) => write!(line, " {name}={text}"),
                other => write!(line, " {name}={other}"),
            };
        }
        let mut shown = String::with_capacity(line.len());
        for c in line.chars() {
            if is_hidden(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
        }
        shown.truncate(shown.floor_char_boundary(LONGEST));
        shown
    }

    fn json(&self, time: &str, level: Level, target: &str) -> String {
        // What is cut is a value, and not the line: it stays JSON.
        let cut = |value: &Value| match value {
            Value::String(text) => text.get(..text.floor_char_boundary(LONGEST / 8)).into(),
            other => other.clone(),
        };
        let message = Value::from(self.message.as_str());
        let all = std::iter::once(("message", &message)).chain(self.others.iter().map(|(name, value)| (*name, value)));
        let fields: serde_json::Map<_, _> = all.take(4).map(|(name, value)| (name.to_owned(), cut(value))).collect();
        serde_json::json!({"timestamp": time, "level": level.as_str(), "target": target, "fields": fields}).to_string()
    }
}

impl Subscriber for Diagnostics {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= &self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level.into())
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let (time, meta) = (rfc3339(SystemTime::now()), event.metadata());
        let line = match self.format {
            LogFormat::Text => fields.text(&time, *meta.level(), meta.target()),
            LogFormat::Json => fields.json(&time, *meta.level(), meta.target()),
        };
        if without("impatience") {
            crate::complain(&line);
        } else if let Ok(mut sink) = self.sink.try_lock() {
            let _ = sink.get_or_insert_with(StderrSink::open).write_within(&line, Duration::ZERO);
        }
    }

    // There are no spans here.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(message: &str) -> Fields {
        Fields { message: message.to_owned(), others: vec![("signal", "SIGTERM".into()), ("sender", 7.into())] }
    }

    #[test]
    fn one_line_whatever_the_message() {
        let line = fields("a\nb\u{202e}").text("T", Level::INFO, "here");
        assert_eq!(line, "T  INFO here: a\\nb\\u{202e} signal=SIGTERM sender=7");
        let long = fields(&"\u{e9}\n".repeat(9000));
        assert!(long.text("T", Level::WARN, "here").len() <= LONGEST);
        let json = long.json("T", Level::WARN, "here");
        assert!(json.len() <= LONGEST && !json.contains('\n'), "{}", json.len());
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (&json["level"], &json["fields"]["signal"], &json["fields"]["sender"]),
            (&"WARN".into(), &"SIGTERM".into(), &7.into())
        );
    }
}
