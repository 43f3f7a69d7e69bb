//! Every promise in `docs/specification.md` has a number of its own and names its proof, and the proof exists.
//!
//! A promise is a line that starts with `**S` and a number. Below it, before the next one, stands at
//! least one of
//!
//! * `Test:` with names of test functions, `crate::module::tests::name`, in back quotes;
//! * `Drill:` with names of drills, in back quotes;
//! * `Unproven:` with the reason.

use std::collections::BTreeSet;

use proc_macro2::{TokenStream, TokenTree};

use super::source::{flatten, ident};
use super::{Finding, House};

const PAGE: &str = "docs/specification.md";

/// Where drills are named, as string literals.
const DRILLS: &str = "tests/drills/";

/// Finds promises without proof and proofs that do not exist.
pub(super) fn check(house: &House) -> Vec<Finding> {
    let Some(page) = house.tree.get(PAGE) else {
        return vec![];
    };
    let tests = test_names(house);
    let drills = drill_names(house);
    let mut findings = Vec::new();
    let mut report = |line: usize, message: String| {
        findings.push(Finding {
            path: PAGE.to_owned(),
            line,
            rule: "specification",
            message,
        });
    };
    let mut numbers = BTreeSet::new();
    let mut open: Option<(usize, String)> = None;
    let mut kind = "";
    for (number, line) in page
        .text
        .lines()
        .enumerate()
        .map(|(at, line)| (at + 1, line.trim()))
    {
        if let Some(rest) = line.strip_prefix("**S") {
            if let Some((at, promise)) = open.take() {
                report(at, without_proof(&promise));
            }
            let name = rest
                .split(|c: char| !c.is_ascii_digit())
                .next()
                .unwrap_or("");
            if !numbers.insert(name) {
                report(number, format!("S{name} is the number of another promise"));
            }
            open = Some((number, name.to_owned()));
            kind = "";
        }
        let starts = ["Test:", "Drill:", "Unproven:"]
            .into_iter()
            .find(|k| line.starts_with(k));
        if let Some(starts) = starts {
            open = None;
            kind = starts;
        } else if line.is_empty() || line.starts_with('#') {
            kind = "";
        }
        for name in quoted(line) {
            let exists = match kind {
                "Test:" => tests.contains(name),
                "Drill:" => drills.contains(name),
                _ => true,
            };
            if !exists {
                report(
                    number,
                    format!("{} `{name}` does not exist", kind.to_lowercase()),
                );
            }
        }
    }
    if let Some((at, promise)) = open {
        report(at, without_proof(&promise));
    }
    findings
}

fn without_proof(promise: &str) -> String {
    format!("S{promise} names neither test nor drill, nor says `Unproven:`")
}

/// What stands between back quotes.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Full names of all test functions, those inside macros such as `proptest!` included.
fn test_names(house: &House) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (file, module) in house.graph.modules() {
        let Some(source) = house.tree.get(file) else {
            continue;
        };
        let Ok(stream) = source.text.parse::<TokenStream>() else {
            continue;
        };
        let mut path = vec![module.crate_name.clone()];
        path.extend(module.path.iter().cloned());
        collect_tests(stream, &path, &mut names);
    }
    names
}

fn collect_tests(stream: TokenStream, path: &[String], names: &mut BTreeSet<String>) {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut is_test = false;
    for (at, token) in tokens.iter().enumerate() {
        let previous = at
            .checked_sub(1)
            .map(|before| ident(&tokens[before]))
            .unwrap_or_default();
        match token {
            TokenTree::Group(group) if group.stream().to_string().ends_with("test") => {
                is_test = true
            }
            TokenTree::Group(group) => {
                let mut inner = path.to_vec();
                if at >= 2 && ident(&tokens[at - 2]) == "mod" {
                    inner.push(previous);
                }
                collect_tests(group.stream(), &inner, names);
            }
            TokenTree::Ident(name) if previous == "fn" && std::mem::take(&mut is_test) => {
                names.insert(format!("{}::{name}", path.join("::")));
            }
            _ => {}
        }
    }
}

/// All string literals of the drills' sources.
fn drill_names(house: &House) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, source, _) in house
        .tree
        .rust()
        .filter(|(path, _, _)| path.starts_with(DRILLS))
    {
        let mut flat = Vec::new();
        if let Ok(stream) = source.text.parse::<TokenStream>() {
            flatten(stream, &mut flat);
        }
        for token in flat {
            if let TokenTree::Literal(literal) = token {
                names.insert(literal.to_string().trim_matches('"').to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::super::tests::goes_red;
    use super::PAGE;

    const CRATE: [(&str, &str); 3] = [
        ("a/Cargo.toml", "[package]\nname = \"a-b\"\n"),
        (
            "a/src/lib.rs",
            "#[cfg(test)] mod tests { #[test] fn holds() {} fn not_a_test() {}
             proptest! { #[test] fn any(x in 0..9) {} } #[tokio::test] async fn later() {} }",
        ),
        (
            "tests/drills/main.rs",
            "const NAMES: &[&str] = &[\"kill-primary\"];",
        ),
    ];
    const GOOD: &str = "# Promises\n\n**S1** It holds.\nTest: `a_b::tests::holds`,\n`a_b::tests::any`, \
        `a_b::tests::later`\n\n**S2** `x` survives.\nDrill: `kill-primary`\n\n\
        **S3** Later.\nUnproven: no hardware.\n";

    fn with(page: &'static str) -> Vec<(&'static str, &'static str)> {
        let mut files = CRATE.to_vec();
        files.push((PAGE, page));
        files
    }

    #[test]
    fn missing_proofs_go_red() {
        for (bad, line) in [
            ("**S1** It holds.\n\n**S2** Later.\nUnproven: why.\n", 1),
            ("**S1** It holds.\n", 1),
            (
                "**S1** A.\nUnproven: why.\n\n**S1** B.\nUnproven: why.\n",
                4,
            ),
            ("**S1** It holds.\nTest: `a_b::tests::gone`\n", 2),
            ("**S1** It holds.\nTest: `a_b::tests::not_a_test`\n", 2),
            (
                "**S1** It holds.\nTest: `a_b::tests::holds`,\n`a_b::tests::gone`\n",
                3,
            ),
            ("**S1** It holds.\nDrill: `kill-everyone`\n", 2),
        ] {
            goes_red(super::check, &with(GOOD), &with(bad), (PAGE, line));
        }
    }
}
