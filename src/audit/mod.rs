//! The audit record: what is written, how the lines are chained, where they go, and how a file is checked.

pub mod chain;
pub mod log;
pub mod record;
pub mod sinks;
pub mod time;
