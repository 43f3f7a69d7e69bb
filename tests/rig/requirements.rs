//! What this machine must have for a test, and what happens when it has not.
//!
//! A missing facility prints `SKIP <why>` and the test passes; `REQUIRE=rig,kvm` (comma-separated)
//! turns the skip of the named facilities into a failure, so that CI cannot pass by doing nothing.

use crate::images::Images;
use std::path::Path;

/// Something that a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Facility {
    /// The lab: images, emulator, file system tools.
    Rig,
    /// A /dev/kvm that runs Linux, on this very machine.
    Kvm,
}

impl Facility {
    const fn name(self) -> &'static str {
        match self {
            Self::Rig => "rig",
            Self::Kvm => "kvm",
        }
    }

    /// Why this machine does not have it, or `None`.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Rig => Images::load().err().map(|error| format!("{error:#}")),
            Self::Kvm if Path::new("/dev/kvm").exists() => None,
            Self::Kvm => Some("there is no /dev/kvm".into()),
        }
    }

    /// Whether `REQUIRE` names it.
    #[must_use]
    pub fn is_required(self) -> bool {
        let required = std::env::var("REQUIRE").unwrap_or_default();
        required.split(',').any(|name| name.trim() == self.name())
    }
}

/// True when the facilities are there. Otherwise says why not and returns false.
///
/// # Panics
/// When one is missing that `REQUIRE` names.
#[must_use]
pub fn available(facilities: &[Facility]) -> bool {
    for facility in facilities {
        if let Some(why) = facility.missing() {
            assert!(
                !facility.is_required(),
                "REQUIRE={} but: {why}",
                facility.name()
            );
            eprintln!("SKIP {}: {why}", facility.name());
            return false;
        }
    }
    true
}
