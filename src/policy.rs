//! The allow list of `--policy` (section 8): text in, a decision out. Pure: no file is opened here, and how a path is
//! looked up is an argument.
//!
//! Invariants: what is not allowed by name is refused; a file that is not understood to its last key is no policy; memory
//! is bounded by the file's, which is at most `LIMIT` bytes.

use crate::object::Object;
use crate::settings::cli::printable;
use serde::{Deserialize, Deserializer};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The longest policy file.
pub const LIMIT: u64 = 1 << 20;

/// The file as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    version: u64,
    commands: Vec<Object<Allowed>>,
}

/// One command that may run. What is left out does not limit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allowed {
    path: String,
    #[serde(default, deserialize_with = "number")]
    max_args: Option<u64>,
    #[serde(default, deserialize_with = "number")]
    max_arg_bytes: Option<u64>,
    #[serde(default)]
    deny_arg_prefixes: Vec<String>,
}

/// A limit that is written down is a number: `null` must not read as "none".
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    u64::deserialize(from).map(Some)
}

/// Why a command may not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing on the list names it.
    NotListed,
    /// More arguments than this.
    TooMany(u64),
    /// An argument, by its number from 1, longer than so many bytes.
    TooLong(usize, u64),
    /// An argument, by its number from 1, begins with what is denied.
    Denied(usize, String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotListed => f.write_str("not on the list"),
            Self::TooMany(limit) => write!(f, "more than {limit} arguments"),
            Self::TooLong(n, limit) => write!(f, "argument {n} is longer than {limit} bytes"),
            Self::Denied(n, prefix) => write!(f, "argument {n} begins with {:?}", printable(OsStr::new(prefix))),
        }
    }
}

impl Policy {
    /// Reads the text of a policy file.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        if u64::try_from(text.len()).is_ok_and(|n| n > LIMIT) {
            return Err(format!("longer than {LIMIT} bytes"));
        }
        // A derived Deserialize refuses a key given twice, and serde_json bounds the depth and refuses what follows.
        let Object(policy): Object<Self> =
            serde_json::from_slice(text).map_err(|e| printable(OsStr::new(&e.to_string())))?;
        if policy.version != 1 {
            return Err(format!("version {} is not 1", policy.version));
        }
        let mut paths: Vec<&str> = policy.commands.iter().map(|Object(c)| c.path.as_str()).collect();
        if let Some(bad) = paths.iter().find(|path| !is_plain(path)) {
            let shown = printable(OsStr::new(bad));
            return Err(format!("path {shown:?} is not absolute and without ., .. and empty parts"));
        }
        paths.sort_unstable();
        // Two rules for one path: whichever a reader takes to count, the other half of the readers is wrong.
        if let Some(twice) = paths.windows(2).find_map(|pair| pair.first().filter(|a| pair.last() == Some(a))) {
            return Err(format!("path {:?} is listed twice", printable(OsStr::new(twice))));
        }
        if policy.commands.iter().any(|Object(c)| c.deny_arg_prefixes.iter().any(String::is_empty)) {
            return Err("an empty prefix in deny_arg_prefixes would deny every argument; use max_args 0".to_owned());
        }
        Ok(policy)
    }

    /// The listed path that is `word`, or whose last part is: for a place whose files cannot be looked at.
    #[must_use]
    pub fn named(&self, word: &str) -> Option<&str> {
        let is = |path: &str| path == word || path.rsplit('/').next() == Some(word);
        self.commands.iter().map(|Object(c)| c.path.as_str()).find(|path| is(path))
    }

    /// Whether `file`, the path of the very file that would be executed, may run with `args` (without the command word).
    /// `locate` gives the place of a listed path in the same form as `file`; entries without one name nothing that could
    /// run. Where several entries are the same place, every one of them has to agree.
    ///
    /// # Errors
    /// Why it may not.
    pub fn judge(
        &self,
        file: &Path,
        args: &[OsString],
        locate: &dyn Fn(&Path) -> Option<PathBuf>,
    ) -> Result<(), Refusal> {
        let mut listed = Err(Refusal::NotListed);
        for Object(command) in
            self.commands.iter().filter(|Object(c)| locate(Path::new(&c.path)).as_deref() == Some(file))
        {
            command.accepts(args)?;
            listed = Ok(());
        }
        listed
    }
}

impl Allowed {
    fn accepts(&self, args: &[OsString]) -> Result<(), Refusal> {
        let over = |n: usize, limit: u64| u64::try_from(n).is_ok_and(|n| n > limit);
        if let Some(limit) = self.max_args.filter(|limit| over(args.len(), *limit)) {
            return Err(Refusal::TooMany(limit));
        }
        for (n, arg) in (1..).zip(args) {
            if let Some(limit) = self.max_arg_bytes.filter(|limit| over(arg.len(), *limit)) {
                return Err(Refusal::TooLong(n, limit));
            }
            let denied = self.deny_arg_prefixes.iter().find(|prefix| arg.as_bytes().starts_with(prefix.as_bytes()));
            if let Some(prefix) = denied {
                return Err(Refusal::Denied(n, prefix.clone()));
            }
        }
        Ok(())
    }
}

