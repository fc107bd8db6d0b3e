//! What the benches share: PID 1 of a fresh namespace as UID 65532, samples in turn, medians, raw samples, table and plot.
//!
//! Nothing here touches the machine's own /tmp: `private` gives the bench a mount namespace with file systems of its own first.
#![allow(dead_code)]

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe, setgid, setgroups, setuid};
use std::ffi::CString;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

pub const GRACEKEEPER: &str = env!("CARGO_BIN_EXE_gracekeeper");

/// CLOCK_MONOTONIC.
pub fn now() -> Duration {
    gracekeeper::kernel::clock::now().0
}

/// A mount namespace of our own, with new tmpfs where PID 1 scrubs and writes.
pub fn private() {
    unshare(CloneFlags::CLONE_NEWNS).expect("root is needed for a mount namespace");
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    // What is built may lie below a directory that others cannot enter, or below /tmp. Not copied: the peers are on a disk too, and
    // a page of a tmpfs is mapped at another price.
    std::fs::create_dir_all("/mnt").unwrap();
    mount(Some("none"), "/mnt", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
    for (from, to) in [(Path::new(GRACEKEEPER), "/mnt/gracekeeper"), (&std::env::current_exe().unwrap(), "/mnt/worker")]
    {
        std::fs::write(to, "").unwrap();
        mount(Some(from), to, none, MsFlags::MS_BIND, none).unwrap();
    }
    for dir in ["/tmp", "/var/tmp", "/dev/shm", "/var/log"] {
        mount(Some("none"), dir, Some("tmpfs"), MsFlags::empty(), Some("mode=1777")).unwrap();
    }
    std::env::set_current_dir("/").unwrap();
}

/// PID 1 of a fresh PID namespace, UID 65532 without a capability; its stdout is ours to read.
pub struct Init {
    pub pid: Pid,
    pub exec: Duration,
    pub stdout: std::fs::File,
}

/// What `watch` says of `words` as PID 1.
pub fn as_pid1(words: &[&str], watch: impl FnOnce(&mut Init) -> Vec<u64>) -> Vec<u64> {
    apart(|| watch(&mut spawn(words)))
}

/// Runs in a child of the bench, so that the bench itself can make another namespace: what `watch` returns.
pub fn apart(watch: impl FnOnce() -> Vec<u64>) -> Vec<u64> {
    let (read, write) = pipe().unwrap();
    // SAFETY: the bench has one thread.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            drop(read);
            let seen = watch();
            let mut out = std::fs::File::from(write);
            for value in seen {
                out.write_all(&value.to_le_bytes()).unwrap();
            }
            std::process::exit(0);
        }
        ForkResult::Parent { child } => {
            drop(write);
            let mut bytes = Vec::new();
            std::fs::File::from(read).read_to_end(&mut bytes).unwrap();
            waitpid(child, None).unwrap();
            let values: Vec<u64> = bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect();
            assert!(!values.is_empty(), "no sample");
            values
        }
    }
}

fn spawn(words: &[&str]) -> Init {
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).unwrap();
    let (clock_read, clock_write) = pipe().unwrap();
    let (out_read, out_write) = pipe().unwrap();
    let program = CString::new(words[0]).unwrap();
    let arguments: Vec<CString> = words.iter().map(|w| CString::new(*w).unwrap()).collect();
    let environment = [c"PATH=/usr/bin:/bin"];
    // SAFETY: one thread.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>).unwrap();
            std::env::set_current_dir("/").unwrap();
            setgroups(&[]).unwrap();
            setgid(65532.into()).unwrap();
            setuid(65532.into()).unwrap();
            let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
            // SAFETY: dup2(2) and prctl(2) take integers.
            unsafe {
                libc::dup2(null.as_raw_fd(), 0);
                libc::dup2(out_write.as_raw_fd(), 1);
                libc::dup2(null.as_raw_fd(), 2);
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            }
            let time = u64::try_from(now().as_nanos()).unwrap().to_le_bytes();
            nix::unistd::write(&clock_write, &time).unwrap();
            drop((clock_read, clock_write, out_read, out_write, null));
            let _ = nix::unistd::execve(&program, &arguments, &environment);
            std::process::exit(127);
        }
        ForkResult::Parent { child } => {
            drop((clock_write, out_write));
            let mut time = [0; 8];
            std::fs::File::from(clock_read).read_exact(&mut time).unwrap();
            // SAFETY: taken out of its owner, and nobody else's.
            let stdout = unsafe { OwnedFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(out_read)) };
            Init { pid: child, exec: Duration::from_nanos(u64::from_le_bytes(time)), stdout: stdout.into() }
        }
    }
}

