//! Watching the grace: each attack against the thing itself, its control with the watching off, and what must not be called
//! an attack. Under docker, in the tightest place, on its bridge where the attack needs one.

use super::docker::{docker, image, text};
use super::revoke::{Receiver, gateway};
use super::support::*;
use serde_json::Value;
use std::process::Command;

struct Run<'a> {
    network: bool,
    limits: &'a [&'a str],
    monitoring: &'a str,
    options: &'a [&'a str],
    words: &'a [&'a str],
}

impl Run<'_> {
    /// Starts it, waits until the workload runs, stops it from outside, waits for its end: exit status and records.
    fn stopped(&self) -> (i32, Vec<Value>) {
        self.to_the_end(true)
    }

    fn to_the_end(&self, stop: bool) -> (i32, Vec<Value>) {
        let network = if self.network { "--network=bridge" } else { "--network=none" };
        let started = Command::new("docker")
            .args(["run", "-d", "--read-only", "--user=65532:65532", "--cap-drop=ALL", "--log-driver=json-file"])
            .args(["--security-opt=no-new-privileges", "--tmpfs=/tmp:mode=1777", network])
            .args(self.limits)
            .arg(format!("--volume={}:/hostile:ro", hostile().display()))
            .arg(image().unwrap())
            .args(["--monitoring", self.monitoring])
            .args(self.options)
            .arg("--")
            .args(self.words)
            .output()
            .unwrap();
        assert!(started.status.success(), "{}", text(&started.stderr));
        let id = text(&started.stdout).trim().to_owned();
        if stop {
            // Its handler is there. All of it, where it is many.
            let many = if self.words[1] == "burn" { self.words[2].parse().unwrap() } else { 1 };
            until("the workload runs", || {
                let top = text(&docker(&["top", &id, "-eo", "pid,caught,args"]).stdout);
                let caught = |l: &str| u64::from_str_radix(l.split_ascii_whitespace().nth(1)?, 16).ok();
                let handled = |l: &&str| caught(l).is_some_and(|mask| mask >> (libc::SIGTERM - 1) & 1 == 1);
                let own = |l: &&str| l.contains(self.words[0]) && !l.contains("gracekeeper");
                top.lines().filter(own).filter(handled).count() >= many
            });
            docker(&["kill", "--signal", "TERM", &id]);
        }
        let code = text(&docker(&["wait", &id]).stdout);
        let logs = text(&docker(&["logs", &id]).stderr);
        docker(&["rm", "-f", &id]);
        let records = records(&logs);
        assert_eq!(records.last().unwrap()["event"], "evaluation_terminated", "{logs}");
        (code.trim().parse().unwrap(), records)
    }
}

fn rules(records: &[Value]) -> Vec<String> {
    let seal = records.last().unwrap();
    let said = |v: &Value| v["rule"].as_str().unwrap().to_owned();
    let of_seal: Vec<String> = seal["detections"].as_array().unwrap().iter().map(said).collect();
    let written: Vec<String> = records.iter().filter(|r| r["event"] == "detection").map(said).collect();
    assert_eq!(of_seal, written, "each is recorded when it is made and again in the seal");
    written
}

/// ms from the detection to the last death.
fn dead_after(records: &[Value]) -> u64 {
    let seal = records.last().unwrap();
    let kill = seal["escalation"].as_array().unwrap().iter().find(|e| e["rung"] == "kill").unwrap();
    kill["at_ms"].as_u64().unwrap().saturating_sub(seal["detections"][0]["at_ms"].as_u64().unwrap())
}

const GRACE: &[&str] = &["--grace", "10s", "--soft", "5s", "--hard", "6s", "--adaptive", "no"];
const PLENTY: &[&str] = &["--memory=2g", "--pids-limit=3000"];

fn attack(words: &[&str], network: bool, monitoring: &str) -> (i32, Vec<Value>) {
    Run { network, limits: PLENTY, monitoring, options: GRACE, words }.stopped()
}

