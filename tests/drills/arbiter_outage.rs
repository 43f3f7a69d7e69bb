//! The arbiter is away when nobody needs it, and when somebody does.

use crate::Drill;
use anyhow::{Result, ensure};
use rig::fault::Fault;
use rig::lab::{Lab, Side};
use rig::observation::{Load, Order};
use rig::pair::VM;
use rig::scene::{GO_LIVE_LIMIT, Scene};
use rig::wait::{pause, until};
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "arbiter-down-while-healthy",
        shows: "the arbiter is away and comes back: nobody notices",
        run: while_healthy,
    },
    Drill {
        name: "arbiter-down-at-failure",
        shows: "the arbiter is away when the primary dies: the backup waits, then goes live",
        run: at_failure,
    },
    Drill {
        name: "arbiter-dies-after-grant",
        shows: "the arbiter is killed right after granting: the grant survives, the loser halts",
        run: after_grant,
    },
];

const AWAY: Duration = Duration::from_secs(4);

fn while_healthy(lab: &mut Lab) -> Result<()> {
    let options = lab.options();
    let mut scene = Scene::open(lab, &options, &Load::default())?;
    scene.strike(Fault::KillArbiter)?;
    pause(AWAY);
    scene.wait_served()?;
    scene.strike(Fault::StartArbiter)?;
    scene.wait_served()?;
    for (side, role) in [(Side::Primary, "protected"), (Side::Backup, "following")] {
        let status = scene.pair.status(scene.lab, side)?;
        ensure!(
            status.role == role && status.generation == 1,
            "{side} noticed: {status:?}"
        );
    }
    scene.check_register(1)?;
    scene.close().map(|_| ())
}

fn at_failure(lab: &mut Lab) -> Result<()> {
    let options = lab.options();
    let mut scene = Scene::open(lab, &options, &Load::default())?;
    scene.strike(Fault::KillArbiter)?;
    scene.strike(Fault::Kill(Side::Primary))?;
    scene
        .pair
        .wait_role(scene.lab, Side::Backup, "going_live", GO_LIVE_LIMIT)?;
    let waiting = scene.phase("waiting")?;
    pause(AWAY);
    let still = scene.client.order(&Order::Tell)?;
    ensure!(
        still.acknowledged == waiting.acknowledged,
        "the backup answered before the arbiter had decided"
    );
    scene.strike(Fault::StartArbiter)?;
    scene.wait_solo(Side::Backup)?;
    scene.wait_served()?;
    scene.close().map(|_| ())
}

fn after_grant(lab: &mut Lab) -> Result<()> {
    let options = lab.options();
    let mut scene = Scene::open(lab, &options, &Load::default())?;
    scene.strike(Fault::Freeze(Side::Primary))?;
    until("the grant", GO_LIVE_LIMIT, Duration::from_millis(1), || {
        Ok((scene.lab.arbiter.register(VM)?.0 == 2).then_some(()))
    })?;
    scene.strike(Fault::KillArbiter)?;
    scene.wait_solo(Side::Backup)?;
    scene.wait_served()?;
    // The old primary wakes up, suspects its backup and asks an arbiter that is not there: it must
    // neither go on nor let anything out until it learns that it lost.
    scene.strike(Fault::Thaw(Side::Primary))?;
    pause(AWAY);
    scene.wait_served()?;
    scene.strike(Fault::StartArbiter)?;
    scene.check_register(2)?;
    scene.wait_harmless(Side::Primary)?;
    scene.wait_served()?;
    scene.close().map(|_| ())
}
