//! What the manifests say, what the `job` verb prints and what the binary does cannot drift apart.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod admission;
mod engine;
mod guide;
mod images;
mod install;
mod manifests;
mod pod;
mod podman;
mod policy;
mod runs;
#[path = "../support/schema.rs"]
#[allow(dead_code)]
mod schema;
#[path = "../run/support.rs"]
#[allow(dead_code)]
mod support;
mod verb;
mod wrap;
mod wrapped;
