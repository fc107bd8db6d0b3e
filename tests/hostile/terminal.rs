//! Aimed at the terminal on stdin, which is the operator's.

use super::{Tried, sys};

pub fn attack(name: &str) -> Option<Tried> {
    Some(match name {
        // Types a command for whoever reads the terminal next.
        "tiocsti" => {
            let mut typed = Ok(());
            for byte in b"echo hija''cked\n" {
                // SAFETY: reads one byte.
                typed = typed.and(sys(unsafe { libc::ioctl(0, 0x5412, byte) }.into()).map(drop));
            }
            typed
        }
        // join-nice, join-kill: into its parent's group, which is of the same session, and then at "my own group".
        "join-nice" | "join-kill" => {
            // SAFETY: integers.
            let tried = unsafe {
                let parent = libc::getppid();
                let group = libc::getpgid(parent);
                let joined = sys(libc::setpgid(0, group).into());
                joined.and_then(|_| match name {
                    "join-nice" => sys(libc::setpriority(libc::PRIO_PGRP, 0, 5).into()),
                    _ => sys(libc::kill(0, libc::SIGWINCH).into()),
                })
            };
            tried.map(drop)
        }
        // Makes a letter the interrupt key, and its supervisor's group the one that it interrupts: what a terminal answers to a question is typed.
        "ctrl-c" => {
            // SAFETY: SIG_IGN is no handler, an all-zero termios is one, and the calls have a valid pointer to it.
            let armed = unsafe {
                libc::signal(libc::SIGTTOU, libc::SIG_IGN);
                libc::signal(libc::SIGTERM, libc::SIG_IGN);
                let mut termios: libc::termios = std::mem::zeroed();
                libc::tcgetattr(0, &raw mut termios);
                termios.c_cc[libc::VINTR] = b'c';
                termios.c_lflag |= libc::ISIG;
                libc::tcsetattr(0, libc::TCSANOW, &raw const termios)
                    .min(libc::tcsetpgrp(0, libc::getpgid(libc::getppid())))
            };
            println!("armed {armed}.");
            loop {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            }
        }
        // Leaves the terminal to a group that nobody is in any more.
        "foreground" => {
            // SAFETY: one thread; integers only.
            unsafe {
                libc::signal(libc::SIGTTOU, libc::SIG_IGN);
                let child = libc::fork();
                if child == 0 {
                    loop {
                        libc::pause();
                    }
                }
                let moved = libc::setpgid(child, child).min(libc::tcsetpgrp(0, child));
                let moved = sys(moved.into()).map(drop);
                libc::kill(child, libc::SIGKILL);
                moved
            }
        }
        // Stops the output of the terminal on stderr, and leaves it so; a word about it would wait for ever.
        "output-off" => {
            // SAFETY: integers.
            if let Err(errno) = sys(unsafe { libc::tcflow(2, libc::TCOOFF) }.into()) {
                return Some(Err(errno));
            }
            std::process::exit(10);
        }
        // Each letter becomes a capital, and no line ends at the left any more.
        "capitals" => {
            // SAFETY: an all-zero termios is one, and both calls have a valid pointer to it.
            let set = unsafe {
                let mut termios: libc::termios = std::mem::zeroed();
                libc::tcgetattr(2, &raw mut termios);
                termios.c_oflag = libc::OPOST | libc::OLCUC;
                libc::tcsetattr(2, libc::TCSANOW, &raw const termios)
            };
            sys(set.into()).map(drop)
        }
        _ => return None,
    })
}
