//! Where an attack is made: a PID namespace of its own with file systems of its own, as UID 65532 without a capability, and
//! there against PID 1 or against a supervisor that is not. So no attack reaches the machine.

use super::support::*;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

pub const LOG: &str = "/var/log/security-audit.json";
/// Where the workload may write, and the termination message is.
pub const MESSAGE: &str = "/media/message";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The supervisor is PID 1.
    Pid1,
    /// It is not: PID 1 is `hostile init`.
    Below,
}
pub use Place::{Below, Pid1};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard<'a> {
    /// `hostile parent` in gracekeeper's place.
    Plain,
    /// gracekeeper without these protections.
    Without(&'a str),
    Full,
}

/// Whether the zoo can be shown here: root for the namespaces, and a Landlock that scopes signals, since what stops an attack
/// has to be there. Skipped otherwise, or failed where GRACEKEEPER_TEST_REQUIRE names it.
pub fn able() -> bool {
    let landlock = gracekeeper::kernel::landlock::abi().is_ok_and(|abi| abi >= 6);
    let required = std::env::var("GRACEKEEPER_TEST_REQUIRE").unwrap_or_default().split(',').any(|r| r == "landlock");
    assert!(landlock || !required, "GRACEKEEPER_TEST_REQUIRE names landlock, which is not here with signal scopes");
    if !landlock {
        println!("skipped: Landlock with signal scopes (ABI 6) is not here");
    }
    landlock && has("root")
}

/// What came of it.
#[derive(Debug)]
pub struct Attempt {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// The audit file as it was left; empty where it is gone.
    pub audit: String,
    pub message: String,
    pub left: PathBuf,
    dir: tempfile::TempDir,
}

impl Attempt {
    pub fn says(&self, line: &str) -> bool {
        self.stdout.lines().any(|l| l == line)
    }

    /// The seal, from the file or from stderr.
    pub fn seal(&self) -> Option<Value> {
        let records = records(&format!("{}\n{}", self.audit, self.stderr));
        records.into_iter().rfind(|r| r["event"] == "evaluation_terminated")
    }

    pub fn held(&self, protection: &str) -> bool {
        self.seal().is_some_and(|seal| seal["enforcement"][protection] == "enforced")
    }

    /// `verify` of the audit file.
    pub fn verified(&self) -> Option<i32> {
        let path = self.dir.path().join("log/security-audit.json");
        path.symlink_metadata().ok().filter(std::fs::Metadata::is_file)?;
        Command::new(BINARY).arg("verify").arg(path).output().unwrap().status.code()
    }

    /// What the workload left in its own directory.
    pub fn share(&self) -> PathBuf {
        self.dir.path().join("share")
    }
}

/// gracekeeper with switches, built once, apart from everything else.
pub fn switched() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        // target/TRIPLE/PROFILE/gracekeeper
        let triple = Path::new(BINARY).ancestors().nth(2).unwrap();
        let target = triple.parent().unwrap().join("switched");
        let built = Command::new(env!("CARGO"))
            .args(["build", "-q", "--bin", "gracekeeper", "--features", "test-switches", "--target-dir"])
            .arg(&target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(built.unwrap().success());
        target.join(triple.file_name().unwrap()).join("debug/gracekeeper")
    })
}

/// A place that is being set up.
pub struct Stage {
    pub place: Place,
    dir: tempfile::TempDir,
    /// Shell commands, as root, before the privileges go.
    pub before: String,
    /// Options of gracekeeper.
    pub options: Vec<String>,
    /// Variables that gracekeeper gets.
    pub env: Vec<(&'static str, &'static str)>,
    /// Whether the capabilities and the UID of root are kept.
    pub root: bool,
    /// The words are a program of their own, no attack.
    pub honest: bool,
    /// The words are the whole command; the guard only says which binary is there.
    pub bare: bool,
    /// gracekeeper's place.
    pub binary: &'static str,
}

