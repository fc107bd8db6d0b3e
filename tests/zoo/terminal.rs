//! The operator's terminal: nothing is typed into it, and it is given back.
#![allow(unsafe_code)]

use super::place::*;
use super::support::*;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A program on a terminal of its own.
struct Session {
    child: Child,
    master: std::fs::File,
    seen: mpsc::Receiver<Vec<u8>>,
    text: String,
    at: usize,
}

impl Session {
    fn new(command: &mut Command, guard: Guard<'_>) -> Self {
        let pty = nix::pty::openpty(None, None).unwrap();
        let stdio = || Stdio::from(pty.slave.try_clone().unwrap());
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("PS1", "prompt ");
        if let Guard::Without(off) = guard {
            command.env("GRACEKEEPER_TEST_WITHOUT", off);
        }
        // SAFETY: system calls and no allocation. Whoever started the tests may have left signals ignored.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                libc::signal(libc::SIGQUIT, libc::SIG_DFL);
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        drop(pty.slave);
        let master = std::fs::File::from(pty.master);
        let mut reader = master.try_clone().unwrap();
        let (send, seen) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0u8; 4096];
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                if send.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, master, seen, text: String::new(), at: 0 }
    }

    /// Waits for the words, after those that were waited for before.
    fn expect(&mut self, words: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(found) = self.text[self.at..].find(words) {
                self.at += found + words.len();
                return;
            }
            assert!(Instant::now() < deadline, "no {words:?} in {:?}", self.text);
            if let Ok(bytes) = self.seen.recv_timeout(Duration::from_millis(100)) {
                self.text += &String::from_utf8_lossy(&bytes);
            }
        }
    }

    /// Everything that came until the program's end.
    fn end(mut self) -> String {
        self.child.wait().unwrap();
        // The last of those who had the terminal is gone: reading it ends.
        while let Ok(bytes) = self.seen.recv_timeout(Duration::from_secs(60)) {
            self.text += &String::from_utf8_lossy(&bytes);
        }
        std::mem::take(&mut self.text)
    }

    fn settings(&self) -> libc::termios {
        let mut now = std::mem::MaybeUninit::uninit();
        // SAFETY: fills the structure at a valid pointer, where it answers 0.
        unsafe {
            assert_eq!(libc::tcgetattr(self.master.as_raw_fd(), now.as_mut_ptr()), 0);
            now.assume_init()
        }
    }

    fn say(&mut self, words: &str) {
        self.master.write_all(words.as_bytes()).unwrap();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The attack under the guard, as words for a shell.
fn supervised(guard: Guard<'_>, dir: &Path, attack: &str) -> String {
    let (dir, hostile) = (dir.display(), hostile());
    match guard {
        Guard::Plain => format!("{} parent {dir}/log {dir}/message {attack}", hostile.display()),
        Guard::Without(_) => {
            format!("{} --audit-file {dir}/log -- {} {attack}", switched().display(), hostile.display())
        }
        Guard::Full => format!("{BINARY} --audit-file {dir}/log -- {} {attack}", hostile.display()),
    }
}

/// `sh` on a terminal of its own runs the attack, then reads a line; `honest` is typed once the attack has had its say.
fn session(guard: Guard<'_>, attack: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let command = supervised(guard, dir.path(), attack);
    let script = format!("{command}; echo re''ady; read line || echo no''thing; echo \"got:$line\"; echo e''nd");
    let mut session = Session::new(Command::new("sh").args(["-c", &script]), guard);
    session.expect("ready");
    session.say("honest\n");
    session.expect("end\r\n");
    session.text.clone()
}

/// For root: with CAP_SYS_ADMIN the ioctl works whatever dev.tty.legacy_tiocsti says.
#[test]
fn nothing_is_typed_into_it() {
    if !able() {
        return;
    }
    let hijacked = |text: &str| text.contains("got:echo hija");
    let plain = session(Guard::Plain, "tiocsti");
    assert!(hijacked(&plain), "control: {plain}");
    let without = session(Guard::Without("seccomp_filter"), "tiocsti");
    assert!(hijacked(&without), "control: {without}");
    let full = session(Guard::Full, "tiocsti");
    assert!(full.contains("got:honest") && full.contains("refused 1"), "{full}");
}

/// A group that nobody is in any more has the foreground: whoever reads the terminal next gets nothing.
#[test]
fn it_is_given_back() {
    if !able() {
        return;
    }
    let taken = |text: &str| text.contains("nothing") || !text.contains("got:honest");
    let plain = session(Guard::Plain, "foreground");
    assert!(taken(&plain), "control: {plain}");
    let without = session(Guard::Without("foreground"), "foreground");
    assert!(taken(&without), "control: {without}");
    let full = session(Guard::Full, "foreground");
    assert!(!taken(&full) && full.contains("succeeded"), "{full}");
}

/// Without an audit file the terminal is where the record is.
#[test]
fn it_gets_the_seal_whatever_was_done_to_it() {
    if !able() {
        return;
    }
    let sealed = |guard: Guard<'_>, attack: &str| {
        let binary = if matches!(guard, Guard::Full) { Path::new(BINARY) } else { switched() };
        let mut command = Command::new(binary);
        command.arg("--").arg(hostile()).arg(attack);
        let text = Session::new(&mut command, guard).end();
        assert!(text.contains("evaluation_started"), "{attack}: {text}");
        // As it was written: with the ends of lines that a terminal makes.
        let lines: String = text.split("\r\n").filter(|l| l.starts_with('{')).map(|l| format!("{l}\n")).collect();
        let report = gracekeeper::audit::verify::check(lines.as_bytes(), None).unwrap();
        report.state == gracekeeper::audit::verify::State::Sealed
    };
    for attack in ["output-off", "capitals"] {
        assert!(!sealed(Guard::Without("terminal"), attack), "control: {attack}");
        assert!(sealed(Guard::Full, attack), "{attack}");
    }
}

