//! The binary: parse, dispatch the verb, print an error once, return the exit status.

mod start;

use gracekeeper::settings::cli::{Invocation, UsageError, help, parse};
use gracekeeper::settings::resolve::resolve;
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
    let argv: Vec<OsString> = std::env::args_os().skip(1).collect();
    let usage = |e: UsageError| e.to_string();
    let invocation = parse(&argv).map_err(usage)?;
    if !matches!(invocation, Invocation::Run(_)) {
        kernel::signals::unblock();
    }
    match invocation {
        Invocation::Run(raw) => {
            let env: Vec<_> = std::env::vars_os().collect();
            let hostname = kernel::proc::hostname();
            Ok(gracekeeper::run(resolve(raw, &env, hostname.as_deref()).map_err(usage)?))
        }
        Invocation::Doctor { raw, json } => {
            let env: Vec<_> = std::env::vars_os().collect();
            let settings = resolve(raw, &env, kernel::proc::hostname().as_deref()).map_err(usage)?;
            let (text, holds) = verbs::doctor::run(&settings, json)?;
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
