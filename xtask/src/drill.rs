//! `cargo xtask drill`: builds and runs `rig-drill` of package `rig`.

use crate::packages;
use crate::run::{Needs, Passthrough, rig_binary};

/// The drill that installs the Debian package, which is made first.
const PACKAGE: &str = "package";

/// Hands `args` to `rig-drill`.
pub(crate) fn run(args: &Passthrough) -> anyhow::Result<()> {
    if args.args.iter().any(|arg| arg == PACKAGE) {
        packages::ensure(["debootstrap"])?;
        crate::deb::run()?;
    }
    rig_binary("rig-drill", Needs::Lab, &args.args)
}
