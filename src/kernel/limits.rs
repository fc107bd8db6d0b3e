//! What a child takes from itself before exec: one call each, async-signal-safe, no allocation.

use super::spawn::above;
use nix::errno::Errno;
use std::os::fd::RawFd;

/// Sets soft and hard limit (setrlimit(2)); as far as the hard limit in force allows.
///
/// # Errors
/// The errno of `setrlimit(2)`.
pub fn set(resource: libc::__rlimit_resource_t, value: u64) -> Result<(), Errno> {
    let value = value.min(own(resource)?.rlim_max);
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

/// Why limits do not bind what we start, if they do not (setrlimit(2), capabilities(7)): CAP_SYS_RESOURCE raises each of them again, and
/// RLIMIT_NPROC does not bind UID 0 nor CAP_SYS_ADMIN; all of it the machine's own, not a user namespace's (user_namespaces(7)).
///
/// One look at ourselves is enough: under `no_new_privs` what we start has no more than we may have.
#[must_use]
pub fn unbound() -> Option<&'static str> {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    unbound_by(nix::unistd::geteuid().is_root(), both_capabilities().1, &map)
}

fn unbound_by(root: bool, permitted: u64, map: &str) -> Option<&'static str> {
    const SYS_RESOURCE: u32 = 24;
    let mut first = map.split_ascii_whitespace();
    let (inside, outside) = (first.next(), first.next());
    // Unreadable is taken for the worse.
    if inside != outside {
        return None;
    }
    let has = |number: u32| permitted >> number & 1 == 1;
    if root && inside.is_none_or(|inside| inside == "0") {
        Some("RLIMIT_NPROC does not bind UID 0")
    } else if has(SYS_RESOURCE) {
        Some("no limit binds a holder of CAP_SYS_RESOURCE")
    } else if has(SYS_ADMIN) {
        Some("RLIMIT_NPROC does not bind a holder of CAP_SYS_ADMIN")
    } else {
        None
    }
}

/// Our own RLIMIT_FSIZE and RLIMIT_NOFILE, as they were before the workload ran. Whoever has our UID and is not under the filter can lower
/// them (prlimit(2)), and with them what is written into the record.
#[derive(Debug)]
pub struct Own([u64; 2]);

const OWN: [(libc::__rlimit_resource_t, &str); 2] = [
    (libc::RLIMIT_FSIZE, "our own RLIMIT_FSIZE was lowered"),
    (libc::RLIMIT_NOFILE, "our own RLIMIT_NOFILE was lowered"),
];

impl Own {
    /// What they are.
    #[must_use]
    pub fn remember() -> Self {
        // What cannot be asked is never taken for lowered.
        Self(OWN.map(|(resource, _)| own(resource).map_or(0, |limit| limit.rlim_cur)))
    }

    /// Raises what was lowered, as far as the hard limit lets us; what that was.
    pub fn restore(&self) -> impl Iterator<Item = &'static str> {
        OWN.iter().zip(self.0).filter_map(|(&(resource, what), was)| {
            let now = own(resource).ok().filter(|now| now.rlim_cur < was)?;
            // Beyond the hard limit with CAP_SYS_RESOURCE alone.
            for rlim_max in [now.rlim_max.max(was), now.rlim_max] {
                let limit = libc::rlimit { rlim_cur: was.min(rlim_max), rlim_max };
                // SAFETY: setrlimit(2) reads one struct rlimit.
                if unsafe { libc::setrlimit(resource, &raw const limit) } == 0 {
                    break;
                }
            }
            Some(what)
        })
    }
}

fn own(resource: libc::__rlimit_resource_t) -> Result<libc::rlimit, Errno> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one struct rlimit, which `now` is.
    Errno::result(unsafe { libc::getrlimit(resource, &raw mut now) }).map(|_| now)
}

const SYS_ADMIN: u32 = 21;

