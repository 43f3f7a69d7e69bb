//! The bounds that are checked by default, small and large.

#![forbid(unsafe_code)]

use crate::sabotage::Sabotage;
use crate::world::Bounds;

/// Checked by `cargo xtask test`, with [`FINDS`]: under a minute.
pub const QUICK: [Bounds; 2] = [bounds(2, 1, 1, false), bounds(2, 1, 0, true)];

/// Checked by `cargo xtask model`: three quarters of an hour on two processors, less than a gigabyte.
pub const LARGE: [Bounds; 5] = [
    bounds(2, 1, 1, false),
    bounds(2, 1, 0, true),
    bounds(3, 1, 1, false),
    bounds(2, 2, 1, false),
    bounds(2, 1, 1, true),
];

/// Within which bounds each break is found.
pub const FINDS: [(Sabotage, Bounds); 8] = [
    (Sabotage::SkipClaim, QUICK[0]),
    (Sabotage::ReleaseEarly, QUICK[0]),
    (Sabotage::ForgetGeneration, QUICK[0]),
    (Sabotage::ReuseName, bounds(2, 2, 1, false)),
    (Sabotage::SkipLog, QUICK[0]),
    (Sabotage::RefuseRetry, QUICK[0]),
    (Sabotage::NeverAnswer, QUICK[0]),
    (Sabotage::DrainedOnce, QUICK[1]),
];

const fn bounds(hosts: usize, faults: u8, outputs: u8, lagging: bool) -> Bounds {
    Bounds {
        hosts,
        faults,
        outputs,
        lagging,
    }
}

impl std::fmt::Display for Bounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lagging = if self.lagging { ", lagging guests" } else { "" };
        write!(
            f,
            "{} hosts, {} faults, {} outputs{lagging}",
            self.hosts, self.faults, self.outputs
        )
    }
}
