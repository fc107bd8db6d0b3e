//! What came with it: descriptors, variables, privileges.

use super::Tried;

pub fn attack(name: &str, args: &[String]) -> Option<Tried> {
    Some(match name {
        "inherited-descriptor" => {
            // SAFETY: fcntl(2) with F_GETFD takes integers.
            let open = (3..4096).any(|fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0);
            if open { Ok(()) } else { Err(libc::EBADF) }
        }
        // environment NAME…: any of them.
        "environment" => {
            let seen = std::env::vars_os().any(|(name, _)| args.iter().any(|wanted| name == **wanted));
            if seen { Ok(()) } else { Err(libc::ENOENT) }
        }
        // environment-of-parent WORD: whether it is anywhere in there.
        "environment-of-parent" => {
            let word = args.first()?.as_bytes();
            // SAFETY: getppid(2) takes nothing.
            let path = format!("/proc/{}/environ", unsafe { libc::getppid() });
            match super::io(std::fs::read(path)) {
                Ok(text) if text.windows(word.len()).any(|w| w == word) => Ok(()),
                Ok(_) => Err(libc::ENOENT),
                Err(errno) => Err(errno),
            }
        }
        // setuid FILE: a copy of this program with the set-user-ID bit, which says whom it became.
        "setuid" => match std::process::Command::new(args.first()?).arg("who").status() {
            Ok(status) if status.code() == Some(10) => Ok(()),
            Ok(_) => Err(libc::EPERM),
            Err(error) => Err(error.raw_os_error().unwrap_or(0)),
        },
        "who" => {
            // SAFETY: geteuid(2) takes nothing.
            let root = unsafe { libc::geteuid() } == 0;
            if root { Ok(()) } else { Err(libc::EPERM) }
        }
        "core-dump" => {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: writes one rlimit.
            unsafe { libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) };
            if limit.rlim_max > 0 { Ok(()) } else { Err(libc::EPERM) }
        }
        // bound: how the OOM killer sees it; 1000 is "first".
        "oom-score" => {
            let score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
            if score.trim() == "1000" { Err(libc::EPERM) } else { Ok(()) }
        }
        _ => return None,
    })
}
