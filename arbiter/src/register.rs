//! The test-and-set cell: one per virtual machine, holding a generation and who was granted it.
//!
//! ```text
//!                 claim(expected == generation, new > expected, holder)
//!   (generation, holder) ----------------------------------------------> (new, holder)   Granted
//!            |  the very claim that won, again ------------------------> unchanged       Granted
//!            |  anything else -----------------------------------------> unchanged       Refused
//! ```
//!
//! Invariants: the generation only grows; at most one holder was ever granted a generation; an
//! answer `Granted` means that the cell held exactly this claim when it was answered. Hence a
//! winner that was overtaken since is refused, even when it only repeats the claim it once won.
//!
//! A holder therefore has to name *one run of one process* (host name and a random part): a
//! restarted process that used its predecessor's name would be taken for it.
//!
//! Design section 6. Left out: durability (`store`), the wire (`protocol`).

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest name of a virtual machine, bytes.
pub const VM_NAME_BYTES_MAX: usize = 64;
/// Longest name of a holder, bytes.
pub const HOLDER_BYTES_MAX: usize = 128;
/// Greatest generation: the greatest integer that every JSON reader keeps exactly.
pub const GENERATION_MAX: u64 = (1 << 53) - 1;
/// Most virtual machines one arbiter keeps a register for.
pub const VMS_MAX: usize = 4_096;
/// Grants of one virtual machine that a store remembers for operators, the newest.
pub const HISTORY_MAX: usize = 256;

/// A name or a claim that no register accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// An empty name.
    #[error("the {what} is empty")]
    Empty {
        /// `vm name` or `holder`.
        what: &'static str,
    },
    /// A name over its limit.
    #[error("the {what} is {length} bytes long, the limit is {limit}")]
    TooLong {
        /// `vm name` or `holder`.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A character that names do not have.
    #[error("the {what} has {found:?} at byte {offset}")]
    Character {
        /// `vm name` or `holder`.
        what: &'static str,
        /// The character.
        found: char,
        /// Where it is, in bytes from the start.
        offset: usize,
    },
    /// The claim would not advance the generation.
    #[error("new_generation {new} is not above expected_generation {expected}")]
    NotAhead {
        /// As claimed.
        expected: u64,
        /// As claimed.
        new: u64,
    },
    /// The generation is over [`GENERATION_MAX`].
    #[error("new_generation {new} is above the limit {GENERATION_MAX}")]
    GenerationTooLarge {
        /// As claimed.
        new: u64,
    },
}

impl Invalid {
    /// What the sender can do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Empty { what: "vm name" }
            | Self::TooLong {
                what: "vm name", ..
            } => {
                format!("name the virtual machine with 1 to {VM_NAME_BYTES_MAX} characters")
            }
            Self::Character {
                what: "vm name", ..
            } => "use letters, digits, '.', '_' and '-', beginning with a letter or digit".into(),
            Self::Empty { .. } | Self::TooLong { .. } => {
                format!("name the holder with 1 to {HOLDER_BYTES_MAX} characters")
            }
            Self::Character { .. } => "use printable ASCII without spaces or quotes".into(),
            Self::NotAhead { expected, .. } => {
                format!("claim new_generation {}", expected.saturating_add(1))
            }
            Self::GenerationTooLarge { .. } => {
                "generations count claims: use the next number".into()
            }
        }
    }
}

fn check_length(what: &'static str, text: &str, limit: usize) -> Result<(), Invalid> {
    if text.is_empty() {
        return Err(Invalid::Empty { what });
    }
    if text.len() > limit {
        return Err(Invalid::TooLong {
            what,
            length: text.len(),
            limit,
        });
    }
    Ok(())
}

