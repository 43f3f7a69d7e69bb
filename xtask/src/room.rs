//! Room on the disk: whether a whole test run fits, asked before it has run for minutes.
//!
//! A full disk shows as a compiler that dies without a word of why. What is built already is not counted
//! as room, so little is only a warning; what no run can do with is an error.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// What a run in a fresh clone takes, images and their sources included.
const WANTED_MIB: u64 = 8 << 10;
/// Less than this is too little even where everything is built.
const NEEDED_MIB: u64 = 2 << 10;

/// Looks at the file system of `directory`.
///
/// # Errors
/// When it has no room for any run, or cannot be asked.
pub(crate) fn ensure(directory: &Path) -> Result<()> {
    let output = Command::new("df")
        .args(["--block-size=1M", "--output=avail"])
        .arg(directory)
        .output()
        .context("cannot run df")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let free = free_mib(&said).with_context(|| format!("df says no number: {said}"))?;
    judge(free, directory)
}

/// The number below the heading.
fn free_mib(said: &str) -> Option<u64> {
    said.lines().nth(1)?.trim().parse().ok()
}

fn judge(free_mib: u64, directory: &Path) -> Result<()> {
    let place = directory.display();
    if free_mib < NEEDED_MIB {
        bail!(
            "{free_mib} MiB are free at {place}, {NEEDED_MIB} are needed at least: remove old build directories"
        );
    }
    if free_mib < WANTED_MIB {
        println!(
            "WARNING: {free_mib} MiB are free at {place}; a run in a fresh clone takes up to {WANTED_MIB}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_below_the_heading() {
        assert_eq!(free_mib(" Avail\n 43210\n"), Some(43_210));
        assert_eq!(free_mib(" Avail\n"), None);
        assert_eq!(free_mib(" Avail\n-\n"), None);
    }

    #[test]
    fn too_little_is_refused_and_little_is_not() {
        let here = Path::new("/");
        judge(WANTED_MIB, here).expect("enough");
        judge(NEEDED_MIB, here).expect("maybe enough");
        judge(NEEDED_MIB - 1, here).expect_err("too little");
    }
}
