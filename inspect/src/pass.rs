//! One pass over a log on all processors: what is made of it is made in parts, and taken in the log's order.
//!
//! ```text
//!  Salvager ── header, damage, ends of segments ──▶ part ─────────────┐
//!     │ stretch              ┌▶ check, decode, add ─▶ part ─┐         ▼
//!     └─▶ read blocks, one ──┤                              ├─▶ in order ─▶ take
//!         after the other    └▶ check, decode, add ─▶ part ─┘
//! ```
//!
//! Threads only ever see frames that are sound; at the first that is not, or that does not follow the one
//! before, they are stopped, and the salvager goes on there by itself until the log has been sound for a
//! while. So damage is the same, byte for byte, as without threads.
//!
//! Memory is bounded by the blocks that are worked on and the parts that wait, not by the log.

#![forbid(unsafe_code)]

use crate::facts::Facts;
use crate::source::{Damage, Step, WalkError};
use logging_channel::codec::Placed;
use logging_channel::record::Record;
use logging_channel::segment::{Block, BlockFrame, LeftOut, Salvaged, Salvager, Stretch};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// What is made of a log.
pub trait Pass: Sync {
    /// What is made of some of its records; the default is made of none.
    type Part: Default + Send;

    /// Adds what was seen to `part`. Called from several threads, each with a part of its own.
    fn add(&self, part: &mut Self::Part, seen: Seen<'_>) -> Step;

    /// About how many bytes of memory `part` holds.
    fn weight(&self, part: &Self::Part) -> usize;
}

/// What is seen of a log, in its order.
#[derive(Debug)]
pub enum Seen<'a> {
    /// A frame of this segment begins.
    Frame(&'a Arc<Path>),
    /// A record of that frame.
    Record(&'a Facts<'a>, &'a Placed),
    /// Bytes that could not be read.
    LeftOut(&'a LeftOut),
}

/// How the work is divided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grain {
    /// Bytes read at a time: small enough to be checked and decoded from the processor's cache, large enough that
    /// handing blocks from thread to thread does not count.
    pub(crate) block_bytes: usize,
    /// A part of this weight is handed on; the last frame or record may go beyond.
    pub(crate) part_bytes: usize,
    /// Shorter rests of segments are not worth threads.
    pub(crate) stretch_bytes_min: u64,
    /// So much must be sound behind damage.
    pub(crate) calm_bytes: u64,
}

impl Grain {
    pub(crate) const USUAL: Self = Self {
        block_bytes: 1 << 20,
        part_bytes: 256 << 10,
        stretch_bytes_min: 2 << 20,
        calm_bytes: 1 << 20,
    };
}

/// More threads would wait for the reading.
const THREADS_MAX: usize = 4;
/// Blocks whose parts wait to be taken.
const BLOCKS_AHEAD: usize = 4;
/// Parts of a block that wait to be taken.
const PARTS_AHEAD: usize = 1;

/// Makes `pass` over what `salvager` reads of the log in `dir`, and gives `take` each part in order; what it
/// leaves of it is made a part again, so it must leave it empty.
pub(crate) fn make<P: Pass>(
    salvager: Salvager,
    grain: Grain,
    pass: &P,
    mut take: impl FnMut(&mut P::Part) -> io::Result<()>,
) -> Result<Option<Damage>, WalkError> {
    let mut making = Making {
        salvager,
        grain,
        pass,
        spent: Mutex::new(Vec::new()),
        wanted_calm: 0,
    };
    match making.all(&mut take) {
        // Whoever read what was made has seen enough.
        Err(WalkError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(Some(Damage::default()))
        }
        made => made,
    }
}

struct Making<'p, P: Pass> {
    salvager: Salvager,
    grain: Grain,
    pass: &'p P,
    /// Parts that were taken, to be used again.
    spent: Mutex<Vec<P::Part>>,
    /// Bytes that must still be sound before threads are asked.
    wanted_calm: u64,
}

impl<P: Pass> Making<'_, P> {
    /// `None` when there is no log.
    fn all(
        &mut self,
        take: &mut impl FnMut(&mut P::Part) -> io::Result<()>,
    ) -> Result<Option<Damage>, WalkError> {
        let (mut damage, mut empty) = (Damage::default(), true);
        let mut part = P::Part::default();
        while let Some(item) = self.salvager.next()? {
            empty = false;
            damage.see(&item);
            let step = self.add(&mut part, &item, take)?;
            self.salvager.reuse(item);
            if step == Step::Stop {
                take(&mut part)?;
                return Ok(Some(damage));
            }
            if self.wanted_calm == 0
                && let Some(stretch) = self.salvager.stretch(self.grain.stretch_bytes_min)?
            {
                take(&mut part)?;
                if self.in_blocks(stretch, take)? == Step::Stop {
                    return Ok(Some(damage));
                }
            }
        }
        take(&mut part)?;
        Ok((!empty).then_some(damage))
    }

    /// Adds what the salvager found; `part` is taken whenever it is full.
    fn add(
        &mut self,
        part: &mut P::Part,
        item: &Salvaged,
        take: &mut impl FnMut(&mut P::Part) -> io::Result<()>,
    ) -> io::Result<Step> {
        let frame = match item {
            Salvaged::LeftOut(left_out) => {
                self.wanted_calm = self.grain.calm_bytes;
                return Ok(self.pass.add(part, Seen::LeftOut(left_out)));
            }
            Salvaged::Frame(frame) => frame,
        };
        self.wanted_calm = self.wanted_calm.saturating_sub(frame.length as u64);
        let mut step = self.pass.add(part, Seen::Frame(&frame.path));
        for placed in &frame.records {
            if step == Step::Stop {
                break;
            }
            let facts = Facts::of(&placed.record);
            step = self.pass.add(part, Seen::Record(&facts, placed));
            if self.pass.weight(part) >= self.grain.part_bytes {
                take(part)?;
            }
        }
        Ok(step)
    }

