//! The component that wraps any Job, by what it makes of the examples: the supervisor in front, and nothing else changed.

use super::manifests::{bare, build, check_numbers, documents, folder, object};
use super::support::has;
use super::verb::{TASK, good};
use serde_json::{Value, json};

/// The example, its Job's file, the level it is wrapped with.
const WRAPPED: [(&str, &str, &str); 6] = [
    ("shell", "job.yaml", "low"),
    ("python", "job.yaml", "medium"),
    ("hardened", "job.yaml", "high"),
    ("sidecars", "job.yaml", "critical"),
    ("cronjob", "cronjob.yaml", "medium"),
    ("entrypoint", "named/job.yaml", "high"),
];
const OURS: [&str; 5] = ["JOB_ID", "AUDIT_REQUIRED", "RISK_LEVEL", "INTERNAL_TIMEOUT", "GRACE_PERIOD"];

/// The Job in a Job or CronJob.
pub fn job_of(object: &Value) -> Value {
    match object["kind"].as_str() {
        Some("CronJob") => object["spec"]["jobTemplate"].clone(),
        _ => object.clone(),
    }
}

/// Takes what is ours out again, and fails where any of it is not there.
fn unwrapped(mut job: Value) -> Value {
    let take = |list: &mut Value, name: &str| {
        let list = list.as_array_mut().unwrap_or_else(|| panic!("no list for {name}"));
        let at = list.iter().position(|item| item["name"] == name).unwrap_or_else(|| panic!("no {name}"));
        list.remove(at)
    };
    let pod = &mut job["spec"]["template"]["spec"];
    assert_eq!(pod["initContainers"][0]["name"], "gracekeeper", "before the Job's own init containers");
    assert_eq!(take(&mut pod["initContainers"], "gracekeeper")["args"], json!(["install", "/gk/gracekeeper"]));
    assert_eq!(take(&mut pod["volumes"], "gracekeeper")["emptyDir"], json!({"sizeLimit": "8Mi"}));
    let container = &mut pod["containers"][0];
    assert_eq!(
        take(&mut container["volumeMounts"], "gracekeeper"),
        json!({"name": "gracekeeper", "mountPath": "/gk", "readOnly": true})
    );
    let command = container["command"].as_array_mut().unwrap();
    assert_eq!(command.drain(..2).collect::<Vec<_>>(), ["/gk/gracekeeper", "--"]);
    for name in OURS {
        take(&mut container["env"], name);
    }
    for key in ["env", "volumeMounts"] {
        drop_if_empty(container, key);
    }
    for key in ["initContainers", "volumes"] {
        drop_if_empty(pod, key);
    }
    pod.as_object_mut().unwrap().remove("terminationGracePeriodSeconds");
    job["spec"].as_object_mut().unwrap().remove("activeDeadlineSeconds");
    for metadata in ["/metadata", "/spec/template/metadata"] {
        if let Some(metadata) = job.pointer_mut(metadata) {
            metadata["labels"].as_object_mut().unwrap().remove("risk-level");
            drop_if_empty(metadata, "labels");
        }
    }
    job
}

fn drop_if_empty(object: &mut Value, key: &str) {
    let empty = match &object[key] {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    if empty {
        object.as_object_mut().unwrap().remove(key);
    }
}

/// Without the metadata that only an unlabelled original has not.
fn compared(mut job: Value) -> Value {
    for pointer in ["/spec/template", ""] {
        let holder = job.pointer_mut(pointer).unwrap();
        drop_if_empty(holder, "metadata");
    }
    job
}

#[test]
fn the_component_adds_the_supervisor_and_changes_nothing_else() {
    if !has("kubectl") {
        return;
    }
    for (name, file, level) in WRAPPED {
        let text = std::fs::read_to_string(folder("examples").join(name).join(file)).unwrap();
        let mut original = job_of(&documents(&text)[0]);
        let built = build(&folder(&format!("examples/{name}"))).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(built.len(), 1, "only the Job is applied: {built:?}");
        let wrapped = job_of(&built[0]);
        check_numbers(&wrapped, level);
        if name == "entrypoint" {
            original["spec"]["template"]["spec"]["containers"][0]["command"] = json!(["/bin/echo", "Hello"]);
        }
        assert_eq!(compared(unwrapped(wrapped)), compared(original), "{name}");
    }
}

/// The component and the verb are two ways to one Job.
#[test]
fn a_hardened_job_wrapped_is_the_verbs_job() {
    if !has("kubectl") {
        return;
    }
    let mut printed = good(TASK, &["--image", "busybox:stable", "--risk", "high"]);
    // Which failures end a Job is the Job's own business: the component adds no podFailurePolicy.
    printed["spec"].as_object_mut().unwrap().remove("podFailurePolicy");
    assert_eq!(bare(object("examples/hardened", "Job")), bare(printed));
}

/// What the component says for Jobs and again for CronJobs is the same.
#[test]
fn a_cronjob_gets_what_a_job_gets() {
    if !has("kubectl") {
        return;
    }
    let ours = |name: &str| {
        let job = job_of(&build(&folder(&format!("examples/{name}"))).unwrap()[0]);
        let pod = &job["spec"]["template"]["spec"];
        let of = |list: &Value| list.as_array().unwrap().iter().find(|i| i["name"] == "gracekeeper").unwrap().clone();
        let mut env: Vec<Value> = pod["containers"][0]["env"].as_array().unwrap().clone();
        env.retain(|v| OURS[..3].contains(&v["name"].as_str().unwrap()));
        (of(&pod["initContainers"]), of(&pod["volumes"]), of(&pod["containers"][0]["volumeMounts"]), env)
    };
    assert_eq!(ours("cronjob"), ours("shell"));
}

/// A Job that names no command would run its ENTRYPOINT unsupervised: the build fails, and says which path is missing.
#[test]
fn a_job_that_relies_on_its_entrypoint_is_refused() {
    if !has("kubectl") {
        return;
    }
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let example = folder("examples/entrypoint/named");
    std::fs::copy(example.join("job.yaml"), root.path().join("job.yaml")).unwrap();
    let up = "../".repeat(root.path().components().count() - 1);
    let component = format!("{up}{}", folder("components/wrap").strip_prefix("/").unwrap().display());
    let kustomization = |resource: &str, component: &str| {
        let text = format!("resources: [{resource}]\ncomponents: [{component}]\n");
        std::fs::write(root.path().join("kustomization.yaml"), text).unwrap();
        build(root.path())
    };
    let told = kustomization("job.yaml", &component).expect_err("no command");
    assert!(told.contains("containers/0/command"), "{told}");
    // Control: the same folder with a Job that has one.
    std::fs::copy(folder("examples/shell/job.yaml"), root.path().join("named.yaml")).unwrap();
    kustomization("named.yaml", &component).unwrap();
    // Wrapped twice would be supervised twice: refused as well.
    kustomization("named.yaml", &format!("{component}, {component}")).expect_err("twice");
}
