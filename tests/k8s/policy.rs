//! A ValidatingAdmissionPolicy, evaluated as the API server does.
//!
//! Its part is played here: variables are evaluated in their order and seen by what follows, a validation that cannot be
//! evaluated is a refusal of its own (failurePolicy: Fail), and the objects are as the server has them, with integers for
//! numbers. Functions beyond CEL's standard library and cel-go's strings do not exist here; Kubernetes has those of both.

use super::manifests::{build, folder};
use cel::objects::Key;
use cel::{Context, Env};
use serde_json::Value;
use std::collections::HashMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// JSON as CEL sees an object of Kubernetes: a whole number is an int, not a uint.
pub fn value(json: &Value) -> cel::Value {
    match json {
        Value::Null => cel::Value::Null,
        Value::Bool(b) => cel::Value::Bool(*b),
        Value::Number(n) => n.as_i64().map_or_else(|| cel::Value::Float(n.as_f64().unwrap()), cel::Value::Int),
        Value::String(s) => cel::Value::String(Arc::new(s.clone())),
        Value::Array(list) => cel::Value::List(Arc::new(list.iter().map(value).collect())),
        Value::Object(map) => {
            let map: HashMap<Key, cel::Value> = map.iter().map(|(k, v)| (Key::from(k.as_str()), value(v))).collect();
            cel::Value::Map(cel::objects::Map { map: Arc::new(map) })
        }
    }
}

/// A policy as the API server reads it.
pub struct Policy {
    env: Arc<Env>,
    pub spec: Value,
}

impl Policy {
    pub fn read(kind: &str) -> Self {
        let objects = build(&folder(&format!("admission/{kind}"))).unwrap();
        let policy = objects.into_iter().find(|o| o["kind"] == "ValidatingAdmissionPolicy").unwrap();
        let mut env = Env::stdlib();
        cel::extensions::strings(&mut env).unwrap();
        Self { env: Arc::new(env), spec: policy["spec"].clone() }
    }

    pub fn evaluate(&self, expression: &Value, names: &[(&str, cel::Value)]) -> Result<cel::Value, String> {
        let source = expression.as_str().unwrap();
        let program = self.env.compile(source).unwrap_or_else(|error| panic!("{source}: {error}"));
        let mut context = Context::with_env(Arc::clone(&self.env));
        for (name, value) in names {
            context.add_variable_from_value(*name, value.clone());
        }
        program.execute(&context).map_err(|error| format!("{source}: {error}"))
    }

    /// Whether the policy looks at the request at all.
    pub fn matches(&self, object: &Value, old: &Value) -> bool {
        let names = [("object", value(object)), ("oldObject", value(old))];
        let conditions = self.spec["matchConditions"].as_array().unwrap();
        conditions.iter().all(|c| self.evaluate(&c["expression"], &names) == Ok(cel::Value::Bool(true)))
    }

    /// The messages of the rules that refuse the object; an error is a message that begins so.
    pub fn refusals(&self, object: &Value) -> Vec<String> {
        let object = ("object", value(object));
        let mut variables: HashMap<Key, cel::Value> = HashMap::new();
        let all = |variables: &HashMap<Key, cel::Value>| {
            let map = cel::Value::Map(cel::objects::Map { map: Arc::new(variables.clone()) });
            [object.clone(), ("variables", map)]
        };
        for variable in self.spec["variables"].as_array().unwrap() {
            // One that fails is not there: what uses it fails.
            if let Ok(value) = self.evaluate(&variable["expression"], &all(&variables)) {
                variables.insert(Key::from(variable["name"].as_str().unwrap()), value);
            }
        }
        let mut refusals = Vec::new();
        for rule in self.spec["validations"].as_array().unwrap() {
            match self.evaluate(&rule["expression"], &all(&variables)) {
                Ok(cel::Value::Bool(true)) => {}
                Ok(cel::Value::Bool(false)) => refusals.push(rule["message"].as_str().unwrap().to_owned()),
                other => refusals.push(format!("error: {other:?}")),
            }
        }
        refusals
    }
}

/// What a second checker finds wrong with the types of a policy's rules.
pub fn ill_typed(policy: &Value) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/k8s/typed.py");
    let mut command = Command::new("cel-python");
    let mut child = command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(policy.to_string().as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.success(), told.is_empty(), "{out:?}");
    told
}
