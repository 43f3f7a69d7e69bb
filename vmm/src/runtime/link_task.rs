//! Carries the logging channel's messages over TCP, in TLS where the pair has certificates: one connection
//! at a time, numbered.
//!
//! A primary and a standby listen; a backup connects to its primary, and a side that runs the guest
//! alone to those that stand by. Who says what afterwards is the session's business, not TCP's.
//!
//! A reader task and a writer task per connection; the node sees [`LinkEvent`]s and writes to a
//! queue, so that a peer that stopped reading can never hold up the node and its clocks. The queue
//! needs no bound of its own: the session's window stops the recorder long before. Events of a
//! connection that was closed meanwhile carry its old number and are dropped by the node's loop.

use logging_channel::codec::EncodedLog;
use logging_channel::frame::FRAME_BYTES_MAX;
use logging_channel::message::Message;
use logging_channel::transport::TransportError;
use logging_channel::transport::tcp::{FrameReader, FrameWriter};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tls::{Dial, Door, Stream};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Messages read ahead of the node.
pub(super) const EVENTS_MAX: usize = 256;

/// Messages written with one flush at the most.
const WRITE_BATCH_MAX: usize = 64;

/// Pause between two tries of a backup to reach its primary.
const CONNECT_PAUSE: Duration = Duration::from_millis(200);

/// Longest time for one try.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What happens on the link.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// A connection was made; messages for it go into `writer`, and dropping that closes it after
    /// what was sent.
    Connected {
        /// Number of the connection.
        number: u64,
        /// Its writer's queue.
        writer: UnboundedSender<Message>,
    },
    /// The peer said something.
    Said {
        /// On which connection.
        number: u64,
        /// What.
        message: Message,
    },
    /// The connection is gone, or said something that is no message.
    Gone {
        /// Which.
        number: u64,
        /// Why, for the log.
        cause: String,
    },
}

/// Longest pause between two tries to find a standby.
const INVITE_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Numbers of connections: unique among all tasks of one life.
pub(super) type Numbers = Arc<AtomicU64>;

fn next_number(numbers: &Numbers) -> u64 {
    numbers.fetch_add(1, Ordering::Relaxed) + 1
}

/// Accepts peers, one connection after the other. While one is in use, whoever else connects is
/// turned away here: a port scan must not cost the pair its connection.
pub(super) async fn listen(mut door: Door, events: Sender<LinkEvent>, numbers: Numbers) {
    let places = Arc::new(Semaphore::new(1));
    loop {
        let accepted = door.next().await;
        let (peer, names) = (accepted.peer, accepted.names);
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(%peer, ?names, "turned away: the logging channel has its connection");
            continue;
        };
        let number = next_number(&numbers);
        tracing::info!(%peer, ?names, "peer connected");
        if open(accepted.stream, number, &events, Some(place))
            .await
            .is_none()
        {
            return;
        }
    }
}

/// Connects to the primary; once connected, again whenever it is asked to.
pub(super) async fn connect(
    primary: SocketAddr,
    dial: Dial,
    events: Sender<LinkEvent>,
    mut again: Receiver<()>,
    numbers: Numbers,
) {
    loop {
        match tokio::time::timeout(CONNECT_TIMEOUT, dial.connect(primary)).await {
            Ok(Ok(stream)) => {
                let number = next_number(&numbers);
                if open(stream, number, &events, None).await.is_none()
                    || again.recv().await.is_none()
                {
                    return;
                }
            }
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                tracing::warn!(%primary, %error, "what listens there is not our primary");
            }
            Ok(Err(error)) => tracing::debug!(%primary, %error, "primary not reached"),
            Err(_) => tracing::debug!(%primary, "primary not reached in time"),
        }
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
}

/// Connects to one of `standbys`, whichever answers first, as often as it is wanted.
pub(super) async fn invite(
    standbys: Vec<SocketAddr>,
    dial: Dial,
    events: Sender<LinkEvent>,
    mut wanted: Receiver<()>,
    numbers: Numbers,
) {
    // Begins with the next one each time: one that answers and is of no use must not be the only one.
    let mut turns = standbys.iter().cycle();
    // Longer after every invitation: one that ended soon cost the guest something, and would again.
    let mut pause = CONNECT_PAUSE;
    while wanted.recv().await.is_some() {
        loop {
            tokio::time::sleep(pause).await;
            let Some(standby) = turns.next() else { return };
            match tokio::time::timeout(CONNECT_TIMEOUT, dial.connect(*standby)).await {
                Ok(Ok(stream)) => {
                    tracing::info!(%standby, "invited to be the backup");
                    let number = next_number(&numbers);
                    if open(stream, number, &events, None).await.is_none() {
                        return;
                    }
                    pause = (pause * 2).min(INVITE_PAUSE_MAX);
                    break;
                }
                Ok(Err(error)) => tracing::debug!(%standby, %error, "standby not reached"),
                Err(_) => tracing::debug!(%standby, "standby not reached in time"),
            }
            if events.is_closed() {
                return;
            }
        }
    }
}

/// Starts the two tasks of a connection; `None` when the node is gone. The place is free again when
/// the node has let go of the connection and what it sent is written.
async fn open(
    stream: Stream,
    number: u64,
    events: &Sender<LinkEvent>,
    place: Option<OwnedSemaphorePermit>,
) -> Option<()> {
    let (reader, writer) = tokio::io::split(stream);
    let (reader, writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    let (queue, messages) = unbounded_channel();
    events
        .send(LinkEvent::Connected {
            number,
            writer: queue,
        })
        .await
        .ok()?;
    tokio::spawn(read(reader, number, events.clone()));
    tokio::spawn(async move {
        write(writer, messages).await;
        drop(place);
    });
    Some(())
}

async fn read(mut reader: FrameReader<ReadHalf<Stream>>, number: u64, events: Sender<LinkEvent>) {
    let cause = loop {
        match reader.next().await {
            Ok(Some(message)) => {
                if events
                    .send(LinkEvent::Said { number, message })
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Ok(None) => break "closed by the peer".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    // The node may be gone: then nobody needs to know.
    let _ = events.send(LinkEvent::Gone { number, cause }).await;
}

async fn write(
    mut writer: FrameWriter<WriteHalf<Stream>>,
    mut messages: UnboundedReceiver<Message>,
) {
    let mut batch = Vec::new();
    while messages.recv_many(&mut batch, WRITE_BATCH_MAX).await > 0 {
        for message in batch.drain(..) {
            if let Err(error) = put(&mut writer, &message).await {
                // The reader reports the connection's end; there is nothing more to write.
                tracing::debug!(%error, "write failed");
                return;
            }
        }
        if let Err(error) = writer.flush().await {
            tracing::debug!(%error, "flush failed");
            return;
        }
    }
    if let Err(error) = writer.close().await {
        tracing::debug!(%error, "close failed");
    }
}

/// Queues a message, writing first what is queued already when it would be too much.
async fn put(
    writer: &mut FrameWriter<WriteHalf<Stream>>,
    message: &Message,
) -> Result<(), TransportError> {
    if writer.queued_bytes() >= FRAME_BYTES_MAX {
        writer.flush().await?;
    }
    match message {
        // More records than one frame holds.
        Message::Log(records) => {
            for log in EncodedLog::encode_all(records)? {
                if writer.queued_bytes() >= FRAME_BYTES_MAX {
                    writer.flush().await?;
                }
                writer.queue_log(&log)?;
            }
            Ok(())
        }
        other => writer.queue(other),
    }
}

#[cfg(test)]
#[path = "link_task_tests.rs"]
mod tests;
