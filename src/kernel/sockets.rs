//! The sockets of another process: finding them, duplicating one, and cutting it off from everything but loopback.
//!
//! A socket is cut through a duplicate, so it is cut for every process that holds it. Measured on Linux 6.18, and each
//! against its control in `tests/run/revoke.rs`:
//! * TCP: `connect(AF_UNSPEC)` resets the connection and drops what is still queued (a `close` would go on sending it), then
//!   SO_BINDTODEVICE "lo" keeps it from being connected anywhere else. In that order: tied first, the reset goes nowhere.
//! * UDP: `connect(AF_UNSPEC)` undoes SO_BINDTODEVICE, so the tie is worth nothing there; `shutdown(2)` answers ENOTCONN and
//!   yet stops every later send for good. A corked datagram would still leave: one send that is too long discards it.
//!
//! CAP_NET_RAW takes the tie off again: where the workload may have it, TCP is not cut this way.
//!
//! Anything else (raw, packet, MPTCP, SCTP, vsock) is not cut this way and says so.

use super::clock;
use super::proc::{Proc, is_gone};
use crate::machine::types::Instant;
use crate::switches::without;
use nix::errno::Errno;
use std::cmp::Ordering;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Descriptors between two looks at the clock.
const EACH: u32 = 16;

/// A descriptor of some process that is a socket which may lead outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The descriptor's number there.
    pub fd: i32,
    /// The socket's inode: the same for every descriptor of the same socket.
    pub inode: u64,
}

/// The sockets in the descriptor table of thread `tid` of `pid`, but for those that cannot lead outside: AF_UNIX, and the
/// kernel's own AF_NETLINK and AF_ALG. A socket whose protocol the kernel does not name is taken to lead outside.
///
/// # Errors
/// `EACCES` where the process made itself undumpable (proc_pid_fd(5)), whether the table or only what is in it cannot be read, `ENOENT`
/// where it is gone, `ETIME` where the table was too long for the time given.
pub fn outside(proc_: &Proc, pid: i32, tid: i32, until: Instant) -> Result<Vec<Found>, Errno> {
    let (mut found, mut unknown) = (Vec::new(), Ok(()));
    each_descriptor(proc_, pid, tid, until, |fd, path, inode| match inode {
        Ok(Some(inode)) if !harmless(path) => found.push(Found { fd, inode }),
        Ok(_) => {}
        Err(errno) => unknown = Err(errno),
    })?;
    unknown.map(|()| found)
}

/// Calls `each` with every descriptor of a thread, its path below `/proc`, and its inode where it is a socket, or why that cannot be told.
fn each_descriptor(
    proc_: &Proc,
    pid: i32,
    tid: i32,
    until: Instant,
    mut each: impl FnMut(i32, &str, Result<Option<u64>, Errno>),
) -> Result<(), Errno> {
    let dir = format!("{pid}/task/{tid}/fd");
    let mut seen = 0u32;
    let whole = proc_.each_number(&dir, |fd| {
        let path = format!("{dir}/{fd}");
        let what = match proc_.link(&path) {
            // Closed meanwhile.
            Err(errno) if is_gone(errno) => Ok(None),
            link => link.map(|link| inode(&link)),
        };
        each(fd, &path, what);
        seen = seen.wrapping_add(1);
        !seen.is_multiple_of(EACH) || clock::now() < until || without("walk_deadline")
    })?;
    if whole { Ok(()) } else { Err(Errno::ETIME) }
}

/// How many descriptors the thread has, and how many of them are sockets of any kind; `None` where that cannot be told of each.
///
/// # Errors
/// As `outside`.
pub fn count(proc_: &Proc, pid: i32, tid: i32, until: Instant) -> Result<(u64, Option<u64>), Errno> {
    let (mut descriptors, mut sockets) = (0, Some(0));
    each_descriptor(proc_, pid, tid, until, |_, _, inode| {
        descriptors += 1;
        sockets = sockets.zip(inode.ok()).map(|(n, inode)| n + u64::from(inode.is_some()));
    })?;
    Ok((descriptors, sockets))
}

/// Calls `each` with the inodes of the sockets a process holds, in whichever thread's table. One that is gone holds none.
///
/// # Errors
/// As `outside`; where it is `EACCES`, `each` was still called with those that could be named.
pub fn inodes(proc_: &Proc, pid: i32, until: Instant, mut each: impl FnMut(u64)) -> Result<(), Errno> {
    let mut all = Ok(());
    let listed = proc_.each_number(&format!("{pid}/task"), |tid| {
        let mut unknown = Ok(());
        let looked = each_descriptor(proc_, pid, tid, until, |_, _, inode| match inode {
            Ok(inode) => inode.into_iter().for_each(&mut each),
            Err(errno) => unknown = Err(errno),
        });
        match looked.and(unknown) {
            // The table of who has ended is root's, and empty.
            Err(Errno::EACCES) if proc_.thread_is_gone(pid, tid) => {}
            Err(errno) if !is_gone(errno) => all = Err(errno),
            _ => {}
        }
        all != Err(Errno::ETIME) && (clock::now() < until || without("walk_deadline"))
    });
    match listed {
        Err(errno) if !is_gone(errno) => Err(errno),
        Ok(false) => Err(Errno::ETIME),
        _ => all,
    }
}

