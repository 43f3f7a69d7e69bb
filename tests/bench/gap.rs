//! The client-visible gap: many kills of the primary's host under load.

use crate::Settings;
use crate::measure::{Measures, percentile};
use anyhow::{Context, Result};
use rig::fault::Fault;
use rig::lab::{Lab, Side};
use rig::observation::Load;
use rig::pair::PairOptions;
use rig::scene::Scene;

/// Near the product's default of 120 ms: a longer timeout would be most of what is measured. The
/// drills' own, longer one is for machines that do something else as well.
const SUSPECT_MS: u32 = 150;

pub(crate) fn measure(lab: &mut Lab, settings: &Settings, measures: &mut Measures) -> Result<()> {
    let mut gaps = Vec::new();
    let mut failure = None;
    for number in 1..=settings.kills {
        match one_kill(lab) {
            Ok(gap) => gaps.push(gap),
            Err(error) => {
                eprintln!("  kill {number}: {error:#}");
                failure = Some(error);
            }
        }
    }
    gaps.sort_by(f64::total_cmp);
    if let (Some(least), Some(most)) = (gaps.first(), gaps.last()) {
        measures.add("gap_ms_min", *least, "ms");
        measures.add("gap_ms_p50", percentile(&gaps, 50), "ms");
        measures.add("gap_ms_p99", percentile(&gaps, 99), "ms");
        measures.add("gap_ms_max", *most, "ms");
    }
    measures.add("gap_kills", gaps.len() as f64, "kills");
    measures.add(
        "gap_kills_failed",
        f64::from(settings.kills) - gaps.len() as f64,
        "kills",
    );
    failure.map_or(Ok(()), |error| Err(error).context("some kills failed"))
}

fn one_kill(lab: &mut Lab) -> Result<f64> {
    lab.reset()?;
    let options = PairOptions {
        suspect_ms: SUSPECT_MS,
        ..lab.options()
    };
    let mut scene = Scene::open(lab, &options, &Load::steady())?;
    scene.phase("killed")?;
    scene.strike(Fault::Kill(Side::Primary))?;
    // Asking the backup how it does would cost it the processor time that is being measured.
    scene.wait_served()?;
    scene.wait_solo(Side::Backup)?;
    let (seen, _) = scene.close()?;
    Ok(seen.phase("killed").silence_ms)
}
