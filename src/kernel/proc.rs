//! `/proc/PID/stat` and the list of pids, read into fixed buffers: the kill path uses it, so it allocates nothing
//! and survives any process name (a process may call itself `x) R 1 1`, with newlines and invalid UTF-8).
//!
//! Source of the field numbers: proc_pid_stat(5).

use super::{limits, procfile};
use crate::switches::without;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The process id, in this PID namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot (field 22).
    pub start: u64,
}

/// The fields of `/proc/PID/stat` that the supervisor uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Process id (field 1).
    pub pid: i32,
    /// The name (field 2), at most 15 bytes, any byte but NUL; `name_len` of them count.
    pub name: [u8; 16],
    /// How many bytes of `name` count.
    pub name_len: usize,
    /// State letter (field 3): `R S D T t Z X I`.
    pub state: u8,
    /// Parent's pid (field 4); 0 where the parent is outside this PID namespace.
    pub ppid: i32,
    /// Process group (field 5).
    pub pgrp: i32,
    /// Session (field 6).
    pub session: i32,
    /// User CPU time in clock ticks (field 14).
    pub utime: u64,
    /// System CPU time in clock ticks (field 15).
    pub stime: u64,
    /// Threads (field 20).
    pub threads: u64,
    /// Start time in clock ticks since boot (field 22).
    pub start: u64,
    /// Resident set in pages (field 24).
    pub rss_pages: u64,
    /// A thread of it that is there: its main thread, whose number is the process's, or another one where that has ended.
    pub thread: i32,
}

impl Stat {
    /// Parses one line of `/proc/PID/stat`. `None` where it is not one.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        // The name may hold anything, ')' included; nothing after it can, so the last ')' ends it.
        let open = line.iter().position(|&b| b == b'(')?;
        let close = if without("last_bracket") {
            line.iter().position(|&b| b == b')')?
        } else {
            line.iter().rposition(|&b| b == b')')?
        };
        let pid = number(line.get(..open)?)?;
        let raw_name = line.get(open.checked_add(1)?..close)?;
        let mut name = [0u8; 16];
        let name_len = raw_name.len().min(name.len());
        name.get_mut(..name_len)?.copy_from_slice(raw_name.get(..name_len)?);
        let mut fields =
            line.get(close.checked_add(1)?..)?.split(|b| b.is_ascii_whitespace()).filter(|f| !f.is_empty());
        let state = *fields.next()?.first()?;
        let ppid = number(fields.next()?)?;
        let pgrp = number(fields.next()?)?;
        let session = number(fields.next()?)?;
        // Fields 7 to 13 are tty, tpgid, flags and faults.
        let utime = number(fields.nth(7)?)?;
        let stime = number(fields.next()?)?;
        let threads = number(fields.nth(4)?)?;
        let start = number(fields.nth(1)?)?;
        let rss_pages = number::<i64>(fields.nth(1)?)?.max(0).cast_unsigned();
        Some(Self {
            pid,
            name,
            name_len,
            state,
            ppid,
            pgrp,
            session,
            utime,
            stime,
            threads,
            start,
            rss_pages,
            thread: pid,
        })
    }

    /// Whether it has ended and only waits to be reaped. A process whose main thread has ended is shown as a zombie as long as
    /// its other threads go on (proc_pid_stat(5) gives the main thread's state), and is none.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.has_ended() && (self.threads <= 1 || without("headless"))
    }

    const fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// The identity under which it may be signalled.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        Identity { pid: self.pid, start: self.start }
    }

    /// The name's bytes.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.name.get(..self.name_len).unwrap_or_default()
    }
}

pub(super) fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.trim_ascii().parse().ok()
}

/// An open `/proc` that is known to be this PID namespace's.
#[derive(Debug)]
pub struct Proc {
    root: OwnedFd,
}

