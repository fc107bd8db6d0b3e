//! `gracekeeper doctor [--json] [OPTIONS]`: every protection of a run with these options, tried here and now.
//!
//! A child takes the very steps of a run and then attacks; beside it a plain child does the same, which tells what the
//! steps are good for here. No version number is asked. Invariant: a check holds only where the attack was made and
//! refused, or the thing was done; a child without an answer holds nothing. Nothing is left behind.

use crate::audit::file::AuditSink;
use crate::audit::log::DEFAULT_FILE;
use crate::audit::message::MessageSink;
use crate::confine::{self, Confinement, Context};
use crate::kernel::kill::Everything;
use crate::kernel::limits;
use crate::kernel::outcome::{Outcome, errno};
use crate::kernel::probe::{self, Attack};
use crate::kernel::proc::Proc;
use crate::kernel::signals;
use crate::kernel::spawn::{self, Command, Prepare};
use crate::settings::table::OPTIONS;
use crate::settings::{AuditFile, Filesystem, Monitoring, Network, Risk, Settings};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde::Serialize;
use std::fmt::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// One protection.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    /// Whether the chosen options call for it.
    wanted: bool,
    holds: bool,
    result: &'static str,
    detail: String,
    /// What the same attack did from a plain child.
    #[serde(skip_serializing_if = "Option::is_none")]
    without: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    risk: &'static str,
    pid1: bool,
    holds: bool,
    checks: Vec<Check>,
}

/// Tries everything; the text and whether everything wanted holds.
///
/// # Errors
/// Where not even a child could be forked, or what a run would refuse to begin with.
pub fn run(settings: &Settings, json: bool) -> Result<(String, bool), String> {
    let report = examine(settings)?;
    let text =
        if json { serde_json::to_string(&report).map_err(|e| format!("doctor: {e}"))? + "\n" } else { table(&report) };
    Ok((text, report.holds))
}

/// The step's name where `unavailable` breaks a promise that every level makes.
const ALWAYS: [&str; 8] = [
    "process_group",
    "signals",
    "descriptors",
    "core_dumps",
    "rlimits",
    "oom_score_adj",
    "no_new_privs",
    "seccomp_filter",
];

fn examine(settings: &Settings) -> Result<Report, String> {
    let no_child = |e: Errno| format!("doctor: fork: {} ({e:?})", e.desc());
    let pid1 = nix::unistd::getpid().as_raw() == 1;
    probe::hold_stop();
    // As a run does it, child subreaper included.
    let everything = Everything::new(pid1).map_err(|e| format!("cannot find what will be the workload's: {e}"))?;
    let mut checks = Vec::new();

    let audit = audit_file(settings, pid1, &mut checks);
    let binary = std::env::current_exe().ok();
    let mounts = crate::kernel::mounts::all();
    let confinement = Confinement::prepare(&Context {
        settings,
        pid1,
        supervisor: nix::unistd::getpid().as_raw(),
        thread: None,
        terminal: false,
        audit_path: audit.as_ref().map(|(sink, _)| sink.path()),
        binary: binary.as_deref(),
        mounts: mounts.as_deref(),
        old_mask: signals::old_mask(),
    });

    // Something to inherit, without close-on-exec and above what a shell would have open.
    let open = std::fs::File::open("/").map_err(|e| format!("doctor: open /: {e}"))?;
    let attacks = attacks(settings, open.as_raw_fd(), audit.as_ref().map(|(sink, _)| sink.path()));
    let mut controls = Vec::new();
    for (_, _, attack) in &attacks {
        let answer = probe::child(None, attack, &mut |_| {}).map_err(no_child)?;
        controls.push(answer.result);
        probe::drop_stop();
    }
    let dumpable = crate::hide();
    checks.push(step("supervisor_not_dumpable", dumpable, true));
    let steps = probe::child(Some(&confinement), &Attack::Nothing, &mut |_| {}).map_err(no_child)?;
    for (name, outcome) in confine::outcomes(&steps.report) {
        let wanted = ALWAYS.contains(&name)
            || (name == "parent_death_signal" && !pid1)
            || name == "network_deny"
            || (name == "landlock" && settings.filesystem == Filesystem::Confined);
        checks.push(step(name, outcome, wanted));
    }
    for ((name, wanted, attack), control) in attacks.into_iter().zip(controls) {
        let mut answer = probe::child(Some(&confinement), &attack, &mut |_| {}).map_err(no_child)?;
        // One that came through all the same, whatever the child was told.
        if probe::drop_stop() && attack == Attack::Stop {
            answer.result = Some(Ok(()));
        }
        // Where the control dies of it there is no such call here at all.
        let wanted = wanted && control.is_some();
        checks.push(Check { without: Some(tried(control)), ..attacked(name, wanted, answer.result) });
    }
    checks.push(environment(settings, &confinement));
    abilities(settings, pid1, &everything, &confinement, &mut checks).map_err(no_child)?;
    if let Some((mut sink, made)) = audit {
        sink.release();
        if made {
            // Ours, empty, and locked until now.
            let _ = std::fs::remove_file(sink.path());
        }
    }
    let holds = checks.iter().all(|c| c.holds || !c.wanted);
    Ok(Report { risk: settings.risk.profile().name, pid1, holds, checks })
}

