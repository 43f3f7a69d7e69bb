//! Snapshot files: written by a replay or of a running guest, gone on from by a replay or a run.
//!
//! A guest can be saved between two instructions, and finishing the access of an exit changes registers: so
//! only places with a Settle record will do, where every replay finishes it. A file says which record
//! comes next. Nothing is at a file's name before all of it is on disk. Left out: how a running guest is
//! read (`saving`, `transfer`).

use super::guest::{Blueprint, Guest, GuestError};
use super::kvm_executor::KvmExecutor;
use super::session::RuntimeError;
use crate::machine::ram::GuestRam;
use crate::snapshot::file::{About, SnapshotError, SnapshotReader, SnapshotWriter};
use crate::snapshot::part;
use crate::snapshot::state::GuestState;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

/// A file beside `path`; it is gone again unless it is published.
pub(super) fn begin(path: &Path) -> Result<BufWriter<NamedTempFile>, SnapshotError> {
    let failed = |source| SnapshotError::Io {
        operation: "create",
        source,
    };
    if path.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    let directory = directory_of(path);
    NamedTempFile::new_in(directory)
        .map(BufWriter::new)
        .map_err(failed)
}

/// Makes it durable, and gives it its name in place of whatever had that.
pub(super) fn publish(out: BufWriter<NamedTempFile>, path: &Path) -> Result<(), SnapshotError> {
    let failed = |operation| move |source| SnapshotError::Io { operation, source };
    let written = out.into_inner();
    let file = written.map_err(|error| failed("write")(error.into_error()))?;
    file.as_file().sync_all().map_err(failed("sync"))?;
    let named = file.persist(path).map_err(|error| error.error);
    named.map_err(failed("name"))?;
    let directory = File::open(directory_of(path));
    directory
        .and_then(|directory| directory.sync_all())
        .map_err(failed("name"))
}

fn directory_of(path: &Path) -> &Path {
    let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    directory.unwrap_or(Path::new("."))
}

/// Writes the state of a settled guest to a file.
pub(super) fn save(
    path: &Path,
    about: &About,
    guest: &mut KvmExecutor,
) -> Result<(), RuntimeError> {
    let out = begin(path).map_err(|source| of(path, source))?;
    let out = write(out, about, guest, path)?;
    publish(out, path).map_err(|source| of(path, source))
}

/// Writes the state of a settled guest; `path` is for messages.
pub(super) fn write<W: Write>(
    out: W,
    about: &About,
    guest: &mut KvmExecutor,
    path: &Path,
) -> Result<W, RuntimeError> {
    let of = |source| of(path, source);
    let mut writer = SnapshotWriter::begin(out, about).map_err(of)?;
    let mut failed = None;
    guest.all_parts(|part| {
        failed = writer.part(&part).err();
        failed.is_none()
    })?;
    match failed {
        None => writer.finish().map_err(of),
        Some(error) => Err(of(error)),
    }
}

/// A guest's state, read and checked.
pub(super) struct Loaded {
    /// What the file says of it.
    pub(super) about: About,
    memory: GuestRam,
    state: GuestState,
}

impl Loaded {
    /// The guest, on the calling thread.
    ///
    /// # Errors
    /// When the state is of another machine, or the host cannot build it.
    pub(super) fn build(self, blueprint: &Blueprint) -> Result<Guest, GuestError> {
        blueprint.rebuild(self.memory, &self.state, self.about.clock)
    }

    /// Sabotage for drills: one bit of the first byte of memory differs. Linux sets the first 64 KiB aside when it
    /// begins and leaves them alone (`early_reserve_memory` in arch/x86/kernel/setup.c): elsewhere a guest that
    /// has only just booted may write over it.
    pub(super) fn spoil(&self) {
        const FIRST: GuestAddress = GuestAddress(0);
        // There is memory.
        if let Ok(byte) = self.memory.read_obj::<u8>(FIRST) {
            let _ = self.memory.write_obj(byte ^ 1, FIRST);
        }
    }
}

/// Reads a snapshot file of this guest.
///
/// # Errors
/// When it cannot be read, is damaged, or of another guest.
pub(super) fn load(path: &Path, blueprint: &Blueprint) -> Result<Loaded, RuntimeError> {
    let io = |source| SnapshotError::Io {
        operation: "open",
        source,
    };
    let file = File::open(path).map_err(|source| of(path, io(source)))?;
    read(BufReader::new(file), blueprint, path)
}

/// As [`load`], from anywhere; `path` is for messages.
pub(super) fn read(
    input: impl Read,
    blueprint: &Blueprint,
    path: &Path,
) -> Result<Loaded, RuntimeError> {
    let mut reader = SnapshotReader::open(input).map_err(|source| of(path, source))?;
    let about = reader.about().clone();
    blueprint.check_identity(&about.identity)?;
    let memory = blueprint.empty_memory()?;
    let (mut state, mut section) = (None, 1);
    loop {
        let offset = reader.offset();
        let next = reader.next_part().map_err(|source| of(path, source))?;
        let Some(part) = next else { break };
        let damaged = |error: part::PartError| SnapshotError::Damaged {
            section,
            offset,
            fault: error.to_string(),
        };
        let found = part::fill(&memory, &part).map_err(|error| of(path, damaged(error)))?;
        state = found.or(state);
        section += 1;
    }
    match state {
        Some(state) => Ok(Loaded {
            about,
            memory,
            state: *state,
        }),
        None => {
            let missing = "registers and devices are not in it".to_owned();
            Err(of(path, SnapshotError::Foreign(missing)))
        }
    }
}

fn of(path: &Path, source: SnapshotError) -> RuntimeError {
    RuntimeError::Snapshot {
        path: path.display().to_string(),
        source,
    }
}
