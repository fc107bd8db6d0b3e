//! gracekeeper: a container entrypoint for untrusted code.
//!
//! # Theory of operation
//!
//! Signals are blocked before `main`, so that a stop that comes early is kept (`kernel::signals`). The settings are resolved
//! once (`settings`). Every sink of the audit record is opened, and the space for its last line reserved, before anything
//! untrusted runs (`audit`). Then the workload is forked, confined and executed (`kernel::spawn`, `confine`), and from there
//! one loop (`supervise`) turns what the kernel says into events for a pure state machine (`machine`), which says what to
//! do: ask, revoke, kill, scrub, seal. Nothing in it waits for a disk: the audit file has a thread of its own (`audit::scribe`), and
//! what is scrubbed has others, when everybody is dead. After the spawn there is no bailing out: whatever fails is recorded, and the kill and
//! the seal still happen, also from the panic hook.

pub mod audit;
pub mod confine;
#[cfg(test)]
mod corpus;
pub mod diagnostics;
pub mod kernel;
pub mod machine;
pub mod object;
pub mod panics;
pub mod policy;
pub mod relay;
pub mod revoke;
pub mod scrub;
pub mod seal;
pub mod settings;
pub mod shared;
pub mod supervise;
pub mod switches;
pub mod verbs;
pub mod watch;

use audit::log::{Config, DEFAULT_FILE, Log};
use audit::record::Body;
use kernel::kill::Everything;
use kernel::outcome::{Cause, OFF, Outcome};
use kernel::{clock, counters, signals, spawn, terminal};
use machine::events::Event;
use machine::plan::Limits;
use machine::status::LaunchFailure;
use machine::step::Machine;
use machine::types::Instant;
use nix::errno::Errno;
use policy::Policy;
use relay::Relay;
use settings::cli::printable;
use settings::{AuditFile, Settings};
use shared::Shared;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use supervise::Supervisor;

/// No ptrace and no /proc/PID/mem of ours for the workload, which has our UID (prctl(2)).
fn hide() -> Outcome {
    if switches::without("supervisor_not_dumpable") {
        return Outcome::Unavailable(Cause::because(OFF));
    }
    Outcome::of("prctl PR_SET_DUMPABLE", nix::sys::prctl::set_dumpable(false))
}

/// One line on stderr; a closed stderr is nobody's failure.
pub fn complain(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "gracekeeper: {line}");
}

