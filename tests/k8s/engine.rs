//! Runs a Job's pod template under docker, as the kubelet would: init containers in order, sidecars beside, volumes shared, the
//! termination message in a file of the node's, the outer clock at its deadline. It plays the Job controller where that adds
//! something to the pod: the name, the job-name label, the completion index.

use super::images::{Images, run};
use super::pod::{Container, Pod, expanded, read, words};
use super::support::records;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How a pod is run besides what its template says.
#[derive(Default)]
pub struct How {
    /// The completion index of an indexed Job.
    pub index: Option<u32>,
    /// Where a PersistentVolumeClaim's volume is.
    pub claim: Option<PathBuf>,
    /// More of `docker run` for the first container.
    pub extra: Vec<&'static str>,
}

/// A running pod; dropped, nothing of it is left.
pub struct Live {
    images: Arc<Images>,
    id: String,
    pod: Pod,
    root: tempfile::TempDir,
    how: How,
    containers: Vec<String>,
    volumes: Vec<String>,
}

/// What a container left.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub message: String,
    /// The record's lines: on stderr, or in the container's own default file where its root is writable.
    pub audit: String,
    pub records: Vec<Value>,
}

impl Ended {
    /// The termination message, which is the compact final record.
    pub fn message(&self) -> Value {
        assert!(self.message.len() <= 4096, "{} bytes", self.message.len());
        serde_json::from_str(&self.message).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    pub fn seal(&self) -> &Value {
        let seal = self.records.last().unwrap_or_else(|| panic!("no record: {self:#?}"));
        assert_eq!(seal["event"], "evaluation_terminated", "{self:#?}");
        seal
    }
}

fn docker(words: &[&str]) -> String {
    run(Command::new("docker").args(words))
}

/// The Job with another command behind the supervisor.
pub fn with_command(job: &Value, words: &[&str]) -> Value {
    let mut job = job.clone();
    let container = &mut job["spec"]["template"]["spec"]["containers"][0];
    let ours = container["command"].as_array().unwrap()[..2].to_vec();
    container["command"] = ours.into_iter().chain(words.iter().map(|w| json!(w))).collect();
    container.as_object_mut().unwrap().remove("args");
    job
}

/// The Job with another value of a variable.
pub fn with_variable(job: &Value, name: &str, value: &str) -> Value {
    let mut job = job.clone();
    let env = job["spec"]["template"]["spec"]["containers"][0]["env"].as_array_mut().unwrap();
    env.retain(|v| v["name"] != name);
    env.push(json!({"name": name, "value": value}));
    job
}

impl Live {
    /// Starts the pod of a Job: returns once its init containers have ended well and its containers run.
    pub fn start(images: &Arc<Images>, job: &Value, how: How) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut pod = read(&job["spec"]["template"])?;
        let id = format!("gk-k8s-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let job_name = job["metadata"]["name"].as_str().unwrap_or("job").to_owned();
        pod.metadata.name = match how.index {
            Some(index) => format!("{job_name}-{index}-{}", &id[id.len() - 5..].replace('-', "x")),
            None => format!("{job_name}-{}", &id[id.len() - 5..].replace('-', "x")),
        };
        pod.metadata.labels.insert("job-name".into(), job_name.clone());
        pod.metadata.labels.insert("batch.kubernetes.io/job-name".into(), job_name);
        if let Some(index) = how.index {
            pod.metadata.annotations.insert("batch.kubernetes.io/job-completion-index".into(), index.to_string());
        }
        // Named as the kubelet names it: gracekeeper knows an emptyDir on disk by its path.
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut live =
            Self { images: Arc::clone(images), id, pod, root, how, containers: Vec::new(), volumes: Vec::new() };
        live.run_all()?;
        Ok(live)
    }

    fn run_all(&mut self) -> Result<(), String> {
        let pod = self.pod.clone();
        for volume in &pod.spec.volumes {
            self.make_volume(volume)?;
        }
        let shared = pod.spec.share_process_namespace;
        let several =
            pod.spec.containers.len() > 1 || pod.spec.init_containers.iter().any(|c| c.restart_policy.is_some());
        if shared || several {
            // The sandbox, as the runtime's pause container.
            let name = self.container("sandbox");
            let image = self.images.name("busybox:stable")?;
            let limits = ["--network=none", "--pids-limit=64", "--memory=64m"];
            run(Command::new("docker")
                .args(["run", "-d", "--name", &name])
                .args(limits)
                .args([&image, "sleep", "3600"]));
        }
        for container in &pod.spec.init_containers {
            let words = self.words(container, shared, shared || several)?;
            begin(&container.name, container.restart_policy.is_some(), &words)?;
        }
        for container in &pod.spec.containers {
            let mut words = self.words(container, shared, shared || several)?;
            if container.name == pod.spec.containers[0].name {
                words.splice(0..0, self.how.extra.iter().map(|w| (*w).to_owned()));
            }
            begin(&container.name, true, &words)?;
        }
        Ok(())
    }

