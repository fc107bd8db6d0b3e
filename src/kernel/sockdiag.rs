//! The TCP sockets of this network namespace, asked of the kernel by NETLINK_SOCK_DIAG (sock_diag(7)); needs no privilege.
//!
//! Bounded: at most `MOST` sockets are looked at, and no answer is waited for longer than `PATIENCE`.

use super::proc::Proc;
use super::sockets::loopback6;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Sockets looked at in one go.
const MOST: usize = 65_536;
const PATIENCE: Duration = Duration::from_millis(100);

/// States of TCP (include/net/tcp_states.h).
pub mod state {
    /// A connection that is open.
    pub const ESTABLISHED: u8 = 1;
    /// A connection being opened.
    pub const SYN_SENT: u8 = 2;
    /// One that answers, not yet open.
    pub const SYN_RECV: u8 = 3;
    /// Closed here, its last bytes not yet acknowledged.
    pub const FIN_WAIT1: u8 = 4;
    /// The peer closed first; our end is open.
    pub const CLOSE_WAIT: u8 = 8;
    /// The peer closed first; our end is closed as well.
    pub const LAST_ACK: u8 = 9;
    /// Waiting for connections.
    pub const LISTEN: u8 = 10;
    /// Both ends closed at once.
    pub const CLOSING: u8 = 11;
}

/// One socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Socket {
    /// AF_INET or AF_INET6.
    pub family: u8,
    /// Its state.
    pub state: u8,
    /// Local address; the first four bytes for AF_INET.
    pub source: [u8; 16],
    /// Local port.
    pub port: u16,
    /// The peer's address.
    pub destination: [u8; 16],
    /// The peer's port.
    pub peer: u16,
    /// Bytes not yet acknowledged; for a listening socket the length of its queue.
    pub queued: u32,
    /// The UID it was made under, or was given to (fchown(2)), as our user namespace has it.
    pub uid: u32,
    /// The inode; 0 where no descriptor is left.
    pub inode: u32,
    /// The interface it is tied to (SO_BINDTODEVICE); 0 for none.
    pub interface: u32,
}

impl Socket {
    /// Whether `later` is the same connection, in whatever state: its inode goes when it is closed, and comes when it is accepted.
    #[must_use]
    pub fn is(&self, later: &Self) -> bool {
        let ends = |s: &Self| (s.family, s.source, s.port, s.destination, s.peer);
        ends(self) == ends(later) && (self.inode == later.inode || self.inode == 0 || later.inode == 0)
    }

    /// Whether it has something to send to somebody outside, whether or not anybody asks it to.
    #[must_use]
    pub fn sends(&self) -> bool {
        // A SYN and a FIN count as one byte each.
        let open = matches!(self.state, state::ESTABLISHED | state::CLOSE_WAIT);
        self.queued > u32::from(!open) && !self.to_loopback() && !self.is_tied()
    }

    /// Whether the peer is this machine's loopback.
    #[must_use]
    pub fn to_loopback(&self) -> bool {
        self.is_loopback(&self.destination)
    }

    /// Whether both of its ends are.
    #[must_use]
    pub fn is_within_loopback(&self) -> bool {
        self.to_loopback() && self.is_loopback(&self.source)
    }

    /// Whether it is tied to the loopback interface, which is the first of every network namespace (LOOPBACK_IFINDEX, net/flow.h).
    #[must_use]
    pub const fn is_tied(&self) -> bool {
        self.interface == 1
    }

    /// Whether its own address is, so that nobody outside reaches it.
    #[must_use]
    pub fn on_loopback(&self) -> bool {
        self.is_loopback(&self.source)
    }

    fn is_loopback(&self, address: &[u8; 16]) -> bool {
        match i32::from(self.family) {
            libc::AF_INET => address.first() == Some(&127),
            _ => loopback6(address),
        }
    }
}

/// The TCP sockets, IPv4 and IPv6, that are in one of `states`.
///
/// # Errors
/// The errno of the netlink socket (`EPERM`, `EPROTONOSUPPORT` where the kernel or the profile refuses it), `EAGAIN` where no
/// answer came in time. A kernel without IPv6 answers for IPv4 alone.
pub fn tcp(states: &[u8]) -> Result<Vec<Socket>, Errno> {
    // SAFETY: socket(2) takes integers.
    let fd = Errno::result(unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG)
    })?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mask = states.iter().fold(0u32, |mask, &state| mask | 1 << state);
    let mut found = Vec::new();
    dump(&socket, libc::AF_INET, mask, &mut found)?;
    match dump(&socket, libc::AF_INET6, mask, &mut found) {
        Ok(()) | Err(Errno::ENOENT | Errno::EAFNOSUPPORT) => Ok(found),
        Err(errno) => Err(errno),
    }
}

/// The TCP sockets of this network namespace that have a peer.
///
/// # Errors
/// As `tcp`, where there is any TCP socket at all; `EOVERFLOW` where there are more than are looked at.
pub fn connected(proc_: Option<&Proc>) -> Result<Vec<Socket>, Errno> {
    // The kernel's own counts, of this namespace; the walk that finds them goes over the connections of all. Below the /proc that was
    // opened before the workload ran: over the path one that may mount could mount another.
    let none = |path, name: &[u8]| {
        let text = proc_.and_then(|proc_| proc_.following(path, 4096).ok())?;
        let line = text.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(name))?;
        Some(line == b" inuse 0" || line.starts_with(b" inuse 0 "))
    };
    // Without IPv6 the second file is not there.
    if none(c"net/sockstat", b"TCP:") == Some(true) && none(c"net/sockstat6", b"TCP6:") != Some(false) {
        return Ok(Vec::new());
    }
    use state::{CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT1, LAST_ACK, SYN_RECV, SYN_SENT};
    let all = tcp(&[ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, CLOSE_WAIT, LAST_ACK, CLOSING])?;
    if all.len() >= MOST { Err(Errno::EOVERFLOW) } else { Ok(all) }
}

