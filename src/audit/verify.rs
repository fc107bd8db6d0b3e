//! Reading a file back: is every line as it was written, and does every run end in its seal?
//!
//! Streams, one line of at most 1 MiB in memory. Decides from bytes alone. What it cannot see without a key: a file
//! rewritten from the first changed line to its end, and whole runs cut from the end. Empty lines are skipped: on stderr
//! gracekeeper makes them itself (`stderr`).
//! Invariant: a line that does not check is never part of a sealed file; where a key is given, nor is a run without MACs, which
//! anybody can write.

use super::chain::{self, ZEROS};
use crate::settings::AuditKey;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Read as _};

/// A longer line is nobody's record.
pub const LINE_LIMIT: usize = 1 << 20;

/// The verdict on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Every run ends in its seal.
    Sealed,
    /// Nothing contradicts, but a run has no seal: its supervisor was killed from outside, or the end was cut off.
    CutOff,
    /// Something was changed, removed, added or reordered, or may have been: a run without MACs where a key was given.
    Tampered,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The verdict.
    pub state: State,
    /// Lines read, empty ones included, up to and including the first bad one.
    pub lines: u64,
    /// Runs begun.
    pub runs: u64,
    /// Runs that end in their seal.
    pub sealed_runs: u64,
    /// The first line at fault, from 1.
    pub line: Option<u64>,
    /// What is wrong with it.
    pub why: Option<String>,
    /// `checked`, `not_checked` (there are some, no key was given) or `none`.
    pub mac: &'static str,
    /// A hash, a MAC or the order is wrong. Where a tampered file is not contradicted, it only has runs that the key says nothing of.
    pub contradicted: bool,
    /// Where a key was given: runs without a MAC. Where nothing else is wrong, `line` is where the first of them begins.
    pub unauthenticated_runs: u64,
}

/// The keys that chain; duplicates of them are refused by serde.
#[derive(Deserialize)]
struct Envelope {
    schema_version: u64,
    seq: u64,
    event: String,
    run_id: String,
    prev_hash: String,
}

/// Why a line is not good.
enum Bad {
    /// It is no record at all, as a torn line would be.
    NoRecord(&'static str),
    /// It is one, but was not written like this.
    Changed(&'static str),
}

/// A line's envelope, once its own hash and MAC are right; and whether it has a MAC.
fn check_line(line: &[u8], key: Option<&AuditKey>) -> Result<(Envelope, bool), Bad> {
    let text = std::str::from_utf8(line).map_err(|_| Bad::NoRecord("not UTF-8"))?;
    let open = text.strip_suffix("\"}").ok_or(Bad::NoRecord("does not end like a record"))?;
    let (open, mac) = match take_suffix(open, ",\"mac\":\"") {
        Some((rest, mac)) => (rest.strip_suffix('"').ok_or(Bad::NoRecord("does not end like a record"))?, Some(mac)),
        None => (open, None),
    };
    let (covered, hash) = take_suffix(open, ",\"hash\":\"").ok_or(Bad::NoRecord("has no hash at its end"))?;
    let covered = format!("{covered}}}");
    if chain::sha256(covered.as_bytes()) != hash {
        return Err(Bad::Changed("its hash does not match its bytes"));
    }
    if let (Some(key), Some(mac)) = (key, mac)
        && chain::hmac_sha256(key, covered.as_bytes()).as_deref() != Some(mac)
    {
        return Err(Bad::Changed("its MAC does not match its bytes"));
    }
    let envelope: Envelope = serde_json::from_str(text).map_err(|_| Bad::Changed("is not a record"))?;
    if envelope.schema_version != 1 {
        return Err(Bad::Changed("has an unknown schema_version"));
    }
    Ok((envelope, mac.is_some()))
}

/// `…MARK` and 64 characters of hex at the end of `text`.
fn take_suffix<'a>(text: &'a str, mark: &str) -> Option<(&'a str, &'a str)> {
    let (rest, hex) = text.split_at_checked(text.len().checked_sub(64)?)?;
    let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_hex { Some((rest.strip_suffix(mark)?, hex)) } else { None }
}

/// Why a line is not the one before's next.
const NOT_NEXT: &str = "does not follow the line before it: lines were changed, removed, added or reordered";

/// A torn line, as far as it goes: a file system that lost its power may have zeros behind it.
struct Torn<'a>(&'a [u8]);

impl<'a> Torn<'a> {
    fn new(line: &'a [u8]) -> Self {
        Self(line.split(|byte| *byte == 0).next().unwrap_or_default())
    }

