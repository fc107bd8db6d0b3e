//! Counters that cost nothing: one small read each, of this PID and network namespace (proc_loadavg(5), proc_pid_net(5)).
//!
//! Only PID 1 may call them the workload's. A counter that cannot be read is `None`, never zero.

use super::proc::Proc;
use super::procfile::lossy;
use crate::machine::traffic::Traffic;
use nix::errno::Errno;

/// How much of a table is read: the protocols' are up to 3.2 KB, `net/dev` has 122 bytes for each interface.
const MOST: u64 = 64 * 1024;

/// The kernel's counters at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// The pid given last in this PID namespace: processes and threads count.
    pub last_pid: Option<u64>,
    /// Bytes sent on interfaces other than loopback.
    pub bytes_sent: Option<u64>,
    /// What the attempts to reach somebody outside are told by.
    pub traffic: Option<Traffic>,
}

impl Counters {
    /// Reads them all.
    #[must_use]
    pub fn read(proc_: &Proc) -> Self {
        Self::read_but(proc_, |_| None)
    }

    /// What there is before the process `first` runs, the newest one: it counts as created, and nobody has to be asked for the number
    /// before its own.
    #[must_use]
    pub fn before(proc_: &Proc, first: i32) -> Self {
        let last_pid = u64::try_from(first).ok().map(|pid| pid.saturating_sub(1));
        Self { last_pid, ..Self::network(proc_, |_| None) }
    }

    /// What was counted since `earlier`, read now. Where nothing left by an interface there was no attempt, and the
    /// protocols' tables, which cost more than everything else here, are not asked.
    #[must_use]
    pub fn read_since(proc_: &Proc, earlier: &Self) -> Self {
        Self::read_but(proc_, |sent| earlier.traffic.filter(|_| sent.is_some() && sent == earlier.bytes_sent))
            .since(earlier)
    }

    /// Reads them; the protocols' tables only where `known`, told what was sent, does not know what is in them.
    fn read_but(proc_: &Proc, known: impl Fn(Option<u64>) -> Option<Traffic>) -> Self {
        Self { last_pid: last_pid(proc_), ..Self::network(proc_, known) }
    }

    fn network(proc_: &Proc, known: impl Fn(Option<u64>) -> Option<Traffic>) -> Self {
        let sent = text(proc_, c"net/dev").and_then(|t| sent(&t));
        let bytes_sent = sent.map(|sent| sent.bytes);
        let traffic = known(bytes_sent).or_else(|| {
            let sent = sent?;
            let mut traffic = Traffic { frames: sent.frames, loopback: sent.loopback, ..Traffic::default() };
            snmp(&text(proc_, c"net/snmp")?, &mut traffic)?;
            match proc_.following(c"net/snmp6", MOST) {
                Ok(t) => snmp6(&lossy(&t), &mut traffic)?,
                // A kernel without IPv6.
                Err(Errno::ENOENT) => {}
                Err(_) => return None,
            }
            Some(traffic)
        });
        Self { last_pid: None, bytes_sent, traffic }
    }

    /// What was counted since `earlier`. A counter that ran backwards (wrapped, or another namespace's) is `None`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let delta = |a: Option<u64>, b: Option<u64>| a?.checked_sub(b?);
        Self {
            last_pid: delta(self.last_pid, earlier.last_pid),
            bytes_sent: delta(self.bytes_sent, earlier.bytes_sent),
            traffic: self.traffic.zip(earlier.traffic).and_then(|(now, then)| now.since(&then)),
        }
    }

    /// Attempts to reach somebody outside, of what was counted since some instant.
    #[must_use]
    pub fn network_attempts(&self) -> Option<u64> {
        self.traffic.map(|traffic| traffic.attempts())
    }
}

/// The pid given last in this PID namespace (proc_loadavg(5)).
pub(super) fn last_pid(proc_: &Proc) -> Option<u64> {
    text(proc_, c"loadavg").and_then(|t| t.split_ascii_whitespace().nth(4)?.parse().ok())
}

fn text(proc_: &Proc, path: &std::ffi::CStr) -> Option<String> {
    Some(lossy(&proc_.following(path, MOST).ok()?))
}

/// What the interfaces sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sent {
    bytes: u64,
    frames: u64,
    loopback: u64,
}

fn sent(text: &str) -> Option<Sent> {
    let mut all = Sent::default();
    for line in text.lines().skip(2) {
        let (name, fields) = line.split_once(':')?;
        let mut fields = fields.split_ascii_whitespace().skip(8).map(str::parse::<u64>);
        let (bytes, packets) = (fields.next()?.ok()?, fields.next()?.ok()?);
        if name.trim() == "lo" {
            all.loopback = all.loopback.saturating_add(packets);
        } else {
            (all.bytes, all.frames) = (all.bytes.saturating_add(bytes), all.frames.saturating_add(packets));
        }
    }
    Some(all)
}

