//! Relying parties: what each is, how it is started, and how it is asked.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use mayfly_verify::{Authorize, Held, Party as Ours, Patience, View, no_server_name};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::watch,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    house::{House, Loot},
    measure::{Fault, say},
    rust,
};

/// The longest that an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// A verifier and what was found about it, in milliseconds.
pub(crate) struct Party {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) token_name: String,
    /// Where certificates are shown.
    pub(crate) door: Option<Door>,
    /// Where tokens are shown.
    pub(crate) token: Option<Door>,
    /// Whether it has means to hear that a task has ended, for certificates or tokens at all.
    pub(crate) hears_of_ends: bool,
    pub(crate) hears_of_tokens: bool,
    /// Whether it cuts connections that are open.
    pub(crate) cuts: bool,
    pub(crate) new: Vec<f64>,
    pub(crate) cut: Vec<f64>,
    pub(crate) jwt: Vec<f64>,
    /// Against the credential's end: before is negative, `None` is not at all.
    pub(crate) new_at_all: Vec<Option<f64>>,
    pub(crate) cut_at_all: Vec<Option<f64>>,
    pub(crate) jwt_at_all: Vec<Option<f64>>,
}

impl Party {
    fn new(name: &str, version: String, hears_of_ends: bool) -> Self {
        Self {
            name: name.to_owned(),
            version,
            token_name: String::new(),
            door: None,
            token: None,
            hears_of_ends,
            hears_of_tokens: false,
            cuts: false,
            new: Vec::new(),
            cut: Vec::new(),
            jwt: Vec::new(),
            new_at_all: Vec::new(),
            cut_at_all: Vec::new(),
            jwt_at_all: Vec::new(),
        }
    }

    /// The process that has to be woken when its files have changed.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.door {
            Some(Door::Server { child: Some(child), .. }) => child.id(),
            Some(Door::Server { .. } | Door::Asked(_) | Door::Ours(_)) | None => None,
        }
    }

    pub(crate) const fn address(&self) -> Option<SocketAddr> {
        match &self.door {
            Some(Door::Server { address, .. }) => Some(*address),
            Some(Door::Asked(_) | Door::Ours(_)) | None => None,
        }
    }
}

/// A way to show a credential.
pub(crate) enum Door {
    /// A TLS server.
    Server { address: SocketAddr, child: Option<Child> },
    /// A program that answers line by line.
    Asked(Asked),
    /// mayfly-verify's, in this process.
    Ours(rust::Tokens),
}

impl Door {
    /// Whether what was stolen is accepted at this moment.
    pub(crate) async fn is_open_to(&mut self, loot: &Loot) -> Result<bool, Fault> {
        match self {
            Self::Server { address, .. } => Ok(Live::open(*address, loot).await.is_ok()),
            Self::Asked(asked) => asked.ask(loot).await,
            Self::Ours(tokens) => Ok(tokens.accept(&loot.token)),
        }
    }
}

/// A program that reads a line and says `ACCEPTED` or `REFUSED`.
pub(crate) struct Asked {
    of: fn(&Loot) -> String,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Asked {
    async fn ask(&mut self, loot: &Loot) -> Result<bool, Fault> {
        self.stdin.write_all(format!("{}\n", (self.of)(loot)).as_bytes()).await?;
        let answer = timeout(ANSWER, self.lines.next_line()).await??;
        match answer.as_deref() {
            Some("ACCEPTED") => Ok(true),
            Some(words) if words.starts_with("REFUSED") => Ok(false),
            other => Err(format!("a verifier stammers: {other:?}").into()),
        }
    }
}

/// A mutual TLS connection that shows what was stolen.
pub(crate) struct Live(TlsStream<TcpStream>);

impl Live {
    /// Connects, and has one exchange: in TLS 1.3 a client hears of a refusal only when it reads.
    pub(crate) async fn open(address: SocketAddr, loot: &Loot) -> Result<Self, Fault> {
        // The thief asks nobody whether the server is still anybody: that is not what is measured.
        let view = View::new(Patience::Closed { after: ANSWER });
        let held = watch::channel(Held::Context(Arc::clone(&loot.context))).1;
        let config = rust::thief(&Ours::new(held, Authorize::Any, view))?;
        let plain = TcpStream::connect(address).await?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = timeout(ANSWER, connector.connect(no_server_name(), plain)).await??;
        let mut live = Self(stream);
        if live.is_served().await { Ok(live) } else { Err("refused".into()) }
    }

