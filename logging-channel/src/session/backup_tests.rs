use super::super::testing::{at, hello, identity, timer};
use super::*;
use crate::pointers::PointerError;
use crate::record::ClockKind;

fn new_session() -> BackupSession {
    let config = BackupConfig {
        holder: "b".into(),
        identity: identity(),
        clocks: ClockOffer::Either,
        heartbeat_interval_ns: 20_000_000,
        newest_generation: 0,
    };
    BackupSession::new(config, at(0))
}

/// On a host that has seen generation 3.
fn fenced_session() -> BackupSession {
    let mut session = new_session();
    session.config.newest_generation = 3;
    session
}

fn welcome() -> Welcome {
    Welcome {
        holder: "a".into(),
        generation: 1,
        begins: Begins::WithStart,
        clocks: ClockOffer::Either,
    }
}

fn accepted(welcome: Welcome) -> BackupCommand {
    let clock = settle_clock(&welcome.clocks, &ClockOffer::Either).expect("both auto");
    BackupCommand::Accepted(welcome, clock)
}

fn receive(session: &mut BackupSession, message: Message) -> Vec<BackupCommand> {
    session.handle(at(1), BackupEvent::Received(message))
}

fn established() -> BackupSession {
    let mut session = new_session();
    let commands = receive(&mut session, Message::Welcome(welcome()));
    assert_eq!(commands, [accepted(welcome())]);
    session
}

fn ack(received: u64, replayed: u64, replayed_exits: u64) -> BackupCommand {
    BackupCommand::Send(Message::Ack(Ack {
        received: LogIndex(received),
        replayed: LogIndex(replayed),
        replayed_exits,
    }))
}

fn gap(expected: u64, found: u64) -> BackupCommand {
    BackupCommand::Close(CloseReason::Pointer(PointerError::Gap { expected, found }))
}

#[test]
fn connecting_introduces_us() {
    assert_eq!(
        new_session().handle(at(0), BackupEvent::Connected),
        [BackupCommand::Send(Message::Hello(hello()))]
    );
}

#[test]
fn a_primary_of_an_older_generation_is_refused() {
    for begins in [Begins::WithStart, Begins::WithTransfer] {
        let of = |generation| Welcome {
            generation,
            begins,
            ..welcome()
        };
        let older = CloseReason::OlderGeneration {
            generation: 2,
            newest: 3,
        };
        let mut session = fenced_session();
        assert_eq!(
            receive(&mut session, Message::Welcome(of(2))),
            [BackupCommand::Close(older)]
        );
        // And nothing of what it sends afterwards is taken.
        assert_eq!(receive(&mut session, Message::Part(vec![1])), []);
        assert_eq!(receive(&mut session, Message::Log(vec![timer(0)])), []);
        for generation in [3, 4] {
            let mut session = fenced_session();
            assert_eq!(
                receive(&mut session, Message::Welcome(of(generation))),
                [accepted(of(generation))]
            );
        }
    }
}

#[test]
fn records_are_delivered_before_they_are_acknowledged() {
    let mut session = established();
    assert_eq!(
        receive(&mut session, Message::Log(vec![timer(0), timer(1)])),
        [
            BackupCommand::Deliver(vec![timer(0), timer(1)]),
            ack(2, 0, 0)
        ]
    );
    session.handle(
        at(2),
        BackupEvent::Replayed {
            next: LogIndex(1),
            exits: 9,
        },
    );
    assert_eq!(
        receive(&mut session, Message::Log(vec![timer(2)])),
        [BackupCommand::Deliver(vec![timer(2)]), ack(3, 1, 9)]
    );
}

#[test]
fn a_gap_or_a_repetition_closes() {
    let mut session = established();
    assert_eq!(
        receive(&mut session, Message::Log(vec![timer(1)])),
        [gap(0, 1)]
    );
    let mut session = established();
    receive(&mut session, Message::Log(vec![timer(0)]));
    assert_eq!(
        receive(&mut session, Message::Log(vec![timer(0)])),
        [gap(1, 0)]
    );
    assert_eq!(
        receive(&mut session, Message::Log(vec![timer(1)])),
        [],
        "closed is closed"
    );
    assert_eq!(session.pointers().received(), LogIndex(1));
}

#[test]
fn an_empty_log_frame_closes() {
    let commands = receive(&mut established(), Message::Log(vec![]));
    assert_eq!(commands, [BackupCommand::Close(CloseReason::EmptyLog)]);
}

#[test]
fn refusal_names_the_item() {
    let refused = Refused {
        item: "mac".into(),
        ours: "01".into(),
        theirs: "02".into(),
    };
    assert_eq!(
        receive(&mut new_session(), Message::Refused(refused.clone())),
        [
            BackupCommand::RefusedByPeer(refused),
            BackupCommand::Close(CloseReason::IdentityDiffers {
                item: "mac".into(),
                ours: "01".into(),
                theirs: "02".into()
            })
        ]
    );
}

#[test]
fn the_clock_is_what_both_offers_make_it() {
    let with_one = Welcome {
        clocks: ClockOffer::NoCounter("none here".into()),
        ..welcome()
    };
    let commands = receive(&mut new_session(), Message::Welcome(with_one.clone()));
    let [BackupCommand::Accepted(taken, clock)] = &commands[..] else {
        panic!("{commands:?}");
    };
    assert_eq!((taken, clock.kind), (&with_one, ClockKind::Exits));
    assert!(clock.why.contains("none here"), "{}", clock.why);
}

