//! The guides do what they say: docs/images.md's Dockerfiles are built and run, docs/kubernetes.md's commands are given to kubectl
//! as they stand there, before an API server that answers with one finished Job.

use super::images::{Images, run};
use super::support::{BINARY, has, records};
use gracekeeper::settings::table::OPTIONS;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// The fenced blocks of a language.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(document)).unwrap();
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// What stands in for an image that cannot be pulled here: what the Dockerfile needs of it is the same.
const BASES: [(&str, &str); 4] = [
    ("debian:stable-slim", "busybox:stable"),
    ("alpine:3", "busybox:stable"),
    ("gcr.io/distroless/python3-debian12:nonroot", "python:3-slim"),
    ("busybox:stable-musl", "busybox:stable"),
];

#[test]
fn the_dockerfiles_of_the_guide_build_and_run() {
    let Some(images) = Images::get() else { return };
    let dockerfiles = blocks("images.md", "dockerfile");
    assert_eq!(dockerfiles.len(), 4);
    let run_line = blocks("images.md", "sh").concat();
    let options: Vec<&str> = run_line.split_whitespace().skip(3).take_while(|w| *w != "IMAGE").collect();
    assert!(options.contains(&"--read-only") && options.contains(&"--cap-drop=ALL"), "{options:?}");
    for (number, dockerfile) in dockerfiles.iter().enumerate() {
        let mut text = dockerfile.clone();
        for (base, here) in BASES {
            text = text.replace(&format!("FROM {base}"), &format!("FROM {}", images.name(here).unwrap()));
        }
        let ours = concat!("gracekeeper-scratch:", env!("CARGO_PKG_VERSION"));
        assert!(text.contains(&format!("--from={ours}")), "the version of this release: {text}");
        text = text.replace(ours, &images.name(ours).unwrap());
        let context = tempfile::tempdir().unwrap();
        std::fs::write(context.path().join("Dockerfile"), &text).unwrap();
        let image = images.own(&format!("guide-{number}"));
        run(Command::new("docker").env("DOCKER_BUILDKIT", "0").args(["build", "-q", "-t", &image]).arg(context.path()));
        let mut command = Command::new("docker");
        command.args(["run", "--rm"]).args(&options).arg("--pids-limit=100").arg(&image);
        let out = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(0), "{text}\n{stderr}");
        let seal = records(&stderr).pop().unwrap_or_else(|| panic!("{text}\n{stderr}"));
        assert_eq!((&seal["status"], &seal["enforcement"]["seccomp_filter"]), (&json!("ok"), &json!("enforced")));
        let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
        let expected = if number < 2 { "uid=65532" } else { "Hello" };
        assert!(stdout.contains(expected), "{text}\n{stdout}");
        // Options come from variables alone: what looks like one is the command.
        let out = command.arg("--version").output().unwrap();
        assert_eq!(out.status.code(), Some(127), "{out:?}");
    }
}

/// Enough of an API server for one Job of a task, its pod that ended, and its log. Keeps what was deleted.
struct Server {
    port: u16,
    deleted: Arc<Mutex<Vec<String>>>,
}

const NAME: &str = "exec-task-001-1c9a4f02";

impl Server {
    /// The Job's end: `Complete` or `Failed`, told from its third look on.
    fn start(message: &str, end: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let deleted = Arc::new(Mutex::new(Vec::new()));
        let (message, kept, looks) = (message.to_owned(), Arc::clone(&deleted), AtomicU32::new(0));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &message, &kept, &|| if looks.fetch_add(1, Ordering::Relaxed) < 2 { "" } else { end });
            }
        });
        Self { port, deleted }
    }
}

fn answer(stream: TcpStream, message: &str, deleted: &Mutex<Vec<String>>, end: &dyn Fn() -> &'static str) {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    if reader.read_line(&mut request).is_err() {
        return;
    }
    let mut length = 0;
    let mut header = String::new();
    while reader.read_line(&mut header).is_ok_and(|n| n > 2) {
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        header.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    if method == "DELETE" {
        deleted.lock().unwrap().push(format!("{path} {}", String::from_utf8_lossy(&body)));
    }
    let (status, kind, text) = response(path, query, message, end);
    let mut stream = reader.into_inner();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
}