    /// Whether it may be a run's first record.
    fn is_first(&self) -> bool {
        agree(self.0, br#"{"schema_version":1,"seq":0,"time":""#)
    }

    /// Whether it may follow the line with this hash. Inside a string the mark's quotes would be escaped.
    fn follows(&self, prev: &str) -> bool {
        let mark = br#","prev_hash":""#;
        let at = self.0.windows(mark.len()).position(|bytes| bytes == mark);
        let link = at.and_then(|at| self.0.get(at.saturating_add(mark.len())..));
        link.is_none_or(|link| agree(link, prev.as_bytes()))
    }
}

/// As far as both go.
fn agree(text: &[u8], with: &[u8]) -> bool {
    text.iter().zip(with).all(|(a, b)| a == b)
}

/// The run that is going on.
struct Run {
    id: String,
    next_seq: u64,
    sealed: bool,
    has_macs: bool,
}

/// A run without a MAC where a key was given.
struct Unauthenticated {
    line: u64,
    run: u64,
    /// Whether one with MACs came after it.
    before_a_key: bool,
}

/// What has been read so far.
struct Reader<'a> {
    key: Option<&'a AuditKey>,
    report: Report,
    /// Hash of the line before.
    prev: String,
    run: Option<Run>,
    /// The first run that the key says nothing of.
    unauthenticated: Option<Unauthenticated>,
    /// The number of a line that is no record, and why: only right where a torn line is followed by the next run. Of several, torn one
    /// after the other, the first.
    torn: Option<(u64, &'static str)>,
    /// The number of the last line that was not empty.
    before: u64,
    /// An empty line came after it.
    empty: bool,
}

impl Reader<'_> {
    fn tampered(mut self, why: &str) -> Report {
        self.report.state = State::Tampered;
        self.report.contradicted = true;
        self.report.line = Some(self.report.lines);
        self.report.why = Some(why.to_owned());
        self.report
    }

    fn cut_off(&mut self, line: u64, why: &str) {
        if self.report.state == State::Sealed {
            self.report.state = State::CutOff;
            self.report.line = Some(line);
            self.report.why = Some(why.to_owned());
        }
    }

    /// A run begins: is it one that the key says something of?
    fn authenticate(&mut self, has_macs: bool) {
        if has_macs {
            self.unauthenticated.iter_mut().for_each(|first| first.before_a_key = true);
        } else if self.key.is_some() {
            self.report.unauthenticated_runs = self.report.unauthenticated_runs.saturating_add(1);
            let (line, run) = (self.report.lines, self.report.runs);
            self.unauthenticated.get_or_insert(Unauthenticated { line, run, before_a_key: false });
        }
    }

    /// One whole line. `Err` is what makes the file tampered.
    fn step(&mut self, line: &[u8]) -> Result<(), &'static str> {
        self.report.lines = self.report.lines.saturating_add(1);
        if line.is_empty() {
            self.empty = true;
            return Ok(());
        }
        let before = std::mem::replace(&mut self.before, self.report.lines);
        let empty = std::mem::take(&mut self.empty);
        let (record, has_mac) = match check_line(line, self.key) {
            Ok(record) => record,
            Err(Bad::Changed(why)) => return Err(why),
            Err(Bad::NoRecord(why)) => {
                // The next run's first record may have been torn as well.
                if let Some((first, why)) = self.torn.filter(|_| !Torn::new(line).is_first()) {
                    self.report.lines = first;
                    return Err(why);
                }
                if !empty && !Torn::new(line).follows(&self.prev) {
                    return Err(NOT_NEXT);
                }
                // Whether it is as it was written only the next line's prev_hash can say.
                self.torn.get_or_insert((self.report.lines, why));
                self.prev = chain::sha256(line);
                return Ok(());
            }
        };
        let first_of_run = self.run.as_ref().is_none_or(|run| run.id != record.run_id);
        if let Some((first, why)) = self.torn.take() {
            if record.seq != 0 || !first_of_run {
                self.report.lines = first;
                return Err(why);
            }
            self.cut_off(first, "a torn line: its run has no seal");
            self.run = None;
        }
        if empty && record.seq == 0 && first_of_run && record.prev_hash == chain::sha256(b"") {
            // Its writer found an empty line at the end of the file, and took that for the one before.
            self.cut_off(
                self.report.lines,
                "the run that begins here follows an empty line: what was before it is not known",
            );
            self.prev.clone_from(&record.prev_hash);
        }
        if record.prev_hash != self.prev {
            return Err(if self.prev == ZEROS {
                "does not begin a file: lines before it are missing"
            } else {
                NOT_NEXT
            });
        }
        match &mut self.run {
            Some(run) if !first_of_run => {
                if run.sealed {
                    return Err("a record after the seal of its run");
                }
                if record.seq != run.next_seq {
                    return Err("its seq is not the next one of its run");
                }
                if run.has_macs != has_mac {
                    return Err(if has_mac {
                        "has a MAC, and its run has none"
                    } else {
                        "has no MAC, and its run has"
                    });
                }
                run.next_seq = run.next_seq.saturating_add(1);
            }
            _ => {
                if record.seq != 0 {
                    return Err("the run does not begin with seq 0");
                }
                if self.run.as_ref().is_some_and(|run| !run.sealed) {
                    self.cut_off(before, "the run that ends here has no seal");
                }
                self.report.runs = self.report.runs.saturating_add(1);
                self.run = Some(Run { id: record.run_id, next_seq: 1, sealed: false, has_macs: has_mac });
                self.authenticate(has_mac);
            }
        }
        if record.event == "evaluation_terminated" {
            if let Some(run) = &mut self.run {
                run.sealed = true;
            }
            self.report.sealed_runs = self.report.sealed_runs.saturating_add(1);
        }
        if has_mac {
            self.report.mac = if self.key.is_some() { "checked" } else { "not_checked" };
        }
        self.prev = chain::sha256(line);
        Ok(())
    }
}

