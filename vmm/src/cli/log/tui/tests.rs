//! Keys on a small log, and what is then on the screen.

use super::draw::{draw, list_rows};
use super::model::{Key, Model, Next, Wish};
use super::pages::serve;
use crate::cli::log::tests::log;
use inspect::place::Place;
use inspect::stat::gather;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::path::Path;

const HEIGHT: u16 = 26;

struct Screen<'a> {
    model: Model,
    dir: &'a Path,
    terminal: Terminal<TestBackend>,
}

impl<'a> Screen<'a> {
    fn open(dir: &'a Path, at: Option<Place>, filter: Option<&str>) -> Self {
        let (report, _) = gather(dir).unwrap();
        let filter = filter.map(|text| text.parse().unwrap());
        let mut screen = Self {
            model: Model::new(&report, at, filter),
            dir,
            terminal: Terminal::new(TestBackend::new(90, HEIGHT)).unwrap(),
        };
        screen.model.resize(list_rows(HEIGHT));
        serve(&mut screen.model, dir).unwrap();
        screen
    }

    fn press(&mut self, keys: &[Key]) {
        for key in keys {
            assert_eq!(self.model.key(*key), Next::On);
            serve(&mut self.model, self.dir).unwrap();
        }
    }

    fn type_in(&mut self, text: &str) {
        let keys: Vec<Key> = text.chars().map(Key::Letter).collect();
        self.press(&keys);
    }

    fn lines(&mut self) -> Vec<String> {
        self.terminal
            .draw(|frame| draw(frame, &self.model))
            .unwrap();
        let buffer = self.terminal.backend().buffer();
        let rows = buffer.content().chunks(90);
        rows.map(|row| row.iter().map(|cell| cell.symbol()).collect())
            .collect()
    }

    fn indices(&self) -> Vec<u64> {
        self.model
            .rows
            .iter()
            .filter_map(|row| Some(row.record?.0))
            .collect()
    }

    fn current(&self) -> u64 {
        self.model.current().unwrap().0
    }
}

/// Records 0 to 39 are timers, 40 is console input, 41 the end.
#[test]
fn the_screen_has_timeline_records_and_the_chosen_one_at_length() {
    let log = log();
    let mut screen = Screen::open(log.path(), Some(Place::Index(40)), None);
    let text = screen.lines().join("\n");
    for part in [
        "records over guest time",
        "      40        400 beef     0.000000 console  6 bytes \"ls -l\\n\"",
        "record 40 console",
        "00000000  6c 73 20 2d 6c 0a",
        "q leave",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}

#[test]
fn moving_off_the_screen_brings_the_next_and_the_last_one() {
    let log = log();
    let mut screen = Screen::open(log.path(), None, None);
    let rows = list_rows(HEIGHT) as u64;
    assert_eq!(screen.indices(), (0..rows).collect::<Vec<_>>());
    screen.press(&[Key::Down, Key::Down]);
    assert_eq!(screen.current(), 2);
    screen.press(&[Key::PageDown]);
    assert_eq!((screen.current(), screen.indices()[0]), (rows, rows));
    screen.press(&[Key::Up]);
    assert_eq!(screen.current(), rows - 1);
    assert_eq!(screen.indices(), (0..rows).collect::<Vec<_>>());
    screen.press(&[Key::End]);
    assert_eq!(screen.current(), 41);
    screen.press(&[Key::Down]);
    assert_eq!(screen.current(), 41);
    assert_eq!(screen.model.message, "no record there");
    screen.press(&[Key::Home]);
    assert_eq!(screen.current(), 0);
}

#[test]
fn a_filter_and_a_jump_are_typed_and_a_wrong_one_is_said() {
    let log = log();
    let mut screen = Screen::open(log.path(), None, None);
    screen.type_in("/not timer");
    assert!(screen.lines().join("\n").contains("filter: not timer_"));
    screen.press(&[Key::Enter]);
    assert_eq!(screen.indices(), [40, 41]);
    screen.press(&[Key::End, Key::Up]);
    assert_eq!(screen.current(), 40);
    screen.type_in("/ and (");
    screen.press(&[Key::Enter]);
    let text = screen.lines().join("\n");
    assert!(text.contains("column"), "{text}");
    assert_eq!(screen.indices(), [40, 41], "the old filter stays");
    screen.press(&[Key::Escape]);
    screen.press(&[Key::Letter('/')]);
    screen.press(&[Key::Backspace; 20]);
    screen.press(&[Key::Enter]);
    screen.type_in(":exit:75");
    screen.press(&[Key::Enter]);
    assert_eq!(screen.current(), 8);
    screen.type_in(":nowhere");
    screen.press(&[Key::Enter]);
    assert!(
        screen.model.message.contains("no place"),
        "{}",
        screen.model.message
    );
}

#[test]
fn the_pane_scrolls_and_keys_leave() {
    let log = log();
    let mut screen = Screen::open(log.path(), Some(Place::Index(40)), None);
    screen.press(&[Key::Tab, Key::Down, Key::PageDown, Key::Up]);
    assert_eq!((screen.model.scroll, screen.current()), (10, 40));
    screen.press(&[Key::Escape, Key::Down]);
    assert_eq!((screen.model.scroll, screen.current()), (0, 41));
    assert_eq!(screen.model.key(Key::Letter('q')), Next::Leave);
    screen.type_in("/q");
    assert_eq!(screen.model.key(Key::Leave), Next::Leave);
}

#[test]
fn a_model_asks_for_one_screen_at_a_time() {
    let log = log();
    let (report, _) = gather(log.path()).unwrap();
    let mut model = Model::new(&report, None, None);
    model.resize(7);
    assert_eq!(model.take_wish(), Some((Wish::From(Place::Index(0)), 7)));
    assert_eq!(model.take_wish(), None);
    model.key(Key::End);
    assert_eq!(model.take_wish(), Some((Wish::Before(42), 7)));
}
