//! Registers in one redb file: the store of the `understudy arbiter` program.
//!
//! Two commits make a grant, each synced to the disk, before it is answered: one writes the register and
//! counts the grant, the next **seals** it. redb keeps its two newest commits and, where the newest does
//! not verify, falls back to the one before. Without the seal a single flipped bit after a crash could
//! so bring back the state before the last grant, and a generation could be granted twice; with it both
//! commits that redb may choose from hold the grant, and older ones are never chosen.
//!
//! Opening is strict: every page's checksum and every register is verified; whatever this program did
//! not write is refused, never replaced by an empty store. A store comes into being only through
//! [`EmbeddedStore::create`], complete under its final name or not at all. One process at a time
//! (whole-file lock, released by the kernel when the process dies).
//!
//! Tables (`docs/formats/arbiter.md`): `understudy-arbiter` name -> number, `registers` vm -> (expected
//! generation, generation, holder), `history` (vm, generation) -> (expected generation, holder). A store of
//! format 1, which had no history, gets one when it is opened: it begins with the grants in force.

#![forbid(unsafe_code)]

use super::{Store, StoreError};
use crate::register::{Claim, HISTORY_MAX, Holder, Outcome, Register, VMS_MAX, VmName};
use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, TableDefinition, TableError, WriteTransaction,
};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Version of the tables.
const FORMAT: u64 = 2;
/// The one before, which had no history.
const FORMAT_WITHOUT_HISTORY: u64 = 1;
/// The database's cache: the whole store is a few pages.
const CACHE_BYTES: usize = 4 * 1024 * 1024;
/// First bytes of every redb file.
const FILE_MARK: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";

const FACTS: TableDefinition<'_, &str, u64> = TableDefinition::new("understudy-arbiter");
const REGISTERS: TableDefinition<'_, &str, (u64, u64, &str)> = TableDefinition::new("registers");
const HISTORY: TableDefinition<'_, (&str, u64), (u64, &str)> = TableDefinition::new("history");

/// Facts: the version of the tables, grants made, and grants sealed.
const FACT_FORMAT: &str = "format";
const FACT_GRANTS: &str = "grants";
const FACT_SEALED: &str = "sealed";

/// See the module.
#[derive(Debug)]
pub struct EmbeddedStore {
    database: Database,
    path: PathBuf,
    /// Held over both commits of a grant.
    turn: Mutex<()>,
}

