//! What systemd says of its units, over D-Bus.
//!
//! A unit's end is systemd's to tell: it knows of units without processes, of runs that follow one
//! another in the same cgroup, and of exit codes. But a bus can be missing, lost or slow, and an end
//! must not be lost with it. So this is one voice of two: while it speaks it decides, and when it is
//! silent the unit's cgroup does (see `watch.rs`).
//!
//! Signals are only news. What they say is never believed; whoever hears one asks again, so a signal
//! that was lost, doubled or late can do no harm.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mayfly_core::dwelling::Unit;
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_stream::StreamExt as _;
use zbus::{
    Connection, MatchRule, Message, MessageStream,
    connection::Builder,
    fdo::DBusProxy,
    message::Type,
    names::ErrorName,
    zvariant::{OwnedObjectPath, OwnedValue},
};

use crate::process::Exit;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const UNITS_PATH: &str = "/org/freedesktop/systemd1/unit";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// Where systemd writes the invocation of every unit that runs, as symbolic links.
const INVOCATIONS: &str = "/run/systemd/units";
/// How long an answer is waited for. Whoever is slower is silent.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a connection may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// The pause after a bus was lost.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);

/// What systemd says of one run of a unit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Word {
    /// It goes on.
    Runs,
    /// It is over.
    Over(Option<Exit>),
    /// Nothing was said.
    Silent,
}

/// systemd as it is reached over a bus. Cheap to share.
#[derive(Clone)]
pub struct Systemd(Arc<Shared>);

struct Shared {
    address: Option<String>,
    link: watch::Sender<Link>,
    wanted: Notify,
    news: Mutex<BTreeMap<String, watch::Sender<()>>>,
}

#[derive(Clone)]
enum Link {
    /// Nobody has needed it yet, or the first attempt goes on.
    Untried,
    Up(Connection),
    Down,
}

impl fmt::Debug for Systemd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Systemd").field("address", &self.0.address).finish_non_exhaustive()
    }
}

impl Systemd {
    /// The systemd behind the bus at `address`, or behind the system bus. Nothing is connected until
    /// somebody asks, and only while [`Self::run`] does.
    #[must_use]
    pub fn new(address: Option<String>) -> Self {
        let (link, _) = watch::channel(Link::Untried);
        let (wanted, news) = (Notify::new(), Mutex::default());
        Self(Arc::new(Shared { address, link, wanted, news }))
    }

    /// Keeps the connection and hears the news, for ever.
    pub async fn run(self) {
        self.0.wanted.notified().await;
        loop {
            let why = match self.listen_to_bus().await {
                Ok(()) => "the bus or systemd has left".to_owned(),
                Err(error) => error.to_string(),
            };
            if matches!(&*self.0.link.borrow(), Link::Up(_)) {
                tracing::warn!(why, "systemd is silent; cgroups decide until it speaks again");
            }
            self.0.link.send_replace(Link::Down);
            self.tell_all();
            sleep(RECONNECT_AFTER).await;
        }
    }

    /// What systemd calls the current run of the unit `name`, `None` where it does not say.
    pub async fn invocation(&self, name: &str) -> Option<[u8; 16]> {
        // The file needs no bus, and only systemd may write there.
        if let Some(found) = written_invocation(name) {
            return Some(found);
        }
        let unit = self.properties(&object_path(name), UNIT).await.ok()??;
        invocation(&unit)
    }

    /// What systemd says of this run.
    pub async fn ask(&self, unit: &Unit) -> Word {
        let path = object_path(&unit.name);
        let now = match self.properties(&path, UNIT).await {
            Ok(Some(now)) => now,
            Ok(None) => return Word::Over(None),
            Err(Silence) => return Word::Silent,
        };
        if invocation(&now) != Some(unit.invocation) {
            return Word::Over(None);
        }
        // A state that is not known is a state in which nothing runs.
        let state = text(&now, "ActiveState");
        let waits = text(&now, "SubState").is_some_and(|sub| sub.starts_with("auto-restart"));
        let runs = ["active", "activating", "reloading", "refreshing", "deactivating"];
        if !waits && state.is_some_and(|state| runs.contains(&state)) {
            return Word::Runs;
        }
        let service = self.properties(&path, SERVICE).await;
        Word::Over(service.ok().flatten().as_ref().and_then(exit))
    }

