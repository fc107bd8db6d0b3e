//! System V IPC of this namespace (`/proc/sysvipc`, shmctl(2), semctl(2), msgctl(2)) and POSIX queues (`/dev/mqueue`).
//!
//! Invariant: a table is read through one fixed buffer, whatever a workload put into it.

use super::{entries, files, procfile};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Shared memory.
    Memory,
    /// Semaphores.
    Semaphores,
    /// Message queues.
    Queue,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Queue, Self::Semaphores];

    /// The file that has them.
    fn table(self) -> &'static Path {
        Path::new(match self {
            Self::Memory => "/proc/sysvipc/shm",
            Self::Semaphores => "/proc/sysvipc/sem",
            Self::Queue => "/proc/sysvipc/msg",
        })
    }
}

/// A System V object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Its identifier, which the kernel uses again after some millions of others.
    pub id: i32,
    /// Its creator's effective UID.
    pub creator: u32,
    /// A process of this PID namespace made it (shared memory) or was the last to use it (queues); `used_here` finds it out for
    /// semaphores.
    pub ours: Option<bool>,
    /// Somebody used it.
    pub used: bool,
    /// Shared memory that was removed and goes with its last user.
    pub doomed: bool,
    /// Who made it (shared memory), or its key: neither ever changes.
    mark: i32,
    /// Its owner's UID and GID, which are not always the creator's.
    owner: (u32, u32),
    /// Its permissions.
    mode: u16,
    /// How many semaphores it has.
    count: i32,
}

/// What tells an object from one that got its identifier later, as far as anything does.
pub type Identity = (Kind, i32, i32, u32);

impl Object {
    /// Its identity.
    #[must_use]
    pub fn identity(&self) -> Identity {
        (self.kind, self.id, self.mark, self.creator)
    }

    /// One line of proc_sysvipc(5). Process ids are those of this namespace, and 0 for a process outside.
    fn parse(kind: Kind, line: &[u8]) -> Option<Self> {
        let mut words = [""; 14];
        let line = std::str::from_utf8(line).ok()?;
        words.iter_mut().zip(line.split_ascii_whitespace()).for_each(|(to, word)| *to = word);
        let at = |n: usize| words.get(n)?.parse::<i64>().ok();
        let int = |n: usize| i32::try_from(at(n)?).ok();
        let user = |n: usize| u32::try_from(at(n)?).ok();
        let mode = u16::from_str_radix(words.get(2)?, 8).ok()?;
        let (mark, uid, ours, used, count) = match kind {
            // key shmid perms size cpid lpid nattch uid gid cuid cgid …
            Kind::Memory => (int(4)?, 7, Some(at(4)? != 0), true, 0),
            // key semid perms nsems uid gid cuid cgid otime ctime
            Kind::Semaphores => (int(0)?, 4, None, at(8)? != 0, int(3)?),
            // key msqid perms cbytes qnum lspid lrpid uid gid cuid cgid stime rtime ctime
            Kind::Queue => (int(0)?, 7, Some(at(5)? != 0 || at(6)? != 0), at(11)? != 0 || at(12)? != 0, 0),
        };
        // SHM_DEST of linux/shm.h.
        let doomed = kind == Kind::Memory && mode & 0o1000 != 0;
        let (owner, creator) = ((user(uid)?, user(uid + 1)?), user(uid + 2)?);
        Some(Self { kind, id: int(1)?, creator, ours, used, doomed, mark, owner, mode, count })
    }
}

