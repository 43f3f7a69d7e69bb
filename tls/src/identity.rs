//! Who this host is: its certificate and key, and the authority whose certificates it accepts.

use crate::verify::{ClientNames, ServerNames};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Longest file of certificates or of a key, bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Where an identity lies: PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// This host's certificate, then any between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Certificates of the authorities that are trusted.
    pub authority: PathBuf,
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {what} {}: {source}", path.display())]
    Read {
        /// What it should hold.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} holds no {what}: {found}", path.display())]
    Content {
        /// What it should hold.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        found: String,
    },
    /// Key and certificate do not fit, or the library refuses them.
    #[error("the certificate {} cannot be used: {source}", path.display())]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
}

/// What a connection is for: a peer that speaks of something else is refused in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The logging channel.
    Channel,
    /// HTTP to an arbiter or to etcd.
    Http,
}

impl Purpose {
    /// The protocol's name in the handshake (ALPN).
    const fn name(self) -> &'static [u8] {
        match self {
            Self::Channel => b"understudy-channel/1",
            Self::Http => b"http/1.1",
        }
    }
}

/// A host's identity.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    file: PathBuf,
}

impl Identity {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// When one cannot be read, or key and certificate do not fit.
    pub fn load(files: &IdentityFiles) -> Result<Self, TlsError> {
        let chain = certificates("certificate", &files.certificate)?;
        let bytes = read("private key", &files.key)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|error| content("private key", &files.key, &error))?;
        let mut roots = RootCertStore::empty();
        for root in certificates("authority's certificate", &files.authority)? {
            roots
                .add(root)
                .map_err(|error| content("authority's certificate", &files.authority, &error))?;
        }
        let identity = Self {
            chain,
            key,
            roots: Arc::new(roots),
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            file: files.certificate.clone(),
        };
        identity.connector(&BTreeSet::new(), Purpose::Channel)?;
        Ok(identity)
    }

    /// Names in this host's own certificate.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        crate::verify::names(&self.chain[0])
    }

    /// Accepts connections from those who have one of `names`.
    pub(crate) fn acceptor(
        &self,
        names: &BTreeSet<String>,
        purpose: Purpose,
    ) -> Result<TlsAcceptor, TlsError> {
        let verifier = ClientNames::new(
            Arc::clone(&self.roots),
            Arc::clone(&self.provider),
            names.clone(),
        );
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .map(|builder| builder.with_client_cert_verifier(Arc::new(verifier)))
            .and_then(|builder| builder.with_single_cert(self.chain.clone(), self.key.clone_key()))
            .map_err(|source| self.unusable(source))?;
        config.alpn_protocols = vec![purpose.name().to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Connects to those who have one of `names`.
    pub(crate) fn connector(
        &self,
        names: &BTreeSet<String>,
        purpose: Purpose,
    ) -> Result<TlsConnector, TlsError> {
        let verifier = ServerNames::new(
            Arc::clone(&self.roots),
            Arc::clone(&self.provider),
            names.clone(),
        );
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .map(|builder| {
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(verifier))
            })
            .and_then(|builder| match self.chain.is_empty() {
                true => Ok(builder.with_no_client_auth()),
                false => builder.with_client_auth_cert(self.chain.clone(), self.key.clone_key()),
            })
            .map_err(|source| self.unusable(source))?;
        config.alpn_protocols = vec![purpose.name().to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false;
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// Connects without a certificate from now on.
    #[cfg(test)]
    pub(crate) fn forget_certificate(&mut self) {
        self.chain.clear();
    }

    fn unusable(&self, source: rustls::Error) -> TlsError {
        TlsError::Unusable {
            path: self.file.clone(),
            source,
        }
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read {
        what,
        path: path.into(),
        source,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(failed)?;
    Ok(bytes)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(what, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(content(what, path, &"it has no CERTIFICATE block")),
        Ok(found) => Ok(found),
        Err(error) => Err(content(what, path, &error)),
    }
}

fn content(what: &'static str, path: &Path, found: &dyn std::fmt::Display) -> TlsError {
    TlsError::Content {
        what,
        path: path.into(),
        found: found.to_string(),
    }
}
