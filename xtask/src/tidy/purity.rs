//! Pure modules stay pure: what decides what a guest sees, or who goes live, reads no clock, opens no
//! file or socket, starts no thread, and has no unsafe code.
//!
//! Such a module can be tested by itself, simulated from a seed, and replayed; one host clock read in
//! a device would be an input that the log does not have. Every file begins with
//! `#![forbid(unsafe_code)]`; clippy.toml bans the same calls everywhere else by name.

use super::references::references;
use super::{Finding, House};

/// Directories and files that are pure.
const PURE: &[&str] = &[
    "vmm/src/devices/",
    "vmm/src/clock/",
    "vmm/src/machine/",
    "vmm/src/snapshot/",
    "vmm/src/replication/",
    "vmm/src/boot/",
    "logging-channel/src/",
    "inspect/src/",
    "arbiter/src/register.rs",
    "arbiter/src/protocol.rs",
];

/// Files below a pure directory that are not pure, with the reason.
const EDGES: &[(&str, &str)] = &[
    (
        "logging-channel/src/segment/writer.rs",
        "writes segment files",
    ),
    (
        "logging-channel/src/segment/reader.rs",
        "reads segment files",
    ),
    (
        "logging-channel/src/journal/writer.rs",
        "writes journal files",
    ),
    (
        "logging-channel/src/journal/reader.rs",
        "reads journal files",
    ),
    (
        "logging-channel/src/segment/blocks.rs",
        "reads segment files",
    ),
    (
        "logging-channel/src/segment/salvage.rs",
        "reads segment files",
    ),
    (
        "logging-channel/src/segment/scan.rs",
        "lists and reads segment files for reader, recovery and salvage",
    ),
    (
        "logging-channel/src/segment/recovery.rs",
        "repairs segment files",
    ),
    ("inspect/src/ahead.rs", "reads ahead on a thread"),
    ("inspect/src/pass.rs", "works on a log in several threads"),
    (
        "logging-channel/src/transport/tcp.rs",
        "carries bytes with tokio",
    ),
];

/// Paths that pure code does not name.
const IMPURE: &[&str] = &[
    "axum",
    "kvm_bindings",
    "kvm_ioctls",
    "hyper",
    "rustix",
    "signal_hook",
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time",
    "tokio",
    "vmm_sys_util",
];

/// Values without a clock or a socket behind them.
const HARMLESS: &[&str] = &[
    "std::net::IpAddr",
    "std::net::Ipv4Addr",
    "std::net::Ipv6Addr",
    "std::time::Duration",
];

/// Finds impure references and missing `forbid` attributes.
pub(super) fn check(house: &House) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, module) in house.graph.modules() {
        if !is_pure(path) || module.test_only {
            continue;
        }
        let Some(source) = house.tree.get(path) else {
            continue;
        };
        let mut report = |line: usize, message: String| {
            findings.push(Finding {
                path: path.to_owned(),
                line,
                rule: "purity",
                message,
            });
        };
        let is_root = module.path.is_empty();
        if !is_root
            && !source
                .text
                .lines()
                .any(|line| line == "#![forbid(unsafe_code)]")
        {
            report(
                0,
                "a pure module says `#![forbid(unsafe_code)]` below its header".to_owned(),
            );
        }
        for reference in references(source, &module.path) {
            let name = reference.path.join("::");
            let below =
                |prefix: &&&str| name == **prefix || name.starts_with(&format!("{prefix}::"));
            if HARMLESS.iter().find(below).is_none()
                && let Some(impure) = IMPURE.iter().find(below)
            {
                let message = format!("pure code names `{impure}`; let the caller do it");
                report(reference.line, message);
            }
        }
    }
    findings
}

fn is_pure(path: &str) -> bool {
    PURE.iter().any(|pure| path.starts_with(pure)) && !EDGES.iter().any(|(edge, _)| *edge == path)
}

#[cfg(test)]
mod tests {
    use super::super::tests::goes_red;

    const MANIFEST: (&str, &str) = ("vmm/Cargo.toml", "[package]\nname = \"vmm\"\n");
    const LIB: (&str, &str) = ("vmm/src/lib.rs", "mod devices;");
    const FILE: &str = "vmm/src/devices/mod.rs";
    const GOOD: &str = "#![forbid(unsafe_code)]\nuse std::time::Duration; use std::fmt;\n
        #[cfg(test)] mod tests { use std::fs; }";

    #[test]
    fn missing_forbid() {
        let bad = [MANIFEST, LIB, (FILE, "//! Header.\n")];
        goes_red(
            super::check,
            &[MANIFEST, LIB, (FILE, GOOD)],
            &bad,
            (FILE, 0),
        );
    }

    #[test]
    fn impure_references() {
        for line in [
            "use std::{fmt, time::{Duration, Instant}};",
            "fn f() { tokio::spawn(x) }",
        ] {
            let bad = format!("#![forbid(unsafe_code)]\n{line}");
            let bad = [MANIFEST, LIB, (FILE, bad.as_str())];
            goes_red(
                super::check,
                &[MANIFEST, LIB, (FILE, GOOD)],
                &bad,
                (FILE, 2),
            );
        }
    }

    #[test]
    fn edges_are_free() {
        let tree = [
            (
                "logging-channel/Cargo.toml",
                "[package]\nname = \"logging-channel\"\n",
            ),
            ("logging-channel/src/lib.rs", "mod segment { mod writer; }"),
            (
                "logging-channel/src/segment/writer.rs",
                "use std::fs::File;",
            ),
        ];
        assert_eq!(super::super::tests::findings(super::check, &tree), vec![]);
    }
}
