//! Each refusal is an attack on this process by a child: it must succeed from a plain child and fail from a confined one.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::type_complexity)]

use gracekeeper::confine::{Confinement, Context, Report, Step};
use gracekeeper::kernel::landlock::{Domain, Wanted, abi};
use gracekeeper::kernel::outcome::{Cause, Outcome};
use gracekeeper::settings::*;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;
use std::time::Duration;

fn settings(network: Network) -> Settings {
    Settings {
        risk: Risk::High,
        timeout: None,
        grace: Duration::ZERO,
        soft: Duration::ZERO,
        hard: Duration::ZERO,
        scrub_budget: Duration::ZERO,
        monitoring: Monitoring::Off,
        audit_level: AuditLevel::Basic,
        audit_required: false,
        adaptive: false,
        env: EnvMode::Inherit,
        network,
        filesystem: Filesystem::Guard,
        job_id: String::new(),
        audit_file: AuditFile::Default,
        audit_key: None,
        termination_log: "/dev/null".into(),
        scrub: vec![],
        scrub_mode: gracekeeper::settings::ScrubMode::Delete,
        keep_env: vec![],
        writable: vec![],
        policy: None,
        nproc: None,
        nofile: Some(64),
        fsize: None,
        workdir: None,
        output_limit: None,
        log_level: tracing::Level::INFO,
        log_format: LogFormat::Text,
        command: vec!["true".into()],
        flags: vec![],
        workload_env: vec![],
    }
}

fn prepare(network: Network) -> Confinement {
    Confinement::prepare(&Context {
        settings: &settings(network),
        pid1: false,
        supervisor: i32::try_from(std::process::id()).unwrap(),
        thread: None,
        terminal: false,
        audit_path: None,
        binary: None,
        mounts: None,
        old_mask: nix::sys::signal::SigSet::empty(),
    })
}

/// Forks, optionally confines, runs `attack` (no allocation) and gives its errno, with the report.
fn child(confinement: Option<&Confinement>, attack: fn(i32) -> i64) -> (i32, Report) {
    let supervisor = i32::try_from(std::process::id()).unwrap();
    let mut ends = [0; 2];
    // SAFETY: pipe2 fills two integers; fork's child only makes system calls and ends by _exit.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            let mut report = Report::default();
            if let Some(confinement) = confinement {
                confinement.apply(&[ends[1]], &mut report);
            }
            let bytes = report.as_bytes();
            libc::write(ends[1], bytes.as_ptr().cast(), bytes.len());
            *libc::__errno_location() = 0;
            let errno = if attack(supervisor) < 0 { *libc::__errno_location() } else { 0 };
            libc::_exit(errno);
        }
        libc::close(ends[1]);
        let mut bytes = [0u8; 256];
        let n = libc::read(ends[0], bytes.as_mut_ptr().cast(), bytes.len());
        libc::close(ends[0]);
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        let status = std::process::ExitStatus::from_raw(status);
        let report = Report::from_bytes(&bytes[..usize::try_from(n).unwrap()]);
        (status.code().unwrap_or_else(|| panic!("{status}")), report)
    }
}

macro_rules! call {
    ($($arg:expr),+) => {{
        // SAFETY: every pointer passed is null or names a live local.
        unsafe { libc::syscall($($arg),+) }
    }};
}

#[test]
fn the_supervisor_cannot_be_touched() {
    let attacks: [(&str, fn(i32) -> i64); 12] = [
        ("prlimit", |s| {
            let mut old = [0u64; 2];
            call!(libc::SYS_prlimit64, s, libc::RLIMIT_CORE, 0usize, old.as_mut_ptr())
        }),
        ("setpriority", |s| call!(libc::SYS_setpriority, 0, s, 0)),
        ("ioprio_set", |s| call!(libc::SYS_ioprio_set, 1, s, 2 << 13 | 4)),
        ("sched_setaffinity", |s| {
            let mut mask = [0u64; 16];
            call!(libc::SYS_sched_getaffinity, s, 128usize, mask.as_mut_ptr());
            call!(libc::SYS_sched_setaffinity, s, 128usize, mask.as_ptr())
        }),
        ("sched_setscheduler", |s| {
            let priority = 0i32;
            call!(libc::SYS_sched_setscheduler, s, 0, &raw const priority)
        }),
        ("kill", |s| call!(libc::SYS_kill, s, 0)),
        ("kill all", |_| call!(libc::SYS_kill, -1, 0)),
        ("kill group", |s| {
            let group = call!(libc::SYS_getpgid, s);
            call!(libc::SYS_kill, -group, 0)
        }),
        ("tkill", |s| call!(libc::SYS_tkill, s, 0)),
        ("tgkill", |s| call!(libc::SYS_tgkill, s, s, 0)),
        ("pidfd_open", |s| call!(libc::SYS_pidfd_open, s, 0)),
        ("FIOSETOWN", |s| {
            let fd = call!(libc::SYS_socket, 1, 1, 0);
            call!(libc::SYS_ioctl, fd, 0x8901, &raw const s)
        }),
    ];
    let confinement = prepare(Network::Allow);
    for (name, attack) in attacks {
        assert_eq!(child(None, attack).0, 0, "control: {name}");
        assert_eq!(child(Some(&confinement), attack).0, libc::EPERM, "{name}");
    }
}

