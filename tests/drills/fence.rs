//! The operator's own fence: granted, a side runs its command, and goes live only when that succeeded.

use crate::Drill;
use anyhow::{Context, Result, ensure};
use rig::fault::Fault;
use rig::host::STATE_DIR;
use rig::lab::{Lab, Side};
use rig::observation::{Load, Order};
use rig::pair::{PairOptions, VM};
use rig::scene::{GO_LIVE_LIMIT, Scene};
use rig::wait::{pause, until};
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[Drill {
    name: "fence",
    shows: "the primary dies and its backup is granted the guest: it waits for its fence command to succeed",
    run: fence,
}];

const LIMIT: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(100);

/// For so long the command fails.
const FAILING: Duration = Duration::from_secs(4);

/// Writes down what it was called for; succeeds once it may.
fn script() -> String {
    format!(
        "#!/bin/sh\necho $UNDERSTUDY_VM $UNDERSTUDY_GENERATION >> {STATE_DIR}/fenced\n\
         test -e {STATE_DIR}/may-fence\n"
    )
}

fn fence(lab: &mut Lab) -> Result<()> {
    let command = format!("{STATE_DIR}/fence");
    for side in Side::BOTH {
        let agent = lab.host(side).agent()?;
        agent.put(&command, 0o755, script().as_bytes())?;
    }
    let options = PairOptions {
        fence: Some(command),
        ..lab.options()
    };
    let mut scene = Scene::open(lab, &options, &Load::default())?;
    let began = fenced(scene.lab, Side::Primary)?;
    ensure!(began.is_empty(), "fenced before anybody was lost: {began}");
    scene.strike(Fault::Kill(Side::Primary))?;
    until("the grant", GO_LIVE_LIMIT, INTERVAL, || {
        Ok((scene.lab.arbiter.register(VM)?.0 == 2).then_some(()))
    })?;
    let told = || fenced(scene.lab, Side::Backup);
    until("the fence command", GO_LIVE_LIMIT, INTERVAL, || {
        Ok((!told()?.is_empty()).then_some(()))
    })?;
    let waiting = scene.phase("waiting for the fence")?;
    pause(FAILING);
    let still = scene.client.order(&Order::Tell)?;
    ensure!(
        still.acknowledged == waiting.acknowledged,
        "the backup answered although its fence command failed"
    );
    let status = scene.pair.status(scene.lab, Side::Backup)?;
    ensure!(status.role == "going_live", "the backup is {}", status.role);
    let may = ["touch", &format!("{STATE_DIR}/may-fence")];
    let agent = scene.lab.host(Side::Backup).agent()?;
    agent.exec(&may, LIMIT)?.success()?;
    scene.wait_solo(Side::Backup)?;
    scene.wait_served()?;
    let calls = fenced(scene.lab, Side::Backup)?;
    let all = calls.lines().all(|call| call == format!("{VM} 2"));
    ensure!(
        all && calls.lines().count() >= 2,
        "the fence command was called for {calls:?}"
    );
    scene.close().map(|_| ())
}

/// What the command of a side wrote down.
fn fenced(lab: &Lab, side: Side) -> Result<String> {
    let show = format!("cat {STATE_DIR}/fenced 2>/dev/null; true");
    let agent = lab.host(side).agent()?;
    let told = agent.exec(&["sh", "-c", &show], LIMIT)?.success();
    told.map(|done| done.text()).context("what was fenced")
}
