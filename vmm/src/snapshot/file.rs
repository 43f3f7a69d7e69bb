//! Snapshot files: a guest's state on disk, in sections that each carry their own checksum.
//!
//! ```text
//! file    = magic version section+
//! section = kind length crc32c payload        crc32c over kind, length and payload
//! ```
//!
//! The first section says what guest it is and which log goes on from it, the last one how many there
//! were. Whatever is missing, damaged or foreign is refused with the section and its offset in the
//! file; a payload is not read before its length was checked. Left out: what a part is (`part`), what the
//! parts make (`runtime`).

#![forbid(unsafe_code)]

use logging_channel::message::{Identity, PART_BYTES_MAX};
use logging_channel::record::ClockKind;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Version of the file's bytes, beside that of the state in it.
pub const SNAPSHOT_VERSION: u32 = 2;

const MAGIC: [u8; 8] = *b"UNDRSNAP";
/// Kind, length, checksum.
const SECTION_HEADER_BYTES: usize = 1 + 4 + 4;
/// Where the first section begins: behind magic and version.
const FIRST_SECTION_AT: u64 = 12;
/// Longest first section: names and digests.
const ABOUT_BYTES_MAX: usize = 16 << 10;

/// Kinds of sections.
const ABOUT: u8 = 1;
const PART: u8 = 2;
const END: u8 = 3;

/// What guest a snapshot is of, and where in its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// What it runs: the same comparison as between two hosts.
    pub identity: Identity,
    /// Generation that was live.
    #[serde(with = "of_one_length")]
    pub generation: u64,
    /// First index of the log that is not part of the state.
    #[serde(with = "of_one_length")]
    pub next: u64,
    /// Execution clock of the log.
    pub clock: ClockKind,
}

/// Numbers of one length: those of a running guest are known when all else is written.
mod of_one_length {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        number.to_le_bytes().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        <[u8; 8]>::deserialize(from).map(u64::from_le_bytes)
    }
}

/// A snapshot cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file cannot be read or written.
    #[error("cannot {operation} the snapshot: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// It is no snapshot, or of another version.
    #[error("no snapshot that this program reads: {0}")]
    Foreign(String),
    /// A section is damaged or missing.
    #[error("damaged at byte {offset}, in section {section}: {fault}")]
    Damaged {
        /// Number of the section, from 0.
        section: u64,
        /// Where it begins in the file.
        offset: u64,
        /// What is wrong with it.
        fault: String,
    },
}

/// Writes a snapshot.
#[derive(Debug)]
pub struct SnapshotWriter<W> {
    out: W,
    sections: u64,
    about: About,
}

impl<W: Write> SnapshotWriter<W> {
    /// Begins a snapshot of the guest that `about` describes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(mut out: W, about: &About) -> Result<Self, SnapshotError> {
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&SNAPSHOT_VERSION.to_le_bytes());
        out.write_all(&head).map_err(writing)?;
        let mut writer = Self {
            out,
            sections: 0,
            about: about.clone(),
        };
        writer.say_what_it_is()?;
        Ok(writer)
    }

    fn say_what_it_is(&mut self) -> Result<(), SnapshotError> {
        let payload = bincode::serde::encode_to_vec(&self.about, bincode::config::standard())
            .map_err(|error| SnapshotError::Foreign(error.to_string()))?;
        self.section(ABOUT, &payload)
    }

    /// Appends a part.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn part(&mut self, part: &[u8]) -> Result<(), SnapshotError> {
        self.section(PART, part)
    }

    /// Ends the snapshot: without this it is refused.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<W, SnapshotError> {
        let sections = self.sections;
        self.section(END, &sections.to_le_bytes())?;
        self.out.flush().map_err(writing)?;
        Ok(self.out)
    }

    fn section(&mut self, kind: u8, payload: &[u8]) -> Result<(), SnapshotError> {
        // Parts are at most half a MiB, the others shorter.
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut header = Vec::with_capacity(SECTION_HEADER_BYTES);
        header.push(kind);
        header.extend_from_slice(&length.to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&header), payload);
        header.extend_from_slice(&checksum.to_le_bytes());
        self.out.write_all(&header).map_err(writing)?;
        self.out.write_all(payload).map_err(writing)?;
        self.sections += 1;
        Ok(())
    }
}

