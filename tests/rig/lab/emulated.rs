//! The hosts of a lab as QEMU processes.

use super::{Connected, GUEST_INITRAMFS, GUEST_KERNEL, Side, UNDERSTUDY};
use crate::emulated_host::{EmulatedConfig, EmulatedHost, Nic};
use crate::host::{Host, run_tool};
use crate::initramfs::{self, Contents};
use crate::link::DatagramPort;
use crate::netns::{Network, address};
use crate::prepare::Prepared;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// A host of the pair, off, with its end of the log link.
pub(super) fn of_pair(
    network: &Network,
    prepared: &Prepared,
    memory_mib: u32,
    side: Side,
) -> Result<Connected> {
    let mut config = config(network, memory_mib, side)?;
    let dir = &config.dir;
    let (nic, ours) = (dir.join("log-nic.sock"), dir.join("log-link.sock"));
    let port = Arc::new(DatagramPort::bind(&ours, &nic)?);
    config.nics.push(Nic::Datagram {
        local: nic,
        remote: ours,
        mac: side.mac(1),
    });
    config.log_address = Some(format!("{}/{}", side.log_address(), address::PREFIX));
    Ok((Box::new(EmulatedHost::new(config, &prepared.images)?), port))
}

/// A host that is on the service network only, off.
pub(super) fn one(
    network: &Network,
    prepared: &Prepared,
    memory_mib: u32,
    side: Side,
) -> Result<Box<dyn Host>> {
    let config = config(network, memory_mib, side)?;
    Ok(Box::new(EmulatedHost::new(config, &prepared.images)?))
}

fn config(network: &Network, memory_mib: u32, side: Side) -> Result<EmulatedConfig> {
    let dir = network.run_dir().join(side.name());
    std::fs::create_dir_all(&dir)?;
    Ok(EmulatedConfig {
        name: side.name().into(),
        memory_mib,
        initramfs: initramfs(network),
        dir,
        nics: vec![Nic::Tap {
            name: network.add_tap(side.name())?,
            mac: side.mac(0),
        }],
        address: Some(format!("{}/{}", side.address(), address::PREFIX)),
        log_address: None,
    })
}

/// The file system that all hosts of a lab begin with.
fn initramfs(network: &Network) -> PathBuf {
    network.run_dir().join("host.cpio")
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

/// Builds that file system.
pub(super) fn prepare(network: &Network, prepared: &Prepared) -> Result<()> {
    let to = &initramfs(network);
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
