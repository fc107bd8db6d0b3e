//! Who is in the way and has nothing to do with it, and a workload whose numbers become theirs.

use super::Tried;

/// A child, or nobody.
fn fork() -> i32 {
    // SAFETY: one thread.
    unsafe { libc::fork() }
}

fn nap(micros: u32) {
    // SAFETY: takes an integer.
    unsafe { libc::usleep(micros) };
}

fn exit() -> ! {
    // SAFETY: ends this process.
    unsafe { libc::_exit(0) }
}

/// Waits for a child to its end, and says what was done to it.
fn watch(child: i32, who: &str) {
    let mut status = 0;
    // SAFETY: waitpid writes one int.
    while unsafe { libc::waitpid(child, &raw mut status, libc::WUNTRACED) } == child {
        if libc::WIFSTOPPED(status) {
            println!("innocent {who} stopped");
            // SAFETY: takes two integers, and the child is not reaped.
            unsafe { libc::kill(child, libc::SIGCONT) };
            continue;
        }
        if libc::WIFSIGNALED(status) {
            println!("innocent {who} killed by {}", libc::WTERMSIG(status));
        }
        return;
    }
}

/// Has a child that has a child, one after the other, and nobody has any business with them.
fn innocent() -> ! {
    loop {
        match fork() {
            0 => {
                match fork() {
                    0 => {
                        nap(15_000);
                        exit();
                    }
                    child if child > 0 => watch(child, "grandchild"),
                    _ => {}
                }
                exit();
            }
            child if child > 0 => watch(child, "child"),
            // Not one number is free.
            _ => nap(200),
        }
    }
}

/// Takes all numbers but a few, and gives those back and takes them again: nobody waits for who had them.
fn flicker(held: usize, flickering: u32) -> ! {
    for signal in [libc::SIGTERM, libc::SIGCHLD] {
        // SAFETY: SIG_IGN installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    for n in 0..flickering {
        if fork() == 0 {
            // Any sequence will do, as long as each has its own (Knuth's 64-bit generator).
            let mut state = u64::from(n) + 1;
            let mut below = |most: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                u32::try_from((state >> 33) % most).unwrap_or(0)
            };
            loop {
                let (life, pause) = (below(3000), below(6000));
                if fork() == 0 {
                    nap(life);
                    exit();
                }
                nap(pause);
            }
        }
    }
    for _ in 0..held {
        if fork() == 0 {
            break;
        }
    }
    loop {
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
    }
}

pub fn attack(name: &str, args: &[String]) -> Option<Tried> {
    let number = |at: usize| args.get(at).and_then(|arg| arg.parse().ok()).unwrap_or(0u32);
    match name {
        "innocent" => innocent(),
        // flicker HELD FLICKERING
        "flicker" => flicker(number(0) as usize, number(1)),
        _ => None,
    }
}
