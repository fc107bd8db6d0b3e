//! What tells the workload from everybody else where we are not PID 1: our seccomp filter, which everything that it starts inherits and
//! nothing can shed (seccomp(2)), as `/proc/PID/status` shows it: one filter more than the supervisor itself is under.
//!
//! Descent alone does not tell it: a process that was there before us and ends gives us its children, since orphans come to us. And a
//! number that was the workload's may be somebody else's when it is looked at.
//! Invariant: what cannot be looked at does not have it.

use super::proc::{Identity, Proc, Stat, below, number};
use crate::switches::without;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicI32, Ordering};

/// What a process is under (proc_pid_status(5)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Carried {
    /// `NoNewPrivs`; not in gVisor's.
    no_new_privs: Option<u64>,
    /// `Seccomp`: 2 with a filter; `None` without CONFIG_SECCOMP.
    mode: Option<u64>,
    /// `Seccomp_filters` (Linux 5.9); not in gVisor's.
    filters: Option<u64>,
}

impl Carried {
    fn line(&mut self, line: &[u8]) {
        for (name, field) in [
            (&b"NoNewPrivs:"[..], &mut self.no_new_privs),
            (b"Seccomp:", &mut self.mode),
            (b"Seccomp_filters:", &mut self.filters),
        ] {
            if let Some(value) = line.strip_prefix(name) {
                // The last one counts: the name, which may hold anything where the kernel does not escape it, comes first.
                *field = number(value);
            }
        }
    }

