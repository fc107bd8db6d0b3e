//! Fork, confine, exec, and the handshake that tells the parent how it went.
//!
//! Everything the child needs is made before the fork; between fork and exec there is no allocation, no lock and no
//! call that is not async-signal-safe (signal-safety(7)). The handshake pipe is close-on-exec: end of file without a
//! failure message is a successful exec. A second pipe holds the child before its exec until it is released: it confines
//! itself while the parent reads what its workload is measured against, and nothing runs that nobody watches.

use super::signals;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigmaskHow, sigprocmask};
use nix::unistd::{ForkResult, Pid};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The longest report of the steps before exec.
pub const REPORT: usize = 256;

/// What the child does before exec; it must not allocate and not return early. It writes what became of its steps into
/// the report, and is told which descriptors to keep.
pub trait Prepare {
    /// Runs in the child.
    fn apply(&self, keep: &[RawFd], report: &mut [u8; REPORT]);
}

/// A command made ready for execve(2): every candidate path, the arguments and the environment as C strings.
#[derive(Debug)]
pub struct Command {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    shell_argv: Vec<CString>,
    envp: Vec<CString>,
    workdir: Option<CString>,
}

impl Command {
    /// Makes the command ready. A word without a slash is looked for along the workload's PATH, as execvp(3) does; where
    /// there is no PATH, along `/usr/local/bin:/usr/bin:/bin` plus the administrator's directories.
    ///
    /// # Errors
    /// `EINVAL` for a NUL byte inside a word, `ENOENT` for an empty command.
    pub fn new(
        words: &[OsString],
        env: &[(OsString, OsString)],
        workdir: Option<&std::path::Path>,
    ) -> Result<Self, Errno> {
        let c = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| Errno::EINVAL);
        let name = words.first().ok_or(Errno::ENOENT)?;
        if name.is_empty() {
            return Err(Errno::ENOENT);
        }
        let candidates = if name.as_bytes().contains(&b'/') {
            vec![c(name.as_bytes().to_vec())?]
        } else {
            let path = env.iter().find(|(k, _)| k == "PATH").map_or_else(
                || OsStr::new("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
                |(_, v)| v.as_os_str(),
            );
            path.as_bytes()
                .split(|&b| b == b':')
                .map(|dir| {
                    let mut full = if dir.is_empty() { b".".to_vec() } else { dir.to_vec() };
                    full.push(b'/');
                    full.extend_from_slice(name.as_bytes());
                    c(full)
                })
                .collect::<Result<_, _>>()?
        };
        let argv: Vec<CString> = words.iter().map(|w| c(w.as_bytes().to_vec())).collect::<Result<_, _>>()?;
        // For a file without a magic number (ENOEXEC), as execvp(3): /bin/sh FILE ARG…; the file's slot is filled by
        // the candidate at the time.
        let mut shell_argv = vec![c(b"/bin/sh".to_vec())?, CString::default()];
        shell_argv.extend(argv.iter().skip(1).cloned());
        let envp = env.iter().map(|(k, v)| c([k.as_bytes(), b"=", v.as_bytes()].concat())).collect::<Result<_, _>>()?;
        let workdir = workdir.map(|w| c(w.as_os_str().to_owned().into_vec())).transpose()?;
        Ok(Self { candidates, argv, shell_argv, envp, workdir })
    }

    /// The one file that is to be executed: the first candidate that is a regular file this UID may execute, by the real
    /// path of its directory and its own name. The name's last link is left alone: a multi-call binary is another program
    /// under each of its names. `from` is where the child will stand.
    ///
    /// # Errors
    /// `ENOENT` where there is none, `EACCES` where one is there that cannot be executed.
    pub fn locate(&self, from: &std::path::Path) -> Result<std::path::PathBuf, Errno> {
        let mut errno = Errno::ENOENT;
        for path in self.wanted(from) {
            if let Some(place) = place(&path) {
                if place.is_file() && nix::unistd::access(&place, nix::unistd::AccessFlags::X_OK).is_ok() {
                    return Ok(place);
                }
                errno = if place.exists() { Errno::EACCES } else { errno };
            }
        }
        Err(errno)
    }

    /// Every path it is looked for at, seen from where the child will stand.
    pub fn wanted(&self, from: &std::path::Path) -> impl Iterator<Item = std::path::PathBuf> {
        self.candidates.iter().map(move |candidate| from.join(OsStr::from_bytes(candidate.to_bytes())))
    }

