//! `cargo xtask deb`: a Debian package with the program, its units, manual pages and examples.
//!
//! The program is the static release build that the lab uses, so the package needs nothing but `adduser`.
//! `dpkg-deb` makes the archive: it is on every Debian system, where cargo-deb would have to be compiled.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::images::static_binary;
use crate::run::{run as run_command, workspace_root};

/// Files as they are: from the checkout to the package.
const FILES: &[(&str, &str)] = &[
    (
        "packaging/understudy-arbiter.service",
        "usr/lib/systemd/system/understudy-arbiter.service",
    ),
    (
        "packaging/understudy-primary@.service",
        "usr/lib/systemd/system/understudy-primary@.service",
    ),
    (
        "packaging/understudy-backup@.service",
        "usr/lib/systemd/system/understudy-backup@.service",
    ),
    (
        "packaging/understudy-standby@.service",
        "usr/lib/systemd/system/understudy-standby@.service",
    ),
    ("packaging/copyright", "usr/share/doc/understudy/copyright"),
    ("CHANGELOG.md", "usr/share/doc/understudy/CHANGELOG.md"),
    ("docs/errors.md", "usr/share/doc/understudy/errors.md"),
    (
        "docs/installing.md",
        "usr/share/doc/understudy/installing.md",
    ),
    (
        "docs/threat-model.md",
        "usr/share/doc/understudy/threat-model.md",
    ),
    (
        "docs/examples/guest.toml",
        "usr/share/doc/understudy/examples/guest.toml",
    ),
    (
        "docs/examples/access.toml",
        "usr/share/doc/understudy/examples/access.toml",
    ),
    (
        "docs/examples/arbiter.env",
        "usr/share/doc/understudy/examples/arbiter.env",
    ),
];

/// Scripts of the package's own.
const CONTROL: &[(&str, &str)] = &[
    ("packaging/postinst", "DEBIAN/postinst"),
    ("packaging/prerm", "DEBIAN/prerm"),
    ("packaging/postrm", "DEBIAN/postrm"),
];

/// Builds the package; prints where it is.
///
/// # Errors
/// When the program does not build, or dpkg-deb refuses.
pub(crate) fn run() -> Result<()> {
    let root = workspace_root();
    let version = version(&fs::read_to_string(root.join("Cargo.toml"))?)
        .context("Cargo.toml has no version")?;
    let understudy = static_binary("understudy-vmm", "understudy")?;
    let tree = root.join("target/deb/tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    copy(&understudy, &tree.join("usr/bin/understudy"), 0o755)?;
    run_command(Command::new("strip").arg(tree.join("usr/bin/understudy")))?;
    for (from, to) in FILES {
        copy(&root.join(from), &tree.join(to), 0o644)?;
    }
    for (from, to) in CONTROL {
        copy(&root.join(from), &tree.join(to), 0o755)?;
    }
    written_by_the_program(&tree)?;
    let control = control(&version, size_kib(&tree)?);
    fs::write(tree.join("DEBIAN/control"), control)?;
    let package = root.join(format!("target/deb/understudy_{version}_amd64.deb"));
    let mut build = Command::new("dpkg-deb");
    build
        .args(["--root-owner-group", "--build"])
        .arg(&tree)
        .arg(&package);
    run_command(&mut build)?;
    println!("{}", package.display());
    Ok(())
}

/// Manual pages and completions come from the program itself.
fn written_by_the_program(tree: &Path) -> Result<()> {
    let understudy = tree.join("usr/bin/understudy");
    let pages = directory(tree, "usr/share/man/man1")?;
    run_command(Command::new(&understudy).arg("man").arg(&pages))?;
    for page in fs::read_dir(&pages)? {
        run_command(Command::new("gzip").args(["-9n"]).arg(page?.path()))?;
    }
    for (shell, path) in [
        ("bash", "usr/share/bash-completion/completions/understudy"),
        ("zsh", "usr/share/zsh/vendor-completions/_understudy"),
        (
            "fish",
            "usr/share/fish/vendor_completions.d/understudy.fish",
        ),
    ] {
        let output = Command::new(&understudy)
            .args(["completions", shell])
            .output()?;
        let path = tree.join(path);
        fs::create_dir_all(path.parent().context("a path in the tree")?)?;
        fs::write(path, output.stdout)?;
    }
    Ok(())
}

fn directory(tree: &Path, path: &str) -> Result<PathBuf> {
    let path = tree.join(path);
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(to.parent().context("a path in the tree")?)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn version(manifest: &str) -> Option<String> {
    let workspace = manifest.split("[workspace.package]").nth(1)?;
    let line = workspace
        .lines()
        .find(|line| line.starts_with("version = "))?;
    Some(line.split('"').nth(1)?.to_owned())
}

fn size_kib(tree: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(tree)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => size_kib(&entry.path())? * 1024,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes.div_ceil(1024))
}

fn control(version: &str, size_kib: u64) -> String {
    format!(
        "Package: understudy\n\
         Version: {version}\n\
         Architecture: amd64\n\
         Maintainer: The Understudy project <understudy@example.org>\n\
         Installed-Size: {size_kib}\n\
         Depends: adduser\n\
         Recommends: iproute2\n\
         Section: admin\n\
         Priority: optional\n\
         Description: keeps a Linux guest running when the x86 host under it dies\n \
         A KVM virtual machine monitor after VMware's fault tolerance: a second host\n \
         replays everything the guest does, and carries on in its place, with memory,\n \
         programs and open TCP connections as they were. With the arbiter that decides\n \
         which host may.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_package_is_there() {
        let root = workspace_root();
        for (from, _) in FILES.iter().chain(CONTROL) {
            assert!(root.join(from).is_file(), "{from}");
        }
        let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("readable");
        assert_eq!(
            version(&manifest).as_deref(),
            Some(env!("CARGO_PKG_VERSION"))
        );
    }

    #[test]
    fn the_control_file_has_one_paragraph_with_a_folded_description() {
        let text = control("1.2.3", 7);
        assert!(text.contains("\nVersion: 1.2.3\n") && text.contains("\nInstalled-Size: 7\n"));
        assert!(!text.contains("\n\n") && text.ends_with('\n'));
        let (_, description) = text.split_once("Description:").expect("has one");
        assert!(
            description
                .lines()
                .skip(1)
                .all(|line| line.starts_with(' '))
        );
    }
}
