//! What goes over HTTP: paths, JSON bodies, and the decoding of a claim from hostile bytes.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/vms/{vm}/claim` with a [`ClaimRequest`] | 200 or 409 with a [`ClaimReply`] |
//! | `GET /v1/vms/{vm}` | 200 with a [`VmReply`]; generation 0 when never claimed |
//! | `GET /v1/vms/{vm}/history` | 200 with a [`HistoryReply`] |
//! | `GET /v1/vms` | 200 with a [`VmsReply`] |
//! | `GET /v1/health` | 200 with a [`HealthReply`] |
//!
//! Anything else is answered with an [`ErrorReply`]: what is wrong, and what to do about it. Requests
//! are strict (unknown or repeated members are refused) since a misspelt member in a claim must never
//! be taken for a default; answers may grow members within version 1. The content type of a request
//! is not looked at, so that plain `curl -d` works. `docs/formats/arbiter.md` has examples.

#![forbid(unsafe_code)]

use crate::register::{Claim, Holder, Invalid, Outcome, Register, VmName};
use serde::{Deserialize, Serialize};

/// Version of these shapes, the `v1` of the paths.
pub const VERSION: u32 = 1;
/// Longest request body, bytes.
pub const REQUEST_BYTES_MAX: usize = 4_096;
/// Longest answer a client reads, bytes: a full list of registers fits.
pub const REPLY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Body of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// The generation that must be current; 0 for a virtual machine that was never claimed.
    pub expected_generation: u64,
    /// The generation to hold.
    pub new_generation: u64,
    /// Who claims: one run of one process.
    pub holder: String,
}

impl From<&Claim> for ClaimRequest {
    fn from(claim: &Claim) -> Self {
        Self {
            expected_generation: claim.expected_generation(),
            new_generation: claim.new_generation(),
            holder: claim.holder().to_string(),
        }
    }
}

/// A request that cannot be answered with an [`Outcome`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The body is longer than [`REQUEST_BYTES_MAX`].
    #[error("the request body is longer than {REQUEST_BYTES_MAX} bytes")]
    TooLarge,
    /// Not the JSON of a [`ClaimRequest`].
    #[error("the request body is not a claim: {reason}")]
    Malformed {
        /// What the JSON reader found, with line and column.
        reason: String,
    },
    /// JSON of the right shape with a value no register accepts.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl RequestError {
    /// What the sender can do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::TooLarge | Self::Malformed { .. } => {
                r#"send {"expected_generation": 0, "new_generation": 1, "holder": "host-a"}"#.into()
            }
            Self::Invalid(invalid) => invalid.remedy(),
        }
    }

    /// The code of its [`ErrorReply`].
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::TooLarge => ErrorCode::TooLarge,
            Self::Malformed { .. } => ErrorCode::Malformed,
            Self::Invalid(_) => ErrorCode::Invalid,
        }
    }
}

/// Decodes the body of a claim. Total: any bytes give a claim or an error, never a panic.
///
/// # Errors
/// When the bytes are too many, not JSON of the shape, or hold a value no register accepts.
pub fn decode_claim(bytes: &[u8]) -> Result<Claim, RequestError> {
    if bytes.len() > REQUEST_BYTES_MAX {
        return Err(RequestError::TooLarge);
    }
    let request: ClaimRequest =
        serde_json::from_slice(bytes).map_err(|error| RequestError::Malformed {
            reason: error.to_string(),
        })?;
    let holder = Holder::new(request.holder)?;
    Ok(Claim::new(
        request.expected_generation,
        request.new_generation,
        holder,
    )?)
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The claimant holds the generation.
    Granted,
    /// It does not, and never will by this claim.
    Refused,
}

/// Answer to a claim: the verdict, and what the register holds now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimReply {
    /// What became of the claim.
    pub outcome: Verdict,
    /// Current generation.
    pub generation: u64,
    /// Current holder.
    pub holder: Option<Holder>,
}

