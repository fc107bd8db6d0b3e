//! The revoke rung against a workload that ignores SIGTERM and goes on sending: under docker, on its bridge, with a receiver
//! outside. Each way to cut a socket has its own seccomp profile.

use super::docker::{docker, image, text};
use super::support::*;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Counts what arrives, over TCP and UDP.
pub struct Receiver {
    pub tcp: u16,
    pub udp: u16,
    /// Bytes and datagrams so far, and when the last came, in ms since `began`.
    counts: Arc<[AtomicU64; 3]>,
    began: Instant,
}

impl Receiver {
    pub fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let receiver = Self {
            tcp: listener.local_addr().unwrap().port(),
            udp: socket.local_addr().unwrap().port(),
            counts: Arc::default(),
            began: Instant::now(),
        };
        let (counts, began) = (Arc::clone(&receiver.counts), receiver.began);
        let note = move |which: usize, n: u64| {
            counts[which].fetch_add(n, Ordering::SeqCst);
            counts[2].store(u64::try_from(began.elapsed().as_millis()).unwrap(), Ordering::SeqCst);
        };
        let tcp = note.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, note) = (stream.unwrap(), tcp.clone());
                std::thread::spawn(move || {
                    let mut bytes = [0; 65536];
                    while let Ok(n @ 1..) = stream.read(&mut bytes) {
                        note(0, n as u64);
                    }
                });
            }
        });
        std::thread::spawn(move || {
            let mut bytes = [0; 65536];
            while socket.recv(&mut bytes).is_ok() {
                note(1, 1);
            }
        });
        receiver
    }

    pub fn seen(&self) -> (u64, u64) {
        (self.counts[0].load(Ordering::SeqCst), self.counts[1].load(Ordering::SeqCst))
    }

    pub fn last(&self) -> Duration {
        Duration::from_millis(self.counts[2].load(Ordering::SeqCst))
    }
}

/// The bridge's address on the host; `None` where docker has no bridge.
pub fn gateway() -> Option<String> {
    let out = docker(&["network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Gateway}}"]);
    let address = text(&out.stdout).trim().to_owned();
    let address = if address.is_empty() { "172.17.0.1".to_owned() } else { address };
    out.status.success().then_some(address)
}

struct Outcome {
    revoke: serde_json::Value,
    /// From the record of the rung to the last byte that arrived; negative where the last byte came before it.
    overrun: f64,
    seen: (u64, u64),
}

/// Runs the senders until the deadline; the rung at 400 ms (or not at all), the kill at 1.4 s.
fn trickle(security: &str, soft: &str, how: &str) -> Option<Outcome> {
    let image = image()?;
    let gateway = gateway()?;
    let receiver = Receiver::new();
    let (tcp, udp) = (receiver.tcp.to_string(), receiver.udp.to_string());
    let out = std::process::Command::new("docker")
        .args(["run", "--rm", "--user=65532:65532", "--cap-drop=ALL", "--security-opt=no-new-privileges"])
        .args([security, "--read-only", "--pids-limit=200", "--tmpfs=/tmp"])
        .arg(format!("--volume={}:/hostile:ro", hostile().display()))
        .arg(image)
        .args(["--timeout", "1500ms", "--soft", soft, "--hard", "1400ms", "--env", "inherit", "--adaptive", "no"])
        .args(["--monitoring", "off", "--", "/hostile", "trickle", &gateway, &tcp, &udp, "/tmp/file", how])
        .output()
        .unwrap();
    let stderr = text(&out.stderr);
    let records = records(&stderr);
    assert_eq!(out.status.code(), Some(124), "{stderr}");
    assert_eq!(records.last().unwrap()["status"], "timeout", "{stderr}");
    // The rung's record is written when it is done with; its clock and the receiver's are the same machine's.
    let of = |rung: &str| records.iter().find(|r| r["event"] == "escalated" && r["rung"] == rung).cloned();
    let revoke = of("revoke").unwrap_or_default();
    let rung = of("revoke").or(of("kill")).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let last = now - (receiver.began.elapsed() - receiver.last()).as_secs_f64();
    Some(Outcome { revoke, overrun: last - time_of(rung["time"].as_str().unwrap()), seen: receiver.seen() })
}

/// Seconds since the epoch of an RFC 3339 time.
pub fn time_of(text: &str) -> f64 {
    let out = std::process::Command::new("date").args(["-d", text, "+%s.%N"]).output().unwrap();
    String::from_utf8_lossy(&out.stdout).trim().parse().unwrap()
}

fn profile(refused: &str) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":[{refused}],"action":"SCMP_ACT_ERRNO"}}]}}"#
    );
    std::fs::write(file.path(), text).unwrap();
    let option = format!("--security-opt=seccomp={}", file.path().display());
    (file, option)
}

#[test]
fn control_without_the_rung_everything_arrives_until_the_kill() {
    let Some(control) = trickle("--security-opt=seccomp=unconfined", "10s", "") else { return };
    assert!(control.revoke.is_null());
    assert!(control.seen.0 > 20 && control.seen.1 > 20, "{:?}", control.seen);
    assert!(control.overrun > -0.3, "it was sending to the end: {}", control.overrun);
}

#[test]
fn nothing_arrives_after_the_rung() {
    // Duplicates (pidfd_getfd), under ptrace because the profile refuses duplicates, and docker's own profile.
    let (_file, no_duplicates) = profile("\"pidfd_getfd\"");
    for security in ["--security-opt=seccomp=unconfined", &no_duplicates, "--log-driver=json-file"] {
        let Some(ran) = trickle(security, "400ms", "") else { return };
        assert!(ran.seen.0 > 20 && ran.seen.1 > 20, "{security}: {:?}", ran.seen);
        assert_eq!(ran.revoke["files"], "enforced", "{security}: {}", ran.revoke);
        assert_eq!(ran.revoke["network"], "enforced", "{security}: {}", ran.revoke);
        assert!(ran.revoke["sockets_cut"].as_u64().unwrap() >= 2, "{security}: {}", ran.revoke);
        // The clocks are read by milliseconds.
        assert!(ran.overrun < 0.005, "{security}: {} s after the rung: {}", ran.overrun, ran.revoke);
    }
}

#[test]
fn who_cannot_be_cut_off_stays_stopped() {
    let (_file, neither) = profile("\"pidfd_getfd\",\"ptrace\"");
    let Some(ran) = trickle(&neither, "400ms", "") else { return };
    assert_eq!(ran.revoke["network"], "degraded", "{}", ran.revoke);
    assert_eq!(ran.revoke["files"], "enforced", "{}", ran.revoke);
    assert!(ran.revoke["frozen"].as_u64().unwrap() >= 2, "{}", ran.revoke);
    assert!(ran.revoke["errors"][0].as_str().unwrap().contains("EPERM"), "{}", ran.revoke);
    assert!(ran.overrun < 0.2, "{} s after the rung: {}", ran.overrun, ran.revoke);
}

#[test]
fn who_made_itself_undumpable_stays_stopped() {
    let Some(ran) = trickle("--security-opt=seccomp=unconfined", "400ms", "undumpable") else { return };
    assert_eq!(ran.revoke["network"], "degraded", "{}", ran.revoke);
    assert!(ran.revoke["errors"][0].as_str().unwrap().contains("EACCES"), "{}", ran.revoke);
    assert!(ran.overrun < 0.2, "{} s after the rung: {}", ran.overrun, ran.revoke);
}
