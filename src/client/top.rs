//! `troupe top`: the live view on a terminal. Asked twice a second; records come as they happen.
//!
//! What is drawn is a pure function of [`Seen`]. When the node does not answer, the title says since when, and all else is
//! drawn dim: nothing old is shown as new.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant, SystemTime};

use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::{Backend, TestBackend};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Table};
use serde_json::{Map, Value};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::sleep;
use troupe_actors::admin::{ActorsView, MembersView, StatusView};

use super::api::{Api, Failure};
use super::say::{Screen, printable};
use super::{read, show};
use crate::logging;

/// Looks at the cluster this often…
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// …and each may take this long, before contact counts as lost.
const PATIENCE: Duration = Duration::from_secs(3);
/// Keys are looked for this often.
const KEYS_EVERY: Duration = Duration::from_millis(50);
/// Records kept: more than any terminal is high.
const RECORDS: usize = 200;

/// What is known.
#[derive(Default)]
struct Seen {
    status: Option<StatusView>,
    members: Option<MembersView>,
    actors: Option<ActorsView>,
    records: VecDeque<String>,
    /// Since how long nobody answers, and why.
    lost: Option<(Instant, String)>,
}

/// `troupe top`.
pub(super) async fn top(api: &Api, screen: &Screen, once: bool) -> Result<(), Failure> {
    if screen.json {
        return Err(Failure::Usage(
            "top draws; --json is for `troupe status` and `members`".to_owned(),
        ));
    }
    let mut seen = Seen::default();
    look(api, &mut seen).await?;
    if once || !std::io::stdout().is_terminal() {
        return screen.line(&drawn(&seen, 120, 30));
    }
    let (keys, records) = (keys(), records(api));
    // Restores the terminal on a panic, too.
    let mut terminal = ratatui::init();
    let outcome = run(api, &mut terminal, &mut seen, keys, records).await;
    ratatui::restore();
    outcome
}

async fn run<B: Backend>(
    api: &Api,
    terminal: &mut Terminal<B>,
    seen: &mut Seen,
    mut keys: Receiver<()>,
    mut records: Receiver<String>,
) -> Result<(), Failure> {
    loop {
        let drawn = terminal.draw(|frame| draw(frame, seen, Instant::now(), SystemTime::now()));
        // Nobody looks any more.
        drawn.map_err(|_| Failure::Closed)?;
        tokio::select! {
            biased;
            _ = keys.recv() => return Ok(()),
            Some(record) = records.recv() => {
                seen.keep(record);
                while let Ok(more) = records.try_recv() {
                    seen.keep(more);
                }
            }
            () = sleep(LOOK_EVERY) => {}
        }
        match look(api, seen).await {
            Ok(()) => seen.lost = None,
            Err(failure) => {
                let why = failure.words().unwrap_or_default();
                let since = seen.lost.as_ref().map_or_else(Instant::now, |lost| lost.0);
                seen.lost = Some((since, why));
            }
        }
    }
}

impl Seen {
    fn keep(&mut self, record: String) {
        self.records.push_front(record);
        self.records.truncate(RECORDS);
    }
}

async fn look(api: &Api, seen: &mut Seen) -> Result<(), Failure> {
    let (status, members, actors) = tokio::join!(
        api.get_within("/v1/status", PATIENCE),
        api.get_within("/v1/members", PATIENCE),
        api.get_within("/v1/actors", 2 * PATIENCE),
    );
    seen.status = Some(read(status?)?);
    seen.members = Some(read(members?)?);
    seen.actors = Some(read(actors?)?);
    Ok(())
}

/// Says once that q, Esc or Ctrl-C was pressed. A thread, since reading keys blocks.
fn keys() -> Receiver<()> {
    let (tell, told) = channel(1);
    std::thread::spawn(move || {
        while !tell.is_closed() {
            let pressed = match event::poll(KEYS_EVERY) {
                Ok(true) => event::read().is_ok_and(|event| leaves(&event)),
                Ok(false) => false,
                // No keyboard: nothing will ever be pressed, and the terminal is gone.
                Err(_) => true,
            };
            if pressed && tell.blocking_send(()).is_err() {
                return;
            }
        }
    });
    told
}

