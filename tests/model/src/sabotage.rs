//! Deliberate breaks. Each must be found, or the check proves nothing.

#![forbid(unsafe_code)]

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing.
    #[default]
    None,
    /// A backup takes its own word for the arbiter's.
    SkipClaim,
    /// The primary's output leaves when it is recorded.
    ReleaseEarly,
    /// The arbiter loses its last grant when it restarts: it answered before the disk had it.
    ForgetGeneration,
    /// A restarted process claims under its predecessor's name.
    ReuseName,
    /// A backup goes live without what it received and has not replayed.
    SkipLog,
    /// The arbiter refuses the winner that asks again.
    RefuseRetry,
    /// The arbiter's answers are lost, for ever.
    NeverAnswer,
    /// A second order to finish the log is not answered.
    DrainedOnce,
}

/// All that breaks something.
pub const ALL: [Sabotage; 8] = [
    Sabotage::SkipClaim,
    Sabotage::ReleaseEarly,
    Sabotage::ForgetGeneration,
    Sabotage::ReuseName,
    Sabotage::SkipLog,
    Sabotage::RefuseRetry,
    Sabotage::NeverAnswer,
    Sabotage::DrainedOnce,
];

impl std::str::FromStr for Sabotage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        ALL.into_iter()
            .find(|s| format!("{s:?}").eq_ignore_ascii_case(text))
            .ok_or_else(|| format!("no sabotage {text:?}; there are {ALL:?}"))
    }
}
