//! Names of entries that wait for a worker.

use super::crew::Crew;
use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Names in one allocation, which counts among what the crew keeps.
#[derive(Debug, Default)]
pub struct Names {
    bytes: Vec<u8>,
    kept: Option<(Arc<AtomicUsize>, usize)>,
}

impl Names {
    /// One more.
    pub fn push(&mut self, name: &CStr) {
        self.bytes.extend_from_slice(name.to_bytes_with_nul());
    }

    /// The last one.
    pub fn pop(&mut self) -> Option<CString> {
        let end = self.bytes.len().checked_sub(1)?;
        let start = self.bytes.get(..end)?.iter().rposition(|&b| b == 0).map_or(0, |nul| nul.saturating_add(1));
        let name = CString::new(self.bytes.get(start..end)?).ok()?;
        self.bytes.truncate(start);
        Some(name)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes they take.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// They are kept until somebody has time for them.
    #[must_use]
    pub fn kept(mut self, crew: &Crew) -> Self {
        let (size, kept) = (self.bytes.capacity(), crew.kept());
        kept.fetch_add(size, Ordering::Relaxed);
        self.kept = Some((Arc::clone(kept), size));
        self
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        if let Some((kept, size)) = &self.kept {
            kept.fetch_sub(*size, Ordering::Relaxed);
        }
    }
}
