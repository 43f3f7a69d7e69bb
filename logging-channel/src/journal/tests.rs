//! Golden bytes, round trips, damage, rotation.

use super::entry::{Ack, Begun, Entry, Happening, Interval, Release, Role, Standing, What};
use super::format::{ENTRY_BYTES_MAX, JOURNAL_HEADER_BYTES, encode_header, parse_entry, put_entry};
use super::reader::{JournalReader, Read};
use super::writer::{FILES_MAX, JournalWriter};
use crate::file_header::FileHeader;
use crate::host_time::HostTime;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn entry(at_us: u64, what: What) -> Entry {
    Entry { at_us, what }
}

fn begun() -> Entry {
    let begun = Begun {
        vm: "web".to_owned(),
        holder: "a.1".to_owned(),
        wall_clock_us: 1_000,
    };
    entry(0, What::Begun(begun))
}

fn role(at_us: u64, role: Role) -> Entry {
    let standing = Standing {
        role,
        generation: 1,
        next: 7,
        guest_time_us: 300,
        seen_us: 4,
    };
    entry(at_us, What::Role(standing))
}

fn interval(at_us: u64) -> Entry {
    let mut interval = Interval {
        us: 250_000,
        next: 900,
        received: 890,
        ..Interval::default()
    };
    [3, 40, 41, 5_000]
        .into_iter()
        .for_each(|us| interval.gate.add(us));
    interval.acks.push(Ack {
        after_us: 12,
        received: 880,
        replayed: 870,
    });
    interval.releases.push(Release {
        after_us: 400,
        index: 879,
        waited_us: 5_000,
    });
    entry(at_us, What::Interval(interval))
}

fn write(dir: &Path, entries: &[Entry], file_bytes_max: u64) {
    let writer = JournalWriter::open(dir, "web", begun(), None).unwrap();
    let mut writer = writer.with_file_bytes_max(file_bytes_max);
    writer.append(entries, HostTime(0)).unwrap();
}