    /// News of the unit `name`: told whenever it is worth asking again.
    pub fn news(&self, name: &str) -> News {
        self.0.wanted.notify_one();
        let path = object_path(name);
        let mut news = self.0.news.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = news.entry(path.clone()).or_insert_with(|| watch::channel(()).0).subscribe();
        News { systemd: self.clone(), path, heard }
    }

    /// The connection, which the first who ask wait for.
    async fn connection(&self) -> Result<Connection, Silence> {
        let mut link = self.0.link.subscribe();
        let tried = link.wait_for(|link| !matches!(link, Link::Untried));
        let tried = timeout(PATIENCE, tried).await.map_err(|_elapsed| Silence)?;
        match tried.map_err(|_gone| Silence)?.clone() {
            Link::Up(connection) => Ok(connection),
            Link::Untried | Link::Down => Err(Silence),
        }
    }

    /// The properties of an object, `None` if there is no such object.
    async fn properties(&self, path: &str, interface: &str) -> Result<Option<Properties>, Silence> {
        self.0.wanted.notify_one();
        let connection = self.connection().await?;
        let destination = Some(SYSTEMD);
        let body = (interface,);
        let call = connection.call_method(destination, path, Some(PROPERTIES), "GetAll", &body);
        match timeout(PATIENCE, call).await {
            Ok(Ok(answer)) => answer.body().deserialize().map(Some).map_err(|_malformed| Silence),
            Ok(Err(zbus::Error::MethodError(name, ..))) if names_nothing(&name) => Ok(None),
            Ok(Err(_)) | Err(_) => Err(Silence),
        }
    }

    /// Connects, subscribes, and hears the news until the bus or systemd is gone.
    async fn listen_to_bus(&self) -> zbus::Result<()> {
        let (connection, mut messages) = connect(self.0.address.as_deref()).await?;
        self.0.link.send_replace(Link::Up(connection));
        // What happened while nobody listened.
        self.tell_all();
        while let Some(message) = messages.next().await {
            match news_of(&message?) {
                Told::Nothing => {}
                Told::Of(path) => self.tell(&path),
                Told::Leaving => break,
            }
        }
        Ok(())
    }

    fn tell(&self, path: &str) {
        let news = self.0.news.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(news) = news.get(path) {
            news.send_replace(());
        }
    }

    fn tell_all(&self) {
        let news = self.0.news.lock().unwrap_or_else(PoisonError::into_inner);
        for news in news.values() {
            news.send_replace(());
        }
    }
}

/// Nobody answered, or not in a form that is known.
struct Silence;

type Properties = BTreeMap<String, OwnedValue>;

/// News of one unit.
#[derive(Debug)]
pub struct News {
    systemd: Systemd,
    path: String,
    heard: watch::Receiver<()>,
}

