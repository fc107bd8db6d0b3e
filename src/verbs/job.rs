//! `gracekeeper job TASK.json --image IMAGE [--risk LEVEL] …`: a task becomes a Kubernetes Job, printed as JSON for
//! `kubectl apply -f -`.
//!
//! Everything that does not change is in `job.json`, which a test holds against k8s/; the timings are the profile's and
//! come through the very parser that the supervisor in the pod uses, so the two clocks cannot contradict each other.
//! Nothing is sent anywhere.

use crate::audit::log::DEFAULT_FILE;
use crate::kernel::random;
use crate::object::Object;
use crate::scrub::targets;
use crate::settings::cli::{Raw, is_bare, printable};
use crate::settings::resolve::resolve;
use crate::settings::table::{OPTIONS, Opt, find};
use crate::settings::{AuditFile, Settings};
use lexopt::{Arg, Parser};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What does not change from Job to Job.
const TEMPLATE: &str = include_str!("job.json");
/// The image whose `install` the init container runs, unless `--gracekeeper-image` names another.
const SUPERVISOR_IMAGE: &str = concat!("gracekeeper-scratch:", env!("CARGO_PKG_VERSION"));
const USAGE: &str = "usage: gracekeeper job TASK.json --image IMAGE [--risk LEVEL] [--namespace NAME] \
                     [--gracekeeper-image IMAGE] [--entrypoint] [OPTIONS of the supervisor]";
/// What an API server takes in one object is about this.
const TASK_BYTES: u64 = 1 << 20;
/// A Job's name becomes a label of its pods, at most 63 characters: `exec-`, the id, `-` and 8 hex digits.
const ID_LENGTH: usize = 63 - "exec-".len() - "-".len() - 8;
const LABEL: &str = "lower-case letters, digits and -, beginning and ending with a letter or a digit";
/// What an ENTRYPOINT without `--` takes for a verb.
const VERBS: [&str; 6] = ["run", "install", "verify", "profiles", "doctor", "job"];
/// Options that the Job itself decides or that mean a file or a secret on another machine.
const NOT_HERE: [&str; 3] = ["job-id", "audit-key-env", "termination-log"];

/// TASK.json. A key that is not known, given twice or of another type is an error.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    id: String,
    command: String,
    #[serde(default)]
    args: Vec<String>,
}

