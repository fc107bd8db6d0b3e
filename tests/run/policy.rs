//! `--policy` on the real binary: every way round it that a caller could try, each beside the run that is allowed.

use super::support::*;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory with `good` on the list, `evil` not, and links between them; each writes its own name beside itself.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() };
        for name in ["good", "evil"] {
            std::fs::create_dir(place.path(name)).unwrap();
            place.program(&place.path(name).join("tool"), name);
        }
        place.policy(&format!(
            r#"{{"version":1,"commands":[{{"path":"{}","max_args":2,"max_arg_bytes":9,"deny_arg_prefixes":["--exec"]}}]}}"#,
            place.path("good/tool").display()
        ));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn program(&self, path: &Path, says: &str) {
        std::fs::write(path, format!("#!/bin/sh\necho {says} > {}\n", self.path("ran").display())).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn policy(&self, text: &str) {
        std::fs::write(self.path("policy"), text).unwrap();
    }

    fn command(&self, with_policy: bool) -> Command {
        let mut command = gracekeeper();
        command.current_dir(self.path("")).env("PATH", format!("{}:/usr/bin:/bin", self.path("evil").display()));
        if with_policy {
            command.arg("--policy").arg(self.path("policy"));
        }
        command
    }

    /// What ran since the last look.
    fn ran(&self) -> Option<String> {
        let said = std::fs::read_to_string(self.path("ran")).ok()?;
        std::fs::remove_file(self.path("ran")).unwrap();
        Some(said.trim().to_owned())
    }

    fn allowed(&self, words: &[&str]) {
        let ran = run(self.command(true).arg("--").args(words));
        assert_eq!(ran.expect(0, "ok")["enforcement"]["policy"], "enforced");
        assert_eq!(self.ran().as_deref(), Some("good"), "{words:?}");
    }

    fn refused(&self, command: &mut Command, why: &str) {
        let ran = run(command);
        let seal = ran.expect(126, "launch_failed");
        assert!(seal["errors"].to_string().contains(why), "{why}: {seal:#}");
        assert_eq!(seal["process"]["pid"], serde_json::Value::Null, "{seal:#}");
        assert_eq!(ran.records[0]["event"], "evaluation_started");
        assert_eq!(self.ran(), None, "something ran");
    }
}

#[test]
fn what_is_not_on_the_list_does_not_run() {
    let p = Place::new();
    symlink(p.path("evil/tool"), p.path("good/link")).unwrap();
    symlink(p.path("good/tool"), p.path("evil/good")).unwrap();
    symlink(p.path("evil"), p.path("linked")).unwrap();
    let good = p.path("good/tool").display().to_string();
    p.allowed(&[&good, "a", "--exe"]);
    p.allowed(&["good/tool"]);
    p.allowed(&["./evil/../good/tool"]);
    for word in [
        p.path("evil/tool").display().to_string().as_str(),
        "tool", // by PATH
        "./good/../evil/tool",
        "good/../linked/tool",
        "good/link",
        "evil/good", // the listed program, under a name that is not listed
        "/proc/self/cwd/evil/tool",
    ] {
        // Control: without the policy it runs, and it is evil.
        let control = run(p.command(false).args(["--", word]));
        assert_eq!((control.code(), p.ran().is_some()), (Some(0), true), "{word}: {control:#?}");
        p.refused(p.command(true).args(["--", word]), "not on the list");
    }
    // The interpreter of a listed script is not on the list itself.
    p.refused(p.command(true).args(["--", "sh", "good/tool"]), "not on the list");
    // A file is no directory: not found, with and without a policy.
    run(p.command(true).args(["--", "good/tool/"])).expect(127, "launch_failed");
    assert_eq!(p.ran(), None);
}

/// What is not on the list is not allowed, also where it is not there; what is on it is not found.
#[test]
fn absent_and_not_on_the_list_are_told_apart() {
    let p = Place::new();
    std::fs::remove_file(p.path("good/tool")).unwrap();
    let [good, evil] = ["good", "evil"].map(|dir| p.path(dir).display().to_string());
    let absolute = p.path("good/tool").display().to_string();
    let not_found = |command: &mut Command| {
        let ran = run(command);
        let seal = ran.expect(127, "launch_failed");
        assert!(seal["errors"].to_string().contains("No such file"), "{seal:#}");
    };
    for word in [absolute.as_str(), "good/tool", "./evil/../good/tool", "good/tool/"] {
        not_found(p.command(true).args(["--", word]));
    }
    not_found(p.command(true).env("PATH", format!("/no/such:{good}")).args(["--", "tool"]));
    for word in ["no-such-tool", "good/other", "/no/such/tool", "evil/tool/", "good/../evil/no"] {
        // Control: without a policy it is not found.
        run(p.command(false).args(["--", word])).expect(127, "launch_failed");
        p.refused(p.command(true).args(["--", word]), "not on the list");
    }
    std::fs::remove_file(p.path("evil/tool")).unwrap();
    p.refused(p.command(true).env("PATH", &evil).args(["--", "tool"]), "not on the list");
    // On the list, and not with these arguments.
    p.refused(p.command(true).args(["--", "good/tool", "--exec"]), "begins with");
    // Its whole directory is gone.
    std::fs::remove_dir(p.path("good")).unwrap();
    not_found(p.command(true).args(["--", absolute.as_str()]));
}

