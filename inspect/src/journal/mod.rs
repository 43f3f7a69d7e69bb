//! The journal beside a log: delays, roles and silences in host time, on one side.
//!
//! A log can be without one (an older program, a copy of the segments alone); then these facts are unknown, and
//! every report says so. Only the last run in a directory belongs to the log there.

#![forbid(unsafe_code)]

pub mod clock;
pub mod releases;
mod report;
mod text;
pub mod when;

pub(crate) use report::words;
pub use report::{Delays, JournalReport, RoleSpan};

use logging_channel::journal::{Entry, JournalReader, Read, What};
use std::io;
use std::path::Path;

/// Bytes of a journal that could not be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct LeftOut {
    /// All of them.
    bytes: u64,
    /// Those that are not the unsynced end.
    damaged_bytes: u64,
}

/// Gives `each` every entry of the journal beside the log in `dir`, in order.
///
/// # Errors
/// When a file cannot be read, or as `each` says.
fn walk(dir: &Path, mut each: impl FnMut(&Entry) -> io::Result<()>) -> io::Result<LeftOut> {
    let mut reader = JournalReader::open(dir)?;
    let mut left_out = LeftOut::default();
    while let Some(read) = reader.next_read()? {
        match read {
            Read::Entry(entry) => each(&entry)?,
            Read::LeftOut { bytes, last, .. } => {
                left_out.bytes += bytes;
                left_out.damaged_bytes += if last { 0 } else { bytes };
            }
        }
    }
    Ok(left_out)
}

/// The report on the journal beside the log in `dir`; `None` where there is none.
///
/// # Errors
/// When a file cannot be read.
pub fn gather(dir: &Path) -> io::Result<Option<JournalReport>> {
    let mut report: Option<JournalReport> = None;
    let left_out = walk(dir, |entry| {
        if let What::Begun(begun) = &entry.what
            && report.as_ref().is_none_or(|report| !report.is_of(begun))
        {
            report = Some(JournalReport::new(begun));
        }
        if let Some(report) = &mut report {
            report.add(entry);
        }
        Ok(())
    })?;
    if let Some(report) = &mut report {
        report.left_out_bytes = left_out.bytes;
        report.damaged_bytes = left_out.damaged_bytes;
        report.conclude();
    }
    Ok(report)
}

/// The entries of the run that a log belongs to, which is the last one in its directory.
#[derive(Debug)]
pub struct RunReader {
    report: JournalReport,
    reader: JournalReader,
    ours: bool,
}

impl RunReader {
    /// Those of the journal beside the log in `dir`; `None` where there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(dir: &Path) -> io::Result<Option<Self>> {
        let Some(report) = gather(dir)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            report,
            reader: JournalReader::open(dir)?,
            ours: false,
        }))
    }

    /// What the journal says of the whole run.
    #[must_use]
    pub const fn report(&self) -> &JournalReport {
        &self.report
    }

    /// The next entry; `None` behind the last.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        while let Some(read) = self.reader.next_read()? {
            let Read::Entry(entry) = read else {
                continue;
            };
            if let What::Begun(begun) = &entry.what {
                self.ours = self.report.is_of(begun);
            }
            if self.ours {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
pub(crate) mod tests;
