//! A node is led through its life, and the journal says so.

use super::*;
use crate::replication::executor::Produced;
use crate::replication::go_live::RetryConfig;
use crate::replication::node::{ArbiterReply, NodeConfig, Part};
use logging_channel::clock_agreement::ClockOffer;
use logging_channel::execution_point::ExecutionPoint;
use logging_channel::host_time::GuestTime;
use logging_channel::message::{Begins, Hello, Identity, PROTOCOL_VERSION, Welcome};
use logging_channel::record::{ClockKind, LogIndex, Output, OutputDevice, RecordBody};

/// A node with its observer, as the node's task runs them.
struct Side {
    node: Node,
    observer: Observer,
    entries: Vec<Entry>,
}

impl Side {
    fn new(part: Part) -> Self {
        let config = NodeConfig {
            part,
            holder: "here".into(),
            identity: identity(),
            clocks: ClockOffer::Only(ClockKind::Exits),
            detector: Default::default(),
            flow: Default::default(),
            retry: RetryConfig::default(),
            gate_bytes_max: 1_000_000,
            generation: 0,
            newest_generation: 0,
        };
        Self {
            node: Node::new(config),
            observer: Observer::default(),
            entries: Vec::new(),
        }
    }

    fn handle(&mut self, ms: u64, event: NodeEvent) {
        let now = HostTime(ms * 1_000_000);
        self.observer.event(now, &event);
        for command in self.node.handle(now, event) {
            self.observer.command(now, &command);
        }
        self.entries.extend(self.observer.after(now, &self.node));
    }

    fn says(&mut self, ms: u64, message: Message) {
        self.handle(ms, NodeEvent::PeerMessage(message));
    }

    fn primary() -> Self {
        let mut side = Self::new(Part::Primary {
            after_generation: 0,
        });
        side.handle(0, NodeEvent::Start);
        side.handle(1, granted(1));
        side.handle(2, NodeEvent::PeerConnected);
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            holder: "there".into(),
            identity: identity(),
            clocks: ClockOffer::Only(ClockKind::Exits),
        };
        side.says(3, Message::Hello(hello));
        assert_eq!(side.node.role(), Role::Protected);
        side
    }

    fn roles(&self) -> Vec<(u64, entry::Role, u64)> {
        let roles = self.entries.iter().filter_map(|entry| match &entry.what {
            What::Role(s) => Some((entry.at_us / 1_000, s.role, s.generation)),
            _ => None,
        });
        roles.collect()
    }

    fn intervals(&self) -> Vec<&Interval> {
        let intervals = self.entries.iter().filter_map(|entry| match &entry.what {
            What::Interval(interval) => Some(interval),
            _ => None,
        });
        intervals.collect()
    }
}

fn identity() -> Identity {
    Identity {
        vm: "web".into(),
        cpu_model: "understudy-v1".into(),
        memory_bytes: 64 << 20,
        kernel_sha256: [1; 32],
        initramfs_sha256: [2; 32],
        cmdline: String::new(),
        mac: [2, 0, 0, 0, 0, 1],
    }
}

fn granted(generation: u64) -> NodeEvent {
    NodeEvent::Arbiter(ArbiterReply::Granted { generation })
}

fn output(index: u64) -> Emitted {
    let body = RecordBody::Output(Output {
        device: OutputDevice::Network(0),
        length: 1,
        digest: 0,
    });
    Emitted::Recorded {
        record: record(index, body),
        output: Some(Produced {
            device: OutputDevice::Network(0),
            bytes: vec![1],
        }),
    }
}

fn record(index: u64, body: RecordBody) -> Record {
    Record {
        index: LogIndex(index),
        point: ExecutionPoint::at_exit(index, 0),
        guest_time: GuestTime::from_micros(index * 100),
        body,
    }
}

fn ack(received: u64, replayed: u64) -> Message {
    Message::Ack(message::Ack {
        received: LogIndex(received),
        replayed: LogIndex(replayed),
        replayed_exits: 0,
    })
}

#[test]
fn a_primary_notes_how_long_output_waited_and_how_far_its_backup_is_behind() {
    let mut side = Side::primary();
    side.handle(10, NodeEvent::Emitted(vec![output(0), output(1)]));
    side.handle(14, NodeEvent::Emitted(vec![output(2)]));
    side.says(16, ack(2, 0));
    side.says(20, ack(3, 3));
    side.says(300, Message::Heartbeat(Default::default()));
    let intervals = side.intervals();
    let [interval] = intervals[..] else {
        panic!("{intervals:?}")
    };
    let releases = |r: &Release| (r.after_us, r.index, r.waited_us);
    assert_eq!(
        interval.releases.iter().map(releases).collect::<Vec<_>>(),
        [(16_000, 0, 6_000), (16_000, 1, 6_000), (20_000, 2, 6_000)]
    );
    assert_eq!((interval.gate.len(), interval.gate.max_us()), (3, 6_000));
    // Record 1 was made within a millisecond of record 0 and is not followed.
    assert_eq!(
        (interval.acknowledged.len(), interval.acknowledged.max_us()),
        (2, 6_000)
    );
    assert_eq!((interval.lag.len(), interval.lag.max_us()), (2, 10_000));
    assert_eq!(
        (interval.next, interval.received, interval.replayed),
        (3, 3, 3)
    );
    assert_eq!(interval.guest_time_us, 200);
    assert_eq!(interval.us, 300_000);
    assert_eq!(
        (interval.unheard_us, interval.unreleased_us),
        (280_000, 4_000)
    );
    assert_eq!(interval.acks.len(), 2);
    assert_eq!(
        side.roles(),
        [
            (0, entry::Role::Starting, 0),
            (1, entry::Role::Awaiting, 1),
            (3, entry::Role::Protected, 1)
        ]
    );
}

