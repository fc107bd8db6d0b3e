//! What each process is doing, for the record: at most 32 of them, the ones that used most of the CPU.
//!
//! Everything in it was written by the workload: names and arguments are cut off and decoded lossily.

use crate::audit::record::ProcessActivity;
use crate::kernel::proc::{Proc, Stat};
use crate::kernel::{clock, sockets};
use crate::watch::sample::cpu_of;
use std::time::Duration;

const SHOWN: usize = 32;
/// Bytes of the arguments.
const ARGS: usize = 256;

/// The busiest processes, and how many more there are.
#[must_use]
pub fn activity(proc_: &Proc, members: &[Stat]) -> (Vec<ProcessActivity>, u64) {
    let mut members: Vec<&Stat> = members.iter().collect();
    members.sort_by_key(|stat| std::cmp::Reverse(cpu_of(stat)));
    let more = members.len().saturating_sub(SHOWN);
    let booted = clock::since_boot();
    let shown = members.into_iter().take(SHOWN).map(|stat| one(proc_, stat, booted)).collect();
    (shown, u64::try_from(more).unwrap_or(u64::MAX))
}

fn one(proc_: &Proc, stat: &Stat, booted: Duration) -> ProcessActivity {
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let counts = sockets::count(proc_, stat.pid, stat.thread).ok();
    ProcessActivity {
        pid: stat.pid,
        parent: stat.ppid,
        name: String::from_utf8_lossy(stat.name()).into_owned(),
        args: args(proc_, stat),
        state: char::from(stat.state).to_string(),
        age_ms: millis(booted.saturating_sub(Duration::from_millis(stat.start.saturating_mul(10)))),
        cpu_ms: millis(cpu_of(stat)),
        rss_bytes: stat.rss_pages.saturating_mul(4096),
        threads: stat.threads,
        descriptors: counts.map(|(descriptors, _)| descriptors),
        sockets: counts.map(|(_, sockets)| sockets),
    }
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
