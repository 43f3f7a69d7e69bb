//! The protocol between the rig and the agent in an emulated host.
//!
//! It runs over one virtio-serial port, so that it works whatever a drill does to the network. Both
//! ways, a frame is: header length (u32, little-endian), payload length (u32, little-endian), header
//! (JSON), payload (raw bytes). Every request carries an id; every answer repeats it. An `Exec` is
//! answered by any number of `Output` frames and then one `Exited`; everything else by one frame.
//!
//! What this file leaves out: who runs the commands (`main.rs` here) and who waits for the answers
//! (`rig::agent`).

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};

/// Name of the virtio-serial port, found under `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "understudy.agent";

/// Longest header accepted, in bytes.
pub const HEADER_BYTES_MAX: u32 = 64 * 1024;

/// Longest payload of one frame, in bytes; longer files travel in pieces.
pub const PAYLOAD_BYTES_MAX: u32 = 256 * 1024;

/// What the rig asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the rig, repeated in every answer.
    pub id: u64,
    /// What to do.
    pub op: Operation,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Is anybody there? Answered by [`Answer::Hello`].
    Hello,
    /// Runs a program, streams what it prints, reports its end. The payload is its standard input.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// Starts a program in the background, in a process group of its own.
    Spawn {
        /// Program and arguments.
        argv: Vec<String>,
        /// File that receives its standard output and error (appended).
        log: String,
    },
    /// What became of a spawned program.
    Poll {
        /// Its process id.
        pid: u32,
    },
    /// Sends a signal to a spawned program's process group.
    Signal {
        /// Its process id.
        pid: u32,
        /// Signal number.
        signal: i32,
    },
    /// Writes the payload to a file.
    Put {
        /// Where.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Append instead of replacing.
        append: bool,
    },
    /// Reads one piece of a file.
    Get {
        /// Where.
        path: String,
        /// First byte.
        offset: u64,
    },
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's id.
    pub id: u64,
    /// The answer.
    pub answer: Answer,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The agent is ready.
    Hello {
        /// Milliseconds since the host's kernel started.
        uptime_ms: u64,
    },
    /// The payload is what the program printed.
    Output {
        /// On standard error rather than standard output.
        error: bool,
    },
    /// The program ended: its exit code, or 128 plus the signal that killed it.
    Exited {
        /// Exit code.
        code: i32,
    },
    /// A program was started in the background.
    Spawned {
        /// Its process id.
        pid: u32,
    },
    /// The spawned program still runs.
    Running,
    /// Done, nothing to tell.
    Done,
    /// The payload is a piece of the file.
    Piece {
        /// Nothing follows it.
        last: bool,
    },
    /// It could not be done.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Writes one frame.
///
/// # Errors
/// What the writer reports; `InvalidInput` when header or payload exceeds its limit.
pub fn write_frame<T: Serialize>(
    to: &mut impl Write,
    header: &T,
    payload: &[u8],
) -> io::Result<()> {
    let header = serde_json::to_vec(header)?;
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "frame too long");
    let header_len = u32::try_from(header.len()).map_err(|_| too_long())?;
    let payload_len = u32::try_from(payload.len()).map_err(|_| too_long())?;
    if header_len > HEADER_BYTES_MAX || payload_len > PAYLOAD_BYTES_MAX {
        return Err(too_long());
    }
    let mut frame = Vec::with_capacity(8 + header.len() + payload.len());
    frame.extend_from_slice(&header_len.to_le_bytes());
    frame.extend_from_slice(&payload_len.to_le_bytes());
    frame.extend_from_slice(&header);
    frame.extend_from_slice(payload);
    to.write_all(&frame)?;
    to.flush()
}

/// Reads one frame.
///
/// # Errors
/// What the reader reports, `UnexpectedEof` when the other side went away; `InvalidData` when a
/// length exceeds its limit or the header is not the JSON expected.
pub fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<(T, Vec<u8>)> {
    let mut lengths = [0_u8; 8];
    from.read_exact(&mut lengths)?;
    let [a, b, c, d, e, f, g, h] = lengths;
    let header_len = u32::from_le_bytes([a, b, c, d]);
    let payload_len = u32::from_le_bytes([e, f, g, h]);
    if header_len > HEADER_BYTES_MAX || payload_len > PAYLOAD_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
    }
    let mut header = vec![0; header_len as usize];
    from.read_exact(&mut header)?;
    let mut payload = vec![0; payload_len as usize];
    from.read_exact(&mut payload)?;
    Ok((serde_json::from_slice(&header)?, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_was() {
        let request = Request {
            id: 7,
            op: Operation::Put {
                path: "/a".into(),
                mode: 0o755,
                append: false,
            },
        };
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &request, b"payload").unwrap();
        let (back, payload) = read_frame::<Request>(&mut bytes.as_slice()).unwrap();
        assert_eq!((back, payload.as_slice()), (request, b"payload".as_slice()));
    }

    #[test]
    fn an_inflated_length_is_refused_before_memory_is_asked_for() {
        let mut bytes = vec![0xff; 8];
        bytes.extend_from_slice(&[0; 64]);
        let error = read_frame::<Request>(&mut bytes.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
