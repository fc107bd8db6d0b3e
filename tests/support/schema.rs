//! Every record that any test produces is checked against the schema that ships with the project.

/// Panics where `line` is not a record of `schema/audit.schema.json`.
pub fn check_line(line: &str) {
    static VALIDATOR: std::sync::OnceLock<jsonschema::Validator> = std::sync::OnceLock::new();
    let validator = VALIDATOR.get_or_init(|| {
        let schema = serde_json::from_str(include_str!("../../schema/audit.schema.json")).expect("the schema is JSON");
        jsonschema::draft202012::new(&schema).expect("the schema is a schema")
    });
    let record: serde_json::Value =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON: {error}\nline: {line}"));
    // The definition of its own event says more than "none of the seven matches".
    if let Err(error) = validator.validate(&record) {
        let event = record.get("event").and_then(|event| event.as_str()).unwrap_or("(none)").to_owned();
        let mut schema: serde_json::Value =
            serde_json::from_str(include_str!("../../schema/audit.schema.json")).expect("the schema is JSON");
        let definition = if event == "detection" { "detection_event" } else { event.as_str() };
        schema["oneOf"] = serde_json::json!([{ "$ref": format!("#/$defs/{definition}") }]);
        schema["allOf"] = schema["oneOf"].take();
        schema.as_object_mut().expect("an object").remove("oneOf");
        let detail = match jsonschema::draft202012::new(&schema) {
            Ok(own) => {
                own.iter_errors(&record).map(|e| format!("{}: {e}", e.instance_path)).collect::<Vec<_>>().join("\n")
            }
            Err(_) => error.to_string(),
        };
        panic!("event {event} does not match the schema:\n{detail}\nline: {line}");
    }
}
