//! The admission policies, their CEL evaluated for real on Jobs that must pass and Jobs that must not, each refused by the very
//! rule that is meant for it.
//! No case may end with an error: what cannot be evaluated is refused too, but not by the rule that is meant.

use super::manifests::{build, documents, folder, object, profiles};
use super::policy::{Policy, ill_typed, value};
use super::support::has;
use super::verb::{TASK, good};
use gracekeeper::settings::table::OPTIONS;
use serde_json::{Value, json};

/// A Job as its CronJob would hold it.
fn cron(job: &Value) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "c"},
        "spec": {"schedule": "* * * * *", "jobTemplate": {"metadata": job["metadata"], "spec": job["spec"]}},
    })
}

/// A Job with a change: a pointer to what holds the key, the key, the new value (null takes it away). In a list of named items `set`
/// puts one in the place of its namesake and `drop` takes one away; any other word adds one.
fn changed(job: &Value, changes: &[(&str, &str, Value)]) -> Value {
    let mut job = job.clone();
    for (pointer, key, value) in changes {
        let holder = job.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}"));
        match (holder, key.parse::<usize>()) {
            (Value::Array(list), Ok(at)) => list[at] = value.clone(),
            (Value::Array(list), Err(_)) if *key == "drop" => list.retain(|item| item["name"] != *value),
            (Value::Array(list), Err(_)) if *key == "set" => {
                list.retain(|item| item["name"] != value["name"]);
                list.push(value.clone());
            }
            (Value::Array(list), Err(_)) => list.push(value.clone()),
            (Value::Object(map), _) if value.is_null() => drop(map.remove(*key)),
            (holder, _) => holder[*key] = value.clone(),
        }
    }
    job
}

const JOB: &str = "/spec";
const POD: &str = "/spec/template/spec";
const MAIN: &str = "/spec/template/spec/containers/0";
const ENV: &str = "/spec/template/spec/containers/0/env";
const INIT: &str = "/spec/template/spec/initContainers/0";
const INIT_MOUNTS: &str = "/spec/template/spec/initContainers/0/volumeMounts";
const INITS: &str = "/spec/template/spec/initContainers";
const CONTAINERS: &str = "/spec/template/spec/containers";
const MOUNTS: &str = "/spec/template/spec/containers/0/volumeMounts";
const LABELS: &str = "/spec/template/metadata/labels";

fn env(name: &str, value: &str) -> (&'static str, &'static str, Value) {
    (ENV, "set", json!({"name": name, "value": value}))
}

/// The high level's Job with no timing of its own in the environment: 90 + 5 + 10 of 120 s, 5 of 5.
fn plain() -> Value {
    let mut job = good(TASK, &["--image", "busybox", "--risk", "high"]);
    for item in job.pointer_mut(ENV).unwrap().as_array_mut().unwrap() {
        if ["INTERNAL_TIMEOUT", "GRACE_PERIOD"].contains(&item["name"].as_str().unwrap()) {
            item.as_object_mut().unwrap().remove("value");
        }
    }
    job
}

/// Both policies: what one says of the Job, the other says of the CronJob that holds it.
fn refusals(jobs: &Policy, cronjobs: &Policy, job: &Value) -> Vec<String> {
    let told = jobs.refusals(job);
    assert_eq!(told, cronjobs.refusals(&cron(job)), "{job:#}");
    told
}

