//! The binary: parse, dispatch the verb, print an error once.

fn main() {}
