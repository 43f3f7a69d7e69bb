//! Looks for instructions whose result depends on the host in a compiled kernel and its vDSO.
//!
//! [`REFUSED`] ones fail the build. [`REPORTED`] ones stay in the image but are harmless or hidden by
//! CPUID; the report lists where they are, so that a change is noticed. The monitor's loader
//! scans again when it loads a kernel: this check is for whoever changes the configuration.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Read host state and cannot be trapped everywhere.
const REFUSED: &[&str] = &["rdtsc", "rdtscp", "rdrand", "rdseed", "rdpmc", "rdpru"];
/// Worth knowing: answered by the fixed CPU model, intercepted, or behind a CPUID bit that is 0.
const REPORTED: &[&str] = &[
    "cpuid", "mwait", "mwaitx", "monitor", "monitorx", "tpause", "umwait", "umonitor", "xgetbv",
    "rdpid", "xbegin", "xtest", "rdpkru", "sgdt", "sidt", "smsw", "str", "sldt",
];
/// Places listed for each reported mnemonic.
const PLACES_MAX: usize = 12;

/// Disassembles `images`; returns the report.
///
/// # Errors
/// When objdump fails, or a refused instruction is found: names each with its function.
pub(super) fn check(images: &[PathBuf]) -> Result<String> {
    let mut report = String::new();
    let mut refused = Vec::new();
    for image in images {
        let output = Command::new("objdump")
            .args(["--disassemble", "--no-show-raw-insn"])
            .arg(image)
            .output()
            .context("cannot run objdump")?;
        if !output.status.success() {
            bail!(
                "objdump {}: {}",
                image.display(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let found = scan(&String::from_utf8_lossy(&output.stdout));
        let name = image.file_name().unwrap_or_default().to_string_lossy();
        for (mnemonic, places) in &found {
            let shown = places
                .iter()
                .take(PLACES_MAX)
                .cloned()
                .collect::<Vec<_>>()
                .join(" ");
            let line = format!("{name}: {mnemonic}: {} in {shown}", places.len());
            if REFUSED.contains(&mnemonic.as_str()) {
                refused.push(line.clone());
            }
            writeln!(report, "{line}")?;
        }
    }
    if !refused.is_empty() {
        bail!(
            "instructions that read host state are left in the image:\n{}",
            refused.join("\n")
        );
    }
    eprint!(
        "guest kernel: no {} left; reported:\n{report}",
        REFUSED.join(", ")
    );
    Ok(report)
}

/// Listed mnemonics in a disassembly, with `function+section` places.
fn scan(listing: &str) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::<String, Vec<String>>::new();
    let (mut section, mut function) = ("", "");
    for line in listing.lines() {
        if let Some(name) = line.strip_prefix("Disassembly of section ") {
            section = name.trim_end_matches(':');
        } else if let Some((_, name)) = line.split_once(" <").filter(|_| line.ends_with(">:")) {
            function = name.trim_end_matches(">:");
        } else if let Some((address, instruction)) = line.split_once(":\t") {
            // A prefix such as `rep` or `notrack` may come first.
            let words = instruction.split_whitespace().take(2);
            let listed = |word: &&str| REFUSED.contains(word) || REPORTED.contains(word);
            if let Some(mnemonic) = words.into_iter().find(listed) {
                let place = format!("{function}@{section}:{}", address.trim());
                found.entry(mnemonic.to_owned()).or_default().push(place);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_found_with_their_place() {
        let listing = "Disassembly of section .text:\n\nffffffff81000000 <start>:\n\
            ffffffff81000000:\trdtsc\nffffffff81000002:\tcall   ffffffff81000010 <cpuid>\n\
            Disassembly of section .altinstr_replacement:\n\n0000 <x>:\n   5:\trdtscp\n   8:\tdata16 rdrand %ax\n";
        let found = scan(listing);
        assert_eq!(found["rdtsc"], ["start@.text:ffffffff81000000"]);
        assert_eq!(found["rdtscp"], ["x@.altinstr_replacement:5"]);
        assert_eq!(found["rdrand"], ["x@.altinstr_replacement:8"]);
        assert_eq!(found.len(), 3, "a function called cpuid is no CPUID");
    }
}
