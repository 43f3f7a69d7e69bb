//! Any bytes behind a sound journal header, cut into sealed entries: every byte is read or named as left out.
#![no_main]

use logging_channel::file_header::FileHeader;
use logging_channel::journal::format::{encode_header, journal_name, put_entry};
use logging_channel::journal::{JournalReader, Read};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let mut file = encode_header(FileHeader { number: 0, vm_hash: 0 }).to_vec();
    let header = file.len() as u64;
    // A length byte before each payload seals an entry; 0xFF puts the rest there as it is.
    let mut rest = data;
    while let Some((length, after)) = rest.split_first() {
        if *length == 0xFF {
            file.extend_from_slice(after);
            break;
        }
        let (payload, after) = after.split_at(after.len().min(usize::from(*length)));
        let length = u16::try_from(payload.len()).expect("a byte").to_le_bytes();
        let crc = crc32c::crc32c_append(crc32c::crc32c(&length), payload);
        file.extend_from_slice(&length);
        file.extend_from_slice(&crc.to_le_bytes());
        file.extend_from_slice(payload);
        rest = after;
    }
    std::fs::write(directory.path().join(journal_name(0)), &file).expect("written to memory");
    let mut reader = JournalReader::open(directory.path()).expect("listed");
    let mut bytes = header;
    while let Some(read) = reader.next_read().expect("read from memory") {
        match read {
            Read::LeftOut { bytes: left_out, .. } => bytes += left_out,
            Read::Entry(entry) => {
                let mut again = Vec::new();
                assert!(put_entry(&mut again, &entry), "what was read fits");
                bytes += again.len() as u64;
            }
        }
    }
    assert_eq!(bytes, file.len() as u64);
});
