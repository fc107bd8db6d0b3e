//! The verbs besides `run`.

pub mod install;
pub mod profiles;
pub mod verify;
