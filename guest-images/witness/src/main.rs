//! The witness service.
fn main() {}
