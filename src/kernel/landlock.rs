//! The Landlock domain of the workload: built before fork, entered in the child with one call.
//!
//! Only writing is handled, so reading and executing are untouched. `guard` grants everything but the protected
//! directory by granting its siblings along the path. Its known cost: an entry that did not exist at the start cannot be
//! made directly in an ancestor of that directory. Where such an ancestor is one that programs create files in (the
//! temporary directories, the working directory, HOME), and for a holder of CAP_SYS_ADMIN (a domain with file rules
//! forbids mount(2)), `guard` scopes signals only and says so. /proc stays writable: too many programs write
//! below /proc/self. Invariant: no entry of a protected directory is ever granted by `guard`, but for a directory that
//! programs need, which gives no right to the entries beside it.

use super::mounts::{self, Mount};
use super::outcome::{Cause, OFF, Outcome};
use crate::switches::without;
use landlock::{
    ABI, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, Scope,
};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The most siblings that are granted; beyond it the start would take too long.
const MOST: usize = 4096;
/// Why the file rules do not hold the audit directory.
const ALIASED: &str = "the audit directory is mounted a second time";
const SHARED: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];
const DEVICES: [&str; 7] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx"];

/// What the domain is made from.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The directory that holds the audit file, where it is on disk.
    pub audit_dir: Option<&'a Path>,
    /// The supervisor's own executable.
    pub binary: Option<&'a Path>,
    /// `Some`: `confined`, with these further writable paths; `None`: `guard`.
    pub confined: Option<&'a [PathBuf]>,
    /// Directories the workload starts in or lives in: ones it creates entries in.
    pub homes: &'a [PathBuf],
    /// Whether the workload may mount (CAP_SYS_ADMIN).
    pub may_mount: bool,
    /// What is mounted, where it could be read.
    pub mounts: Option<&'a [Mount]>,
}

/// The domain, with what holds once it is entered.
#[derive(Debug)]
pub struct Domain {
    fd: Option<OwnedFd>,
    /// What becomes of the file rules.
    pub files: Outcome,
    /// What becomes of the signal scope.
    pub scope: Outcome,
}

/// The ABI the kernel offers (landlock_create_ruleset(2)).
///
/// # Errors
/// ENOSYS or EOPNOTSUPP where there is none.
pub fn abi() -> Result<i64, Errno> {
    // SAFETY: with LANDLOCK_CREATE_RULESET_VERSION (1) the call takes a null pointer and size 0.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, 1u32) };
    Errno::result(abi)
}

impl Domain {
    /// Builds it.
    #[must_use]
    pub fn build(wanted: &Wanted<'_>) -> Self {
        let abi = match abi() {
            Ok(abi) => abi,
            Err(errno) => {
                let none = Outcome::Unavailable(Cause::refused("landlock_create_ruleset", errno));
                return Self { fd: None, files: none, scope: none };
            }
        };
        let off = Outcome::Unavailable(Cause::because(OFF));
        let scoped = abi >= 6 && !without("signal_scope");
        let scope = match scoped {
            true => Outcome::Enforced,
            false if abi >= 6 => off,
            false => Outcome::Unavailable(Cause::because("Landlock ABI below 6")),
        };
        let (grants, mut files) = if without("landlock") { (None, off) } else { grants(wanted, abi) };
        if files == Outcome::Enforced && grants.as_deref().is_some_and(|grants| is_aliased(wanted, grants)) {
            files = Outcome::Degraded(Cause::because(ALIASED));
        }
        match ruleset(grants.as_deref(), scoped) {
            Some(fd) => Self { fd: Some(fd), files, scope },
            None if grants.is_none() && !scoped => Self { fd: None, files, scope },
            None => {
                let none = Outcome::Unavailable(Cause::because("the Landlock ruleset was refused"));
                Self { fd: None, files: none, scope: none }
            }
        }
    }

    /// The ruleset's descriptor, to be kept until `enter`.
    #[must_use]
    pub fn fd(&self) -> Option<RawFd> {
        self.fd.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Whether signals will be scoped.
    #[must_use]
    pub fn scopes(&self) -> bool {
        self.fd.is_some() && self.scope == Outcome::Enforced
    }

    /// Enters it (landlock_restrict_self(2)); async-signal-safe, needs `no_new_privs`.
    ///
    /// # Errors
    /// The errno of `landlock_restrict_self(2)`.
    pub fn enter(&self) -> Result<(), Errno> {
        let Some(fd) = self.fd() else { return Ok(()) };
        // SAFETY: takes a descriptor, which `self` owns, and flags.
        Errno::result(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd, 0u32) }).map(drop)
    }
}

