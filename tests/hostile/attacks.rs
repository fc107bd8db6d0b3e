//! The zoo: the attacks of the tests, as one static program, `hostile ATTACK [ARG…]`, split by what they are aimed at.
//!
//! An attack that has an end says `succeeded` or `refused ERRNO` on stdout and exits with 10 or 11. Whom it attacks is its
//! parent: gracekeeper, or `hostile parent`, the plain parent of the controls. Built by `cargo test` as an example, so that
//! it never ends up in the product.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod grace;
mod honest;
mod inherited;
mod parent;
mod record;
mod resources;
mod senders;
mod signals;
mod strangers;
mod stubborn;
mod supervisor;
mod terminal;
mod woken;

/// What became of an attack: the errno that refused it.
type Tried = Result<(), i32>;

/// The answer of a system call.
fn sys(answer: libc::c_long) -> Result<libc::c_long, i32> {
    if answer < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(answer) }
}

fn io<T>(answer: std::io::Result<T>) -> Result<T, i32> {
    answer.map_err(|error| error.raw_os_error().unwrap_or(0))
}

fn main() {
    let words: Vec<String> = std::env::args_os().skip(1).map(|w| w.to_string_lossy().into_owned()).collect();
    let name = words.first().map_or("", String::as_str);
    let args = words.get(1..).unwrap_or_default();
    match name {
        "parent" => parent::plain(args),
        "init" => parent::init(args),
        _ => {}
    }
    // SAFETY: getppid(2) takes nothing.
    let target = unsafe { libc::getppid() };
    let tried = supervisor::attack(name, target)
        .or_else(|| signals::attack(name, target))
        .or_else(|| record::attack(name, args))
        .or_else(|| resources::attack(name, args))
        .or_else(|| inherited::attack(name, args))
        .or_else(|| terminal::attack(name))
        .or_else(|| strangers::attack(name, args))
        .or_else(|| stubborn::attack(name, args));
    let Some(tried) = tried else {
        grace::run(&words);
        panic!("no such attack: {name}");
    };
    match tried {
        Ok(()) => {
            println!("succeeded");
            std::process::exit(10);
        }
        Err(errno) => {
            println!("refused {errno}");
            std::process::exit(11);
        }
    }
}
