//! Arguments that several of the commands take: which records, and how they look.

#![forbid(unsafe_code)]

use clap::{Args, ValueEnum};
use inspect::facts::Facts;
use inspect::filter::Filter;
use inspect::journal::when::When;
use inspect::kind::Kind;
use inspect::place::Range;
use inspect::source::WalkError;
use inspect::theme::Theme;
use std::io::IsTerminal;
use std::path::Path;

/// The language of `--filter`, for long help.
pub(super) const FILTER_HELP: &str = "\
Filters:
    a kind      start timer console packet entropy output mark progress control end
    a protocol  tcp udp icmp icmp6 arp ip4 ip6 other, or ip
    in, out     what came to the guest, what left it
    FIELD OP VALUE with == != < <= > >=; FIELD is one of
        index exits branches      numbers
        time                      1.5s 300ms 20us, guest time
        device direction size     of what came or went: net0, console, rng; in, out; bytes, 2k, 1M
        proto ip port             of received packets; ip.src, ip.dst, port.src, port.dst for one end
    text ~ \"GET /\"              bytes of what came
    joined with and, or, not and parentheses.
Of what left the guest the log has length and checksum only, so `proto`, `ip`, `port` and `text` are
about what came. docs/inspecting.md has the whole language.";

/// Which records.
#[derive(Debug, Default, Args)]
pub(super) struct Choice {
    /// First record: an index, `exit:N`, a guest time as 1.5s or 300ms, or a host time as
    /// host:15:02:52.218 (UTC) or host:12.5s (since the run began there).
    #[arg(long, value_name = "PLACE")]
    pub(super) from: Option<When>,
    /// First record left out at the end, in the same forms.
    #[arg(long, value_name = "PLACE")]
    pub(super) to: Option<When>,
    /// Only this kind; may be repeated.
    #[arg(long, value_name = "KIND", value_parser = Kind::ALL.map(Kind::name))]
    pub(super) kind: Vec<String>,
    /// Only records for which this expression holds, as `tcp and port == 80`.
    #[arg(long, short, value_name = "EXPRESSION")]
    pub(super) filter: Option<Filter>,
}

impl Choice {
    /// The range in the log in `dir`, whose journal knows host times.
    pub(super) fn range(&self, dir: &Path) -> Result<Range, WalkError> {
        let place = |when: Option<When>| when.map(|when| when.place(dir)).transpose();
        Ok(Range {
            from: place(self.from)?,
            to: place(self.to)?,
        })
    }

    /// Whether a record in the range is wanted.
    pub(super) fn wants(&self, facts: &Facts<'_>) -> bool {
        let kind = self.kind.is_empty() || self.kind.iter().any(|name| name == facts.kind.name());
        kind && self
            .filter
            .as_ref()
            .is_none_or(|filter| filter.passes(facts))
    }
}

/// How it looks.
#[derive(Debug, Default, Args)]
pub(super) struct Look {
    /// One JSON object per line.
    #[arg(long)]
    pub(super) json: bool,
    /// When to use colours.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub(super) color: Colour,
    /// Do not start a pager, though standard output is a terminal.
    #[arg(long)]
    pub(super) no_pager: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Colour {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    Always,
    Never,
}

impl Look {
    pub(super) fn theme(&self) -> Theme {
        let wanted = match self.color {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => {
                let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                std::io::stdout().is_terminal() && !refused
            }
        };
        if wanted && !self.json {
            Theme::coloured()
        } else {
            Theme::plain()
        }
    }
}
