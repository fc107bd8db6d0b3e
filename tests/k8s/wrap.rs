//! The component that wraps any Job, by what it makes of the examples: the supervisor in front, and nothing else changed.

use super::manifests::{LEVELS, bare, build, check_numbers, documents, folder, object, validate, variable};
use super::support::has;
use super::verb::{TASK, good};
use gracekeeper::settings::table::OPTIONS;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// The example, its Job's file, the level it is wrapped with.
const WRAPPED: [(&str, &str, &str); 6] = [
    ("shell", "job.yaml", "low"),
    ("python", "job.yaml", "medium"),
    ("hardened", "job.yaml", "high"),
    ("sidecars", "job.yaml", "critical"),
    ("cronjob", "cronjob.yaml", "medium"),
    ("entrypoint", "named/job.yaml", "high"),
];
/// The options that the component and the level give a value.
const OURS: [&str; 5] = ["JOB_ID", "AUDIT_REQUIRED", "RISK_LEVEL", "INTERNAL_TIMEOUT", "GRACE_PERIOD"];

/// The Job in a Job or CronJob.
pub fn job_of(object: &Value) -> Value {
    match object["kind"].as_str() {
        Some("CronJob") => object["spec"]["jobTemplate"].clone(),
        _ => object.clone(),
    }
}

/// What a container that the component adds has to say of itself: a Job that is hardened container by container stays `restricted`.
fn is_restricted(container: &Value) {
    let own = &container["securityContext"];
    assert_eq!(own["runAsNonRoot"], true, "{container:#}");
    assert_eq!(own["allowPrivilegeEscalation"], false, "{container:#}");
    assert_eq!(own["capabilities"], json!({"drop": ["ALL"]}), "{container:#}");
    assert_eq!(own["seccompProfile"], json!({"type": "RuntimeDefault"}), "{container:#}");
    // A pod of UID 0 would contradict runAsNonRoot.
    assert_eq!(own["runAsUser"], 65532, "{container:#}");
}

/// Takes what is ours out again, and fails where any of it is not there. An option that the Job sets itself is its own.
fn unwrapped(mut job: Value, original: &Value) -> Value {
    let own = original["spec"]["template"]["spec"]["containers"][0]["env"].as_array().cloned().unwrap_or_default();
    let take = |list: &mut Value, name: &str| {
        let list = list.as_array_mut().unwrap_or_else(|| panic!("no list for {name}"));
        let at = list.iter().position(|item| item["name"] == name).unwrap_or_else(|| panic!("no {name}"));
        list.remove(at)
    };
    let pod = &mut job["spec"]["template"]["spec"];
    assert_eq!(pod["initContainers"][0]["name"], "gracekeeper", "before the Job's own init containers");
    let init = take(&mut pod["initContainers"], "gracekeeper");
    assert_eq!(init["args"], json!(["install", "/gk/gracekeeper"]));
    is_restricted(&init);
    assert_eq!(take(&mut pod["volumes"], "gracekeeper-bin")["emptyDir"], json!({"sizeLimit": "8Mi"}));
    let container = &mut pod["containers"][0];
    assert_eq!(
        take(&mut container["volumeMounts"], "gracekeeper-bin"),
        json!({"name": "gracekeeper-bin", "mountPath": "/gk", "readOnly": true})
    );
    let command = container["command"].as_array_mut().unwrap();
    assert_eq!(command.drain(..2).collect::<Vec<_>>(), ["/gk/gracekeeper", "--"]);
    for name in OPTIONS.iter().map(|o| o.variable).filter(|name| own.iter().all(|v| v["name"] != **name)) {
        let taken = take(&mut container["env"], name);
        assert!(OURS.contains(&name) || taken == json!({"name": name}), "{taken}");
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
        assert_eq!(compared(unwrapped(wrapped, &original)), compared(original), "{name}");
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
        let of =
            |list: &Value, name: &str| list.as_array().unwrap().iter().find(|i| i["name"] == name).unwrap().clone();
        let mut env: Vec<Value> = pod["containers"][0]["env"].as_array().unwrap().clone();
        env.retain(|v| !OURS[3..].contains(&v["name"].as_str().unwrap()));
        assert_eq!(env.len(), OPTIONS.len() - 2, "all but the two clocks: {env:?}");
        let volume = "gracekeeper-bin";
        let mount = of(&pod["containers"][0]["volumeMounts"], volume);
        (of(&pod["initContainers"], "gracekeeper"), of(&pod["volumes"], volume), mount, env)
    };
    assert_eq!(ours("cronjob"), ours("shell"));
}

