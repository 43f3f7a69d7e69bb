//! Whether a capture has every byte of its TCP conversations that was acknowledged.
//!
//! tshark's own analysis is no measure: it calls a segment lost that the network dropped and the sender
//! repeated, and forgets one that is missing once a later one was seen. Here, for each direction of each
//! connection, the bytes in the capture are put together, and an acknowledgement must not go beyond
//! the first that is missing. Left out: connections whose beginning is not in the capture.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::process::Command;

/// What tshark prints of each segment.
const FIELDS: [&str; 8] = [
    "frame.number",
    "tcp.stream",
    "tcp.srcport",
    "tcp.seq",
    "tcp.len",
    "tcp.flags.syn",
    "tcp.flags.fin",
    "tcp.ack",
];

/// A segment, with numbers relative to the connection's first.
#[derive(Debug, Clone, Copy)]
struct Segment {
    frame: u64,
    stream: u64,
    source: u64,
    sequence: u64,
    /// Sequence numbers that it takes: bytes, and one each for SYN and FIN.
    length: u64,
    syn: bool,
    acknowledged: u64,
}

/// Bytes of one direction that are in the capture.
#[derive(Debug, Default)]
struct Seen {
    /// All below this.
    whole: u64,
    /// Beyond it: ends by beginnings.
    islands: BTreeMap<u64, u64>,
}

impl Seen {
    fn add(&mut self, from: u64, to: u64) {
        let end = self.islands.entry(from).or_default();
        *end = to.max(*end);
        while let Some(island) = self.islands.first_entry()
            && *island.key() <= self.whole
        {
            self.whole = self.whole.max(island.remove());
        }
    }
}

/// What a capture has of its conversations.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Conversations {
    /// Bytes, SYNs and FINs that were acknowledged, of both directions of all connections.
    pub(crate) acknowledged: u64,
    /// The first frame that acknowledges what is not in the capture.
    pub(crate) gap: Option<u64>,
}

/// Reads the capture at `path` with tshark; `filter` chooses its frames.
///
/// # Errors
/// When tshark does not read it.
pub(crate) fn read(path: &str, filter: &str) -> Result<Conversations> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r", path, "-Y", filter, "-T", "fields"]);
    command.args(FIELDS.iter().flat_map(|field| ["-e", field]));
    let output = command.output().context("cannot run tshark")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success(),
        "tshark does not read {path}: {said}"
    );
    let text = String::from_utf8(output.stdout)?;
    let segments = text.lines().map(segment).collect::<Option<Vec<_>>>();
    Ok(judge(
        &segments.with_context(|| format!("{path}: what tshark says"))?,
    ))
}

fn segment(line: &str) -> Option<Segment> {
    let number = |text: &str| match text {
        "" | "False" => Some(0),
        "True" => Some(1),
        digits => digits.parse::<u64>().ok(),
    };
    let fields: Option<Vec<u64>> = line.split('\t').map(number).collect();
    let [
        frame,
        stream,
        source,
        sequence,
        length,
        syn,
        fin,
        acknowledged,
    ] = fields?[..]
    else {
        return None;
    };
    Some(Segment {
        frame,
        stream,
        source,
        sequence,
        length: length + syn + fin,
        syn: syn == 1,
        acknowledged,
    })
}

fn judge(segments: &[Segment]) -> Conversations {
    let mut found = Conversations::default();
    // By connection and source port: each has what it sent, and how much of that was acknowledged.
    let mut sent: BTreeMap<(u64, u64), (Seen, u64)> = BTreeMap::new();
    for segment in segments {
        let own = (segment.stream, segment.source);
        if segment.syn {
            sent.entry(own).or_default();
        }
        if let Some((seen, _)) = sent.get_mut(&own) {
            seen.add(segment.sequence, segment.sequence + segment.length);
        }
        let peer = sent
            .iter_mut()
            .find(|((stream, source), _)| *stream == segment.stream && *source != segment.source);
        let Some((_, (seen, acknowledged))) = peer else {
            continue;
        };
        *acknowledged = segment.acknowledged.max(*acknowledged);
        if segment.acknowledged > seen.whole {
            found.gap.get_or_insert(segment.frame);
        }
    }
    found.acknowledged = sent.values().map(|(_, acknowledged)| acknowledged).sum();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection of ports 1 and 2, in tshark's words: source, sequence, length, SYN, acknowledged.
    fn judged(lines: &[(u64, u64, u64, u64, u64)]) -> Conversations {
        let text = |(number, (source, sequence, length, syn, ack)): (usize, &_)| {
            segment(&format!(
                "{number}\t0\t{source}\t{sequence}\t{length}\t{syn}\tFalse\t{ack}"
            ))
        };
        judge(
            &lines
                .iter()
                .enumerate()
                .map(text)
                .collect::<Option<Vec<_>>>()
                .unwrap(),
        )
    }

    const OPENING: [(u64, u64, u64, u64, u64); 3] =
        [(1, 0, 0, 1, 0), (2, 0, 0, 1, 1), (1, 1, 0, 0, 1)];

    #[test]
    fn what_was_repeated_or_came_out_of_order_is_no_gap() {
        let rest = [
            (1, 1, 10, 0, 1),
            (1, 21, 10, 0, 1),
            (2, 1, 5, 0, 11),
            (1, 11, 10, 0, 6),
            (1, 1, 10, 0, 6),
            (2, 6, 0, 0, 31),
        ];
        let found = judged(&[&OPENING[..], &rest].concat());
        let acknowledged = 31 + 6;
        assert_eq!(
            found,
            Conversations {
                acknowledged,
                gap: None
            }
        );
    }

    #[test]
    fn an_acknowledged_byte_that_is_missing_is_found_even_when_later_ones_are_there() {
        let rest = [
            (1, 1, 10, 0, 1),
            (1, 21, 10, 0, 1),
            (2, 1, 5, 0, 11),
            (2, 6, 0, 0, 31),
        ];
        assert_eq!(judged(&[&OPENING[..], &rest].concat()).gap, Some(6));
    }
}
