//! Either side dies at every phase of a state transfer: each round, the final pause, the first records.
//!
//! Before the state is whole, the joining side means nothing: its death costs the guest nothing, and
//! it never goes live when the sender dies. From then on the two are a pair.

use crate::Drill;
use crate::redundancy::{conclude, protected_again};
use anyhow::{Result, ensure};
use rig::fault::Fault;
use rig::lab::{Lab, Side};
use rig::observation::Load;
use rig::pair::PairOptions;
use rig::progress::note;
use rig::scene::{GO_LIVE_LIMIT, Scene};
use rig::wait::{pause, until};
use std::time::Duration;

pub(crate) const DRILLS: &[Drill] = &[Drill {
    name: KILLED,
    shows: "sender and receiver of a running guest's state die in each round, at the pause, at the first records",
    run,
}];

/// Takes minutes.
pub(crate) const KILLED: &str = "kill-during-transfer";

/// Moments at which the joining side dies, and whether it was a backup by then.
const RECEIVER: [(&str, bool); 5] = [
    ("piece:1", false),
    ("piece:12", false),
    ("whole", true),
    ("records:1", true),
    ("records:60", true),
];

/// Moments at which the sender dies while nobody else has the guest.
const SENDER_ALONE: [&str; 3] = ["round:1", "round:2", "state"];

/// Moments at which it dies when the joining side has the guest.
const SENDER_OF_A_PAIR: [&str; 2] = ["held:1", "held:60"];

/// Longer than any suspicion: whoever would go live has done so by then.
const LONG: Duration = Duration::from_secs(5);

fn run(lab: &mut Lab) -> Result<()> {
    receiver_dies(lab)?;
    for moment in SENDER_ALONE {
        lab.reset()?;
        sender_dies_alone(lab, moment)?;
    }
    for moment in SENDER_OF_A_PAIR {
        lab.reset()?;
        sender_dies_in_a_pair(lab, moment)?;
    }
    Ok(())
}

/// A protected pair loses its backup: the primary is alone in generation 2.
fn lose_the_backup<'a>(lab: &'a mut Lab, options: &PairOptions) -> Result<Scene<'a>> {
    let scene = Scene::open(lab, options, &Load::steady())?;
    scene.pair.kill_process(scene.lab, Side::Backup)?;
    scene.wait_solo(Side::Primary)?;
    Ok(scene)
}

/// One guest through all of it: the sender goes on, and in the end it gets its backup.
fn receiver_dies(lab: &mut Lab) -> Result<()> {
    let options = lab.options();
    let mut scene = lose_the_backup(lab, &options)?;
    let mut generation = 2;
    for (moment, was_a_backup) in RECEIVER {
        scene.phase(&format!("receiver {moment}"))?;
        let doomed = PairOptions {
            die_at: Some((Side::Backup, moment)),
            ..options.clone()
        };
        scene.pair.stand_by(scene.lab, Side::Backup, &doomed)?;
        scene.pair.wait_ended(scene.lab, Side::Backup)?;
        // A backup that was one is left only with the arbiter's leave.
        generation += u64::from(was_a_backup);
        let interval = Duration::from_millis(100);
        until("the primary to be alone", GO_LIVE_LIMIT, interval, || {
            let status = scene.pair.status(scene.lab, Side::Primary)?;
            ensure!(status.generation <= generation, "{status:?}");
            let alone = status.role == "solo" && status.generation == generation;
            Ok(alone.then_some(()))
        })?;
        scene.check_register(generation)?;
        scene.wait_served()?;
    }
    scene.phase("a good one")?;
    scene.pair.stand_by(scene.lab, Side::Backup, &options)?;
    protected_again(&scene, Side::Primary)?;
    scene.wait_served()?;
    scene.phase("it lives")?;
    scene.strike(Fault::Kill(Side::Primary))?;
    let live = scene
        .pair
        .wait_role(scene.lab, Side::Backup, "solo", GO_LIVE_LIMIT)?;
    ensure!(live.generation == generation + 1, "{live:?}");
    scene.wait_served()?;
    // Generations that a primary was given to go on alone are in no log.
    conclude(scene, 2)
}

/// Nobody has the guest any more, and nobody pretends to.
fn sender_dies_alone(lab: &mut Lab, moment: &'static str) -> Result<()> {
    let scene = die_in_the_next_transfer(lab, moment)?;
    pause(LONG);
    let left = scene.pair.status(scene.lab, Side::Backup)?;
    ensure!(
        left.role == "joining",
        "with half a state the backup is {}",
        left.role
    );
    scene.check_register(2)?;
    note(&format!(
        "sender {moment}: nobody went live with half a guest"
    ));
    Ok(())
}

/// The new backup has all of it.
fn sender_dies_in_a_pair(lab: &mut Lab, moment: &'static str) -> Result<()> {
    let mut scene = die_in_the_next_transfer(lab, moment)?;
    scene.phase(&format!("sender {moment}"))?;
    let live = scene
        .pair
        .wait_role(scene.lab, Side::Backup, "solo", GO_LIVE_LIMIT)?;
    ensure!(live.generation == 3, "{live:?}");
    scene.check_register(3)?;
    scene.wait_served()?;
    conclude(scene, 2)
}

fn die_in_the_next_transfer<'a>(lab: &'a mut Lab, moment: &'static str) -> Result<Scene<'a>> {
    let options = PairOptions {
        die_at: Some((Side::Primary, moment)),
        ..lab.options()
    };
    let mut scene = lose_the_backup(lab, &options)?;
    scene.pair.stand_by(scene.lab, Side::Backup, &options)?;
    scene.pair.wait_ended(scene.lab, Side::Primary)?;
    Ok(scene)
}
