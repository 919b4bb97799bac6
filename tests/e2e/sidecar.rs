//! `mayfly sidecar`: files that belong together, for as long as the task goes on. R11, R12, R14.

use std::{
    collections::BTreeSet,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use mayfly::pem;
use mayfly_core::SpiffeId;
use mayfly_proto::{
    mayfly::v1::{begin_task_request::Holder, revoke_request::Target},
    spiffe::workload as spiffe,
};
use mayfly_verify::X509Svid;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::{
    common::{Broker, Operator, Site, own_uid, task_of, until, within},
    papers,
    stand::{AUDIENCE, STRANGER, skip},
};

/// Lives of two seconds: a rotation every second. Tokens live longer, so that a busy machine may take a
/// second to fetch one.
fn configuration() -> String {
    format!(
        r#"trust_domain = "example.org"

[workload]
socket = "workload.sock"

[[profile]]
name = "web"
path = "/web"
selectors = ["unix:uid:{}"]
owner = "team"
x509_ttl = "2s"
jwt_ttl = "4s"

[[profile]]
name = "booth"
path = "/booth"
selectors = []
owner = "team"
binding = "socket"
x509_ttl = "2s"
"#,
        own_uid()
    )
}

/// A sidecar at work.
struct Keeper {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Keeper {
    /// One that is met: it is the holder of its own task.
    fn start(site: &Site, more: &[&str]) -> Self {
        Self::start_at(site, &format!("unix://{}", site.socket().display()), more)
    }

    fn start_at(site: &Site, socket: &str, more: &[&str]) -> Self {
        let dir = dir(site).display().to_string();
        let usual = ["--output", "json", "sidecar", "--dir", &dir, "--socket", socket];
        Self::spawn(site.command(&[&usual, more].concat()))
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines }
    }

    /// Its next report.
    async fn report(&mut self) -> Value {
        let line = within("a report", self.lines.next_line()).await.expect("a pipe");
        serde_json::from_str(&line.expect("it goes on")).expect("json")
    }

    /// Its next report of this kind.
    async fn told(&mut self, event: &str) -> Value {
        loop {
            let report = self.report().await;
            if report["event"] == event {
                return report;
            }
        }
    }

    async fn exit(mut self) -> Option<i32> {
        within("the sidecar's exit", self.child.wait()).await.expect("ours").code()
    }

    fn send(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().expect("it runs")).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("it is ours");
    }

    async fn kill(mut self) {
        within("the end of a killed sidecar", self.child.kill()).await.expect("it is ours");
    }
}

fn dir(site: &Site) -> PathBuf {
    site.root().join("keys")
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("it is there");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("plain"))
        .collect();
    names.sort();
    names
}

async fn stand() -> (Site, Broker, Operator) {
    let site = Site::new(&configuration());
    let broker = site.start().await;
    let operator = broker.operator().await;
    (site, broker, operator)
}

/// A task with a socket of its own, which no process's end ends.
async fn booth(operator: &mut Operator) -> (String, String) {
    let begun = operator.begin(task_of("booth", Holder::Socket(true))).await.expect("it begins");
    (begun.task, format!("unix://{}", begun.socket))
}

/// What a careful reader gets: the link read once, everything below what it names.
struct Moment {
    svid: X509Svid,
    token: Option<String>,
}

impl Moment {
    /// `None` if there are no files.
    fn read(dir: &Path) -> Option<Self> {
        loop {
            let version = dir.join(std::fs::read_link(dir.join("..data")).ok()?);
            match Self::of(&version) {
                Some(moment) => return Some(moment),
                // Swapped twice while we read: this moment is over.
                None if !version.join("svid.pem").exists() => {}
                None => panic!("{} is not whole: {:?}", version.display(), names(&version)),
            }
        }
    }

    fn of(version: &Path) -> Option<Self> {
        let text = |name: &str| std::fs::read_to_string(version.join(name)).ok();
        let (key, chain) = (text("svid_key.pem")?, text("svid.pem")?);
        let (both, bundle) = (text("credential-bundle.pem")?, text("bundle.pem")?);
        assert_eq!(both, format!("{key}{chain}"), "two vocabularies, one credential");
        assert_eq!(Some(bundle.clone()), text("example.org.spiffe-trust-bundle.pem"));
        let svid = pair(&both, &bundle);
        assert!(papers::is_signed_by(&svid.chain[0], &[first(pem::CERTIFICATE, &bundle)]));
        let token = text(&mayfly::sidecar::set::jwt_name(AUDIENCE));
        version.join("svid.pem").exists().then_some(Self { svid, token })
    }
}

fn first(label: &str, text: &str) -> Vec<u8> {
    pem::first(label, text).expect("a whole block")
}

