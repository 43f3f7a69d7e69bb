//! Which paths a file's production code names: `use` trees and paths in expressions, types and macros.
//!
//! Works on tokens, so that macro bodies count too. Items under `#[cfg(test)]` are left out: tests may
//! look wherever they like. `self` and `super` are resolved; the result of a path within the crate
//! starts with `crate`.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::source::{Source, ident, is_punct};

/// One path named by the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Segments, such as `["crate", "devices", "pit"]` or `["std", "fs"]`; at least two.
    pub(crate) path: Vec<String>,
    /// Line, counted from 1.
    pub(crate) line: usize,
}

/// All paths of two or more segments in the production code of `source`, which is module `module`.
pub(crate) fn references(source: &Source, module: &[String]) -> Vec<Reference> {
    let mut found = Vec::new();
    if let Ok(stream) = source.text.parse::<TokenStream>() {
        scan(stream, module, &mut found);
    }
    found
}

fn scan(stream: TokenStream, module: &[String], found: &mut Vec<Reference>) {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if is_test_attribute(&tokens, at) {
            at = after_item(&tokens, at + 2);
            continue;
        }
        if let Some((name, body)) = inline_module(&tokens[at..]) {
            let mut inner = module.to_vec();
            inner.push(name);
            scan(body, &inner, found);
            at += 3;
            continue;
        }
        match &tokens[at] {
            TokenTree::Ident(_) => {
                at = path(&tokens, at, &[], module, found);
                continue;
            }
            TokenTree::Group(group) => scan(group.stream(), module, found),
            _ => {}
        }
        at += 1;
    }
}

/// Name and contents when `mod name { ... }` starts here.
fn inline_module(tokens: &[TokenTree]) -> Option<(String, TokenStream)> {
    match tokens {
        [keyword, name, TokenTree::Group(group), ..] if ident(keyword) == "mod" => {
            Some((ident(name), group.stream()))
        }
        _ => None,
    }
}

/// Reads the path whose next segment is at `at`, below `prefix`; returns the index after it.
fn path(
    tokens: &[TokenTree],
    at: usize,
    prefix: &[String],
    module: &[String],
    found: &mut Vec<Reference>,
) -> usize {
    let mut segments = prefix.to_vec();
    segments.push(ident(&tokens[at]));
    let line = tokens[at].span().start().line;
    let mut next = at + 1;
    while is_punct(tokens.get(next), ':') && is_punct(tokens.get(next + 1), ':') {
        match tokens.get(next + 2) {
            Some(TokenTree::Ident(name)) => segments.push(name.to_string()),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                tree(group.stream(), &segments, module, found);
                return next + 3;
            }
            _ => break,
        }
        next += 3;
    }
    let resolved = resolve(&segments, module);
    if resolved.len() >= 2 {
        found.push(Reference {
            path: resolved,
            line,
        });
    }
    next
}

/// Reads the braces of a `use` tree.
fn tree(stream: TokenStream, prefix: &[String], module: &[String], found: &mut Vec<Reference>) {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if matches!(tokens[at], TokenTree::Ident(_)) {
            at = path(&tokens, at, prefix, module, found);
            while at < tokens.len() && !is_punct(tokens.get(at), ',') {
                at += 1;
            }
        }
        at += 1;
    }
}

fn resolve(segments: &[String], module: &[String]) -> Vec<String> {
    let supers = segments
        .iter()
        .take_while(|segment| *segment == "super")
        .count();
    let rest = match segments.first().map(String::as_str) {
        Some("self") => &segments[1..],
        Some("super") => &segments[supers..],
        _ => return segments.to_vec(),
    };
    let above = module.len().saturating_sub(supers);
    let mut resolved = vec!["crate".to_owned()];
    resolved.extend(module[..above].iter().cloned());
    resolved.extend(rest.iter().filter(|segment| *segment != "self").cloned());
    resolved
}

/// Whether `#[cfg(test)]` or `#[test]` stands at `at`.
fn is_test_attribute(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens.get(at), '#')
        && matches!(tokens.get(at + 1), Some(TokenTree::Group(group))
            if matches!(group.stream().to_string().as_str(), "cfg (test)" | "cfg(test)" | "test"))
}

/// The index after the item that starts at `at`: past its braces or its semicolon.
fn after_item(tokens: &[TokenTree], at: usize) -> usize {
    let ends = |token: &TokenTree| {
        is_punct(Some(token), ';')
            || matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
    };
    tokens[at..]
        .iter()
        .position(ends)
        .map_or(tokens.len(), |offset| at + offset + 1)
}

#[cfg(test)]
mod tests {
    use super::super::source::Tree;
    use super::references;

    fn paths(text: &str, module: &[&str]) -> Vec<String> {
        let tree = Tree::from_files(&[("a.rs", text)]);
        let module: Vec<String> = module.iter().map(|part| (*part).to_owned()).collect();
        let source = tree.get("a.rs").expect("just added");
        references(source, &module)
            .into_iter()
            .map(|reference| reference.path.join("::"))
            .collect()
    }

    #[test]
    fn use_trees_are_expanded() {
        let text = "use crate::{a::{self, B}, c as d}; use std::fs;";
        assert_eq!(
            paths(text, &[]),
            ["crate::a::self", "crate::a::B", "crate::c", "std::fs"]
        );
    }

    #[test]
    fn relative_paths_are_resolved() {
        let text = "use super::x; fn f() { self::y::z(); } mod m { use super::super::w; }";
        let expected = ["crate::a::x", "crate::a::b::y::z", "crate::a::w"];
        assert_eq!(paths(text, &["a", "b"]), expected);
    }

    #[test]
    fn macros_count_and_tests_do_not() {
        let text = "fn f() { assert!(crate::a::b() > 1); }
            #[cfg(test)] mod tests { use crate::c::d; }
            #[cfg(test)] use crate::e::f;
            fn g(x: crate::h::I) {}";
        assert_eq!(paths(text, &[]), ["crate::a::b", "crate::h::I"]);
    }
}
