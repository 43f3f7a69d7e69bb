//! Which file is which module of which crate, found by following `mod` declarations from the roots
//! that the manifests name.
//!
//! Follows cargo's conventions (src/lib.rs, src/main.rs, src/bin, build.rs, tests, benches, examples)
//! and the explicit `path` of `[lib]`, `[[bin]]`, `[[test]]`, `[[bench]]`, `[[example]]`. A `#[path]`
//! attribute is honoured. What it leaves out: modules declared by macros (we have none).

use std::collections::BTreeMap;

use super::source::{Tree, is_test_only};

/// One module that lives in a file of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// Name of the crate as Rust code spells it, such as `logging_channel`.
    pub(crate) crate_name: String,
    /// Path below the crate root; empty for the root.
    pub(crate) path: Vec<String>,
    /// Whether only `cfg(test)` declarations lead here.
    pub(crate) test_only: bool,
}

/// All modules by file. A file that two crates include belongs to the first.
#[derive(Debug, Default)]
pub(crate) struct ModuleGraph {
    modules: BTreeMap<String, Module>,
}

impl ModuleGraph {
    /// Follows every declaration in `tree`.
    pub(crate) fn build(tree: &Tree) -> Self {
        let mut graph = Self::default();
        for (path, source) in tree.files() {
            if path == "Cargo.toml" || path.ends_with("/Cargo.toml") {
                let directory = path.trim_end_matches("Cargo.toml");
                for (root, crate_name) in roots(tree, directory, &source.text) {
                    let module = Module {
                        crate_name,
                        path: vec![],
                        test_only: false,
                    };
                    graph.follow(tree, &root, module, true);
                }
            }
        }
        graph
    }

    /// The module that `file` is, if a declaration leads there.
    pub(crate) fn module(&self, file: &str) -> Option<&Module> {
        self.modules.get(file)
    }

    /// All modules with their files.
    pub(crate) fn modules(&self) -> impl Iterator<Item = (&str, &Module)> {
        self.modules
            .iter()
            .map(|(file, module)| (file.as_str(), module))
    }

    fn follow(&mut self, tree: &Tree, file: &str, module: Module, is_root: bool) {
        let Some(source) = tree.get(file) else { return };
        if self
            .modules
            .get(file)
            .is_some_and(|known| !known.test_only || module.test_only)
        {
            return;
        }
        self.modules.insert(file.to_owned(), module.clone());
        let Some(syntax) = &source.syntax else { return };
        let (directory, name) = file.rsplit_once('/').map_or(("", file), |(d, n)| (d, n));
        let children = if is_root || name == "mod.rs" {
            directory.to_owned()
        } else {
            join(directory, name.trim_end_matches(".rs"))
        };
        self.declarations(tree, &syntax.items, &module, &children, directory);
    }

    /// Follows the `mod` items of one module; `children` is where its files live, `directory` where
    /// `#[path]` starts from.
    fn declarations(
        &mut self,
        tree: &Tree,
        items: &[syn::Item],
        parent: &Module,
        children: &str,
        directory: &str,
    ) {
        for item in items {
            let syn::Item::Mod(item) = item else { continue };
            let name = item.ident.to_string();
            let mut module = parent.clone();
            module.path.push(name.clone());
            module.test_only |= is_test_only(&item.attrs);
            if let Some((_, items)) = &item.content {
                let inner = join(children, &name);
                self.declarations(tree, items, &module, &inner, &inner);
                continue;
            }
            let candidates = match path_attribute(&item.attrs) {
                Some(path) => vec![normalize(&join(directory, &path))],
                None => vec![
                    join(children, &format!("{name}.rs")),
                    join(children, &format!("{name}/mod.rs")),
                ],
            };
            for candidate in candidates {
                self.follow(tree, &candidate, module.clone(), false);
            }
        }
    }
}

