//! Who is of the workload: as PID 1 everybody, elsewhere whoever descends from us, carries its mark, and is no stranger.

use super::Everything;
use crate::kernel::proc::{Proc, Stat, is_gone};
use crate::kernel::{clock, reap};
use crate::switches::without;
use nix::errno::Errno;
use std::time::Duration;

/// So many strangers are looked through before those that are gone are forgotten.
pub(super) const CROWD: usize = 256;
/// How long it is then left alone.
pub(super) const REST: Duration = Duration::from_secs(2);

impl Everything {
    /// Whether the pass was a whole one: nobody is missing for an error of ours.
    pub(super) fn find(&mut self) -> bool {
        self.table.clear();
        self.found.clear();
        self.hidden.clear();
        self.dead = 0;
        let Some(proc_) = &self.proc_ else { return false };
        let until = self.pid1.then(|| clock::used() + self.patience);
        let began = clock::ticks();
        let hurry = self.hurry;
        let late = || hurry.is_some_and(|hurry| clock::now() >= hurry);
        let mut known = true;
        // For a control: what may happen between the names and the looks gets the time to happen.
        let mut early = without("early_look");
        let mut looks = 0u32;
        let listed = proc_.each_pid(|pid| {
            if std::mem::take(&mut early) {
                clock::pause(Duration::from_millis(20));
            }
            if without("slow_look") {
                looks += 1;
                clock::pause(Duration::from_millis(u64::from(looks.is_multiple_of(32)) * 2));
            }
            let seen = shown(proc_, pid);
            known &= seen.is_ok();
            self.table.extend(seen.ok().flatten());
            until.is_none_or(|until| clock::used() < until) && !late()
        });
        if self.pid1 {
            let whole = listed && known;
            if !whole && !late() {
                self.weary_until = clock::now().plus(REST);
            }
            self.found.extend(self.table.iter().filter(|s| s.pid != self.myself && !s.is_dead()));
            return whole;
        }
        // Children by parent, then outward from us: each process is looked at once.
        self.table.sort_unstable_by_key(|s| (s.ppid, s.pid));
        let before = std::mem::take(&mut self.marked);
        let mut next = vec![self.myself];
        let mut others = Vec::new();
        while let Some(parent) = next.pop() {
            for stat in children(&self.table, parent) {
                if stat.pid == self.myself {
                    continue;
                }
                let who = stat.identity();
                if self.strangers.contains(&who) {
                    others.push(*stat);
                    continue;
                }
                if stat.is_dead() {
                    // Nobody signals it, whosever it was: it is asked nothing more.
                    self.dead += 1;
                    next.push(stat.pid);
                    continue;
                }
                match before.binary_search(&who).map(|_| true).or_else(|_| self.mark.is_on(proc_, stat)) {
                    Ok(true) => {
                        self.marked.push(who);
                        next.push(stat.pid);
                        self.found.push(*stat);
                    }
                    // A stranger's child that has come to us.
                    Ok(false) => {}
                    // Its children may have been seen before it went.
                    Err(errno) if is_gone(errno) => next.push(stat.pid),
                    Err(_) => known = false,
                }
            }
        }
        self.marked.sort_unstable();
        self.follow(others, began);
        self.find_hidden() && listed && known
    }

    /// The descendants of strangers are strangers, also when they have come to us: where there is no mark, and for those that are under
    /// filters of their own.
    ///
    /// One is believed to be a stranger's child only if the stranger is still there, and so was when the child was looked at; and only
    /// when the tick that it started in was over before it was seen, so that nobody else can have its identity.
    fn follow(&mut self, mut others: Vec<Stat>, began: u64) {
        let Some(proc_) = self.proc_.as_ref().filter(|_| !others.is_empty() && !without("kin")) else { return };
        while let Some(parent) = others.pop() {
            for child in children(&self.table, parent.pid) {
                let known = self.strangers.contains(&child.identity());
                if known || (child.start < began && proc_.stat(parent.pid).is_ok_and(|stat| stat.start == parent.start))
                {
                    self.strangers.insert(child.identity());
                    others.push(*child);
                }
            }
        }
        if self.strangers.len() > self.crowd {
            self.strangers.retain(|who| proc_.stat(who.pid).map_or_else(|e| !is_gone(e), |s| s.start == who.start));
            self.crowd = self.strangers.len().saturating_mul(2).max(CROWD);
        }
    }

    /// Our children that the walk did not show: hidepid keeps back who made itself undumpable. Its own children come to us when it is dead.
    /// Whether they could be listed.
    fn find_hidden(&mut self) -> bool {
        let Some(proc_) = self.proc_.as_ref().filter(|_| !without("hidden")) else { return true };
        self.hidden_strangers.retain(|&pid| reap::is_child(pid));
        let mut known = true;
        let listed = proc_.each_child(|pid| {
            let shown = self.table.binary_search_by_key(&(self.myself, pid), |s| (s.ppid, s.pid)).is_ok();
            if shown || self.hidden_strangers.contains(&pid) || self.found.iter().any(|s| s.pid == pid) {
                return;
            }
            match proc_.stat(pid) {
                // Born, or come to us, since the walk.
                Ok(stat) if self.strangers.contains(&stat.identity()) => {}
                Ok(stat) if stat.is_dead() => self.dead += 1,
                Ok(stat) => match self.mark.is_on(proc_, &stat) {
                    Ok(true) => self.found.push(stat),
                    Ok(false) => {}
                    Err(errno) => known &= is_gone(errno),
                },
                Err(errno) if !is_kept_back(errno) => known = false,
                Err(_) if reap::is_alive(pid) => self.hidden.push(pid),
                Err(_) => self.dead += 1,
            }
        });
        listed && known
    }
}

/// What `/proc` says of a process; nothing of one that is gone, or that hidepid=1 keeps back (`proc::hides`).
pub(super) fn shown(proc_: &Proc, pid: i32) -> Result<Option<Stat>, Errno> {
    match proc_.stat(pid) {
        Ok(stat) => Ok(Some(stat)),
        Err(errno) if is_kept_back(errno) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Whether it is gone, or hidden.
fn is_kept_back(errno: Errno) -> bool {
    is_gone(errno) || matches!(errno, Errno::EACCES | Errno::EPERM)
}

/// The children of `parent` in a table that is sorted by parent.
fn children(table: &[Stat], parent: i32) -> impl Iterator<Item = &Stat> {
    let from = table.partition_point(|s| s.ppid < parent);
    table.iter().skip(from).take_while(move |s| s.ppid == parent)
}
