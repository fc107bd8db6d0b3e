//! The verbs besides `run`.

pub mod doctor;
pub mod input;
pub mod install;
pub mod job;
pub mod profiles;
pub mod verify;