#[test]
fn a_welcome_to_a_clock_that_we_have_not_closes() {
    let mut session = new_session();
    session.config.clocks = ClockOffer::NoCounter("none".into());
    let fixed = Welcome {
        clocks: ClockOffer::Only(ClockKind::Branches),
        ..welcome()
    };
    let reason = CloseReason::IdentityDiffers {
        item: "clock".into(),
        ours: "branches".into(),
        theirs: "auto without a counter (none)".into(),
    };
    assert_eq!(
        receive(&mut session, Message::Welcome(fixed)),
        [BackupCommand::Close(reason)]
    );
    assert!(!session.is_established());
}

fn loading() -> BackupSession {
    let mut session = new_session();
    let running = Welcome {
        begins: Begins::WithTransfer,
        ..welcome()
    };
    receive(&mut session, Message::Welcome(running));
    assert!(!session.is_established());
    session
}

fn complete(first: u64, bytes: u64) -> Message {
    let first_index = LogIndex(first);
    Message::Complete(Complete { first_index, bytes })
}

#[test]
fn a_running_guest_begins_with_its_state() {
    let mut session = loading();
    assert_eq!(
        receive(&mut session, Message::Part(vec![7; 10])),
        [BackupCommand::Load(vec![7; 10])]
    );
    let taken = BackupCommand::Send(Message::Taken(Taken { bytes: 10 }));
    assert_eq!(
        session.handle(at(2), BackupEvent::Loaded { bytes: 10 }),
        [taken]
    );
    assert_eq!(
        receive(&mut session, complete(5, 10)),
        [BackupCommand::Complete(LogIndex(5))]
    );
    assert!(session.is_established());
    assert_eq!(session.pointers().received(), LogIndex(5));
    assert_eq!(session.pointers().released(), LogIndex(5));
    receive(&mut session, Message::Log(vec![timer(5)]));
    assert_eq!(session.pointers().received(), LogIndex(6));
}

#[test]
fn a_state_with_a_part_missing_is_refused() {
    let mut session = loading();
    receive(&mut session, Message::Part(vec![7; 10]));
    assert_eq!(
        receive(&mut session, complete(5, 20)),
        [BackupCommand::Close(CloseReason::PartsDiffer(10, 20))]
    );
}

#[test]
fn records_before_the_state_is_complete_are_refused() {
    let closed = receive(&mut loading(), Message::Log(vec![timer(5)]));
    let reason = CloseReason::Unexpected {
        message: "Log",
        state: "loading the state",
    };
    assert_eq!(closed, [BackupCommand::Close(reason)]);
}

#[test]
fn released_moves_forward_within_what_was_received() {
    let mut session = established();
    receive(&mut session, Message::Log(vec![timer(0), timer(1)]));
    let beat = |released| {
        Message::Heartbeat(Heartbeat {
            released: LogIndex(released),
        })
    };
    assert_eq!(
        receive(&mut session, beat(2)),
        [BackupCommand::PeerReleased(LogIndex(2))]
    );
    assert_eq!(receive(&mut session, beat(2)), []);
    let reason = PointerError::Beyond {
        what: "released",
        claimed: 3,
        limit: 2,
    };
    assert_eq!(
        receive(&mut session, beat(3)),
        [BackupCommand::Close(CloseReason::Pointer(reason))]
    );
}

#[test]
fn the_tick_tells_progress_or_just_life() {
    let mut session = established();
    receive(&mut session, Message::Log(vec![timer(0)]));
    assert_eq!(session.handle(at(19), BackupEvent::Tick), []);
    let alive = BackupCommand::Send(Message::Heartbeat(Heartbeat::default()));
    assert_eq!(session.handle(at(20), BackupEvent::Tick), [alive]);
    session.handle(
        at(30),
        BackupEvent::Replayed {
            next: LogIndex(1),
            exits: 4,
        },
    );
    assert_eq!(session.handle(at(40), BackupEvent::Tick), [ack(1, 1, 4)]);
}

#[test]
fn messages_out_of_place_close() {
    let reason = CloseReason::Unexpected {
        message: "Log",
        state: "awaiting Welcome",
    };
    assert_eq!(
        receive(&mut new_session(), Message::Log(vec![timer(0)])),
        [BackupCommand::Close(reason)]
    );
    let reason = CloseReason::Unexpected {
        message: "Welcome",
        state: "established",
    };
    assert_eq!(
        receive(&mut established(), Message::Welcome(welcome())),
        [BackupCommand::Close(reason)]
    );
}

#[test]
fn an_abandoned_session_takes_nothing_but_counts_replay() {
    let mut session = established();
    receive(&mut session, Message::Log(vec![timer(0)]));
    session.abandon();
    assert_eq!(receive(&mut session, Message::Log(vec![timer(1)])), []);
    session.handle(
        at(2),
        BackupEvent::Replayed {
            next: LogIndex(1),
            exits: 1,
        },
    );
    assert_eq!(session.pointers().replayed(), LogIndex(1));
}
