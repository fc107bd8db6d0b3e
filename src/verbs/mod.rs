//! The verbs besides `run`.

pub mod doctor;
pub mod install;
pub mod profiles;
pub mod verify;
