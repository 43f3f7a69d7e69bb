//! An authority of one's own, and certificates for hosts, for a start: `understudy cert`.
//!
//! Keys are P-256. The authority signs names, nothing else; a certificate has one name, and is good for
//! both sides of a connection. Who has an authority already uses that instead: nothing here is needed to
//! *use* certificates.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// What every authority's name begins with; a part of its public key follows, so that a certificate of
/// another authority is refused as such, not as a bad signature.
const TITLE: &str = "Understudy authority";
/// A certificate begins to be valid this long before it is made: clocks differ.
const BACKDATED: Duration = Duration::hours(1);
/// Longest life of anything issued here, days.
pub const DAYS_MAX: u32 = 7_300;

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The name cannot stand in a certificate.
    #[error(
        "{0:?} is no name for a certificate: letters, digits, '-' and '.', at most 63 in a part"
    )]
    Name(String),
    /// The authority's key is none.
    #[error("the authority's key cannot sign: {0}")]
    Authority(rcgen::Error),
    /// The library failed.
    #[error("the certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// A certificate and its key, as PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

fn params(
    names: Vec<String>,
    title: &str,
    now: OffsetDateTime,
    days: u32,
) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, title);
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(i64::from(days.min(DAYS_MAX)));
    Ok(params)
}

fn authority_params(
    key: &KeyPair,
    now: OffsetDateTime,
    days: u32,
) -> Result<CertificateParams, IssueError> {
    // Behind the first byte, which is the same in all, an elliptic point's coordinates are as good as
    // random.
    let part = key.public_key_raw().iter().skip(1).take(8);
    let title = part.fold(format!("{TITLE} "), |title, byte| {
        format!("{title}{byte:02x}")
    });
    let mut params = params(Vec::new(), &title, now, days)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Makes an authority, valid for `days` from `now`.
///
/// # Errors
/// When the library fails.
pub fn authority(now: OffsetDateTime, days: u32) -> Result<Issued, IssueError> {
    let key = KeyPair::generate()?;
    let issuer = CertifiedIssuer::self_signed(authority_params(&key, now, days)?, key)?;
    Ok(Issued {
        certificate: issuer.pem(),
        key: issuer.key().serialize_pem(),
    })
}

/// Makes a certificate for `name`, signed by the authority of [`authority`] whose key is `authority_key`,
/// valid for `days` from `now`.
///
/// # Errors
/// When the name cannot stand in a certificate, or the key is none.
pub fn certificate(
    authority_key: &str,
    name: &str,
    now: OffsetDateTime,
    days: u32,
) -> Result<Issued, IssueError> {
    if !is_name(name) {
        return Err(IssueError::Name(name.into()));
    }
    let signer = KeyPair::from_pem(authority_key).map_err(IssueError::Authority)?;
    // What a certificate takes from its authority's follows from the title and the key.
    let issuer = Issuer::new(authority_params(&signer, now, days)?, signer);
    let mut params = params(vec![name.into()], name, now, days)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    Ok(Issued {
        certificate: params.signed_by(&key, &issuer)?.pem(),
        key: key.serialize_pem(),
    })
}

/// Whether `name` can stand in a certificate and in a list of names: a host name, no wildcard.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let good = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        (1..=63).contains(&part.len())
            && part.chars().all(plain)
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    name.len() <= 253
        && name.split('.').all(good)
        && !name
            .split('.')
            .next_back()
            .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
}