#[derive(Default)]
struct Asked {
    task: Option<OsString>,
    image: Option<String>,
    namespace: Option<String>,
    supervisor_image: Option<String>,
    policy: Option<String>,
    entrypoint: bool,
    flags: Vec<(&'static str, OsString)>,
}

/// The Job for the words after `job`.
///
/// # Errors
/// One line naming the option or the file, the value and what is accepted.
pub fn text(args: &[OsString]) -> Result<String, String> {
    text_of(args).map_err(|why| format!("job: {why}"))
}

fn text_of(args: &[OsString]) -> Result<String, String> {
    let asked = parse(args)?;
    let (Some(task), Some(image)) = (&asked.task, &asked.image) else { return Err(USAGE.into()) };
    check_image("--image", image)?;
    let supervisor_image = asked.supervisor_image.as_deref().unwrap_or(SUPERVISOR_IMAGE);
    check_image("--gracekeeper-image", supervisor_image)?;
    if let Some(name) = asked.namespace.as_deref().filter(|name| !is_label(name, 63)) {
        return Err(format!("--namespace: {} is not 1 to 63 {LABEL}", quoted(name)));
    }
    let mut task = read(task)?;
    if asked.entrypoint && (task.command.starts_with('-') || VERBS.contains(&task.command.as_str())) {
        // An ENTRYPOINT without `--` would take it for an option or a verb of its own.
        return Err(format!("--entrypoint: the command {} has to be a path there", quoted(&task.command)));
    }
    if let Some(file) = &asked.policy {
        task.command = allowed(Path::new(file), &task)?;
    }
    let uuid = uuid()?;
    let mut job: Value = serde_json::from_str(TEMPLATE).map_err(|e| format!("the built-in template: {e}"))?;
    fill(&mut job, &asked, &task, &uuid, image, supervisor_image)?;
    Ok(format!("{job:#}\n"))
}

/// The path that the allow list gives the task's command. The image's files are not here: a bare word is replaced by the
/// listed path of that name, so that nothing else can be what runs.
fn allowed(file: &Path, task: &Task) -> Result<String, String> {
    let policy = crate::read_policy(file, "--policy")?;
    let path = policy.named(&task.command).ok_or_else(|| format!("policy: {}: not listed", quoted(&task.command)))?;
    let args: Vec<OsString> = task.args.iter().map(OsString::from).collect();
    policy
        .judge(Path::new(path), &args, &|listed| Some(listed.to_path_buf()))
        .map_err(|why| format!("policy: {path}: {why}"))?;
    Ok(path.to_owned())
}

fn fill(
    job: &mut Value,
    asked: &Asked,
    task: &Task,
    uuid: &str,
    image: &str,
    supervisor_image: &str,
) -> Result<(), String> {
    let timings = Timings::of(&asked.flags)?;
    let labels: Map<String, Value> =
        [("app", "gracekeeper"), ("taskId", &task.id), ("execUuid", uuid), ("risk-level", timings.level)]
            .map(|(key, value)| (key.to_owned(), value.into()))
            .into_iter()
            .collect();
    set(job, "/metadata/labels", labels.clone().into())?;
    set(job, "/spec/template/metadata/labels", labels.into())?;
    set(job, "/metadata/name", format!("exec-{}-{}", task.id, uuid.get(..8).unwrap_or_default()).into())?;
    if let (Some(name), Some(Value::Object(metadata))) = (&asked.namespace, job.get_mut("metadata")) {
        metadata.insert("namespace".into(), name.as_str().into());
    }
    set(job, "/spec/activeDeadlineSeconds", timings.deadline.into())?;
    set(job, "/spec/template/spec/terminationGracePeriodSeconds", timings.grace.into())?;
    set(job, "/spec/template/spec/initContainers/0/image", supervisor_image.into())?;
    set(job, "/spec/template/spec/containers/0/image", image.into())?;
    let words = std::iter::once(&task.command).chain(&task.args).map(|word| Value::from(unexpanded(word)));
    if asked.entrypoint {
        let pod = at(job, "/spec/template/spec")?;
        remove(pod, "initContainers");
        for list in ["/volumes", "/containers/0/volumeMounts"] {
            at(pod, list)?.as_array_mut().ok_or("template")?.retain(|item| item["name"] != "gracekeeper-bin");
        }
        let container = at(pod, "/containers/0")?;
        remove(container, "command");
        container["args"] = words.collect();
    } else {
        at(job, "/spec/template/spec/containers/0/command")?.as_array_mut().ok_or("template")?.extend(words);
    }
    let env = at(job, "/spec/template/spec/containers/0/env")?.as_array_mut().ok_or("template")?;
    for (name, value) in timings.env {
        env.retain(|item| item["name"] != name);
        env.push([("name", Value::from(name)), ("value", unexpanded(&value).into())].into_iter().collect());
    }
    // The rest of the table, empty, which is not set: an image's ENV would choose it otherwise.
    for option in OPTIONS {
        if !env.iter().any(|item| item["name"] == option.variable) {
            env.push([("name", Value::from(option.variable))].into_iter().collect());
        }
    }
    Ok(())
}

/// Both clocks, and what the supervisor is told of them.
struct Timings {
    level: &'static str,
    deadline: u64,
    grace: u64,
    env: Vec<(&'static str, String)>,
}

impl Timings {
    /// The profile's deadline, moved by as much as the given options move the latest end of a run that times out; so what
    /// the profile leaves for the start of the pod stays the same.
    fn of(flags: &[(&'static str, OsString)]) -> Result<Self, String> {
        let settled = |flags: Vec<(&'static str, OsString)>| {
            let raw = Raw { flags, command: vec!["-".into()] };
            resolve(raw, &[], Some("-")).map_err(|e| e.to_string())
        };
        let latest = |s: &Settings| s.timeout.map(|t| t.saturating_add(s.hard).saturating_add(s.scrub_budget));
        let given = settled(flags.to_vec())?;
        // As the supervisor in the pod would: its binary is there, and its audit file.
        let audit_file = match &given.audit_file {
            AuditFile::Named(path) => path.clone(),
            AuditFile::Default => PathBuf::from(DEFAULT_FILE),
        };
        let protected = [PathBuf::from("/gk/gracekeeper"), audit_file];
        if let Some(why) = given.scrub.iter().find_map(|path| targets::refuse(path, &protected)) {
            return Err(format!("--scrub: {why}"));
        }
        let default = settled(flags.iter().filter(|(flag, _)| *flag == "risk").cloned().collect())?;
        let (Some(late), Some(profile_late)) = (latest(&given), latest(&default)) else {
            return Err("--timeout: a Job needs one, none is not a duration".into());
        };
        let profile = given.risk.profile();
        let deadline = Duration::from_secs(profile.active_deadline_seconds.into()).saturating_add(late);
        let mut env =
            vec![("INTERNAL_TIMEOUT", profile.timeout.to_owned()), ("GRACE_PERIOD", profile.grace.to_owned())];
        for option in OPTIONS.iter().filter(|o| o.flag != "risk") {
            let values: Vec<&OsString> = flags.iter().filter(|(f, _)| *f == option.flag).map(|(_, v)| v).collect();
            let Some(last) = values.last() else { continue };
            let value = if option.many { joined(option.flag, &values)? } else { utf8(option.flag, last)?.to_owned() };
            env.retain(|(name, _)| *name != option.variable);
            env.push((option.variable, value));
        }
        Ok(Self {
            level: profile.name,
            deadline: whole_seconds(deadline.saturating_sub(profile_late)),
            grace: whole_seconds(given.grace),
            env,
        })
    }
}

/// Rounded up: the outer clock is never the shorter one.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0))
}

fn parse(args: &[OsString]) -> Result<Asked, String> {
    let mut parser = Parser::from_args(args);
    let mut asked = Asked::default();
    while let Some(arg) = parser.next().map_err(|e| e.to_string())? {
        let flag = match arg {
            Arg::Long("entrypoint") => {
                asked.entrypoint = true;
                continue;
            }
            Arg::Long(name) => name.to_owned(),
            Arg::Value(value) if asked.task.is_none() => {
                asked.task = Some(value);
                continue;
            }
            other => return Err(format!("{}; {USAGE}", printable(OsStr::new(&other.unexpected().to_string())))),
        };
        let option = find(&flag);
        let slot = match flag.as_str() {
            "image" => &mut asked.image,
            "namespace" => &mut asked.namespace,
            "gracekeeper-image" => &mut asked.supervisor_image,
            "policy" => &mut asked.policy,
            _ => match option {
                Some(option) if !NOT_HERE.contains(&option.flag) => {
                    asked.flags.push((option.flag, given(&mut parser, option)?));
                    continue;
                }
                Some(_) => return Err(format!("--{flag} cannot be set from here: the Job or a Secret decides it")),
                None => return Err(format!("unknown option --{}; {USAGE}", printable(OsStr::new(&flag)))),
            },
        };
        let accepts = if flag == "namespace" {
            "a namespace"
        } else if flag == "policy" {
            "a policy file"
        } else {
            "an image's name"
        };
        let value = value(&mut parser, &flag, accepts)?;
        *slot = Some(utf8(&flag, &value)?.to_owned());
    }
    Ok(asked)
}

/// The value of an option of a run, by the rules of a run: a switch alone means yes.
fn given(parser: &mut Parser, option: &Opt) -> Result<OsString, String> {
    if let Some(attached) = parser.optional_value() {
        return Ok(attached);
    }
    if is_bare(option, next(parser).as_deref()) {
        return Ok("yes".into());
    }
    value(parser, option.flag, option.accepts)
}

/// A value that has to be there; `--` is none.
fn value(parser: &mut Parser, flag: &str, accepts: &str) -> Result<OsString, String> {
    if let Some(attached) = parser.optional_value() {
        return Ok(attached);
    }
    match next(parser) {
        Some(word) if word != "--" => parser.value().map_err(|e| e.to_string()),
        _ => Err(format!("--{flag} needs a value: {accepts}")),
    }
}

/// The word after the one that was read.
fn next(parser: &mut Parser) -> Option<OsString> {
    parser.try_raw_args()?.peek().map(OsStr::to_owned)
}

fn read(file: &OsStr) -> Result<Task, String> {
    let name = printable(file);
    let mut bytes = Vec::new();
    let read =
        super::input::open(Path::new(file)).and_then(|f| f.take(TASK_BYTES.saturating_add(1)).read_to_end(&mut bytes));
    read.map_err(|e| format!("{name}: {e}"))?;
    if u64::try_from(bytes.len()).is_ok_and(|n| n > TASK_BYTES) {
        return Err(format!("{name}: a task is at most {TASK_BYTES} bytes"));
    }
    let Object(task): Object<Task> =
        serde_json::from_slice(&bytes).map_err(|e| format!("{name}: {}", printable(OsStr::new(&e.to_string()))))?;
    if !is_label(&task.id, ID_LENGTH) {
        return Err(format!("{name}: id {} is not 1 to {ID_LENGTH} {LABEL}", quoted(&task.id)));
    }
    if task.command.is_empty() {
        return Err(format!("{name}: command is empty"));
    }
    if std::iter::once(&task.command).chain(&task.args).any(|word| word.contains('\0')) {
        return Err(format!("{name}: command and args cannot hold a NUL"));
    }
    Ok(task)
}

/// A DNS-1123 label (RFC 1123, section 2.1), which is a label value as well.
fn is_label(text: &str, most: usize) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=most).contains(&text.len())
        && text.bytes().all(|b| alphanumeric(b) || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// What an image reference is made of; whether it exists is the registry's answer.
fn check_image(option: &str, image: &str) -> Result<(), String> {
    let good = image.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b))
        && image.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && image.len() <= 512;
    if good { Ok(()) } else { Err(format!("{option}: {} is not an image's name", quoted(image))) }
}

/// A word as the kubelet has to be given it: it turns `$(NAME)` into a variable's value and `$$` into `$`.
fn unexpanded(word: &str) -> String {
    word.replace('$', "$$")
}

fn joined(flag: &str, values: &[&OsString]) -> Result<String, String> {
    let mut words = Vec::new();
    for value in values {
        let word = utf8(flag, value)?;
        if word.contains(':') {
            return Err(format!("--{flag}: {} cannot hold a colon here", quoted(word)));
        }
        words.push(word);
    }
    Ok(words.join(":"))
}

fn utf8<'a>(flag: &str, value: &'a OsStr) -> Result<&'a str, String> {
    value.to_str().ok_or_else(|| format!("--{flag}: {} is not UTF-8", printable(value)))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", printable(OsStr::new(text)))
}

/// A random UUID (RFC 9562, version 4).
fn uuid() -> Result<String, String> {
    let bits = u128::from_be_bytes(random::sixteen_bytes().map_err(|e| format!("no random bytes: {e}"))?);
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let mut text = format!("{bits:032x}");
    for dash in [20, 16, 12, 8] {
        text.insert(dash, '-');
    }
    Ok(text)
}

/// The template has every place that is filled; a test renders all of them.
fn at<'a>(value: &'a mut Value, pointer: &str) -> Result<&'a mut Value, String> {
    value.pointer_mut(pointer).ok_or_else(|| format!("the built-in template has no {pointer}"))
}

fn set(value: &mut Value, pointer: &str, new: Value) -> Result<(), String> {
    *at(value, pointer)? = new;
    Ok(())
}

fn remove(value: &mut Value, key: &str) {
    if let Value::Object(map) = value {
        map.remove(key);
    }
}