    /// Reads `/proc/PID/status` to its end, a line at a time: a list of 65,536 groups stands before what is looked for.
    fn read(proc_: &Proc, who: std::fmt::Arguments<'_>) -> Result<Self, Errno> {
        let mut path = [0u8; super::proc::PATH];
        let path = below(&mut path, format_args!("{who}/status"))?;
        let file = openat(proc_.root().as_fd(), path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut lines = Lines::default();
        let mut carried = Self::default();
        loop {
            match nix::unistd::read(&file, lines.room()) {
                Ok(0) => return Ok(carried),
                Ok(n) => lines.each(n, |line| carried.line(line)),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// Lines of any length, from a fixed buffer; of one that does not fit, nothing.
struct Lines {
    text: [u8; 2048],
    used: usize,
    cut: bool,
}

impl Default for Lines {
    fn default() -> Self {
        Self { text: [0; 2048], used: 0, cut: false }
    }
}

impl Lines {
    fn room(&mut self) -> &mut [u8] {
        self.text.get_mut(self.used..).unwrap_or_default()
    }

    /// Takes in the `n` bytes that were read into `room`.
    fn each(&mut self, n: usize, mut each: impl FnMut(&[u8])) {
        self.used = self.used.saturating_add(n).min(self.text.len());
        let mut from = 0;
        while let Some(rest) = self.text.get(from..self.used)
            && let Some(length) = rest.iter().position(|&b| b == b'\n')
        {
            if !std::mem::take(&mut self.cut) {
                each(rest.get(..length).unwrap_or_default());
            }
            from += length + 1;
        }
        self.text.copy_within(from..self.used, 0);
        self.used -= from;
        if self.used == self.text.len() {
            (self.used, self.cut) = (0, true);
        }
    }
}

/// By what it can be told here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// More filters than these, which are ours as well.
    Filters(u64),
    /// Any filter: we have none, and the kernel does not count.
    Mode,
    /// Not at all.
    None,
}

/// The mark, and what is known of who has it. Shared with whoever has to kill when the loop cannot.
#[derive(Debug)]
pub struct Mark {
    myself: i32,
    sign: Sign,
    /// The command's number until it has said what it is under, or one of the words below.
    state: AtomicI32,
}

/// Nobody has to have it: it was refused, or cannot be seen.
const NO_MARK: i32 = 0;
/// Everybody of the workload has it.
const MARKED: i32 = -1;
/// The same, without `no_new_privs`.
const FILTER_ONLY: i32 = -2;

impl Mark {
    /// Nobody has to have it yet. As PID 1 nobody ever has.
    #[must_use]
    pub fn new(proc_: Option<&Proc>, pid1: bool) -> Self {
        let own = proc_.filter(|_| !pid1 && !without("mark")).map(|proc_| Carried::read(proc_, format_args!("self")));
        let sign = match own {
            Some(Ok(Carried { filters: Some(filters), .. })) => Sign::Filters(filters),
            Some(Ok(Carried { mode: Some(0), filters: None, .. })) => Sign::Mode,
            _ => Sign::None,
        };
        Self { myself: nix::unistd::getpid().as_raw(), sign, state: AtomicI32::new(NO_MARK) }
    }

    fn set(&self, state: i32) {
        if self.sign != Sign::None {
            self.state.store(state, Ordering::Relaxed);
        }
    }

    /// Whoever is there has been looked at: from now on nobody counts who has it not.
    pub fn expect(&self) {
        self.set(MARKED);
    }

    /// The command is there, and confines itself.
    pub fn forked(&self, command: i32) {
        self.set(command);
    }

    /// The command has said what it is under; nothing of it that was not has run.
    pub fn confined(&self, filter: bool, no_new_privs: bool) {
        self.set(match (filter, no_new_privs) {
            (false, _) => NO_MARK,
            (true, false) => FILTER_ONLY,
            (true, true) => MARKED,
        });
    }

    /// Whether the process that has this number now has the mark, or needs none.
    ///
    /// # Errors
    /// `ENOENT` or `ESRCH` where it is gone; that of `openat(2)` or `read(2)`.
    pub fn is_on(&self, proc_: &Proc, stat: &Stat) -> Result<bool, Errno> {
        let state = self.state.load(Ordering::Relaxed);
        // The command is a child that we have not reaped, so nobody else has its number.
        if state == NO_MARK || (state == stat.pid && stat.ppid == self.myself) {
            return Ok(true);
        }
        let has = Carried::read(proc_, format_args!("{}", stat.pid))?;
        let filtered = match self.sign {
            Sign::Filters(own) => has.filters.is_some_and(|filters| filters > own),
            Sign::Mode => has.mode == Some(2),
            Sign::None => true,
        };
        Ok(filtered && (state != MARKED || has.no_new_privs.is_none_or(|set| set == 1)))
    }

    /// Whether `who` is there and has it. What was read was read of whoever is held by a pidfd from before, if that one is still there.
    ///
    /// # Errors
    /// `ESRCH` where it is another one, else as `is_on` and `Proc::stat`.
    pub fn check(&self, proc_: &Proc, who: Identity) -> Result<(), Errno> {
        let stat = proc_.stat(who.pid)?;
        if stat.start == who.start && self.is_on(proc_, &stat)? { Ok(()) } else { Err(Errno::ESRCH) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(text: &[u8], piece: usize) -> Carried {
        let (mut lines, mut carried) = (Lines::default(), Carried::default());
        let mut rest = text;
        while !rest.is_empty() {
            let room = lines.room();
            let n = rest.len().min(piece).min(room.len());
            room[..n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            lines.each(n, |line| carried.line(line));
        }
        carried
    }

    /// Neither a name nor any number of groups hides it.
    #[test]
    fn it_is_found_behind_anything() {
        let groups: String = (0..65536).map(|group| format!("{group} ")).collect();
        let end = "NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\nSpeculation_Store_Bypass:\tvulnerable\n";
        let text = format!("Name:\tx\nSeccomp:\t0\nGroups:\t{groups}\n{end}");
        let whole = Carried { no_new_privs: Some(1), mode: Some(2), filters: Some(3) };
        for piece in [1, 7, 1024, 4096] {
            assert_eq!(carried(text.as_bytes(), piece), whole, "{piece}");
            assert_eq!(carried(&[b"\0\n".repeat(5000), end.into()].concat(), piece), whole, "{piece}");
        }
        assert_eq!(carried(b"Name:\tx\nSeccomp:\t0\n", 5), Carried { mode: Some(0), ..Carried::default() });
    }

    #[test]
    fn we_do_not_have_our_own() {
        let proc_ = Proc::open().unwrap();
        let mark = Mark::new(Some(&proc_), false);
        assert!(matches!(mark.sign, Sign::Filters(_)), "{mark:?}");
        let me = proc_.stat(mark.myself).unwrap();
        assert_eq!(mark.is_on(&proc_, &me), Ok(true));
        mark.expect();
        assert_eq!(mark.is_on(&proc_, &me), Ok(false));
        assert_eq!(mark.check(&proc_, me.identity()), Err(Errno::ESRCH));
        mark.confined(false, true);
        assert_eq!(mark.check(&proc_, me.identity()), Ok(()));
    }
}