impl ClaimReply {
    /// The answer that tells `claim`'s sender of `outcome`.
    #[must_use]
    pub fn new(claim: &Claim, outcome: Outcome) -> Self {
        match outcome {
            Outcome::Granted => Self {
                outcome: Verdict::Granted,
                generation: claim.new_generation(),
                holder: Some(claim.holder().clone()),
            },
            Outcome::Refused { generation, holder } => Self {
                outcome: Verdict::Refused,
                generation,
                holder,
            },
        }
    }

    /// The outcome this answer tells the sender of `claim`; none when a grant speaks of another
    /// generation or holder than were claimed, or a refusal is no refusal.
    #[must_use]
    pub fn outcome_of(self, claim: &Claim) -> Option<Outcome> {
        let ours = self.generation == claim.new_generation()
            && self.holder.as_ref() == Some(claim.holder());
        match self.outcome {
            Verdict::Granted if ours => Some(Outcome::Granted),
            Verdict::Refused if (self.generation == 0) == self.holder.is_none() => {
                Some(Outcome::Refused {
                    generation: self.generation,
                    holder: self.holder,
                })
            }
            _ => None,
        }
    }
}

/// What one register holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmReply {
    /// The virtual machine.
    pub vm: VmName,
    /// Current generation; 0 when never claimed.
    pub generation: u64,
    /// Current holder; null when never claimed.
    pub holder: Option<Holder>,
}

impl VmReply {
    /// Shows `register`.
    #[must_use]
    pub fn new(vm: VmName, register: &Register) -> Self {
        Self {
            vm,
            generation: register.generation(),
            holder: register.holder().cloned(),
        }
    }
}

/// A claim that was granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The generation that was current before.
    pub expected_generation: u64,
    /// The generation that was granted.
    pub generation: u64,
    /// To whom.
    pub holder: Holder,
}

impl From<&Claim> for Grant {
    fn from(claim: &Claim) -> Self {
        Self {
            expected_generation: claim.expected_generation(),
            generation: claim.new_generation(),
            holder: claim.holder().clone(),
        }
    }
}

/// The newest grants of a virtual machine, at most [`crate::register::HISTORY_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryReply {
    /// The virtual machine.
    pub vm: VmName,
    /// Its grants, oldest first.
    pub grants: Vec<Grant>,
}

/// All registers that were ever claimed, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmsReply {
    /// The registers.
    pub vms: Vec<VmReply>,
}

/// The arbiter works: it could read its store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReply {
    /// Always `ok`.
    pub status: String,
    /// Version of the program.
    pub version: String,
    /// [`VERSION`].
    pub protocol: u32,
    /// Number of registers ever claimed.
    pub vms: usize,
}

/// Kind of an error, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The body is not JSON of the right shape (400).
    Malformed,
    /// A value that no register accepts (400).
    Invalid,
    /// The body is too long (413).
    TooLarge,
    /// The sender's certificate does not allow it (403).
    Forbidden,
    /// No such path (404).
    NotFound,
    /// The path exists, the method does not (405).
    MethodNotAllowed,
    /// The request took too long to arrive or to answer (503).
    Timeout,
    /// No room for another virtual machine (507).
    Full,
    /// The store cannot be reached at the moment; whether a claim was granted is not known (503).
    Unavailable,
    /// The store failed; whether a claim was granted is not known: ask again (500).
    StoreFailed,
    /// A code of a later version.
    #[serde(other)]
    Other,
}

impl ErrorCode {
    /// Its HTTP status.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Malformed | Self::Invalid => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::TooLarge => 413,
            Self::StoreFailed | Self::Other => 500,
            Self::Timeout | Self::Unavailable => 503,
            Self::Full => 507,
        }
    }
}

/// Answer when a request cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// The error.
    pub error: ErrorBody,
}

