//! Flag over variable over profile, validated: raw words in, `Settings` out. Pure.

use super::cli::{Raw, UsageError, is_hidden, printable};
use super::table::{OPTIONS, Opt, find};
use super::{
    AuditFile, AuditKey, AuditLevel, EnvMode, Filesystem, LogFormat, Monitoring, Network, Risk, ScrubMode, Settings,
};
use crate::switches::without;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

/// A value and where it came from.
struct Given<'a> {
    value: &'a OsStr,
    from: String,
    option: &'static Opt,
}

impl Given<'_> {
    fn bad(&self) -> UsageError {
        UsageError(format!("{}: \"{}\" is not {}", self.from, printable(self.value), self.option.accepts))
    }

    fn text(&self) -> Result<&str, UsageError> {
        self.value.to_str().ok_or_else(|| self.bad())
    }

    fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, UsageError> {
        let text = self.text()?;
        words.iter().find(|(w, _)| *w == text).map(|(_, v)| *v).ok_or_else(|| self.bad())
    }

    /// The same in any case: images set such a variable for programs of theirs, `INFO` as often as `info`.
    fn word_in_any_case<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, UsageError> {
        let text = self.text()?;
        words.iter().find(|(w, _)| w.eq_ignore_ascii_case(text)).map(|(_, v)| *v).ok_or_else(|| self.bad())
    }

    fn yes(&self) -> Result<bool, UsageError> {
        self.word(&[
            ("yes", true),
            ("true", true),
            ("1", true),
            ("on", true),
            ("no", false),
            ("false", false),
            ("0", false),
            ("off", false),
        ])
    }

    fn duration(&self) -> Result<Duration, UsageError> {
        duration(self.text()?).ok_or_else(|| self.bad())
    }

    fn size(&self) -> Result<Option<u64>, UsageError> {
        let text = self.text()?;
        if text == "none" { Ok(None) } else { size(text).map(Some).ok_or_else(|| self.bad()) }
    }

    fn count(&self) -> Result<Option<u64>, UsageError> {
        let text = self.text()?;
        if text == "none" { Ok(None) } else { digits(text).map(Some).ok_or_else(|| self.bad()) }
    }

    fn path(&self) -> Result<PathBuf, UsageError> {
        if self.value.is_empty() || self.value.as_bytes().contains(&0) {
            Err(self.bad())
        } else {
            Ok(PathBuf::from(self.value))
        }
    }
}

/// A whole number in decimal digits only: `+5`, `5 ` and `0x5` are mistakes, not numbers.
fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Fit for a job_id.
fn is_name(text: &str) -> bool {
    (1..=253).contains(&text.chars().count()) && !text.chars().any(is_hidden)
}

/// `55`, `1.5s`, `1500ms`, `2m`: above zero, at most 365 days, at most nanoseconds deep.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit_ns) = if let Some(n) = text.strip_suffix("ms") {
        (n, 1_000_000u64)
    } else if let Some(n) = text.strip_suffix('s') {
        (n, 1_000_000_000)
    } else if let Some(n) = text.strip_suffix('m') {
        (n, 60_000_000_000)
    } else {
        (text, 1_000_000_000)
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if (1..=9).contains(&fraction.len()) => (whole, fraction),
        Some(_) => return None,
        None => (number, "0"),
    };
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let scale = 10u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let whole = u128::from(digits(whole)?).checked_mul(u128::from(unit_ns))?;
    let part = u128::from(digits(fraction)?).checked_mul(u128::from(unit_ns))?.checked_div(u128::from(scale))?;
    let ns = u64::try_from(whole.checked_add(part)?).ok()?;
    let result = Duration::from_nanos(ns);
    (!result.is_zero() && result <= Duration::from_secs(365 * 86_400)).then_some(result)
}

/// `4096`, `64k`, `64Ki`, `10M`, `1Gi`.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let units: [(&str, u64); 9] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("K", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    let (number, unit) =
        units.iter().find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|n| (n, *unit))).unwrap_or((text, 1));
    if number.is_empty() {
        return None;
    }
    digits(number)?.checked_mul(unit)
}

