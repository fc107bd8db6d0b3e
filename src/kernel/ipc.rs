//! System V IPC of this namespace (`/proc/sysvipc`, shmctl(2), semctl(2), msgctl(2)) and POSIX queues (`/dev/mqueue`).

use super::files;
use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
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

/// Where `/proc/sysvipc` has them.
const TABLES: [(Kind, &str); 3] = [(Kind::Memory, "shm"), (Kind::Semaphores, "sem"), (Kind::Queue, "msg")];

/// A System V object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Its identifier, which the kernel does not use again soon.
    pub id: i32,
    /// Its creator's effective UID.
    pub creator: u32,
    /// A process of this PID namespace made it (shared memory) or was the last to use it.
    pub ours: bool,
    /// Somebody used it.
    pub used: bool,
}

/// Every System V object that can be seen.
#[must_use]
pub fn objects() -> Vec<Object> {
    let mut all = Vec::new();
    for (kind, file) in TABLES.into_iter().filter(|&(kind, _)| in_use(kind) != Some(0)) {
        let text = files::whole(&Path::new("/proc/sysvipc").join(file)).unwrap_or_default();
        all.extend(files::lossy(&text).lines().skip(1).filter_map(|line| object(kind, line)));
    }
    all
}

/// Whether there is none of them at all, by one bounded look: a workload may have made tens of thousands.
#[must_use]
pub fn is_empty() -> bool {
    let headed_only = |file: &str| {
        let text = files::text(&Path::new("/proc/sysvipc").join(file));
        text.is_some_and(|text| text.lines().nth(1).is_none())
    };
    let none = |(kind, file): (Kind, &str)| in_use(kind).map_or_else(|| headed_only(file), |count| count == 0);
    TABLES.into_iter().all(none) && posix_queues_are_empty()
}

/// How many of a kind there are in this namespace, asked of the kernel without reading its table (SHM_INFO, SEM_INFO and MSG_INFO of
/// shmctl(2), semctl(2), msgctl(2); their structures are in linux/shm.h, sem.h, msg.h). `None` where it does not say.
fn in_use(kind: Kind) -> Option<i32> {
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
    each_posix_queue(|_| {
        empty = false;
        false
    });
    empty
}

/// One line of proc_sysvipc(5). Process ids are those of this namespace, and 0 for a process outside.
fn object(kind: Kind, line: &str) -> Option<Object> {
    let fields: Vec<i64> = line.split_whitespace().map(|w| w.parse().unwrap_or(0)).collect();
    let at = |n: usize| fields.get(n).copied();
    let id = i32::try_from(at(1)?).ok()?;
    let (creator, ours, used) = match kind {
        // key shmid perms size cpid lpid nattch uid gid cuid cgid …
        Kind::Memory => (at(9)?, at(4)? != 0, true),
        // key semid perms nsems uid gid cuid cgid otime ctime
        Kind::Semaphores => (at(6)?, used_here(id, at(3)?), at(8)? != 0),
        // key msqid perms cbytes qnum lspid lrpid uid gid cuid cgid stime rtime ctime
        Kind::Queue => (at(9)?, at(5)? != 0 || at(6)? != 0, at(11)? != 0 || at(12)? != 0),
    };
    Some(Object { kind, id, creator: u32::try_from(creator).ok()?, ours, used })
}

/// Whether a process of this namespace was the last to change one of the set's semaphores.
fn used_here(id: i32, count: i64) -> bool {
    (0..i32::try_from(count).unwrap_or(0)).any(|n| {
        // SAFETY: GETPID takes three integers and writes nothing.
        unsafe { libc::semctl(id, n, libc::GETPID) > 0 }
    })
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

/// The names of the POSIX queues; nothing where `/dev/mqueue` is not what mq_overview(7) says.
#[must_use]
pub fn posix_queues() -> Vec<CString> {
    let mut names = Vec::new();
    each_posix_queue(|name| {
        names.push(name.to_owned());
        true
    });
    names
}

/// Calls `each` with every queue's name while it answers `true`.
fn each_posix_queue(mut each: impl FnMut(&CStr) -> bool) {
    const MQUEUE: i64 = 0x1980_0202;
    let Ok(dir) = files::open_path(Path::new("/dev/mqueue")) else { return };
    if files::file_system(dir.as_fd()) != MQUEUE {
        return;
    }
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = files::read_entries(dir.as_fd(), &mut buffer) {
        let mut at = 0;
        while let Some((entry, next)) = files::entry(buffer.get(..read).unwrap_or_default(), at) {
            if entry.kind != libc::DT_DIR && !each(entry.name) {
                return;
            }
            at = next;
        }
    }
}

/// Removes the POSIX queue `name` of `owner`.
///
/// # Errors
/// `EPERM` where it is not that user's, else what unlink(2) answers.
pub fn remove_posix_queue(name: &CString, owner: u32) -> Result<(), Errno> {
    let dir = files::open_path(Path::new("/dev/mqueue"))?;
    if files::owner(dir.as_fd(), name) != Some(owner) {
        return Err(Errno::EPERM);
    }
    files::unlink(dir.as_fd(), name)
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
            let file = TABLES.iter().find(|table| table.0 == kind).unwrap().1;
            let path = Path::new("/proc/sysvipc").join(file);
            // Others may make and remove some meanwhile.
            let agree = (0..1000).any(|_| {
                let lines = files::lossy(&files::whole(&path).unwrap()).lines().count();
                in_use(kind).and_then(|n| usize::try_from(n).ok()) == lines.checked_sub(1)
            });
            assert!(agree, "{kind:?}: {:?}", in_use(kind));
            assert!(in_use(kind) > Some(0) && !is_empty());
            assert!(objects().iter().any(|o| (o.kind, o.id) == (kind, id)));
            let object = Object { kind, id, creator: 0, ours: true, used: true };
            assert_eq!(remove(&object), Ok(()));
        }
    }
}