/// Calls `found` with every object of a kind while it answers `true`. One that comes or goes meanwhile may hide another one: who
/// removes some has to look again.
///
/// # Errors
/// Those of open(2) and read(2), where there are objects or there may be.
pub fn each(kind: Kind, mut found: impl FnMut(&Object) -> bool) -> Result<(), Errno> {
    let count = in_use(kind);
    if count == Some(0) {
        return Ok(());
    }
    let fd = match nix::fcntl::open(kind.table(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
        // A kernel without this kind, which does not count it either.
        Err(Errno::ENOENT) if count.is_none() => return Ok(()),
        result => result?,
    };
    let mut headed = false;
    each_line(
        |buffer| nix::unistd::read(&fd, buffer),
        |line| !std::mem::replace(&mut headed, true) || Object::parse(kind, line).is_none_or(|object| found(&object)),
    )
}

/// Calls `each` with every whole line that `read` gives, in whatever pieces, while it answers `true`.
fn each_line(
    mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
    mut each: impl FnMut(&[u8]) -> bool,
) -> Result<(), Errno> {
    let mut buffer = [0; 4096];
    let mut held = 0usize;
    loop {
        let more = match read(buffer.get_mut(held..).unwrap_or_default()) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        if more == 0 {
            return Ok(());
        }
        held = held.saturating_add(more).min(buffer.len());
        let mut rest = buffer.get(..held).unwrap_or_default();
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            if !each(rest.get(..end).unwrap_or_default()) {
                return Ok(());
            }
            rest = rest.get(end.saturating_add(1)..).unwrap_or_default();
        }
        // No line is as long as the buffer: what has no end there is none.
        let begun = if rest.len() < buffer.len() { rest.len() } else { 0 };
        buffer.copy_within(held.saturating_sub(begun)..held, 0);
        held = begun;
    }
}

/// Whether there is none of them at all, by one bounded look: a workload may have made tens of thousands.
#[must_use]
pub fn is_empty() -> bool {
    let headed_only = |kind: Kind| procfile::text(kind.table()).is_some_and(|text| text.lines().nth(1).is_none());
    let none = |kind: Kind| in_use(kind).map_or_else(|| headed_only(kind), |count| count == 0);
    Kind::ALL.into_iter().all(none) && posix_queues_are_empty()
}

/// How many of a kind there are in this namespace, asked of the kernel without reading its table (SHM_INFO, SEM_INFO and MSG_INFO of
/// shmctl(2), semctl(2), msgctl(2); their structures are in linux/shm.h, sem.h, msg.h). `None` where it does not say.
#[must_use]
pub fn in_use(kind: Kind) -> Option<i32> {
    const SHM_INFO: i32 = 14;
    const SEM_INFO: i32 = 19;
    const MSG_INFO: i32 = 12;
    // Larger than any of the three: 48, 40 and 32 bytes.
    let mut info = [0i64; 16];
    let at = info.as_mut_ptr();
    // SAFETY: each writes its structure to the address, which is that of 128 bytes of ours, aligned for the longs in them.
    let answer = unsafe {
        match kind {
            Kind::Memory => libc::shmctl(0, SHM_INFO, at.cast()),
            Kind::Semaphores => libc::semctl(0, 0, SEM_INFO, at),
            Kind::Queue => libc::msgctl(0, MSG_INFO, at.cast()),
        }
    };
    Errno::result(answer).ok()?;
    // shm_info.used_ids and msginfo.msgpool are the first int, seminfo.semusz is the eighth.
    let (word, high) = if kind == Kind::Semaphores { (3, true) } else { (0, false) };
    let bytes = info.get(word)?.to_ne_bytes();
    let half = if high { bytes.last_chunk::<4>() } else { bytes.first_chunk::<4>() };
    half.map(|half| i32::from_ne_bytes(*half))
}

fn posix_queues_are_empty() -> bool {
    let mut empty = true;
    each_posix_queue(|_, _| {
        empty = false;
        false
    });
    empty
}

/// Whether a process of this PID namespace was the last to change one of the set's semaphores: `false` also where its mode keeps
/// that from us, `None` where `is_over` ended it. Each semaphore is one call, and a set may have 32,000.
#[must_use]
pub fn used_here(set: &Object, is_over: &dyn Fn() -> bool) -> Option<bool> {
    let mut opened = false;
    let mut answer = Some(false);
    let mut number = 0;
    while number < set.count {
        if number & 15 == 15 && is_over() {
            answer = None;
            break;
        }
        // SAFETY: GETPID takes three integers and writes nothing.
        match Errno::result(unsafe { libc::semctl(set.id, number, libc::GETPID) }) {
            Ok(0) => number = number.saturating_add(1),
            Ok(_) => return Some(true),
            // Its owner is always allowed to allow it.
            Err(Errno::EACCES) if !opened && change_mode(set, set.mode | 0o400).is_ok() => opened = true,
            Err(_) => break,
        }
    }
    if opened {
        // It may be somebody else's.
        let _ = change_mode(set, set.mode);
    }
    answer
}

