//! Fuzzing from the committed corpora (`tests/corpus`): each file as it is, and mutated by proptest. A parser passes that
//! neither panics nor takes more memory than its input justifies; `PROPTEST_CASES` sets how long it is tried.
//!
//! For tests only. What a campaign finds is added to the corpus.

use proptest::prelude::*;

/// The files of one corpus by name; never none.
pub fn files(corpus: &str) -> Vec<(String, Vec<u8>)> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(corpus);
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
    };
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(read).collect();
    files.sort();
    assert!(files.len() > 1, "{corpus} has nothing to begin with");
    files
}

/// What parsers stumble over, wherever it lands.
const WORDS: [&[u8]; 20] = [
    b"18446744073709551615",
    b"18446744073709551616",
    b"-9223372036854775808",
    b"9999999999999999999999999999",
    b"-1",
    b"0",
    b"",
    b"\n",
    b"\0",
    b" ",
    b")",
    b"(",
    b":",
    b"\"",
    b"\\",
    b"{",
    b"[[[[[[[[[[[[[[[[",
    b"\xff\xfe",
    b"1e999",
    b"\xf4\x8f\xbf\xbf",
];

/// One change: where, what kind, with what.
type Change = (prop::sample::Index, u8, u8, prop::sample::Index);

fn change(bytes: &mut Vec<u8>, (at, kind, byte, word): Change) {
    let at = at.index(bytes.len() + 1);
    let end = bytes.len().min(at + usize::from(byte));
    match kind % 6 {
        0 if at < bytes.len() => bytes[at] ^= byte | 1,
        1 => bytes.insert(at, byte),
        2 => drop(bytes.drain(at..end)),
        3 => drop(bytes.splice(at..at, WORDS[word.index(WORDS.len())].iter().copied())),
        4 => {
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => bytes.truncate(at),
    }
}

/// A file of the corpus after up to eight changes.
pub fn mutated(corpus: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let seeds: Vec<Vec<u8>> = files(corpus).into_iter().map(|(_, bytes)| bytes).collect();
    let changes = prop::collection::vec(any::<Change>(), 0..8);
    (prop::sample::select(seeds), changes).prop_map(|(mut bytes, changes)| {
        changes.into_iter().for_each(|c| change(&mut bytes, c));
        bytes
    })
}
