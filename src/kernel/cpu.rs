//! The CPU quota in force, and the CPU that is kept free for the supervisor under it.
//!
//! Everything is read before the fork. Invariant: without a quota nothing is changed.

use super::procfile;
use crate::switches::without;
use nix::errno::Errno;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// A CPU quota (CFS bandwidth control, cgroups(7)): what all processes of the cgroup may use together of each period. Who has used it
/// up does not run before the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quota {
    /// In thousandths of a CPU.
    pub milli: u64,
    /// The period.
    pub period: Duration,
}

/// What the quota calls for.
// There is one value in a run: its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, Copy)]
pub enum Share {
    /// No quota: nothing to do.
    Free,
    /// The quota is at least one CPU smaller than the allowed set: the workload keeps off the reserved one, at a lower
    /// priority as well.
    Reserved {
        /// What the workload may use.
        workload: libc::cpu_set_t,
        /// What the supervisor moves to.
        supervisor: libc::cpu_set_t,
    },
    /// The quota leaves no CPU to spare: the workload's priority is lowered.
    Tight,
}

impl Share {
    /// Reads the quota and the allowed CPUs.
    #[must_use]
    pub fn read() -> Self {
        quota().map_or(Self::Free, |quota| allowed().map_or(Self::Tight, |set| Self::decide(quota.milli, &set)))
    }

    fn decide(quota_milli: u64, set: &libc::cpu_set_t) -> Self {
        let size = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
        // SAFETY: CPU_ISSET only reads the set, and every index is below CPU_SETSIZE.
        let cpus = (0..size).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, set) });
        let (count, last) = cpus.fold((0u64, 0), |(n, _), cpu| (n + 1, cpu));
        if count < 2 || quota_milli.saturating_add(1000) > count * 1000 {
            return Self::Tight;
        }
        let mut workload = *set;
        // SAFETY: cpu_set_t is a plain bit array, for which all zeros is the empty set.
        let mut supervisor: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: `last` is below CPU_SETSIZE, found above.
        unsafe {
            libc::CPU_CLR(last, &mut workload);
            libc::CPU_SET(last, &mut supervisor);
        }
        Self::Reserved { workload, supervisor }
    }
}

/// Binds a thread, 0 for this one, to `set` (sched_setaffinity(2)); async-signal-safe.
///
/// # Errors
/// The errno of `sched_setaffinity(2)`.
pub fn bind(thread: i32, set: &libc::cpu_set_t) -> Result<(), Errno> {
    // SAFETY: reads one cpu_set_t of the size given.
    Errno::result(unsafe { libc::sched_setaffinity(thread, size_of::<libc::cpu_set_t>(), set) }).map(drop)
}

/// Lowers this process's priority to the lowest there is, 19 (setpriority(2)); async-signal-safe.
///
/// With a CPU of its own the supervisor still needs this. The kernel divides a cgroup's weight among the CPUs by the weight of
/// what runs on each, so beside 200 busy processes of its own priority the supervisor's CPU gets one part in 201, and where
/// other cgroups are busy on it too, no turn for seconds. At 19 a process weighs 15 where the supervisor weighs 1024 (sched(7)).
/// Against other cgroups the whole one weighs the same as before: the workload loses nothing to them.
///
/// # Errors
/// The errno of `setpriority(2)`.
pub fn lower_priority() -> Result<(), Errno> {
    if without("workload_priority") {
        return Err(Errno::ECANCELED);
    }
    // SAFETY: takes three integers; `who` 0 is the caller.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) }).map(drop)
}

fn allowed() -> Option<libc::cpu_set_t> {
    // SAFETY: cpu_set_t is a plain bit array, for which all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: writes at most one cpu_set_t of the size given.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    (result == 0).then_some(set)
}

/// How much CPU there is, in thousandths of one: the quota, or the allowed CPUs where they are fewer.
#[must_use]
pub fn available() -> u64 {
    let cpus = allowed().map_or(1, |set| {
        // SAFETY: CPU_COUNT only reads the set.
        u64::try_from(unsafe { libc::CPU_COUNT(&set) }).unwrap_or(1)
    });
    quota().map_or(u64::MAX, |quota| quota.milli).min(cpus.saturating_mul(1000))
}

/// The quota in force, read once: the container's, which a workload cannot change.
pub fn quota() -> Option<Quota> {
    static QUOTA: OnceLock<Option<Quota>> = OnceLock::new();
    *QUOTA.get_or_init(|| tightest(procfile::own_cgroup()?, Path::new("/sys/fs/cgroup")))
}

