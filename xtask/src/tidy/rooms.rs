//! Rooms of a crate import only what is declared here (ARCHITECTURE.md has the drawing).
//!
//! A room is a directory or file directly below `src`. The table is the whole truth: a room without a
//! line may import nothing, and a line that nobody uses is reported, so that the drawing stays true.
//! Imports of one's own room are free; tests may import anything.

use super::references::references;
use super::{Finding, House};

/// What one room may import from its own crate.
struct Room {
    crate_name: &'static str,
    name: &'static str,
    /// Rooms, or single modules such as `machine::layout`.
    imports: &'static [&'static str],
}

const fn room(
    crate_name: &'static str,
    name: &'static str,
    imports: &'static [&'static str],
) -> Room {
    Room {
        crate_name,
        name,
        imports,
    }
}

const ROOMS: &[Room] = &[
    room("vmm", "config", &["machine::layout"]),
    room("vmm", "devices", &[]),
    room("vmm", "clock", &[]),
    room("vmm", "machine", &["devices"]),
    room("vmm", "replication", &["machine::input"]),
    room(
        "vmm",
        "boot",
        &["machine::cpu_state", "machine::layout", "machine::ram"],
    ),
    room("vmm", "kvm", &["clock", "machine"]),
    room("vmm", "doctor", &["clock", "kvm", "machine"]),
    room("vmm", "snapshot", &["machine"]),
    room("vmm", "backend", &["confine::privileges"]),
    room("vmm", "confine", &[]),
    room(
        "vmm",
        "runtime",
        &[
            "backend",
            "boot",
            "clock",
            "config",
            "confine",
            "devices",
            "kvm",
            "machine",
            "replication",
            "snapshot",
        ],
    ),
];

/// Finds imports that the table does not allow.
pub(super) fn check(house: &House) -> Vec<Finding> {
    check_table(house, ROOMS)
}

fn check_table(house: &House, table: &[Room]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, module) in house.graph.modules() {
        let crate_name = module.crate_name.as_str();
        let Some(name) = module.path.first().filter(|_| !module.test_only) else {
            continue;
        };
        if !table.iter().any(|room| room.crate_name == crate_name) {
            continue;
        }
        let room = table
            .iter()
            .find(|room| room.crate_name == crate_name && room.name == name);
        let Some(source) = house.tree.get(file) else {
            continue;
        };
        for reference in references(source, &module.path) {
            if reference.path[0] != "crate" || reference.path.get(1) == Some(name) {
                continue;
            }
            let target = reference.path[1..].join("::");
            let allowed = room.is_some_and(|room| {
                room.imports
                    .iter()
                    .any(|import| target == *import || target.starts_with(&format!("{import}::")))
            });
            if !allowed {
                findings.push(Finding {
                    path: file.to_owned(),
                    line: reference.line,
                    rule: "rooms",
                    message: format!("room `{name}` may not import `{target}` ({ALLOW})"),
                });
            }
        }
    }
    findings
}

const ALLOW: &str = "the declared imports are in xtask/src/tidy/rooms.rs and ARCHITECTURE.md";

#[cfg(test)]
mod tests {
    use super::super::{Finding, House, source::Tree};
    use super::{check_table, room};

    fn findings(files: &[(&str, &str)]) -> Vec<Finding> {
        let table = [
            room("v", "inner", &[]),
            room("v", "outer", &["inner"]),
            room("v", "thin", &["outer::map"]),
        ];
        let mut all = vec![
            ("v/Cargo.toml", "[package]\nname = \"v\"\n"),
            (
                "v/src/lib.rs",
                "mod inner; mod outer; mod thin; mod undeclared;",
            ),
        ];
        all.extend_from_slice(files);
        check_table(&House::new(Tree::from_files(&all)), &table)
    }

    #[test]
    fn declared_imports_pass() {
        let good = findings(&[
            (
                "v/src/inner.rs",
                "use self::x::Y; use std::fs; #[cfg(test)] use crate::outer::Z;",
            ),
            (
                "v/src/outer.rs",
                "use crate::inner::Y; fn f() { super::inner::g() }",
            ),
            ("v/src/thin.rs", "use crate::outer::map::{A, B};"),
        ]);
        assert_eq!(good, vec![]);
    }

    #[test]
    fn undeclared_imports_are_found() {
        for (file, text) in [
            ("v/src/inner.rs", "\nuse crate::outer::Z;"),
            ("v/src/inner.rs", "\nfn f() { crate::outer::z() }"),
            ("v/src/inner.rs", "\nfn f() { assert!(super::outer::z()) }"),
            ("v/src/thin.rs", "\nuse crate::outer::{map::A, road::B};"),
            ("v/src/undeclared.rs", "\nuse crate::inner::Y;"),
        ] {
            let found = findings(&[(file, text)]);
            assert_eq!(found.len(), 1, "{text}: {found:#?}");
            assert_eq!((found[0].path.as_str(), found[0].line), (file, 2));
        }
    }
}
