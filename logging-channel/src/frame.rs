//! Frames: the unit of the channel and of segment files.
//!
//! ```text
//!  0        1        2                 5        6                          10
//!  +--------+--------+-----------------+--------+--------------------------+---------+
//!  | A|ver  | kind   | payload length  | CRC-8  | CRC-32C of bytes 0..6    | payload |
//!  |        |        | 24 bits, LE     | of 0..5| and of the payload, LE   |         |
//!  +--------+--------+-----------------+--------+--------------------------+---------+
//! ```
//!
//! The header has a check of its own so that a damaged length is known at once: a stream reader
//! does not wait for bytes that will never come, and recovery can tell a file that ends inside a
//! frame (a torn write) from one whose length field was changed (damage).
//!
//! Invariants: [`parse`] is total, allocates nothing, and answers `Incomplete` only for a prefix
//! of a frame whose header, as far as it is there, is sound. Byte form: `docs/formats/log.md`.
//! What is left out: the meaning of payloads (`codec`), where bytes come from.

#![forbid(unsafe_code)]

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 10;
/// Longest frame, header included.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Longest payload.
pub const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - HEADER_BYTES;
/// Version of the frame and of every payload layout inside it.
pub const FRAME_VERSION: u8 = 1;

/// High half of byte 0; the low half is the version.
const MAGIC: u8 = 0xA0;
/// Where the CRC-32C begins; everything before it is covered by it.
const CRC_OFFSET: usize = 6;

const _: () = assert!(FRAME_VERSION < 16, "the version is half a byte");
const _: () = assert!(PAYLOAD_BYTES_MAX < 1 << 24, "the length has 24 bits");

/// What a frame's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// A backup introduces itself.
    Hello = 1,
    /// The primary accepts.
    Welcome = 2,
    /// The primary refuses.
    Refused = 3,
    /// A batch of log records.
    Log = 4,
    /// Cumulative acknowledgement.
    Ack = 5,
    /// Still here.
    Heartbeat = 6,
    /// An orderly end.
    Goodbye = 7,
    /// A piece of the guest's state.
    Part = 8,
    /// The state is complete.
    Complete = 9,
    /// How much of the state was taken in.
    Taken = 10,
}

impl FrameKind {
    /// The kind with number `byte`.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Refused,
            4 => Self::Log,
            5 => Self::Ack,
            6 => Self::Heartbeat,
            7 => Self::Goodbye,
            8 => Self::Part,
            9 => Self::Complete,
            10 => Self::Taken,
            _ => return None,
        })
    }
}

/// A whole, sound frame at the start of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the payload is.
    pub kind: FrameKind,
    /// The payload.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Length of the whole frame in bytes.
    #[must_use]
    pub const fn length(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }
}

/// Why a buffer does not begin with a whole frame. Offsets count from the buffer's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The buffer is a proper prefix of a frame.
    #[error("the frame is incomplete: {need} bytes are needed")]
    Incomplete {
        /// Bytes from the frame's start that are needed before `parse` can say more.
        need: usize,
    },
    /// These bytes are not a frame, whatever may follow.
    #[error("corrupt frame at byte {offset}: {damage}")]
    Corrupt {
        /// Where the damage was seen.
        offset: usize,
        /// What was seen.
        damage: Damage,
    },
    /// A frame of another format version.
    #[error("frame format version {version} is not supported (this program has {FRAME_VERSION})")]
    UnsupportedVersion {
        /// The version found.
        version: u8,
    },
}