/// Opens the audit sinks as a run does. The file, and whether it was not there before.
fn audit_file(settings: &Settings, pid1: bool, checks: &mut Vec<Check>) -> Option<(AuditSink, bool)> {
    let path = match &settings.audit_file {
        AuditFile::Named(path) => Some(path.as_path()),
        AuditFile::Default => pid1.then_some(Path::new(DEFAULT_FILE)),
    };
    let made = path.is_some_and(|path| std::fs::symlink_metadata(path).is_err());
    let opened = path.map(|path| AuditSink::open(path).and_then(|(sink, _)| sink.sync().map(|()| sink)));
    let message = MessageSink::open(&settings.termination_log).and_then(|sink| sink.sync());
    let durable = matches!(opened, Some(Ok(_))) || message.is_ok();
    let named = matches!(settings.audit_file, AuditFile::Named(_));
    let done = |name, wanted, result: Result<(), String>| Check {
        name,
        wanted,
        holds: result.is_ok(),
        result: if result.is_ok() { "enforced" } else { "unavailable" },
        detail: result.err().unwrap_or_else(|| "opened and fsynced".to_owned()),
        without: None,
    };
    let file = match &opened {
        None => Err("none was named: the audit goes to stderr".to_owned()),
        Some(Err(cause)) => Err(format!("{cause}: the audit goes to stderr")),
        Some(Ok(_)) => Ok(()),
    };
    checks.push(done("audit_file", named, file));
    if let Some(Ok(sink)) = &opened {
        let reserved = sink.unreserved().map_or(Ok(()), |cause| Err(cause.to_string()));
        checks.push(Check { detail: "room for the seal".to_owned(), ..done("audit_space_reserved", false, reserved) });
    }
    checks.push(done("termination_message", false, message.map_err(|cause| cause.to_string())));
    if settings.audit_required {
        let why = "neither the audit file nor the termination log can be opened and fsynced";
        checks.push(done("audit_required", true, if durable { Ok(()) } else { Err(why.to_owned()) }));
    }
    opened?.ok().map(|sink| (sink, made))
}

/// What a workload would try, and whether these options promise that it fails.
fn attacks(settings: &Settings, fd: i32, audit: Option<&Path>) -> Vec<(&'static str, bool, Attack)> {
    let strict = matches!(settings.risk, Risk::High | Risk::Critical);
    let mut attacks = vec![
        ("attack_supervisor_limits", true, Attack::Limits),
        ("attack_supervisor_priority", true, Attack::Priority),
        ("attack_supervisor_affinity", true, Attack::Affinity),
        ("attack_supervisor_stop", true, Attack::Stop),
        ("attack_supervisor_trace", true, Attack::Trace),
        ("attack_supervisor_memory", true, Attack::Memory),
        ("attack_supervisor_descriptor", true, Attack::Descriptor),
        ("attack_inherited_descriptor", true, Attack::Inherited(fd)),
        ("attack_io_uring", true, Attack::IoUring),
        ("attack_terminal_input", true, Attack::Terminal),
        #[cfg(target_arch = "x86_64")]
        ("attack_foreign_call", true, Attack::ForeignCall),
    ];
    if settings.network == Network::Deny {
        attacks.push(("attack_inet_socket", true, Attack::Socket));
    }
    if settings.filesystem == Filesystem::Confined {
        attacks.push(("attack_write_elsewhere", true, Attack::CreateElsewhere));
    }
    if let Some(path) = audit {
        attacks.push(("attack_audit_file", strict, Attack::WriteTo(path.to_owned())));
        let dir = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        attacks.push(("attack_audit_directory", strict, Attack::CreateIn(dir)));
    }
    attacks
}

/// What a program finds in its environment that is executed as the command would be: exactly what is meant for it. The
/// program is gracekeeper itself, waiting for its input: there may be no other here.
fn environment(settings: &Settings, confinement: &dyn Prepare) -> Check {
    let found = std::env::current_exe().map_err(|e| errno(&e)).and_then(|own| {
        let words = [own.into_os_string(), "job".into(), "-".into(), "--image".into(), "x".into()];
        let (input, held) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        nix::unistd::dup2_stdin(&input)?;
        let mut child = spawn::spawn(&Command::new(&words, &settings.workload_env, None)?, confinement, None)?;
        child.release();
        let result = probe::environment(&mut child);
        drop(held);
        result
    });
    let meant = settings.workload_env.iter().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
    let ours = |variable: &Vec<u8>| {
        let name = variable.split(|&b| b == b'=').next().unwrap_or_default();
        name.starts_with(b"LD_") || OPTIONS.iter().any(|option| option.variable.as_bytes() == name)
    };
    let held =
        found.and_then(|found| if found.iter().any(ours) || !meant.eq(found) { Err(Errno::EPERM) } else { Ok(()) });
    let withheld = std::env::vars_os().filter(|variable| !settings.workload_env.contains(variable)).count();
    let detail = held.err().map_or_else(|| format!("{withheld} variables withheld"), |e| format!("{e:?}"));
    Check { detail, ..step("environment", Outcome::of("environment", held), true) }
}

