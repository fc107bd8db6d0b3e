//! `gracekeeper install DEST`: this binary, copied so that DEST is at every instant the old file or the whole new one.

use crate::kernel::random;
use crate::settings::cli::printable;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Copies to a temporary file in DEST's directory, fsyncs it and renames it over DEST: no ETXTBSY over a running older copy,
/// and a symlink at DEST is replaced, not followed.
///
/// # Errors
/// One line naming the step, the path and errno; nothing is left behind.
pub fn install(dest: &OsStr) -> Result<(), String> {
    let dest = Path::new(dest);
    let fail = |what: &str, path: &Path, error: &io::Error| {
        format!("install: {what} {}: {error}", printable(path.as_os_str()))
    };
    // `DIR/new/` names a directory too, whether or not it is there.
    let slash = dest.as_os_str().as_encoded_bytes().ends_with(b"/");
    let there = std::fs::symlink_metadata(dest).ok().map(|m| m.file_type());
    if slash || there.is_some_and(|kind| kind.is_dir()) || dest.file_name().is_none() {
        return Err(format!("install: {} is a directory; name the file to write", printable(dest.as_os_str())));
    }
    // /dev/null, a FIFO that somebody waits at: renaming over it would take it away.
    if there.is_some_and(|kind| !kind.is_file() && !kind.is_symlink()) {
        return Err(format!("install: {} is not a regular file; name the file to write", printable(dest.as_os_str())));
    }
    let parent = dest.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut source = File::open("/proc/self/exe").map_err(|e| fail("cannot read", Path::new("/proc/self/exe"), &e))?;
    let (temporary, mut target) = temporary(parent).map_err(|e| fail("cannot create a file in", parent, &e))?;
    let done = io::copy(&mut source, &mut target)
        .and_then(|_| target.set_permissions(Permissions::from_mode(0o555)))
        .and_then(|()| target.sync_all())
        .map_err(|e| fail("cannot write", &temporary, &e))
        .and_then(|()| std::fs::rename(&temporary, dest).map_err(|e| fail("cannot rename to", dest, &e)));
    if done.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&temporary);
    }
    done?;
    // The name is durable once its directory is; a file that is in place and whole is installed either way (a directory that
    // may be written but not read cannot even be opened).
    if let Err(error) = File::open(parent).and_then(|d| d.sync_all()) {
        crate::complain(&format!("{}, but the file is installed", fail("cannot fsync", parent, &error)));
    }
    Ok(())
}

/// A random name: what a killed install left behind (every one is pid 1 of its container) cannot block it.
fn temporary(parent: &Path) -> io::Result<(PathBuf, File)> {
    let name = u128::from_be_bytes(random::sixteen_bytes()?);
    let path = parent.join(format!(".gracekeeper-install-{name:032x}"));
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map(|file| (path, file))
}