/// One that runs in the background gives nothing back to a shell that has set the terminal for itself.
#[test]
fn a_shell_at_its_prompt_keeps_its_settings() {
    if !able() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let mut bash = Session::new(Command::new("bash").args(["--norc", "--noprofile", "-i"]), Guard::Full);
    bash.expect("prompt ");
    bash.say(&format!("{BINARY} -- sh -c 'until [ -e {} ]; do sleep 0.01; done' &\n", go.display()));
    bash.expect("evaluation_started");
    until("the shell reads a line", || bash.settings().c_lflag & libc::ICANON == 0);
    let mut own = bash.settings();
    own.c_lflag ^= libc::ECHOK;
    // SAFETY: reads a valid structure; the settings of a master are its slave's.
    assert_eq!(unsafe { libc::tcsetattr(bash.master.as_raw_fd(), libc::TCSANOW, &raw const own) }, 0);
    std::fs::write(&go, "").unwrap();
    bash.expect("evaluation_terminated");
    assert!(bash.settings() == own);
    bash.say("exit\n");
}

/// "My own group" must not become the supervisor's, for one that shares its session.
#[test]
fn its_group_cannot_be_joined() {
    if !able() {
        return;
    }
    for (attack, off) in [("join-nice", "seccomp_filter"), ("join-kill", "seccomp_filter,signal_scope,landlock")] {
        assert!(session(Guard::Plain, attack).contains("succeeded"), "control");
        let without = session(Guard::Without(off), attack);
        assert!(without.contains("succeeded"), "control: {without}");
        let full = session(Guard::Full, attack);
        assert!(full.contains("refused 1"), "{attack}: {full}");
    }
}

