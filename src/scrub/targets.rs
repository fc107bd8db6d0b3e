//! Which paths are scrubbed, and why the others are not.

use crate::kernel::files;
use crate::kernel::limits;
use crate::kernel::mounts::{Mount, holder};
use nix::errno::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The container's own temporary directories.
pub const DEFAULTS: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// One path to scrub.
#[derive(Debug)]
pub struct Target {
    /// The path.
    pub path: PathBuf,
    /// Where it is opened from.
    pub source: Source,
    /// It is on a tmpfs, and nobody of the workload can mount anything over it: a look at it comes back at once.
    pub at_hand: bool,
    /// It is on a tmpfs that no other target is on and nobody else writes to: the space it gives back can be measured.
    pub own_tmpfs: bool,
}

/// Where a target's directory comes from.
#[derive(Debug)]
pub enum Source {
    /// Opened by its path when the scrub begins.
    Path,
    /// Opened before the workload ran (the private TMPDIR), and removed itself at the end.
    Private(OwnedFd),
    /// Not scrubbed, for this reason.
    Skipped(&'static str),
}

/// The targets of a run. Looked up before the spawn, when the paths are still what the image or the operator made them.
#[must_use]
pub fn resolve(
    named: &[PathBuf],
    pid1: bool,
    private: Option<(PathBuf, OwnedFd)>,
    mounts: Option<&[Mount]>,
) -> Vec<Target> {
    let mut targets = Vec::new();
    // First, so that a budget used up elsewhere does not leave the run's own directory on somebody's machine.
    if let Some((path, fd)) = private {
        targets.push(Target { path, source: Source::Private(fd), at_hand: false, own_tmpfs: false });
    }
    // Without symlinks from here on: a part that the workload makes into one is refused at the scrub.
    let named: Vec<PathBuf> = named.iter().map(|p| std::fs::canonicalize(p).unwrap_or_else(|_| p.clone())).collect();
    let mounts = mounts.filter(|_| pid1);
    if pid1 {
        for path in DEFAULTS.map(PathBuf::from) {
            if named.contains(&path) {
                continue;
            }
            let source = if mounts.is_some_and(|m| is_host_mount(&path, m)) {
                Source::Skipped("a mount from the host")
            } else {
                Source::Path
            };
            targets.push(Target { path, source, at_hand: false, own_tmpfs: false });
        }
    }
    targets.extend(named.into_iter().map(|path| Target {
        path,
        source: Source::Path,
        at_hand: false,
        own_tmpfs: false,
    }));
    let held: Vec<Option<&Mount>> = targets.iter().map(|t| mounts.and_then(|m| holder(&t.path, m))).collect();
    let fixed = pid1 && !limits::may_mount();
    for (target, mount) in targets.iter_mut().zip(&held) {
        if fixed && matches!(target.source, Source::Path) {
            look(target);
        }
        target.own_tmpfs = mount.is_some_and(|own| {
            own.kind == "tmpfs" && held.iter().flatten().filter(|other| other.device == own.device).count() == 1
        });
    }
    targets
}

/// Where nothing can be mounted any more, what is read-only now stays so, and what is a tmpfs is one at the end: then no disk is
/// asked when there is no time. Everything else is left to the scrub, which sees and says what is there then.
fn look(target: &mut Target) {
    let dir = files::open_path(&target.path);
    match &dir {
        Ok(dir) if files::is_read_only(dir.as_fd()) => target.source = Source::Skipped("read-only"),
        Ok(dir) => target.at_hand = files::file_system(dir.as_fd()) == libc::TMPFS_MAGIC,
        Err(Errno::ENOENT) => {
            let above = target.path.ancestors().skip(1).find_map(|above| files::open_path(above).ok());
            if above.is_some_and(|above| files::is_read_only(above.as_fd())) {
                target.source = Source::Skipped("absent");
            }
        }
        Err(_) => {}
    }
}

/// Why `--scrub PATH` is refused; `protected` are the supervisor's own files.
#[must_use]
pub fn refuse(path: &Path, protected: &[PathBuf]) -> Option<String> {
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let shown = crate::settings::cli::printable(path.as_os_str());
    if real.parent().is_none() {
        return Some(format!("--scrub: {shown:?} is the root directory"));
    }
    for system in ["/proc", "/sys", "/dev"] {
        if real.starts_with(system) && !real.starts_with("/dev/shm") {
            return Some(format!("--scrub: {shown:?} is in {system}"));
        }
    }
    protected
        .iter()
        .map(|own| std::fs::canonicalize(own).unwrap_or_else(|_| own.clone()))
        .find(|own| own.starts_with(&real))
        .map(|own| format!("--scrub: {shown:?} holds {:?}", crate::settings::cli::printable(own.as_os_str())))
}

/// Neither the container's root, a tmpfs nor a kubelet's emptyDir: somebody else's files.
fn is_host_mount(path: &Path, mounts: &[Mount]) -> bool {
    holder(path, mounts).is_some_and(|m| {
        m.point.parent().is_some()
            && m.kind != "tmpfs"
            && !m.root.to_string_lossy().contains("/kubernetes.io~empty-dir/")
    })
}

/// Makes the private TMPDIR of a run that is not PID 1: mode 0700, with a name nobody can guess.
///
/// # Errors
/// The path tried last, and the errno.
pub fn private_tmp(below: &Path) -> Result<(PathBuf, OwnedFd), (PathBuf, nix::errno::Errno)> {
    let template = below.join("gracekeeper-XXXXXX");
    let path = nix::unistd::mkdtemp(&template).map_err(|e| (template, e))?;
    // Without symlinks, since it is opened and removed by this path.
    let path = std::fs::canonicalize(&path).unwrap_or(path);
    match files::open_path(&path) {
        Ok(fd) => Ok((path, fd)),
        Err(errno) => Err((path, errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(point: &str, kind: &str, root: &str) -> Mount {
        Mount { point: point.into(), kind: kind.into(), root: root.into(), device: String::new() }
    }

    #[test]
    fn host_mounts_are_told_from_the_containers_own() {
        let mounts = [
            mount("/", "overlay", "/"),
            mount("/tmp", "ext4", "/home/me/tmp"),
            mount("/var", "ext4", "/srv/var"),
            mount("/dev/shm", "tmpfs", "/"),
        ];
        assert!(is_host_mount(Path::new("/tmp"), &mounts));
        assert!(is_host_mount(Path::new("/var/tmp"), &mounts));
        assert!(!is_host_mount(Path::new("/dev/shm"), &mounts));
        let pod = [
            mount("/", "overlay", "/"),
            mount("/tmp", "ext4", "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/tmp"),
        ];
        assert!(!is_host_mount(Path::new("/tmp"), &pod));
        assert!(!is_host_mount(Path::new("/var/tmp"), &pod));
    }

    #[test]
    fn what_may_not_be_named() {
        for path in ["/", "/proc", "/proc/1", "/sys", "/dev", "/dev/pts", "/dev/../"] {
            assert!(refuse(Path::new(path), &[]).is_some(), "{path}");
        }
        assert!(refuse(Path::new("/dev/shm"), &[]).is_none());
        let own = [PathBuf::from("/var/log/security-audit.json")];
        assert!(refuse(Path::new("/var/log"), &own).is_some());
        assert!(refuse(Path::new("/var"), &own).is_some());
        assert!(refuse(Path::new("/var/lo"), &own).is_none());
    }
}
