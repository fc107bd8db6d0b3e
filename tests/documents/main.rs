//! The documents and the binary say the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod drift;
mod man;
#[path = "../support/schema.rs"]
#[allow(dead_code)]
mod schema;
#[path = "../run/support.rs"]
#[allow(dead_code)]
mod support;
