//! The client's half of HTTP/1.1: one exchange after the other over kept connections.
//!
//! What is asked here may be asked twice (claims are idempotent, all else only reads): an exchange on a
//! kept connection that the server closed meanwhile is repeated on a new one. The caller bounds the
//! time of an exchange by dropping it, which closes its connection. Answers are bounded in bytes.

#![forbid(unsafe_code)]

use axum::body::Body;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::sync::{Arc, Mutex, PoisonError};
use tls::Dial;

/// Connections kept for later; more are closed after their exchange.
const KEPT_MAX: usize = 2;

/// Why an exchange brought no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// Nobody took the connection.
    #[error("no connection")]
    Connect(#[source] std::io::Error),
    /// The connection broke, or carried something else than HTTP.
    #[error("the exchange failed")]
    Http(#[source] hyper::Error),
    /// The request has no form, or the answer is cut or too long.
    #[error("{0}")]
    Body(String),
}

/// An HTTP server at one address. Clones share connections.
#[derive(Debug, Clone)]
pub(crate) struct HttpPeer {
    /// `HOST:PORT`.
    authority: String,
    dial: Dial,
    kept: Arc<Mutex<Vec<SendRequest<Body>>>>,
}

impl HttpPeer {
    /// The server at `authority`, `HOST:PORT`; nothing is connected yet.
    pub(crate) fn new(authority: impl Into<String>, dial: Dial) -> Self {
        Self {
            authority: authority.into(),
            dial,
            kept: Arc::default(),
        }
    }

    /// Asks for `path`, with `body` by POST, without by GET. Reads at most `reply_bytes_max`.
    pub(crate) async fn exchange(
        &self,
        path: &str,
        body: Option<&[u8]>,
        reply_bytes_max: usize,
    ) -> Result<(StatusCode, Vec<u8>), ExchangeError> {
        if let Some(mut kept) = self.take() {
            // The server may have closed it: then a new one tells whether the server is there.
            if kept.ready().await.is_ok()
                && let Ok(answer) = self.ask(kept, path, body, reply_bytes_max).await
            {
                return Ok(answer);
            }
        }
        let fresh = self.connect().await?;
        self.ask(fresh, path, body, reply_bytes_max).await
    }

    fn take(&self) -> Option<SendRequest<Body>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|sender| !sender.is_closed());
        kept.pop()
    }

    fn keep(&self, sender: SendRequest<Body>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_MAX {
            kept.push(sender);
        }
    }

    async fn connect(&self) -> Result<SendRequest<Body>, ExchangeError> {
        let stream = self
            .dial
            .connect(&self.authority)
            .await
            .map_err(ExchangeError::Connect)?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(ExchangeError::Http)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
        Ok(sender)
    }

    async fn ask(
        &self,
        mut sender: SendRequest<Body>,
        path: &str,
        body: Option<&[u8]>,
        reply_bytes_max: usize,
    ) -> Result<(StatusCode, Vec<u8>), ExchangeError> {
        let (method, bytes) = match body {
            Some(bytes) => (Method::POST, bytes.to_vec()),
            None => (Method::GET, Vec::new()),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.authority)
            .header(
                USER_AGENT,
                concat!("understudy/", env!("CARGO_PKG_VERSION")),
            )
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(bytes))
            .map_err(|error| ExchangeError::Body(error.to_string()))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(ExchangeError::Http)?;
        let status = answer.status();
        let bytes = axum::body::to_bytes(Body::new(answer.into_body()), reply_bytes_max)
            .await
            .map_err(|error| {
                ExchangeError::Body(format!("the answer is cut, or too long: {error}"))
            })?;
        self.keep(sender);
        Ok((status, bytes.to_vec()))
    }
}

/// The error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