/// Whether the line begins the run; and what it says was before it.
fn begins(line: &[u8], run_id: &str) -> Option<String> {
    let record: Envelope = serde_json::from_slice(line).ok()?;
    (record.seq == 0 && record.run_id == run_id).then_some(record.prev_hash)
}

/// Reads a file to its first bad line, or to its end.
///
/// # Errors
/// What reading answered.
pub fn check(input: impl BufRead, key: Option<&AuditKey>) -> io::Result<Report> {
    check_from(input, key, None)
}

/// The same from the run `from` on: of what is before it nothing is asked, nor said.
///
/// # Errors
/// What reading answered; `NotFound` where no line begins that run.
pub fn check_from(mut input: impl BufRead, key: Option<&AuditKey>, mut from: Option<&str>) -> io::Result<Report> {
    let report = Report {
        state: State::Sealed,
        lines: 0,
        runs: 0,
        sealed_runs: 0,
        line: None,
        why: None,
        mac: "none",
        contradicted: false,
        unauthenticated_runs: 0,
    };
    let prev = ZEROS.to_owned();
    let mut reader =
        Reader { key, report, prev, run: None, unauthenticated: None, torn: None, before: 0, empty: false };
    let mut line = Vec::new();
    let limit = u64::try_from(LINE_LIMIT).unwrap_or(u64::MAX).saturating_add(1);
    loop {
        line.clear();
        input.by_ref().take(limit).read_until(b'\n', &mut line)?;
        let whole = line.strip_suffix(b"\n");
        if let Some(run_id) = from {
            let Some(prev) = begins(whole.unwrap_or_default(), run_id) else {
                if line.is_empty() {
                    return Err(io::Error::new(io::ErrorKind::NotFound, "no run of this run_id begins in it"));
                }
                // What is longer than a line may be counts for as many as it takes.
                reader.report.lines = reader.report.lines.saturating_add(1);
                continue;
            };
            from = None;
            reader.prev = prev;
        }
        match whole {
            Some(whole) => {
                if let Err(why) = reader.step(whole) {
                    return Ok(reader.tampered(why));
                }
            }
            None if line.len() > LINE_LIMIT => {
                reader.report.lines = reader.report.lines.saturating_add(1);
                return Ok(reader.tampered("longer than 1 MiB"));
            }
            None => break,
        }
    }
    if let Some((first, why)) = reader.torn.filter(|_| line.is_empty() || !Torn::new(&line).is_first()) {
        reader.report.lines = first;
        return Ok(reader.tampered(why)); // Whole but no record, and nothing after it that accounts for it.
    }
    let (lines, before) = (reader.report.lines, reader.before);
    if !line.is_empty() && !reader.empty && !Torn::new(&line).follows(&reader.prev) {
        reader.report.lines = lines.saturating_add(1);
        return Ok(reader.tampered(NOT_NEXT));
    }
    if !line.is_empty() {
        reader.report.lines = lines.saturating_add(1);
        reader.cut_off(lines.saturating_add(1), "the last line is torn");
    } else if before == 0 {
        reader.cut_off(0, "there is no record");
    } else if reader.run.as_ref().is_some_and(|run| !run.sealed) {
        reader.cut_off(before, "the last run has no seal");
    }
    if let Some(Unauthenticated { line, run, before_a_key }) = reader.unauthenticated {
        let when = if before_a_key { "before a key was used" } else { "without the key" };
        let why = Some(format!("run {run} has no MAC: written {when}, or forged"));
        return Ok(Report { state: State::Tampered, line: Some(line), why, ..reader.report });
    }
    Ok(reader.report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_mutation_of_the_corpus_panics_and_none_is_sealed_anew(bytes in crate::corpus::mutated("verify")) {
            let known = crate::corpus::files("verify");
            let report = check(bytes.as_slice(), None).unwrap();
            // Sealed is only what its own writer sealed: whole runs from the beginning of a file. An empty line says nothing.
            let lines = |bytes: &[u8]| bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(<[u8]>::to_vec).collect::<Vec<_>>();
            if report.state == State::Sealed {
                prop_assert!(bytes.ends_with(b"\n"));
                prop_assert!(known.iter().any(|(_, file)| lines(file).starts_with(&lines(&bytes))));
            }
            let with_key = check(bytes.as_slice(), Some(&AuditKey(b"another".to_vec()))).unwrap();
            prop_assert_ne!(with_key.state, State::Sealed);
        }
    }
}
