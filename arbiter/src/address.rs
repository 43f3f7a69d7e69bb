//! Where an arbiter is: `http://HOST:PORT`, or an etcd cluster, `etcd://HOST:PORT,HOST:PORT/PREFIX`; in
//! TLS as `https` and `etcds`.

#![forbid(unsafe_code)]

use hyper::Uri;
use std::fmt;
use std::net::IpAddr;

/// Most members of an etcd cluster that an address names.
pub const MEMBERS_MAX: usize = 9;
/// Longest prefix of keys in etcd, bytes.
pub const PREFIX_BYTES_MAX: usize = 128;

const FORMS: &str =
    "write http://HOST:PORT or etcd://HOST:PORT,HOST:PORT/PREFIX, with https or etcds for TLS";

/// An address that cannot be an arbiter's.
#[derive(Debug, thiserror::Error)]
#[error("the arbiter address {url:?} {reason}")]
pub struct AddressError {
    /// As given.
    pub url: String,
    /// What is wrong with it and how it should look.
    pub reason: String,
}

/// A checked address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `understudy arbiter`.
    Http {
        /// `HOST:PORT`.
        authority: String,
        /// Whether it is spoken to in TLS.
        tls: bool,
    },
    /// An etcd cluster.
    Etcd {
        /// `HOST:PORT` of its members, at least one.
        members: Vec<String>,
        /// What its keys begin with, without a slash at either end.
        prefix: String,
        /// Whether they are spoken to in TLS.
        tls: bool,
    },
}

impl Address {
    /// Checks `url` without connecting.
    ///
    /// # Errors
    /// When it has neither form.
    pub fn parse(url: &str) -> Result<Self, AddressError> {
        let wrong = |reason: String| AddressError {
            url: url.into(),
            reason: format!("{reason}; {FORMS}"),
        };
        match url.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => {
                let tls = scheme == "https";
                let authority = rest.strip_suffix('/').unwrap_or(rest);
                check_member(authority).map_err(wrong)?;
                let authority = with_port(authority, if tls { 443 } else { 80 });
                Ok(Self::Http { authority, tls })
            }
            Some((scheme @ ("etcd" | "etcds"), rest)) => {
                parse_etcd(rest, scheme == "etcds").map_err(wrong)
            }
            Some((scheme, _)) => Err(wrong(format!("has scheme {scheme:?}, which is not spoken"))),
            None => Err(wrong("is no address".into())),
        }
    }

    /// Whether it is spoken to in TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        match self {
            Self::Http { tls, .. } | Self::Etcd { tls, .. } => *tls,
        }
    }

    /// Whether nothing said to it leaves this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let local = |authority: &String| {
            let host = authority.rsplit_once(':').map_or("", |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        };
        match self {
            Self::Http { authority, .. } => local(authority),
            Self::Etcd { members, .. } => members.iter().all(local),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { authority, tls } => {
                write!(f, "http{}://{authority}", if *tls { "s" } else { "" })
            }
            Self::Etcd {
                members,
                prefix,
                tls,
            } => {
                let s = if *tls { "s" } else { "" };
                write!(f, "etcd{s}://{}/{prefix}", members.join(","))
            }
        }
    }
}

fn parse_etcd(rest: &str, tls: bool) -> Result<Address, String> {
    let Some((members, prefix)) = rest.split_once('/') else {
        return Err("has no prefix for its keys".into());
    };
    let prefix = prefix.trim_end_matches('/');
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX || !prefix.chars().all(good) {
        return Err(format!(
            "has prefix {prefix:?}, not 1 to {PREFIX_BYTES_MAX} letters, digits, '.', '_', '-', '/'"
        ));
    }
    let members: Vec<&str> = members.split(',').collect();
    if members.len() > MEMBERS_MAX {
        return Err(format!(
            "names {} members, the limit is {MEMBERS_MAX}",
            members.len()
        ));
    }
    for member in &members {
        check_member(member)?;
    }
    Ok(Address::Etcd {
        members: members
            .into_iter()
            .map(|member| with_port(member, 2379))
            .collect(),
        prefix: prefix.into(),
        tls,
    })
}

fn check_member(authority: &str) -> Result<(), String> {
    if authority.is_empty() {
        return Err("has no host".into());
    }
    let uri: Uri = format!("http://{authority}")
        .parse()
        .map_err(|error| format!("is not an address ({error})"))?;
    let plain = uri.authority().is_some_and(|found| {
        found.as_str() == authority && !authority.contains(['@', ',']) && !found.host().is_empty()
    });
    let port = port_of(authority).map(str::parse::<u16>);
    if !plain || !matches!(port, None | Some(Ok(1..))) {
        return Err("has more, or less, than a host and a port".into());
    }
    Ok(())
}

/// The part after the last colon that is not inside an IPv6 address's brackets.
fn port_of(authority: &str) -> Option<&str> {
    let after = authority
        .rsplit_once(']')
        .map_or(authority, |(_, rest)| rest);
    after.rsplit_once(':').map(|(_, port)| port)
}

fn with_port(authority: &str, port: u16) -> String {
    match port_of(authority) {
        Some(_) => authority.to_owned(),
        None => format!("{authority}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_are_read_and_shown() {
        for (url, shown) in [
            ("http://10.0.0.9:7070/", "http://10.0.0.9:7070"),
            ("http://arbiter", "http://arbiter:80"),
            ("http://[::1]:7070", "http://[::1]:7070"),
            ("http://[::1]", "http://[::1]:80"),
            ("https://arbiter", "https://arbiter:443"),
            ("etcds://a/p", "etcds://a:2379/p"),
            (
                "etcd://a,b:1,c/under/study/",
                "etcd://a:2379,b:1,c:2379/under/study",
            ),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(Address::parse(shown).unwrap(), address);
        }
    }

    #[test]
    fn loopback_is_told_from_the_rest() {
        for (url, local) in [
            ("http://127.0.0.1:7070", true),
            ("http://localhost", true),
            ("http://[::1]", true),
            ("http://10.0.0.9:7070", false),
            ("http://localhost.example", false),
            ("etcd://127.0.0.1,127.0.0.2:1/p", true),
            ("etcd://127.0.0.1,10.0.0.1/p", false),
        ] {
            assert_eq!(Address::parse(url).unwrap().is_loopback(), local, "{url}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_forms() {
        for url in [
            "",
            "host:7070",
            "ftp://host:7070",
            "http://host/x",
            "http://u@host",
            "http://",
            "http://h:",
            "http://h:0",
            "http://h:70000",
            "http://a,b",
            "etcd://a,b",
            "etcd://a,b/",
            "etcd://a,,b/p",
            "etcd://a/p q",
            "etcd:///p",
            "etcd://a,a,a,a,a,a,a,a,a,a/p",
        ] {
            let error = Address::parse(url)
                .map(|found| panic!("{url} is {found}"))
                .unwrap_err();
            assert!(error.to_string().contains(FORMS), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(https?|etcds?)://[a-z0-9:,/.@\\[\\]]{0,24}") {
            if let Ok(address) = Address::parse(&text) {
                prop_assert_eq!(&Address::parse(&address.to_string()).unwrap(), &address);
            }
        }
    }
}