/// A line of names and one of values for each protocol.
fn snmp(text: &str, traffic: &mut Traffic) -> Option<()> {
    let fields = |protocol: &str| {
        let mut lines = text.lines().filter(move |l| l.split_once(':').is_some_and(|(p, _)| p == protocol));
        Some((lines.next()?, lines.next()?))
    };
    let of = |(names, values): (&str, &str), name: &str| -> Option<u64> {
        let at = names.split_ascii_whitespace().position(|f| f == name)?;
        values.split_ascii_whitespace().nth(at)?.parse().ok()
    };
    let (tcp, udp) = (fields("Tcp")?, fields("Udp")?);
    traffic.opened = of(tcp, "ActiveOpens")?;
    // What else there is only makes less of it: where a kernel does not have it (gVisor leaves some at 0) it is nothing.
    let or_none = |line, name| of(line, name).unwrap_or(0);
    traffic.accepted = or_none(tcp, "PassiveOpens");
    traffic.failed = or_none(tcp, "AttemptFails");
    traffic.resets = or_none(tcp, "OutRsts");
    traffic.broken = or_none(tcp, "EstabResets");
    traffic.datagrams = of(udp, "OutDatagrams")?;
    traffic.received = or_none(udp, "InDatagrams").saturating_add(or_none(udp, "InErrors"));
    traffic.no_port = or_none(udp, "NoPorts");
    if let Some(icmp) = fields("Icmp") {
        (traffic.unreachable, traffic.told) = (or_none(icmp, "InDestUnreachs"), or_none(icmp, "OutDestUnreachs"));
    }
    Some(())
}

/// A name and a value a line; TCP's are in the other table, for both.
fn snmp6(text: &str, traffic: &mut Traffic) -> Option<()> {
    let mut datagrams = None;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next().and_then(|v| v.parse::<u64>().ok())) else {
            continue;
        };
        let counter = match name {
            "Udp6OutDatagrams" => {
                datagrams = Some(());
                &mut traffic.datagrams
            }
            "Udp6InDatagrams" | "Udp6InErrors" => &mut traffic.received,
            "Udp6NoPorts" => &mut traffic.no_port,
            "Icmp6InDestUnreachs" => &mut traffic.unreachable,
            "Icmp6OutDestUnreachs" => &mut traffic.told,
            _ => continue,
        };
        *counter = counter.saturating_add(value);
    }
    datagrams
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables() {
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes |bytes\n    lo: 1 2 3 4 5 6 7 8 900 6 0\n  eth0: 1 2 3 4 5 6 7 8 77 4 0\n";
        assert_eq!(sent(dev), Some(Sent { bytes: 77, frames: 4, loopback: 6 }));
        let tables = "Icmp: InDestUnreachs OutDestUnreachs\nIcmp: 2 1\nTcp: RtoAlgorithm MaxConn ActiveOpens PassiveOpens\nTcp: 1 -1 5 3\n\
                      Udp: InDatagrams NoPorts InErrors OutDatagrams\nUdp: 3 1 1 8\n";
        let mut traffic = Traffic::default();
        assert_eq!(snmp(tables, &mut traffic), Some(()));
        let four = Traffic {
            opened: 5,
            accepted: 3,
            datagrams: 8,
            received: 4,
            no_port: 1,
            unreachable: 2,
            told: 1,
            ..Traffic::default()
        };
        assert_eq!(traffic, four);
        assert_eq!(snmp("Tcp: ActiveOpens\n", &mut traffic), None);
        assert_eq!(
            snmp6("Udp6InDatagrams 2\nUdp6OutDatagrams  \t 3\nIcmp6InDestUnreachs\t1\n", &mut traffic),
            Some(())
        );
        assert_eq!(traffic, Traffic { datagrams: 11, received: 6, unreachable: 3, ..four });
        assert_eq!(snmp6("Udp6InDatagrams 2\n", &mut traffic), None);
    }

    #[test]
    fn what_was_counted_since() {
        let pids = |last| Counters { last_pid: Some(last), ..Counters::default() };
        assert_eq!((pids(9).since(&pids(5)).last_pid, pids(5).since(&pids(9)).last_pid), (Some(4), None));
        let net = |bytes, opened| {
            let traffic = Some(Traffic { frames: bytes / 60, opened, ..Traffic::default() });
            Counters { last_pid: None, bytes_sent: Some(bytes), traffic }
        };
        let zero = net(600, 5);
        assert_eq!(net(600, 9).since(&zero).network_attempts(), Some(0), "nothing left");
        assert_eq!(net(840, 9).since(&zero).network_attempts(), Some(4));
        assert_eq!(Counters::default().since(&zero).network_attempts(), None, "cannot be attributed");
    }

    #[test]
    fn the_corpora_do_not_panic() {
        use proptest::prelude::*;
        for (name, bytes) in crate::corpus::files("net-dev") {
            let wanted = match name.as_str() {
                "real" | "empty" | "huge" => true,
                "no-colon" => sent(&lossy(&bytes)).is_some(),
                _ => continue,
            };
            assert_eq!(sent(&lossy(&bytes)).is_some(), wanted, "{name}");
        }
        for (folder, name) in [("snmp", "real"), ("snmp6", "real")] {
            let (_, bytes) = crate::corpus::files(folder).into_iter().find(|(n, _)| n == name).unwrap();
            let (text, mut traffic) = (lossy(&bytes), Traffic::default());
            let read = if folder == "snmp" { snmp(&text, &mut traffic) } else { snmp6(&text, &mut traffic) };
            assert_eq!(read, Some(()), "{folder}");
        }
        proptest!(|(dev in crate::corpus::mutated("net-dev"), tables in crate::corpus::mutated("snmp"),
                    six in crate::corpus::mutated("snmp6"))| {
            let sent = sent(&lossy(&dev)).unwrap_or_default();
            let mut traffic = Traffic { frames: sent.frames, loopback: sent.loopback, ..Traffic::default() };
            let _ = (snmp(&lossy(&tables), &mut traffic), snmp6(&lossy(&six), &mut traffic));
            let read = Counters { last_pid: None, bytes_sent: Some(sent.bytes), traffic: Some(traffic) };
            let zero = Counters { last_pid: None, bytes_sent: Some(0), traffic: Some(Traffic::default()) };
            prop_assert!(read.since(&zero).network_attempts().is_some_and(|n| n <= sent.frames));
        });
    }
}