/// What the supervisor itself has to be able to do to a confined child, and to see.
fn abilities(
    settings: &Settings,
    pid1: bool,
    everything: &Everything,
    confinement: &dyn Prepare,
    checks: &mut Vec<Check>,
) -> Result<(), Errno> {
    let able = |name, wanted, result: Result<(), Errno>| Check {
        detail: result.err().map_or_else(|| "done".to_owned(), |e| format!("{e:?}")),
        ..step(name, Outcome::of(name, result), wanted)
    };
    let mut found = Err(Errno::ESRCH);
    probe::child(Some(confinement), &Attack::Nothing, &mut |pid| {
        found = if everything.is_descendant(pid) == Some(true) { Ok(()) } else { Err(Errno::ESRCH) };
    })?;
    checks.push(able("find_processes", true, found));
    // What the rung does to a live process, and what that process can do then.
    for (name, wanted, resource, attack, answer) in [
        ("revoke_files", true, libc::RLIMIT_NOFILE, Attack::OpenAfterRevoke, Errno::EMFILE),
        ("revoke_writes", true, libc::RLIMIT_FSIZE, Attack::WriteAfterRevoke, Errno::EFBIG),
        // UID 0 is not bound, and the rung says so.
        ("revoke_processes", limits::unbound().is_none(), libc::RLIMIT_NPROC, Attack::ForkAfterRevoke, Errno::EAGAIN),
    ] {
        let mut limited = Err(Errno::ESRCH);
        let after = probe::child(Some(confinement), &attack, &mut |pid| limited = limits::take_away(pid, resource))?;
        let kept = match after.result {
            Some(Err(errno)) if errno == answer => limited,
            Some(Err(errno)) => limited.and(Err(errno)),
            _ => limited.and(Err(Errno::EPERM)),
        };
        checks.push(able(name, wanted, kept));
    }
    let (mut duplicate, mut trace) = (Err(Errno::ESRCH), Err(Errno::ESRCH));
    probe::child(Some(confinement), &Attack::Nothing, &mut |pid| {
        duplicate = probe::take_descriptor(pid, 0);
        trace = probe::seize(pid);
    })?;
    // Where neither works the processes are frozen instead: the promise holds, the workload pays for it.
    checks.push(able("revoke_network_by_duplicate", false, duplicate));
    checks.push(able("revoke_network_by_ptrace", false, trace));
    checks.push(able("sock_diag", false, probe::sock_diag()));
    let counters = Proc::open().and_then(|proc_| {
        proc_.following(c"loadavg", 256)?;
        proc_.following(c"self/net/snmp", 256).map(drop)
    });
    checks.push(able("counters", pid1 && settings.monitoring != Monitoring::Off, counters));
    Ok(())
}

fn step(name: &'static str, outcome: Outcome, wanted: bool) -> Check {
    Check {
        name,
        wanted,
        holds: !matches!(outcome, Outcome::Unavailable(_)),
        result: outcome.word(),
        detail: outcome.cause().map_or_else(String::new, |cause| cause.to_string()),
        without: None,
    }
}

fn attacked(name: &'static str, wanted: bool, result: Option<Result<(), Errno>>) -> Check {
    let refused = matches!(result, Some(Err(_)));
    let word = if refused { "enforced" } else { "unavailable" };
    Check { name, wanted, holds: refused, result: word, detail: tried(result), without: None }
}

fn tried(result: Option<Result<(), Errno>>) -> String {
    match result {
        None => "no answer".to_owned(),
        Some(Ok(())) => "succeeds".to_owned(),
        Some(Err(errno)) => format!("{errno:?}"),
    }
}

fn table(report: &Report) -> String {
    let mut text = format!("{:<30}{:<13}{:<8}detail\n", "protection", "result", "wanted");
    for check in &report.checks {
        let mark = match (check.holds, check.wanted) {
            (false, true) => "FAILS",
            (_, true) => "yes",
            (_, false) => "-",
        };
        let without = check.without.as_ref().map_or_else(String::new, |w| format!(" (unprotected: {w})"));
        let line = format!("{:<30}{:<13}{mark:<8}{}{without}", check.name, check.result, check.detail);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let place = if report.pid1 { "as PID 1" } else { "not as PID 1" };
    let verdict = if report.holds { "everything wanted holds" } else { "NOT everything wanted holds" };
    let _ = writeln!(text, "risk {}, {place}: {verdict}", report.risk);
    text
}
