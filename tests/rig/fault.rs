//! What a drill may do to a lab, as data: so that it can be named in a report.

use crate::lab::{Lab, Side};
use anyhow::Result;
use std::fmt;

/// One thing that goes wrong, or is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A host loses power.
    Kill(Side),
    /// A host freezes.
    Freeze(Side),
    /// A frozen host goes on as if nothing had been.
    Thaw(Side),
    /// The log link carries nothing any more, either way.
    CutLink,
    /// It carries everything again.
    MendLink,
    /// The arbiter's process is killed; its store stays.
    KillArbiter,
    /// It is started again with its store.
    StartArbiter,
}

impl Fault {
    /// Makes it happen.
    ///
    /// # Errors
    /// When the lab does not obey.
    pub fn strike(self, lab: &mut Lab) -> Result<()> {
        match self {
            Self::Kill(side) => lab.host_mut(side).kill(),
            Self::Freeze(side) => lab.host(side).pause()?,
            Self::Thaw(side) => lab.host(side).resume()?,
            Self::CutLink => lab.link.cut(),
            Self::MendLink => lab.link.mend(),
            Self::KillArbiter => lab.arbiter.kill(),
            Self::StartArbiter => lab.arbiter.start()?,
        }
        Ok(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(side) => write!(f, "the {side}'s host loses power"),
            Self::Freeze(side) => write!(f, "the {side}'s host freezes"),
            Self::Thaw(side) => write!(f, "the {side}'s host goes on"),
            Self::CutLink => f.write_str("the log link is cut"),
            Self::MendLink => f.write_str("the log link is mended"),
            Self::KillArbiter => f.write_str("the arbiter dies"),
            Self::StartArbiter => f.write_str("the arbiter is back"),
        }
    }
}
