//! The overlays' pods once more, read and run by somebody else: `podman kube play`, which knows pod templates itself.
//!
//! What podman does not do as a kubelet would is done for it (the termination message's file) or left out: it ignores `fsGroup` and
//! makes an emptyDir a volume of its own, owned by root, so nothing here writes to /tmp.

use super::engine::{Ended, with_command, with_variable};
use super::images::{Images, run};
use super::manifests::{LEVELS, object};
use super::runs::{LONG, check, eventually, verdict};
use super::support::{has, records};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Without limits that this machine may not raise, and with runc: crun refuses a hybrid cgroup layout.
fn podman(config: &Path) -> Command {
    let mut command = Command::new("podman");
    command.args(["--runtime", "runc"]).env("CONTAINERS_CONF", config);
    command
}

fn configuration(root: &Path) {
    // podman would raise both to what a machine's init has.
    let limits = "default_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]";
    std::fs::write(root.join("containers.conf"), format!("[containers]\n{limits}\n")).unwrap();
}

/// A pod and its images in podman's storage; dropped, nothing of it is left.
struct Play {
    root: tempfile::TempDir,
    name: String,
    images: Vec<String>,
}

impl Play {
    fn config(&self) -> std::path::PathBuf {
        self.root.path().join("containers.conf")
    }

    fn podman(&self, words: &[&str]) -> String {
        run(podman(&self.config()).args(words))
    }

    /// Plays the pod template of a Job. On a very busy machine podman 4.3 has been seen to report an init container's exit status
    /// as 1 that was none of the binary's: that is tried again, and said.
    fn start(images: &Images, job: &Value) -> Self {
        for _ in 0..2 {
            match Self::attempt(images, job) {
                Ok(play) => return play,
                Err(why) => println!("again: {why}"),
            }
        }
        Self::attempt(images, job).unwrap_or_else(|why| panic!("{why}"))
    }

    fn attempt(images: &Images, job: &Value) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        configuration(root.path());
        let name = format!("gk-k8s-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut play = Self { root, name, images: Vec::new() };
        let template = &job["spec"]["template"];
        let mut pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]});
        pod["metadata"]["name"] = json!(play.name);
        // Kept after it ended, so that what it said can be shown.
        pod["metadata"]["annotations"] = json!({"io.podman.annotations.init.container.type": "always"});
        pod["metadata"]["labels"]["job-name"] = job["metadata"]["name"].clone();
        for container in ["/spec/initContainers/0", "/spec/containers/0"] {
            let container = pod.pointer_mut(container).unwrap();
            let image = images.name(container["image"].as_str().unwrap()).unwrap();
            let archive = play.root.path().join("image.tar");
            run(Command::new("docker").args(["save", "-o"]).arg(&archive).arg(&image));
            run(podman(&play.config()).args(["load", "-q", "-i"]).arg(&archive));
            let here = format!("localhost/{image}");
            container["image"] = json!(here);
            play.images.push(here);
        }
        let message = play.root.path().join("message");
        std::fs::write(&message, "").unwrap();
        std::fs::set_permissions(&message, std::fs::Permissions::from_mode(0o666)).unwrap();
        let volume = json!({"name": "message", "hostPath": {"path": message, "type": "File"}});
        pod["spec"]["volumes"].as_array_mut().unwrap().push(volume);
        let mount = json!({"name": "message", "mountPath": "/dev/termination-log"});
        pod["spec"]["containers"][0]["volumeMounts"].as_array_mut().unwrap().push(mount);
        let file = play.root.path().join("pod.json");
        std::fs::write(&file, pod.to_string()).unwrap();
        let out = podman(&play.config()).args(["kube", "play", "--network", "none"]).arg(&file).output().unwrap();
        if out.status.success() {
            return Ok(play);
        }
        let init = podman(&play.config()).args(["logs", &format!("{}-gracekeeper", play.name)]).output().unwrap();
        Err(format!("{}; its log: {}", String::from_utf8_lossy(&out.stderr), String::from_utf8_lossy(&init.stderr)))
    }

    fn first(&self) -> String {
        format!("{}-evaluation", self.name)
    }

    fn logs(&self) -> (String, String) {
        let out = podman(&self.config()).args(["logs", &self.first()]).output().unwrap();
        (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned())
    }

    fn end(&self) -> Ended {
        let first = self.first();
        let deadline = Instant::now() + LONG;
        while self.podman(&["inspect", "-f", "{{.State.Status}}", &first]).trim() != "exited" {
            assert!(Instant::now() < deadline, "{first} still runs: {:?}", self.logs());
            std::thread::sleep(Duration::from_millis(200));
        }
        let code = self.podman(&["inspect", "-f", "{{.State.ExitCode}}", &first]).trim().parse().unwrap();
        let (stdout, stderr) = self.logs();
        let audit: String =
            stderr.lines().filter(|l| l.starts_with("{\"schema_version\"")).map(|l| format!("{l}\n")).collect();
        let message = std::fs::read_to_string(self.root.path().join("message")).unwrap();
        Ended { code, records: records(&audit), stdout, stderr, message, audit }
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        let _ = podman(&self.config()).args(["pod", "rm", "-f", &self.name]).output();
        for volume in ["tmp", "gracekeeper-bin"] {
            let _ = podman(&self.config()).args(["volume", "rm", "-f", &format!("{}-{volume}", self.name)]).output();
        }
        let _ = podman(&self.config()).arg("rmi").args(&self.images).output();
    }
}

#[test]
fn podman_plays_every_overlay() {
    // Two minutes of another engine's own business: asked for by name.
    let named = std::env::var("GRACEKEEPER_TEST_REQUIRE").is_ok_and(|all| all.split(',').any(|need| need == "podman"));
    if !named {
        println!("skipped: podman is tried where GRACEKEEPER_TEST_REQUIRE names it");
        return;
    }
    if !has("kubectl") || !has("podman") {
        return;
    }
    let Some(images) = Images::get() else { return };
    for level in LEVELS {
        let job = object(&format!("overlays/{level}"), "Job");
        let ended =
            Play::start(&images, &with_command(&job, &["sh", "-c", "id -u; id -g; touch /x || echo ro; exit 7"])).end();
        assert_eq!(ended.stdout, "65532\n65532\nro\n", "{level}: {ended:#?}");
        check(&job, level, &ended, 7, "nonzero_exit");

        let stubborn = with_command(&job, &["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]);
        let play = Play::start(&images, &stubborn);
        eventually("the workload runs", || play.logs().0.contains("ready"));
        let grace = job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].to_string();
        play.podman(&["stop", "-t", &grace, &play.first()]);
        check(&job, level, &play.end(), 143, "terminated");
        drop(play);

        if level == "critical" {
            let ended = Play::start(&images, &with_variable(&stubborn, "INTERNAL_TIMEOUT", "15s")).end();
            check(&job, level, &ended, 124, "timeout");
            assert_eq!(verdict(&job, ended.code), "FailJob");
        }
    }
}
