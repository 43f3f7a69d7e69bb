//! Any bytes after a sound segment header, cut into frames by the checks of the format itself:
//! recovery, the reader and the salvager agree on what is there.
#![no_main]

use logging_channel::frame::{FrameKind, seal};
use logging_channel::record::LogIndex;
use logging_channel::file_header::vm_hash;
use logging_channel::segment::format::{SegmentHeader, segment_name};
use logging_channel::segment::sync_point;
use logging_channel::segment::{LogReader, Salvaged, Salvager, TailPolicy, recover};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let header = SegmentHeader { first: LogIndex(0), vm_hash: vm_hash("vm") };
    // A length byte before each payload makes sealed frames; 0xFE is a sync point, and 0xFF puts the rest
    // there as it is.
    let mut file = header.encode().to_vec();
    let mut rest = data;
    while let Some((length, after)) = rest.split_first() {
        if *length == 0xFF {
            file.extend_from_slice(after);
            break;
        }
        if *length == 0xFE {
            file.extend(sync_point::encode(LogIndex(0), file.len() as u64));
            rest = after;
            continue;
        }
        let (payload, after) = after.split_at(after.len().min(usize::from(*length)));
        file.extend(seal(FrameKind::Log, payload).expect("short"));
        rest = after;
    }
    let path = directory.path().join(segment_name(LogIndex(0)));
    std::fs::write(&path, &file).expect("written to memory");

    let mut reader = LogReader::open(directory.path());
    let mut read = 0;
    while let Ok(Some(_)) = reader.next_record() {
        read += 1;
    }
    let mut salvager = Salvager::open(directory.path()).expect("listed");
    let mut salvaged = 0;
    while let Some(found) = salvager.next().expect("read from memory") {
        if let Salvaged::Frame(frame) = found {
            salvaged += frame.records.len() as u64;
        }
    }
    assert!(salvaged >= read, "the salvager found {salvaged} records, the reader {read}");
    if let Ok(recovered) = recover(directory.path(), "vm", TailPolicy::CutTorn) {
        assert_eq!(recovered.records, read);
        recover(directory.path(), "vm", TailPolicy::Refuse).expect("recovered once is sound");
    }
});
