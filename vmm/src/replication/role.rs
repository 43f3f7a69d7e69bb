//! What one side is at any moment, and what it may become.
//!
//! ```text
//!   primary's process                              backup's process
//!
//!   Idle ──Start──► Starting                       Idle ──Start──► Joining ◄──────────┐
//!    │                 │ granted                                     │ welcomed       │ link lost
//!    │ (run alone)     ▼                                             ▼                │ before that
//!    │             Awaiting ◄─┐ link lost                        Following ◄─┐
//!    │                 │ ─────┘ before a welcome        link lost,   │       │ heard again,
//!    │                 │ backup welcomed                silence      ▼       │ nothing claimed
//!    │                 ▼                                         Finishing ──┘
//!    │             Protected ──guest ended──► Ended                  │ log drained: claim g -> g+1
//!    │                 │ backup silent or gone:                      ▼
//!    │                 ▼ claim g -> g+1                          GoingLive
//!    │             Contested                                         │ granted
//!    │                 │ granted                                     │
//!    │                 ▼                                             ▼
//!    └───────────►   Solo  ◄─────────────────────────────────────────┘
//!                      │ a new backup was given the state
//!                      ▼
//!                  Protected                      Joining ──state received──► Following
//!
//!   every state ──refused by the arbiter, diverged, stopped, in doubt──► Halted (for good)
//! ```
//!
//! Only Protected and Solo let output out: Protected what the backup acknowledged, Solo all. A
//! process starts Idle and never resumes the role of a process before it: its claims carry a name
//! of its own. `Role::become_` asserts the table, in release builds too.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// State of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Not started.
    Idle,
    /// Primary: claiming the right to start the guest.
    Starting,
    /// Primary: may start the guest, waits for a backup.
    Awaiting,
    /// Primary: the guest runs and a backup follows.
    Protected,
    /// Primary: lost the backup, output held, claiming the right to go on alone.
    Contested,
    /// The only one, by the arbiter's decision or because there never was another.
    Solo,
    /// Backup: not yet welcomed by a primary.
    Joining,
    /// Backup: replays the primary's log.
    Following,
    /// Backup: lost the primary, replays what it has of the log.
    Finishing,
    /// Backup: log drained, claiming the right to go live.
    GoingLive,
    /// Over: the guest ended.
    Ended,
    /// Over: this copy never runs again.
    Halted,
}

impl Role {
    /// The name an operator reads: one of five, or what comes before and after them.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Starting | Self::Awaiting | Self::Protected | Self::Contested => "primary",
            Self::Solo => "solo",
            Self::Joining | Self::Following | Self::Finishing => "backup",
            Self::GoingLive => "going live",
            Self::Ended => "ended",
            Self::Halted => "halted",
        }
    }

    /// Whether nothing follows.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Ended | Self::Halted)
    }

    /// Whether output may leave in this state.
    #[must_use]
    pub const fn may_release(self) -> bool {
        matches!(self, Self::Protected | Self::Solo)
    }

    /// Whether the table allows this step.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        use Role::{
            Awaiting, Contested, Ended, Finishing, Following, GoingLive, Halted, Idle, Joining,
            Protected, Solo, Starting,
        };
        match self {
            Ended | Halted => false,
            _ if matches!(next, Halted) => true,
            Idle => matches!(next, Starting | Joining | Solo),
            Starting => matches!(next, Awaiting),
            Awaiting => matches!(next, Protected),
            Protected => matches!(next, Contested | Ended),
            Contested | GoingLive => matches!(next, Solo),
            Solo => matches!(next, Protected | Ended),
            Joining => matches!(next, Following),
            Following => matches!(next, Finishing | Ended),
            Finishing => matches!(next, Following | GoingLive | Ended),
        }
    }

    /// Takes the step.
    ///
    /// # Panics
    /// When the table does not allow it: going on would risk two live executors.
    pub fn become_(&mut self, next: Self) {
        assert!(self.may_become(next), "{self:?} may not become {next:?}");
        *self = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Role; 12] = [
        Role::Idle,
        Role::Starting,
        Role::Awaiting,
        Role::Protected,
        Role::Contested,
        Role::Solo,
        Role::Joining,
        Role::Following,
        Role::Finishing,
        Role::GoingLive,
        Role::Ended,
        Role::Halted,
    ];

    #[test]
    fn solo_is_reached_only_through_a_claim_or_when_run_alone() {
        let before: Vec<_> = ALL
            .into_iter()
            .filter(|r| r.may_become(Role::Solo))
            .collect();
        assert_eq!(before, [Role::Idle, Role::Contested, Role::GoingLive]);
    }

    #[test]
    fn nothing_follows_the_end() {
        for over in [Role::Ended, Role::Halted] {
            assert!(over.is_over());
            assert!(ALL.into_iter().all(|next| !over.may_become(next)));
        }
    }

    #[test]
    fn everything_alive_may_halt() {
        assert!(
            ALL.into_iter()
                .filter(|r| !r.is_over())
                .all(|r| r.may_become(Role::Halted))
        );
    }

    #[test]
    fn a_claim_is_never_taken_back() {
        for claimed in [Role::Contested, Role::GoingLive] {
            let after: Vec<_> = ALL.into_iter().filter(|r| claimed.may_become(*r)).collect();
            assert_eq!(after, [Role::Solo, Role::Halted]);
        }
    }

    #[test]
    #[should_panic(expected = "Following may not become Solo")]
    fn a_backup_does_not_go_live_without_a_claim() {
        let mut role = Role::Following;
        role.become_(Role::Solo);
    }
}
