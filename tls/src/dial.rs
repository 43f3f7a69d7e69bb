//! The connecting side: plain text, or TLS with a peer that has one of the given names.

use crate::identity::{Identity, Purpose, TlsError};
use crate::stream::Stream;
use rustls::pki_types::ServerName;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio_rustls::{TlsConnector, TlsStream};

/// Says what is dialled to TLS, which wants a name; nobody looks at it (`verify`).
const NOBODY: &str = "understudy.invalid";

/// How connections are made. Cheap to clone. Time is bounded by the caller.
#[derive(Clone, Default)]
pub struct Dial {
    connector: Option<TlsConnector>,
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial").field("tls", &self.is_tls()).finish()
    }
}

impl Dial {
    /// In plain text.
    #[must_use]
    pub const fn plain() -> Self {
        Self { connector: None }
    }

    /// In TLS, as `identity`, with a peer that has one of `names`.
    ///
    /// # Errors
    /// When the identity cannot be used.
    pub fn tls(
        identity: &Identity,
        names: &BTreeSet<String>,
        purpose: Purpose,
    ) -> Result<Self, TlsError> {
        let connector = Some(identity.connector(names, purpose)?);
        Ok(Self { connector })
    }

    /// Whether it is in TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.connector.is_some()
    }

    /// Connects to `address`, TLS handshake included. The peer's verdict on us comes later, as an error
    /// of the first read.
    ///
    /// # Errors
    /// When nobody answers, or is not who was expected.
    pub async fn connect(&self, address: impl ToSocketAddrs) -> io::Result<Stream> {
        let stream = TcpStream::connect(address).await?;
        // An acknowledgement that waits for the kernel to fill a segment delays output.
        stream.set_nodelay(true)?;
        let Some(connector) = &self.connector else {
            return Ok(Stream::Plain(stream));
        };
        let name = ServerName::try_from(NOBODY).map_err(io::Error::other)?;
        let stream = connector.connect(name, stream).await?;
        Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
    }
}
