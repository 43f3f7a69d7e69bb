//! The embedded store against damage, foreign files, a second process and the loss of power.

use super::conformance::{self, claim, vm};
use super::{EmbeddedStore, Store, StoreError};
use crate::register::Outcome;
use redb::{Database, StorageBackend, TableDefinition};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("arbiter.redb");
    (directory, path)
}

#[test]
fn conforms() {
    let directory = tempfile::tempdir().unwrap();
    let mut made = 0;
    conformance::suite(|| {
        made += 1;
        EmbeddedStore::create(&directory.path().join(format!("{made}.redb"))).unwrap()
    });
}

#[test]
fn conforms_when_full() {
    let store = EmbeddedStore::on_backend(Disk::default()).unwrap();
    conformance::refuses_too_many(&store, 0);
    conformance::refuses_too_many(&super::MemoryStore::default(), 0);
}

#[test]
fn grants_survive_reopening() {
    let (_directory, path) = scratch();
    let store = EmbeddedStore::create(&path).unwrap();
    store.claim(&vm("m"), &claim(0, 1, "a")).unwrap();
    drop(store);
    let store = EmbeddedStore::open(&path).unwrap();
    assert_eq!(
        store.claim(&vm("m"), &claim(0, 1, "a")).unwrap(),
        Outcome::Granted
    );
    assert_ne!(
        store.claim(&vm("m"), &claim(0, 1, "b")).unwrap(),
        Outcome::Granted
    );
}

#[test]
fn one_process_at_a_time() {
    let (_directory, path) = scratch();
    let _store = EmbeddedStore::create(&path).unwrap();
    let error = EmbeddedStore::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
}

#[test]
fn creating_never_replaces() {
    let (directory, path) = scratch();
    fs::write(&path, b"").unwrap();
    assert!(matches!(
        EmbeddedStore::create(&path),
        Err(StoreError::Exists { .. })
    ));
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing unfinished stays behind: {left:?}");
}

#[test]
fn what_is_not_a_store_is_refused() {
    let (directory, path) = scratch();
    let refusal = |path: &Path| EmbeddedStore::open(path).unwrap_err();
    assert!(matches!(refusal(&path), StoreError::Missing { .. }));
    assert!(matches!(
        refusal(directory.path()),
        StoreError::Foreign { .. }
    ));
    fs::write(&path, b"").unwrap();
    assert!(matches!(refusal(&path), StoreError::Damaged { .. }));
    assert_eq!(
        fs::read(&path).unwrap(),
        b"",
        "a refused file is left as it was"
    );
    fs::write(&path, b"SQLite format 3\0 and more").unwrap();
    assert!(matches!(refusal(&path), StoreError::Foreign { .. }));
    fs::write(&path, b"re").unwrap();
    assert!(matches!(refusal(&path), StoreError::Foreign { .. }));
    fs::write(&path, b"redb\x1A\x0A\xA9\x0D\x0A").unwrap();
    let error = refusal(&path);
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");

    fs::remove_file(&path).unwrap();
    let table: TableDefinition<'_, &str, u64> = TableDefinition::new("somebody-else");
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(table)
        .unwrap()
        .insert("x", 1)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = refusal(&path);
    assert!(matches!(error, StoreError::Foreign { .. }), "{error:?}");
}

#[test]
fn another_format_is_refused() {
    let (_directory, path) = scratch();
    drop(EmbeddedStore::create(&path).unwrap());
    let table: TableDefinition<'_, &str, u64> = TableDefinition::new("understudy-arbiter");
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(table)
        .unwrap()
        .insert("format", 3)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = EmbeddedStore::open(&path).unwrap_err();
    assert!(
        matches!(error, StoreError::Version { found: 3, .. }),
        "{error:?}"
    );
}