impl EmbeddedStore {
    /// Opens the store at `path`.
    ///
    /// # Errors
    /// When there is none, another process uses it, or it is not exactly what this program wrote.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        check_file(path)?;
        let database = builder()
            .open(path)
            .map_err(|error| open_error(path, error))?;
        Self::verified(database, path)
    }

    /// Makes a new, empty store at `path`, which must not exist, and opens it.
    ///
    /// # Errors
    /// When something is at `path` already, or the directory cannot be written.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let io = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => StoreError::Exists { path: path.into() },
            _ => StoreError::Io {
                path: path.into(),
                operation: "created",
                source: source.into(),
            },
        };
        if path.symlink_metadata().is_ok() {
            return Err(StoreError::Exists { path: path.into() });
        }
        let unfinished = unfinished_path(path);
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let database = builder()
            .create(&unfinished)
            .map_err(|error| open_error(path, error))?;
        initialise(&database, path)?;
        drop(database);
        // A link, not a rename: it fails where another process was faster, instead of replacing a
        // store that may hold grants by now.
        let linked = fs::hard_link(&unfinished, path);
        fs::remove_file(&unfinished).map_err(io)?;
        linked.map_err(io)?;
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))
            .and_then(|directory| directory.sync_all())
            .map_err(io)?;
        Self::open(path)
    }

    /// Opens or initialises a store on a backend of the caller's; for fault injection.
    ///
    /// # Errors
    /// As [`EmbeddedStore::open`].
    #[cfg(test)]
    pub(super) fn on_backend(backend: impl redb::StorageBackend) -> Result<Self, StoreError> {
        let path = Path::new("(test backend)");
        let empty = backend
            .len()
            .map_err(|error| open_error(path, error.into()))?
            == 0;
        let database = builder()
            .create_with_backend(backend)
            .map_err(|error| open_error(path, error))?;
        if empty {
            initialise(&database, path)?;
        }
        Self::verified(database, path)
    }

    /// Checks everything in the tables, then seals anew, so that both of the newest commits hold
    /// all grants before the first answer is given.
    fn verified(database: Database, path: &Path) -> Result<Self, StoreError> {
        let store = Self {
            database,
            path: path.into(),
            turn: Mutex::new(()),
        };
        let (format, grants, sealed) = store.check_facts()?;
        let registers = store.list()?;
        if format == FORMAT_WITHOUT_HISTORY {
            store.add_history(&registers)?;
        }
        store.check_history(&registers)?;
        if u64::try_from(registers.len()).is_ok_and(|count| count > grants) {
            return Err(store.damaged("it has more registers than grants"));
        }
        if grants != sealed {
            tracing::warn!(
                grants,
                sealed,
                "the arbiter died within a grant; sealing it now"
            );
        }
        store.seal()?;
        Ok(store)
    }

    /// Format, grants, and grants sealed.
    fn check_facts(&self) -> Result<(u64, u64, u64), StoreError> {
        let read = self
            .database
            .begin_read()
            .map_err(|error| self.read_error(error.into()))?;
        let facts = match read.open_table(FACTS) {
            Ok(facts) => facts,
            Err(TableError::Storage(error)) => return Err(self.read_error(error.into())),
            Err(error) => {
                let found = format!("a redb database, but {error}");
                return Err(StoreError::Foreign {
                    path: self.path.clone(),
                    found,
                });
            }
        };
        let fact = |name: &str| {
            let value = facts
                .get(name)
                .map_err(|error| self.read_error(error.into()))?;
            value
                .map(|value| value.value())
                .ok_or_else(|| self.damaged(&format!("it has no number {name:?}")))
        };
        let format = fact(FACT_FORMAT)?;
        if format != FORMAT && format != FORMAT_WITHOUT_HISTORY {
            return Err(StoreError::Version {
                path: self.path.clone(),
                found: format,
                known: FORMAT,
            });
        }
        let (grants, sealed) = (fact(FACT_GRANTS)?, fact(FACT_SEALED)?);
        if grants != sealed && Some(grants) != sealed.checked_add(1) {
            return Err(self.damaged(&format!("{grants} grants, of which {sealed} are sealed")));
        }
        Ok((format, grants, sealed))
    }

    fn add_history(&self, registers: &[(VmName, Register)]) -> Result<(), StoreError> {
        self.commit(|transaction| {
            for (vm, register) in registers {
                if let Some(claim) = register.last_granted() {
                    remember(transaction, vm, claim)?;
                }
            }
            transaction.open_table(HISTORY)?;
            let mut facts = transaction.open_table(FACTS)?;
            facts.insert(FACT_FORMAT, FORMAT)?;
            Ok(Some(()))
        })?;
        tracing::info!(format = FORMAT, "the store keeps a history from now on");
        Ok(())
    }

    /// The history ends with what the registers hold.
    fn check_history(&self, registers: &[(VmName, Register)]) -> Result<(), StoreError> {
        for (vm, register) in registers {
            if self.history(vm)?.last() != register.last_granted() {
                let found = format!("the history of {vm} does not end with its register");
                return Err(self.damaged(&found));
            }
        }
        Ok(())
    }

    /// Writes and commits durably what `change` does; nothing when it answers none.
    fn commit<T>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<Option<T>, redb::Error>,
    ) -> Result<Option<T>, StoreError> {
        let attempt = || -> Result<Option<T>, redb::Error> {
            let mut transaction = self.database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            let Some(made) = change(&transaction)? else {
                transaction.abort()?;
                return Ok(None);
            };
            transaction.commit()?;
            Ok(Some(made))
        };
        attempt().map_err(|error| self.error("written", error))
    }

    fn seal(&self) -> Result<(), StoreError> {
        self.commit(|transaction| {
            let mut facts = transaction.open_table(FACTS)?;
            let grants = facts.get(FACT_GRANTS)?.map_or(0, |value| value.value());
            facts.insert(FACT_SEALED, grants)?;
            Ok(Some(()))
        })?;
        Ok(())
    }

    /// The register in a row, unless no claim could have put it there.
    fn register(&self, vm: &str, row: (u64, u64, &str)) -> Result<Register, StoreError> {
        let (expected, generation, holder) = row;
        let claim = Holder::new(holder).and_then(|holder| Claim::new(expected, generation, holder));
        claim
            .map(Register::holding)
            .map_err(|error| self.damaged(&format!("the register of {vm:?}: {error}")))
    }

    fn damaged(&self, found: &str) -> StoreError {
        StoreError::Damaged {
            path: self.path.clone(),
            found: found.into(),
        }
    }

    fn read_error(&self, error: redb::Error) -> StoreError {
        self.error("read", error)
    }

    fn error(&self, operation: &'static str, error: redb::Error) -> StoreError {
        match error {
            redb::Error::Corrupted(found) => self.damaged(&found),
            other => StoreError::Io {
                path: self.path.clone(),
                operation,
                source: other.into(),
            },
        }
    }
}

