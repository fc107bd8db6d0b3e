//! What a panic does: a bug of ours must not leave the workload behind, nor the record unsealed.

use crate::audit;
use crate::kernel::{self, clock};
use crate::machine::types::Instant;
use crate::seal;
use crate::shared::Shared;
use nix::sys::signal::Signal;
use std::sync::{Arc, Mutex};

/// From now on a panic kills, seals as `supervisor_error` and exits 125.
pub fn hook(shared: Arc<Shared>, pid1: bool, record: audit::record::EvaluationTerminated, begun: Instant) {
    // Its own: the panic may come while the other one is held.
    let spare = (!pid1).then(|| Mutex::new(shared.everything().spare()));
    std::panic::set_hook(Box::new(move |info| {
        if pid1 {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), Signal::SIGKILL);
        } else if let Some(Ok(mut everything)) = spare.as_ref().map(Mutex::try_lock) {
            let began = clock::now();
            // Bounded: a child that cannot be killed must not keep the seal back.
            while clock::now().since(began) < std::time::Duration::from_secs(1) {
                everything.signal(Signal::SIGKILL);
                let alone = loop {
                    match kernel::reap::next(false) {
                        Ok(Some(_)) => {}
                        last => break last.is_err(),
                    }
                };
                if alone || everything.is_gone() {
                    break;
                }
            }
        }
        let _ = audit::log::emergency(&shared.log, seal::panicked(record.clone(), begun, &info.to_string()));
        // Last, and not for long: a reader that is stuck must keep neither the workload alive nor us.
        let line = format!("gracekeeper: internal error: {info}");
        let _ = audit::stderr::StderrSink::open().write(&line, true);
        std::process::exit(125);
    }));
}
