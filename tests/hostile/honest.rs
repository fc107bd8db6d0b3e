//! What honest programs do in their grace, and what looks like it and is none.

use super::grace::{fork, wait_for_term};
use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// A connection over loopback, accepted; reset where asked.
fn converse(listener: &TcpListener, reset: bool) {
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let _accepted = listener.accept().unwrap();
    if reset {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let size = u32::try_from(std::mem::size_of::<libc::linger>()).unwrap();
        // SAFETY: setsockopt(2) reads `size` bytes.
        unsafe {
            libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size);
        }
    }
}

/// A connection over loopback whose other end has closed before this one sends and closes: it is answered with a reset, and nothing
/// that was open is broken by it.
fn late(listener: &TcpListener) {
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    drop(listener.accept().unwrap());
    // MSG_MORE keeps it until the end.
    let flags = libc::MSG_MORE | libc::MSG_NOSIGNAL;
    // SAFETY: send(2) reads one byte.
    unsafe { libc::send(stream.as_raw_fd(), c"x".as_ptr().cast(), 1, flags) };
}

/// Fifty packets on loopback that are no connection.
fn chat() {
    let to = UdpSocket::bind("127.0.0.1:0").unwrap();
    let from = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..50 {
        from.send_to(b"x", to.local_addr().unwrap()).unwrap();
        to.recv(&mut [0; 8]).unwrap();
    }
}

fn memory(bytes: usize) -> Vec<u8> {
    let mut block = vec![1u8; bytes];
    block.iter_mut().step_by(4096).for_each(|b| *b = 2);
    block
}

/// Those but `converse` and `hide` wait for SIGTERM, do what they do, and end by themselves.
pub fn run(kind: &str, address: &str, port: &str) -> ! {
    let nap = |ms| std::thread::sleep(Duration::from_millis(ms));
    match kind {
        // One connection over loopback as soon as there is a loopback, or one to somebody who never answers.
        "converse" => {
            let listener = loop {
                if let Ok(listener) = TcpListener::bind("127.0.0.1:0")
                    && TcpStream::connect(listener.local_addr().unwrap()).is_ok()
                {
                    break listener;
                }
                nap(5);
            };
            if !address.is_empty() {
                super::senders::call(address, 1);
            }
            wait_for_term();
            drop(listener);
        }
        // Sixty measurements, a datagram each, for one peer that says nothing.
        "metrics" => {
            wait_for_term();
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for n in 0..60 {
                let _ = socket.send_to(format!("metric:{n}|c").as_bytes(), format!("{address}:{port}"));
                nap(2);
            }
        }
        // 300 kB for a peer, and sixty connections over loopback.
        "upload" => {
            let mut stream = TcpStream::connect(format!("{address}:{port}")).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            wait_for_term();
            stream.write_all(&vec![7; 300_000]).unwrap();
            for _ in 0..60 {
                converse(&listener, false);
            }
        }
        // 220 threads, each with a short task.
        "pool" => {
            wait_for_term();
            let small = || std::thread::Builder::new().stack_size(64 << 10);
            let pool: Vec<_> =
                (0..220).map(|_| small().spawn(|| std::thread::sleep(Duration::from_millis(500))).unwrap()).collect();
            pool.into_iter().for_each(|thread| thread.join().unwrap());
        }
        // Six processes one after another, each needs 60 MB for a moment.
        "helpers" => {
            wait_for_term();
            for _ in 0..6 {
                if fork() {
                    nap(150);
                    let block = memory(60_000_000);
                    nap(150);
                    std::process::exit(i32::from(block.is_empty()));
                }
                // SAFETY: wait(2) may be given null.
                unsafe { libc::wait(std::ptr::null_mut()) };
            }
        }
        // None of it honest: the ports of a peer, each beside a connection over loopback that is reset, and other packets there.
        "hide" => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            wait_for_term();
            for port in 1..4_000u16 {
                chat();
                converse(&listener, true);
                let to = format!("{address}:{port}").parse().unwrap();
                let _ = TcpStream::connect_timeout(&to, Duration::from_millis(2));
            }
        }
        // A scan, each port beside a connection over loopback whose reset breaks nothing.
        "excuse" => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            wait_for_term();
            for port in 20_000..21_000u16 {
                late(&listener);
                let to = format!("{address}:{port}").parse().unwrap();
                let _ = TcpStream::connect_timeout(&to, Duration::from_millis(2));
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        _ => std::process::exit(2),
    }
    // What was done is looked at once more.
    nap(200);
    std::process::exit(0);
}