/// Absolute, and the same text as its components: no `.`, `..`, `//`, trailing slash or NUL.
fn is_plain(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")))
        && !path.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Policy, String> {
        Policy::parse(text.as_bytes())
    }

    fn judge(policy: &str, file: &str, args: &[&[u8]]) -> Result<(), Refusal> {
        let args: Vec<OsString> = args.iter().map(|a| OsStr::from_bytes(a).to_owned()).collect();
        parse(policy).unwrap().judge(Path::new(file), &args, &|path| Some(path.to_owned()))
    }

    const ECHO: &str = r#"{"version":1,"commands":[{"path":"/usr/bin/echo","max_args":2,"max_arg_bytes":8,
        "deny_arg_prefixes":["--exec"]}]}"#;

    #[test]
    fn the_list_allows_and_limits() {
        assert_eq!(judge(ECHO, "/usr/bin/echo", &[]), Ok(()));
        assert_eq!(judge(ECHO, "/usr/bin/echo", &[b"12345678", b"\xff\xfe"]), Ok(()));
        assert_eq!(judge(ECHO, "/usr/bin/echo", &[b"", b"", b""]), Err(Refusal::TooMany(2)));
        assert_eq!(judge(ECHO, "/usr/bin/echo", &[b"a", b"123456789"]), Err(Refusal::TooLong(2, 8)));
        for evil in [&b"--exec"[..], b"--exec=x", b"--exec\xff"] {
            assert_eq!(judge(ECHO, "/usr/bin/echo", &[evil]), Err(Refusal::Denied(1, "--exec".into())));
        }
        assert_eq!(judge(ECHO, "/usr/bin/echo", &[b"--exe"]), Ok(()));
        for other in ["/usr/bin/echo2", "/usr/bin/ech", "/bin/echo", "/usr/bin/ECHO", "usr/bin/echo"] {
            assert_eq!(judge(ECHO, other, &[]), Err(Refusal::NotListed), "{other}");
        }
        assert_eq!(judge(r#"{"version":1,"commands":[]}"#, "/usr/bin/echo", &[]), Err(Refusal::NotListed));
        let free = r#"{"version":1,"commands":[{"path":"/x"}]}"#;
        assert_eq!(judge(free, "/x", &[&[b'a'; 100_000]]), Ok(()));
    }

    #[test]
    fn two_names_of_one_place_both_count() {
        let text = r#"{"version":1,"commands":[{"path":"/bin/x"},{"path":"/usr/bin/x","max_args":0}]}"#;
        let policy = parse(text).unwrap();
        let same = |_: &Path| Some(PathBuf::from("/usr/bin/x"));
        assert_eq!(policy.judge(Path::new("/usr/bin/x"), &["a".into()], &same), Err(Refusal::TooMany(0)));
        assert_eq!(policy.judge(Path::new("/usr/bin/x"), &[], &same), Ok(()));
        assert_eq!(policy.judge(Path::new("/usr/bin/x"), &[], &|_| None), Err(Refusal::NotListed));
    }

    #[test]
    fn what_is_not_understood_is_no_policy() {
        for bad in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"version":1}"#,
            r#"{"commands":[]}"#,
            r#"{"version":2,"commands":[]}"#,
            r#"{"version":0,"commands":[]}"#,
            r#"{"version":1.0,"commands":[]}"#,
            r#"{"version":"1","commands":[]}"#,
            r#"{"version":-1,"commands":[]}"#,
            r#"{"version":1,"version":1,"commands":[]}"#,
            r#"{"version":1,"commands":[],"commands":[]}"#,
            r#"{"version":1,"commands":[]} x"#,
            r#"{"version":1,"commands":[]}{}"#,
            r#"{"version":1,"commands":[],"default":"allow"}"#,
            r#"{"version":1,"commands":{}}"#,
            r#"{"version":1,"commands":["/bin/echo"]}"#,
            r#"{"version":1,"commands":[{}]}"#,
            r#"[1,[["/usr/bin/echo",1,5,[]]]]"#,
            r#"[1,[{"path":"/usr/bin/echo"}]]"#,
            r#"{"version":1,"commands":[["/usr/bin/echo",1,5,[]]]}"#,
            r#"{"version":1,"commands":[{"path":1}]}"#,
            r#"{"version":1,"commands":[{"path":"/x","max_arg":1}]}"#,
            r#"{"version":1,"commands":[{"path":"/x","max_args":-1}]}"#,
            r#"{"version":1,"commands":[{"path":"/x","max_args":1.5}]}"#,
            r#"{"version":1,"commands":[{"path":"/x","max_args":null}]}"#,
            r#"{"version":1,"commands":[{"path":"/x","max_args":18446744073709551616}]}"#,
            r#"{"version":1,"commands":[{"path":"/x","deny_arg_prefixes":"--exec"}]}"#,
            r#"{"version":1,"commands":[{"path":"/x","deny_arg_prefixes":[""]}]}"#,
            r#"{"version":1,"commands":[{"path":"/x","path":"/y"}]}"#,
            r#"{"version":1,"commands":[{"path":"/x"},{"path":"/x"}]}"#,
            r#"{"version":1,"commands":[{"path":""}]}"#,
            r#"{"version":1,"commands":[{"path":"/"}]}"#,
            r#"{"version":1,"commands":[{"path":"echo"}]}"#,
            r#"{"version":1,"commands":[{"path":"/bin/../x"}]}"#,
            r#"{"version":1,"commands":[{"path":"/bin/./x"}]}"#,
            r#"{"version":1,"commands":[{"path":"/bin//x"}]}"#,
            r#"{"version":1,"commands":[{"path":"/bin/x/"}]}"#,
            r#"{"version":1,"commands":[{"path":"/bin/x\u0000y"}]}"#,
        ] {
            let why = parse(bad).expect_err(bad);
            assert!(!why.is_empty() && !why.contains('\n'), "{why:?}");
        }
        // As deep as one likes: an error, and no stack to run out of.
        assert!(Policy::parse("[".repeat(1_000_000).as_bytes()).is_err());
        assert!(Policy::parse(&vec![b' '; 2 << 20]).unwrap_err().contains("longer"));
        // A hostile key does not reach the terminal.
        assert!(!parse("{\"version\":1,\"commands\":[],\"\\u001b[2J\":1}").unwrap_err().contains('\u{1b}'));
    }

    /// JSON with the policy's own words in it, so that the search gets past the first key.
    fn nearly() -> impl Strategy<Value = String> {
        let word = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "1",
            "0",
            "-1",
            "1e999",
            "null",
            "true",
            "\"\"",
            "\"/bin/x\"",
            "\"version\"",
            "\"commands\"",
            "\"path\"",
            "\"max_args\"",
            "\"max_arg_bytes\"",
            "\"deny_arg_prefixes\"",
            "\"\\ud800\"",
            "{\"version\":1,\"commands\":[",
            "]}",
            "{\"path\":\"/bin/x\"}",
            " ",
            "\n",
        ]);
        prop::collection::vec(word, 0..24).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = Policy::parse(&bytes);
        }

        #[test]
        fn nearly_a_policy_never_panics_and_allows_only_by_name(text in nearly()) {
            if let Ok(policy) = parse(&text) {
                let judged = policy.judge(Path::new("/bin/y"), &[], &|path| Some(path.to_owned()));
                prop_assert_eq!(judged, Err(Refusal::NotListed));
            }
        }

        #[test]
        fn a_denied_prefix_denies(prefix in "[a-z-]{1,6}", rest in prop::collection::vec(1u8.., 0..8), at in 0usize..3) {
            let text = serde_json::json!({"version": 1, "commands": [{"path": "/x", "deny_arg_prefixes": [&prefix]}]});
            let mut args = vec![OsString::from("A"); 3];
            args[at] = OsStr::from_bytes(&[prefix.as_bytes(), &rest].concat()).to_owned();
            let judged = parse(&text.to_string()).unwrap().judge(Path::new("/x"), &args, &|p| Some(p.to_owned()));
            prop_assert_eq!(judged, Err(Refusal::Denied(at + 1, prefix)));
        }
    }

    #[test]
    fn the_corpus() {
        for (name, bytes) in crate::corpus::files("policy") {
            assert_eq!(Policy::parse(&bytes).is_ok(), name.starts_with("ok-"), "{name}: {:?}", Policy::parse(&bytes));
        }
    }

    proptest! {
        #[test]
        fn no_mutation_of_the_corpus_panics_or_allows_what_it_does_not_name(bytes in crate::corpus::mutated("policy")) {
            match Policy::parse(&bytes) {
                Ok(policy) => {
                    let nowhere = policy.judge(Path::new("/nowhere/at/all"), &[], &|path| Some(path.to_owned()));
                    prop_assert_eq!(nowhere, Err(Refusal::NotListed));
                }
                Err(why) => prop_assert!(!why.is_empty() && why.len() < 2000 && !why.chars().any(char::is_control)),
            }
        }
    }
}
