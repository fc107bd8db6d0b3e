//! Aimed at the record: its file by every way to change one, and the places that others read in its stead.

use super::{Tried, io};
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// A seal as it would like to have it.
pub const FORGED: &str = r#"{"forged":true,"event":"evaluation_terminated","status":"ok","exit_code":0}"#;
/// The same with the beginning of a record.
const RECORD: &str =
    r#"{"schema_version":1,"seq":9,"event":"evaluation_terminated","status":"ok","exit_code":0,"forged":true}"#;

fn beside(path: &str) -> String {
    format!("{path}.mine")
}

pub fn attack(name: &str, args: &[String]) -> Option<Tried> {
    let path = args.first().map_or("", String::as_str);
    let c = |path: &str| CString::new(path).unwrap();
    let append = |path: &str, text: &str| {
        let mut file = io(File::options().append(true).open(path))?;
        io(writeln!(file, "{text}"))
    };
    Some(match name {
        "create" => io(std::fs::write(path, FORGED)),
        "append" => append(path, FORGED),
        "truncate" => io(File::options().write(true).open(path).and_then(|file| file.set_len(0))),
        // Without a descriptor: a path is all that truncate(2) needs.
        // SAFETY: reads a NUL-terminated string.
        "truncate-path" => super::sys(unsafe { libc::truncate(c(path).as_ptr(), 3) }.into()).map(drop),
        "unlink" => io(std::fs::remove_file(path)),
        "rename" => io(std::fs::rename(path, beside(path))),
        "replace" => io(std::fs::write(beside(path), FORGED)).and_then(|()| io(std::fs::rename(beside(path), path))),
        "swap-for-link" => {
            io(std::fs::remove_file(path)).and_then(|()| io(std::os::unix::fs::symlink("/dev/null", path)))
        }
        "swap-for-fifo" => io(std::fs::remove_file(path)).and_then(|()| {
            // SAFETY: reads a NUL-terminated string.
            super::sys(unsafe { libc::mkfifo(c(path).as_ptr(), 0o600) }.into()).map(drop)
        }),
        "hard-link" => io(std::fs::hard_link(path, beside(path))),
        // hard-link-elsewhere FILE DIR: and then through the other name.
        "hard-link-elsewhere" => {
            let other = format!("{}/other", args.get(1)?);
            io(std::fs::hard_link(path, &other)).and_then(|()| append(&other, FORGED))
        }
        "remove-directory" => io(std::fs::remove_file(path)).and_then(|()| {
            let dir = Path::new(path).parent().unwrap();
            io(std::fs::remove_dir_all(dir)).or(io(std::fs::rename(dir, dir.with_extension("gone"))))
        }),
        "chmod" => io(std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o0))),
        "read" => io(std::fs::read(path)).map(drop),
        "forge-on-stderr" => {
            eprintln!("{RECORD}");
            Ok(())
        }
        // Nobody is left to write it once the supervisor has had its say: `late-message FILE`.
        "late-message" => {
            escape();
            let until = Instant::now() + Duration::from_secs(25);
            while Instant::now() < until {
                // Never empty in between: the end may come at any moment.
                let _ = File::options().write(true).open(path).and_then(|mut file| file.write_all(FORGED.as_bytes()));
                std::thread::sleep(Duration::from_millis(2));
            }
            std::process::exit(0);
        }
        "early-message" => io(File::options().write(true).open(path).and_then(|mut f| f.write_all(FORGED.as_bytes()))),
        _ => return None,
    })
}

/// Goes on in a grandchild with a session of its own, deaf to what can be ignored; the child ends at once.
pub fn escape() {
    // SAFETY: one thread.
    unsafe {
        if libc::fork() > 0 {
            libc::_exit(10);
        }
        libc::setsid();
        if libc::fork() > 0 {
            libc::_exit(0);
        }
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
}
