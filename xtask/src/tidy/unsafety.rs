//! Unsafe code lives in the listed files, each of which opens it with a stated reason.
//!
//! The workspace denies `unsafe_code`; a file opens it with `#![expect(unsafe_code, reason = "...")]`.
//! clippy demands a SAFETY comment for each block and one operation per block.

use super::source::ident;
use super::{Finding, House};

/// Files that may use `unsafe`, with what for.
const FILES: &[(&str, &str)] = &[
    (
        "vmm/src/kvm/guest_memory.rs",
        "maps guest memory and hands it to KVM",
    ),
    (
        "vmm/src/kvm/perf_counter.rs",
        "perf_event_open and its ioctls",
    ),
    (
        "vmm/src/kvm/kick.rs",
        "a signal handler that stores to the run page",
    ),
    (
        "vmm/src/kvm/interrupt.rs",
        "KVM_INTERRUPT, which kvm-ioctls does not wrap",
    ),
    (
        "vmm/src/kvm/run_page.rs",
        "the union in kvm_run, and KVM_SET_XSAVE",
    ),
    ("vmm/src/backend/tap.rs", "TUNSETIFF on /dev/net/tun"),
];

const OPENING: &str = "#![expect(unsafe_code, reason = ";

/// Finds unsafe code elsewhere, and listed files that do not say why.
pub(super) fn check(house: &House) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, source, _) in house.tree.rust() {
        let tokens = source.tokens();
        let used = tokens.iter().find(|token| ident(token) == "unsafe");
        let Some(used) = used else { continue };
        let listed = FILES.iter().any(|(file, _)| *file == path);
        let message = if !listed {
            "unsafe code outside the files listed in xtask/src/tidy/unsafety.rs"
        } else if !opens(&source.text) {
            "a file with unsafe code begins with #![expect(unsafe_code, reason = \"...\")]"
        } else {
            continue;
        };
        findings.push(Finding {
            path: path.to_owned(),
            line: used.span().start().line,
            rule: "unsafety",
            message: message.to_owned(),
        });
    }
    findings
}

/// Whether the file opens unsafe code for itself; rustfmt may break the attribute over lines.
fn opens(text: &str) -> bool {
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    squeezed
        .replace("#![expect( ", "#![expect(")
        .contains(OPENING)
}

#[cfg(test)]
mod tests {
    use super::super::tests::goes_red;

    #[test]
    fn unsafe_outside_the_list_and_without_reason() {
        let tap = "vmm/src/backend/tap.rs";
        let good = [
            (
                tap,
                "#![expect(\n    unsafe_code,\n    reason = \"ioctl\")]\nfn f() { unsafe {} }",
            ),
            ("a.rs", "// unsafe\nfn f() { g(\"unsafe\", unsafe_code) }"),
        ];
        goes_red(
            super::check,
            &good,
            &[("a.rs", "\nfn f() { unsafe { g() } }")],
            ("a.rs", 2),
        );
        goes_red(
            super::check,
            &good,
            &[("a.rs", "m! { unsafe fn f() {} }")],
            ("a.rs", 1),
        );
        goes_red(
            super::check,
            &good,
            &[(tap, "fn f() { unsafe { g() } }")],
            (tap, 1),
        );
    }
}
