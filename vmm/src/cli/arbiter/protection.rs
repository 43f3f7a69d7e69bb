//! How an arbiter, and whoever asks it, is protected: certificates, who may do what, or plain text.

use crate::cli::exit::{Exit, Failure};
use arbiter::access::Access;
use arbiter::address::Address;
use arbiter::client::{ArbiterClient, RetryPolicy};
use arbiter::register::VmName;
use clap::Args;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tls::issue::is_name;
use tls::{Dial, Door, Identity, IdentityFiles, Purpose, TlsError};
use tokio::net::TcpListener;

/// Longest access file, bytes.
const ACCESS_BYTES_MAX: usize = 256 * 1024;

/// This program's certificate.
#[derive(Debug, Args)]
pub(super) struct Certificate {
    /// This machine's certificate, PEM.
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_authority"])]
    tls_certificate: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Certificate of the authority whose certificates are accepted, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_authority: Option<PathBuf>,
    /// Speak plain text across the network; only on a private link.
    #[arg(long)]
    plain_text: bool,
}

impl Certificate {
    fn identity(&self) -> Result<Option<Identity>, TlsError> {
        match (&self.tls_certificate, &self.tls_key, &self.tls_authority) {
            (Some(certificate), Some(key), Some(authority)) => Identity::load(&IdentityFiles {
                certificate: certificate.clone(),
                key: key.clone(),
                authority: authority.clone(),
            })
            .map(Some),
            _ => Ok(None),
        }
    }

    /// How the arbiter at `url` is asked; it must have one of `names` in TLS.
    pub(super) fn client(
        &self,
        url: &str,
        names: &[String],
        policy: RetryPolicy,
    ) -> Result<ArbiterClient, Failure> {
        Ok(ArbiterClient::dialled(url, policy, self.dial(url, names)?)?)
    }

    /// How `url` is reached.
    pub(super) fn dial(&self, url: &str, names: &[String]) -> Result<Dial, Failure> {
        let address = Address::parse(url)?;
        if !address.is_tls() && !address.is_loopback() && !self.plain_text {
            return Err(plain_text_unwanted(&format!(
                "{address} is on another machine"
            )));
        }
        match self.identity()? {
            Some(identity) if address.is_tls() => {
                let names = names.iter().cloned().collect();
                Ok(Dial::tls(&identity, &names, Purpose::Http)?)
            }
            _ => Ok(Dial::plain()),
        }
    }

    /// Where an arbiter listens, and who may do what there.
    pub(super) async fn door(
        &self,
        listen: SocketAddr,
        access: Option<&Path>,
    ) -> Result<(Door, Option<Access>), Failure> {
        let identity = self.identity()?;
        if identity.is_none() && !listen.ip().is_loopback() && !self.plain_text {
            return Err(plain_text_unwanted(&format!(
                "{listen} is reached from other machines"
            )));
        }
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            let error = anyhow::Error::new(error).context(format!("cannot listen on {listen}"));
            Failure::new(Exit::Failed, error)
                .remedy("give an address of this machine and a port that is free")
        })?;
        let Some(identity) = identity else {
            return Ok((Door::plain(listener), None));
        };
        let access = read_access(access.unwrap_or(Path::new("")))?;
        let door = Door::tls(listener, &identity, &access.names(), Purpose::Http)?;
        Ok((door, Some(access)))
    }
}

fn plain_text_unwanted(what: &str) -> Failure {
    let error = anyhow::anyhow!("{what}, and nothing protects the connection");
    let remedy = "give --tls-certificate, --tls-key and --tls-authority (`understudy cert` makes them), or \
        --plain-text on a private link";
    Failure::new(Exit::Usage, error).remedy(remedy)
}

/// Reads who may do what:
///
/// ```toml
/// operators = ["alice"]
/// [hosts]
/// web = ["host-a", "host-b"]
/// ```
fn read_access(path: &Path) -> Result<Access, Failure> {
    let wrong = |problem: String| {
        let error = anyhow::anyhow!("the access file {} {problem}", path.display());
        Failure::new(Exit::Configuration, error)
            .remedy("write operators = [\"NAME\"] and [hosts] with VM = [\"NAME\", \"NAME\"]")
    };
    let text =
        std::fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    parse_access(&text).map_err(wrong)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct AccessFile {
    #[serde(default)]
    operators: BTreeSet<String>,
    #[serde(default)]
    hosts: BTreeMap<VmName, BTreeSet<String>>,
}

fn parse_access(text: &str) -> Result<Access, String> {
    if text.len() > ACCESS_BYTES_MAX {
        return Err(format!("is longer than {ACCESS_BYTES_MAX} bytes"));
    }
    let AccessFile { operators, hosts } =
        toml::from_str(text).map_err(|error| format!("is not right: {error}"))?;
    let access = Access { operators, hosts };
    let names = access.names();
    if names.is_empty() {
        return Err("names nobody".into());
    }
    match names.iter().find(|name| !is_name(name)) {
        Some(bad) => Err(format!("has {bad:?}, which is no name of a certificate")),
        None => Ok(access),
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        Self::new(Exit::Configuration, error)
            .remedy("`understudy cert` makes certificates that fit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_file_is_read_or_refused() {
        let access = parse_access("operators = [\"al\"]\n[hosts]\nweb = [\"a\", \"b\"]\n").unwrap();
        let web = VmName::new("web").unwrap();
        assert!(access.check(&["b".into()], &web).is_ok());
        assert!(access.check_all(&["al".into()]).is_ok());
        for (text, problem) in [
            ("", "names nobody"),
            ("operators = [\"*\"]", "\"*\""),
            ("operator = [\"al\"]", "unknown field"),
            ("[hosts]\n\"a b\" = [\"a\"]", "vm name"),
            ("operators = [", "is not right"),
        ] {
            let error = parse_access(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn plain_text_across_the_network_is_asked_for_by_name() {
        let mut certificate = Certificate {
            tls_certificate: None,
            tls_key: None,
            tls_authority: None,
            plain_text: false,
        };
        let policy = RetryPolicy::default();
        let failure = certificate
            .client("http://10.0.0.9:1", &[], policy)
            .unwrap_err();
        assert!(
            failure.text().contains("--plain-text"),
            "{}",
            failure.text()
        );
        assert!(
            certificate
                .client("http://127.0.0.1:1", &[], policy)
                .is_ok()
        );
        let everywhere = "0.0.0.0:0".parse().unwrap();
        let failure = certificate
            .door(everywhere, None)
            .await
            .map(|_| ())
            .unwrap_err();
        assert!(
            failure.text().contains("--plain-text"),
            "{}",
            failure.text()
        );
        assert!(
            certificate
                .door("127.0.0.1:0".parse().unwrap(), None)
                .await
                .is_ok()
        );
        certificate.plain_text = true;
        assert!(certificate.client("http://10.0.0.9:1", &[], policy).is_ok());
        assert!(certificate.door(everywhere, None).await.is_ok());
    }
}
