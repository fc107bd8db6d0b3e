//! Killing: from the signal to everything reaped, for 1 to 5,000 processes that ignore SIGTERM, each in a session of its own,
//! against the kernel's own teardown of a PID namespace with the same tree (SIGKILL to its PID 1). Beside it the subreaper.
//!
//! `cargo bench --bench figures -- kill [ROUNDS [SIZE…]]`, as root. gracekeeper is told to kill at once (SIGINT and SIGQUIT). Everything is
//! every process of the tree, and not PID 1, in all of them; when it is reaped, `observer` says. The time to the end of PID 1, with
//! gracekeeper's scrub and seal in it (audit on tmpfs), is the second of each sample, and measured once more with nobody observing.

use super::observer::{self, Observer};
use super::support::{Samples, apart, as_pid1, median, nanoseconds, now, numbers, private, quantile, rounds};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::{ForkResult, Pid, fork, pause, setsid};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

const SIZES: [usize; 4] = [1, 100, 1_000, 5_000];
const KERNEL: &str = "kernel";
const OURS: &str = "gracekeeper";
const SUBREAPER: &str = "gracekeeper, subreaper";
/// The same where nobody was looked at before: an entry of `/proc` that was makes its process's death longer.
const UNSEEN: &str = "gracekeeper, monitoring off";
/// The kernel's teardown of what gracekeeper confined, filter and domain included.
const CONFINED: &str = "kernel, confined";
const NOW: [Signal; 2] = [Signal::SIGINT, Signal::SIGQUIT];

/// So many double-forked TERM-ignorers in sessions of their own, with `alive` open for writing; a byte on stdout when the last one
/// is there.
pub fn tree(size: usize, alive: Option<&str>) -> ! {
    // SAFETY: one thread; SIG_IGN is no handler.
    unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }.unwrap();
    // SAFETY: as above.
    unsafe { signal(Signal::SIGINT, SigHandler::SigIgn) }.unwrap();
    let _alive = alive.map(|fifo| std::fs::File::options().write(true).open(fifo).unwrap());
    for _ in 1..size {
        // SAFETY: one thread.
        if let ForkResult::Child = unsafe { fork() }.unwrap() {
            setsid().unwrap();
            // SAFETY: one thread.
            if let ForkResult::Parent { .. } = unsafe { fork() }.unwrap() {
                std::process::exit(0);
            }
            loop {
                pause();
            }
        }
        nix::sys::wait::wait().unwrap();
    }
    std::io::stdout().write_all(b"r").unwrap();
    std::io::stdout().flush().unwrap();
    loop {
        pause();
    }
}

/// Old enough to have been looked at: there is a sample a second. What making the tree left the kernel to do is done then, and a bench at
/// real-time priority keeps its share (sched_rt_runtime_us, sched(7)): else it would be throttled in the midst of what is measured.
const AGE: Duration = Duration::from_millis(1_200);

/// A PID 1 that does nothing but to have the tree.
pub fn init(tree: &[String]) -> ! {
    let mut tree = Command::new("/mnt/worker").args(tree).spawn().unwrap();
    loop {
        // Nothing but SIGKILL comes, and nobody of the tree is waited for before.
        pause();
        let _ = tree.wait();
    }
}

/// As PID 1: nanoseconds to everything reaped, where that is observed, and to the end of PID 1.
fn pid1(words: &[&str], size: usize, observed: bool, signals: &[Signal]) -> Vec<u64> {
    let text = size.to_string();
    let words: Vec<&str> = [words, &["tree", &text], if observed { &[observer::ALIVE] } else { &[] }].concat();
    as_pid1(&words, |init| {
        let fifo = observed.then(Observer::fifo);
        init.ready();
        let observer = fifo.map(|fifo| Observer::of(fifo, init.pid, size));
        std::thread::sleep(AGE);
        let since = sent(init.pid, signals);
        let reaped = observer.map(|observer| {
            observer.reaped();
            nanoseconds(since)
        });
        reaped.into_iter().chain([init.gone(since)]).collect()
    })
}

/// Sends them; when the last one was, which is the one that kills.
fn sent(pid: Pid, signals: &[Signal]) -> Duration {
    let mut since = now();
    for signal in signals {
        since = now();
        kill(pid, *signal).unwrap();
    }
    since
}

