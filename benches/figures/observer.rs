//! When everything of a tree is reaped, seen from outside and without a part in it.
//!
//! Every process of the tree has a FIFO open for writing: its end of file says that all have exited. Who is not reaped by then is
//! waited for through its pidfd (POLLHUP, Linux 6.9), one after another. So the bench sleeps while they die, and nobody of the tree
//! wakes it but the last. Not one look at `/proc` is left at that time: each entry that anybody looked at makes its process's death
//! 5 µs longer (`proc_invalidate_siblings_dcache`), so they are found in an instance of procfs that is gone before the signal.

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use std::fs::{DirEntry, File};
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Where the tree finds the FIFO; no workload's guard takes it.
pub const ALIVE: &str = "/mnt/alive/fifo";

/// Makes the FIFO.
pub fn place() {
    std::fs::create_dir("/mnt/alive").unwrap();
    nix::mount::mount(Some("none"), "/mnt/alive", Some("tmpfs"), nix::mount::MsFlags::empty(), Some("mode=755"))
        .unwrap();
    mkfifo(ALIVE, Mode::empty()).unwrap();
    // Not the mode of mkfifo(3), from which the umask is taken.
    std::fs::set_permissions(ALIVE, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
}

/// A tree of processes that are alive, each held by a pidfd.
pub struct Observer {
    alive: File,
    held: Vec<OwnedFd>,
}

impl Observer {
    /// Opens the FIFO: waits until the tree has it open as well.
    pub fn fifo() -> File {
        File::open(ALIVE).unwrap()
    }

    /// Holds the `size` processes of the tree, which are in the mount namespace of `beside`.
    pub fn of(alive: File, beside: Pid, size: usize) -> Self {
        // Not before the spawn: the tree would inherit it.
        setrlimit(Resource::RLIMIT_NOFILE, size as u64 + 64, size as u64 + 64).unwrap();
        let held: Vec<_> = tree(beside).into_iter().map(pidfd).collect();
        assert_eq!(held.len(), size, "so many are there");
        at_once();
        Self { alive, held }
    }

    /// Waits until all are reaped.
    pub fn reaped(mut self) {
        assert_eq!(self.alive.read(&mut [0]).unwrap(), 0, "an end of file");
        let mut left: Vec<_> =
            self.held.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: 0, revents: 0 }).collect();
        loop {
            poll(&mut left, 0);
            left.retain(|fd| fd.revents & libc::POLLHUP == 0);
            // In the order they came: the last to die is mostly the last to be reaped.
            let Some(last) = left.last_mut() else { return };
            poll(std::slice::from_mut(last), -1);
        }
    }
}

/// Whoever is woken runs before all others (sched(7)): else, on PID 1's CPU, it would see the last reaping when PID 1 is through with
/// everything that comes after. Not those that are observed.
fn at_once() {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: sched_setscheduler(2) reads the structure.
    Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) }).unwrap();
}

fn poll(fds: &mut [libc::pollfd], timeout: libc::c_int) {
    // SAFETY: poll(2) writes to `fds`, whose length it is given.
    Errno::result(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) }).unwrap();
}

fn pidfd(pid: Pid) -> OwnedFd {
    // SAFETY: pidfd_open(2) takes two integers; the descriptor is nobody else's.
    unsafe { owned(libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0)) }
}

/// The processes called `worker tree` in the mount namespace of `beside`, by their numbers here.
fn tree(beside: Pid) -> Vec<Pid> {
    enter_procfs();
    let namespace = |pid: Pid| std::fs::read_link(format!("{pid}/ns/mnt"));
    let theirs = namespace(beside).unwrap();
    let numbered =
        |entry: std::io::Result<DirEntry>| Some(Pid::from_raw(entry.unwrap().file_name().to_str()?.parse().ok()?));
    let is_tree = |pid: &Pid| {
        std::fs::read(format!("{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"/mnt/worker\0tree\0"))
            && namespace(*pid).is_ok_and(|own| own == theirs)
    };
    let found = std::fs::read_dir(".").unwrap().filter_map(numbered).filter(is_tree).collect();
    // With the last that holds it the instance is gone, and its entries with it.
    std::env::set_current_dir("/").unwrap();
    found
}

/// Makes an instance of procfs that is mounted nowhere, and goes there.
fn enter_procfs() {
    /// FSCONFIG_CMD_CREATE (linux/mount.h)
    const CREATE: libc::c_int = 6;
    let none = std::ptr::null::<u8>();
    // SAFETY: fsopen(2) takes a string and an integer; the descriptor is nobody else's.
    let context = unsafe { owned(libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), 0)) };
    // SAFETY: fsconfig(2) takes no strings with this command, and fsmount(2) integers; the descriptor is nobody else's.
    let mount = unsafe {
        Errno::result(libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CREATE, none, none, 0)).unwrap();
        owned(libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 0, 0))
    };
    nix::unistd::fchdir(&mount).unwrap();
}

/// # Safety
/// What a system call returned: an error, or a descriptor that is nobody else's.
unsafe fn owned(returned: libc::c_long) -> OwnedFd {
    let fd = Errno::result(returned).unwrap();
    // SAFETY: as the caller says.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}