/// The tightest quota along the visible path (cgroups(7)).
fn tightest(own: &str, mount: &Path) -> Option<Quota> {
    let mut found = None::<Quota>;
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (roots, limit): (Vec<PathBuf>, Limit) = if controllers.is_empty() {
            (vec![mount.to_path_buf()], limit_v2)
        } else if controllers.split(',').any(|c| c == "cpu") {
            (vec![mount.join(controllers), mount.join("cpu")], limit_v1)
        } else {
            continue;
        };
        for root in roots {
            // A path that is not visible here (no cgroup namespace) simply gives no files until the mount's root.
            let along = Path::new(path.trim_start_matches('/')).ancestors().map(|dir| limit(&root.join(dir)));
            let seen: Vec<Option<Quota>> = along.flatten().collect();
            found = found.into_iter().chain(seen.iter().copied().flatten()).min();
            if !seen.is_empty() {
                // The second name, where there is one, is a link to the first.
                break;
            }
        }
    }
    found
}

/// What one directory says: nothing, no limit, or a limit.
type Limit = fn(&Path) -> Option<Option<Quota>>;

fn limit_v2(dir: &Path) -> Option<Option<Quota>> {
    let line = procfile::text(&dir.join("cpu.max"))?;
    let mut words = line.split_whitespace();
    Some(in_microseconds(words.next(), words.next()))
}

fn limit_v1(dir: &Path) -> Option<Option<Quota>> {
    let quota = procfile::text(&dir.join("cpu.cfs_quota_us"))?;
    if quota.starts_with('-') {
        return Some(None);
    }
    Some(in_microseconds(Some(&quota), procfile::text(&dir.join("cpu.cfs_period_us")).as_deref()))
}

/// "max" (v2) and "-1" (v1) are no quota.
fn in_microseconds(quota: Option<&str>, period: Option<&str>) -> Option<Quota> {
    let quota: u64 = quota?.trim().parse().ok()?;
    let period: u64 = period?.trim().parse().ok()?;
    Some(Quota { milli: quota.checked_mul(1000)?.checked_div(period)?, period: Duration::from_micros(period) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(cpus: &[usize]) -> libc::cpu_set_t {
        // SAFETY: all zeros is the empty set; the indices are small.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            cpus.iter().for_each(|&cpu| libc::CPU_SET(cpu, &mut set));
            set
        }
    }

    #[test]
    fn one_cpu_is_kept_where_the_quota_leaves_one() {
        let Share::Reserved { workload, supervisor } = Share::decide(1000, &set(&[1, 5])) else {
            panic!("not reserved")
        };
        assert!(workload == set(&[1]) && supervisor == set(&[5]));
        assert!(matches!(Share::decide(1001, &set(&[1, 5])), Share::Tight));
        assert!(matches!(Share::decide(200, &set(&[3])), Share::Tight));
    }

    #[test]
    fn the_tightest_quota_along_the_path_counts() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        assert_eq!(tightest("0::/a/b\n", dir.path()), None);
        std::fs::write(deep.join("cpu.max"), "max 100000\n").unwrap();
        assert_eq!(tightest("0::/a/b\n", dir.path()), None);
        std::fs::write(dir.path().join("a/cpu.max"), "50000 100000\n").unwrap();
        let quota = |milli, ms| Some(Quota { milli, period: Duration::from_millis(ms) });
        assert_eq!(tightest("0::/a/b\n", dir.path()), quota(500, 100));
        let v1 = dir.path().join("cpu,cpuacct");
        std::fs::create_dir_all(&v1).unwrap();
        std::fs::write(v1.join("cpu.cfs_quota_us"), "20000\n").unwrap();
        std::fs::write(v1.join("cpu.cfs_period_us"), "50000\n").unwrap();
        assert_eq!(tightest("3:cpu,cpuacct:/docker/x\n0::/a/b\n", dir.path()), quota(400, 50));
    }

    #[test]
    fn no_cgroup_file_panics() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cpu.max"), "20000 100000\n").unwrap();
        proptest::proptest!(|(own in crate::corpus::mutated("cgroup"), max in crate::corpus::mutated("memory-stat"))| {
            std::fs::write(dir.path().join("cpu.max"), max).unwrap();
            let _ = tightest(&String::from_utf8_lossy(&own), dir.path());
        });
        // A period of nothing divides nothing.
        std::fs::write(dir.path().join("cpu.max"), "20000 0\n").unwrap();
        assert_eq!(tightest("0::/\n", dir.path()), None);
    }
}