/// A set's permissions (IPC_SET of semctl(2)); its owner stays.
// The mode is a u32 in musl.
#[allow(clippy::useless_conversion)]
fn change_mode(set: &Object, mode: u16) -> Result<(), Errno> {
    /// struct semid_ds, of which IPC_SET reads the permissions; what follows them is at most 80 bytes.
    #[repr(C)]
    struct Permissions(libc::ipc_perm, [u64; 16]);
    // SAFETY: integers, for which zero is a value.
    let mut to: Permissions = unsafe { std::mem::zeroed() };
    (to.0.uid, to.0.gid, to.0.mode) = (set.owner.0, set.owner.1, mode.into());
    // SAFETY: IPC_SET reads a struct semid_ds, which `to` is as long as.
    Errno::result(unsafe { libc::semctl(set.id, 0, libc::IPC_SET, &raw mut to) }).map(drop)
}

/// Removes one.
///
/// # Errors
/// `EPERM` for somebody else's, `EINVAL` for one that is gone.
pub fn remove(object: &Object) -> Result<(), Errno> {
    // SAFETY: IPC_RMID reads and writes no memory of the caller's.
    let result = unsafe {
        match object.kind {
            Kind::Memory => libc::shmctl(object.id, libc::IPC_RMID, std::ptr::null_mut()),
            Kind::Semaphores => libc::semctl(object.id, 0, libc::IPC_RMID),
            Kind::Queue => libc::msgctl(object.id, libc::IPC_RMID, std::ptr::null_mut()),
        }
    };
    Errno::result(result).map(drop)
}

/// Calls `each` with `/dev/mqueue` and every POSIX queue in it while it answers `true`; with none where that is not what
/// mq_overview(7) says.
pub fn each_posix_queue(mut each: impl FnMut(BorrowedFd<'_>, &entries::Entry<'_>) -> bool) {
    const MQUEUE: i64 = 0x1980_0202;
    let Ok(dir) = files::open_path(Path::new("/dev/mqueue")) else { return };
    if files::file_system(dir.as_fd()) != MQUEUE {
        return;
    }
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = entries::read_entries(dir.as_fd(), &mut buffer) {
        let mut at = 0;
        while let Some((entry, next)) = entries::entry(buffer.get(..read).unwrap_or_default(), at) {
            if entry.kind != libc::DT_DIR && !each(dir.as_fd(), &entry) {
                return;
            }
            at = next;
        }
    }
}

