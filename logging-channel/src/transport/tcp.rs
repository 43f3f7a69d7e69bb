//! Messages over TCP, or over any other byte stream (TLS, an in-memory pipe).
//!
//! Invariants: at most one frame is buffered for reading, and [`WRITE_QUEUE_BYTES_MAX`] for
//! writing; [`FrameReader::next`] and [`FrameWriter::flush`] may be cancelled at any await (in a
//! `select!`) and called again, nothing is lost or repeated; the first error is the last word of a
//! connection. Deadlines other than the one for connecting are the session's: a peer that falls
//! silent is noticed by its heartbeats.

#![forbid(unsafe_code)]

use super::{Transport, TransportError};
use crate::codec::{EncodedLog, decode_message, encode_message};
use crate::frame::{self, FRAME_BYTES_MAX, FrameError, HEADER_BYTES};
use crate::message::Message;
use bytes::{Bytes, BytesMut};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};

/// Most bytes that may wait in a [`FrameWriter`].
pub const WRITE_QUEUE_BYTES_MAX: usize = 16 << 20;

/// Room that is made for one read: at least the first, and not more than the second for a length
/// that a header claims before its bytes are there.
const READ_BYTES: std::ops::RangeInclusive<usize> = 16 * 1024..=64 * 1024;

const _: () = assert!(
    WRITE_QUEUE_BYTES_MAX >= 2 * FRAME_BYTES_MAX,
    "any frame can be queued"
);

/// Waits for peers.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
}

impl Listener {
    /// Listens at `address`.
    ///
    /// # Errors
    /// When the address cannot be resolved or is in use.
    pub async fn bind(address: impl ToSocketAddrs) -> Result<Self, TransportError> {
        let listener = TcpListener::bind(address).await.map_err(failed("listen"))?;
        Ok(Self { listener })
    }

    /// The address that is listened at, with the port that the system chose if it was 0.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn local_address(&self) -> Result<SocketAddr, TransportError> {
        self.listener
            .local_addr()
            .map_err(failed("read the local address"))
    }

    /// The next peer. May be cancelled.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn accept(&self) -> Result<(Connection, SocketAddr), TransportError> {
        let (stream, peer) = self.listener.accept().await.map_err(failed("accept"))?;
        Ok((Connection::new(stream)?, peer))
    }
}

/// A TCP connection to a peer.
#[derive(Debug)]
pub struct Connection {
    reader: FrameReader<OwnedReadHalf>,
    writer: FrameWriter<OwnedWriteHalf>,
}

impl Connection {
    /// Connects to `address`, giving up after `timeout_ms`.
    ///
    /// # Errors
    /// When the address cannot be resolved, nobody answers in time, or the peer refuses.
    pub async fn connect(
        address: impl ToSocketAddrs,
        timeout_ms: u64,
    ) -> Result<Self, TransportError> {
        let timeout = Duration::from_millis(timeout_ms);
        match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
            Err(_) => Err(TransportError::ConnectTimeout { ms: timeout_ms }),
            Ok(connected) => Self::new(connected.map_err(failed("connect"))?),
        }
    }

    fn new(stream: TcpStream) -> Result<Self, TransportError> {
        // An acknowledgement that waits for the kernel to fill a segment delays output.
        stream
            .set_nodelay(true)
            .map_err(failed("set TCP_NODELAY"))?;
        let (read, write) = stream.into_split();
        Ok(Self {
            reader: FrameReader::new(read),
            writer: FrameWriter::new(write),
        })
    }

    /// The two directions, to be used apart.
    #[must_use]
    pub fn split(self) -> (FrameReader<OwnedReadHalf>, FrameWriter<OwnedWriteHalf>) {
        (self.reader, self.writer)
    }
}

impl Transport for Connection {
    async fn send(&mut self, message: &Message) -> Result<(), TransportError> {
        self.writer.send(message).await
    }

    async fn next(&mut self) -> Result<Option<Message>, TransportError> {
        self.reader.next().await
    }
}

