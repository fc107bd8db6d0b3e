//! Which paths are scrubbed, and why the others are not.

use super::tree::{Tree, Verdict};
use crate::kernel::files::{self, Identity};
use crate::kernel::limits;
use crate::kernel::mounts::{Mount, holder};
use crate::switches::without;
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The container's own temporary directories.
pub const DEFAULTS: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// How many targets are held from before the spawn, so that they are found where they have been moved to; of the others it is only
/// said that they are not where they were.
const HELD: usize = 8;

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
    /// What stays in it: gracekeeper's own files, other targets, and the directories they are in.
    pub keeps: Vec<Kept>,
    /// Directories among those: while they are held, nothing that is made anew gets their numbers.
    held: Vec<OwnedFd>,
    /// What the record says of it though it is `complete`.
    pub note: Option<String>,
    /// What it was before the spawn, where it was there.
    was: Option<Was>,
    /// Where it was not: the nearest directory above it.
    above: Option<Above>,
    /// Nobody of the workload can mount anything.
    fixed: bool,
}

/// Device and inode of something that stays, and whether it is a directory: what has its numbers later and is no directory is another file.
pub type Kept = ((u64, u64), bool);

#[derive(Debug)]
struct Was {
    identity: Identity,
    writable: bool,
    held: Option<OwnedFd>,
}

/// Held as well: as long as it is, no other mount gets its mount's number.
#[derive(Debug)]
struct Above {
    identity: Identity,
    _held: Option<OwnedFd>,
}

impl Target {
    /// One that was not looked at yet.
    #[must_use]
    pub const fn new(path: PathBuf, source: Source) -> Self {
        Self {
            path,
            source,
            at_hand: false,
            own_tmpfs: false,
            keeps: Vec::new(),
            held: Vec::new(),
            note: None,
            was: None,
            above: None,
            fixed: false,
        }
    }

    /// Whether `dir` is what was there before the spawn, and is seen through the same mount.
    #[must_use]
    pub fn is_still(&self, dir: BorrowedFd<'_>) -> bool {
        self.was.as_ref().is_some_and(|was| files::identity(dir).is_ok_and(|now| now == was.identity))
    }

    /// Whether `dir`, which is not what was there, is at least on the mount that was: any other may be somebody's volume.
    fn is_on_its_mount(&self, dir: BorrowedFd<'_>) -> bool {
        let before = self.was.as_ref().map(|was| was.identity).or(self.above.as_ref().map(|above| above.identity));
        let is =
            |now: Identity, then: Identity| now.device == then.device && now.mount.is_some() && now.mount == then.mount;
        self.fixed
            || without("known_mount")
            || before.is_some_and(|then| files::identity(dir).is_ok_and(|now| is(now, then)))
    }

    /// Opens it, wherever it is now; what is wrong with that is told to `tree`.
    ///
    /// # Errors
    /// The verdict, where there is nothing to scrub.
    pub fn reach(&mut self, tree: &Tree) -> Result<OwnedFd, Verdict> {
        let top = match std::mem::replace(&mut self.source, Source::Path) {
            Source::Skipped(why) => return Err(("skipped", Some(why.to_owned()))),
            Source::Private(fd) => return Ok(fd),
            Source::Path => self.reach_by_path(tree)?,
        };
        if files::is_read_only(top.as_fd()) {
            let was_not = self.was.as_ref().is_some_and(|was| was.writable);
            return Err(if was_not {
                ("failed", Some("read-only, and was not".to_owned()))
            } else {
                ("skipped", Some("read-only".to_owned()))
            });
        }
        Ok(top)
    }

    fn reach_by_path(&self, tree: &Tree) -> Result<OwnedFd, Verdict> {
        let failed = |errno: Errno| ("failed", Some(format!("open: {errno:?}")));
        // Only looked at: what is not ours to empty is not ours to make readable either.
        let here = files::see_path(&self.path);
        if let Some(dir) = here.as_ref().ok().filter(|dir| self.is_still(dir.as_fd())) {
            return readable(dir.as_fd(), tree).map_err(failed);
        }
        // Somewhere else: it was moved away, or something covers it. Removed, it left nothing behind.
        if let Some(held) = self.was.as_ref().and_then(|was| was.held.as_ref())
            && !files::is_removed(held.as_fd())
        {
            tree.displace("it is not at its path any more: emptied where it is, and not what is there now");
            return readable(held.as_fd(), tree).map_err(failed);
        }
        let unheld = self.was.as_ref().is_some_and(|was| was.held.is_none());
        match here {
            Ok(dir) if !self.is_on_its_mount(dir.as_fd()) => {
                Err(("failed", Some("another mount is at its path now, and is left alone".to_owned())))
            }
            Ok(dir) => {
                if unheld {
                    tree.displace("another directory is at its path now");
                }
                readable(dir.as_fd(), tree).map_err(failed)
            }
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) if unheld => {
                Err(("failed", Some("it is not at its path any more".to_owned())))
            }
            Err(Errno::ENOENT) => Err(("skipped", Some("absent".to_owned()))),
            Err(Errno::ELOOP) => Err(("skipped", Some("a symlink".to_owned()))),
            Err(errno) => Err(failed(errno)),
        }
    }
}

