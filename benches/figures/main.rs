//! The figures of docs/benchmarks.md: `cargo bench --bench figures -- [NAME [ROUNDS]]`, as root; without a name all of them.
//! One program, so that one link serves them all, and their workloads as well.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    unsafe_code
)]

mod cost;
mod idle;
mod kill;
mod observer;
mod seal;
mod startup;
mod support;

const ALL: [(&str, fn()); 5] =
    [("startup", startup::run), ("kill", kill::run), ("seal", seal::run), ("cost", cost::run), ("idle", idle::run)];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tree", size] => kill::tree(size.parse().unwrap(), None),
        ["tree", size, fifo] => kill::tree(size.parse().unwrap(), Some(fifo)),
        ["init", "tree", ..] => kill::init(&words[1..]),
        ["work", kind] => cost::timed(kind),
        // Each in a process of its own: it makes itself a mount namespace.
        [] => {
            for (name, _) in ALL {
                let own = std::env::current_exe().unwrap();
                assert!(std::process::Command::new(own).arg(name).status().unwrap().success(), "{name}");
            }
        }
        [name, ..] => {
            ALL.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no bench is called {name}")).1()
        }
    }
}
