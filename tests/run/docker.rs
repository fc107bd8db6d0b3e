//! The images of image/, under docker's restricted flags.

use super::support::*;
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The images' IDs: the scratch image's and the evaluation image's. Not their tags, which another checkout's tests may move.
fn images() -> Option<&'static [String; 2]> {
    static BUILT: OnceLock<Option<[String; 2]>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            if !has("docker") {
                return None;
            }
            let out = Command::new("image/build")
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .env("GRACEKEEPER", BINARY)
                .output()
                .unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            let ids: Vec<String> = text(&out.stdout).lines().map(str::to_owned).collect();
            Some(ids.try_into().unwrap())
        })
        .as_ref()
}

/// The evaluation image, built once; `None` where docker is not here.
pub fn image() -> Option<&'static str> {
    images().map(|[_, evaluation]| evaluation.as_str())
}

/// The scratch image.
pub fn scratch() -> Option<&'static str> {
    images().map(|[scratch, _]| scratch.as_str())
}

pub const RESTRICTED: [&str; 9] = [
    "--read-only",
    "--user=65532:65532",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--memory=128m",
    "--cpus=0.2",
    "--pids-limit=200",
    "--network=none",
    "--log-driver=json-file",
];

pub fn docker(words: &[&str]) -> Output {
    Command::new("docker").args(words).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs to the end in the tightest place; exit status and records.
fn restricted(image: &str, words: &[&str]) -> (Option<i32>, Vec<serde_json::Value>, String) {
    let out = Command::new("docker").args(["run", "--rm"]).args(RESTRICTED).arg(image).args(words).output().unwrap();
    let stderr = text(&out.stderr);
    (out.status.code(), records(&stderr), stderr)
}

#[test]
fn it_runs_and_says_what_it_could_not_do() {
    let Some(image) = image() else { return };
    let (code, records, stderr) = restricted(image, &["sh", "-c", "(setsid sleep 1000 &); exit 42"]);
    assert_eq!(code, Some(42), "{stderr}");
    let seal = records.last().unwrap();
    assert_eq!(seal["status"], "nonzero_exit");
    assert_eq!(seal["enforcement"]["no_new_privs"], "enforced");
    // A read-only root without volumes: nothing to clean but the memory docker itself mounts.
    for path in seal["cleanup"]["paths"].as_array().unwrap() {
        let wanted = if path["path"] == "/dev/shm" { "complete" } else { "skipped" };
        assert_eq!(path["status"], wanted, "{path}");
    }
}

#[test]
fn it_times_out() {
    let Some(image) = image() else { return };
    let (code, records, stderr) = restricted(
        image,
        &[
            "--timeout",
            "1s",
            "--soft",
            "200ms",
            "--hard",
            "400ms",
            "--",
            "sh",
            "-c",
            "trap '' TERM; while :; do :; done",
        ],
    );
    assert_eq!(code, Some(124), "{stderr}");
    assert_eq!(records.last().unwrap()["status"], "timeout");
}

#[test]
fn it_stops_on_docker_stop() {
    let Some(image) = image() else { return };
    let started = Command::new("docker")
        .args(["run", "-d"])
        .args(RESTRICTED)
        .arg(image)
        .args(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
        .output()
        .unwrap();
    let id = text(&started.stdout).trim().to_owned();
    assert!(started.status.success(), "{}", text(&started.stderr));
    until("it has started", || text(&docker(&["logs", &id]).stderr).contains("evaluation_started"));
    docker(&["stop", "-t", "10", &id]);
    let code = text(&docker(&["inspect", "-f", "{{.State.ExitCode}}", &id]).stdout);
    let logs = text(&docker(&["logs", &id]).stderr);
    docker(&["rm", "-f", &id]);
    assert_eq!(code.trim(), "143", "{logs}");
    let records = records(&logs);
    assert_eq!(records.last().unwrap()["status"], "terminated", "{logs}");
}

#[test]
fn the_scratch_image_needs_nothing() {
    let Some(image) = image() else { return };
    let (code, records, stderr) = restricted(scratch().unwrap(), &["/gracekeeper", "--version"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(records.last().unwrap()["status"], "ok");
    let out = docker(&["run", "--rm", "--init", image, "sh", "-c", "exit 5"]);
    assert_eq!(out.status.code(), Some(5), "not as PID 1 under docker --init: {}", text(&out.stderr));
}

#[test]
fn an_operator_inside_the_container_can_stop_it() {
    let Some(image) = image() else { return };
    let started = docker(&["run", "-d", "--read-only", "--network=none", image, "sleep", "600"]);
    let id = text(&started.stdout).trim().to_owned();
    until("it has started", || text(&docker(&["logs", &id]).stderr).contains("evaluation_started"));
    docker(&["exec", &id, "kill", "-TERM", "1"]);
    let code = text(&docker(&["wait", &id]).stdout);
    let logs = text(&docker(&["logs", &id]).stderr);
    docker(&["rm", "-f", &id]);
    assert_eq!(code.trim(), "143", "{logs}");
}

#[test]
fn under_a_fifth_of_a_cpu_and_128_mib_an_overlay_and_a_tmpfs_are_emptied() {
    let Some(image) = image() else { return };
    // The root is docker's overlay, and writable here; /dev/shm is a tmpfs of docker's.
    let words = RESTRICTED.iter().filter(|w| **w != "--read-only");
    let script = "for d in /tmp /dev/shm; do mkdir -p $d/t/a/b; i=0; \
        while [ $i -lt 1000 ]; do echo secret > $d/t/$i; i=$((i+1)); done; chmod 000 $d/t/a/b; done";
    let out = Command::new("docker")
        .args(["run", "--rm"])
        .args(words)
        .args([image, "--audit-file", "/nowhere/to-stderr", "--scrub-budget", "30s", "--", "sh", "-c", script])
        .output()
        .unwrap();
    let stderr = text(&out.stderr);
    let seal = records(&stderr).pop().unwrap_or_else(|| panic!("{stderr}"));
    assert_eq!((seal["status"].as_str(), seal["cleanup_status"].as_str()), (Some("ok"), Some("complete")), "{stderr}");
    let removed = |path: &str| {
        let paths = seal["cleanup"]["paths"].as_array().unwrap();
        paths.iter().find(|p| p["path"] == path).unwrap()["entries_removed"].as_u64().unwrap()
    };
    assert_eq!((removed("/tmp"), removed("/dev/shm")), (1003, 1003), "{seal:#}");
    println!("{}", seal["cleanup"]);
}
