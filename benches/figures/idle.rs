//! A supervisor that waits: anonymous (its own private) and resident memory, wake-ups and CPU time, and what 500 of them cost side by side.
//!
//! `cargo bench --bench figures -- idle [SECONDS]`, as root. Peers beside it; /proc/PID/smaps_rollup, status and schedstat (proc(5)).

use super::support::{Samples, as_pid1, private, rounds};
use nix::sys::signal::{Signal, kill};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SLEEP: &str = "echo r; exec sleep 100000";
const MANY: &str = "i=0; while [ $i -lt 100 ]; do sleep 100000 & i=$((i+1)); done; echo r; exec sleep 100000";

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("0");
    line.trim_start_matches(':').split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Anonymous and resident KiB (not Private_Dirty: the program's own pages, on the bench's tmpfs, count as dirty there), wake-ups and CPU microseconds over so long.
fn watch(words: &[&str], seconds: u64) -> Vec<u64> {
    as_pid1(words, |init| {
        init.ready();
        // The namespace's own /proc, which we see as well: it is PID 1 there.
        let of = |file: &str| std::fs::read_to_string(format!("/proc/1/{file}")).unwrap();
        let switches = |text: &str| field(text, "voluntary_ctxt_switches") + field(text, "nonvoluntary_ctxt_switches");
        let cpu = |text: &str| text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        // What starting up still had to do is over.
        std::thread::sleep(Duration::from_secs(1));
        let (woken, used) = (switches(&of("status")), cpu(&of("schedstat")));
        std::thread::sleep(Duration::from_secs(seconds));
        let (woken, used) = (switches(&of("status")) - woken, cpu(&of("schedstat")) - used);
        let memory = of("smaps_rollup");
        let seen = vec![field(&memory, "Anonymous"), field(&memory, "Rss"), woken, used / 1_000];
        kill(init.pid, Signal::SIGKILL).unwrap();
        init.gone(init.exec);
        seen
    })
}

/// A memory cgroup of our own, where one can be made: what is charged to it is nobody else's, and has the kernel's part in it
/// (page tables, stacks, structures).
struct Group {
    dir: PathBuf,
    usage: &'static str,
}

impl Group {
    fn new() -> Option<Self> {
        let name = format!("gracekeeper-bench-{}", std::process::id());
        let kinds = [("/sys/fs/cgroup/memory", "memory.usage_in_bytes"), ("/sys/fs/cgroup", "memory.current")];
        kinds.into_iter().find_map(|(root, usage)| {
            let group = Self { dir: Path::new(root).join(&name), usage };
            std::fs::create_dir(&group.dir).ok()?;
            group.dir.join(usage).exists().then_some(group)
        })
    }

    fn used(&self) -> u64 {
        std::fs::read_to_string(self.dir.join(self.usage)).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The last of them may still be on its way out.
        let until = gracekeeper::kernel::clock::now().plus(Duration::from_secs(10));
        while std::fs::remove_dir(&self.dir).is_err() && gracekeeper::kernel::clock::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// 500 of them, each with a sleep: KiB for each, the sleep's own included.
fn side_by_side(words: &[&str]) -> Option<f64> {
    let group = Group::new()?;
    let enter = format!("echo $$ > {}; exec \"$@\"", group.dir.join("cgroup.procs").display());
    let mut all: Vec<Child> = (0..500)
        .map(|_| {
            let mut command = Command::new("sh");
            command.args(["-c", &enter, "sh"]).args(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for child in &mut all {
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    }
    std::thread::sleep(Duration::from_secs(2));
    let cost = group.used() as f64 / 1024.0 / 500.0;
    for child in &mut all {
        let _ = kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
    }
    for mut child in all {
        child.wait().unwrap();
    }
    Some(cost)
}

pub fn run() {
    private();
    let seconds = rounds(10) as u64;
    let mut samples = Samples::new("idle", "KiB");
    println!("{:<34} {:>9} {:>8} {:>12} {:>14}", "who", "own KiB", "RSS KiB", "wake-ups/s", "CPU s an hour");
    let off = ["/mnt/gracekeeper", "--monitoring", "off", "--timeout", "none", "--", "sh", "-c", SLEEP];
    let on = ["/mnt/gracekeeper", "--monitoring", "aggressive", "--timeout", "none", "--", "sh", "-c", SLEEP];
    let many = ["/mnt/gracekeeper", "--monitoring", "aggressive", "--timeout", "none", "--", "sh", "-c", MANY];
    let cases: [(&str, &[&str]); 7] = [
        ("tini", &["/usr/bin/tini", "--", "sh", "-c", SLEEP]),
        ("tini-static", &["/usr/bin/tini-static", "--", "sh", "-c", SLEEP]),
        ("dumb-init", &["/usr/bin/dumb-init", "sh", "-c", SLEEP]),
        ("catatonit", &["/usr/bin/catatonit", "--", "sh", "-c", SLEEP]),
        ("gracekeeper, monitoring off", &off),
        ("gracekeeper, aggressive", &on),
        ("gracekeeper, 100 processes", &many),
    ];
    for (name, words) in cases.iter().filter(|(_, words)| Path::new(words[0]).exists()) {
        let seen = watch(words, seconds);
        let each_second = seen[2] as f64 / seconds as f64;
        let hour = seen[3] as f64 / 1e6 / seconds as f64 * 3600.0;
        println!("{name:<34} {:>9} {:>8} {each_second:>12.2} {hour:>14.3}", seen[0], seen[1]);
        samples.push(&format!("{name}: own"), seen[0] as f64);
        samples.push(&format!("{name}: RSS"), seen[1] as f64);
    }
    if let Some(sleeps) = side_by_side(&["sh", "-c", SLEEP]) {
        println!("500 side by side, each without its sleep ({sleeps:.0} KiB), the kernel's part included:");
        for (name, words) in cases[..6].iter().filter(|(_, words)| Path::new(words[0]).exists()) {
            let cost = side_by_side(words).unwrap() - sleeps;
            println!("{name:<34} {cost:>9.0} KiB");
            samples.push(&format!("{name}: one of 500"), cost);
        }
    } else {
        println!("skipped: 500 side by side (no memory cgroup can be made)");
    }
    println!("raw samples and plot: {}", samples.keep().display());
}
