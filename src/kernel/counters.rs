//! Counters that cost nothing: one small read each, of this PID and network namespace (proc_loadavg(5), proc_pid_net(5)).
//!
//! Only PID 1 may call them the workload's. A counter that cannot be read is `None`, never zero.

use super::proc::Proc;
use super::procfile::lossy;
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
    /// TCP connections opened plus UDP datagrams sent, IPv4 and IPv6. The kernel counts loopback's too; see `since`.
    pub network_attempts: Option<u64>,
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

    /// What was counted since `earlier`, read now. Where nothing left by an interface there was no attempt (see `since`), and the
    /// protocols' tables, which cost more than everything else here, are not asked.
    #[must_use]
    pub fn read_since(proc_: &Proc, earlier: &Self) -> Self {
        Self::read_but(proc_, |sent| earlier.network_attempts.filter(|_| sent.is_some() && sent == earlier.bytes_sent))
            .since(earlier)
    }

    /// Reads them; the attempts only where `known`, told what was sent, does not know them.
    fn read_but(proc_: &Proc, known: impl Fn(Option<u64>) -> Option<u64>) -> Self {
        Self { last_pid: last_pid(proc_), ..Self::network(proc_, known) }
    }

    fn network(proc_: &Proc, known: impl Fn(Option<u64>) -> Option<u64>) -> Self {
        let bytes_sent = text(proc_, c"net/dev").and_then(|t| sent(&t));
        let network_attempts = known(bytes_sent).or_else(|| {
            let attempts = text(proc_, c"net/snmp").and_then(|t| snmp(&t));
            let attempts6 = match proc_.following(c"net/snmp6", MOST) {
                Ok(t) => snmp6(&lossy(&t)),
                // A kernel without IPv6.
                Err(Errno::ENOENT) => Some(0),
                Err(_) => None,
            };
            attempts.zip(attempts6).map(|(four, six)| four.saturating_add(six))
        });
        Self { last_pid: None, bytes_sent, network_attempts }
    }

    /// What was counted since `earlier`. A counter that ran backwards (wrapped, or another namespace's) is `None`.
    ///
    /// `/proc/net/snmp` has no count by interface, so attempts count only where something left by an interface other than
    /// loopback (a connection attempt sends at least its SYN): a test suite that talks to 127.0.0.1 attempts nothing.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let delta = |a: Option<u64>, b: Option<u64>| a?.checked_sub(b?);
        let bytes_sent = delta(self.bytes_sent, earlier.bytes_sent);
        let attempts = delta(self.network_attempts, earlier.network_attempts);
        Self {
            last_pid: delta(self.last_pid, earlier.last_pid),
            bytes_sent,
            network_attempts: match bytes_sent {
                Some(0) => attempts.map(|_| 0),
                Some(_) => attempts,
                None => None,
            },
        }
    }
}

/// The pid given last in this PID namespace (proc_loadavg(5)).
pub(super) fn last_pid(proc_: &Proc) -> Option<u64> {
    text(proc_, c"loadavg").and_then(|t| t.split_ascii_whitespace().nth(4)?.parse().ok())
}

fn text(proc_: &Proc, path: &std::ffi::CStr) -> Option<String> {
    Some(lossy(&proc_.following(path, MOST).ok()?))
}

fn sent(text: &str) -> Option<u64> {
    let mut total = 0u64;
    for line in text.lines().skip(2) {
        let (name, fields) = line.split_once(':')?;
        if name.trim() != "lo" {
            total = total.saturating_add(fields.split_ascii_whitespace().nth(8)?.parse().ok()?);
        }
    }
    Some(total)
}

fn snmp(text: &str) -> Option<u64> {
    let field = |protocol: &str, name: &str| -> Option<u64> {
        let mut lines = text.lines().filter(|l| l.split_once(':').is_some_and(|(p, _)| p == protocol));
        let at = lines.next()?.split_ascii_whitespace().position(|f| f == name)?;
        lines.next()?.split_ascii_whitespace().nth(at)?.parse().ok()
    };
    Some(field("Tcp", "ActiveOpens")?.saturating_add(field("Udp", "OutDatagrams")?))
}

fn snmp6(text: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix("Udp6OutDatagrams")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables() {
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes |bytes\n    lo: 1 2 3 4 5 6 7 8 900 1 0\n  eth0: 1 2 3 4 5 6 7 8 77 1 0\n";
        assert_eq!(sent(dev), Some(77));
        let tables = "Tcp: RtoAlgorithm ActiveOpens\nTcp: 1 5\nUdp: InDatagrams OutDatagrams\nUdp: 3 4\n";
        assert_eq!(snmp(tables), Some(9));
        assert_eq!(snmp("Tcp: ActiveOpens\n"), None);
        assert_eq!(snmp6("Udp6InDatagrams 2\nUdp6OutDatagrams  \t 3\n"), Some(3));
        let (a, b) = (
            Counters { last_pid: Some(9), ..Counters::default() },
            Counters { last_pid: Some(5), ..Counters::default() },
        );
        let net = |bytes, attempts| Counters { last_pid: None, bytes_sent: bytes, network_attempts: attempts };
        let zero = net(Some(10), Some(5));
        assert_eq!(net(Some(10), Some(9)).since(&zero).network_attempts, Some(0), "loopback only");
        assert_eq!(net(Some(11), Some(9)).since(&zero).network_attempts, Some(4));
        assert_eq!(net(None, Some(9)).since(&zero).network_attempts, None, "cannot be attributed");
        assert_eq!((a.since(&b).last_pid, b.since(&a).last_pid), (Some(4), None));
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
        proptest!(|(dev in crate::corpus::mutated("net-dev"), tables in crate::corpus::mutated("snmp"),
                    six in crate::corpus::mutated("snmp6"))| {
            let read = Counters { last_pid: None, bytes_sent: sent(&lossy(&dev)), network_attempts: snmp(&lossy(&tables)) };
            let _ = (read.since(&Counters::default()), snmp6(&lossy(&six)));
        });
    }
}
