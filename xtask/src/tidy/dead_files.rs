//! Every `.rs` file is reached from a crate root: what is not compiled is not checked by anything.

use super::{Finding, House};

/// Rust files that are data for a program, not modules, with the reason.
const EXCEPTIONS: &[(&str, &str)] = &[];

/// Finds Rust files that no `mod` declaration leads to, and exceptions that no longer exist.
pub(super) fn check(house: &House) -> Vec<Finding> {
    let dead = house
        .tree
        .files()
        .filter(|(path, _)| path.ends_with(".rs") && house.graph.module(path).is_none())
        .filter(|(path, _)| !EXCEPTIONS.iter().any(|(exception, _)| exception == path))
        .map(|(path, _)| Finding {
            path: path.to_owned(),
            line: 0,
            rule: "dead_files",
            message: "no `mod` declaration leads here; declare it or delete it".to_owned(),
        });
    dead.collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::goes_red;

    #[test]
    fn undeclared_file_is_dead() {
        let manifest = ("a/Cargo.toml", "[package]\nname = \"a\"\n");
        goes_red(
            super::check,
            &[manifest, ("a/src/lib.rs", "mod b;"), ("a/src/b.rs", "")],
            &[manifest, ("a/src/lib.rs", ""), ("a/src/b.rs", "")],
            ("a/src/b.rs", 0),
        );
    }
}