#[test]
fn a_primary_that_goes_on_alone_counts_what_waited_for_the_arbiter() {
    let mut side = Side::primary();
    side.handle(10, NodeEvent::Emitted(vec![output(0)]));
    side.handle(20, NodeEvent::PeerDisconnected);
    side.handle(90, granted(2));
    // The gate is open now: no waits.
    side.handle(95, NodeEvent::Emitted(vec![output(1)]));
    side.entries
        .extend(side.observer.finish(HostTime(100_000_000)));
    let interval = side.intervals()[0];
    assert_eq!((interval.gate.len(), interval.gate.max_us()), (1, 80_000));
    assert_eq!(
        side.roles()[3..],
        [(20, entry::Role::Contested, 1), (90, entry::Role::Solo, 2)]
    );
    let happened = |wanted: &Happening| {
        let what = What::Happened(wanted.clone());
        side.entries.iter().any(|entry| entry.what == what)
    };
    assert!(happened(&Happening::Alone { released: 1 }));
    assert!(happened(&Happening::Granted { generation: 2 }));
}

#[test]
fn a_backup_notes_its_lag_and_its_way_to_going_live() {
    let mut side = Side::new(Part::Backup);
    side.handle(0, NodeEvent::Start);
    side.handle(1, NodeEvent::PeerConnected);
    let welcome = Welcome {
        holder: "there".into(),
        generation: 1,
        begins: Begins::WithStart,
        clocks: ClockOffer::Only(ClockKind::Exits),
    };
    side.says(2, Message::Welcome(welcome));
    side.says(
        10,
        Message::Log(vec![
            record(0, RecordBody::Timer),
            record(1, RecordBody::Timer),
        ]),
    );
    let outputs = vec![(
        LogIndex(1),
        Produced {
            device: OutputDevice::Console,
            bytes: vec![7],
        },
    )];
    let replayed = Emitted::Replayed {
        next: LogIndex(2),
        exits: 1,
        outputs,
    };
    side.handle(17, NodeEvent::Emitted(vec![replayed]));
    side.handle(20, NodeEvent::PeerDisconnected);
    side.handle(21, NodeEvent::Emitted(vec![Emitted::Drained]));
    side.handle(60, granted(2));
    side.handle(61, NodeEvent::Emitted(vec![output(2)]));
    side.entries
        .extend(side.observer.finish(HostTime(100_000_000)));
    let interval = side.intervals()[0];
    assert_eq!((interval.lag.len(), interval.lag.max_us()), (1, 7_000));
    assert!(
        interval.gate.is_empty(),
        "what the primary had made is not followed"
    );
    assert_eq!((interval.received, interval.replayed), (2, 2));
    let roles = side.roles();
    let titles: Vec<_> = roles.iter().map(|(at, role, _)| (*at, *role)).collect();
    assert_eq!(
        titles,
        [
            (0, entry::Role::Joining),
            (2, entry::Role::Following),
            (20, entry::Role::Finishing),
            (21, entry::Role::GoingLive),
            (60, entry::Role::Solo)
        ]
    );
    assert_eq!(roles[4].2, 2);
}

#[test]
fn a_busy_quarter_of_a_second_is_one_bounded_entry() {
    let mut side = Side::primary();
    for n in 0..10_000 {
        side.handle(10, NodeEvent::Emitted(vec![output(n)]));
        // One of them waits longer than all others.
        let ms = if n == 5_000 { 200 } else { 11 };
        side.says(ms.max(11), ack(n + 1, n + 1));
    }
    side.says(260, ack(10_000, 10_000));
    let intervals = side.intervals();
    let interval = intervals[0];
    assert_eq!(interval.gate.len(), 10_000);
    assert_eq!(interval.releases.len(), RELEASES_MAX);
    assert!(
        interval
            .releases
            .iter()
            .any(|release| release.index == 5_000)
    );
    assert_eq!(interval.acks.len(), ACKS_MAX);
    let mut bytes = Vec::new();
    let entry = Entry {
        at_us: 0,
        what: What::Interval(interval.clone()),
    };
    assert!(logging_channel::journal::format::put_entry(
        &mut bytes, &entry
    ));
    assert!(bytes.len() < 2_000, "{} bytes", bytes.len());
}
