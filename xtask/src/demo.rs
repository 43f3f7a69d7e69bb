//! `cargo xtask demo`: builds and runs `rig-demo` of package `rig`.

use crate::run::{Passthrough, rig_binary};

/// Hands `args` to `rig-demo`.
pub(crate) fn run(args: &Passthrough) -> anyhow::Result<()> {
    rig_binary("rig-demo", &args.args)
}