impl Init {
    /// Until the workload says that it is ready.
    pub fn ready(&mut self) {
        let mut byte = [0];
        self.stdout.read_exact(&mut byte).expect("the workload never got ready");
    }

    /// Waits for its end; nanoseconds since `since`.
    pub fn gone(&self, since: Duration) -> u64 {
        waitpid(self.pid, None).unwrap();
        nanoseconds(since)
    }
}

/// Nanoseconds since then.
pub fn nanoseconds(since: Duration) -> u64 {
    u64::try_from((now() - since).as_nanos()).unwrap()
}

/// Not as PID 1: `command`, whose workload says on its stdout that it is ready, gets `signals`; nanoseconds from there to its end, and
/// its exit status.
pub fn stopped(command: &mut std::process::Command, signals: &[Signal]) -> (u64, Option<i32>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let pid = Pid::from_raw(child.id().cast_signed());
    let since = now();
    signals.iter().for_each(|signal| kill(pid, *signal).unwrap());
    let code = child.wait().unwrap().code();
    (u64::try_from((now() - since).as_nanos()).unwrap(), code)
}

pub fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The numbers after the bench's name.
pub fn numbers() -> impl Iterator<Item = usize> {
    std::env::args().skip(1).filter_map(|w| w.parse().ok())
}

/// The first of them, else `default`: how many rounds.
pub fn rounds(default: usize) -> usize {
    numbers().next().unwrap_or(default)
}

/// The samples of one bench: who, what, value.
pub struct Samples {
    name: &'static str,
    unit: &'static str,
    raw: Vec<(String, f64)>,
}

impl Samples {
    pub const fn new(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, raw: Vec::new() }
    }

    pub fn push(&mut self, who: &str, value: f64) {
        self.raw.push((who.to_owned(), value));
    }

    pub fn of(&self, who: &str) -> Vec<f64> {
        self.raw.iter().filter(|(name, _)| name == who).map(|&(_, value)| value).collect()
    }

    /// Writes target/bench/NAME.csv and NAME.svg (a bar for each median, whiskers from p5 to p95).
    pub fn keep(&self) -> PathBuf {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
        std::fs::create_dir_all(&dir).unwrap();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let host = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let host =
            host.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("").trim_start_matches(['\t', ' ', ':']);
        let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let mut csv = format!("# kernel {}, {host}, {cpus} CPUs\nwho,{}\n", kernel.trim(), self.unit);
        for (who, value) in &self.raw {
            writeln!(csv, "{who},{value}").unwrap();
        }
        std::fs::write(dir.join(format!("{}.csv", self.name)), csv).unwrap();
        std::fs::write(dir.join(format!("{}.svg", self.name)), self.plot(&format!("Linux {}, {host}", kernel.trim())))
            .unwrap();
        dir
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for (who, _) in &self.raw {
            if !names.contains(&who.as_str()) {
                names.push(who);
            }
        }
        names
    }

    fn plot(&self, where_: &str) -> String {
        let names = self.names();
        let most = names.iter().map(|n| quantile(&self.of(n), 0.95)).fold(f64::MIN_POSITIVE, f64::max);
        let height = names.len() * 26 + 60;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"720\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/><text x=\"8\" y=\"18\" font-weight=\"bold\">{} ({}), median and p5 to p95</text>\n",
            self.name, self.unit
        );
        for (n, name) in names.iter().enumerate() {
            let samples = self.of(name);
            let (y, x) = (30 + n * 26, |value: f64| 220.0 + 420.0 * value / most);
            let (low, mid, high) = (x(quantile(&samples, 0.05)), x(median(&samples)), x(quantile(&samples, 0.95)));
            let fill = if name.contains("gracekeeper") { "#2a7" } else { "#89a" };
            writeln!(
                svg,
                "<text x=\"8\" y=\"{}\">{name}</text><rect x=\"220\" y=\"{y}\" width=\"{:.1}\" height=\"18\" fill=\"{fill}\"/>\
                 <path d=\"M{low:.1} {m}H{high:.1}\" stroke=\"black\"/><text x=\"{:.1}\" y=\"{}\">{:.3}</text>",
                y + 13, mid - 220.0, high + 4.0, y + 13, median(&samples), m = y + 9
            )
            .unwrap();
        }
        writeln!(svg, "<text x=\"8\" y=\"{}\" fill=\"#666\">{where_}</text></svg>", height - 10).unwrap();
        svg
    }
}