fn dump(socket: &OwnedFd, family: i32, states: u32, found: &mut Vec<Socket>) -> Result<(), Errno> {
    // struct nlmsghdr, then struct inet_diag_req_v2 (linux/inet_diag.h).
    let mut request = [0u8; 72];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(slot) = request.get_mut(at..at + bytes.len()) {
            slot.copy_from_slice(bytes);
        }
    };
    put(0, &72u32.to_ne_bytes());
    put(4, &20u16.to_ne_bytes()); // SOCK_DIAG_BY_FAMILY
    put(6, &0x301u16.to_ne_bytes()); // NLM_F_REQUEST | NLM_F_DUMP
    // IPPROTO_TCP. Not with INET_DIAG_INFO: for that the kernel waits for the lock of each socket.
    put(16, &[u8::try_from(family).unwrap_or(0), 6]);
    put(20, &states.to_ne_bytes());
    // SAFETY: send(2) reads `request.len()` bytes.
    Errno::result(unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) })?;
    let mut buffer = vec![0u8; 32 * 1024];
    loop {
        let mut ready = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(socket), nix::poll::PollFlags::POLLIN)];
        let patience = u16::try_from(PATIENCE.as_millis()).unwrap_or(u16::MAX);
        if nix::poll::poll(&mut ready, patience)? == 0 {
            return Err(Errno::EAGAIN);
        }
        // SAFETY: recv(2) writes at most `buffer.len()` bytes into `buffer`.
        let n = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let n = Errno::result(n).map(|n| usize::try_from(n).unwrap_or(0))?;
        if answers(buffer.get(..n).unwrap_or_default(), found)? || found.len() >= MOST {
            return Ok(());
        }
    }
}

/// Takes the sockets of one datagram; whether it was the last one.
fn answers(mut bytes: &[u8], found: &mut Vec<Socket>) -> Result<bool, Errno> {
    while let Some(header) = bytes.first_chunk::<16>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::try_from(length).map_err(|_| Errno::EBADMSG)?;
        let body = bytes.get(16..length).ok_or(Errno::EBADMSG)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            3 => return Ok(true), // NLMSG_DONE
            2 => {
                // NLMSG_ERROR: a negative errno.
                let code = body.first_chunk::<4>().map_or(0, |b| i32::from_ne_bytes(*b));
                return Err(Errno::from_raw(code.saturating_neg()));
            }
            _ => found.extend(socket(body)),
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// struct inet_diag_msg: family, state, timer, retrans; ports and addresses in network order; interface at 40, rqueue at 56, wqueue at 60,
/// UID at 64, inode at 68.
fn socket(body: &[u8]) -> Option<Socket> {
    let word = |at: usize| body.get(at..)?.first_chunk::<4>().map(|b| u32::from_ne_bytes(*b));
    Some(Socket {
        family: *body.first()?,
        state: *body.get(1)?,
        port: u16::from_be_bytes(*body.get(4..)?.first_chunk()?),
        source: *body.get(8..)?.first_chunk()?,
        destination: *body.get(24..)?.first_chunk()?,
        queued: word(60)?,
        uid: word(64)?,
        inode: word(68)?,
        interface: word(40)?,
        peer: u16::from_be_bytes(*body.get(6..)?.first_chunk()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_and_its_end() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let own = nix::unistd::geteuid().as_raw();
        let seen = || tcp(&[state::LISTEN]).unwrap().iter().any(|s| s.port == port && s.inode != 0 && s.uid == own);
        assert!(seen());
        drop(listener);
        assert!(!seen());
        let six = std::net::TcpListener::bind("[::1]:0");
        if let Ok(six) = six {
            let port = six.local_addr().unwrap().port();
            assert!(
                tcp(&[state::LISTEN]).unwrap().iter().any(|s| s.port == port && i32::from(s.family) == libc::AF_INET6)
            );
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let mut found = Vec::new();
        assert_eq!(answers(&[1, 2, 3], &mut found), Ok(false));
        assert_eq!(answers(&[255; 16], &mut found), Err(Errno::EBADMSG));
        let mut short = [0u8; 16];
        short[0] = 4;
        assert_eq!(answers(&short, &mut found), Err(Errno::EBADMSG));
        assert!(found.is_empty());
    }

    #[test]
    fn no_answer_panics_or_makes_more_of_itself() {
        let mut found = Vec::new();
        let (_, listeners) =
            crate::corpus::files("sock-diag").into_iter().find(|(name, _)| name == "listeners").unwrap();
        assert!(answers(&listeners, &mut found).is_ok() && !found.is_empty());
        proptest::proptest!(|(bytes in crate::corpus::mutated("sock-diag"))| {
            let mut found = Vec::new();
            let _ = answers(&bytes, &mut found);
            proptest::prop_assert!(found.len() <= bytes.len() / 16);
        });
    }
}