impl Store for EmbeddedStore {
    fn claim(&self, vm: &VmName, claim: &Claim) -> Result<Outcome, StoreError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.read(vm)?;
        let mut register = before.clone();
        let outcome = register.claim(claim);
        if register == before {
            return Ok(outcome);
        }
        let granted = self.commit(|transaction| {
            let mut registers = transaction.open_table(REGISTERS)?;
            if before.generation() == 0 && registers.len()? >= VMS_MAX as u64 {
                return Ok(None);
            }
            let row = (
                claim.expected_generation(),
                claim.new_generation(),
                claim.holder().as_str(),
            );
            registers.insert(vm.as_str(), row)?;
            remember(transaction, vm, claim)?;
            let mut facts = transaction.open_table(FACTS)?;
            let grants = facts.get(FACT_GRANTS)?.map_or(0, |value| value.value());
            facts.insert(FACT_GRANTS, grants + 1)?;
            Ok(Some(()))
        })?;
        if granted.is_none() {
            return Err(StoreError::Full);
        }
        self.seal()?;
        Ok(outcome)
    }

    fn read(&self, vm: &VmName) -> Result<Register, StoreError> {
        let row = || -> Result<_, redb::Error> {
            Ok(self
                .database
                .begin_read()?
                .open_table(REGISTERS)?
                .get(vm.as_str())?)
        };
        match row().map_err(|error| self.read_error(error))? {
            Some(row) => self.register(vm.as_str(), row.value()),
            None => Ok(Register::default()),
        }
    }

    fn list(&self) -> Result<Vec<(VmName, Register)>, StoreError> {
        let table = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(REGISTERS)?;
            let count = table.len()?;
            Ok((table, count))
        };
        let (table, count) = table().map_err(|error| self.read_error(error))?;
        if count > VMS_MAX as u64 {
            return Err(self.damaged(&format!("it has {count} registers")));
        }
        let mut found = Vec::new();
        for row in table
            .iter()
            .map_err(|error| self.read_error(error.into()))?
        {
            let (vm, row) = row.map_err(|error| self.read_error(error.into()))?;
            let register = self.register(vm.value(), row.value())?;
            let vm = VmName::new(vm.value()).map_err(|error| self.damaged(&error.to_string()))?;
            found.push((vm, register));
        }
        Ok(found)
    }

    fn history(&self, vm: &VmName) -> Result<Vec<Claim>, StoreError> {
        let table = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(HISTORY)?;
            Ok(table.range((vm.as_str(), 0)..=(vm.as_str(), u64::MAX))?)
        };
        let mut found = Vec::new();
        for row in table().map_err(|error| self.read_error(error))? {
            let (key, row) = row.map_err(|error| self.read_error(error.into()))?;
            let (expected, holder) = row.value();
            let register = self.register(vm.as_str(), (expected, key.value().1, holder))?;
            found.extend(register.last_granted().cloned());
        }
        Ok(found)
    }
}

