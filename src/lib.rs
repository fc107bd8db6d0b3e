//! gracekeeper: a container entrypoint for untrusted code.

pub mod audit;
pub mod kernel;
pub mod machine;
pub mod settings;
pub mod verbs;
