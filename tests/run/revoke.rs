//! The revoke rung against a workload that ignores SIGTERM and goes on sending: under docker, on its bridge, with a receiver
//! outside. Each way to cut a socket has its own seccomp profile.

use super::docker::{docker, image, text};
use super::support::*;
use std::io::Read;
use std::net::{Ipv6Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Ahead of whatever else the machine does: a receiver that has to wait for a CPU would call late what came in time.
#[allow(unsafe_code)]
fn first_in_line() {
    // SAFETY: sched_setscheduler(2) reads one sched_param; zeroed is a valid one. Without the privilege nothing changes.
    unsafe {
        let mut priority: libc::sched_param = std::mem::zeroed();
        priority.sched_priority = 1;
        libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority);
    }
}

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
        Self::pausing(Duration::ZERO)
    }

    /// With a pause after each read: what does not fit into our kernel's buffers waits in the sender's.
    fn pausing(pause: Duration) -> Self {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
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
                    first_in_line();
                    let mut bytes = [0; 65536];
                    let most = if pause.is_zero() { bytes.len() } else { 2000 };
                    while let Ok(n @ 1..) = stream.read(&mut bytes[..most]) {
                        note(0, n as u64);
                        std::thread::sleep(pause);
                    }
                });
            }
        });
        std::thread::spawn(move || {
            first_in_line();
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

/// Senders that ignore SIGTERM, stopped by the internal timeout: the rung `soft` after it, the kill at 1.4 s.
struct Senders<'a> {
    /// The attack's name.
    attack: &'a str,
    /// Where its receiver is; the bridge's address where it is empty.
    address: &'a str,
    docker: &'a [&'a str],
    timeout: &'a str,
    soft: &'a str,
    how: &'a str,
}

const SENDERS: Senders<'static> =
    Senders { attack: "trickle", address: "", docker: &[], timeout: "1500ms", soft: "400ms", how: "" };
const UNPRIVILEGED: &[&str] = &["--user=65532:65532", "--cap-drop=ALL", "--security-opt=no-new-privileges"];