/// Not as PID 1: a child of ours that finds its descendants by itself.
fn subreaper(size: usize) -> Vec<u64> {
    apart(|| {
        let mut command = Command::new("/mnt/gracekeeper");
        command.args(["--risk", "high", "--", "/mnt/worker", "tree", &size.to_string(), observer::ALIVE]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let fifo = Observer::fifo();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let observer = Observer::of(fifo, pid, size);
        std::thread::sleep(AGE);
        let since = sent(pid, &NOW);
        observer.reaped();
        let reaped = nanoseconds(since);
        child.wait().unwrap();
        vec![reaped, nanoseconds(since)]
    })
}

pub fn run() {
    private();
    observer::place();
    let ours = ["/mnt/gracekeeper", "--risk", "high", "--", "/mnt/worker"];
    let blind = ["/mnt/gracekeeper", "--risk", "high", "--monitoring", "off", "--", "/mnt/worker"];
    let kernels = ["/mnt/worker", "init"];
    let (mut reaped, mut ended) = (Samples::new("kill", "ms"), Samples::new("kill-end", "ms"));
    let sizes = numbers().skip(1).collect::<Vec<_>>();
    let sizes = if sizes.is_empty() { SIZES.to_vec() } else { sizes };
    for &size in &sizes {
        for round in 0..rounds(21) {
            // On its own a round of the largest takes half a minute.
            eprint!("\r{size} processes, round {} of {} ", round + 1, rounds(21));
            for n in 0..7 {
                let (who, observed, took) = match (n + round) % 7 {
                    0 => (KERNEL, true, pid1(&kernels, size, true, &[Signal::SIGKILL])),
                    1 => (OURS, true, pid1(&ours, size, true, &NOW)),
                    2 => (CONFINED, true, pid1(&blind, size, true, &[Signal::SIGKILL])),
                    3 => (SUBREAPER, true, subreaper(size)),
                    4 => (UNSEEN, true, pid1(&blind, size, true, &NOW)),
                    5 => (KERNEL, false, pid1(&kernels, size, false, &[Signal::SIGKILL])),
                    _ => (OURS, false, pid1(&ours, size, false, &NOW)),
                };
                let _ = std::fs::remove_file("/var/log/security-audit.json");
                let ms = |nanoseconds: u64| nanoseconds as f64 / 1e6;
                match took[..] {
                    [all, end] => {
                        reaped.push(&format!("{who} {size}"), ms(all));
                        ended.push(&format!("{who} {size}"), ms(end));
                    }
                    [end] => ended.push(&format!("{who} {size}, unobserved"), ms(end)),
                    _ => panic!("{took:?}"),
                }
                assert_eq!(observed, took.len() == 2);
            }
        }
    }
    eprintln!();
    for (what, samples, how) in [
        ("to everything reaped", &reaped, ""),
        ("to the end of PID 1", &ended, ""),
        ("to the end of PID 1, unobserved", &ended, ", unobserved"),
    ] {
        println!(
            "{what}\n{:>6} {:<28} {:>9} {:>9} {:>7} {:>6} {:>6}",
            "size", "who", "p50 ms", "p99 ms", "ratio", "p5", "p95"
        );
        for &size in &sizes {
            let of = |who: &str| samples.of(&format!("{who} {size}{how}"));
            let kernel = of(KERNEL);
            for who in [KERNEL, CONFINED, OURS, UNSEEN, SUBREAPER] {
                let own = of(who);
                if own.is_empty() {
                    continue;
                }
                // Each beside the kernel's of its own round: what else the machine did is in both.
                let ratios: Vec<f64> = own.iter().zip(&kernel).map(|(own, kernel)| own / kernel).collect();
                let (p50, p99, ratio) = (median(&own), quantile(&own, 0.99), median(&own) / median(&kernel));
                let (low, high) = (quantile(&ratios, 0.05), quantile(&ratios, 0.95));
                println!("{size:>6} {who:<28} {p50:>9.3} {p99:>9.3} {ratio:>7.2} {low:>6.2} {high:>6.2}");
            }
        }
    }
    println!("raw samples and plot: {}, {}", reaped.keep().display(), ended.keep().display());
}
