//! What is built once and kept, outside the checkout: `$UNDERSTUDY_CACHE`, else `~/.cache/understudy`.
//!
//! An entry is a directory `NAME-KEY`, where the key is a SHA-256 over everything that went into it
//! (configuration, patches, package versions, the steps themselves). It is built in a
//! temporary directory and appears by rename, so that it is whole or absent; a lock file per name keeps
//! two builders apart. Entries of other keys are left alone: another checkout may use them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// Hexadecimal digits of the key in a directory name.
const KEY_DIGITS: usize = 16;
/// Lists what the key was made of; present in every complete entry.
const INPUTS_FILE: &str = "inputs.txt";

/// Everything that decides the content of an entry.
#[derive(Default)]
pub(crate) struct Inputs {
    lines: Vec<String>,
}

impl Inputs {
    /// Adds a name and its value.
    pub(crate) fn text(mut self, name: &str, value: &str) -> Self {
        self.lines.push(format!("{name}: {value}"));
        self
    }

    /// Adds the content of a file under a name that does not depend on where the checkout is.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn file(self, name: &str, path: &Path) -> Result<Self> {
        let digest = digest_of_file(path)?;
        Ok(self.text(name, &digest))
    }

    fn listing(&self) -> String {
        self.lines.join("\n") + "\n"
    }

    fn key(&self) -> String {
        hex(&Sha256::digest(self.listing().as_bytes()))[..KEY_DIGITS].to_owned()
    }
}

/// SHA-256 of a file, as hexadecimal digits.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn digest_of_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut HashWriter(&mut hasher))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&hasher.finalize()))
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The cache directory.
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache, making its directory.
    ///
    /// # Errors
    /// When neither `UNDERSTUDY_CACHE` nor `HOME` is set, or the directory cannot be made.
    pub(crate) fn open() -> Result<Self> {
        let root = match (
            std::env::var_os("UNDERSTUDY_CACHE"),
            std::env::var_os("HOME"),
        ) {
            (Some(root), _) => PathBuf::from(root),
            (None, Some(home)) => Path::new(&home).join(".cache/understudy"),
            (None, None) => bail!("neither UNDERSTUDY_CACHE nor HOME is set"),
        };
        Self::at(&root)
    }

    fn at(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
        let root = fs::canonicalize(root)?;
        Ok(Self { root })
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The entry of these inputs, if it is complete.
    pub(crate) fn find(&self, name: &str, inputs: &Inputs) -> Option<PathBuf> {
        let entry = self.entry(name, inputs);
        entry.join(INPUTS_FILE).is_file().then_some(entry)
    }

    /// The entry of these inputs; `build` fills an empty directory when there is none. A failed
    /// build leaves its directory behind as evidence, until the next build of the same name.
    ///
    /// # Errors
    /// `build`'s, or the cache's own file operations.
    pub(crate) fn entry_or_build(
        &self,
        name: &str,
        inputs: &Inputs,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        if let Some(entry) = self.find(name, inputs) {
            return Ok(entry);
        }
        let lock_path = self.root.join(format!(".{name}.lock"));
        let lock = File::create(&lock_path).with_context(|| format!("{}", lock_path.display()))?;
        if lock.try_lock().is_err() {
            eprintln!("{name}: another process is building it; waiting");
            lock.lock().context("cannot lock the cache")?;
        }
        if let Some(entry) = self.find(name, inputs) {
            return Ok(entry);
        }
        let building = self.root.join(format!(".{name}.building"));
        if building.exists() {
            fs::remove_dir_all(&building).context("cannot remove an unfinished build")?;
        }
        fs::create_dir(&building).with_context(|| format!("cannot make {}", building.display()))?;
        build(&building)?;
        fs::write(building.join(INPUTS_FILE), inputs.listing())?;
        let entry = self.entry(name, inputs);
        if entry.exists() {
            fs::remove_dir_all(&entry).context("cannot remove an incomplete entry")?;
        }
        fs::rename(&building, &entry)
            .with_context(|| format!("cannot make {}", entry.display()))?;
        Ok(entry)
    }

    fn entry(&self, name: &str, inputs: &Inputs) -> PathBuf {
        self.root.join(format!("{name}-{}", inputs.key()))
    }
}

/// Writes a file so that a reader sees the old or the new content and nothing between.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_atomically(path: &Path, text: &str) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}", std::process::id()));
    let partial = PathBuf::from(partial);
    fs::write(&partial, text).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(test: &str) -> Cache {
        let root =
            std::env::temp_dir().join(format!("understudy-cache-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        Cache::at(&root).unwrap()
    }

    #[test]
    fn builds_once_for_the_same_inputs() {
        let cache = cache("once");
        let inputs = || Inputs::default().text("version", "1");
        let first = cache
            .entry_or_build("x", &inputs(), |dir| Ok(fs::write(dir.join("f"), "1")?))
            .unwrap();
        let second = cache
            .entry_or_build("x", &inputs(), |_| bail!("built twice"))
            .unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read_to_string(second.join("f")).unwrap(), "1");
        let other = Inputs::default().text("version", "2");
        assert_eq!(cache.find("x", &other), None);
        fs::remove_dir_all(cache.root()).unwrap();
    }

    #[test]
    fn a_failed_build_leaves_no_entry_and_can_be_repeated() {
        let cache = cache("failed");
        let inputs = Inputs::default();
        let failed = cache.entry_or_build("x", &inputs, |dir| {
            fs::write(dir.join("half"), "")?;
            bail!("no luck")
        });
        assert!(failed.is_err() && cache.find("x", &inputs).is_none());
        let entry = cache.entry_or_build("x", &inputs, |_| Ok(())).unwrap();
        assert!(!entry.join("half").exists());
        fs::remove_dir_all(cache.root()).unwrap();
    }
}
