//! A file system whose directory and its one file can be opened and never read: the least that fuse(4) asks of a server. Whoever reads waits
//! without end, or until `answer`, and no signal ends that wait once the server has taken the request.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub struct Hanging {
    dir: PathBuf,
    /// Reads that have been taken and will not be answered.
    pub reads: Arc<AtomicU32>,
    device: File,
    /// The request of the last read.
    unique: Arc<AtomicU64>,
}

/// struct fuse_attr of a directory or a file.
fn attr(ino: u64) -> Vec<u8> {
    let mode: u32 = if ino == 1 { 0o40755 } else { 0o100_644 };
    let mut out = Vec::new();
    for word in [ino, 4096, 8, 0, 0, 0] {
        out.extend(word.to_ne_bytes());
    }
    for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        out.extend(word.to_ne_bytes());
    }
    out
}

/// What is answered to an opcode; `None`: nothing.
fn answer(opcode: u32, node: u64, reads: &AtomicU32) -> Option<(i32, Vec<u8>)> {
    let mut out = Vec::new();
    match opcode {
        // INIT: version 7.31, no extras.
        26 => {
            for word in [7u32, 31, 0, 0, 0, 4096, 1, 0] {
                out.extend(word.to_ne_bytes());
            }
            out.resize(64, 0);
        }
        // LOOKUP: any name is the file.
        1 => {
            for word in [2u64, 0, 1, 1, 0] {
                out.extend(word.to_ne_bytes());
            }
            out.extend(attr(2));
        }
        // GETATTR.
        3 => {
            out.extend([0u8; 16]);
            out.extend(attr(node));
        }
        // OPEN, OPENDIR: with FOPEN_DIRECT_IO, so that a read waits for its own request.
        14 | 27 => {
            for word in [0u32, 0, 1, 0] {
                out.extend(word.to_ne_bytes());
            }
        }
        // READ.
        15 => {
            reads.fetch_add(1, Ordering::SeqCst);
            return None;
        }
        // FORGET, INTERRUPT, BATCH_FORGET have no answer; READDIR and READDIRPLUS get none.
        2 | 36 | 42 | 28 | 44 => return None,
        // FLUSH, RELEASE, RELEASEDIR.
        25 | 18 | 29 => {}
        _ => return Some((-libc::ENOSYS, Vec::new())),
    }
    Some((0, out))
}

/// struct fuse_out_header, and what follows it.
fn reply(errno: i32, unique: u64, body: &[u8]) -> Vec<u8> {
    let mut reply = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
    reply.extend(errno.to_ne_bytes());
    reply.extend(unique.to_ne_bytes());
    reply.extend(body);
    reply
}

impl Hanging {
    /// Mounts it; for root.
    pub fn mount(dir: &Path) -> Self {
        let mut device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let flags = nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV;
        nix::mount::mount(Some("hanging"), dir, Some("fuse.hanging"), flags, Some(options.as_str())).unwrap();
        let reads = Arc::new(AtomicU32::new(0));
        let unique_of_read = Arc::new(AtomicU64::new(0));
        let (counted, last) = (Arc::clone(&reads), Arc::clone(&unique_of_read));
        let other = device.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut request = vec![0u8; 1 << 17];
            // Until it is unmounted by force: ENODEV.
            while let Ok(n @ 40..) = device.read(&mut request) {
                let number = |at: usize, size: usize| {
                    let mut bytes = [0u8; 8];
                    bytes[..size].copy_from_slice(&request[at..at + size]);
                    u64::from_ne_bytes(bytes)
                };
                assert!(n <= request.len());
                let (opcode, unique, node) = (u32::try_from(number(4, 4)).unwrap(), number(8, 8), number(16, 8));
                if opcode == 15 {
                    last.store(unique, Ordering::SeqCst);
                }
                let Some((errno, body)) = answer(opcode, node, &counted) else { continue };
                let _ = device.write_all(&reply(errno, unique, &body));
            }
        });
        Self { dir: dir.to_owned(), reads, device: other, unique: unique_of_read }
    }

    /// Gives the last read its page.
    pub fn answer(&self) {
        let page = reply(0, self.unique.load(Ordering::SeqCst), &[b'f'; 4096]);
        (&self.device).write_all(&page).unwrap();
    }

    /// Lets everybody go: ENOTCONN for whoever waits.
    pub fn abort(&self) {
        let _ = nix::mount::umount2(&self.dir, nix::mount::MntFlags::MNT_FORCE);
        let _ = nix::mount::umount2(&self.dir, nix::mount::MntFlags::MNT_DETACH);
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.abort();
    }
}