/// Certificate and key, which is checked to be the certificate's.
fn pair(both: &str, bundle: &str) -> X509Svid {
    let chain = first(pem::CERTIFICATE, both);
    let leaf = mayfly_verify::x509::Leaf::parse(&chain).expect("a leaf");
    let message = spiffe::X509svid {
        spiffe_id: leaf.id.to_string(),
        x509_svid: chain.into(),
        x509_svid_key: first(pem::PRIVATE_KEY, both).into(),
        bundle: first(pem::CERTIFICATE, bundle).into(),
        ..spiffe::X509svid::default()
    };
    X509Svid::parse(message).expect("key and certificate belong together")
}

/// R12: ten lives of a certificate, and no reader ever sees a key beside another certificate, a half
/// file, or none at all.
#[tokio::test]
async fn r12_files_change_together_across_rotations() {
    let (site, broker, _operator) = stand().await;
    let mut keeper = Keeper::start(&site, &["--jwt-audience", AUDIENCE]);
    keeper.told("written").await;
    let dir = dir(&site);
    let (mut serials, mut tokens, mut looks) = (BTreeSet::new(), BTreeSet::new(), 0_u32);
    let reading = async {
        while serials.len() < 10 {
            let moment = Moment::read(&dir).expect("there is always a whole set");
            let now = mayfly::clock::now();
            assert!(moment.svid.leaf.not_after > now, "it is good");
            serials.insert(moment.svid.leaf.serial.expect("ours").to_string());
            tokens.insert(moment.token.expect("a token was asked for"));
            // One file by its plain name is one moment as well.
            let both = std::fs::read_to_string(dir.join("credential-bundle.pem")).expect("whole");
            pair(&both, &std::fs::read_to_string(dir.join("bundle.pem")).expect("whole"));
            looks += 1;
            tokio::task::yield_now().await;
        }
    };
    within("ten certificates", reading).await;
    assert!(looks > 200, "{looks} looks are not many");
    assert!(tokens.len() >= 5, "{} tokens", tokens.len());
    for token in tokens.iter().rev().take(1) {
        assert!(token.split('.').count() == 3, "{token}");
    }
    let versions = names(&dir).iter().filter(|name| name.starts_with("..mayfly-")).count();
    assert!(versions <= 3, "{versions} versions lie about");
    let mode = |path: &Path| std::fs::metadata(path).expect("it is there").mode() & 0o7777;
    assert_eq!((mode(&dir), mode(&dir.join("svid_key.pem"))), (0o700, 0o600));
    drop(broker);
}

/// R14: the files go with the task, whoever ends it; the sidecar says so, tells the server, and leaves.
#[tokio::test]
async fn r14_files_are_removed_when_the_task_ends() {
    let (site, _broker, mut operator) = stand().await;
    let (task, socket) = booth(&mut operator).await;
    let note = site.root().join("note");
    let on_end = format!("echo $MAYFLY_SIDECAR_EVENT $MAYFLY_SIDECAR_REASON >{}", note.display());
    let mut keeper = Keeper::start_at(&site, &socket, &["--on-end", &on_end]);
    let written = keeper.told("written").await;
    assert_eq!(written["spiffe_id"], format!("spiffe://example.org/booth/task/{task}"));
    assert!(Moment::read(&dir(&site)).is_some());
    operator.revoke(Target::Task(task)).await.expect("it is revoked");
    assert_eq!(keeper.told("removed").await["code"], "task_ended");
    assert_eq!(names(&dir(&site)), Vec::<String>::new());
    assert_eq!(keeper.exit().await, Some(0), "the end of a task is no failure");
    let note = std::fs::read_to_string(note).expect("the command ran");
    assert!(note.starts_with("ended task_ended: "), "{note}");
}

/// A command runs after each swap, knows what is new, and can neither stop nor delay the sidecar.
#[tokio::test]
async fn a_command_is_told_what_is_new() {
    let (site, broker, mut operator) = stand().await;
    let log = site.root().join("log");
    let on_renew = format!("echo \"$MAYFLY_SIDECAR_CHANGED\" >>{}", log.display());
    let mut keeper = Keeper::start(&site, &["--on-renew", &on_renew]);
    keeper.told("written").await;
    let line = async |wanted: &str| {
        let seen = async || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.lines().any(|line| line == wanted).then_some(())
        };
        until(wanted, seen).await;
    };
    line("certificate bundle crl").await;
    line("certificate").await;
    // Somebody else's end changes the list, and nothing but the list.
    let (task, socket) = booth(&mut operator).await;
    let endpoint = mayfly_verify::Endpoint::parse(&socket).expect("a socket");
    mayfly_verify::WorkloadClient::new(&endpoint).fetch_x509().await.expect("a certificate");
    operator.end(&task, "completed").await.expect("it ends");
    line("crl").await;
    drop(broker);
    drop(keeper);
}

