//! What reaches the guest from outside, always at an execution point that a record names.

#![forbid(unsafe_code)]

/// Something from outside that reaches the guest at a point.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// Only time moves.
    Timer,
    /// Console bytes.
    Console(Vec<u8>),
    /// A received frame.
    Packet {
        /// Network device.
        device: u8,
        /// The frame.
        bytes: Vec<u8>,
    },
    /// Random bytes that the guest asked for.
    Entropy(Vec<u8>),
}
