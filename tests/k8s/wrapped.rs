//! The examples as the component wraps them, run for real in images that never heard of gracekeeper; pods where it is not PID 1;
//! an indexed Job; and what the translation to docker refuses.

use super::engine::{Ended, How, Live, with_command, with_variable};
use super::manifests::{build, folder, object};
use super::pod::{expanded, quantity, read};
use super::runs::{
    LONG, STUBBORN, check, engine, eventually, killed_all, start, timed_out, until_ready, verdict, verify,
};
use super::wrap::job_of;
use serde_json::{Value, json};
use std::process::Command;

/// The wrapped Job of an example.
fn wrapped(name: &str) -> Value {
    job_of(&build(&folder(&format!("examples/{name}"))).unwrap_or_else(|error| panic!("{name}: {error}"))[0])
}

/// What every wrapped pod has to say, whatever it runs as: exit code, message, and a record that verifies.
fn well(name: &str, ended: &Ended, level: &str) {
    assert_eq!(ended.code, 0, "{name}: {ended:#?}");
    assert_eq!(ended.message()["status"], "ok", "{name}");
    let seal = ended.seal();
    assert_eq!((&seal["status"], &seal["risk"]["level"]), (&json!("ok"), &json!(level)), "{name}");
    assert_eq!(seal["enforcement"]["no_new_privs"], "enforced", "{name}: {seal:#}");
    assert_eq!(verify(ended), Some(0), "{name}");
}

#[test]
fn every_example_runs_wrapped() {
    let Some(images) = engine() else { return };
    for (name, level, output) in [
        ("shell", "low", "9\n8\n7\n6\n5\n4\n3\n2\n1\n"),
        ("python", "medium", "6 3.1415 1\n"),
        ("hardened", "high", "Hello World\n"),
        ("entrypoint", "high", "Hello World\n"),
    ] {
        let mut job = wrapped(name);
        let ended = start(&images, &job).wait(LONG);
        assert_eq!(ended.stdout, output, "{name}: {ended:#?}");
        well(name, &ended, level);
        if name == "hardened" {
            check(&job, level, &ended, 0, "ok");
        }
        // Control: the image itself has no supervisor.
        job["spec"]["template"]["spec"].as_object_mut().unwrap().remove("initContainers");
        let told = Live::start(&images, &job, How::default()).err().expect("nothing installed it");
        assert!(told.contains("/gk/gracekeeper") && told.contains("no such file"), "{told}");
    }
    let ended = start(&images, &wrapped("cronjob")).wait(LONG);
    assert!(ended.stdout.ends_with("\nHello from the Kubernetes cluster\n"), "{ended:#?}");
    well("cronjob", &ended, "medium");
}

#[test]
fn init_containers_and_sidecars_stay_as_they_are() {
    let Some(images) = engine() else { return };
    let live = start(&images, &wrapped("sidecars"));
    let ended = live.wait(LONG);
    assert_eq!(ended.stdout, "FETCHED\n", "{ended:#?}");
    well("sidecars", &ended, "critical");
    eventually("the sidecar has read", || live.logs(&live.named("reader")).0 == "FETCHED\n");
    // The supervisor ended its own workload and nothing of the pod's other containers.
    let running = Command::new("docker").args(["inspect", "-f", "{{.State.Running}}", &live.named("reader")]).output();
    assert_eq!(running.unwrap().stdout, b"true\n");
}

/// What the guide says of the stricter levels: the command's own variables and directories have to be named.
#[test]
fn what_the_stricter_levels_take_away_can_be_given_back() {
    let Some(images) = engine() else { return };
    let strict = with_variable(&wrapped("python"), "RISK_LEVEL", "high");
    let ended = start(&images, &strict).wait(LONG);
    assert_eq!((ended.code, &ended.message()["status"]), (1, &json!("nonzero_exit")), "{ended:#?}");
    assert!(ended.stderr.contains("KeyError: 'DIGITS'"), "{ended:#?}");
    let kept = with_variable(&strict, "KEEP_ENV", "DIGITS:PYTHONDONTWRITEBYTECODE");
    let ended = start(&images, &kept).wait(LONG);
    assert_eq!(ended.stdout, "6 3.1415 1\n", "{ended:#?}");
    well("python", &ended, "high");

    let confined = with_variable(&wrapped("sidecars"), "WRITABLE_PATHS", "");
    let ended = start(&images, &confined).wait(LONG);
    assert!(ended.code == 1 && ended.stderr.contains("can't create /data/output"), "{ended:#?}");
}

