//! The logs of both sides, read from their disks after a drill and compared.
//!
//! What must hold: wherever both logs have a record it is the same record, up to the record with
//! which one side began a new generation; from there on the survivor's log is its own. Whether the
//! other side released anything beyond is in its last status ([`crate::pair::Pointers::released`]),
//! and, for everything that a client can see, in the oracle's chain of hashes.

use crate::lab::{Lab, Side};
use crate::pair::LOG_DIR;
use anyhow::{Context, Result, ensure};
use logging_channel::record::{Control, Record, RecordBody};
use logging_channel::segment::LogReader;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One side's log.
#[derive(Debug, Clone, Default, Serialize)]
pub struct LogEvidence {
    /// Whole records that could be read.
    pub records: u64,
    /// Output records among them.
    pub outputs: u64,
    /// States that the guest was taken on by.
    pub states: u64,
    /// Bytes of them.
    pub state_bytes: u64,
    /// Index of the first record of each generation after the first, with the generation.
    pub generations: Vec<(u64, u64)>,
    /// Why reading ended before the end of the files; a killed host's last pages are often lost.
    pub damage: Option<String>,
}

/// What both logs show together.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Evidence {
    /// The log of the host that started as primary.
    pub primary: LogEvidence,
    /// The log of the host that started as backup.
    pub backup: LogEvidence,
    /// Records that both have and that are equal.
    pub common: u64,
    /// Index of the first record that differs before any new generation began.
    pub first_difference: Option<u64>,
}

impl Evidence {
    /// Fails unless one log continues the other.
    ///
    /// # Errors
    /// When a common record differs, or there is nothing in common to compare.
    pub fn verify(&self) -> Result<()> {
        if let Some(index) = self.first_difference {
            anyhow::bail!("the logs differ at record {index}: {self:?}");
        }
        ensure!(
            self.common > 0,
            "the logs have no record in common: {self:?}"
        );
        let taken = self
            .primary
            .generations
            .iter()
            .chain(&self.backup.generations);
        let mut generations: Vec<u64> = taken.map(|(_, generation)| *generation).collect();
        generations.sort_unstable();
        let before = generations.len();
        generations.dedup();
        ensure!(
            generations.len() == before,
            "two sides wrote one generation: {self:?}"
        );
        Ok(())
    }
}

/// Copies the disks of both hosts below `to` and compares the logs on them.
///
/// # Errors
/// When a disk cannot be read.
pub fn collect(lab: &mut Lab, to: &Path) -> Result<Evidence> {
    let logs = copy_logs(lab, to)?;
    let of = |side| logs.get(&side).context("a log of both sides");
    compare(of(Side::Primary)?, of(Side::Backup)?)
}

/// Copies the disks of all hosts below `to`; where their logs are in the copies.
///
/// # Errors
/// When a disk cannot be read.
pub fn copy_logs(lab: &mut Lab, to: &Path) -> Result<BTreeMap<Side, PathBuf>> {
    let mut logs = BTreeMap::new();
    for side in lab.sides() {
        let dir = to.join(side.name());
        let host = lab.host_mut(side);
        if host.is_on() {
            host.read_state(&dir)?;
        } else {
            host.read_disk(&dir)?;
        }
        logs.insert(side, log_below(&dir));
    }
    Ok(logs)
}

/// Where the log is in a copy of a host's state directory.
fn log_below(copy: &Path) -> PathBuf {
    copy.join(Path::new(LOG_DIR).file_name().unwrap_or_default())
}

/// Compares two logs record by record.
///
/// # Errors
/// When neither can be read at all.
pub fn compare(primary: &Path, backup: &Path) -> Result<Evidence> {
    let mut evidence = Evidence::default();
    let mut primary = Reading::open(primary).context("the primary's log")?;
    let mut backup = Reading::open(backup).context("the backup's log")?;
    let mut comparable = true;
    loop {
        let (ours, theirs) = (
            primary.next(&mut evidence.primary),
            backup.next(&mut evidence.backup),
        );
        let (ours, theirs) = match (ours, theirs) {
            (None, None) => return Ok(evidence),
            (Some(ours), Some(theirs)) if comparable => (ours, theirs),
            _ => continue,
        };
        if begins_generation(&ours)
            .or_else(|| begins_generation(&theirs))
            .is_some()
        {
            comparable = false;
        } else if ours == theirs {
            evidence.common += 1;
        } else {
            evidence.first_difference.get_or_insert(ours.index.0);
            comparable = false;
        }
    }
}

/// Reads one log, keeping count.
struct Reading(Option<LogReader>);

impl Reading {
    fn open(dir: &Path) -> Result<Self> {
        ensure!(dir.is_dir(), "{} is not there", dir.display());
        Ok(Self(Some(LogReader::open(dir))))
    }

    fn next(&mut self, seen: &mut LogEvidence) -> Option<Record> {
        let record = match self.0.as_mut()?.next_record() {
            Ok(Some(record)) => record,
            Ok(None) => {
                self.0 = None;
                return None;
            }
            Err(error) => {
                seen.damage = Some(error.to_string());
                self.0 = None;
                return None;
            }
        };
        seen.records += 1;
        seen.outputs += u64::from(matches!(record.body, RecordBody::Output(_)));
        if let RecordBody::State { last, bytes } = &record.body {
            seen.states += u64::from(*last);
            seen.state_bytes += bytes.len() as u64;
        }
        if let Some(generation) = begins_generation(&record) {
            seen.generations.push((record.index.0, generation));
        }
        Some(record)
    }
}

const fn begins_generation(record: &Record) -> Option<u64> {
    match record.body {
        RecordBody::Control(Control::Generation(generation)) => Some(generation),
        _ => None,
    }
}
