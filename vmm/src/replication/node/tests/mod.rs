//! Feed an event, compare the whole list of commands.

use super::*;
use crate::replication::divergence::{Difference, Divergence};
use crate::replication::go_live::RetryConfig;
use crate::replication::output_gate::GateStatus;
use logging_channel::clock_agreement::{ClockAgreement, ClockOffer};
use logging_channel::execution_point::ExecutionPoint;
use logging_channel::failure_detector::DetectorConfig;
use logging_channel::flow::FlowConfig;
use logging_channel::host_time::GuestTime;
use logging_channel::message::{
    Ack, Begins, Heartbeat, Hello, Identity, PROTOCOL_VERSION, Refused, Welcome,
};
use logging_channel::pointers::PointerError;
use logging_channel::record::{ClockKind, Output, OutputDevice, RecordBody};
use logging_channel::session::CloseReason;

mod backup;
mod primary;
mod transfer;

fn at(ms: u64) -> HostTime {
    HostTime(ms * 1_000_000)
}

fn wake(ms: u64) -> NodeCommand {
    NodeCommand::WakeAt(at(ms))
}

fn identity() -> Identity {
    Identity {
        vm: "web".into(),
        cpu_model: "understudy-v1".into(),
        memory_bytes: 64 << 20,
        kernel_sha256: [1; 32],
        initramfs_sha256: [2; 32],
        cmdline: "console=ttyS0".into(),
        mac: [2, 0, 0, 0, 0, 1],
    }
}

fn node(part: Part) -> Node {
    node_offering(ClockOffer::Only(ClockKind::Exits), part)
}

fn node_offering(clocks: ClockOffer, part: Part) -> Node {
    Node::new(config(clocks, part))
}

fn config(clocks: ClockOffer, part: Part) -> NodeConfig {
    NodeConfig {
        part,
        holder: if part == Part::Backup {
            "b".into()
        } else {
            "a".into()
        },
        identity: identity(),
        clocks,
        detector: DetectorConfig::default(),
        flow: FlowConfig::default(),
        retry: RetryConfig::default(),
        gate_bytes_max: 1_000,
        generation: 0,
        newest_generation: 0,
    }
}

fn hello() -> Message {
    Message::Hello(Hello {
        protocol: PROTOCOL_VERSION,
        holder: "b".into(),
        identity: identity(),
        clocks: ClockOffer::Only(ClockKind::Exits),
    })
}

fn welcome() -> Welcome {
    Welcome {
        holder: "a".into(),
        generation: 1,
        begins: Begins::WithStart,
        clocks: ClockOffer::Only(ClockKind::Exits),
    }
}

/// What a pair of the two above agrees on.
fn exits_by_setting() -> ClockAgreement {
    ClockAgreement {
        kind: ClockKind::Exits,
        why: "both sides are set to it".into(),
    }
}

fn record(index: u64, body: RecordBody) -> Record {
    let point = ExecutionPoint::at_exit(index, 0);
    Record {
        index: LogIndex(index),
        point,
        guest_time: GuestTime::ZERO,
        body,
    }
}

fn timer(index: u64) -> Record {
    record(index, RecordBody::Timer)
}

fn packet(n: u8) -> Produced {
    Produced {
        device: OutputDevice::Network(0),
        bytes: vec![n; 4],
    }
}

fn output_record(index: u64) -> Record {
    let output = Output {
        device: OutputDevice::Network(0),
        length: 4,
        digest: 0,
    };
    record(index, RecordBody::Output(output))
}

/// A record that stands for output, with the output.
fn recorded_output(index: u64, n: u8) -> Emitted {
    Emitted::Recorded {
        record: output_record(index),
        output: Some(packet(n)),
    }
}

fn recorded(record: Record) -> Emitted {
    Emitted::Recorded {
        record,
        output: None,
    }
}

fn replayed(next: u64, outputs: &[(u64, u8)]) -> Emitted {
    let outputs = outputs
        .iter()
        .map(|(i, n)| (LogIndex(*i), packet(*n)))
        .collect();
    Emitted::Replayed {
        next: LogIndex(next),
        exits: next,
        outputs,
    }
}

fn ack(received: u64, replayed: u64) -> Message {
    let (received, replayed) = (LogIndex(received), LogIndex(replayed));
    Message::Ack(Ack {
        received,
        replayed,
        replayed_exits: replayed.0,
    })
}

fn beat(released: u64) -> Message {
    Message::Heartbeat(Heartbeat {
        released: LogIndex(released),
    })
}

fn granted(generation: u64) -> NodeEvent {
    NodeEvent::Arbiter(ArbiterReply::Granted { generation })
}

fn refused(generation: u64) -> NodeEvent {
    NodeEvent::Arbiter(ArbiterReply::Refused {
        generation,
        holder: "x".into(),
    })
}

fn claim(new: u64, attempt: u32) -> [NodeCommand; 2] {
    [
        NodeCommand::Note(Note::Claiming { new, attempt }),
        NodeCommand::Claim {
            expected: new - 1,
            new,
        },
    ]
}

fn halted(reason: HaltReason) -> [NodeCommand; 2] {
    [
        NodeCommand::Engine(Offer::Halt),
        NodeCommand::Halted { reason },
    ]
}

fn lost_race(generation: u64) -> HaltReason {
    HaltReason::Refused {
        generation,
        holder: "x".into(),
    }
}

/// A primary with a welcomed backup at 0 ms.
fn protected() -> Node {
    let mut node = node(Part::Primary {
        after_generation: 0,
    });
    node.handle(at(0), NodeEvent::Start);
    node.handle(at(0), granted(1));
    node.handle(at(0), NodeEvent::PeerConnected);
    node.handle(at(0), NodeEvent::PeerMessage(hello()));
    assert_eq!(node.role(), Role::Protected);
    settled(node)
}

/// A backup welcomed at 0 ms that received `records`.
fn following(records: Vec<Record>) -> Node {
    let mut node = node(Part::Backup);
    node.handle(at(0), NodeEvent::Start);
    node.handle(at(0), NodeEvent::PeerConnected);
    node.handle(at(0), NodeEvent::PeerMessage(Message::Welcome(welcome())));
    if !records.is_empty() {
        node.handle(at(0), NodeEvent::PeerMessage(Message::Log(records)));
    }
    assert_eq!(node.role(), Role::Following);
    settled(node)
}

/// The guest runs on both sides: silence counts in full from 0 ms on.
fn settled(mut node: Node) -> Node {
    let detector = node.detector.as_mut().expect("there is a peer");
    detector.settle(at(0));
    node
}

/// Ticks every 20 ms after `from_ms` up to and including `to_ms`; all commands but heartbeats,
/// acknowledgements and WakeAt.
fn tick(node: &mut Node, from_ms: u64, to_ms: u64) -> Vec<NodeCommand> {
    let mut out = Vec::new();
    for ms in (from_ms + 20..=to_ms).step_by(20) {
        out.extend(node.handle(at(ms), NodeEvent::Tick));
    }
    out.retain(|command| {
        !matches!(
            command,
            NodeCommand::WakeAt(_) | NodeCommand::Send(Message::Heartbeat(_) | Message::Ack(_))
        )
    });
    out
}
