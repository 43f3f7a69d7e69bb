//! Redundancy comes back: a guest that lost its backup gets another while it runs.

use crate::Drill;
use anyhow::{Context, Result, bail, ensure};
use rig::fault::Fault;
use rig::lab::{Lab, Side};
use rig::lineage;
use rig::observation::Load;
use rig::pair::{LOG_DIR, PairOptions};
use rig::progress::note;
use rig::scene::{GO_LIVE_LIMIT, PROGRESS_LIMIT, PROTECTED_LIMIT, Scene, keep_so_far};
use rig::wait::{now, until};
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "reprotect",
        shows: "the survivor gives the running guest to the repaired host, then dies: nothing is lost",
        run: reprotect,
    },
    Drill {
        name: "third-host",
        shows: "three hosts, killed one after the other: the standby takes over, then the repaired first one",
        run: third_host,
    },
    Drill {
        name: "repair",
        shows: "a backup's copy diverges; it keeps the evidence, is given another, and survives a kill with it",
        run: repair,
    },
    Drill {
        name: TEN_LIVES,
        shows: "the live side dies ten times in a row, each time with a fresh backup; one connection",
        run: ten_lives,
    },
    Drill {
        name: "handover",
        shows: "the guest is handed over and back with no kill; the old primary becomes the backup",
        run: handover,
    },
];

/// Takes minutes.
pub(crate) const TEN_LIVES: &str = "ten-lives";

const LIVES: u64 = 10;

/// From this record on the backup's copy is given a wrong bit: the guest is up and serves by then.
const DIVERGED_RECORD: u64 = 1_500;

fn reprotect(lab: &mut Lab) -> Result<()> {
    lives(lab, 2)
}

fn ten_lives(lab: &mut Lab) -> Result<()> {
    lives(lab, LIVES)
}

/// Kills the live side `count` times; every time but the first, the other side is a standby that was
/// given the running guest.
fn lives(lab: &mut Lab, count: u64) -> Result<()> {
    let options = lab.options();
    let mut scene = Scene::open(lab, &options, &Load::steady())?;
    let mut live = Side::Primary;
    for life in 1..=count {
        let began = now();
        let dead = live;
        live = live.other();
        outlive(&mut scene, dead, live, life + 1)?;
        let served = began.elapsed().as_secs_f64();
        if life == count {
            break;
        }
        scene.phase(&format!("life {} begins", life + 1))?;
        let began = now();
        repair_host(&mut scene, dead, &options)?;
        let booted = began.elapsed().as_secs_f64();
        protected_again(&scene, live)?;
        scene.wait_served()?;
        keep_so_far(scene.lab)?;
        note(&format!(
            "life {life}: served again after {served:.1} s; {dead} booted in {booted:.1} s, a backup \
             again after {:.1} s",
            began.elapsed().as_secs_f64()
        ));
    }
    scene.check_register(count + 1)?;
    conclude(scene, count + 1)
}

pub(crate) fn protected_again(scene: &Scene<'_>, live: Side) -> Result<()> {
    protected_by(scene, live, live.other())
}

fn protected_by(scene: &Scene<'_>, live: Side, backup: Side) -> Result<()> {
    let (pair, lab) = (&scene.pair, &*scene.lab);
    let status = pair.wait_protected(lab, live, PROTECTED_LIMIT)?;
    ensure!(status.role == "protected", "{live} is {}", status.role);
    pair.wait_role(lab, backup, "following", PROTECTED_LIMIT)?;
    Ok(())
}

/// A third host stands by from the beginning: nobody has to do anything after the first kill, nor after the
/// second but to repair a host.
fn third_host(lab: &mut Lab) -> Result<()> {
    let options = PairOptions {
        spare: true,
        ..lab.options()
    };
    lab.power_on_spare()?;
    let mut scene = Scene::open(lab, &options, &Load::steady())?;
    scene.pair.stand_by(scene.lab, Side::Spare, &options)?;
    let [first, second, third] = Side::ALL;
    outlive(&mut scene, first, second, 2)?;
    protected_by(&scene, second, third)?;
    scene.wait_served()?;
    keep_so_far(scene.lab)?;
    outlive(&mut scene, second, third, 3)?;
    repair_host(&mut scene, first, &options)?;
    protected_by(&scene, third, first)?;
    scene.wait_served()?;
    keep_so_far(scene.lab)?;
    outlive(&mut scene, third, first, 4)?;
    scene.check_register(4)?;
    conclude(scene, 4)
}

