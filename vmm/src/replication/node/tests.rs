//! Feed an event, compare the whole list of commands.

use super::*;
use crate::replication::divergence::{Difference, Divergence};
use crate::replication::go_live::RetryConfig;
use crate::replication::output_gate::GateStatus;
use logging_channel::execution_point::ExecutionPoint;
use logging_channel::failure_detector::DetectorConfig;
use logging_channel::flow::FlowConfig;
use logging_channel::host_time::GuestTime;
use logging_channel::message::{
    Ack, Heartbeat, Hello, Identity, PROTOCOL_VERSION, Refused, Welcome,
};
use logging_channel::pointers::PointerError;
use logging_channel::record::{ClockKind, Output, OutputDevice, RecordBody};
use logging_channel::session::CloseReason;

fn at(ms: u64) -> HostTime {
    HostTime(ms * 1_000_000)
}

fn wake(ms: u64) -> NodeCommand {
    NodeCommand::WakeAt(at(ms))
}

fn identity() -> Identity {
    Identity {
        vm: "web".into(),
        clock: ClockKind::Exits,
        cpu_model: "understudy-v1".into(),
        memory_bytes: 64 << 20,
        kernel_sha256: [1; 32],
        initramfs_sha256: [2; 32],
        cmdline: "console=ttyS0".into(),
        mac: [2, 0, 0, 0, 0, 1],
    }
}

fn node(part: Part) -> Node {
    Node::new(NodeConfig {
        part,
        holder: if part == Part::Backup {
            "b".into()
        } else {
            "a".into()
        },
        identity: identity(),
        detector: DetectorConfig::default(),
        flow: FlowConfig::default(),
        retry: RetryConfig::default(),
        gate_bytes_max: 1_000,
    })
}

fn hello() -> Message {
    Message::Hello(Hello {
        protocol: PROTOCOL_VERSION,
        holder: "b".into(),
        identity: identity(),
    })
}