fn leaves(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
        || control && key.code == KeyCode::Char('c')
}

/// Named records of all nodes as they come; opened again for as long as somebody listens.
fn records(api: &Api) -> Receiver<String> {
    let (tell, told) = channel(RECORDS);
    let api = api.clone();
    tokio::spawn(async move {
        let mut limit = "30";
        while !tell.is_closed() {
            let path = format!("/v1/events?node=*&limit={limit}");
            if let Ok(mut lines) = api.lines(&path).await {
                while let Some(Value::Object(fields)) = lines.next().await {
                    if tell.send(line(fields)).await.is_err() {
                        return;
                    }
                }
            }
            // What is kept was shown already.
            limit = "0";
            sleep(LOOK_EVERY).await;
        }
    });
    told
}

fn line(mut fields: Map<String, Value>) -> String {
    for key in ["seq", "hlc", "notice"] {
        fields.remove(key);
    }
    printable(&logging::text(&fields, false))
}

fn draw(frame: &mut Frame<'_>, seen: &Seen, now: Instant, wall: SystemTime) {
    let members = seen.members.as_ref().map_or(0, |v| v.members.len());
    let height = u16::try_from(members)
        .unwrap_or(u16::MAX)
        .min(frame.area().height / 3);
    let troubled = troubled(seen);
    let lines = u16::try_from(troubled.len()).unwrap_or(u16::MAX).min(6);
    let [title, nodes, actors, records] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(height + 3),
        Constraint::Length(lines + 2),
        Constraint::Min(3),
    ])
    .areas(frame.area());
    let dim = match seen.lost {
        Some(_) => Style::new().add_modifier(Modifier::DIM),
        None => Style::new(),
    };
    frame.render_widget(
        Paragraph::new(headline(seen, now)).block(Block::bordered().title("troupe top")),
        title,
    );
    frame.render_widget(nodes_table(seen, wall).style(dim), nodes);
    let text: Vec<_> = troubled.into_iter().map(Line::from).collect();
    frame.render_widget(
        Paragraph::new(text)
            .style(dim)
            .block(Block::bordered().title("actors that failed")),
        actors,
    );
    let text: Vec<_> = seen
        .records
        .iter()
        .map(|r| Line::from(r.as_str()))
        .collect();
    frame.render_widget(
        Paragraph::new(text)
            .style(dim)
            .block(Block::bordered().title("events, newest first")),
        records,
    );
}

fn headline(seen: &Seen, now: Instant) -> Line<'static> {
    if let Some((since, why)) = &seen.lost {
        let seconds = now.saturating_duration_since(*since).as_secs();
        return Line::from(format!(
            "NO CONTACT for {seconds} s, what is shown is older: {why}"
        ))
        .red()
        .bold();
    }
    let Some(status) = &seen.status else {
        return Line::from("asking …");
    };
    let master = status.master.as_ref();
    let counts = status.tasks.iter().flatten();
    let counts: Vec<_> = counts.map(|(state, n)| format!("{state} {n}")).collect();
    let registry = match &status.registry {
        Some(registry) if registry.up => "registry up",
        Some(_) => "REGISTRY AWAY",
        None => "registry ?",
    };
    Line::from(format!(
        "{} · master {} · epoch {} · {registry} · tasks: {}",
        status.cluster,
        master.map_or("NOBODY", |m| m.name.as_str()),
        status.epoch,
        if counts.is_empty() {
            "none".to_owned()
        } else {
            counts.join(", ")
        }
    ))
}

