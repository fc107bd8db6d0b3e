//! `gracekeeper job`: a task becomes a Job whose two clocks agree, and what is no task is refused.

use super::manifests::{LEVELS, check_numbers, variable};
use super::support::BINARY;
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Command, Output};

pub const TASK: &str = r#"{"id":"task-001","command":"echo","args":["Hello","a$(HOME)$b"]}"#;

fn job(task: &str, words: &[&str]) -> Output {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(task.as_bytes()).unwrap();
    Command::new(BINARY).arg("job").arg(file.path()).args(words).output().unwrap()
}

pub fn good(task: &str, words: &[&str]) -> Value {
    let out = job(task, words);
    assert_eq!(out.status.code(), Some(0), "{words:?}: {out:?}");
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn a_task_becomes_a_job() {
    for level in LEVELS {
        let job = good(TASK, &["--image", "busybox", "--risk", level, "--namespace", "evals"]);
        check_numbers(&job, level);
        let labels = &job["metadata"]["labels"];
        let uuid = labels["execUuid"].as_str().unwrap();
        assert_eq!(job["metadata"]["name"], format!("exec-task-001-{}", &uuid[..8]));
        assert_eq!((uuid.len(), &uuid[14..15], labels["taskId"].as_str()), (36, "4", Some("task-001")));
        assert_eq!(job["metadata"]["namespace"], "evals");
        let command = &job["spec"]["template"]["spec"]["containers"][0]["command"];
        // The kubelet turns $$ into $ and would have replaced $(HOME).
        assert_eq!(command, &json!(["/gk/gracekeeper", "--", "echo", "Hello", "a$$(HOME)$$b"]));
    }
    let names: Vec<Value> = (0..2).map(|_| good(TASK, &["--image", "i"])["metadata"]["name"].take()).collect();
    assert_ne!(names[0], names[1]);
}

#[test]
fn options_move_both_clocks() {
    let job = good(TASK, &["--image", "i", "--timeout", "1.5s", "--grace", "2500ms", "--audit-required", "no"]);
    assert_eq!(job["spec"]["activeDeadlineSeconds"], 32, "120 - 90 + 1.5, rounded up");
    assert_eq!(job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], 3);
    assert_eq!(variable(&job, "INTERNAL_TIMEOUT"), "1.5s");
    assert_eq!(variable(&job, "GRACE_PERIOD"), "2500ms");
    assert_eq!(variable(&job, "AUDIT_REQUIRED"), "no");
    let job = good(TASK, &["--image", "i", "--scrub", "/a", "--scrub", "/b"]);
    assert_eq!(variable(&job, "SCRUB_PATHS"), "/a:/b");
}

/// A switch alone means yes, as in a run; what is wrong is said with what is accepted.
#[test]
fn options_are_read_as_in_a_run() {
    for (words, value) in [
        (&["--audit-required"][..], "yes"),
        (&["--audit-required", "no"], "no"),
        (&["--audit-required=no"], "no"),
        (&["--audit-required", "--risk", "low"], "yes"),
    ] {
        let job = good(TASK, &[&["--image", "i"], words].concat());
        assert_eq!(variable(&job, "AUDIT_REQUIRED"), value, "{words:?}");
    }
    assert_eq!(variable(&good(TASK, &["--adaptive", "--image", "i"]), "ADAPTIVE_GRACE"), "yes");
    for (words, told) in [
        (&["--image", "i", "--timeout"][..], "--timeout needs a value: a duration such as"),
        (&["--image", "i", "--timeout", "--"], "--timeout needs a value"),
        (&["--image", "i", "--risk", "extreme"], "is not low, medium, high or critical"),
        (&["--image", "i", "--adaptive", "maybe"], "is not yes or no"),
        (&["--image"], "--image needs a value: an image's name"),
        (&["--image", "i", "--namespace"], "--namespace needs a value: a namespace"),
        (&["--image", "i", "second"], "usage: gracekeeper job"),
        (&["--image", "i", "-x"], "usage: gracekeeper job"),
    ] {
        let out = job(TASK, words);
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(
            (out.status.code(), out.stdout.len(), stderr.lines().count()),
            (Some(125), 0, 1),
            "{words:?} {stderr}"
        );
        assert!(stderr.contains(told), "{words:?}: {stderr}");
    }
}

