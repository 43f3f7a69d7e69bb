//! Frames of the witness protocol, byte by byte as in `README.md`. All integers little-endian.
//!
//! Decoding is total: any bytes give a frame, "not yet enough", or a [`WireError`] naming the
//! offset. Nothing is allocated beyond the declared limits.

use std::fmt;

/// First four bytes of a request: `WIT1`.
pub const REQUEST_MAGIC: u32 = u32::from_le_bytes(*b"WIT1");
/// First four bytes of a reply: `WIR1`.
pub const REPLY_MAGIC: u32 = u32::from_le_bytes(*b"WIR1");
/// Bytes of a request before its payload.
pub const REQUEST_HEADER_BYTES: usize = 32;
/// Bytes of a reply before its burst.
pub const REPLY_BYTES: usize = 64;
/// Longest payload of one request.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// Longest burst that one request can ask for.
pub const BURST_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// Apply: advance the client's counter and both hashes.
    Apply,
    /// Only tell the present state; `sequence` is echoed and not checked.
    Report,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub kind: RequestKind,
    /// Who asks; chosen by the client, unique among the clients of one guest.
    pub client: u64,
    /// 1 for a client's first request, then always one more.
    pub sequence: u64,
    /// Pattern bytes wanted after the reply, at most [`BURST_BYTES_MAX`].
    pub burst_bytes: u32,
    /// Bytes to hash, at most [`PAYLOAD_BYTES_MAX`].
    pub payload: Vec<u8>,
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Applied; the counters include it.
    Applied,
    /// Not applied: the next sequence number of this client is `client_counter + 1`.
    WrongSequence,
    /// Not applied: the table of clients is full.
    TooManyClients,
    /// Answer to [`RequestKind::Report`].
    Report,
}

/// One reply. Everything but `outcome` and the echoes is state *after* the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// What came of it.
    pub outcome: Outcome,
    /// Echo.
    pub client: u64,
    /// Echo.
    pub sequence: u64,
    /// Requests of this client applied so far; also its highest applied sequence number.
    pub client_counter: u64,
    /// Running hash over this client's applied requests.
    pub client_hash: u64,
    /// Requests of all clients applied so far.
    pub global_counter: u64,
    /// Running hash over all applied requests in the order of application.
    pub global_hash: u64,
    /// Pattern bytes that follow this reply.
    pub burst_bytes: u32,
}

/// Bytes that are no frame. The connection cannot be read further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireError {
    /// Offset of the offending field within the frame.
    pub offset: usize,
    /// What the field is called.
    pub field: &'static str,
    /// What it held.
    pub found: u64,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "bad {} at byte {} of the frame: {:#x}",
            self.field, self.offset, self.found
        )
    }
}

impl std::error::Error for WireError {}

/// The byte at position `index` of a burst: a sawtooth whose period divides no power of two, so
/// that a shifted, repeated or missing segment is seen.
#[must_use]
pub fn burst_byte(index: u32) -> u8 {
    u8::try_from(index % 251).unwrap_or_default()
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(field)
}

fn long(bytes: &[u8], offset: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(field)
}

fn check(offset: usize, field: &'static str, found: u64, good: bool) -> Result<(), WireError> {
    if good {
        Ok(())
    } else {
        Err(WireError {
            offset,
            field,
            found,
        })
    }
}

impl Request {
    /// Appends the frame to `out`. The payload is cut at [`PAYLOAD_BYTES_MAX`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        let payload = &self.payload[..self.payload.len().min(PAYLOAD_BYTES_MAX)];
        let length = u32::try_from(payload.len()).unwrap_or_default();
        let kind: u32 = match self.kind {
            RequestKind::Apply => 1,
            RequestKind::Report => 2,
        };
        out.extend_from_slice(&REQUEST_MAGIC.to_le_bytes());
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&self.client.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&self.burst_bytes.to_le_bytes());
        out.extend_from_slice(payload);
    }

    /// The request at the start of `bytes` and its length; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When these bytes can never become a request.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, WireError> {
        if bytes.len() < REQUEST_HEADER_BYTES {
            return Ok(None);
        }
        let magic = word(bytes, 0);
        check(0, "magic", magic.into(), magic == REQUEST_MAGIC)?;
        let kind = match word(bytes, 4) {
            1 => RequestKind::Apply,
            2 => RequestKind::Report,
            other => {
                return Err(WireError {
                    offset: 4,
                    field: "kind",
                    found: other.into(),
                });
            }
        };
        let length = word(bytes, 24) as usize;
        check(
            24,
            "payload length",
            length as u64,
            length <= PAYLOAD_BYTES_MAX,
        )?;
        let burst_bytes = word(bytes, 28);
        check(
            28,
            "burst length",
            burst_bytes.into(),
            burst_bytes <= BURST_BYTES_MAX,
        )?;
        let end = REQUEST_HEADER_BYTES + length;
        if bytes.len() < end {
            return Ok(None);
        }
        let payload = bytes[REQUEST_HEADER_BYTES..end].to_vec();
        let (client, sequence) = (long(bytes, 8), long(bytes, 16));
        Ok(Some((
            Self {
                kind,
                client,
                sequence,
                burst_bytes,
                payload,
            },
            end,
        )))
    }
}

