//! Debian packages that are unpacked instead of installed: sources, and the hosts' kernel.
//!
//! Sources come through a private list and a private directory of package lists, so that the
//! system's own apt configuration is neither changed nor required to have source entries. The
//! mirror is the one that the system uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::packages;
use crate::progress;

const SUITE: &str = "bookworm";
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Downloads the source package `name` into `directory` and unpacks it as `directory/unpacked`.
///
/// # Errors
/// When there is no network, no mirror has it, or its signature is wrong.
pub(super) fn unpack_source(name: &str, directory: &Path, log: &Path) -> Result<PathBuf> {
    let list = directory.join("sources.list");
    let line = format!("deb-src [signed-by={KEYRING}] {} {SUITE} main\n", mirror());
    fs::write(&list, line).context("cannot write the list of sources")?;
    let lists = directory.join("lists");
    fs::create_dir_all(lists.join("partial"))?;
    fs::create_dir_all(directory.join("archives/partial"))?;
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command
            .current_dir(directory)
            .args(["-q", "-o", "Dir::Etc::SourceParts=/dev/null"]);
        let own = [
            ("Dir::Etc::SourceList", list.as_path()),
            ("Dir::State::Lists", lists.as_path()),
            ("Dir::Cache", directory),
        ];
        for (option, path) in own {
            command
                .arg("-o")
                .arg(format!("{option}={}", path.display()));
        }
        // apt's own user cannot write into somebody's cache directory.
        command.args(["-o", "APT::Sandbox::User=root"]);
        command
    };
    progress::command("source package lists", apt_get().arg("update"), log)?;
    let mut download = apt_get();
    download.args(["source", "--download-only", name]);
    progress::command(&format!("download source of {name}"), &mut download, log)?;
    let description = only_file(directory, "dsc")?;
    let unpacked = directory.join("unpacked");
    let mut unpack = Command::new("dpkg-source");
    unpack
        .current_dir(directory)
        .arg("--extract")
        .arg(description)
        .arg(&unpacked);
    progress::command(&format!("unpack source of {name}"), &mut unpack, log)?;
    Ok(unpacked)
}

/// Removes what [`unpack_source`] downloaded into `directory`, whose cache entry is complete without.
///
/// # Errors
/// When a file cannot be removed.
pub(super) fn remove_downloads(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let package = [".dsc", ".xz", ".gz", ".bin"]
            .iter()
            .any(|end| name.ends_with(end));
        let removed = match &*name {
            "lists" | "archives" => fs::remove_dir_all(&path),
            "sources.list" => fs::remove_file(&path),
            _ if package => fs::remove_file(&path),
            _ => Ok(()),
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Downloads the binary package `name` and unpacks it as `directory/unpacked`, without installing it.
///
/// # Errors
/// When there is no network or no mirror has it.
pub(super) fn unpack_binary(name: &str, directory: &Path, log: &Path) -> Result<PathBuf> {
    let mut download = Command::new("apt-get");
    download
        .current_dir(directory)
        .args(["-q", "-o", "APT::Sandbox::User=root", "download", name]);
    progress::command(&format!("download {name}"), &mut download, log)?;
    let package = only_file(directory, "deb")?;
    let unpacked = directory.join("unpacked");
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("--extract").arg(&package).arg(&unpacked);
    progress::command(&format!("unpack {name}"), &mut unpack, log)?;
    fs::remove_file(package).context("cannot remove the package file")?;
    Ok(unpacked)
}

/// The package on which the metapackage `name` depends whose name starts with `prefix`.
///
/// # Errors
/// When apt does not know it even with fresh lists.
pub(super) fn dependency(name: &str, prefix: &str) -> Result<String> {
    if let Some(found) = look_up_dependency(name, prefix)? {
        return Ok(found);
    }
    packages::update_lists()?;
    look_up_dependency(name, prefix)?
        .with_context(|| format!("apt does not know {name} (is this Debian 12?)"))
}

fn look_up_dependency(name: &str, prefix: &str) -> Result<Option<String>> {
    let output = Command::new("apt-cache")
        .args(["depends", "--important", name])
        .output()
        .context("cannot run apt-cache")?;
    Ok(parse_dependency(
        &String::from_utf8_lossy(&output.stdout),
        prefix,
    ))
}

fn parse_dependency(listing: &str, prefix: &str) -> Option<String> {
    listing
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with(prefix))
        .map(str::to_owned)
}

/// The candidate version of a package, as apt would install it.
///
/// # Errors
/// When apt does not know it.
pub(super) fn candidate(name: &str) -> Result<String> {
    let output = Command::new("apt-cache")
        .args(["policy", name])
        .env("LC_ALL", "C")
        .output()
        .context("cannot run apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "));
    version
        .map(str::to_owned)
        .with_context(|| format!("apt has no candidate for {name}"))
}

/// The Debian mirror of this system, from its apt configuration.
fn mirror() -> String {
    let mut texts = vec![fs::read_to_string("/etc/apt/sources.list").unwrap_or_default()];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        texts.extend(
            paths
                .iter()
                .filter_map(|path| fs::read_to_string(path).ok()),
        );
    }
    texts
        .iter()
        .find_map(|text| parse_mirror(text))
        .unwrap_or_else(|| DEFAULT_MIRROR.to_owned())
}

/// The first archive in one-line or deb822 form that serves [`SUITE`] itself (not its updates).
fn parse_mirror(text: &str) -> Option<String> {
    let one_line = text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let rest = if rest.starts_with('[') {
            rest.split_once(']')?.1
        } else {
            rest
        };
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        (suite == SUITE && words.any(|word| word == "main")).then(|| uri.to_owned())
    });
    one_line.or_else(|| text.split("\n\n").find_map(parse_stanza))
}

fn parse_stanza(stanza: &str) -> Option<String> {
    let field = |name: &str| {
        let value = stanza.lines().find_map(|line| line.strip_prefix(name));
        value.map(|value| value.split_whitespace().collect::<Vec<_>>())
    };
    let serves = field("Suites:")?.contains(&SUITE) && field("Components:")?.contains(&"main");
    let uri = field("URIs:")?
        .into_iter()
        .find(|uri| uri.starts_with("http"))?;
    serves.then(|| uri.to_owned())
}

/// The only file with this extension.
fn only_file(directory: &Path, extension: &str) -> Result<PathBuf> {
    let mut found = fs::read_dir(directory)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|found| found == extension));
    match (found.next(), found.next()) {
        (Some(path), None) => Ok(path),
        _ => bail!("expected one .{extension} file in {}", directory.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_read_in_both_forms() {
        let one_line = "# deb http://no/ bookworm main\n\
            deb [signed-by=/k] http://security/debian bookworm-security main\n\
            deb [arch=amd64 signed-by=/k] http://mirror/debian bookworm contrib main\n";
        assert_eq!(
            parse_mirror(one_line).as_deref(),
            Some("http://mirror/debian")
        );
        let deb822 = "Types: deb\n# a comment\nURIs: http://d/debian\nSuites: bookworm bookworm-updates\n\
            Components: main\n\nTypes: deb\nURIs: http://d/security\nSuites: bookworm-security\nComponents: main\n";
        assert_eq!(parse_mirror(deb822).as_deref(), Some("http://d/debian"));
        assert_eq!(parse_mirror("deb https://x nodistro main\n"), None);
    }

    #[test]
    fn the_kernel_behind_the_metapackage_is_found() {
        let listing = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-1-cloud-amd64\n";
        let found = parse_dependency(listing, "linux-image-6");
        assert_eq!(found.as_deref(), Some("linux-image-6.1.0-1-cloud-amd64"));
    }
}