/// A directory that its mode forbids us to read is given back to its owner until it is empty.
fn readable(seen: BorrowedFd<'_>, tree: &Tree) -> Result<OwnedFd, Errno> {
    let opened = files::read_seen(seen);
    if opened.as_ref().err() != Some(&Errno::EACCES) {
        return opened;
    }
    let mode = files::mode(seen)?;
    files::set_mode(seen, mode | 0o700).map_err(|_| Errno::EACCES)?;
    tree.had_mode(mode);
    files::read_seen(seen)
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

/// The targets of a run. Looked up before the spawn, when the paths are still what the image or the operator made them; `own` are
/// the supervisor's own files, which stay where they are.
#[must_use]
pub fn resolve(
    named: &[PathBuf],
    pid1: bool,
    private: Option<(PathBuf, OwnedFd)>,
    mounts: Option<&[Mount]>,
    own: &[PathBuf],
) -> Vec<Target> {
    let mut targets = Vec::new();
    // First, so that a budget used up elsewhere does not leave the run's own directory on somebody's machine.
    if let Some((path, fd)) = private {
        targets.push(Target::new(path, Source::Private(fd)));
    }
    // Without symlinks from here on: a part that the workload makes into one is refused at the scrub.
    let named: Vec<PathBuf> = named.iter().map(|p| files::real(p)).collect();
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
            targets.push(Target::new(path, source));
        }
    }
    targets.extend(named.into_iter().map(|path| Target::new(path, Source::Path)));
    let held: Vec<Option<&Mount>> = targets.iter().map(|t| mounts.and_then(|m| holder(&t.path, m))).collect();
    let fixed = pid1 && !limits::may_mount();
    let own: Vec<PathBuf> = own.iter().map(|path| files::real(path)).collect();
    let paths: Vec<PathBuf> = targets.iter().map(|t| t.path.clone()).collect();
    for (n, (target, mount)) in targets.iter_mut().zip(&held).enumerate() {
        if matches!(target.source, Source::Path) {
            look(target, fixed, mount.is_some_and(|m| !m.read_only), n < HELD);
        }
        target.own_tmpfs = mount.is_some_and(|own| {
            own.kind == "tmpfs" && held.iter().flatten().filter(|other| other.device == own.device).count() == 1
        });
        keep(target, &own, &paths);
    }
    targets
}

/// What is in it and has to stay: by device and inode, since the workload may move it about.
fn keep(target: &mut Target, own: &[PathBuf], targets: &[PathBuf]) {
    use std::os::unix::fs::MetadataExt;
    let inside = |path: &&PathBuf| **path != target.path && path.starts_with(&target.path);
    let files = own.iter().filter(inside);
    target.note = files
        .clone()
        .next()
        .map(|file| format!("it holds {}, which stays", crate::settings::cli::printable(file.as_os_str())));
    for path in files.chain(targets.iter().filter(inside)) {
        for above in path.ancestors().take_while(|above| *above != target.path) {
            if let Ok(found) = std::fs::symlink_metadata(above) {
                target.keeps.push(((found.dev(), found.ino()), found.is_dir()));
                if found.is_dir() && target.held.len() < HELD {
                    target.held.extend(files::see_path(above));
                }
            }
        }
    }
}

/// Where nothing can be mounted any more, what is read-only now stays so, and what is a tmpfs is one at the end: then no disk is
/// asked when there is no time. Everything else is left to the scrub, which sees and says what is there then, and no file system is asked that may not answer.
fn look(target: &mut Target, fixed: bool, writable: bool, hold: bool) {
    target.fixed = fixed;
    match files::see_path(&target.path) {
        Ok(dir) => {
            if fixed && files::is_read_only(dir.as_fd()) {
                target.source = Source::Skipped("read-only");
                return;
            }
            target.at_hand = fixed && files::file_system(dir.as_fd()) == libc::TMPFS_MAGIC;
            if let Ok(identity) = files::identity(dir.as_fd()) {
                target.was = Some(Was { identity, writable, held: hold.then_some(dir) });
            }
        }
        Err(errno) => {
            let Some(above) = target.path.ancestors().skip(1).find_map(|above| files::see_path(above).ok()) else {
                return;
            };
            if fixed && errno == Errno::ENOENT && files::is_read_only(above.as_fd()) {
                target.source = Source::Skipped("absent");
            } else if let Ok(identity) = files::identity(above.as_fd())
                && !fixed
            {
                target.above = Some(Above { identity, _held: hold.then_some(above) });
            }
        }
    }
}

/// Why `--scrub PATH` is refused; `protected` are the supervisor's own files.
#[must_use]
pub fn refuse(path: &Path, protected: &[PathBuf]) -> Option<String> {
    let real = files::real(path);
    let shown = crate::settings::cli::printable(path.as_os_str());
    if real.components().any(|part| part == std::path::Component::ParentDir) {
        return Some(format!("{shown:?} goes up from what is not there"));
    }
    if real.parent().is_none() {
        return Some(format!("{shown:?} is the root directory"));
    }
    for system in ["/proc", "/sys", "/dev"] {
        if real.starts_with(system) && !real.starts_with("/dev/shm") {
            return Some(format!("{shown:?} is in {system}"));
        }
    }
    protected
        .iter()
        .map(|own| files::real(own))
        .find(|own| own.starts_with(&real))
        .map(|own| format!("{shown:?} holds {:?}", crate::settings::cli::printable(own.as_os_str())))
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
        Mount { point: point.into(), kind: kind.into(), root: root.into(), device: String::new(), read_only: false }
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
