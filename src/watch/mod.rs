//! Watching during the grace (section 6): samples, the rules that judge them, and what each process is doing.

pub mod activity;
pub mod rules;
pub mod sample;
