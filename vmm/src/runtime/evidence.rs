//! What a copy that diverged leaves behind: one file beside its log.
//!
//! The log has the record that did not fit and everything before it; the file says which one, where, what
//! the log expects and what this copy had (`docs/formats/divergence.md`). Left out: the copy's memory,
//! which `understudy replay` makes again from the log if the cause was not in the hardware.

#![forbid(unsafe_code)]

use crate::replication::divergence::Divergence;
use serde::Serialize;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Version of the document.
const EVIDENCE_VERSION: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    vm: &'a str,
    holder: &'a str,
    generation: u64,
    summary: String,
    divergence: &'a Divergence,
}

/// Where evidence is kept, and whose.
#[derive(Debug, Clone)]
pub(super) struct EvidencePlace {
    /// The log's directory.
    pub(super) directory: PathBuf,
    /// The virtual machine.
    pub(super) vm: String,
    /// This life's name at the arbiter.
    pub(super) holder: String,
}

impl EvidencePlace {
    /// Writes the evidence and syncs it; where it is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn keep(&self, generation: u64, divergence: &Divergence) -> io::Result<PathBuf> {
        let path = file_name(&self.directory, divergence.index.0);
        let document = Document {
            version: EVIDENCE_VERSION,
            vm: &self.vm,
            holder: &self.holder,
            generation,
            summary: divergence.to_string(),
            divergence,
        };
        let mut text = serde_json::to_vec_pretty(&document)?;
        text.push(b'\n');
        let mut file = File::create(&path)?;
        file.write_all(&text)?;
        file.sync_all()?;
        Ok(path)
    }
}

fn file_name(directory: &Path, index: u64) -> PathBuf {
    directory.join(format!("divergence-{index:020}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::divergence::Difference;
    use logging_channel::execution_point::ExecutionPoint;
    use logging_channel::record::LogIndex;

    #[test]
    fn evidence_says_what_differed_and_where() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = EvidencePlace {
            directory: directory.path().to_owned(),
            vm: "web".into(),
            holder: "host-b.7".into(),
        };
        let divergence = Divergence {
            index: LogIndex(812),
            expected_point: ExecutionPoint::at_exit(40, 1),
            found_point: ExecutionPoint::at_exit(40, 2),
            difference: Difference::Registers {
                expected: 1,
                found: 2,
            },
        };
        let path = place.keep(3, &divergence).expect("room");
        let text = std::fs::read_to_string(path).expect("a file");
        let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(document["generation"], 3);
        assert_eq!(document["divergence"]["index"], 812);
        assert_eq!(document["divergence"]["expected_point"]["exits"], 40);
        assert_eq!(
            document["divergence"]["difference"]["Registers"]["found"],
            2
        );
        assert_eq!(document["summary"], divergence.to_string());
    }
}
