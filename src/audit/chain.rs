//! The line: envelope, body, and the two suffixes that chain and authenticate it.
//!
//! A line is one JSON object. Its keys are `schema_version`, `seq`, `time`, `job_id`, `run_id`, `prev_hash`, then the
//! body with `event` first, then `hash`, then with a key `mac`. `hash` is the SHA-256 of the line with `,"hash":"…"`
//! and `,"mac":"…"` taken out (closing brace kept, newline not counted), `mac` the HMAC-SHA-256 of the same bytes, and
//! `prev_hash` the SHA-256 of the whole line before, newline not counted; 64 zeros where there is none. `seq` starts
//! at 0 with each run. So `sed` and `sha256sum` check a file: `docs/audit.md`.
//!
//! Pure: no clock, no descriptor. Invariant: a line that was not written does not advance the chain.

use super::record::{Body, EvaluationTerminated};
use crate::settings::AuditKey;
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// The `prev_hash` of the first line of a file.
pub const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Bytes as lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// SHA-256 in hex.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// HMAC-SHA-256 in hex. `None` never happens: HMAC takes a key of any length (RFC 2104).
#[must_use]
pub fn hmac_sha256(key: &AuditKey, bytes: &[u8]) -> Option<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.0).ok()?;
    mac.update(bytes);
    Some(hex(&mac.finalize().into_bytes()))
}

/// Where one sink's chain stands.
#[derive(Debug, Clone)]
pub struct Chain {
    job_id: String,
    run_id: String,
    key: Option<AuditKey>,
    seq: u64,
    prev: String,
}

impl Chain {
    /// A run that begins after the line whose hash is `prev` (`ZEROS` for none).
    #[must_use]
    pub const fn new(job_id: String, run_id: String, prev: String, key: Option<AuditKey>) -> Self {
        Self { job_id, run_id, key, seq: 0, prev }
    }

    /// The next line, without its newline.
    ///
    /// # Errors
    /// Where the body cannot be JSON; no `Body` is such.
    pub fn render(&self, body: &Body, time: &str) -> Result<String, serde_json::Error> {
        let job_id = serde_json::to_string(&self.job_id)?;
        let body = serde_json::to_string(body)?;
        let body = body.strip_prefix('{').and_then(|body| body.strip_suffix('}')).unwrap_or_default();
        let mut line = format!(
            r#"{{"schema_version":1,"seq":{},"time":"{time}","job_id":{job_id},"run_id":"{}","prev_hash":"{}",{body}}}"#,
            self.seq, self.run_id, self.prev
        );
        let hash = sha256(line.as_bytes());
        let mac = self.key.as_ref().and_then(|key| hmac_sha256(key, line.as_bytes()));
        line.pop();
        let _ = write!(line, r#","hash":"{hash}""#); // Writing to a String cannot fail.
        if let Some(mac) = mac {
            let _ = write!(line, r#","mac":"{mac}""#);
        }
        line.push('}');
        Ok(line)
    }

    /// `line` was written.
    pub fn advance(&mut self, line: &str) {
        self.seq = self.seq.saturating_add(1);
        self.prev = sha256(line.as_bytes());
    }

    /// The final record in at most `limit` bytes (4000 or more), the least important parts left out first.
    ///
    /// # Errors
    /// As `render`.
    pub fn render_seal(
        &self,
        body: &EvaluationTerminated,
        time: &str,
        limit: usize,
    ) -> Result<String, serde_json::Error> {
        let mut body = Box::new(body.clone());
        if !body.duration.is_finite() {
            body.duration = 0.0; // JSON has no NaN; serde_json would write null.
        }
        let mut body = Body::EvaluationTerminated(body);
        let mut chain = self.clone();
        let mut line = chain.render(&body, time)?;
        for step in 0..CUTS {
            if line.len() <= limit {
                break;
            }
            if let Body::EvaluationTerminated(body) = &mut body {
                cut(body, step);
            }
            if step + 1 == CUTS {
                shorten(&mut chain.job_id, 48);
            }
            line = chain.render(&body, time)?;
        }
        Ok(line)
    }
}

const CUTS: u8 = 6;

/// One more step of leaving out, from what is nice to have to what is not missed by an exit status.
fn cut(body: &mut EvaluationTerminated, step: u8) {
    match step {
        0 => {
            body.process.args = None;
            body.errors.truncate(7);
            body.errors.iter_mut().for_each(|error| shorten(error, 160));
            body.errors.insert(0, "this copy of the record is shortened".to_owned());
        }
        1 => {
            body.escalation.iter_mut().for_each(|rung| rung.errors.clear());
            body.detections.truncate(8);
            body.cleanup.paths.truncate(8);
            body.cleanup.paths.iter_mut().for_each(|path| path.why = None);
            body.risk.adjustments.truncate(8);
        }
        2 => {
            body.enforcement_errors.clear();
            body.errors.truncate(1);
            body.detections.truncate(2);
            body.cleanup.paths.truncate(2);
            body.cleanup.paths.iter_mut().for_each(|path| shorten(&mut path.path, 160));
            shorten(&mut body.process.executable, 160);
        }
        3 => {
            body.detections.clear();
            body.cleanup.paths.clear();
            body.risk.adjustments.clear();
            body.escalation.truncate(6);
        }
        4 => body.escalation.clear(),
        _ => {
            body.enforcement.clear();
            shorten(&mut body.process.executable, 48);
            for word in [&mut body.reason, &mut body.status, &mut body.cleanup_status, &mut body.fault] {
                shorten(word, 48);
            }
            shorten(&mut body.risk.level, 48);
            shorten(&mut body.process.args_sha256, 64);
            for word in [&mut body.process.start, &mut body.process.end, &mut body.process.signal].into_iter().flatten()
            {
                shorten(word, 48);
            }
        }
    }
}

/// At most `limit` bytes, whole characters, and no control characters (each would be six bytes of JSON).
fn shorten(text: &mut String, limit: usize) {
    let mut length = 0_usize;
    *text = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take_while(|c| {
            length = length.saturating_add(c.len_utf8());
            length <= limit
        })
        .collect();
}
