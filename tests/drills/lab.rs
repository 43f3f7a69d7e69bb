//! The lab itself, with nothing of the product: what every other drill relies on.
//!
//! The witness runs on the primary's bare host under the guest's address.

use crate::Drill;
use anyhow::{Result, ensure};
use rig::lab::{BUSYBOX, GUEST_INITRAMFS, Lab, Side};
use rig::link::Direction;
use rig::netns::{Namespace, address};
use rig::observation::{Load, Order};
use rig::oracle::Oracle;
use rig::wait::pause;
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[Drill {
    name: "lab",
    shows: "the lab itself: link, client, pause, kill; nothing is replicated",
    run,
}];

const LIMIT: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(500);

/// Where the guest's initramfs keeps the witness.
const WITNESS_IN_GUEST: &str = "bin/witness";

fn run(lab: &mut Lab) -> Result<()> {
    the_log_link_can_be_cut(lab)?;
    a_client_sees_a_pause_and_a_kill(lab)
}

fn the_log_link_can_be_cut(lab: &Lab) -> Result<()> {
    let backup = lab.host(Side::Backup).agent()?;
    let ping = |count: &str| -> Result<bool> {
        Ok(backup
            .exec(
                &[
                    BUSYBOX,
                    "ping",
                    "-c",
                    count,
                    "-W",
                    "1",
                    address::PRIMARY_LOG,
                ],
                LIMIT,
            )?
            .code
            == 0)
    };
    ensure!(
        ping("2")?,
        "the hosts do not reach each other over the log link"
    );
    lab.link.cut();
    ensure!(!ping("1")?, "a cut link carries frames");
    lab.link.mend();
    ensure!(ping("2")?, "a mended link carries no frames");
    ensure!(
        lab.link.counters(Direction::ToPrimary).lost > 0,
        "lost frames are not counted"
    );
    Ok(())
}

/// The witness on the bare host: what a client sees of a pause and of a kill without a backup.
fn a_client_sees_a_pause_and_a_kill(lab: &mut Lab) -> Result<()> {
    let agent = lab.host(Side::Primary).agent()?;
    let extract = format!("cd /tmp && {BUSYBOX} cpio -idu {WITNESS_IN_GUEST} < {GUEST_INITRAMFS}");
    agent.exec(&["sh", "-c", &extract], LIMIT)?.success()?;
    let guest = format!("{}/{}", address::GUEST, address::PREFIX);
    agent
        .exec(&["ip", "addr", "add", &guest, "dev", "br0"], LIMIT)?
        .success()?;
    agent.spawn(
        &[&format!("/tmp/{WITNESS_IN_GUEST}"), "serve"],
        "/tmp/witness.log",
    )?;
    let load = Load {
        drain_limit_ms: 1_000,
        ..Load::default()
    };
    let mut oracle = Oracle::start(&Namespace::named("client"), &load)?;
    oracle.wait_connected()?;
    let before = oracle.wait_progress(0, 100, LIMIT)?;

    oracle.order(&Order::Phase("pause".into()))?;
    lab.host(Side::Primary).pause()?;
    pause(PAUSE);
    lab.host(Side::Primary).resume()?;
    let seen = oracle.wait_progress(before.acknowledged, 200, LIMIT)?;
    let silence = seen.phase("pause").silence_ms;
    let least = PAUSE.as_secs_f64() * 900.0;
    ensure!(
        silence >= least,
        "a pause of {PAUSE:?} was seen as {silence} ms"
    );

    lab.host_mut(Side::Primary).kill();
    let seen = oracle.finish()?;
    ensure!(
        !seen.complaints().is_empty(),
        "a killed server was not missed: {seen:?}"
    );
    Ok(())
}
