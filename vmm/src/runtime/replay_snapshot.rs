//! Snapshot files of a replay: saved where the log has the guest settled, gone on from later.
//!
//! A guest can be saved between two instructions, and finishing the access of an exit changes registers: so
//! only places with a Settle record will do, where every replay finishes it. A file says which record
//! comes next.

use super::guest::{Blueprint, Guest};
use super::kvm_executor::KvmExecutor;
use super::session::RuntimeError;
use crate::snapshot::file::{About, SnapshotError, SnapshotReader, SnapshotWriter};
use crate::snapshot::part;
use std::fs::File;
use std::io::{BufReader, BufWriter, IntoInnerError, Read, Write};
use std::path::Path;
use tempfile::NamedTempFile;

/// Writes the state of a settled guest; nothing is at `path` before all of it is on disk.
pub(super) fn save(
    path: &Path,
    about: &About,
    guest: &mut KvmExecutor,
) -> Result<(), RuntimeError> {
    let failed = |operation| move |source| of(path, SnapshotError::Io { operation, source });
    // Gone again when anything below fails.
    let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let file = NamedTempFile::new_in(directory.unwrap_or(Path::new(".")));
    let out = BufWriter::new(file.map_err(failed("create"))?);
    let out = write(out, about, guest, path)?;
    let unwritten = |error: IntoInnerError<_>| failed("write")(error.into_error());
    let file = out.into_inner().map_err(unwritten)?;
    file.as_file().sync_all().map_err(failed("sync"))?;
    let named = file.persist(path).map_err(|error| error.error);
    named.map(drop).map_err(failed("name"))
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

/// The guest of a snapshot file, and what the file says of it.
pub(super) fn open(path: &Path, blueprint: &Blueprint) -> Result<(About, Guest), RuntimeError> {
    let io = |source| SnapshotError::Io {
        operation: "open",
        source,
    };
    let file = File::open(path).map_err(|source| of(path, io(source)))?;
    read(BufReader::new(file), blueprint, path)
}

/// As [`open`], from anywhere; `path` is for messages.
pub(super) fn read(
    input: impl Read,
    blueprint: &Blueprint,
    path: &Path,
) -> Result<(About, Guest), RuntimeError> {
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
        let found = part::apply(&memory, &part).map_err(|error| of(path, damaged(error)))?;
        state = found.or(state);
        section += 1;
    }
    let Some(state) = state else {
        let missing = "registers and devices are not in it".to_owned();
        return Err(of(path, SnapshotError::Foreign(missing)));
    };
    let guest = blueprint.rebuild(memory, &state, about.clock)?;
    Ok((about, guest))
}

fn of(path: &Path, source: SnapshotError) -> RuntimeError {
    RuntimeError::Snapshot {
        path: path.display().to_string(),
        source,
    }
}