    /// Reads `stretch` on all processors, as far as it is sound; the salvager then goes on behind that.
    fn in_blocks(
        &mut self,
        stretch: Stretch,
        take: &mut impl FnMut(&mut P::Part) -> io::Result<()>,
    ) -> Result<Step, WalkError> {
        let (mut offset, mut sequence) = (stretch.offset(), self.salvager.sequence());
        let path = Arc::clone(stretch.path());
        let (blocks, in_order) = sync_channel(BLOCKS_AHEAD);
        let work = Work {
            path: &path,
            grain: self.grain,
            pass: self.pass,
            spent: &self.spent,
            reading: Mutex::new(Reading {
                stretch,
                blocks: Some(blocks),
            }),
        };
        let taken = thread::scope(|scope| {
            for _ in 0..threads() {
                scope.spawn(|| work.run());
            }
            // Dropped with this closure: whoever works on what is not wanted any more then ends.
            let in_order: Receiver<Receiver<Made<P::Part>>> = in_order;
            for mut made in in_order.iter().flatten() {
                if let Some(first) = &made.first
                    && { sequence }.admit(first).is_err()
                {
                    self.wanted_calm = self.grain.calm_bytes;
                    break;
                }
                take(&mut made.part)?;
                lock(&self.spent).push(made.part);
                match made.then {
                    Then::More => {}
                    Then::Stop => return Ok(Step::Stop),
                    Then::End(end) => {
                        offset = end.offset;
                        sequence = end.sequence.unwrap_or(sequence);
                        if !end.whole {
                            self.wanted_calm = self.grain.calm_bytes;
                            break;
                        }
                    }
                }
            }
            Ok(Step::On)
        });
        drop(work);
        self.salvager.resume(offset, sequence);
        taken
    }
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, |many| many.get().min(THREADS_MAX))
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was made of some of a block.
struct Made<T> {
    /// The block's first record, with its first part.
    first: Option<Record>,
    part: T,
    then: Then,
}

enum Then {
    /// More of this block.
    More,
    /// Nothing further is of interest.
    Stop,
    /// The next block.
    End(logging_channel::segment::BlockEnd),
}

/// What the threads share.
struct Work<'p, P: Pass> {
    path: &'p Arc<Path>,
    grain: Grain,
    pass: &'p P,
    spent: &'p Mutex<Vec<P::Part>>,
    reading: Mutex<Reading<P::Part>>,
}

/// One at a time reads the next block, and takes its place in the order.
struct Reading<T> {
    stretch: Stretch,
    /// `None` when there are no more.
    blocks: Option<SyncSender<Receiver<Made<T>>>>,
}

/// Nobody waits for what is made.
struct Unwanted;

impl<P: Pass> Work<'_, P> {
    fn run(&self) {
        let mut block = Block::default();
        while let Some(parts) = self.next(&mut block) {
            if self.make(&mut block, &parts).is_err() {
                return;
            }
        }
    }

    /// Reads the next block; where its parts are to go.
    fn next(&self, block: &mut Block) -> Option<SyncSender<Made<P::Part>>> {
        let mut reading = lock(&self.reading);
        let blocks = reading.blocks.take()?;
        if !reading.stretch.read(block, self.grain.block_bytes) {
            return None;
        }
        let (sender, parts) = sync_channel(PARTS_AHEAD);
        blocks.send(parts).ok()?;
        reading.blocks = Some(blocks);
        Some(sender)
    }

    fn make(&self, block: &mut Block, parts: &SyncSender<Made<P::Part>>) -> Result<(), Unwanted> {
        let mut part = self.part();
        let mut first = None;
        let mut begun = false;
        let end = block.frames(|frame| {
            if !std::mem::replace(&mut begun, true) {
                first = frame.records.first().map(|placed| placed.record.clone());
            }
            self.add(&mut part, &frame, |part| {
                let first = first.take();
                let then = Then::More;
                parts.send(Made { first, part, then }).map_err(|_| Unwanted)
            })
        });
        let then = match end {
            ControlFlow::Continue(end) => Then::End(end),
            ControlFlow::Break(Ok(())) => Then::Stop,
            ControlFlow::Break(Err(unwanted)) => return Err(unwanted),
        };
        let stopped = matches!(then, Then::Stop);
        parts
            .send(Made { first, part, then })
            .map_err(|_| Unwanted)?;
        if stopped { Err(Unwanted) } else { Ok(()) }
    }

    /// Adds a frame to `part`, which is handed on whenever it is full.
    fn add(
        &self,
        part: &mut P::Part,
        frame: &BlockFrame<'_>,
        mut hand_on: impl FnMut(P::Part) -> Result<(), Unwanted>,
    ) -> ControlFlow<Result<(), Unwanted>> {
        let mut step = self.pass.add(part, Seen::Frame(self.path));
        for placed in frame.records {
            if step == Step::Stop {
                break;
            }
            let facts = Facts::placed(placed, frame.payload);
            step = self.pass.add(part, Seen::Record(&facts, placed));
            if self.pass.weight(part) >= self.grain.part_bytes
                && let Err(unwanted) = hand_on(std::mem::replace(part, self.part()))
            {
                return ControlFlow::Break(Err(unwanted));
            }
        }
        match step {
            Step::On => ControlFlow::Continue(()),
            Step::Stop => ControlFlow::Break(Ok(())),
        }
    }

    fn part(&self) -> P::Part {
        lock(self.spent).pop().unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "pass_tests.rs"]
mod tests;
