//! Building the guest and lab images into the cache. Placeholder of the interface that `main` calls.

/// Options of `cargo xtask images`.
#[derive(clap::Args, Default)]
pub(crate) struct Args {}

/// Builds whatever the cache lacks.
pub(crate) fn run(_args: &Args) -> anyhow::Result<()> {
    anyhow::bail!("images are not built by this revision yet")
}
