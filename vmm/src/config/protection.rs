//! The section `[tls]`: certificates, and whose certificates are accepted as what.
//!
//! Plain text leaves this machine only where the file says so (`plain_text = true`), and then `status`
//! shows it. Without the section, channel and arbiter have to be on loopback.

#![forbid(unsafe_code)]

use super::read::path_of;
use super::section::{ConfigError, Found, Section, Source};
use arbiter::address::Address;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use tls::IdentityFiles;
use tls::issue::is_name;

/// Most names in one list.
const NAMES_MAX: usize = 64;

/// How connections to other machines are protected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Protection {
    /// Not at all: nothing leaves this machine.
    #[default]
    Loopback,
    /// Not at all, and the operator wants it so.
    PlainText,
    /// By certificates on both sides.
    Tls(Tls),
}

/// Certificates, and who may be what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// This host's certificate and key, and the authority.
    pub files: IdentityFiles,
    /// Names that may be the primary of this virtual machine.
    pub primary: BTreeSet<String>,
    /// Names that may be its backup.
    pub backup: BTreeSet<String>,
    /// Names that may be the arbiter; none where the arbiter is not in TLS.
    pub arbiter: BTreeSet<String>,
    /// Whether the arbiter may be spoken to in plain text across the network.
    pub plain_text: bool,
}

impl Protection {
    /// The certificates, when there are some.
    #[must_use]
    pub const fn tls(&self) -> Option<&Tls> {
        match self {
            Self::Tls(tls) => Some(tls),
            Self::Loopback | Self::PlainText => None,
        }
    }

    /// For `status`: `tls`, `plain text` (the operator wants it so) or `loopback`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::PlainText => "plain text",
            Self::Tls(_) => "tls",
        }
    }

    const fn allows_plain_text(&self) -> bool {
        match self {
            Self::Loopback => false,
            Self::PlainText => true,
            Self::Tls(tls) => tls.plain_text,
        }
    }

    /// Refuses a channel that would cross the network in plain text.
    pub(super) fn check_channel(
        &self,
        source: Source<'_>,
        found: &Found<String>,
        address: SocketAddr,
    ) -> Result<(), ConfigError> {
        if self.tls().is_some() || *self == Self::PlainText || address.ip().is_loopback() {
            return Ok(());
        }
        Err(found.wrong(
            source,
            "is not on this machine, and nothing protects it",
            REMEDY,
        ))
    }

    /// Refuses an arbiter that would be spoken to in plain text across the network, or in TLS without a
    /// certificate.
    pub(super) fn check_arbiter(
        &self,
        source: Source<'_>,
        found: &Found<String>,
        address: &Address,
    ) -> Result<(), ConfigError> {
        match (address.is_tls(), self.tls()) {
            (true, None) => {
                let problem = "is in TLS, and there is no certificate";
                Err(found.wrong(
                    source,
                    problem,
                    "add [tls] with certificate, key and authority",
                ))
            }
            (true, Some(tls)) if tls.arbiter.is_empty() => {
                let problem = "is in TLS, and no name is accepted as its own";
                Err(found.wrong(
                    source,
                    problem,
                    "add [tls] arbiter = [\"NAME\"], the name in its certificate",
                ))
            }
            (false, _) if !self.allows_plain_text() && !address.is_loopback() => {
                let problem = "is not on this machine, and is spoken to in plain text";
                Err(found.wrong(source, problem, REMEDY_ARBITER))
            }
            _ => Ok(()),
        }
    }
}

const REMEDY: &str = "add [tls] with certificate, key and authority (`understudy cert` makes them), or \
    plain_text = true on a private link";
const REMEDY_ARBITER: &str =
    "write https (or etcds) and add [tls], or [tls] plain_text = true on a private link";

pub(super) fn read_protection(mut section: Section<'_>) -> Result<Protection, ConfigError> {
    if !section.is_present() {
        return Ok(Protection::Loopback);
    }
    let source = section.source();
    let plain_text = section.flag("plain_text", false)?;
    let certificate = section.text("certificate", "give the path of this host's certificate")?;
    let Some(certificate) = certificate else {
        section.finish_hinting(&["key", "authority", "primary", "backup", "arbiter"])?;
        return match plain_text {
            true => Ok(Protection::PlainText),
            false => Err(source.error(
                None,
                Some("tls.certificate".into()),
                "tls.certificate is missing",
                "give certificate, key and authority, or plain_text = true",
            )),
        };
    };
    let mut path = |key, remedy| {
        let found = section.text(key, remedy)?;
        found.ok_or_else(|| section.missing(key, remedy))
    };
    let files = IdentityFiles {
        certificate: path_of(source, &certificate)?,
        key: path_of(source, &path("key", "give the path of its private key")?)?,
        authority: path_of(
            source,
            &path("authority", "give the path of the authority's certificate")?,
        )?,
    };
    let tls = Tls {
        files,
        primary: names(&mut section, "primary", true)?,
        backup: names(&mut section, "backup", true)?,
        arbiter: names(&mut section, "arbiter", false)?,
        plain_text,
    };
    section.finish()?;
    Ok(Protection::Tls(tls))
}

/// A list of certificate names.
fn names(
    section: &mut Section<'_>,
    key: &'static str,
    needed: bool,
) -> Result<BTreeSet<String>, ConfigError> {
    let remedy = "list the names in their certificates, as in [\"host-a\", \"host-b\"]";
    let Some(found) = section.texts(key, NAMES_MAX, remedy)? else {
        return match needed {
            true => Err(section.missing(key, remedy)),
            false => Ok(BTreeSet::new()),
        };
    };
    if let Some(bad) = found.value.iter().find(|name| !is_name(name)) {
        let problem = format!("has {bad:?}, which is no name of a certificate");
        return Err(found.wrong(section.source(), problem, remedy));
    }
    Ok(found.value.into_iter().collect())
}
