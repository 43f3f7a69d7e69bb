//! Registers in an etcd cluster, through its JSON gateway (`/v3/kv`): compare-and-swap, no leases.
//!
//! | key | value |
//! |---|---|
//! | `PREFIX/vms/NAME` | the claim that was last granted, JSON as in a claim's body |
//! | `PREFIX/grants/NAME/SLOT` | one of the last [`HISTORY_MAX`] granted claims |
//!
//! A claim is two requests. The first reads the register, linearizably: etcd asks a quorum. [`Register`]
//! decides; when it says that the register changes, a transaction writes it *if the key was not modified
//! since* (`mod_revision`), together with its place in the history. When it was modified, the transaction
//! answers with what is there now, and the register decides again. So a grant is decided by etcd's log
//! alone, and a transaction that arrives twice, late, or through another member changes nothing: the
//! revision is another by then. etcd answers after a quorum has synced the entry to its disks.
//!
//! A member that does not answer is left for the next; whether it carried the request out is then not
//! known, and does not matter, for the reason above.

#![forbid(unsafe_code)]

use crate::http::{HttpPeer, chain};
use crate::protocol::{ClaimRequest, REPLY_BYTES_MAX, decode_claim};
use crate::register::{Claim, HISTORY_MAX, Outcome, Register, VMS_MAX, VmName};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tls::Dial;

/// Most transactions for one claim: each further one means that somebody else's claim was granted.
const ROUNDS_MAX: u32 = 16;

/// No answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EtcdError {
    /// No member answered. Whether a claim was granted is not known.
    #[error("no member of the cluster answered: {0}")]
    Unreachable(String),
    /// The cluster answered that it does not do this.
    #[error("the cluster rejected the request: {0}")]
    Rejected(String),
    /// Under our keys is something we did not write.
    #[error("{key} holds no register: {found}")]
    Foreign {
        /// The key.
        key: String,
        /// What is wrong with its value.
        found: String,
    },
}

/// The registers below one prefix of one cluster. Clones share connections.
#[derive(Debug, Clone)]
pub(crate) struct Etcd {
    members: Arc<[HttpPeer]>,
    prefix: String,
    /// The member that answered last.
    at: Arc<AtomicUsize>,
    /// Longest wait for one member.
    try_limit: Duration,
}

/// One key with its value.
#[derive(Debug, Deserialize)]
struct Pair {
    key: String,
    #[serde(default)]
    value: String,
    mod_revision: String,
    version: String,
}

#[derive(Debug, Default, Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<Pair>,
    #[serde(default)]
    more: bool,
}

#[derive(Debug, Deserialize)]
struct Transaction {
    #[serde(default)]
    succeeded: bool,
    #[serde(default)]
    responses: Vec<Response>,
}

#[derive(Debug, Deserialize)]
struct Response {
    #[serde(default)]
    response_range: Range,
}

/// A register as etcd has it.
struct Held {
    register: Register,
    /// Revision of its last change; 0 when the key is not there.
    mod_revision: String,
    /// Changes since the key was made: the number of grants.
    version: u64,
}

impl Etcd {
    pub(crate) fn new(members: &[String], prefix: &str, try_ms_max: u64, dial: &Dial) -> Self {
        let peer = |member: &String| HttpPeer::new(member, dial.clone());
        Self {
            members: members.iter().map(peer).collect(),
            prefix: prefix.into(),
            at: Arc::default(),
            try_limit: Duration::from_millis(try_ms_max),
        }
    }

    /// Tests and sets the register of `vm`.
    pub(crate) async fn claim(&self, vm: &VmName, claim: &Claim) -> Result<Outcome, EtcdError> {
        let mut held = self.held(vm).await?;
        for _ in 0..ROUNDS_MAX {
            let mut register = held.register.clone();
            let outcome = register.claim(claim);
            if register == held.register {
                return Ok(outcome);
            }
            let reply: Transaction = self.ask("txn", &self.transaction(vm, claim, &held)).await?;
            if reply.succeeded {
                return Ok(outcome);
            }
            let now = reply.responses.into_iter().next();
            held = self.held_in(vm, now.map_or_else(Range::default, |r| r.response_range))?;
        }
        let why = format!("{ROUNDS_MAX} other claims were granted meanwhile");
        Err(EtcdError::Unreachable(why))
    }

    /// The register of `vm`.
    pub(crate) async fn read(&self, vm: &VmName) -> Result<Register, EtcdError> {
        Ok(self.held(vm).await?.register)
    }

    /// All registers that were ever claimed, by name.
    pub(crate) async fn list(&self) -> Result<Vec<(VmName, Register)>, EtcdError> {
        let folder = format!("{}/vms/", self.prefix);
        let mut found = Vec::new();
        for pair in self.folder(&folder).await? {
            let name = pair.0.strip_prefix(&folder).unwrap_or(&pair.0).to_owned();
            let vm = VmName::new(name).map_err(|error| EtcdError::Foreign {
                key: pair.0.clone(),
                found: error.to_string(),
            })?;
            found.push((vm, Register::holding(pair.1)));
        }
        Ok(found)
    }

    /// The last [`HISTORY_MAX`] claims granted for `vm`, oldest first.
    pub(crate) async fn history(&self, vm: &VmName) -> Result<Vec<Claim>, EtcdError> {
        let folder = format!("{}/grants/{vm}/", self.prefix);
        let mut grants: Vec<_> = self.folder(&folder).await?;
        grants.sort_by_key(|(_, claim)| claim.new_generation());
        Ok(grants.into_iter().map(|(_, claim)| claim).collect())
    }

