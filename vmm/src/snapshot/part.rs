//! Pieces of a guest's state: runs of pages, runs of empty pages, and the rest.
//!
//! A part stands alone: it can be applied without the one before it, and applying it twice does no
//! harm. Later parts override earlier ones, so that a page that was written after it was sent is
//! simply sent again.

#![forbid(unsafe_code)]

use super::state::GuestState;
use crate::machine::page_set::{PAGE_BYTES, PageSet};
use crate::machine::ram::GuestRam;
use std::ops::Deref;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// First byte of a part with the contents of pages.
const PAGES: u8 = 1;
/// First byte of a part that says which pages are empty.
const ZEROES: u8 = 2;
/// First byte of the part with everything but memory.
const STATE: u8 = 3;

const EMPTY: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

/// Kind, first page, number of pages.
const RUN_HEADER_BYTES: usize = 1 + 8 + 4;

/// What a part has beside its pages at the most: the header, and what compression may add (lz4: one
/// byte in 255, and 16) to the pages of a [`STATE_BYTES_MAX`](logging_channel::record::limits::STATE_BYTES_MAX).
pub const PART_HEADROOM_BYTES: usize = 1 << 10;

/// Most pages in one part: 256 KiB, which compression cannot make longer than a part may be.
pub const PAGES_PER_PART_MAX: u32 = 64;

/// A part cannot be made, or is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// No part begins like that.
    #[error("a part of unknown kind {0}")]
    Kind(u8),
    /// It ends too soon.
    #[error("a part of {0} bytes is too short")]
    Short(usize),
    /// The pages are not in guest memory, or too many.
    #[error("{count} pages from page {first} are not in a memory of {memory} pages")]
    Range {
        /// First page.
        first: u64,
        /// How many.
        count: u64,
        /// Pages of guest memory.
        memory: u64,
    },
    /// The compressed pages are damaged.
    #[error("pages from page {first}: {cause}")]
    Compressed {
        /// First page.
        first: u64,
        /// What the decompressor says.
        cause: String,
    },
    /// Everything but memory is damaged.
    #[error("the state beside memory: {0}")]
    State(String),
    /// It is of another version of this program.
    #[error("the state has version {found}, this program knows {known}")]
    Version {
        /// In the bytes.
        found: u16,
        /// Ours.
        known: u16,
    },
}

/// Pages of `memory`.
fn page_count(memory: &GuestRam) -> u64 {
    let bytes: u64 = memory.iter().map(|region| region.len()).sum();
    bytes / PAGE_BYTES
}

/// Makes the parts of `pages` as `memory` holds them now, one after the other, until `take` refuses;
/// at most `each` pages with contents in one, and no more than [`PAGES_PER_PART_MAX`].
///
/// A page that is written meanwhile may be copied in the middle of the write: it has to be in a later
/// set, which dirty tracking sees to.
pub fn parts_of(
    memory: &GuestRam,
    pages: &PageSet,
    each: u32,
    mut take: impl FnMut(Vec<u8>) -> bool,
) -> Result<(), PartError> {
    let mut run = Run {
        most: each.min(PAGES_PER_PART_MAX),
        ..Run::default()
    };
    let mut page = [0; PAGE_BYTES as usize];
    for number in pages.iter() {
        memory
            .read_slice(&mut page, GuestAddress(number * PAGE_BYTES))
            .map_err(|_| PartError::Range {
                first: number,
                count: 1,
                memory: page_count(memory),
            })?;
        // Compared as a whole: most of a guest's pages are empty, and byte by byte takes longer than all the rest.
        let zero = page == EMPTY;
        if !run.continues(number, zero)
            && let Some(part) = run.finish()
            && !take(part)
        {
            return Ok(());
        }
        run.push(number, zero, &page);
    }
    if let Some(part) = run.finish() {
        take(part);
    }
    Ok(())
}

/// Consecutive pages of one kind.
#[derive(Default)]
struct Run {
    /// Most pages with contents.
    most: u32,
    first: u64,
    count: u32,
    zero: bool,
    bytes: Vec<u8>,
}

impl Run {
    fn continues(&self, number: u64, zero: bool) -> bool {
        let full = !self.zero && self.count >= self.most;
        self.count > 0
            && zero == self.zero
            && number == self.first + u64::from(self.count)
            && !full
            && self.count < u32::MAX
    }

    fn push(&mut self, number: u64, zero: bool, page: &[u8]) {
        if self.count == 0 {
            (self.first, self.zero) = (number, zero);
        }
        self.count += 1;
        if !zero {
            self.bytes.extend_from_slice(page);
        }
    }

