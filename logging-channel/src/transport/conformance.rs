//! What every transport must do; each is run through the same tests.

use super::memory::{LinkFaults, MemoryEnd};
use super::tcp::{Connection, Listener};
use super::{Transport, TransportError};
use crate::codec::sample::{one_of_each, timers};
use crate::message::{Ack, Goodbye, Heartbeat, Message};
use crate::record::LogIndex;

fn run(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(test);
}

async fn tcp_pair() -> (Connection, Connection) {
    let listener = Listener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_address().expect("bound");
    let (near, far) = tokio::join!(Connection::connect(address, 1_000), listener.accept());
    (near.expect("connected"), far.expect("accepted").0)
}

fn ack(received: u64) -> Message {
    let received = LogIndex(received);
    Message::Ack(Ack {
        received,
        ..Ack::default()
    })
}

async fn expect(end: &mut impl Transport, message: &Message) {
    assert_eq!(end.next().await.expect("sound").as_ref(), Some(message));
}

/// Every kind of message both ways, in order and once.
async fn carries_messages_in_order(near: &mut impl Transport, far: &mut impl Transport) {
    let forth = [
        Message::Log(one_of_each()),
        Message::Heartbeat(Heartbeat::default()),
        Message::Log(timers(11, 2_000)),
        Message::Goodbye(Goodbye::GuestEnded),
    ];
    for message in &forth {
        near.send(message).await.expect("sent");
    }
    for received in 0..50 {
        far.send(&ack(received)).await.expect("sent");
    }
    for message in &forth {
        expect(far, message).await;
    }
    for received in 0..50 {
        expect(near, &ack(received)).await;
    }
}

/// A message without byte form is refused, and the connection still works.
async fn refuses_what_has_no_byte_form(near: &mut impl Transport, far: &mut impl Transport) {
    let refused = near.send(&Message::Log(Vec::new())).await;
    assert!(matches!(refused, Err(TransportError::Encode(_))));
    near.send(&ack(1)).await.expect("sent");
    expect(far, &ack(1)).await;
}

/// What was sent before the close arrives, and then the end.
async fn ends_after_the_last_message(far: &mut impl Transport) {
    expect(far, &ack(2)).await;
    assert_eq!(far.next().await.expect("closed between messages"), None);
    assert_eq!(far.next().await.expect("still closed"), None);
}

#[test]
fn tcp() {
    run(async {
        let (mut near, mut far) = tcp_pair().await;
        carries_messages_in_order(&mut near, &mut far).await;
        refuses_what_has_no_byte_form(&mut near, &mut far).await;
        near.send(&ack(2)).await.expect("sent");
        drop(near);
        ends_after_the_last_message(&mut far).await;
    });
}

#[test]
fn memory() {
    for seed in 0..20 {
        run(async {
            let (mut near, mut far) = MemoryEnd::pair(seed, LinkFaults::none());
            carries_messages_in_order(&mut near, &mut far).await;
            refuses_what_has_no_byte_form(&mut near, &mut far).await;
            assert!(matches!(far.next().await, Err(TransportError::Idle)));
            near.send(&ack(2)).await.expect("sent");
            near.close();
            ends_after_the_last_message(&mut far).await;
        });
    }
}
