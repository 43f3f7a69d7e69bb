//! Any bytes as a line on the control socket: what decodes encodes to the same request.
#![no_main]

use vmm::runtime::control_socket::decode_request;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(request) = decode_request(data) {
        let bytes = serde_json::to_vec(&request).expect("a request has a JSON form");
        assert_eq!(decode_request(&bytes), Ok(request));
    }
});
