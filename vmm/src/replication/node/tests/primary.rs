//! A guest alone, and the primary of a pair.

use super::*;

#[test]
fn alone_starts_at_once_and_lets_everything_out() {
    let mut node = node(Part::Alone);
    assert_eq!(
        node.handle(at(0), NodeEvent::Start),
        [NodeCommand::StartGuest {
            generation: 0,
            clock: ClockKind::Exits
        }]
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
fn a_host_that_has_seen_more_does_not_claim_what_was_granted_before() {
    let after = |after_generation, newest_generation| {
        let part = Part::Primary { after_generation };
        let mut node = Node::new(NodeConfig {
            newest_generation,
            ..config(ClockOffer::Only(ClockKind::Exits), part)
        });
        node.handle(at(0), NodeEvent::Start)
    };
    let reason = HaltReason::OlderGeneration {
        after: 4,
        newest: 5,
    };
    assert_eq!(
        after(4, 5),
        [
            NodeCommand::Engine(Offer::Halt),
            NodeCommand::Halted { reason }
        ]
    );
    assert_eq!(after(5, 5), claim(6, 1));
    assert_eq!(after(6, 5), claim(7, 1));
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
            NodeCommand::Note(Note::BackupWelcomed {
                holder: "b".into(),
                clock: exits_by_setting()
            }),
            NodeCommand::StartGuest {
                generation: 5,
                clock: ClockKind::Exits
            },
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
    assert_eq!(node.handle(at(59), NodeEvent::Tick), [wake(60)]);
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
        clocks: ClockOffer::Either,
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

/// A snapshot is seen outside, as output is.
#[test]
fn what_the_backup_does_not_hold_is_not_shown() {
    let mut node = protected();
    assert!(node.can_be_saved());
    node.handle(
        at(1),
        NodeEvent::Emitted(vec![recorded(timer(0)), recorded(timer(1))]),
    );
    let shown = |node: &Node| [0, 1, 2].map(|next| node.may_show(LogIndex(next)));
    assert_eq!(shown(&node), [true, false, false]);
    node.handle(at(2), NodeEvent::PeerMessage(ack(1, 0)));
    assert_eq!(shown(&node), [true, true, false]);
    node.handle(at(3), NodeEvent::PeerDisconnected);
    assert_eq!((shown(&node), node.can_be_saved()), ([false; 3], false));
    node.handle(at(4), granted(2));
    assert_eq!((shown(&node), node.can_be_saved()), ([true; 3], true));
    node.handle(at(5), NodeEvent::OperatorStop);
    assert_eq!((shown(&node), node.can_be_saved()), ([false; 3], false));
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

/// A primary that offers `ours`, met by a backup that offers `theirs`: what the guest starts on.
fn clock_with(ours: ClockOffer, theirs: ClockOffer) -> (Node, Option<ClockKind>) {
    let mut node = node_offering(
        ours,
        Part::Primary {
            after_generation: 0,
        },
    );
    node.handle(at(0), NodeEvent::Start);
    node.handle(at(0), granted(1));
    node.handle(at(0), NodeEvent::PeerConnected);
    let hello = Message::Hello(Hello {
        protocol: PROTOCOL_VERSION,
        holder: "b".into(),
        identity: identity(),
        clocks: theirs,
    });
    let commands = node.handle(at(1), NodeEvent::PeerMessage(hello));
    let started = commands.iter().find_map(|command| match command {
        NodeCommand::StartGuest { clock, .. } => Some(*clock),
        _ => None,
    });
    (node, started)
}

#[test]
fn the_guest_starts_on_the_clock_that_both_hosts_have() {
    let none = || ClockOffer::no_counter("none");
    let (node, started) = clock_with(ClockOffer::Either, none());
    assert_eq!((started, node.clock()), (Some(ClockKind::Exits), started));
    let status = node.status(at(2));
    assert_eq!(status.clock.as_deref(), Some("exits"));
    let why = "the backup's host lacks a counter to trust: none";
    assert_eq!(status.clock_why.as_deref(), Some(why));
    let (_, started) = clock_with(ClockOffer::Either, ClockOffer::Either);
    assert_eq!(started, Some(ClockKind::Branches));
}

#[test]
fn no_guest_starts_where_a_setting_cannot_be_met() {
    let only = ClockOffer::Only(ClockKind::Branches);
    let (mut node, started) = clock_with(only, ClockOffer::no_counter("none"));
    assert_eq!(
        (started, node.clock(), node.role()),
        (None, None, Role::Awaiting)
    );
    assert_eq!(node.status(at(2)).clock, None);
    // The next one may fit.
    node.handle(at(3), NodeEvent::PeerConnected);
    node.handle(at(4), NodeEvent::PeerMessage(hello()));
    assert_eq!(node.role(), Role::Awaiting, "set to exits");
}

#[test]
fn a_guest_alone_takes_the_best_clock_of_its_host() {
    for (offer, clock) in [
        (ClockOffer::Either, ClockKind::Branches),
        (ClockOffer::no_counter("none"), ClockKind::Exits),
    ] {
        let mut node = node_offering(offer, Part::Alone);
        let generation = 0;
        assert_eq!(
            node.handle(at(0), NodeEvent::Start),
            [NodeCommand::StartGuest { generation, clock }]
        );
    }
}