fn response(
    path: &str,
    query: &str,
    message: &str,
    end: &dyn Fn() -> &'static str,
) -> (&'static str, &'static str, String) {
    let resources = |group: &str, name: &str, kind: &str| {
        let verbs = json!(["get", "list", "watch", "delete"]);
        let resource = json!({"name": name, "namespaced": true, "kind": kind, "verbs": verbs});
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": [resource]})
    };
    let labels = json!({"job-name": NAME, "taskId": "task-001"});
    let metadata = |name: &str| json!({"name": name, "namespace": "default", "labels": labels, "uid": "1", "resourceVersion": "1"});
    let job = |end: &str| {
        json!({
            "kind": "Job", "apiVersion": "batch/v1", "metadata": metadata(NAME),
            "spec": {"selector": {"matchLabels": {"job-name": NAME}}, "template": {"spec": {"containers": []}}},
            "status": {
                "conditions": if end.is_empty() { json!([{"type": "Suspended", "status": "False"}]) } else { json!([{"type": end, "status": "True"}]) },
                "completedIndexes": "0,2-9", "failedIndexes": "1",
            },
        })
    };
    let terminated = json!({"exitCode": 0, "message": message, "reason": "Completed"});
    let containers = json!([{"name": "evaluation", "image": "busybox"}]);
    let pod = json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": metadata("the-pod"),
        "spec": {"containers": containers, "initContainers": [{"name": "gracekeeper", "image": "g"}]},
        "status": {"phase": "Succeeded", "containerStatuses": [{"name": "evaluation", "state": {"terminated": terminated}}]},
    });
    let list = |kind: &str, version: &str, item: &Value, selector: bool| {
        let items = if selector { json!([item]) } else { json!([]) };
        json!({"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": items})
    };
    let batch = json!({"groupVersion": "batch/v1", "version": "v1"});
    let asked = |what: &str| query.contains(&what.replace('=', "%3D"));
    let found = match path {
        "/api" => json!({"kind": "APIVersions", "versions": ["v1"]}),
        "/apis" => json!({"kind": "APIGroupList", "apiVersion": "v1",
            "groups": [{"name": "batch", "versions": [batch], "preferredVersion": batch}]}),
        "/api/v1" => resources("v1", "pods", "Pod"),
        "/apis/batch/v1" => resources("batch/v1", "jobs", "Job"),
        "/apis/batch/v1/namespaces/default/jobs" => {
            let named = asked("taskId=task-001") || asked(&format!("metadata.name={NAME}"));
            list("JobList", "batch/v1", &job("Complete"), named)
        }
        "/apis/batch/v1/namespaces/default/jobs/evaluation-indexed" => job("Complete"),
        "/api/v1/namespaces/default/pods" => list("PodList", "v1", &pod, asked(&format!("job-name={NAME}"))),
        "/api/v1/namespaces/default/pods/the-pod" => pod,
        "/api/v1/namespaces/default/pods/the-pod/log" if query.contains("container=evaluation") => {
            return ("200 OK", "text/plain", "Hello World\n".into());
        }
        _ if path == format!("/apis/batch/v1/namespaces/default/jobs/{NAME}") => job(end()),
        _ => {
            let status =
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404});
            return ("404 Not Found", "application/json", status.to_string());
        }
    };
    ("200 OK", "application/json", found.to_string())
}

