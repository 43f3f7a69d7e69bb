//! Running hash of the witness: 64-bit FNV-1a, continued from the previous value.
//!
//! Chosen because anyone can check it with three lines in any language. It shows lost, repeated
//! and reordered requests; it does not resist somebody who forges them, and need not.

/// Value before the first request: FNV's 64-bit offset basis.
pub const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;
/// FNV's 64-bit prime.
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// Continues `hash` over `bytes`.
#[must_use]
pub fn continue_over(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
    })
}

/// A client's hash after one more request: over sequence, payload length (4 bytes), payload.
#[must_use]
pub fn after_request(client_hash: u64, sequence: u64, payload: &[u8]) -> u64 {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let hash = continue_over(client_hash, &sequence.to_le_bytes());
    let hash = continue_over(hash, &length.to_le_bytes());
    continue_over(hash, payload)
}

/// The hash over all clients after one more request: over client, sequence and that client's
/// hash after the request. Made of reply fields only, so that replies alone prove the chain.
#[must_use]
pub fn after_any_request(global_hash: u64, client: u64, sequence: u64, client_hash: u64) -> u64 {
    let hash = continue_over(global_hash, &client.to_le_bytes());
    let hash = continue_over(hash, &sequence.to_le_bytes());
    continue_over(hash, &client_hash.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_fnv1a_vectors() {
        assert_eq!(continue_over(HASH_START, b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(continue_over(HASH_START, b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(continue_over(HASH_START, b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn order_and_length_matter() {
        let ab = after_request(after_request(HASH_START, 1, b"a"), 2, b"b");
        let ba = after_request(after_request(HASH_START, 1, b"b"), 2, b"a");
        assert_ne!(ab, ba);
        assert_ne!(
            after_request(HASH_START, 1, b""),
            after_request(HASH_START, 1, &[0])
        );
    }
}
