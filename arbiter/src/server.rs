//! Answers requests over HTTP/1.1.
//!
//! Bounded in every direction: connections, waiting for a request, body bytes, time per request. A
//! claim is answered only after the store made it durable.
//!
//! **Fail-stop**: when the store fails, the request is answered with an error, and [`serve`] returns
//! the failure so that the program ends. What a store that failed once still knows is not certain;
//! opening it again verifies everything.
//!
//! Behind a [`Door`] in TLS, every request is judged by the names in its sender's certificate
//! ([`Access`]). Behind a plain one, whoever reaches the port can claim.

#![forbid(unsafe_code)]

use crate::access::{Access, Denied};
use crate::protocol::{
    self, ClaimReply, ErrorBody, ErrorCode, ErrorReply, Grant, HealthReply, HistoryReply,
    REQUEST_BYTES_MAX, VmReply, VmsReply,
};
use crate::register::{Invalid, Outcome, VmName};
use crate::store::{Store, StoreError};
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tls::{Accepted, Door};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Most connections at a time; more wait in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 256;
/// A connection on which no whole request head arrives for this long is closed. Long, so that a
/// claimant can keep a connection warm with a request now and then.
pub const IDLE_S_MAX: u64 = 60;
/// Longest time for one request, its body and the disk included.
pub const REQUEST_S_MAX: u64 = 5;
/// Longest wait for requests in progress when told to stop.
pub const STOP_S_MAX: u64 = 3;

/// Why serving ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The store failed; the program should end, and be started again once that is repaired.
    #[error("the arbiter stops because its store failed")]
    Store(#[from] StoreError),
}

struct Shared<S> {
    store: Arc<S>,
    access: Option<Arc<Access>>,
    failed: mpsc::Sender<StoreError>,
}

impl<S> Clone for Shared<S> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            access: self.access.clone(),
            failed: self.failed.clone(),
        }
    }
}

/// Names in the certificate of a request's sender.
#[derive(Debug, Clone)]
struct Sender(Arc<[String]>);

impl<S> Shared<S> {
    fn check(&self, sender: &Sender, vm: &VmName) -> Result<(), Denied> {
        match &self.access {
            Some(access) => access.check(&sender.0, vm),
            None => Ok(()),
        }
    }

    fn check_all(&self, sender: &Sender) -> Result<(), Denied> {
        match &self.access {
            Some(access) => access.check_all(&sender.0),
            None => Ok(()),
        }
    }
}

/// Serves `store` to everybody on `listener`, in plain text, until `stop` completes.
///
/// # Errors
/// When the store fails.
pub async fn serve<S: Store>(
    listener: TcpListener,
    store: Arc<S>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    serve_behind(Door::plain(listener), None, store, stop).await
}

/// Serves `store` to whom `door` lets in and `access` allows, until `stop` completes; requests in
/// progress are finished.
///
/// # Errors
/// When the store fails.
pub async fn serve_behind<S: Store>(
    mut door: Door,
    access: Option<Access>,
    store: Arc<S>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (failed, mut failures) = mpsc::channel(1);
    let access = access.map(Arc::new);
    let routes = router(Shared {
        store,
        access,
        failed,
    });
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    tokio::pin!(stop);
    let failure = loop {
        tokio::select! {
            biased;
            () = &mut stop => break None,
            Some(error) = failures.recv() => break Some(error),
            (accepted, place) = accept(&mut door, &places) => {
                let sender = Sender(accepted.names.into());
                let routes = routes.clone().layer(Extension(sender));
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(IDLE_S_MAX))
                    .max_headers(64)
                    .max_buf_size(16 * 1024)
                    .serve_connection(TokioIo::new(accepted.stream), TowerToHyperService::new(routes));
                let connection = graceful.watch(connection);
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "connection ended");
                    }
                    drop(place);
                });
            }
        }
    };
    drop(door);
    let grace = Duration::from_secs(STOP_S_MAX);
    if tokio::time::timeout(grace, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!(
            seconds = STOP_S_MAX,
            "gave up on connections that did not end"
        );
    }
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// The next connection, with its place among [`CONNECTIONS_MAX`].
async fn accept(door: &mut Door, places: &Arc<Semaphore>) -> (Accepted, OwnedSemaphorePermit) {
    let Ok(place) = Arc::clone(places).acquire_owned().await else {
        std::future::pending().await
    };
    (door.next().await, place)
}

fn router<S: Store>(shared: Shared<S>) -> Router {
    Router::new()
        .route("/v1/health", get(health::<S>))
        .route("/v1/vms", get(list::<S>))
        .route("/v1/vms/{vm}", get(read::<S>))
        .route("/v1/vms/{vm}/history", get(history::<S>))
        .route("/v1/vms/{vm}/claim", post(claim::<S>))
        .fallback(async || {
            Failure::new(
                ErrorCode::NotFound,
                "there is nothing at this path",
                "see /v1/health, /v1/vms, /v1/vms/NAME, /v1/vms/NAME/history, and POST /v1/vms/NAME/claim",
            )
        })
        .method_not_allowed_fallback(async || {
            Failure::new(
                ErrorCode::MethodNotAllowed,
                "this path does not take this method",
                "GET everything but /v1/vms/NAME/claim, which takes POST",
            )
        })
        .layer(middleware::from_fn(within_time))
        .with_state(shared)
}

