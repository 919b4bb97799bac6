//! The command line: each command against a real broker, as a table, as JSON and as YAML.

use std::process::{Output, Stdio};

use mayfly::client::{Begin, Client, Outcome};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::{
    common::{Site, until, within},
    stand::stand,
};

#[path = "../../crates/mayfly/examples/orchestrator/work.rs"]
mod orchestrator;

const WIDTH: usize = 100;

/// What a command printed; it has to succeed, and to fit the screen.
async fn table<S: AsRef<std::ffi::OsStr> + std::fmt::Debug>(site: &Site, words: &[S]) -> String {
    let done = site.mayfly(words).await;
    assert!(done.status.success(), "{words:?}: {done:?}");
    let text = String::from_utf8(done.stdout).expect("text");
    for line in text.lines() {
        assert!(line.chars().count() <= WIDTH, "{words:?}: {line}");
        assert!(!line.contains('\u{1b}'), "no colour in a pipe: {line:?}");
    }
    text
}

/// What a command prints for a program. YAML has to say the same, as far as a look can tell.
async fn data(site: &Site, words: &[&str]) -> Value {
    let json = table_free(site, &[words, &["--output", "json"]].concat()).await;
    serde_json::from_slice(&json.stdout).expect("JSON")
}

async fn table_free(site: &Site, words: &[&str]) -> Output {
    let done = site.mayfly(words).await;
    assert!(done.status.success(), "{words:?}: {done:?}");
    done
}

async fn begin(site: &Site, words: &[&str]) -> String {
    let begun = data(site, &[&["task", "begin"], words].concat()).await;
    begun["task"].as_str().expect("a task").to_owned()
}

/// What a task declares on the command line is what it is held to, and what is shown of it.
#[tokio::test]
async fn r9_a_task_is_begun_shown_amended_and_ended_by_hand() {
    let (site, _broker, _operator) = stand().await;
    let words = [
        "--as",
        "booth",
        "--intent",
        "count the stock",
        "--action",
        "read",
        "--resource",
        "stock/*",
        "--audience",
        "warehouse",
        "--audience",
        "mail",
        "--tool",
        "",
        "--deadline",
        "10m",
        "--risk",
        "medium",
        "--trigger",
        "parent",
        "--issuances",
        "50",
        "--per-minute",
        "20",
        "--depth",
        "2",
        "--children",
        "3",
        "--ttl",
        "1m",
    ];
    let task = begin(&site, &words).await;
    let shown = data(&site, &["task", "show", &task]).await;
    assert_eq!(shown["intent"], "count the stock");
    let scope = serde_json::json!({
        "actions": ["read"], "resources": ["stock/*"], "audiences": ["mail", "warehouse"], "tools": [],
    });
    assert_eq!(shown["scope"], scope);
    assert_eq!((&shown["risk"], &shown["budget"]["issuances"]), (&"medium".into(), &50.into()));
    assert_eq!(shown["reach"], serde_json::json!({ "depth": 2, "children": 3 }));
    assert!(shown["deadline"].is_string(), "{shown}");
    let text = table(&site, &["task", "show", &task]).await;
    assert!(
        text.contains("tools        none") && text.contains("audiences    mail, warehouse"),
        "{text}"
    );

    let below =
        ["task", "delegate", &task, "--as", "booth", "--audience", "mail", "--intent", "less"];
    let child = data(&site, &below).await;
    let child = child["task"].as_str().expect("a task").to_owned();
    let wider =
        site.mayfly(&["task", "delegate", &task, "--as", "booth", "--audience", "bank"]).await;
    assert_eq!(wider.status.code(), Some(1), "{wider:?}");
    assert!(String::from_utf8_lossy(&wider.stderr).contains("exceeds_parent"), "{wider:?}");

    let amend = ["task", "amend", &task, "--intent", "count less", "--if-version", "1"];
    assert_eq!(data(&site, &amend).await["version"], 2);
    let late = site.mayfly(&amend).await;
    assert!(String::from_utf8_lossy(&late.stderr).contains("version_conflict"), "{late:?}");

    table(&site, &["task", "end", &task, "--cause", "failed", "--reason", "no stock"]).await;
    let ended = data(&site, &["task", "show", &child]).await;
    assert_eq!(ended["cause"], "parent_ended");
    let again = data(&site, &["task", "end", &task]).await;
    assert_eq!((&again["state"], &again["cause"]), (&"ended".into(), &"failed".into()));
}

