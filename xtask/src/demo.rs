//! `cargo xtask demo`: builds and runs `rig-demo` of package `rig`.

use crate::run::{Needs, Passthrough, rig_binary};

/// Hands `args` to `rig-demo`.
pub(crate) fn run(args: &Passthrough) -> anyhow::Result<()> {
    rig_binary("rig-demo", Needs::Lab, &args.args)
}
