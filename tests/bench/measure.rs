//! Measured numbers with their targets.

use serde::Serialize;
use std::fmt::Write;

/// One number.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measure {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
}

/// All numbers of a run, in the order of measuring.
#[derive(Debug, Default)]
pub(crate) struct Measures(pub(crate) Vec<Measure>);

enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// What the project promises itself; everything else is only reported.
const TARGETS: &[(&str, Target)] = &[
    ("cpu_ratio", Target::AtLeast(0.95)),
    ("gap_ms_p50", Target::AtMost(300.0)),
    ("gap_ms_p99", Target::AtMost(1_000.0)),
    ("idle_log_mbit_s", Target::AtMost(1.5)),
    ("timer_record_bytes", Target::AtMost(8.0)),
    ("packet_overhead_bytes", Target::AtMost(16.0)),
    ("replay_over_record", Target::AtLeast(1.0)),
    ("log_stat_speed_ratio", Target::AtLeast(0.5)),
    ("log_ls_speed_ratio", Target::AtLeast(0.5)),
    ("log_stat_disk_speed_ratio", Target::AtLeast(0.5)),
    ("log_ls_disk_speed_ratio", Target::AtLeast(0.5)),
    ("log_memory_mib", Target::AtMost(64.0)),
    ("pause_ms_64mib", Target::AtMost(100.0)),
    ("pause_ms_256mib", Target::AtMost(100.0)),
    ("pause_ms_1024mib", Target::AtMost(100.0)),
    ("transfer_over_link_256mib", Target::AtLeast(0.5)),
    ("transfer_over_link_1024mib", Target::AtLeast(0.5)),
];

impl Measures {
    pub(crate) fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.0.push(Measure {
            name: name.into(),
            value,
            unit,
        });
    }

    pub(crate) fn table(&self) -> String {
        let mut text = String::from("\n");
        for Measure { name, value, unit } in &self.0 {
            let target = TARGETS
                .iter()
                .find(|(of, _)| of == name)
                .map(|(_, target)| target);
            let verdict = match target {
                Some(Target::AtLeast(least)) => verdict(value >= least, ">=", *least),
                Some(Target::AtMost(most)) => verdict(value <= most, "<=", *most),
                None => String::new(),
            };
            let _ = writeln!(text, "  {name:<32} {value:>12.3} {unit:<10} {verdict}");
        }
        text
    }
}

fn verdict(reached: bool, sign: &str, target: f64) -> String {
    format!(
        "{} (target {sign} {target})",
        if reached { "reached" } else { "MISSED" }
    )
}

/// The value below which `percent` of `sorted` lie; 0 when there is none.
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(0.0)
}