#[test]
fn ten_megabytes_do_not_get_out() {
    if image().is_none() {
        return;
    }
    let Some(gateway) = gateway() else { return };
    for (monitoring, code) in [("off", 143), ("standard", 121), ("aggressive", 121)] {
        let receiver = Receiver::new();
        let tcp = receiver.tcp.to_string();
        // As fast as the link is, a standard sample would come too late for any threshold: 64 KiB every 5 ms, 13 MB/s.
        let words = ["/hostile", "exfiltrate", &gateway, &tcp, "10000000", "slowly"];
        let (was, records) = attack(&words, true, monitoring);
        assert_eq!(was, code, "{records:#?}");
        let arrived = receiver.seen().0;
        if monitoring == "off" {
            assert_eq!(arrived, 10_000_000, "the control: it all gets out");
            assert_eq!(rules(&records), Vec::<String>::new());
        } else {
            let most = if monitoring == "aggressive" { 2_000_000 } else { 4_000_000 };
            assert!(arrived < most, "{monitoring}: {arrived} bytes arrived");
            assert_eq!(rules(&records), ["data_exfiltration"]);
            assert_eq!(records.last().unwrap()["status"], "violation");
        }
    }
}

#[test]
fn a_scan_and_a_listener_end_the_grace_when_aggressive() {
    if image().is_none() {
        return;
    }
    let Some(gateway) = gateway() else { return };
    for (words, rule) in [
        (vec!["/hostile", "scan", &gateway], "network_scan"),
        (vec!["/hostile", "honest", "hide", &gateway], "network_scan"),
        (vec!["/hostile", "honest", "excuse", &gateway], "network_scan"),
        (vec!["/hostile", "listen"], "backdoor_listener"),
        (vec!["/hostile", "listen", "undumpable"], "backdoor_listener"),
    ] {
        let (code, records) = attack(&words, true, "aggressive");
        assert_eq!((code, rules(&records)), (121, vec![rule.to_owned()]), "{records:#?}");
        assert_eq!(records.last().unwrap()["detections"][0]["action"], "kill");
        assert!(dead_after(&records) < 100, "{records:#?}");
        let (code, records) = attack(&words, true, "standard");
        assert_eq!((code, rules(&records)), (143, vec![rule.to_owned()]), "{records:#?}");
        assert_eq!(records.last().unwrap()["detections"][0]["action"], "record");
        let (code, records) = attack(&words, true, "off");
        assert_eq!((code, rules(&records)), (143, vec![]), "{records:#?}");
    }
}

#[test]
fn forks_end_the_grace_and_growth_too() {
    if image().is_none() {
        return;
    }
    for (words, rule) in
        [(["/hostile", "forks", "0", "400"], "fork_bomb"), (["/hostile", "grow", "8", ""], "memory_growth")]
    {
        let (code, records) = attack(&words, false, "aggressive");
        assert_eq!((code, rules(&records)), (121, vec![rule.to_owned()]), "{records:#?}");
        let (code, records) = attack(&words, false, "off");
        assert_eq!((code, rules(&records)), (143, vec![]), "{records:#?}");
    }
}

#[test]
fn a_burner_is_recorded_and_its_activity_too() {
    if image().is_some() {
        in_three(burner);
    }
}

