//! A cpio archive in the `newc` form that Linux unpacks as its initial file system.
//!
//! Source: `Documentation/driver-api/early-userspace/buffer-format.rst`. The same content always gives
//! the same bytes: entries are sorted, all times are 0, all owners are root. Directories are made
//! from the paths; hard links and devices are left out (the kernel brings its own `/dev/console`).

use std::collections::BTreeMap;

const MAGIC: &str = "070701";
const MODE_DIRECTORY: u32 = 0o040_755;
const MODE_SYMLINK: u32 = 0o120_777;
const MODE_FILE: u32 = 0o100_000;
const ALIGNMENT: usize = 4;

struct Entry {
    mode: u32,
    content: Vec<u8>,
}

/// Files to be archived, by path without a leading slash.
#[derive(Default)]
pub(crate) struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// Adds a regular file with these permission bits, and its directories.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: Vec<u8>) {
        let mode = MODE_FILE | permissions;
        self.insert(path, Entry { mode, content });
    }

    /// Adds a symbolic link, and its directories.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        let content = target.as_bytes().to_vec();
        self.insert(
            path,
            Entry {
                mode: MODE_SYMLINK,
                content,
            },
        );
    }

    /// Adds an empty directory, and those above it.
    pub(crate) fn directory(&mut self, path: &str) {
        let (mode, content) = (MODE_DIRECTORY, Vec::new());
        self.insert(path, Entry { mode, content });
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        for (at, _) in path.match_indices('/') {
            self.entries.entry(path[..at].to_owned()).or_insert(Entry {
                mode: MODE_DIRECTORY,
                content: Vec::new(),
            });
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// The archive. Parents sort before what they hold.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for ((path, entry), inode) in self.entries.iter().zip(1..) {
            append(&mut out, path, inode, entry);
        }
        append(
            &mut out,
            "TRAILER!!!",
            0,
            &Entry {
                mode: 0,
                content: Vec::new(),
            },
        );
        out
    }
}

fn append(out: &mut Vec<u8>, name: &str, inode: u32, entry: &Entry) {
    let links = if entry.mode & 0o170_000 == 0o040_000 {
        2
    } else {
        1
    };
    let size = u32::try_from(entry.content.len()).expect("nothing here comes near 4 GiB");
    let name_size = u32::try_from(name.len() + 1).expect("paths are short");
    // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    let fields = [
        inode, entry.mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0,
    ];
    out.extend_from_slice(MAGIC.as_bytes());
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(&entry.content);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_order_of_insertion_does_not_matter() {
        let mut one = Archive::default();
        one.file("b/c/d", 0o644, b"x".to_vec());
        one.symlink("a", "target");
        let mut two = Archive::default();
        two.symlink("a", "target");
        two.directory("b");
        two.file("b/c/d", 0o644, b"x".to_vec());
        assert_eq!(one.bytes(), two.bytes());
        let text = String::from_utf8_lossy(&one.bytes()).into_owned();
        let place = |name: &str| text.find(name).unwrap();
        assert!(place("b\0") < place("b/c\0") && place("b/c\0") < place("b/c/d\0"));
    }

    #[test]
    fn golden_header() {
        let mut archive = Archive::default();
        archive.file("f", 0o755, b"hello".to_vec());
        let expected = "07070100000001000081ED0000000000000000000000010000000000000005\
                        0000000000000000000000000000000000000002000000\
                        00f\0hello\0\0\0";
        assert!(String::from_utf8_lossy(&archive.bytes()).starts_with(expected));
        assert_eq!(archive.bytes().len() % ALIGNMENT, 0);
    }
}