impl<W: Write + Seek> SnapshotWriter<W> {
    /// Ends a snapshot of a guest that ran on while its memory was written: only now is it known where
    /// it stands.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish_at(mut self, generation: u64, next: u64) -> Result<W, SnapshotError> {
        (self.about.generation, self.about.next) = (generation, next);
        let sections = self.sections;
        let begin = SeekFrom::Start(FIRST_SECTION_AT);
        self.out.seek(begin).map_err(writing)?;
        self.say_what_it_is()?;
        self.sections = sections;
        self.out.seek(SeekFrom::End(0)).map_err(writing)?;
        self.finish()
    }
}

fn writing(source: io::Error) -> SnapshotError {
    let operation = "write";
    SnapshotError::Io { operation, source }
}

/// Reads a snapshot.
#[derive(Debug)]
pub struct SnapshotReader<R> {
    input: R,
    section: u64,
    offset: u64,
    about: About,
}

impl<R: Read> SnapshotReader<R> {
    /// Reads what a snapshot is of.
    ///
    /// # Errors
    /// When it is none, of another version, or damaged there.
    pub fn open(mut input: R) -> Result<Self, SnapshotError> {
        let mut head = [0; 12];
        let read = read_up_to(&mut input, &mut head)?;
        if read < head.len() || head[..8] != MAGIC {
            let what = "the file does not begin like one".to_owned();
            return Err(SnapshotError::Foreign(what));
        }
        let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if version != SNAPSHOT_VERSION {
            let known = SNAPSHOT_VERSION;
            let what = format!("it has version {version}, this program knows {known}");
            return Err(SnapshotError::Foreign(what));
        }
        let (mut section, mut offset) = (0, head.len() as u64);
        let (kind, payload) = next_section(&mut input, &mut section, &mut offset)?;
        let about = match kind {
            ABOUT => decode(&payload),
            _ => Err("it does not say what guest it is of".to_owned()),
        };
        let about = about.map_err(|fault| SnapshotError::Damaged {
            section: 0,
            offset: head.len() as u64,
            fault,
        })?;
        Ok(Self {
            input,
            section,
            offset,
            about,
        })
    }

    /// What guest it is of.
    pub const fn about(&self) -> &About {
        &self.about
    }

    /// Where the next section begins, for whoever finds a fault in a part.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// The next part; `None` behind the last, when all of them were there.
    ///
    /// # Errors
    /// When a section is damaged, unknown or missing.
    pub fn next_part(&mut self) -> Result<Option<Vec<u8>>, SnapshotError> {
        let (section, offset) = (self.section, self.offset);
        let damaged = |fault: String| SnapshotError::Damaged {
            section,
            offset,
            fault,
        };
        match next_section(&mut self.input, &mut self.section, &mut self.offset)? {
            (PART, part) => Ok(Some(part)),
            (END, count) if count == section.to_le_bytes() => {
                match read_up_to(&mut self.input, &mut [0])? {
                    0 => Ok(None),
                    _ => Err(damaged("bytes follow it".to_owned())),
                }
            }
            (END, _) => Err(damaged("sections are missing before it".to_owned())),
            (kind, _) => Err(damaged(format!("a section of kind {kind} here"))),
        }
    }
}

fn decode(payload: &[u8]) -> Result<About, String> {
    let config = bincode::config::standard().with_limit::<ABOUT_BYTES_MAX>();
    let (about, length) =
        bincode::serde::decode_from_slice(payload, config).map_err(|error| error.to_string())?;
    match payload.len() - length {
        0 => Ok(about),
        more => Err(format!("{more} bytes too many")),
    }
}

/// Reads one section and checks it; `section` and `offset` then are those of the next.
fn next_section(
    input: &mut impl Read,
    section: &mut u64,
    offset: &mut u64,
) -> Result<(u8, Vec<u8>), SnapshotError> {
    let (at, from) = (*section, *offset);
    let damaged = |fault: String| SnapshotError::Damaged {
        section: at,
        offset: from,
        fault,
    };
    let mut header = [0; SECTION_HEADER_BYTES];
    let read = read_up_to(input, &mut header)?;
    if read < header.len() {
        return Err(damaged("the file ends here".to_owned()));
    }
    let [kind, l0, l1, l2, l3, checksum @ ..] = header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let most = match kind {
        ABOUT => ABOUT_BYTES_MAX,
        PART => PART_BYTES_MAX,
        END => 8,
        _ => return Err(damaged(format!("sections of kind {kind} are not known"))),
    };
    if length > most {
        return Err(damaged(format!("{length} bytes, at most {most}")));
    }
    let mut payload = vec![0; length];
    if read_up_to(input, &mut payload)? < length {
        return Err(damaged("the file ends in it".to_owned()));
    }
    let found = crc32c::crc32c_append(crc32c::crc32c(&header[..5]), &payload);
    if found.to_le_bytes() != checksum {
        return Err(damaged("its checksum is wrong".to_owned()));
    }
    *section += 1;
    *offset += (header.len() + length) as u64;
    Ok((kind, payload))
}