async fn within_time(request: Request, next: Next) -> Response {
    let limit = Duration::from_secs(REQUEST_S_MAX);
    tokio::time::timeout(limit, next.run(request))
        .await
        .unwrap_or_else(|_| {
            let message = format!("the request took longer than {REQUEST_S_MAX} s");
            Failure::new(
                ErrorCode::Timeout,
                message,
                "send it again, at once and whole",
            )
            .into_response()
        })
}

/// An error on its way to the client.
struct Failure(ErrorBody);

impl Failure {
    fn new(code: ErrorCode, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self(ErrorBody {
            code,
            message: message.into(),
            remedy: remedy.into(),
        })
    }
}

impl From<Invalid> for Failure {
    fn from(error: Invalid) -> Self {
        Self::new(ErrorCode::Invalid, error.to_string(), error.remedy())
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        tracing::warn!(%denied, "refused a request");
        let remedy = "use the certificate of a host of this virtual machine, or an operator's";
        Self::new(ErrorCode::Forbidden, denied.to_string(), remedy)
    }
}

impl From<protocol::RequestError> for Failure {
    fn from(error: protocol::RequestError) -> Self {
        Self::new(error.code(), error.to_string(), error.remedy())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(ErrorReply { error: self.0 })).into_response();
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            // The rest of the body is not read.
            response.headers_mut().insert(
                header::CONNECTION,
                header::HeaderValue::from_static("close"),
            );
        }
        response
    }
}

/// Runs `work` where it may block on the disk.
async fn with_store<S: Store, T: Send + 'static>(
    shared: Shared<S>,
    work: impl FnOnce(&S) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Failure> {
    let store = Arc::clone(&shared.store);
    let done = tokio::task::spawn_blocking(move || work(&store)).await;
    match done {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error @ StoreError::Full)) => Err(Failure::new(
            ErrorCode::Full,
            error.to_string(),
            error.remedy(),
        )),
        Ok(Err(error @ StoreError::Unavailable { .. })) => {
            let message = format!("{error}; whether a claim was granted is not known");
            Err(Failure::new(
                ErrorCode::Unavailable,
                message,
                error.remedy(),
            ))
        }
        Ok(Err(error)) => {
            let message = format!("{error}; whether a claim was granted is not known");
            let failure = Failure::new(ErrorCode::StoreFailed, message, error.remedy());
            // A full channel means that an earlier failure already ends the program.
            let _ = shared.failed.try_send(error);
            Err(failure)
        }
        Err(ended) => {
            tracing::error!(error = %ended, "a request's task ended early");
            let message = "the request was not finished; whether a claim was granted is not known";
            Err(Failure::new(
                ErrorCode::StoreFailed,
                message,
                "send it again",
            ))
        }
    }
}

async fn health<S: Store>(State(shared): State<Shared<S>>) -> Result<Json<HealthReply>, Failure> {
    let vms = with_store(shared, |store| store.list()).await?.len();
    Ok(Json(HealthReply {
        status: "ok".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        protocol: protocol::VERSION,
        vms,
    }))
}

async fn list<S: Store>(
    State(shared): State<Shared<S>>,
    Extension(sender): Extension<Sender>,
) -> Result<Json<VmsReply>, Failure> {
    shared.check_all(&sender)?;
    let registers = with_store(shared, |store| store.list()).await?;
    let vms = registers
        .into_iter()
        .map(|(vm, register)| VmReply::new(vm, &register))
        .collect();
    Ok(Json(VmsReply { vms }))
}

async fn read<S: Store>(
    State(shared): State<Shared<S>>,
    Extension(sender): Extension<Sender>,
    Path(vm): Path<String>,
) -> Result<Json<VmReply>, Failure> {
    let vm = VmName::new(vm)?;
    shared.check(&sender, &vm)?;
    let key = vm.clone();
    let register = with_store(shared, move |store| store.read(&key)).await?;
    Ok(Json(VmReply::new(vm, &register)))
}

async fn history<S: Store>(
    State(shared): State<Shared<S>>,
    Extension(sender): Extension<Sender>,
    Path(vm): Path<String>,
) -> Result<Json<HistoryReply>, Failure> {
    let vm = VmName::new(vm)?;
    shared.check(&sender, &vm)?;
    let key = vm.clone();
    let grants = with_store(shared, move |store| store.history(&key)).await?;
    let grants = grants.iter().map(Grant::from).collect();
    Ok(Json(HistoryReply { vm, grants }))
}

async fn claim<S: Store>(
    State(shared): State<Shared<S>>,
    Extension(sender): Extension<Sender>,
    Path(vm): Path<String>,
    body: Body,
) -> Result<(StatusCode, Json<ClaimReply>), Failure> {
    let vm = VmName::new(vm)?;
    shared.check(&sender, &vm)?;
    let bytes = axum::body::to_bytes(body, REQUEST_BYTES_MAX)
        .await
        .map_err(|_| protocol::RequestError::TooLarge)?;
    let claim = protocol::decode_claim(&bytes)?;
    let (key, wish) = (vm.clone(), claim.clone());
    let outcome = with_store(shared, move |store| store.claim(&key, &wish)).await?;
    let status = match &outcome {
        Outcome::Granted => {
            tracing::info!(%vm, generation = claim.new_generation(), holder = %claim.holder(), "granted");
            StatusCode::OK
        }
        Outcome::Refused { generation, holder } => {
            tracing::info!(
                %vm, claimed = claim.new_generation(), by = %claim.holder(), generation,
                holder = holder.as_ref().map(tracing::field::display), "refused"
            );
            StatusCode::CONFLICT
        }
    };
    Ok((status, Json(ClaimReply::new(&claim, outcome))))
}