/// `--help` after a verb is never its argument: nothing is written, whatever the verb.
#[test]
fn help_after_a_verb() {
    let root = tempfile::tempdir().unwrap();
    let run = |words: &[&str]| Command::new(BINARY).current_dir(root.path()).args(words).output().unwrap();
    for verb in ["install", "verify", "profiles", "job", "doctor"] {
        for help in ["--help", "-h"] {
            let out = run(&[verb, help]);
            assert_eq!((out.status.code(), out.stderr.len()), (Some(0), 0), "{verb} {help}: {out:?}");
            assert!(String::from_utf8_lossy(&out.stdout).contains("usage: gracekeeper"), "{verb} {help}");
        }
    }
    for bad in [&["install", "--force"][..], &["install", "-f"], &["verify", "-x"], &["job", "-x"], &["profiles", "-x"]]
    {
        let out = run(bad);
        assert_eq!((out.status.code(), out.stdout.len()), (Some(125), 0), "{bad:?}: {out:?}");
    }
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    // Control: a file that is really called so.
    assert_eq!(run(&["install", "./--help"]).status.code(), Some(0));
    assert!(root.path().join("--help").exists());
}

#[test]
fn an_image_with_it_as_entrypoint() {
    let job = good(TASK, &["--image", "i", "--entrypoint"]);
    let pod = &job["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["args"][0], "echo");
    assert!(pod.get("initContainers").is_none() && pod["containers"][0].get("command").is_none());
    assert!(!job.to_string().contains("/gk"));
    for command in ["job", "--version"] {
        let task = json!({"id": "a", "command": command}).to_string();
        assert_eq!(job_code(&task, &["--image", "i", "--entrypoint"]), Some(125), "{command}");
    }
}

fn job_code(task: &str, words: &[&str]) -> Option<i32> {
    let out = job(task, words);
    if out.status.code() == Some(125) {
        assert_eq!((out.stdout.len(), String::from_utf8_lossy(&out.stderr).lines().count()), (0, 1), "{out:?}");
    }
    out.status.code()
}

#[test]
fn what_is_no_job_is_refused() {
    let long = "a".repeat(50);
    for id in ["", "A", "a_b", "a.b", "-a", "a-", "a b", "a\n", long.as_str()] {
        let task = json!({"id": id, "command": "echo"}).to_string();
        assert_eq!(job_code(&task, &["--image", "i"]), Some(125), "{id:?}");
    }
    assert_eq!(
        good(&json!({"id": &long[1..], "command": "c"}).to_string(), &["--image", "i"])["metadata"]["name"]
            .as_str()
            .unwrap()
            .len(),
        63
    );
    for task in [
        "",
        "[]",
        r#"["a","c",[]]"#,
        r#"{"id":"a"}"#,
        r#"{"id":"a","command":""}"#,
        r#"{"id":"a","command":"c","shell":true}"#,
        r#"{"id":"a","id":"b","command":"c"}"#,
        r#"{"id":"a","command":"c","args":"x"}"#,
        r#"{"id":"a","command":"c","args":["\u0000"]}"#,
    ] {
        assert_eq!(job_code(task, &["--image", "i"]), Some(125), "{task}");
    }
    for words in [
        &[][..],
        &["--image", ""],
        &["--image", "a b"],
        &["--image", "i", "--namespace", "Evals"],
        &["--image", "i", "--risk", "extreme"],
        &["--image", "i", "--timeout", "none"],
        &["--image", "i", "--timeout", "soon"],
        &["--image", "i", "--job-id", "x"],
        &["--image", "i", "--policy", "/nowhere"],
        &["--image", "i", "--scrub", "/a:/b"],
        &["--image", "i", "--no-such-option"],
        &["--image", "i", "second"],
    ] {
        assert_eq!(job_code(TASK, words), Some(125), "{words:?}");
    }
}

#[test]
fn the_allow_list_names_what_runs() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let policy = r#"{"version":1,"commands":[{"path":"/bin/echo","max_args":2}]}"#;
    std::fs::write(file.path(), policy).unwrap();
    let list = file.path().to_str().unwrap();
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_gracekeeper")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, of_job) = help.split_once("gracekeeper job ").unwrap();
    let (but, also) = of_job.split_once("--termination-log;").unwrap();
    assert!(!but.contains("--policy") && also.starts_with(" --policy is checked"), "{help}");
    let job = good(TASK, &["--image", "i", "--policy", list]);
    assert_eq!(job["spec"]["template"]["spec"]["containers"][0]["command"][2], "/bin/echo");
    // Controls: the same tasks make a Job without the list.
    for task in [
        json!({"id": "a", "command": "echo", "args": ["1", "2", "3"]}),
        json!({"id": "a", "command": "sh"}),
        json!({"id": "a", "command": "/usr/bin/echo"}),
    ] {
        let task = task.to_string();
        good(&task, &["--image", "i"]);
        assert_eq!(job_code(&task, &["--image", "i", "--policy", list]), Some(125), "{task}");
    }
}
