//! The binary: parse, dispatch the verb, print an error once, return the exit status.

mod start;

use gracekeeper::settings::Settings;
use gracekeeper::settings::cli::{Invocation, Raw, help, parse};
use gracekeeper::settings::resolve::resolve;
use gracekeeper::supervise::Supervisor;
use gracekeeper::{complain, kernel, verbs};
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A second time after `.init_array`, for a libc that should not run it.
    kernel::signals::block_all();
    match dispatch() {
        Ok(code) => ExitCode::from(code),
        Err(line) => {
            complain(&line);
            ExitCode::from(125)
        }
    }
}

fn dispatch() -> Result<u8, String> {
    match invoked()? {
        Invocation::Run(raw) => Ok(supervised(raw)?.run()),
        other => verb(other),
    }
}

// Functions of their own: the stack of what is over is given back before the wait begins (`memory::give_back`).

#[inline(never)]
fn invoked() -> Result<Invocation, String> {
    let argv: Vec<OsString> = std::env::args_os().skip(1).collect();
    parse(&argv).map_err(|e| e.to_string())
}

#[inline(never)]
fn supervised(raw: Raw) -> Result<Box<Supervisor>, String> {
    gracekeeper::prepare(settings(raw)?)
}

fn settings(raw: Raw) -> Result<Settings, String> {
    let env: Vec<_> = std::env::vars_os().collect();
    resolve(raw, &env, kernel::proc::hostname().as_deref()).map_err(|e| e.to_string())
}

#[inline(never)]
fn verb(invocation: Invocation) -> Result<u8, String> {
    kernel::signals::unblock();
    match invocation {
        Invocation::Run(_) => unreachable!("dispatch takes it"),
        Invocation::Doctor { raw, json } => {
            let (text, holds) = verbs::doctor::run(&settings(raw)?, json)?;
            print(&text).map(|_| u8::from(!holds))
        }
        Invocation::Install(dest) => verbs::install::install(&dest).map(|()| 0),
        Invocation::Verify(args) => Ok(verbs::verify::run(&args)),
        Invocation::Job(args) => verbs::job::text(&args).and_then(|job| print(&job)),
        Invocation::Profiles { json } => print(&verbs::profiles::text(json)),
        Invocation::Help => print(&help()),
        Invocation::Version => print(&format!("gracekeeper {}\n", env!("CARGO_PKG_VERSION"))),
    }
}

fn print(text: &str) -> Result<u8, String> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map(|()| 0).map_err(|e| format!("stdout: {e}"))
}