/// Resolves everything. `env` is the whole environment, `hostname` the pod's name in a container.
///
/// # Errors
/// One line naming the flag or variable, the value and what is accepted.
pub fn resolve(raw: Raw, env: &[(OsString, OsString)], hostname: Option<&str>) -> Result<Settings, UsageError> {
    let variable = |name: &str| env.iter().find(|(k, v)| k == name && !v.is_empty()).map(|(_, v)| v.as_os_str());
    let given = |flag: &'static str| -> Option<Given<'_>> {
        let option = find(flag)?;
        // The last flag wins, as in every other tool.
        raw.flags
            .iter()
            .rev()
            .find(|(f, _)| *f == flag)
            .map(|(_, v)| Given { value: v, from: format!("--{flag}"), option })
            .or_else(|| variable(option.variable).map(|v| Given { value: v, from: option.variable.to_owned(), option }))
    };
    let risk = match given("risk") {
        None => Risk::default(),
        Some(g) => {
            g.word(&[("low", Risk::Low), ("medium", Risk::Medium), ("high", Risk::High), ("critical", Risk::Critical)])?
        }
    };
    // What the profile has always has a value; the error can only be a table without its row.
    let set = |flag: &'static str| -> Result<Given<'_>, UsageError> {
        let profile = find(flag).and_then(|option| {
            let value = option.profile?(risk.profile());
            Some(Given { value: OsStr::new(value), from: format!("profile {}", risk.profile().name), option })
        });
        given(flag).or(profile).ok_or_else(|| UsageError(format!("--{flag} has no default")))
    };
    // Every item, and what the error line calls its source.
    let lists = |flag: &'static str| -> Result<(Vec<OsString>, String), UsageError> {
        let flags: Vec<OsString> = raw.flags.iter().filter(|(f, _)| *f == flag).map(|(_, v)| v.clone()).collect();
        let option = find(flag).ok_or_else(|| UsageError(format!("--{flag} is no option")))?;
        let (items, from) = if flags.is_empty() {
            let value = variable(option.variable).unwrap_or_default();
            let parts = value.as_bytes().split(|&b| b == b':').filter(|p| !p.is_empty());
            (parts.map(|p| OsString::from_vec(p.to_vec())).collect(), option.variable.to_owned())
        } else {
            (flags, format!("--{flag}"))
        };
        // An empty path or name is a variable that was not set in some script, never what was meant.
        match items.iter().find(|i| i.is_empty()) {
            Some(empty) => Err(Given { value: empty, from, option }.bad()),
            None => Ok((items, from)),
        }
    };
    let timeout = set("timeout")?;
    let timeout = if timeout.value == "none" { None } else { Some(timeout.duration()?) };
    let job_id = match given("job-id") {
        Some(g) => {
            let text = g.text()?;
            if !is_name(text) {
                return Err(g.bad());
            }
            text.to_owned()
        }
        // Nobody chose it for this: what is no name is none, and no reason to refuse the run.
        None => hostname.filter(|h| is_name(h)).unwrap_or("unknown").to_owned(),
    };
    let key_name = given("audit-key-env");
    let audit_key = match &key_name {
        None => None,
        Some(g) => Some(AuditKey(variable(g.text()?).ok_or_else(|| g.bad())?.as_bytes().to_vec())),
    };
    let key_name = key_name.map(|g| g.value.to_owned());
    let absolute = |flag: &'static str| -> Result<Vec<PathBuf>, UsageError> {
        let (paths, from) = lists(flag)?;
        let paths: Vec<PathBuf> = paths.into_iter().map(PathBuf::from).collect();
        match (paths.iter().find(|path| !path.is_absolute()), find(flag)) {
            (Some(bad), Some(option)) => Err(Given { value: bad.as_os_str(), from, option }.bad()),
            _ => Ok(paths),
        }
    };
    let scrub = absolute("scrub")?;
    let (keep_env, from) = lists("keep-env")?;
    if let Some(name) = keep_env.iter().find(|n| n.as_bytes().contains(&b'=')) {
        return Err(UsageError(format!("{from}: \"{}\" is not a variable's name", printable(name))));
    }
    let mode = set("env")?.word(&[("inherit", EnvMode::Inherit), ("clean", EnvMode::Clean)])?;
    let optional = |flag: &'static str| given(flag).map(|g| g.path()).transpose();
    Ok(Settings {
        risk,
        timeout,
        grace: set("grace")?.duration()?,
        soft: set("soft")?.duration()?,
        hard: set("hard")?.duration()?,
        scrub_budget: set("scrub-budget")?.duration()?,
        monitoring: set("monitoring")?.word(&[
            ("off", Monitoring::Off),
            ("standard", Monitoring::Standard),
            ("aggressive", Monitoring::Aggressive),
        ])?,
        audit_level: set("audit-level")?.word(&[
            ("basic", AuditLevel::Basic),
            ("standard", AuditLevel::Standard),
            ("comprehensive", AuditLevel::Comprehensive),
        ])?,
        audit_required: set("audit-required")?.yes()?,
        adaptive: set("adaptive")?.yes()?,
        env: mode,
        network: set("network")?.word(&[("allow", Network::Allow), ("deny", Network::Deny)])?,
        filesystem: set("filesystem")?.word(&[("guard", Filesystem::Guard), ("confined", Filesystem::Confined)])?,
        job_id,
        audit_file: optional("audit-file")?.map_or(AuditFile::Default, AuditFile::Named),
        audit_key,
        termination_log: optional("termination-log")?.unwrap_or_else(|| PathBuf::from("/dev/termination-log")),
        scrub,
        scrub_mode: given("scrub-mode")
            .map_or(Ok(ScrubMode::Delete), |g| g.word(&[("delete", ScrubMode::Delete), ("zero", ScrubMode::Zero)]))?,
        workload_env: workload_env(env, mode, &keep_env, key_name.as_deref()),
        keep_env,
        writable: absolute("writable")?,
        policy: optional("policy")?,
        nproc: given("nproc").map_or(Ok(None), |g| g.count())?,
        nofile: given("nofile").map_or(Ok(None), |g| g.count())?,
        fsize: given("fsize").map_or(Ok(None), |g| g.size())?,
        workdir: optional("workdir")?,
        output_limit: given("output-limit").map_or(Ok(None), |g| g.size())?,
        log_level: given("log-level").map_or(Ok(tracing::Level::WARN), |g| {
            g.word_in_any_case(&[
                ("error", tracing::Level::ERROR),
                ("warn", tracing::Level::WARN),
                ("warning", tracing::Level::WARN),
                ("info", tracing::Level::INFO),
                ("debug", tracing::Level::DEBUG),
                ("trace", tracing::Level::TRACE),
            ])
        })?,
        log_format: given("log-format").map_or(Ok(LogFormat::Text), |g| {
            g.word_in_any_case(&[("text", LogFormat::Text), ("json", LogFormat::Json)])
        })?,
        flags: raw.flags.iter().map(|(flag, _)| *flag).collect(),
        command: raw.command,
    })
}