impl News {
    /// Waits until something may have changed since the last time.
    pub async fn changed(&mut self) {
        // The sender stands in the map for as long as we are here.
        if self.heard.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for News {
    fn drop(&mut self) {
        let mut news = self.systemd.0.news.lock().unwrap_or_else(PoisonError::into_inner);
        // This one is still counted.
        if news.get(&self.path).is_some_and(|news| news.receiver_count() <= 1) {
            news.remove(&self.path);
        }
    }
}

/// Whether a systemd answers behind the bus at `address`, or behind the system bus.
///
/// # Errors
/// Why not, in words.
pub async fn reach(address: Option<&str>) -> Result<(), String> {
    connect(address).await.map(drop).map_err(|error| error.to_string())
}

async fn connect(address: Option<&str>) -> zbus::Result<(Connection, MessageStream)> {
    let connecting = async {
        let builder = match address {
            Some(address) => Builder::address(address)?,
            None => Builder::system()?,
        };
        let connection = builder.build().await?;
        let messages = MessageStream::from(&connection);
        subscribe(&connection).await?;
        Ok((connection, messages))
    };
    let connected = timeout(CONNECT_PATIENCE, connecting).await;
    connected.unwrap_or_else(|_elapsed| Err(zbus::Error::Failure("no answer in time".to_owned())))
}

/// Asks the bus for the signals that are news, and systemd to send any at all.
async fn subscribe(connection: &Connection) -> zbus::Result<()> {
    let bus = DBusProxy::new(connection).await?;
    let signal = || MatchRule::builder().msg_type(Type::Signal);
    let rules = [
        signal()
            .sender(SYSTEMD)?
            .interface(PROPERTIES)?
            .member("PropertiesChanged")?
            .path_namespace(UNITS_PATH)?
            .build(),
        signal().sender(SYSTEMD)?.interface(MANAGER)?.member("UnitRemoved")?.build(),
        signal()
            .sender("org.freedesktop.DBus")?
            .interface("org.freedesktop.DBus")?
            .member("NameOwnerChanged")?
            .add_arg(SYSTEMD)?
            .build(),
    ];
    for rule in rules {
        bus.add_match_rule(rule).await?;
    }
    connection.call_method(Some(SYSTEMD), MANAGER_PATH, Some(MANAGER), "Subscribe", &()).await?;
    Ok(())
}

enum Told {
    Nothing,
    Of(String),
    Leaving,
}

fn news_of(message: &Message) -> Told {
    let header = message.header();
    if header.message_type() != Type::Signal {
        return Told::Nothing;
    }
    match header.member().map(|member| member.as_str()) {
        Some("PropertiesChanged") => {
            header.path().map_or(Told::Nothing, |path| Told::Of(path.as_str().to_owned()))
        }
        Some("UnitRemoved") => match message.body().deserialize::<(String, OwnedObjectPath)>() {
            Ok((_, path)) => Told::Of(path.as_str().to_owned()),
            Err(_) => Told::Nothing,
        },
        // Another systemd knows nothing of our subscription.
        Some("NameOwnerChanged") => Told::Leaving,
        Some(_) | None => Told::Nothing,
    }
}

fn names_nothing(error: &ErrorName<'_>) -> bool {
    matches!(
        error.as_str(),
        "org.freedesktop.systemd1.NoSuchUnit" | "org.freedesktop.DBus.Error.UnknownObject"
    )
}

fn text<'a>(properties: &'a Properties, name: &str) -> Option<&'a str> {
    properties.get(name).and_then(|value| value.downcast_ref().ok())
}

fn invocation(unit: &Properties) -> Option<[u8; 16]> {
    let bytes = unit.get("InvocationID")?.try_clone().ok()?;
    Vec::<u8>::try_from(bytes).ok()?.try_into().ok()
}

/// How a service's main process ended, in the words of `waitid`.
fn exit(service: &Properties) -> Option<Exit> {
    const EXITED: i32 = 1;
    const KILLED: i32 = 2;
    const DUMPED: i32 = 3;
    let number = |name: &str| service.get(name)?.downcast_ref::<i32>().ok();
    let status = number("ExecMainStatus")?;
    match number("ExecMainCode")? {
        EXITED => Some(Exit::Code(status)),
        KILLED | DUMPED => Some(Exit::Signal(status)),
        _ => None,
    }
}

/// The invocation that systemd has written down for a unit.
pub(crate) fn written_invocation(name: &str) -> Option<[u8; 16]> {
    if name.contains('/') {
        return None;
    }
    let link = format!("{INVOCATIONS}/invocation:{name}");
    let target = rustix::fs::readlink(link, Vec::new()).ok()?;
    let text = target.to_str().ok().filter(|text| text.len() == 32)?;
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

/// The object of a unit, whose name systemd spells so that it fits a D-Bus path.
fn object_path(name: &str) -> String {
    use std::fmt::Write as _;
    let mut path = format!("{UNITS_PATH}/");
    for (at, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit());
        if plain {
            path.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _infallible = write!(path, "_{byte:02x}");
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::object_path;

    #[test]
    fn a_unit_is_found_under_the_name_that_systemd_gives_it() {
        for (name, label) in [
            ("web.service", "web_2eservice"),
            ("getty@tty1.service", "getty_40tty1_2eservice"),
            ("1_a.scope", "_31_5fa_2escope"),
            ("a-b\\x2d.service", "a_2db_5cx2d_2eservice"),
        ] {
            assert_eq!(object_path(name), format!("/org/freedesktop/systemd1/unit/{label}"));
        }
    }
}
