//! The operator's terminal: nothing is typed into it, and it is given back.
#![allow(unsafe_code)]

use super::place::*;
use super::support::*;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// `sh` on a terminal of its own runs the attack, then reads a line; `honest` is typed once the attack has had its say.
fn session(guard: Guard<'_>, attack: &str) -> String {
    let binary = if matches!(guard, Guard::Without(_)) { switched() } else { Path::new(BINARY) };
    let hostile = hostile();
    let dir = tempfile::tempdir().unwrap();
    let supervised = match guard {
        Guard::Plain => {
            format!("{} parent {}/log {}/message", hostile.display(), dir.path().display(), dir.path().display())
        }
        _ => format!("{} --audit-file {}/log -- {}", binary.display(), dir.path().display(), hostile.display()),
    };
    let script = format!("{supervised} {attack}; echo re''ady; read line || echo no''thing; echo \"got:$line\"");
    let pty = nix::pty::openpty(None, None).unwrap();
    let stdio = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stdin(stdio()).stdout(stdio()).stderr(stdio());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    if let Guard::Without(off) = guard {
        command.env("GRACEKEEPER_TEST_WITHOUT", off);
    }
    // SAFETY: two system calls and no allocation.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    drop(command);
    drop(pty.slave);
    let mut master = std::fs::File::from(pty.master);
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
    let (mut text, mut typed) = (String::new(), false);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !text.contains("got:") || !text.ends_with('\n') {
        assert!(Instant::now() < deadline, "{text}");
        match seen.recv_timeout(Duration::from_millis(100)) {
            Ok(bytes) => text += &String::from_utf8_lossy(&bytes),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        if text.contains("ready") && !typed {
            typed = true;
            master.write_all(b"honest\n").unwrap();
        }
    }
    let _ = child.kill();
    child.wait().unwrap();
    text
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
