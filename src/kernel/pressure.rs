//! Whether the memory limit is used up: then every allocation the kernel makes for us (an entry of `/proc`, a page of a pipe) can
//! wait for the OOM killer, for seconds each, and nothing but the kill is affordable.
//!
//! The files are opened and read once before the spawn; later reads use the buffers the kernel then made, and stack memory here.

use super::procfile;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Less than this to spare is pressure: what a few thousand entries of `/proc` cost.
const SPARE: u64 = 4 << 20;

/// The memory limit that holds us.
#[derive(Debug)]
pub struct Pressure {
    usage: File,
    stat: File,
    limit: u64,
}

impl Pressure {
    /// Opens the files of the memory cgroup (v1 or v2); `None` where there is no limit, or none can be seen.
    #[must_use]
    pub fn open() -> Option<Self> {
        let own = procfile::own_cgroup()?;
        let mount = Path::new("/sys/fs/cgroup");
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
            let (root, names) = if controllers.is_empty() {
                (mount.to_path_buf(), ["memory.current", "memory.max"])
            } else if controllers.split(',').any(|c| c == "memory") {
                (mount.join("memory"), ["memory.usage_in_bytes", "memory.limit_in_bytes"])
            } else {
                return None;
            };
            [root.join(path), root].into_iter().find_map(|dir| Self::of(dir, names))
        })
    }

    fn of(dir: PathBuf, [usage, limit]: [&str; 2]) -> Option<Self> {
        let limit: u64 = procfile::text(&dir.join(limit))?.trim().parse().ok()?;
        // v1 says "no limit" by a number no machine has.
        if limit >= 1 << 50 {
            return None;
        }
        let pressure =
            Self { usage: File::open(dir.join(usage)).ok()?, stat: File::open(dir.join("memory.stat")).ok()?, limit };
        // The first read makes the kernel's buffers. Both, whatever the first says: with the limit used up it is too late.
        let mut text = [0u8; 4096];
        let _ = (pressure.usage.read_at(&mut text, 0), pressure.stat.read_at(&mut text, 0));
        Some(pressure)
    }

    /// Whether the limit is all but used up. The page cache can be taken back, half of it without much work.
    #[must_use]
    pub fn is_high(&self) -> bool {
        let mut text = [0u8; 4096];
        let n = self.usage.read_at(&mut text, 0).unwrap_or(0);
        let Some(used) = number(text.get(..n).unwrap_or_default()) else { return false };
        if used.saturating_add(SPARE) <= self.limit {
            return false;
        }
        let n = self.stat.read_at(&mut text, 0).unwrap_or(0);
        let cache = cache(text.get(..n).unwrap_or_default());
        used.saturating_sub(cache / 2).saturating_add(SPARE) > self.limit
    }
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// `file` of v2, `cache` of v1, without the `shmem` in it: what is on a tmpfs or in shared memory cannot be taken back.
fn cache(stat: &[u8]) -> u64 {
    let of = |name: &[u8]| stat.split(|&b| b == b'\n').find_map(|line| number(line.strip_prefix(name)?));
    let all = of(b"file ").or_else(|| of(b"cache ")).unwrap_or(0);
    all.saturating_sub(of(b"shmem ").unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_not_pressure() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put("memory.max", "134217728\n");
        put("memory.current", "134000000\n");
        put("memory.stat", "anon 20000\nfile 100000000\n");
        let names = ["memory.current", "memory.max"];
        let high = || Pressure::of(dir.path().to_path_buf(), names).unwrap().is_high();
        assert!(!high());
        // The same, on a tmpfs.
        for kind in ["file", "cache"] {
            put("memory.stat", &format!("anon 20000\n{kind} 100000000\nrss 1\nshmem 99000000\nshmem_thp 0\n"));
            assert!(high());
            put("memory.stat", &format!("{kind} 100000000\nshmem_thp 90000000\nshmem 1000000\n"));
            assert!(!high());
        }
        assert_eq!((cache(b"file 5\nshmem 9\n"), cache(b"shmem 9\n")), (0, 0));
        put("memory.stat", "cache 0\nrss 17000000\n");
        assert!(high());
        put("memory.current", "34000000\n");
        assert!(!high());
        put("memory.max", "max\n");
        assert!(Pressure::of(dir.path().to_path_buf(), names).is_none());
    }

    #[test]
    fn the_corpus_does_not_panic() {
        proptest::proptest!(|(bytes in crate::corpus::mutated("memory-stat"))| {
            let _ = (cache(&bytes), number(&bytes));
        });
    }
}
