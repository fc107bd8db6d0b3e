//! What the loop and the panic hook share.
//!
//! Invariant: a panic of whoever held it keeps nobody from the kill or the seal.

use crate::audit::log::Log;
use crate::kernel::kill::Everything;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The processes and the log.
#[derive(Debug)]
pub struct Shared {
    /// The processes.
    pub everything: Mutex<Everything>,
    /// The log.
    pub log: Mutex<Log>,
}

impl Shared {
    /// The processes; a panic elsewhere does not keep them from being killed.
    pub fn everything(&self) -> MutexGuard<'_, Everything> {
        self.everything.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log; a panic elsewhere does not keep it from being sealed.
    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
