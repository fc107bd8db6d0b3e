//! What the workload pays: the same work with and without gracekeeper, in turn. The work times itself, so start-up is not in it
//! but for python's, which is the whole process.
//!
//! `cargo bench --bench figures -- cost [ROUNDS]`. With gracekeeper: the full high profile, not as PID 1 as UID 65532 would be, but with
//! everything it sets up (seccomp filter, Landlock, samples once a second).

use super::support::{Samples, as_pid1, median, now, private, quantile, rounds};
use nix::unistd::{ForkResult, fork};
use std::io::Write;
use std::path::Path;

const PYTHON: &str = "/usr/bin/python3";

/// Does it once; nanoseconds on stdout.
pub fn timed(kind: &str) {
    let since = now();
    work(kind);
    println!("{}", (now() - since).as_nanos());
}

fn work(kind: &str) {
    match kind {
        "10,000 forks" => {
            for _ in 0..10_000 {
                // SAFETY: one thread.
                if let ForkResult::Child = unsafe { fork() }.unwrap() {
                    // SAFETY: _exit(2) runs nothing.
                    unsafe { libc::_exit(0) };
                }
                nix::sys::wait::wait().unwrap();
            }
        }
        "10,000 sockets" => {
            for _ in 0..10_000 {
                drop(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
            }
        }
        "100,000 file writes" => {
            let mut file = std::fs::File::create("/tmp/work").unwrap();
            for _ in 0..100_000 {
                file.write_all(&[b'x'; 100]).unwrap();
            }
        }
        "100,000 getppid" => {
            for _ in 0..100_000 {
                nix::unistd::getppid();
            }
        }
        other => panic!("no such work: {other}"),
    }
}

pub fn run() {
    private();
    let mut samples = Samples::new("cost", "ms");
    println!("{:<22} {:>12} {:>12} {:>7} {:>7} {:>7}", "work", "without ms", "with ms", "ratio", "p5", "p95");
    for kind in ["python start-up", "10,000 forks", "10,000 sockets", "100,000 file writes", "100,000 getppid"] {
        let python = kind == "python start-up";
        if python && !Path::new(PYTHON).exists() {
            continue;
        }
        let plain: Vec<&str> = if python { vec![PYTHON, "-c", ""] } else { vec!["/mnt/worker", "work", kind] };
        let mut supervised = vec!["/mnt/gracekeeper", "--risk", "high", "--"];
        supervised.extend(&plain);
        let mut ratios = Vec::new();
        for round in 0..rounds(21) {
            let mut pair = [0.0; 2];
            for n in [round % 2, 1 - round % 2] {
                let words = if n == 0 { &plain } else { &supervised };
                let took = as_pid1(words, |init| {
                    if python {
                        return vec![init.gone(init.exec)];
                    }
                    let mut text = String::new();
                    std::io::Read::read_to_string(&mut init.stdout, &mut text).unwrap();
                    init.gone(init.exec);
                    vec![text.trim().parse().unwrap()]
                })[0];
                pair[n] = took as f64 / 1e6;
                let _ = std::fs::remove_file("/var/log/security-audit.json");
            }
            samples.push(&format!("{kind}, without"), pair[0]);
            samples.push(&format!("{kind}, gracekeeper"), pair[1]);
            ratios.push(pair[1] / pair[0]);
        }
        let of = |who: &str| median(&samples.of(&format!("{kind}, {who}")));
        println!(
            "{kind:<22} {:>12.3} {:>12.3} {:>7.3} {:>7.3} {:>7.3}",
            of("without"),
            of("gracekeeper"),
            median(&ratios),
            quantile(&ratios, 0.05),
            quantile(&ratios, 0.95)
        );
    }
    println!("raw samples and plot: {}", samples.keep().display());
}
