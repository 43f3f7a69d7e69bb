//! Who a side calls and who may call it, by how its life begins.

use super::link_task;
use super::secure;
use super::session::RuntimeError;
use crate::config::Config;
use crate::replication::node::Part;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// How a life of this process begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// Unreplicated.
    Alone,
    /// Claims the generation after this one, and starts the guest when a backup is there.
    Primary {
        /// 0 for a virtual machine that was never started.
        after_generation: u64,
    },
    /// Follows the primary at the channel's address.
    Backup,
    /// Waits here for whoever runs the guest alone.
    Standby {
        /// Where it listens.
        address: SocketAddr,
    },
}

impl Beginning {
    pub(super) const fn part(self) -> Part {
        match self {
            Self::Alone => Part::Alone,
            Self::Primary { after_generation } => Part::Primary { after_generation },
            Self::Backup | Self::Standby { .. } => Part::Backup,
        }
    }
}

impl Beginning {
    /// The generation that a primary's first claim follows; 0 for everybody else.
    pub(super) const fn after_generation(self) -> u64 {
        match self {
            Self::Primary { after_generation } => after_generation,
            _ => 0,
        }
    }
}

impl Beginning {
    /// Those of `standbys` that are not this process. The file is the same on all hosts, and names it, too: a
    /// survivor that stood by before still listens, and would invite itself over and over.
    fn others(self, standbys: &[SocketAddr]) -> Vec<SocketAddr> {
        let Self::Standby { address: own } = self else {
            return standbys.to_vec();
        };
        let others = standbys.iter().copied();
        others.filter(|standby| !reaches(*standby, own)).collect()
    }
}

/// Whether whoever connects to `address` from this host finds the listener at `own`.
fn reaches(address: SocketAddr, own: SocketAddr) -> bool {
    let any = own.ip().is_unspecified() && own.port() == address.port();
    address == own || (any && is_of_this_host(address.ip()))
}

/// Only an address of this host can be bound.
fn is_of_this_host(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// The tasks that make connections, ended when the life is over.
pub(super) struct Connecting {
    pub(super) link: mpsc::Receiver<link_task::LinkEvent>,
    pub(super) reconnect: mpsc::Sender<()>,
    pub(super) invite: mpsc::Sender<()>,
    pub(super) tasks: JoinSet<()>,
}

impl Connecting {
    pub(super) async fn start(config: &Config, beginning: Beginning) -> Result<Self, RuntimeError> {
        let (events, link) = mpsc::channel(link_task::EVENTS_MAX);
        let (reconnect, again) = mpsc::channel(1);
        let (invite, wanted) = mpsc::channel(1);
        let numbers = link_task::Numbers::default();
        let mut tasks = JoinSet::new();
        let door = match beginning {
            Beginning::Alone => None,
            Beginning::Primary { .. } => Some(secure::channel_door(config).await?),
            Beginning::Standby { address } => Some(secure::standby_door(config, address).await?),
            Beginning::Backup => {
                let (primary, dial) = (config.channel()?.address, secure::channel_dial(config)?);
                let (events, numbers) = (events.clone(), numbers.clone());
                tasks.spawn(link_task::connect(primary, dial, events, again, numbers));
                None
            }
        };
        if let Some(door) = door {
            tasks.spawn(link_task::listen(door, events.clone(), numbers.clone()));
        }
        let standbys = config
            .channel
            .as_ref()
            .map(|c| beginning.others(&c.standbys));
        if let Some(standbys) = standbys.filter(|s| !s.is_empty() && beginning != Beginning::Alone)
        {
            match secure::standby_dial(config) {
                Ok(dial) => {
                    tasks.spawn(link_task::invite(standbys, dial, events, wanted, numbers));
                }
                // It can still be a backup and go live; it only stays alone then.
                Err(error @ RuntimeError::Role { .. }) => {
                    tracing::warn!(%error, "this side will invite nobody");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            link,
            reconnect,
            invite,
            tasks,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn nobody_invites_himself() {
        // 192.0.2.0/24 is nobody's (RFC 5737).
        let all = addresses(&["127.0.0.1:7072", "127.0.0.1:7073", "192.0.2.1:7072"]);
        let of = |own: &str| Beginning::Standby {
            address: own.parse().unwrap(),
        };
        assert_eq!(of("127.0.0.1:7072").others(&all), all[1..]);
        assert_eq!(of("0.0.0.0:7072").others(&all), all[1..]);
        assert_eq!(of("127.0.0.2:7072").others(&all), all);
        assert_eq!(Beginning::Backup.others(&all), all);
    }
}
