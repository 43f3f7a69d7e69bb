//! No file is called after nothing: `utils` and its kin have no owner and collect whatever is left over.

use super::{Finding, House};

const BANNED: &[&str] = &[
    "util",
    "utils",
    "utilities",
    "helper",
    "helpers",
    "common",
    "manager",
    "misc",
    "stuff",
];

/// Finds files and directories with a banned name.
pub(super) fn check(house: &House) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, _) in house.tree.files() {
        let banned = path
            .split('/')
            .map(|part| part.split('.').next().unwrap_or(part));
        for name in banned.filter(|name| BANNED.contains(name)) {
            findings.push(Finding {
                path: path.to_owned(),
                line: 0,
                rule: "names",
                message: format!("`{name}` says nothing; name it after what it owns"),
            });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::goes_red;

    #[test]
    fn banned_names_are_found_in_files_and_directories() {
        let good = [("vmm/src/devices/pit.rs", "")];
        goes_red(
            super::check,
            &good,
            &[("a/src/utils.rs", "")],
            ("a/src/utils.rs", 0),
        );
        goes_red(
            super::check,
            &good,
            &[("a/helpers/x.rs", "")],
            ("a/helpers/x.rs", 0),
        );
    }
}