#[test]
fn what_is_checked_is_what_runs() {
    let p = Place::new();
    // The word names another file from where the workload starts than from where gracekeeper stands.
    std::fs::create_dir(p.path("evil/good")).unwrap();
    p.program(&p.path("evil/good/tool"), "evil");
    let evil = p.path("evil");
    for workdir in [evil.as_path(), Path::new("evil")] {
        let control = run(p.command(false).arg("--workdir").arg(workdir).args(["--", "good/tool"]));
        assert_eq!((control.code(), p.ran().as_deref()), (Some(0), Some("evil")), "{control:#?}");
        p.refused(p.command(true).arg("--workdir").arg(workdir).args(["--", "good/tool"]), "not on the list");
    }
    // The search must not go on past the file that was checked: `good` first, but not executable at the exec.
    let mut command = p.command(true);
    command.env("PATH", format!("good:{}", p.path("evil").display())).args(["--", "tool"]);
    assert_eq!(run(&mut command).code(), Some(0));
    assert_eq!(p.ran().as_deref(), Some("good"));
    // An interpreter that is not there is ENOENT at the exec: without the policy the search takes the next.
    std::fs::write(p.path("good/tool"), "#!/no/such/interpreter\n").unwrap();
    let path = format!("{}:{}", p.path("good").display(), p.path("evil").display());
    let control = run(p.command(false).env("PATH", &path).args(["--", "tool"]));
    assert_eq!((control.code(), p.ran().as_deref()), (Some(0), Some("evil")), "{control:#?}");
    let ran = run(p.command(true).env("PATH", &path).args(["--", "tool"]));
    assert_eq!((ran.code(), p.ran()), (Some(127), None), "{ran:#?}");
}

#[test]
fn arguments_are_bytes_and_have_limits() {
    let p = Place::new();
    let bytes = |b: &'static [u8]| std::ffi::OsStr::from_bytes(b);
    let allowed = run(p.command(true).args(["--", "good/tool"]).arg(bytes(b"\xff\xfe--exec")));
    assert_eq!((allowed.code(), p.ran().as_deref()), (Some(0), Some("good")), "{allowed:#?}");
    for (args, why) in [
        (&[&b"a"[..], b"b", b"c"][..], "more than 2 arguments"),
        (&[b"1234567890"], "argument 1 is longer than 9 bytes"),
        (&[b"a", b"--exec=x"], "argument 2 begins with"),
        (&[b"--exec\xff"], "argument 1 begins with"),
    ] {
        p.refused(p.command(true).args(["--", "good/tool"]).args(args.iter().map(|a| bytes(a))), why);
    }
}

#[test]
fn a_policy_that_cannot_be_used_is_a_usage_error() {
    let p = Place::new();
    let usage = |path: &Path, why: &str| {
        let ran = run(p.command(false).arg("--policy").arg(path).args(["--", "good/tool"]));
        assert_eq!((ran.code(), ran.records.len(), p.ran()), (Some(125), 0, None), "{ran:#?}");
        let line = ran.stderr.trim_end();
        assert!(line.contains("--policy") && line.contains(why) && !line.contains('\n'), "{line}");
    };
    usage(&p.path("absent"), "No such file");
    usage(&p.path("good"), "not a regular file");
    usage(Path::new("/dev/zero"), "not a regular file");
    let fifo = p.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    usage(&fifo, "not a regular file");
    // Sparse, as large as a file can be: read no further than the limit.
    std::fs::File::create(p.path("huge")).unwrap().set_len(1 << 40).unwrap();
    usage(&p.path("huge"), "longer than");
    // The fields in order, without a key that says what they are.
    p.policy(&format!(r#"[1,[["{}",2,9,[]]]]"#, p.path("good/tool").display()));
    usage(&p.path("policy"), "expected an object");
    for (text, why) in [
        (r#"{"version":2,"commands":[]}"#, "version 2"),
        (r#"{"version":1,"commands":[],"more":1}"#, "unknown field"),
        (r#"{"version":1,"commands":[{"path":"/x","max_args":"1"}]}"#, "invalid type"),
        ("", "EOF"),
    ] {
        p.policy(text);
        usage(&p.path("policy"), why);
    }
}
