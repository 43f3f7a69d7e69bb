//! The lab's own promises: a host boots, obeys, freezes, dies, and its disk tells what it knew.

use rig::emulated_host::{EmulatedConfig, EmulatedHost};
use rig::host::{BOOT_LIMIT, Host, STATE_DIR};
use rig::images::Images;
use rig::initramfs::{self, Contents};
use rig::programs::agent_only;
use rig::requirements::{Facility, available};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_host_boots_obeys_and_leaves_its_disk_behind() {
    if !available(&[Facility::Rig]) {
        return;
    }
    let images = Images::load().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let initramfs = dir.path().join("host.cpio");
    let contents = Contents {
        busybox: &images.busybox,
        modules: &images.host_modules,
        agent: &agent_only().unwrap(),
        files: &[],
    };
    initramfs::build(&initramfs, &contents).unwrap();
    let config = EmulatedConfig {
        name: "lone".into(),
        memory_mib: 512,
        initramfs,
        dir: dir.path().join("lone"),
        nics: Vec::new(),
        address: None,
        log_address: None,
    };
    let mut host = EmulatedHost::new(config, &images).unwrap();
    host.power_on().unwrap();
    let took = host.wait_booted(BOOT_LIMIT).unwrap();
    println!("booted in {:.1} s", took.as_secs_f64());
    let agent = host.agent().unwrap().clone();

    let done = agent
        .exec(&["sh", "-c", "echo out; echo err >&2; exit 3"], LIMIT)
        .unwrap();
    assert_eq!(
        (done.code, done.stdout.as_slice(), done.stderr.as_slice()),
        (3, b"out\n".as_slice(), b"err\n".as_slice())
    );
    assert!(
        agent
            .exec(&["test", "-c", "/dev/kvm"], LIMIT)
            .unwrap()
            .success()
            .is_ok()
    );

    let bytes: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    let file = format!("{STATE_DIR}/evidence");
    agent.put(&file, 0o600, &bytes).unwrap();
    assert_eq!(agent.get(&file, usize::MAX).unwrap(), bytes);

    let pid = agent.spawn(&["sleep", "1000"], "/tmp/log").unwrap();
    assert_eq!(agent.poll(pid).unwrap(), None);
    agent.signal(pid, rustix::process::Signal::KILL).unwrap();
    let code = rig::wait::until("the end", LIMIT, Duration::from_millis(10), || {
        agent.poll(pid)
    });
    assert_eq!(code.unwrap(), 128 + 9);

    host.pause().unwrap();
    assert!(agent.exec(&["true"], Duration::from_millis(300)).is_err());
    host.resume().unwrap();
    assert!(agent.exec(&["true"], LIMIT).is_ok());

    agent.exec(&["sync"], LIMIT).unwrap().success().unwrap();
    host.kill();
    assert!(agent.exec(&["true"], LIMIT).is_err());
    let copy = dir.path().join("copy");
    host.read_disk(&copy).unwrap();
    assert_eq!(std::fs::read(copy.join("evidence")).unwrap(), bytes);
}
