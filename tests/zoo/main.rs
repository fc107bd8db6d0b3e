//! The zoo: each attack of tests/hostile three ways. Against a plain parent it has to succeed; against gracekeeper with the
//! protection that stops it switched off it has to succeed again; against gracekeeper it has to fail, and the record has to be
//! true. Where several protections stop it, each of them alone has to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, dead_code)]

mod busy;
mod cutoff;
mod disk;
mod doctor;
mod fuse;
mod honest;
mod inherited;
mod paths;
mod pinned;
mod place;
mod promises;
mod record;
mod resources;
#[path = "../support/schema.rs"]
mod schema;
mod signals;
mod stderr;
mod strangers;
mod stubborn;
mod supervisor;
#[path = "../run/support.rs"]
mod support;
mod switches;
mod terminal;
mod tree;
