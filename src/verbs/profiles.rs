//! `gracekeeper profiles`: the risk table as it is built in, for people and for the tests that compare manifests with it.

use crate::settings::profile::{PROFILES, Profile};
use serde_json::{Map, Value};

type Row = (&'static str, fn(&Profile) -> String);

const ROWS: [Row; 13] = [
    ("timeout", |p| p.timeout.to_owned()),
    ("grace", |p| p.grace.to_owned()),
    ("soft", |p| p.soft.to_owned()),
    ("hard", |p| p.hard.to_owned()),
    ("scrub_budget", |p| p.scrub_budget.to_owned()),
    ("monitoring", |p| p.monitoring.to_owned()),
    ("audit_level", |p| p.audit_level.to_owned()),
    ("audit_required", |p| p.audit_required.to_owned()),
    ("adaptive", |p| p.adaptive.to_owned()),
    ("env", |p| p.env.to_owned()),
    ("network", |p| p.network.to_owned()),
    ("filesystem", |p| p.filesystem.to_owned()),
    ("active_deadline_seconds", |p| p.active_deadline_seconds.to_string()),
];

/// The table, as text or as one JSON object by level.
#[must_use]
pub fn text(json: bool) -> String {
    if json {
        let levels: Map<String, Value> = PROFILES
            .iter()
            .map(|(_, p)| {
                let mut row: Map<String, Value> =
                    ROWS.iter().map(|(name, of)| ((*name).to_owned(), Value::String(of(p)))).collect();
                row.insert("active_deadline_seconds".to_owned(), p.active_deadline_seconds.into());
                (p.name.to_owned(), Value::Object(row))
            })
            .collect();
        return format!("{}\n", Value::Object(levels));
    }
    let mut lines = vec![format!("{:<24}", "") + &PROFILES.map(|(_, p)| format!("{:<15}", p.name)).concat()];
    lines.extend(ROWS.iter().map(|(name, of)| {
        format!("{name:<24}") + &PROFILES.each_ref().map(|(_, p)| format!("{:<15}", of(p))).concat()
    }));
    lines.iter().map(|l| format!("{}\n", l.trim_end())).collect()
}