/// Everything before the loop: the command runs when it returns; `?` is allowed up to the fork. A function of its own, with its
/// result on the heap: what it needs of the stack is given back before the wait begins.
///
/// # Errors
/// One line; nothing was run.
#[inline(never)]
pub fn prepare(mut settings: Settings) -> Result<Box<Supervisor>, String> {
    diagnostics::start(settings.log_level, settings.log_format);
    if let Some(key) = settings.audit_key.as_ref().filter(|_| !switches::without("own_environment")) {
        kernel::environment::forget(&key.0);
    }
    let policy = settings.policy.as_deref().map(|path| read_policy(path, &settings.source("policy"))).transpose()?;
    let pid1 = nix::unistd::getpid().as_raw() == 1;
    let binary = std::env::current_exe().ok();
    let mut protected: Vec<PathBuf> = binary.clone().into_iter().collect();
    match &settings.audit_file {
        AuditFile::Named(path) => protected.push(path.clone()),
        AuditFile::Default if pid1 => protected.push(PathBuf::from(DEFAULT_FILE)),
        AuditFile::Default => {}
    }
    if let Some(why) = settings.scrub.iter().find_map(|path| scrub::targets::refuse(path, &protected)) {
        return Err(format!("{}: {why}", settings.source("scrub")));
    }
    let relay = settings.output_limit.map(|limit| Relay::open(limit, &settings.source("output-limit"))).transpose()?;
    let signals = signals::Signals::open().map_err(|e| format!("cannot handle signals: {e}"))?;
    let everything =
        Everything::new(pid1).map_err(|e| format!("cannot find in /proc what will be the workload's: {e}"))?;
    let required = settings.source("audit-required");
    let log = Log::open(Config {
        file: settings.audit_file.clone(),
        pid1,
        termination_log: settings.termination_log.clone(),
        level: settings.audit_level,
        job_id: settings.job_id.clone(),
        key: settings.audit_key.take(),
        required: settings.audit_required,
    })
    .map_err(|e| format!("{required}: the audit is not available: {e}"))?;
    let dumpable = hide();

    let private = if pid1 { None } else { Some(private_tmp(&mut settings)) };
    let (private, private_error) = match private {
        None => (None, None),
        Some(Ok(made)) => (Some(made), None),
        Some(Err(line)) => (None, Some(line)),
    };
    let mounts = kernel::mounts::all();
    protected.push(settings.termination_log.clone());
    let targets = scrub::targets::resolve(&settings.scrub, pid1, private, mounts.as_deref(), &protected);
    let terminal = terminal::owns_terminal();
    let confinement = confine::Confinement::prepare(&confine::Context {
        settings: &settings,
        pid1,
        supervisor: nix::unistd::getpid().as_raw(),
        thread: log.thread(),
        terminal,
        audit_path: log.audit_path(),
        binary: binary.as_deref(),
        mounts: mounts.as_deref(),
        old_mask: signals::old_mask(),
    });
    let mut command = spawn::Command::new(&settings.command, &settings.workload_env, settings.workdir.as_deref());
    let refused = match (&policy, &mut command) {
        (Some(policy), Ok(command)) => allow(policy, command, &settings).err(),
        _ => None,
    };

    let word = settings.command.first().map(|w| printable(w)).unwrap_or_default();
    let executable = command
        .as_ref()
        .ok()
        .and_then(spawn::Command::found)
        .map_or(word, |path| printable(std::os::unix::ffi::OsStrExt::from_bytes(path.to_bytes())));
    let mut facts = seal::Facts::new(&settings, executable);
    facts.enforced("supervisor_not_dumpable", dumpable);
    if policy.is_some() {
        facts.enforced("policy", Outcome::Enforced);
    }
    if let Some(line) = private_error {
        facts.error(line);
    }
    let shared = Arc::new(Shared { everything: Mutex::new(everything), log: Mutex::new(log) });
    {
        let mut log = shared.log();
        let mut notes = log.notes();
        if signals::hangups_are_ignored() {
            notes.push("SIGHUP is ignored, as it was at the start".to_owned());
        }
        let started = facts.started(&notes);
        log.write(&Body::EvaluationStarted(Box::new(started)));
    }
    let sockets_before = revoke::before(&shared.everything());
    let watch = watch::sample::Watch::new(settings.monitoring, pid1);
    facts.enforced("monitoring", watch.outcome());
    let limited = shared.everything().has_a_limit();
    if let Some(outcome) = confinement.lock_supervisor(limited) {
        facts.enforced("supervisor_memory", outcome);
    }
    if confinement.is_under_a_quota() {
        shared.everything().under_a_quota();
    }
    let begun = clock::now();
    panics::hook(Arc::clone(&shared), pid1, facts.of_a_panic(), begun);

    let limits = Limits {
        timeout: settings.timeout,
        grace: settings.grace,
        soft: settings.soft,
        hard: settings.hard,
        scrub_budget: settings.scrub_budget,
        adaptive: settings.adaptive,
    };
    let mut supervisor = Box::new(Supervisor {
        shared,
        machine: Machine::new(limits, begun),
        signals,
        child: None,
        pid1,
        terminal,
        targets,
        facts,
        before: None,
        scrub_mode: settings.scrub_mode,
        scrub: None,
        relay,
        asked: None,
        killing: None,
        sockets_before,
        frozen: revoke::Frozen::default(),
        watch,
        counted: None,
        comprehensive: settings.audit_level == settings::AuditLevel::Comprehensive,
        next_activity: None,
        refreeze: Instant::default(),
        spoofed_window: (Instant::default(), 0),
        continued: false,
        killed_at: None,
        more_to_reap: false,
    });
    launch(&mut supervisor, command, refused, &confinement, begun);
    Ok(supervisor)
}