/// Builds a Job's text with components of k8s/, and whatever else the kustomization says.
fn kustomized(job: &str, components: &[&str], more: &str) -> Result<Vec<Value>, String> {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(root.path().join("job.yaml"), job).unwrap();
    let up = "../".repeat(root.path().components().count() - 1);
    let path = |name: &&str| format!("{up}{}", folder("components").join(name).strip_prefix("/").unwrap().display());
    let list: Vec<String> = components.iter().map(path).collect();
    let text = format!("resources: [job.yaml]\ncomponents: [{}]\n{more}", list.join(", "));
    std::fs::write(root.path().join("kustomization.yaml"), text).unwrap();
    build(root.path())
}

/// A Job that names no command would run its ENTRYPOINT unsupervised: the build fails, and says which path is missing.
#[test]
fn a_job_that_relies_on_its_entrypoint_is_refused() {
    if !has("kubectl") {
        return;
    }
    let read = |name: &str| std::fs::read_to_string(folder("examples").join(name)).unwrap();
    let named = read("shell/job.yaml");
    // To Kubernetes an empty list is none.
    let (before, command) = named.split_once("command: [").unwrap();
    let (_, after) = command.split_once("]\n").unwrap();
    let empty = format!("{before}command: []\n{after}");
    let cron = |job: &str| {
        let mut object = documents(job).remove(0);
        let spec = json!({"schedule": "* * * * *", "jobTemplate": {"spec": object["spec"].take()}});
        object["kind"] = "CronJob".into();
        object["spec"] = spec;
        object.to_string()
    };
    for none in [read("entrypoint/named/job.yaml"), empty] {
        for none in [cron(&none), none] {
            let told = kustomized(&none, &["wrap"], "").expect_err("no command");
            assert!(told.contains("containers/0/command"), "{told}");
        }
    }
    // Control: the same folder with a Job that has one.
    kustomized(&named, &["wrap"], "").unwrap();
    kustomized(&cron(&named), &["wrap"], "").unwrap();
    // Wrapped twice would be supervised twice: refused as well.
    kustomized(&named, &["wrap", "wrap"], "").expect_err("twice");
}

/// Options that the Job's own file or a patch sets win, by value or by reference; what the guide calls reserved is replaced whole, so
/// that the API takes it; the Job's own volumes stay.
#[test]
fn a_jobs_own_options_and_volumes_stay() {
    if !has("kubectl") {
        return;
    }
    let reference = json!({"configMapKeyRef": {"name": "c", "key": "k"}});
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "own"},
        "spec": {"template": {"spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "c", "image": "busybox:stable", "command": ["true"],
                "env": [
                    {"name": "SOFT_LIMIT", "value": "3s"},
                    {"name": "WORKLOAD_NETWORK", "valueFrom": reference},
                    {"name": "POD_NAME", "value": "mine"},
                    {"name": "JOB_ID", "value": "replaced"},
                    {"name": "INTERNAL_TIMEOUT", "valueFrom": reference},
                    {"name": "AUDIT_FILE", "valueFrom": reference},
                ],
                "volumeMounts": [{"name": "gracekeeper", "mountPath": "/a"}, {"name": "audit", "mountPath": "/b"}],
            }],
            "volumes": [{"name": "gracekeeper", "emptyDir": {}}, {"name": "audit", "emptyDir": {"medium": "Memory"}}],
        }}},
    });
    let patch = "patches:\n- target: {kind: Job}\n  patch: |-\n    apiVersion: batch/v1\n    kind: Job\n    metadata: {name: own}\n    \
                 spec: {template: {spec: {containers: [{name: c, env: [{name: HARD_LIMIT, value: 7s}]}]}}}\n";
    let built = kustomized(&job.to_string(), &["wrap", "high", "audit-volume"], patch).unwrap();
    let found = built.iter().find(|o| o["kind"] == "Job").unwrap();
    let pod = &found["spec"]["template"]["spec"];
    let env = pod["containers"][0]["env"].as_array().unwrap();
    let of = |name: &str| {
        let all: Vec<&Value> = env.iter().filter(|v| v["name"] == name).collect();
        assert_eq!(all.len(), 1, "{name}: {env:?}");
        all[0].clone()
    };
    for (name, value) in [
        ("SOFT_LIMIT", json!("3s")),
        ("HARD_LIMIT", json!("7s")),
        ("POD_NAME", json!("mine")),
        ("INTERNAL_TIMEOUT", json!("90s")),
        ("AUDIT_FILE", json!("/audit/security-audit.json")),
    ] {
        assert_eq!(of(name), json!({"name": name, "value": value}));
    }
    assert_eq!(of("WORKLOAD_NETWORK"), json!({"name": "WORKLOAD_NETWORK", "valueFrom": reference}));
    assert!(of("JOB_ID").get("value").is_none() && of("JOB_ID")["valueFrom"]["fieldRef"].is_object());
    for (list, own) in [(&pod["volumes"], &job["spec"]["template"]["spec"]["volumes"])] {
        for item in own.as_array().unwrap() {
            assert!(list.as_array().unwrap().contains(item), "{item} in {list:#}");
        }
    }
    let names = |list: &Value| list.as_array().unwrap().iter().map(|v| v["name"].clone()).collect::<Vec<_>>();
    for list in [&pod["volumes"], &pod["containers"][0]["volumeMounts"]] {
        let mut names = names(list);
        names.sort_by_key(Value::to_string);
        assert_eq!(names, ["audit", "gracekeeper", "gracekeeper-audit", "gracekeeper-bin"]);
    }
    if has("kubernetes-validate") {
        validate(&built, &["1.29", "1.37"]).unwrap();
    }
}