    /// The container's name for docker.
    fn container(&mut self, name: &str) -> String {
        let full = format!("{}-{name}", self.id);
        self.containers.push(full.clone());
        full
    }

    fn volume_path(&self, name: &str) -> PathBuf {
        self.root.path().join("pods").join(&self.id).join("volumes/kubernetes.io~empty-dir").join(name)
    }

    fn make_volume(&mut self, volume: &super::pod::Volume) -> Result<(), String> {
        let group = self.pod.spec.security_context.fs_group;
        match (&volume.empty_dir, &volume.persistent_volume_claim) {
            (Some(empty), None) if empty.medium.as_deref() == Some("Memory") => {
                let bytes =
                    empty.size_limit.as_ref().ok_or("a Memory emptyDir without sizeLimit: the node's memory")?;
                let bytes = super::pod::quantity(bytes, false)?;
                let mode = if group.is_some() { "2777" } else { "0777" };
                let options = format!("o=size={bytes},mode={mode},gid={}", group.unwrap_or(0));
                let name = format!("{}-{}", self.id, volume.name);
                let device = ["--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", &options];
                run(Command::new("docker").args(["volume", "create", "--driver", "local"]).args(device).arg(&name));
                self.volumes.push(name);
                Ok(())
            }
            (Some(empty), None) if empty.medium.is_none() => {
                make_directory(&self.volume_path(&volume.name), 0o777, group);
                Ok(())
            }
            (None, Some(claim)) if self.how.claim.is_some() => {
                let _ = &claim.claim_name;
                make_directory(self.how.claim.as_deref().unwrap(), 0o770, group);
                Ok(())
            }
            _ => Err(format!("volume {}", volume.name)),
        }
    }

    fn mounts(&self, container: &Container) -> Result<Vec<String>, String> {
        let env = super::pod::environment(&self.pod.metadata, container)?;
        let mut words = Vec::new();
        for mount in &container.volume_mounts {
            let volume = self.pod.spec.volumes.iter().find(|v| v.name == mount.name);
            let volume = volume.ok_or_else(|| format!("no volume {}", mount.name))?;
            let from = match (&volume.empty_dir, &self.how.claim) {
                (Some(empty), _) if empty.medium.is_some() => format!("{}-{}", self.id, volume.name),
                (Some(_), _) => self.volume_path(&volume.name).display().to_string(),
                (None, Some(claim)) => {
                    let path =
                        claim.join(mount.sub_path_expr.as_deref().map(|e| expanded(e, &env)).unwrap_or_default());
                    // As the kubelet makes a subPath: with the volume's mode, its group from the setgid bit.
                    make_directory(&path, 0o770, self.pod.spec.security_context.fs_group);
                    path.display().to_string()
                }
                (None, None) => return Err(format!("volume {}", volume.name)),
            };
            if mount.sub_path_expr.is_some() && volume.empty_dir.is_some() {
                return Err("subPathExpr on an emptyDir".into());
            }
            let mode = if mount.read_only { ":ro" } else { "" };
            words.push(format!("--volume={from}:{}{mode}", mount.mount_path));
        }
        Ok(words)
    }

    fn words(&mut self, container: &Container, shared: bool, sandbox: bool) -> Result<Vec<String>, String> {
        let image = self.images.name(&container.image)?;
        let (options, rest) = words(&self.pod, container, &image)?;
        if container.security_context.run_as_non_root.unwrap_or(self.pod.spec.security_context.run_as_non_root)
            && !options.iter().any(|o| o.starts_with("--user="))
        {
            let user = docker(&["image", "inspect", "-f", "{{.Config.User}}", &image]);
            let number: u32 = user.trim().split(':').next().unwrap_or_default().parse().unwrap_or(0);
            if number == 0 {
                return Err(format!("runAsNonRoot, and the image {image} runs as {user:?}"));
            }
        }
        let message = self.message_path(&container.name);
        std::fs::create_dir_all(message.parent().unwrap()).unwrap();
        std::fs::write(&message, "").unwrap();
        std::fs::set_permissions(&message, std::fs::Permissions::from_mode(0o666)).unwrap();
        let name = self.container(&container.name);
        let joined = format!("container:{}-sandbox", self.id);
        let mut words = vec![format!("--name={name}"), "--pids-limit=200".into(), "--log-driver=json-file".into()];
        words.push(if sandbox { format!("--network={joined}") } else { "--network=none".into() });
        if !sandbox {
            words.push(format!("--hostname={}", self.pod.metadata.name));
        }
        words.extend(shared.then(|| format!("--pid={joined}")));
        words.push(format!("--volume={}:{}", message.display(), container.termination_message_path));
        words.extend(self.mounts(container)?);
        words.extend(options);
        // The Job controller gives every container of an indexed pod its index.
        words.extend(self.how.index.map(|index| format!("--env=JOB_COMPLETION_INDEX={index}")));
        words.extend(rest);
        Ok(words)
    }

