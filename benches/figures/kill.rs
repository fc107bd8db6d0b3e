//! Killing: from the signal to everything reaped, for 1 to 5,000 processes that ignore SIGTERM, each in a session of its own,
//! against the kernel's own teardown of a PID namespace with the same tree (SIGKILL to its PID 1). Beside it the subreaper.
//!
//! `cargo bench --bench figures -- kill [ROUNDS]`, as root. gracekeeper is told to kill at once (SIGINT twice); its time ends with its
//! exit, so scrub and seal (audit on tmpfs) are in it.

use super::support::{Samples, as_pid1, median, now, private, quantile, rounds, stopped};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::{ForkResult, fork, pause, setsid};
use std::io::Write;

const SIZES: [usize; 4] = [1, 100, 1_000, 5_000];

/// So many double-forked TERM-ignorers in sessions of their own; a byte on stdout when the last one is there.
pub fn tree(size: usize) -> ! {
    // SAFETY: one thread; SIG_IGN is no handler.
    unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }.unwrap();
    // SAFETY: as above.
    unsafe { signal(Signal::SIGINT, SigHandler::SigIgn) }.unwrap();
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

pub fn run() {
    private();
    let mut samples = Samples::new("kill", "ms");
    for size in SIZES {
        let text = size.to_string();
        let ours = ["/mnt/gracekeeper", "--risk", "high", "--", "/mnt/worker", "tree", &text];
        let kernels = ["/mnt/worker", "tree", &text];
        for round in 0..rounds(21) {
            for n in 0..3 {
                let (who, took) = match (n + round) % 3 {
                    0 => (
                        "kernel",
                        as_pid1(&kernels, |init| {
                            init.ready();
                            let since = now();
                            kill(init.pid, Signal::SIGKILL).unwrap();
                            vec![init.gone(since)]
                        })[0],
                    ),
                    1 => (
                        "gracekeeper",
                        as_pid1(&ours, |init| {
                            init.ready();
                            let since = now();
                            kill(init.pid, Signal::SIGINT).unwrap();
                            kill(init.pid, Signal::SIGQUIT).unwrap();
                            vec![init.gone(since)]
                        })[0],
                    ),
                    _ => ("gracekeeper, subreaper", subreaper(&text)),
                };
                let _ = std::fs::remove_file("/var/log/security-audit.json");
                samples.push(&format!("{who} {size}"), took as f64 / 1e6);
            }
        }
    }
    println!(
        "{:>6} {:>10} {:>14} {:>7} {:>8} {:>13}",
        "size", "kernel ms", "gracekeeper ms", "ratio", "p99", "subreaper ms"
    );
    for size in SIZES {
        let of = |who: &str| samples.of(&format!("{who} {size}"));
        let (kernel, ours) = (median(&of("kernel")), median(&of("gracekeeper")));
        println!(
            "{size:>6} {kernel:>10.2} {ours:>14.2} {:>7.2} {:>8.2} {:>13.2}",
            ours / kernel,
            quantile(&of("gracekeeper"), 0.99),
            median(&of("gracekeeper, subreaper"))
        );
    }
    println!("raw samples and plot: {}", samples.keep().display());
}

/// Not as PID 1: a child of ours that finds its descendants by itself.
fn subreaper(size: &str) -> u64 {
    let mut command = std::process::Command::new("/mnt/gracekeeper");
    command.args(["--risk", "high", "--", "/mnt/worker", "tree", size]);
    stopped(&mut command, &[Signal::SIGINT, Signal::SIGQUIT]).0
}
