//! A write that does not wait, on a descriptor that others share: `pwritev2(2)` with RWF_NOWAIT. Switching such a
//! descriptor to O_NONBLOCK would reach everybody who writes to it.
//!
//! It decides nothing: where the kernel cannot (before 4.16, and for pipes before 6.4), it says EOPNOTSUPP.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd as _};

/// Writes what fits now, at the descriptor's own position.
///
/// # Errors
/// EAGAIN where nothing fits, EOPNOTSUPP where it cannot be asked, or what the write answered.
pub fn write_now(fd: impl AsFd, bytes: &[u8]) -> Result<usize, Errno> {
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let here: libc::c_long = -1;
    let fd = fd.as_fd();
    // SAFETY: the kernel reads one iovec at `&part` and the bytes it describes, all of which outlive the call, and
    // writes to neither; the borrowed descriptor is open throughout. Position -1 is the current one (pwritev2(2)).
    let written = unsafe {
        libc::syscall(libc::SYS_pwritev2, fd.as_raw_fd(), &raw const part, 1_usize, here, here, libc::RWF_NOWAIT)
    };
    usize::try_from(written).map_err(|_| Errno::last())
}
