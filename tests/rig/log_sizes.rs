//! How many bytes of the log each kind of record takes.

use anyhow::Result;
use logging_channel::record::RecordBody;
use logging_channel::segment::LogReader;
use std::collections::BTreeMap;
use std::path::Path;

/// Records of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KindSize {
    /// How many.
    pub records: u64,
    /// Their encoded bytes, without the frames around them.
    pub bytes: u64,
    /// Of these, bytes that came from outside or go there: packets, console input, entropy.
    pub payload_bytes: u64,
}

impl KindSize {
    /// Encoded bytes per record beside its payload.
    #[must_use]
    pub fn overhead(&self) -> f64 {
        // Counts of one run are far below 2^52.
        (self.bytes - self.payload_bytes) as f64 / (self.records.max(1)) as f64
    }
}

/// Sizes by kind of record, and all bytes with frames.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogSizes {
    /// By kind.
    pub kinds: BTreeMap<&'static str, KindSize>,
    /// Bytes of all frames.
    pub frame_bytes: u64,
}

/// Reads the whole log in `dir`; what cannot be read at its end is left out.
///
/// # Errors
/// When nothing can be read.
pub fn read(dir: &Path) -> Result<LogSizes> {
    let mut reader = LogReader::open(dir);
    let mut sizes = LogSizes::default();
    loop {
        let frame = match reader.next_frame() {
            Ok(Some(frame)) => frame,
            Err(error) if sizes.frame_bytes == 0 => return Err(error.into()),
            Ok(None) | Err(_) => return Ok(sizes),
        };
        sizes.frame_bytes += frame.length as u64;
        for placed in &frame.records {
            let (kind, payload) = kind_of(&placed.record.body);
            let size = sizes.kinds.entry(kind).or_default();
            size.records += 1;
            size.bytes += placed.length as u64;
            size.payload_bytes += payload as u64;
        }
    }
}

const fn kind_of(body: &RecordBody) -> (&'static str, usize) {
    match body {
        RecordBody::Start(_) => ("start", 0),
        RecordBody::Timer => ("timer", 0),
        RecordBody::Console(bytes) => ("console", bytes.len()),
        RecordBody::Packet { bytes, .. } => ("packet", bytes.len()),
        RecordBody::Entropy(bytes) => ("entropy", bytes.len()),
        RecordBody::Output(_) => ("output", 0),
        RecordBody::Mark(_) => ("mark", 0),
        RecordBody::Control(_) => ("control", 0),
        RecordBody::End(_) => ("end", 0),
        _ => ("other", 0),
    }
}