#[test]
fn what_ships_is_admitted() {
    if !has("kubectl") {
        return;
    }
    let (jobs, cronjobs) = (Policy::read("jobs"), Policy::read("cronjobs"));
    for name in ["low", "medium", "high", "critical", "indexed", "audit-volume"] {
        let job = object(&format!("overlays/{name}"), "Job");
        assert_eq!(refusals(&jobs, &cronjobs, &job), [""; 0], "{name}");
    }
    for level in ["low", "medium", "high", "critical"] {
        for more in [&["--entrypoint"][..], &["--timeout", "1500ms"], &["--grace", "2m"], &["--hard", "0.5s"]] {
            let words = [&["--image", "gracekeeper-evaluation:0.1.0", "--risk", level], more].concat();
            assert_eq!(refusals(&jobs, &cronjobs, &good(TASK, &words)), [""; 0], "{words:?}");
        }
    }
    // The examples are refused as they are and admitted as they are wrapped.
    for (name, file) in [
        ("shell", "job.yaml"),
        ("python", "job.yaml"),
        ("hardened", "job.yaml"),
        ("sidecars", "job.yaml"),
        ("entrypoint", "named/job.yaml"),
        ("cronjob", "cronjob.yaml"),
    ] {
        let wrapped = build(&folder(&format!("examples/{name}"))).unwrap().remove(0);
        let text = std::fs::read_to_string(folder("examples").join(name).join(file)).unwrap();
        let original = documents(&text).remove(0);
        let policy = if name == "cronjob" { &cronjobs } else { &jobs };
        assert_eq!(policy.refusals(&wrapped), [""; 0], "{name}");
        let told = policy.refusals(&original);
        assert!(told.iter().any(|m| m.contains("must begin with /gk/gracekeeper")), "{name}: {told:?}");
    }
}

#[test]
fn a_job_that_stays_inside_its_clocks_is_admitted() {
    if !has("kubectl") {
        return;
    }
    let (jobs, cronjobs) = (Policy::read("jobs"), Policy::read("cronjobs"));
    let job = plain();
    for changes in [
        vec![],
        vec![env("INTERNAL_TIMEOUT", "105")],
        vec![env("INTERNAL_TIMEOUT", "1.75m")],
        vec![env("INTERNAL_TIMEOUT", "104999ms"), env("HARD_LIMIT", "5001ms")],
        vec![env("INTERNAL_TIMEOUT", "")],
        vec![(POD, "terminationGracePeriodSeconds", Value::Null), env("GRACE_PERIOD", "30s")],
        vec![(JOB, "completions", json!(3)), (JOB, "parallelism", json!(3))],
        vec![(JOB, "completions", json!(3)), (JOB, "activeDeadlineSeconds", json!(315))],
        vec![(JOB, "parallelism", json!(3))],
        vec![(POD, "activeDeadlineSeconds", json!(105))],
        vec![
            (LABELS, "risk-level", json!("critical")),
            env("GRACE_PERIOD", "4s"),
            (JOB, "activeDeadlineSeconds", json!(59)),
        ],
        vec![env("RISK_LEVEL", "high")],
        vec![(MAIN, "image", json!("anything@sha256:00"))],
        // Where the job's own is harmless.
        vec![(MAIN, "envFrom", json!([{"configMapRef": {"name": "c"}}]))],
        vec![
            (MAIN, "command", Value::Null),
            entrypoint_image(),
            (MAIN, "args", json!(["echo", "$(OPT)", "--timeout"])),
        ],
        vec![(MAIN, "command", Value::Null), entrypoint_image(), (MAIN, "args", json!(["--", "$(OPT)"]))],
        vec![(MOUNTS, "0", json!({"name": "tmp", "mountPath": "/gracekeeper-data", "subPath": "x"}))],
        vec![(MOUNTS, "0", json!({"name": "tmp", "mountPath": "/opt/..data/.gk/x"}))],
        vec![(MAIN, "volumeDevices", json!([{"name": "d", "devicePath": "/dev/xvda"}]))],
        vec![(POD, "hostPID", json!(false)), (POD, "shareProcessNamespace", json!(false))],
        vec![env("HARD_LIMIT", "9s"), env("WORKLOAD_NETWORK", "deny")],
        vec![(INIT, "image", json!("gracekeeper-scratch@sha256:00"))],
    ] {
        assert_eq!(refusals(&jobs, &cronjobs, &changed(&job, &changes)), [""; 0], "{changes:?}");
    }
}

