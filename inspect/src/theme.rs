//! Colours of text for terminals; none elsewhere.

#![forbid(unsafe_code)]

use crate::kind::Kind;
use anstyle::{AnsiColor, Style};
use std::fmt;
use std::io::Write as _;

/// Whether, and how, text is coloured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Theme {
    on: bool,
}

impl Theme {
    /// No colours.
    #[must_use]
    pub const fn plain() -> Self {
        Self { on: false }
    }

    /// Colours.
    #[must_use]
    pub const fn coloured() -> Self {
        Self { on: true }
    }

    /// `text` in the colour of `kind`.
    pub const fn kind<T: fmt::Display>(self, kind: Kind, text: T) -> Painted<T> {
        let colour = match kind {
            Kind::Packet | Kind::Console => AnsiColor::Cyan,
            Kind::Output => AnsiColor::Green,
            Kind::Start | Kind::Control | Kind::End => AnsiColor::Yellow,
            Kind::Entropy | Kind::State => AnsiColor::Magenta,
            Kind::Timer | Kind::Mark | Kind::Progress => AnsiColor::BrightBlack,
        };
        self.paint(
            Style::new().fg_color(Some(anstyle::Color::Ansi(colour))),
            text,
        )
    }

    /// Appends `text` in the colour of `kind` to `out`.
    pub(crate) fn push_kind(self, out: &mut Vec<u8>, kind: Kind, text: &str) {
        if self.on {
            // A Vec takes everything.
            let _ = write!(out, "{}", self.kind(kind, text));
        } else {
            out.extend_from_slice(text.as_bytes());
        }
    }

    /// `text` as a warning.
    pub const fn alarm<T: fmt::Display>(self, text: T) -> Painted<T> {
        let red = Some(anstyle::Color::Ansi(AnsiColor::Red));
        self.paint(Style::new().fg_color(red).bold(), text)
    }

    /// `text` as a heading.
    pub const fn heading<T: fmt::Display>(self, text: T) -> Painted<T> {
        self.paint(Style::new().bold(), text)
    }

    const fn paint<T: fmt::Display>(self, style: Style, text: T) -> Painted<T> {
        let style = if self.on { style } else { Style::new() };
        Painted { style, text }
    }
}

/// Text with its colour.
#[derive(Debug, Clone, Copy)]
pub struct Painted<T> {
    style: Style,
    text: T,
}

impl<T: fmt::Display> fmt::Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.style.render())?;
        self.text.fmt(f)?;
        write!(f, "{}", self.style.render_reset())
    }
}
