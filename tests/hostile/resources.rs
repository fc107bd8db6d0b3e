//! Takes all there is of something: disk, memory, processes, descriptors.

use super::{Tried, io};
use std::io::Write;
use std::os::fd::FromRawFd;
use std::time::Duration;

fn fork() -> i32 {
    // SAFETY: one thread.
    unsafe { libc::fork() }
}

pub fn attack(name: &str, args: &[String]) -> Option<Tried> {
    Some(match name {
        // fill DIR: until nothing fits any more.
        "fill" => {
            let path = std::path::Path::new(args.first()?).join("fill");
            let mut file = match io(std::fs::File::create(path)) {
                Ok(file) => file,
                Err(errno) => return Some(Err(errno)),
            };
            for size in [65536, 4096, 1] {
                while file.write_all(&vec![7u8; size]).is_ok() {}
            }
            Ok(())
        }
        // litter DIR TIMES: so many empty files, a hundred in a directory.
        "litter" => {
            let [dir, times] = args else { return None };
            let times: u32 = times.parse().unwrap();
            for n in 0..times {
                let below = format!("{dir}/{}", n / 100);
                if n % 100 == 0 {
                    std::fs::create_dir(&below).unwrap();
                }
                if let Err(errno) = io(std::fs::File::create(format!("{below}/{n}"))) {
                    return Some(Err(errno));
                }
            }
            Ok(())
        }
        // packets SIZE TIMES: writes on a pipe in packet mode, which it makes of its stdout (pipe(2), O_DIRECT), and ends well.
        "packets" => {
            let [size, times] = args else { return None };
            let (size, times): (usize, u32) = (size.parse().unwrap(), times.parse().unwrap());
            // SAFETY: fcntl(2) with integers.
            assert_eq!(unsafe { libc::fcntl(1, libc::F_SETFL, libc::O_DIRECT) }, 0);
            // SAFETY: stdout, which nobody else of this program writes to before it exits.
            let mut stdout = unsafe { std::fs::File::from_raw_fd(1) };
            for _ in 0..times {
                assert!(stdout.write_all(&vec![b'p'; size]).is_ok());
            }
            std::process::exit(0);
        }
        // memory-lowered: the same, after it has made itself no better a choice for the OOM killer than anybody.
        "memory-lowered" => {
            if let Err(errno) = io(std::fs::write("/proc/self/oom_score_adj", "0")) {
                return Some(Err(errno));
            }
            return attack("memory", args);
        }
        // memory: its own memory stays small, what it fills is nobody's: the OOM killer has to look elsewhere.
        "memory" => {
            // SAFETY: reads a NUL-terminated string.
            let fd = unsafe { libc::memfd_create(c"m".as_ptr(), 0) };
            // SAFETY: the descriptor was just made and nobody else's.
            let mut file = unsafe { std::fs::File::from_raw_fd(fd) };
            let piece = [7u8; 65536];
            loop {
                if let Err(error) = file.write_all(&piece) {
                    return Some(Err(error.raw_os_error().unwrap_or(0)));
                }
            }
        }
        // memory-kept DISK MEMORY: many files on the one, and on the other as much as the limit allows: it stays when we are dead.
        "memory-kept" => {
            let [disk, memory] = args else { return None };
            for n in 0..8000 {
                if let Err(errno) = io(std::fs::write(format!("{disk}/{n}"), "")) {
                    return Some(Err(errno));
                }
            }
            loop {
                let _ = attack("fill", std::slice::from_ref(memory));
            }
        }
        // memory-deep MEMORY FILLER LEVELS: the same by a program of a few pages, which leave little behind, at the bottom of a tree of many long
        // names: whoever goes down in it has nothing to give back before.
        "memory-deep" => {
            use std::os::unix::process::CommandExt;
            let mut at = std::path::PathBuf::from(args.first()?);
            for _ in 0..5 {
                for n in 0..230 {
                    if let Err(errno) = io(std::fs::create_dir_all(at.join(format!("{n:0>250}/d")))) {
                        return Some(Err(errno));
                    }
                }
                at.push("deeper");
                std::fs::create_dir(&at).unwrap();
            }
            std::env::set_current_dir(at).unwrap();
            for _ in 0..args.get(2).map_or(0, |levels| levels.parse().unwrap()) {
                std::fs::create_dir("d").unwrap();
                std::env::set_current_dir("d").unwrap();
            }
            let error = std::process::Command::new(args.get(1)?).arg("file").exec();
            panic!("{error}")
        }
        // pids: as many as there may be, and they stay.
        "pids" => {
            loop {
                match fork() {
                    // Nor does a place that becomes free stay free.
                    0 => loop {
                        if fork() == -1 {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    },
                    -1 => break,
                    _ => {}
                }
            }
            Ok(())
        }
        // descriptors: as many as one may have, in eight processes, and they stay.
        "descriptors" => {
            for _ in 0..8 {
                if fork() == 0 {
                    // SAFETY: reads a NUL-terminated string.
                    while unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) } >= 0 {}
                    loop {
                        std::thread::sleep(Duration::from_secs(600));
                    }
                }
            }
            // SAFETY: as above.
            while unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) } >= 0 {}
            Ok(())
        }
        _ => return None,
    })
}