impl Senders<'_> {
    fn run(&self, security: &str) -> Option<Outcome> {
        self.run_as(UNPRIVILEGED, security)
    }

    fn run_as(&self, who: &[&str], security: &str) -> Option<Outcome> {
        let image = image()?;
        let gateway = if self.address.is_empty() { gateway()? } else { self.address.to_owned() };
        let pause = if self.how == "multipath" { Duration::from_millis(100) } else { Duration::ZERO };
        let receiver = Receiver::pausing(pause);
        let (tcp, udp) = (receiver.tcp.to_string(), receiver.udp.to_string());
        let out = std::process::Command::new("docker")
            .args(["run", "--rm", "--read-only", "--pids-limit=200", "--tmpfs=/tmp"])
            .args(who)
            .arg(security)
            .args(self.docker)
            .arg(format!("--volume={}:/hostile:ro", hostile().display()))
            .arg(image)
            .args(["--timeout", self.timeout, "--soft", self.soft, "--hard", "1400ms", "--env", "inherit"])
            .args(["--adaptive", "no", "--monitoring", "off", "--", "/hostile", self.attack])
            .args([&gateway, &tcp, &udp, "/tmp/file", self.how])
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

    /// The control: without the rung it sends until the kill.
    fn sends_to_the_end(&self, who: &[&str], security: &str) -> Option<Outcome> {
        let control = Senders { soft: "10s", ..*self }.run_as(who, security)?;
        assert!(control.revoke.is_null());
        assert!(control.overrun > -0.3, "{}: it was not sending to the end: {}", self.attack, control.overrun);
        Some(control)
    }
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

const UNCONFINED: &str = "--security-opt=seccomp=unconfined";
const ROOT: &[&str] = &["--user=0:0"];

#[test]
fn control_without_the_rung_everything_arrives_until_the_kill() {
    let Some(control) = SENDERS.sends_to_the_end(UNPRIVILEGED, UNCONFINED) else { return };
    assert!(control.seen.0 > 20 && control.seen.1 > 20, "{:?}", control.seen);
}

#[test]
fn nothing_arrives_after_the_rung() {
    // Duplicates (pidfd_getfd), under ptrace because the profile refuses duplicates, and docker's own profile.
    let (_file, no_duplicates) = profile("\"pidfd_getfd\"");
    for security in [UNCONFINED, &no_duplicates, "--log-driver=json-file"] {
        let Some(ran) = SENDERS.run(security) else { return };
        assert!(ran.seen.0 > 20 && ran.seen.1 > 20, "{security}: {:?}", ran.seen);
        ran.is_cut(security);
    }
}

impl Outcome {
    fn is_cut(&self, context: &str) {
        assert_eq!(self.revoke["network"], "enforced", "{context}: {}", self.revoke);
        assert!(self.revoke["sockets_cut"].as_u64().unwrap() >= 2, "{context}: {}", self.revoke);
        // The clocks are read by milliseconds.
        assert!(self.overrun < 0.005, "{context}: {} s after the rung: {}", self.overrun, self.revoke);
    }
}

/// A bridge with IPv6, gone with the test.
struct Bridge6(String);

impl Bridge6 {
    const GATEWAY: &str = "[fd00:6b65::1]";

    fn new() -> Option<Self> {
        image()?;
        let name = format!("gracekeeper-six-{}", std::process::id());
        let made = docker(&["network", "create", "--ipv6", "--subnet=fd00:6b65::/64", &name]);
        if !made.status.success() {
            println!("skipped: no IPv6 bridge: {}", text(&made.stderr).trim());
            return None;
        }
        Some(Self(name))
    }
}

impl Drop for Bridge6 {
    fn drop(&mut self) {
        docker(&["network", "rm", &self.0]);
    }
}

#[test]
fn nothing_arrives_after_the_rung_over_ipv6() {
    let Some(bridge) = Bridge6::new() else { return };
    let network = format!("--network={}", bridge.0);
    let options = [network.as_str()];
    // The bridge's address is tentative for a second or two after its first port comes up (RFC 4862, 5.4).
    let six = Senders { address: Bridge6::GATEWAY, docker: &options, timeout: "4500ms", ..SENDERS };
    let Some(control) = six.sends_to_the_end(UNPRIVILEGED, UNCONFINED) else { return };
    assert!(control.seen.0 > 20 && control.seen.1 > 20, "{:?}", control.seen);
    let (_file, no_duplicates) = profile("\"pidfd_getfd\"");
    for security in [UNCONFINED, &no_duplicates] {
        let ran = six.run(security).unwrap();
        assert!(ran.seen.0 > 20 && ran.seen.1 > 20, "{security}: {:?}", ran.seen);
        assert_eq!(ran.revoke["files"], "enforced", "{security}: {}", ran.revoke);
        ran.is_cut(security);
    }
}

#[test]
fn threads_with_tables_of_their_own_are_cut() {
    let own = Senders { how: "own-table", ..SENDERS };
    let Some(control) = own.sends_to_the_end(UNPRIVILEGED, UNCONFINED) else { return };
    assert!(control.seen.0 > 20 && control.seen.1 > 20, "{:?}", control.seen);
    own.run(UNCONFINED).unwrap().is_cut("own-table");
}

#[test]
fn who_has_no_main_thread_is_cut() {
    let headless = Senders { how: "headless", ..SENDERS };
    let Some(control) = headless.sends_to_the_end(UNPRIVILEGED, UNCONFINED) else { return };
    assert!(control.seen.0 > 20 && control.seen.1 > 20, "{:?}", control.seen);
    let (_file, no_duplicates) = profile("\"pidfd_getfd\"");
    for security in [UNCONFINED, &no_duplicates, "--log-driver=json-file"] {
        let ran = headless.run(security).unwrap();
        assert_eq!(ran.revoke["limited"], 2, "{security}: {}", ran.revoke);
        ran.is_cut(security);
    }
}

#[test]
fn sockets_in_flight_are_of_no_use() {
    let hidden = Senders { attack: "in-flight", ..SENDERS };
    let Some(control) = hidden.sends_to_the_end(UNPRIVILEGED, UNCONFINED) else { return };
    assert!(control.seen.0 > 20 && control.seen.1 > 20, "{:?}", control.seen);
    // Whoever receives one has no number left to receive it at.
    let ran = hidden.run(UNCONFINED).unwrap();
    assert_eq!(ran.revoke["files"], "enforced", "{}", ran.revoke);
    assert!(ran.overrun < 0.005, "{} s after the rung: {}", ran.overrun, ran.revoke);
}

#[test]
fn what_is_queued_in_a_hidden_socket_is_not_called_cut() {
    let paced = Senders { attack: "paced", how: "plain", ..SENDERS };
    let (_file, neither) = profile("\"pidfd_getfd\",\"ptrace\"");
    let Some(held) = paced.run(UNCONFINED) else { return };
    assert_eq!(
        (&held.revoke["network"], &held.revoke["sockets_cut"]),
        (&"enforced".into(), &1.into()),
        "{}",
        held.revoke
    );
    assert!(held.seen.0 > 20_000 && held.overrun < 0.005, "{} s after the rung: {:?}", held.overrun, held.seen);
    for (how, security) in [
        ("flight", UNCONFINED),
        ("flight", "--log-driver=json-file"),
        ("flight", &neither),
        ("mapped", UNCONFINED),
        ("closed", UNCONFINED),
    ] {
        let ran = Senders { how, ..paced }.run(security).unwrap();
        // The kernel goes on sending to the kill: what is to be had is that nobody says it does not.
        assert!(ran.overrun > 0.2, "{how}: it sent nothing more: {}", ran.overrun);
        assert_eq!(
            (&ran.revoke["network"], &ran.revoke["frozen"]),
            (&"degraded".into(), &0.into()),
            "{how}: {}",
            ran.revoke
        );
        let error = ran.revoke["errors"][0].as_str().unwrap();
        let what = if how == "closed" { "closed sockets" } else { "sockets in no descriptor table" };
        let left = error.strip_prefix(&format!("1 {what}, which may be the workload's, still have "));
        let left = left.and_then(|left| left.split(' ').next()?.parse::<u64>().ok());
        assert!(left.is_some_and(|left| (20_000..300_000).contains(&left)), "{how}: {}", ran.revoke);
    }
}

/// Its part stays open when it is closed, and nobody's table has that. (The peer has no MPTCP here: all of the queue is the part's.)
#[test]
#[allow(unsafe_code)]
fn a_closed_multipath_connection_is_not_called_cut() {
    // SAFETY: socket(2) takes integers; the descriptor goes with the test.
    if unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 262) } < 0 {
        println!("skipped: no MPTCP");
        return;
    }
    let Some(ran) = Senders { attack: "paced", how: "multipath", ..SENDERS }.run("--log-driver=json-file") else {
        return;
    };
    assert_eq!((&ran.revoke["network"], &ran.revoke["frozen"]), (&"degraded".into(), &0.into()), "{}", ran.revoke);
    assert!(ran.revoke["errors"][0].as_str().unwrap().contains("no descriptor table"), "{}", ran.revoke);
}