/// Removes the POSIX queue `name` where `owner` owns it; whether it did.
///
/// # Errors
/// What unlink(2) answers; `ENOENT` for one that is gone.
pub fn remove_posix_queue(dir: BorrowedFd<'_>, name: &CStr, owner: u32) -> Result<bool, Errno> {
    match files::owner(dir, name) {
        None => Err(Errno::ENOENT),
        Some(uid) if uid != owner => Ok(false),
        Some(_) => files::unlink(dir, name).map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counts_are_the_tables() {
        // SAFETY: each takes integers and makes an object that this test removes.
        let made = unsafe {
            [
                (Kind::Memory, libc::shmget(libc::IPC_PRIVATE, 4096, 0o600)),
                (Kind::Semaphores, libc::semget(libc::IPC_PRIVATE, 1, 0o600)),
                (Kind::Queue, libc::msgget(libc::IPC_PRIVATE, 0o600)),
            ]
        };
        for (kind, id) in made {
            assert!(id >= 0, "{kind:?}: {:?}", Errno::last());
            // Others may make and remove some meanwhile.
            let agree = (0..1000).any(|_| {
                let lines = procfile::lossy(&procfile::whole(kind.table()).unwrap()).lines().count();
                in_use(kind).and_then(|n| usize::try_from(n).ok()) == lines.checked_sub(1)
            });
            assert!(agree, "{kind:?}: {:?}", in_use(kind));
            assert!(in_use(kind) > Some(0) && !is_empty());
            let mut found = None;
            each(kind, |object| {
                found = (object.id == id).then_some(*object).or(found);
                found.is_none()
            })
            .unwrap();
            let object = found.unwrap();
            assert_eq!((object.mode, object.doomed, object.creator), (0o600, false, nix::unistd::geteuid().as_raw()));
            if kind == Kind::Semaphores {
                opening_a_set(&object);
            }
            assert_eq!(remove(&object), Ok(()));
        }
    }

    /// Nobody may read it and it was used: found out, and its mode is what it was only where it stays.
    fn opening_a_set(set: &Object) {
        let again = || {
            let mut found = None;
            each(Kind::Semaphores, |o| {
                found = (o.id == set.id).then_some(*o).or(found);
                true
            })
            .unwrap();
            found.unwrap()
        };
        assert_eq!(used_here(set, &|| false), Some(false));
        // SAFETY: SETVAL takes integers.
        assert_eq!(unsafe { libc::semctl(set.id, 0, libc::SETVAL, 1) }, 0);
        change_mode(set, 0o200).unwrap();
        let shut = again();
        assert_eq!((shut.mode, shut.owner), (0o200, set.owner));
        assert_eq!(used_here(&shut, &|| false), Some(true));
    }

    #[test]
    fn lines_are_whole_however_they_are_read() {
        let text: Vec<u8> = (0..3000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        for piece in [1, 7, 4095, 4096, 100_000] {
            let (mut at, mut count) = (0, 0);
            each_line(
                |buffer| {
                    let n = piece.min(buffer.len()).min(text.len() - at);
                    buffer[..n].copy_from_slice(&text[at..at + n]);
                    at += n;
                    Ok(n)
                },
                |line| {
                    assert_eq!(line, format!("line {count}").as_bytes());
                    count += 1;
                    true
                },
            )
            .unwrap();
            assert_eq!(count, 3000, "{piece}");
        }
        // One without an end is passed over, and no reason to stop.
        let (mut reads, mut ends) = (0, 0);
        let endless = |buffer: &mut [u8]| {
            reads += 1;
            buffer.fill(if reads < 5 { b'x' } else { b'\n' });
            Ok(if reads < 6 { buffer.len() } else { 0 })
        };
        each_line(endless, |_| {
            ends += 1;
            true
        })
        .unwrap();
        assert_eq!(ends, 4096);
    }

    #[test]
    fn a_line_of_each_table() {
        let line = b"        17      32769  1600       4096     0    12      1 65532 65533 65534 65535          1          2          3   4   5";
        let memory = Object::parse(Kind::Memory, line).unwrap();
        assert_eq!((memory.id, memory.creator, memory.ours, memory.doomed), (32769, 65534, Some(false), true));
        let queue = Object::parse(Kind::Queue, line).unwrap();
        assert_eq!((queue.mark, queue.ours, queue.used, queue.owner), (17, Some(true), true, (65532, 65533)));
        let set = Object::parse(Kind::Semaphores, b"-5 3 200 32000 1 2 3 4 0 9").unwrap();
        assert_eq!((set.mark, set.count, set.used, set.mode, set.ours), (-5, 32_000, false, 0o200, None));
        assert_eq!((set.owner, set.creator), ((1, 2), 3));
        for bad in
            [&b""[..], b"key semid perms", b"0 0 9 1 1 1 1 1 1 1", b"\xff 1 600", b"0 99999999999 600 1 1 1 1 1 1 1"]
        {
            assert!(Kind::ALL.into_iter().all(|kind| Object::parse(kind, bad).is_none()), "{bad:?}");
        }
    }
}
