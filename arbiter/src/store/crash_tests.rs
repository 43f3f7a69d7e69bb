//! The embedded store killed at every write and every sync, with every way a disk may keep what was
//! not synced: all of it, none of it, any part of the writes, the last one torn.
//!
//! A tape records what redb asked of its file while grants are made. Each moment of the tape, and each
//! way of losing what was then in the cache, is an image; every image must open, and hold what had been
//! answered by then: no grant forgotten, none changed, at most the one under way besides.

use super::conformance::{claim, vm};
use super::embedded_tests::Disk;
use super::{EmbeddedStore, Store};
use crate::register::{Claim, Outcome, Register, VmName};
use redb::StorageBackend;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

/// Unsynced writes of which every subset is tried; beyond that, each one missing and each one alone.
const SUBSETS_OF_MAX: usize = 6;
/// A disk writes this much or nothing.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone)]
enum Step {
    Write(usize, Vec<u8>),
    SetLen(usize),
    Sync,
    /// Not of the disk: this many claims have been answered.
    Answered(usize),
}

/// A file that remembers what was done to it.
#[derive(Debug, Clone, Default)]
struct Tape(Arc<Mutex<(Vec<u8>, Vec<Step>)>>);

impl Tape {
    fn note(&self, step: Step) {
        let (file, steps) = &mut *self.0.lock().unwrap();
        play(file, &step);
        steps.push(step);
    }
}

fn play(file: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(at, bytes) => {
            let end = at + bytes.len();
            if file.len() < end {
                file.resize(end, 0);
            }
            file[*at..end].copy_from_slice(bytes);
        }
        Step::SetLen(length) => file.resize(*length, 0),
        Step::Sync | Step::Answered(_) => {}
    }
}

impl StorageBackend for Tape {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let (file, _) = &*self.0.lock().unwrap();
        let bytes = file.get(start..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.note(Step::SetLen(
            usize::try_from(length).map_err(io::Error::other)?,
        ));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.note(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        self.note(Step::Write(start, data.to_vec()));
        Ok(())
    }
}

fn claims() -> Vec<(VmName, Claim)> {
    vec![
        (vm("m"), claim(0, 1, "a")),
        (vm("n"), claim(0, 1, "b")),
        (vm("m"), claim(1, 2, "b")),
        (vm("m"), claim(2, 3, "a")),
    ]
}

/// The registers after the first `count` claims.
fn registers_after(count: usize) -> Vec<(VmName, Register)> {
    let mut registers: BTreeMap<VmName, Register> = BTreeMap::new();
    for (vm, claim) in claims().into_iter().take(count) {
        registers.entry(vm).or_default().claim(&claim);
    }
    registers.into_iter().collect()
}

/// An empty store's file, and everything that is done to it until the last answer.
fn record() -> (Vec<u8>, Vec<Step>) {
    let disk = Disk::default();
    drop(EmbeddedStore::on_backend(disk.clone()).unwrap());
    let empty = disk.synced();
    let tape = Tape(Arc::new(Mutex::new((empty.clone(), Vec::new()))));
    let store = EmbeddedStore::on_backend(tape.clone()).unwrap();
    for (number, (vm, claim)) in claims().into_iter().enumerate() {
        assert_eq!(store.claim(&vm, &claim).unwrap(), Outcome::Granted);
        tape.note(Step::Answered(number + 1));
    }
    std::mem::forget(store);
    let steps = tape.0.lock().unwrap().1.clone();
    (empty, steps)
}

/// Which of `count` unsynced writes are kept, in all the ways that are tried.
fn survivals(count: usize) -> Vec<Vec<bool>> {
    if count <= SUBSETS_OF_MAX {
        return (0..1_usize << count)
            .map(|bits| (0..count).map(|at| bits >> at & 1 == 1).collect())
            .collect();
    }
    let mut ways = vec![vec![true; count], vec![false; count]];
    for at in 0..count {
        ways.push((0..count).map(|other| other != at).collect());
        ways.push((0..count).map(|other| other == at).collect());
    }
    ways
}

/// Every image that the disk may hold at some moment, with the claims answered by then.
fn images(empty: &[u8], steps: &[Step]) -> BTreeSet<(usize, Vec<u8>)> {
    let mut found = BTreeSet::new();
    let (mut synced, mut cached): (Vec<u8>, Vec<Step>) = (empty.to_vec(), Vec::new());
    let mut answered = 0;
    for step in steps {
        match step {
            Step::Answered(count) => answered = *count,
            Step::Sync => cached.drain(..).for_each(|step| play(&mut synced, &step)),
            step => cached.push(step.clone()),
        }
        for kept in survivals(cached.len()) {
            let mut image = synced.clone();
            let pairs = cached.iter().zip(&kept);
            pairs
                .filter(|(_, kept)| **kept)
                .for_each(|(step, _)| play(&mut image, step));
            found.insert((answered, image));
        }
        for sectors in 1..8 {
            found.extend(torn(&synced, &cached, sectors * SECTOR_BYTES).map(|i| (answered, i)));
        }
    }
    found
}

/// All that is cached was written, but of the last write only so many bytes.
fn torn(synced: &[u8], cached: &[Step], bytes: usize) -> Option<Vec<u8>> {
    let (last, before) = cached.split_last()?;
    let Step::Write(at, data) = last else {
        return None;
    };
    let mut image = synced.to_vec();
    before.iter().for_each(|step| play(&mut image, step));
    play(&mut image, &Step::Write(*at, data.get(..bytes)?.to_vec()));
    Some(image)
}

/// Whether the store that opens from `image` holds what was answered, and nothing that was not asked.
fn check(answered: usize, image: Vec<u8>) -> Result<(), String> {
    let store = EmbeddedStore::on_backend(Disk::holding(image))
        .map_err(|error| format!("after {answered} answers: does not open: {error}"))?;
    let found = store.list().map_err(|error| error.to_string())?;
    let possible = [answered, (answered + 1).min(claims().len())];
    if possible
        .iter()
        .any(|count| found == registers_after(*count))
    {
        return Ok(());
    }
    Err(format!("after {answered} answers: {found:?}"))
}

fn check_all(empty: &[u8], steps: &[Step]) -> Result<usize, String> {
    let images = images(empty, steps);
    let count = images.len();
    for (answered, image) in images {
        check(answered, image)?;
    }
    Ok(count)
}

#[test]
fn killed_at_every_write_and_sync_no_grant_is_forgotten_or_changed() {
    let (empty, steps) = record();
    let syncs = steps.iter().filter(|s| matches!(s, Step::Sync)).count();
    assert!(syncs >= 2 * claims().len(), "{syncs} syncs");
    let images = check_all(&empty, &steps).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(images > 100, "{images} images");
}

#[test]
fn a_dropped_sync_is_found() {
    let (empty, steps) = record();
    // The disk says that it has synced and has not: from some answer on, for good.
    let first_answer = steps
        .iter()
        .position(|step| matches!(step, Step::Answered(1)));
    let first_answer = first_answer.unwrap();
    let mut lying = steps[..first_answer].to_vec();
    let rest = steps[first_answer..].iter();
    lying.extend(rest.filter(|step| !matches!(step, Step::Sync)).cloned());
    assert!(check_all(&empty, &lying).is_err());
    // At the best it loses everything of that time at once: a store that opens, and has forgotten.
    let mut synced = empty;
    lying[..first_answer]
        .iter()
        .for_each(|step| play(&mut synced, step));
    let wrong = check(claims().len(), synced).unwrap_err();
    let forgotten = format!("after 4 answers: {:?}", registers_after(1));
    assert_eq!(wrong, forgotten);
}
