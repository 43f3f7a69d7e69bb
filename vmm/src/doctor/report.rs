//! The verdict as data, as text and as JSON.

#![forbid(unsafe_code)]

use super::Finding;
use super::counters::Counters;
use crate::kvm::KvmError;
use crate::kvm::cpuid::CPU_MODEL;
use serde::Serialize;
use std::fmt;

/// What a probe says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it must be.
    Pass,
    /// Works, but worth knowing.
    Warn,
    /// Linux cannot run replicated here.
    Fail,
}

/// One probe's outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProbeResult {
    /// Short name, stable.
    pub name: &'static str,
    /// Outcome.
    pub verdict: Verdict,
    /// What was seen.
    pub evidence: String,
}

impl ProbeResult {
    pub(super) fn of(name: &'static str, outcome: Result<Finding, KvmError>) -> Self {
        let (verdict, evidence) = match outcome {
            Ok(Finding::Good(evidence)) => (Verdict::Pass, evidence),
            Ok(Finding::Note(evidence)) => (Verdict::Warn, evidence),
            Ok(Finding::Bad(evidence)) => (Verdict::Fail, evidence),
            Err(error) => (Verdict::Fail, error.to_string()),
        };
        Self {
            name,
            verdict,
            evidence,
        }
    }
}

/// So many overflows overran by so many branches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SkidBin {
    /// Fewest branches.
    pub from: u64,
    /// Most branches.
    pub to: u64,
    /// Overflows.
    pub count: u64,
}

/// What crossing the margin once takes on a small guest, in microseconds; none where it was not tried or
/// does not work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct LandingCosts {
    /// By hardware breakpoint.
    pub breakpoint_us: Option<f64>,
    /// By single step.
    pub single_step_us: Option<f64>,
}

/// Everything `doctor` found out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Guest CPU model that was probed.
    pub cpu_model: &'static str,
    /// Whether a replicated Linux guest can run here, on the exit clock at least. The key is read by
    /// the rig.
    pub fit: bool,
    /// Whether the counters needed by the branch clock counted exactly.
    pub counters_exact: bool,
    /// Behaviour of KVM.
    pub kvm: Vec<ProbeResult>,
    /// Performance counters.
    pub counters: Vec<ProbeResult>,
    /// Branches short of a landing point at which the counter is armed here; none when the branch clock
    /// cannot be trusted.
    pub margin_branches: Option<u64>,
    /// How far overflows overran.
    pub skid: Vec<SkidBin>,
    /// What landings take.
    pub landing_costs: LandingCosts,
}

impl Report {
    pub(super) fn new(kvm: Vec<ProbeResult>, counters: Counters) -> Self {
        let exact = counters
            .probes
            .iter()
            .all(|probe| probe.verdict == Verdict::Pass);
        Self {
            cpu_model: CPU_MODEL,
            fit: kvm.iter().all(|probe| probe.verdict != Verdict::Fail),
            counters_exact: exact,
            kvm,
            margin_branches: counters.margin_branches.filter(|_| exact),
            counters: counters.probes,
            skid: counters.skid,
            landing_costs: counters.costs,
        }
    }

    /// Whether Linux can be run replicated on this host.
    #[must_use]
    pub const fn fit_for_linux(&self) -> bool {
        self.fit
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        section(f, "KVM behaviour", &self.kvm)?;
        section(f, "Performance counters (branch clock)", &self.counters)?;
        let failed = self
            .kvm
            .iter()
            .filter(|p| p.verdict == Verdict::Fail)
            .count();
        if self.fit {
            writeln!(
                f,
                "This host is fit for the exit clock, guest CPU model {}.",
                self.cpu_model
            )?;
        } else {
            let names: Vec<_> = self
                .kvm
                .iter()
                .filter(|p| p.verdict == Verdict::Fail)
                .map(|p| p.name)
                .collect();
            writeln!(
                f,
                "This host is NOT fit: {failed} of {} probes failed ({}). The lab's emulated hosts are.",
                self.kvm.len(),
                names.join(", ")
            )?;
        }
        match self.margin_branches {
            Some(margin) => writeln!(
                f,
                "The branch clock can be trusted here, with a margin of {margin} branches."
            ),
            None => writeln!(
                f,
                "The branch clock cannot be trusted here; `auto` takes the exit clock."
            ),
        }
    }
}

fn section(f: &mut fmt::Formatter<'_>, title: &str, probes: &[ProbeResult]) -> fmt::Result {
    writeln!(f, "{title}")?;
    for probe in probes {
        let verdict = match probe.verdict {
            Verdict::Pass => "pass",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        writeln!(f, "  {verdict}  {:<22} {}", probe.name, probe.evidence)?;
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::landing::Crossing;

    fn probe(name: &'static str, verdict: Verdict) -> ProbeResult {
        ProbeResult {
            name,
            verdict,
            evidence: "seen".into(),
        }
    }

    fn counters(probes: Vec<ProbeResult>) -> Counters {
        Counters {
            probes,
            margin_branches: Some(64),
            crossing: Crossing::Breakpoint,
            skid: vec![],
            costs: LandingCosts::default(),
        }
    }

    #[test]
    fn one_failure_makes_a_host_unfit_a_warning_does_not() {
        let good = Report::new(
            vec![probe("a", Verdict::Pass), probe("b", Verdict::Warn)],
            counters(vec![]),
        );
        assert!(good.fit_for_linux());
        let bad = Report::new(
            vec![probe("a", Verdict::Pass), probe("b", Verdict::Fail)],
            counters(vec![]),
        );
        assert!(!bad.fit_for_linux());
        let text = bad.to_string();
        assert!(text.contains("NOT fit: 1 of 2 probes failed (b)"), "{text}");
        assert!(text.contains("FAIL  b"), "{text}");
    }

    #[test]
    fn counters_do_not_decide() {
        let report = Report::new(vec![], counters(vec![probe("counter", Verdict::Fail)]));
        assert!(report.fit_for_linux());
        assert!(!report.counters_exact);
        assert_eq!(report.margin_branches, None, "a margin without proof");
    }

    #[test]
    fn json_has_the_verdict_and_every_probe() {
        let report = Report::new(vec![probe("a", Verdict::Fail)], counters(vec![]));
        let json = serde_json::to_value(&report).expect("plain data");
        assert_eq!(json["fit"], false);
        assert_eq!(json["kvm"][0]["verdict"], "fail");
        assert_eq!(json["kvm"][0]["evidence"], "seen");
    }
}