/// A command that fails or hangs is reported, and the next swap comes all the same.
#[tokio::test]
async fn a_command_that_fails_or_hangs_is_reported_and_survived() {
    let (site, _broker, _operator) = stand().await;
    for (command, words) in [("exit 3", "exit status: 3"), ("sleep 600; true", "killed after 0 s")]
    {
        let more = ["--on-renew", command, "--command-timeout", "200ms"];
        let mut keeper = Keeper::start(&site, &more);
        let first = keeper.told("written").await;
        let failed = keeper.told("command_failed").await;
        assert!(failed["reason"].as_str().expect("words").contains(words), "{failed}");
        while keeper.told("written").await["serial"] == first["serial"] {}
        keeper.send(Signal::SIGTERM);
        assert_eq!(keeper.told("removed").await["code"], "stopped");
        assert_eq!(keeper.exit().await, Some(0));
        assert!(names(&dir(&site)).is_empty(), "removed by default");
    }
}

/// A restart of the broker takes nothing away; an outage longer than the certificate's life does.
#[tokio::test]
async fn files_outlive_the_brokers_restart_but_not_their_certificate() {
    let (site, broker, _operator) = stand().await;
    let mut keeper = Keeper::start(&site, &[]);
    keeper.told("written").await;
    broker.kill().await;
    let before = Moment::read(&dir(&site)).expect("they are still there").svid.leaf.serial;
    let broker = site.start().await;
    let renewed = async || {
        let moment = Moment::read(&dir(&site)).expect("never a moment without");
        (moment.svid.leaf.serial != before).then_some(())
    };
    until("a certificate of the new broker", renewed).await;
    broker.kill().await;
    assert_eq!(keeper.told("removed").await["code"], "expired");
    assert!(names(&dir(&site)).is_empty(), "expired files are good for nothing");
    let _broker = site.start().await;
    keeper.told("written").await;
    assert!(Moment::read(&dir(&site)).is_some(), "and it comes back by itself");
}

/// kill -9 at any instant leaves a whole set or none, and the successor cleans up.
#[tokio::test]
async fn a_killed_sidecar_leaves_a_whole_set_and_its_successor_sweeps() {
    let (site, _broker, mut operator) = stand().await;
    let (_task, socket) = booth(&mut operator).await;
    let dir = dir(&site);
    for delay_ms in [0, 5, 10, 15, 20, 25, 30, 40, 60, 100, 300, 1100] {
        let keeper = Keeper::start_at(&site, &socket, &[]);
        // What is tried is the instant, so this is a time and not an event.
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        keeper.kill().await;
        if dir.join("..data").exists() {
            assert!(Moment::read(&dir).is_some(), "killed after {delay_ms} ms");
        }
    }
    let half = dir.join("..mayfly-0123456789abcdef");
    std::fs::create_dir(&half).expect("it is ours");
    std::fs::write(half.join("svid_key.pem"), "half a key").expect("it is ours");
    let mut keeper = Keeper::start_at(&site, &socket, &["--keep-on-exit"]);
    keeper.told("written").await;
    keeper.told("written").await;
    assert!(!half.exists(), "what was half done is gone");
    keeper.send(Signal::SIGTERM);
    assert_eq!(keeper.exit().await, Some(0));
    assert!(Moment::read(&dir).is_some(), "kept for a successor, as ordered");
    let mut keeper = Keeper::start_at(&site, &socket, &[]);
    keeper.told("written").await;
    keeper.send(Signal::SIGTERM);
    keeper.told("removed").await;
    assert!(names(&dir).is_empty());
}

/// A directory that is not fit for keys is refused with a code, before anybody is asked for anything.
#[tokio::test]
async fn an_unfit_directory_is_refused_with_a_code() {
    let (site, _broker, mut operator) = stand().await;
    let refused = async |dir: &Path, code: &str| {
        let dir = dir.display().to_string();
        let socket = format!("unix://{}", site.socket().display());
        let run = site.mayfly(&["sidecar", "--once", "--dir", &dir, "--socket", &socket]).await;
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!((run.status.code(), said.contains(code)), (Some(1), true), "{code}: {said}");
    };
    let root = site.root().to_owned();
    refused(&root, "directory_open").await;
    refused(&root.join("a/b"), "directory_missing").await;
    refused(&root.join("mayfly.toml"), "directory_unfit").await;
    let taken = root.join("taken");
    std::fs::create_dir(&taken).expect("it is ours");
    let only_us = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&taken, only_us).expect("it is ours");
    assert_eq!(operator.list(true).await.expect("a list").len(), 0, "nobody was asked");
    std::os::unix::fs::symlink("/etc/passwd", taken.join("svid_key.pem")).expect("it is ours");
    refused(&taken, "file_foreign").await;
    assert_eq!(names(&taken), ["svid_key.pem"], "nothing half done");
    if own_uid() == 0 {
        std::os::unix::fs::chown(&taken, Some(STRANGER), None).expect("root may");
        refused(&taken, "directory_foreign").await;
    } else {
        skip("an_unfit_directory_is_refused_with_a_code needs root to give a directory away");
    }
}

