//! A side that runs alone gets a backup again; a guest is handed over.

use super::*;

/// Alone in generation 2, after the first backup was lost.
fn solo() -> Node {
    let mut node = protected();
    node.handle(at(1), NodeEvent::PeerDisconnected);
    node.handle(at(2), granted(2));
    assert_eq!(node.role(), Role::Solo);
    node
}

/// Alone, with a new backup welcomed: its first transfer is under way.
fn transferring() -> Node {
    let mut node = solo();
    node.handle(at(3), NodeEvent::PeerConnected);
    let commands = node.handle(at(4), NodeEvent::PeerMessage(hello()));
    assert!(commands.contains(&NodeCommand::BeginTransfer { attempt: 1 }));
    assert_eq!(node.role(), Role::Solo, "nothing was promised yet");
    node
}

fn state(attempt: u64, next: u64) -> Emitted {
    Emitted::Snapshot {
        attempt,
        next: LogIndex(next),
        parts: vec![vec![9; 3]],
    }
}

fn releases(commands: &[NodeCommand]) -> Vec<Produced> {
    let released = commands.iter().filter_map(|command| match command {
        NodeCommand::Release(output) => Some(output.clone()),
        _ => None,
    });
    released.collect()
}

#[test]
fn output_passes_during_the_transfer_and_waits_from_the_state_on() {
    let mut node = transferring();
    let before = node.handle(at(5), NodeEvent::Emitted(vec![recorded_output(40, 1)]));
    assert_eq!(releases(&before), [packet(1)]);
    let bytes = vec![7; 10];
    node.handle(at(6), NodeEvent::TransferPart { attempt: 1, bytes });
    let waits = node.handle(at(7), NodeEvent::TransferReady { attempt: 1 });
    assert_eq!(waits, [], "the part is still on its way");
    let taken = Message::Taken(logging_channel::message::Taken { bytes: 10 });
    let ready = node.handle(at(7), NodeEvent::PeerMessage(taken));
    let snapshot = NodeCommand::Engine(Offer::Snapshot { attempt: 1 });
    assert!(ready.contains(&snapshot), "{ready:?}");
    // In one batch: what was before the state leaves, what is after it waits.
    let items = vec![recorded_output(41, 2), state(1, 42), recorded_output(42, 3)];
    let commands = node.handle(at(8), NodeEvent::Emitted(items));
    assert_eq!(releases(&commands), [packet(2)]);
    assert_eq!(node.role(), Role::Protected);
    let position = |wanted: fn(&Message) -> bool| {
        commands
            .iter()
            .position(|c| matches!(c, NodeCommand::Send(m) if wanted(m)))
            .expect("sent")
    };
    let complete = position(|m| matches!(m, Message::Complete(c) if c.bytes == 13));
    assert!(position(|m| matches!(m, Message::Part(_))) < complete);
    assert!(complete < position(|m| matches!(m, Message::Log(_))));
    let acknowledged = node.handle(at(9), NodeEvent::PeerMessage(ack(43, 42)));
    assert_eq!(releases(&acknowledged), [packet(3)]);
}

#[test]
fn a_transfer_that_breaks_leaves_the_side_as_it_was() {
    let mut node = transferring();
    let commands = node.handle(at(5), NodeEvent::PeerDisconnected);
    assert!(commands.contains(&NodeCommand::EndTransfer));
    assert_eq!((node.role(), node.generation()), (Role::Solo, 2));
    let out = node.handle(at(6), NodeEvent::Emitted(vec![recorded_output(40, 1)]));
    assert_eq!(releases(&out), [packet(1)]);
}

#[test]
fn a_state_that_comes_too_late_is_for_nobody() {
    let mut node = transferring();
    node.handle(at(5), NodeEvent::TransferReady { attempt: 1 });
    node.handle(at(6), NodeEvent::PeerDisconnected);
    // Another backup came meanwhile; it must not get half of the first one's state.
    node.handle(at(7), NodeEvent::PeerConnected);
    node.handle(at(8), NodeEvent::PeerMessage(hello()));
    let items = vec![state(1, 42), recorded_output(42, 3)];
    let commands = node.handle(at(9), NodeEvent::Emitted(items));
    assert_eq!(releases(&commands), [packet(3)]);
    assert_eq!(node.role(), Role::Solo);
}

#[test]
fn a_backup_lost_after_the_state_is_a_lost_backup() {
    let mut node = transferring();
    let items = vec![state(1, 42), recorded_output(42, 3)];
    node.handle(at(5), NodeEvent::Emitted(items));
    let commands = node.handle(at(6), NodeEvent::PeerDisconnected);
    let claim = NodeCommand::Claim {
        expected: 2,
        new: 3,
    };
    assert!(commands.contains(&claim), "it may hold all of the guest");
    assert_eq!(releases(&commands), []);
    assert_eq!(releases(&node.handle(at(7), granted(3))), [packet(3)]);
}