fn burner() {
    let limits = ["--memory=128m", "--cpus=0.5", "--pids-limit=50"];
    let words = ["/hostile", "burn", "4"];
    let options = ["--timeout", "500ms", "--soft", "3s", "--hard", "4500ms", "--adaptive", "no"];
    let run = Run { network: false, limits: &limits, monitoring: "off", options: &options, words: &words };
    let (code, records) = run.to_the_end(false);
    assert_eq!((code, rules(&records)), (124, vec![]), "the control: nobody looks: {records:#?}");
    let activity = records.iter().filter(|r| r["event"] == "activity").count();
    assert!(activity >= 2, "the activity belongs to the level, not to the monitoring: {records:#?}");
    let run = Run { monitoring: "aggressive", ..run };
    let (code, records) = run.to_the_end(false);
    assert_eq!(code, 124, "{records:#?}");
    assert_eq!(rules(&records), ["cpu_mining"]);
    let activity: Vec<_> = records.iter().filter(|r| r["event"] == "activity").collect();
    assert!(activity.len() >= 2, "{records:#?}");
    let busiest = &activity[0]["processes"][0];
    assert_eq!(activity[0]["processes"].as_array().unwrap().len(), 4);
    assert_eq!((busiest["name"].as_str(), busiest["args"][1].as_str()), (Some("hostile"), Some("burn")), "{busiest}");
    assert!(busiest["cpu_ms"].as_u64().unwrap() > 50 && busiest["descriptors"].as_u64() == Some(3), "{busiest}");
}

#[test]
fn sockets_that_cannot_be_told_are_not_said_to_be_none() {
    let Some(image) = image() else { return };
    let options = ["--timeout", "300ms", "--soft", "2800ms", "--hard", "3s", "--adaptive", "no"];
    for (capability, known) in [("--cap-add=SYS_PTRACE", true), ("--cap-drop=ALL", false)] {
        let out = Command::new("docker")
            .args(["run", "--rm", "--read-only", "--user=0:0", "--network=none", "--tmpfs=/tmp", capability])
            .arg(format!("--volume={}:/hostile:ro", hostile().display()))
            .arg(image)
            .args(options)
            .args(["--", "/hostile", "trickle", "127.0.0.1", "9", "9", "/tmp/file", "undumpable"])
            .output()
            .unwrap();
        let stderr = text(&out.stderr);
        let records = records(&stderr);
        let activity = records.iter().find(|r| r["event"] == "activity").unwrap_or_else(|| panic!("{stderr}"));
        for process in activity["processes"].as_array().unwrap() {
            assert!(process["descriptors"].as_u64().unwrap() >= 5, "{capability}: {process}");
            assert_eq!(process["sockets"].as_u64().is_some(), known, "{capability}: {process}");
        }
    }
}

#[test]
fn what_ends_in_good_order_is_no_attack() {
    if image().is_none() {
        return;
    }
    let Some(gateway) = gateway() else { return };
    let receiver = Receiver::new();
    let tcp = receiver.tcp.to_string();
    // A server that flushes for two seconds; a build that starts many short processes; a result of 900 kB that is sent.
    let flush = "trap 'i=0; while [ $i -lt 20 ]; do echo line >> /tmp/log; sleep 0.1; i=$((i+1)); done; exit 0' TERM; while :; do sleep 0.1; done";
    let build =
        "trap 'i=0; while [ $i -lt 150 ]; do /bin/true; i=$((i+1)); done; exit 0' TERM; while :; do sleep 0.1; done";
    for words in [
        vec!["sh", "-c", flush],
        vec!["sh", "-c", build],
        vec!["/hostile", "exfiltrate", &gateway, &tcp, "900000", "slowly"],
        vec!["/hostile", "honest", "upload", &gateway, &tcp],
        vec!["/hostile", "honest", "pool"],
        vec!["/hostile", "honest", "helpers"],
    ] {
        for monitoring in ["standard", "aggressive"] {
            let (code, records) = attack(&words, true, monitoring);
            assert_eq!((code, rules(&records)), (143, vec![]), "{words:?}: {records:#?}");
            let seal = records.last().unwrap();
            assert_eq!(seal["process"]["exit_code"], 0, "it ended by itself: {seal:#}");
        }
    }
    assert_eq!(receiver.seen().0, 2_400_000, "the uploads arrived whole");
}

