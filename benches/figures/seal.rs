//! The seal: from the signal to the durable record of an idle workload, against one bare write and fsync on the same file system.
//!
//! `cargo bench --bench figures -- seal [ROUNDS]`. gracekeeper's time ends with its exit. The record's first line is fsynced before the
//! workload runs, so what is timed is the workload's death, two lines and two fsyncs.

use super::support::{GRACEKEEPER, Samples, now, quantile, rounds, stopped};
use nix::sys::signal::Signal;
use std::io::Write;
use std::path::Path;

fn bare(dir: &Path) -> f64 {
    let mut file = std::fs::File::options().append(true).create(true).open(dir.join("bare")).unwrap();
    let since = now();
    file.write_all(&[b'x'; 2048]).unwrap();
    file.sync_all().unwrap();
    (now() - since).as_secs_f64() * 1e3
}

fn sealed(dir: &Path) -> f64 {
    let mut command = std::process::Command::new(GRACEKEEPER);
    command.args(["--risk", "high", "--audit-file"]).arg(dir.join("audit.json"));
    command.args(["--", "sh", "-c", "echo r; exec sleep 1000"]);
    let (took, code) = stopped(&mut command, &[Signal::SIGTERM]);
    assert_eq!(code, Some(143));
    std::fs::remove_file(dir.join("audit.json")).unwrap();
    took as f64 / 1e6
}

pub fn run() {
    let mut samples = Samples::new("seal", "ms");
    let disk = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    println!(
        "{:<10} {:>12} {:>12} {:>14} {:>14} {:>8}",
        "on", "bare p50 ms", "bare p99 ms", "sealed p50 ms", "sealed p99 ms", "x bare"
    );
    for (on, below) in [("tmpfs", Path::new("/dev/shm")), ("disk", &disk)] {
        let dir = tempfile::Builder::new().prefix("gracekeeper-bench-").tempdir_in(below).unwrap();
        for _ in 0..rounds(1_000) {
            samples.push(&format!("bare write+fsync, {on}"), bare(dir.path()));
            samples.push(&format!("gracekeeper, {on}"), sealed(dir.path()));
        }
        let (bare, ours) = (samples.of(&format!("bare write+fsync, {on}")), samples.of(&format!("gracekeeper, {on}")));
        let q = |s: &[f64], q| quantile(s, q);
        println!(
            "{on:<10} {:>12.3} {:>12.3} {:>14.3} {:>14.3} {:>8.2}",
            q(&bare, 0.5),
            q(&bare, 0.99),
            q(&ours, 0.5),
            q(&ours, 0.99),
            q(&ours, 0.5) / q(&bare, 0.5)
        );
    }
    println!("raw samples and plot: {}", samples.keep().display());
}
