//! argv to a verb and raw values. Decides nothing about their meaning: that is `resolve`.

use super::table::{DURATION, OPTIONS, Opt, SIZE, YES_NO, find};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;

/// A usage error: one line, exit status 125, nothing run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageError(pub String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Whether a character moves, hides or reorders what stands around it: controls, line and paragraph separators, the
/// bidirectional controls, and what has no width (Unicode, general categories Cc, Cf, Zl and Zp).
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Text from outside, fit for one line of a terminal: hidden characters and invalid UTF-8 are escaped, at most 200
/// characters.
#[must_use]
pub fn printable(text: &OsStr) -> String {
    let mut shown = String::new();
    for c in text.to_string_lossy().chars() {
        if shown.len() > 200 {
            shown.push('…');
            break;
        }
        if is_hidden(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// The flags as given, in order, and the command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Raw {
    /// Flag and value.
    pub flags: Vec<(&'static str, OsString)>,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}

/// What gracekeeper is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// Supervise a command.
    Run(Raw),
    /// Copy the binary.
    Install(OsString),
    /// Check an audit file; the verb reads its own arguments.
    Verify(Vec<OsString>),
    /// Try every protection of a run with these options.
    Doctor {
        /// The options.
        raw: Raw,
        /// As JSON.
        json: bool,
    },
    /// Print a Kubernetes Job; the verb reads its own arguments.
    Job(Vec<OsString>),
    /// Print the risk table.
    Profiles {
        /// As JSON.
        json: bool,
    },
    /// `--help`
    Help,
    /// `--version`
    Version,
}

/// Parses argv without the program's name.
///
/// # Errors
/// A line naming the word and what is accepted.
pub fn parse(argv: &[OsString]) -> Result<Invocation, UsageError> {
    let mut raw = Raw::default();
    let mut words = argv.iter();
    let mut verb = false;
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        if word == "--" {
            raw.command = words.cloned().collect();
            break;
        }
        if let Some(long) = text.strip_prefix("--") {
            let (name, attached) = match long.split_once('=') {
                Some((name, _)) => (name, value_after_equals(word)),
                None => (long, None),
            };
            match (name, &attached) {
                ("help", None) => return Ok(Invocation::Help),
                ("version", None) => return Ok(Invocation::Version),
                _ => {}
            }
            let Some(option) = find(name) else {
                return Err(UsageError(format!("unknown option {}; see gracekeeper --help", printable(word))));
            };
            let value = match attached {
                Some(value) => value,
                // Said without a value it means yes; a value is anything that is no option.
                None if is_bare(option, words.as_slice().first().map(OsString::as_os_str)) => OsString::from("yes"),
                // `--` is where the command begins: a forgotten value must not swallow it. A file of that name: `--flag=--`.
                None => words
                    .next()
                    .filter(|value| *value != "--")
                    .cloned()
                    .ok_or_else(|| UsageError(format!("--{} needs a value: {}", option.flag, option.accepts)))?,
            };
            raw.flags.push((option.flag, value));
            continue;
        }
        match text.as_ref() {
            "-h" => return Ok(Invocation::Help),
            "-V" => return Ok(Invocation::Version),
            _ if text.starts_with('-') && text.len() > 1 => {
                return Err(UsageError(format!("unknown option {}; see gracekeeper --help", printable(word))));
            }
            "run" if !verb => {
                verb = true;
                continue;
            }
            "install" | "verify" | "profiles" | "doctor" | "job" if !verb && !raw.flags.is_empty() => {
                return Err(UsageError(format!(
                    "the verb {text} stands before its options; to run a program of that name: gracekeeper -- {text}"
                )));
            }
            "install" | "verify" | "profiles" | "job" if !verb && asks_for_help(words.as_slice()) => {
                return Ok(Invocation::Help);
            }
            "install" if !verb => {
                return match words.as_slice() {
                    // A mistyped option is no file; one that is really called so: `./-x`.
                    [dest] if dest.as_bytes().starts_with(b"-") => Err(UsageError(format!(
                        "install takes one argument, the file to write, and no option {}",
                        printable(dest)
                    ))),
                    [dest] if !dest.is_empty() => Ok(Invocation::Install(dest.clone())),
                    _ => Err(UsageError("install takes one argument: the file to write".into())),
                };
            }
            "verify" if !verb => return Ok(Invocation::Verify(words.cloned().collect())),
            "profiles" if !verb => {
                return match words.as_slice() {
                    [] => Ok(Invocation::Profiles { json: false }),
                    [flag] if flag == "--json" => Ok(Invocation::Profiles { json: true }),
                    [first, rest @ ..] => {
                        let odd = rest.first().filter(|_| first == "--json").unwrap_or(first);
                        Err(UsageError(format!("profiles takes only --json, not {}", printable(odd))))
                    }
                };
            }
            "doctor" if !verb => return doctor(words.as_slice()),
            "job" if !verb => return Ok(Invocation::Job(words.cloned().collect())),
            _ => {}
        }
        raw.command.push(word.clone());
        raw.command.extend(words.cloned());
        break;
    }
    if raw.command.first().is_none_or(|c| c.is_empty()) {
        return Err(UsageError("no command given; usage: gracekeeper [OPTIONS] -- COMMAND [ARG...]".into()));
    }
    Ok(Invocation::Run(raw))
}

/// Whether a switch was said without a value, by the word after it.
#[must_use]
pub fn is_bare(option: &Opt, next: Option<&OsStr>) -> bool {
    option.accepts == YES_NO && next.is_none_or(|next| next.as_bytes().starts_with(b"-"))
}

fn asks_for_help(words: &[OsString]) -> bool {
    words.iter().any(|word| word == "--help" || word == "-h")
}

/// The options of a run, and `--json`.
fn doctor(words: &[OsString]) -> Result<Invocation, UsageError> {
    let json = words.iter().any(|w| w == "--json");
    let options = words.iter().filter(|w| *w != "--json").cloned();
    let as_run: Vec<OsString> = options.chain(["--".into(), "doctor".into()]).collect();
    match parse(&as_run)? {
        Invocation::Run(raw) if raw.command.len() == 1 && raw.command.first().is_some_and(|w| w == "doctor") => {
            Ok(Invocation::Doctor { raw, json })
        }
        asked @ (Invocation::Help | Invocation::Version) => Ok(asked),
        _ => Err(UsageError("doctor takes --json and the options of a run, no command".into())),
    }
}

fn value_after_equals(word: &OsStr) -> Option<OsString> {
    use std::os::unix::ffi::OsStringExt;
    let bytes = word.as_bytes();
    let at = bytes.iter().position(|&b| b == b'=')?;
    Some(OsString::from_vec(bytes.get(at.checked_add(1)?..)?.to_vec()))
}

/// The text of `--help`, from the table.
#[must_use]
pub fn help() -> String {
    use fmt::Write;
    let mut text = String::from(
        "gracekeeper: a container entrypoint for untrusted code\n\n\
         usage: gracekeeper [OPTIONS] -- COMMAND [ARG...]   supervise COMMAND (`run` may be written first)\n\
         \x20      gracekeeper install DEST                    copy this binary to DEST\n\
         \x20      gracekeeper doctor [--json] [OPTIONS]       try every protection here, for real\n\
         \x20      gracekeeper verify FILE [--json]            check an audit file; also [--audit-key-env NAME] [--from RUN_ID]\n\
         \x20      gracekeeper profiles [--json]               print the risk table\n\
         \x20      gracekeeper job TASK.json --image IMAGE     print a Kubernetes Job for {\"id\", \"command\", \"args\"}; also\n\
         \x20          [--namespace NAME] [--gracekeeper-image IMAGE] [--entrypoint] and any option below but --job-id,\n\
         \x20          --audit-key-env and --termination-log; --policy is checked here and now\n\
         \x20      gracekeeper --help | --version\n\n\
         Every option is also an environment variable, but not for job and verify; a flag beats the variable, the variable\n\
         the profile, and an empty variable is none. DURATION: ",
    );
    text.extend([DURATION, ".\nSIZE: ", SIZE, ".\n\n"]);
    for option in OPTIONS {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  --{} {}   [{}]\n        {}", option.flag, option.value, option.variable, option.help);
        // What a choice is between; the other kinds say it by their name or are said above.
        if ["LEVEL", "MODE", "FORMAT", "YES|NO", "N"].contains(&option.value) {
            let _ = writeln!(text, "        accepts {}", option.accepts);
        }
        if let Some(of) = option.profile {
            let values: Vec<&str> = super::profile::PROFILES.iter().map(|(_, p)| of(p)).collect();
            let _ = writeln!(text, "        low, medium, high, critical: {}", values.join(", "));
        }
    }
    text.push_str(
        "\nexit status: the command's own; 128+n died of signal n; 124 internal timeout; 143 (130, 131, 129) terminated\n\
         by TERM (INT, QUIT, HUP); 121 violation or output limit; 125 gracekeeper failed; 126 cannot be executed or is\n\
         not allowed; 127 not found\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Vec<(&'static str, String)> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        match parse(&words) {
            Ok(Invocation::Run(raw)) => {
                raw.flags.into_iter().map(|(f, v)| (f, v.to_string_lossy().into_owned())).collect()
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn a_switch_may_be_said_without_a_value() {
        let yes = |flag| (flag, "yes".to_owned());
        assert_eq!(flags("--audit-required -- true"), [yes("audit-required")]);
        assert_eq!(flags("--audit-required --adaptive -- true"), [yes("audit-required"), yes("adaptive")]);
        assert_eq!(flags("--adaptive no true"), [("adaptive", "no".to_owned())]);
        assert_eq!(flags("--adaptive=no true"), [("adaptive", "no".to_owned())]);
        // Anything else there is a value, and a bad one is refused later, not run.
        assert_eq!(flags("--adaptive maybe true"), [("adaptive", "maybe".to_owned())]);
        assert!(parse(&["--timeout".into(), "--".into(), "true".into()]).is_err());
        assert!(help().contains("accepts off, standard or aggressive") && help().contains("1500ms"), "{}", help());
        let doctor = parse(&["doctor".into(), "--audit-required".into(), "--json".into()]);
        assert!(matches!(doctor, Ok(Invocation::Doctor { json: true, .. })), "{doctor:?}");
    }

    #[test]
    fn help_after_a_verb_is_no_argument_of_it() {
        let parsed = |line: &str| parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for verb in ["install", "verify", "profiles", "job", "doctor", "run"] {
            for help in ["--help", "-h"] {
                assert_eq!(parsed(&format!("{verb} {help}")), Ok(Invocation::Help), "{verb} {help}");
            }
        }
        assert_eq!(parsed("job t.json --risk low --help"), Ok(Invocation::Help));
        for bad in ["install --force", "install -x", "install -", "profiles -x"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
        // Controls: a file of that name, and a program that is asked.
        assert_eq!(parsed("install ./--help"), Ok(Invocation::Install("./--help".into())));
        assert!(matches!(parsed("-- install --help"), Ok(Invocation::Run(_))));
    }

    #[test]
    fn nothing_hidden_is_printed() {
        let text = "a\u{202e}b\u{2028}c\u{1b}[2Jd\u{feff}\u{200d}\u{e0041}é日";
        let shown = printable(OsStr::new(text));
        assert!(!shown.chars().any(is_hidden), "{shown:?}");
        assert!(shown.contains("\\u{202e}") && shown.ends_with("é日"), "{shown}");
    }

    /// argv, and after an empty word the environment: a file of the corpus.
    fn settle(bytes: &[u8]) -> Result<(), String> {
        use std::os::unix::ffi::OsStringExt;
        let mut words = bytes.split(|&b| b == 0).map(|word| OsString::from_vec(word.to_vec()));
        let argv: Vec<OsString> = words.by_ref().take_while(|word| !word.is_empty()).collect();
        let env: Vec<(OsString, OsString)> = words
            .filter_map(|word| {
                let at = word.as_bytes().iter().position(|&b| b == b'=')?;
                let (name, value) = word.as_bytes().split_at(at);
                Some((OsStr::from_bytes(name).to_owned(), OsStr::from_bytes(&value[1..]).to_owned()))
            })
            .collect();
        match parse(&argv).map_err(|e| e.to_string())? {
            Invocation::Run(raw) | Invocation::Doctor { raw, .. } => {
                crate::settings::resolve::resolve(raw, &env, Some("host")).map(drop).map_err(|e| e.to_string())
            }
            _ => Ok(()),
        }
    }

    #[test]
    fn no_argv_and_no_environment_panics() {
        use proptest::prelude::*;
        for (name, bytes) in crate::corpus::files("settings") {
            let refused = ["hidden", "all"].contains(&name.as_str());
            assert_eq!(settle(&bytes).is_err(), refused, "{name}: {:?}", settle(&bytes));
        }
        proptest!(|(bytes in crate::corpus::mutated("settings"))| {
            if let Err(line) = settle(&bytes) {
                // One line for a terminal, naming what is wrong.
                prop_assert!(!line.is_empty() && line.len() < 2000 && !line.chars().any(is_hidden), "{line:?}");
            }
        });
    }
}
