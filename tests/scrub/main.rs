//! The scrub on trees chosen by an adversary: as root and as UID 65532, on tmpfs, ext4 and overlay, each with a victim beside
//! it that has to stay as it is. Sizes are scaled; `GRACEKEEPER_FULL=1` makes them what docs/scrub.md measures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, unsafe_code)]
#![allow(clippy::cast_possible_truncation)]

mod bounds;
mod evasions;
mod faults;
mod leftovers;
mod places;
mod races;
#[path = "../support/schema.rs"]
mod schema;
#[path = "../run/support.rs"]
#[allow(dead_code)]
mod support;
mod trees;
mod zeroes;
