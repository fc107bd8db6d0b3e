//! What runs before `main`. In the binary and not in the library: whoever links the library keeps its signals.
#![allow(unsafe_code)]

extern "C" fn block_signals() {
    gracekeeper::kernel::signals::block_all();
    // With an action of their own the standard library leaves these two alone. Its handler, which could only say that a stack was too
    // small, and which never runs while they are blocked, gives each thread a stack of its own for it, and one whose memory is refused
    // panics: a scrub that lacks a page must not end the run. A fault is the end as before: the kernel takes SIG_DFL for it where it
    // is blocked or ignored, and one that is blocked is no less heard of by a signalfd(2).
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: SIG_IGN is no function.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // A parent that ignores it leaves that to us (execve(2)); then the kernel reaps for us, and nobody knows how the command ended.
    // SAFETY: SIG_DFL is no function.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // One heap for all threads (mallopt(3)): the few that there are at the end, for the scrub and an fsync, would each map 64 MiB
    // of their own, and give them back, for a handful of small blocks.
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two integers; no other thread is there yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

// The window in which PID 1 would lose a TERM is the kernel's exec and libc's start, some tens of microseconds.
// SAFETY: `.init_array` holds `extern "C" fn()` pointers that libc calls once, single-threaded, before main (the ELF
// gABI, "Initialization and Termination Functions"); `block_signals` has that type and needs nothing of std's runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static BLOCK_SIGNALS: extern "C" fn() = block_signals;

/// The standard library asks at start-up where the main thread's stack ends, to be able to name a stack overflow. glibc answers by
/// parsing /proc/self/maps with sscanf(3): five system calls, and 40 KB that nothing else here needs. A failure is an answer that
/// it takes for "unknown".
#[cfg(target_env = "gnu")]
#[unsafe(no_mangle)]
extern "C" fn pthread_getattr_np(_thread: libc::pthread_t, _attributes: *mut libc::pthread_attr_t) -> libc::c_int {
    libc::ENOSYS
}
