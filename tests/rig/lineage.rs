//! Many lives of one guest: the logs of all of them are one history.
//!
//! A host that is killed, boots again and stands by has several logs. A record counts until somebody
//! began a later generation before it: what a dead side had logged beyond that never became the guest's
//! past. Where two logs have a counting record of one index, it must be the same record; no generation
//! may begin at two places.

use crate::evidence;
use crate::lab::Lab;
use anyhow::{Context, Result, bail, ensure};
use logging_channel::record::{Control, Record, RecordBody};
use logging_channel::segment::LogReader;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the logs show together.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Lineage {
    /// Logs read.
    pub logs: usize,
    /// Records in all of them.
    pub records: u64,
    /// Records that at least two logs have, and that are equal.
    pub common: u64,
    /// Index of the record with which each generation after the first began.
    pub generations: BTreeMap<u64, u64>,
}

/// Reads all logs on all hosts' disks and compares them.
///
/// # Errors
/// When a disk cannot be read or two logs contradict each other.
pub fn collect(lab: &mut Lab, to: &Path) -> Result<Lineage> {
    let mut dirs = Vec::new();
    for log in evidence::copy_logs(lab, to)?.values() {
        dirs.extend(logs_below(log)?);
    }
    compare(&dirs)
}

/// `log` itself and the directories of later lives in it.
fn logs_below(log: &Path) -> Result<Vec<PathBuf>> {
    let mut dirs = vec![log.to_owned()];
    for entry in std::fs::read_dir(log).with_context(|| log.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            dirs.push(path);
        }
    }
    Ok(dirs)
}

/// Compares logs record by record.
///
/// # Errors
/// With the first contradiction.
pub fn compare(dirs: &[PathBuf]) -> Result<Lineage> {
    let logs: Vec<Vec<Record>> = dirs.iter().map(|dir| read(dir)).collect();
    let mut lineage = Lineage::default();
    for (generation, index) in logs.iter().flatten().filter_map(begins_generation) {
        let first = *lineage.generations.entry(generation).or_insert(index);
        ensure!(
            first == index,
            "generation {generation} began at record {first} and at record {index}"
        );
    }
    let mut known: BTreeMap<u64, &Record> = BTreeMap::new();
    for log in &logs {
        lineage.logs += usize::from(!log.is_empty());
        lineage.records += log.len() as u64;
        for record in counting(log, &lineage.generations) {
            let before = *known.entry(record.index.0).or_insert(record);
            if !std::ptr::eq(before, record) {
                if before != record {
                    bail!("two logs differ: {before:?} and {record:?}");
                }
                lineage.common += 1;
            }
        }
    }
    Ok(lineage)
}

/// The records of a log that are part of the guest's history.
fn counting<'a>(
    log: &'a [Record],
    generations: &BTreeMap<u64, u64>,
) -> impl Iterator<Item = &'a Record> {
    let first = log.first().map_or(0, |record| record.index.0);
    // A log that begins in the middle is of the last generation that had begun by then.
    let began = |(generation, index): (&u64, &u64)| (*index <= first).then_some(*generation);
    let own = generations.iter().filter_map(began).max().unwrap_or(1);
    let own = log
        .iter()
        .filter_map(begins_generation)
        .map(|(generation, _)| generation)
        .fold(own, u64::max);
    let end = generations
        .iter()
        .find_map(|(generation, index)| (*generation > own).then_some(*index))
        .unwrap_or(u64::MAX);
    log.iter().take_while(move |record| record.index.0 < end)
}

/// Whole records; a killed host's last pages are often lost.
fn read(dir: &Path) -> Vec<Record> {
    let mut reader = LogReader::open(dir);
    std::iter::from_fn(|| reader.next_record().ok().flatten()).collect()
}

const fn begins_generation(record: &Record) -> Option<(u64, u64)> {
    match record.body {
        RecordBody::Control(Control::Generation(generation)) => Some((generation, record.index.0)),
        _ => None,
    }
}
