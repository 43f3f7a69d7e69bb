//! What this machine must have for a test, and what happens when it has not.
//!
//! A missing facility prints `SKIP <why>` and the test passes; `REQUIRE=rig,kvm,pmu` (comma-separated)
//! turns the skip of the named facilities into a failure, so that CI cannot pass by doing nothing.

use crate::images::Images;
use anyhow::{Result, bail};
use std::path::Path;

/// Something that a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Facility {
    /// The lab: images, emulator, file system tools.
    Rig,
    /// A /dev/kvm that runs Linux, on this very machine.
    Kvm,
    /// Performance counters in the hosts: in the lab, those of the patched emulator.
    Pmu,
}

impl Facility {
    const fn name(self) -> &'static str {
        match self {
            Self::Rig => "rig",
            Self::Kvm => "kvm",
            Self::Pmu => "pmu",
        }
    }

    /// Why this machine does not have it, or `None`.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Rig => Images::load().err().map(|error| format!("{error:#}")),
            Self::Kvm if Path::new("/dev/kvm").exists() => None,
            Self::Kvm => Some("there is no /dev/kvm".into()),
            Self::Pmu => match Images::load() {
                Ok(images) if images.has_counters() => None,
                Ok(_) => Some("the emulator is Debian's, without performance counters".into()),
                Err(error) => Some(format!("{error:#}")),
            },
        }
    }

    /// Whether `REQUIRE` names it.
    #[must_use]
    pub fn is_required(self) -> bool {
        let required = std::env::var("REQUIRE").unwrap_or_default();
        required.split(',').any(|name| name.trim() == self.name())
    }
}

/// Whether the facilities are there; says why not.
///
/// # Errors
/// When one is missing that `REQUIRE` names.
pub fn are_there(facilities: &[Facility]) -> Result<bool> {
    for facility in facilities {
        if let Some(why) = facility.missing() {
            skip(*facility, &why)?;
            return Ok(false);
        }
    }
    Ok(true)
}

/// Says that something is left out for want of a facility.
///
/// # Errors
/// When `REQUIRE` names it.
pub fn skip(facility: Facility, why: &str) -> Result<()> {
    let name = facility.name();
    if facility.is_required() {
        bail!("REQUIRE={name} but: {why}");
    }
    eprintln!("SKIP {name}: {why}");
    Ok(())
}

/// [`are_there`] for tests.
///
/// # Panics
/// When one is missing that `REQUIRE` names.
#[must_use]
pub fn available(facilities: &[Facility]) -> bool {
    are_there(facilities).unwrap_or_else(|error| panic!("{error}"))
}