/// Name of a virtual machine: a letter or digit, then letters, digits, `.`, `_`, `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl VmName {
    /// Checks `text`.
    ///
    /// # Errors
    /// When it is empty, too long, or has a character outside the set.
    pub fn new(text: impl Into<String>) -> Result<Self, Invalid> {
        let text = text.into();
        check_length("vm name", &text, VM_NAME_BYTES_MAX)?;
        for (offset, found) in text.char_indices() {
            let inside = offset > 0 && matches!(found, '.' | '_' | '-');
            if !found.is_ascii_alphanumeric() && !inside {
                return Err(Invalid::Character {
                    what: "vm name",
                    found,
                    offset,
                });
            }
        }
        Ok(Self(text))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Name of one run of one process that may hold a virtual machine: printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Holder(String);

impl Holder {
    /// Checks `text`.
    ///
    /// # Errors
    /// When it is empty, too long, or has a character outside the set.
    pub fn new(text: impl Into<String>) -> Result<Self, Invalid> {
        let text = text.into();
        check_length("holder", &text, HOLDER_BYTES_MAX)?;
        for (offset, found) in text.char_indices() {
            if !found.is_ascii_graphic() || matches!(found, '"' | '\'' | '\\') {
                return Err(Invalid::Character {
                    what: "holder",
                    found,
                    offset,
                });
            }
        }
        Ok(Self(text))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_conversions {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                Self::new(text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
text_conversions!(VmName);
text_conversions!(Holder);

/// A wish to hold a virtual machine under a new generation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    expected_generation: u64,
    new_generation: u64,
    holder: Holder,
}

impl Claim {
    /// The claim that replaces `expected` with `new` for `holder`. Generation 0 is "never claimed".
    ///
    /// # Errors
    /// When `new` is not above `expected`, or above [`GENERATION_MAX`].
    pub fn new(expected: u64, new: u64, holder: Holder) -> Result<Self, Invalid> {
        if new <= expected {
            return Err(Invalid::NotAhead { expected, new });
        }
        if new > GENERATION_MAX {
            return Err(Invalid::GenerationTooLarge { new });
        }
        Ok(Self {
            expected_generation: expected,
            new_generation: new,
            holder,
        })
    }

    /// The generation that must be current for the claim to win.
    #[must_use]
    pub const fn expected_generation(&self) -> u64 {
        self.expected_generation
    }

    /// The generation that is current once it has won.
    #[must_use]
    pub const fn new_generation(&self) -> u64 {
        self.new_generation
    }

    /// Who claims.
    #[must_use]
    pub const fn holder(&self) -> &Holder {
        &self.holder
    }
}

/// The answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The claimant holds the virtual machine under the generation it claimed, for good.
    Granted,
    /// Somebody else does, or the expectation was wrong: what the register holds.
    Refused {
        /// Current generation; 0 when never claimed.
        generation: u64,
        /// Its holder; none when never claimed.
        holder: Option<Holder>,
    },
}

/// The cell. Its default is "never claimed".
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Register {
    last: Option<Claim>,
}

impl Register {
    /// A register whose last granted claim was `claim`; for stores that read one back.
    #[must_use]
    pub const fn holding(claim: Claim) -> Self {
        Self { last: Some(claim) }
    }

    /// Current generation; 0 when never claimed.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.last.as_ref().map_or(0, Claim::new_generation)
    }

    /// Current holder; none when never claimed.
    #[must_use]
    pub fn holder(&self) -> Option<&Holder> {
        self.last.as_ref().map(Claim::holder)
    }

    /// The claim that was last granted.
    #[must_use]
    pub const fn last_granted(&self) -> Option<&Claim> {
        self.last.as_ref()
    }

    /// Tests and sets. The register changed if, and only if, its value before differs from now.
    pub fn claim(&mut self, claim: &Claim) -> Outcome {
        if self.last.as_ref() == Some(claim) {
            return Outcome::Granted;
        }
        if self.generation() != claim.expected_generation {
            return Outcome::Refused {
                generation: self.generation(),
                holder: self.holder().cloned(),
            };
        }
        assert!(
            claim.new_generation > self.generation(),
            "Claim::new checked it"
        );
        self.last = Some(claim.clone());
        Outcome::Granted
    }
}

#[cfg(test)]
#[path = "register_tests.rs"]
mod tests;
