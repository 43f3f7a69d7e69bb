//! The filter language: which records to show.
//!
//! ```text
//! expression = all { ("or" | "||") all }
//! all        = one { ("and" | "&&") one }
//! one        = ("not" | "!") one | "(" expression ")" | test
//! test       = kind | "in" | "out" | protocol | "ip" | field operator value | "text" "~" string
//! operator   = "==" | "=" | "!=" | "<" | "<=" | ">" | ">="
//! ```
//!
//! | field | value | of |
//! |---|---|---|
//! | `kind` | `packet`, `output`, `timer`, ... | every record |
//! | `index`, `exits`, `branches` | number | every record |
//! | `time` | `1.5s`, `300ms`, `20us` of guest time | every record |
//! | `device` | `console`, `rng`, `net0`, ... | what came or went |
//! | `direction` | `in`, `out` | what came or went |
//! | `size` | bytes, `2k`, `1M` | what came or went |
//! | `proto` | `tcp`, `udp`, `icmp`, `icmp6`, `arp`, `ip4`, `ip6`, `other` | received packets |
//! | `ip`, `ip.src`, `ip.dst` | address, or network as `10.0.0.0/8` | received packets |
//! | `port`, `port.src`, `port.dst` | number | received packets |
//! | `text` | with `~`: bytes that occur in what came | console input, packets, entropy |
//!
//! `ip` and `port` are both ends: `==` means that one of them is equal, `!=` that none is, and the other
//! comparisons that they hold for one. A test of something that a record does not have is false,
//! whatever its operator; `not port == 80` therefore holds for a timer, `port != 80` does not.
//!
//! Invariants: any text is parsed or refused with a column; what is shown of an expression parses to the
//! same expression again; depth and length are bounded.

#![forbid(unsafe_code)]

mod eval;
mod lex;
mod parse;
#[cfg(test)]
mod tests;

use crate::facts::{Device, Direction};
use crate::kind::Kind;
use crate::packet::Protocol;
use std::fmt;
use std::net::IpAddr;

/// Longest expression in bytes.
pub const EXPRESSION_BYTES_MAX: usize = 4_096;
/// Deepest nesting of parentheses and negations.
pub const DEPTH_MAX: usize = 64;

/// Text that is no expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {what}")]
pub struct FilterError {
    /// Where it shows: characters from the beginning, the first is 1.
    pub column: usize,
    /// What is wrong, and what was expected.
    pub what: String,
}

/// An expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Not that.
    Not(Box<Filter>),
    /// All of these, at least two.
    All(Vec<Filter>),
    /// One of these, at least two.
    Any(Vec<Filter>),
    /// A test of one record.
    Test(Test),
}

/// One test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// Of the kind.
    Kind(Is, Kind),
    /// Of the device.
    Device(Is, Device),
    /// Of the direction.
    Direction(Is, Direction),
    /// Of what a packet carries.
    Protocol(Is, Protocol),
    /// Whether a packet has IP addresses.
    HasIp,
    /// Of a packet's addresses.
    Ip(End, Is, Network),
    /// Of a packet's ports.
    Port(End, Comparison, u64),
    /// Of a number.
    Number(Number, Comparison, u64),
    /// Whether the bytes occur in what came.
    Text(Vec<u8>),
}

/// Equal or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    /// Equal.
    Same,
    /// Not equal.
    Other,
}

/// Which ends of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Source or destination.
    Either,
    /// Source.
    Source,
    /// Destination.
    Destination,
}

/// Fields that are numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// Log index.
    Index,
    /// Synchronous exits.
    Exits,
    /// Conditional branches.
    Branches,
    /// Guest time in microseconds.
    TimeUs,
    /// Bytes that came or went.
    Size,
}

/// How numbers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    Greater,
    /// `>=`
    AtLeast,
}

/// An IP network; a single address has all bits in its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl std::str::FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        parse::parse(text)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, parts: &[Self], word: &str| {
            for (number, part) in parts.iter().enumerate() {
                if number > 0 {
                    write!(f, " {word} ")?;
                }
                match part {
                    Self::All(_) | Self::Any(_) => write!(f, "({part})")?,
                    Self::Not(_) | Self::Test(_) => write!(f, "{part}")?,
                }
            }
            Ok(())
        };
        match self {
            Self::Not(inner) if matches!(**inner, Self::Test(_) | Self::Not(_)) => {
                write!(f, "not {inner}")
            }
            Self::Not(inner) => write!(f, "not ({inner})"),
            Self::All(parts) => joined(f, parts, "and"),
            Self::Any(parts) => joined(f, parts, "or"),
            Self::Test(test) => test.fmt(f),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(is, kind) => write!(f, "kind {is} {}", kind.name()),
            Self::Device(is, device) => write!(f, "device {is} {device}"),
            Self::Direction(is, direction) => write!(f, "direction {is} {}", direction.name()),
            Self::Protocol(is, protocol) => write!(f, "proto {is} {}", protocol.name()),
            Self::HasIp => f.write_str("ip"),
            Self::Ip(end, is, network) => write!(f, "ip{end} {is} {network}"),
            Self::Port(end, comparison, port) => write!(f, "port{end} {comparison} {port}"),
            Self::Number(Number::TimeUs, comparison, us) => write!(f, "time {comparison} {us}us"),
            Self::Number(number, comparison, value) => {
                write!(f, "{} {comparison} {value}", number.name())
            }
            Self::Text(bytes) => write!(f, "text ~ \"{}\"", bytes.escape_ascii()),
        }
    }
}

impl Number {
    const fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Exits => "exits",
            Self::Branches => "branches",
            Self::TimeUs => "time",
            Self::Size => "size",
        }
    }
}

impl fmt::Display for Is {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "==",
            Self::Other => "!=",
        })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Either => "",
            Self::Source => ".src",
            Self::Destination => ".dst",
        })
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::Greater => ">",
            Self::AtLeast => ">=",
        })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}