    async fn held(&self, vm: &VmName) -> Result<Held, EtcdError> {
        let range = self.ask("range", &json!({ "key": self.key(vm) })).await?;
        self.held_in(vm, range)
    }

    fn held_in(&self, vm: &VmName, range: Range) -> Result<Held, EtcdError> {
        let Some(pair) = range.kvs.into_iter().next() else {
            return Ok(Held {
                register: Register::default(),
                mod_revision: "0".into(),
                version: 0,
            });
        };
        let (key, claim) = claim_in(&pair)?;
        if key != format!("{}/vms/{vm}", self.prefix) {
            let found = "the cluster answered with another key".into();
            return Err(EtcdError::Foreign { key, found });
        }
        Ok(Held {
            register: Register::holding(claim),
            version: pair.version.parse().unwrap_or_default(),
            mod_revision: pair.mod_revision,
        })
    }

    /// Writes `claim` and its place in the history, if the register is still `held`; reads it if not.
    fn transaction(&self, vm: &VmName, claim: &Claim, held: &Held) -> serde_json::Value {
        let (key, value) = (self.key(vm), encoded(claim));
        let slot = held.version % HISTORY_MAX as u64;
        let grant = STANDARD.encode(format!("{}/grants/{vm}/{slot:03}", self.prefix));
        json!({
            "compare": [{
                "target": "MOD", "result": "EQUAL", "key": key, "mod_revision": held.mod_revision,
            }],
            "success": [
                { "request_put": { "key": key, "value": value } },
                { "request_put": { "key": grant, "value": value } },
            ],
            "failure": [{ "request_range": { "key": key } }],
        })
    }

    fn key(&self, vm: &VmName) -> String {
        STANDARD.encode(format!("{}/vms/{vm}", self.prefix))
    }

    /// Everything whose key begins with `folder`, which ends with a slash.
    async fn folder(&self, folder: &str) -> Result<Vec<(String, Claim)>, EtcdError> {
        let mut end = folder.as_bytes().to_vec();
        // The first key after all that begin with `folder/`: '0' follows '/'.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let request = json!({
            "key": STANDARD.encode(folder), "range_end": STANDARD.encode(end), "limit": VMS_MAX,
        });
        let range: Range = self.ask("range", &request).await?;
        if range.more {
            let found = format!("it has more than {VMS_MAX} keys");
            return Err(EtcdError::Foreign {
                key: folder.into(),
                found,
            });
        }
        range.kvs.iter().map(claim_in).collect()
    }

    /// Asks one member after the other, beginning with the one that answered last.
    async fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        what: &str,
        request: &impl Serialize,
    ) -> Result<T, EtcdError> {
        let body =
            serde_json::to_vec(request).map_err(|error| EtcdError::Rejected(error.to_string()))?;
        let path = format!("/v3/kv/{what}");
        let first = self.at.load(Ordering::Relaxed);
        let mut last = String::new();
        for number in 0..self.members.len() {
            let at = (first + number) % self.members.len();
            let exchange = self.members[at].exchange(&path, Some(&body), REPLY_BYTES_MAX);
            match tokio::time::timeout(self.try_limit, exchange).await {
                Ok(Ok((StatusCode::OK, bytes))) => {
                    self.at.store(at, Ordering::Relaxed);
                    return serde_json::from_slice(&bytes).map_err(|error| {
                        EtcdError::Rejected(format!("it answered something else: {error}"))
                    });
                }
                Ok(Ok((status, bytes))) if status.is_client_error() => {
                    return Err(EtcdError::Rejected(format!("{status}{}", said(&bytes))));
                }
                Ok(Ok((status, bytes))) => last = format!("{status}{}", said(&bytes)),
                Ok(Err(error)) => last = chain(&error),
                Err(_) => last = format!("no answer within {} ms", self.try_limit.as_millis()),
            }
            tracing::debug!(
                member = at,
                last,
                "a member of the etcd cluster did not answer"
            );
        }
        Err(EtcdError::Unreachable(last))
    }
}

fn encoded(claim: &Claim) -> String {
    STANDARD.encode(serde_json::to_vec(&ClaimRequest::from(claim)).unwrap_or_default())
}

/// The key and the claim of a pair that we wrote.
fn claim_in(pair: &Pair) -> Result<(String, Claim), EtcdError> {
    let bytes = |text: &str| STANDARD.decode(text).map_err(|error| error.to_string());
    let key = bytes(&pair.key).and_then(|key| String::from_utf8(key).map_err(|e| e.to_string()));
    let key = key.unwrap_or_else(|_| pair.key.clone());
    let claim = bytes(&pair.value)
        .and_then(|value| decode_claim(&value).map_err(|error| error.to_string()));
    match claim {
        Ok(claim) => Ok((key, claim)),
        Err(found) => Err(EtcdError::Foreign { key, found }),
    }
}

/// The gateway's own words about an error.
fn said(bytes: &[u8]) -> String {
    let said = serde_json::from_slice::<serde_json::Value>(bytes).unwrap_or_default();
    let text = |name: &str| said.get(name).and_then(|text| text.as_str());
    text("message")
        .or_else(|| text("error"))
        .map_or_else(String::new, |text| format!(": {text}"))
}
