//! A pod template as the words of `docker run`: what the kubelet and a container runtime make of it, on a machine without them.
//!
//! Pure. What it does not know how to translate it refuses, key by key (`deny_unknown_fields`): a run under docker must not
//! look like the pod's when it is not. What docker cannot do as a node does is said at its place: the size of an emptyDir on
//! disk is not enforced, the memory request is nobody's business but the scheduler's, and the network is none, which is what
//! the default-deny NetworkPolicy of k8s/base leaves.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

pub type Labels = BTreeMap<String, String>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Metadata {
    pub name: String,
    pub labels: Labels,
    pub annotations: Labels,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    #[serde(default)]
    pub metadata: Metadata,
    pub spec: Spec,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    pub restart_policy: String,
    #[serde(default = "thirty")]
    pub termination_grace_period_seconds: u64,
    /// The kubelet's clock for the pod; the tests see that nothing waits for it.
    #[serde(rename = "activeDeadlineSeconds")]
    _active_deadline_seconds: Option<u64>,
    /// There is no cluster here to give a token or to have services.
    #[serde(rename = "automountServiceAccountToken")]
    _automount_service_account_token: Option<bool>,
    #[serde(rename = "enableServiceLinks")]
    _enable_service_links: Option<bool>,
    #[serde(default)]
    pub share_process_namespace: bool,
    #[serde(default)]
    pub security_context: PodSecurity,
    #[serde(default)]
    pub init_containers: Vec<Container>,
    pub containers: Vec<Container>,
    #[serde(default)]
    pub volumes: Vec<Volume>,
}

