//! Programs that go on sending after SIGTERM, each by another kind of socket or another way to hide one from the revoke rung.
#![allow(dead_code)]

use super::grace::fork;
use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(5);

/// Where to send.
pub struct Target {
    pub address: String,
    pub tcp: u16,
    pub udp: u16,
}

impl Target {
    fn tcp(&self) -> String {
        format!("{}:{}", self.address, self.tcp)
    }

    fn udp(&self) -> String {
        format!("{}:{}", self.address, self.udp)
    }

    fn any(&self) -> &'static str {
        if self.address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }
    }
}

/// Both protocols for ever, re-connecting, and a file beside it. `undumpable`: hides its descriptors; `own-table`: each
/// thread has a descriptor table of its own; `headless`: its main thread has ended; `vfork`: its main thread waits in vfork, deaf to what
/// is sent to the process; `untie`: takes SO_BINDTODEVICE off again (CAP_NET_RAW); `revive`: a sibling without a socket continues it
/// whenever it is stopped; `timers`: so do three thousand timers, each 0.7 ms from 1.7 s after its start on; `duty`: each of its sends ends with a stop, and the sibling's SIGCONT makes the next.
pub fn trickle(to: Target, file: String, how: &str) {
    if how == "undumpable" {
        // SAFETY: prctl(2) with integers.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    }
    if how == "duty" {
        return duty(&to);
    }
    if how == "revive" {
        let parent = std::process::id().cast_signed();
        if fork() {
            loop {
                // SAFETY: kill(2) with integers.
                unsafe { libc::kill(parent, libc::SIGCONT) };
            }
        }
    } else {
        fork();
    }
    if how == "timers" {
        // Eight of them: of one alone some look finds it still between two timers.
        fork();
        fork();
        super::woken::timers(Duration::from_millis(1700), Duration::from_micros(700), 3000);
    }
    let untied = (how == "untie").then(|| to.tcp().parse::<std::net::SocketAddrV4>().unwrap());
    let own_table = how == "own-table";
    let (tcp, any, udp) = (to.tcp(), to.any(), to.udp());
    let hide = move || {
        // SAFETY: unshare(2) with an integer: this thread's descriptors are its own from here on.
        assert!(!own_table || unsafe { libc::unshare(libc::CLONE_FILES) } == 0, "unshare");
    };
    std::thread::spawn(move || {
        hide();
        loop {
            if let Ok(mut stream) = TcpStream::connect(&tcp) {
                loop {
                    while stream.write_all(b"t").is_ok() {
                        std::thread::sleep(PAUSE);
                    }
                    let Some(address) = untied else { break };
                    connect_again(&stream, address);
                    std::thread::sleep(PAUSE);
                }
            }
            std::thread::sleep(PAUSE);
        }
    });
    std::thread::spawn(move || {
        let mut open = std::fs::File::create(file).unwrap();
        loop {
            let _ = open.write_all(b"x");
            std::thread::sleep(PAUSE);
        }
    });
    let datagrams = move || {
        hide();
        let socket = UdpSocket::bind(any).unwrap();
        loop {
            // What undoes SO_BINDTODEVICE, should that be all that holds it.
            // SAFETY: connect(2) reads 16 bytes.
            unsafe { libc::connect(socket.as_raw_fd(), [0u8; 16].as_ptr().cast(), 16) };
            let _ = socket.send_to(b"u", &udp);
            std::thread::sleep(PAUSE);
        }
    };
    let last = std::thread::spawn(datagrams);
    if how == "headless" {
        // SAFETY: exit(2), of this thread alone; its stack stays mapped.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    if how == "vfork" {
        super::stubborn::wait_in_vfork();
    }
    last.join().unwrap();
}

/// The same socket, tied to no device.
fn connect_again(stream: &TcpStream, to: std::net::SocketAddrV4) {
    let mut address = [0u8; 16];
    // SAFETY: setsockopt(2) reads nothing, connect(2) 16 bytes: first AF_UNSPEC, which is 0.
    unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, c"".as_ptr().cast(), 0);
        libc::connect(stream.as_raw_fd(), address.as_ptr().cast(), 16);
        address[0] = u8::try_from(libc::AF_INET).unwrap();
        address[2..4].copy_from_slice(&to.port().to_be_bytes());
        address[4..8].copy_from_slice(&to.ip().octets());
        libc::connect(stream.as_raw_fd(), address.as_ptr().cast(), 16);
    }
}