/// Adds `claim` to the history of `vm`, and forgets what is too old.
fn remember(transaction: &WriteTransaction, vm: &VmName, claim: &Claim) -> Result<(), redb::Error> {
    let mut history = transaction.open_table(HISTORY)?;
    let (vm, row) = (
        vm.as_str(),
        (claim.expected_generation(), claim.holder().as_str()),
    );
    history.insert((vm, claim.new_generation()), row)?;
    let kept = history.range((vm, 0)..=(vm, u64::MAX))?.count();
    for _ in HISTORY_MAX..kept {
        let oldest = history
            .range((vm, 0)..=(vm, u64::MAX))?
            .next()
            .transpose()?;
        let generation = oldest.map(|(key, _)| key.value().1);
        if let Some(generation) = generation {
            history.remove((vm, generation))?;
        }
    }
    Ok(())
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true);
    builder
}

/// Beside the final name, so that a link can be made; one per process.
fn unfinished_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.unfinished", std::process::id()));
    name.into()
}

/// Writes what a store without grants holds.
fn initialise(database: &Database, path: &Path) -> Result<(), StoreError> {
    let attempt = || -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        {
            let mut facts = transaction.open_table(FACTS)?;
            facts.insert(FACT_FORMAT, FORMAT)?;
            facts.insert(FACT_GRANTS, 0)?;
            facts.insert(FACT_SEALED, 0)?;
            transaction.open_table(REGISTERS)?;
            transaction.open_table(HISTORY)?;
        }
        transaction.commit()?;
        Ok(())
    };
    attempt().map_err(|error| StoreError::Io {
        path: path.into(),
        operation: "created",
        source: error.into(),
    })
}

/// What can be told without the database: redb would turn an empty file into an empty store.
fn check_file(path: &Path) -> Result<(), StoreError> {
    let io = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => StoreError::Missing { path: path.into() },
        _ => StoreError::Io {
            path: path.into(),
            operation: "opened",
            source: source.into(),
        },
    };
    let metadata = fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(StoreError::Foreign {
            path: path.into(),
            found: "not a regular file".into(),
        });
    }
    let mut mark = Vec::new();
    let limit = FILE_MARK.len() as u64;
    File::open(path)
        .map_err(io)?
        .take(limit)
        .read_to_end(&mut mark)
        .map_err(io)?;
    if mark.is_empty() {
        return Err(StoreError::Damaged {
            path: path.into(),
            found: "the file is empty".into(),
        });
    }
    if mark != FILE_MARK {
        let found = "it begins with other bytes".into();
        return Err(StoreError::Foreign {
            path: path.into(),
            found,
        });
    }
    Ok(())
}

fn open_error(path: &Path, error: DatabaseError) -> StoreError {
    let path = path.to_path_buf();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StoreError::InUse { path }
        }
        DatabaseError::UpgradeRequired(version) => StoreError::Damaged {
            path,
            found: format!("database format {version} is not known"),
        },
        DatabaseError::Storage(redb::StorageError::Corrupted(found)) => {
            StoreError::Damaged { path, found }
        }
        DatabaseError::Storage(redb::StorageError::Io(error))
            if error.kind() == io::ErrorKind::UnexpectedEof =>
        {
            StoreError::Damaged {
                path,
                found: "the file is cut short".into(),
            }
        }
        other => StoreError::Io {
            path,
            operation: "opened",
            source: other.into(),
        },
    }
}