/// How the descriptor tables of two stopped threads of any process are to each other, in an order of the kernel's own (kcmp(2),
/// KCMP_FILES); `None` where it does not say: docker's default profile refuses the call. It waits for who is in execve(2), which nobody
/// who is stopped is.
#[must_use]
pub fn compare_tables(one: i32, other: i32) -> Option<Ordering> {
    const FILES: libc::c_int = 2;
    if without("one_walk") {
        return None;
    }
    // SAFETY: kcmp(2) takes integers.
    match unsafe { libc::syscall(libc::SYS_kcmp, one, other, FILES, 0, 0) } {
        0 => Some(Ordering::Equal),
        1 => Some(Ordering::Less),
        2 => Some(Ordering::Greater),
        _ => None,
    }
}

fn inode(link: &[u8]) -> Option<u64> {
    let digits = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// By `system.sockprotoname`, which sockfs answers for its own inodes without opening them (net/socket.c).
fn harmless(path: &str) -> bool {
    let Ok(path) = CString::new(format!("/proc/{path}")) else { return false };
    let mut name = [0u8; 32];
    // SAFETY: both strings end in NUL, and the kernel writes at most `name.len()` bytes into `name`.
    let n = unsafe {
        libc::getxattr(path.as_ptr(), c"system.sockprotoname".as_ptr(), name.as_mut_ptr().cast(), name.len())
    };
    let name = usize::try_from(n).ok().and_then(|n| name.get(..n)).unwrap_or_default();
    let name = name.split(|&b| b == 0).next().unwrap_or_default();
    name.starts_with(b"UNIX") || name == b"NETLINK" || name == b"ALG"
}

/// A duplicate of descriptor `fd` of the process (pidfd_getfd(2), Linux 5.6). Needs the right to trace it, and a seccomp
/// profile that allows the call: docker's default one does not.
///
/// # Errors
/// `EPERM`, `EBADF`, `ENOSYS` as the manual page says.
pub fn duplicate(process: BorrowedFd<'_>, fd: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_getfd(2) takes three integers; `process` is open for the call.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0u32) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just gave us this descriptor (close-on-exec by itself), and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Cuts a socket off from everything but loopback, for good. `Ok(false)` where it never led outside. `ties_hold`: whether nobody who
/// has it can undo SO_BINDTODEVICE.
///
/// # Errors
/// The errno of the step that was refused; `EPROTONOSUPPORT` where there is no such way for this kind of socket. The socket
/// may then be cut in part.
pub fn cut(socket: BorrowedFd<'_>, ties_hold: bool) -> Result<bool, Errno> {
    let domain = option(socket, libc::SO_DOMAIN)?;
    match (domain, option(socket, libc::SO_PROTOCOL)?) {
        (libc::AF_UNIX | libc::AF_NETLINK | libc::AF_ALG, _) => Ok(false),
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_TCP) if ties_hold => {
            let local = both_ends_are_loopback(socket);
            if !local {
                disconnect(socket)?;
            }
            tie(socket)?;
            Ok(!local)
        }
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE) => {
            silence(socket, domain)?;
            Ok(true)
        }
        _ => Err(Errno::EPROTONOSUPPORT),
    }
}

fn option(socket: BorrowedFd<'_>, name: libc::c_int) -> Result<libc::c_int, Errno> {
    let mut value: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: getsockopt(2) writes at most `length` bytes into `value`, and the length into `length`.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length)
    };
    Errno::result(result).map(|_| value)
}

/// The address of one end, as the raw bytes of a `sockaddr`.
fn address(socket: BorrowedFd<'_>, peer: bool) -> Option<[u8; 32]> {
    let mut bytes = [0u8; 32];
    let mut length: libc::socklen_t = 32;
    let fd = socket.as_raw_fd();
    let to = bytes.as_mut_ptr().cast();
    // SAFETY: both calls write at most `length` bytes, which `bytes` has, and the true length into `length`.
    let result = unsafe {
        if peer { libc::getpeername(fd, to, &raw mut length) } else { libc::getsockname(fd, to, &raw mut length) }
    };
    (result == 0).then_some(bytes)
}

