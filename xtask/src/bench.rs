//! `cargo xtask bench`: builds and runs `rig-bench` of package `rig`.

use crate::run::{Passthrough, rig_binary};

/// Hands `args` to `rig-bench`.
pub(crate) fn run(args: &Passthrough) -> anyhow::Result<()> {
    rig_binary("rig-bench", &args.args)
}