impl Stage {
    pub fn new(place: Place) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["log", "share"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(0o1777)).unwrap();
        }
        let message = dir.path().join("share/message");
        std::fs::write(&message, "").unwrap();
        std::fs::set_permissions(&message, std::fs::Permissions::from_mode(0o666)).unwrap();
        Self {
            place,
            dir,
            before: String::new(),
            options: Vec::new(),
            env: Vec::new(),
            root: false,
            honest: false,
            bare: false,
            binary: "/mnt/gracekeeper",
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|o| (*o).to_owned()));
        self
    }

    /// The command, ready to be spawned.
    pub fn command(&self, guard: Guard<'_>, attack: &[&str]) -> Command {
        let binary = if matches!(guard, Guard::Without(_)) { switched() } else { Path::new(BINARY) };
        let drop = if self.root {
            ""
        } else {
            "setpriv --reuid 65532 --regid 65532 --clear-groups --bounding-set -all --inh-caps -all --ambient-caps -all"
        };
        let init = if self.place == Below { "/mnt/hostile init" } else { "" };
        let top = match guard {
            _ if self.bare => String::new(),
            Guard::Plain if self.honest => String::new(),
            Guard::Plain => format!("/mnt/hostile parent {LOG} {MESSAGE}"),
            _ => {
                format!("{} --audit-file {LOG} --termination-log {MESSAGE} {} --", self.binary, self.options.join(" "))
            }
        };
        let mine = if guard == Guard::Plain || self.honest || self.bare { "" } else { "/mnt/hostile" };
        let script = format!(
            "set -e; mount -t tmpfs -o mode=755 none /mnt; touch /mnt/gracekeeper /mnt/hostile; \
             mount --bind {} /mnt/gracekeeper; mount --bind {} /mnt/hostile; \
             mount --bind {dir}/log /var/log; mount --rbind {dir}/share /media; \
             for d in /var/tmp /dev/shm /tmp; do mount -t tmpfs -o mode=1777 none $d; done; cd /; {}\n\
             exec {drop} {init} {top} {mine} \"$@\"",
            binary.display(),
            hostile().display(),
            self.before,
            dir = self.dir.path().display(),
        );
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount", "--mount-proc", "--kill-child", "sh", "-c", &script, "sh"]);
        command.args(attack).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.envs(self.env.iter().copied());
        if let Guard::Without(off) = guard {
            command.env("GRACEKEEPER_TEST_WITHOUT", off);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn collect(self, ran: Ran) -> Attempt {
        let read = |name: &str| {
            // The workload may have put a FIFO there.
            let path = self.dir.path().join(name);
            let regular = path.symlink_metadata().is_ok_and(|meta| meta.is_file());
            let bytes = if regular { std::fs::read(path).unwrap() } else { Vec::new() };
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Attempt {
            code: ran.status.code().unwrap_or_else(|| 128 + ran.status.signal().unwrap()),
            stdout: ran.stdout,
            stderr: ran.stderr,
            audit: read("log/security-audit.json"),
            message: read("share/message"),
            left: self.dir.path().to_owned(),
            dir: self.dir,
        }
    }

    pub fn run(self, guard: Guard<'_>, attack: &[&str]) -> Attempt {
        let began = Instant::now();
        let child = self.command(guard, attack).spawn().unwrap();
        self.collect(finish(child, began))
    }
}

/// One attack, where it is made, what stops it, and how to see that it succeeded.
pub struct Row {
    pub attack: &'static [&'static str],
    pub places: &'static [Place],
    /// Each of these alone stops it; a list with commas is one protection of several switches.
    pub stopped_by: &'static [&'static str],
    /// What else has to be off for the success to be seen, though it does not stop the attack.
    pub also_off: &'static str,
    pub options: &'static [&'static str],
    pub succeeded: fn(&Attempt) -> bool,
}

/// By what the attack itself says.
pub fn it_says(attempt: &Attempt) -> bool {
    let (yes, no) = (attempt.says("succeeded"), attempt.stdout.contains("refused"));
    assert!(yes != no, "it has to say one of the two: {attempt:#?}");
    yes
}

/// The names of a list that are those of protections in the record.
fn recorded<'a>(list: &[&'a str]) -> Vec<&'a str> {
    const NOT: [&str; 32] = [
        "origin",
        "flood",
        "foreground",
        "job_control",
        "stopped_deadline",
        "misdirected",
        "own_mode",
        "own_environment",
        "own_file",
        "message",
        "subreaper",
        "kill",
        "last_bracket",
        "headless",
        "second_look",
        "real_stop",
        "each_thread",
        "true_count",
        "hidden",
        "walk_deadline",
        "one_walk",
        "uninterruptible",
        "composure",
        "own_tree",
        "memory_first",
        "environment",
        "own_thread",
        "own_timer",
        "early_limit",
        "last_look",
        "capable",
        "own_limits",
    ];
    list.iter().flat_map(|item| item.split(',')).filter(|name| !NOT.contains(name) && !name.is_empty()).collect()
}

/// The three ways, and each protection alone where there are several.
pub fn three_ways(row: &Row) {
    for &place in row.places {
        let name = format!("{:?} {place:?}", row.attack);
        let run = |guard: Guard<'_>| Stage::new(place).options(row.options).run(guard, row.attack);
        let plain = run(Guard::Plain);
        assert!((row.succeeded)(&plain), "{name}: control: it has to work against a plain parent: {plain:#?}");
        let all: Vec<&str> = row.stopped_by.iter().copied().chain([row.also_off]).collect();
        let without = run(Guard::Without(&all.join(",")));
        assert!((row.succeeded)(&without), "{name}: it has to work without {all:?}: {without:#?}");
        for protection in recorded(&all) {
            assert!(!without.held(protection), "{name}: {protection} is off and said to be on: {without:#?}");
        }
        if row.stopped_by.len() > 1 {
            for alone in row.stopped_by {
                let rest: Vec<&str> = all.iter().copied().filter(|other| other != alone).collect();
                let one = run(Guard::Without(&rest.join(",")));
                assert!(!(row.succeeded)(&one), "{name}: {alone} alone has to stop it: {one:#?}");
            }
        }
        let full = run(Guard::Full);
        assert!(!(row.succeeded)(&full), "{name}: {full:#?}");
        assert_eq!(full.verified(), Some(0), "{name}: {full:#?}");
        for protection in recorded(row.stopped_by) {
            let held = full.held(protection) || protection == "oom_score_adj";
            assert!(held, "{name}: {protection}: {full:#?}");
        }
    }
}
