//! Attacks on what the grace promises: each ignores SIGTERM, says nothing, and goes on for as long as it is let.

use super::{honest, senders};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn asked(_: libc::c_int) {
    ASKED.store(true, Ordering::SeqCst);
}

/// Sleeps until SIGTERM comes, which ends nothing.
pub fn wait_for_term() {
    while !ASKED.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn fork() -> bool {
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
        // trickle|in-flight|paced|raw ADDRESS TCP UDP FILE HOW: sends for ever.
        kind @ ("trickle" | "in-flight" | "paced" | "raw") => {
            let port = |n| u16::try_from(number(n)).unwrap();
            let to = senders::Target { address: word(1).to_owned(), tcp: port(2), udp: port(3) };
            match kind {
                "trickle" => senders::trickle(to, word(4).to_owned(), word(5)),
                "in-flight" => senders::in_flight(&to),
                "paced" => senders::paced(&to, word(5)),
                _ => senders::raw(&to),
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
        // meddle FILE MARK
        "meddle" => senders::meddle(word(1), word(2)),
        "sleep" => wait_for_term(),
        "born-late" => super::woken::born_late(word(1), number(2)),
        "fork-past" => super::woken::fork_past(),
        "loopback" => super::woken::loopback(),
        // scan NETWORK wide: on SIGTERM calls thirty neighbours at once and waits for all of them.
        "scan" if word(2) == "wide" => {
            wait_for_term();
            senders::call(word(1), 30);
        }
        // scan ADDRESS: on SIGTERM tries many ports.
        "scan" => {
            wait_for_term();
            for port in 1..4_000u16 {
                let address = format!("{}:{port}", word(1)).parse().unwrap();
                let _ = TcpStream::connect_timeout(&address, Duration::from_millis(2));
            }
        }
        // listen HOW: `local` on loopback only, `undumpable` hides its descriptors, `in-flight` keeps the listener between two sockets,
        // `back` takes it out again after half a second.
        "listen" => {
            wait_for_term();
            if word(1) == "undumpable" {
                // SAFETY: prctl(2) with integers.
                unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
            }
            let address = if word(1) == "local" { "127.0.0.1:0" } else { "0.0.0.0:0" };
            let listener = TcpListener::bind(address).unwrap();
            if matches!(word(1), "in-flight" | "back") {
                let flight = senders::Flight::new(&listener.into());
                std::thread::sleep(Duration::from_millis(500));
                let _listener = (word(1) == "back").then(|| flight.take());
                std::thread::sleep(Duration::from_secs(600));
            }
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
        // cover MIB: on SIGTERM takes so much memory at once, and keeps it.
        "cover" => {
            wait_for_term();
            let mut held = vec![1u8; usize::try_from(number(1)).unwrap() << 20];
            loop {
                held.iter_mut().step_by(4096).for_each(|page| *page = page.wrapping_add(1));
                std::thread::sleep(Duration::from_millis(100));
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
        // honest KIND ADDRESS PORT
        "honest" => honest::run(word(1), word(2), word(3)),
        // bomb: forks without end.
        "bomb" => loop {
            fork();
        },
        _ => return,
    }
    std::thread::sleep(Duration::from_secs(600));
}
