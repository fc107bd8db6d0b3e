//! The audit record: what is written, how the lines are chained, and where they go.

pub mod record;