/// A wrapped Job that does not want to end, stopped and timed out.
#[test]
fn a_wrapped_job_is_ended() {
    let Some(images) = engine() else { return };
    let job = with_command(&wrapped("shell"), &STUBBORN);
    let ended = timed_out(&with_variable(&job, "HARD_LIMIT", "2s"), |job| start(&images, job));
    assert_eq!((ended.code, &ended.message()["status"]), (124, &json!("timeout")), "{ended:#?}");
    let live = start(&images, &with_variable(&job, "HARD_LIMIT", "2s"));
    until_ready(&live);
    live.stop();
    let ended = live.wait(LONG);
    assert_eq!((ended.code, &ended.message()["status"]), (143, &json!("terminated")), "{ended:#?}");
    assert_eq!(verify(&ended), Some(0));
}

/// Not PID 1: behind docker's init, and in the sandbox's PID namespace (shareProcessNamespace).
#[test]
fn where_it_is_not_pid_1() {
    let Some(images) = engine() else { return };
    let job = object("overlays/high", "Job");
    let mut shared = job.clone();
    shared["spec"]["template"]["spec"]["shareProcessNamespace"] = json!(true);
    for (what, job, extra) in [("--init", &job, vec!["--init"]), ("--pid container:", &shared, vec![])] {
        let run = |job: &Value| {
            let how = How { extra: extra.clone(), ..How::default() };
            Live::start(&images, job, how).unwrap()
        };
        let ended = run(&with_command(job, &["sh", "-c", "echo $$; exit 7"])).wait(LONG);
        assert_ne!(ended.stdout.trim(), "2", "{what}: the supervisor would be PID 1");
        check(job, "high", &ended, 7, "nonzero_exit");
        // Its own TMPDIR and nothing else: what is in /tmp is not the workload's here.
        let paths = ended.seal()["cleanup"]["paths"].as_array().unwrap();
        assert!(paths.iter().all(|p| p["path"].as_str().unwrap().starts_with("/tmp/")), "{what}: {paths:?}");

        let ended = timed_out(&with_command(job, &STUBBORN), run);
        check(job, "high", &ended, 124, "timeout");
        killed_all(ended.seal());

        let live = run(&with_command(job, &STUBBORN));
        until_ready(&live);
        live.stop();
        check(job, "high", &live.wait(LONG), 143, "terminated");
    }
}

/// Every process of the pod in one PID namespace, a sidecar with the workload's UID among them: only the workload is ended.
#[test]
fn in_a_shared_namespace_nothing_else_is_signalled() {
    let Some(images) = engine() else { return };
    let mut job = wrapped("sidecars");
    job["spec"]["template"]["spec"]["shareProcessNamespace"] = json!(true);
    let sidecar = |live: &Live| {
        let out = Command::new("docker").args(["exec", &live.named("sandbox"), "ps", "-o", "args"]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).contains("/data/output")
    };
    let live = start(&images, &with_variable(&with_command(&job, &STUBBORN), "INTERNAL_TIMEOUT", "20s"));
    let ended = live.wait(LONG);
    check(&job, "critical", &ended, 124, "timeout");
    killed_all(ended.seal());
    assert!(sidecar(&live), "the sidecar was killed");
    drop(live);
    // Control: what kill(-1) does there.
    let mut plain = with_command(&job, &["sh", "-c", "echo began; kill -KILL -1; exit 0"]);
    plain["spec"]["template"]["spec"]["containers"][0]["command"].as_array_mut().unwrap().drain(..2);
    let live = start(&images, &plain);
    assert_eq!(live.wait(LONG).stdout, "began\n");
    eventually("kill(-1) took the sidecar", || !sidecar(&live));
}