    fn finish(&mut self) -> Option<Vec<u8>> {
        if self.count == 0 {
            return None;
        }
        let mut part = Vec::with_capacity(RUN_HEADER_BYTES);
        part.push(if self.zero { ZEROES } else { PAGES });
        part.extend_from_slice(&self.first.to_le_bytes());
        part.extend_from_slice(&self.count.to_le_bytes());
        if !self.zero {
            part.extend(lz4_flex::block::compress(&self.bytes));
        }
        self.bytes.clear();
        self.count = 0;
        Some(part)
    }
}

/// How many pages a part is about; 0 when it is about none.
#[must_use]
pub fn pages_in(part: &[u8]) -> u64 {
    match part {
        [PAGES | ZEROES, rest @ ..] => rest
            .get(8..12)
            .and_then(|count| count.try_into().ok())
            .map_or(0, |count| u64::from(u32::from_le_bytes(count))),
        _ => 0,
    }
}

/// The part with everything but memory.
///
/// # Errors
/// See [`GuestState::encode`].
pub fn part_of_state(state: &GuestState) -> Result<Vec<u8>, PartError> {
    let mut part = vec![STATE];
    part.extend(state.encode()?);
    Ok(part)
}

/// Puts a part where it belongs: pages into `memory`; everything else is returned.
///
/// # Errors
/// When the bytes are no part of a state of such a memory.
pub fn apply(memory: &GuestRam, part: &[u8]) -> Result<Option<Box<GuestState>>, PartError> {
    apply_unless(memory, part, |_| false)
}

/// As [`apply`], to memory that was made for this and that no guest has run in: an empty page that nobody has
/// written is left alone, so that the host gives it no memory before the guest does.
///
/// # Errors
/// As [`apply`].
pub fn fill(memory: &GuestRam, part: &[u8]) -> Result<Option<Box<GuestState>>, PartError> {
    apply_unless(memory, part, |page| {
        let at = usize::try_from(page * PAGE_BYTES).unwrap_or(usize::MAX);
        // One region that begins at 0.
        let mut regions = memory.iter();
        !regions.any(|region| Deref::deref(region).bitmap().dirty_at(at))
    })
}

fn apply_unless(
    memory: &GuestRam,
    part: &[u8],
    is_empty: impl Fn(u64) -> bool,
) -> Result<Option<Box<GuestState>>, PartError> {
    match part.first() {
        None => Err(PartError::Short(0)),
        Some(&STATE) => Ok(Some(Box::new(GuestState::decode(&part[1..])?))),
        Some(&(PAGES | ZEROES)) => apply_pages(memory, part, is_empty).map(|()| None),
        Some(&kind) => Err(PartError::Kind(kind)),
    }
}

fn apply_pages(
    memory: &GuestRam,
    part: &[u8],
    is_empty: impl Fn(u64) -> bool,
) -> Result<(), PartError> {
    let short = || PartError::Short(part.len());
    let (head, rest) = part.split_at_checked(RUN_HEADER_BYTES).ok_or_else(short)?;
    let first = u64::from_le_bytes(head[1..9].try_into().map_err(|_| short())?);
    let count = u32::from_le_bytes(head[9..13].try_into().map_err(|_| short())?);
    let (count, pages) = (u64::from(count), page_count(memory));
    let zero = head[0] == ZEROES;
    let fits = first.checked_add(count).is_some_and(|end| end <= pages);
    if !fits || (!zero && count > u64::from(PAGES_PER_PART_MAX)) {
        return Err(PartError::Range {
            first,
            count,
            memory: pages,
        });
    }
    let damaged = |cause: String| PartError::Compressed { first, cause };
    if zero {
        if !rest.is_empty() {
            return Err(damaged("empty pages with contents".to_owned()));
        }
        let mut full = (first..first + count).filter(|page| !is_empty(*page));
        return full.try_for_each(|page| write(memory, page, &EMPTY));
    }
    // At most 64 pages, as checked above.
    let length = usize::try_from(count * PAGE_BYTES).unwrap_or(0);
    let bytes = lz4_flex::block::decompress(rest, length).map_err(|e| damaged(e.to_string()))?;
    if bytes.len() != length {
        return Err(damaged(format!("{} bytes, not {length}", bytes.len())));
    }
    write(memory, first, &bytes)
}

