//! Which certificate is accepted: signed by a trusted authority, valid now, and with one of the names.
//!
//! The name of the address that was dialled does not matter: a peer is who its certificate says, and
//! the list of names says what that peer may be. An empty list accepts nobody.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The names in a certificate; none when it cannot be read.
pub(crate) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    webpki::EndEntityCert::try_from(certificate)
        .map(|parsed| parsed.valid_dns_names().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// A certificate whose names are not on the list.
#[derive(Debug, thiserror::Error)]
#[error("the certificate names {found:?}; accepted here: {accepted:?}")]
struct NotListed {
    found: Vec<String>,
    accepted: BTreeSet<String>,
}

fn check_names(certificate: &CertificateDer<'_>, accepted: &BTreeSet<String>) -> Result<(), Error> {
    let found = names(certificate);
    if found.iter().any(|name| accepted.contains(name)) {
        return Ok(());
    }
    let accepted = accepted.clone();
    let reason = OtherError(Arc::new(NotListed { found, accepted }));
    Err(Error::InvalidCertificate(CertificateError::Other(reason)))
}

macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let known = &self.provider.signature_verification_algorithms;
            verify_tls12_signature(message, certificate, signed, known)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let known = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signed, known)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider
                .signature_verification_algorithms
                .supported_schemes()
        }
    };
}

/// Judges servers.
#[derive(Debug)]
pub(crate) struct ServerNames {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    accepted: BTreeSet<String>,
}

impl ServerNames {
    pub(crate) const fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        accepted: BTreeSet<String>,
    ) -> Self {
        Self {
            roots,
            provider,
            accepted,
        }
    }
}

impl ServerCertVerifier for ServerNames {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let known = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, between, now, known)?;
        check_names(certificate, &self.accepted)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

/// Judges clients.
#[derive(Debug)]
pub(crate) struct ClientNames {
    chain: Result<Arc<dyn ClientCertVerifier>, String>,
    provider: Arc<CryptoProvider>,
    accepted: BTreeSet<String>,
}

impl ClientNames {
    pub(crate) fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        accepted: BTreeSet<String>,
    ) -> Self {
        // Fails only without any root, and then nobody is accepted.
        let chain = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| error.to_string());
        Self {
            chain,
            provider,
            accepted,
        }
    }
}

impl ClientCertVerifier for ClientNames {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Strangers need not be told whom we trust.
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = self
            .chain
            .as_ref()
            .map_err(|why| Error::General(why.clone()))?;
        let verified = chain.verify_client_cert(certificate, between, now)?;
        check_names(certificate, &self.accepted)?;
        Ok(verified)
    }

    signatures!();
}
