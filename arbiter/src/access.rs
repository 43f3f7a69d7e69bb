//! Who may claim what: names in certificates, bound to virtual machines.
//!
//! The hosts of a virtual machine may claim and read it, nothing else. Operators may read everything
//! and claim anything (an override). Whoever is on no list is refused in the TLS handshake already.

#![forbid(unsafe_code)]

use crate::register::VmName;
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Names that may do everything.
    pub operators: BTreeSet<String>,
    /// Names of the hosts of each virtual machine.
    pub hosts: BTreeMap<VmName, BTreeSet<String>>,
}

/// A request that its sender may not make.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{names:?} may not {what}")]
pub struct Denied {
    /// Names in the sender's certificate.
    pub names: Vec<String>,
    /// What was asked for.
    pub what: String,
}

impl Access {
    /// Everybody who is on a list.
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        let hosts = self.hosts.values().flatten();
        hosts.chain(&self.operators).cloned().collect()
    }

    /// Whether one of `names` may claim and read `vm`.
    ///
    /// # Errors
    /// When none may.
    pub fn check(&self, names: &[String], vm: &VmName) -> Result<(), Denied> {
        let hosts = self.hosts.get(vm);
        let may = |name: &String| {
            self.operators.contains(name) || hosts.is_some_and(|hosts| hosts.contains(name))
        };
        match names.iter().any(may) {
            true => Ok(()),
            false => Err(Denied {
                names: names.to_vec(),
                what: format!("claim or read {vm}"),
            }),
        }
    }

    /// Whether one of `names` may see all registers.
    ///
    /// # Errors
    /// When none may.
    pub fn check_all(&self, names: &[String]) -> Result<(), Denied> {
        match names.iter().any(|name| self.operators.contains(name)) {
            true => Ok(()),
            false => Err(Denied {
                names: names.to_vec(),
                what: "see all virtual machines".into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_may_claim_its_own_virtual_machines_only() {
        let (web, mail) = (VmName::new("web").unwrap(), VmName::new("mail").unwrap());
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let access = Access {
            operators: set(&["alice"]),
            hosts: [(web.clone(), set(&["a", "b"])), (mail.clone(), set(&["b"]))].into(),
        };
        let names = |name: &str| vec![name.to_owned()];
        assert_eq!(access.names(), set(&["a", "alice", "b"]));
        for (name, of_web, of_mail, all) in [
            ("a", true, false, false),
            ("b", true, true, false),
            ("alice", true, true, true),
            ("c", false, false, false),
            ("", false, false, false),
        ] {
            let names = names(name);
            assert_eq!(access.check(&names, &web).is_ok(), of_web, "{name}");
            assert_eq!(access.check(&names, &mail).is_ok(), of_mail, "{name}");
            assert_eq!(access.check_all(&names).is_ok(), all, "{name}");
        }
        let denied = access.check(&names("a"), &mail).unwrap_err();
        assert_eq!(denied.to_string(), r#"["a"] may not claim or read mail"#);
        assert!(access.check(&[], &web).is_err());
    }
}
