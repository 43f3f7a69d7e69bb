//! The operator's door to a running side: a Unix socket, one JSON request and one answer per line.
//!
//! | request | answer |
//! |---|---|
//! | `{"request":"status"}` | `{"ok":true,"status":DOCUMENT}` |
//! | `{"request":"stop"}` | `{"ok":true}`: the wish was passed on; the process ends by itself |
//! | `{"request":"handover"}` | `{"ok":true}`: the wish was passed on; `status` shows what comes of it |
//! | `{"request":"snapshot","path":"..."}` | `{"ok":true,"snapshot":NUMBER}`: begun; `status` shows what comes of it |
//! | anything else | `{"ok":false,"error":{"message":...,"remedy":...}}` |
//!
//! Bounded: connections, line length, time. Only the owner may connect (mode 0600). A socket file that
//! nobody answers is a dead process's and is replaced; one that is answered is in use. The file is
//! removed when the [`ControlSocket`] is dropped. Format: `docs/formats/control.md`.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Longest request line, bytes.
pub const REQUEST_BYTES_MAX: usize = 8_192;
/// Longest answer line that a client reads, bytes.
pub const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Most connections at a time.
const CONNECTIONS_MAX: usize = 8;
/// A connection that is silent for this long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// Time for whoever has the guest to answer.
const PROMPTLY: Duration = Duration::from_secs(3);
/// Pause after a failed accept, so that it is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What an operator may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The state of this side.
    Status {},
    /// Stop here; a backup, if there is one, goes live.
    Stop {},
    /// Hand the guest over to the backup, without a kill and without a wait.
    Handover {},
    /// Put the guest's state into a file while it runs.
    Snapshot {
        /// Where; absolute, for the running side may be in another directory.
        path: PathBuf,
    },
}

/// What an operator wants of a running side.
#[derive(Debug)]
pub enum Wish {
    /// Stop here.
    Stop,
    /// Hand the guest over to the backup.
    Handover,
    /// Put the guest's state into a file.
    Snapshot {
        /// Where.
        path: PathBuf,
        /// Its number, or why it is not begun.
        answer: oneshot::Sender<Result<u64, AnswerError>>,
    },
}

/// The answer to a request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether the request was understood and carried out.
    pub ok: bool,
    /// The status, when that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
    /// The number of a snapshot that was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<u64>,
    /// What was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<AnswerError>,
}

/// What was wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerError {
    /// What.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another process answers there.
    #[error("the control socket {} is in use: this virtual machine runs here already", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Something that is no socket is in its place.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// Where.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot make the control socket {}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A bound control socket; its file goes with it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Somebody may have tidied up already.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl ControlSocket {
    /// Binds `path`, making its directory if needed. Within a tokio runtime.
    ///
    /// # Errors
    /// When another process answers there, or the file system refuses.
    pub async fn bind(path: &Path) -> Result<Self, ControlError> {
        let io = |source| ControlError::Io {
            path: path.into(),
            source,
        };
        if let Some(directory) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            std::fs::create_dir_all(directory).map_err(io)?;
        }
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ControlError::NotASocket { path: path.into() });
            }
            Ok(_) => match UnixStream::connect(path).await {
                Ok(_) => return Err(ControlError::InUse { path: path.into() }),
                Err(_) => std::fs::remove_file(path).map_err(io)?,
            },
        }
        let listener = UnixListener::bind(path).map_err(io)?;
        let socket = Self {
            listener,
            path: path.into(),
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
        Ok(socket)
    }

    /// Answers requests for ever: `status` makes the document, wishes go into `wishes`.
    pub async fn serve<F>(&self, status: F, wishes: mpsc::Sender<Wish>)
    where
        F: Fn() -> serde_json::Value + Send + Sync + 'static,
    {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let status = Arc::new(status);
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (status, wishes) = (Arc::clone(&status), wishes.clone());
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, status.as_ref(), &wishes).await {
                            tracing::debug!(%error, "control connection ended");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a control connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn converse(
    stream: UnixStream,
    status: &(dyn Fn() -> serde_json::Value + Send + Sync),
    wishes: &mpsc::Sender<Wish>,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut reader).take(REQUEST_BYTES_MAX as u64 + 1);
        match tokio::time::timeout(IDLE, limited.read_until(b'\n', &mut line)).await {
            Ok(read) => read?,
            Err(_) => return Ok(()),
        };
        if line.is_empty() {
            return Ok(());
        }
        let too_long = line.len() > REQUEST_BYTES_MAX;
        let answer = match decode_request(&line) {
            Ok(Request::Status {}) => Answer {
                ok: true,
                status: Some(status()),
                ..Answer::default()
            },
            Ok(Request::Stop {}) => pass_on(wishes, Wish::Stop),
            Ok(Request::Handover {}) => pass_on(wishes, Wish::Handover),
            Ok(Request::Snapshot { path }) => begin_snapshot(wishes, path).await,
            Err(error) => Answer::from(error),
        };
        let mut bytes = serde_json::to_vec(&answer)?;
        bytes.push(b'\n');
        match tokio::time::timeout(IDLE, writer.write_all(&bytes)).await {
            Ok(written) => written?,
            Err(_) => return Ok(()),
        }
        if too_long {
            return Ok(());
        }
    }
}