impl Proc {
    /// Opens `/proc`.
    ///
    /// # Errors
    /// The errno of `open(2)`; `ESRCH` where the mounted `/proc` belongs to another PID namespace, whose numbers would
    /// name strangers.
    pub fn open() -> Result<Self, Errno> {
        let root = open("/proc", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let myself = readlinkat(root.as_fd(), "self")?;
        let shown: Option<i32> = myself.to_str().and_then(|s| s.parse().ok());
        if shown == Some(nix::unistd::getpid().as_raw()) { Ok(Self { root }) } else { Err(Errno::ESRCH) }
    }

    /// The directory itself, to open other files below it.
    #[must_use]
    pub const fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Reads `/proc/PID/stat`; the state and the memory of a process whose main thread has ended are those of another thread.
    ///
    /// # Errors
    /// `ENOENT` or `ESRCH` where there is no such process (any more), `EINVAL` where the text is not what
    /// proc_pid_stat(5) says.
    pub fn stat(&self, pid: i32) -> Result<Stat, Errno> {
        let mut stat = self.stat_of(format_args!("{pid}/stat"))?;
        if stat.has_ended() && !stat.is_dead() {
            // Where none can be read it stays a process that is there, and in no state that counts as stopped.
            stat.state = b'?';
            self.each_thread(pid, |thread| {
                if thread.has_ended() {
                    return true;
                }
                (stat.state, stat.rss_pages, stat.thread) = (thread.state, thread.rss_pages, thread.pid);
                false
            });
        }
        Ok(stat)
    }

    /// Whether the thread, which a SIGSTOP has been sent to, runs nothing more before SIGCONT and makes no call any more: stopped
    /// by a signal, by a tracer, or dead.
    ///
    /// A call that no signal interrupts goes on with what it was asked for (a write of gigabytes past the page cache) and keeps what it
    /// holds, but for one: a parent in vfork waits for its child and takes the SIGSTOP before it runs on.
    #[must_use]
    pub fn is_still(&self, pid: i32, thread: &Stat) -> bool {
        match thread.state {
            b'T' | b't' | b'Z' | b'X' | b'x' => true,
            b'D' => without("real_stop") || self.is_in_vfork(pid, thread.thread),
            _ => false,
        }
    }

    /// Whether an uninterruptible thread waits for the child that it started with vfork(2) or CLONE_VFORK. What cannot be read is none.
    fn is_in_vfork(&self, pid: i32, tid: i32) -> bool {
        #[cfg(target_arch = "x86_64")]
        const CALLS: [&[u8]; 3] = [b"58", b"56", b"435"]; // vfork, clone, clone3
        #[cfg(target_arch = "aarch64")]
        const CALLS: [&[u8]; 2] = [b"220", b"435"]; // clone, clone3
        let mut text = [0u8; 64];
        // The function it waits in (kernel_clone) comes first: /proc/PID/wchan takes no lock. The call's number is what is sure to mean
        // the same in every kernel, but its file waits for whoever is in execve(2), who may be kept there for ever.
        let function = self.begin_of(format_args!("{pid}/task/{tid}/wchan"), &mut text);
        if ![&b"clone"[..], b"fork"].iter().any(|word| function.windows(word.len()).any(|part| part == *word)) {
            return false;
        }
        let call = self.begin_of(format_args!("{pid}/task/{tid}/syscall"), &mut text).split(|&b| b == b' ').next();
        call.is_some_and(|call| CALLS.contains(&call))
    }

    /// Whether the page at an address of a stopped thread's memory is there (proc_pid_pagemap(5)); by the thread, since a main thread
    /// that has ended has no memory any more.
    ///
    /// # Errors
    /// `ENOENT` where the kernel has no such file; that of `openat(2)` or `pread(2)`.
    pub fn is_in_memory(&self, pid: i32, tid: i32, address: u64) -> Result<bool, Errno> {
        const PRESENT: u64 = 1 << 63;
        let mut buffer = [0u8; PATH];
        let path = below(&mut buffer, format_args!("{pid}/task/{tid}/pagemap"))?;
        let file = openat(self.root.as_fd(), path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        // SAFETY: sysconf(3) takes an integer.
        let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(|_| Errno::EINVAL)?.max(1);
        let at = i64::try_from(address / page * 8).map_err(|_| Errno::EFAULT)?;
        let mut entry = [0u8; 8];
        match nix::sys::uio::pread(&file, &mut entry, at)? {
            8 => Ok(u64::from_ne_bytes(entry) & PRESENT != 0),
            _ => Ok(false),
        }
    }

    /// The first bytes of a file; none where it cannot be read.
    fn begin_of<'a>(&self, path: std::fmt::Arguments<'_>, text: &'a mut [u8]) -> &'a [u8] {
        let mut buffer = [0u8; PATH];
        let n = below(&mut buffer, path).and_then(|path| self.read(path, text)).unwrap_or(0);
        text.get(..n).unwrap_or_default()
    }

    /// Whether thread `tid` of `pid` is gone for sure, or only still shown; what cannot be looked at is not.
    #[must_use]
    pub fn thread_is_gone(&self, pid: i32, tid: i32) -> bool {
        match self.stat_of(format_args!("{pid}/task/{tid}/stat")) {
            Ok(thread) => thread.has_ended(),
            Err(errno) => is_gone(errno),
        }
    }

    /// Whether `tid` is a thread of `pid`.
    #[must_use]
    pub fn has_thread(&self, pid: i32, tid: i32) -> bool {
        self.stat_of(format_args!("{pid}/task/{tid}/stat")).is_ok()
    }

    fn stat_of(&self, path: std::fmt::Arguments<'_>) -> Result<Stat, Errno> {
        let mut buffer = [0u8; PATH];
        let mut line = [0u8; 1024];
        let n = self.read(below(&mut buffer, path)?, &mut line)?;
        Stat::parse(line.get(..n).unwrap_or_default()).ok_or(Errno::EINVAL)
    }

    /// Calls `each` with what `/proc/PID/task` says of every thread, while it answers `true`; whether that was to the end, and each
    /// could be looked at.
    pub fn each_thread(&self, pid: i32, mut each: impl FnMut(&Stat) -> bool) -> bool {
        let mut buffer = [0u8; PATH];
        let Ok(path) = below(&mut buffer, format_args!("{pid}/task")) else { return false };
        openat(self.root.as_fd(), path, LIST, Mode::empty()).is_ok_and(|list| {
            let whole = each_number(&list, |tid| match self.stat_of(format_args!("{pid}/task/{tid}/stat")) {
                Ok(stat) => each(&stat),
                // A thread that has ended meanwhile is nobody to ask about.
                Err(errno) => is_gone(errno),
            });
            whole == Ok(true)
        })
    }

    /// Reads at most `buffer.len()` bytes of `path`, relative to `/proc`; the number read.
    ///
    /// # Errors
    /// The errno of `openat(2)` or `read(2)`.
    pub fn read(&self, path: &std::ffi::CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = openat(self.root.as_fd(), path, flags, Mode::empty())?;
        let mut used = 0;
        while let Some(rest) = buffer.get_mut(used..)
            && !rest.is_empty()
        {
            match nix::unistd::read(&file, rest) {
                Ok(0) => break,
                Ok(n) => used += n,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(used)
    }

    /// As much as `most` bytes of a file below `/proc/net` or `/proc/self`, which are links of the kernel's own.
    ///
    /// # Errors
    /// The errno of `openat(2)` or `read(2)`.
    pub fn following(&self, path: &std::ffi::CStr, most: u64) -> Result<Vec<u8>, Errno> {
        let fd = openat(self.root.as_fd(), path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        procfile::rest(fd, most).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
    }

    /// Whether `who` is still the process that was seen, and not a zombie.
    #[must_use]
    pub fn is_alive(&self, who: Identity) -> bool {
        self.stat(who.pid).is_ok_and(|stat| stat.start == who.start && !stat.is_dead())
    }

    /// Calls `each` with every process id that `/proc` lists, from a fixed buffer (getdents64(2)), while it answers `true`;
    /// whether that was to the end.
    pub fn each_pid(&self, each: impl FnMut(i32) -> bool) -> bool {
        // A descriptor of its own, so that the position is the start and nobody else's.
        openat(self.root.as_fd(), ".", LIST, Mode::empty()).is_ok_and(|list| each_number(&list, each) == Ok(true))
    }

    /// Calls `each` with every number that names an entry of a directory below `/proc`, while it answers `true`: the threads of
    /// `PID/task`, the descriptors of `PID/fd`. Whether that was to the end. A descriptor 0 counts, so the caller has to know what the
    /// numbers are.
    ///
    /// # Errors
    /// The errno of `openat(2)` or `getdents64(2)`.
    pub fn each_number(&self, dir: &str, each: impl FnMut(i32) -> bool) -> Result<bool, Errno> {
        let list = openat(self.root.as_fd(), dir, LIST, Mode::empty())?;
        each_number(&list, each)
    }

    /// Our own children, as the kernel lists them whatever `/proc` hides (proc_tid_children(5)); nobody where the kernel has no such
    /// file (CONFIG_PROC_CHILDREN). One that is born or ends meanwhile may be missing. Whether all of the lists could be read.
    pub fn each_child(&self, mut each: impl FnMut(i32)) -> bool {
        let mut whole = true;
        let listed = self.each_number("self/task", |tid| {
            let mut buffer = [0u8; PATH];
            let path = below(&mut buffer, format_args!("self/task/{tid}/children"));
            let text = path.and_then(|path| self.following(path, CHILDREN));
            whole &= text.as_ref().map_or_else(|&errno| is_gone(errno), |_| true);
            let text = text.unwrap_or_default();
            // Each ends in a blank: one without it is cut off, and another one's number.
            text.split_inclusive(|&b| b == b' ').filter(|n| n.ends_with(b" ")).filter_map(number).for_each(&mut each);
            true
        });
        whole && listed == Ok(true)
    }

    /// What a link below `/proc` says, at most 64 bytes of it.
    ///
    /// # Errors
    /// The errno of `readlinkat(2)`: `EACCES` where the process may not be traced, though its links be listed (to UID 0 they are).
    pub fn link(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let path = std::ffi::CString::new(path).map_err(|_| Errno::EINVAL)?;
        let mut text = [0u8; 64];
        // SAFETY: `path` ends in NUL, and the kernel writes at most `text.len()` bytes into `text`.
        let n = unsafe { libc::readlinkat(self.root.as_raw_fd(), path.as_ptr(), text.as_mut_ptr().cast(), text.len()) };
        let n = Errno::result(n).map(|n| usize::try_from(n).unwrap_or(0))?;
        Ok(text.get(..n).unwrap_or_default().to_vec())
    }
}

/// Whether what `/proc` answered means that the process, the thread or the descriptor is there no more.
#[must_use]
pub const fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ESRCH)
}

/// Whether our `/proc` keeps processes from us (hidepid, proc(5)), one that made itself undumpable for example. There is no such option
/// where there is no mountinfo; one that cannot be read is taken for the worse.
#[must_use]
pub fn hides() -> bool {
    const SYS_PTRACE: u32 = 19;
    if limits::capabilities() >> SYS_PTRACE & 1 == 1 {
        return false;
    }
    let path = std::path::Path::new("/proc/self/mountinfo");
    procfile::whole(path).map_or_else(|| path.exists(), |mounts| mounts.split(|&b| b == b'\n').any(is_hiding))
}

/// `36 35 0:5 / /proc options - proc source options`; hidepid=0, off before Linux 5.8, is not shown.
fn is_hiding(mount: &[u8]) -> bool {
    let has = |part: &[u8]| mount.windows(part.len()).any(|at| at == part);
    has(b" /proc ") && has(b" - proc ") && has(b"hidepid=")
}

const LIST: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

fn each_number(list: &OwnedFd, mut each: impl FnMut(i32) -> bool) -> Result<bool, Errno> {
    let mut buffer = [0u8; 8192];
    loop {
        // SAFETY: getdents64 writes at most the length given into the buffer, which is valid for that many bytes.
        let n = unsafe { libc::syscall(libc::SYS_getdents64, list.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
        let n = Errno::result(n).map(|n| usize::try_from(n).unwrap_or(0))?;
        if n == 0 {
            return Ok(true);
        }
        let mut entries = buffer.get(..n).unwrap_or_default();
        // struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name; the kernel writes it, lengths are its own.
        while let Some(&[low, high]) = entries.get(16..18) {
            let length = usize::from(u16::from_ne_bytes([low, high]));
            let name = entries.get(19..length).and_then(|n| n.split(|&b| b == 0).next()).unwrap_or_default();
            if let Some(number) = number(name).filter(|&n: &i32| n >= 0)
                && !each(number)
            {
                return Ok(false);
            }
            entries = entries.get(length.max(19)..).unwrap_or_default();
        }
    }
}

/// Bytes of a list of children that are read: some 9,000 of them.
const CHILDREN: u64 = 64 * 1024;

/// The longest path made below `/proc`, two numbers in it, and its NUL.
pub(super) const PATH: usize = 40;

/// A path below `/proc`, written into `buffer`.
pub(super) fn below<'a>(
    buffer: &'a mut [u8; PATH],
    path: std::fmt::Arguments<'_>,
) -> Result<&'a std::ffi::CStr, Errno> {
    use std::io::Write;
    let mut cursor = std::io::Cursor::new(buffer.as_mut_slice());
    write!(cursor, "{path}\0").map_err(|_| Errno::ENAMETOOLONG)?;
    std::ffi::CStr::from_bytes_until_nul(buffer).map_err(|_| Errno::EINVAL)
}

/// The hostname (gethostname(2)): in a pod, the pod's name.
#[must_use]
pub fn hostname() -> Option<String> {
    nix::unistd::gethostname().ok().map(|h| h.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_proc_that_hides() {
        assert!(is_hiding(b"22 28 0:21 / /proc rw,nosuid - proc proc rw,hidepid=invisible"));
        assert!(!is_hiding(b"22 28 0:21 / /proc rw,nosuid - proc proc rw"));
        assert!(!is_hiding(b"22 28 0:21 / /mnt rw,nosuid - proc proc rw,hidepid=2"));
    }

    #[test]
    fn the_corpus() {
        for (name, bytes) in crate::corpus::files("stat") {
            assert_eq!(Stat::parse(&bytes).is_some(), name != "short", "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_mutation_of_the_corpus_panics(bytes in crate::corpus::mutated("stat")) {
            if let Some(stat) = Stat::parse(&bytes) {
                prop_assert!(stat.name().len() <= 16);
            }
        }

        /// Whatever a process calls itself, it is found under its own parent.
        #[test]
        fn no_name_misleads(name in prop::collection::vec(1u8.., 0..16), pid in 1i32.., ppid in 0i32..) {
            let mut line = format!("{pid} (").into_bytes();
            line.extend(&name);
            line.extend(format!(") S {ppid} 3 4 0 -1 4194304 1 2 3 4 50 60 7 8 20 0 9 0 1234 5 77 18446744073709551615\n").as_bytes());
            let stat = Stat::parse(&line).unwrap();
            prop_assert_eq!((stat.pid, stat.ppid, stat.pgrp, stat.session, stat.state), (pid, ppid, 3, 4, b'S'));
            prop_assert_eq!((stat.utime, stat.stime, stat.threads, stat.start, stat.rss_pages), (50, 60, 9, 1234, 77));
            prop_assert_eq!(stat.name(), &name[..]);
        }
    }
}