impl Reply {
    /// The frame.
    #[must_use]
    pub fn encode(&self) -> [u8; REPLY_BYTES] {
        let outcome: u32 = match self.outcome {
            Outcome::Applied => 1,
            Outcome::WrongSequence => 2,
            Outcome::TooManyClients => 3,
            Outcome::Report => 4,
        };
        let mut frame = [0; REPLY_BYTES];
        frame[0..4].copy_from_slice(&REPLY_MAGIC.to_le_bytes());
        frame[4..8].copy_from_slice(&outcome.to_le_bytes());
        let longs = [
            self.client,
            self.sequence,
            self.client_counter,
            self.client_hash,
            self.global_counter,
            self.global_hash,
        ];
        for (slot, value) in frame[8..56].chunks_exact_mut(8).zip(longs) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        frame[56..60].copy_from_slice(&self.burst_bytes.to_le_bytes());
        frame
    }

    /// The reply at the start of `bytes`; `None` when there are fewer than [`REPLY_BYTES`]. Its
    /// burst, if any, follows.
    ///
    /// # Errors
    /// When these bytes can never become a reply.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        if bytes.len() < REPLY_BYTES {
            return Ok(None);
        }
        let magic = word(bytes, 0);
        check(0, "magic", magic.into(), magic == REPLY_MAGIC)?;
        let outcome = match word(bytes, 4) {
            1 => Outcome::Applied,
            2 => Outcome::WrongSequence,
            3 => Outcome::TooManyClients,
            4 => Outcome::Report,
            other => {
                return Err(WireError {
                    offset: 4,
                    field: "outcome",
                    found: other.into(),
                });
            }
        };
        let burst_bytes = word(bytes, 56);
        check(
            56,
            "burst length",
            burst_bytes.into(),
            burst_bytes <= BURST_BYTES_MAX,
        )?;
        check(60, "padding", word(bytes, 60).into(), word(bytes, 60) == 0)?;
        Ok(Some(Self {
            outcome,
            client: long(bytes, 8),
            sequence: long(bytes, 16),
            client_counter: long(bytes, 24),
            client_hash: long(bytes, 32),
            global_counter: long(bytes, 40),
            global_hash: long(bytes, 48),
            burst_bytes,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request() -> impl Strategy<Value = Request> {
        (
            any::<bool>(),
            any::<u64>(),
            any::<u64>(),
            0..=BURST_BYTES_MAX,
            proptest::collection::vec(any::<u8>(), 0..300),
        )
            .prop_map(|(apply, client, sequence, burst_bytes, payload)| Request {
                kind: if apply {
                    RequestKind::Apply
                } else {
                    RequestKind::Report
                },
                client,
                sequence,
                burst_bytes,
                payload,
            })
    }

    proptest! {
        #[test]
        fn requests_round_trip_and_prefixes_are_incomplete(request in request(), cut in 0.0..1.0f64) {
            let mut frame = Vec::new();
            request.encode(&mut frame);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a position in a short frame")]
            let cut = (frame.len() as f64 * cut) as usize;
            prop_assert_eq!(Request::decode(&frame[..cut]), Ok(None));
            let length = frame.len();
            prop_assert_eq!(Request::decode(&frame), Ok(Some((request, length))));
        }

        #[test]
        fn replies_round_trip(outcome in 0..4usize, longs in any::<[u64; 6]>(), burst_bytes in 0..=BURST_BYTES_MAX) {
            let reply = Reply {
                outcome: [Outcome::Applied, Outcome::WrongSequence, Outcome::TooManyClients, Outcome::Report][outcome],
                client: longs[0],
                sequence: longs[1],
                client_counter: longs[2],
                client_hash: longs[3],
                global_counter: longs[4],
                global_hash: longs[5],
                burst_bytes,
            };
            prop_assert_eq!(Reply::decode(&reply.encode()), Ok(Some(reply)));
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
            let mut bytes = bytes;
            if magic && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(b"WIT1");
            }
            let _ = Request::decode(&bytes);
            let _ = Reply::decode(&bytes);
        }
    }

    #[test]
    fn golden_request() {
        let request = Request {
            kind: RequestKind::Apply,
            client: 7,
            sequence: 0x102,
            burst_bytes: 9,
            payload: b"hi".to_vec(),
        };
        let mut frame = Vec::new();
        request.encode(&mut frame);
        let expected = [
            b'W', b'I', b'T', b'1', 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 2,
            0, 0, 0, 9, 0, 0, 0, b'h', b'i',
        ];
        assert_eq!(frame, expected);
    }

    #[test]
    fn limits_are_refused_with_their_place() {
        let mut frame = Vec::new();
        Request {
            kind: RequestKind::Apply,
            client: 1,
            sequence: 1,
            burst_bytes: 0,
            payload: vec![],
        }
        .encode(&mut frame);
        frame[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = Request::decode(&frame).expect_err("longer than the limit");
        assert_eq!((error.offset, error.field), (24, "payload length"));
        assert_eq!(
            error.to_string(),
            "bad payload length at byte 24 of the frame: 0xffffffff"
        );
    }
}
