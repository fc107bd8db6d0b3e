//! The scrub (section 7): deleting what the workload left, and nothing else.
//!
//! `targets` decides which paths, `tree` is how far one of them is, `crew` has the workers and their stack, `names` what waits there,
//! `node` is one open directory, `walk` what a worker does with it, `burrow` what it does with one that lies too deep for that, `zero` what is
//! done with a file first where that was asked for, `leftovers` what is no file, `pace` how much CPU time is left for what comes after it, and
//! `job` runs them beside the loop so that a hanging file system cannot hold up the seal.

pub mod burrow;
pub mod crew;
pub mod job;
pub mod leftovers;
pub mod names;
pub mod node;
pub mod pace;
pub mod targets;
pub mod tree;
pub mod walk;
pub mod zero;
