//! Attacks on what the grace promises: each ignores SIGTERM, says nothing, and goes on for as long as it is let.

use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn asked(_: libc::c_int) {
    ASKED.store(true, Ordering::SeqCst);
}

/// Sleeps until SIGTERM comes, which ends nothing.
fn wait_for_term() {
    while !ASKED.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn fork() -> bool {
    // SAFETY: no other thread runs where this is called.
    unsafe { libc::fork() == 0 }
}

/// Runs the attack; returns only where there is none of that name.
pub fn run(words: &[String]) {
    let word = |n: usize| words.get(n).map_or("", String::as_str);
    let number = |n: usize| word(n).parse::<u64>().unwrap();
    // SAFETY: the handler only stores to an atomic.
    unsafe {
        libc::signal(libc::SIGTERM, asked as *const () as libc::sighandler_t);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
    let pause = Duration::from_millis(5);
    match word(0) {
        // trickle ADDRESS TCP UDP FILE: sends over both for ever, re-connects, and a child and threads do so as well.
        "trickle" => {
            if word(5) == "undumpable" {
                // SAFETY: prctl(2) with integers.
                unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
            }
            fork();
            let tcp = format!("{}:{}", word(1), word(2));
            let udp = format!("{}:{}", word(1), word(3));
            let file = word(4).to_owned();
            std::thread::spawn(move || {
                loop {
                    if let Ok(mut stream) = TcpStream::connect(&tcp) {
                        while stream.write_all(b"t").is_ok() {
                            std::thread::sleep(pause);
                        }
                    }
                    std::thread::sleep(pause);
                }
            });
            std::thread::spawn(move || {
                let mut open = std::fs::File::create(file).unwrap();
                loop {
                    let _ = open.write_all(b"x");
                    std::thread::sleep(pause);
                }
            });
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            loop {
                // What undoes SO_BINDTODEVICE, should that be all that holds it.
                // SAFETY: connect(2) reads 16 bytes.
                unsafe { libc::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), [0u8; 16].as_ptr().cast(), 16) };
                let _ = socket.send_to(b"u", &udp);
                std::thread::sleep(pause);
            }
        }
        // exfiltrate ADDRESS TCP BYTES: on SIGTERM sends so many bytes as fast as it can.
        "exfiltrate" => {
            wait_for_term();
            let mut stream = TcpStream::connect(format!("{}:{}", word(1), word(2))).unwrap();
            let piece = vec![7u8; 65536];
            let mut left = number(3);
            while left > 0 {
                let n = left.min(65536);
                if stream.write_all(&piece[..usize::try_from(n).unwrap()]).is_err() {
                    break;
                }
                left -= n;
                if word(4) == "slowly" {
                    std::thread::sleep(pause);
                }
            }
            if word(4) == "slowly" {
                std::process::exit(0);
            }
        }
        // scan ADDRESS: on SIGTERM tries many ports.
        "scan" => {
            wait_for_term();
            for port in 1..4_000u16 {
                let address = format!("{}:{port}", word(1)).parse().unwrap();
                let _ = TcpStream::connect_timeout(&address, Duration::from_millis(2));
            }
        }
        "listen" => {
            wait_for_term();
            let _listener = TcpListener::bind("0.0.0.0:0").unwrap();
            std::thread::sleep(Duration::from_secs(600));
        }
        // burn PROCESSES: all of the CPU, for ever.
        "burn" => {
            for _ in 1..number(1) {
                if fork() {
                    break;
                }
            }
            loop {
                std::hint::spin_loop();
            }
        }
        // grow MIB-PER-10MS: on SIGTERM takes memory, up to 1 GiB.
        "grow" => {
            wait_for_term();
            let mut kept = Vec::new();
            for _ in 0..1024 / number(1) {
                let mut block = vec![1u8; usize::try_from(number(1)).unwrap() << 20];
                block.iter_mut().step_by(4096).for_each(|b| *b = 2);
                kept.push(block);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // forks NOW ON-TERM: double-forked children that ignore SIGTERM.
        "forks" => {
            let bear = |count: u64| {
                for _ in 0..count {
                    if fork() {
                        if fork() {
                            std::thread::sleep(Duration::from_secs(600));
                        }
                        std::process::exit(0);
                    }
                }
            };
            bear(number(1));
            wait_for_term();
            bear(number(2));
        }
        // bomb: forks without end.
        "bomb" => loop {
            fork();
        },
        _ => return,
    }
    std::thread::sleep(Duration::from_secs(600));
}
