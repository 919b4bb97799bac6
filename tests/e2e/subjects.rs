//! Subjects of OIDC issuers: what a token that is shown gives, and what it takes away.

use std::time::Duration;

use mayfly::client::{Begin, Client, ClientError};
use mayfly_proto::mayfly::v1::{
    BeginTaskRequest, OrderTaskRequest, begin_task_request::Holder,
    operator_client::OperatorClient, order_task_request,
};
use tokio::process::Command;
use tonic::{Request, metadata::MetadataValue};

use crate::{
    ci::{FOR_B, Towns},
    common::{task_of, within},
};

/// Two trust domains, in the second of which the first one's runners are operators.
async fn towns_with_an_operator() -> (Towns, String) {
    let towns = Towns::found().await;
    let subject = format!("oidc:{}#spiffe://a.example/runner", towns.a.url());
    let role = format!("[[role]]\nrole = \"operator\"\nsubjects = [\"{subject}\"]\n[[profile]]");
    let towns = towns.with(|text| text.replacen("[[profile]]", &role, 1)).await;
    (towns, subject)
}

/// Who shows a token of a known issuer asks as its subject: with the role that this one has, and none of
/// those of the user that runs it. The log names the subject.
#[tokio::test]
async fn a_subject_of_an_issuer_has_its_own_role_and_no_other() {
    let (towns, subject) = towns_with_an_operator().await;
    let socket = towns.b.site.data().join("tasks.sock");
    let client = async |token: &str| {
        let uri = format!("unix://{}", socket.display());
        let client = Client::connect(&uri).await.expect("it listens");
        client.with_token(token).expect("a token")
    };
    let mut operator = towns.broker().operator().await;
    let errand = task_of("ci-job", Holder::LeaseOnly(true));
    let errand = operator.begin(BeginTaskRequest { lease_ms: 60_000, ..errand }).await;
    let task = errand.expect("our user may do everything").task;

    let (good, code) = (towns.token(FOR_B).await, |error: ClientError| match error {
        ClientError::Refused(refusal) => refusal.code,
        other => panic!("{other}"),
    });
    let subjects = client(&good).await;
    assert_eq!(subjects.get(&task).await.expect("operators read").state, "active");
    let begun = subjects.begin(Begin::profile("ci-job").lease(Duration::from_secs(30))).await;
    assert_eq!(code(begun.map(drop).expect_err("operators begin nothing")), "not_entitled");
    for wrong in
        [towns.token("spiffe://elsewhere").await, "a.b.c".to_owned(), good.replace('.', "x")]
    {
        let refused = client(&wrong).await.get(&task).await.map(drop);
        assert_eq!(code(refused.expect_err("not a token for us")), "oidc_token_invalid");
    }

    let file = towns.b.site.root().join("token");
    std::fs::write(&file, &good).expect("ours");
    let data = towns.b.site.data();
    let mut mayfly = Command::new(env!("CARGO_BIN_EXE_mayfly"));
    mayfly.arg("--data-dir").arg(&data).arg("--token-file").arg(&file);
    mayfly.args(["quarantine", &task, "--reason", "it smells"]);
    assert!(within("an answer", mayfly.status()).await.expect("it starts").success());
    let (view, story) = operator.show(&task).await.expect("it is there");
    assert_eq!(view.state, "quarantined");
    let entry = story.iter().find(|entry| entry.what == "quarantined").expect("it was");
    assert_eq!(entry.detail, format!("by {subject}: it smells"));
    // It was shown often, and is still good for what takes a token once.
    assert_eq!(towns.begin(&good).await.0, 201);
}

/// R19: a token frees nobody from within.
#[tokio::test]
async fn r19_whoever_is_held_frees_itself_with_no_ones_token() {
    let (towns, _subject) = towns_with_an_operator().await;
    let workload = towns.broker().workload();
    workload.fetch_x509().await.expect("this process is a runner of B, too");
    let mut operator = towns.broker().operator().await;
    let tasks = operator.list(false).await.expect("a list");
    let own = tasks.iter().find(|task| task.profile == "runner").expect("ours").task.clone();
    operator.quarantine(&own).await.expect("an operator may");
    let token = towns.token(FOR_B).await;
    let file = towns.b.site.root().join("token");
    std::fs::write(&file, &token).expect("ours");
    let channel = crate::api::channel(&towns.b.site.data().join("tasks.sock"));
    let bearer = format!("Bearer {token}").parse::<MetadataValue<_>>().expect("a token");
    let mut inside = OperatorClient::with_interceptor(channel, move |mut request: Request<()>| {
        request.metadata_mut().insert("authorization", bearer.clone());
        Ok(request)
    });
    let release = OrderTaskRequest {
        task: own.clone(),
        order: Some(order_task_request::Order::Release(true)),
        reason: String::new(),
    };
    let refused = inside.order_task(release).await.expect_err("it is part of it");
    assert!(refused.message().starts_with("not_entitled"), "{refused:?}");
    assert_eq!(operator.state(&own).await.0, "quarantined");
}