/// The receiving direction of a connection.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    /// Offset of the buffer's first byte from the connection's beginning.
    offset: u64,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames from `stream`, of which nothing was read yet.
    #[must_use]
    pub fn new(stream: R) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            offset: 0,
        }
    }

    /// The next message; `None` after the peer closed between frames. May be cancelled.
    ///
    /// # Errors
    /// When the stream fails, or carries anything but sound frames.
    pub async fn next(&mut self) -> Result<Option<Message>, TransportError> {
        Ok(self.next_with_frame().await?.map(|(message, _)| message))
    }

    /// As [`Self::next`], with the frame's bytes, which may go to a segment file as they are.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn next_with_frame(&mut self) -> Result<Option<(Message, Bytes)>, TransportError> {
        loop {
            match frame::parse(&self.buffer) {
                Ok(frame) => {
                    let (offset, length) = (self.offset, frame.length());
                    let message = decode_message(frame)
                        .map_err(|error| TransportError::Payload { offset, error })?;
                    self.offset += length as u64;
                    return Ok(Some((message, self.buffer.split_to(length).freeze())));
                }
                Err(FrameError::Incomplete { need }) => {
                    let missing = need.saturating_sub(self.buffer.len());
                    self.buffer
                        .reserve(missing.clamp(*READ_BYTES.start(), *READ_BYTES.end()));
                }
                Err(error) => {
                    let offset = self.offset;
                    return Err(TransportError::Frame { offset, error });
                }
            }
            let read = self
                .stream
                .read_buf(&mut self.buffer)
                .await
                .map_err(failed("receive"))?;
            if read == 0 {
                let offset = self.offset;
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(TransportError::ClosedInFrame { offset }),
                };
            }
        }
    }
}

