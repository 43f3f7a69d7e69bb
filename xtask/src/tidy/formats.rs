//! A format does not change without its page: the code that defines bytes and the page in
//! `docs/formats/` that documents them carry the same version and the same digest of the code.
//!
//! The digest is over the defining files' tokens without comments, documentation and tests, so that
//! only a real change moves it. Whoever changes a format reads its page, brings it up to date, raises
//! the version when old bytes no longer decode, and copies the digest that this rule prints.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::ToTokens;
use sha2::{Digest, Sha256};

use super::source::{ident, is_punct, is_test_only};
use super::{Finding, House};

/// One documented format.
struct Format {
    /// Its page.
    page: &'static str,
    /// The files that define its bytes.
    files: &'static [&'static str],
    /// File and constant that hold the version.
    version: (&'static str, &'static str),
}

const FORMATS: &[Format] = &[
    Format {
        page: "docs/formats/log.md",
        files: &[
            "logging-channel/src/frame.rs",
            "logging-channel/src/codec/wire.rs",
            "logging-channel/src/codec/batch.rs",
            "logging-channel/src/codec/message.rs",
        ],
        version: ("logging-channel/src/frame.rs", "FRAME_VERSION"),
    },
    Format {
        page: "docs/formats/log.md",
        files: &[
            "logging-channel/src/file_header.rs",
            "logging-channel/src/segment/format.rs",
            "logging-channel/src/segment/sync_point.rs",
        ],
        version: ("logging-channel/src/segment/format.rs", "SEGMENT_VERSION"),
    },
    Format {
        page: "docs/formats/journal.md",
        files: &[
            "logging-channel/src/file_header.rs",
            "logging-channel/src/journal/entry.rs",
            "logging-channel/src/journal/format.rs",
            "logging-channel/src/journal/histogram.rs",
        ],
        version: ("logging-channel/src/journal/format.rs", "JOURNAL_VERSION"),
    },
    Format {
        page: "docs/formats/snapshot.md",
        files: &["vmm/src/snapshot/part.rs", "vmm/src/snapshot/state.rs"],
        version: ("vmm/src/snapshot/state.rs", "STATE_VERSION"),
    },
    Format {
        page: "docs/formats/snapshot.md",
        files: &["vmm/src/snapshot/file.rs"],
        version: ("vmm/src/snapshot/file.rs", "SNAPSHOT_VERSION"),
    },
];

/// Finds pages that do not match the code.
pub(super) fn check(house: &House) -> Vec<Finding> {
    FORMATS
        .iter()
        .flat_map(|format| check_format(house, format))
        .collect()
}

fn check_format(house: &House, format: &Format) -> Vec<Finding> {
    let finding = |message: String| Finding {
        path: format.page.to_owned(),
        line: 0,
        rule: "formats",
        message,
    };
    let Some(page) = house.tree.get(format.page) else {
        return vec![finding("the page is missing".to_owned())];
    };
    let mut expected = Vec::new();
    let (file, constant) = format.version;
    match house
        .tree
        .get(file)
        .and_then(|source| constant_value(&source.text, constant))
    {
        Some(value) => expected.push(format!("Version: {value} (`{constant}` in `{file}`)")),
        None => return vec![finding(format!("{file} has no constant {constant}"))],
    }
    expected.push(format!(
        "Digest of the defining code: `{}`",
        digest(house, format.files)
    ));
    let missing = expected
        .into_iter()
        .filter(|line| !page.text.lines().any(|l| l.trim() == line));
    missing
        .map(|line| finding(format!("the page lacks the line: {line}")))
        .collect()
}

/// The value of `const NAME: ... = VALUE;`, as written.
fn constant_value(text: &str, name: &str) -> Option<String> {
    let stream: TokenStream = text.parse().ok()?;
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let at = tokens
        .windows(2)
        .position(|w| ident(&w[0]) == "const" && ident(&w[1]) == name)?;
    let equals = at
        + tokens[at..]
            .iter()
            .position(|token| is_punct(Some(token), '='))?;
    let end = equals
        + tokens[equals..]
            .iter()
            .position(|token| is_punct(Some(token), ';'))?;
    Some(
        tokens[equals + 1..end]
            .iter()
            .map(ToString::to_string)
            .collect::<String>(),
    )
}

/// First twelve hexadecimal digits of the SHA-256 of the files' code.
fn digest(house: &House, files: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for file in files {
        let syntax = house
            .tree
            .get(file)
            .and_then(|source| source.syntax.as_ref());
        let items = syntax.into_iter().flat_map(|syntax| &syntax.items);
        let mut words = Vec::new();
        for item in items.filter(|item| !is_test_module(item)) {
            code_words(item.to_token_stream(), &mut words);
        }
        hasher.update(words.join(" "));
    }
    hasher
        .finalize()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn is_test_module(item: &syn::Item) -> bool {
    matches!(item, syn::Item::Mod(module) if is_test_only(&module.attrs))
}

/// The tokens without attributes that are documentation.
fn code_words(stream: TokenStream, words: &mut Vec<String>) {
    let mut tokens = stream.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let opens_attribute = is_punct(Some(&token), '#');
        if opens_attribute && is_punct(tokens.peek(), '!') {
            tokens.next();
        }
        if opens_attribute && tokens.peek().is_some_and(is_documentation) {
            tokens.next();
            continue;
        }
        match token {
            TokenTree::Group(group) => {
                words.push(format!("{:?}", group.delimiter()));
                code_words(group.stream(), words);
            }
            token => words.push(token.to_string()),
        }
    }
}

fn is_documentation(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket
        && group.stream().into_iter().next().is_some_and(|first| ident(&first) == "doc"))
}

#[cfg(test)]
mod tests {
    use super::super::{Finding, House, source::Tree};
    use super::{Format, check_format};

    const CODE: &str = "//! Header.\n/// Version.\npub const VERSION: u32 = 3;\nstruct A(u8);\n
        #[cfg(test)]\nmod tests {}";
    const FORMAT: Format = Format {
        page: "docs/formats/a.md",
        files: &["a.rs"],
        version: ("a.rs", "VERSION"),
    };

    fn findings(code: &str, page: &str) -> Vec<Finding> {
        let tree = Tree::from_files(&[("a.rs", code), ("docs/formats/a.md", page)]);
        check_format(&House::new(tree), &FORMAT)
    }

    /// The page that the rule asks for.
    fn page() -> String {
        let lines = findings(CODE, "").into_iter();
        let line = |f: Finding| f.message.replace("the page lacks the line: ", "");
        lines.map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn comments_and_tests_do_not_change_the_format() {
        assert_eq!(findings(CODE, &page()), vec![]);
        let reworded = CODE
            .replace("Header", "Words")
            .replace("mod tests {}", "mod tests { fn f() {} }");
        assert_eq!(findings(&reworded, &page()), vec![]);
    }

    #[test]
    fn changed_code_or_version_goes_red() {
        assert_eq!(findings(&CODE.replace("u8", "u16"), &page()).len(), 1);
        let raised = findings(&CODE.replace('3', "4"), &page());
        assert!(
            raised.iter().any(|f| f.message.contains("Version: 4")),
            "{raised:#?}"
        );
    }

    #[test]
    fn missing_page_goes_red() {
        let tree = Tree::from_files(&[("a.rs", CODE)]);
        assert_eq!(check_format(&House::new(tree), &FORMAT).len(), 1);
    }
}
