//! How far the backup may fall behind, and how the primary's processor is slowed before it does.
//!
//! Three measures count, each against its own bound: bytes sent and not acknowledged (the network),
//! bytes sent and not replayed (the backup's memory), and the execution lag, the age of the oldest
//! record that the backup has not replayed (how long going live would take). The largest of the
//! three, as a share of its bound, is the **pressure**. Below half nothing happens. Above, the vCPU
//! is told to pause after each stretch, growing with the square of the excess, so that the guest
//! slows smoothly; at the bound nothing more is sent and the recorder has to wait.
//!
//! The pause moves in [`PAUSE_STEPS`] steps, so that small changes do not reach the vCPU thread.
//! What is left out: who waits and how (`vmm::runtime`).

#![forbid(unsafe_code)]

use crate::host_time::HostTime;
use crate::record::{LogIndex, Record, RecordBody};
use std::collections::VecDeque;

/// Levels of pause between none and [`FlowConfig::pause_ns_max`].
pub const PAUSE_STEPS: u64 = 16;

/// Most samples kept to measure the execution lag; at one a millisecond, four seconds of lag.
const LAG_SAMPLES_MAX: usize = 4_096;
/// Least distance in time of two samples.
const LAG_SAMPLE_NS_MIN: u64 = 1_000_000;
/// What a record costs beside its payload: index, point, time, allocation.
const RECORD_OVERHEAD_BYTES: u64 = 64;

/// Bounds on how far the backup may be behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowConfig {
    /// Bytes sent and not acknowledged.
    pub window_bytes: u64,
    /// Bytes sent and not replayed: what the backup may have to hold.
    pub backlog_bytes_max: u64,
    /// Age of the oldest record not replayed at which the processor is slowed fully.
    pub lag_ns_max: u64,
    /// Longest pause after one stretch of execution.
    pub pause_ns_max: u64,
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self {
            window_bytes: 8 << 20,
            backlog_bytes_max: 64 << 20,
            lag_ns_max: 400_000_000,
            pause_ns_max: 2_000_000,
        }
    }
}

/// Bytes that `record` counts for.
#[must_use]
pub fn weight_bytes(record: &Record) -> u64 {
    let payload = match &record.body {
        RecordBody::Console(bytes) | RecordBody::Entropy(bytes) => bytes.len(),
        RecordBody::Packet { bytes, .. } | RecordBody::State { bytes, .. } => bytes.len(),
        RecordBody::Start(start) => start.vm.len() + start.cmdline.len() + 256,
        RecordBody::Timer
        | RecordBody::Output(_)
        | RecordBody::Mark(_)
        | RecordBody::Progress
        | RecordBody::Control(_)
        | RecordBody::End(_) => 0,
    };
    RECORD_OVERHEAD_BYTES + payload as u64
}

/// Measures how far the backup is behind.
#[derive(Debug, Clone, Hash)]
pub struct Flow {
    config: FlowConfig,
    /// Frames sent and not replayed: the index after the last record, and the bytes.
    in_flight: VecDeque<(LogIndex, u64)>,
    /// How many frames at the front of `in_flight` are acknowledged.
    acknowledged_frames: usize,
    unacknowledged_bytes: u64,
    unreplayed_bytes: u64,
    /// When the record with this index was made; sparse.
    recorded_at: VecDeque<(LogIndex, HostTime)>,
    step: u64,
}

impl Flow {
    /// Nothing in flight.
    #[must_use]
    pub const fn new(config: FlowConfig) -> Self {
        Self {
            config,
            in_flight: VecDeque::new(),
            acknowledged_frames: 0,
            unacknowledged_bytes: 0,
            unreplayed_bytes: 0,
            recorded_at: VecDeque::new(),
            step: 0,
        }
    }

    /// Record `index` was made at `now`.
    pub fn recorded(&mut self, index: LogIndex, now: HostTime) {
        let spaced = self
            .recorded_at
            .back()
            .is_none_or(|(_, last)| now.since(*last) >= LAG_SAMPLE_NS_MIN);
        if spaced && self.recorded_at.len() < LAG_SAMPLES_MAX {
            self.recorded_at.push_back((index, now));
        }
    }

    /// Records up to but not including `next`, `bytes` heavy, were sent as one frame.
    pub fn sent(&mut self, next: LogIndex, bytes: u64) {
        self.in_flight.push_back((next, bytes));
        self.unacknowledged_bytes += bytes;
        self.unreplayed_bytes += bytes;
    }

    /// The backup has everything below `received`, and has replayed everything below `replayed`.
    pub fn acknowledged(&mut self, received: LogIndex, replayed: LogIndex) {
        while let Some((next, bytes)) = self.in_flight.get(self.acknowledged_frames) {
            if *next > received {
                break;
            }
            self.unacknowledged_bytes -= bytes;
            self.acknowledged_frames += 1;
        }
        while self.acknowledged_frames > 0 {
            let Some((next, bytes)) = self.in_flight.front().copied() else {
                break;
            };
            if next > replayed {
                break;
            }
            self.in_flight.pop_front();
            self.acknowledged_frames -= 1;
            self.unreplayed_bytes -= bytes;
        }
        while self
            .recorded_at
            .front()
            .is_some_and(|(index, _)| *index < replayed)
        {
            self.recorded_at.pop_front();
        }
    }

