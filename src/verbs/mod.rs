//! The verbs: what `gracekeeper WORD …` does besides running a command.

pub mod verify;
