//! The listening side. Strangers cost a bounded number of places for a bounded time, and one log line
//! now and then.
//!
//! Handshakes run beside each other, at most [`HANDSHAKES_MAX`]; when another connection comes, the
//! oldest unfinished one gives way. A handshake of a peer of ours takes milliseconds, so that it is
//! pushed out only by that many strangers within those milliseconds, and it tries again.

use crate::identity::{Identity, Purpose, TlsError};
use crate::stream::Stream;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, TlsStream};

/// Most handshakes at a time.
pub const HANDSHAKES_MAX: usize = 64;
/// Longest time for a handshake.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(3);
/// Pause after a failed accept (out of file descriptors), so that it is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Refusals that are logged one by one, per [`REPORT_INTERVAL`].
const REPORTS_MAX: u32 = 10;
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// A connection whose peer may be here.
#[derive(Debug)]
pub struct Accepted {
    /// The connection, `TCP_NODELAY` set.
    pub stream: Stream,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Names in the peer's certificate; none in plain text.
    pub names: Vec<String>,
}

/// A listener that lets in whom it knows.
pub struct Door {
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    handshakes: JoinSet<Result<Accepted, (SocketAddr, io::Error)>>,
    /// Of the handshakes under way, oldest first; those that ended may still be among them.
    order: VecDeque<AbortHandle>,
    refusals: Refusals,
}

impl Door {
    /// Lets in everybody.
    #[must_use]
    pub fn plain(listener: TcpListener) -> Self {
        Self::new(listener, None)
    }

    /// Lets in those who have one of `names`, in TLS, as `identity`.
    ///
    /// # Errors
    /// When the identity cannot be used.
    pub fn tls(
        listener: TcpListener,
        identity: &Identity,
        names: &BTreeSet<String>,
        purpose: Purpose,
    ) -> Result<Self, TlsError> {
        let acceptor = identity.acceptor(names, purpose)?;
        Ok(Self::new(listener, Some(acceptor)))
    }

    fn new(listener: TcpListener, acceptor: Option<TlsAcceptor>) -> Self {
        Self {
            listener,
            acceptor,
            handshakes: JoinSet::new(),
            order: VecDeque::new(),
            refusals: Refusals::default(),
        }
    }

    /// The address that is listened at.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Handshakes under way.
    #[must_use]
    pub fn handshakes(&self) -> usize {
        self.handshakes.len()
    }

    /// The next connection. May be cancelled: handshakes go on when it is called again.
    pub async fn next(&mut self) -> Accepted {
        loop {
            tokio::select! {
                biased;
                Some(ended) = self.handshakes.join_next() => match ended {
                    Ok(Ok(accepted)) => return accepted,
                    Ok(Err((peer, error))) => self.refusals.report(peer, &error),
                    // Pushed out; whoever did that has reported it.
                    Err(_) => {}
                },
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        if let Some(accepted) = self.let_in(stream, peer) {
                            return accepted;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    fn let_in(&mut self, stream: TcpStream, peer: SocketAddr) -> Option<Accepted> {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let Some(acceptor) = self.acceptor.clone() else {
            return Some(Accepted {
                stream: Stream::Plain(stream),
                peer,
                names: Vec::new(),
            });
        };
        self.order.retain(|handshake| !handshake.is_finished());
        if self.order.len() >= HANDSHAKES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            oldest.abort();
            let why = io::Error::other("too many handshakes at a time: the oldest gave way");
            self.refusals.report(peer, &why);
        }
        let handshake = self.handshakes.spawn(async move {
            let limited = tokio::time::timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream));
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long");
            let stream = limited
                .await
                .map_err(late)
                .and_then(|shaken| shaken)
                .map_err(|error| (peer, error))?;
            let stream = Stream::Tls(Box::new(TlsStream::Server(stream)));
            let names = stream.peer_names();
            Ok(Accepted {
                stream,
                peer,
                names,
            })
        });
        self.order.push_back(handshake);
        None
    }
}

/// Tells of refusals without letting strangers fill the log.
#[derive(Debug, Default)]
struct Refusals {
    since: Option<Instant>,
    count: u32,
}

impl Refusals {
    fn report(&mut self, peer: SocketAddr, why: &io::Error) {
        let fresh = self
            .since
            .is_some_and(|since| since.elapsed() < REPORT_INTERVAL);
        if !fresh {
            if self.count > REPORTS_MAX {
                let count = self.count - REPORTS_MAX;
                tracing::warn!(count, "further connections were refused");
            }
            self.since = Some(Instant::now());
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        if self.count <= REPORTS_MAX {
            tracing::warn!(%peer, %why, "refused a connection");
        }
    }
}