fn thirty() -> u64 {
    30
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PodSecurity {
    pub run_as_non_root: bool,
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    pub fs_group: Option<u32>,
    pub seccomp_profile: Option<Seccomp>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seccomp {
    #[serde(rename = "type")]
    pub kind: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Container {
    pub name: String,
    pub image: String,
    pub restart_policy: Option<String>,
    pub command: Option<Vec<String>>,
    pub args: Option<Vec<String>>,
    #[serde(default)]
    pub env: Vec<Variable>,
    #[serde(default)]
    pub resources: Resources,
    #[serde(default)]
    pub security_context: Security,
    #[serde(default = "termination_log")]
    pub termination_message_path: String,
    #[serde(default = "file")]
    pub termination_message_policy: String,
    #[serde(default)]
    pub volume_mounts: Vec<Mount>,
}

fn termination_log() -> String {
    "/dev/termination-log".into()
}

fn file() -> String {
    "File".into()
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Variable {
    pub name: String,
    #[serde(default)]
    pub value: String,
    pub value_from: Option<Source>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    pub field_ref: Field,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Field {
    #[serde(rename = "apiVersion")]
    _api_version: Option<String>,
    pub field_path: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    pub requests: BTreeMap<String, String>,
    pub limits: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Security {
    pub allow_privilege_escalation: Option<bool>,
    pub capabilities: Capabilities,
    pub read_only_root_filesystem: bool,
    pub run_as_non_root: Option<bool>,
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    pub seccomp_profile: Option<Seccomp>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    pub name: String,
    pub mount_path: String,
    #[serde(default)]
    pub read_only: bool,
    pub sub_path_expr: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Volume {
    pub name: String,
    pub empty_dir: Option<EmptyDir>,
    pub persistent_volume_claim: Option<Claim>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EmptyDir {
    pub medium: Option<String>,
    pub size_limit: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    pub claim_name: String,
}

/// The pod template of a Job, with the values that cannot be right anywhere refused.
pub fn read(template: &Value) -> Result<Pod, String> {
    let pod: Pod = serde_json::from_value(template.clone()).map_err(|error| error.to_string())?;
    if pod.spec.restart_policy != "Never" {
        return Err(format!("restartPolicy {}: docker run starts a container once", pod.spec.restart_policy));
    }
    for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
        if container.termination_message_policy != "File" {
            return Err(format!("terminationMessagePolicy {}", container.termination_message_policy));
        }
        if !matches!(container.restart_policy.as_deref(), None | Some("Always")) {
            return Err(format!("restartPolicy of {}", container.name));
        }
    }
    if let Some(container) = pod.spec.containers.iter().find(|c| c.restart_policy.is_some()) {
        return Err(format!("restartPolicy of {}: only an init container is a sidecar", container.name));
    }
    Ok(pod)
}

/// Kubernetes' quantity in bytes, or thousandths of a CPU.
pub fn quantity(text: &str, thousandths: bool) -> Result<u64, String> {
    let units: [(&str, f64); 8] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("m", 1e-3),
        ("", 1.0),
    ];
    let (unit, factor) = units.iter().find(|(unit, _)| text.ends_with(unit)).unwrap();
    let number: f64 = text.strip_suffix(unit).unwrap().parse().map_err(|_| format!("quantity {text}"))?;
    let value = number * factor * if thousandths { 1000.0 } else { 1.0 };
    if (1.0..1e15).contains(&value) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok(value as u64)
    } else {
        Err(format!("quantity {text}"))
    }
}

/// `$(NAME)` as the kubelet expands it: only what is defined, `$$` is `$`.
pub fn expanded(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix("$(").and_then(|r| r.split_once(')')) {
            match env.iter().rev().find(|(n, _)| n == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&rest[..rest.len() - after.len()]),
            }
            rest = after;
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out + rest
}

/// A container's variables, in order.
pub fn environment(pod: &Metadata, container: &Container) -> Result<Vec<(String, String)>, String> {
    let mut env: Vec<(String, String)> = Vec::new();
    for variable in &container.env {
        let value = match &variable.value_from {
            None => expanded(&variable.value, &env),
            Some(source) => field(pod, &source.field_ref.field_path)?,
        };
        env.push((variable.name.clone(), value));
    }
    Ok(env)
}

/// The downward API; a label that is not there is an empty value.
fn field(pod: &Metadata, path: &str) -> Result<String, String> {
    let keyed = |map: &Labels, rest: &str| {
        let key =
            rest.strip_prefix("['").and_then(|r| r.strip_suffix("']")).ok_or_else(|| format!("fieldPath {path}"))?;
        Ok(map.get(key).cloned().unwrap_or_default())
    };
    match path {
        "metadata.name" => Ok(pod.name.clone()),
        _ if path.starts_with("metadata.labels") => keyed(&pod.labels, &path["metadata.labels".len()..]),
        _ if path.starts_with("metadata.annotations") => keyed(&pod.annotations, &path["metadata.annotations".len()..]),
        _ => Err(format!("fieldPath {path}")),
    }
}

/// Everything of `docker run` that the container's and the pod's security, resources and command say: options, then the rest.
/// `image` is what the image is called here.
pub fn words(pod: &Pod, container: &Container, image: &str) -> Result<(Vec<String>, Vec<String>), String> {
    let (own, all) = (&container.security_context, &pod.spec.security_context);
    let mut options: Vec<String> = Vec::new();
    let user = own.run_as_user.or(all.run_as_user);
    let group = own.run_as_group.or(all.run_as_group);
    match (user, group) {
        (Some(user), group) => options.push(format!("--user={user}:{}", group.unwrap_or(0))),
        (None, None) => {}
        (None, Some(_)) => return Err("runAsGroup without runAsUser".into()),
    }
    if own.run_as_non_root.unwrap_or(all.run_as_non_root) && user == Some(0) {
        return Err("runAsNonRoot with runAsUser 0".into());
    }
    options.extend(all.fs_group.map(|group| format!("--group-add={group}")));
    match own.seccomp_profile.as_ref().or(all.seccomp_profile.as_ref()).map(|p| p.kind.as_str()) {
        Some("RuntimeDefault") => {}
        // What Kubernetes does where nothing is said.
        None | Some("Unconfined") => options.push("--security-opt=seccomp=unconfined".into()),
        Some(other) => return Err(format!("seccompProfile {other}")),
    }
    if own.allow_privilege_escalation == Some(false) {
        options.push("--security-opt=no-new-privileges".into());
    }
    options.extend(own.capabilities.drop.iter().map(|name| format!("--cap-drop={name}")));
    options.extend(own.capabilities.add.iter().map(|name| format!("--cap-add={name}")));
    if own.read_only_root_filesystem {
        options.push("--read-only".into());
    }
    for (key, value) in &container.resources.limits {
        match key.as_str() {
            "memory" => {
                let bytes = quantity(value, false)?;
                options.extend([format!("--memory={bytes}"), format!("--memory-swap={bytes}")]);
            }
            "cpu" => {
                // The quota that the kubelet sets: thousandths of 100 ms.
                options.extend(["--cpu-period=100000".into(), format!("--cpu-quota={}", quantity(value, true)? * 100)]);
            }
            other => return Err(format!("limit {other}")),
        }
    }
    for (key, value) in &container.resources.requests {
        match key.as_str() {
            "memory" => drop(quantity(value, false)?),
            "cpu" => options.push(format!("--cpu-shares={}", (quantity(value, true)? * 1024 / 1000).max(2))),
            other => return Err(format!("request {other}")),
        }
    }
    let env = environment(&pod.metadata, container)?;
    options.extend(env.iter().map(|(name, value)| format!("--env={name}={value}")));
    let mut rest = vec![image.to_owned()];
    let expand = |words: &[String]| words.iter().map(|w| expanded(w, &env)).collect::<Vec<_>>();
    if let Some(command) = container.command.as_deref().filter(|c| !c.is_empty()) {
        // This also makes docker forget the image's CMD, as Kubernetes does.
        let command = expand(command);
        options.push(format!("--entrypoint={}", command[0]));
        rest.extend_from_slice(&command[1..]);
    }
    rest.extend(expand(container.args.as_deref().unwrap_or_default()));
    Ok((options, rest))
}