/// Fills `into` as far as there is something.
fn read_up_to(input: &mut impl Read, into: &mut [u8]) -> Result<usize, SnapshotError> {
    let mut filled = 0;
    while filled < into.len() {
        match input.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                let operation = "read";
                return Err(SnapshotError::Io { operation, source });
            }
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn where_it_stands_may_be_known_last() {
        let parts = vec![vec![4; 500], vec![]];
        let unknown = About {
            generation: 0,
            next: u64::MAX,
            ..about()
        };
        let file = io::Cursor::new(Vec::new());
        let mut writer = SnapshotWriter::begin(file, &unknown).expect("a Vec");
        for part in &parts {
            writer.part(part).expect("a Vec");
        }
        let about = about();
        let file = writer.finish_at(about.generation, about.next);
        assert_eq!(file.expect("a Vec").into_inner(), written(&parts));
    }

    fn about() -> About {
        About {
            identity: Identity {
                vm: "web".into(),
                cpu_model: "understudy-v1".into(),
                memory_bytes: 64 << 20,
                kernel_sha256: [1; 32],
                initramfs_sha256: [2; 32],
                cmdline: "console=ttyS0".into(),
                mac: [2, 0, 0, 0, 0, 1],
            },
            generation: 3,
            next: 1_234,
            clock: ClockKind::Exits,
        }
    }

    fn written(parts: &[Vec<u8>]) -> Vec<u8> {
        let mut writer = SnapshotWriter::begin(Vec::new(), &about()).expect("a Vec");
        for part in parts {
            writer.part(part).expect("a Vec");
        }
        writer.finish().expect("a Vec")
    }

    fn read(bytes: &[u8]) -> Result<(About, Vec<Vec<u8>>), SnapshotError> {
        let mut reader = SnapshotReader::open(bytes)?;
        let mut parts = Vec::new();
        while let Some(part) = reader.next_part()? {
            parts.push(part);
        }
        Ok((reader.about().clone(), parts))
    }

    #[test]
    fn what_is_written_is_read() {
        let parts = vec![vec![1, 2, 3], vec![], vec![9; 70_000]];
        let (about_read, parts_read) = read(&written(&parts)).expect("whole");
        assert_eq!((about_read, parts_read), (about(), parts));
    }

    #[test]
    fn damage_is_named_with_section_and_offset() {
        let whole = written(&[vec![7; 100], vec![8; 100]]);
        let first = 12 + SECTION_HEADER_BYTES + {
            let length = &whole[13..17];
            u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize
        };
        let mut flipped = whole.clone();
        flipped[first + 50] ^= 1;
        match read(&flipped) {
            Err(SnapshotError::Damaged {
                section: 1, offset, ..
            }) => assert_eq!(offset, first as u64),
            other => panic!("{other:?}"),
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert!(matches!(
            read(&longer),
            Err(SnapshotError::Damaged { section: 3, .. })
        ));
        let mut newer = whole.clone();
        newer[8] = 9;
        let foreign = read(&newer).expect_err("another version").to_string();
        assert!(foreign.contains("version 9"), "{foreign}");
        assert!(matches!(read(b"UNDRSTDY"), Err(SnapshotError::Foreign(_))));
        // A part that is left out as a whole.
        let cut = [&whole[..first], &whole[first + 109..]].concat();
        let missing = read(&cut).expect_err("a part less").to_string();
        assert!(missing.contains("missing"), "{missing}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn every_flip_and_every_cut_is_found(place in any::<prop::sample::Index>(), bit in 0..8_u8, cut: bool) {
            let mut bytes = written(&[vec![5; 300], vec![6; 20]]);
            let place = place.index(bytes.len());
            if cut {
                bytes.truncate(place);
            } else {
                bytes[place] ^= 1 << bit;
            }
            prop_assert!(read(&bytes).is_err());
        }

        #[test]
        fn any_bytes_have_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut framed = written(&[]);
            framed.truncate(12);
            framed.extend(&bytes);
            prop_assert!(read(&framed).is_err());
        }
    }
}