/// One sends, stops itself, and is continued by the other, for ever.
fn duty(to: &Target) {
    // SAFETY: one thread.
    let child = unsafe { libc::fork() };
    if child > 0 {
        loop {
            std::thread::sleep(PAUSE);
            // SAFETY: kill(2) with integers.
            unsafe { libc::kill(child, libc::SIGCONT) };
        }
    }
    let mut stream = TcpStream::connect(to.tcp()).unwrap();
    let socket = UdpSocket::bind(to.any()).unwrap();
    loop {
        let _ = stream.write_all(b"d");
        let _ = socket.send_to(b"d", to.udp());
        // SAFETY: integers.
        unsafe { libc::raise(libc::SIGSTOP) };
    }
}

/// The connections are in flight between two ends of a socket pair, in nobody's descriptor table, nearly all of the time.
pub fn in_flight(to: &Target) {
    let mut pair = [0; 2];
    // SAFETY: socketpair(2) fills two descriptors.
    unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, pair.as_mut_ptr()) };
    let stream: OwnedFd = TcpStream::connect(to.tcp()).unwrap().into();
    let socket = UdpSocket::bind(to.any()).unwrap();
    socket.connect(to.udp()).unwrap();
    pass(pair[0], &stream);
    pass(pair[0], &socket.into());
    drop(stream);
    loop {
        std::thread::sleep(PAUSE);
        let Some(fd) = take(pair[1]) else { continue };
        let byte = [b'i'];
        // SAFETY: send(2) reads one byte.
        unsafe { libc::send(fd.as_raw_fd(), byte.as_ptr().cast(), 1, libc::MSG_NOSIGNAL) };
        pass(pair[0], &fd);
    }
}

/// A descriptor that is in no table: sent over a pair of sockets, and not yet received.
pub struct Flight([i32; 2]);

impl Flight {
    pub fn new(fd: &OwnedFd) -> Self {
        let mut pair = [0; 2];
        // SAFETY: socketpair(2) fills two descriptors.
        unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, pair.as_mut_ptr()) };
        pass(pair[0], fd);
        Self(pair)
    }

    pub fn take(&self) -> Option<OwnedFd> {
        take(self.0[1])
    }
}

/// Queues 300 kB that leave at 20 kB/s, and hides the socket: `closed`; `flight`, in a message to itself; `mapped`, behind a mapping; `multipath`: an
/// MPTCP connection, closed. `late`: held, and opened after a while.
pub fn paced(to: &Target, how: &str) {
    if how == "late" {
        std::thread::sleep(Duration::from_millis(1200));
    }
    let address: std::net::SocketAddrV4 = to.tcp().parse().unwrap();
    let (rate, room) = (20_000u32, 4u32 << 20);
    // SAFETY: socket(2) and mmap(2) take integers, connect(2) reads one sockaddr_in, setsockopt(2) four bytes.
    let socket = unsafe {
        let protocol = if how == "multipath" { 262 } else { libc::IPPROTO_TCP };
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM, protocol);
        assert!(fd >= 0, "no socket");
        let mut name: libc::sockaddr_in = std::mem::zeroed();
        name.sin_family = u16::try_from(libc::AF_INET).unwrap();
        name.sin_port = address.port().to_be();
        name.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, (&raw const room).cast(), 4);
        let connected = libc::connect(fd, (&raw const name).cast(), 16);
        assert_eq!(connected, 0, "not connected");
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, (&raw const rate).cast(), 4);
        if how == "mapped" {
            let mapped = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
            assert_ne!(mapped, libc::MAP_FAILED);
        }
        OwnedFd::from_raw_fd(fd)
    };
    let mut stream = TcpStream::from(socket);
    stream.set_nonblocking(true).unwrap();
    let mut queued = 0;
    while let Ok(n) = stream.write(&[b'p'; 1000]) {
        queued += n;
        if queued >= 300_000 {
            break;
        }
    }
    println!("queued {queued}");
    let socket: OwnedFd = stream.into();
    match how {
        "flight" => {
            let _ = Flight::new(&socket);
            drop(socket);
        }
        "closed" | "mapped" | "multipath" => drop(socket),
        _ => std::mem::forget(socket),
    }
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[repr(C, align(8))]
struct Control([u8; 64]);

fn pass(over: i32, fd: &OwnedFd) {
    let mut control = Control([0; 64]);
    let (mut byte, one) = ([0u8; 1], size_of::<i32>());
    // SAFETY: the header and the data lie in `control`, which is large and aligned enough; sendmsg(2) reads them.
    unsafe {
        let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut iov, 1);
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(u32::try_from(one).unwrap()) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(u32::try_from(one).unwrap()) as _;
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(fd.as_raw_fd());
        libc::sendmsg(over, &raw const message, 0);
    }
}

