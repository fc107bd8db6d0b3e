//! What the network counters of a namespace say of the attempts to reach somebody outside (proc_pid_net(5), RFC 4022, RFC 4113).
//!
//! `/proc/net/snmp` has no count by interface, and a test suite that talks to 127.0.0.1 attempts nothing. So what loopback's own
//! traffic added is taken off, never more of it than loopback carried packets for. Measured on Linux 6.18: a connection over loopback that
//! is accepted adds one to ActiveOpens and one to PassiveOpens; one that is refused one to ActiveOpens, AttemptFails and OutRsts, since it
//! is this namespace that refuses it; a datagram one to OutDatagrams, and one to InDatagrams when it is read or to NoPorts.
//!
//! Invariants: each packet of loopback's excuses one attempt at the most, and a connection over loopback no other than itself. Never more
//! attempts than frames that left.

/// The counters, or how much they grew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Packets sent on interfaces other than loopback.
    pub frames: u64,
    /// Packets sent on loopback.
    pub loopback: u64,
    /// Connections opened (Tcp ActiveOpens).
    pub opened: u64,
    /// Connections accepted (Tcp PassiveOpens).
    pub accepted: u64,
    /// Connections that came to nothing (Tcp AttemptFails).
    pub failed: u64,
    /// Resets sent (Tcp OutRsts).
    pub resets: u64,
    /// Connections reset (Tcp EstabResets).
    pub broken: u64,
    /// Datagrams sent.
    pub datagrams: u64,
    /// Datagrams received (Udp InDatagrams, InErrors).
    pub received: u64,
    /// Datagrams for a port that nobody has (Udp NoPorts).
    pub no_port: u64,
    /// Messages that somebody cannot be reached (Icmp InDestUnreachs).
    pub unreachable: u64,
    /// Those that were sent, of which some are for ourselves (Icmp OutDestUnreachs).
    pub told: u64,
}

/// The packets of a connection that is accepted: SYN, SYN with ACK, ACK.
const ACCEPTED: u64 = 3;
/// Of one that is refused: SYN, RST.
const REFUSED: u64 = 2;