fn entrypoint_image() -> (&'static str, &'static str, Value) {
    (MAIN, "image", json!("gracekeeper-evaluation:1"))
}

/// What a Job leaves to its image's ENV, or to envFrom, is refused, each option by the table.
#[test]
fn no_option_is_left_to_the_image() {
    if !has("kubectl") {
        return;
    }
    let (jobs, cronjobs) = (Policy::read("jobs"), Policy::read("cronjobs"));
    let listed = jobs.spec["variables"].as_array().unwrap().iter().find(|v| v["name"] == "options").unwrap();
    let variables: Vec<&str> = OPTIONS.iter().map(|o| o.variable).collect();
    assert_eq!(jobs.evaluate(&listed["expression"], &[]).unwrap(), value(&json!(variables)));
    for variable in variables {
        for more in [
            vec![],
            vec![(MAIN, "envFrom", json!([{"configMapRef": {"name": "c"}}]))],
            vec![(MAIN, "command", Value::Null), entrypoint_image()],
        ] {
            let changes = [vec![(ENV, "drop", json!(variable))], more].concat();
            let told = refusals(&jobs, &cronjobs, &changed(&plain(), &changes));
            assert!(told.iter().any(|m| m.contains("every option's variable")), "{variable}: {told:?}");
            assert!(!told.iter().any(|m| m.starts_with("error")), "{variable}: {told:?}");
        }
    }
    let told = refusals(&jobs, &cronjobs, &changed(&plain(), &[(MAIN, "env", Value::Null)]));
    assert!(told.iter().any(|m| m.contains("every option's variable")), "{told:?}");
}

