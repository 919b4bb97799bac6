//! The parts that a started process can play, and the stage they are played on.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use mayfly_attest::{Process, procfs};
use mayfly_core::{
    evidence::{Evidence, ProcessKey},
    time::Timestamp,
};

const PART: &str = "MAYFLY_TEST_PART";
const SOCKET: &str = "MAYFLY_TEST_SOCKET";

/// What a started process does after it connected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Part {
    /// Stays until its standard input ends.
    Stay,
    /// Does not connect itself: starts a child that plays `Stay`, and waits for it.
    Parent,
    /// Gives the socket to a child that stays until the socket closes, and exits.
    HandOff,
    /// Waits for an octet and becomes another program, which keeps the socket and echoes what it hears.
    BecomeCat,
    /// Becomes another program that runs as another user.
    BecomeNobody,
}

impl Part {
    const ALL: [Self; 5] =
        [Self::Stay, Self::Parent, Self::HandOff, Self::BecomeCat, Self::BecomeNobody];

    fn play(self, socket: &Path) {
        let connect = || UnixStream::connect(socket).expect("the stage is set");
        match self {
            Self::Stay => {
                let mut socket = connect();
                // Most tests do not listen.
                let _heard = socket.write_all(b"here\n");
                wait_for_end_of_input();
            }
            Self::Parent => {
                let program = std::env::current_exe().expect("we run");
                let mut child = start(&program, Self::Stay, socket, Stdio::inherit());
                child.wait().expect("it is ours");
            }
            Self::HandOff => hand_off(connect().into()),
            Self::BecomeCat => {
                let mut socket = connect();
                socket.read_exact(&mut [0]).expect("a word to go by");
                become_cat(socket, None);
            }
            Self::BecomeNobody => become_cat(connect(), Some(65_534)),
        }
    }
}

#[expect(clippy::zombie_processes, reason = "the child is to outlive us")]
fn hand_off(socket: OwnedFd) {
    Command::new("cat").stdin(socket).stdout(Stdio::null()).spawn().expect("cat starts");
}

fn become_cat(socket: UnixStream, uid: Option<u32>) {
    let mut command = Command::new("cat");
    let other: OwnedFd = socket.try_clone().expect("a descriptor").into();
    command.stdin(OwnedFd::from(socket)).stdout(other);
    if let Some(uid) = uid {
        command.uid(uid);
    }
    let error = command.exec();
    panic!("not even cat runs: {error}");
}

fn wait_for_end_of_input() {
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).expect("standard input ends some day");
}

/// Not a test of anything: the door through which this binary is entered again.
#[test]
fn play() {
    let (Ok(part), Some(socket)) = (std::env::var(PART), std::env::var_os(SOCKET)) else { return };
    let known = Part::ALL.into_iter().find(|known| format!("{known:?}") == part);
    known.expect("a known part").play(Path::new(&socket));
}

fn start(program: &Path, part: Part, socket: &Path, stdin: Stdio) -> Child {
    Command::new(program)
        .args(["role::play", "--exact", "--nocapture", "--test-threads=1"])
        .env(PART, format!("{part:?}"))
        .env(SOCKET, socket)
        .stdin(stdin)
        .stdout(Stdio::null())
        .spawn()
        .expect("the test binary starts again")
}

/// A process that is killed and reaped when the test is over.
#[derive(Debug)]
pub(crate) struct Kid(pub(crate) Child);

impl Kid {
    /// Starts a shell.
    pub(crate) fn shell(script: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::null());
        Self(command.spawn().expect("sh starts"))
    }

    /// Starts a process that does nothing for a long time.
    pub(crate) fn sleeper() -> Self {
        let mut command = Command::new("sleep");
        Self(command.arg("1000").stdin(Stdio::null()).spawn().expect("sleep starts"))
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a pid")
    }

    pub(crate) fn key(&self) -> ProcessKey {
        Process::open(self.pid()).expect("it was just started").key()
    }

    /// Ends its input, which ends a process that waits for that.
    pub(crate) fn close_input(&mut self) {
        self.0.stdin = None;
    }

    /// Waits for its end and reaps it.
    pub(crate) fn reap(&mut self) {
        self.close_input();
        self.0.wait().expect("it is ours");
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("it is ours");
    }
}

impl Drop for Kid {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A listening socket in a directory of its own.
#[derive(Debug)]
pub(crate) struct Stage {
    listener: UnixListener,
    dir: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("s")).expect("a socket");
        Self { listener, dir }
    }

    pub(crate) fn enter(&self, part: Part) -> Kid {
        self.enter_as(&std::env::current_exe().expect("we run"), part)
    }

    pub(crate) fn enter_as(&self, program: &Path, part: Part) -> Kid {
        Kid(start(program, part, &self.dir.path().join("s"), Stdio::piped()))
    }

    pub(crate) fn accept(&self) -> UnixStream {
        self.listener.accept().expect("somebody connects").0
    }
}

/// A copy of this test binary, for those who replace or delete it. Another process copies: while we
/// hold a program open for writing, a process that another test starts would hold it too, and the
/// kernel does not execute what somebody may write.
pub(crate) fn copy_of_this_program() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("program");
    let own = std::env::current_exe().expect("we run");
    assert!(Command::new("cp").arg(own).arg(&path).status().expect("cp starts").success());
    (dir, path)
}

/// Waits until the other side says a line.
pub(crate) fn hear(socket: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).expect("the socket is open");
    line
}

/// Waits until a process has ended, without reaping it.
pub(crate) fn until_zombie(pid: i32) {
    for _ in 0..2_000 {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).expect("not reaped yet");
        if procfs::parse_stat(&stat).expect("a stat line").state == b'Z' {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("`{pid}` did not end");
}

/// Late enough for every file that a test made to look settled.
pub(crate) const MUCH_LATER: Timestamp = Timestamp(4_000_000_000_000);

/// The values of one kind of selector.
pub(crate) fn values<'a>(evidence: &'a Evidence, kind: &str) -> Vec<&'a str> {
    let of_kind = evidence.selectors.iter().filter(|selector| selector.kind() == kind);
    of_kind.map(|selector| selector.value()).collect()
}

/// Says loudly that a test could not be run here.
pub(crate) fn skip(why: &str) {
    use std::io::stderr;
    writeln!(stderr(), "SKIPPED: {why}").expect("standard error is open");
}
