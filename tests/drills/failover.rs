//! A host loses power, at the worst moments.

use crate::Drill;
use anyhow::{Result, ensure};
use rig::fault::Fault;
use rig::lab::{Lab, Side};
use rig::netns::Namespace;
use rig::observation::{Load, Order};
use rig::oracle::Oracle;
use rig::pair::Pair;
use rig::scene::{PROGRESS_LIMIT, PROTECTED_LIMIT, Scene, keep_so_far};
use rig::wait::{pause, until};
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "kill-primary-under-load",
        shows: "the primary's host dies under load; the backup goes live, the client never notices",
        run: under_load,
    },
    Drill {
        name: "kill-primary-idle",
        shows: "the primary's host dies while nothing happens; the next request is answered",
        run: idle,
    },
    Drill {
        name: "kill-primary-booting",
        shows: "the primary's host dies while the guest boots; the backup finishes the boot",
        run: booting,
    },
    Drill {
        name: "kill-primary-in-burst",
        shows: "the primary's host dies inside a burst of output; no byte is missing or doubled",
        run: in_burst,
    },
    Drill {
        name: "kill-backup",
        shows: "the backup's host dies; the primary claims and goes on alone",
        run: backup,
    },
];

/// Records after which the guest is in the middle of its boot: it makes some 400 until it is up.
const INTO_THE_BOOT: u64 = 120;

/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(2);

const BURST_BYTES: u32 = 4 << 20;

fn under_load(lab: &mut Lab) -> Result<()> {
    let options = lab.options();
    let mut scene = Scene::open(lab, &options, &Load::default())?;
    scene.phase("killed")?;
    scene.strike(Fault::Kill(Side::Primary))?;
    scene.wait_solo(Side::Backup)?;
    scene.wait_served()?;
    scene.check_register(2)?;
    scene.close().map(|_| ())
}

fn idle(lab: &mut Lab) -> Result<()> {
    let load = Load::default();
    let options = lab.options();
    let mut scene = Scene::open(lab, &options, &load)?;
    scene.client.order(&Order::Rest)?;
    pause(IDLE);
    scene.strike(Fault::Kill(Side::Primary))?;
    scene.wait_solo(Side::Backup)?;
    pause(IDLE);
    scene.client.order(&Order::Pace(load.interval_us))?;
    scene.wait_served()?;
    scene.close().map(|_| ())
}

fn booting(lab: &mut Lab) -> Result<()> {
    let options = lab.options();
    let pair = Pair::start_protected(lab, &options, PROTECTED_LIMIT)?;
    let interval = Duration::from_millis(20);
    until("the boot to be under way", PROGRESS_LIMIT, interval, || {
        let recorded = pair.status(lab, Side::Primary)?.pointers.recorded;
        Ok((recorded >= INTO_THE_BOOT).then_some(()))
    })?;
    keep_so_far(lab)?;
    Fault::Kill(Side::Primary).strike(lab)?;
    let client = Oracle::start(&Namespace::named("client"), &Load::default())?;
    client.wait_connected()?;
    let mut scene = Scene { lab, pair, client };
    scene.wait_solo(Side::Backup)?;
    scene.wait_served()?;
    scene.close().map(|_| ())
}

fn in_burst(lab: &mut Lab) -> Result<()> {
    let options = lab.options();
    let mut scene = Scene::open(lab, &options, &Load::default())?;
    scene.client.order(&Order::Burst(BURST_BYTES))?;
    let interval = Duration::from_millis(5);
    until("the burst to begin", PROGRESS_LIMIT, interval, || {
        Ok((scene.client.order(&Order::Tell)?.burst_bytes > 0).then_some(()))
    })?;
    scene.strike(Fault::Kill(Side::Primary))?;
    let at_kill = scene.client.order(&Order::Tell)?.burst_bytes;
    ensure!(
        at_kill < u64::from(BURST_BYTES),
        "the burst was over before the kill"
    );
    scene.wait_solo(Side::Backup)?;
    until("the whole burst", PROGRESS_LIMIT, interval, || {
        let seen = scene.client.order(&Order::Tell)?;
        Ok((seen.burst_bytes == u64::from(BURST_BYTES)).then_some(()))
    })?;
    scene.wait_served()?;
    scene.close().map(|_| ())
}

fn backup(lab: &mut Lab) -> Result<()> {
    let options = lab.options();
    let mut scene = Scene::open(lab, &options, &Load::default())?;
    scene.strike(Fault::Kill(Side::Backup))?;
    scene.wait_solo(Side::Primary)?;
    scene.wait_served()?;
    scene.check_register(2)?;
    scene.close().map(|_| ())
}
