//! The house rules as ordinary code: each rule is a function from the source tree to findings.
//!
//! A rule states its reason in its module header; exceptions are listed by name, each with a reason,
//! in the rule's own file, so that widening one is a visible change. The rules read files and parse
//! Rust with `syn`; they run no commands (`dependencies` alone asks `cargo metadata`).

mod dead_files;
mod dependencies;
mod formats;
mod leftovers;
mod lengths;
mod machine_paths;
mod module_graph;
mod names;
mod purity;
mod references;
mod rooms;
mod source;
mod specification;
mod unsafety;

use anyhow::{Result, bail};

use module_graph::ModuleGraph;
use source::Tree;

/// One violation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// File, relative to the root of the checkout.
    path: String,
    /// Line, counted from 1; 0 when it concerns the file as a whole.
    line: usize,
    /// The rule's name, as in `tidy/RULE.rs`.
    rule: &'static str,
    /// What is wrong, and what to do instead.
    message: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}:{}: {}: {}",
            self.path, self.line, self.rule, self.message
        )
    }
}

/// Everything a rule may look at.
struct House {
    tree: Tree,
    graph: ModuleGraph,
}

impl House {
    fn new(tree: Tree) -> Self {
        let graph = ModuleGraph::build(&tree);
        Self { tree, graph }
    }
}

/// A rule: its findings in the tree.
type Rule = fn(&House) -> Vec<Finding>;

const RULES: &[Rule] = &[
    dead_files::check,
    formats::check,
    leftovers::check,
    lengths::check,
    machine_paths::check,
    names::check,
    purity::check,
    rooms::check,
    specification::check,
    unsafety::check,
];

/// Applies the house rules and the dependency policy to the checkout.
///
/// # Errors
/// If a file cannot be read or `cargo metadata` fails; or, after all findings are printed, their count.
pub(crate) fn run() -> Result<()> {
    let house = House::new(Tree::load(&crate::run::workspace_root())?);
    let mut findings: Vec<Finding> = RULES.iter().flat_map(|rule| rule(&house)).collect();
    findings.extend(dependencies::check()?);
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        1 => bail!("tidy: 1 finding"),
        count => bail!("tidy: {count} findings"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Finding, House, Rule, source::Tree};

    /// Runs one rule on invented files.
    pub(super) fn findings(rule: Rule, files: &[(&str, &str)]) -> Vec<Finding> {
        rule(&House::new(Tree::from_files(files)))
    }

    /// Asserts that the rule is silent on `good` and speaks of `place` on `bad`.
    pub(super) fn goes_red(
        rule: Rule,
        good: &[(&str, &str)],
        bad: &[(&str, &str)],
        place: (&str, usize),
    ) {
        assert_eq!(
            findings(rule, good),
            vec![],
            "the good example has findings"
        );
        let found = findings(rule, bad);
        assert!(
            found.iter().any(|f| (f.path.as_str(), f.line) == place),
            "nothing at {place:?} in {found:#?}"
        );
    }
}
