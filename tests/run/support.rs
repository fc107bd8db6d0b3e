//! Running the binary, reading its records, and finding what it left behind.

use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

pub const BINARY: &str = env!("CARGO_BIN_EXE_gracekeeper");

/// The static program of tests/hostile.
pub fn hostile() -> std::path::PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().unwrap().with_file_name("examples").join("hostile");
    static BUILT: std::sync::Once = std::sync::Once::new();
    BUILT.call_once(|| {
        // `cargo test --test run` alone builds no examples.
        let built = Command::new(env!("CARGO"))
            .args(["build", "-q", "--example", "hostile"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(built.unwrap().success() && path.exists(), "{} is not built", path.display());
    });
    path
}

/// What a run left: its status, its output and its records, each checked against the schema.
#[derive(Debug)]
pub struct Ran {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub records: Vec<Value>,
    pub took: Duration,
}

impl Ran {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// The one final record.
    pub fn seal(&self) -> &Value {
        let seals: Vec<_> = self.records.iter().filter(|r| r["event"] == "evaluation_terminated").collect();
        assert_eq!(seals.len(), 1, "exactly one seal: {self:#?}");
        assert_eq!(self.records.last().unwrap()["event"], "evaluation_terminated", "the seal is last: {self:#?}");
        seals[0]
    }

    /// Asserts exit status and verdict, and shows everything if they differ.
    pub fn expect(&self, code: i32, status: &str) -> &Value {
        assert_eq!(self.code(), Some(code), "{self:#?}");
        let seal = self.seal();
        assert_eq!(seal["status"], status, "{self:#?}");
        assert_eq!(seal["exit_code"], code, "{self:#?}");
        seal
    }
}

/// The records among `text`'s lines.
pub fn records(text: &str) -> Vec<Value> {
    text.lines()
        .filter(|l| l.starts_with("{\"schema_version\""))
        .map(|line| {
            super::schema::check_line(line);
            serde_json::from_str(line).unwrap()
        })
        .collect()
}

/// gracekeeper with nothing of the test's own environment but PATH.
pub fn gracekeeper() -> Command {
    let mut command = Command::new(BINARY);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs to the end; a run that takes longer than three minutes is killed and fails. Far more than any needs: on a machine with
/// a hundred runnable processes everything takes a hundred times as long, and that is nobody's fault.
pub fn finish(child: Child, began: Instant) -> Ran {
    let pid = child.id();
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    let output = match wait.recv_timeout(Duration::from_secs(180)) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            signal(pid, "KILL");
            panic!("gracekeeper (pid {pid}) did not end within three minutes, or something holds its pipes");
        }
    };
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ran {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        records: records(&stderr),
        stderr,
        took: began.elapsed(),
    }
}

pub fn run(command: &mut Command) -> Ran {
    let began = Instant::now();
    finish(command.spawn().unwrap(), began)
}

/// `gracekeeper OPTIONS -- sh -c SCRIPT`
pub fn shell(options: &[&str], script: &str) -> Command {
    let mut command = gracekeeper();
    command.args(options).args(["--", "sh", "-c", script]);
    command
}

pub fn signal(pid: u32, name: &str) {
    // The shell's own kill, so that nothing lingers.
    Command::new("sh").args(["-c", &format!("kill -{name} {pid} 2>/dev/null || true")]).status().unwrap();
}

/// Seconds since the epoch of an RFC 3339 time.
pub fn time_of(text: &str) -> f64 {
    let out = Command::new("date").args(["-d", text, "+%s.%N"]).output().unwrap();
    String::from_utf8_lossy(&out.stdout).trim().parse().unwrap()
}

/// Whether the process blocks SIGTERM (proc_pid_status(5)).
pub fn blocks_term(pid: impl std::fmt::Display) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t"));
    mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask & (1 << 14) != 0)
}

/// Polls until `condition` holds; fails after a minute.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What depends on getting the CPU in time is tried up to three times: on a busy machine one run may be late through no fault of
/// gracekeeper's. What is broken fails all three; each failure is printed.
pub fn in_three(attempt: impl FnMut()) {
    let _quiet = NOISE.read().unwrap_or_else(PoisonError::into_inner);
    in_three_of(attempt);
}

static NOISE: RwLock<()> = RwLock::new(());

/// While a test of the same program that keeps the whole machine busy holds this, none runs that depends on the CPU.
#[allow(dead_code)] // Not every program that has this file makes any.
pub fn noise() -> RwLockWriteGuard<'static, ()> {
    NOISE.write().unwrap_or_else(PoisonError::into_inner)
}

/// `in_three` of one that makes the noise itself.
pub fn in_three_of(mut attempt: impl FnMut()) {
    for _ in 0..2 {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut attempt)).is_ok() {
            return;
        }
        println!("again: the machine may have been busy");
    }
    attempt();
}

/// A number of seconds to sleep that no other process on the machine uses: how a test knows its own.
pub fn marker() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}.{:05}", 4000 + NEXT.fetch_add(1, Ordering::Relaxed), std::process::id() % 100_000)
}

/// The pids of the processes that have `marker` as an argument.
pub fn marked(marker: &str) -> Vec<u32> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        if line.split(|&b| b == 0).any(|word| word == marker.as_bytes()) {
            pids.push(pid);
        }
    }
    pids
}

/// Whether kubectl knows kustomize components: Debian 12's (1.20) does not.
fn kustomizes() -> bool {
    let root = tempfile::tempdir().unwrap();
    let part = root.path().join("part");
    std::fs::create_dir(&part).unwrap();
    let component = "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nresources: [it.yaml]\n";
    std::fs::write(part.join("kustomization.yaml"), component).unwrap();
    std::fs::write(part.join("it.yaml"), "{apiVersion: v1, kind: ConfigMap, metadata: {name: it}}\n").unwrap();
    std::fs::write(root.path().join("kustomization.yaml"), "components: [part]\n").unwrap();
    Command::new("kubectl")
        .arg("kustomize")
        .arg(root.path())
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("name: it"))
}

/// Whether what a test needs is here. Absent, the test is skipped with a printed line, or fails if
/// GRACEKEEPER_TEST_REQUIRE names it.
pub fn has(need: &str) -> bool {
    let there = match need {
        "root" => nix::unistd::geteuid().is_root(),
        "stress-ng" => std::path::Path::new("/usr/bin/stress-ng").exists(),
        "strace" => Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok_and(|s| s.success()),
        "kubectl" => kustomizes(),
        "podman" => Command::new(need).arg("info").output().is_ok_and(|o| o.status.success()),
        "cel-python" => Command::new(need)
            .args(["-c", "import cel_expr_python.cel"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success()),
        "kubernetes-validate" | "groff" => {
            Command::new(need).arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success())
        }
        "docker" => Command::new("docker")
            .arg("info")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success()),
        other => panic!("no such need: {other}"),
    };
    let required = std::env::var("GRACEKEEPER_TEST_REQUIRE").unwrap_or_default().split(',').any(|r| r == need);
    assert!(there || !required, "GRACEKEEPER_TEST_REQUIRE names {need}, which is not here");
    if !there {
        println!("skipped: {need} is not here");
    }
    there
}