fn nodes_table(seen: &Seen, wall: SystemTime) -> Table<'static> {
    let members = seen.members.iter().flat_map(|v| &v.members);
    let rows = members.map(|m| {
        let colour = match m.state.as_str() {
            "alive" => Color::Green,
            "cut-off" => Color::Red,
            _ => Color::Yellow,
        };
        let running = m.running.map_or_else(|| "?".to_owned(), |n| n.to_string());
        let rtt = m
            .rtt_us
            .map_or_else(|| "-".to_owned(), |us| format!("{us} µs"));
        let role = if m.master { "master" } else { "" };
        let unheard = m.unheard.join(" ");
        let cells = [
            m.name.clone(),
            m.state.clone(),
            role.to_owned(),
            format!("{running}/{}", m.capacity),
            rtt,
            format!("{} ms", m.lag_us / 1000),
            show::ago(&m.since, wall),
            m.address.clone(),
            unheard,
        ];
        Row::new(cells).style(Style::new().fg(colour))
    });
    let widths = [20, 9, 7, 9, 10, 8, 9, 22, 20].map(Constraint::Max);
    let head = [
        "NODE",
        "STATE",
        "ROLE",
        "RUNNING",
        "RTT",
        "LAG",
        "IN STATE",
        "ADDRESS",
        "DOES NOT HEAR",
    ];
    Table::new(rows, widths)
        .header(Row::new(head).bold())
        .block(Block::bordered().title("nodes"))
}

/// Actors that do not run, or were restarted.
fn troubled(seen: &Seen) -> Vec<String> {
    let nodes = seen.actors.iter().flat_map(|v| &v.nodes);
    let mut lines = Vec::new();
    for node in nodes {
        if let Some(error) = &node.error {
            lines.push(printable(&format!("{}: {error}", node.node)));
        }
        for a in node
            .actors
            .iter()
            .filter(|a| a.restarts > 0 || a.state != "running")
        {
            let last = a
                .last_failure
                .as_deref()
                .unwrap_or("")
                .lines()
                .next()
                .unwrap_or("");
            lines.push(printable(&format!(
                "{}: {} {}, {} restarts {last}",
                node.node, a.name, a.state, a.restarts
            )));
        }
    }
    lines
}

/// The picture as text.
fn drawn(seen: &Seen, width: u16, height: u16) -> String {
    // Drawing on memory does not fail.
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height)) else {
        return String::new();
    };
    let (now, wall) = (Instant::now(), SystemTime::now());
    let Ok(frame) = terminal.draw(|frame| draw(frame, seen, now, wall)) else {
        return String::new();
    };
    let cells = frame.buffer.content().chunks(usize::from(width));
    let lines = cells.map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>());
    lines
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn seen() -> Seen {
        let members = json!({"revision": 1, "members": [{"name": "odd-cat", "id": "00000000000000000000000000000001", "address": "10.0.0.1:22222", "admin": "",
            "incarnation": 1, "state": "cut-off", "master": true, "weight": 0, "eligible": true, "jobs": [], "tags": {}, "capacity": 4, "running": 3,
            "version": "1", "host": "h", "pid": 1, "since": "2026-01-01T00:00:00.000Z", "started_at": "2026-01-01T00:00:00.000Z", "session": true,
            "rtt_us": 120, "lag_us": 0, "registry": true, "unheard": ["n9"]}]});
        let actors = json!({"nodes": [{"node": "odd-cat", "actors": [
            {"name": "worker", "state": "hung", "restarts": 2, "last_failure": "panicked\nat x", "mailbox": 0, "handled": 1, "uptime_s": 1.0}]}]});
        Seen {
            members: serde_json::from_value(members).unwrap(),
            actors: serde_json::from_value(actors).unwrap(),
            ..Seen::default()
        }
    }

    #[test]
    fn nodes_and_troubled_actors_are_on_the_screen_at_any_size() {
        let text = drawn(&seen(), 120, 30);
        for words in [
            "odd-cat",
            "cut-off",
            "3/4",
            "120 µs",
            "n9",
            "worker hung, 2 restarts panicked",
        ] {
            assert!(text.contains(words), "{words}:\n{text}");
        }
        for (width, height) in [(1, 1), (20, 5), (80, 24)] {
            drawn(&seen(), width, height);
        }
    }

    #[test]
    fn lost_contact_is_said_first() {
        let mut seen = seen();
        seen.lost = Some((Instant::now(), "nobody answers".to_owned()));
        assert!(
            drawn(&seen, 100, 20)
                .contains("NO CONTACT for 0 s, what is shown is older: nobody answers")
        );
    }
}
