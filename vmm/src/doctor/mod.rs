//! Is this host fit? Found out by running tiny guests and looking at what they do.
//!
//! Capabilities and version numbers are not trusted: a software KVM may offer all of them and still
//! emulate ring 0 wrongly. Each probe runs a few hand-assembled instructions and compares
//! everything it can see. A probe that fails says what was expected and what was found.
//!
//! Verdict: fit for the exit clock when no probe of the KVM section failed. The counters section
//! tells whether the branch clock can be trusted, and with which margin; it does not weigh.
//!
//! Left out: networking, disks, the other host (the handshake compares those).

mod counters;
mod cpu_probes;
mod debug_probe;
mod exit_probes;
mod interrupt_probes;
mod report;
mod tiny_guest;

pub use report::{ProbeResult, Report, Verdict};

use crate::clock::landing::LandingMethod;
use crate::kvm::KvmError;

/// A probe: passes with evidence, or tells what is wrong.
type Probe = (&'static str, fn() -> Result<Finding, KvmError>);

/// What a probe found.
enum Finding {
    /// As it must be.
    Good(String),
    /// Works, but something is worth knowing.
    Note(String),
    /// Linux cannot run replicated here.
    Bad(String),
}

impl Finding {
    fn text(&self) -> &str {
        match self {
            Self::Good(text) | Self::Note(text) | Self::Bad(text) => text,
        }
    }
}

/// All probes of the KVM section, simplest first.
const PROBES: [Probe; 21] = [
    ("cpu-model", cpu_probes::model_is_offered),
    ("port-io", exit_probes::port_io),
    ("memory-io", exit_probes::memory_io),
    ("halt", exit_probes::halt),
    ("kick", exit_probes::kick),
    ("msr-filter", exit_probes::msr_filter),
    ("cpuid-kernel", cpu_probes::cpuid_in_ring_0),
    ("cpuid-user", cpu_probes::cpuid_in_ring_3),
    ("kernel-instructions", cpu_probes::kernel_instructions),
    ("syscall", cpu_probes::syscall),
    ("tsd", cpu_probes::time_stamp_disable),
    ("xsave-absent", cpu_probes::xsave_absent),
    ("hidden-instructions", cpu_probes::hidden_instructions),
    ("registers", cpu_probes::registers_round_trip),
    ("single-step", interrupt_probes::single_step),
    ("breakpoint", interrupt_probes::breakpoint),
    ("interrupt", interrupt_probes::interrupt),
    (
        "interrupt-beside-fault",
        interrupt_probes::interrupt_beside_fault,
    ),
    (
        "interrupt-under-kicks",
        interrupt_probes::interrupt_under_kicks,
    ),
    ("interrupt-window", interrupt_probes::window_is_exact),
    ("exit-cost", exit_probes::exit_cost),
];

/// Finds out whether the branch clock can be trusted on this host: how to land, or what is
/// wrong. Takes about a second; for a command that is to run a guest.
///
/// # Errors
/// The first probe that failed, in words.
pub fn branch_clock() -> Result<LandingMethod, String> {
    let counters = counters::examine();
    let failed = counters
        .probes
        .iter()
        .find(|probe| probe.verdict == Verdict::Fail);
    match (failed, counters.margin_branches) {
        (None, Some(margin)) => Ok(LandingMethod {
            margin,
            crossing: counters.crossing,
        }),
        (Some(probe), _) => Err(format!("{}: {}", probe.name, probe.evidence)),
        (None, None) => Err("no margin was found".to_owned()),
    }
}

/// How much to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thoroughness {
    /// Every probe: all that is wrong, for somebody who wants to mend it.
    Everything,
    /// Up to the first failure, which settles the verdict: for programs.
    FirstFailure,
}

/// Runs the probes.
#[must_use]
pub fn examine(thoroughness: Thoroughness) -> Report {
    let mut kvm = Vec::new();
    for (name, probe) in PROBES {
        let result = ProbeResult::of(name, probe());
        let settled = result.verdict == Verdict::Fail;
        kvm.push(result);
        if settled && thoroughness == Thoroughness::FirstFailure {
            return Report::new(kvm, counters::not_examined());
        }
    }
    Report::new(kvm, counters::examine())
}