/// What is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what is wrong.
    pub message: String,
    /// For people: what to do about it.
    pub remedy: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = r#"{"expected_generation":0,"new_generation":1,"holder":"a"}"#;

    #[test]
    fn a_claim_survives_the_wire() {
        let claim = decode_claim(GOOD.as_bytes()).unwrap();
        let bytes = serde_json::to_string(&ClaimRequest::from(&claim)).unwrap();
        assert_eq!(bytes, GOOD, "golden bytes of docs/formats/arbiter.md");
    }

    #[test]
    fn strictness() {
        let malformed = [
            "",
            "[]",
            "{}",
            r#"{"expected_generation":0,"new_generation":1}"#,
            r#"{"expected_generation":0,"new_generation":1,"holder":"a","force":true}"#,
            r#"{"expected_generation":0,"new_generation":1,"holder":"a","holder":"b"}"#,
            r#"{"expected_generation":-1,"new_generation":1,"holder":"a"}"#,
            r#"{"expected_generation":0,"new_generation":1.0,"holder":"a"}"#,
            r#"{"expected_generation":0,"new_generation":18446744073709551616,"holder":"a"}"#,
            r#"{"expected_generation":0,"new_generation":1,"holder":"a"} x"#,
        ];
        for text in malformed {
            let error = decode_claim(text.as_bytes()).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Malformed, "{text}: {error}");
        }
        let invalid = [
            r#"{"expected_generation":1,"new_generation":1,"holder":"a"}"#,
            r#"{"expected_generation":0,"new_generation":1,"holder":""}"#,
            r#"{"expected_generation":0,"new_generation":9007199254740992,"holder":"a"}"#,
        ];
        for text in invalid {
            let error = decode_claim(text.as_bytes()).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Invalid, "{text}: {error}");
        }
        let long = " ".repeat(REQUEST_BYTES_MAX + 1);
        assert_eq!(decode_claim(long.as_bytes()), Err(RequestError::TooLarge));
    }

    #[test]
    fn a_grant_of_something_else_is_no_grant() {
        let claim = decode_claim(GOOD.as_bytes()).unwrap();
        let reply = ClaimReply::new(&claim, Outcome::Granted);
        assert_eq!(reply.clone().outcome_of(&claim), Some(Outcome::Granted));
        let other = Claim::new(0, 2, claim.holder().clone()).unwrap();
        assert_eq!(reply.outcome_of(&other), None);
    }

    #[test]
    fn a_full_list_fits_the_reply_limit() {
        use crate::register::{HOLDER_BYTES_MAX, VM_NAME_BYTES_MAX, VMS_MAX};
        let vm = VmName::new("v".repeat(VM_NAME_BYTES_MAX)).unwrap();
        let holder = Holder::new("h".repeat(HOLDER_BYTES_MAX)).unwrap();
        let claim = Claim::new(0, crate::register::GENERATION_MAX, holder).unwrap();
        let one = VmReply::new(vm, &Register::holding(claim));
        let bytes = serde_json::to_vec(&one).unwrap().len() + 1;
        assert!(bytes * VMS_MAX + 64 <= REPLY_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode_claim(&bytes);
        }

        #[test]
        fn any_near_claim_is_decoded_or_refused(
            expected in any::<i128>(), new in any::<i128>(), holder in any::<String>(),
        ) {
            let text = format!(
                r#"{{"expected_generation":{expected},"new_generation":{new},"holder":{}}}"#,
                serde_json::to_string(&holder).unwrap()
            );
            if let Ok(claim) = decode_claim(text.as_bytes()) {
                prop_assert_eq!(i128::from(claim.expected_generation()), expected);
                prop_assert_eq!(i128::from(claim.new_generation()), new);
                prop_assert_eq!(claim.holder().as_str(), holder.as_str());
            }
        }

        #[test]
        fn truncations_and_bit_flips_never_panic(cut in 0..GOOD.len(), at in 0..GOOD.len(), bit in 0..8u8) {
            let _ = decode_claim(&GOOD.as_bytes()[..cut]);
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes[at] ^= 1 << bit;
            let _ = decode_claim(&bytes);
        }
    }
}
