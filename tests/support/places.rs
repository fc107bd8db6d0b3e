//! Where the audit file of a campaign's run is: who writes to it differs.

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::path::Path;
use tempfile::TempDir;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A thread of its own writes to it (src/audit/scribe.rs).
    Disk,
    /// The loop does.
    Memory,
}

impl Place {
    /// An empty directory there; beside what was built where /tmp is no disk.
    pub fn directory(self) -> TempDir {
        let below: &[&str] = match self {
            Self::Disk => &["/tmp", env!("CARGO_TARGET_TMPDIR")],
            Self::Memory => &["/dev/shm"],
        };
        let here =
            |dir: &&&str| (statfs(Path::new(dir)).unwrap().filesystem_type() == TMPFS_MAGIC) == (self == Self::Memory);
        let dir = below.iter().find(here).unwrap_or_else(|| panic!("none of {below:?} is what is wanted: {self:?}"));
        tempfile::tempdir_in(dir).unwrap()
    }
}
