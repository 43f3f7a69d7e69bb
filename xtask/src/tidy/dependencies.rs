//! The dependency policy of `deny.toml`, applied without cargo-deny.
//!
//! cargo-deny takes minutes to compile, so the gate reads the same file and checks the same four
//! things over `cargo metadata --locked` for our one platform: licences are on the list, crates come
//! from the listed registry, no crate is there in two incompatible versions unless skipped by name, and
//! the workspace manifest pins full versions. It adds which workspace crate may depend on which.
//! What it leaves out: the advisory database, which needs the network (`cargo deny check advisories`).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Finding;
use crate::run::{cargo, workspace_root};

/// The only platform the product runs on.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Which workspace crates a workspace crate may depend on.
const EDGES: &[(&str, &[&str])] = &[
    ("understudy-logging-channel", &[]),
    ("understudy-tls", &[]),
    ("understudy-arbiter", &["understudy-tls"]),
    ("understudy-inspect", &["understudy-logging-channel"]),
    ("understudy-vmm", PRODUCT),
    ("witness", &[]),
    ("rig", RIG),
    ("rig-agent", &[]),
    ("rig-model", MODEL),
    ("xtask", &[]),
];

const PRODUCT: &[&str] = &[
    "understudy-logging-channel",
    "understudy-tls",
    "understudy-arbiter",
    "understudy-inspect",
];
const MODEL: &[&str] = &[
    "understudy-logging-channel",
    "understudy-arbiter",
    "understudy-vmm",
];
const RIG: &[&str] = &[
    "understudy-logging-channel",
    "understudy-arbiter",
    "understudy-vmm",
    "witness",
    "rig-agent",
];

/// The parts of `deny.toml` that are applied.
struct Policy {
    licenses: Vec<String>,
    registries: Vec<String>,
    /// `name@version` prefixes that may stand beside another version.
    skipped: Vec<String>,
}

/// Applies the policy to the checkout.
///
/// # Errors
/// If `deny.toml` or `Cargo.toml` cannot be read, or `cargo metadata --locked` fails (Cargo.lock stale).
pub(super) fn check() -> Result<Vec<Finding>> {
    let read = |name: &str| {
        let path = workspace_root().join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let policy = Policy::parse(&read("deny.toml")?)?;
    let output = cargo()
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            PLATFORM,
        ])
        .output()
        .context("cannot start cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata --locked failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let mut findings = policy.check(&metadata);
    findings.extend(unpinned(&read("Cargo.toml")?));
    Ok(findings)
}

impl Policy {
    fn parse(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse().context("deny.toml")?;
        let list = |section: &str, key: &str| -> Result<Vec<toml::Value>> {
            let value = table.get(section).and_then(|section| section.get(key));
            let list = value.and_then(toml::Value::as_array).cloned();
            list.with_context(|| format!("deny.toml lacks the list {key} in [{section}]"))
        };
        let text = |value: &toml::Value| value.as_str().unwrap_or_default().to_owned();
        let skip = list("bans", "skip")?;
        Ok(Self {
            licenses: list("licenses", "allow")?.iter().map(text).collect(),
            registries: list("sources", "allow-registry")?
                .iter()
                .map(text)
                .collect(),
            skipped: skip
                .iter()
                .filter_map(|entry| entry.get("crate"))
                .map(text)
                .collect(),
        })
    }

    fn check(&self, metadata: &Value) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut report = |path: &str, message: String| {
            let rule = "dependencies";
            findings.push(Finding {
                path: path.to_owned(),
                line: 0,
                rule,
                message,
            });
        };
        let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let used = resolved_ids(metadata);
        for package in each(metadata, "packages").filter(|p| used.contains(text(p, "id"))) {
            let (name, version) = (text(package, "name"), text(package, "version"));
            versions.entry(name).or_default().insert(version);
            let license = text(package, "license");
            if !allowed(license, &self.licenses) {
                report(
                    "deny.toml",
                    format!("{name} {version}: licence `{license}` is not allowed"),
                );
            }
            match package.get("source").and_then(Value::as_str) {
                None => self.check_edges(package, &mut report),
                Some(source) => {
                    if !self
                        .registries
                        .iter()
                        .any(|r| source == format!("registry+{r}"))
                    {
                        report("deny.toml", format!("{name} {version} comes from {source}"));
                    }
                }
            }
        }
        for (name, versions) in versions {
            let unnamed: Vec<_> = versions
                .iter()
                .filter(|version| !self.skipped.iter().any(|skip| skips(skip, name, version)))
                .collect();
            if unnamed.len() > 1 {
                report(
                    "Cargo.lock",
                    format!("{name} is there as {unnamed:?}; one, or skip by name"),
                );
            }
        }
        findings
    }

    fn check_edges(&self, package: &Value, report: &mut impl FnMut(&str, String)) {
        let name = text(package, "name");
        let Some((_, allowed)) = EDGES.iter().find(|(crate_name, _)| *crate_name == name) else {
            return report(
                "Cargo.toml",
                format!("{name} has no line in dependencies.rs EDGES"),
            );
        };
        let ours = each(package, "dependencies").filter(|d| d.get("path").is_some());
        for dependency in ours.map(|dependency| text(dependency, "name")) {
            if !allowed.contains(&dependency) {
                report(
                    "Cargo.toml",
                    format!("{name} may not depend on {dependency}"),
                );
            }
        }
    }
}

