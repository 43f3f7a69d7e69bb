//! Asks an arbiter, with short tries and bounded retry.
//!
//! A lost answer is harmless: the same claim is sent again, and the winner is told `Granted` again.
//! Two kinds of failure are kept apart, because they mean opposite things. **Refused** is an answer:
//! somebody else holds the virtual machine, for good. An **error** is no answer: whether the claim
//! was granted is not known, so the claimant neither continues nor gives up, it asks again.
//!
//! Connections are kept and reused; [`ArbiterClient::warm`] opens one ahead of need, since a claim
//! at go-live is on the path of the guest's silence.

#![forbid(unsafe_code)]

use crate::address::Address;
pub use crate::address::AddressError;
use crate::etcd::{Etcd, EtcdError};
use crate::http::{HttpPeer, chain};
use crate::protocol::{
    ClaimReply, ClaimRequest, ErrorReply, Grant, HealthReply, HistoryReply, REPLY_BYTES_MAX,
    VERSION, VmReply, VmsReply,
};
use crate::register::{Claim, Outcome, VmName};
pub use crate::retry::RetryPolicy;
use crate::retry::{self, GaveUp};
use hyper::StatusCode;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tls::Dial;

/// No answer, or none that can be used. Whether a claim was granted is not known.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No answer within the tries.
    #[error("the arbiter at {url} did not answer in {tries} tries: {last}")]
    Unreachable {
        /// Its address.
        url: String,
        /// Tries made.
        tries: u32,
        /// What happened to the last one.
        last: String,
    },
    /// It does not serve such a request; asking again will not help.
    #[error("the arbiter at {url} rejected the request: {message} ({remedy})")]
    Rejected {
        /// Its address.
        url: String,
        /// What it said.
        message: String,
        /// What it advised.
        remedy: String,
    },
    /// What answers there is no arbiter of this protocol.
    #[error("what answers at {url} is not an arbiter: {found}")]
    NotAnArbiter {
        /// Its address.
        url: String,
        /// What it answered.
        found: String,
    },
    /// Its register is behind a generation that was granted before: it lost its store, or it is the
    /// wrong arbiter. Its refusal says nothing about who runs the virtual machine.
    #[error(
        "the arbiter at {url} knows generation {known} of {vm}, but generation {expected} was granted: \
         its store was lost, or it is another arbiter"
    )]
    Behind {
        /// Its address.
        url: String,
        /// The virtual machine.
        vm: String,
        /// What it knows.
        known: u64,
        /// What the claimant expected.
        expected: u64,
    },
}

impl ClientError {
    /// Whether asking again can help without anybody's repair.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Why one try brought no answer.
type Missed = retry::Missed<ClientError>;

/// A client of one arbiter: of `understudy arbiter`, or of the registers in an etcd cluster. Cheap to
/// clone; clones share connections.
#[derive(Debug, Clone)]
pub struct ArbiterClient {
    backend: Backend,
    url: String,
    policy: RetryPolicy,
}

#[derive(Debug, Clone)]
enum Backend {
    Http(HttpPeer),
    Etcd(Etcd),
}

impl ArbiterClient {
    /// A client of the arbiter at `url`, such as `http://10.0.0.9:7070`, or
    /// `etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/understudy`.
    ///
    /// # Errors
    /// When `url` has neither form.
    pub fn new(url: &str, policy: RetryPolicy) -> Result<Self, AddressError> {
        Self::dialled(url, policy, Dial::plain())
    }

