//! The client outside: sends one request at a time, repeats it until it is answered, and checks
//! that nothing it saw acknowledged was lost, repeated or rolled back.

use super::toy_cpu::{Answer, decode_answer, fold};

/// The oracle.
#[derive(Debug, Clone)]
pub struct Client {
    /// The request that waits for its answer.
    pub sequence: u64,
    chain: u64,
    /// Requests answered.
    pub answered: u64,
    /// When the last new answer came, in simulated nanoseconds.
    pub answered_at: u64,
    /// Longest time without a new answer.
    pub silence_ns_max: u64,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            sequence: 1,
            chain: 0,
            answered: 0,
            answered_at: 0,
            silence_ns_max: 0,
        }
    }
}

impl Client {
    /// A frame came from the guest. True if it answers the present request.
    ///
    /// # Errors
    /// When the guest contradicts what it said before.
    pub fn receive(&mut self, now: u64, bytes: &[u8]) -> Result<bool, String> {
        let Some(answer) = decode_answer(bytes) else {
            return Err(format!("client: unreadable answer {bytes:02x?}"));
        };
        if answer.sequence < self.sequence {
            return Ok(false);
        }
        let expected = Answer {
            sequence: self.sequence,
            count: self.sequence,
            chain: fold(self.chain, self.sequence),
        };
        if answer != expected {
            return Err(format!("client: expected {expected:?}, got {answer:?}"));
        }
        self.chain = expected.chain;
        self.sequence += 1;
        self.answered += 1;
        self.silence_ns_max = self.silence_ns_max.max(now - self.answered_at);
        self.answered_at = now;
        Ok(true)
    }
}