/// Ids of the packages that are built for our platform.
fn resolved_ids(metadata: &Value) -> BTreeSet<&str> {
    let nodes = metadata
        .get("resolve")
        .map(|resolve| each(resolve, "nodes"));
    nodes
        .into_iter()
        .flatten()
        .map(|node| text(node, "id"))
        .collect()
}

fn each<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Whether a `skip` entry such as `syn@2` names this version.
fn skips(skip: &str, name: &str, version: &str) -> bool {
    skip.split_once('@').is_some_and(|(skip_name, prefix)| {
        skip_name == name && (version == prefix || version.starts_with(&format!("{prefix}.")))
    })
}

/// Evaluates an SPDX expression: `OR` (or the old `/`), `AND`, parentheses; `WITH` is part of a name.
fn allowed(expression: &str, licenses: &[String]) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    any_of(&words, &mut at, licenses) && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize, licenses: &[String]) -> bool {
    let mut holds = all_of(words, at, licenses);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        holds |= all_of(words, at, licenses);
    }
    holds
}

fn all_of(words: &[&str], at: &mut usize, licenses: &[String]) -> bool {
    let mut holds = one(words, at, licenses);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        holds &= one(words, at, licenses);
    }
    holds
}

fn one(words: &[&str], at: &mut usize, licenses: &[String]) -> bool {
    let Some(&word) = words.get(*at) else {
        return false;
    };
    *at += 1;
    if word == "(" {
        let holds = any_of(words, at, licenses);
        *at += 1;
        return holds;
    }
    let mut name = word.to_owned();
    if words.get(*at) == Some(&"WITH") {
        name = format!("{word} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    licenses.contains(&name)
}

/// Dependencies of the workspace manifest whose version is not written in full.
fn unpinned(manifest: &str) -> Vec<Finding> {
    let Ok(manifest) = manifest.parse::<toml::Table>() else {
        return vec![];
    };
    let dependencies = manifest
        .get("workspace")
        .and_then(|workspace| workspace.get("dependencies")?.as_table())
        .into_iter()
        .flatten();
    let loose = dependencies.filter(|(_, value)| {
        let version = value.as_str().or_else(|| value.get("version")?.as_str());
        version.map_or(value.get("path").is_none(), |version| {
            version.split('.').count() != 3 || version.contains(['*', '<', '>'])
        })
    });
    let finding = |(name, _): (&String, &toml::Value)| Finding {
        path: "Cargo.toml".to_owned(),
        line: 0,
        rule: "dependencies",
        message: format!("{name}: write the full version, major.minor.patch"),
    };
    loose.map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::{Policy, allowed, unpinned};
    use serde_json::{Value, json};

    fn policy() -> Policy {
        Policy {
            licenses: vec!["MIT".into(), "Apache-2.0".into(), "A WITH E".into()],
            registries: vec!["https://r".into()],
            skipped: vec!["old@1".into()],
        }
    }

    fn package(name: &str, version: &str, license: &str, source: Option<&str>) -> Value {
        let id = format!("{name}@{version}");
        json!({"id": id, "name": name, "version": version, "license": license, "source": source,
            "dependencies": []})
    }

    fn count(packages: &[Value]) -> usize {
        let nodes: Vec<_> = packages.iter().map(|p| json!({"id": p["id"]})).collect();
        policy()
            .check(&json!({"packages": packages, "resolve": {"nodes": nodes}}))
            .len()
    }

    #[test]
    fn licence_expressions() {
        let list = policy().licenses;
        for good in [
            "MIT",
            "GPL-3.0 OR MIT",
            "MIT/Zlib",
            "(MIT OR X) AND Apache-2.0",
            "A WITH E",
        ] {
            assert!(allowed(good, &list), "{good}");
        }
        for bad in [
            "",
            "GPL-3.0",
            "MIT AND X",
            "(MIT OR X) AND (X)",
            "MIT WITH E",
            "MIT MIT",
        ] {
            assert!(!allowed(bad, &list), "{bad}");
        }
    }

    #[test]
    fn licences_sources_and_duplicates_go_red() {
        let ours = Some("registry+https://r");
        assert_eq!(count(&[package("a", "1.0.0", "MIT", ours)]), 0);
        assert_eq!(count(&[package("a", "1.0.0", "GPL-3.0", ours)]), 1);
        assert_eq!(
            count(&[package("a", "1.0.0", "MIT", Some("git+https://r"))]),
            1
        );
        let two = |name| {
            [
                package(name, "1.0.0", "MIT", ours),
                package(name, "2.0.0", "MIT", ours),
            ]
        };
        assert_eq!(count(&two("new")), 1);
        assert_eq!(count(&two("old")), 0);
    }

    #[test]
    fn workspace_edges_go_red() {
        let mut arbiter = package("understudy-arbiter", "0.1.0", "MIT", None);
        assert_eq!(count(&[arbiter.clone()]), 0);
        arbiter["dependencies"] = json!([{"name": "understudy-vmm", "path": "vmm"}]);
        assert_eq!(count(&[arbiter]), 1);
        assert_eq!(count(&[package("unknown", "0.1.0", "MIT", None)]), 1);
    }

    #[test]
    fn loose_versions_go_red() {
        assert_eq!(
            unpinned("[workspace.dependencies]\na = \"1.2.3\"\nb = { path = \"b\" }\n"),
            vec![]
        );
        for loose in [
            "\"1\"",
            "\"*\"",
            "{ version = \"1.2\" }",
            "{ git = \"https://x\" }",
        ] {
            assert_eq!(
                unpinned(&format!("[workspace.dependencies]\na = {loose}\n")).len(),
                1
            );
        }
    }
}