/// A container of its own whose network ours shares, as in a pod; gone with the test.
struct Neighbour(String);

impl Neighbour {
    /// Sends slowly: from the first, or `late`.
    fn new(user: &str, receiver: &Receiver, how: &str) -> Option<Self> {
        let (image, gateway) = (image()?, gateway()?);
        let (user, volume) = (format!("--user={user}"), format!("--volume={}:/hostile:ro", hostile().display()));
        let tcp = receiver.tcp.to_string();
        let run =
            ["run", "--detach", "--rm", "--cap-drop=ALL", &user, &volume, "--entrypoint=/hostile", image, "paced"];
        let out = docker(&[&run[..], &[&gateway, &tcp, "0", "-", how]].concat());
        assert!(out.status.success(), "{}", text(&out.stderr));
        Some(Self(text(&out.stdout).trim().to_owned()))
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        docker(&["rm", "--force", &self.0]);
    }
}

#[test]
fn a_neighbours_busy_connection_is_not_held_against_the_workload() {
    // There before the workload, whosever it is; or later, of a UID that the workload cannot have.
    for (user, how) in [("65532:65532", "plain"), ("65533:65533", "late")] {
        let receiver = Receiver::new();
        let Some(neighbour) = Neighbour::new(user, &receiver, how) else { return };
        if how == "plain" {
            let deadline = Instant::now() + Duration::from_secs(5);
            while receiver.seen().0 == 0 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let network = format!("--network=container:{}", neighbour.0);
        let ran = Senders { docker: &[&network], ..SENDERS }.run("--log-driver=json-file").unwrap();
        let before = receiver.seen().0;
        std::thread::sleep(Duration::from_millis(500));
        assert!(receiver.seen().0 > before && before > 0, "{how}: the neighbour sends on: {before}");
        ran.is_cut(how);
    }
}

#[test]
fn raw_and_packet_sockets_are_cut() {
    // As an image's root with docker's own capabilities, CAP_NET_RAW among them.
    let raw = Senders { attack: "raw", ..SENDERS };
    let Some(control) = raw.sends_to_the_end(ROOT, UNCONFINED) else { return };
    assert!(control.seen.1 > 200, "both kinds arrive: {:?}", control.seen);
    for security in [UNCONFINED, "--log-driver=json-file"] {
        raw.run_as(ROOT, security).unwrap().is_cut(security);
    }
}

#[test]
fn who_is_revived_by_a_sibling_takes_everything_down_with_it() {
    let (_file, neither) = profile("\"pidfd_getfd\",\"ptrace\"");
    let revived = Senders { how: "revive", ..SENDERS };
    let Some(control) = revived.sends_to_the_end(UNPRIVILEGED, &neither) else { return };
    assert!(control.seen.0 > 20 && control.seen.1 > 20, "{:?}", control.seen);
    let ran = revived.run(&neither).unwrap();
    assert_eq!(ran.revoke["network"], "degraded", "{}", ran.revoke);
    // The reviver is stopped as well, from the first.
    assert!(ran.overrun < 0.05, "{} s after the rung: {}", ran.overrun, ran.revoke);
}

#[test]
fn who_is_continued_by_timers_is_cut() {
    let (_file, no_ptrace) = profile("\"ptrace\"");
    let timers = Senders { how: "timers", ..SENDERS };
    // What holds it is ptrace: with signals alone it sends on, and nobody says that it does not.
    let mut controls = Vec::new();
    for _ in 0..3 {
        let Some(control) = timers.run(&no_ptrace) else { return };
        controls.push((control.revoke["network"].clone(), control.overrun));
    }
    let goes_on = |(network, overrun): &(_, f64)| *network == "degraded" && *overrun > 0.2;
    assert!(controls.iter().any(goes_on), "control: signals alone stopped it: {controls:?}");
    for security in [UNCONFINED, "--log-driver=json-file"] {
        let ran = timers.run(security).unwrap();
        assert!(ran.seen.0 > 20 && ran.seen.1 > 20, "{security}: {:?}", ran.seen);
        assert_eq!(ran.revoke["files"], "enforced", "{security}: {}", ran.revoke);
        ran.is_cut(security);
    }
}

/// What it says of its connection within loopback after the rung.
fn loopback(who: &[&str], security: &str) -> Option<String> {
    let out = std::process::Command::new("docker")
        .args(["run", "--rm", "--read-only", "--pids-limit=200", "--network=none"])
        .args(who)
        .arg(security)
        .arg(format!("--volume={}:/hostile:ro", hostile().display()))
        .arg(image()?)
        .args(["--timeout", "500ms", "--soft", "400ms", "--hard", "1400ms", "--adaptive", "no"])
        .args(["--monitoring", "off", "--", "/hostile", "loopback"])
        .output()
        .unwrap();
    let records = records(&text(&out.stderr));
    let rung = records.iter().find(|r| r["event"] == "escalated" && r["rung"] == "revoke").unwrap();
    assert_eq!(rung["network"], "enforced", "{rung}");
    Some(text(&out.stdout).trim().to_owned())
}

#[test]
fn connections_within_loopback_go_on() {
    let (_file, no_duplicates) = profile("\"pidfd_getfd\"");
    for security in [UNCONFINED, &no_duplicates, "--log-driver=json-file"] {
        let Some(said) = loopback(UNPRIVILEGED, security) else { return };
        assert_eq!(said, "loopback goes on", "{security}");
    }
    // Who may take the tie off again (CAP_NET_RAW) could aim the connection elsewhere.
    assert_eq!(loopback(&["--user=65532:65532"], UNCONFINED).unwrap(), "loopback is cut");
}

#[test]
fn who_is_stopped_after_each_byte_is_not_continued_by_a_sibling() {
    let (_file, neither) = profile("\"pidfd_getfd\",\"ptrace\"");
    let duty = Senders { how: "duty", ..SENDERS };
    let Some(control) = duty.sends_to_the_end(UNPRIVILEGED, &neither) else { return };
    assert!(control.seen.0 > 20 && control.seen.1 > 20, "{:?}", control.seen);
    let ran = duty.run(&neither).unwrap();
    assert_eq!((&ran.revoke["network"], &ran.revoke["frozen"]), (&"degraded".into(), &2.into()), "{}", ran.revoke);
    assert!(ran.overrun < 0.05, "{} s after the rung: {}", ran.overrun, ran.revoke);
}

#[test]
fn a_main_thread_in_vfork_does_not_keep_the_others_from_the_stop() {
    let waiting = Senders { how: "vfork", ..SENDERS };
    let Some(control) = waiting.sends_to_the_end(UNPRIVILEGED, UNCONFINED) else { return };
    assert!(control.seen.0 > 20 && control.seen.1 > 20, "{:?}", control.seen);
    let ran = waiting.run(UNCONFINED).unwrap();
    assert_eq!(ran.revoke["files"], "enforced", "{}", ran.revoke);
    ran.is_cut("vfork");
    let (_file, neither) = profile("\"pidfd_getfd\",\"ptrace\"");
    let ran = waiting.run(&neither).unwrap();
    assert_eq!(ran.revoke["network"], "degraded", "{}", ran.revoke);
    assert!(ran.overrun < 0.05, "{} s after the rung: {}", ran.overrun, ran.revoke);
}

#[test]
fn a_tie_that_can_be_undone_is_none() {
    // As an image's root with docker's own capabilities, CAP_NET_RAW among them, and a profile in which duplicates can be had.
    let untie = Senders { how: "untie", ..SENDERS };
    let Some(control) = untie.sends_to_the_end(ROOT, UNCONFINED) else { return };
    assert!(control.seen.0 > 20 && control.seen.1 > 20, "{:?}", control.seen);
    untie.run_as(ROOT, UNCONFINED).unwrap().is_cut("untie");
    // Where the only way is the tie nobody is let go.
    let (_file, no_ptrace) = profile("\"ptrace\"");
    let ran = untie.run_as(ROOT, &no_ptrace).unwrap();
    assert_eq!(ran.revoke["network"], "degraded", "{}", ran.revoke);
    assert!(ran.overrun < 0.05, "{} s after the rung: {}", ran.overrun, ran.revoke);
}

#[test]
fn who_made_itself_undumpable_stays_stopped_as_uid_0() {
    // UID 0 may list the descriptors of one that is not dumpable, and without CAP_SYS_PTRACE not see what they are.
    let hides = Senders { how: "undumpable", ..SENDERS };
    let Some(control) = hides.sends_to_the_end(ROOT, UNCONFINED) else { return };
    assert!(control.seen.0 > 20 && control.seen.1 > 20, "{:?}", control.seen);
    for (who, security) in [
        (ROOT, UNCONFINED),
        (ROOT, "--log-driver=json-file"),
        (&["--user=0:0", "--cap-drop=ALL"][..], "--security-opt=no-new-privileges"),
    ] {
        let ran = hides.run_as(who, security).unwrap();
        assert_eq!(ran.revoke["network"], "degraded", "{who:?}: {}", ran.revoke);
        assert_eq!(ran.revoke["frozen"], 2, "{who:?}: {}", ran.revoke);
        assert!(ran.revoke["errors"].to_string().contains("EACCES"), "{who:?}: {}", ran.revoke);
        assert!(ran.overrun < 0.05, "{who:?}: {} s after the rung: {}", ran.overrun, ran.revoke);
    }
    hides.run_as(&["--user=0:0", "--cap-add=SYS_PTRACE"], UNCONFINED).unwrap().is_cut("with CAP_SYS_PTRACE");
}

/// The rung's time, or the kill's where there was none, and the last change of each of two files, in seconds.
fn meddle(soft: &str) -> Option<(serde_json::Value, f64, [f64; 2])> {
    use std::os::unix::fs::PermissionsExt;
    let image = image()?;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let out = std::process::Command::new("docker")
        .args(["run", "--rm", "--read-only", "--pids-limit=200", "--network=none"])
        .args(UNPRIVILEGED)
        .arg(format!("--volume={}:/hostile:ro", hostile().display()))
        .arg(format!("--volume={}:/out", dir.path().display()))
        .args([image, "--timeout", "1500ms", "--soft", soft, "--hard", "1400ms", "--adaptive", "no"])
        .args(["--monitoring", "off", "--", "/hostile", "meddle", "/out/file", "/out/mark"])
        .output()
        .unwrap();
    let stderr = text(&out.stderr);
    assert_eq!(out.status.code(), Some(124), "{stderr}");
    let records = records(&stderr);
    let of = |rung: &str| records.iter().find(|r| r["event"] == "escalated" && r["rung"] == rung).cloned();
    let rung = of("revoke").or(of("kill")).unwrap();
    let changed = ["file", "mark"].map(|name| {
        let time = std::fs::metadata(dir.path().join(name)).unwrap().modified().unwrap();
        time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
    });
    assert!(std::fs::metadata(dir.path().join("file")).unwrap().len() > 20, "it was at work");
    let at = time_of(rung["time"].as_str().unwrap());
    Some((rung, at, changed))
}

#[test]
fn nothing_is_written_and_nobody_is_born_after_the_rung() {
    let Some((rung, at, changed)) = meddle("10s") else { return };
    assert_eq!(rung["rung"], "kill", "the control has no rung: {rung}");
    assert!(changed.iter().all(|last| last - at > -0.3), "the control: it was at it to the end: {changed:?}, {at}");
    let (rung, at, changed) = meddle("400ms").unwrap();
    assert_eq!((&rung["rung"], &rung["files"]), (&"revoke".into(), &"enforced".into()), "{rung}");
    assert!(changed.iter().all(|last| last - at < 0.005), "changed after the rung: {changed:?}, {at}: {rung}");
}

#[test]
fn who_cannot_be_cut_off_stays_stopped() {
    let (_file, neither) = profile("\"pidfd_getfd\",\"ptrace\"");
    let Some(ran) = SENDERS.run(&neither) else { return };
    assert_eq!(ran.revoke["network"], "degraded", "{}", ran.revoke);
    assert_eq!(ran.revoke["files"], "enforced", "{}", ran.revoke);
    assert!(ran.revoke["frozen"].as_u64().unwrap() >= 2, "{}", ran.revoke);
    assert!(ran.revoke["errors"][0].as_str().unwrap().contains("EPERM"), "{}", ran.revoke);
    assert!(ran.overrun < 0.2, "{} s after the rung: {}", ran.overrun, ran.revoke);
}

#[test]
fn who_made_itself_undumpable_stays_stopped() {
    let Some(ran) = Senders { how: "undumpable", ..SENDERS }.run(UNCONFINED) else { return };
    assert_eq!(ran.revoke["network"], "degraded", "{}", ran.revoke);
    assert!(ran.revoke["errors"][0].as_str().unwrap().contains("EACCES"), "{}", ran.revoke);
    assert!(ran.overrun < 0.2, "{} s after the rung: {}", ran.overrun, ran.revoke);
}
