//! User and capabilities.
//!
//! `--user` changes to another user before anything is opened, keeping only the capabilities that setting
//! up needs. Whatever the user, all capabilities go when the guest is set up: threads drop their own.
//! Files (images, log, keys, /dev/kvm) have to be accessible to that user.

use super::ConfineError;
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, set_capabilities, set_keep_capabilities,
    set_thread_gid, set_thread_groups, set_thread_uid,
};
use std::io;

/// While a side is set up: the TAP, locked memory, the node's priority, the counter.
const SETUP: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::PERFMON);

/// Most supplementary groups.
const GROUPS_MAX: usize = 32;

/// A user as `/etc/passwd` and `/etc/group` have it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl User {
    fn find(name: &str, passwd: &str, group: &str) -> Option<Self> {
        let line = passwd
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let member = |line: &&str| {
            let members = line.split(':').nth(3).unwrap_or_default();
            members.split(',').any(|member| member == name)
        };
        let groups = group.lines().filter(member);
        let groups = groups.filter_map(|line| line.split(':').nth(2)?.parse().ok());
        let groups = groups.take(GROUPS_MAX).collect();
        Some(Self { uid, gid, groups })
    }
}

/// Becomes `name`. Before any thread is started.
///
/// # Errors
/// When there is no such user, or the right to become it is missing.
pub fn become_user(name: &str) -> Result<(), ConfineError> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let user = User::find(name, &read("/etc/passwd"), &read("/etc/group"))
        .ok_or_else(|| ConfineError::NoUser(name.into()))?;
    change(&user).map_err(|source| ConfineError::Become {
        user: name.into(),
        source,
    })
}

fn change(user: &User) -> io::Result<()> {
    let held = capabilities(None)?.permitted;
    set_keep_capabilities(true)?;
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    set_thread_groups(&groups)?;
    set_thread_gid(Gid::from_raw(user.gid))?;
    set_thread_uid(Uid::from_raw(user.uid))?;
    let kept = held & SETUP;
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

/// Gives up all capabilities of the calling thread.
///
/// # Errors
/// When the kernel refuses.
pub fn drop_capabilities() -> Result<(), ConfineError> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(|error| ConfineError::Capabilities(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_with_their_groups() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nunder:x:101:102::/:/bin/false\nbroken:x:y\n";
        let group = "root:x:0:\nkvm:x:104:other,under\nnet:x:105:under\nunder:x:102:\n";
        let user = User::find("under", passwd, group).unwrap();
        assert_eq!(
            user,
            User {
                uid: 101,
                gid: 102,
                groups: vec![104, 105]
            }
        );
        assert_eq!(User::find("und", passwd, group), None);
        assert_eq!(User::find("broken", passwd, group), None);
    }

    #[test]
    fn a_thread_without_capabilities_has_none() {
        std::thread::spawn(|| {
            drop_capabilities().unwrap();
            let left = capabilities(None).unwrap();
            assert!(left.effective.is_empty() && left.permitted.is_empty());
        })
        .join()
        .unwrap();
    }
}
