//! The loop of the live view, which queries the controller once a second, draws the screen, and reads keys.

use std::{collections::HashMap, time::Duration};

use balancer_api::{
    client::{Client, ClientError},
    statistics::StatsView,
};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};

use super::screen::{self, Screen};
use crate::Failure;

const REDRAW: Duration = Duration::from_secs(1);
/// The interval at which the view polls for keys.
const KEYS: Duration = Duration::from_millis(50);
/// The time without an answer of the controller after which the view reports the delay.
const LATE: Duration = Duration::from_secs(3);

/// Shows the live view until q, Ctrl-C or SIGTERM. The function always restores the terminal.
pub(super) async fn run(client: &Client, service: Option<&str>) -> Result<(), Failure> {
    // The first request precedes the start of the view, so that an error appears on the normal terminal.
    let first = client.stats(service).await?;
    // The call also installs a hook that restores the terminal after a panic.
    let mut terminal = ratatui::try_init()?;
    let shown = show(&mut terminal, client, service, first).await;
    ratatui::try_restore()?;
    shown
}

async fn show(
    terminal: &mut ratatui::DefaultTerminal,
    client: &Client,
    service: Option<&str>,
    first: Vec<StatsView>,
) -> Result<(), Failure> {
    let mut rates = Rates::default();
    let mut services = first;
    let mut trouble: Option<ClientError> = None;
    let mut selected = 0;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        rates.keep(&services);
        selected = selected.min(services.len().saturating_sub(1));
        let asked = Instant::now() + REDRAW;
        // The view handles keys while it waits for the controller's answer.
        let answer = async {
            sleep_until(asked).await;
            client.stats(service).await
        };
        tokio::pin!(answer);
        let answer = loop {
            let late = Some(asked.elapsed()).filter(|&late| late > LATE);
            let late = late.map(|late| format!("no answer from the controller for {} s", late.as_secs()));
            terminal.draw(|frame| {
                let view = Screen {
                    stats: services.get(selected),
                    place: (selected, services.len()),
                    rates: services.get(selected).map(|stats| rates.of(&stats.service)).unwrap_or_default(),
                    trouble: late.or_else(|| trouble.as_ref().map(ToString::to_string)),
                };
                screen::draw(frame, &view);
            })?;
            match key()? {
                Some(Key::Quit) => return Ok(()),
                Some(Key::Next) => selected = (selected + 1) % services.len().max(1),
                Some(Key::Other) | None => {}
            }
            tokio::select! {
                answer = &mut answer => break answer,
                () = sleep(KEYS) => {}
                _ = terminate.recv() => return Ok(()),
            }
        };
        match answer {
            Ok(now) => (services, trouble) = (now, None),
            Err(error) => trouble = Some(error),
        }
    }
}

enum Key {
    Quit,
    Next,
    Other,
}

/// Returns the key that was pressed since the last call, if any.
fn key() -> std::io::Result<Option<Key>> {
    if !event::poll(Duration::ZERO)? {
        return Ok(None);
    }
    let Event::Key(key) = event::read()? else { return Ok(Some(Key::Other)) };
    if key.kind != KeyEventKind::Press {
        return Ok(Some(Key::Other));
    }
    let interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
    Ok(Some(if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
        Key::Quit
    } else if matches!(key.code, KeyCode::Tab | KeyCode::Char('n')) {
        Key::Next
    } else {
        Key::Other
    }))
}

/// The number of new connections in each of the last seconds, by service.
#[derive(Debug, Default)]
struct Rates(HashMap<String, (u64, Vec<u64>)>);

impl Rates {
    fn keep(&mut self, services: &[StatsView]) {
        for stats in services {
            let now = stats.periods.iter().find(|period| period.period == "start").map_or(0, |start| start.connections);
            let (last, rates) = self.0.entry(stats.service.clone()).or_insert((now, Vec::new()));
            rates.push(now.saturating_sub(*last));
            *last = now;
            if rates.len() > screen::SECONDS {
                rates.remove(0);
            }
        }
    }

    fn of(&self, service: &str) -> Vec<u64> {
        self.0.get(service).map(|(_, rates)| rates.clone()).unwrap_or_default()
    }
}
