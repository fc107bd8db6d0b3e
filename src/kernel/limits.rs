//! What a child takes from itself before exec: one call each, async-signal-safe, no allocation.

use super::spawn::above;
use nix::errno::Errno;
use std::os::fd::RawFd;

/// Sets soft and hard limit (setrlimit(2)); as far as the hard limit in force allows.
///
/// # Errors
/// The errno of `setrlimit(2)`.
pub fn set(resource: libc::__rlimit_resource_t, value: u64) -> Result<(), Errno> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one struct rlimit, which `now` is.
    Errno::result(unsafe { libc::getrlimit(resource, &raw mut now) })?;
    let value = value.min(now.rlim_max);
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: setrlimit(2) reads one struct rlimit.
    Errno::result(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// Lowers both limits of another process to 0 (prlimit(2)); it needs the same UID, or CAP_SYS_RESOURCE, and no more.
///
/// # Errors
/// The errno of `prlimit(2)`.
pub fn take_away(pid: i32, resource: libc::__rlimit_resource_t) -> Result<(), Errno> {
    let nothing = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: prlimit(2) reads one struct rlimit; the old one is not asked for.
    Errno::result(unsafe { libc::prlimit(pid, resource, &raw const nothing, std::ptr::null_mut()) }).map(drop)
}

/// Whether RLIMIT_NPROC does not bind our UID: that of the machine's UID 0 (setrlimit(2), user_namespaces(7)).
#[must_use]
pub fn nproc_does_not_bind() -> bool {
    if !nix::unistd::geteuid().is_root() {
        return false;
    }
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut first = map.split_ascii_whitespace();
    // Unreadable is taken for the worse.
    first.next().is_none_or(|inside| inside == "0") && first.next().is_none_or(|outside| outside == "0")
}

/// The effective capabilities of this process, a bit for each (capget(2), capabilities(7)); none where they cannot be asked.
#[must_use]
pub fn capabilities() -> u64 {
    /// _LINUX_CAPABILITY_VERSION_3: two words for each set (Linux 2.6.26).
    const VERSION: u32 = 0x2008_0522;
    // struct __user_cap_header_struct: version, pid (0: the caller); two of struct __user_cap_data_struct: effective, permitted,
    // inheritable.
    let mut header = [VERSION, 0];
    let mut data = [[0u32; 3]; 2];
    // SAFETY: capget(2) reads and writes the header and writes two structs of three words, which is what the arrays are.
    let result = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) };
    let [[low, ..], [high, ..]] = data;
    if result == 0 { u64::from(low) | u64::from(high) << 32 } else { 0 }
}

/// Whether this process may mount (CAP_SYS_ADMIN), and so may what it starts.
#[must_use]
pub fn may_mount() -> bool {
    const SYS_ADMIN: u32 = 21;
    capabilities() >> SYS_ADMIN & 1 == 1
}

/// Whether this process, or what it starts, has CAP_NET_RAW or can come by it: the bounding set limits what an executable file gives
/// (capabilities(7)). What cannot be asked is taken for the worse.
#[must_use]
pub fn net_raw_is_in_reach() -> bool {
    const NET_RAW: u32 = 13;
    // SAFETY: PR_CAPBSET_READ takes integers.
    capabilities() >> NET_RAW & 1 == 1 || unsafe { libc::prctl(libc::PR_CAPBSET_READ, NET_RAW, 0, 0, 0) } != 0
}

/// Every signal but `but` back to its default disposition (sigaction(2)); the reserved ones answer EINVAL, which is right.
pub fn default_dispositions(but: Option<i32>) {
    for signal in (1..=64).filter(|&signal| Some(signal) != but) {
        // SAFETY: SIG_DFL installs no handler; an invalid number only gives EINVAL.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Closes every descriptor above 2 but `keep`, which must be sorted (close_range(2), Linux 5.9; else one by one).
///
/// # Errors
/// The errno of `close_range(2)` where the loop had to stop at a bound.
pub fn close_others(keep: &[RawFd]) -> Result<(), Errno> {
    let mut from: libc::c_uint = 3;
    let mut result = Ok(());
    for &fd in keep {
        let Ok(fd) = libc::c_uint::try_from(fd) else { continue };
        if fd > from {
            result = result.and(close_range(from, fd.saturating_sub(1)));
        }
        from = from.max(fd.saturating_add(1));
    }
    result.and(close_range(from, libc::c_uint::MAX))
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: close_range(2) takes three integers; closing descriptors of the forked child affects nobody else.
    match Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) }) {
        Ok(_) => Ok(()),
        Err(Errno::ENOSYS) => {
            // gVisor and old seccomp profiles. The table cannot be larger than the hard limit that was in force.
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: getrlimit(2) writes one struct rlimit.
            Errno::result(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
            let end = last.min(libc::c_uint::try_from(limit.rlim_max).unwrap_or(1 << 20)).min(1 << 20);
            for fd in first..=end {
                above::close(fd);
            }
            if limit.rlim_max > 1 << 20 && last > 1 << 20 { Err(Errno::ENOSYS) } else { Ok(()) }
        }
        Err(errno) => Err(errno),
    }
}

/// The OOM killer takes this process and its children first (proc_pid_oom_score_adj(5)); raising needs no privilege.
///
/// # Errors
/// The errno of `open(2)` or `write(2)`.
pub fn oom_first() -> Result<(), Errno> {
    let file = nix::fcntl::open(
        c"/proc/self/oom_score_adj",
        nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )?;
    nix::unistd::write(&file, b"1000").map(drop)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_capabilities_are_those_of_proc() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        assert_eq!(super::capabilities(), u64::from_str_radix(effective.trim(), 16).unwrap());
    }
}
