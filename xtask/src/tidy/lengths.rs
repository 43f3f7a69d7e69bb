//! Small means one owner per fact: files stay below 600 lines with their tests, functions at 70 or fewer.
//!
//! A long function hides its phases, a long file its owner. Register tables are the honest exception.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::{Finding, House};

/// Most lines of a source file, tests included.
const FILE_LINES_MAX: usize = 600;

/// Most lines of a function, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

/// `(path, function or "" for the file, reason)`.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// Finds files and functions that are too long.
pub(super) fn check(house: &House) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, source, syntax) in house.tree.rust() {
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX && !excepted(path, "") {
            findings.push(finding(
                path,
                0,
                format!("{lines} lines; at most {FILE_LINES_MAX}"),
            ));
        }
        let mut visitor = Functions { long: vec![] };
        visitor.visit_file(syntax);
        for (name, line, lines) in visitor.long {
            if !excepted(path, &name) {
                let message = format!("fn {name} has {lines} lines; at most {FUNCTION_LINES_MAX}");
                findings.push(finding(path, line, message));
            }
        }
    }
    findings
}

struct Functions {
    long: Vec<(String, usize, usize)>,
}

impl Functions {
    fn measure(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let first = signature.fn_token.span().start().line;
        let lines = block.brace_token.span.close().end().line + 1 - first;
        if lines > FUNCTION_LINES_MAX {
            self.long.push((signature.ident.to_string(), first, lines));
        }
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.measure(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.measure(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.measure(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

fn excepted(path: &str, function: &str) -> bool {
    EXCEPTIONS
        .iter()
        .any(|(file, name, _)| (*file, *name) == (path, function))
}

fn finding(path: &str, line: usize, message: String) -> Finding {
    Finding {
        path: path.to_owned(),
        line,
        rule: "lengths",
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::goes_red;
    use super::{FILE_LINES_MAX, FUNCTION_LINES_MAX};

    #[test]
    fn long_file() {
        let good = "\n".repeat(FILE_LINES_MAX);
        let bad = "\n".repeat(FILE_LINES_MAX + 1);
        goes_red(
            super::check,
            &[("a.rs", &good)],
            &[("a.rs", &bad)],
            ("a.rs", 0),
        );
    }

    #[test]
    fn long_function_and_method() {
        let function = |lines: usize| format!("\nfn f() {{{}}}", "\n".repeat(lines - 1));
        let good = function(FUNCTION_LINES_MAX);
        let bad = function(FUNCTION_LINES_MAX + 1);
        goes_red(
            super::check,
            &[("a.rs", &good)],
            &[("a.rs", &bad)],
            ("a.rs", 2),
        );
        let method = format!("struct S;\nimpl S {{{bad}}}");
        goes_red(
            super::check,
            &[("a.rs", &good)],
            &[("a.rs", &method)],
            ("a.rs", 3),
        );
    }

    #[test]
    fn braces_in_strings_and_comments_do_not_count() {
        let text = format!(
            "fn f() {{ let _ = \"}}{{\"; }} // {{\n{}",
            "//{\n".repeat(80)
        );
        goes_red(
            super::check,
            &[("a.rs", &text)],
            &[("a.rs", &"\n".repeat(601))],
            ("a.rs", 0),
        );
    }
}