#[test]
fn an_indexed_job_gives_each_pod_its_index() {
    let Some(images) = engine() else { return };
    let job = object("overlays/indexed", "Job");
    let spec = &job["spec"];
    assert_eq!((&spec["completionMode"], &spec["backoffLimitPerIndex"]), (&json!("Indexed"), &json!(1)));
    assert!(spec.get("backoffLimit").is_none(), "0 would end the batch with its first failure");
    // A batch in time: every wave of pods, each tried once more, before the Job's deadline; each pod before its own.
    let number = |pointer: &str| spec.pointer(pointer).and_then(Value::as_u64).unwrap();
    let waves = number("/completions").div_ceil(number("/parallelism"));
    let pod = number("/template/spec/activeDeadlineSeconds");
    assert_eq!(pod, super::manifests::profiles()["high"]["active_deadline_seconds"].as_u64().unwrap());
    assert!(waves * (1 + number("/backoffLimitPerIndex")) * pod <= number("/activeDeadlineSeconds"));
    for (code, action) in [
        (121, "FailIndex"),
        (124, "FailIndex"),
        (143, "FailIndex"),
        (126, "FailIndex"),
        (1, "FailIndex"),
        // Whatever it says: a workload that exits with these may neither end the batch nor be given another try.
        (125, "FailIndex"),
        (137, "FailIndex"),
    ] {
        assert_eq!(verdict(&job, code), action, "{code}");
    }
    let script =
        "echo index $JOB_COMPLETION_INDEX; env | grep -c -e KEEP_ENV -e JOB_ID; [ $JOB_COMPLETION_INDEX != 2 ]";
    let pods: Vec<Live> = (0..3)
        .map(|index| {
            let how = How { index: Some(index), ..How::default() };
            Live::start(&images, &with_command(&job, &["sh", "-c", script]), how).unwrap()
        })
        .collect();
    for (index, live) in pods.iter().enumerate() {
        let ended = live.wait(LONG);
        assert_eq!(ended.stdout, format!("index {index}\n0\n"), "{ended:#?}");
        assert_eq!(ended.code, i32::from(index == 2), "{ended:#?}");
        // job-name is every pod's: the record tells the indices apart by the pod's name.
        assert_eq!(ended.seal()["job_id"], live.pod_name());
        assert!(live.pod_name().starts_with(&format!("evaluation-indexed-{index}-")));
        assert_eq!(verify(&ended), Some(0));
    }
    // Control: without KEEP_ENV the profile's clean environment hides the index.
    let hidden = with_variable(&with_command(&job, &["sh", "-c", "echo index $JOB_COMPLETION_INDEX"]), "KEEP_ENV", "");
    let how = How { index: Some(1), ..How::default() };
    assert_eq!(Live::start(&images, &hidden, how).unwrap().wait(LONG).stdout, "index\n");
}

#[test]
fn what_docker_cannot_run_as_the_pod_is_refused() {
    let template =
        json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "busybox:stable"}]}});
    read(&template).unwrap();
    for (pointer, key, value) in [
        ("/spec", "restartPolicy", json!("OnFailure")),
        ("/spec", "hostPID", json!(true)),
        ("/spec", "hostNetwork", json!(false)),
        ("/spec", "nodeSelector", json!({"a": "b"})),
        ("/spec", "volumes", json!([{"name": "h", "hostPath": {"path": "/"}}])),
        ("/spec", "volumes", json!([{"name": "c", "configMap": {"name": "m"}}])),
        ("/spec", "securityContext", json!({"supplementalGroups": [1]})),
        ("/spec/containers/0", "envFrom", json!([])),
        ("/spec/containers/0", "livenessProbe", json!({})),
        ("/spec/containers/0", "lifecycle", json!({})),
        ("/spec/containers/0", "restartPolicy", json!("Always")),
        ("/spec/containers/0", "terminationMessagePolicy", json!("FallbackToLogsOnError")),
        ("/spec/containers/0", "securityContext", json!({"privileged": true})),
        ("/spec/containers/0", "env", json!([{"name": "a", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}])),
        ("/spec/containers/0", "volumeMounts", json!([{"name": "v", "mountPath": "/v", "subPath": "x"}])),
    ] {
        let mut other = template.clone();
        other.pointer_mut(pointer).unwrap()[key] = value;
        read(&other).expect_err(key);
    }
    let env = [("A".to_owned(), "1".to_owned())];
    for (text, wanted) in [("$(A)$$(A)$(B)$A$", "1$(A)$(B)$A$"), ("a", "a"), ("$$$(A)", "$1")] {
        assert_eq!(expanded(text, &env), wanted, "{text}");
    }
    assert_eq!(
        (quantity("64Mi", false), quantity("200m", true), quantity("2", true)),
        (Ok(67_108_864), Ok(200), Ok(2000))
    );
    for bad in ["", "Mi", "1x", "-1", "0"] {
        quantity(bad, false).expect_err(bad);
    }
}
