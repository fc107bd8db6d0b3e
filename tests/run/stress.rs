//! Workloads that nobody here wrote: stress-ng's stressors, in the tightest place with a pids and a memory limit.

use super::docker::{docker, image, text};
use super::support::*;
use std::process::Command;

/// The host's own stress-ng and its libraries, read-only.
const HOST: [&str; 3] = ["--volume=/usr:/usr:ro", "--volume=/usr/lib:/lib:ro", "--volume=/usr/lib64:/lib64:ro"];
const STRESSORS: [&str; 10] =
    ["fork", "vfork", "clone", "daemon", "zombie", "pthread", "vm", "sock", "udp", "schedpolicy"];

/// Runs one stressor until it is stopped from outside; the seconds from the stop to the seal.
fn stop(image: &str, stressor: &str) -> f64 {
    let id = {
        let started = Command::new("docker")
            .args(["run", "-d", "--read-only", "--user=65532:65532", "--cap-drop=ALL", "--network=none"])
            .args(["--security-opt=no-new-privileges", "--tmpfs=/tmp:mode=1777", "--memory=512m", "--pids-limit=400"])
            .args(HOST)
            .args([image, "--grace", "5s", "--env", "clean", "--", "/usr/bin/stress-ng", "--temp-path", "/tmp"])
            .args([&format!("--{stressor}"), "4", "--vm-bytes", "64m", "--timeout", "600"])
            .output()
            .unwrap();
        assert!(started.status.success(), "{}", text(&started.stderr));
        text(&started.stdout).trim().to_owned()
    };
    until("the stressor runs", || {
        let top = text(&docker(&["top", &id, "-eo", "pid,args"]).stdout);
        top.matches("stress-ng").count() > 2 || text(&docker(&["logs", &id]).stderr).contains("evaluation_terminated")
    });
    docker(&["kill", "--signal", "TERM", &id]);
    let code = text(&docker(&["wait", &id]).stdout);
    let logs = docker(&["logs", &id]);
    docker(&["rm", "-f", &id]);
    let records = records(&text(&logs.stderr));
    let seal = records.last().unwrap();
    assert_eq!(seal["event"], "evaluation_terminated", "{stressor}: {}", text(&logs.stderr));
    let asked = records.iter().find(|r| r["event"] == "termination_requested");
    let asked = asked.unwrap_or_else(|| panic!("{stressor} ended by itself: {}", text(&logs.stdout)));
    // Forking by the hundred a second in the grace is what a fork bomb does; the record says so and the status too.
    match code.trim() {
        "143" => assert_eq!(seal["status"], "terminated", "{seal:#}"),
        "121" => assert_eq!(seal["status"], "violation", "{seal:#}"),
        other => panic!("{stressor}: exit status {other}: {seal:#}"),
    }
    for rung in seal["escalation"].as_array().unwrap().iter().filter(|e| e["rung"] == "kill") {
        assert_eq!(rung["survivors"], 0, "{stressor}: {seal:#}");
    }
    time_of(seal["time"].as_str().unwrap()) - time_of(asked["time"].as_str().unwrap())
}

#[test]
fn every_stressor_is_dead_and_sealed_in_time() {
    let Some(image) = image() else { return };
    if !has("stress-ng") {
        return;
    }
    for stressor in STRESSORS {
        let took = stop(image, stressor);
        println!("{stressor}: sealed {took:.3} s after the stop");
        assert!(took < 4.5, "{stressor}: {took} s of 0.9 x 5 s");
    }
}
