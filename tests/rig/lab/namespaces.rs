//! The hosts of a lab as parts of this machine.

use super::{BUSYBOX, Connected, GUEST_INITRAMFS, GUEST_KERNEL, Side, UNDERSTUDY};
use crate::host::Host;
use crate::link::TapPort;
use crate::namespace_host::{NamespaceConfig, NamespaceHost};
use crate::netns::Network;
use crate::prepare::Prepared;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A host of the pair, off, with its end of the log link.
pub(super) fn of_pair(network: &Network, prepared: &Prepared, side: Side) -> Result<Connected> {
    let tap = format!("log-{side}");
    let port = Arc::new(TapPort::create(&tap)?);
    let host = one(network, prepared, side)?;
    network.add_log_link(side.name(), &tap, side.log_address())?;
    Ok((host, port))
}

/// A host that is on the service network only, off.
pub(super) fn one(network: &Network, prepared: &Prepared, side: Side) -> Result<Box<dyn Host>> {
    network.add_host(side.name(), side.address())?;
    let file = |path: &str, source: &PathBuf| {
        let name = Path::new(path).file_name().unwrap_or_default();
        (name.to_string_lossy().into_owned(), source.clone())
    };
    let config = NamespaceConfig {
        name: side.name().into(),
        dir: network.run_dir().join(side.name()),
        agent: prepared.programs.agent.clone(),
        files: vec![
            file(UNDERSTUDY, &prepared.programs.understudy),
            file(BUSYBOX, &prepared.images.busybox),
            file(GUEST_KERNEL, &prepared.images.guest_kernel),
            file(GUEST_INITRAMFS, &prepared.images.guest_initramfs),
        ],
    };
    Ok(Box::new(NamespaceHost::new(config)?))
}
