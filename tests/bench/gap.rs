//! The client-visible gap: many kills of the primary's host under load.

use crate::Settings;
use crate::measure::{Measures, percentile};
use anyhow::{Context, Result, bail};
use rig::fault::Fault;
use rig::lab::{Lab, Side};
use rig::observation::Load;
use rig::pair::PairOptions;
use rig::scene::Scene;

/// As near to the product's default of 120 ms as emulated hosts allow: with 150 ms one of them was
/// suspected before it was killed. Most of what is measured is this.
const SUSPECT_MS: u32 = 250;

/// Pairs that come apart before the kill, on a busy machine, and are started again.
const RETRIES_MAX: u32 = 3;

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
    for _ in 0..RETRIES_MAX {
        if let Some(gap) = try_one_kill(lab)? {
            return Ok(gap);
        }
        eprintln!("  the pair came apart before the kill: started again");
    }
    bail!("{RETRIES_MAX} pairs came apart before the kill: this machine is too busy to measure")
}

/// `None` when the pair was no longer protected at the time of the kill.
fn try_one_kill(lab: &mut Lab) -> Result<Option<f64>> {
    lab.reset()?;
    let options = PairOptions {
        suspect_ms: SUSPECT_MS,
        ..lab.options()
    };
    let mut scene = Scene::open(lab, &options, &Load::steady())?;
    // A primary that lost its backup, or the race, may have ended already.
    let protected = scene
        .pair
        .status(scene.lab, Side::Primary)
        .is_ok_and(|status| status.role == "protected");
    if !protected {
        return Ok(None);
    }
    scene.wait_served()?;
    scene.phase("killed")?;
    scene.strike(Fault::Kill(Side::Primary))?;
    // Asking the backup how it does would cost it the processor time that is being measured.
    scene.wait_served()?;
    scene.wait_solo(Side::Backup)?;
    let (seen, _) = scene.close()?;
    Ok(Some(seen.phase("killed").silence_ms))
}