/// The paths that stay writable; `None`: no file rules.
fn grants(wanted: &Wanted<'_>, abi: i64) -> (Option<Vec<PathBuf>>, Outcome) {
    let unavailable = |why| (None, Outcome::Unavailable(Cause::because(why)));
    let audit = wanted.audit_dir.and_then(|dir| dir.canonicalize().ok());
    // Without REFER (ABI 2) a domain forbids every rename across directories; without TRUNCATE (ABI 3) it misses one way.
    let whole = if abi >= 3 {
        Outcome::Enforced
    } else {
        Outcome::Degraded(Cause::because("Landlock ABI below 3 does not refuse truncation"))
    };
    if let Some(more) = wanted.confined {
        let mut out: Vec<PathBuf> = DEVICES.iter().chain(&SHARED).map(PathBuf::from).collect();
        out.push("/dev/pts".into());
        let mut outcome = whole;
        for root in more {
            let Ok(root) = root.canonicalize() else { continue };
            if root.parent().is_none() {
                outcome = Outcome::Degraded(Cause::because("the whole tree was made writable"));
            }
            match &audit {
                Some(dir) if dir.starts_with(&root) && *dir != root => {
                    if beside(&root, &[dir], &mut out).is_none() {
                        return unavailable("too many entries beside the audit directory");
                    }
                }
                Some(dir) if *dir == root => {
                    outcome = Outcome::Degraded(Cause::because("the audit file is in a writable directory"));
                    out.push(root);
                }
                _ => out.push(root),
            }
        }
        if audit.is_some_and(|dir| SHARED.iter().any(|s| dir.starts_with(s))) {
            outcome = Outcome::Degraded(Cause::because("the audit file is in a writable directory"));
        }
        return (Some(out), outcome);
    }
    let binary = wanted.binary.and_then(|b| b.canonicalize().ok());
    // Where any directory above it is writable it can be replaced.
    let writable = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
    let replaceable = binary.as_deref().is_some_and(|binary| binary.ancestors().any(writable));
    let homes: Vec<PathBuf> = wanted.homes.iter().filter_map(|home| home.canonicalize().ok()).collect();
    let root = Path::new("/");
    let busy = |dir: &Path| {
        let shared = SHARED.iter().map(Path::new).chain(homes.iter().map(PathBuf::as_path));
        dir == root || shared.filter(|s| *s != root).any(|s| dir.starts_with(s))
    };
    // A directory of its own, as an init container makes one, can be taken; one among those that programs write to cannot.
    let own_dir = binary.as_deref().and_then(Path::parent).filter(|dir| {
        replaceable && !busy(dir) && dir.ancestors().skip(1).all(|above| above == root || !writable(above))
    });
    let replaceable = replaceable && own_dir.is_none();
    if audit.is_none() && own_dir.is_none() {
        return unavailable(if replaceable {
            "the supervisor's file stays writable to this UID"
        } else {
            "nothing on disk to protect"
        });
    }
    if wanted.may_mount {
        return unavailable("file rules would forbid mounting to CAP_SYS_ADMIN");
    }
    if abi < 2 {
        return unavailable("Landlock ABI 1 would forbid renames across directories");
    }
    if audit.as_deref().is_some_and(busy) {
        return unavailable("the audit file is where programs create files");
    }
    let protected: Vec<&Path> = audit.as_deref().into_iter().chain(own_dir).collect();
    let mut out = Vec::new();
    if beside(root, &protected, &mut out).is_none() {
        return unavailable("too many entries beside the audit directory");
    }
    // What programs need lies below (`/var/audit.json`): it stays theirs, and its own name in that directory does not.
    let needed = SHARED.iter().chain(&DEVICES).map(PathBuf::from).chain(homes);
    out.extend(needed.filter(|path| protected.iter().any(|dir| path.starts_with(dir) && path != dir)));
    let outcome = match whole {
        Outcome::Enforced if replaceable => {
            Outcome::Degraded(Cause::because("the supervisor's file stays writable to this UID"))
        }
        other => other,
    };
    (Some(out), outcome)
}

/// Whether the audit directory is there a second time, below something that stays writable: a volume that is mounted twice.
/// Rules follow the path that is taken (landlock(7)), so that the other one leads around them.
fn is_aliased(wanted: &Wanted<'_>, grants: &[PathBuf]) -> bool {
    let Some(audit) = wanted.audit_dir.and_then(|dir| dir.canonicalize().ok()) else { return false };
    let Some(mounts) = wanted.mounts else { return false };
    let Some(holder) = mounts::holder(&audit, mounts) else { return false };
    let Ok(below) = audit.strip_prefix(&holder.point) else { return false };
    let inside = holder.root.join(below);
    let same = |other: &Path| {
        let (a, b) = (std::fs::metadata(&audit), std::fs::metadata(other));
        a.is_ok_and(|a| b.is_ok_and(|b| (a.dev(), a.ino()) == (b.dev(), b.ino())))
    };
    mounts.iter().filter(|m| m.device == holder.device).any(|m| {
        let other = inside.strip_prefix(&m.root).map(|rest| m.point.join(rest));
        // It may be hidden below yet another mount.
        other.is_ok_and(|o| o != audit && grants.iter().any(|grant| o.starts_with(grant)) && same(&o))
    })
}

/// Every entry along the ways from `dir` down to the protected directories that is not on one of them. Links are left out:
/// what they name is granted, or not, where it is.
fn beside(dir: &Path, protected: &[&Path], out: &mut Vec<PathBuf>) -> Option<()> {
    // A directory that cannot be listed grants nothing, which is on the safe side.
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if protected.iter().any(|p| p.starts_with(&path)) {
            if !protected.contains(&path.as_path()) {
                beside(&path, protected, out)?;
            }
        } else if entry.file_type().is_ok_and(|kind| !kind.is_symlink()) {
            out.push(path);
        }
        if out.len() > MOST {
            return None;
        }
    }
    Some(())
}

fn ruleset(grants: Option<&[PathBuf]>, scope: bool) -> Option<OwnedFd> {
    let write = AccessFs::from_write(ABI::V3);
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    if grants.is_some() {
        ruleset = ruleset.handle_access(write).ok()?;
    }
    if scope {
        ruleset = ruleset.scope(Scope::Signal).ok()?;
    }
    if grants.is_none() && !scope {
        return None;
    }
    let mut created: RulesetCreated = ruleset.create().ok()?;
    for path in grants.unwrap_or_default() {
        // What went away since, or may not be opened, needs no grant.
        let Ok(fd) = PathFd::new(path) else { continue };
        // Of a file only the rights that files have are taken: the crate looks at the descriptor.
        created = created.add_rule(PathBeneath::new(fd, write)).ok()?;
    }
    created.into()
}
