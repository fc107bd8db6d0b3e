//! The supervisor's own memory: kept where the workload can take it, given back where nothing needs it.

use nix::errno::Errno;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Keeps our pages in memory (mlockall(2)): under a memory limit that the workload has filled, the kernel would take the
/// pages of our own code first, and each would cost a search on the way back. Later mappings stay free: locked ones would be
/// refused at RLIMIT_MEMLOCK.
///
/// # Errors
/// `ENOMEM` where RLIMIT_MEMLOCK is too small, `EPERM` where it is 0.
pub fn lock() -> Result<(), Errno> {
    // SAFETY: mlockall(2) takes one integer.
    Errno::result(unsafe { libc::mlockall(libc::MCL_CURRENT) }).map(drop)
}

/// What a worker of the scrub needs that only burrows: its stack, the kernel's part of a thread, and what it keeps of a tree's levels.
const ASIDE: usize = 512 * 1024;
static SET_ASIDE: AtomicUsize = AtomicUsize::new(0);

/// Sets memory aside (mmap(2), MAP_POPULATE) for when the workload has used up the limit.
///
/// # Errors
/// The errno of `mmap(2)`.
pub fn set_aside() -> Result<(), Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    // SAFETY: a new mapping where the kernel likes, which nothing ever reads or writes.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), ASIDE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    SET_ASIDE.store(at.addr(), Ordering::Relaxed);
    Ok(())
}

/// Gives it back, so that there is as much below the limit.
pub fn use_what_was_set_aside() {
    let at = SET_ASIDE.swap(0, Ordering::Relaxed);
    if at != 0 {
        // SAFETY: the mapping made above, of which there is no reference; only once, by the exchange.
        unsafe { libc::munmap(std::ptr::without_provenance_mut(at), ASIDE) };
    }
}

/// Gives the free pages of the heap back (malloc_trim(3)).
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes an integer.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives back the pages that the start needed and nothing needs any more: free heap (malloc_trim(3)) and the stack below this
/// call (madvise(2)). Hundreds of supervisors wait beside each other, and this is half of what each holds for itself. Locked
/// pages stay, which is what they are locked for.
#[inline(never)] // The frame in use has to be this one's.
pub fn give_back() {
    trim();
    /// More than the start ever used; the kernel keeps far more than this free below a stack (arch_pick_mmap_layout).
    const DEEPEST: usize = 128 * 1024;
    /// The start is the page below the one in use: what this call itself may still need stays.
    const PAGE: usize = 4096;
    let here = 0u8;
    let end = (&raw const here).addr() / PAGE * PAGE - PAGE;
    let start = std::ptr::without_provenance_mut(end - DEEPEST);
    // SAFETY: below the stack pointer and its red zone (128 bytes, System V ABI) lies nothing that is read again before it is
    // written. The range is inside the gap that the kernel leaves below the stack; what is not mapped there is skipped (ENOMEM).
    unsafe { libc::madvise(start, DEEPEST, libc::MADV_DONTNEED) };
}
