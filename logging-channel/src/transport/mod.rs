//! How messages travel: whole, in order, and known to be sound.
//!
//! [`tcp`] is the real one, [`memory`] a seeded link for simulation. Both pass the conformance
//! tests below. What messages mean, and what silence means, is `session`'s.

#![forbid(unsafe_code)]

pub mod memory;
pub mod tcp;

use crate::codec::{DecodeError, EncodeError};
use crate::frame::FrameError;
use crate::message::Message;
use std::io;

/// One end of a connection that carries messages.
///
/// Messages arrive in the order in which they were sent, each once and undamaged, or the connection
/// fails: there is no resynchronisation inside a connection.
#[expect(
    async_fn_in_trait,
    reason = "used on one thread only; no Send bound is needed"
)]
pub trait Transport {
    /// Sends `message`, waiting until the other side's buffers take it.
    ///
    /// # Errors
    /// When it has no byte form, or the connection failed.
    async fn send(&mut self, message: &Message) -> Result<(), TransportError>;

    /// The next message; `None` after the other side closed between messages.
    ///
    /// # Errors
    /// When the connection failed, or carried anything but sound frames.
    async fn next(&mut self) -> Result<Option<Message>, TransportError>;
}

/// Why a connection cannot be made or used any more.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The socket failed.
    #[error("cannot {operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// How it failed.
        source: io::Error,
    },
    /// No connection in time.
    #[error("no connection within {ms} ms")]
    ConnectTimeout {
        /// The time that was given.
        ms: u64,
    },
    /// The bytes at this place of the stream are not a frame.
    #[error("at byte {offset} of the stream: {error}")]
    Frame {
        /// Offset of the frame from the connection's beginning.
        offset: u64,
        /// What is wrong.
        error: FrameError,
    },
    /// The frame at this place of the stream is sound, its payload is not.
    #[error("in the frame at byte {offset} of the stream: {error}")]
    Payload {
        /// Offset of the frame from the connection's beginning.
        offset: u64,
        /// What is wrong, and where in the payload.
        error: DecodeError,
    },
    /// The other side closed in the middle of a frame.
    #[error("the stream ends inside the frame at byte {offset}")]
    ClosedInFrame {
        /// Offset of the frame from the connection's beginning.
        offset: u64,
    },
    /// A message that has no byte form.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// More is queued for sending than may be.
    #[error("{queued} bytes are queued, {max} may be")]
    QueueFull {
        /// Bytes queued.
        queued: usize,
        /// The limit.
        max: usize,
    },
    /// A simulated link on which nothing is under way: a real one would wait for ever.
    #[error("nothing is under way on this link")]
    Idle,
}

#[cfg(test)]
mod conformance;