#[test]
fn what_may_be_honest_is_recorded_and_kills_nobody() {
    if image().is_none() {
        return;
    }
    let Some(gateway) = gateway() else { return };
    let receiver = Receiver::new();
    let udp = receiver.udp.to_string();
    for (words, rule, code) in [
        (vec!["/hostile", "honest", "metrics", &gateway, &udp], "network_scan", Some(0)),
        (vec!["/hostile", "listen", "local"], "backdoor_listener", None),
        // Nobody is seen to hold it, and a neighbour of the same UID would look the same.
        (vec!["/hostile", "listen", "in-flight"], "backdoor_listener", None),
    ] {
        let (was, records) = attack(&words, true, "aggressive");
        assert_eq!((was, rules(&records)), (143, vec![rule.to_owned()]), "{records:#?}");
        let seal = records.last().unwrap();
        assert_eq!(seal["detections"][0]["action"], "record");
        assert_eq!(seal["process"]["exit_code"].as_i64(), code, "{seal:#}");
    }
}

#[test]
fn a_listener_that_was_in_flight_is_looked_for_again() {
    if image().is_none() {
        return;
    }
    let (code, records) = attack(&["/hostile", "listen", "back"], true, "aggressive");
    assert_eq!((code, rules(&records)), (121, vec!["backdoor_listener".to_owned(); 2]), "{records:#?}");
    let [flew, held] = [0, 1].map(|n| records.last().unwrap()["detections"][n].clone());
    assert_eq!((&flew["action"], &held["action"]), (&"record".into(), &"kill".into()), "{records:#?}");
    assert!(flew["at_ms"].as_u64() < Some(500) && held["at_ms"].as_u64() >= Some(500), "{records:#?}");
    let (code, records) = attack(&["/hostile", "listen", "back"], true, "off");
    assert_eq!((code, rules(&records)), (143, vec![]), "the control: {records:#?}");
}

/// Starts the program as PID 1 with a network of its own, runs `beside` in that network once the grace has begun, or at once.
fn beside(
    unprivileged: bool,
    options: &[&str],
    words: &[&str],
    at_once: bool,
    script: &str,
) -> (Option<i32>, Vec<Value>) {
    let dir = super::pid1::log_dir();
    let written = || std::fs::read_to_string(dir.path().join("security-audit.json")).unwrap_or_default();
    let program = hostile();
    let mut all: Vec<&str> = options.to_vec();
    all.extend(["--", program.to_str().unwrap()]);
    all.extend(words);
    let began = std::time::Instant::now();
    let child = super::pid1::pid1(dir.path(), unprivileged, &all).spawn().unwrap();
    let event = if at_once { "evaluation_started" } else { "termination_requested" };
    until("it is time", || written().contains(event));
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let mut neighbour = Command::new("nsenter")
        .args(["--net", "--target", children.trim(), "sh", "-c", script])
        .env("PATH", std::env::var_os("PATH").unwrap())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let ran = finish(child, began);
    neighbour.wait().unwrap();
    (ran.code(), records(&written()))
}

#[test]
fn a_neighbours_listener_is_not_the_workloads() {
    if !has("root") {
        return;
    }
    let options =
        ["--timeout", "500ms", "--soft", "3s", "--hard", "2s", "--adaptive", "no", "--monitoring", "aggressive"];
    // The neighbour listens as soon as it runs: its TERM has come already.
    let listen = format!("{} listen & sleep 0.05; kill -TERM $!; sleep 3; kill -KILL $!", hostile().display());
    let (code, records) = beside(true, &options, &["sleep"], false, &listen);
    assert_eq!((code, rules(&records)), (Some(124), vec![]), "{records:#?}");
    // One whose UID the workload has, or could take, may be in flight inside it: recorded, and no reason to kill.
    let same = format!("exec setpriv --reuid 65532 --clear-groups sh -c '{listen}'");
    for (unprivileged, script) in [(true, &same), (false, &listen)] {
        let (code, records) = beside(unprivileged, &options, &["sleep"], false, script);
        assert_eq!((code, rules(&records)), (Some(124), vec!["backdoor_listener".to_owned()]), "{records:#?}");
        assert_eq!(records.last().unwrap()["detections"][0]["action"], "record", "{records:#?}");
    }
    for unprivileged in [true, false] {
        let (code, records) = beside(unprivileged, &options, &["listen"], false, "true");
        let killed = (Some(121), vec!["backdoor_listener".to_owned()]);
        assert_eq!((code, rules(&records)), killed, "the control: {records:#?}");
    }
}

