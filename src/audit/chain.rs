//! The chain: each line carries the SHA-256 of the line before it and of itself, and with a key an HMAC. Pure.
//!
//! A line is `{"schema_version":1,…,"prev_hash":"…",BODY,"hash":"…"}`, with a key `,"mac":"…"` after the hash. `hash` and
//! `mac` are over the line's bytes without these suffixes, so `sed` and `sha256sum` can check a file (docs/audit.md).

use super::record::Body;
use crate::settings::AuditKey;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// What the first record of a chain has as `prev_hash`.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// SHA-256 in hex.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// HMAC-SHA-256 in hex.
#[must_use]
pub fn hmac(key: &AuditKey, bytes: &[u8]) -> String {
    // HMAC takes a key of any length (RFC 2104), so the error arm is never taken; an empty MAC would not verify.
    Hmac::<Sha256>::new_from_slice(&key.0)
        .map(|mac| hex(&mac.chain_update(bytes).finalize().into_bytes()))
        .unwrap_or_default()
}

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The state from one line to the next.
#[derive(Debug, Clone)]
pub struct Chain {
    prev_hash: String,
    seq: u64,
    job_id: String,
    run_id: String,
    key: Option<AuditKey>,
}

impl Chain {
    /// Continues after the line whose SHA-256 is `prev_hash`, or begins with `GENESIS`.
    #[must_use]
    pub const fn new(prev_hash: String, job_id: String, run_id: String, key: Option<AuditKey>) -> Self {
        Self { prev_hash, seq: 0, job_id, run_id, key }
    }

    /// The next line, without its newline. `time` is RFC 3339.
    ///
    /// # Errors
    /// What the serializer says; no record type of ours can make it fail.
    pub fn line(&self, time: &str, body: &Body) -> Result<String, serde_json::Error> {
        let body = serde_json::to_string(body)?;
        let mut line = format!(
            "{{\"schema_version\":1,\"seq\":{},\"time\":\"{time}\",\"job_id\":{},\"run_id\":\"{}\",\"prev_hash\":\"{}\",{}",
            self.seq,
            serde_json::to_string(&self.job_id)?,
            self.run_id,
            self.prev_hash,
            body.get(1..).unwrap_or_default(),
        );
        let hash = sha256(line.as_bytes());
        let mac = self.key.as_ref().map(|key| hmac(key, line.as_bytes()));
        line.truncate(line.len().saturating_sub(1));
        line.push_str(",\"hash\":\"");
        line.push_str(&hash);
        if let Some(mac) = mac {
            line.push_str("\",\"mac\":\"");
            line.push_str(&mac);
        }
        line.push_str("\"}");
        Ok(line)
    }

    /// `line` was written: the next one refers to it.
    pub fn advance(&mut self, line: &str) {
        self.prev_hash = sha256(line.as_bytes());
        self.seq = self.seq.saturating_add(1);
    }
}

/// A line taken apart again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts<'a> {
    /// The bytes that hash and MAC are over.
    pub signed: Vec<u8>,
    /// The stated hash.
    pub hash: &'a str,
    /// The stated MAC.
    pub mac: Option<&'a str>,
}

/// Takes the suffixes off a line. `None` where it has none of the right form.
#[must_use]
pub fn take_apart(line: &[u8]) -> Option<Parts<'_>> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix("\"}")?;
    let is_hex = |h: &&str| h.len() == 64 && h.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let (rest, last) = text.split_at_checked(text.len().checked_sub(64)?)?;
    let last = Some(last).filter(is_hex)?;
    let (signed, hash, mac) = match rest.strip_suffix("\",\"mac\":\"") {
        Some(rest) => {
            let (rest, hash) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
            (rest.strip_suffix(",\"hash\":\"")?, Some(hash).filter(is_hex)?, Some(last))
        }
        None => (rest.strip_suffix(",\"hash\":\"")?, last, None),
    };
    let mut signed = signed.as_bytes().to_vec();
    signed.push(b'}');
    Some(Parts { signed, hash, mac })
}
