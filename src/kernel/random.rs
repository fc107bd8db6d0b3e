//! Random bytes from the kernel: `getrandom(2)`, which needs no file and so works in an empty image.
//!
//! It decides nothing; a kernel that refuses is reported.

use nix::errno::Errno;

/// Sixteen random bytes. Short reads cannot happen below 256 bytes once the pool is initialised (getrandom(2)).
///
/// # Errors
/// What the kernel answered, e.g. `EAGAIN` where its pool is not initialised yet, `ENOSYS` under an old filter.
pub fn sixteen_bytes() -> Result<[u8; 16], Errno> {
    let mut bytes = [0_u8; 16];
    // SAFETY: getrandom writes at most `len` bytes to `buf`; both describe the live local array.
    let read = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    match usize::try_from(read) {
        Ok(read) if read == bytes.len() => Ok(bytes),
        Ok(_) => Err(Errno::EAGAIN),
        Err(_) => Err(Errno::last()),
    }
}
