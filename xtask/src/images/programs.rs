//! Our own programs, linked statically so that they run where there is no libc.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::run::{cargo, run, workspace_root};

/// The target is named although it is the host's own: RUSTFLAGS then leave build scripts alone.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds `binary` of `package` in release mode without shared libraries, in a target directory
/// of its own (`target/static`), and returns its path. Cargo decides whether there is work to do.
///
/// # Errors
/// When the build fails.
pub(crate) fn static_binary(package: &str, binary: &str) -> Result<PathBuf> {
    let target = workspace_root().join("target/static");
    run(cargo()
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .args(["build", "--quiet", "--release", "--target", TARGET])
        .args(["--package", package, "--bin", binary, "--target-dir"])
        .arg(&target))?;
    let path = target.join(TARGET).join("release").join(binary);
    if !path.is_file() {
        bail!("{} is missing after the build", path.display());
    }
    Ok(path)
}