/// k8s/base, the components, the levels by themselves (for an image that has gracekeeper) and `job` set every option of the table.
#[test]
fn no_option_is_left_to_the_image() {
    if !has("kubectl") {
        return;
    }
    let shell = std::fs::read_to_string(folder("examples/shell/job.yaml")).unwrap();
    let mut jobs =
        vec![object("base", "Job"), good(TASK, &["--image", "i"]), good(TASK, &["--image", "i", "--entrypoint"])];
    jobs.extend(kustomized(&shell, &["wrap"], "").unwrap());
    for level in LEVELS {
        jobs.extend(kustomized(&shell, &[level], "").unwrap());
    }
    for job in &jobs {
        for option in OPTIONS {
            // Panics where there is none, or more than one.
            let value = variable(job, option.variable);
            assert!(OURS.contains(&option.variable) || value.is_null(), "{}: {value}", option.variable);
        }
    }
}

/// The lists that the components copy are made from the table.
#[test]
fn the_components_have_every_option() {
    let names: Vec<&str> = OPTIONS.iter().map(|o| o.variable).collect();
    for (component, kind, name) in [("wrap", "WrapOptions", "wrap-options"), ("risk", "RiskOptions", "risk-options")] {
        let mut options = String::from(
            "# Every option's variable, empty where the Job does not set it: the image's ENV would choose it otherwise. Setting only the name\n\
             # leaves a value that is there. Made from the table of options: GRACEKEEPER_BLESS=1 cargo test --test k8s wrap\n",
        );
        let mut values = format!(
            "# The names that options.yaml copies; not part of what is applied. Made with it.\n\
             apiVersion: gracekeeper/v1\nkind: {kind}\nmetadata:\n  name: {name}\n  \
             annotations: {{config.kubernetes.io/local-config: \"true\"}}\noptions:\n"
        );
        for variable in &names {
            writeln!(values, "  {variable}: {variable}").unwrap();
            writeln!(options, "- source: {{kind: {kind}, fieldPath: options.{variable}}}\n  targets:").unwrap();
            for (target, spec) in [("Job", "spec"), ("CronJob", "spec.jobTemplate.spec")] {
                writeln!(
                    options,
                    "  - {{select: {{kind: {target}, group: batch}}, options: {{create: true}}, \
                     fieldPaths: [\"{spec}.template.spec.containers.0.env.[name={variable}].name\"]}}"
                )
                .unwrap();
            }
        }
        for (file, text) in [("options.yaml", options), ("names.yaml", values)] {
            let path = folder("components").join(component).join(file);
            if std::env::var_os("GRACEKEEPER_BLESS").is_some() {
                std::fs::write(&path, &text).unwrap();
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{}", path.display());
        }
    }
}