#[test]
fn a_store_without_history_gets_one_and_keeps_its_grants() {
    let (_directory, path) = scratch();
    let store = EmbeddedStore::create(&path).unwrap();
    store.claim(&vm("m"), &claim(0, 1, "a")).unwrap();
    store.claim(&vm("m"), &claim(1, 2, "b")).unwrap();
    drop(store);
    let facts: TableDefinition<'_, &str, u64> = TableDefinition::new("understudy-arbiter");
    let history: TableDefinition<'_, (&str, u64), (u64, &str)> = TableDefinition::new("history");
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let mut table = transaction.open_table(facts).unwrap();
    table.insert("format", 1).unwrap();
    drop(table);
    transaction.delete_table(history).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let store = EmbeddedStore::open(&path).unwrap();
    assert_eq!(store.read(&vm("m")).unwrap().generation(), 2);
    assert_eq!(store.history(&vm("m")).unwrap(), [claim(1, 2, "b")]);
    drop(store);
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let mut table = transaction.open_table(history).unwrap();
    table.remove(("m", 2)).unwrap();
    drop(table);
    transaction.commit().unwrap();
    drop(database);
    let error = EmbeddedStore::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
}

/// A store with three grants, as the disk holds it right after the last answer.
fn image_after_grant() -> Vec<u8> {
    let disk = Disk::default();
    let store = EmbeddedStore::on_backend(disk.clone()).unwrap();
    store.claim(&vm("m"), &claim(0, 1, "a")).unwrap();
    store.claim(&vm("n"), &claim(0, 1, "b")).unwrap();
    store.claim(&vm("m"), &claim(1, 2, "b")).unwrap();
    let image = disk.synced();
    std::mem::forget(store);
    image
}

/// The store that opens from `image` still holds every grant, or does not open.
fn holds_or_refuses(image: Vec<u8>, what: &str) -> bool {
    let Ok(store) = EmbeddedStore::on_backend(Disk::holding(image)) else {
        return false;
    };
    let granted = |name, wish| store.claim(&vm(name), &wish).unwrap();
    // The rivals ask first: a store that forgot the grant would grant it to them.
    assert_ne!(granted("m", claim(1, 2, "a")), Outcome::Granted, "{what}");
    assert_eq!(granted("m", claim(1, 2, "b")), Outcome::Granted, "{what}");
    assert_ne!(granted("n", claim(0, 1, "a")), Outcome::Granted, "{what}");
    true
}

#[test]
fn power_loss_right_after_the_answer_loses_nothing() {
    assert!(holds_or_refuses(image_after_grant(), "synced bytes only"));
}

#[test]
fn no_flipped_byte_brings_back_an_older_state() {
    let image = image_after_grant();
    let used: Vec<usize> = (0..image.len()).filter(|&at| image[at] != 0).collect();
    let mut refused = 0;
    // Every byte of the file header; a part of the rest, since each try opens a database.
    for &at in used.iter().filter(|&&at| at < 512 || at % 7 == 0) {
        for mask in [0x01u8, 0xff] {
            let mut damaged = image.clone();
            damaged[at] ^= mask;
            refused += usize::from(!holds_or_refuses(damaged, &format!("{at:#x} ^ {mask:#x}")));
        }
    }
    assert!(
        refused > 10,
        "damage to what is in use is noticed: {refused}"
    );
}

#[test]
fn a_truncated_file_is_refused_or_whole() {
    let image = image_after_grant();
    for length in [
        9,
        64,
        320,
        4_096,
        5_000,
        image.len() / 2,
        image.len() - 4_096,
        image.len() - 1,
    ] {
        holds_or_refuses(image[..length].to_vec(), &format!("cut to {length}"));
    }
}

/// A disk that forgets what was not synced.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    cached: Vec<u8>,
    synced: Vec<u8>,
}

impl Disk {
    pub(super) fn holding(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Platter {
            cached: image.clone(),
            synced: image,
        })))
    }

    pub(super) fn synced(&self) -> Vec<u8> {
        self.0.lock().unwrap().synced.clone()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let platter = self.0.lock().unwrap();
        let bytes = platter
            .cached
            .get(start..)
            .and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0
            .lock()
            .unwrap()
            .cached
            .resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.synced = platter.cached.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let mut platter = self.0.lock().unwrap();
        let place = platter
            .cached
            .get_mut(start..)
            .and_then(|rest| rest.get_mut(..data.len()));
        place
            .ok_or(io::ErrorKind::UnexpectedEof)?
            .copy_from_slice(data);
        Ok(())
    }
}
