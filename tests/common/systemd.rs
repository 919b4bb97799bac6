//! A real bus with a small manager on it that speaks as systemd does of its units.

use std::{path::PathBuf, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use zbus::{Connection, connection::Builder};

const UNITS: &str = "/org/freedesktop/systemd1/unit";

/// A bus daemon of our own.
#[derive(Debug)]
pub(crate) struct Bus {
    daemon: Child,
    dir: tempfile::TempDir,
}

impl Bus {
    /// Starts one, or says why there is none.
    pub(crate) async fn start() -> Result<Self, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let daemon = spawn(&dir).await?;
        Ok(Self { daemon, dir })
    }

    pub(crate) fn address(&self) -> String {
        format!("unix:path={}", socket(&self.dir).display())
    }

    /// Kills the daemon.
    pub(crate) async fn kill(&mut self) {
        self.daemon.kill().await.expect("it is ours");
    }

    /// Starts another at the same address.
    pub(crate) async fn again(&mut self) {
        // The old one was killed and has left its socket behind.
        drop(std::fs::remove_file(socket(&self.dir)));
        self.daemon = spawn(&self.dir).await.expect("it started before");
    }
}

fn socket(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("bus")
}

async fn spawn(dir: &tempfile::TempDir) -> Result<Child, String> {
    let config = dir.path().join("bus.conf");
    let text = format!(
        "<busconfig><type>system</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
         <policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/>\
         <allow send_destination=\"*\" eavesdrop=\"false\"/><allow receive_sender=\"*\"/>\
         </policy></busconfig>",
        socket(dir).display()
    );
    std::fs::write(&config, text).expect("a file");
    let mut command = Command::new("dbus-daemon");
    command.arg("--nofork").arg("--print-address").arg("--config-file").arg(&config);
    // Without root it complains of limits that it may not raise.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut daemon = command.spawn().map_err(|error| format!("dbus-daemon: {error}"))?;
    let said = daemon.stdout.take().expect("piped");
    let mut lines = BufReader::new(said).lines();
    let address = lines.next_line().await.expect("it can be read");
    address.ok_or_else(|| "dbus-daemon said nothing".to_owned())?;
    Ok(daemon)
}

struct Manager;

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn subscribe(&self) {}
}

struct Unit {
    invocation: [u8; 16],
    active: &'static str,
    sub: &'static str,
}

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property, name = "InvocationID")]
    fn invocation_id(&self) -> Vec<u8> {
        self.invocation.to_vec()
    }

    #[zbus(property)]
    fn active_state(&self) -> String {
        self.active.to_owned()
    }

    #[zbus(property)]
    fn sub_state(&self) -> String {
        self.sub.to_owned()
    }
}

struct Service {
    code: i32,
    status: i32,
}

#[zbus::interface(name = "org.freedesktop.systemd1.Service")]
impl Service {
    #[zbus(property)]
    fn exec_main_code(&self) -> i32 {
        self.code
    }

    #[zbus(property)]
    fn exec_main_status(&self) -> i32 {
        self.status
    }
}

/// The manager, connected to a bus.
#[derive(Debug)]
pub(crate) struct FakeSystemd(Connection);

impl FakeSystemd {
    pub(crate) async fn start(bus: &Bus) -> Self {
        let builder = Builder::address(bus.address().as_str()).expect("an address");
        let builder = builder.name("org.freedesktop.systemd1").expect("a name");
        let builder = builder.serve_at("/org/freedesktop/systemd1", Manager).expect("a path");
        Self(builder.build().await.expect("the bus is there"))
    }

    /// A unit that runs.
    pub(crate) async fn run(&self, name: &str, invocation: [u8; 16]) {
        let (path, server) = (object(name), self.0.object_server());
        let unit = Unit { invocation, active: "active", sub: "running" };
        assert!(server.at(path.as_str(), unit).await.expect("a path"), "there is one already");
        let service = Service { code: 0, status: 0 };
        assert!(server.at(path.as_str(), service).await.expect("a path"));
    }

    /// The unit changes its state; its main process has ended this way.
    pub(crate) async fn change(
        &self,
        name: &str,
        (active, sub): (&'static str, &'static str),
        (code, status): (i32, i32),
    ) {
        let (path, server) = (object(name), self.0.object_server());
        let service = server.interface::<_, Service>(path.as_str()).await.expect("a service");
        *service.get_mut().await = Service { code, status };
        let unit = server.interface::<_, Unit>(path.as_str()).await.expect("a unit");
        let mut state = unit.get_mut().await;
        (state.active, state.sub) = (active, sub);
        state.active_state_changed(unit.signal_emitter()).await.expect("the bus is there");
    }

    /// The unit is started anew, without ever having been seen to stop.
    pub(crate) async fn rerun(&self, name: &str, invocation: [u8; 16]) {
        let path = object(name);
        let unit = self.0.object_server().interface::<_, Unit>(path.as_str()).await;
        let unit = unit.expect("a unit");
        let mut state = unit.get_mut().await;
        state.invocation = invocation;
        state.invocation_i_d_changed(unit.signal_emitter()).await.expect("the bus is there");
    }
}

/// The tests' units have names of letters, digits and dots.
fn object(name: &str) -> String {
    format!("{UNITS}/{}", name.replace('.', "_2e").replace('-', "_2d"))
}