/// A lease is kept by hand, and a second telling of one key begins nothing.
#[tokio::test]
async fn a_lease_is_kept_and_a_key_is_one_task_by_hand() {
    let (site, _broker, _operator) = stand().await;
    let words = ["--as", "errand", "--lease", "30s", "--key", "once"];
    let task = begin(&site, &words).await;
    assert_eq!(begin(&site, &words).await, task);
    let kept = data(&site, &["task", "heartbeat", &task]).await;
    assert!(kept["lease_until"].is_string(), "{kept}");
    table(&site, &["task", "heartbeat", &task]).await;
}

/// The table is for people, JSON and YAML for programs.
#[tokio::test]
async fn listings_fit_a_screen_and_are_data_when_asked_for() {
    let (site, _broker, _operator) = stand().await;
    let long = "an intent that goes on and on ".repeat(20);
    let root = begin(&site, &["--as", "booth", "--intent", &long]).await;
    let child = begin(&site, &["--as", "booth", "--parent", &root, "--intent", "below"]).await;
    for words in [
        vec!["task", "list"],
        vec!["task", "list", "--tree", &root, "--all"],
        vec!["task", "show", &root],
        vec!["task", "tree"],
        vec!["task", "tree", &root],
        vec!["profile", "list"],
        vec!["authority", "show"],
        vec!["doctor"],
    ] {
        let text = table(&site, &words).await;
        assert!(!text.is_empty(), "{words:?}");
        let json = data(&site, &words).await;
        assert!(json.is_array() || json.is_object(), "{words:?}");
        let yaml = table_free(&site, &[&words[..], &["--output", "yaml"]].concat()).await;
        let yaml = String::from_utf8(yaml.stdout).expect("text");
        assert!(yaml.starts_with("- ") || yaml.contains(": ") || yaml.starts_with('-'), "{yaml}");
    }
    let list = table(&site, &["task", "list"]).await;
    assert!(list.contains(&root) && list.contains(&child), "no id is broken: {list}");
    let tree = table(&site, &["task", "tree", &root]).await;
    assert!(tree.contains(&format!("└─ {child}")), "{tree}");
    let filtered = data(&site, &["task", "list", "--parent", &root]).await;
    assert_eq!(filtered.as_array().map(Vec::len), Some(1), "{filtered}");

    let page = site.mayfly(&["task", "list", "--limit", "1", "--output", "json"]).await;
    let hint = String::from_utf8_lossy(&page.stderr);
    let token = hint.split("--page ").nth(1).expect("there are more").trim_end_matches(['`', '\n']);
    let rest = data(&site, &["task", "list", "--limit", "1", "--page", token]).await;
    assert_eq!(rest.as_array().map(Vec::len), Some(1), "{rest}");
}

