//! Reads a log ahead on a thread of its own: on two processors, checking and decoding go on while what
//! was found is counted or printed.
//!
//! Memory is bounded by the weight of what is read ahead, not by the number of frames.

#![forbid(unsafe_code)]

use crate::source::{Step, WalkError};
use logging_channel::codec::Placed;
use logging_channel::segment::{Salvaged, Salvager, SegmentError};
use std::sync::mpsc::{channel, sync_channel};

/// Bytes, payloads and decoded records, that are handed over at a time; the last frame may go beyond.
const BATCH_BYTES: usize = 512 << 10;
/// Batches that wait to be looked at.
const BATCHES_AHEAD: usize = 3;

/// What is handed over at a time.
struct Batch {
    items: Vec<Salvaged>,
    /// How the log went on behind them, if it did not.
    end: Option<Result<(), SegmentError>>,
}

/// Gives `each` every item of the log, in order.
pub(crate) fn each(
    mut salvager: Salvager,
    mut each: impl FnMut(&Salvaged) -> Result<Step, WalkError>,
) -> Result<(), WalkError> {
    std::thread::scope(|scope| {
        let (sender, batches) = sync_channel(BATCHES_AHEAD);
        let (used, spent) = channel::<Vec<Salvaged>>();
        scope.spawn(move || {
            loop {
                // Used again where it was allocated: asking the allocator for each packet costs more than all else.
                for items in spent.try_iter() {
                    items.into_iter().for_each(|item| salvager.reuse(item));
                }
                let batch = read(&mut salvager);
                let ended = batch.end.is_some();
                // Nobody waits for more when the walk was stopped.
                if sender.send(batch).is_err() || ended {
                    return;
                }
            }
        });
        for batch in batches {
            for item in &batch.items {
                if each(item)? == Step::Stop {
                    return Ok(());
                }
            }
            if let Some(end) = batch.end {
                return Ok(end?);
            }
            // The reader may be done, and then all is freed here.
            let _ = used.send(batch.items);
        }
        Ok(())
    })
}

fn read(salvager: &mut Salvager) -> Batch {
    let (mut items, mut bytes) = (Vec::new(), 0);
    let end = loop {
        match salvager.next() {
            Err(error) => break Some(Err(error)),
            Ok(None) => break Some(Ok(())),
            Ok(Some(item)) => {
                bytes += weight(&item);
                items.push(item);
            }
        }
        if bytes >= BATCH_BYTES {
            break None;
        }
    };
    Batch { items, end }
}

fn weight(item: &Salvaged) -> usize {
    match item {
        Salvaged::Frame(frame) => frame.length + frame.records.len() * size_of::<Placed>(),
        Salvaged::LeftOut(_) => size_of::<Salvaged>(),
    }
}