#[test]
fn what_stays_on_loopback_is_no_attempt_whatever_the_kernel_sends() {
    if !has("root") {
        return;
    }
    // An interface that comes up: the kernel looks for routers and neighbours on it (IPv6).
    let link = "ip link add gk0 type veth peer name gk1; ip addr add 10.9.9.254/24 dev gk0; \
                ip addr add fe80::9/64 dev gk0; ip link set gk1 up; ip link set gk0 up; ip link set lo up";
    let options = ["--timeout", "3s", "--soft", "3s", "--hard", "7s", "--adaptive", "yes"];
    for (words, attempts) in [(vec!["honest", "converse"], 0), (vec!["honest", "converse", "10.9.9"], 1)] {
        let (code, records) = beside(false, &options, &words, true, link);
        let seal = records.last().unwrap();
        assert_eq!(code, Some(124), "{seal:#}");
        assert!(seal["resources"]["bytes_sent"].as_u64().unwrap() > 0, "{seal:#}");
        assert_eq!(seal["resources"]["network_attempts"], attempts, "{seal:#}");
        assert_eq!(seal["risk"]["adjustments"].as_array().unwrap().len() as u64, attempts, "{seal:#}");
    }
}

#[test]
fn busy_processes_under_a_quota_do_not_starve_the_supervisor() {
    if image().is_some() {
        in_three(busy);
    }
}

fn busy() {
    let limits = ["--memory=256m", "--cpus=0.2", "--pids-limit=400"];
    for busy in ["64", "256"] {
        let words = ["/hostile", "burn", busy];
        let options = ["--grace", "3s", "--risk", "high"];
        let run = Run { network: false, limits: &limits, monitoring: "aggressive", options: &options, words: &words };
        let started = std::time::Instant::now();
        let (code, records) = run.stopped();
        assert_eq!(code, 143, "{records:#?}");
        let asked = records.iter().find(|r| r["event"] == "termination_requested").unwrap();
        let seal = records.last().unwrap();
        let took = time_of(seal["time"].as_str().unwrap()) - time_of(asked["time"].as_str().unwrap());
        assert!(took < 2.7, "{busy}: {took} s of 0.9 x 3 s: {seal:#}");
        assert!(started.elapsed().as_secs() < 30);
        println!("{busy} busy processes: sealed {took:.3} s after the stop, {}", seal["escalation"]);
    }
}

#[test]
fn a_fork_bomb_of_escapees_is_dead_and_sealed_in_time() {
    if image().is_none() {
        return;
    }
    let limits = ["--memory=1g", "--pids-limit=2100"];
    let words = ["/hostile", "forks", "2000", "2000"];
    let options = ["--grace", "5s"];
    for _ in 0..3 {
        let run = Run { network: false, limits: &limits, monitoring: "aggressive", options: &options, words: &words };
        let (_, records) = run.stopped();
        let seal = records.last().unwrap();
        let asked = records.iter().find(|r| r["event"] == "termination_requested").unwrap();
        let took = time_of(seal["time"].as_str().unwrap()) - time_of(asked["time"].as_str().unwrap());
        assert!(took < 4.5, "{took}: {seal:#}");
        let kill = seal["escalation"].as_array().unwrap().last().unwrap();
        assert_eq!((kill["rung"].as_str(), kill["survivors"].as_u64()), (Some("kill"), Some(0)), "{seal:#}");
    }
}

