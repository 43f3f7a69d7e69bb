//! The backup of a pair, and what concerns both sides.

use super::*;

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
            generation: 1,
            clock: exits_by_setting()
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
fn a_tick_that_comes_early_is_not_the_last() {
    let mut node = node(Part::Backup);
    node.handle(at(0), NodeEvent::Start);
    node.handle(at(1), NodeEvent::PeerConnected);
    node.handle(at(2), NodeEvent::PeerMessage(Message::Welcome(welcome())));
    assert_eq!(node.handle(at(20), NodeEvent::Tick), [wake(21)]);
    let heartbeat = NodeCommand::Send(Message::Heartbeat(Heartbeat::default()));
    assert_eq!(node.handle(at(21), NodeEvent::Tick), [heartbeat, wake(41)]);
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

#[test]
fn a_backup_knows_the_clock_from_the_welcome() {
    let mut node = node_offering(ClockOffer::no_counter("none"), Part::Backup);
    node.handle(at(0), NodeEvent::Start);
    node.handle(at(0), NodeEvent::PeerConnected);
    assert_eq!(node.clock(), None);
    let from_auto = Welcome {
        clocks: ClockOffer::Either,
        ..welcome()
    };
    node.handle(at(1), NodeEvent::PeerMessage(Message::Welcome(from_auto)));
    assert_eq!(
        (node.role(), node.clock()),
        (Role::Following, Some(ClockKind::Exits))
    );
}
