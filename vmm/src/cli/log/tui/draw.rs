//! Draws the model.

#![forbid(unsafe_code)]

use super::model::{Model, Question};
use inspect::kind::Kind;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Paragraph, Sparkline};

/// Lines of the timeline, its frame included.
const TIMELINE_LINES: u16 = 5;
/// Of ten lines below the timeline, so many are the list's.
const LIST_TENTHS: u16 = 6;

/// Lines that the list has room for on a screen of `height` lines.
pub(super) fn list_rows(height: u16) -> usize {
    let [_, list, _, _] = areas(Rect::new(0, 0, 1, height));
    usize::from(list.height.saturating_sub(2))
}

fn areas(area: Rect) -> [Rect; 4] {
    let rest = area.height.saturating_sub(TIMELINE_LINES + 1);
    let list = rest * LIST_TENTHS / 10;
    Layout::vertical([
        Constraint::Length(TIMELINE_LINES),
        Constraint::Length(list),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area)
}

pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let [timeline, list, detail, status] = areas(frame.area());
    draw_timeline(frame, model, timeline);
    draw_list(frame, model, list);
    let title = if model.in_detail {
        " record (Tab: back) "
    } else {
        " record "
    };
    let block = Block::default().borders(Borders::ALL).title(title);
    let text = Paragraph::new(model.detail.as_str()).block(block);
    frame.render_widget(text.scroll((model.scroll, 0)), detail);
    frame.render_widget(status_line(model), status);
}

fn draw_timeline(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let line = &model.timeline;
    let width = line.column_us as f64 / 1e6;
    let title = format!(" records over guest time, {width} s a column ");
    let block = Block::default().borders(Borders::ALL).title(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [bars, mark] = Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(inner);
    frame.render_widget(Sparkline::default().data(&line.records), bars);
    if let Some((_, _, time_us)) = model.current() {
        let column = time_us.saturating_sub(line.from_us) / line.column_us.max(1);
        let column = usize::try_from(column)
            .unwrap_or(usize::MAX)
            .min(line.records.len());
        let text = format!("{:column$}▲ {:.6} s", "", time_us as f64 / 1e6);
        frame.render_widget(Paragraph::new(text), mark);
    }
}

fn draw_list(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let title = match &model.filter {
        None => " records ".to_owned(),
        Some(filter) => format!(" records: {filter} "),
    };
    let lines = model.rows.iter().enumerate().map(|(number, row)| {
        let style = row
            .record
            .map_or_else(|| Style::new().fg(Color::Red), |(_, kind, _)| style(kind));
        let chosen = number == model.selected;
        Line::styled(
            row.line.as_str(),
            if chosen { style.reversed() } else { style },
        )
    });
    let block = Block::default().borders(Borders::ALL).title(title);
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block), area);
}

const fn style(kind: Kind) -> Style {
    Style::new().fg(match kind {
        Kind::Packet | Kind::Console => Color::Cyan,
        Kind::Output => Color::Green,
        Kind::Start | Kind::Control | Kind::End => Color::Yellow,
        Kind::Entropy | Kind::State => Color::Magenta,
        Kind::Timer | Kind::Mark | Kind::Progress => Color::Reset,
    })
}

fn status_line(model: &Model) -> Paragraph<'_> {
    let text = match &model.prompt {
        Some((Question::Filter, text)) => format!("filter: {text}_  {}", model.message),
        Some((Question::Jump, text)) => format!("jump to: {text}_  {}", model.message),
        None if model.message.is_empty() => {
            "arrows PgUp PgDn Home End  / filter  : jump  Tab record  q leave".to_owned()
        }
        None => model.message.clone(),
    };
    Paragraph::new(text)
}
