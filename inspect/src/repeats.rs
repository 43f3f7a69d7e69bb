//! What line after line of a listing has in common, kept as text: guest time, and the ends of a flow.
//!
//! Records come in bursts of one guest time, and packets belong to few flows: most of the numbers in a line
//! are those of the line before, and making them again took a third of a listing's time. What is kept is
//! compared with what is asked for each time; a miss costs what it would have cost anyway.

#![forbid(unsafe_code)]

use std::net::IpAddr;

/// The text of a line's part, and what it was made of.
#[derive(Debug)]
struct Kept<K> {
    of: Option<K>,
    text: Vec<u8>,
}

impl<K> Default for Kept<K> {
    fn default() -> Self {
        Self {
            of: None,
            text: Vec::new(),
        }
    }
}

impl<K: PartialEq> Kept<K> {
    fn push(&mut self, of: K, out: &mut Vec<u8>, make: impl FnOnce(&mut Vec<u8>)) {
        if self.of.as_ref() != Some(&of) {
            self.text.clear();
            make(&mut self.text);
            self.of = Some(of);
        }
        out.extend_from_slice(&self.text);
    }
}

/// Both ends of a packet's way, and the name of its protocol.
pub(crate) type Flow = (IpAddr, Option<u16>, IpAddr, Option<u16>, &'static str);

/// What the last lines had.
#[derive(Debug, Default)]
pub struct Repeats {
    time: Kept<u64>,
    flow: Kept<Flow>,
}

impl Repeats {
    /// Appends the text of a guest time in microseconds, which `make` makes.
    pub(crate) fn time(&mut self, us: u64, out: &mut Vec<u8>, make: impl FnOnce(&mut Vec<u8>)) {
        self.time.push(us, out, make);
    }

    /// Appends the text of a flow, which `make` makes.
    pub(crate) fn flow(&mut self, flow: Flow, out: &mut Vec<u8>, make: impl FnOnce(&mut Vec<u8>)) {
        self.flow.push(flow, out, make);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_what_comes_and_is_made_once_in_a_row() {
        let (mut repeats, mut out, mut made) = (Repeats::default(), Vec::new(), 0);
        for us in [0, 7, 7, 7, 8, 7] {
            repeats.time(us, &mut out, |text| {
                made += 1;
                text.push(b'a' + u8::try_from(us).expect("small"));
            });
        }
        assert_eq!((out.as_slice(), made), (&b"ahhhih"[..], 4));
    }
}
