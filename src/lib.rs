//! gracekeeper: a container entrypoint for untrusted code.

pub mod audit;
pub mod confine;
pub mod kernel;
pub mod machine;
pub mod scrub;
pub mod settings;
