//! Who a side calls and who may call it, by how its life begins.

use super::link_task;
use super::secure;
use super::session::RuntimeError;
use crate::config::Config;
use crate::replication::node::Part;
use std::net::SocketAddr;
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
        let standbys = config.channel.as_ref().map(|c| c.standbys.clone());
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
