//! The verbs besides `run`.

pub mod install;
pub mod job;
pub mod profiles;
pub mod verify;