/// The effective capabilities of this process, a bit for each (capget(2), capabilities(7)); none where they cannot be asked.
#[must_use]
pub fn capabilities() -> u64 {
    both_capabilities().0
}

/// The effective and the permitted ones.
fn both_capabilities() -> (u64, u64) {
    /// _LINUX_CAPABILITY_VERSION_3: two words for each set (Linux 2.6.26).
    const VERSION: u32 = 0x2008_0522;
    // struct __user_cap_header_struct: version, pid (0: the caller); two of struct __user_cap_data_struct: effective, permitted,
    // inheritable.
    let mut header = [VERSION, 0];
    let mut data = [[0u32; 3]; 2];
    // SAFETY: capget(2) reads and writes the header and writes two structs of three words, which is what the arrays are.
    let result = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) };
    if result != 0 {
        return (0, 0);
    }
    let [[low, permitted, _], [high, permitted_high, _]] = data;
    let whole = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    (whole(low, high), whole(permitted, permitted_high))
}

/// Whether this process may mount (CAP_SYS_ADMIN), and so may what it starts.
#[must_use]
pub fn may_mount() -> bool {
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

/// The UIDs that this process and what it starts can make a socket under, or give it to; `None` for any UID, by CAP_SETUID or CAP_CHOWN.
/// Under `no_new_privs` no file gives another one, and an own user namespace maps no other without them (user_namespaces(7)).
#[must_use]
pub fn uids() -> Option<[u32; 3]> {
    const CHOWN: u32 = 0;
    const SETUID: u32 = 7;
    let permitted = both_capabilities().1;
    let own = nix::unistd::getresuid().ok().filter(|_| permitted & (1 << CHOWN | 1 << SETUID) == 0)?;
    Some([own.real, own.effective, own.saved].map(nix::unistd::Uid::as_raw))
}

/// Whether nobody under us can own a socket under another UID than ours: without a privilege, and `no_new_privs` gives nobody one.
#[must_use]
pub fn uid_is_fixed() -> bool {
    uids().is_some_and(|uids| !uids.contains(&0))
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
    fn whom_limits_do_not_bind() {
        use super::unbound_by;
        const MACHINE: &str = "         0          0 4294967295\n";
        const OTHER: &str = "         0     100000      65536\n";
        const ALL: u64 = u64::MAX;
        assert_eq!(unbound_by(false, 0, MACHINE), None);
        assert!(unbound_by(true, 0, MACHINE).is_some_and(|why| why.contains("UID 0")));
        assert!(unbound_by(true, 0, "").is_some(), "what cannot be read is taken for the worse");
        assert!(unbound_by(false, 1 << 24, MACHINE).is_some_and(|why| why.contains("SYS_RESOURCE")));
        assert!(unbound_by(false, 1 << 21, MACHINE).is_some_and(|why| why.contains("SYS_ADMIN")));
        assert_eq!(unbound_by(false, ALL & !(1 << 21 | 1 << 24), MACHINE), None);
        assert_eq!((unbound_by(true, ALL, OTHER), unbound_by(false, ALL, OTHER)), (None, None));
    }

    #[test]
    fn what_was_lowered_of_our_own_is_raised_again() {
        let own = super::Own::remember();
        assert_eq!(own.restore().count(), 0);
        let now = super::own(libc::RLIMIT_NOFILE).unwrap();
        let lower = libc::rlimit { rlim_cur: now.rlim_cur - 1, ..now };
        // SAFETY: setrlimit(2) reads one struct rlimit.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const lower) }, 0);
        assert_eq!(own.restore().collect::<Vec<_>>(), ["our own RLIMIT_NOFILE was lowered"]);
        assert_eq!(super::own(libc::RLIMIT_NOFILE).unwrap().rlim_cur, now.rlim_cur);
    }

    #[test]
    fn the_capabilities_are_those_of_proc() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        assert_eq!(super::capabilities(), u64::from_str_radix(effective.trim(), 16).unwrap());
    }
}
