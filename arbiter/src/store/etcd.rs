//! Registers in an etcd cluster, as a [`Store`]: for `understudy arbiter --store etcd://...`, which
//! serves plain requests (curl, several pairs) from a replicated store. VM hosts can also ask the
//! cluster themselves ([`crate::client::ArbiterClient`]); both use the same keys.
//!
//! Calls block their thread, as the trait's do. A cluster without a majority is `Unavailable`: a
//! passing state that does not end the server, unlike a disk that failed. [`VMS_MAX`] is not
//! enforced on claims: etcd has a quota of its own.
//!
//! [`VMS_MAX`]: crate::register::VMS_MAX

#![forbid(unsafe_code)]

use super::{Store, StoreError};
use crate::address::{Address, AddressError};
use crate::etcd::{Etcd, EtcdError};
use crate::register::{Claim, Outcome, Register, VmName};
use crate::retry::{self, GaveUp, Missed, RetryPolicy};
use std::future::Future;
use tls::Dial;
use tokio::runtime::Handle;

/// See the module.
#[derive(Debug)]
pub struct EtcdStore {
    etcd: Etcd,
    url: String,
    runtime: Handle,
    policy: RetryPolicy,
}

impl EtcdStore {
    /// The registers at `url`, `etcd://HOST:PORT,HOST:PORT/PREFIX`. Nothing is asked yet. Its calls
    /// run on `runtime`, and must come from threads that are not its own.
    ///
    /// # Errors
    /// When `url` has another form.
    pub fn new(
        url: &str,
        policy: RetryPolicy,
        dial: &Dial,
        runtime: Handle,
    ) -> Result<Self, AddressError> {
        let address = Address::parse(url)?;
        let Address::Etcd {
            members, prefix, ..
        } = &address
        else {
            return Err(AddressError {
                url: url.into(),
                reason: "is no cluster; write etcd://HOST:PORT,HOST:PORT/PREFIX".into(),
            });
        };
        Ok(Self {
            etcd: Etcd::new(members, prefix, policy.try_ms_max, dial),
            url: address.to_string(),
            runtime,
            policy,
        })
    }

    fn ask<T, F: Future<Output = Result<T, EtcdError>>>(
        &self,
        ask: impl Fn() -> F,
    ) -> Result<T, StoreError> {
        let attempt = || async {
            ask().await.map_err(|error| match error {
                EtcdError::Unreachable(why) => Missed::Failed(why),
                error => Missed::Final(error),
            })
        };
        let asked = self.runtime.block_on(retry::again(self.policy, attempt));
        let url = || self.url.clone();
        asked.map_err(|gave_up| match gave_up {
            GaveUp::Unreachable { last, .. } => StoreError::Unavailable { url: url(), last },
            GaveUp::Final(error) => StoreError::Cluster {
                url: url(),
                found: error.to_string(),
            },
        })
    }
}

impl Store for EtcdStore {
    fn claim(&self, vm: &VmName, claim: &Claim) -> Result<Outcome, StoreError> {
        self.ask(|| self.etcd.claim(vm, claim))
    }

    fn read(&self, vm: &VmName) -> Result<Register, StoreError> {
        self.ask(|| self.etcd.read(vm))
    }

    fn list(&self) -> Result<Vec<(VmName, Register)>, StoreError> {
        self.ask(|| self.etcd.list())
    }

    fn history(&self, vm: &VmName) -> Result<Vec<Claim>, StoreError> {
        self.ask(|| self.etcd.history(vm))
    }
}
