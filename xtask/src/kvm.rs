//! `cargo xtask kvm`: record and replay of a real guest; `rig-drill record-replay` does the work.

use crate::run::{Passthrough, rig_binary};

/// Hands `args` to `rig-drill record-replay`.
pub(crate) fn run(args: &Passthrough) -> anyhow::Result<()> {
    let mut all = vec!["record-replay".to_owned()];
    all.extend(args.args.iter().cloned());
    rig_binary("rig-drill", &all)
}