fn welcome() -> Welcome {
    Welcome {
        holder: "a".into(),
        generation: 1,
        first_index: LogIndex(0),
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
    node
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

#[test]
fn alone_starts_at_once_and_lets_everything_out() {
    let mut node = node(Part::Alone);
    assert_eq!(
        node.handle(at(0), NodeEvent::Start),
        [NodeCommand::StartGuest { generation: 0 }]
    );
    let emitted = NodeEvent::Emitted(vec![recorded(timer(0)), recorded_output(1, 7)]);
    assert_eq!(
        node.handle(at(1), emitted),
        [NodeCommand::Release(packet(7))]
    );
    let ended = NodeEvent::Emitted(vec![Emitted::Ended(EndReason::PowerOff)]);
    assert_eq!(
        node.handle(at(2), ended),
        [NodeCommand::Ended(EndReason::PowerOff)]
    );
}

#[test]
fn a_primary_claims_before_it_starts() {
    let mut node = node(Part::Primary {
        after_generation: 4,
    });
    assert_eq!(node.handle(at(0), NodeEvent::Start), claim(5, 1));
    assert_eq!(
        node.handle(at(1), NodeEvent::PeerConnected),
        [NodeCommand::CloseLink {
            reason: LinkEnd::NotWanted("primary")
        }],
        "not before the claim is granted"
    );
    assert_eq!(
        node.handle(at(2), granted(5)),
        [NodeCommand::Note(Note::Granted { generation: 5 })]
    );
    assert_eq!(node.handle(at(3), NodeEvent::PeerConnected), [wake(23)]);
    assert_eq!(
        node.handle(at(4), NodeEvent::PeerMessage(hello())),
        [
            NodeCommand::Send(Message::Welcome(Welcome {
                generation: 5,
                ..welcome()
            })),
            NodeCommand::Note(Note::BackupWelcomed { holder: "b".into() }),
            NodeCommand::StartGuest { generation: 5 },
        ]
    );
}

#[test]
fn a_primary_that_may_not_start_halts() {
    let mut node = node(Part::Primary {
        after_generation: 0,
    });
    node.handle(at(0), NodeEvent::Start);
    assert_eq!(node.handle(at(1), refused(3)), halted(lost_race(3)));
    assert_eq!(node.handle(at(2), NodeEvent::PeerConnected), []);
    assert_eq!(node.handle(at(3), granted(1)), [], "halted is for good");
}

#[test]
fn an_unreachable_arbiter_is_asked_again_with_growing_pauses() {
    let mut node = node(Part::Primary {
        after_generation: 0,
    });
    node.handle(at(0), NodeEvent::Start);
    let silent = |pause_ms: u64| {
        let (cause, pause_ns) = ("unreachable".to_owned(), pause_ms * 1_000_000);
        NodeCommand::Note(Note::ArbiterSilent { cause, pause_ns })
    };
    let unreachable = || NodeEvent::Arbiter(ArbiterReply::Unreachable);
    assert_eq!(node.handle(at(10), unreachable()), [silent(50), wake(60)]);
    assert_eq!(node.handle(at(59), NodeEvent::Tick), []);
    assert_eq!(node.handle(at(60), NodeEvent::Tick), claim(1, 2));
    assert_eq!(
        node.handle(at(60), NodeEvent::Tick),
        [],
        "one request at a time"
    );
    assert_eq!(node.handle(at(70), unreachable()), [silent(100), wake(170)]);
}

#[test]
fn a_different_backup_is_refused_and_the_next_may_come() {
    let mut node = node(Part::Primary {
        after_generation: 0,
    });
    node.handle(at(0), NodeEvent::Start);
    node.handle(at(0), granted(1));
    node.handle(at(0), NodeEvent::PeerConnected);
    let mut other = identity();
    other.vm = "mail".into();
    let hello_other = Hello {
        protocol: PROTOCOL_VERSION,
        holder: "b".into(),
        identity: other,
    };
    let (item, ours, theirs) = ("vm".to_owned(), "web".to_owned(), "mail".to_owned());
    let refusal = Refused {
        item: item.clone(),
        ours: ours.clone(),
        theirs: theirs.clone(),
    };
    let end = LinkEnd::Session(CloseReason::IdentityDiffers { item, ours, theirs });
    assert_eq!(
        node.handle(at(1), NodeEvent::PeerMessage(Message::Hello(hello_other))),
        [
            NodeCommand::Send(Message::Refused(refusal)),
            NodeCommand::CloseLink {
                reason: end.clone()
            },
            NodeCommand::Note(Note::LinkLost(end)),
        ]
    );
    assert_eq!(node.handle(at(2), NodeEvent::PeerConnected), [wake(22)]);
    node.handle(at(3), NodeEvent::PeerMessage(hello()));
    assert_eq!(node.role(), Role::Protected);
}

#[test]
fn output_leaves_only_when_its_record_is_acknowledged() {
    let mut node = protected();
    let items = vec![
        recorded(timer(0)),
        recorded_output(1, 1),
        recorded_output(2, 2),
    ];
    let log = vec![timer(0), output_record(1), output_record(2)];
    assert_eq!(
        node.handle(at(1), NodeEvent::Emitted(items)),
        [NodeCommand::Send(Message::Log(log))]
    );
    assert_eq!(node.handle(at(2), NodeEvent::PeerMessage(ack(1, 0))), []);
    assert_eq!(
        node.handle(at(3), NodeEvent::PeerMessage(ack(2, 0))),
        [NodeCommand::Release(packet(1))]
    );
    assert_eq!(
        node.handle(at(20), NodeEvent::Tick),
        [NodeCommand::Send(beat(2)), wake(40)],
        "the backup is told what left"
    );
    assert_eq!(
        node.handle(at(21), NodeEvent::PeerMessage(ack(3, 3))),
        [NodeCommand::Release(packet(2))]
    );
}

#[test]
fn a_full_gate_stops_the_recorder() {
    let mut node = protected();
    assert!(node.accepts_emitted());
    let items = (0..15).map(|i| recorded_output(i, 1)).collect();
    node.handle(at(1), NodeEvent::Emitted(items));
    assert!(!node.accepts_emitted());
    node.handle(at(2), NodeEvent::PeerMessage(ack(10, 0)));
    assert!(node.accepts_emitted());
}

#[test]
fn a_silent_backup_is_left_behind_only_by_the_arbiters_leave() {
    let mut node = protected();
    node.handle(at(1), NodeEvent::Emitted(vec![recorded_output(0, 1)]));
    assert_eq!(tick(&mut node, 0, 100), []);
    let mut expected = vec![
        NodeCommand::Note(Note::PeerSuspected {
            silence_ns: 120_000_000,
        }),
        NodeCommand::CloseLink {
            reason: LinkEnd::Silent,
        },
        NodeCommand::Note(Note::LinkLost(LinkEnd::Silent)),
        NodeCommand::Engine(Offer::Throttle { pause_ns: 0 }),
    ];
    expected.extend(claim(2, 1));
    assert_eq!(tick(&mut node, 100, 120), expected);
    assert_eq!(
        node.handle(at(121), NodeEvent::PeerMessage(ack(1, 1))),
        [],
        "too late: it changes nothing"
    );
    let more = NodeEvent::Emitted(vec![recorded_output(1, 2)]);
    assert_eq!(node.handle(at(122), more), [], "held");
    assert_eq!(
        node.handle(at(130), granted(2)),
        [
            NodeCommand::Note(Note::Granted { generation: 2 }),
            NodeCommand::Note(Note::Alone { released: 2 }),
            NodeCommand::Release(packet(1)),
            NodeCommand::Release(packet(2)),
        ]
    );
    let more = NodeEvent::Emitted(vec![recorded_output(2, 3)]);
    assert_eq!(
        node.handle(at(131), more),
        [NodeCommand::Release(packet(3))]
    );
}

#[test]
fn a_primary_that_loses_the_race_halts_and_releases_nothing() {
    let mut node = protected();
    node.handle(at(1), NodeEvent::Emitted(vec![recorded_output(0, 1)]));
    let mut expected = vec![
        NodeCommand::Note(Note::LinkLost(LinkEnd::Lost)),
        NodeCommand::Engine(Offer::Throttle { pause_ns: 0 }),
    ];
    expected.extend(claim(2, 1));
    assert_eq!(node.handle(at(2), NodeEvent::PeerDisconnected), expected);
    assert_eq!(node.handle(at(3), refused(2)), halted(lost_race(2)));
    let more = NodeEvent::Emitted(vec![recorded_output(1, 2)]);
    assert_eq!(node.handle(at(4), more), []);
    assert_eq!(node.handle(at(5), granted(2)), []);
    assert_eq!(node.status(at(5)).gate.released, 0);
}

#[test]
fn a_primary_that_slept_listens_before_it_lets_anything_out() {
    let mut node = protected();
    node.handle(at(1), NodeEvent::Emitted(vec![recorded_output(0, 1)]));
    assert_eq!(
        node.handle(at(3_000), NodeEvent::PeerMessage(ack(1, 1))),
        [NodeCommand::Note(Note::Stalled {
            gap_ns: 2_999_000_000
        })],
        "this acknowledgement may be as old as the sleep"
    );
    assert_eq!(tick(&mut node, 3_000, 3_040), []);
    node.handle(at(3_050), NodeEvent::PeerMessage(beat(0)));
    assert_eq!(
        tick(&mut node, 3_040, 3_060),
        [NodeCommand::Release(packet(1))]
    );
}

#[test]
fn a_primary_that_slept_and_finds_the_link_closed_lets_nothing_out() {
    let mut node = protected();
    node.handle(at(1), NodeEvent::Emitted(vec![recorded_output(0, 1)]));
    node.handle(at(3_000), NodeEvent::PeerMessage(ack(1, 1)));
    let mut expected = vec![
        NodeCommand::Note(Note::LinkLost(LinkEnd::Lost)),
        NodeCommand::Engine(Offer::Throttle { pause_ns: 0 }),
    ];
    expected.extend(claim(2, 1));
    assert_eq!(
        node.handle(at(3_001), NodeEvent::PeerDisconnected),
        expected
    );
    assert_eq!(node.handle(at(3_002), refused(2)), halted(lost_race(2)));
}

#[test]
fn an_impossible_acknowledgement_costs_the_backup_its_place() {
    let mut node = protected();
    let end = LinkEnd::Session(CloseReason::Pointer(PointerError::Beyond {
        what: "acknowledged",
        claimed: 9,
        limit: 0,
    }));
    let mut expected = vec![
        NodeCommand::CloseLink {
            reason: end.clone(),
        },
        NodeCommand::Note(Note::LinkLost(end)),
        NodeCommand::Engine(Offer::Throttle { pause_ns: 0 }),
    ];
    expected.extend(claim(2, 1));
    assert_eq!(
        node.handle(at(1), NodeEvent::PeerMessage(ack(9, 0))),
        expected
    );
}

#[test]
fn a_backup_that_diverged_says_so_and_the_primary_goes_on_alone() {
    let mut backup = following(vec![timer(0)]);
    let point = ExecutionPoint::at_exit(1, 0);
    let divergence = Divergence {
        index: LogIndex(0),
        expected_point: point,
        found_point: point,
        difference: Difference::Passed,
    };
    let reason = HaltReason::Diverged(divergence.to_string());
    let goodbye = Message::Goodbye(Goodbye::Diverged);
    let mut expected = vec![
        NodeCommand::Send(goodbye.clone()),
        NodeCommand::CloseLink {
            reason: LinkEnd::Session(CloseReason::SaidGoodbye),
        },
    ];
    expected.extend(halted(reason));
    let diverged = NodeEvent::Emitted(vec![Emitted::Diverged(Box::new(divergence))]);
    assert_eq!(backup.handle(at(1), diverged), expected);
    assert_eq!(
        backup.handle(at(2), NodeEvent::PeerDisconnected),
        [],
        "never claims"
    );

    let mut primary = protected();
    let end = LinkEnd::Session(CloseReason::PeerSaidGoodbye);
    let mut expected = vec![
        NodeCommand::Note(Note::PeerSaid(Goodbye::Diverged)),
        NodeCommand::CloseLink {
            reason: end.clone(),
        },
        NodeCommand::Note(Note::LinkLost(end)),
        NodeCommand::Engine(Offer::Throttle { pause_ns: 0 }),
    ];
    expected.extend(claim(2, 1));
    assert_eq!(
        primary.handle(at(1), NodeEvent::PeerMessage(goodbye)),
        expected
    );
}

#[test]
fn a_guest_that_ended_is_reported_when_the_backup_knows() {
    let mut node = protected();
    let items = vec![
        recorded_output(0, 1),
        recorded(record(1, RecordBody::End(EndReason::PowerOff))),
        Emitted::Ended(EndReason::PowerOff),
    ];
    let commands = node.handle(at(1), NodeEvent::Emitted(items));
    assert!(matches!(commands[..], [NodeCommand::Send(Message::Log(_))]));
    assert_eq!(
        node.handle(at(2), NodeEvent::PeerMessage(ack(2, 0))),
        [
            NodeCommand::Release(packet(1)),
            NodeCommand::Send(Message::Goodbye(Goodbye::GuestEnded)),
            NodeCommand::CloseLink {
                reason: LinkEnd::Session(CloseReason::SaidGoodbye)
            },
            NodeCommand::Ended(EndReason::PowerOff),
        ]
    );
}

#[test]
fn a_stopped_primary_hands_over() {
    let mut node = protected();
    node.handle(at(1), NodeEvent::Emitted(vec![recorded_output(0, 1)]));
    let mut expected = vec![
        NodeCommand::Send(Message::Goodbye(Goodbye::Stopped)),
        NodeCommand::CloseLink {
            reason: LinkEnd::Session(CloseReason::SaidGoodbye),
        },
    ];
    expected.extend(halted(HaltReason::Stopped));
    assert_eq!(node.handle(at(2), NodeEvent::OperatorStop), expected);
    assert_eq!(node.handle(at(3), NodeEvent::PeerMessage(ack(1, 1))), []);

    let mut backup = following(vec![timer(0)]);
    let end = LinkEnd::Session(CloseReason::PeerSaidGoodbye);
    assert_eq!(
        backup.handle(
            at(1),
            NodeEvent::PeerMessage(Message::Goodbye(Goodbye::Stopped))
        ),
        [
            NodeCommand::Note(Note::PeerSaid(Goodbye::Stopped)),
            NodeCommand::CloseLink {
                reason: end.clone()
            },
            NodeCommand::Note(Note::LinkLost(end)),
            NodeCommand::Engine(Offer::FinishLog),
        ]
    );
}

#[test]
fn a_backup_follows() {
    let mut node = node(Part::Backup);
    assert_eq!(node.handle(at(0), NodeEvent::Start), []);
    assert_eq!(
        node.handle(at(1), NodeEvent::PeerConnected),
        [NodeCommand::Send(hello()), wake(21)]
    );
    assert_eq!(
        node.handle(at(2), NodeEvent::PeerMessage(Message::Welcome(welcome()))),
        [NodeCommand::Note(Note::Following {
            holder: "a".into(),
            generation: 1
        })]
    );
    assert_eq!(
        node.handle(at(3), NodeEvent::PeerMessage(Message::Log(vec![timer(0)]))),
        [
            NodeCommand::Engine(Offer::Records(vec![timer(0)])),
            NodeCommand::Send(ack(1, 0))
        ]
    );
    let progress = NodeEvent::Emitted(vec![replayed(1, &[])]);
    assert_eq!(node.handle(at(4), progress), []);
    assert_eq!(
        node.handle(at(21), NodeEvent::Tick),
        [NodeCommand::Send(ack(1, 1)), wake(41)]
    );
}

#[test]
fn a_refused_backup_halts_and_says_why() {
    let mut node = node(Part::Backup);
    node.handle(at(0), NodeEvent::Start);
    node.handle(at(0), NodeEvent::PeerConnected);
    let (item, ours, theirs) = ("mac".to_owned(), "01".to_owned(), "02".to_owned());
    let refusal = Refused {
        item: item.clone(),
        ours: ours.clone(),
        theirs: theirs.clone(),
    };
    assert_eq!(
        node.handle(at(1), NodeEvent::PeerMessage(Message::Refused(refusal))),
        [
            NodeCommand::Engine(Offer::Halt),
            NodeCommand::CloseLink {
                reason: LinkEnd::NotWanted("halted")
            },
            NodeCommand::Halted {
                reason: HaltReason::PeerRefused { item, ours, theirs }
            },
        ]
    );
}

#[test]
fn a_backup_drains_then_claims_then_goes_live() {
    let mut node = following(vec![output_record(0), output_record(1), output_record(2)]);
    let progress = NodeEvent::Emitted(vec![replayed(2, &[(0, 1), (1, 2)])]);
    assert_eq!(node.handle(at(1), progress), []);
    node.handle(at(2), NodeEvent::PeerMessage(beat(1)));
    assert_eq!(
        node.handle(at(3), NodeEvent::PeerDisconnected),
        [
            NodeCommand::Note(Note::LinkLost(LinkEnd::Lost)),
            NodeCommand::Engine(Offer::FinishLog),
        ],
        "not yet drained: nothing is claimed"
    );
    let mut expected = vec![NodeCommand::Note(Note::Drained { next: LogIndex(3) })];
    expected.extend(claim(2, 1));
    let drained = NodeEvent::Emitted(vec![replayed(3, &[(2, 3)]), Emitted::Drained]);
    assert_eq!(node.handle(at(4), drained), expected);
    assert_eq!(
        node.handle(at(5), NodeEvent::PeerMessage(Message::Log(vec![timer(3)]))),
        [],
        "after the claim nothing the peer says counts"
    );
    assert_eq!(
        node.handle(at(6), granted(2)),
        [
            NodeCommand::Note(Note::Granted { generation: 2 }),
            NodeCommand::Engine(Offer::GoLive { generation: 2 }),
            NodeCommand::Announce,
            NodeCommand::Note(Note::Alone { released: 2 }),
            NodeCommand::Release(packet(2)),
            NodeCommand::Release(packet(3)),
        ],
        "what the primary was known to have released is not repeated"
    );
    let own = vec![Emitted::Live, recorded(timer(3)), recorded_output(4, 9)];
    assert_eq!(
        node.handle(at(7), NodeEvent::Emitted(own)),
        [
            NodeCommand::Note(Note::Recording),
            NodeCommand::Release(packet(9))
        ]
    );
}

#[test]
fn a_backup_that_loses_the_race_halts() {
    let mut node = following(vec![output_record(0)]);
    node.handle(at(1), NodeEvent::PeerDisconnected);
    let drained = NodeEvent::Emitted(vec![replayed(1, &[(0, 1)]), Emitted::Drained]);
    assert_eq!(node.handle(at(2), drained).len(), 3);
    assert_eq!(node.handle(at(3), refused(2)), halted(lost_race(2)));
    assert_eq!(node.handle(at(4), granted(2)), []);
}

#[test]
fn a_silent_primary_that_is_heard_again_before_the_claim_is_followed_on() {
    let mut node = following(vec![timer(0)]);
    assert_eq!(tick(&mut node, 0, 100), []);
    assert_eq!(
        tick(&mut node, 100, 120),
        [
            NodeCommand::Note(Note::PeerSuspected {
                silence_ns: 120_000_000
            }),
            NodeCommand::Engine(Offer::FinishLog),
        ]
    );
    assert_eq!(
        node.handle(
            at(121),
            NodeEvent::PeerMessage(Message::Log(vec![timer(1)]))
        ),
        [
            NodeCommand::Note(Note::PeerRecovered),
            NodeCommand::Engine(Offer::Records(vec![timer(1)])),
            NodeCommand::Send(ack(2, 0)),
        ]
    );
    let late = NodeEvent::Emitted(vec![replayed(1, &[]), Emitted::Drained]);
    assert_eq!(
        node.handle(at(122), late),
        [],
        "it was about the suspicion before"
    );
    assert_eq!(tick(&mut node, 122, 222), []);
    let again = tick(&mut node, 222, 242);
    assert_eq!(again.last(), Some(&NodeCommand::Engine(Offer::FinishLog)));
    let stale = NodeEvent::Emitted(vec![Emitted::Drained]);
    assert_eq!(
        node.handle(at(243), stale),
        [],
        "record 1 is not replayed yet"
    );
    let drained = NodeEvent::Emitted(vec![replayed(2, &[]), Emitted::Drained]);
    let mut expected = vec![
        NodeCommand::Note(Note::Drained { next: LogIndex(2) }),
        NodeCommand::CloseLink {
            reason: LinkEnd::Silent,
        },
    ];
    expected.extend(claim(2, 1));
    assert_eq!(node.handle(at(244), drained), expected);
}

#[test]
fn a_backup_that_slept_does_not_claim_before_it_has_listened() {
    let mut node = following(vec![timer(0)]);
    tick(&mut node, 0, 120);
    assert_eq!(node.role(), Role::Finishing);
    let drained = NodeEvent::Emitted(vec![replayed(1, &[]), Emitted::Drained]);
    assert_eq!(
        node.handle(at(9_000), drained),
        [
            NodeCommand::Note(Note::Stalled {
                gap_ns: 8_880_000_000
            }),
            NodeCommand::Note(Note::Drained { next: LogIndex(1) }),
        ]
    );
    let beat = NodeEvent::PeerMessage(beat(0));
    let commands = node.handle(at(9_001), beat);
    assert_eq!(
        commands.first(),
        Some(&NodeCommand::Note(Note::PeerRecovered))
    );
    assert_eq!(node.role(), Role::Following);
}

#[test]
fn a_backup_without_a_log_has_nothing_to_go_live_from() {
    let mut node = following(vec![]);
    let mut expected = vec![
        NodeCommand::Note(Note::LinkLost(LinkEnd::Lost)),
        NodeCommand::Engine(Offer::FinishLog),
    ];
    expected.extend(halted(HaltReason::NothingReceived));
    assert_eq!(node.handle(at(1), NodeEvent::PeerDisconnected), expected);
}

#[test]
fn a_joining_backup_may_try_again() {
    let mut node = node(Part::Backup);
    node.handle(at(0), NodeEvent::Start);
    node.handle(at(0), NodeEvent::PeerConnected);
    assert_eq!(
        node.handle(at(1), NodeEvent::PeerDisconnected),
        [NodeCommand::Note(Note::LinkLost(LinkEnd::Lost))]
    );
    assert_eq!(
        node.handle(at(50), NodeEvent::PeerConnected),
        [NodeCommand::Send(hello()), wake(70)]
    );
}

#[test]
fn a_backup_ends_with_the_guest() {
    let mut node = following(vec![record(0, RecordBody::End(EndReason::Reset))]);
    node.handle(
        at(1),
        NodeEvent::PeerMessage(Message::Goodbye(Goodbye::GuestEnded)),
    );
    let ended = vec![replayed(1, &[]), Emitted::Ended(EndReason::Reset)];
    assert_eq!(
        node.handle(at(2), NodeEvent::Emitted(ended)),
        [NodeCommand::Ended(EndReason::Reset)]
    );
}

#[test]
fn an_end_that_was_not_announced_is_released_by_a_claim() {
    let mut node = following(vec![
        output_record(0),
        record(1, RecordBody::End(EndReason::PowerOff)),
    ]);
    let ended = vec![replayed(2, &[(0, 1)]), Emitted::Ended(EndReason::PowerOff)];
    assert_eq!(node.handle(at(1), NodeEvent::Emitted(ended)), []);
    let mut expected = vec![
        NodeCommand::Note(Note::LinkLost(LinkEnd::Lost)),
        NodeCommand::Engine(Offer::FinishLog),
    ];
    expected.extend(claim(2, 1));
    assert_eq!(node.handle(at(2), NodeEvent::PeerDisconnected), expected);
    assert_eq!(
        node.handle(at(3), granted(2)),
        [
            NodeCommand::Note(Note::Granted { generation: 2 }),
            NodeCommand::Announce,
            NodeCommand::Note(Note::Alone { released: 1 }),
            NodeCommand::Release(packet(1)),
            NodeCommand::Ended(EndReason::PowerOff),
        ]
    );
}

#[test]
fn a_new_backup_at_a_lone_guest_is_told_why_not() {
    let mut node = protected();
    node.handle(at(1), NodeEvent::PeerDisconnected);
    node.handle(at(2), granted(2));
    let refused = Refused {
        item: "state".into(),
        ours: "running alone, generation 2".into(),
        theirs: "new backup".into(),
    };
    assert_eq!(
        node.handle(at(3), NodeEvent::PeerConnected),
        [
            NodeCommand::Send(Message::Refused(refused)),
            NodeCommand::CloseLink {
                reason: LinkEnd::NotWanted("solo")
            },
        ]
    );
}

#[test]
fn stray_answers_of_the_arbiter_change_nothing() {
    let mut node = protected();
    assert_eq!(
        node.handle(at(1), refused(7)),
        [NodeCommand::Note(Note::StrayAnswer)]
    );
    assert_eq!(node.role(), Role::Protected);
    node.handle(at(2), NodeEvent::PeerDisconnected);
    let commands = node.handle(at(3), granted(7));
    assert!(matches!(
        commands[0],
        NodeCommand::Note(Note::ArbiterSilent { .. })
    ));
    assert_eq!(node.role(), Role::Contested);
}

#[test]
fn a_failing_host_stops_its_side() {
    let mut node = protected();
    let commands = node.handle(at(1), NodeEvent::EngineFailed("KVM_RUN: EIO".into()));
    assert_eq!(
        commands[0],
        NodeCommand::Send(Message::Goodbye(Goodbye::Stopped))
    );
    let reason = HaltReason::HostFailed("KVM_RUN: EIO".into());
    assert_eq!(commands.last(), Some(&NodeCommand::Halted { reason }));
}

#[test]
fn the_status_is_plain_data() {
    let mut node = protected();
    node.handle(
        at(1),
        NodeEvent::Emitted(vec![recorded(timer(0)), recorded_output(1, 1)]),
    );
    node.handle(at(2), NodeEvent::PeerMessage(ack(1, 1)));
    let status = node.status(at(12));
    assert_eq!(
        (status.title.as_str(), status.role),
        ("primary", Role::Protected)
    );
    assert_eq!((status.generation, status.peer.as_deref()), (1, Some("b")));
    assert_eq!(status.silence_ns, Some(10_000_000));
    let p = status.pointers;
    assert_eq!(
        (p.recorded, p.sent, p.acknowledged, p.replayed),
        (2, 2, 1, 1)
    );
    let held = GateStatus {
        stance: Stance::Guarded,
        held: 1,
        held_bytes: 68,
        released: 0,
        dropped: 0,
    };
    assert_eq!(status.gate, held);
    let text = serde_json::to_string(&status).expect("serialises");
    let back: NodeStatus = serde_json::from_str(&text).expect("parses");
    assert_eq!(back, status);
}