    /// Whether another frame may be sent.
    #[must_use]
    pub const fn may_send(&self) -> bool {
        self.unacknowledged_bytes < self.config.window_bytes
            && self.unreplayed_bytes < self.config.backlog_bytes_max
    }

    /// Age of the oldest record that the backup has not replayed, as far as is known.
    #[must_use]
    pub fn lag_ns(&self, now: HostTime) -> u64 {
        self.recorded_at.front().map_or(0, |(_, at)| now.since(*at))
    }

    /// Bytes sent and not acknowledged.
    #[must_use]
    pub const fn unacknowledged_bytes(&self) -> u64 {
        self.unacknowledged_bytes
    }

    /// Bytes sent and not replayed.
    #[must_use]
    pub const fn unreplayed_bytes(&self) -> u64 {
        self.unreplayed_bytes
    }

    /// The new pause after each stretch, if it changed since the last call.
    pub fn pause_change(&mut self, now: HostTime) -> Option<u64> {
        let step = self.pause_step(now);
        if step == self.step {
            return None;
        }
        self.step = step;
        Some(self.config.pause_ns_max / PAUSE_STEPS * step)
    }

    /// Pressure above one half, squared, in steps: 0 at one half, [`PAUSE_STEPS`] at the bound.
    fn pause_step(&self, now: HostTime) -> u64 {
        const UNIT: u64 = 1_024;
        let share = |value: u64, bound: u64| {
            u64::try_from(u128::from(value) * u128::from(UNIT) / u128::from(bound.max(1)))
                .unwrap_or(UNIT)
                .min(UNIT)
        };
        let pressure = share(self.unacknowledged_bytes, self.config.window_bytes)
            .max(share(self.unreplayed_bytes, self.config.backlog_bytes_max))
            .max(share(self.lag_ns(now), self.config.lag_ns_max));
        let excess = pressure.saturating_sub(UNIT / 2) * 2;
        excess * excess * PAUSE_STEPS / (UNIT * UNIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution_point::ExecutionPoint;
    use crate::host_time::GuestTime;

    fn config() -> FlowConfig {
        FlowConfig {
            window_bytes: 1_000,
            backlog_bytes_max: 10_000,
            lag_ns_max: 100_000_000,
            pause_ns_max: 1_600_000,
        }
    }

    fn at(ms: u64) -> HostTime {
        HostTime(ms * 1_000_000)
    }

    #[test]
    fn the_window_closes_and_opens_with_acknowledgements() {
        let mut flow = Flow::new(config());
        flow.sent(LogIndex(10), 600);
        assert!(flow.may_send());
        flow.sent(LogIndex(20), 600);
        assert!(!flow.may_send());
        flow.acknowledged(LogIndex(15), LogIndex(0));
        assert_eq!(flow.unacknowledged_bytes(), 600);
        assert_eq!(flow.unreplayed_bytes(), 1_200);
        assert!(flow.may_send());
    }

    #[test]
    fn the_backlog_closes_until_replayed() {
        let mut flow = Flow::new(config());
        for i in 1..=10 {
            flow.sent(LogIndex(i), 1_000);
            flow.acknowledged(LogIndex(i), LogIndex(0));
        }
        assert!(!flow.may_send());
        flow.acknowledged(LogIndex(10), LogIndex(10));
        assert!(flow.may_send());
        assert_eq!(
            (flow.unacknowledged_bytes(), flow.unreplayed_bytes()),
            (0, 0)
        );
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_record_not_replayed() {
        let mut flow = Flow::new(config());
        (0..10).for_each(|i| flow.recorded(LogIndex(i), at(i * 5)));
        assert_eq!(flow.lag_ns(at(50)), 50_000_000);
        flow.acknowledged(LogIndex(10), LogIndex(8));
        assert_eq!(flow.lag_ns(at(50)), 10_000_000);
        flow.acknowledged(LogIndex(10), LogIndex(10));
        assert_eq!(flow.lag_ns(at(50)), 0);
    }

    #[test]
    fn the_pause_grows_smoothly_and_goes_away() {
        let mut flow = Flow::new(config());
        flow.recorded(LogIndex(0), at(0));
        assert_eq!(flow.pause_change(at(50)), None, "half the bound is free");
        assert_eq!(
            flow.pause_change(at(75)),
            Some(400_000),
            "a quarter of the pause"
        );
        assert_eq!(flow.pause_change(at(76)), None, "within the same step");
        assert_eq!(flow.pause_change(at(100)), Some(1_600_000));
        assert_eq!(flow.pause_change(at(1_000)), None, "never beyond the bound");
        flow.acknowledged(LogIndex(1), LogIndex(1));
        assert_eq!(flow.pause_change(at(1_001)), Some(0));
    }

    #[test]
    fn samples_are_bounded() {
        let mut flow = Flow::new(config());
        (0..100_000).for_each(|i| flow.recorded(LogIndex(i), at(i)));
        assert_eq!(flow.recorded_at.len(), LAG_SAMPLES_MAX);
        assert_eq!(flow.lag_ns(at(100_000)), 100_000_000_000);
    }

    #[test]
    fn a_packet_weighs_its_bytes() {
        let record = Record {
            index: LogIndex(0),
            point: ExecutionPoint::at_exit(0, 0),
            guest_time: GuestTime::ZERO,
            body: RecordBody::Packet {
                device: 0,
                bytes: vec![0; 1_500],
            },
        };
        assert_eq!(weight_bytes(&record), 1_564);
    }
}
