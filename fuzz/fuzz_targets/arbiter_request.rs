//! Any bytes as the body of a claim: what decodes encodes to a request for the same claim.
#![no_main]

use arbiter::protocol::{ClaimRequest, decode_claim};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(claim) = decode_claim(data) {
        assert!(claim.new_generation() > claim.expected_generation());
        let bytes = serde_json::to_vec(&ClaimRequest::from(&claim)).expect("a claim has a JSON form");
        assert_eq!(decode_claim(&bytes).as_ref(), Ok(&claim));
    }
});
