//! Raw words to resolved settings: argv and environment in, one `Settings` out, in which no `Option` means "unset".
//!
//! Invariant: nothing reads the environment or argv again after `resolve`.

pub mod cli;
pub mod profile;
pub mod resolve;
pub mod table;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// The risk levels of section 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Risk {
    /// Trusted enough to be given time.
    Low,
    /// Between.
    Medium,
    /// Untrusted: the default.
    #[default]
    High,
    /// Suspected malware.
    Critical,
}

/// How closely the grace period is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Monitoring {
    /// Not at all: no wake-ups.
    Off,
    /// A sample every 100 ms of the grace.
    Standard,
    /// A sample every 20 ms of the grace.
    Aggressive,
}

/// How much is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuditLevel {
    /// Start and end.
    Basic,
    /// Also the trigger, the rungs, the detections and the spoofed signals.
    Standard,
    /// Also the activity, and command lines in clear.
    Comprehensive,
}

/// What the workload sees of the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvMode {
    /// Everything but the supervisor's own variables, `LD_*` and the audit key.
    Inherit,
    /// Only PATH, HOME, LANG, LC_*, TZ, TERM, TMPDIR and what `--keep-env` names.
    Clean,
}

/// Whether the workload may open sockets other than AF_UNIX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// It may.
    Allow,
    /// It may not.
    Deny,
}

/// What Landlock leaves writable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filesystem {
    /// Everything but the audit directory and the supervisor's own files.
    Guard,
    /// Only the temporary directories, the working directory, `--writable` and the usual devices.
    Confined,
}

/// How the scrub removes a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScrubMode {
    /// Its name and with it its space.
    Delete,
    /// Overwritten first, where that means anything.
    Zero,
}

/// The form of gracekeeper's own log lines on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where the audit file's path comes from: a named one that fails is reported, the default one only noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditFile {
    /// Nothing was named: `/var/log/security-audit.json` as PID 1, else stderr.
    Default,
    /// `--audit-file` or `AUDIT_FILE`.
    Named(PathBuf),
}

/// The MAC key of `--audit-key-env`; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct AuditKey(pub Vec<u8>);

impl std::fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuditKey(…)")
    }
}

/// Everything a run needs to know, resolved: flag over variable over profile.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `--risk`
    pub risk: Risk,
    /// `--timeout`; `None` is `none`: no internal timeout.
    pub timeout: Option<Duration>,
    /// `--grace`
    pub grace: Duration,
    /// `--soft`
    pub soft: Duration,
    /// `--hard`
    pub hard: Duration,
    /// `--scrub-budget`
    pub scrub_budget: Duration,
    /// `--monitoring`
    pub monitoring: Monitoring,
    /// `--audit-level`
    pub audit_level: AuditLevel,
    /// `--audit-required`
    pub audit_required: bool,
    /// `--adaptive`
    pub adaptive: bool,
    /// `--env`
    pub env: EnvMode,
    /// `--network`
    pub network: Network,
    /// `--filesystem`
    pub filesystem: Filesystem,
    /// `--job-id`, else the hostname.
    pub job_id: String,
    /// `--audit-file`
    pub audit_file: AuditFile,
    /// The key that `--audit-key-env` names.
    pub audit_key: Option<AuditKey>,
    /// `--termination-log`
    pub termination_log: PathBuf,
    /// `--scrub`, in the order given.
    pub scrub: Vec<PathBuf>,
    /// `--scrub-mode`
    pub scrub_mode: ScrubMode,
    /// `--keep-env`
    pub keep_env: Vec<OsString>,
    /// `--writable`
    pub writable: Vec<PathBuf>,
    /// `--policy`
    pub policy: Option<PathBuf>,
    /// `--nproc`: RLIMIT_NPROC for the workload, where asked for.
    pub nproc: Option<u64>,
    /// `--nofile`: RLIMIT_NOFILE for the workload, where asked for.
    pub nofile: Option<u64>,
    /// `--fsize`: RLIMIT_FSIZE for the workload in bytes, where asked for.
    pub fsize: Option<u64>,
    /// `--workdir`: where the workload starts, where asked for.
    pub workdir: Option<PathBuf>,
    /// `--output-limit` in bytes; `None`: the workload writes straight to stdout and stderr.
    pub output_limit: Option<u64>,
    /// `--log-level`
    pub log_level: tracing::Level,
    /// `--log-format`
    pub log_format: LogFormat,
    /// The command and its arguments; never empty.
    pub command: Vec<OsString>,
    /// The options that were given as flags.
    pub flags: Vec<&'static str>,
    /// The environment the workload is to get, by `--env`, without the supervisor's own variables, `LD_*` and the key.
    pub workload_env: Vec<(OsString, OsString)>,
}

impl Settings {
    /// The options of the level that are not as the level has them, by their flags: what a record of the level alone would not tell.
    #[must_use]
    pub fn overrides(&self) -> Vec<&'static str> {
        let raw = cli::Raw { flags: vec![("risk", self.risk.profile().name.into())], command: vec!["-".into()] };
        let Ok(own) = resolve::resolve(raw, &[], None) else { return Vec::new() };
        let differs = [
            ("timeout", self.timeout != own.timeout),
            ("grace", self.grace != own.grace),
            ("soft", self.soft != own.soft),
            ("hard", self.hard != own.hard),
            ("scrub-budget", self.scrub_budget != own.scrub_budget),
            ("monitoring", self.monitoring != own.monitoring),
            ("audit-level", self.audit_level != own.audit_level),
            ("audit-required", self.audit_required != own.audit_required),
            ("adaptive", self.adaptive != own.adaptive),
            ("env", self.env != own.env),
            ("network", self.network != own.network),
            ("filesystem", self.filesystem != own.filesystem),
        ];
        differs.into_iter().filter_map(|(flag, differs)| differs.then_some(flag)).collect()
    }

    /// Where a given option's value came from, for an error line.
    #[must_use]
    pub fn source(&self, flag: &'static str) -> String {
        match table::find(flag) {
            Some(option) if !self.flags.contains(&flag) => option.variable.to_owned(),
            _ => format!("--{flag}"),
        }
    }
}
