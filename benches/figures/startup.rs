//! Start-up: what a supervisor adds to `/bin/true`, from the exec of PID 1 to the end of its PID namespace, against its peers.
//!
//! `cargo bench --bench figures -- startup [ROUNDS]`, as root (a PID namespace for each sample; inside it everybody is UID 65532).
//! Each round runs everybody once, starting with another one each time. Peers that are not installed are left out.

use super::support::{Samples, as_pid1, median, private, quantile, rounds};

const TRUE: &str = "/bin/true";
const WHO: [(&str, &[&str]); 7] = [
    ("bare", &[TRUE]),
    ("tini", &["/usr/bin/tini", "--", TRUE]),
    ("tini-static", &["/usr/bin/tini-static", "--", TRUE]),
    ("dumb-init", &["/usr/bin/dumb-init", TRUE]),
    ("catatonit", &["/usr/bin/catatonit", "--", TRUE]),
    ("gracekeeper, monitoring off", &["/mnt/gracekeeper", "--monitoring", "off", "--", TRUE]),
    ("gracekeeper, high", &["/mnt/gracekeeper", "--risk", "high", "--", TRUE]),
];

pub fn run() {
    private();
    let mut samples = Samples::new("startup", "ms");
    let who: Vec<_> = WHO.iter().filter(|(_, words)| std::path::Path::new(words[0]).exists()).collect();
    for round in 0..rounds(300) {
        for n in 0..who.len() {
            let (name, words) = who[(n + round) % who.len()];
            let took = as_pid1(words, |init| vec![init.gone(init.exec)])[0];
            // The record does not grow from run to run for one of them only.
            let _ = std::fs::remove_file("/var/log/security-audit.json");
            samples.push(name, took as f64 / 1e6);
        }
    }
    let bare = median(&samples.of("bare"));
    let catatonit = median(&samples.of("catatonit")) - bare;
    println!("{:<30} {:>8} {:>8} {:>9} {:>12}", "who", "p50 ms", "p99 ms", "added ms", "x catatonit");
    for (name, _) in who {
        let all = samples.of(name);
        let added = median(&all) - bare;
        let (p50, p99) = (median(&all), quantile(&all, 0.99));
        println!("{name:<30} {p50:>8.3} {p99:>8.3} {added:>9.3} {:>12.2}", added / catatonit);
    }
    println!("raw samples and plot: {}", samples.keep().display());
}
