//! What an engine is to its node: records with outputs on one side, replay on the other.
//!
//! Follows `vmm::replication::engine` as far as a node can tell: records are numbered from 0, the first
//! is Start; every further one stands for one output; a replayer reports what it replayed, reports
//! *drained* once per order to finish, and further records revoke that order.
//!
//! Who recorded an output is written into it, so that two futures of one guest differ.

#![forbid(unsafe_code)]

use logging_channel::execution_point::ExecutionPoint;
use logging_channel::host_time::GuestTime;
use logging_channel::message::Identity;
use logging_channel::record::{
    ClockKind, Control, LogIndex, Output, OutputDevice, Record, RecordBody, Start,
};
use std::collections::VecDeque;
use vmm::replication::divergence::{Difference, Divergence};
use vmm::replication::engine::{Emitted, Offer};
use vmm::replication::executor::Produced;

/// A copy of the guest.
#[derive(Debug, Clone, Hash)]
pub struct Guest {
    recording: bool,
    /// Who recorded each record that this copy has executed.
    past: Vec<u8>,
    unreplayed: VecDeque<Record>,
    finishing: bool,
    drained: bool,
}

/// What both sides must agree on.
#[must_use]
pub fn identity() -> Identity {
    Identity {
        vm: String::new(),
        cpu_model: String::new(),
        memory_bytes: 1,
        kernel_sha256: [0; 32],
        initramfs_sha256: [0; 32],
        cmdline: String::new(),
        mac: [0; 6],
    }
}

fn start(generation: u64) -> RecordBody {
    let identity = identity();
    RecordBody::Start(Box::new(Start {
        vm: identity.vm,
        generation,
        clock: ClockKind::Exits,
        cpu_model: identity.cpu_model,
        memory_bytes: identity.memory_bytes,
        kernel_sha256: identity.kernel_sha256,
        initramfs_sha256: identity.initramfs_sha256,
        cmdline: identity.cmdline,
        mac: identity.mac,
        wall_clock_s: 0,
        rng_seed: [0; 32],
    }))
}

fn record(index: usize, body: RecordBody) -> Record {
    let index = index as u64;
    Record {
        index: LogIndex(index),
        point: ExecutionPoint::at_exit(index, 0),
        guest_time: GuestTime::ZERO,
        body,
    }
}

/// The output that `life` recorded at `index`.
#[must_use]
pub fn output(index: usize, life: u8) -> Produced {
    Produced {
        device: OutputDevice::Console,
        bytes: vec![u8::try_from(index).unwrap_or(u8::MAX), life],
    }
}

impl Guest {
    /// A guest at power-on, recorded by `life`; its Start record.
    #[must_use]
    pub fn start(life: u8, generation: u64) -> (Self, Emitted) {
        let guest = Self {
            recording: true,
            past: vec![life],
            unreplayed: VecDeque::new(),
            finishing: false,
            drained: false,
        };
        let record = record(0, start(generation));
        (
            guest,
            Emitted::Recorded {
                record,
                output: None,
            },
        )
    }

    /// A copy at power-on that replays.
    #[must_use]
    pub const fn replaying() -> Self {
        Self {
            recording: false,
            past: Vec::new(),
            unreplayed: VecDeque::new(),
            finishing: false,
            drained: false,
        }
    }

    /// Whether it makes records.
    #[must_use]
    pub const fn is_recording(&self) -> bool {
        self.recording
    }

    /// Who recorded each record of this copy's past.
    #[must_use]
    pub fn past(&self) -> &[u8] {
        &self.past
    }

    /// The guest produces an output, recorded by `life`.
    pub fn produce(&mut self, life: u8) -> Emitted {
        let index = self.past.len();
        self.past.push(life);
        let body = RecordBody::Output(Output {
            device: OutputDevice::Console,
            length: 2,
            digest: u32::from(life),
        });
        Emitted::Recorded {
            record: record(index, body),
            output: Some(output(index, life)),
        }
    }

    /// Takes an offer of the node and does at once what it makes possible. Sabotage: `drained_once`.
    pub fn offer(&mut self, life: u8, offer: Offer, drained_once: bool) -> Vec<Emitted> {
        match (self.recording, offer) {
            (false, Offer::Records(records)) => {
                self.finishing = false;
                self.drained = false;
                self.unreplayed.extend(records);
            }
            (false, Offer::FinishLog) => {
                self.finishing = true;
                self.drained &= drained_once;
            }
            (false, Offer::GoLive { generation }) => return self.go_live(life, generation),
            (true, Offer::Snapshot { attempt }) => return vec![self.snapshot(attempt)],
            _ => {}
        }
        self.replay()
    }

    /// Sabotage: takes the records and executes none of them.
    pub fn skip(&mut self, offer: &Offer) {
        if let Offer::Records(records) = offer {
            self.past.extend(records.iter().map(|_| u8::MAX));
        }
    }

    /// What this copy would say if it differed from the log here.
    #[must_use]
    pub fn divergence(&self) -> Divergence {
        let due = LogIndex(self.past.len() as u64);
        gap(&record(self.past.len(), RecordBody::Progress), due)
    }

    /// Replays everything that has been received.
    fn replay(&mut self) -> Vec<Emitted> {
        let mut emitted = Vec::new();
        let mut outputs = Vec::new();
        let before = self.past.len();
        while let Some(record) = self.unreplayed.pop_front() {
            let due = LogIndex(self.past.len() as u64);
            if record.index != due {
                emitted.push(Emitted::Diverged(Box::new(gap(&record, due))));
                return emitted;
            }
            match record.body {
                RecordBody::Output(expected) => {
                    let life = u8::try_from(expected.digest).unwrap_or(u8::MAX);
                    outputs.push((record.index, output(self.past.len(), life)));
                    self.past.push(life);
                }
                RecordBody::Start(_) | RecordBody::Control(_) => self.past.push(0),
                _ => {}
            }
        }
        if self.past.len() > before {
            let next = LogIndex(self.past.len() as u64);
            emitted.push(Emitted::Replayed {
                next,
                exits: next.0,
                outputs,
            });
        }
        if self.finishing && !self.drained {
            self.drained = true;
            emitted.push(Emitted::Drained);
        }
        emitted
    }

    /// A copy that begins with the state in which `past` was executed.
    #[must_use]
    pub fn loaded(past: Vec<u8>) -> Self {
        Self {
            past,
            ..Self::replaying()
        }
    }

    fn snapshot(&self, attempt: u64) -> Emitted {
        Emitted::Snapshot {
            attempt,
            next: LogIndex(self.past.len() as u64),
            parts: vec![self.past.clone()],
        }
    }

    fn go_live(&mut self, life: u8, generation: u64) -> Vec<Emitted> {
        self.recording = true;
        let body = RecordBody::Control(Control::Generation(generation));
        let record = record(self.past.len(), body);
        self.past.push(life);
        vec![
            Emitted::Recorded {
                record,
                output: None,
            },
            Emitted::Live,
        ]
    }
}

fn gap(record: &Record, due: LogIndex) -> Divergence {
    Divergence {
        index: record.index,
        expected_point: record.point,
        found_point: record.point,
        difference: Difference::Gap { due },
    }
}
