//! `gracekeeper verify FILE [--json] [--audit-key-env NAME] [--from RUN_ID]`: what a stranger asks of a file.
//!
//! Exit status: 0 sealed, 3 cut off, 4 tampered, 125 where the question cannot be answered. It changes nothing, and
//! prints neither the key nor anything from the file's lines.

use crate::audit::verify::{Report, State, check_from};
use crate::settings::AuditKey;
use lexopt::{Arg, Parser, ValueExt as _};
use std::ffi::{OsStr, OsString};
use std::io::{BufReader, Write as _};
use std::os::unix::ffi::OsStringExt as _;

/// Exit status where the question cannot be answered.
const CANNOT: u8 = 125;

struct Asked {
    file: OsString,
    json: bool,
    key: Option<AuditKey>,
    from: Option<String>,
}

/// Runs the verb with the words after `verify`; answers the exit status.
#[must_use]
pub fn run(args: &[OsString]) -> u8 {
    let asked = match parse(args) {
        Ok(asked) => asked,
        Err(why) => return fail(&why),
    };
    let name = asked.file.to_string_lossy().into_owned();
    let report = match super::input::open(asked.file.as_ref())
        .and_then(|file| check_from(BufReader::new(file), asked.key.as_ref(), asked.from.as_deref()))
    {
        Ok(report) => report,
        Err(error) => return fail(&format!("{name}: {error}")),
    };
    let text = if asked.json { json(&report) } else { sentence(&report, &name) };
    if writeln!(std::io::stdout().lock(), "{text}").is_err() {
        return CANNOT; // Nobody read the answer, so none was given.
    }
    match report.state {
        State::Sealed => 0,
        State::CutOff => 3,
        State::Tampered => 4,
    }
}

fn fail(why: &str) -> u8 {
    let _ = writeln!(std::io::stderr().lock(), "gracekeeper verify: {why}"); // There is nowhere else to say it.
    CANNOT
}

fn parse(args: &[OsString]) -> Result<Asked, String> {
    let mut parser = Parser::from_args(args);
    let (mut file, mut json, mut key, mut from) = (None, false, None, None);
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match arg {
            Arg::Long("json") => json = true,
            Arg::Long("audit-key-env") => {
                let name = parser.value().and_then(|value| value.string()).map_err(|error| error.to_string())?;
                key = Some(read_key(&name)?);
            }
            Arg::Long("from") => {
                from = Some(parser.value().and_then(|value| value.string()).map_err(|error| error.to_string())?);
            }
            Arg::Value(value) if file.is_none() => file = Some(value),
            other => return Err(other.unexpected().to_string()),
        }
    }
    let file = file.ok_or("usage: gracekeeper verify FILE [--json] [--audit-key-env NAME] [--from RUN_ID]")?;
    Ok(Asked { file, json, key, from })
}

/// The key that the variable holds. `var_os` would panic on none of these, but an odd name cannot be a variable.
fn read_key(name: &str) -> Result<AuditKey, String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err("--audit-key-env: not a variable's name".to_owned());
    }
    match std::env::var_os(OsStr::new(name)) {
        Some(key) if !key.is_empty() => Ok(AuditKey(key.into_vec())),
        _ => Err(format!("--audit-key-env: {name} is not set")),
    }
}

fn json(report: &Report) -> String {
    serde_json::to_string(report).unwrap_or_else(|_| "{}".to_owned())
}

fn sentence(report: &Report, name: &str) -> String {
    let state = match report.state {
        State::Sealed => "sealed",
        State::CutOff => "cut off",
        State::Tampered if report.contradicted => "TAMPERED",
        State::Tampered => "NOT AUTHENTICATED",
    };
    let mut text =
        format!("{name}: {state}; lines {}, runs {}, sealed {}", report.lines, report.runs, report.sealed_runs);
    if let (Some(line), Some(why)) = (report.line, &report.why) {
        text.push_str(&format!("; line {line}: {why}"));
    }
    if report.unauthenticated_runs > 0 {
        text.push_str(&format!("; runs without a MAC {}", report.unauthenticated_runs));
    }
    if report.mac == "not_checked" {
        text.push_str("; MACs not checked (--audit-key-env)");
    }
    text
}
