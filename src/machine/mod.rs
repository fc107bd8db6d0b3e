//! The pure heart: events and time in, actions out.

pub mod types;
