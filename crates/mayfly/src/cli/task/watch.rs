//! `mayfly task watch`: tasks as they change.
//!
//! On a terminal a table that is drawn anew in its place; for a pipe one line for each change, and with
//! `--output json` one object a line. The broker sends what there is first and then what changes.

use std::{collections::BTreeMap, io::Write as _, time::Duration};

use mayfly_proto::mayfly::v1::{self as wire, watch_response::What};
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use super::{list, view};
use crate::{
    cli::{CliError, Context, output},
    client::{Client, ClientError},
    clock,
};

/// How often the table is drawn at the most; ages go on in it, too.
const FRAME: Duration = Duration::from_millis(250);
/// How long a task that has ended is still shown.
const AFTERGLOW_MS: u64 = 5000;
/// The height of a terminal that does not tell.
const ROWS: u16 = 24;

pub(super) async fn watch(
    context: &Context,
    client: &Client,
    args: list::FilterArgs,
) -> Result<(), CliError> {
    let changes = client.watch(args.filter()).await?;
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
    if terminal && !context.output.is_data() {
        return live(changes).await;
    }
    each(context, changes).await
}

/// One line for each change.
async fn each(
    context: &Context,
    mut changes: tonic::Streaming<wire::WatchResponse>,
) -> Result<(), CliError> {
    while let Some(change) = changes.message().await.map_err(ClientError::of)? {
        if context.output.is_data() {
            output::event(context.output, &value(&change));
        } else if let Some(What::Task(task)) = &change.what {
            let what = if change.change.is_empty() { "is" } else { &change.change };
            let (at, state) = (output::instant(clock::now().0), view::state(task));
            let words = format!("{}  {}", task.profile, task.intent);
            let line = format!("{at}  {what:<11}  {}  {state:<11}  {words}", task.task);
            output::line(&output::shortened(line.trim_end(), usize::from(output::WIDTH)));
        }
        if output::is_lost() {
            return Ok(());
        }
    }
    Err(CliError::Other("the broker has ended the watch".to_owned()))
}

fn value(change: &wire::WatchResponse) -> Value {
    match &change.what {
        Some(What::Task(task)) => json!({
            "change": output::maybe(&change.change),
            "position": change.position,
            "task": view::value(task),
        }),
        Some(What::Synced(_)) => json!({ "change": "synced", "position": change.position }),
        None => Value::Null,
    }
}

/// A table in its place.
async fn live(mut changes: tonic::Streaming<wire::WatchResponse>) -> Result<(), CliError> {
    let mut screen = Screen::default();
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            change = changes.message() => {
                let Some(change) = change.map_err(ClientError::of)? else {
                    return Err(CliError::Other("the broker has ended the watch".to_owned()));
                };
                screen.hear(change);
            }
            _ = frames.tick() => screen.draw().map_err(CliError::io("cannot draw"))?,
        }
    }
}

#[derive(Debug, Default)]
struct Screen {
    /// By when it began, so that a row stays where it is.
    tasks: BTreeMap<(u64, String), wire::TaskView>,
    synced: bool,
    /// The lines that are on the screen.
    drawn: Vec<String>,
}

impl Screen {
    fn hear(&mut self, change: wire::WatchResponse) {
        match change.what {
            Some(What::Task(task)) => {
                self.tasks.insert((task.begun_at_ms, task.task.clone()), task);
            }
            Some(What::Synced(_)) => self.synced = true,
            None => {}
        }
    }

    fn draw(&mut self) -> std::io::Result<()> {
        if !self.synced {
            return Ok(());
        }
        let lines = self.lines(clock::now().0, height(), output::paints());
        if lines == self.drawn {
            return Ok(());
        }
        // Cut and not wrapped by a narrow terminal, or what is drawn next would begin in the wrong line.
        let mut text = "\u{1b}[?7l".to_owned();
        if !self.drawn.is_empty() {
            text = format!("{text}\u{1b}[{}A\r", self.drawn.len());
        }
        for line in &lines {
            // Cleared behind and not before, or it would flicker.
            text.push_str(line);
            text.push_str("\u{1b}[K\n");
        }
        text.push_str("\u{1b}[J\u{1b}[?7h");
        self.drawn = lines;
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// What is to be seen at `now`, the newest tasks if there is not room for all.
    fn lines(&mut self, now: u64, height: usize, paint: bool) -> Vec<String> {
        self.tasks.retain(|_, task| task.ended_at_ms == 0 || task.ended_at_ms + AFTERGLOW_MS > now);
        let live = self.tasks.values().filter(|task| task.ended_at_ms == 0).count();
        let credentials: usize = self.tasks.values().map(|task| view::live(task, now)).sum();
        // A summary, the head, and the line where the cursor stands.
        let room = height.saturating_sub(3).max(1);
        let rows: Vec<_> = self.tasks.values().rev().take(room).collect();
        let rows: Vec<_> = rows.into_iter().rev().map(|task| list::row(task, now)).collect();
        let mut table = output::lay_out(&list::HEAD, &rows, paint);
        table.truncate(room + 1);
        let hidden = self.tasks.len().saturating_sub(rows.len());
        let above = if hidden == 0 { String::new() } else { format!(", {hidden} older not shown") };
        let (tasks, credentials) = (
            output::count(live as u64, "live task"),
            output::count(credentials as u64, "credential"),
        );
        table.push(format!("{tasks}, {credentials}{above}"));
        table
    }
}

fn height() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    usize::from(size.map_or(ROWS, |size| if size.ws_row == 0 { ROWS } else { size.ws_row }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_task_is_seen_for_a_moment_and_a_crowd_leaves_out_the_oldest() {
        let mut screen = Screen::default();
        let tell = |screen: &mut Screen, n: u64, ended_at_ms: u64| {
            let (state, cause) =
                if ended_at_ms == 0 { ("active", "") } else { ("ended", "exited") };
            let task = wire::TaskView {
                task: format!("{n:032x}"),
                state: state.to_owned(),
                cause: cause.to_owned(),
                begun_at_ms: n,
                ended_at_ms,
                ..wire::TaskView::default()
            };
            let what = Some(What::Task(task));
            screen.hear(wire::WatchResponse { what, ..wire::WatchResponse::default() });
        };
        (1..=30).for_each(|n| tell(&mut screen, n, 0));
        let lines = screen.lines(1000, 10, false);
        assert_eq!(lines.len(), 9, "{lines:#?}");
        assert!(lines[8].starts_with("30 live tasks") && lines[8].ends_with("23 older not shown"));
        (1..=29).for_each(|n| tell(&mut screen, n, 1000));
        assert!(screen.lines(1500, 40, false)[1].contains("exited"));
        assert_eq!(screen.lines(1000 + AFTERGLOW_MS, 40, false).len(), 3);
    }
}