/// What the workload sees (section 3): never the supervisor's own variables, `LD_*` or the key, in either mode.
fn workload_env(
    env: &[(OsString, OsString)],
    mode: EnvMode,
    keep: &[OsString],
    key: Option<&OsStr>,
) -> Vec<(OsString, OsString)> {
    let ours = |name: &OsStr| OPTIONS.iter().any(|o| !o.variable.is_empty() && name == o.variable);
    let usual = |name: &OsStr| {
        ["PATH", "HOME", "LANG", "TZ", "TERM", "TMPDIR"].iter().any(|n| name == *n)
            || name.as_bytes().starts_with(b"LC_")
            || keep.iter().any(|k| k == name)
    };
    if without("environment") {
        return env.to_vec();
    }
    env.iter()
        .filter(|(name, _)| !ours(name) && !name.as_bytes().starts_with(b"LD_") && Some(name.as_os_str()) != key)
        .filter(|(name, _)| mode == EnvMode::Inherit || usual(name))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(flags: &[(&'static str, &str)], env: &[(&str, &str)]) -> Result<Settings, UsageError> {
        let raw =
            Raw { flags: flags.iter().map(|(f, v)| (*f, OsString::from(v))).collect(), command: vec!["true".into()] };
        let env: Vec<_> = env.iter().map(|(k, v)| (OsString::from(k), OsString::from(v))).collect();
        resolve(raw, &env, Some("host"))
    }

    #[test]
    fn durations_and_sizes() {
        for (text, ms) in [("55", 55_000), ("1.5s", 1_500), ("1500ms", 1_500), ("2m", 120_000), ("0.5m", 30_000)] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in [
            "",
            "0",
            "0ms",
            "-1",
            "+1",
            "1h",
            "1e3",
            "1.",
            ".5",
            "1.5.5",
            " 1",
            "1 s",
            "NaN",
            "99999999999999999999",
            "366d",
            "s",
        ] {
            assert_eq!(duration(bad), None, "{bad}");
        }
        for (text, bytes) in [("0", 0), ("4096", 4096), ("64Ki", 65_536), ("10M", 10_000_000), ("1Gi", 1 << 30)] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for bad in ["", "Ki", "1.5M", "-1", "20000000000000000000", "18446744073709551615Ki", "1B"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn flag_beats_variable_beats_profile() {
        assert_eq!(run(&[], &[]).unwrap().timeout, Some(Duration::from_secs(90)));
        assert_eq!(run(&[], &[("RISK_LEVEL", "critical")]).unwrap().timeout, Some(Duration::from_secs(55)));
        let env = [("INTERNAL_TIMEOUT", "7"), ("SHUTDOWN_MONITORING", "off"), ("GRACE_PERIOD", "")];
        let settings = run(&[], &env).unwrap();
        assert_eq!((settings.timeout, settings.monitoring), (Some(Duration::from_secs(7)), Monitoring::Off));
        assert_eq!(settings.grace, Duration::from_secs(5));
        assert_eq!(run(&[("timeout", "8")], &env).unwrap().timeout, Some(Duration::from_secs(8)));
        assert_eq!(run(&[("timeout", "8"), ("timeout", "none")], &env).unwrap().timeout, None);
        // A variable that is beaten is not read, so nothing is wrong with it; nor with a flag that another one follows.
        let env = [("INTERNAL_TIMEOUT", "banana"), ("SCRUB_PATHS", "relative")];
        assert!(run(&[], &env).is_err());
        let flags = [("timeout", "banana"), ("timeout", "5"), ("scrub", "/x")];
        assert_eq!(run(&flags, &env).unwrap().timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn log_words_are_taken_in_any_case() {
        for (word, level) in [
            ("INFO", tracing::Level::INFO),
            ("Warning", tracing::Level::WARN),
            ("warn", tracing::Level::WARN),
            ("DEBUG", tracing::Level::DEBUG),
        ] {
            assert_eq!(run(&[], &[("LOG_LEVEL", word)]).unwrap().log_level, level, "{word}");
            assert_eq!(run(&[("log-level", word)], &[]).unwrap().log_level, level, "{word}");
        }
        assert_eq!(run(&[], &[("LOG_FORMAT", "JSON")]).unwrap().log_format, LogFormat::Json);
        assert!(run(&[], &[("LOG_LEVEL", "verbose")]).unwrap_err().0.contains("is not error, warn"));
        // Control: the words that decide a run are not guessed at.
        assert!(run(&[], &[("WORKLOAD_NETWORK", "DENY")]).is_err());
    }

    /// Every option of the level, by the table: set to something else it is named, set to the same it is not.
    #[test]
    fn what_is_not_the_levels_own_is_named() {
        for option in OPTIONS {
            let Some(of) = option.profile else { continue };
            for (risk, profile) in &super::super::profile::PROFILES {
                let own = run(&[("risk", profile.name), (option.flag, of(profile))], &[]).unwrap();
                assert_eq!((own.risk, own.overrides()), (*risk, vec![]), "{}", option.flag);
                let others = ["7s", "off", "standard", "basic", "yes", "no", "inherit", "clean", "allow", "deny"];
                let mut taken = 0;
                for other in others.iter().chain(&["guard", "confined"]).filter(|o| **o != of(profile)) {
                    let env = [("RISK_LEVEL", profile.name), (option.variable, *other)];
                    let Ok(changed) = run(&[], &env) else { continue };
                    taken += 1;
                    let same = changed.overrides().is_empty() && ["off", "no"].contains(other);
                    assert!(same || changed.overrides() == [option.flag], "{} {other}", option.flag);
                }
                assert!(taken > 0, "{}", option.flag);
            }
        }
        // The same value, written otherwise.
        assert_eq!(run(&[], &[("INTERNAL_TIMEOUT", "1.5m"), ("ADAPTIVE_GRACE", "1")]).unwrap().overrides(), [""; 0]);
    }

    /// What a Job sets to nothing, so that its image cannot choose it, is the level's own.
    #[test]
    fn an_empty_variable_is_none() {
        let empty: Vec<(&str, &str)> = OPTIONS.iter().map(|o| (o.variable, "")).collect();
        let (set, unset) = (run(&[], &empty).unwrap(), run(&[], &[]).unwrap());
        assert_eq!(format!("{set:?}"), format!("{unset:?}"));
    }

    #[test]
    fn every_profile_resolves_and_every_option_names_itself() {
        for level in ["low", "medium", "high", "critical"] {
            run(&[("risk", level)], &[]).unwrap();
        }
        for option in OPTIONS
            .iter()
            .filter(|o| !matches!(o.flag, "audit-file" | "termination-log" | "keep-env" | "policy" | "workdir"))
        {
            let by_flag = run(&[(option.flag, "\u{7}bad")], &[]).unwrap_err().0;
            assert!(by_flag.starts_with(&format!("--{}: ", option.flag)), "{by_flag}");
            assert!(by_flag.contains("bad") && !by_flag.contains('\u{7}'), "{by_flag}");
            if !option.many {
                let by_variable = run(&[], &[(option.variable, "\u{7}bad")]).unwrap_err().0;
                assert!(by_variable.starts_with(option.variable), "{by_variable}");
            }
        }
    }

    #[test]
    fn what_nobody_chose_is_checked_as_well() {
        let raw = || Raw { command: vec!["true".into()], ..Raw::default() };
        let long = "h".repeat(254);
        for (hostname, job_id) in
            [("pod-1", "pod-1"), ("", "unknown"), ("a\nb", "unknown"), ("\u{202e}x", "unknown"), (&long, "unknown")]
        {
            assert_eq!(resolve(raw(), &[], Some(hostname)).unwrap().job_id, job_id, "{hostname:?}");
        }
        for bad in ["a\u{2028}b", "\u{202e}", "a\tb", &long] {
            assert!(run(&[("job-id", bad)], &[]).is_err(), "{bad:?}");
        }
        assert!(run(&[("writable", "relative")], &[]).unwrap_err().0.starts_with("--writable: "));
        assert!(run(&[], &[("WRITABLE_PATHS", "/a:b")]).unwrap_err().0.starts_with("WRITABLE_PATHS: "));
        assert_eq!(run(&[], &[("WRITABLE_PATHS", "/a:/b")]).unwrap().writable.len(), 2);
    }

    #[test]
    fn the_workload_never_sees_what_is_ours() {
        let env =
            [("PATH", "/bin"), ("LD_PRELOAD", "x"), ("JOB_ID", "j"), ("KEY", "k"), ("SECRET", "s"), ("LC_ALL", "C")];
        let names = |flags: &[(&'static str, &str)]| -> Vec<String> {
            let s = run(flags, &env).unwrap();
            s.workload_env.iter().map(|(k, _)| k.to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names(&[("audit-key-env", "KEY")]), ["PATH", "LC_ALL"]);
        assert_eq!(names(&[("env", "inherit"), ("audit-key-env", "KEY")]), ["PATH", "SECRET", "LC_ALL"]);
        assert_eq!(
            names(&[("keep-env", "SECRET"), ("keep-env", "LD_PRELOAD"), ("keep-env", "JOB_ID")]),
            ["PATH", "SECRET", "LC_ALL"]
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC*", flag in 0..OPTIONS.len()) {
            let _ = run(&[(OPTIONS[flag].flag, &text)], &[]);
            let _ = run(&[], &[(OPTIONS[flag].variable, &text)]);
        }
    }
}
