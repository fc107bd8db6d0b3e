//! The manifests of k8s/, built as a user builds them: valid against the API's schemas, and with the binary's numbers.

use super::support::{BINARY, has};
use super::verb::{TASK, good};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;

pub const LEVELS: [&str; 4] = ["low", "medium", "high", "critical"];
/// From the first version whose schema lets a rule of podFailurePolicy do without `onPodConditions` (the API always did).
const VERSIONS: &[&str] = &["1.29", "1.31", "1.34", "1.37"];
/// Everything in k8s/ that builds on its own.
const BUILDS: [&str; 12] = [
    "overlays/low",
    "overlays/medium",
    "overlays/high",
    "overlays/critical",
    "overlays/indexed",
    "overlays/audit-volume",
    "examples/shell",
    "examples/python",
    "examples/hardened",
    "examples/sidecars",
    "examples/cronjob",
    "examples/entrypoint",
];

pub fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("k8s").join(name)
}

/// The documents of a YAML text, as JSON.
pub fn documents(text: &str) -> Vec<Value> {
    serde_norway::Deserializer::from_str(text)
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .collect()
}

/// What `kubectl kustomize` makes of a folder.
pub fn build(path: &std::path::Path) -> Result<Vec<Value>, String> {
    let out = Command::new("kubectl").arg("kustomize").arg(path).output().unwrap();
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    Ok(documents(&String::from_utf8(out.stdout).unwrap()))
}

/// The one object of a kind in a folder of k8s/.
pub fn object(name: &str, kind: &str) -> Value {
    let objects = build(&folder(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut found: Vec<Value> = objects.into_iter().filter(|o| o["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "one {kind} in {name}: {found:?}");
    found.remove(0)
}

pub fn profiles() -> Value {
    serde_json::from_slice(&Command::new(BINARY).args(["profiles", "--json"]).output().unwrap().stdout).unwrap()
}

pub fn seconds(text: &Value) -> u64 {
    text.as_str().unwrap().strip_suffix('s').unwrap().parse().unwrap()
}

pub fn variable<'a>(job: &'a Value, name: &str) -> &'a Value {
    let env = job["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    let found: Vec<_> = env.iter().filter(|e| e["name"] == name).collect();
    assert_eq!(found.len(), 1, "{name} in {env:?}");
    &found[0]["value"]
}

/// Every number of a Job against the table that is built in.
pub fn check_numbers(job: &Value, level: &str) {
    let profile = &profiles()[level];
    let pod = &job["spec"]["template"]["spec"];
    assert_eq!(job["spec"]["activeDeadlineSeconds"], profile["active_deadline_seconds"], "{level}");
    assert_eq!(pod["terminationGracePeriodSeconds"], seconds(&profile["grace"]), "{level}");
    assert_eq!(variable(job, "INTERNAL_TIMEOUT"), &profile["timeout"], "{level}");
    assert_eq!(variable(job, "GRACE_PERIOD"), &profile["grace"], "{level}");
    assert_eq!(job["metadata"]["labels"]["risk-level"], level);
    assert_eq!(job["spec"]["template"]["metadata"]["labels"]["risk-level"], level);
    // The ladder and the scrub of a timeout end before the outer clock does.
    let inner = seconds(&profile["timeout"]) + seconds(&profile["hard"]) + seconds(&profile["scrub_budget"]);
    assert!(inner <= job["spec"]["activeDeadlineSeconds"].as_u64().unwrap(), "{level}");
}

/// But for names, labels, image and command: what two Jobs have in common, in one order.
pub fn bare(mut job: Value) -> Value {
    job["metadata"] = Value::Null;
    job["spec"]["template"]["metadata"] = Value::Null;
    let pod = &mut job["spec"]["template"]["spec"];
    pod["volumes"].as_array_mut().unwrap().sort_by_key(|v| v["name"].to_string());
    let container = &mut pod["containers"][0];
    container["command"].as_array_mut().unwrap().truncate(2);
    container["env"].as_array_mut().unwrap().sort_by_key(|e| e["name"].to_string());
    job
}

#[test]
fn the_overlays_say_what_the_binary_and_the_verb_say() {
    if !has("kubectl") {
        return;
    }
    for level in LEVELS {
        let name = format!("overlays/{level}");
        let built = object(&name, "Job");
        check_numbers(&built, level);
        let deny = &object(&name, "NetworkPolicy")["spec"];
        assert_eq!(deny["policyTypes"], json!(["Ingress", "Egress"]));
        assert!(deny.get("ingress").is_none() && deny.get("egress").is_none());
        let printed = good(TASK, &["--image", "busybox:stable", "--risk", level]);
        assert_eq!(bare(built), bare(printed), "{level}");
    }
}

/// Strictly against the schemas of the API, several versions of it; the result by (kind/name, version).
pub fn validate(objects: &[Value], versions: &[&str]) -> Result<(), String> {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    // JSON is YAML.
    let text: Vec<String> = objects.iter().map(Value::to_string).collect();
    std::fs::write(file.path(), text.join("\n---\n")).unwrap();
    let mut command = Command::new("kubernetes-validate");
    for version in versions {
        command.args(["-k", version]);
    }
    let out = command.arg("--strict").arg(file.path()).output().unwrap();
    let told = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    // A kind without a schema is only a warning to the tool: each object has to have passed against each version.
    let passed = told.lines().filter(|l| l.starts_with("INFO") && l.contains(" passed for resource ")).count();
    if out.status.success() && passed == objects.len() * versions.len() { Ok(()) } else { Err(told) }
}

#[test]
fn every_manifest_is_valid_for_the_api() {
    if !has("kubectl") || !has("kubernetes-validate") {
        return;
    }
    let mut objects = build(&folder("base")).unwrap();
    for name in BUILDS {
        objects.extend(build(&folder(name)).unwrap_or_else(|error| panic!("{name}: {error}")));
    }
    for level in LEVELS {
        objects.push(good(TASK, &["--image", "busybox", "--risk", level, "--namespace", "evals"]));
        objects.push(good(TASK, &["--image", "busybox", "--risk", level, "--entrypoint"]));
    }
    if let Err(told) = validate(&objects, VERSIONS) {
        panic!("{told}");
    }

    let admission = build(&folder("admission")).unwrap();
    assert_eq!(admission.len(), 4, "{admission:?}");
    if let Err(told) = validate(&admission, &["1.30", "1.34", "1.37"]) {
        panic!("{told}");
    }

    // Controls: what the check is for.
    for (pointer, key, value) in [
        ("/spec", "backofLimit", json!(0)),
        ("/spec", "activeDeadlineSeconds", json!("120")),
        ("/spec/template/spec/containers/0", "securityContext", json!({"readOnlyRootFileSystem": true})),
        ("", "kind", json!("Jobb")),
    ] {
        let mut broken = objects[0].clone();
        assert_eq!(broken["kind"], "Job");
        broken.pointer_mut(pointer).unwrap()[key] = value;
        validate(&[broken], &["1.33"]).expect_err(key);
    }
}

/// Nothing in k8s/ that no test builds.
#[test]
fn every_folder_is_built() {
    let mut here = Vec::new();
    for kind in ["overlays", "examples"] {
        for entry in std::fs::read_dir(folder(kind)).unwrap() {
            here.push(format!("{kind}/{}", entry.unwrap().file_name().to_str().unwrap()));
        }
    }
    here.sort();
    let mut built = BUILDS.map(str::to_owned).to_vec();
    built.sort();
    assert_eq!(here, built);
}
