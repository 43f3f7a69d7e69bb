//! The demo's result: as data, and on one screen.

use rig::observation::Observation;
use serde::Serialize;
use std::fmt::Write;

/// Everything that the demo shows. The names are the keys of `--json`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Report {
    /// The client's TCP connection is the one it began with.
    pub(crate) same_connection: bool,
    /// Requests acknowledged in all.
    pub(crate) acknowledged: u64,
    /// Of these, before the kill.
    pub(crate) acknowledged_before: u64,
    /// Of these, from the kill until answers came again.
    pub(crate) acknowledged_during: u64,
    /// Of these, afterwards.
    pub(crate) acknowledged_after: u64,
    /// Requests lost.
    pub(crate) lost: u64,
    /// Requests applied more than once.
    pub(crate) repeated: u64,
    /// The client's longest silence around the kill, in milliseconds.
    pub(crate) gap_ms: f64,
    /// Its longest silence before the kill, for comparison.
    pub(crate) gap_before_ms: f64,
    /// Generation before the kill.
    pub(crate) generation_before: u64,
    /// Generation after it.
    pub(crate) generation_after: u64,
    /// Execution clock.
    pub(crate) clock: String,
    /// Why this clock.
    pub(crate) clock_why: String,
    /// `lab` for emulated hosts, `kvm` for this machine's own.
    pub(crate) hosts: &'static str,
    /// Median time from a request to its answer, in milliseconds.
    pub(crate) round_trip_p50_ms: f64,
    /// Log link traffic towards the backup under this load, in Mbit/s, with all protocol headers.
    #[serde(rename = "log_rate")]
    pub(crate) log_mbit_s: f64,
    /// Longest time that the backup was seen behind, in milliseconds.
    #[serde(rename = "lag")]
    pub(crate) lag_ms: f64,
    /// Log records that both hosts' disks hold, all equal.
    pub(crate) records_compared: u64,
    /// What the client complains of.
    pub(crate) complaints: Vec<String>,
}

impl Report {
    /// Takes over what the client saw.
    pub(crate) fn take(&mut self, seen: &Observation) {
        self.same_connection = seen.same_connection;
        self.acknowledged = seen.acknowledged;
        self.acknowledged_during = seen.phase("during").acknowledged;
        self.acknowledged_after = seen.phase("after").acknowledged;
        self.acknowledged_before =
            seen.acknowledged - self.acknowledged_during - self.acknowledged_after;
        self.lost = seen.lost;
        self.repeated = seen.repeated;
        self.gap_ms = seen
            .phase("during")
            .silence_ms
            .max(seen.phase("after").silence_ms);
        self.gap_before_ms = seen.phase("before").silence_ms;
        self.round_trip_p50_ms = seen.round_trip_p50_us as f64 / 1e3;
        self.complaints = seen.complaints();
    }

    fn checks(&self) -> [(bool, String); 5] {
        [
            (
                self.same_connection,
                "the same TCP connection is still open".into(),
            ),
            (self.lost == 0, format!("{} requests lost", self.lost)),
            (
                self.repeated == 0,
                format!("{} requests repeated", self.repeated),
            ),
            (
                self.acknowledged_after > 0 && self.complaints.is_empty(),
                "every answer follows from the ones before".into(),
            ),
            (
                self.generation_after == self.generation_before + 1,
                format!(
                    "generation {} -> {}",
                    self.generation_before, self.generation_after
                ),
            ),
        ]
    }

    /// What does not hold; empty when the demo succeeded.
    pub(crate) fn failed_checks(&self) -> Vec<String> {
        self.checks()
            .into_iter()
            .filter(|(holds, _)| !holds)
            .map(|(_, what)| what)
            .collect()
    }

    /// One screen of text.
    pub(crate) fn screen(&self) -> String {
        let mut text = String::from("\n  The primary's host was killed. Its client saw this:\n\n");
        let rows = [
            (
                "requests acknowledged",
                format!(
                    "{} before, {} during, {} after",
                    self.acknowledged_before, self.acknowledged_during, self.acknowledged_after
                ),
            ),
            (
                "longest silence",
                format!(
                    "{:.0} ms (before the kill: {:.0} ms)",
                    self.gap_ms, self.gap_before_ms
                ),
            ),
            (
                "round trip",
                format!("{:.1} ms median", self.round_trip_p50_ms),
            ),
            (
                "log to the backup",
                format!("{:.2} Mbit/s under this load", self.log_mbit_s),
            ),
            (
                "backup behind by",
                format!("at most {:.1} ms when asked", self.lag_ms),
            ),
            (
                "logs compared",
                format!("{} records equal on both disks", self.records_compared),
            ),
            ("clock, hosts", format!("{}, {}", self.clock, self.hosts)),
        ];
        for (name, value) in rows {
            let _ = writeln!(text, "  {name:<22} {value}");
        }
        if self.clock == "exits" {
            let _ = writeln!(text, "  {:<22} {}", "why this clock", self.clock_why);
        }
        text.push('\n');
        for (holds, what) in self.checks() {
            let _ = writeln!(text, "  {} {what}", if holds { "ok  " } else { "FAIL" });
        }
        for complaint in &self.complaints {
            let _ = writeln!(text, "       {complaint}");
        }
        text
    }
}
