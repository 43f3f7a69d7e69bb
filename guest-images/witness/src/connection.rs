//! One client connection, without its socket: bytes in, bytes out.
//!
//! Memory is bounded: at most one incomplete request is held, replies wait up to
//! [`REPLIES_BYTES_MAX`], and a burst is a number, not a buffer. While output waits nothing more is
//! read, so that a client that does not read its answers slows only itself.

use crate::service::Service;
use crate::wire::{
    PAYLOAD_BYTES_MAX, REPLY_BYTES, REQUEST_HEADER_BYTES, Request, WireError, burst_byte,
};

/// Replies that may wait before reading stops.
pub const REPLIES_BYTES_MAX: usize = 64 * REPLY_BYTES;
/// Bytes produced for one write.
const OUTPUT_CHUNK_BYTES: usize = 64 * 1024;
/// Bytes of requests held at once: one of the longest, and what one read brings.
const INPUT_BYTES_MAX: usize = REQUEST_HEADER_BYTES + PAYLOAD_BYTES_MAX;

/// A connection's buffers.
#[derive(Debug, Default)]
pub struct Connection {
    input: Vec<u8>,
    output: Vec<u8>,
    burst_next: u32,
    burst_end: u32,
}

impl Connection {
    /// How many more bytes [`Connection::receive`] takes now; 0 while output waits.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.output.len() >= REPLIES_BYTES_MAX || self.in_burst() {
            return 0;
        }
        INPUT_BYTES_MAX.saturating_sub(self.input.len())
    }

    /// True while there is something to send.
    #[must_use]
    pub fn wants_to_send(&self) -> bool {
        !self.output.is_empty() || self.in_burst()
    }

    /// Takes bytes from the client and serves the complete requests among them.
    ///
    /// # Errors
    /// When they are no requests: the connection must be closed.
    pub fn receive(&mut self, bytes: &[u8], service: &mut Service) -> Result<(), WireError> {
        self.input.extend_from_slice(bytes);
        self.serve(service)
    }

    /// The next bytes to send, if any.
    pub fn output(&mut self) -> &[u8] {
        while self.in_burst() && self.output.len() < OUTPUT_CHUNK_BYTES {
            self.output.push(burst_byte(self.burst_next));
            self.burst_next += 1;
        }
        &self.output
    }

    /// The first `count` bytes of [`Connection::output`] are on their way; goes on with requests
    /// that waited for room.
    ///
    /// # Errors
    /// As [`Connection::receive`].
    pub fn sent(&mut self, count: usize, service: &mut Service) -> Result<(), WireError> {
        self.output.drain(..count.min(self.output.len()));
        self.serve(service)
    }

    fn in_burst(&self) -> bool {
        self.burst_next < self.burst_end
    }

    fn serve(&mut self, service: &mut Service) -> Result<(), WireError> {
        let mut used = 0;
        while !self.in_burst() && self.output.len() < REPLIES_BYTES_MAX {
            let Some((request, length)) = Request::decode(&self.input[used..])? else {
                break;
            };
            used += length;
            let reply = service.handle(&request);
            self.output.extend_from_slice(&reply.encode());
            (self.burst_next, self.burst_end) = (0, reply.burst_bytes);
        }
        self.input.drain(..used);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Outcome, Reply, RequestKind};
    use proptest::prelude::*;

    fn frames(count: u64, burst_bytes: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for sequence in 1..=count {
            Request {
                kind: RequestKind::Apply,
                client: 5,
                sequence,
                burst_bytes,
                payload: vec![7; 10],
            }
            .encode(&mut bytes);
        }
        bytes
    }

    /// Feeds `bytes` in pieces of `piece` bytes at most, taking output `take` bytes at a time.
    fn converse(bytes: &[u8], piece: usize, take: usize) -> Vec<u8> {
        let (mut connection, mut service) = (Connection::default(), Service::default());
        let (mut rest, mut answers) = (bytes, Vec::new());
        loop {
            let now = rest.len().min(piece).min(connection.room());
            connection
                .receive(&rest[..now], &mut service)
                .expect("frames are good");
            rest = &rest[now..];
            let output = connection.output();
            let count = output.len().min(take);
            answers.extend_from_slice(&output[..count]);
            connection
                .sent(count, &mut service)
                .expect("frames are good");
            if rest.is_empty() && !connection.wants_to_send() {
                return answers;
            }
        }
    }

    proptest! {
        #[test]
        fn answers_do_not_depend_on_how_bytes_arrive(piece in 1..400usize, take in 1..400usize, burst in 0..300u32) {
            let bytes = frames(5, burst);
            prop_assert_eq!(converse(&bytes, piece, take), converse(&bytes, usize::MAX, usize::MAX));
        }
    }

    #[test]
    fn a_burst_follows_its_reply_and_delays_the_next() {
        let answers = converse(&frames(2, 1_000), usize::MAX, 333);
        assert_eq!(answers.len(), 2 * (REPLY_BYTES + 1_000));
        let burst = &answers[REPLY_BYTES..REPLY_BYTES + 1_000];
        assert!(
            burst
                .iter()
                .zip(0..)
                .all(|(byte, index)| *byte == burst_byte(index))
        );
        let second = Reply::decode(&answers[REPLY_BYTES + 1_000..])
            .expect("good")
            .expect("whole");
        assert_eq!((second.outcome, second.sequence), (Outcome::Applied, 2));
    }

    #[test]
    fn a_client_that_does_not_read_is_not_read() {
        let (mut connection, mut service) = (Connection::default(), Service::default());
        let bytes = frames(1_000, 0);
        let mut rest = &bytes[..];
        while connection.room() > 0 && !rest.is_empty() {
            let now = rest.len().min(connection.room());
            connection
                .receive(&rest[..now], &mut service)
                .expect("good");
            rest = &rest[now..];
        }
        assert_eq!(connection.output().len(), REPLIES_BYTES_MAX);
        assert!(connection.input.len() <= INPUT_BYTES_MAX);
        assert_eq!(service.applied(), 64);
    }

    #[test]
    fn bytes_that_are_no_request_end_the_connection() {
        let (mut connection, mut service) = (Connection::default(), Service::default());
        let error = connection
            .receive(&[0; 64], &mut service)
            .expect_err("no magic");
        assert_eq!(error.field, "magic");
    }
}