/// Forks the command, which confines itself while the counters of before are read here, and lets it go. `refused` is what the policy
/// says against it. What fails is an event of the machine's: from here on there is no bailing out.
fn launch(
    supervisor: &mut Supervisor,
    command: Result<spawn::Command, Errno>,
    refused: Option<(String, Errno)>,
    confinement: &confine::Confinement,
    begun: Instant,
) {
    let output = supervisor.relay.as_ref().and_then(Relay::writers);
    let spawned = command.and_then(|c| {
        if let Some((line, errno)) = refused {
            supervisor.facts.error(line);
            return Err(errno);
        }
        let spawned = match spawn::spawn(&c, confinement, output) {
            // No room for another process: our other thread takes one place, and the command matters more.
            Err(Errno::EAGAIN) if confinement.has_thread() => {
                supervisor.shared.log().dismiss_thread();
                spawn::spawn(&c, confinement, output)
            }
            spawned => spawned,
        };
        spawned.inspect_err(|e| {
            supervisor.facts.error(format!("fork: {} ({e:?})", e.desc()));
        })
    });
    if let Some(relay) = &mut supervisor.relay {
        relay.forked();
        supervisor.facts.enforced("output_relay", relay.outcome());
    }
    let failed = match spawned {
        Ok(mut child) => {
            supervisor.shared.everything().mark().forked(child.pid);
            if supervisor.terminal {
                spawn::set_group(child.pid);
            }
            // While it confines itself; it is held before its exec.
            let counters = {
                let everything = supervisor.shared.everything();
                everything.proc_().filter(|_| supervisor.pid1).map(|proc_| counters::Counters::before(proc_, child.pid))
            };
            supervisor.facts.baseline = counters;
            supervisor.watch.baseline(supervisor.facts.baseline.as_ref());
            supervisor.before = supervisor.pid1.then(scrub::leftovers::Before::look);
            // Before the workload has used up the quota: a CPU that the supervisor has just come to has no time left over.
            if let Some(outcome) = confinement.settle_supervisor() {
                supervisor.facts.enforced("supervisor_cpu", outcome);
            }
            child.release();
            supervisor.facts.spawned(child.pid, begun);
            supervisor.child = Some(child);
            None
        }
        Err(Errno::ENOENT) => Some(LaunchFailure::NotFound),
        Err(Errno::EINVAL | Errno::EACCES) => Some(LaunchFailure::NotExecutable),
        Err(_) => Some(LaunchFailure::NoProcess),
    };
    if let Some(failure) = failed {
        supervisor.facts.launched = Some(false);
        supervisor.feed(Event::LaunchFailed(failure));
    }
}

/// Reads the policy file, before anything else is touched; `source` is the option or the variable that names it.
///
/// # Errors
/// A line naming the file and what is wrong with it.
pub fn read_policy(path: &Path, source: &str) -> Result<Policy, String> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let shown = printable(path.as_os_str());
    let mut text = Vec::new();
    // O_NONBLOCK: a FIFO is refused and not waited for. One byte more than allowed is enough to know that it is too long.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|e| format!("{source} {shown}: {e}"))?;
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err(format!("{source} {shown}: not a regular file"));
    }
    file.take(policy::LIMIT + 1).read_to_end(&mut text).map_err(|e| format!("{source} {shown}: {e}"))?;
    Policy::parse(&text).map_err(|why| format!("{source} {shown}: {why}"))
}

/// Fixes the one file that will be executed and asks the policy about it. What is refused, with the errno to act on.
fn allow(policy: &Policy, command: &mut spawn::Command, settings: &Settings) -> Result<(), (String, Errno)> {
    let stand = std::env::current_dir().unwrap_or_default().join(settings.workdir.as_deref().unwrap_or(Path::new("")));
    let named =
        |why: &str| format!("policy: {}: {why}", settings.command.first().map_or_else(String::new, |w| printable(w)));
    let args = settings.command.get(1..).unwrap_or_default();
    let file = match command.locate(&stand) {
        Ok(file) => file,
        // What is not on the list is refused whether it is there or not; the list names what is not there by its path.
        Err(errno) => {
            let place = |path: &Path| Some(spawn::place(path).unwrap_or_else(|| path.to_owned()));
            let judged = command.wanted(&stand).filter_map(|path| place(&path)).map(|p| policy.judge(&p, args, &place));
            let refused = judged.min_by_key(Result::is_err).and_then(Result::err);
            return Err(match refused {
                Some(why) => (named(&why.to_string()), Errno::EACCES),
                None => (named(errno.desc()), errno),
            });
        }
    };
    policy
        .judge(&file, args, &spawn::place)
        .map_err(|why| (format!("policy: {}: {why}", printable(file.as_os_str())), Errno::EACCES))?;
    command.only(&file).map_err(|errno| (named(errno.desc()), errno))
}

/// The workload's own TMPDIR, below the one it would have had.
fn private_tmp(settings: &mut Settings) -> Result<(PathBuf, std::os::fd::OwnedFd), String> {
    let name = OsString::from("TMPDIR");
    let below = settings.workload_env.iter().find(|(k, v)| *k == name && !v.is_empty()).map(|(_, v)| PathBuf::from(v));
    let below = below.as_deref().unwrap_or(Path::new("/tmp"));
    match scrub::targets::private_tmp(below) {
        Ok((path, fd)) => {
            settings.workload_env.retain(|(k, _)| *k != name);
            settings.workload_env.push((name, path.clone().into_os_string()));
            Ok((path, fd))
        }
        Err((path, errno)) => {
            Err(format!("cannot make a private TMPDIR {}: {} ({errno:?})", printable(path.as_os_str()), errno.desc()))
        }
    }
}
