//! No path of one developer's machine is committed: it works for nobody else.
//!
//! Temporary files come from `tempfile`, caches from `UNDERSTUDY_CACHE`. Paths inside a guest's or an
//! emulated host's own file system are listed as exceptions.

use super::{Finding, House};

/// Prefixes that belong to one machine (spelled apart, so that this file passes).
const PREFIXES: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/t", "mp/"),
];

/// `(path prefix of the file, machine path, reason)`.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "tests/kvm/",
        concat!("/t", "mp/"),
        "in the file system of an emulated host",
    ),
    (
        "tests/drills/",
        concat!("/t", "mp/"),
        "in the file system of an emulated host",
    ),
    (
        "tests/rig/",
        concat!("/t", "mp/"),
        "in the file system of an emulated host",
    ),
    (
        "guest-images/",
        concat!("/t", "mp/"),
        "in the file system of the guest",
    ),
    (
        "guest-images/",
        concat!("/ro", "ot/"),
        "in the file system of the guest",
    ),
];

/// Finds machine paths in every text file.
pub(super) fn check(house: &House) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, source) in house.tree.files() {
        for (number, line) in source.text.lines().enumerate() {
            for prefix in PREFIXES.iter().filter(|prefix| starts_path(line, prefix)) {
                let excepted = |(file, allowed, _): &(&str, &str, &str)| {
                    path.starts_with(file) && allowed == prefix
                };
                if !EXCEPTIONS.iter().any(excepted) {
                    findings.push(Finding {
                        path: path.to_owned(),
                        line: number + 1,
                        rule: "machine_paths",
                        message: format!("`{prefix}` is a path of one machine"),
                    });
                }
            }
        }
    }
    findings
}

/// Whether `prefix` occurs as the start of a path, not inside a longer one or an address.
fn starts_path(line: &str, prefix: &str) -> bool {
    line.match_indices(prefix).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-/~}$)*".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::goes_red;
    use super::PREFIXES;

    #[test]
    fn absolute_paths_are_found() {
        let good = [("a.rs", "// docs/work/x and ~/work/x and https://h/home/x\n")];
        for prefix in PREFIXES {
            let bad = format!("\nlet p = \"{prefix}x\";");
            goes_red(super::check, &good, &[("a.rs", &bad)], ("a.rs", 2));
        }
    }
}