/// The crate roots of the package in `directory` (with its trailing slash) and their crate names.
fn roots(tree: &Tree, directory: &str, manifest: &str) -> Vec<(String, String)> {
    let Ok(manifest) = manifest.parse::<toml::Table>() else {
        return vec![];
    };
    let Some(package) = manifest
        .get("package")
        .and_then(|p| p.get("name")?.as_str())
    else {
        return vec![];
    };
    let package = package.replace('-', "_");
    let mut roots = Vec::new();
    let lib = manifest.get("lib");
    let key = |table: Option<&toml::Value>, key: &str| {
        table.and_then(|t| Some(t.get(key)?.as_str()?.to_owned()))
    };
    let lib_path = key(lib, "path").unwrap_or_else(|| "src/lib.rs".to_owned());
    roots.push((
        lib_path,
        key(lib, "name").unwrap_or_else(|| package.clone()),
    ));
    for kind in ["bin", "test", "bench", "example"] {
        let targets = manifest.get(kind).and_then(toml::Value::as_array);
        for target in targets.into_iter().flatten() {
            let name = key(Some(target), "name").unwrap_or_else(|| package.clone());
            if let Some(path) = key(Some(target), "path") {
                roots.push((path, name.replace('-', "_")));
            }
        }
    }
    roots.push(("src/main.rs".to_owned(), package.clone()));
    roots.push(("build.rs".to_owned(), "build".to_owned()));
    for folder in ["src/bin/", "tests/", "benches/", "examples/"] {
        let prefix = format!("{directory}{folder}");
        for (path, _) in tree.files() {
            let Some(rest) = path.strip_prefix(&prefix) else {
                continue;
            };
            let stem = rest
                .strip_suffix("/main.rs")
                .or_else(|| rest.strip_suffix(".rs"));
            if let Some(stem) = stem.filter(|stem| !stem.contains('/')) {
                roots.push((format!("{folder}{rest}"), stem.replace('-', "_")));
            }
        }
    }
    roots
        .into_iter()
        .map(|(path, name)| (normalize(&format!("{directory}{path}")), name))
        .collect()
}

fn path_attribute(attributes: &[syn::Attribute]) -> Option<String> {
    attributes
        .iter()
        .find_map(|attribute| match &attribute.meta {
            syn::Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
                syn::Expr::Lit(syn::ExprLit {
                    lit: syn::Lit::Str(path),
                    ..
                }) => Some(path.value()),
                _ => None,
            },
            _ => None,
        })
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() {
        name.to_owned()
    } else {
        format!("{directory}/{name}")
    }
}

/// Resolves `.` and `..` in a relative path.
fn normalize(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::{Module, ModuleGraph, Tree};

    #[test]
    fn follows_declarations_from_manifests() {
        let tree = Tree::from_files(&[
            (
                "a/Cargo.toml",
                "[package]\nname = \"a-b\"\n[[bin]]\nname = \"x\"\npath = \"sim/main.rs\"\n",
            ),
            (
                "a/src/lib.rs",
                "mod room; #[cfg(test)] mod proof; mod outer { mod inner; }",
            ),
            ("a/src/room/mod.rs", "pub mod leaf;"),
            ("a/src/room/leaf.rs", "mod twig;"),
            ("a/src/room/leaf/twig.rs", ""),
            ("a/src/proof.rs", ""),
            ("a/src/outer/inner.rs", ""),
            ("a/src/stray.rs", ""),
            ("a/sim/main.rs", "#[path = \"../shared/odd.rs\"] mod odd;"),
            ("a/shared/odd.rs", ""),
        ]);
        let graph = ModuleGraph::build(&tree);
        let path = |file: &str| graph.module(file).map(|module| module.path.join("::"));
        assert_eq!(path("a/src/lib.rs").as_deref(), Some(""));
        assert_eq!(
            path("a/src/room/leaf/twig.rs").as_deref(),
            Some("room::leaf::twig")
        );
        assert_eq!(
            path("a/src/outer/inner.rs").as_deref(),
            Some("outer::inner")
        );
        assert_eq!(path("a/src/stray.rs"), None);
        let odd = Module {
            crate_name: "x".into(),
            path: vec!["odd".into()],
            test_only: false,
        };
        assert_eq!(graph.module("a/shared/odd.rs"), Some(&odd));
        assert!(
            graph
                .module("a/src/proof.rs")
                .is_some_and(|module| module.test_only)
        );
        assert_eq!(
            graph.module("a/src/lib.rs").map(|m| m.crate_name.as_str()),
            Some("a_b")
        );
    }
}