    /// From now on this path and no other is executed.
    ///
    /// # Errors
    /// `EINVAL` for a NUL byte.
    pub fn only(&mut self, path: &std::path::Path) -> Result<(), Errno> {
        self.candidates = vec![CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?];
        Ok(())
    }

    /// The first candidate that is there: what the record calls the executable.
    #[must_use]
    pub fn found(&self) -> Option<&CStr> {
        self.candidates
            .iter()
            .map(CString::as_c_str)
            .find(|c| nix::unistd::access(*c, nix::unistd::AccessFlags::X_OK).is_ok())
    }
}

/// The directory's real path with the entry's own name; `None` where the directory is not there or the path names one
/// (`/`, `..`, a trailing slash).
#[must_use]
pub fn place(path: &std::path::Path) -> Option<std::path::PathBuf> {
    if path.as_os_str().as_bytes().ends_with(b"/") || path.as_os_str().as_bytes().ends_with(b"/.") {
        return None;
    }
    Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?))
}

/// A running child and the reading end of its handshake.
#[derive(Debug)]
pub struct Child {
    /// Its pid; it is ours to reap, so the number is not reused before we do.
    pub pid: i32,
    handshake: OwnedFd,
    message: Vec<u8>,
    go: Option<OwnedFd>,
}

/// What the handshake said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// Nothing final yet.
    Pending,
    /// The exec succeeded, or the child was killed before it.
    Launched,
    /// The named call failed.
    Failed(&'static str, Errno),
}

/// What releases it.
const GO: &[u8] = b"!";
const FAILED_EXEC: u8 = 1;
const FAILED_CHDIR: u8 = 2;
const FAILED_DUP: u8 = 3;
const TAIL: usize = 5;

impl Child {
    /// The handshake's descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.handshake.as_fd()
    }

    /// Lets it execute its command.
    pub fn release(&mut self) {
        if let Some(go) = self.go.take() {
            // Refused where it is gone already (EPIPE), which its end will tell. Any other refusal is tried again: without a go the
            // command would never run, and nobody would have said why.
            let _ = (0..3).any(|_| nix::unistd::write(&go, GO) == Ok(GO.len()));
        }
    }

    /// Reads what is there.
    pub fn handshake(&mut self) -> Handshake {
        let mut buffer = [0u8; REPORT + TAIL];
        loop {
            match nix::unistd::read(&self.handshake, &mut buffer) {
                Ok(0) => return self.outcome(),
                Ok(n) if self.message.len() < 2 * buffer.len() => {
                    self.message.extend_from_slice(buffer.get(..n).unwrap_or_default());
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Handshake::Pending,
                Err(_) => return self.outcome(),
            }
        }
    }

    /// The report of the steps before exec, once it has come.
    #[must_use]
    pub fn report(&self) -> Option<&[u8]> {
        self.message.get(..REPORT)
    }

    fn outcome(&self) -> Handshake {
        match self.message.get(REPORT..REPORT + TAIL) {
            Some(&[kind, a, b, c, d]) => {
                let errno = Errno::from_raw(i32::from_ne_bytes([a, b, c, d]));
                let call = match kind {
                    FAILED_CHDIR => "chdir",
                    FAILED_DUP => "dup2",
                    _ => "execve",
                };
                Handshake::Failed(call, errno)
            }
            _ => Handshake::Launched,
        }
    }
}

