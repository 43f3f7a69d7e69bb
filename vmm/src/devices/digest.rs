//! The digest of a device: XXH3 of its saved state in one fixed encoding.

#![forbid(unsafe_code)]

use xxhash_rust::xxh3::xxh3_64;

/// XXH3-64 of `state` in bincode's standard configuration. Two devices that have equal digests
/// behave equally; the number means nothing across versions of the monitor.
#[must_use]
pub fn digest_of<S: serde::Serialize>(state: &S) -> u64 {
    let bytes = bincode::serde::encode_to_vec(state, bincode::config::standard())
        .expect("saved state is plain data, which always encodes");
    xxh3_64(&bytes)
}
