//! The kernel layer: thin functions named for the kernel's verb. They report what happened and decide nothing.
//! The only place where `unsafe` is allowed; each block names the callee's preconditions and what upholds them.
#![allow(unsafe_code)]

pub mod clock;
pub mod counters;
pub mod cpu;
pub mod entries;
pub mod environment;
pub mod errand;
pub mod files;
pub mod ipc;
pub mod kill;
pub mod landlock;
pub mod limits;
pub mod mark;
pub mod memory;
pub mod mounts;
pub mod nowait;
pub mod outcome;
pub mod overwrite;
pub mod pipe;
pub mod pressure;
pub mod probe;
pub mod proc;
pub mod procfile;
pub mod ptrace;
pub mod random;
pub mod reap;
pub mod seccomp;
pub mod signals;
pub mod sockdiag;
pub mod sockets;
pub mod spawn;
pub mod terminal;

pub use outcome::{Cause, Outcome};