#[test]
fn contradictions_and_ways_around_are_refused() {
    if !has("kubectl") {
        return;
    }
    let (jobs, cronjobs) = (Policy::read("jobs"), Policy::read("cronjobs"));
    let job = plain();
    assert_eq!(refusals(&jobs, &cronjobs, &job), [""; 0]);
    let command = |words: Value| vec![(MAIN, "command", words)];
    let entrypoint = |image: &str, args: Value| {
        vec![(MAIN, "command", Value::Null), (MAIN, "image", json!(image)), (MAIN, "args", args)]
    };
    let writer = |image: &str, args: Value| json!({"name": "w", "image": image, "args": args, "volumeMounts": [{"name": "gracekeeper-bin", "mountPath": "/y"}]});
    let mount = |path: &str| vec![(MOUNTS, "0", json!({"name": "tmp", "mountPath": path, "subPath": "x"}))];
    let device = |path: &str| vec![(MAIN, "volumeDevices", json!([{"name": "d", "devicePath": path}]))];
    let without_command = |changes: Vec<_>| [entrypoint("gracekeeper-evaluation:1", json!(["echo"])), changes].concat();
    let mut seen = std::collections::HashSet::new();
    for (changes, message) in [
        // The clocks.
        (vec![env("INTERNAL_TIMEOUT", "106")], "activeDeadlineSeconds is shorter than"),
        (vec![env("INTERNAL_TIMEOUT", "1.76m")], "activeDeadlineSeconds is shorter than"),
        (vec![env("HARD_LIMIT", "21s")], "activeDeadlineSeconds is shorter than"),
        (vec![env("SCRUB_BUDGET", "25001ms")], "activeDeadlineSeconds is shorter than"),
        (vec![(JOB, "activeDeadlineSeconds", json!(104))], "activeDeadlineSeconds is shorter than"),
        (vec![(JOB, "completions", json!(3)), (JOB, "parallelism", json!(2))], "activeDeadlineSeconds is shorter than"),
        (vec![(JOB, "completions", json!(2))], "activeDeadlineSeconds is shorter than"),
        (vec![(LABELS, "risk-level", json!("low"))], "activeDeadlineSeconds is shorter than"),
        (vec![(POD, "activeDeadlineSeconds", json!(104))], "the pod's activeDeadlineSeconds"),
        (vec![(JOB, "activeDeadlineSeconds", Value::Null)], "needs activeDeadlineSeconds"),
        (vec![env("GRACE_PERIOD", "5001ms")], "GRACE_PERIOD is longer"),
        (vec![(POD, "terminationGracePeriodSeconds", json!(4))], "GRACE_PERIOD is longer"),
        (vec![(POD, "terminationGracePeriodSeconds", json!(0))], "GRACE_PERIOD is longer"),
        (
            vec![env("GRACE_PERIOD", "31"), (POD, "terminationGracePeriodSeconds", Value::Null)],
            "GRACE_PERIOD is longer",
        ),
        (vec![env("INTERNAL_TIMEOUT", "none")], "are durations"),
        (vec![env("INTERNAL_TIMEOUT", "1h")], "are durations"),
        (vec![env("INTERNAL_TIMEOUT", "$(OTHER)")], "are durations"),
        (vec![env("GRACE_PERIOD", "0s")], "are durations"),
        // Where a clock could come from unseen.
        (
            vec![env("INTERNAL_TIMEOUT", "9"), (ENV, "add", json!({"name": "INTERNAL_TIMEOUT", "value": "999"}))],
            "set twice",
        ),
        (vec![(ENV, "add", json!({"name": "WORKLOAD_NETWORK", "value": "allow"}))], "set twice"),
        (
            vec![(
                ENV,
                "set",
                json!({"name": "HARD_LIMIT", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}),
            )],
            "comes from elsewhere",
        ),
        (vec![(ENV, "drop", json!("HARD_LIMIT"))], "every option's variable"),
        // The level.
        (vec![(LABELS, "risk-level", Value::Null)], "the label risk-level"),
        (vec![(LABELS, "risk-level", json!("none"))], "the label risk-level"),
        (vec![("/spec/template", "metadata", Value::Null)], "the label risk-level"),
        (vec![env("RISK_LEVEL", "low")], "has to be the label"),
        (vec![(ENV, "set", json!({"name": "RISK_LEVEL"}))], "has to be the label"),
        (
            vec![(
                ENV,
                "set",
                json!({"name": "RISK_LEVEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['x']"}}}),
            )],
            "has to be the label",
        ),
        // Without the supervisor.
        (command(json!(["echo", "Hello"])), "must begin with /gk/gracekeeper"),
        (command(json!(["/bin/sh", "-c", "/gk/gracekeeper -- echo"])), "must begin with /gk/gracekeeper"),
        (command(json!(["/gk/gracekeeper", "--timeout", "9h", "--", "echo"])), "must begin with /gk/gracekeeper"),
        (command(json!(["/gk/gracekeeper"])), "must begin with /gk/gracekeeper"),
        (command(json!(["/gk/gracekeeper2", "--", "echo"])), "must begin with /gk/gracekeeper"),
        (vec![(MAIN, "command", Value::Null)], "must begin with /gk/gracekeeper"),
        (command(json!([])), "must begin with /gk/gracekeeper"),
        (vec![(CONTAINERS, "add", json!({"name": "b", "image": "busybox"}))], "must begin with"),
        (entrypoint("gracekeeper-evaluation2:1", json!(["echo"])), "must begin with"),
        (entrypoint("other/gracekeeper-evaluation:1", json!(["echo"])), "must begin with"),
        (entrypoint("gracekeeper-evaluation:1", json!(["--timeout=9h", "echo"])), "not in args"),
        (entrypoint("gracekeeper-evaluation:1", json!(["run", "--timeout=9h", "echo"])), "not in args"),
        (entrypoint("gracekeeper-evaluation:1", json!(["$(OPT)", "echo"])), "not in args"),
        (entrypoint("gracekeeper-evaluation:1", json!(["x$(OPT)"])), "not in args"),
        (vec![(POD, "initContainers", Value::Null)], "an init container of gracekeeper's image"),
        (vec![(INIT, "image", json!("busybox"))], "an init container of gracekeeper's image"),
        (
            vec![(INIT, "command", json!(["cp", "/bin/sh", "/gk/gracekeeper"]))],
            "an init container of gracekeeper's image",
        ),
        (vec![(INIT, "args", json!(["install", "/gk/other"]))], "an init container of gracekeeper's image"),
        (
            vec![(POD, "volumes", json!([{"name": "gracekeeper-bin", "hostPath": {"path": "/"}}]))],
            "an init container of",
        ),
        // The image that installs, with another binary in the place of its own, or something beside it.
        (
            vec![(INIT_MOUNTS, "add", json!({"name": "tmp", "mountPath": "/gracekeeper", "subPath": "x"}))],
            "an init container of",
        ),
        (vec![(INIT, "volumeDevices", json!([{"name": "d", "devicePath": "/x"}]))], "an init container of"),
        (vec![(INIT, "restartPolicy", json!("Always"))], "an init container of"),
        (vec![(INIT, "lifecycle", json!({"postStart": {"exec": {"command": ["/y"]}}}))], "an init container of"),
        (vec![(INIT_MOUNTS, "0", json!({"name": "tmp", "mountPath": "/gk"}))], "an init container of"),
        (
            vec![(INIT_MOUNTS, "add", json!({"name": "tmp", "mountPath": "/gracekeeper", "subPath": "x"}))],
            "may write to the volume",
        ),
        (vec![(MOUNTS, "1", json!({"name": "gracekeeper-bin", "mountPath": "/gk"}))], "mounted at /gk, read-only"),
        (
            vec![(
                MOUNTS,
                "1",
                json!({"name": "gracekeeper-bin", "mountPath": "/gk", "readOnly": true, "subPath": "x"}),
            )],
            "mounted at /gk, read-only",
        ),
        // Another binary in the place of ours.
        (mount("/gk/gracekeeper"), "nothing else is mounted over"),
        (mount("/gk/"), "nothing else is mounted over"),
        (mount("/x/../gk"), "nothing else is mounted over"),
        (mount("/"), "nothing else is mounted over"),
        (device("/gk/gracekeeper"), "nothing else is mounted over"),
        (without_command(mount("/gracekeeper")), "nothing else is mounted over"),
        (without_command(mount("//gracekeeper/")), "nothing else is mounted over"),
        (without_command(mount("gracekeeper")), "nothing else is mounted over"),
        (without_command(mount("/.")), "nothing else is mounted over"),
        (without_command(device("/gracekeeper")), "nothing else is mounted over"),
        (
            without_command(vec![(
                MOUNTS,
                "1",
                json!({"name": "gracekeeper-bin", "mountPath": "/gracekeeper", "readOnly": true, "subPath": "x"}),
            )]),
            "nothing else is mounted over",
        ),
        // Not PID 1.
        (vec![(POD, "hostPID", json!(true))], "that it is PID 1"),
        (vec![(POD, "shareProcessNamespace", json!(true))], "that it is PID 1"),
        (without_command(vec![(POD, "shareProcessNamespace", json!(true))]), "that it is PID 1"),
        (vec![(INITS, "add", writer("busybox", json!(["install", "/gk/gracekeeper"])))], "may write to the volume"),
        (vec![(INITS, "add", writer("gracekeeper-scratch:0.1.0", json!(["--", "/y/sh"])))], "may write to the volume"),
        (vec![(CONTAINERS, "add", writer("gracekeeper-evaluation:0.1.0", json!(["sh"])))], "may write to the volume"),
        (vec![(MAIN, "lifecycle", json!({"postStart": {"exec": {"command": ["sh"]}}}))], "hooks and probes"),
        (vec![(MAIN, "livenessProbe", json!({"exec": {"command": ["sh"]}}))], "hooks and probes"),
    ] {
        let told = refusals(&jobs, &cronjobs, &changed(&job, &changes));
        assert!(told.iter().any(|m| m.contains(message)), "{changes:?}: {told:?}");
        assert!(!told.iter().any(|m| m.starts_with("error")), "{changes:?}: {told:?}");
        seen.extend(told.into_iter().filter(|m| m.contains(message)));
    }
    // No rule without a Job that it is there for.
    for rule in jobs.spec["validations"].as_array().unwrap() {
        assert!(seen.contains(rule["message"].as_str().unwrap()), "{rule}");
    }
}