    fn message_path(&self, container: &str) -> PathBuf {
        self.root.path().join("pods").join(&self.id).join("containers").join(container).join("0")
    }

    /// The first container's name for docker.
    pub fn first(&self) -> String {
        format!("{}-{}", self.id, self.pod.spec.containers[0].name)
    }

    /// Another container's name for docker.
    pub fn named(&self, container: &str) -> String {
        format!("{}-{container}", self.id)
    }

    pub fn pod_name(&self) -> &str {
        &self.pod.metadata.name
    }

    pub fn logs(&self, container: &str) -> (String, String) {
        let out = Command::new("docker").args(["logs", container]).output().unwrap();
        (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned())
    }

    /// As the kubelet deletes a pod: SIGTERM, and SIGKILL after the grace of the template.
    pub fn stop(&self) -> Duration {
        let began = Instant::now();
        docker(&["stop", "-t", &self.pod.spec.termination_grace_period_seconds.to_string(), &self.first()]);
        began.elapsed()
    }

    pub fn kill(&self) {
        docker(&["kill", "-s", "KILL", &self.first()]);
    }

    /// Until the first container has ended, at most `limit`.
    pub fn wait(&self, limit: Duration) -> Ended {
        let first = self.first();
        let deadline = Instant::now() + limit;
        let code = loop {
            let state = docker(&["inspect", "-f", "{{.State.Running}} {{.State.ExitCode}}", &first]);
            if let Some(code) = state.trim().strip_prefix("false ") {
                break code.parse().unwrap();
            }
            assert!(Instant::now() < deadline, "{first} still runs after {limit:?}: {:?}", self.logs(&first));
            std::thread::sleep(Duration::from_millis(100));
        };
        let (stdout, stderr) = self.logs(&first);
        let message = std::fs::read_to_string(self.message_path(&self.pod.spec.containers[0].name)).unwrap();
        let mut audit: String =
            stderr.lines().filter(|l| l.starts_with("{\"schema_version\"")).map(|l| format!("{l}\n")).collect();
        let copy = self.root.path().join("audit");
        let file = format!("{first}:/var/log/security-audit.json");
        let copied = Command::new("docker").args(["cp", &file]).arg(&copy).output().unwrap();
        if audit.is_empty() && copied.status.success() {
            audit = std::fs::read_to_string(copy).unwrap();
        }
        Ended { code, records: records(&audit), stdout, stderr, message, audit }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // An engine that is very busy gives up on a container and has to be asked again.
        for _ in 0..5 {
            let _ = Command::new("docker").args(["rm", "-f", "-v"]).args(&self.containers).output();
            let filter = format!("name={}-", self.id);
            let left = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output();
            if left.is_ok_and(|out| out.status.success() && out.stdout.is_empty()) {
                break;
            }
        }
        if !self.volumes.is_empty() {
            let _ = Command::new("docker").args(["volume", "rm", "-f"]).args(&self.volumes).output();
        }
    }
}

/// `docker run`: to its end with exit status 0, or only started.
fn begin(name: &str, detached: bool, words: &[String]) -> Result<(), String> {
    let out = Command::new("docker").arg("run").args(detached.then_some("-d")).args(words).output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    out.status.success().then_some(()).ok_or_else(|| format!("container {name}: {} {told}", out.status))
}

fn make_directory(path: &Path, mode: u32, group: Option<u32>) {
    std::fs::create_dir_all(path).unwrap();
    std::os::unix::fs::chown(path, None, Some(group.unwrap_or(0))).unwrap();
    let setgid = if group.is_some() { 0o2000 } else { 0 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode | setgid)).unwrap();
}