/// What is wrong with a corrupt frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Byte 0 is not a frame's.
    #[error("0x{0:02x} does not begin a frame")]
    Magic(u8),
    /// The header's own check failed.
    #[error("header check is 0x{found:02x}, expected 0x{expected:02x}")]
    HeaderCheck {
        /// Computed from the bytes.
        expected: u8,
        /// Found in the header.
        found: u8,
    },
    /// A kind that this version does not have.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// Longer than [`PAYLOAD_BYTES_MAX`].
    #[error("payload of {0} bytes is longer than {PAYLOAD_BYTES_MAX}")]
    TooLong(usize),
    /// The payload or header changed.
    #[error("CRC-32C is 0x{found:08x}, expected 0x{expected:08x}")]
    Crc {
        /// Computed from the bytes.
        expected: u32,
        /// Found in the header.
        found: u32,
    },
}

/// A buffer with room for a header, to which the payload is appended before [`finish`].
#[must_use]
pub fn begin() -> Vec<u8> {
    vec![0; HEADER_BYTES]
}

/// Fills in the header of `buffer`, which [`begin`] made and to which a payload was appended.
///
/// # Errors
/// [`Damage::TooLong`] when the payload exceeds [`PAYLOAD_BYTES_MAX`].
///
/// # Panics
/// When `buffer` is shorter than a header, so was not made by [`begin`].
pub fn finish(kind: FrameKind, buffer: &mut [u8]) -> Result<(), Damage> {
    assert!(
        buffer.len() >= HEADER_BYTES,
        "a frame under construction begins with `begin`"
    );
    let (header, payload) = buffer.split_at_mut(HEADER_BYTES);
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(Damage::TooLong(payload.len()));
    }
    header[0] = MAGIC | FRAME_VERSION;
    header[1] = kind as u8;
    header[2..5].copy_from_slice(&(payload.len() as u32).to_le_bytes()[..3]);
    header[5] = crc8(&header[..5]);
    let crc = checksum(&header[..CRC_OFFSET], payload);
    header[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// A whole frame around `payload`.
///
/// # Errors
/// [`Damage::TooLong`] when the payload exceeds [`PAYLOAD_BYTES_MAX`].
pub fn seal(kind: FrameKind, payload: &[u8]) -> Result<Vec<u8>, Damage> {
    let mut buffer = begin();
    buffer.extend_from_slice(payload);
    finish(kind, &mut buffer)?;
    Ok(buffer)
}

/// The length of the whole frame that begins `bytes`, from its header alone.
///
/// # Errors
/// As [`parse`], except that the payload is neither needed nor checked.
pub fn parse_header(bytes: &[u8]) -> Result<(FrameKind, usize), FrameError> {
    let corrupt = |offset, damage| Err(FrameError::Corrupt { offset, damage });
    let Some(&first) = bytes.first() else {
        return Err(FrameError::Incomplete { need: HEADER_BYTES });
    };
    if first & 0xF0 != MAGIC {
        return corrupt(0, Damage::Magic(first));
    }
    if first & 0x0F != FRAME_VERSION {
        return Err(FrameError::UnsupportedVersion {
            version: first & 0x0F,
        });
    }
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(FrameError::Incomplete { need: HEADER_BYTES });
    };
    let (expected, found) = (crc8(&header[..5]), header[5]);
    if expected != found {
        return corrupt(5, Damage::HeaderCheck { expected, found });
    }
    let Some(kind) = FrameKind::from_byte(header[1]) else {
        return corrupt(1, Damage::Kind(header[1]));
    };
    let length = u32::from_le_bytes([header[2], header[3], header[4], 0]) as usize;
    if length > PAYLOAD_BYTES_MAX {
        return corrupt(2, Damage::TooLong(length));
    }
    Ok((kind, HEADER_BYTES + length))
}

/// The frame that begins `bytes`; what follows it is ignored.
///
/// # Errors
/// `Incomplete` when more bytes may complete the frame; otherwise why they cannot.
pub fn parse(bytes: &[u8]) -> Result<Frame<'_>, FrameError> {
    let (kind, length) = parse_header(bytes)?;
    let Some(frame) = bytes.get(..length) else {
        return Err(FrameError::Incomplete { need: length });
    };
    let (header, payload) = frame.split_at(HEADER_BYTES);
    let expected = checksum(&header[..CRC_OFFSET], payload);
    let found = u32::from_le_bytes([header[6], header[7], header[8], header[9]]);
    if expected != found {
        let damage = Damage::Crc { expected, found };
        return Err(FrameError::Corrupt {
            offset: CRC_OFFSET,
            damage,
        });
    }
    Ok(Frame { kind, payload })
}