#[test]
fn not_as_pid_1_only_its_own_sockets_count() {
    if !has("root") {
        return;
    }
    // A network of its own, with a link that nobody answers on.
    let network = "ip link set lo up; ip link add gk0 type veth peer name gk1; ip addr add 10.9.9.254/24 dev gk0; \
                   ip link set gk0 up; ip link set gk1 up;";
    let stranger =
        |attack: &str| format!("({} {attack} 10.9.9 wide >/dev/null 2>&1 & echo $! > stranger)", hostile().display());
    for (attack, rule) in [("listen", "backdoor_listener"), ("scan", "network_scan")] {
        for own in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let written = || std::fs::read_to_string(dir.path().join("audit.json")).unwrap_or_default();
            let inside = if own { attack } else { "sleep" };
            let script = format!(
                "set -e; cd {}; {network} {}; exec {BINARY} --timeout 500ms --soft 3s --hard 1500ms --adaptive no \
                 --monitoring aggressive --audit-file audit.json -- {} {inside} 10.9.9 wide",
                dir.path().display(),
                if own { ":".to_owned() } else { stranger(attack) },
                hostile().display(),
            );
            let mut command = Command::new("unshare");
            command.args(["--net", "sh", "-c", &script]).env("PATH", std::env::var_os("PATH").unwrap());
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            let child = command.spawn().unwrap();
            if !own {
                // The stranger attacks in the middle of the grace, beside a workload that only ignores SIGTERM.
                let log = dir.path().join("stranger");
                until("the stranger is there", || std::fs::read_to_string(&log).is_ok_and(|t| t.ends_with('\n')));
                until("the grace has begun", || written().contains("termination_requested"));
                signal(std::fs::read_to_string(&log).unwrap().trim().parse().unwrap(), "TERM");
            }
            let ran = finish(child, std::time::Instant::now());
            if !own {
                let pid = std::fs::read_to_string(dir.path().join("stranger")).unwrap().trim().parse().unwrap();
                assert!(std::path::Path::new(&format!("/proc/{pid}")).exists(), "it was a stranger's");
                signal(pid, "KILL");
            }
            let records = records(&written());
            let expected = if own { (Some(121), vec![rule.to_owned()]) } else { (Some(124), vec![]) };
            assert_eq!((ran.code(), rules(&records)), expected, "{attack}: {records:#?} {ran:#?}");
        }
    }
}

#[test]
fn a_bomb_without_end_under_a_pids_limit_is_dead_and_sealed_in_time() {
    if image().is_none() {
        return;
    }
    // Every process forks for ever, in a fifth of a CPU and 128 MiB, which 200 of them do not fill.
    let limits = ["--memory=128m", "--cpus=0.2", "--pids-limit=200"];
    let run = Run {
        network: false,
        limits: &limits,
        monitoring: "aggressive",
        options: &["--timeout", "3s", "--grace", "5s"],
        words: &["/hostile", "bomb"],
    };
    for _ in 0..3 {
        let (code, records) = run.to_the_end(false);
        assert!(matches!(code, 124 | 121), "{records:#?}");
        let seal = records.last().unwrap();
        let time = |event: &str| {
            let record = records.iter().find(|r| r["event"] == event).unwrap();
            time_of(record["time"].as_str().unwrap())
        };
        // The deadline, the hard limit (5 s), and half a second to be scheduled in for the rest.
        let took = time("evaluation_terminated") - time("evaluation_started");
        println!("sealed {took:.3} s after the start, {}", seal["escalation"]);
        assert!(took < 8.5, "{took} s: {seal:#}");
        let kill = seal["escalation"].as_array().unwrap().last().unwrap();
        assert_eq!((kill["rung"].as_str(), kill["survivors"].as_u64()), (Some("kill"), Some(0)), "{seal:#}");
    }
}
