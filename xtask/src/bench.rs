//! `cargo xtask bench`: builds and runs `rig-bench` of package `rig`.

use crate::run::{Needs, Passthrough, rig_binary};

/// Hands `args` to `rig-bench`.
pub(crate) fn run(args: &Passthrough) -> anyhow::Result<()> {
    rig_binary("rig-bench", Needs::Lab, &args.args)
}