fn take(over: i32) -> Option<OwnedFd> {
    let mut control = Control([0; 64]);
    let mut byte = [0u8; 1];
    // SAFETY: as in `pass`; the descriptor that comes back is ours alone.
    unsafe {
        let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut iov, 1);
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len() as _;
        if libc::recvmsg(over, &raw mut message, 0) < 0 {
            return None;
        }
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS {
            return None;
        }
        Some(OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<i32>().read_unaligned()))
    }
}

/// Datagrams with headers of its own making, through a raw and a packet socket (CAP_NET_RAW).
pub fn raw(to: &Target) {
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    probe.connect(to.udp()).unwrap();
    let std::net::IpAddr::V4(source) = probe.local_addr().unwrap().ip() else { panic!("no IPv4") };
    drop(probe);
    let destination: std::net::Ipv4Addr = to.address.parse().unwrap();
    let packet = datagram(source.octets(), destination.octets(), to.udp);
    // SAFETY: socket(2) and if_nametoindex(3) take integers and a string that ends in NUL.
    let (raw, cooked, eth0) = unsafe {
        (
            libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW),
            libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0),
            libc::if_nametoindex(c"eth0".as_ptr()),
        )
    };
    assert!(raw >= 0 && cooked >= 0 && eth0 > 0, "CAP_NET_RAW and eth0");
    let mut ip = [0u8; 16];
    ip[0] = u8::try_from(libc::AF_INET).unwrap();
    ip[4..8].copy_from_slice(&destination.octets());
    let mut link = [0u8; 20];
    link[0] = u8::try_from(libc::AF_PACKET).unwrap();
    link[2..4].copy_from_slice(&0x0800u16.to_be_bytes());
    link[4..8].copy_from_slice(&eth0.to_ne_bytes());
    link[11] = 6;
    link[12..18].fill(0xff);
    loop {
        for (fd, address) in [(raw, &ip[..]), (cooked, &link[..])] {
            let (at, length) = (address.as_ptr().cast(), u32::try_from(address.len()).unwrap());
            // SAFETY: sendto(2) reads the packet and `length` bytes of address.
            unsafe { libc::sendto(fd, packet.as_ptr().cast(), packet.len(), 0, at, length) };
        }
        std::thread::sleep(PAUSE);
    }
}

/// IPv4 and UDP headers and one byte (RFC 791, RFC 768; a UDP checksum of 0 is none).
fn datagram(source: [u8; 4], destination: [u8; 4], port: u16) -> [u8; 29] {
    let mut packet = [0u8; 29];
    packet[0] = 0x45;
    packet[3] = 29;
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&destination);
    let words = packet[..20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!u16::try_from(folded).unwrap()).to_be_bytes());
    packet[20..22].copy_from_slice(&4444u16.to_be_bytes());
    packet[22..24].copy_from_slice(&port.to_be_bytes());
    packet[25] = 9;
    packet[28] = b'r';
    packet
}

/// Connections to so many neighbours, none of them waited for.
pub fn call(network: &str, neighbours: u8) {
    for n in 1..=neighbours {
        let to: std::net::Ipv4Addr = format!("{network}.{n}").parse().unwrap();
        let mut address = [0u8; 16];
        address[0] = u8::try_from(libc::AF_INET).unwrap();
        address[2..4].copy_from_slice(&80u16.to_be_bytes());
        address[4..8].copy_from_slice(&to.octets());
        // SAFETY: socket(2) takes integers; connect(2) reads 16 bytes.
        unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0);
            libc::connect(fd, address.as_ptr().cast(), 16);
        }
    }
}

/// Writes to a file and forks, for ever; what is born says so by the time of `mark`, which takes neither a descriptor nor a byte.
pub fn meddle(file: &str, mark: &str) -> ! {
    let mut open = std::fs::File::options().append(true).create(true).open(file).unwrap();
    std::fs::write(mark, "").unwrap();
    let mark = std::ffi::CString::new(mark).unwrap();
    loop {
        let _ = open.write_all(b"m");
        if fork() {
            // SAFETY: the path ends in NUL; a null pointer means now (utimensat(2)); _exit(2) runs nothing.
            unsafe {
                libc::utimensat(libc::AT_FDCWD, mark.as_ptr(), std::ptr::null(), 0);
                libc::_exit(0);
            }
        }
        // SAFETY: waitpid(2) may be given no place for the status.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
        std::thread::sleep(PAUSE);
    }
}