fn both_ends_are_loopback(socket: BorrowedFd<'_>) -> bool {
    [false, true].iter().all(|&peer| {
        let Some(bytes) = address(socket, peer) else { return false };
        // sockaddr_in: family, port, address; sockaddr_in6: family, port, flow, address (ip(7), ipv6(7)).
        match (libc::c_int::from(u16::from_ne_bytes([bytes[0], bytes[1]])), bytes) {
            (libc::AF_INET, [_, _, _, _, first, ..]) => first == 127,
            (libc::AF_INET6, bytes) => bytes.get(8..24).is_some_and(loopback6),
            _ => false,
        }
    })
}

/// `::1`, or a mapped 127.0.0.0/8.
#[must_use]
pub fn loopback6(address: &[u8]) -> bool {
    let mapped = [0u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    match address.split_last() {
        Some((1, rest)) if rest.iter().all(|&b| b == 0) => true,
        _ => address.strip_prefix(&mapped).and_then(<[u8]>::first) == Some(&127),
    }
}

/// Resets the connection, with what is queued; a listening socket stops and resets what waits to be accepted (connect(2)).
fn disconnect(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let nowhere = [0u8; 16]; // AF_UNSPEC is 0
    // SAFETY: connect(2) reads 16 bytes.
    Errno::result(unsafe { libc::connect(socket.as_raw_fd(), nowhere.as_ptr().cast(), 16) }).map(drop)
}

/// SO_BINDTODEVICE "lo" (socket(7)): unprivileged since Linux 5.7 while the socket is tied to nothing else.
fn tie(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let name = c"lo";
    // SAFETY: setsockopt(2) reads the three bytes of "lo" and its NUL.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name.as_ptr().cast(), 3)
    };
    Errno::result(result).map(drop)
}

/// Stops a datagram socket's sends for good, and tries whether it did.
fn silence(socket: BorrowedFd<'_>, domain: libc::c_int) -> Result<(), Errno> {
    // The longest length that udp_sendmsg takes, and longer than any datagram: EMSGSIZE, and what was corked is discarded.
    let too_long = vec![0u8; 65535];
    let fd = socket.as_raw_fd();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: shutdown(2) takes integers; send(2) reads `too_long.len()` bytes. Both answer an error here by design:
    // ENOTCONN of an unconnected socket, whose sending side is shut all the same, and EMSGSIZE.
    unsafe {
        libc::shutdown(fd, libc::SHUT_RDWR);
        libc::send(fd, too_long.as_ptr().cast(), too_long.len(), flags);
    }
    // The proof: an empty datagram to ourselves must be refused.
    let mut to = [0u8; 28];
    let family = u16::try_from(domain).map_err(|_| Errno::EAFNOSUPPORT)?.to_ne_bytes();
    to[0] = family[0];
    to[1] = family[1];
    to[3] = 9; // the discard port
    let length = if domain == libc::AF_INET6 {
        to[23] = 1;
        28
    } else {
        to[4] = 127;
        to[7] = 1;
        16
    };
    // SAFETY: sendto(2) reads no payload and `length` bytes of address, which `to` has.
    let sent = unsafe { libc::sendto(fd, std::ptr::null(), 0, flags, to.as_ptr().cast(), length) };
    match Errno::result(sent) {
        Err(Errno::EPIPE) => Ok(()),
        Ok(_) => Err(Errno::EISCONN),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;

    #[test]
    fn a_silenced_socket_sends_nothing_and_stays_so() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        from.send_to(b"control", to.local_addr().unwrap()).unwrap();
        let mut bytes = [0; 16];
        assert_eq!(to.recv(&mut bytes).unwrap(), 7);
        assert_eq!(cut(from.as_fd(), false), Ok(true));
        assert!(from.send_to(b"late", to.local_addr().unwrap()).is_err());
        disconnect(from.as_fd()).unwrap();
        assert!(from.send_to(b"late", to.local_addr().unwrap()).is_err());
    }

    #[test]
    fn a_loopback_connection_lives_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut two, _) = listener.accept().unwrap();
        assert_eq!(cut(one.as_fd(), false), Err(Errno::EPROTONOSUPPORT));
        assert_eq!(cut(one.as_fd(), true), Ok(false));
        use std::io::{Read, Write};
        (&one).write_all(b"still").unwrap();
        let mut bytes = [0; 5];
        two.read_exact(&mut bytes).unwrap();
        assert_eq!(cut(std::os::unix::net::UnixDatagram::unbound().unwrap().as_fd(), false), Ok(false));
    }

    #[test]
    fn names_and_addresses() {
        assert_eq!(inode(b"socket:[17]"), Some(17));
        assert_eq!(inode(b"pipe:[17]"), None);
        let mut six = [0u8; 16];
        assert!(!loopback6(&six));
        six[15] = 1;
        assert!(loopback6(&six));
        assert!(loopback6(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 127, 9, 9, 9]));
        assert!(!loopback6(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 9, 9, 9]));
    }
}
