//! Reads what is left of a segment in blocks, so that several threads can check and decode it.
//!
//! ```text
//! Salvager::stretch ──▶ Stretch::read ──▶ Block::frames   (on any thread)
//!         ▲                                   │
//!         └────────── Salvager::resume ◀──────┘ how far all was sound
//! ```
//!
//! Reading looks at the headers of frames only, which is little work, and one block follows the other.
//! Checks and decoding are done in the block. Nothing is judged here: a stretch ends before whatever is not
//! sound, and the salvager, which goes on there, says what it is. That a block's first record follows the
//! one before it is for the caller to see to, with [`Sequence::admit`].

#![forbid(unsafe_code)]

use super::scan::Scanner;
use super::spare::{Spare, read_batch};
use super::sync_point::{self, SYNC_POINT_BYTES};
use crate::codec::{Placed, Sequence};
use crate::frame::{self, FrameError, FrameKind};
use crate::record::LogIndex;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// The rest of a segment, as long as it was when this was made.
#[derive(Debug)]
pub struct Stretch {
    file: File,
    path: Arc<Path>,
    first: LogIndex,
    offset: u64,
    end: u64,
}

/// Frames as they lie in a segment, and sync points between them; not checked yet.
#[derive(Debug)]
pub struct Block {
    offset: u64,
    first: LogIndex,
    /// The block, and room behind it.
    buffer: Vec<u8>,
    length: usize,
    spare: Spare,
}

/// A sound frame of a block.
#[derive(Debug, Clone, Copy)]
pub struct BlockFrame<'a> {
    /// Its records, packets without their bytes: [`Placed::packet`] finds them in the payload.
    pub records: &'a [Placed],
    /// Its payload.
    pub payload: &'a [u8],
}

/// How far a block was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockEnd {
    /// Offset in the file behind the last frame that was sound.
    pub offset: u64,
    /// Where its last record stands; `None` when there was no such frame.
    pub sequence: Option<Sequence>,
    /// Whether that is all of the block.
    pub whole: bool,
}

impl Stretch {
    pub(super) fn of(scanner: &Scanner, path: &Arc<Path>, rest_bytes: u64) -> io::Result<Self> {
        Ok(Self {
            file: scanner.file()?,
            path: Arc::clone(path),
            first: scanner.first(),
            offset: scanner.offset(),
            end: scanner.offset() + rest_bytes,
        })
    }

    /// The segment.
    #[must_use]
    pub const fn path(&self) -> &Arc<Path> {
        &self.path
    }

    /// Offset of the next block.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads the next frames into `block`: about `bytes` bytes, and at least one frame. `false` when none can
    /// be read; the block is then of no use.
    pub fn read(&mut self, block: &mut Block, bytes: usize) -> bool {
        let mut wanted = bytes;
        loop {
            let rest = self.end - self.offset;
            let most = usize::try_from(rest).unwrap_or(usize::MAX).min(wanted);
            if block.buffer.len() < most {
                block.buffer.resize(most, 0);
            }
            let there = fill(&self.file, &mut block.buffer[..most], self.offset);
            match whole_frames(&block.buffer[..there], self.first, self.offset) {
                Whole::Frames(length) => {
                    (block.first, block.offset, block.length) = (self.first, self.offset, length);
                    self.offset += length as u64;
                    return true;
                }
                Whole::Need(need) if there == wanted => wanted = need,
                Whole::Need(_) | Whole::Nothing => return false,
            }
        }
    }
}

/// Reads as much as there is; what cannot be read is for the salvager to say.
fn fill(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], offset + have as u64) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
            Ok(read) => have += read,
        }
    }
    have
}

/// What bytes begin with, as the headers in them say.
enum Whole {
    /// Frames and sync points of so many bytes.
    Frames(usize),
    /// A frame that needs so many bytes.
    Need(usize),
    /// No frame.
    Nothing,
}

fn whole_frames(bytes: &[u8], first: LogIndex, offset: u64) -> Whole {
    let (mut at, mut frames) = (0, 0_u64);
    let reached = |at, frames, other| match frames {
        0 => other,
        _ => Whole::Frames(at),
    };
    loop {
        let rest = &bytes[at..];
        match sync_point::read(rest, first, offset + at as u64) {
            sync_point::Read::Sound => {
                at += SYNC_POINT_BYTES;
                continue;
            }
            sync_point::Read::Incomplete { need } => {
                return reached(at, frames, Whole::Need(at + need));
            }
            sync_point::Read::Other | sync_point::Read::Damaged => {}
        }
        let length = match frame::parse_header(rest) {
            Ok((FrameKind::Log, length)) => length,
            Err(FrameError::Incomplete { need }) => {
                return reached(at, frames, Whole::Need(at + need));
            }
            Ok(_) | Err(_) => return reached(at, frames, Whole::Nothing),
        };
        if length > rest.len() {
            return reached(at, frames, Whole::Need(at + length));
        }
        (at, frames) = (at + length, frames + 1);
    }
}

