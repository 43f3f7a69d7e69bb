//! The two hosts of a lab as parts of this machine.

use super::{BUSYBOX, Connected, GUEST_INITRAMFS, GUEST_KERNEL, Side, UNDERSTUDY};
use crate::link::TapPort;
use crate::namespace_host::{NamespaceConfig, NamespaceHost};
use crate::netns::{HostAddresses, Network};
use crate::prepare::Prepared;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Both hosts, off, with their ends of the log link.
pub(super) fn both(network: &Network, prepared: &Prepared) -> Result<(Connected, Connected)> {
    Ok((
        one(network, prepared, Side::Primary)?,
        one(network, prepared, Side::Backup)?,
    ))
}

fn one(network: &Network, prepared: &Prepared, side: Side) -> Result<Connected> {
    let tap = format!("log-{side}");
    let port = Arc::new(TapPort::create(&tap)?);
    let (service, log) = side.addresses();
    network.add_host(side.name(), &tap, &HostAddresses { service, log })?;
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
    Ok((Box::new(NamespaceHost::new(config)?), port))
}
