//! docs/gracekeeper.1: its two generated sections are what the table of settings makes them, and it is good roff.

use super::support::has;
use gracekeeper::settings::profile::{PROFILES, Profile};
use gracekeeper::settings::table::OPTIONS;
use std::fmt::Write as _;
use std::process::Command;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/gracekeeper.1");

/// Text as roff has to be given it: a hyphen that is part of a name, a quote or a dot that would begin a request.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

fn options() -> String {
    let mut text = String::new();
    for option in OPTIONS {
        let (flag, variable, value) = (roff(option.flag), roff(option.variable), roff(option.value));
        writeln!(text, ".TP\n.BI \\-\\-{flag} \" {value}\" \"\\fR [\\fP\" {variable} \\fR]\\fP").unwrap();
        let mut help = option.help.to_owned();
        help[..1].make_ascii_uppercase();
        writeln!(text, "{}.\n.br\nAccepts {}.", roff(&help), roff(option.accepts)).unwrap();
    }
    text
}

fn levels() -> String {
    let mut text = String::from(".TS\nl1 l1 l1 l1 l.\n\tlow\tmedium\thigh (default)\tcritical\n");
    let mut row = |name: &str, of: &dyn Fn(&Profile) -> String| {
        let values: Vec<String> = PROFILES.iter().map(|(_, p)| roff(&of(p))).collect();
        writeln!(text, "{}\t{}", roff(name), values.join("\t")).unwrap();
    };
    for option in OPTIONS {
        if let Some(of) = option.profile {
            row(&format!("--{}", option.flag), &|p| of(p).to_owned());
        }
    }
    row("activeDeadlineSeconds", &|p| p.active_deadline_seconds.to_string());
    text + ".TE\n"
}

/// The page with a section made anew.
fn with(page: &str, section: &str, text: &str) -> String {
    let (begin, end) = (format!(".\\\" {section}: begin\n"), format!(".\\\" {section}: end\n"));
    let (before, rest) = page.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    format!("{before}{begin}{text}{end}{after}")
}

#[test]
fn the_options_and_levels_are_the_tables() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let made = with(&with(&page, "options", &options()), "levels", &levels());
    if std::env::var_os("GRACEKEEPER_BLESS").is_some() {
        std::fs::write(PAGE, &made).unwrap();
    } else {
        let stale = made.lines().zip(page.lines()).find(|(new, old)| new != old);
        let how = "GRACEKEEPER_BLESS=1 cargo test --test documents writes docs/gracekeeper.1 anew";
        assert!(made == page, "the table has, and the page has: {stale:#?}\n{how}");
    }
    // man(1) runs the preprocessors that the first line names: tbl.
    assert!(page.starts_with("'\\\" t\n"), "{:?}", page.lines().next());
    assert!(page.contains(&format!("\"gracekeeper {}\"", env!("CARGO_PKG_VERSION"))), "the version in .TH");
}

/// What a reader sees has every flag with its variable, every verb, and every exit status of `--help`.
#[test]
fn it_renders_without_a_warning() {
    if !has("groff") {
        return;
    }
    // On a terminal of 80 columns, and wide, so that no line is broken.
    let [_, text] = ["-rLL=78n", "-rLL=400n"].map(|width| {
        let out = Command::new("groff").args(["-t", "-man", "-ww", width, "-Tutf8", "-P-cbou", PAGE]).output().unwrap();
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success() && told.is_empty(), "{width}: {told}");
        String::from_utf8(out.stdout).unwrap()
    });
    let text = text.replace(['−', '‐'], "-");
    for option in OPTIONS {
        let line = format!("--{} {} [{}]", option.flag, option.value, option.variable);
        assert!(text.contains(&line), "{line}\n{text}");
    }
    for verb in ["install DEST", "doctor [--json]", "verify FILE", "profiles [--json]", "job TASK.json --image IMAGE"] {
        assert!(text.contains(&format!("gracekeeper {verb}")), "{verb}");
    }
    let help = Command::new(super::support::BINARY).arg("--help").output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    let (_, statuses) = help.split_once("exit status: ").unwrap();
    let codes = statuses.split(|c: char| !c.is_ascii_digit()).filter(|n| n.len() == 3);
    let (_, section) = text.split_once("EXIT STATUS").unwrap();
    for code in codes {
        assert!(section.contains(code), "{code}");
    }
}