    pub(crate) async fn is_served(&mut self) -> bool {
        let exchange = async {
            let mut octet = [7];
            self.0.write_all(&octet).await?;
            self.0.read_exact(&mut octet).await
        };
        timeout(ANSWER, exchange).await.is_ok_and(|done| done.is_ok())
    }
}

/// Everything that can be run here, and what cannot, with the reason.
pub(crate) async fn all(house: &House) -> Result<(Vec<Party>, Vec<String>), Fault> {
    let mut parties = rust::parties(house).await?;
    let mut skipped = Vec::new();
    let only: Option<String> = {
        let mut words = std::env::args().skip_while(|word| word != "--only");
        words.nth(1)
    };
    let built = built();
    for (language, mut command) in [
        ("Go", vec![built.join("go/verifier")]),
        ("Python", vec![built.join("python/bin/python"), interop().join("python/verifier.py")]),
        ("Java", java(&built)),
        ("OpenSSL", vec![interop().join("openssl/verifier")]),
    ] {
        let program = command.remove(0);
        let arguments = command;
        let is_there = program.exists() || language == "Java";
        if !is_there {
            skipped.push(format!("{language}: `{}` is not built", program.display()));
            continue;
        }
        match foreign(house, language, (&program, &arguments)).await {
            Ok(found) => parties.extend(found),
            Err(error) => skipped.push(format!("{language}: {error}")),
        }
    }
    if let Some(only) = only {
        parties.retain(|party| only.split(',').any(|word| party.name.contains(word)));
    }
    for reason in &skipped {
        say(&format!("SKIPPED {reason}"));
    }
    Ok((parties, skipped))
}

fn interop() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/interop")
}

/// Where `prepare` puts what it builds.
fn built() -> PathBuf {
    let target = crate::measure::program().ancestors().nth(2).map(Path::to_owned);
    std::env::var_os("INTEROP_OUT")
        .map_or_else(|| target.unwrap_or_default().join("interop"), PathBuf::from)
}

fn java(built: &Path) -> Vec<PathBuf> {
    let classes = format!("{0}/java:{0}/java/lib/*", built.display());
    ["java", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp", &classes, "Verifier"]
        .map(PathBuf::from)
        .to_vec()
}

type Program<'a> = (&'a Path, &'a [PathBuf]);

/// A language as it comes, and with what it has against ended tasks.
async fn foreign(house: &House, language: &str, program: Program<'_>) -> Result<Vec<Party>, Fault> {
    let mut parties = Vec::new();
    for (mode, tokens, set_up) in
        [("plain", "offline", "as it comes"), ("crl", "online", "with revocation lists")]
    {
        let keys = house.keys();
        let what = if language == "OpenSSL" { "file" } else { "tls" };
        let arguments = [Path::new(what), Path::new(mode), keys.as_path()];
        let (version, door) = start(house, program, &arguments).await?;
        let name = match (language, mode) {
            ("Go", "crl") => "Go `crypto/tls`, own `VerifyConnection` over the lists".to_owned(),
            ("Go", _) => "Go `crypto/tls`, as it comes".to_owned(),
            ("Python", "crl") => "Python `ssl`, `VERIFY_CRL_CHECK_LEAF`".to_owned(),
            ("Java", "crl") => "Java JSSE, PKIX with a `CertStore`".to_owned(),
            ("OpenSSL", "crl") => "`openssl verify -crl_check`".to_owned(),
            ("OpenSSL", _) => "`openssl verify`, as it comes".to_owned(),
            _ => format!("{language}, {set_up}"),
        };
        let mut party = Party::new(&name, version, mode == "crl");
        party.door = Some(door);
        if language != "OpenSSL" {
            let arguments = [Path::new("jwt"), Path::new(tokens)];
            party.token = Some(start(house, program, &arguments).await?.1);
            party.hears_of_tokens = tokens == "online";
            let library =
                [("Go", "go-spiffe"), ("Python", "py-spiffe")].iter().find(|(l, _)| *l == language);
            let library = library.map_or("java-spiffe", |(_, library)| library);
            let way = if tokens == "online" { "`ValidateJWTSVID`" } else { "offline" };
            party.token_name = format!("{library}, {way}");
        }
        parties.push(party);
    }
    Ok(parties)
}

/// Starts a program of `tests/interop` and waits until it says where it is to be found.
async fn start(
    house: &House,
    (program, arguments): Program<'_>,
    more: &[&Path],
) -> Result<(String, Door), Fault> {
    let mut child = Command::new(program)
        .args(arguments)
        .args(more)
        .env("SPIFFE_ENDPOINT_SOCKET", house.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdin = child.stdin.take().ok_or("no input")?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let mut version = String::new();
    loop {
        let line = timeout(ANSWER * 3, lines.next_line()).await??.ok_or("it ends at once")?;
        match line.split_once(' ') {
            Some(("VERSION", words)) => words.clone_into(&mut version),
            Some(("READY", "-")) => {
                let file = more.first().is_some_and(|word| *word == Path::new("file"));
                let of = if file { |l: &Loot| l.file.display().to_string() } else { token };
                return Ok((version, Door::Asked(Asked { of, stdin, lines, _child: child })));
            }
            Some(("READY", address)) => {
                let address = address.parse()?;
                // Its input stays open as long as it lives: some leave when it is closed.
                child.stdin = Some(stdin);
                return Ok((version, Door::Server { address, child: Some(child) }));
            }
            _ => return Err(format!("`{line}` was not expected").into()),
        }
    }
}

fn token(loot: &Loot) -> String {
    loot.token.clone()
}

impl Party {
    /// One of ours, in this process.
    pub(crate) fn local(name: &str, version: &str, address: SocketAddr) -> Self {
        let mut party = Self::new(name, version.to_owned(), false);
        party.door = Some(Door::Server { address, child: None });
        party
    }
}
