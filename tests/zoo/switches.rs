//! The switches of the zoo are in no build but its own.

use super::place::*;
use super::support::*;
use std::path::Path;
use std::process::Command;

const VARIABLE: &str = "GRACEKEEPER_TEST_WITHOUT";

fn holds(binary: &Path) -> bool {
    let bytes = std::fs::read(binary).unwrap();
    bytes.windows(VARIABLE.len()).any(|window| window == VARIABLE.as_bytes())
}

#[test]
fn the_binary_has_not_even_the_name() {
    assert!(holds(switched()), "control");
    assert!(!holds(Path::new(BINARY)));
    // And neither does a release, where one was built.
    let release = Path::new(BINARY).ancestors().nth(2).unwrap().join("release/gracekeeper");
    if release.exists() {
        assert!(!holds(&release), "{}", release.display());
    }
}

#[test]
fn the_binary_does_not_heed_it() {
    if !able() {
        return;
    }
    let all = "seccomp_filter,signal_scope,landlock,supervisor_not_dumpable,descriptors,environment";
    for attack in ["ptrace", "proc-mem", "prlimit-fsize", "kill-term"] {
        let run = |guard| {
            let mut stage = Stage::new(Pid1);
            stage.env = vec![(VARIABLE, all)];
            stage.run(guard, &[attack])
        };
        assert!(it_says(&run(Guard::Without(all))), "control: {attack}");
        let ran = run(Guard::Full);
        assert!(!it_says(&ran) && ran.held("seccomp_filter"), "{attack}: {ran:#?}");
    }
}

#[test]
fn no_release_can_be_built_with_them() {
    let build = |assertions: &str| {
        let dir = tempfile::tempdir().unwrap();
        let out = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args([
                "--edition",
                "2024",
                "--crate-type",
                "lib",
                "--emit",
                "metadata",
                "--cfg",
                "feature=\"test-switches\"",
            ])
            .args(["-C", &format!("debug-assertions={assertions}"), "--out-dir"])
            .arg(dir.path())
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/switches.rs"))
            .output()
            .unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    assert!(build("yes").0, "control: {}", build("yes").1);
    let (built, why) = build("no");
    assert!(!built && why.contains("test-switches lets the environment"), "{why}");
}
