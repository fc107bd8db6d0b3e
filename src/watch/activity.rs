//! What each process is doing, for the record: at most 32 of them, the ones that used most of the CPU.
//!
//! Everything in it was written by the workload: names and arguments are cut off and decoded lossily.

use crate::audit::record::ProcessActivity;
use crate::kernel::proc::{Proc, Stat};
use crate::kernel::{clock, sockets};
use crate::machine::types::Instant;
use crate::switches::without;
use crate::watch::sample::cpu_of;
use std::time::Duration;

const SHOWN: usize = 32;
/// Bytes of the arguments.
const ARGS: usize = 256;

/// The busiest processes, and how many more there are. What would have to be read of them after `until` is left out.
#[must_use]
pub fn activity(proc_: &Proc, members: &[Stat], until: Instant) -> (Vec<ProcessActivity>, u64) {
    let mut members: Vec<&Stat> = members.iter().collect();
    members.sort_by_key(|stat| std::cmp::Reverse(cpu_of(stat)));
    let more = members.len().saturating_sub(SHOWN);
    let booted = clock::since_boot();
    let shown = members.into_iter().take(SHOWN).map(|stat| one(proc_, stat, booted, until)).collect();
    (shown, u64::try_from(more).unwrap_or(u64::MAX))
}

fn one(proc_: &Proc, stat: &Stat, booted: Duration, until: Instant) -> ProcessActivity {
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let in_time = clock::now() < until;
    let args = if in_time && may_be_read(proc_, stat, until) { args(proc_, stat) } else { Vec::new() };
    let counts = if in_time { sockets::count(proc_, stat.pid, stat.thread, until).ok() } else { None };
    ProcessActivity {
        pid: stat.pid,
        parent: stat.ppid,
        name: String::from_utf8_lossy(stat.name()).into_owned(),
        args,
        state: char::from(stat.state).to_string(),
        age_ms: millis(booted.saturating_sub(Duration::from_millis(stat.start.saturating_mul(10)))),
        cpu_ms: millis(cpu_of(stat)),
        rss_bytes: stat.rss_pages.saturating_mul(4096),
        threads: stat.threads,
        descriptors: counts.map(|(descriptors, _)| descriptors),
        sockets: counts.and_then(|(_, sockets)| sockets),
    }
}

/// Whether its memory may be read, where its arguments are: a thread in a call that nothing interrupts may hold the lock of that memory
/// for as long as it likes (a page of a file system of its own that is never answered for), and whoever reads it waits as well.
fn may_be_read(proc_: &Proc, stat: &Stat, until: Instant) -> bool {
    let free = |thread: &Stat| thread.state != b'D' && clock::now() < until;
    without("uninterruptible") || (free(stat) && (stat.threads <= 1 || proc_.each_thread(stat.pid, free)))
}

fn args(proc_: &Proc, stat: &Stat) -> Vec<String> {
    let mut text = [0u8; ARGS];
    let Ok(path) = std::ffi::CString::new(format!("{}/task/{}/cmdline", stat.pid, stat.thread)) else {
        return Vec::new();
    };
    let n = proc_.read(&path, &mut text).unwrap_or(0);
    let text = text.get(..n).unwrap_or_default();
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|&b| b == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect()
}
