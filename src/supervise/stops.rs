//! Signals: whose they are, and what becomes of them (section 3).
//!
//! A stop counts only if it comes from outside the workload; everything else goes on to the workload's group.

use super::Supervisor;
use crate::audit::record::{Body, SpoofedSignal};
use crate::kernel::signals::{self, Code, Received};
use crate::kernel::{clock, terminal};
use crate::machine::events::Event;
use crate::machine::step::State;
use crate::machine::types::{Rule, StopSignal};
use crate::switches::without;
use std::time::Duration;

/// Signals taken in one turn of the loop: more than there are kinds.
const SIGNALS_AT_ONCE: u32 = 128;
/// As many as there are kinds; what comes meanwhile stays pending.
const STOPS_AT_ONCE: usize = 4;
/// Spoofed stop signals written one by one; the rest is counted.
const SPOOFED_WRITTEN: u64 = 10;
/// More spoofed signals than this within a second can mask a real one.
const SPOOFED_FLOOD: u64 = 100;

impl Supervisor {
    pub(super) fn take_signals(&mut self) {
        let mut stops = [None; STOPS_AT_ONCE];
        // Bounded: real-time signals queue, and a sender that never stops must not keep the loop from its deadlines.
        for _ in 0..SIGNALS_AT_ONCE {
            let Some(free) = stops.iter().position(Option::is_none) else { break };
            let Some(signal) = self.signals.next() else { break };
            if self.signals.ignores(signal.signal) {
                continue;
            }
            match stop_signal(signal.signal) {
                Some(stop) if self.is_from_outside(stop, signal) => {
                    tracing::info!(signal = stop.name(), sender = signal.sender, "asked to stop");
                    if let Some(free) = stops.get_mut(free) {
                        *free = Some(stop);
                    }
                }
                Some(stop) => {
                    // What is real does not wait for what is not.
                    self.take_stops(&std::mem::take(&mut stops));
                    self.spoofed(stop, signal);
                }
                // SIGCHLD only says that there may be something to reap, which the loop looks for anyway.
                None if signal.signal == libc::SIGCHLD || signal.is_our_own() => {}
                None => self.forward(signal.signal),
            }
        }
        self.take_stops(&stops);
        self.continued = false;
    }

    /// All that came since the last look: who does not want to wait is not made to wait for a look at the workload and a polite request.
    fn take_stops(&mut self, stops: &[Option<StopSignal>]) {
        let stops = || stops.iter().copied().flatten();
        if stops().filter(|stop| stop.is_impatient()).count() > 1
            && self.machine.trigger().is_none()
            && let Some(first) = stops().next()
        {
            self.feed(Event::Insisted(first));
            return;
        }
        for stop in stops() {
            self.observe();
            self.feed(Event::Stop(stop));
        }
    }

    fn is_from_outside(&mut self, stop: StopSignal, signal: Received) -> bool {
        match (signal.code, signal.sender) {
            _ if without("origin") => true,
            // From outside the PID namespace: the kubelet, docker, an outer process.
            (Code::User, 0) => true,
            // A terminal's Ctrl-C or hangup. As PID 1 it is not taken: there sender 0 is only believed of SI_USER.
            (Code::Kernel, _) => !self.pid1 && !self.is_misdirected(stop),
            (Code::User | Code::Tkill, sender) => self.is_an_operator(stop, sender),
            (Code::Queue | Code::Other, _) => false,
        }
    }

    /// Whether a terminal's Ctrl-C came to us while the command has the foreground: then it was the workload that gave it to our group, for
    /// what it has the terminal say. It gets the foreground back, with what is typed there.
    fn is_misdirected(&self, stop: StopSignal) -> bool {
        let typed = matches!(stop, StopSignal::Int | StopSignal::Quit);
        let runs = self.facts.launched == Some(true) && self.machine.ended().is_none();
        let Some(child) = self.child.as_ref().filter(|_| self.terminal && typed && runs && !self.continued) else {
            return false;
        };
        if without("misdirected") {
            return false;
        }
        let _ = terminal::take_foreground(child.pid);
        true
    }

    /// Whether a sender that has a pid here is not the workload.
    fn is_an_operator(&mut self, stop: StopSignal, sender: i32) -> bool {
        let descendant = self.shared.everything().is_descendant(sender);
        descendant.map_or_else(
            || {
                // The sender is gone. Where the kernel refuses the workload's signals it was an operator's kill(1), which
                // does not linger; elsewhere it may as well be a child of the workload that hit and ran.
                self.take_handshake();
                let trusted = self.facts.signals_are_refused();
                let honoured = if trusted { "honoured" } else { "not honoured" };
                self.facts.error(format!("{} {honoured}: its sender (pid {sender}) had gone", stop.name()));
                trusted
            },
            |descendant| !descendant,
        )
    }

    fn spoofed(&mut self, stop: StopSignal, signal: Received) {
        self.facts.spoofed_signals = self.facts.spoofed_signals.saturating_add(1);
        let now = clock::now();
        if now.since(self.spoofed_window.0) >= Duration::from_secs(1) {
            self.spoofed_window = (now, 0);
        }
        self.spoofed_window.1 = self.spoofed_window.1.saturating_add(1);
        if self.facts.spoofed_signals <= SPOOFED_WRITTEN {
            self.shared.log().write(&Body::SpoofedSignal(SpoofedSignal {
                signal: stop.name().to_owned(),
                sender_pid: signal.sender,
                code: signal.code.name().to_owned(),
                suppressed: 0,
            }));
        }
        // Once: what follows until everybody is dead must not fill the record.
        if self.spoofed_window.1 > SPOOFED_FLOOD && !self.facts.has_detected(Rule::SignalFlood) && !without("flood") {
            self.facts.detected(
                Rule::SignalFlood,
                self.spoofed_window.1,
                SPOOFED_FLOOD,
                true,
                &self.machine,
                &mut self.shared.log(),
            );
            self.feed(Event::Violation(Rule::SignalFlood));
        }
    }

    fn forward(&mut self, signal: i32) {
        // It may have come from somebody who saw the command running before we looked.
        self.take_handshake();
        let Some(child) = self.child.as_ref() else { return };
        if !matches!(self.machine.state(), State::Running | State::Terminating(_)) || self.machine.ended().is_some() {
            return;
        }
        // By number: nix has no real-time signals. The group is the command's own, which is ours to reap, so the number
        // cannot have been reused. ESRCH, nobody left in the group, is no failure.
        let _ = signals::send_group(child.pid, signal);
    }
}

const fn stop_signal(signal: i32) -> Option<StopSignal> {
    match signal {
        libc::SIGTERM => Some(StopSignal::Term),
        libc::SIGINT => Some(StopSignal::Int),
        libc::SIGQUIT => Some(StopSignal::Quit),
        libc::SIGHUP => Some(StopSignal::Hup),
        _ => None,
    }
}