/// Forks and lets the child prepare and exec itself. `output`, both from 3 up, become its stdout and stderr.
///
/// # Errors
/// The errno of `pipe2(2)` or `fork(2)`; nothing runs then.
pub fn spawn(command: &Command, prepare: &dyn Prepare, output: Option<(RawFd, RawFd)>) -> Result<Child, Errno> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    // A descriptor closed at start must not become the pipe: the child would take it for its stdin.
    let write = above_stdio(write)?;
    let read = above_stdio(read)?;
    let (held, go) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let held = above_stdio(held)?;
    let go = above_stdio(go)?;
    let argv = pointers(&command.argv);
    let mut shell_argv = pointers(&command.shell_argv);
    let envp = pointers(&command.envp);
    let old = signals::old_mask();
    // SAFETY: the child calls only async-signal-safe functions on memory made above; the audit file's thread, which is not in it, has
    // nothing there that it needs.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => {
            drop((write, held));
            let message = Vec::with_capacity(2 * (REPORT + TAIL));
            Ok(Child { pid: child.as_raw(), handshake: read, message, go: Some(go) })
        }
        ForkResult::Child => {
            let out = write.as_raw_fd();
            // The only writing end is the parent's: it is closed with the parent.
            drop(go);
            let mut report = [0u8; REPORT];
            let mut kind = FAILED_EXEC;
            let mut errno = Errno::ENOENT;
            let mut ready = true;
            if let Some((stdout, stderr)) = output {
                // SAFETY: dup2(2) takes two integers; without its output counted the command must not run.
                if unsafe { libc::dup2(stdout, 1) } == -1 || unsafe { libc::dup2(stderr, 2) } == -1 {
                    (kind, errno, ready) = (FAILED_DUP, Errno::last(), false);
                }
            }
            prepare.apply(&[out.min(held.as_raw_fd()), out.max(held.as_raw_fd())], &mut report);
            put(out, &report);
            if let Some(dir) = command.workdir.as_ref().filter(|_| ready) {
                // SAFETY: chdir(2) reads a NUL-terminated string, which CString is.
                if unsafe { libc::chdir(dir.as_ptr()) } != 0 {
                    (kind, errno, ready) = (FAILED_CHDIR, Errno::last(), false);
                }
            }
            if ready && !is_released(&held) {
                // Nobody is left to supervise it.
                // SAFETY: as below.
                unsafe { libc::_exit(127) }
            }
            if ready {
                // Last: a stop that came since the start is delivered now, and ends the child as it should.
                let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&old), None);
                errno = exec(command, &argv, &mut shell_argv, &envp);
            }
            put(out, &[kind]);
            put(out, &(errno as i32).to_ne_bytes());
            // SAFETY: _exit(2) runs no destructor and no atexit handler, as a forked child must not.
            unsafe { libc::_exit(127) }
        }
    }
}

/// Waits for `Child::release`; false where the parent is gone.
fn is_released(held: &OwnedFd) -> bool {
    loop {
        match nix::unistd::read(held, &mut [0]) {
            Ok(n) => return n == 1,
            Err(Errno::EINTR) => {}
            // A kernel that refuses the read must not keep the command from running.
            Err(_) => return true,
        }
    }
}

/// Sets the child's group from the parent's side as well, so that a signal to the group cannot come too early.
pub fn set_group(child: i32) {
    // EACCES after its exec and ESRCH after its end both mean that the child's own call has already counted.
    let _ = nix::unistd::setpgid(Pid::from_raw(child), Pid::from_raw(child));
}

/// The descriptor, or a duplicate of it, from 3 up.
///
/// # Errors
/// The errno of `fcntl(2)`.
pub fn above_stdio(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    use std::os::fd::FromRawFd;
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    let raw = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: F_DUPFD_CLOEXEC just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Raw descriptor numbers of the forked child.
pub mod above {
    /// Closes one descriptor; EBADF is the usual answer and means nothing.
    pub fn close(fd: libc::c_uint) {
        if let Ok(fd) = i32::try_from(fd) {
            // SAFETY: close(2) on the child's own table; no owner in this process image outlives the exec.
            unsafe { libc::close(fd) };
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}

/// execvp(3)'s search, without its allocation: the first candidate that runs; EACCES is reported only if none was found.
fn exec(
    command: &Command,
    argv: &[*const libc::c_char],
    shell_argv: &mut [*const libc::c_char],
    envp: &[*const libc::c_char],
) -> Errno {
    let mut denied = None;
    for candidate in &command.candidates {
        // SAFETY: execve(2) needs a NUL-terminated path and two null-terminated arrays of such strings; `candidate` is a
        // CString, and `pointers` made the arrays from CStrings that live in `command`.
        unsafe { libc::execve(candidate.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        match Errno::last() {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ENODEV | Errno::ESTALE | Errno::ETIMEDOUT => {}
            Errno::EACCES => denied = Some(Errno::EACCES),
            Errno::ENOEXEC => {
                if let Some(slot) = shell_argv.get_mut(1) {
                    *slot = candidate.as_ptr();
                }
                // SAFETY: as above; the slot just filled points into `command`.
                unsafe { libc::execve(c"/bin/sh".as_ptr(), shell_argv.as_ptr(), envp.as_ptr()) };
                return Errno::ENOEXEC;
            }
            other => return other,
        }
    }
    denied.unwrap_or(Errno::ENOENT)
}

fn put(fd: RawFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: write(2) reads `bytes.len()` bytes from a valid slice.
        let n = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(n) {
            Ok(n @ 1..) => bytes = bytes.get(n..).unwrap_or_default(),
            _ if Errno::last() == Errno::EINTR => {}
            _ => return,
        }
    }
}
