//! The newest generation of a virtual machine that this host has seen, in a file beside the control socket.
//!
//! The arbiter fences with what it remembers. An arbiter that was set back (an old copy of its store, another
//! one by mistake) would grant again what was granted before, and then a primary of the past is as good as
//! any. So every host keeps the newest generation that it held or followed: it claims and follows nothing
//! older (`replication::node`, `logging_channel::session::backup`), and its TAP takes nothing older
//! (`tap_fence`).
//!
//! One line of text: the number. Whoever runs holds the file locked: two processes of one virtual machine on one
//! host, of which the older may have been stopped for long, are refused. It outlives the process, not the host's
//! power: `/run` is empty then, and so is everything that could be released.

use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest file that is one of ours.
const BYTES_MAX: usize = 32;

/// Why a side does not start.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// Another process has it.
    #[error("another process of this virtual machine holds {0}")]
    Held(PathBuf),
    /// Not a number.
    #[error("{0} does not hold the generation that this host has seen")]
    Damaged(PathBuf),
    /// The file cannot be had.
    #[error("cannot keep the generation in {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The mark; locked as long as this lives.
#[derive(Debug)]
pub(super) struct GenerationMark {
    file: File,
    newest: AtomicU64,
}

impl GenerationMark {
    /// The mark beside `socket`, made if there is none.
    ///
    /// # Errors
    /// When another process holds it, or it cannot be read.
    pub(super) fn beside(socket: &Path) -> Result<Self, MarkError> {
        Self::open(&socket.with_extension("generation"))
    }

    fn open(path: &Path) -> Result<Self, MarkError> {
        let failed = |source| MarkError::Io {
            path: path.to_owned(),
            source,
        };
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(MarkError::Held(path.to_owned())),
            Err(error) => return Err(failed(error.into())),
        }
        let mut bytes = [0; BYTES_MAX];
        let length = file.read_at(&mut bytes, 0).map_err(failed)?;
        let newest = number(&bytes[..length]).ok_or_else(|| MarkError::Damaged(path.to_owned()))?;
        Ok(Self {
            file,
            newest: AtomicU64::new(newest),
        })
    }

    /// The newest generation seen; 0 for none.
    #[must_use]
    pub(super) fn newest(&self) -> u64 {
        self.newest.load(Ordering::Relaxed)
    }

    /// `generation` is held or followed here. An older one changes nothing.
    pub(super) fn raise(&self, generation: u64) {
        if generation <= self.newest.fetch_max(generation, Ordering::Relaxed) {
            return;
        }
        // One write of one length: whoever reads finds the one or the other number.
        let line = format!("{generation:020}\n");
        if let Err(error) = self.file.write_all_at(line.as_bytes(), 0) {
            tracing::warn!(%error, generation, "the generation is remembered by this process only");
        }
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() {
        return Some(0);
    }
    std::str::from_utf8(bytes).ok()?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_remembered_by_the_next_process() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("web.sock");
        let mark = GenerationMark::beside(&socket).expect("a file");
        assert_eq!(mark.newest(), 0);
        mark.raise(9);
        mark.raise(12);
        mark.raise(3);
        assert_eq!(mark.newest(), 12);
        drop(mark);
        let next = GenerationMark::beside(&socket).expect("free again");
        assert_eq!(next.newest(), 12);
    }

    #[test]
    fn a_second_process_is_refused_while_the_first_lives() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("web.sock");
        let first = GenerationMark::beside(&socket).expect("a file");
        let second = GenerationMark::beside(&socket);
        assert!(matches!(second, Err(MarkError::Held(_))), "{second:?}");
        drop(first);
    }

    #[test]
    fn what_is_no_number_is_refused_by_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("web.generation");
        for damage in [&b"-1\n"[..], b"\xff", b"3x\n", &[b'9'; 40]] {
            std::fs::write(&path, damage).expect("written");
            let opened = GenerationMark::open(&path);
            assert!(matches!(opened, Err(MarkError::Damaged(_))), "{opened:?}");
        }
    }
}
