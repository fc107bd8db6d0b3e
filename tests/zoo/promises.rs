//! SECURITY.md names a test for each promise; each has to be there, and every test of the zoo has to be named by a promise or a
//! weakness.

use std::path::{Path, PathBuf};

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.path().is_dir() {
            sources(&entry.path(), out);
        } else if entry.path().extension().is_some_and(|kind| kind == "rs") {
            out.push(entry.path());
        }
    }
}

/// The tests of one file.
fn tests(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    let after = text.split("#[test]").skip(1);
    let name = |body: &str| body.split("fn ").nth(1)?.split('(').next().map(str::to_owned);
    after.filter_map(name).collect()
}

#[test]
fn each_promise_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let named: Vec<&str> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| {
            word.split_once("::").is_some_and(|(a, b)| {
                [a, b].iter().all(|w| {
                    w.len() > 2 && w.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_')
                })
            })
        })
        .collect();
    assert!(named.len() > 50, "{named:?}");
    let mut files = Vec::new();
    sources(&root.join("tests"), &mut files);
    let there: Vec<String> = files
        .iter()
        .flat_map(|path| {
            let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
            tests(path).into_iter().map(move |test| format!("{module}::{test}"))
        })
        .collect();
    for name in &named {
        assert!(there.iter().any(|test| test == name), "SECURITY.md names {name}, which is not there");
    }
    // A row without a test is no promise.
    for row in
        text.lines().skip_while(|line| !line.starts_with("| promise")).skip(2).take_while(|line| line.starts_with('|'))
    {
        assert!(row.contains("::"), "{row}");
    }
    let mut zoo = Vec::new();
    sources(&root.join("tests/zoo"), &mut zoo);
    for path in zoo.iter().filter(|path| !path.ends_with("promises.rs")) {
        let module = path.file_stem().unwrap().to_str().unwrap();
        for test in tests(path) {
            let name = format!("{module}::{test}");
            let control = ["without_care_it_would_be"].contains(&test.as_str());
            assert!(control || named.contains(&name.as_str()), "SECURITY.md does not name {name}");
        }
    }
}
