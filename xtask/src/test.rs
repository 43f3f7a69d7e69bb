//! `cargo xtask test`: everything the README promises. The gate, the simulation and the model first,
//! which need no other machine; then what boots some: images, record and replay, all drills on
//! emulated hosts.
//!
//! A section that fails does not stop the ones that do not need it; the last line is the sum.

use anyhow::Result;

use crate::run::{Needs, Passthrough, Tally, rig_command};
use crate::{check, images, packages};

/// Seeds of the simulation in a normal run.
const SIM_SEEDS: &str = "10000";

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the gate and the simulation: nothing that boots a machine
    #[arg(long)]
    quick: bool,
}

/// Runs all sections.
///
/// # Errors
/// If any failed; names them.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut tally = Tally::default();
    tally.step("room on the disk", || {
        crate::room::ensure(&crate::run::workspace_root())
    });
    tally.step("packages", || {
        packages::ensure(packages::GATE.iter().copied())
    });
    check::steps(&mut tally);
    tally.tests("simulation", || {
        rig_command("sim", Needs::Nothing, &["--seeds".into(), SIM_SEEDS.into()])
    });
    tally.tests("model", || crate::model::command(&["--quick".into()]));
    if !args.quick && tally.step("images", || images::run(&images::Args::default())) {
        tally.tests("record and replay", || {
            crate::kvm::command(&Passthrough::default())
        });
        tally.tests("drills", || rig_command("rig-drill", Needs::Lab, &[]));
    }
    tally.finish()
}
