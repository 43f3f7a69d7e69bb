//! Deliberate breaks. Each must be found by the invariants, or the simulation proves nothing.

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing.
    #[default]
    None,
    /// The primary's output leaves when it is recorded.
    ReleaseBeforeAcknowledgement,
    /// A backup takes its own word for the arbiter's.
    GoLiveWithoutClaim,
    /// The arbiter answers before its grant is on disk, and loses it when it restarts.
    ForgetGeneration,
    /// A backup goes live without the records that it had received and not yet replayed.
    SkipTheRestOfTheLog,
    /// One bit of a packet differs in the backup's log.
    WrongByte,
    /// One bit of a running guest's state is lost on its way to a new backup.
    WrongState,
    /// A state in the log lacks the words that the guest wrote.
    LostWrite,
    /// A restarted process claims under its predecessor's name.
    ReuseName,
}

/// All that breaks something.
pub const ALL: [Sabotage; 8] = [
    Sabotage::ReleaseBeforeAcknowledgement,
    Sabotage::GoLiveWithoutClaim,
    Sabotage::ForgetGeneration,
    Sabotage::SkipTheRestOfTheLog,
    Sabotage::WrongByte,
    Sabotage::WrongState,
    Sabotage::LostWrite,
    Sabotage::ReuseName,
];

impl std::str::FromStr for Sabotage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        ALL.into_iter()
            .find(|s| format!("{s:?}").eq_ignore_ascii_case(text))
            .ok_or_else(|| format!("no sabotage {text:?}; there are {ALL:?}"))
    }
}
