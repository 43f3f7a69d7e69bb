//! How far the transfer of a guest's state is, as lines in the program's own log.
//!
//! Given every status that is published, it says something when a transfer is under way and nothing was
//! said for a while, on the side that sends and on the side that takes in: short transfers pass unsaid.
//! The bar for people is drawn by `understudy status --wait`, which asks.

use crate::replication::transfer_watch::{TransferPhase, TransferStatus};
use logging_channel::host_time::HostTime;

/// Time between two lines, and before the first.
const INTERVAL_NS: u64 = 2_000_000_000;

/// What was said last.
#[derive(Debug, Default)]
pub(super) struct TransferProgress {
    /// When, and how many bytes there were.
    last: Option<(HostTime, u64)>,
}

impl TransferProgress {
    /// What is to be said now, if anything: of a transfer that this side `sends`, or of one that it takes in,
    /// of which `taken` bytes arrived.
    pub(super) fn look(
        &mut self,
        now: HostTime,
        sends: Option<&TransferStatus>,
        taken: Option<u64>,
    ) -> Option<String> {
        let Some((bytes, what)) = under_way(sends, taken) else {
            self.last = None;
            return None;
        };
        let (since, before) = *self.last.get_or_insert((now, bytes));
        let passed = now.since(since);
        if passed < INTERVAL_NS {
            return None;
        }
        self.last = Some((now, bytes));
        let rate = mib(bytes.saturating_sub(before)) * 1e9 / passed as f64;
        Some(format!(
            "transfer: {what}, {:.1} MiB, {rate:.1} MiB/s",
            mib(bytes)
        ))
    }
}

/// Bytes so far, and what is being done.
fn under_way(sends: Option<&TransferStatus>, taken: Option<u64>) -> Option<(u64, String)> {
    match sends {
        Some(sending) => Some((sending.bytes, doing(sending)?)),
        None => Some((taken?, "taking in the guest's state".to_owned())),
    }
}

fn doing(sending: &TransferStatus) -> Option<String> {
    let doing = sending.doing()?;
    if sending.phase != TransferPhase::Copying {
        return Some(doing);
    }
    let pages = sending.round_pages;
    let percent = sending.round_sent.saturating_mul(100) / pages.max(1);
    Some(format!("{doing}, {percent} % of {pages} pages sent"))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::engine::Emitted;
    use crate::replication::node::{NodeCommand, NodeEvent};
    use crate::replication::transfer_watch::TransferWatch;
    use logging_channel::record::LogIndex;

    const fn at(seconds: u64) -> HostTime {
        HostTime(seconds * 1_000_000_000)
    }

    fn sending() -> TransferWatch {
        let mut watch = TransferWatch::default();
        watch.command(at(10), &NodeCommand::BeginTransfer { attempt: 1 });
        watch.round(1, 400);
        watch
    }

    fn send(watch: &mut TransferWatch) {
        watch.sent(100);
        let bytes = vec![0; 3 << 20];
        watch.event(at(11), &NodeEvent::TransferPart { attempt: 1, bytes });
    }

    #[test]
    fn a_long_transfer_says_how_far_it_is_and_a_short_one_nothing() {
        let (mut progress, mut watch) = (TransferProgress::default(), sending());
        assert_eq!(progress.look(at(10), watch.status(), None), None);
        send(&mut watch);
        assert_eq!(progress.look(at(11), watch.status(), None), None);
        send(&mut watch);
        let said = progress.look(at(13), watch.status(), None).unwrap();
        assert_eq!(
            said,
            "transfer: round 1 of copying memory, 50 % of 400 pages sent, 6.0 MiB, 2.0 MiB/s"
        );
        assert_eq!(progress.look(at(14), watch.status(), None), None);
        watch.event(at(14), &NodeEvent::TransferReady { attempt: 1 });
        let said = progress.look(at(15), watch.status(), None).unwrap();
        assert!(said.contains("wrote last"), "{said}");
        let state = Emitted::Snapshot {
            attempt: 1,
            next: LogIndex(7),
            parts: Vec::new(),
        };
        watch.event(at(16), &NodeEvent::Emitted(vec![state]));
        let said = progress.look(at(17), watch.status(), None).unwrap();
        assert!(said.contains("waiting for the new backup"), "{said}");
        // Over: the next one begins anew.
        assert_eq!(progress.look(at(20), None, None), None);
        assert_eq!(progress.look(at(30), sending().status(), None), None);
    }

    #[test]
    fn the_side_that_takes_in_tells_its_own_bytes() {
        let mut progress = TransferProgress::default();
        assert_eq!(progress.look(at(1), None, Some(0)), None);
        let said = progress.look(at(5), None, Some(8 << 20)).unwrap();
        assert_eq!(
            said,
            "transfer: taking in the guest's state, 8.0 MiB, 2.0 MiB/s"
        );
    }
}