fn read(dir: &Path) -> Vec<Read> {
    let mut reader = JournalReader::open(dir).unwrap();
    std::iter::from_fn(|| reader.next_read().unwrap()).collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn sample() -> Vec<Entry> {
    let suspected = Happening::Suspected {
        silence_us: 300_000,
    };
    vec![
        role(5, Role::Protected),
        interval(250_000),
        entry(400_000, What::Happened(suspected)),
        role(400_001, Role::Contested),
        interval(500_000),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_bytes() {
    let header = FileHeader {
        number: 1,
        vm_hash: 2,
    };
    assert_eq!(
        hex(&encode_header(header)),
        "554e44524a524e4c0200000001000000000000000200000000000000e8948bbd"
    );
    let golden = |entry: &Entry| {
        let mut bytes = Vec::new();
        assert!(put_entry(&mut bytes, entry));
        assert_eq!(parse_entry(&bytes), Ok((entry.clone(), bytes.len())));
        hex(&bytes)
    };
    assert_eq!(golden(&begun()), "0d00383dd9eb00000377656203612e31fbe803");
    assert_eq!(
        golden(&role(5, Role::Solo)),
        "0900ff7624b80501050107fb2c0104"
    );
    assert_eq!(
        golden(&interval(250_000)),
        "3800e105ecdbfc90d0030003fc90d00300fb84030000fb7a030000000000fb88130303012802fb001301010cfb7003fb660301fb9001fb6f03fb88130000"
    );
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &sample(), u64::MAX);
    let mut expected = vec![Read::Entry(begun())];
    expected.extend(sample().into_iter().map(Read::Entry));
    assert_eq!(read(dir.path()), expected);
    // A second run goes behind the first.
    write(dir.path(), &sample(), u64::MAX);
    assert_eq!(read(dir.path()), [expected.clone(), expected].concat());
}

#[test]
fn files_are_bounded_and_each_says_whose_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut entries = vec![role(1, Role::Protected)];
    entries.extend((0..3_000).map(|n| interval(n * 250_000)));
    write(dir.path(), &entries, 0);
    let files = files(dir.path());
    assert_eq!(files.len(), FILES_MAX);
    for file in &files {
        let length = std::fs::metadata(file).unwrap().len();
        assert!(length <= (JOURNAL_HEADER_BYTES + ENTRY_BYTES_MAX) as u64);
    }
    let reads = read(dir.path());
    assert_eq!(
        reads[..2],
        [Read::Entry(begun()), Read::Entry(role(1, Role::Protected))]
    );
    assert_eq!(reads.last(), Some(&Read::Entry(interval(2_999 * 250_000))));
}

#[test]
fn a_torn_end_costs_the_last_entry_and_a_flipped_bit_one() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &sample(), u64::MAX);
    let file = files(dir.path()).remove(0);
    let whole = std::fs::read(&file).unwrap();
    let sound = read(dir.path());
    for cut in 1..60 {
        std::fs::write(&file, &whole[..whole.len() - cut]).unwrap();
        let reads = read(dir.path());
        assert_eq!(reads[..5], sound[..5], "{cut}");
        assert!(
            matches!(reads[5..], [] | [Read::LeftOut { last: true, .. }]),
            "{cut}: {reads:?}"
        );
    }
    for at in JOURNAL_HEADER_BYTES..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        std::fs::write(&file, &flipped).unwrap();
        let reads = read(dir.path());
        let entries = reads.iter().filter(|read| matches!(read, Read::Entry(_)));
        assert_eq!(entries.count(), sound.len() - 1, "byte {at}: {reads:?}");
        let holes = reads
            .iter()
            .filter(|read| matches!(read, Read::LeftOut { .. }));
        assert_eq!(holes.count(), 1, "byte {at}");
    }
    std::fs::write(&file, [&whole[..], &[0; 100]].concat()).unwrap();
    let reads = read(dir.path());
    assert_eq!(reads[..6], sound[..]);
    assert!(matches!(
        reads[6],
        Read::LeftOut {
            bytes: 100,
            last: true,
            ..
        }
    ));
}

#[test]
fn a_foreign_file_is_left_out_whole() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &sample(), u64::MAX);
    let file = files(dir.path()).remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[9] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let length = bytes.len() as u64;
    let reads = read(dir.path());
    assert!(
        matches!(reads[..], [Read::LeftOut { offset: 0, bytes, .. }] if bytes == length),
        "{reads:?}"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let _ = parse_entry(&bytes);
        let dir = tempfile::tempdir().unwrap();
        let header = encode_header(FileHeader { number: 0, vm_hash: 0 });
        std::fs::write(dir.path().join(super::format::journal_name(0)), [&header[..], &bytes].concat()).unwrap();
        let (mut left_out, mut entries) = (0, 0);
        for read in read(dir.path()) {
            match read {
                Read::LeftOut { bytes, .. } => left_out += bytes,
                Read::Entry(entry) => {
                    let mut again = Vec::new();
                    prop_assert!(put_entry(&mut again, &entry));
                    entries += again.len() as u64;
                }
            }
        }
        prop_assert_eq!(left_out + entries, bytes.len() as u64, "every byte is accounted for");
    }

    #[test]
    fn a_sealed_payload_decodes_to_what_encodes_to_it(payload in prop::collection::vec(any::<u8>(), 1..300)) {
        let length = u16::try_from(payload.len()).unwrap().to_le_bytes();
        let crc = crc32c::crc32c(&[&length[..], &payload].concat()).to_le_bytes();
        let bytes = [&length[..], &crc, &payload].concat();
        if let Ok((entry, taken)) = parse_entry(&bytes) {
            prop_assert_eq!(taken, bytes.len());
            let mut again = Vec::new();
            prop_assert!(put_entry(&mut again, &entry));
            prop_assert_eq!(again, bytes);
        }
    }
}
