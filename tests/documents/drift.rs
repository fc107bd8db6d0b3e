//! One table: every number of the profiles, wherever the project writes it, against `gracekeeper profiles --json`.

use super::support::BINARY;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const LEVELS: [&str; 4] = ["low", "medium", "high", "critical"];

fn profiles() -> Value {
    serde_json::from_slice(&Command::new(BINARY).args(["profiles", "--json"]).output().unwrap().stdout).unwrap()
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A row of a table by its first cell: the words of the four levels.
type Rows = BTreeMap<String, Vec<String>>;

/// The rows of a Markdown table whose header names the four levels.
fn markdown(text: &str) -> Rows {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|c| c.trim().trim_matches('`').to_owned()).collect()
    };
    let mut rows = Rows::new();
    let mut inside = false;
    for line in text.lines() {
        let row = if line.starts_with('|') { cells(line) } else { Vec::new() };
        let header: Vec<&str> = row.iter().skip(1).map(|c| c.trim_end_matches(" (default)")).collect();
        if header == LEVELS {
            inside = true;
        } else if row.is_empty() {
            inside = false;
        } else if inside && !row[0].starts_with("---") {
            rows.insert(row[0].trim_start_matches("--").to_owned(), row[1..].to_vec());
        }
    }
    rows
}

/// The man page's table.
fn man(text: &str) -> Rows {
    let (_, table) = text.split_once("high (default)\tcritical\n").unwrap();
    let (table, _) = table.split_once(".TE").unwrap();
    table
        .lines()
        .map(|line| {
            let mut words = line.split('\t').map(|w| w.replace("\\-", "-"));
            (words.next().unwrap().trim_start_matches("--").to_owned(), words.collect())
        })
        .collect()
}

/// What `--help` says after each option.
fn help() -> Rows {
    let text = String::from_utf8(Command::new(BINARY).arg("--help").output().unwrap().stdout).unwrap();
    let mut rows = Rows::new();
    let mut flag = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("  --") {
            flag = rest.split(' ').next().unwrap().to_owned();
        }
        if let Some(values) = line.trim().strip_prefix("low, medium, high, critical: ") {
            rows.insert(flag.clone(), values.split(", ").map(str::to_owned).collect());
        }
    }
    rows
}

/// The profile's key of a row: a flag, or what a Job calls it.
fn key(row: &str) -> String {
    match row {
        job if job.starts_with("activeDeadlineSeconds") => "active_deadline_seconds".into(),
        flag => flag.replace('-', "_"),
    }
}

#[test]
fn every_table_is_the_profiles() {
    let profiles = profiles();
    let keys = profiles["low"].as_object().unwrap().len();
    // (what, its rows, how many of the profile's rows it has to have)
    for (what, rows, wanted) in [
        ("README.md", markdown(&text("README.md")), 5),
        ("docs/kubernetes.md", markdown(&text("docs/kubernetes.md")), keys),
        ("docs/gracekeeper.1", man(&text("docs/gracekeeper.1")), keys),
        ("--help", help(), keys - 1),
    ] {
        assert_eq!(rows.len(), wanted, "{what}: {rows:?}");
        for (row, values) in &rows {
            for (level, found) in LEVELS.iter().zip(values) {
                let built_in = match &profiles[level][key(row)] {
                    Value::String(s) => s.clone(),
                    Value::Number(n) => n.to_string(),
                    other => panic!("{what}: {row} of {level} is {other}"),
                };
                assert_eq!(found, &built_in, "{what}: {row} of {level}");
            }
            assert_eq!(values.len(), LEVELS.len(), "{what}: {row}");
        }
    }
}

/// Every number in a file of k8s/ that stands beside a name of the table, built or not.
#[test]
fn every_number_of_a_level_in_k8s_is_the_profiles() {
    let profiles = profiles();
    for level in LEVELS {
        let mut seen = Vec::new();
        for file in ["kustomization.yaml", "values.yaml"] {
            let text = text(&format!("k8s/components/{level}/{file}"));
            for line in text.lines() {
                let Some((name, value)) = line.trim().split_once(": ") else { continue };
                // An entry of the environment.
                let value = value.split_once(", value: ").map_or(value, |(_, value)| value.trim_end_matches('}'));
                let (row, unit) = match name {
                    "activeDeadlineSeconds" => ("active_deadline_seconds", ""),
                    "terminationGracePeriodSeconds" => ("grace", "s"),
                    "timeout" | "grace" => (name, ""),
                    _ if value.bytes().all(|b| b.is_ascii_digit()) => panic!("{level}/{file}: {line} is in no table"),
                    _ => continue,
                };
                let built_in = match &profiles[level][row] {
                    Value::String(s) => s.clone(),
                    other => other.to_string(),
                };
                assert_eq!(format!("{value}{unit}"), built_in, "{level}/{file}: {line}");
                seen.push(name.to_owned());
            }
        }
        // A Job's and a CronJob's, and what the variables are copied from.
        let count = |name: &str| seen.iter().filter(|s| *s == name).count();
        let counts = ["activeDeadlineSeconds", "terminationGracePeriodSeconds", "timeout", "grace"].map(count);
        assert_eq!(counts, [3, 2, 1, 1], "{level}");
    }
}

/// The exit codes that the manifests act on are those of `--help`.
#[test]
fn the_exit_codes_of_the_manifests_are_the_binarys() {
    let help = String::from_utf8(Command::new(BINARY).arg("--help").output().unwrap().stdout).unwrap();
    let (_, statuses) = help.split_once("exit status: ").unwrap();
    let codes = |text: &str| -> Vec<u32> {
        let mut codes: Vec<u32> = text
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .filter(|code| (121..=143).contains(code) && *code != 128)
            .collect();
        codes.sort_unstable();
        codes.dedup();
        codes
    };
    let base = text("k8s/base/job.yaml");
    let (_, policy) = base.split_once("podFailurePolicy").unwrap();
    let (policy, _) = policy.split_once("template:").unwrap();
    assert_eq!(codes(policy), codes(statuses));
    let (_, table) =
        text("README.md").split_once("| exit status |").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let (table, _) =
        table.split_once("## ").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap_or((table, String::new()));
    for code in codes(statuses) {
        assert!(codes(&table).contains(&code), "README.md: {code}");
    }
}

/// The manifests and guides name the images of this version.
#[test]
fn every_image_is_of_this_version() {
    let mut files: Vec<PathBuf> = ["README.md", "docs", "k8s", "image"].map(|f| root().join(f)).to_vec();
    let mut found = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for name in ["gracekeeper-scratch:", "gracekeeper-evaluation:"] {
            for rest in text.split(name).skip(1).filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
                let version = rest.split(|c: char| c != '.' && !c.is_ascii_digit()).next().unwrap();
                assert_eq!(version.trim_end_matches('.'), env!("CARGO_PKG_VERSION"), "{}: {name}", path.display());
                found += 1;
            }
        }
    }
    assert!(found >= 8, "{found}");
}
