//! The main job on the real binary: as a plain process, as PID 1 of a fresh PID namespace, and under docker.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

// The registers of the tracee.
#[cfg(target_arch = "x86_64")]
mod clock;
mod docker;
mod doctor;
mod laptop;
mod pid1;
mod policy;
mod relay;
mod revoke;
#[path = "../support/schema.rs"]
mod schema;
mod signals;
mod startup;
mod stress;
mod support;
mod terminal;
mod watch;
