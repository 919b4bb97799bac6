//! `mayfly run`: a command as a task.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::Command,
};

use crate::{
    common::{Operator, until, within},
    stand::{begin_on, skip, stand},
};

async fn last_task(operator: &mut Operator) -> mayfly_proto::mayfly::v1::TaskView {
    let mut tasks = operator.list(true).await.expect("a list");
    tasks.sort_by_key(|task| task.begun_at_ms);
    tasks.pop().expect("a task")
}

/// The command's exit code is ours, and its task is over when we are back.
#[tokio::test]
async fn run_exits_as_its_command_does_and_ends_its_task() {
    let (site, _broker, mut operator) = stand().await;
    for (script, code) in [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)] {
        let arguments = ["run", "--as", "job", "--intent", script, "--", "sh", "-c", script];
        let run = site.mayfly(&arguments).await;
        assert_eq!(run.status.code(), Some(code), "{run:?}");
        let task = last_task(&mut operator).await;
        assert_eq!((task.state.as_str(), task.intent.as_str()), ("ended", script));
        let known = ["exited", "completed", "failed"];
        assert!(known.contains(&task.cause.as_str()), "{task:?}");
        assert!((task.cause == "completed") <= (code == 0), "{task:?}");
    }
}

/// The command finds the Workload API where every SPIFFE client looks, and so do its children.
#[tokio::test]
async fn run_gives_the_command_and_its_children_one_identity() {
    let (site, _broker, mut operator) = stand().await;
    let own = env!("CARGO_BIN_EXE_mayfly");
    let script = format!(
        "echo $SPIFFE_ENDPOINT_SOCKET; {own} fetch x509 --output json; \
         sh -c '{own} fetch x509 --output json; exit 0'"
    );
    let run = site.mayfly(&["run", "--as", "job", "--", "sh", "-c", &script]).await;
    assert!(run.status.success(), "{run:?}");
    let said = String::from_utf8_lossy(&run.stdout);
    let (socket, answers) = said.split_once('\n').expect("a first line");
    assert_eq!(socket, format!("unix://{}", site.socket().display()));
    let answers = serde_json::Deserializer::from_str(answers).into_iter::<serde_json::Value>();
    let ids: Vec<_> = answers.map(|one| one.expect("json")[0]["spiffe_id"].clone()).collect();
    let task = last_task(&mut operator).await;
    assert_eq!(ids, [task.spiffe_id.clone(), task.spiffe_id], "two processes, one task");
}

/// A signal for us is a signal for the command.
#[tokio::test]
async fn run_forwards_signals_to_its_command() {
    let (site, _broker, mut operator) = stand().await;
    let script = "trap 'exit 7' USR1; echo ready; while :; do sleep 0.05; done";
    for (signal, script, code) in [
        (nix::sys::signal::Signal::SIGTERM, "echo ready; exec sleep 600", 143),
        (nix::sys::signal::Signal::SIGUSR1, script, 7),
    ] {
        let mut run = site.command(&["run", "--as", "job", "--", "sh", "-c", script]);
        let mut run = run.stdout(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(run.stdout.take().expect("piped")).lines();
        let line = within("the command's word", lines.next_line()).await.expect("a pipe");
        assert_eq!(line.as_deref(), Some("ready"));
        let pid = i32::try_from(run.id().expect("it runs")).expect("a pid");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("it is ours");
        let exit = within("the exit", run.wait()).await.expect("ours");
        assert_eq!(exit.code(), Some(code));
        assert_eq!(last_task(&mut operator).await.state, "ended");
    }
}

/// Without a task the command does not run at all.
#[tokio::test]
async fn run_without_a_task_runs_nothing() {
    let (site, broker, mut operator) = stand().await;
    let mark = site.root().join("mark");
    let touch = mark.to_str().expect("plain").to_owned();
    let run = site.mayfly(&["run", "--as", "nobody", "--", "touch", &touch]).await;
    assert_eq!(run.status.code(), Some(1));
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(said.contains("profile_unknown") && said.contains("`nobody`"), "{said}");
    assert!(said.contains("there are: met, job, booth, errand"), "{said}");
    assert!(!mark.exists() && operator.list(true).await.expect("a list").is_empty());

    let run = site.mayfly(&["run", "--as", "job", "--", "/nowhere/to-be-found"]).await;
    assert_eq!(run.status.code(), Some(127), "{run:?}");
    let run = site.mayfly(&["run", "--as", "job", "--", "/etc/passwd"]).await;
    assert_eq!(run.status.code(), Some(126), "{run:?}");
    assert_eq!(operator.list(false).await.expect("a list").len(), 0, "their tasks are over");

    broker.kill().await;
    let run = site.mayfly(&["run", "--as", "job", "--", "touch", &touch]).await;
    assert_eq!(run.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&run.stderr).contains("mayfly up"), "{run:?}");
    assert!(!mark.exists());
}