/// A full disk and one that may not be written: what was there stays, the reason is said, and it goes
/// on when there is room.
#[tokio::test]
async fn a_full_or_read_only_disk_leaves_what_was_there() {
    let (site, _broker, _operator) = stand().await;
    let dir = dir(&site);
    std::fs::create_dir(&dir).expect("it is ours");
    // A file system of the sidecar's own, which goes with it.
    let own = env!("CARGO_BIN_EXE_mayfly");
    let script = format!(
        "mount -t tmpfs -o size=64k,mode=700 none '{dir}' || exit 77; \
         exec '{own}' --output json sidecar --dir '{dir}' --socket 'unix://{socket}' --on-renew \
         'case $ROUND in full) head -c 64k /dev/zero >\"{dir}/filler\" 2>/dev/null;; \
          ro) mount -o remount,ro \"{dir}\";; esac; ls \"{dir}\" >&2'",
        dir = dir.display(),
        socket = site.socket().display(),
    );
    for (round, code) in [("full", "disk_full"), ("ro", "directory_unwritable")] {
        let mut command = site.command::<&str>(&[]);
        let mut unshare = Command::new("unshare");
        let environment = command.as_std_mut().get_envs();
        unshare.envs(environment.filter_map(|(name, value)| Some((name, value?))));
        unshare.args(["-m", "sh", "-c", &script]).env("ROUND", round).kill_on_drop(true);
        let mut keeper = Keeper::spawn(unshare);
        let line = within("a report", keeper.lines.next_line()).await.expect("a pipe");
        let Some(line) = line else {
            return skip("a_full_or_read_only_disk_leaves_what_was_there may not mount");
        };
        let first: Value = serde_json::from_str(&line).expect("json");
        assert_eq!(first["event"], "written");
        let failed = keeper.told("not_written").await;
        assert!(failed["reason"].as_str().expect("words").starts_with(code), "{failed}");
        // The namespace can be looked into from here: what was there is still whole.
        let pid = keeper.child.id().expect("it runs");
        let inside = PathBuf::from(format!("/proc/{pid}/root{}", dir.display()));
        let moment = Moment::read(&inside).expect("the set before");
        assert_eq!(first["serial"], moment.svid.leaf.serial.expect("ours").to_string());
        let versions = names(&inside).iter().filter(|name| name.starts_with("..mayfly-")).count();
        assert_eq!(versions, 1, "nothing half done");
        if round == "full" {
            std::fs::remove_file(inside.join("filler")).expect("it is ours");
            keeper.told("written").await;
        }
    }
}

/// `--once` writes and leaves, and is refused where there is no identity.
#[tokio::test]
async fn once_writes_and_leaves() {
    let (site, _broker, mut operator) = stand().await;
    let (_task, socket) = booth(&mut operator).await;
    let keys = dir(&site).display().to_string();
    let run = site
        .command(&["sidecar", "--once", "--socket", &socket, "--jwt-audience", AUDIENCE])
        .env("SPIFFE_CREDENTIAL_FOLDER", &keys)
        .output();
    let run = within("one write", run).await.expect("it starts");
    assert!(run.status.success(), "{run:?}");
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(said.starts_with("written  spiffe://example.org/booth/task/"), "{said}");
    let moment = Moment::read(&dir(&site)).expect("they stay");
    assert!(moment.token.is_some());
    SpiffeId::parse(moment.svid.spiffe_id.as_str()).expect("an id");
    if own_uid() != 0 {
        return skip("once_writes_and_leaves needs root to become somebody without a profile");
    }
    let other = site.root().join("other");
    std::fs::create_dir(&other).expect("it is ours");
    std::os::unix::fs::chown(&other, Some(STRANGER), None).expect("root may");
    let only_us = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&other, only_us).expect("it is ours");
    let program = site.root().join("mayfly");
    std::fs::copy(env!("CARGO_BIN_EXE_mayfly"), &program).expect("a copy that others may run");
    let socket = format!("unix://{}", site.socket().display());
    let run = Command::new(program)
        .args(["--data-dir", "/nowhere", "sidecar", "--once", "--socket", &socket, "--dir"])
        .arg(&other)
        .uid(STRANGER)
        .output();
    let run = within("a refusal", run).await.expect("it starts");
    assert_eq!(run.status.code(), Some(1));
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(said.contains("no_identity: no identity issued"), "{said}");
    assert!(names(&other).is_empty());
}
