//! The scrub (section 7): deleting what the workload left, and nothing else.
//!
//! `targets` decides which paths, `walk` empties one, `job` runs them beside the loop so that a hanging file system cannot
//! hold up the seal.

pub mod job;
pub mod targets;
pub mod walk;
