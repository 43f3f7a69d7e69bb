//! Both hosts live and cannot hear each other: exactly one continues, the other halts for good and
//! has released nothing that the survivor does not know of.

use crate::Drill;
use anyhow::{Context, Result, ensure};
use rig::fault::Fault;
use rig::lab::{Lab, Side};
use rig::observation::Load;
use rig::scene::{GO_LIVE_LIMIT, Scene};
use rig::wait::{pause, until};
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "cut-link",
        shows: "the log link is cut, both reach the arbiter: one continues, the other halts",
        run: cut_link,
    },
    Drill {
        name: "freeze-primary",
        shows: "the primary's host freezes for longer than the timeout, wakes up and halts",
        run: |lab| freeze(lab, Side::Primary),
    },
    Drill {
        name: "freeze-backup",
        shows: "the backup's host freezes for longer than the timeout, wakes up and halts",
        run: |lab| freeze(lab, Side::Backup),
    },
];

/// Twice the timeout.
const FROZEN: Duration = Duration::from_secs(5);

fn cut_link(lab: &mut Lab) -> Result<()> {
    let options = lab.options();
    let mut scene = Scene::open(lab, &options, &Load::default())?;
    scene.strike(Fault::CutLink)?;
    let interval = Duration::from_millis(50);
    let survivor = until("one side to go on alone", GO_LIVE_LIMIT, interval, || {
        let alone = |side| {
            scene
                .pair
                .status(scene.lab, side)
                .is_ok_and(|s| s.role == "solo")
        };
        Ok(Side::BOTH.into_iter().find(|side| alone(*side)))
    })?;
    scene.wait_harmless(survivor.other())?;
    scene.wait_served()?;
    // Nothing that a mended link brings may wake the loser.
    scene.strike(Fault::MendLink)?;
    pause(FROZEN);
    scene.wait_harmless(survivor.other())?;
    scene.wait_solo(survivor)?;
    scene.check_register(2)?;
    scene.close().map(|_| ())
}

fn freeze(lab: &mut Lab, side: Side) -> Result<()> {
    let options = lab.options();
    let mut scene = Scene::open(lab, &options, &Load::default())?;
    scene.strike(Fault::Freeze(side))?;
    scene.wait_solo(side.other())?;
    pause(FROZEN);
    let before = scene.wait_served()?;
    scene.strike(Fault::Thaw(side))?;
    scene.wait_harmless(side)?;
    let after = scene
        .wait_served()
        .context("after the other host woke up")?;
    ensure!(
        after.acknowledged > before.acknowledged,
        "the service stopped"
    );
    scene.check_register(2)?;
    scene.close().map(|_| ())
}
