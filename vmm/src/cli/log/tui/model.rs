//! What is on the screen, and what a key makes of it: pure, keys in, wishes out.
//!
//! The list is one screen of lines. Whoever moves beyond it gets the next screen, which is a wish
//! ([`Wish`]) until it is [`Model::loaded`].

#![forbid(unsafe_code)]

use inspect::filter::Filter;
use inspect::kind::Kind;
use inspect::place::Place;
use inspect::stat::{Report, Timeline};

/// Longest text of a prompt, characters.
const PROMPT_CHARS_MAX: usize = 500;

/// What somebody pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Tab,
    Enter,
    Escape,
    Backspace,
    Letter(char),
    Leave,
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    On,
    Leave,
}

/// What is to be read from the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// A screen of records from this place on.
    From(Place),
    /// The screen that ends before this record.
    Before(u64),
    /// Everything about a record.
    Detail(u64),
}

/// A line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// The record, its kind and its guest time; none for bytes that could not be read.
    pub(super) record: Option<(u64, Kind, u64)>,
    pub(super) line: String,
}

impl Row {
    fn index(&self) -> Option<u64> {
        self.record.map(|(index, ..)| index)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Filter,
    Jump,
}

/// The state of the screen.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) timeline: Timeline,
    /// Index behind the last record.
    end: u64,
    pub(super) rows: Vec<Row>,
    pub(super) selected: usize,
    height: usize,
    pub(super) filter: Option<Filter>,
    pub(super) detail: String,
    pub(super) scroll: u16,
    /// Keys move in the record's pane.
    pub(super) in_detail: bool,
    pub(super) prompt: Option<(Question, String)>,
    pub(super) message: String,
    wish: Option<Wish>,
}

impl Model {
    pub(super) fn new(report: &Report, at: Option<Place>, filter: Option<Filter>) -> Self {
        Self {
            timeline: report.timeline(),
            end: report.last_index().map_or(0, |last| last.saturating_add(1)),
            rows: Vec::new(),
            selected: 0,
            height: 1,
            filter,
            detail: String::new(),
            scroll: 0,
            in_detail: false,
            prompt: None,
            message: String::new(),
            wish: Some(Wish::From(at.unwrap_or(Place::Index(0)))),
        }
    }

    /// The list has room for so many lines.
    pub(super) fn resize(&mut self, height: usize) {
        if height.max(1) != self.height {
            self.height = height.max(1);
            let first = self.rows.iter().find_map(Row::index);
            if let (None, Some(first)) = (self.wish, first) {
                self.wish = Some(Wish::From(Place::Index(first)));
            }
        }
    }

    /// What is to be read, and how many lines of it.
    pub(super) const fn take_wish(&mut self) -> Option<(Wish, usize)> {
        match self.wish.take() {
            Some(wish) => Some((wish, self.height)),
            None => None,
        }
    }

    /// A screen of lines was read; an empty one says that there is nothing there.
    pub(super) fn loaded(&mut self, wish: Wish, rows: Vec<Row>) {
        if rows.is_empty() {
            self.message = "no record there".to_owned();
            return;
        }
        self.selected = match wish {
            Wish::Before(_) => rows.len() - 1,
            _ => 0,
        };
        self.rows = rows;
        self.chosen();
    }

    /// A record was read at length.
    pub(super) fn detailed(&mut self, text: String) {
        self.detail = text;
        self.scroll = 0;
    }

    /// The record that is chosen: its index, kind and guest time.
    pub(super) fn current(&self) -> Option<(u64, Kind, u64)> {
        self.rows.get(self.selected)?.record
    }

    fn chosen(&mut self) {
        match self.current() {
            Some((index, ..)) => self.wish = Some(Wish::Detail(index)),
            None => self.detailed(String::new()),
        }
    }

    /// What a key does.
    pub(super) fn key(&mut self, key: Key) -> Next {
        self.message.clear();
        if key == Key::Leave {
            return Next::Leave;
        }
        if let Some((question, text)) = self.prompt.take() {
            self.type_key(question, text, key);
            return Next::On;
        }
        match key {
            Key::Letter('q') => return Next::Leave,
            Key::Letter('/') => {
                let text = self.filter.as_ref().map(ToString::to_string);
                self.prompt = Some((Question::Filter, text.unwrap_or_default()));
            }
            Key::Letter(':') => self.prompt = Some((Question::Jump, String::new())),
            Key::Tab => self.in_detail = !self.in_detail,
            Key::Escape => self.in_detail = false,
            _ if self.in_detail => self.scroll_key(key),
            _ => self.move_key(key),
        }
        Next::On
    }

    fn type_key(&mut self, question: Question, mut text: String, key: Key) {
        match key {
            Key::Escape => return,
            Key::Enter => return self.answered(question, text),
            Key::Backspace => drop(text.pop()),
            Key::Letter(letter) if text.chars().count() < PROMPT_CHARS_MAX => text.push(letter),
            _ => {}
        }
        self.prompt = Some((question, text));
    }

    fn answered(&mut self, question: Question, text: String) {
        let refused = match (question, text.trim()) {
            (Question::Filter, "") => {
                self.filter = None;
                None
            }
            (Question::Filter, text) => match text.parse() {
                Ok(filter) => {
                    self.filter = Some(filter);
                    None
                }
                Err(error) => Some(format!("{error}")),
            },
            (Question::Jump, text) => match text.parse::<Place>() {
                Ok(place) => {
                    self.wish = Some(Wish::From(place));
                    return;
                }
                Err(error) => Some(error.to_string()),
            },
        };
        match refused {
            Some(message) => {
                self.message = message;
                self.prompt = Some((question, text));
            }
            None => {
                let here = self.current().map_or(0, |(index, ..)| index);
                self.wish = Some(Wish::From(Place::Index(here)));
            }
        }
    }

    const fn scroll_key(&mut self, key: Key) {
        let page = 10;
        self.scroll = match key {
            Key::Up | Key::Letter('k') => self.scroll.saturating_sub(1),
            Key::Down | Key::Letter('j') => self.scroll.saturating_add(1),
            Key::PageUp => self.scroll.saturating_sub(page),
            Key::PageDown => self.scroll.saturating_add(page),
            Key::Home => 0,
            _ => self.scroll,
        };
    }

    fn move_key(&mut self, key: Key) {
        let (first, last) = (
            self.rows.iter().find_map(Row::index),
            self.rows.iter().rev().find_map(Row::index),
        );
        let next = last.map(|last| Wish::From(Place::Index(last.saturating_add(1))));
        match key {
            Key::Up | Key::Letter('k') if self.selected > 0 => {
                self.selected -= 1;
                self.chosen();
            }
            Key::Down | Key::Letter('j') if self.selected + 1 < self.rows.len() => {
                self.selected += 1;
                self.chosen();
            }
            Key::Up | Key::Letter('k') | Key::PageUp => self.wish = first.map(Wish::Before),
            Key::Down | Key::Letter('j') | Key::PageDown => self.wish = next,
            Key::Home | Key::Letter('g') => self.wish = Some(Wish::From(Place::Index(0))),
            Key::End | Key::Letter('G') => self.wish = Some(Wish::Before(self.end)),
            _ => {}
        }
    }
}
