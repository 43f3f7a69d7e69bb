//! Nothing unfinished is committed: a marker in the code is a promise that nobody tracks.
//!
//! An ignored test proves nothing and looks like one that does; a test that needs a facility this
//! machine lacks prints `SKIP` and its reason instead.

use proc_macro2::TokenTree;

use super::source::{ident, is_punct};
use super::{Finding, House};

/// Macros that mark unfinished work, with what to do instead.
const MACROS: &[(&str, &str)] = &[
    (
        "todo",
        "finish it, or leave it out and say so in the documentation",
    ),
    (
        "unimplemented",
        "finish it, or return an error that says what is missing",
    ),
    ("dbg", "use tracing, or delete it"),
];

/// Words in comments that mark unfinished work (spelled apart, so that this file passes).
const WORDS: &[&str] = &[
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
    concat!("XX", "X"),
];

/// Finds unfinished work and ignored tests.
pub(super) fn check(house: &House) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, source, _) in house.tree.rust() {
        let mut report = |line: usize, message: String| {
            findings.push(Finding {
                path: path.to_owned(),
                line,
                rule: "leftovers",
                message,
            });
        };
        for (number, line) in source.text.lines().enumerate() {
            for word in WORDS.iter().filter(|word| has_word(line, word)) {
                report(number + 1, format!("{word}: open an issue or do it"));
            }
        }
        let tokens = source.tokens();
        for (at, token) in tokens.iter().enumerate() {
            let line = token.span().start().line;
            let name = ident(token);
            if let Some((_, remedy)) = MACROS.iter().find(|(macro_name, _)| *macro_name == name)
                && is_punct(tokens.get(at + 1), '!')
            {
                report(line, format!("{name}!: {remedy}"));
            }
            if name == "ignore" && at >= 2 && opens_attribute(&tokens[at - 2], &tokens[at - 1]) {
                report(
                    line,
                    "an ignored test proves nothing; print SKIP and why".to_owned(),
                );
            }
        }
    }
    findings
}

/// Whether `word` stands alone in `line`.
fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .any(|part| part == word)
}

/// Whether the two tokens before an identifier are `#` and the attribute's brackets.
fn opens_attribute(hash: &TokenTree, group: &TokenTree) -> bool {
    is_punct(Some(hash), '#')
        && matches!(group, TokenTree::Group(group)
            if group.delimiter() == proc_macro2::Delimiter::Bracket)
}

#[cfg(test)]
mod tests {
    use super::super::tests::goes_red;
    use super::WORDS;

    #[test]
    fn unfinished_macros_and_ignored_tests() {
        let good = [("a.rs", "fn f() { let ignore = \"dbg!(1)\"; todo(); }")];
        goes_red(
            super::check,
            &good,
            &[("a.rs", "\nfn f() { todo!() }")],
            ("a.rs", 2),
        );
        goes_red(
            super::check,
            &good,
            &[("a.rs", "fn f() { dbg!(1); }")],
            ("a.rs", 1),
        );
        goes_red(
            super::check,
            &good,
            &[("a.rs", "#[test]\n#[ignore]\nfn t() {}")],
            ("a.rs", 2),
        );
        goes_red(
            super::check,
            &good,
            &[("a.rs", "#[ignore = \"slow\"] fn t() {}")],
            ("a.rs", 1),
        );
    }

    #[test]
    fn marker_words_in_comments() {
        for word in WORDS {
            let bad = format!("// {word}: later\n");
            goes_red(
                super::check,
                &[("a.rs", "// done\n")],
                &[("a.rs", &bad)],
                ("a.rs", 1),
            );
        }
    }
}
