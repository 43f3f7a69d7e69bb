//! `cargo xtask sim`: builds and runs `sim` of package `rig`.

use crate::run::{Needs, Passthrough, rig_binary};

/// Hands `args` to `sim`.
pub(crate) fn run(args: &Passthrough) -> anyhow::Result<()> {
    rig_binary("sim", Needs::Nothing, &args.args)
}
