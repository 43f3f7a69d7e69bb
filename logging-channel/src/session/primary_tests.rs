use super::super::testing::{at, hello, identity, timer};
use super::*;
use crate::message::Refused;
use crate::pointers::PointerError;
use crate::record::ClockKind;

fn config() -> PrimaryConfig {
    PrimaryConfig {
        holder: "a".into(),
        identity: identity(),
        clocks: ClockOffer::Either,
        generation: 1,
        begins: Begins::WithStart,
        heartbeat_interval_ns: 20_000_000,
        flow: FlowConfig::default(),
    }
}

fn established(config: PrimaryConfig) -> PrimarySession {
    let mut session = PrimarySession::new(config, at(0));
    session.handle(at(0), PrimaryEvent::Received(Message::Hello(hello())));
    assert!(session.is_established());
    session
}

fn ack(received: u64, replayed: u64) -> Ack {
    Ack {
        received: LogIndex(received),
        replayed: LogIndex(replayed),
        replayed_exits: 0,
    }
}

fn receive(session: &mut PrimarySession, message: Message) -> Vec<PrimaryCommand> {
    session.handle(at(1), PrimaryEvent::Received(message))
}

#[test]
fn an_equal_backup_is_welcomed() {
    let mut session = PrimarySession::new(config(), at(0));
    let welcome = Welcome {
        holder: "a".into(),
        generation: 1,
        begins: Begins::WithStart,
        clocks: ClockOffer::Either,
    };
    let clock = settle_clock(&ClockOffer::Either, &ClockOffer::Either).expect("both auto");
    assert_eq!(
        receive(&mut session, Message::Hello(hello())),
        [
            PrimaryCommand::Send(Message::Welcome(welcome)),
            PrimaryCommand::Welcomed {
                holder: "b".into(),
                clock
            }
        ]
    );
}

#[test]
fn a_different_backup_is_refused_by_name() {
    let mut session = PrimarySession::new(config(), at(0));
    let mut hello = hello();
    hello.identity.cmdline = "quiet".into();
    let (item, ours, theirs) = (
        "cmdline".to_owned(),
        "console=ttyS0".to_owned(),
        "quiet".to_owned(),
    );
    assert_eq!(
        receive(&mut session, Message::Hello(hello.clone())),
        [
            PrimaryCommand::Send(Message::Refused(Refused {
                item: item.clone(),
                ours: ours.clone(),
                theirs: theirs.clone()
            })),
            PrimaryCommand::Close(CloseReason::IdentityDiffers { item, ours, theirs }),
        ]
    );
    assert_eq!(
        receive(&mut session, Message::Hello(hello)),
        [],
        "closed is closed"
    );
}