fn write(memory: &GuestRam, page: u64, bytes: &[u8]) -> Result<(), PartError> {
    memory
        .write_slice(bytes, GuestAddress(page * PAGE_BYTES))
        .map_err(|_| PartError::Range {
            first: page,
            count: bytes.len() as u64 / PAGE_BYTES,
            memory: page_count(memory),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGES_OF_MEMORY: u64 = 200;

    fn memory() -> GuestRam {
        let bytes = usize::try_from(PAGES_OF_MEMORY * PAGE_BYTES).expect("small");
        GuestRam::from_ranges(&[(GuestAddress(0), bytes)]).expect("small memory")
    }

    fn contents(memory: &GuestRam) -> Vec<u8> {
        let length = usize::try_from(PAGES_OF_MEMORY * PAGE_BYTES).expect("small");
        let mut bytes = vec![0; length];
        memory
            .read_slice(&mut bytes, GuestAddress(0))
            .expect("all of it");
        bytes
    }

    fn all_parts(memory: &GuestRam, pages: &PageSet) -> Vec<Vec<u8>> {
        let mut parts = Vec::new();
        parts_of(memory, pages, PAGES_PER_PART_MAX, |part| {
            parts.push(part);
            true
        })
        .expect("pages of this memory");
        parts
    }

    /// Of a page that was sent twice the second counts, be it empty or not.
    #[test]
    fn what_is_empty_already_is_left_alone_and_what_became_empty_is_cleared() {
        let (from, to) = (memory(), memory());
        let written = |memory: &GuestRam| {
            let region = memory.iter().next().expect("one region");
            let bitmap = Deref::deref(region).bitmap();
            (0..200)
                .filter(|page| bitmap.dirty_at(page * 4_096))
                .count()
        };
        let all = PageSet::all(PAGES_OF_MEMORY * PAGE_BYTES);
        let send = || {
            for part in all_parts(&from, &all) {
                assert_eq!(fill(&to, &part), Ok(None));
            }
        };
        let page = GuestAddress(7 * PAGE_BYTES);
        from.write_slice(&[5; 4_096], page).expect("in memory");
        send();
        assert_eq!((written(&to), contents(&to)), (1, contents(&from)));
        from.write_slice(&EMPTY, page).expect("in memory");
        send();
        assert_eq!((written(&to), contents(&to)), (1, contents(&from)));
    }

    #[test]
    fn pages_outside_memory_are_refused_before_anything_is_allocated() {
        let memory = memory();
        for (kind, first, count) in [
            (ZEROES, 0, 201_u32),
            (ZEROES, u64::MAX, 2),
            (PAGES, 199, 2),
            (PAGES, 0, u32::MAX),
        ] {
            let mut part = vec![kind];
            part.extend_from_slice(&u64::to_le_bytes(first));
            part.extend_from_slice(&u32::to_le_bytes(count));
            let refused = apply(&memory, &part);
            assert!(
                matches!(refused, Err(PartError::Range { .. })),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn an_empty_page_overrides_what_was_there() {
        let (from, to) = (memory(), memory());
        to.write_slice(&[7; 4096], GuestAddress(4096))
            .expect("page 1");
        for part in all_parts(&from, &PageSet::all(PAGES_OF_MEMORY * PAGE_BYTES)) {
            assert_eq!(apply(&to, &part), Ok(None));
        }
        assert!(contents(&to).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn whoever_takes_parts_may_stop() {
        let from = memory();
        for page in (0..PAGES_OF_MEMORY).step_by(2) {
            from.write_slice(&[1; 8], GuestAddress(page * PAGE_BYTES))
                .expect("in memory");
        }
        let mut taken = 0;
        let all = PageSet::all(PAGES_OF_MEMORY * PAGE_BYTES);
        parts_of(&from, &all, PAGES_PER_PART_MAX, |_| {
            taken += 1;
            taken < 3
        })
        .expect("pages of this memory");
        assert_eq!(taken, 3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn parts_make_an_equal_memory(
            writes in proptest::collection::vec((0..PAGES_OF_MEMORY, any::<u8>(), 1..20_000_usize), 0..12),
        ) {
            let (from, to) = (memory(), memory());
            for (page, byte, length) in writes {
                let room = usize::try_from((PAGES_OF_MEMORY - page) * PAGE_BYTES).expect("small");
                let bytes: Vec<u8> = (0..length.min(room)).map(|n| byte ^ (n % 251) as u8).collect();
                from.write_slice(&bytes, GuestAddress(page * PAGE_BYTES)).expect("in memory");
            }
            let (filled, mut pages) = (memory(), 0);
            for part in all_parts(&from, &PageSet::all(PAGES_OF_MEMORY * PAGE_BYTES)) {
                prop_assert!(part.len() <= logging_channel::message::PART_BYTES_MAX);
                prop_assert_eq!(apply(&to, &part), Ok(None));
                prop_assert_eq!(fill(&filled, &part), Ok(None));
                pages += pages_in(&part);
            }
            prop_assert_eq!(pages, PAGES_OF_MEMORY);
            prop_assert!(contents(&from) == contents(&to));
            prop_assert!(contents(&from) == contents(&filled));
        }

        #[test]
        fn any_bytes_have_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0..5_u8) {
            let mut part = vec![kind];
            part.extend(bytes);
            // Whatever comes of it: an answer, and no write outside memory.
            let _ = (apply(&memory(), &part), pages_in(&part));
        }
    }
}
