//! What runs before `main`. In the binary and not in the library: whoever links the library keeps its signals.
#![allow(unsafe_code)]

extern "C" fn block_signals() {
    gracekeeper::kernel::signals::block_all();
}

// The window in which PID 1 would lose a TERM is the kernel's exec and libc's start, some tens of microseconds.
// SAFETY: `.init_array` holds `extern "C" fn()` pointers that libc calls once, single-threaded, before main (the ELF
// gABI, "Initialization and Termination Functions"); `block_signals` has that type and needs nothing of std's runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static BLOCK_SIGNALS: extern "C" fn() = block_signals;