fn pass_on(wishes: &mpsc::Sender<Wish>, wish: Wish) -> Answer {
    // Full means that a wish is on its way already.
    let _ = wishes.try_send(wish);
    Answer {
        ok: true,
        ..Answer::default()
    }
}

impl From<AnswerError> for Answer {
    fn from(error: AnswerError) -> Self {
        Self {
            error: Some(error),
            ..Self::default()
        }
    }
}

/// Unlike other wishes this one is answered by whoever has the guest.
async fn begin_snapshot(wishes: &mpsc::Sender<Wish>, path: PathBuf) -> Answer {
    let (answer, answered) = oneshot::channel();
    let asked = async {
        wishes.send(Wish::Snapshot { path, answer }).await.ok()?;
        answered.await.ok()
    };
    let unanswered = AnswerError {
        message: "this side is busy with its beginning or its end".to_owned(),
        remedy: "ask again when `understudy status` says primary or solo".to_owned(),
    };
    match tokio::time::timeout(PROMPTLY, asked).await {
        Ok(Some(Ok(number))) => Answer {
            ok: true,
            snapshot: Some(number),
            ..Answer::default()
        },
        Ok(Some(Err(error))) => error.into(),
        Ok(None) | Err(_) => unanswered.into(),
    }
}

/// Decodes a request line. Total: any bytes give a request or an error.
///
/// # Errors
/// When the line is too long or no request.
pub fn decode_request(line: &[u8]) -> Result<Request, AnswerError> {
    let remedy = r#"send {"request":"status"} or {"request":"stop"}"#.to_owned();
    if line.len() > REQUEST_BYTES_MAX {
        let message = format!("the request is longer than {REQUEST_BYTES_MAX} bytes");
        return Err(AnswerError { message, remedy });
    }
    serde_json::from_slice(line).map_err(|error| AnswerError {
        message: format!("no request: {error}"),
        remedy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    async fn ask(path: &Path, line: &str) -> Answer {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(line.as_bytes()).await.unwrap();
        let mut text = String::new();
        BufReader::new(stream).read_line(&mut text).await.unwrap();
        serde_json::from_str(&text).unwrap()
    }

    #[tokio::test]
    async fn status_and_stop() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/web.sock");
        let (stop, mut stopped) = mpsc::channel(1);
        let socket = Arc::new(ControlSocket::bind(&path).await.unwrap());
        let server = Arc::clone(&socket);
        let serving = tokio::spawn(async move {
            server
                .serve(|| serde_json::json!({"role": "solo"}), stop)
                .await;
        });
        let answer = ask(&path, "{\"request\":\"status\"}\n").await;
        assert_eq!(answer.status.unwrap()["role"], "solo");
        let answer = ask(&path, "{\"request\":\"format\"}\n").await;
        assert!(!answer.ok && answer.error.unwrap().remedy.contains("status"));
        let answer = ask(&path, &" ".repeat(REQUEST_BYTES_MAX + 1)).await;
        assert!(answer.error.unwrap().message.contains("longer"));
        for _ in 0..2 {
            assert!(ask(&path, "{\"request\":\"stop\"}\n").await.ok);
        }
        assert!(matches!(stopped.recv().await, Some(Wish::Stop)));
        assert!(ask(&path, "{\"request\":\"handover\"}\n").await.ok);
        assert!(matches!(stopped.recv().await, Some(Wish::Handover)));
        let line = "{\"request\":\"snapshot\",\"path\":\"/a b\"}\n";
        let answering = async {
            let Some(Wish::Snapshot { path, answer }) = stopped.recv().await else {
                panic!("another wish");
            };
            answer.send(Ok(7)).map(|()| path)
        };
        let (told, place) = tokio::join!(ask(&path, line), answering);
        assert_eq!((told.snapshot, place), (Some(7), Ok("/a b".into())));

        let second = ControlSocket::bind(&path).await;
        assert!(matches!(second, Err(ControlError::InUse { .. })));
        serving.abort();
        // The task and what it holds are gone once it is joined.
        let _ = serving.await;
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(ControlSocket::bind(&path).await.unwrap());
        std::fs::write(&path, "data").unwrap();
        let refused = ControlSocket::bind(&path).await;
        assert!(matches!(refused, Err(ControlError::NotASocket { .. })));
    }

    proptest! {
        #[test]
        fn any_line_is_decoded_or_refused(line in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode_request(&line);
        }
    }
}
