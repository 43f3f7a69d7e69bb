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

use crate::protocol::{
    ClaimReply, ClaimRequest, ErrorReply, HealthReply, REPLY_BYTES_MAX, VmReply, VmsReply,
};
use crate::register::{Claim, Outcome, VmName};
use reqwest::{Method, StatusCode, Url};
use serde::de::DeserializeOwned;
use std::time::Duration;

/// How long to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Longest time for one try, connecting included.
    pub try_ms_max: u64,
    /// Tries before an error is returned; at least 1.
    pub tries_max: u32,
    /// Pause after the first failed try; doubles with each further one.
    pub pause_ms_min: u64,
    /// Longest pause.
    pub pause_ms_max: u64,
}

impl Default for RetryPolicy {
    /// Four tries within about 1.4 s: a claimant that must wait longer calls again.
    fn default() -> Self {
        Self {
            try_ms_max: 300,
            tries_max: 4,
            pause_ms_min: 20,
            pause_ms_max: 200,
        }
    }
}

/// An address that cannot be an arbiter's.
#[derive(Debug, thiserror::Error)]
#[error("the arbiter address {url:?} {reason}")]
pub struct AddressError {
    /// As given.
    pub url: String,
    /// What is wrong with it and how it should look.
    pub reason: String,
}

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

/// What one try came to.
enum Try {
    Answer(StatusCode, Vec<u8>),
    Failed(String),
}

/// A client of one arbiter. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct ArbiterClient {
    http: reqwest::Client,
    url: Url,
    policy: RetryPolicy,
}

impl ArbiterClient {
    /// A client of the arbiter at `url`, such as `http://10.0.0.9:7070`.
    ///
    /// # Errors
    /// When `url` is not an `http` address of a host.
    pub fn new(url: &str, policy: RetryPolicy) -> Result<Self, AddressError> {
        let checked = parse_address(url)?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .pool_idle_timeout(None)
            .pool_max_idle_per_host(2)
            .user_agent(concat!("understudy/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| AddressError {
                url: url.into(),
                reason: error.to_string(),
            })?;
        Ok(Self {
            http,
            url: checked,
            policy,
        })
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    /// Claims `vm`.
    ///
    /// # Errors
    /// When there was no usable answer: whether the claim was granted is not known.
    pub async fn claim(&self, vm: &VmName, claim: &Claim) -> Result<Outcome, ClientError> {
        let body = serde_json::to_vec(&ClaimRequest::from(claim))
            .map_err(|error| self.not_an_arbiter(error.to_string()))?;
        let path = ["v1", "vms", vm.as_str(), "claim"];
        let reply: ClaimReply = self.ask(&path, Some(body)).await?;
        let told = reply.clone().outcome_of(claim);
        let outcome = told.ok_or_else(|| self.not_an_arbiter(format!("{reply:?}")))?;
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
        self.ask(&["v1", "vms", vm.as_str()], None).await
    }

    /// All registers.
    ///
    /// # Errors
    /// When there was no usable answer.
    pub async fn list(&self) -> Result<VmsReply, ClientError> {
        self.ask(&["v1", "vms"], None).await
    }

    /// Whether it works.
    ///
    /// # Errors
    /// When there was no usable answer.
    pub async fn health(&self) -> Result<HealthReply, ClientError> {
        self.ask(&["v1", "health"], None).await
    }

    /// Opens a connection for later, with a single try; tells whether the arbiter answered. The
    /// server closes connections idle for [`crate::server::IDLE_S_MAX`]: call more often than that.
    pub async fn warm(&self) -> bool {
        let url = self.address(&["v1", "health"]);
        matches!(
            self.attempt(&url, None).await,
            Try::Answer(StatusCode::OK, _)
        )
    }

    fn address(&self, path: &[&str]) -> Url {
        let mut url = self.url.clone();
        url.set_path(&path.join("/"));
        url
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: Option<Vec<u8>>,
    ) -> Result<T, ClientError> {
        let url = self.address(path);
        let mut pause_ms = self.policy.pause_ms_min;
        let tries = self.policy.tries_max.max(1);
        let mut last = String::new();
        for number in 1..=tries {
            match self.attempt(&url, body.as_deref()).await {
                Try::Answer(status, bytes) => return self.judge(status, &bytes),
                Try::Failed(what) => {
                    tracing::debug!(%url, number, what, "no answer from the arbiter");
                    last = what;
                }
            }
            if number < tries {
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                pause_ms = pause_ms.saturating_mul(2).min(self.policy.pause_ms_max);
            }
        }
        Err(ClientError::Unreachable {
            url: self.url().into(),
            tries,
            last,
        })
    }

    /// One try. Answers of 500 and above are failures too: the same claim may be granted later.
    async fn attempt(&self, url: &Url, body: Option<&[u8]>) -> Try {
        let exchange = async {
            let mut request = match body {
                Some(body) => self
                    .http
                    .request(Method::POST, url.clone())
                    .body(body.to_vec()),
                None => self.http.request(Method::GET, url.clone()),
            };
            request = request.header(reqwest::header::CONTENT_TYPE, "application/json");
            let mut response = request.send().await?;
            let mut bytes = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > REPLY_BYTES_MAX {
                    bytes.clear();
                    break;
                }
            }
            Ok::<_, reqwest::Error>((response.status(), bytes))
        };
        let limit = Duration::from_millis(self.policy.try_ms_max);
        match tokio::time::timeout(limit, exchange).await {
            Ok(Ok((status, bytes))) if status.is_server_error() => {
                let said = serde_json::from_slice::<ErrorReply>(&bytes).map_or_else(
                    |_| String::new(),
                    |reply| format!(": {}", reply.error.message),
                );
                Try::Failed(format!("it answered {status}{said}"))
            }
            Ok(Ok((status, bytes))) => Try::Answer(status, bytes),
            Ok(Err(error)) => Try::Failed(chain(&error)),
            Err(_) => Try::Failed(format!("no answer within {} ms", self.policy.try_ms_max)),
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

/// Checks an arbiter's address without connecting, for configuration files.
///
/// # Errors
/// When `url` is not an `http` address of a host.
pub fn check_address(url: &str) -> Result<(), AddressError> {
    parse_address(url).map(|_| ())
}

fn parse_address(url: &str) -> Result<Url, AddressError> {
    let wrong = |reason: String| AddressError {
        url: url.into(),
        reason,
    };
    let parsed = Url::parse(url).map_err(|error| {
        wrong(format!(
            "is not an address ({error}); write http://HOST:PORT"
        ))
    })?;
    if parsed.scheme() != "http" {
        return Err(wrong(format!(
            "has scheme {:?}; only http is spoken: write http://HOST:PORT",
            parsed.scheme()
        )));
    }
    if parsed.host().is_none() {
        return Err(wrong("has no host; write http://HOST:PORT".into()));
    }
    let plain = parsed.username().is_empty() && parsed.password().is_none();
    if parsed.path() != "/" || parsed.query().is_some() || parsed.fragment().is_some() || !plain {
        return Err(wrong(
            "has more than a host and a port; write http://HOST:PORT".into(),
        ));
    }
    Ok(parsed)
}

/// The error and its causes: reqwest's own text leaves out why.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
