//! The audit record: what is written, how the lines are chained, and where they go.

pub mod chain;
pub mod file;
pub mod log;
pub mod message;
pub mod record;
pub mod scribe;
pub mod sinks;
pub mod stderr;
pub mod time;
pub mod verify;
