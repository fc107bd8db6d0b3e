//! The termination message: what the kubelet shows of a container that ended (`terminationMessagePath`).
//!
//! Written once, by the seal. Invariant: with a deadline and nobody of the workload left, it is kept whatever the file was made into.

use super::sinks::{LATE, open_regular, refused};
use crate::kernel::Cause;
use crate::kernel::errand::Errand;
use crate::kernel::files;
use crate::kernel::outcome::OFF;
use crate::machine::types::Instant;
use crate::switches::without;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

/// The kubelet reads no more of a termination message.
pub const MESSAGE_LIMIT: usize = 4096;

/// The termination message of the kubelet: a file that is there already, or none.
#[derive(Debug)]
pub struct MessageSink {
    file: File,
    in_memory: bool,
}

impl MessageSink {
    /// Opens it for writing; it is never created.
    ///
    /// # Errors
    /// What was refused; ENOENT is the ordinary case outside Kubernetes.
    pub fn open(path: &Path) -> Result<Self, Cause> {
        let file = open_regular(OpenOptions::new().write(true), path)?;
        let in_memory = files::file_system(file.as_fd()) == libc::TMPFS_MAGIC;
        Ok(Self { file, in_memory })
    }

    /// `fsync(2)`.
    ///
    /// # Errors
    /// What was refused.
    pub fn sync(&self) -> Result<(), Cause> {
        self.file.sync_all().map_err(refused("fsync"))
    }

    /// Device and inode.
    #[must_use]
    pub fn inode(&self) -> Option<(u64, u64)> {
        self.file.metadata().ok().map(|meta| (meta.dev(), meta.ino()))
    }

    /// Its descriptor.
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Replaces whatever is in it: the workload may have made it large and in pieces, so that already emptying it takes longer than
    /// there is time. `alone` where nobody of the workload is left, so that there may be a thread for it; else it is not synced.
    ///
    /// # Errors
    /// What was refused; `LATE`.
    pub fn replace(&self, message: String, until: Instant, alone: bool) -> Result<(), Cause> {
        /// What is emptied in no time.
        const SMALL: u64 = 1 << 20;
        if without("message") {
            return Err(Cause::because(OFF));
        }
        let write = |file: &File, message: &str| {
            file.set_len(0).map_err(refused("ftruncate"))?;
            file.write_all_at(message.as_bytes(), 0).map_err(refused("pwrite"))
        };
        if self.in_memory && self.file.metadata().is_ok_and(|meta| meta.blocks().saturating_mul(512) <= SMALL) {
            return write(&self.file, &message);
        }
        if !alone {
            return write(&self.file, &message)
                .and(Err(Cause::because("not synced: somebody of the workload is left")));
        }
        let file = self.file.try_clone().map_err(refused("dup"))?;
        let line = message.clone();
        let work = move || write(&file, &line).and_then(|()| file.sync_all().map_err(refused("fsync")));
        match Errand::send(work) {
            Some(errand) => errand.wait(until).unwrap_or(Err(Cause::because(LATE))),
            // No thread to be had: without a deadline.
            None => write(&self.file, &message).and_then(|()| self.sync()),
        }
    }
}
