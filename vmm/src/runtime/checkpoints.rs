//! States of a replay on the way, to go back to: whoever debugs backwards need not begin at power-on.
//!
//! A state can be kept where the log has the guest settled, and goes into a file that is gone with this
//! process. There are never more than [`KEPT_MAX`]: then every second one is let go, and those to come are
//! twice as far apart. Left out: how a state is written and read (`snapshot_file`).

#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;
use tempfile::TempDir;

/// States that are kept at once.
const KEPT_MAX: usize = 8;
/// Exits between two of them, as long as they are few.
const FIRST_SPACING: u64 = 500;

/// A state in a file.
#[derive(Debug)]
struct Kept {
    /// Exits before it; some of the records at this exit are part of it, maybe not all.
    exits: u64,
    file: PathBuf,
}

/// The states that are kept.
#[derive(Debug)]
pub(super) struct Checkpoints {
    directory: TempDir,
    /// By their exits, ascending.
    kept: Vec<Kept>,
    spacing: u64,
}

impl Checkpoints {
    /// None yet.
    ///
    /// # Errors
    /// When no directory can be made for them.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            directory: TempDir::with_prefix("understudy-replay-")?,
            kept: Vec::new(),
            spacing: FIRST_SPACING,
        })
    }

    /// Where to write the state at this exit; `None` when there is one near it.
    pub(super) fn wanted(&self, exits: u64) -> Option<PathBuf> {
        let far = |kept: &Kept| kept.exits.abs_diff(exits) >= self.spacing;
        let wanted = exits >= self.spacing && self.kept.iter().all(far);
        wanted.then(|| self.directory.path().join(format!("{exits}.snapshot")))
    }

    /// The state at this exit was written to `file`.
    pub(super) fn add(&mut self, exits: u64, file: PathBuf) {
        let at = self.kept.partition_point(|kept| kept.exits < exits);
        self.kept.insert(at, Kept { exits, file });
        if self.kept.len() <= KEPT_MAX {
            return;
        }
        self.spacing = self.spacing.saturating_mul(2);
        let mut number = 0;
        self.kept.retain(|kept| {
            number += 1;
            let stays = number % 2 == 0;
            if !stays {
                // What stays behind is gone with the directory.
                let _ = std::fs::remove_file(&kept.file);
            }
            stays
        });
    }

    /// The last state from which the guest can be brought to this exit with nothing done there.
    pub(super) fn before(&self, exits: u64) -> Option<&PathBuf> {
        self.last_before(exits).map(|kept| &kept.file)
    }

    /// The last exit up to `exits` that a state is right before; 0 without one.
    pub(super) fn start_before(&self, exits: u64) -> u64 {
        self.last_before(exits).map_or(0, |kept| kept.exits + 1)
    }

    fn last_before(&self, exits: u64) -> Option<&Kept> {
        self.kept.iter().rfind(|kept| kept.exits < exits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn they_are_few_far_apart_and_before_what_is_asked(
            places in prop::collection::vec(0_u64..100_000, 0..200), asked in 0_u64..100_000
        ) {
            let mut checkpoints = Checkpoints::new().unwrap();
            for exits in places {
                if let Some(file) = checkpoints.wanted(exits) {
                    std::fs::write(&file, exits.to_string()).unwrap();
                    checkpoints.add(exits, file);
                }
            }
            let exits: Vec<u64> = checkpoints.kept.iter().map(|kept| kept.exits).collect();
            prop_assert!(exits.len() <= KEPT_MAX);
            prop_assert!(exits.windows(2).all(|pair| pair[1] - pair[0] >= FIRST_SPACING));
            let expected = exits.iter().copied().filter(|kept| *kept < asked).max();
            let found = checkpoints.before(asked).map(|file| std::fs::read_to_string(file).unwrap());
            prop_assert_eq!(found, expected.map(|exits| exits.to_string()));
            prop_assert_eq!(checkpoints.start_before(asked), expected.map_or(0, |exits| exits + 1));
            let files = std::fs::read_dir(checkpoints.directory.path()).unwrap().count();
            prop_assert_eq!(files, exits.len(), "files of states that were let go");
        }
    }
}