/// The sending direction of a connection.
///
/// Frames are queued and written together: whatever was queued before [`Self::flush`] is polled
/// goes out in as few segments as the kernel makes of it.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
    queue: BytesMut,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes frames to `stream`.
    #[must_use]
    pub fn new(stream: W) -> Self {
        Self {
            stream,
            queue: BytesMut::new(),
        }
    }

    /// Bytes that wait to be written.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.queue.len()
    }

    /// Queues `message` without waiting.
    ///
    /// # Errors
    /// When it has no byte form, or the queue is full; nothing is queued then.
    pub fn queue(&mut self, message: &Message) -> Result<(), TransportError> {
        self.queue_frame(&encode_message(message)?)
    }

    /// Queues a log frame that was encoded before, without waiting.
    ///
    /// # Errors
    /// When the queue is full; nothing is queued then.
    pub fn queue_log(&mut self, log: &EncodedLog) -> Result<(), TransportError> {
        self.queue_frame(log.bytes())
    }

    fn queue_frame(&mut self, frame: &[u8]) -> Result<(), TransportError> {
        debug_assert!(frame.len() >= HEADER_BYTES, "a whole frame");
        let (queued, max) = (self.queue.len(), WRITE_QUEUE_BYTES_MAX);
        if queued + frame.len() > max {
            return Err(TransportError::QueueFull { queued, max });
        }
        self.queue.extend_from_slice(frame);
        Ok(())
    }

    /// Writes all that is queued. May be cancelled; what was not written stays queued.
    ///
    /// # Errors
    /// When the stream fails.
    pub async fn flush(&mut self) -> Result<(), TransportError> {
        while !self.queue.is_empty() {
            let written = self
                .stream
                .write_buf(&mut self.queue)
                .await
                .map_err(failed("send"))?;
            if written == 0 {
                return Err(failed("send")(io::ErrorKind::WriteZero.into()));
            }
        }
        self.stream.flush().await.map_err(failed("send"))
    }

    /// Queues `message` and writes all that is queued. When cancelled, the message stays queued.
    ///
    /// # Errors
    /// As [`Self::queue`] and [`Self::flush`].
    pub async fn send(&mut self, message: &Message) -> Result<(), TransportError> {
        self.queue(message)?;
        self.flush().await
    }

    /// Writes all that is queued and closes this direction: the peer then reads `None`.
    ///
    /// # Errors
    /// When the stream fails.
    pub async fn close(&mut self) -> Result<(), TransportError> {
        self.flush().await?;
        self.stream.shutdown().await.map_err(failed("close"))
    }
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> TransportError {
    move |source| TransportError::Io { operation, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::sample::{one_of_each, timers};
    use crate::message::{Goodbye, Heartbeat};
    use crate::record::LogIndex;

    fn run<T>(test: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(test)
    }

    fn beat(released: u64) -> Message {
        let released = LogIndex(released);
        Message::Heartbeat(Heartbeat { released })
    }

    #[test]
    fn frames_survive_any_split_of_the_stream() {
        let messages = [
            Message::Log(one_of_each()),
            beat(7),
            Message::Log(timers(11, 50)),
        ];
        let frames: Vec<Vec<u8>> = messages
            .iter()
            .map(|message| encode_message(message).expect("valid"))
            .collect();
        let bytes = frames.concat();
        for step in [1, 3, 10, 11, bytes.len()] {
            run(async {
                let (near, far) = tokio::io::duplex(step);
                let mut reader = FrameReader::new(far);
                let write = async {
                    let mut near = near;
                    near.write_all(&bytes).await.expect("written");
                };
                let read = async {
                    for (message, frame) in messages.iter().zip(&frames) {
                        let (found, bytes) = reader
                            .next_with_frame()
                            .await
                            .expect("sound")
                            .expect("open");
                        assert_eq!((&found, &bytes[..]), (message, &frame[..]));
                    }
                    assert_eq!(reader.next().await.expect("closed between frames"), None);
                };
                tokio::join!(write, read);
            });
        }
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_says_where() {
        let bytes = encode_message(&beat(7)).expect("valid").repeat(2);
        run(async {
            let mut reader = FrameReader::new(&bytes[..15]);
            assert_eq!(reader.next().await.expect("sound"), Some(beat(7)));
            let error = reader.next().await.expect_err("cut");
            assert!(
                matches!(error, TransportError::ClosedInFrame { offset: 11 }),
                "{error}"
            );
        });
    }

    #[test]
    fn damage_is_refused_with_its_place_in_the_stream() {
        let mut bytes = encode_message(&beat(7)).expect("valid").repeat(2);
        bytes[13] ^= 1;
        run(async {
            let mut reader = FrameReader::new(&bytes[..]);
            assert_eq!(reader.next().await.expect("sound"), Some(beat(7)));
            let error = reader.next().await.expect_err("damaged");
            assert!(
                matches!(error, TransportError::Frame { offset: 11, .. }),
                "{error}"
            );
        });
        let sealed = frame::seal(frame::FrameKind::Goodbye, &[9]).expect("short");
        run(async {
            let error = FrameReader::new(&sealed[..])
                .next()
                .await
                .expect_err("no such goodbye");
            assert!(
                matches!(error, TransportError::Payload { offset: 0, .. }),
                "{error}"
            );
        });
    }

    #[test]
    fn a_hostile_length_reserves_little() {
        // A megabyte is claimed, twenty bytes come.
        let frame = frame::seal(frame::FrameKind::Log, &vec![0; 1_000_000]).expect("fits");
        run(async {
            let mut reader = FrameReader::new(&frame[..20]);
            reader.next().await.expect_err("cut");
            assert!(reader.buffer.capacity() <= 2 * READ_BYTES.end());
        });
    }

    #[test]
    fn the_write_queue_is_bounded() {
        let (near, _far) = tokio::io::duplex(16);
        let mut writer = FrameWriter::new(near);
        let log = EncodedLog::encode(&timers(0, 10_000)).expect("valid");
        let refused = loop {
            if let Err(error) = writer.queue_log(&log) {
                break error;
            }
        };
        assert!(
            matches!(refused, TransportError::QueueFull { .. }),
            "{refused}"
        );
        assert!(writer.queued_bytes() <= WRITE_QUEUE_BYTES_MAX);
    }

    #[test]
    fn a_cancelled_flush_loses_and_repeats_nothing() {
        run(async {
            let (near, far) = tokio::io::duplex(7);
            let (mut writer, mut reader) = (FrameWriter::new(near), FrameReader::new(far));
            for released in 0..20 {
                writer.queue(&beat(released)).expect("room");
            }
            let mut received = 0;
            while received < 20 {
                // Each round polls one of the two for a while and drops it.
                tokio::select! {
                    biased;
                    done = writer.flush(), if writer.queued_bytes() > 0 => done.expect("open"),
                    message = reader.next() => {
                        assert_eq!(message.expect("sound"), Some(beat(received)));
                        received += 1;
                    }
                }
            }
            writer.close().await.expect("closed");
            assert_eq!(reader.next().await.expect("closed"), None);
        });
    }

    #[test]
    fn nobody_answering_is_an_error_that_says_so() {
        run(async {
            let listener = Listener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_address().expect("bound");
            drop(listener);
            let error = Connection::connect(address, 1_000)
                .await
                .expect_err("nobody listens");
            assert_eq!(error.to_string(), "cannot connect");
        });
    }

    #[test]
    fn halves_are_used_apart() {
        run(async {
            let listener = Listener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_address().expect("bound");
            let connecting = Connection::connect(address, 1_000);
            let (connected, accepted) = tokio::join!(connecting, listener.accept());
            let (mut near_reader, mut near_writer) = connected.expect("connected").split();
            let (mut far_reader, mut far_writer) = accepted.expect("accepted").0.split();
            let log = EncodedLog::encode(&timers(0, 3)).expect("valid");
            near_writer.queue_log(&log).expect("room");
            near_writer.queue(&beat(3)).expect("room");
            near_writer.flush().await.expect("written");
            far_writer
                .send(&Message::Goodbye(Goodbye::Stopped))
                .await
                .expect("written");
            assert_eq!(
                far_reader.next().await.expect("sound"),
                Some(Message::Log(timers(0, 3)))
            );
            assert_eq!(far_reader.next().await.expect("sound"), Some(beat(3)));
            let goodbye = near_reader.next().await.expect("sound");
            assert_eq!(goodbye, Some(Message::Goodbye(Goodbye::Stopped)));
        });
    }
}
