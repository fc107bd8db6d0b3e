//! Random bytes from the kernel (getrandom(2), Linux 3.17).

/// Fills `bytes`; whether the kernel did.
#[must_use]
pub fn fill(bytes: &mut [u8]) -> bool {
    // SAFETY: getrandom(2) writes at most `bytes.len()` bytes into the slice. GRND_NONBLOCK: never wait for entropy.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    usize::try_from(n) == Ok(bytes.len())
}
