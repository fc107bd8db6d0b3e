//! The pure heart: events and time in, actions out. No clock, environment, descriptor or pid; no `unsafe`.

pub mod events;
pub mod plan;
pub mod status;
pub mod step;
pub mod traffic;
pub mod types;
