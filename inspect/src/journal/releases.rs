//! When outputs were released, beside a walk over their records: both go forward, so one interval is kept.
//!
//! The journal lists every output of a quiet time, and of a busy one those that waited longest.

#![forbid(unsafe_code)]

use super::RunReader;
use logging_channel::journal::What;
use logging_channel::journal::entry::Release;
use std::collections::VecDeque;
use std::io;
use std::path::Path;

/// An output's release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Released {
    /// Host time since the run began there, microseconds.
    pub at_us: u64,
    /// How long it had waited for its acknowledgement, microseconds.
    pub waited_us: u64,
}

/// Finds releases by ascending index.
#[derive(Debug)]
pub struct Releases {
    run: RunReader,
    began_us: u64,
    listed: VecDeque<Release>,
}

impl Releases {
    /// Those of the journal beside the log in `dir`; `None` where there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(dir: &Path) -> io::Result<Option<Self>> {
        let run = RunReader::open(dir)?;
        Ok(run.map(|run| Self {
            run,
            began_us: 0,
            listed: VecDeque::new(),
        }))
    }

    /// The release of output record `index`, if the journal lists it. Indices asked for must ascend.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn of(&mut self, index: u64) -> io::Result<Option<Released>> {
        loop {
            while let Some(release) = self.listed.front().copied() {
                if release.index > index {
                    return Ok(None);
                }
                self.listed.pop_front();
                if release.index == index {
                    return Ok(Some(Released {
                        at_us: self.began_us.saturating_add(release.after_us),
                        waited_us: release.waited_us,
                    }));
                }
            }
            let Some(entry) = self.run.next_entry()? else {
                return Ok(None);
            };
            if let What::Interval(interval) = entry.what {
                self.began_us = entry.at_us.saturating_sub(interval.us);
                self.listed = interval.releases.into();
                let list = self.listed.make_contiguous();
                list.sort_by_key(|release| release.index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests as journal_sample;

    #[test]
    fn a_release_is_found_by_its_record() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Releases::open(dir.path()).unwrap().is_none());
        journal_sample::write(dir.path(), "an earlier run");
        journal_sample::write(dir.path(), "b.2");
        let mut releases = Releases::open(dir.path()).unwrap().unwrap();
        assert_eq!(releases.of(1).unwrap(), None);
        let found = releases.of(2).unwrap().unwrap();
        assert_eq!((found.at_us, found.waited_us), (1_850_000, 500));
        assert_eq!(releases.of(3).unwrap(), None);
    }
}