#[test]
fn the_workload_keeps_what_is_its_own() {
    let own: [(&str, fn(i32) -> i64); 5] = [
        ("own limits", |_| {
            let limit = [32u64, 32];
            call!(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, limit.as_ptr(), 0usize)
        }),
        ("own group", |_| call!(libc::SYS_kill, 0, 0)),
        ("own nice", |_| call!(libc::SYS_setpriority, 0, 0, 15)),
        ("own group's nice", |_| call!(libc::SYS_setpriority, 1, 0, 15)),
        ("a socket", |_| call!(libc::SYS_socket, 2, 1, 0)),
    ];
    let confinement = prepare(Network::Allow);
    for (name, act) in own {
        assert_eq!(child(Some(&confinement), act).0, 0, "{name}");
    }
}

#[test]
fn network_deny_leaves_unix_sockets() {
    let inet: fn(i32) -> i64 = |_| call!(libc::SYS_socket, 2, 1, 0);
    let unix: fn(i32) -> i64 = |_| call!(libc::SYS_socket, 1, 1, 0);
    let deny = prepare(Network::Deny);
    assert_eq!(child(None, inet).0, 0);
    assert_eq!(child(Some(&deny), inet).0, libc::EACCES);
    assert_eq!(child(Some(&deny), unix).0, 0);
    assert_eq!(child(Some(&deny), |_| call!(libc::SYS_io_uring_setup, 1, 0usize)).0, libc::ENOSYS);
}

#[test]
fn the_report_says_what_happened() {
    let (_, report) = child(Some(&prepare(Network::Deny)), |_| 0);
    let outcomes = report.outcomes();
    let get = |step: Step| outcomes.iter().find(|(name, _)| *name == step.name()).map(|(_, outcome)| *outcome);
    for step in [Step::ProcessGroup, Step::Descriptors, Step::CoreDumps, Step::Rlimits, Step::NoNewPrivs] {
        assert_eq!(get(step), Some(Outcome::Enforced), "{step:?}");
    }
    assert_eq!(get(Step::NetworkDeny), Some(Outcome::Enforced));
    assert_eq!(get(Step::Workdir), None);
    for (name, outcome) in &outcomes {
        assert_ne!(outcome.cause().map(|c| c.what), Some("unknown reason"), "{name}");
    }
    if abi().is_ok() {
        assert_eq!(get(Step::Landlock), Some(Outcome::Unavailable(Cause::because("nothing on disk to protect"))));
    }
}

#[test]
fn guard_keeps_the_audit_directory_and_nothing_else() {
    if abi().is_err() {
        let wanted = std::env::var("GRACEKEEPER_TEST_REQUIRE").unwrap_or_default();
        assert!(!wanted.split(',').any(|w| w == "landlock"), "landlock is required and absent");
        println!("skipped: landlock");
        return;
    }
    let work = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (audit, other) = (work.path().join("audit"), work.path().join("other"));
    for dir in [&audit, &other] {
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        std::fs::write(dir.join("file"), "x").unwrap();
    }
    let domain = Domain::build(&Wanted {
        audit_dir: Some(&audit),
        binary: None,
        confined: None,
        homes: &[],
        may_mount: false,
        mounts: None,
    });
    assert_ne!(domain.files.word(), "unavailable", "{:?}", domain.files);
    let domain: &'static Domain = Box::leak(Box::new(domain));
    let sh = |confined: bool, script: String| {
        let mut command = Command::new("sh");
        command.arg("-ec").arg(script).stderr(std::process::Stdio::null());
        // SAFETY: two system calls, no allocation.
        unsafe {
            command.pre_exec(move || {
                if confined {
                    nix::sys::prctl::set_no_new_privs()?;
                    domain.enter()?;
                }
                Ok(())
            });
        }
        command.status().unwrap().success()
    };
    let (a, o) = (audit.display(), other.display());
    for attack in ["echo y >> D/file", ": > D/file", "touch D/new", "mv D/file D/moved", "rm D/moved", "mkdir D/d"] {
        assert!(!sh(true, attack.replace('D', &a.to_string())), "{attack}");
        assert!(sh(true, attack.replace('D', &o.to_string())), "elsewhere: {attack}");
    }
    assert!(!sh(true, format!("rm {a}/file")));
    assert!(!sh(true, format!("mv {a} {a}2")));
    assert_eq!(std::fs::read(audit.join("file")).unwrap(), b"x");
    assert!(sh(true, format!("mv {o}/new {o}/sub/new; cat {a}/file; echo > /dev/null; t=$(mktemp); rm $t")));
    // Whatever of these is installed works as it does without the domain.
    for (i, program) in [
        "python3 -c 'import tempfile,sqlite3,os; f=tempfile.NamedTemporaryFile(); f.write(b\"x\"); sqlite3.connect(os.getcwd()+\"/db\").execute(\"create table t(a)\")'",
        "git init -q repo && cd repo && echo x > x && git add x && git -c user.name=n -c user.email=e@x commit -qm m",
        "echo 'int main(){return 0;}' > m.c && cc m.c -o m && ./m",
        "mkdir t && echo x > t/x && tar cf t.tar t && rm -r t && tar xf t.tar && mv t/x .",
    ]
    .into_iter()
    .enumerate()
    {
        let run = |confined: bool| sh(confined, format!("mkdir {o}/{i}{confined}; cd {o}/{i}{confined}; {program}"));
        assert_eq!(run(true), run(false), "{program}");
    }
    assert!(sh(false, format!("echo y >> {a}/file; rm {a}/file")), "control");
}
