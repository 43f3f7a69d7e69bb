//! `cargo xtask drill`: builds and runs `rig-drill` of package `rig`.

use crate::run::{Needs, Passthrough, rig_binary};

/// Hands `args` to `rig-drill`.
pub(crate) fn run(args: &Passthrough) -> anyhow::Result<()> {
    rig_binary("rig-drill", Needs::Lab, &args.args)
}