/// One line a change, also for those who come later than the task.
#[tokio::test]
async fn watch_tells_each_change_in_a_line() {
    let (site, _broker, _operator) = stand().await;
    let before = begin(&site, &["--as", "booth", "--intent", "before"]).await;
    let mut watch = site.command(&["task", "watch", "--all", "--output", "json"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    let mut next = async || {
        let line = within("a change", lines.next_line()).await.expect("a pipe").expect("a line");
        serde_json::from_str::<Value>(&line).expect("one object a line")
    };
    assert_eq!(next().await["task"]["task"], before);
    assert_eq!(next().await["change"], "synced");
    let after = begin(&site, &["--as", "booth", "--intent", "after"]).await;
    let began = next().await;
    assert_eq!(
        (&began["change"], &began["task"]["task"]),
        (&"began".into(), &after.clone().into())
    );
    // A task with a socket of its own is promised its first certificate at once.
    assert_eq!(next().await["change"], "promised");
    table(&site, &["task", "end", &after, "--reason", "enough"]).await;
    let ended = next().await;
    assert_eq!((&ended["change"], &ended["task"]["cause"]), (&"ended".into(), &"completed".into()));
    within("its end", watch.kill()).await.expect("ours");
}

/// R19, as far as typing goes: quarantine and release, each with its reason in the log.
#[tokio::test]
async fn r19_quarantine_and_release_are_commands() {
    let (site, _broker, _operator) = stand().await;
    let task = begin(&site, &["--as", "booth"]).await;
    for (command, reason, state) in
        [("quarantine", "it looks odd", "quarantined"), ("release", "it was a test", "active")]
    {
        table(&site, &[command, &task, "--reason", reason]).await;
        let shown = data(&site, &["task", "show", &task]).await;
        assert_eq!(shown["state"], state);
        let story = shown["timeline"].to_string();
        assert!(story.contains(reason), "{story}");
    }
    let dry = table(&site, &["revoke", "task", &task, "--dry-run"]).await;
    assert_eq!(dry, "would revoke 1 task, 1 unexpired credential\n");
    table(&site, &["revoke", "tree", &task, "--reason", "over"]).await;
    assert_eq!(data(&site, &["task", "show", &task]).await["cause"], "revoked");
}

/// What every verifier would accept, and for whom.
#[tokio::test]
async fn r54_the_inventory_is_a_command() {
    let (site, broker, _operator) = stand().await;
    broker.workload().fetch_x509().await.expect("met");
    let held = data(&site, &["inventory"]).await;
    let held = held.as_array().expect("a list").clone();
    assert_eq!(held.len(), 1, "{held:?}");
    let serial = held[0]["serial"].as_str().expect("a serial");
    let text = table(&site, &["inventory", "--profile", "met"]).await;
    assert!(text.contains(serial) && text.ends_with("1 credential of 1 task\n"), "{text}");
    assert_eq!(data(&site, &["inventory", "--owner", "nobody"]).await, serde_json::json!([]));
}

/// A key's whole life, by hand.
#[tokio::test]
async fn an_authority_is_prepared_activated_and_tainted() {
    let (site, broker, _operator) = stand().await;
    broker.workload().fetch_x509().await.expect("met");
    let before = data(&site, &["authority", "show", "x509"]).await;
    let first = before[0]["id"].as_str().expect("a key").to_owned();
    table(&site, &["authority", "prepare", "x509", "--reason", "drill"]).await;
    table(&site, &["authority", "activate", "x509"]).await;
    let active = data(&site, &["authority", "show", "x509"]).await;
    let active = active.as_array().expect("a list").clone();
    let active = active.iter().find(|one| one["state"] == "active").expect("one is active");
    assert_ne!(active["id"], first.as_str());
    table(&site, &["authority", "taint", "x509", &first]).await;
}

/// Who scripts this tells the cases apart by the exit code, and people by code, words and remedy.
#[tokio::test]
async fn exit_codes_tell_wrong_words_no_broker_and_refusals_apart() {
    let (site, broker, _operator) = stand().await;
    let unknown = "0".repeat(32);
    for (words, code, said) in [
        (vec!["task", "begin", "--as", "nobody"], 1, "profile_unknown"),
        (vec!["task", "begin", "--as", "nobody"], 1, "remedy: list profiles"),
        (vec!["task", "heartbeat", &unknown], 1, "task_unknown"),
        (vec!["task", "amend", &unknown], 2, "nothing to amend"),
        (vec!["task", "begin", "--as", "booth", "--holder", "moon"], 2, "pid:N"),
        (vec!["task", "begin", "--as", "booth", "--deadline", "soon"], 2, "10m"),
        (vec!["task", "list", "--endpoint", "tcp://1.2.3.4:5"], 2, "https://HOST:PORT"),
        (vec!["task", "list", "--limit", "0"], 2, "1..=1000"),
    ] {
        let done = site.mayfly(&words).await;
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(code), "{words:?}: {text}");
        assert!(text.contains(said), "{words:?}: {text}");
        assert!(done.stdout.is_empty(), "{done:?}");
    }
    broker.stop().await;
    for words in [vec!["task", "list"], vec!["inventory"], vec!["run", "--", "true"]] {
        let done = site.mayfly(&words).await;
        assert_eq!(done.status.code(), Some(3), "{words:?}: {done:?}");
    }
}

/// Every command and every argument, in the shells' words and in man's.
#[tokio::test]
async fn completions_and_manual_pages_are_made_of_the_help() {
    let site = Site::new("");
    for shell in ["bash", "zsh", "fish"] {
        let script = site.mayfly(&["completions", shell]).await;
        let script = String::from_utf8(script.stdout).expect("text");
        assert!(script.contains("quarantine") && script.contains("heartbeat"), "{shell}");
    }
    let dir = site.root().join("man");
    let made = site.mayfly(&["man".as_ref(), dir.as_os_str()]).await;
    assert!(made.status.success(), "{made:?}");
    let page = std::fs::read_to_string(dir.join("mayfly-task-begin.1")).expect("a page");
    assert!(page.contains("idempot") || page.contains("known by"), "{page}");
    assert!(!dir.join("mayfly-hold.1").exists(), "what is hidden has no page");
    let help = site.mayfly(&["help"]).await;
    assert!(String::from_utf8_lossy(&help.stdout).contains("3  no broker"), "{help:?}");
}

/// The lease is renewed for as long as the work is held, and lapses when it is dropped.
#[tokio::test]
async fn work_keeps_its_lease_until_it_is_dropped() {
    let (site, _broker, mut operator) = stand().await;
    let uri = format!("unix://{}", site.data().join("tasks.sock").display());
    let client = Client::connect(&uri).await.expect("it serves");
    let lease = std::time::Duration::from_millis(600);
    let work = client.begin(Begin::profile("errand").lease(lease)).await.expect("begun");
    let task = work.id().to_owned();
    // Three leases later it still lives.
    tokio::time::sleep(lease * 3).await;
    assert_eq!(operator.show(&task).await.expect("a task").0.state, "active");
    drop(work);
    until("the lease lapses", async || {
        let mut operator = operator.clone();
        let view = operator.show(&task).await.expect("remembered").0;
        (view.cause == "lease_lapsed").then_some(())
    })
    .await;

    let work = client.begin(Begin::profile("errand").lease(lease)).await.expect("begun");
    operator.end(work.id(), "revoked").await.expect("ended");
    let lost = within("the news", work.lost()).await;
    assert_eq!(lost.code, "task_ended");
    assert_eq!(work.end(Outcome::Completed).await.expect("as before").cause, "revoked");
}

/// A connection that dies with the answer on its way has begun one task, and the same wish finds it.
#[tokio::test]
async fn a_lost_answer_begins_one_task() {
    let (site, _broker, _operator) = stand().await;
    let uri = format!("unix://{}", site.data().join("tasks.sock").display());
    let proxy = site.root().join("proxy.sock");
    let listener = tokio::net::UnixListener::bind(&proxy).expect("a socket");
    let target = site.data().join("tasks.sock");
    let mut deaf = tokio::task::JoinSet::new();
    // The first connection that is answered is cut before the answer has gone on.
    deaf.spawn(async move {
        let mut cut = false;
        loop {
            let (mut near, _) = listener.accept().await.expect("a guest");
            let mut far = tokio::net::UnixStream::connect(&target).await.expect("the broker");
            if cut {
                drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                continue;
            }
            let (mut near_in, _near_out) = near.split();
            let (mut far_in, mut far_out) = far.split();
            let hear = async {
                let (mut answer, mut heard) = ([0; 4096], 0);
                // Settings come first; what is longer than them is the answer.
                while heard < 200 {
                    let read = tokio::io::AsyncReadExt::read(&mut far_in, &mut answer).await;
                    heard += read.expect("the broker speaks");
                }
            };
            tokio::select! {
                _ = tokio::io::copy(&mut near_in, &mut far_out) => {}
                () = hear => cut = true,
            }
        }
    });
    let client = Client::connect(&format!("unix://{}", proxy.display())).await.expect("it serves");
    let work = client.begin(Begin::profile("booth").intent("once")).await.expect("begun");
    let direct = Client::connect(&uri).await.expect("it serves");
    let filter = mayfly_proto::mayfly::v1::Filter::default();
    let (tasks, _) = direct.list(filter, 0, String::new()).await.expect("a list");
    let once: Vec<_> = tasks.iter().filter(|task| task.intent == "once").collect();
    assert_eq!(once.len(), 1, "{once:?}");
    assert_eq!(once[0].task, work.id());
}

/// The example does what it says.
#[tokio::test]
async fn the_orchestrator_of_the_examples_runs() {
    let uid = crate::common::own_uid();
    let config = include_str!("../interop/examples/mayfly.toml").replace("@UID@", &uid.to_string());
    let site = Site::new(&config);
    let _broker = site.start().await;
    let uri = format!("unix://{}", site.data().join("tasks.sock").display());
    let client = Client::connect(&uri).await.expect("it serves");
    let agent = within("the agent", orchestrator::agent(&client)).await.expect("it works");
    assert_eq!((&agent["tokens"], &agent["beyond"]), (&1.into(), &false.into()), "{agent}");
    assert_eq!(agent["cause"], "completed");
    let job = within("the job", orchestrator::job(&client)).await.expect("it works");
    assert_eq!((&job["attempts"], &job["cause"]), (&2.into(), &"completed".into()), "{job}");
}

/// A command elsewhere is known by its SVID, does what its role says, and is told what it may not.
#[tokio::test]
async fn a_command_elsewhere_shows_its_svid_and_has_the_rights_of_its_role() {
    let port = crate::dial::free_port();
    let site = Site::new(&crate::stand::configuration(&format!(
        r#"
[broker]
listen = "{port}"

[[role]]
role = "orchestrator"
subjects = ["spiffe://example.org/met*"]
profiles = ["booth"]
"#
    )));
    let broker = site.start().await;
    // Away from the data directory: all that it has are an address and the Workload API.
    let elsewhere = async |words: &[&str]| {
        let mut command = site.command(words);
        command
            .env("MAYFLY_DATA_DIR", site.root().join("none"))
            .env("MAYFLY_ENDPOINT", format!("https://{port}"))
            .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", site.socket().display()));
        within("a command elsewhere", command.output()).await.expect("it starts")
    };
    let begun = elsewhere(&["task", "begin", "--as", "booth", "--output", "json"]).await;
    assert!(begun.status.success(), "{begun:?}");
    let begun: Value = serde_json::from_slice(&begun.stdout).expect("JSON");
    let task = begun["task"].as_str().expect("a task");
    for (words, said) in [
        (vec!["task", "begin", "--as", "errand", "--lease", "5s"], "not_entitled"),
        (vec!["quarantine", task], "not_entitled"),
    ] {
        let refused = elsewhere(&words).await;
        assert_eq!(refused.status.code(), Some(4), "{words:?}: {refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(said), "{words:?}: {refused:?}");
    }
    let ended = elsewhere(&["task", "end", task]).await;
    assert!(ended.status.success(), "{ended:?}");
    drop(broker);
}