    /// As [`Self::new`], over connections that `dial` makes: TLS, for `https` and `etcds`.
    ///
    /// # Errors
    /// When `url` has none of the forms, or speaks of TLS where `dial` does not, or the reverse.
    pub fn dialled(url: &str, policy: RetryPolicy, dial: Dial) -> Result<Self, AddressError> {
        let address = Address::parse(url)?;
        if address.is_tls() != dial.is_tls() {
            let reason = match dial.is_tls() {
                true => "is in plain text, but a certificate was given: write https or etcds",
                false => "is in TLS: a certificate, its key and an authority are needed",
            };
            return Err(AddressError {
                url: url.into(),
                reason: reason.into(),
            });
        }
        let backend = match &address {
            Address::Http { authority, .. } => Backend::Http(HttpPeer::new(authority, dial)),
            Address::Etcd {
                members, prefix, ..
            } => Backend::Etcd(Etcd::new(members, prefix, policy.try_ms_max, &dial)),
        };
        Ok(Self {
            backend,
            url: address.to_string(),
            policy,
        })
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Claims `vm`.
    ///
    /// # Errors
    /// When there was no usable answer: whether the claim was granted is not known.
    pub async fn claim(&self, vm: &VmName, claim: &Claim) -> Result<Outcome, ClientError> {
        let outcome = match &self.backend {
            Backend::Http(http) => {
                let body = serde_json::to_vec(&ClaimRequest::from(claim))
                    .map_err(|error| self.not_an_arbiter(error.to_string()))?;
                let path = format!("/v1/vms/{vm}/claim");
                let reply: ClaimReply = self.ask(http, &path, Some(&body)).await?;
                let told = reply.clone().outcome_of(claim);
                told.ok_or_else(|| self.not_an_arbiter(format!("{reply:?}")))?
            }
            Backend::Etcd(etcd) => {
                self.again(
                    || async move { etcd.claim(vm, claim).await.map_err(|e| self.missed(e)) },
                )
                .await?
            }
        };
        match outcome {
            Outcome::Refused { generation, .. } if generation < claim.expected_generation() => {
                Err(ClientError::Behind {
                    url: self.url().into(),
                    vm: vm.to_string(),
                    known: generation,
                    expected: claim.expected_generation(),
                })
            }
            outcome => Ok(outcome),
        }
    }

    /// What the register of `vm` holds.
    ///
    /// # Errors
    /// When there was no usable answer.
    pub async fn read(&self, vm: &VmName) -> Result<VmReply, ClientError> {
        match &self.backend {
            Backend::Http(http) => self.ask(http, &format!("/v1/vms/{vm}"), None).await,
            Backend::Etcd(etcd) => {
                let read = || async move { etcd.read(vm).await.map_err(|e| self.missed(e)) };
                Ok(VmReply::new(vm.clone(), &self.again(read).await?))
            }
        }
    }

    /// The newest grants of `vm`, oldest first.
    ///
    /// # Errors
    /// When there was no usable answer.
    pub async fn history(&self, vm: &VmName) -> Result<HistoryReply, ClientError> {
        match &self.backend {
            Backend::Http(http) => {
                let path = format!("/v1/vms/{vm}/history");
                self.ask(http, &path, None).await
            }
            Backend::Etcd(etcd) => {
                let read = || async move { etcd.history(vm).await.map_err(|e| self.missed(e)) };
                let grants = self.again(read).await?.iter().map(Grant::from).collect();
                let vm = vm.clone();
                Ok(HistoryReply { vm, grants })
            }
        }
    }

    /// All registers.
    ///
    /// # Errors
    /// When there was no usable answer.
    pub async fn list(&self) -> Result<VmsReply, ClientError> {
        match &self.backend {
            Backend::Http(http) => self.ask(http, "/v1/vms", None).await,
            Backend::Etcd(etcd) => {
                let list = || async move { etcd.list().await.map_err(|e| self.missed(e)) };
                let found = self.again(list).await?.into_iter();
                let vms = found.map(|(vm, register)| VmReply::new(vm, &register));
                Ok(VmsReply { vms: vms.collect() })
            }
        }
    }

    /// Whether it works.
    ///
    /// # Errors
    /// When there was no usable answer.
    pub async fn health(&self) -> Result<HealthReply, ClientError> {
        match &self.backend {
            Backend::Http(http) => self.ask(http, "/v1/health", None).await,
            Backend::Etcd(_) => Ok(HealthReply {
                status: "ok".into(),
                version: "etcd".into(),
                protocol: VERSION,
                vms: self.list().await?.vms.len(),
            }),
        }
    }

    /// Opens a connection for later, with a single try; tells whether the arbiter answered. The
    /// server closes connections idle for [`crate::server::IDLE_S_MAX`]: call more often than that.
    pub async fn warm(&self) -> bool {
        match &self.backend {
            Backend::Http(http) => matches!(
                self.attempt(http, "/v1/health", None).await,
                Ok((StatusCode::OK, _))
            ),
            Backend::Etcd(etcd) => etcd.list().await.is_ok(),
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        http: &HttpPeer,
        path: &str,
        body: Option<&[u8]>,
    ) -> Result<T, ClientError> {
        let (status, bytes) = self.again(|| self.attempt(http, path, body)).await?;
        self.judge(status, &bytes)
    }

    async fn again<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, Missed>>,
    {
        retry::again(self.policy, attempt)
            .await
            .map_err(|gave_up| match gave_up {
                GaveUp::Final(error) => error,
                GaveUp::Unreachable { tries, last } => ClientError::Unreachable {
                    url: self.url.clone(),
                    tries,
                    last,
                },
            })
    }

    /// One try. Answers of 500 and above are failures too: the same claim may be granted later.
    async fn attempt(
        &self,
        http: &HttpPeer,
        path: &str,
        body: Option<&[u8]>,
    ) -> Result<(StatusCode, Vec<u8>), Missed> {
        let limit = Duration::from_millis(self.policy.try_ms_max);
        let exchange = http.exchange(path, body, REPLY_BYTES_MAX);
        match tokio::time::timeout(limit, exchange).await {
            Ok(Ok((status, bytes))) if status.is_server_error() => {
                let said = serde_json::from_slice::<ErrorReply>(&bytes).map_or_else(
                    |_| String::new(),
                    |reply| format!(": {}", reply.error.message),
                );
                Err(Missed::Failed(format!("it answered {status}{said}")))
            }
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Missed::Failed(chain(&error))),
            Err(_) => {
                let ms = self.policy.try_ms_max;
                Err(Missed::Failed(format!("no answer within {ms} ms")))
            }
        }
    }

    fn missed(&self, error: EtcdError) -> Missed {
        match error {
            EtcdError::Unreachable(last) => Missed::Failed(last),
            EtcdError::Rejected(message) => Missed::Final(ClientError::Rejected {
                url: self.url.clone(),
                message,
                remedy: "see the cluster's log".into(),
            }),
            error @ EtcdError::Foreign { .. } => {
                Missed::Final(self.not_an_arbiter(error.to_string()))
            }
        }
    }

    fn judge<T: DeserializeOwned>(
        &self,
        status: StatusCode,
        bytes: &[u8],
    ) -> Result<T, ClientError> {
        if status == StatusCode::OK || status == StatusCode::CONFLICT {
            return serde_json::from_slice(bytes)
                .map_err(|error| self.not_an_arbiter(format!("{status} with {error}")));
        }
        match serde_json::from_slice::<ErrorReply>(bytes) {
            Ok(reply) => Err(ClientError::Rejected {
                url: self.url().into(),
                message: reply.error.message,
                remedy: reply.error.remedy,
            }),
            Err(_) => Err(self.not_an_arbiter(format!("it answered {status}"))),
        }
    }

    fn not_an_arbiter(&self, found: String) -> ClientError {
        ClientError::NotAnArbiter {
            url: self.url().into(),
            found,
        }
    }
}
