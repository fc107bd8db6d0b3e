//! The one table of options: flag, variable, value and help. The parser, `--help` and the tests are made from it.

use super::profile::Profile;

/// One option.
#[derive(Debug, Clone, Copy)]
pub struct Opt {
    /// The long flag without its dashes: also the option's key.
    pub flag: &'static str,
    /// The variable; empty where there is none.
    pub variable: &'static str,
    /// What stands for the value in `--help`.
    pub value: &'static str,
    /// What is accepted, for the error line.
    pub accepts: &'static str,
    /// The help text.
    pub help: &'static str,
    /// Whether it may be given several times.
    pub many: bool,
    /// The profile's value, where the profile has one.
    pub profile: Option<fn(&Profile) -> &'static str>,
}

/// What a duration may look like.
pub const DURATION: &str = "a duration such as 55, 1.5s, 1500ms or 2m, above zero and at most 365 days";
const COUNT: &str = "a whole number, or none";
/// What a size may look like.
pub const SIZE: &str = "a size such as 4096, 64Ki, 10M or 1Gi, or none";
/// What stands for a switch; it may be left out.
pub const YES_NO: &str = "yes or no";

const fn opt(
    flag: &'static str,
    variable: &'static str,
    value: &'static str,
    accepts: &'static str,
    help: &'static str,
) -> Opt {
    Opt { flag, variable, value, accepts, help, many: false, profile: None }
}

const fn profiled(option: Opt, profile: fn(&Profile) -> &'static str) -> Opt {
    Opt { profile: Some(profile), ..option }
}

const fn many(option: Opt) -> Opt {
    Opt { many: true, ..option }
}

/// Every option, in the order of `--help`.
pub const OPTIONS: &[Opt] = &[
    opt(
        "risk",
        "RISK_LEVEL",
        "LEVEL",
        "low, medium, high or critical",
        "the profile the other defaults come from (default: high)",
    ),
    profiled(
        opt(
            "timeout",
            "INTERNAL_TIMEOUT",
            "DURATION",
            "a duration such as 55, 1.5s, 1500ms or 2m, above zero and at most 365 days, or none",
            "the internal timeout of the command",
        ),
        |p| p.timeout,
    ),
    profiled(opt("grace", "GRACE_PERIOD", "DURATION", DURATION, "the pod's terminationGracePeriodSeconds"), |p| {
        p.grace
    }),
    profiled(opt("soft", "SOFT_LIMIT", "DURATION", DURATION, "from SIGTERM to the revoke rung"), |p| p.soft),
    profiled(opt("hard", "HARD_LIMIT", "DURATION", DURATION, "from SIGTERM to SIGKILL"), |p| p.hard),
    profiled(
        opt(
            "scrub-budget",
            "SCRUB_BUDGET",
            "DURATION",
            DURATION,
            "what the scrub may take where no outside clock runs",
        ),
        |p| p.scrub_budget,
    ),
    profiled(
        opt(
            "monitoring",
            "SHUTDOWN_MONITORING",
            "MODE",
            "off, standard or aggressive",
            "how closely the grace period is watched",
        ),
        |p| p.monitoring,
    ),
    profiled(
        opt("audit-level", "AUDIT_LEVEL", "LEVEL", "basic, standard or comprehensive", "how much is recorded"),
        |p| p.audit_level,
    ),
    profiled(
        opt(
            "audit-required",
            "AUDIT_REQUIRED",
            "YES|NO",
            YES_NO,
            "refuse to run when neither the audit file nor the termination log can be opened and fsynced",
        ),
        |p| p.audit_required,
    ),
    profiled(
        opt("adaptive", "ADAPTIVE_GRACE", "YES|NO", YES_NO, "shorten the grace by the workload's behaviour"),
        |p| p.adaptive,
    ),
    profiled(
        opt("env", "WORKLOAD_ENV", "MODE", "inherit or clean", "what the workload sees of the environment"),
        |p| p.env,
    ),
    profiled(
        opt(
            "network",
            "WORKLOAD_NETWORK",
            "MODE",
            "allow or deny",
            "whether the workload may open sockets other than AF_UNIX",
        ),
        |p| p.network,
    ),
    profiled(
        opt("filesystem", "WORKLOAD_FILESYSTEM", "MODE", "guard or confined", "what Landlock leaves writable"),
        |p| p.filesystem,
    ),
    opt(
        "job-id",
        "JOB_ID",
        "ID",
        "1 to 253 characters, none of them hidden or a control character",
        "the record's job_id (default: the hostname)",
    ),
    opt(
        "audit-file",
        "AUDIT_FILE",
        "PATH",
        "a path",
        "where the record goes (default: /var/log/security-audit.json as PID 1, else stderr)",
    ),
    opt(
        "audit-key-env",
        "AUDIT_KEY_ENV",
        "NAME",
        "the name of a variable that is set and not empty",
        "take the MAC key from this variable and remove it",
    ),
    opt(
        "termination-log",
        "TERMINATION_LOG",
        "PATH",
        "a path",
        "the termination message's file (default: /dev/termination-log)",
    ),
    many(opt(
        "scrub",
        "SCRUB_PATHS",
        "PATH",
        "an absolute path other than /, /proc, /sys, /dev or one that holds gracekeeper or its audit file",
        "a directory to empty at the end; repeatable, the variable is colon-separated",
    )),
    opt(
        "scrub-mode",
        "SCRUB_MODE",
        "MODE",
        "delete or zero",
        "whether files are overwritten before they are removed (default: delete)",
    ),
    many(opt(
        "keep-env",
        "KEEP_ENV",
        "NAME",
        "a variable's name",
        "a variable the workload keeps with --env clean; repeatable, the variable is colon-separated",
    )),
    many(opt(
        "writable",
        "WRITABLE_PATHS",
        "PATH",
        "an absolute path",
        "a directory that stays writable with --filesystem confined; repeatable, the variable is colon-separated",
    )),
    opt("policy", "POLICY_FILE", "FILE", "a policy file", "an allow list of commands (JSON)"),
    opt(
        "nproc",
        "WORKLOAD_NPROC",
        "N",
        COUNT,
        "RLIMIT_NPROC of the workload; counts every process of the UID on the node",
    ),
    opt("nofile", "WORKLOAD_NOFILE", "N", COUNT, "RLIMIT_NOFILE of the workload"),
    opt("fsize", "WORKLOAD_FSIZE", "SIZE", SIZE, "RLIMIT_FSIZE of the workload"),
    opt("workdir", "WORKLOAD_WORKDIR", "DIR", "a path", "where the workload starts"),
    opt(
        "output-limit",
        "OUTPUT_LIMIT",
        "SIZE",
        SIZE,
        "relay stdout and stderr, and end the workload past this many bytes",
    ),
    opt(
        "log-level",
        "LOG_LEVEL",
        "LEVEL",
        "error, warn or warning, info, debug or trace, in any case",
        "gracekeeper's own log lines on stderr (default: warn)",
    ),
    opt("log-format", "LOG_FORMAT", "FORMAT", "text or json, in any case", "their form (default: text)"),
];

/// The option of a flag.
#[must_use]
pub fn find(flag: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|o| o.flag == flag)
}