#[test]
fn the_commands_of_the_guide_get_the_verdict() {
    if !has("kubectl") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let log = root.path().join("termination-log");
    std::fs::write(&log, "").unwrap();
    let ran = Command::new(BINARY).arg("--termination-log").arg(&log).args(["--", "true"]).output().unwrap();
    assert!(ran.status.success());
    let message = std::fs::read_to_string(&log).unwrap();
    let server = Server::start(&message, "Complete");
    let config = root.path().join("config");
    let point_at = |server: &Server| {
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c, user: u}}}}], \
             users: [{{name: u, user: {{}}}}], clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{}'}}}}]}}",
            server.port
        );
        std::fs::write(&config, text).unwrap();
    };
    point_at(&server);
    let sh = |script: &str| -> String {
        let script = format!("JOB={NAME}\n{script}");
        let mut command = Command::new("timeout");
        command.args(["60", "sh", "-euc", &script]).env("KUBECONFIG", &config).env("HOME", root.path());
        run(&mut command)
    };
    let blocks = blocks("kubernetes.md", "sh");
    let block = |marker: &str| -> &str {
        let found: Vec<&String> = blocks.iter().filter(|b| b.contains(marker)).collect();
        assert_eq!(found.len(), 1, "one block with {marker}");
        found[0]
    };
    // Whichever way it ends, the log is read at once: a Job that failed early is gone when its TTL is over.
    let wait = block("until ");
    for end in ["Failed", "Complete"] {
        let ends = Server::start(&message, end);
        point_at(&ends);
        assert_eq!(sh(&format!("{wait}echo JOB=$JOB")), format!("{end}\nHello World\nJOB={NAME}\n"));
    }
    point_at(&server);
    // A Job that is gone is not waited for.
    let gone = wait.lines().skip(1).collect::<Vec<_>>().join("\n").replace("kubectl logs", "echo kubectl logs");
    let told = sh(&format!("JOB=gone\n{gone} && echo over"));
    assert!(told.ends_with("over\n"), "{told}");
    let told = sh(block("terminated.message"));
    let (found, code) = told.split_at(message.len());
    assert_eq!((found, code), (message.as_str(), "0"), "the message to the byte, then the exit code");
    assert_eq!(serde_json::from_str::<Value>(found).unwrap()["status"], "ok");
    assert_eq!(sh(block("completedIndexes")), "0,2-9 1");
    // Nobody waits for a pod that is forced away: the request says 0.
    sh(block("--force"));
    let deleted = server.deleted.lock().unwrap().join("\n");
    assert!(deleted.contains("/pods/the-pod ") && deleted.contains("\"gracePeriodSeconds\":0"), "{deleted}");
    // The task of the guide is one that the verb takes.
    let task = block("gracekeeper job").lines().next().unwrap().replace(" > task.json", "");
    super::verb::good(&sh(&task), &["--image", "busybox:stable", "--risk", "high"]);
}

/// What the guide says of every option's variable and of the Job's own numbers.
#[test]
fn the_guide_names_every_variable_and_the_slack_of_every_deadline() {
    let guide = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kubernetes.md")).unwrap();
    let (_, withheld) = guide.split_once("never sees gracekeeper's own variables").unwrap();
    let (withheld, _) = withheld.split_once("\n* ").unwrap();
    for option in OPTIONS {
        assert!(withheld.contains(&format!("`{}`", option.variable)), "{}", option.variable);
    }
    if !has("kubectl") {
        return;
    }
    let profiles = super::manifests::profiles();
    let seconds = |level: &str, key: &str| super::manifests::seconds(&profiles[level][key]);
    let slack = ["low", "medium", "high", "critical"].map(|level| {
        let ends = seconds(level, "timeout") + seconds(level, "hard") + seconds(level, "scrub_budget");
        let left = profiles[level]["active_deadline_seconds"].as_u64().unwrap() - ends;
        format!("{left} s at {level}")
    });
    let [low, medium, high, critical] = slack;
    assert!(guide.replace('\n', " ").contains(&format!("{low}, {medium}, {high} and {critical}")), "{high}");
    let job = super::manifests::object("base", "Job");
    assert!(guide.contains(&format!("`ttlSecondsAfterFinished` ({})", job["spec"]["ttlSecondsAfterFinished"])));
}