fn checksum(covered_header: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(covered_header), payload)
}

/// CRC-8 with polynomial 0x07 and initial value 0xFF: finds any change of up to three bits in the
/// five bytes it covers, and, because of the initial value, a header of zeros.
fn crc8(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0xFF, |crc, byte| {
        (0..8).fold(crc ^ byte, |c, _| {
            if c & 0x80 == 0 {
                c << 1
            } else {
                (c << 1) ^ 0x07
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_frame() {
        let frame = seal(FrameKind::Heartbeat, &[7]).expect("short");
        let golden = [0xA1, 6, 1, 0, 0, 0xB7, 0x20, 0x76, 0x4A, 0x5F, 7];
        assert_eq!(frame, golden, "{frame:02x?}");
        let parsed = parse(&frame).expect("own frame");
        assert_eq!(
            (parsed.kind, parsed.payload),
            (FrameKind::Heartbeat, &[7][..])
        );
        assert_eq!(parsed.length(), frame.len());
    }

    #[test]
    fn the_checks_are_the_published_ones() {
        assert_eq!(
            checksum(b"1234", b"56789"),
            0xE306_9283,
            "CRC-32C check value"
        );
        assert_eq!(crc8(b"123456789"), 0xFB, "CRC-8, polynomial 0x07 from 0xFF");
    }

    #[test]
    fn every_prefix_is_incomplete_and_says_what_it_needs() {
        let frame = seal(FrameKind::Log, &[1, 2, 3]).expect("short");
        for cut in 0..frame.len() {
            let need = if cut < HEADER_BYTES {
                HEADER_BYTES
            } else {
                frame.len()
            };
            assert_eq!(
                parse(&frame[..cut]),
                Err(FrameError::Incomplete { need }),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn every_flip_of_one_bit_is_refused_and_never_waits_for_more() {
        let frame = seal(FrameKind::Log, &[0; 100]).expect("short");
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = parse(&damaged).expect_err("a flipped bit was not seen");
            assert!(
                !matches!(error, FrameError::Incomplete { .. }),
                "bit {bit}: {error}"
            );
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut frame = seal(FrameKind::Ack, &[]).expect("short");
        frame[0] = MAGIC | 2;
        assert_eq!(
            parse(&frame),
            Err(FrameError::UnsupportedVersion { version: 2 })
        );
    }

    #[test]
    fn longest_payload_fits_and_one_more_does_not() {
        let mut longest = vec![0xEE; PAYLOAD_BYTES_MAX];
        let frame = seal(FrameKind::Log, &longest).expect("longest");
        assert_eq!(
            parse(&frame).expect("longest").payload.len(),
            PAYLOAD_BYTES_MAX
        );
        longest.push(0);
        let refused = seal(FrameKind::Log, &longest);
        assert_eq!(refused, Err(Damage::TooLong(PAYLOAD_BYTES_MAX + 1)));
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_from_the_header() {
        let mut header = [
            MAGIC | FRAME_VERSION,
            FrameKind::Log as u8,
            0xFF,
            0xFF,
            0xFF,
            0,
            0,
            0,
            0,
            0,
        ];
        header[5] = crc8(&header[..5]);
        let damage = Damage::TooLong(0xFF_FFFF);
        assert_eq!(
            parse(&header),
            Err(FrameError::Corrupt { offset: 2, damage })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(frame) = parse(&bytes) {
                prop_assert_eq!(seal(frame.kind, frame.payload).expect("parsed"), &bytes[..frame.length()]);
            }
        }
    }
}
