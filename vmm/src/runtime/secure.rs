//! The connections of a side, protected as its configuration says.

use super::session::RuntimeError;
use crate::config::Config;
use arbiter::address::Address;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use tls::{Dial, Door, Identity, Purpose};
use tokio::net::TcpListener;

/// Where the primary listens; lets in whoever may be the backup.
pub(super) async fn channel_door(config: &Config) -> Result<Door, RuntimeError> {
    let listener = listen(config.channel()?.address).await?;
    let Some(tls) = config.protection.tls() else {
        return Ok(Door::plain(listener));
    };
    let identity = identity(&tls.files, &tls.primary, "primary")?;
    let purpose = Purpose::Channel;
    Ok(Door::tls(listener, &identity, &tls.backup, purpose)?)
}

/// Where a standby waits; lets in whoever may be the primary.
pub(super) async fn standby_door(
    config: &Config,
    address: SocketAddr,
) -> Result<Door, RuntimeError> {
    let listener = listen(address).await?;
    let Some(tls) = config.protection.tls() else {
        return Ok(Door::plain(listener));
    };
    let identity = identity(&tls.files, &tls.backup, "backup")?;
    let purpose = Purpose::Channel;
    Ok(Door::tls(listener, &identity, &tls.primary, purpose)?)
}

/// How a side that runs the guest alone reaches those that stand by.
pub(super) fn standby_dial(config: &Config) -> Result<Dial, RuntimeError> {
    let Some(tls) = config.protection.tls() else {
        return Ok(Dial::plain());
    };
    let identity = identity(&tls.files, &tls.primary, "primary")?;
    Ok(Dial::tls(&identity, &tls.backup, Purpose::Channel)?)
}

async fn listen(address: SocketAddr) -> Result<TcpListener, RuntimeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| RuntimeError::Listen { address, source })
}

/// How the backup connects, to whoever may be the primary.
pub(super) fn channel_dial(config: &Config) -> Result<Dial, RuntimeError> {
    let Some(tls) = config.protection.tls() else {
        return Ok(Dial::plain());
    };
    let identity = identity(&tls.files, &tls.backup, "backup")?;
    Ok(Dial::tls(&identity, &tls.primary, Purpose::Channel)?)
}

/// How a side asks the arbiter.
pub(super) fn arbiter_dial(config: &Config) -> Result<Dial, RuntimeError> {
    let address = Address::parse(config.arbiter()?)?;
    match config.protection.tls() {
        Some(tls) if address.is_tls() => {
            let identity = Identity::load(&tls.files)?;
            Ok(Dial::tls(&identity, &tls.arbiter, Purpose::Http)?)
        }
        _ => Ok(Dial::plain()),
    }
}

/// Reads who this host is. A peer would refuse one that may not have this role: say so at once.
fn identity(
    files: &tls::IdentityFiles,
    may: &BTreeSet<String>,
    role: &'static str,
) -> Result<Identity, RuntimeError> {
    let identity = Identity::load(files)?;
    let names = identity.names();
    if !names.iter().any(|name| may.contains(name)) {
        return Err(RuntimeError::Role { names, role });
    }
    Ok(identity)
}
