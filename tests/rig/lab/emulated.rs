//! The two hosts of a lab as QEMU processes.

use super::{Connected, GUEST_INITRAMFS, GUEST_KERNEL, Side, UNDERSTUDY};
use crate::emulated_host::{EmulatedConfig, EmulatedHost, Nic};
use crate::host::run_tool;
use crate::initramfs::{self, Contents};
use crate::link::DatagramPort;
use crate::netns::{Network, address};
use crate::prepare::Prepared;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Both hosts, off, with their ends of the log link.
pub(super) fn both(
    network: &Network,
    prepared: &Prepared,
    memory_mib: u32,
) -> Result<(Connected, Connected)> {
    let initramfs = network.run_dir().join("host.cpio");
    build_initramfs(&initramfs, prepared)?;
    let one = |side| one(network, prepared, &initramfs, memory_mib, side);
    Ok((one(Side::Primary)?, one(Side::Backup)?))
}

fn one(
    network: &Network,
    prepared: &Prepared,
    initramfs: &Path,
    memory_mib: u32,
    side: Side,
) -> Result<Connected> {
    let dir = network.run_dir().join(side.name());
    std::fs::create_dir_all(&dir)?;
    let (nic, ours) = (dir.join("log-nic.sock"), dir.join("log-link.sock"));
    let port = Arc::new(DatagramPort::bind(&ours, &nic)?);
    let tap = network.add_tap(side.name())?;
    let (service, log) = side.addresses();
    let config = EmulatedConfig {
        name: side.name().into(),
        memory_mib,
        initramfs: initramfs.to_owned(),
        dir,
        nics: vec![
            Nic::Tap {
                name: tap,
                mac: side.mac(0),
            },
            Nic::Datagram {
                local: nic,
                remote: ours,
                mac: side.mac(1),
            },
        ],
        address: Some(format!("{service}/{}", address::PREFIX)),
        log_address: Some(format!("{log}/{}", address::PREFIX)),
    };
    Ok((Box::new(EmulatedHost::new(config, &prepared.images)?), port))
}

/// The product without debug information, which is most of it: a host's memory is small.
fn stripped(program: &Path, to: PathBuf) -> PathBuf {
    let mut strip = Command::new("strip");
    strip.arg("--strip-debug").arg("-o").arg(&to).arg(program);
    if run_tool(&mut strip).is_ok() {
        to
    } else {
        program.to_owned()
    }
}

fn build_initramfs(to: &Path, prepared: &Prepared) -> Result<()> {
    let (images, programs) = (&prepared.images, &prepared.programs);
    let understudy = stripped(&programs.understudy, to.with_file_name("understudy"));
    let files: Vec<(String, PathBuf, bool)> = vec![
        (UNDERSTUDY.into(), understudy, true),
        (GUEST_KERNEL.into(), images.guest_kernel.clone(), false),
        (
            GUEST_INITRAMFS.into(),
            images.guest_initramfs.clone(),
            false,
        ),
    ];
    let contents = Contents {
        busybox: &images.busybox,
        modules: &images.host_modules,
        agent: &programs.agent,
        files: &files,
    };
    initramfs::build(to, &contents)
}