/// The API server checks types when a policy is made, and refuses the policy; the interpreter of these tests checks none.
#[test]
fn the_rules_are_well_typed() {
    if !has("kubectl") || !has("cel-python") {
        return;
    }
    for policy in build(&folder("admission")).unwrap().iter().filter(|o| o["kind"] == "ValidatingAdmissionPolicy") {
        assert_eq!(ill_typed(policy), "");
        // Controls: a number of another type, a function that is not there, a rule that is no condition.
        for (from, to) in [
            ("> 0.0", "> 0"),
            (".endsWith('ms')", ".endsWidth('ms')"),
            ("has(variables.job.activeDeadlineSeconds)", "variables.waves"),
        ] {
            let broken = policy.to_string().replace(from, to);
            assert_ne!(broken, policy.to_string(), "{from}");
            assert_ne!(ill_typed(&serde_json::from_str(&broken).unwrap()), "", "{to}");
        }
    }
}

#[test]
fn the_policies_hold_the_profiles_and_name_each_other() {
    if !has("kubectl") {
        return;
    }
    let [jobs, cronjobs] = ["jobs", "cronjobs"].map(Policy::read);
    let table = jobs.spec["variables"].as_array().unwrap().iter().find(|v| v["name"] == "profiles").unwrap();
    for (level, profile) in profiles().as_object().unwrap() {
        for (variable, key) in [
            ("INTERNAL_TIMEOUT", "timeout"),
            ("GRACE_PERIOD", "grace"),
            ("HARD_LIMIT", "hard"),
            ("SCRUB_BUDGET", "scrub_budget"),
        ] {
            let expression = format!("({})['{level}']['{variable}']", table["expression"].as_str().unwrap());
            let found = jobs.evaluate(&json!(expression), &[]).unwrap();
            assert_eq!(found, value(&profile[key]), "{level} {variable}");
        }
    }
    // One policy for each kind: they differ in nothing but where the Job is.
    let same = |policy: &Policy| {
        let mut spec = policy.spec.clone();
        spec["variables"].as_array_mut().unwrap().remove(0);
        spec["matchConstraints"]["resourceRules"][0]["resources"] = Value::Null;
        spec
    };
    assert_eq!(same(&jobs), same(&cronjobs));
    let all = build(&folder("admission")).unwrap();
    for kind in ["jobs", "cronjobs"] {
        let name = format!("gracekeeper-{kind}");
        let of = |k: &str| all.iter().find(|o| o["kind"] == k && o["metadata"]["name"] == *name).unwrap();
        assert_eq!(
            of("ValidatingAdmissionPolicy")["spec"]["matchConstraints"]["resourceRules"],
            json!([{"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [kind]}])
        );
        let binding = &of("ValidatingAdmissionPolicyBinding")["spec"];
        assert_eq!((&binding["policyName"], &binding["validationActions"]), (&json!(name), &json!(["Deny"])));
    }
    // An update that leaves the spec alone (a controller's, of a finalizer) is let through, whatever the spec is.
    let bad = changed(&plain(), &[(MAIN, "command", json!(["sh"]))]);
    assert!(jobs.matches(&bad, &Value::Null) && jobs.matches(&bad, &plain()));
    assert!(!jobs.matches(&bad, &changed(&bad, &[("/metadata", "finalizers", json!(["x"]))])));
}