impl Traffic {
    /// What was counted since `earlier`; `None` where a counter ran backwards (wrapped, or another namespace's).
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        Some(Self {
            frames: self.frames.checked_sub(earlier.frames)?,
            loopback: self.loopback.checked_sub(earlier.loopback)?,
            opened: self.opened.checked_sub(earlier.opened)?,
            accepted: self.accepted.checked_sub(earlier.accepted)?,
            failed: self.failed.checked_sub(earlier.failed)?,
            resets: self.resets.checked_sub(earlier.resets)?,
            broken: self.broken.checked_sub(earlier.broken)?,
            datagrams: self.datagrams.checked_sub(earlier.datagrams)?,
            received: self.received.checked_sub(earlier.received)?,
            no_port: self.no_port.checked_sub(earlier.no_port)?,
            unreachable: self.unreachable.checked_sub(earlier.unreachable)?,
            told: self.told.checked_sub(earlier.told)?,
        })
    }

    /// How many connections over loopback were accepted, and how many were refused, where that explains the resets.
    fn own(&self) -> (u64, u64) {
        self.own_but(0)
    }

    /// The same where `other` resets were for something else.
    fn own_but(&self, other: u64) -> (u64, u64) {
        let accepted = self.accepted.min(self.loopback / ACCEPTED);
        let left = self.loopback.saturating_sub(accepted.saturating_mul(ACCEPTED));
        // Who resets a connection of its own that was accepted sends a reset as well, which must not excuse one that was refused outside.
        let refused =
            self.failed.min(self.resets.saturating_sub(self.broken).saturating_sub(other)).min(left / REFUSED);
        (accepted, refused)
    }

    /// Connections opened to somebody outside.
    #[must_use]
    pub fn opened_outside(&self) -> u64 {
        let (accepted, refused) = self.own();
        self.opened.saturating_sub(accepted).saturating_sub(refused).min(self.frames)
    }

    /// The same where each connection that loopback accepted ended with a reset: one that comes when the other end has closed as well breaks
    /// nothing, and would excuse a refusal outside. Who polls a port here that nobody has, and then is accepted, has more of it than he opened.
    #[must_use]
    pub fn probed(&self) -> u64 {
        let (accepted, refused) = self.own_but(self.accepted);
        self.opened.saturating_sub(accepted).saturating_sub(refused).min(self.frames)
    }

    /// Datagrams sent outside, whether they were answered or not.
    #[must_use]
    pub fn sent_outside(&self) -> u64 {
        let (accepted, refused) = self.own();
        let connections = accepted.saturating_mul(ACCEPTED).saturating_add(refused.saturating_mul(REFUSED));
        let packets = self.loopback.saturating_sub(connections);
        let within = self.received.saturating_add(self.no_port).min(packets);
        self.datagrams.saturating_sub(within).min(self.frames)
    }

    /// Datagrams that no datagram came back for, and that did not stay here.
    #[must_use]
    pub fn unanswered(&self) -> u64 {
        self.datagrams.saturating_sub(self.received).saturating_sub(self.no_port).min(self.frames)
    }

    /// Messages from outside that somebody cannot be reached. The kernel writes to itself as well, without a limit: of a port here that
    /// nobody has, and each datagram that waited for a neighbour who does not answer.
    #[must_use]
    pub const fn unreached(&self) -> u64 {
        self.unreachable.saturating_sub(self.told)
    }

    /// Attempts to reach somebody outside.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.opened_outside().saturating_add(self.sent_outside()).min(self.frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets, opened, accepted, failed, resets, broken.
    const fn tcp(loopback: u64, counts: [u64; 5]) -> Traffic {
        let [opened, accepted, failed, resets, broken] = counts;
        Traffic { frames: 1_000_000, loopback, opened, accepted, failed, resets, broken, ..ZERO }
    }
    const ZERO: Traffic = Traffic {
        frames: 0,
        loopback: 0,
        opened: 0,
        accepted: 0,
        failed: 0,
        resets: 0,
        broken: 0,
        datagrams: 0,
        received: 0,
        no_port: 0,
        unreachable: 0,
        told: 0,
    };

    #[test]
    fn connections() {
        for (what, counted, outside) in [
            ("67 over loopback, 7 of them refused", tcp(60 * 7 + 7 * 2, [67, 60, 7, 7, 0]), 0),
            ("one outside", tcp(0, [1, 0, 0, 0, 0]), 1),
            ("60 that somebody outside refused", tcp(0, [60, 0, 60, 0, 0]), 60),
            ("60 outside, beside 60 over loopback", tcp(60 * 7, [120, 60, 0, 0, 0]), 60),
            ("60 refused outside, beside 60 over loopback that reset", tcp(60 * 7, [120, 60, 60, 60, 120]), 60),
            ("60 outside, and 60 that somebody outside opened", tcp(0, [60, 60, 0, 0, 0]), 60),
            ("60 outside, beside datagrams over loopback", tcp(1000, [60, 0, 0, 0, 0]), 60),
            ("60 refused outside, beside datagrams over loopback", tcp(1000, [60, 0, 60, 0, 0]), 60),
            ("20 polls of a port that nobody has, then 5 accepted", tcp(20 * 2 + 5 * 7, [25, 5, 20, 20, 0]), 0),
        ] {
            assert_eq!(counted.opened_outside(), outside, "{what}");
            assert_eq!(Traffic { frames: 9, ..counted }.opened_outside(), outside.min(9), "{what}, 9 frames");
        }
    }

    #[test]
    fn connections_that_resets_would_excuse() {
        for (what, counted, doubt, probed) in [
            ("60 refused outside, beside 60 that end with a reset", tcp(60 * 6, [120, 60, 60, 60, 0]), 0, 60),
            ("60 refused outside, beside 60 that end with two", tcp(60 * 7, [120, 60, 60, 120, 60]), 0, 60),
            ("20 polls of a port that nobody has, then 5 accepted", tcp(20 * 2 + 5 * 7, [25, 5, 20, 20, 0]), 0, 5),
            ("500 polls, then 5 accepted", tcp(500 * 2 + 5 * 7, [505, 5, 500, 500, 0]), 0, 5),
            ("60 over loopback that reset", tcp(60 * 7, [60, 60, 0, 60, 120]), 0, 0),
            ("60 outside", tcp(0, [60, 0, 60, 0, 0]), 60, 60),
        ] {
            assert_eq!((counted.opened_outside(), counted.probed()), (doubt, probed), "{what}");
            assert_eq!(Traffic { frames: 3, ..counted }.probed(), probed.min(3), "{what}, 3 frames");
        }
    }

    #[test]
    fn datagrams() {
        // Packets, sent, received, for no port, unreachable, told so.
        for (what, [loopback, datagrams, received, no_port, unreachable, told], sent, unanswered, unreached) in [
            ("67 over loopback, 7 for no port", [74, 67, 60, 7, 7, 7], 0, 0, 0),
            ("a name that is asked for", [0, 1, 1, 0, 0, 0], 1, 0, 0),
            ("60 measurements", [0, 60, 0, 0, 0, 0], 60, 60, 0),
            ("60 for a neighbour who does not answer", [60, 60, 0, 0, 60, 60], 60, 60, 0),
            ("a scan", [0, 1000, 0, 0, 40, 0], 1000, 1000, 40),
            ("a scan beside 1,000 over loopback for no port", [2000, 2000, 0, 1000, 1040, 1000], 1000, 1000, 40),
        ] {
            let counted = Traffic { frames: 5_000, loopback, datagrams, received, no_port, unreachable, told, ..ZERO };
            let seen = (counted.sent_outside(), counted.unanswered(), counted.unreached());
            assert_eq!(seen, (sent, unanswered, unreached), "{what}");
        }
    }

    #[test]
    fn a_counter_that_ran_backwards() {
        let more = Traffic { opened: 1, ..ZERO };
        assert_eq!((more.since(&ZERO), ZERO.since(&more)), (Some(more), None));
    }
}