#[test]
fn a_guest_that_ends_during_the_transfer_ends() {
    let mut node = transferring();
    let end = Emitted::Ended(EndReason::PowerOff);
    let commands = node.handle(at(5), NodeEvent::Emitted(vec![end]));
    assert!(commands.contains(&NodeCommand::Send(Message::Goodbye(Goodbye::GuestEnded))));
    assert_eq!(node.role(), Role::Ended);
}

/// A backup that was welcomed to a running guest.
fn loading() -> Node {
    let mut node = node(Part::Backup);
    node.handle(at(0), NodeEvent::Start);
    node.handle(at(0), NodeEvent::PeerConnected);
    let running = Welcome {
        begins: Begins::WithTransfer,
        generation: 2,
        ..welcome()
    };
    node.handle(at(1), NodeEvent::PeerMessage(Message::Welcome(running)));
    node.handle(at(2), NodeEvent::PeerMessage(Message::Part(vec![7; 10])));
    assert_eq!(node.role(), Role::Joining);
    node
}

#[test]
fn half_a_state_is_no_backup() {
    let mut node = loading();
    let commands = node.handle(at(3), NodeEvent::PeerDisconnected);
    assert!(commands.contains(&NodeCommand::Engine(Offer::Unload)));
    assert_eq!(node.role(), Role::Joining);
    // What the builder says of it later is not counted for the next attempt.
    let loaded = |unloads| Emitted::Loaded { unloads, bytes: 10 };
    node.handle(at(4), NodeEvent::PeerConnected);
    let stale = node.handle(at(5), NodeEvent::Emitted(vec![loaded(0)]));
    assert!(
        !stale
            .iter()
            .any(|c| matches!(c, NodeCommand::Send(Message::Taken(_))))
    );
}

#[test]
fn a_whole_state_is_a_backup_that_may_go_live() {
    let mut node = loading();
    let complete = Message::Complete(logging_channel::message::Complete {
        first_index: LogIndex(42),
        bytes: 10,
    });
    let commands = node.handle(at(3), NodeEvent::PeerMessage(complete));
    let (next, clock) = (LogIndex(42), ClockKind::Exits);
    let begin = Offer::Begin { next, clock };
    assert!(commands.contains(&NodeCommand::Engine(begin)));
    assert_eq!((node.role(), node.generation()), (Role::Following, 2));
    node.handle(at(4), NodeEvent::PeerDisconnected);
    let claimed = node.handle(at(5), NodeEvent::Emitted(vec![Emitted::Drained]));
    let claim = NodeCommand::Claim {
        expected: 2,
        new: 3,
    };
    assert!(claimed.contains(&claim), "{claimed:?}");
}

#[test]
fn a_guest_is_handed_over_when_the_backup_has_all_of_it() {
    let mut node = protected();
    let asked = node.handle(at(1), NodeEvent::OperatorHandover);
    assert!(asked.contains(&NodeCommand::Engine(Offer::Rest)));
    let items = vec![recorded_output(0, 1), Emitted::Rested];
    node.handle(at(2), NodeEvent::Emitted(items));
    assert_eq!(node.role(), Role::Protected, "the backup lacks a record");
    let commands = node.handle(at(3), NodeEvent::PeerMessage(ack(1, 0)));
    assert_eq!(releases(&commands), [packet(1)]);
    assert!(commands.contains(&NodeCommand::Send(Message::Goodbye(Goodbye::HandedOver))));
    assert_eq!(node.role(), Role::Halted);
}

#[test]
fn a_backup_lost_during_a_handover_leaves_the_guest_here() {
    let mut node = protected();
    node.handle(at(1), NodeEvent::OperatorHandover);
    let items = vec![recorded_output(0, 1), Emitted::Rested];
    node.handle(at(2), NodeEvent::Emitted(items));
    let commands = node.handle(at(2), NodeEvent::PeerDisconnected);
    assert!(commands.contains(&NodeCommand::Engine(Offer::GoOn)));
    assert_eq!(node.role(), Role::Contested);
}

#[test]
fn a_backup_takes_over_at_once_when_it_is_given_the_guest() {
    let mut node = following(vec![timer(0)]);
    node.handle(at(2), NodeEvent::Emitted(vec![replayed(1, &[])]));
    let goodbye = NodeEvent::PeerMessage(Message::Goodbye(Goodbye::HandedOver));
    let commands = node.handle(at(3), goodbye);
    assert!(commands.contains(&NodeCommand::Engine(Offer::FinishLog)));
    let commands = node.handle(at(4), NodeEvent::Emitted(vec![Emitted::Drained]));
    assert!(
        commands
            .iter()
            .any(|c| matches!(c, NodeCommand::Claim { .. }))
    );
}