impl Default for Block {
    fn default() -> Self {
        Self {
            offset: 0,
            first: LogIndex(0),
            buffer: Vec::new(),
            length: 0,
            spare: Spare::without_packets(),
        }
    }
}

impl Block {
    /// Gives `each` the frames of the block in order, up to the first that is not sound or until it says
    /// that it has seen enough.
    pub fn frames<B>(
        &mut self,
        mut each: impl FnMut(BlockFrame<'_>) -> ControlFlow<B>,
    ) -> ControlFlow<B, BlockEnd> {
        let bytes = &self.buffer[..self.length];
        let mut sequence = Sequence::default();
        let mut end = BlockEnd {
            offset: self.offset,
            sequence: None,
            whole: false,
        };
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let offset = self.offset + at as u64;
            if sync_point::read(rest, self.first, offset) == sync_point::Read::Sound {
                at += SYNC_POINT_BYTES;
                continue;
            }
            let Ok(frame) = frame::parse(rest) else {
                return ControlFlow::Continue(end);
            };
            let Ok(records) = read_batch(frame.payload, &mut sequence, &mut self.spare) else {
                return ControlFlow::Continue(end);
            };
            each(BlockFrame {
                records: &records,
                payload: frame.payload,
            })?;
            self.spare.keep(records);
            at += frame.length();
            (end.offset, end.sequence) = (self.offset + at as u64, Some(sequence));
        }
        end.whole = true;
        ControlFlow::Continue(end)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{segments, written};
    use super::super::{Salvaged, Salvager};
    use super::*;

    /// Records in frames of blocks of so many bytes, behind the first frame; how far they were sound.
    fn read(salvager: &mut Salvager, bytes: usize) -> (Vec<u64>, Option<BlockEnd>) {
        let mut stretch = salvager
            .stretch(1)
            .expect("looked at")
            .expect("more is there");
        let (mut block, mut indices, mut last) = (Block::default(), Vec::new(), None);
        while stretch.read(&mut block, bytes) {
            let end = block.frames(|frame| {
                let records = frame.records.iter();
                indices.extend(records.map(|placed| placed.record.index.0));
                ControlFlow::<()>::Continue(())
            });
            last = end.continue_value();
        }
        (indices, last)
    }

    #[test]
    fn blocks_of_any_size_hold_what_the_salvager_finds() {
        let directory = written(20, 1 << 20);
        for bytes in [1, 64, 300, 1 << 20] {
            let mut salvager = Salvager::open(directory.path()).expect("listed");
            assert!(
                salvager.stretch(1).expect("looked at").is_none(),
                "not begun"
            );
            assert!(matches!(salvager.next(), Ok(Some(Salvaged::Frame(_)))));
            assert!(salvager.stretch(1 << 20).expect("looked at").is_none());
            let (indices, end) = read(&mut salvager, bytes);
            assert_eq!(indices, (10..200).collect::<Vec<_>>());
            let end = end.expect("a block");
            assert!(end.whole);
            salvager.resume(end.offset, end.sequence.expect("records"));
            assert_eq!(salvager.next().expect("read"), None);
        }
    }

    #[test]
    fn a_block_ends_before_what_is_not_sound() {
        let directory = written(20, 1 << 20);
        let path = segments(directory.path()).remove(0);
        let mut bytes = std::fs::read(&path).expect("read");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).expect("written");
        let mut salvager = Salvager::open(directory.path()).expect("listed");
        assert!(matches!(salvager.next(), Ok(Some(Salvaged::Frame(_)))));
        let (indices, end) = read(&mut salvager, 1 << 20);
        assert_eq!(indices, (10..190).collect::<Vec<_>>());
        let end = end.expect("a block");
        assert!(!end.whole);
        salvager.resume(end.offset, end.sequence.expect("records"));
        let Ok(Some(Salvaged::LeftOut(left_out))) = salvager.next() else {
            panic!("the salvager says what is wrong");
        };
        assert_eq!(left_out.offset, end.offset);
    }
}