/// A shell on a terminal of its own, in which the attack runs as a job in the foreground; `variables` are set for it.
fn job(guard: Guard<'_>, dir: &Path, variables: &str, attack: &str) -> Session {
    let mut bash = Session::new(Command::new("bash").args(["--norc", "--noprofile", "-i"]), guard);
    bash.expect("prompt ");
    bash.say(&format!("{variables}{}\n", supervised(guard, dir, attack)));
    bash
}

/// What the terminal says because the workload asked it is no operator's Ctrl-C.
#[test]
fn what_it_answers_is_no_interrupt() {
    if !able() {
        return;
    }
    let sealed = |guard: Guard<'_>| {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut bash = job(guard, dir.path(), "INTERNAL_TIMEOUT=4s SOFT_LIMIT=200ms HARD_LIMIT=400ms ", "ctrl-c");
        bash.expect("armed 0.");
        bash.say("c");
        let text = || std::fs::read_to_string(&log).unwrap_or_default();
        until("it is sealed", || text().contains("evaluation_terminated"));
        text()
    };
    let control = sealed(Guard::Without("misdirected"));
    assert!(control.contains("\"reason\":\"terminated\""), "control: {control}");
    let full = sealed(Guard::Full);
    assert!(full.contains("\"reason\":\"timeout\"") && full.contains("spoofed_signal"), "{full}");
}

/// A command that stops itself, and so gracekeeper, may have a timer that continues it: its deadline comes all the same.
#[test]
fn its_deadline_is_kept_while_it_is_stopped() {
    if !able() {
        return;
    }
    let ended = |guard: Guard<'_>| {
        let dir = tempfile::tempdir().unwrap();
        let (ticks, log) = (dir.path().join("ticks"), dir.path().join("log"));
        let mut bash = job(
            guard,
            dir.path(),
            "INTERNAL_TIMEOUT=2s SOFT_LIMIT=1s HARD_LIMIT=1s ",
            &format!("wakes {}", ticks.display()),
        );
        bash.expect("Stopped");
        let length = || std::fs::metadata(&ticks).map_or(0, |meta| meta.len());
        until("it goes on", || length() > 0);
        let sealed = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("\"reason\":\"timeout\""));
        // Twice as long as all of it takes, or until it is over.
        let deadline = Instant::now() + Duration::from_secs(if guard == Guard::Full { 60 } else { 8 });
        while !sealed() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let (ended, before) = (sealed(), length());
        if !ended {
            until("it still goes on", || length() > before);
        }
        bash.say("fg\n");
        bash.expect("prompt ");
        bash.say("exit\n");
        ended
    };
    assert!(!ended(Guard::Without("stopped_deadline")), "control");
    assert!(ended(Guard::Full));
}

/// Job control: a command that stops itself stops gracekeeper, so that the shell gets its prompt. Nobody else of the workload
/// goes on behind the back of a supervisor that stands still.
#[test]
fn nobody_goes_on_while_it_is_stopped() {
    if !able() {
        return;
    }
    let went_on = |guard: Guard<'_>, how: &str| {
        let dir = tempfile::tempdir().unwrap();
        let ticks = dir.path().join("ticks");
        let mut bash = job(guard, dir.path(), "", &format!("ticks {} {how}", ticks.display()));
        bash.expect("Stopped");
        let length = || std::fs::metadata(&ticks).unwrap().len();
        let before = length();
        let deadline = Instant::now() + Duration::from_secs(1);
        while length() == before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let went_on = length() > before;
        bash.say("fg\n");
        // Continued it ends, and takes the other with it.
        bash.expect("succeeded");
        bash.expect("prompt ");
        let after = length();
        assert!(after > before || !went_on, "it was let go on again");
        bash.say("exit\n");
        went_on
    };
    assert!(went_on(Guard::Without("job_control"), ""), "control");
    assert!(!went_on(Guard::Full, ""));
    // A main thread in vfork takes no stop that is sent to its process.
    assert!(went_on(Guard::Without("each_thread"), "vfork"), "control");
    assert!(!went_on(Guard::Full, "vfork"));
}
