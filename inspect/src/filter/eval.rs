//! Whether a record passes.

#![forbid(unsafe_code)]

use super::{Comparison, End, Filter, Is, Network, Number, Test};
use crate::facts::Facts;
use std::net::IpAddr;

impl Filter {
    /// Whether the record of `facts` passes.
    #[must_use]
    pub fn passes(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Not(inner) => !inner.passes(facts),
            Self::All(parts) => parts.iter().all(|part| part.passes(facts)),
            Self::Any(parts) => parts.iter().any(|part| part.passes(facts)),
            Self::Test(test) => test.passes(facts).unwrap_or(false),
        }
    }
}

impl Test {
    /// `None` when the record does not have what is asked for.
    fn passes(&self, facts: &Facts<'_>) -> Option<bool> {
        Some(match self {
            Self::Kind(is, kind) => is.of(facts.kind == *kind),
            Self::Device(is, device) => is.of(facts.device()? == *device),
            Self::Direction(is, direction) => is.of(facts.direction()? == *direction),
            Self::Protocol(is, protocol) => is.of(facts.packet()?.proto == *protocol),
            Self::HasIp => facts.packet()?.src.is_some(),
            Self::Ip(end, is, network) => {
                let packet = facts.packet()?;
                let mut ends = end.of(packet.src, packet.dst).peekable();
                ends.peek()?;
                is.of(ends.any(|ip| network.contains(ip)))
            }
            Self::Port(end, comparison, port) => {
                let packet = facts.packet()?;
                let mut ends = end.of(packet.src_port, packet.dst_port).peekable();
                ends.peek()?;
                match comparison {
                    Comparison::NotEqual => ends.all(|end| u64::from(end) != *port),
                    _ => ends.any(|end| comparison.holds(end.into(), *port)),
                }
            }
            Self::Number(number, comparison, value) => comparison.holds(number.of(facts)?, *value),
            Self::Text(needle) => {
                let content = facts.content()?;
                memchr::memmem::find(content, needle).is_some()
            }
        })
    }
}

impl Is {
    const fn of(self, same: bool) -> bool {
        match self {
            Self::Same => same,
            Self::Other => !same,
        }
    }
}

impl End {
    fn of<T>(self, source: Option<T>, destination: Option<T>) -> impl Iterator<Item = T> {
        let source = source.filter(|_| self != Self::Destination);
        let destination = destination.filter(|_| self != Self::Source);
        source.into_iter().chain(destination)
    }
}

impl Number {
    fn of(self, facts: &Facts<'_>) -> Option<u64> {
        let record = facts.record;
        match self {
            Self::Index => Some(record.index.0),
            Self::Exits => Some(record.point.exits),
            Self::Branches => Some(record.point.branches),
            Self::TimeUs => Some(record.guest_time.as_micros()),
            Self::Size => facts.size(),
        }
    }
}

impl Comparison {
    const fn holds(self, left: u64, right: u64) -> bool {
        match self {
            Self::Equal => left == right,
            Self::NotEqual => left != right,
            Self::Less => left < right,
            Self::AtMost => left <= right,
            Self::Greater => left > right,
            Self::AtLeast => left >= right,
        }
    }
}

impl Network {
    fn contains(&self, ip: IpAddr) -> bool {
        let (ours, theirs, bits) = match (self.address, ip) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                (u128::from(ours.to_bits()), u128::from(theirs.to_bits()), 32)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => (ours.to_bits(), theirs.to_bits(), 128),
            _ => return false,
        };
        let host_bits = bits - u32::from(self.prefix).min(bits);
        // A shift by all 128 bits leaves nothing to compare.
        let network = |ip: u128| ip.checked_shr(host_bits).unwrap_or(0);
        network(ours) == network(theirs)
    }
}