/// One host loses power; the other takes over in this generation, and serves.
fn outlive(scene: &mut Scene<'_>, dies: Side, survives: Side, generation: u64) -> Result<()> {
    scene.phase(&format!("{dies} dies"))?;
    scene.strike(Fault::Kill(dies))?;
    let solo = scene
        .pair
        .wait_role(scene.lab, survives, "solo", GO_LIVE_LIMIT)?;
    ensure!(
        solo.generation == generation,
        "{survives} is alone in generation {}",
        solo.generation
    );
    scene.wait_served().map(drop)
}

/// A dead host boots, with what its disk kept, and stands by.
fn repair_host(scene: &mut Scene<'_>, dead: Side, options: &PairOptions) -> Result<()> {
    scene.lab.host_mut(dead).power_on()?;
    scene.lab.host(dead).wait_booted(rig::host::BOOT_LIMIT)?;
    scene.pair.stand_by(scene.lab, dead, options)
}

/// There and back again.
fn handover(lab: &mut Lab) -> Result<()> {
    let options = PairOptions {
        stand_by: true,
        ..lab.options()
    };
    let mut scene = Scene::open(lab, &options, &Load::steady())?;
    for (turn, from) in [(1, Side::Primary), (2, Side::Backup)] {
        scene.phase(&format!("handover {turn}"))?;
        scene.pair.hand_over(scene.lab, from)?;
        // The old side is its own standby.
        protected_again(&scene, from.other())?;
        scene.wait_served()?;
        scene.check_register(turn + 1)?;
    }
    conclude(scene, 3)
}

/// A copy that differs is never used, and its host becomes a good backup again by itself.
fn repair(lab: &mut Lab) -> Result<()> {
    let options = PairOptions {
        stand_by: true,
        diverge_from: Some(DIVERGED_RECORD),
        ..lab.options()
    };
    let mut scene = Scene::open(lab, &options, &Load::steady())?;
    scene.phase("diverged")?;
    let interval = Duration::from_millis(200);
    until("the copy to diverge", PROTECTED_LIMIT, interval, || {
        // Between two lives nobody may answer.
        let status = scene.pair.status(scene.lab, Side::Backup);
        Ok(status
            .is_ok_and(|status| status.diverged == 1)
            .then_some(()))
    })?;
    protected_again(&scene, Side::Primary)?;
    scene.check_register(2)?;
    scene.wait_served()?;
    let agent = scene.lab.host(Side::Backup).agent()?;
    let show = format!("cat {LOG_DIR}/divergence-*.json");
    let evidence = agent
        .exec(&["sh", "-c", &show], PROGRESS_LIMIT)?
        .success()?
        .text();
    let document: serde_json::Value = serde_json::from_str(&evidence).context("the evidence")?;
    let index = document["divergence"]["index"].as_u64().unwrap_or(0);
    ensure!(
        index >= DIVERGED_RECORD && document["generation"] == 1,
        "the evidence says something else: {evidence}"
    );
    note(&format!("evidence: {}", document["summary"]));
    keep_so_far(scene.lab)?;
    scene.phase("killed")?;
    scene.strike(Fault::Kill(Side::Primary))?;
    scene
        .pair
        .wait_role(scene.lab, Side::Backup, "solo", GO_LIVE_LIMIT)?;
    scene.wait_served()?;
    scene.check_register(3)?;
    conclude(scene, 3)
}

/// The client's verdict, and that of all logs together.
pub(crate) fn conclude(mut scene: Scene<'_>, generations: u64) -> Result<()> {
    let seen = scene.client.finish()?;
    let complaints = seen.complaints();
    if !complaints.is_empty() {
        bail!("{}: {seen:?}", complaints.join("; "));
    }
    for phase in &seen.phases {
        note(&format!(
            "{:<16} {:6} acknowledged, longest silence {:6.0} ms",
            phase.name, phase.acknowledged, phase.silence_ms
        ));
    }
    let copies = scene.lab.run_dir().join("lineage");
    let _ = std::fs::remove_dir_all(&copies);
    let lineage = lineage::collect(scene.lab, &copies)?;
    note(&format!(
        "{} logs, {} records, {} in two of them and equal",
        lineage.logs, lineage.records, lineage.common
    ));
    ensure!(lineage.common > 0, "nothing to compare: {lineage:?}");
    ensure!(
        lineage.generations.len() as u64 + 1 >= generations - 1,
        "a generation is in no log: {lineage:?}"
    );
    Ok(())
}