/// What a primary with `ours` makes of a backup with `theirs`: the clock, or both in words.
fn settled(ours: ClockOffer, theirs: ClockOffer) -> Result<ClockKind, (String, String)> {
    let mut config = config();
    config.clocks = ours;
    let mut session = PrimarySession::new(config, at(0));
    let mut hello = hello();
    hello.clocks = theirs;
    match &receive(&mut session, Message::Hello(hello))[..] {
        [
            PrimaryCommand::Send(Message::Welcome(_)),
            PrimaryCommand::Welcomed { clock, .. },
        ] => Ok(clock.kind),
        [
            PrimaryCommand::Send(Message::Refused(refused)),
            PrimaryCommand::Close(CloseReason::IdentityDiffers { item, ours, theirs }),
        ] => {
            assert_eq!((item.as_str(), &refused.item), ("clock", item));
            Err((ours.clone(), theirs.clone()))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn hosts_that_differ_agree_on_the_exit_clock() {
    let none = || ClockOffer::NoCounter("none".into());
    assert_eq!(settled(ClockOffer::Either, none()), Ok(ClockKind::Exits));
    assert_eq!(settled(none(), ClockOffer::Either), Ok(ClockKind::Exits));
    let both = settled(ClockOffer::Either, ClockOffer::Either);
    assert_eq!(both, Ok(ClockKind::Branches));
}

#[test]
fn a_setting_that_the_other_side_cannot_meet_is_refused_by_name() {
    let only = ClockOffer::Only;
    let none = ClockOffer::NoCounter("none".into());
    assert_eq!(
        settled(only(ClockKind::Branches), none),
        Err(("branches".into(), "auto without a counter (none)".into()))
    );
    assert_eq!(
        settled(only(ClockKind::Exits), only(ClockKind::Branches)),
        Err(("exits".into(), "branches".into()))
    );
}

#[test]
fn records_are_sent_at_once_and_acknowledged() {
    let mut session = established(config());
    assert_eq!(
        session.handle(at(1), PrimaryEvent::Recorded(vec![timer(0), timer(1)])),
        [PrimaryCommand::Send(Message::Log(vec![timer(0), timer(1)]))]
    );
    assert_eq!(
        receive(&mut session, Message::Ack(ack(2, 1))),
        [PrimaryCommand::Acknowledged(ack(2, 1))]
    );
    assert_eq!(session.pointers().acknowledged(), LogIndex(2));
}

#[test]
fn a_full_window_holds_records_back_until_an_acknowledgement() {
    let mut config = config();
    config.flow.window_bytes = 100;
    let mut session = established(config);
    session.handle(at(1), PrimaryEvent::Recorded(vec![timer(0), timer(1)]));
    assert_eq!(
        session.handle(at(1), PrimaryEvent::Recorded(vec![timer(2)])),
        []
    );
    assert!(session.has_room());
    assert_eq!(
        session.handle(at(1), PrimaryEvent::Recorded(vec![timer(3)])),
        []
    );
    assert!(!session.has_room());
    assert_eq!(
        receive(&mut session, Message::Ack(ack(2, 0))),
        [
            PrimaryCommand::Acknowledged(ack(2, 0)),
            PrimaryCommand::Send(Message::Log(vec![timer(2), timer(3)]))
        ]
    );
    assert!(session.has_room());
}

#[test]
fn an_acknowledgement_beyond_what_was_sent_closes() {
    let mut session = established(config());
    session.handle(at(1), PrimaryEvent::Recorded(vec![timer(0)]));
    let reason = PointerError::Beyond {
        what: "acknowledged",
        claimed: 2,
        limit: 1,
    };
    assert_eq!(
        receive(&mut session, Message::Ack(ack(2, 0))),
        [PrimaryCommand::Close(CloseReason::Pointer(reason))]
    );
}

#[test]
fn messages_out_of_place_close() {
    let cases = [
        (Message::Hello(hello()), "Hello"),
        (Message::Log(vec![timer(0)]), "Log"),
        (
            Message::Welcome(Welcome {
                holder: "x".into(),
                generation: 9,
                begins: Begins::WithStart,
                clocks: ClockOffer::Either,
            }),
            "Welcome",
        ),
    ];
    for (message, name) in cases {
        let mut session = established(config());
        let reason = CloseReason::Unexpected {
            message: name,
            state: "established",
        };
        assert_eq!(
            receive(&mut session, message),
            [PrimaryCommand::Close(reason)]
        );
    }
    let mut session = PrimarySession::new(config(), at(0));
    let reason = CloseReason::Unexpected {
        message: "Ack",
        state: "awaiting Hello",
    };
    assert_eq!(
        receive(&mut session, Message::Ack(ack(0, 0))),
        [PrimaryCommand::Close(reason)]
    );
}

#[test]
fn heartbeats_carry_what_was_released() {
    let mut session = established(config());
    assert_eq!(session.handle(at(19), PrimaryEvent::Tick), []);
    let released = LogIndex(7);
    session.handle(
        at(19),
        PrimaryEvent::Released {
            below: released,
            at_once: false,
        },
    );
    let beat = PrimaryCommand::Send(Message::Heartbeat(Heartbeat { released }));
    assert_eq!(
        session.handle(at(20), PrimaryEvent::Tick),
        std::slice::from_ref(&beat)
    );
    assert_eq!(session.wake_at(), Some(at(40)));
    let event = PrimaryEvent::Released {
        below: released,
        at_once: true,
    };
    assert_eq!(session.handle(at(21), event), [beat]);
}

#[test]
fn goodbyes_close_in_both_directions() {
    let mut session = established(config());
    assert_eq!(
        session.handle(at(1), PrimaryEvent::SayGoodbye(Goodbye::GuestEnded)),
        [
            PrimaryCommand::Send(Message::Goodbye(Goodbye::GuestEnded)),
            PrimaryCommand::Close(CloseReason::SaidGoodbye)
        ]
    );
    let mut session = established(config());
    assert_eq!(
        receive(&mut session, Message::Goodbye(Goodbye::Diverged)),
        [
            PrimaryCommand::PeerSaid(Goodbye::Diverged),
            PrimaryCommand::Close(CloseReason::PeerSaidGoodbye)
        ]
    );
}

#[test]
fn long_batches_are_split_into_frames() {
    let mut session = established(config());
    let records: Vec<_> = (0..FRAME_RECORDS_MAX as u64 + 1).map(timer).collect();
    let commands = session.handle(at(1), PrimaryEvent::Recorded(records));
    let lengths: Vec<_> = commands
        .iter()
        .map(|c| match c {
            PrimaryCommand::Send(Message::Log(records)) => records.len(),
            _ => 0,
        })
        .collect();
    assert_eq!(lengths, [FRAME_RECORDS_MAX, 1]);
}

fn transferring() -> PrimarySession {
    let config = PrimaryConfig {
        begins: Begins::WithTransfer,
        ..config()
    };
    let mut session = PrimarySession::new(config, at(0));
    session.handle(at(0), PrimaryEvent::Received(Message::Hello(hello())));
    assert!(session.is_transferring() && !session.is_established());
    session
}

#[test]
fn a_running_guest_is_sent_as_parts_and_its_log_follows() {
    let mut session = transferring();
    assert_eq!(
        session.handle(at(1), PrimaryEvent::Part(vec![7; 10])),
        [PrimaryCommand::Send(Message::Part(vec![7; 10]))]
    );
    let complete = Complete {
        first_index: LogIndex(5),
        bytes: 10,
    };
    assert_eq!(
        session.handle(at(1), PrimaryEvent::Complete(LogIndex(5))),
        [PrimaryCommand::Send(Message::Complete(complete))]
    );
    assert!(session.is_established());
    let sent = session.handle(at(1), PrimaryEvent::Recorded(vec![timer(5)]));
    assert_eq!(sent, [PrimaryCommand::Send(Message::Log(vec![timer(5)]))]);
    assert_eq!(receive(&mut session, Message::Ack(ack(6, 5))).len(), 1);
}

#[test]
fn parts_wait_for_the_window() {
    let mut session = transferring();
    let part = vec![0; 1 << 20];
    let mut parts = 0;
    while session.wants_part() {
        session.handle(at(1), PrimaryEvent::Part(part.clone()));
        parts += 1;
    }
    assert_eq!(parts, TRANSFER_WINDOW_BYTES >> 20);
    receive(&mut session, Message::Taken(Taken { bytes: 1 << 20 }));
    assert!(session.wants_part());
}

#[test]
fn a_backup_that_took_in_more_than_was_sent_is_refused() {
    let mut session = transferring();
    let closed = receive(&mut session, Message::Taken(Taken { bytes: 1 }));
    assert_eq!(
        closed,
        [PrimaryCommand::Close(CloseReason::PartsDiffer(0, 1))]
    );
}

#[test]
fn an_acknowledgement_during_the_transfer_is_refused() {
    let closed = receive(&mut transferring(), Message::Ack(ack(0, 0)));
    let reason = CloseReason::Unexpected {
        message: "Ack",
        state: "transferring the state",
    };
    assert_eq!(closed, [PrimaryCommand::Close(reason)]);
}