/// A run inside a task is a part of it, and is bounded by its own time.
#[tokio::test]
async fn run_is_bounded_by_its_time_and_by_its_parent() {
    let (site, _broker, mut operator) = stand().await;
    let this = i32::try_from(std::process::id()).expect("a pid");
    let parent = begin_on(&mut operator, this).await;
    let arguments = ["run", "--as", "job", "--parent", &parent, "--max-time", "1h", "--", "true"];
    let run = site.mayfly(&arguments).await;
    assert!(run.status.success(), "{run:?}");
    let task = last_task(&mut operator).await;
    assert_eq!(task.parent, parent);
    let life = Duration::from_millis(task.deadline_ms.saturating_sub(task.begun_at_ms));
    assert!(life > Duration::from_secs(3590) && life <= Duration::from_secs(3600), "{life:?}");
}

/// What a command leaves behind in its cgroup is refused when the command's task is over: it is not met
/// anew as somebody else, although its user has a profile.
#[tokio::test]
async fn run_leaves_nobody_behind_with_an_identity() {
    let (site, _broker, mut operator) = stand().await;
    let (go, out) = (site.root().join("go"), site.root().join("out"));
    let script = format!(
        "{{ until [ -e '{go}' ]; do sleep 0.02; done; {own} fetch x509; echo code $?; }} \
         >'{out}' 2>&1 </dev/null & exit 0",
        go = go.display(),
        out = out.display(),
        own = env!("CARGO_BIN_EXE_mayfly"),
    );
    let run = site.mayfly(&["run", "--as", "job", "--", "sh", "-c", &script]).await;
    assert!(run.status.success(), "{run:?}");
    let task = last_task(&mut operator).await;
    assert_eq!(task.state, "ended", "it ended with its command");
    std::fs::write(&go, "").expect("it is ours");
    let said = until("the orphan's word", async || {
        std::fs::read_to_string(&out).ok().filter(|text| text.contains("code "))
    });
    let said = said.await;
    if task.binding != "cgroup" {
        return skip("run_leaves_nobody_behind_with_an_identity may not make a cgroup");
    }
    assert!(said.contains("task_ended") && said.contains("code 1"), "{said}");
    for hierarchy in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let dir = std::path::PathBuf::from(format!("{hierarchy}{}", task.holder));
        // The orphan has said its last word, and its cgroup is empty a moment later.
        let is_gone = async || (std::fs::remove_dir(&dir).is_ok() || !dir.exists()).then_some(());
        until("the end of the cgroup", is_gone).await;
    }
}

/// The two commands of the README: no configuration, no root, and `dev` for whoever started it.
#[tokio::test]
async fn up_and_run_work_without_a_configuration() {
    let home = tempfile::tempdir().expect("a directory");
    let own = env!("CARGO_BIN_EXE_mayfly");
    let mut up = Command::new(own)
        .arg("up")
        .env("XDG_RUNTIME_DIR", home.path())
        .env_remove("MAYFLY_DATA_DIR")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let mut stdout = BufReader::new(up.stdout.take().expect("piped"));
    let mut ready = String::new();
    within("the broker's word", stdout.read_line(&mut ready)).await.expect("a pipe");
    let data = home.path().join("mayfly");
    let socket = data.join("workload.sock");
    let expected =
        format!("ready example.org unix://{} data-dir={}", socket.display(), data.display());
    assert_eq!(ready.trim_end(), expected);
    let run = Command::new(own)
        .args(["run", "--", own, "fetch", "jwt", "--audience", "billing", "--output", "json"])
        .env("XDG_RUNTIME_DIR", home.path())
        .env_remove("MAYFLY_DATA_DIR")
        .output();
    let run = within("a run", run).await.expect("it starts");
    assert!(run.status.success(), "{run:?}");
    let tokens: serde_json::Value = serde_json::from_slice(&run.stdout).expect("json");
    let id = tokens[0]["spiffe_id"].as_str().expect("an id");
    assert!(id.starts_with("spiffe://example.org/dev/task/"), "{id}");
    up.start_kill().expect("it is ours");
    let mut rest = String::new();
    within("the end of the pipe", stdout.read_to_string(&mut rest)).await.expect("a pipe");
    assert_eq!(rest, "", "it prints one line");
}
