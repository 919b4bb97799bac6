//! The standard mirrors, fetched over TLS from a broker that runs, and read as strangers read them.
//! Points are those of the SPIFFE checklist.

use std::{collections::BTreeMap, io::Read as _, net::SocketAddr};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use mayfly_core::{Serial, SpiffeId};
use mayfly_proto::mayfly::v1::begin_task_request::Holder;
use mayfly_verify::{Endpoint, JwkSet, JwkSets, WorkloadClient, jwt};
use rustls::version;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use x509_parser::prelude::{
    CertificateRevocationList, DistributionPointName, FromDer as _, GeneralName, ParsedExtension,
    X509Certificate,
};

use crate::{
    common::{Broker, Operator, Site, task_of, until, within},
    dial::{dial, free_port, gullible},
    stand::{AUDIENCE, configuration},
};

/// Where documents are served, and how they are asked for.
#[derive(Clone, Copy)]
pub(crate) struct Mirror(pub(crate) SocketAddr);

struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("json")
    }
}

impl Mirror {
    async fn ask(self, method: &str, path: &str, more: &[(&str, &str)], body: &str) -> Answer {
        let mut stream = dial(self.0, &gullible(&version::TLS13)).await.expect("a handshake");
        let length = body.len();
        let mut asked = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n"
        );
        for (name, value) in more {
            asked.push_str(&format!("{name}: {value}\r\n"));
        }
        asked.push_str("\r\n");
        asked.push_str(body);
        stream.write_all(asked.as_bytes()).await.expect("it listens");
        let mut answer = Vec::new();
        // Some end with a reset rather than a goodbye; what arrived is judged below.
        let _end = within("an answer", stream.read_to_end(&mut answer)).await;
        let at = answer.windows(4).position(|part| part == b"\r\n\r\n").expect("a head");
        let (head, body) = answer.split_at(at);
        let head = std::str::from_utf8(head).expect("text");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers: BTreeMap<_, _> =
            headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        let body = body.get(4..).unwrap_or_default().to_vec();
        if method != "HEAD" && headers.contains_key("content-length") {
            assert_eq!(headers["content-length"], body.len().to_string(), "{path}");
        }
        Answer { status: status.expect("a status"), headers, body }
    }

    async fn get(self, path: &str) -> Answer {
        self.ask("GET", path, &[], "").await
    }

    /// A revocation list: its number, its date, and what it says of each serial.
    async fn list(self, path: &str) -> (u64, i64, BTreeMap<String, Option<u8>>) {
        let answer = self.get(path).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/pkix-crl"));
        let (_, list) = CertificateRevocationList::from_der(&answer.body).expect("a list");
        assert!(list.next_update().is_some(), "verifiers demand one");
        let number = list.crl_number().expect("a number").to_string().parse().expect("a number");
        let hex = |octets: &[u8]| octets.iter().map(|o| format!("{o:02x}")).collect::<String>();
        let entries = list.iter_revoked_certificates().map(|entry| {
            (hex(entry.raw_serial()), entry.reason_code().map(|(_, reason)| reason.0))
        });
        (number, list.last_update().timestamp(), entries.collect())
    }

    /// The status at a place of a status list, as the draft says that it is found.
    pub(crate) async fn status(self, uri: &str, index: usize) -> u8 {
        let accept = [("accept", "application/statuslist+jwt")];
        let answer = self.ask("GET", path_of(uri), &accept, "").await;
        let media = answer.header("content-type");
        assert_eq!((answer.status, media), (200, "application/statuslist+jwt"));
        let token = String::from_utf8(answer.body).expect("text");
        let claims = claims(&token);
        assert_eq!(claims["sub"], uri, "octet by octet what the token points to");
        let lst = claims["status_list"]["lst"].as_str().expect("a list");
        let lst = BASE64_URL_SAFE_NO_PAD.decode(lst).expect("base64url");
        let mut octets = Vec::new();
        flate2::read::ZlibDecoder::new(lst.as_slice()).read_to_end(&mut octets).expect("zlib");
        (octets[index / 4] >> (index % 4 * 2)) & 3
    }

    async fn introspect(self, bearer: &str, token: &str) -> Answer {
        let bearer = format!("Bearer {bearer}");
        let form = "application/x-www-form-urlencoded";
        let headers = [("authorization", bearer.as_str()), ("content-type", form)];
        self.ask("POST", "/introspect", &headers, &format!("token={token}")).await
    }
}

fn path_of(url: &str) -> &str {
    let rest = url.strip_prefix("https://").expect("a url");
    rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/")
}

/// What a token says, unverified.
pub(crate) fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).expect("a payload");
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).expect("base64url"))
        .expect("json")
}

/// The one distribution point in a leaf.
fn distribution_point(leaf: &[u8]) -> String {
    let (_, leaf) = X509Certificate::from_der(leaf).expect("a certificate");
    let names = leaf.extensions().iter().find_map(|extension| {
        let ParsedExtension::CRLDistributionPoints(points) = extension.parsed_extension() else {
            return None;
        };
        match points.points.as_slice() {
            [point] => point.distribution_point.clone(),
            _ => None,
        }
    });
    match names {
        Some(DistributionPointName::FullName(names)) => match names.as_slice() {
            [GeneralName::URI(uri)] => (*uri).to_owned(),
            other => panic!("one uri: {other:?}"),
        },
        other => panic!("one full name: {other:?}"),
    }
}

fn site_with(port: SocketAddr, more: &str) -> Site {
    let more = format!(
        "\n[http]\nlisten = \"{port}\"\ntls = \"spiffe\"\n[status]\npublic_url = \"https://{port}\"\n{more}"
    );
    Site::new(&configuration(&more))
}

async fn stand() -> (Site, Broker, Operator, Mirror) {
    let port = free_port();
    let site = site_with(port, "");
    let broker = site.start().await;
    let operator = broker.operator().await;
    (site, broker, operator, Mirror(port))
}

/// A task with a socket, and who comes through it.
async fn booth(operator: &mut Operator) -> (String, WorkloadClient) {
    let begun = operator.begin(task_of("booth", Holder::Socket(true))).await.expect("it begins");
    let endpoint = Endpoint::parse(&format!("unix://{}", begun.socket)).expect("an address");
    (begun.task, WorkloadClient::new(&endpoint))
}

async fn token(client: &WorkloadClient, audience: &str) -> String {
    let tokens = client.fetch_jwt(&[audience], None).await.expect("a token");
    tokens.into_iter().next().expect("one identity").token
}

/// R18, R20: every standard mirror tells of an end, of a quarantine and of its release.
#[tokio::test]
async fn r18_an_end_and_a_quarantine_stand_in_every_mirror() {
    let (_site, broker, mut operator, mirror) = stand().await;
    let (task, client) = booth(&mut operator).await;
    let held = client.fetch_x509().await.expect("an identity");
    let held = held.default_svid().expect("one").clone();
    let serial = held.leaf.serial.expect("ours").to_string();
    let shard = distribution_point(&held.chain[0]);
    let jwt = token(&client, AUDIENCE).await;
    let pointer = claims(&jwt)["status"]["status_list"].clone();
    let (uri, idx) = (pointer["uri"].as_str().expect("a uri"), pointer["idx"].as_u64());
    let idx = idx.and_then(|idx| usize::try_from(idx).ok()).expect("an index");
    let me = token(&broker.workload(), "spiffe://example.org/mayfly/broker").await;
    assert_eq!(
        path_of(uri),
        format!("/status/{}", Serial::parse(&jti(&jwt)).expect("ours").place().window.0)
    );

    let (number, dated, listed) = mirror.list("/crl").await;
    assert!(!listed.contains_key(&serial));
    assert!(!mirror.list(path_of(&shard)).await.2.contains_key(&serial));
    assert_eq!(mirror.status(uri, idx).await, 0);
    let active = mirror.introspect(&me, &jwt).await.json();
    assert_eq!((&active["active"], &active["sub"]), (&true.into(), &claims(&jwt)["sub"]));

    let reason = async |wanted: Option<u8>| {
        let (_, _, full) = mirror.list("/crl").await;
        let (_, _, part) = mirror.list(path_of(&shard)).await;
        let found = (full.get(&serial).copied(), part.get(&serial).copied());
        (found == (wanted.map(Some), wanted.map(Some))).then_some(())
    };
    operator.quarantine(&task).await.expect("it is suspended");
    until("certificateHold in both lists", async || reason(Some(6)).await).await;
    until("suspended in the status list", async || {
        (mirror.status(uri, idx).await == 2).then_some(())
    })
    .await;
    let inactive = mirror.introspect(&me, &jwt).await;
    assert_eq!(
        (inactive.status, inactive.body.as_slice()),
        (200, b"{\"active\":false}".as_slice())
    );

    operator.release(&task).await.expect("it goes on");
    until("off both lists", async || reason(None).await).await;
    until("valid in the status list", async || (mirror.status(uri, idx).await == 0).then_some(()))
        .await;
    assert_eq!(mirror.introspect(&me, &jwt).await.json()["active"], true);

    operator.end(&task, "superseded").await.expect("it ends");
    let at_once = mirror.introspect(&me, &jwt).await;
    assert_eq!(at_once.body, b"{\"active\":false}", "introspection does not wait for a list");
    until("superseded in both lists", async || reason(Some(4)).await).await;
    until("revoked in the status list", async || {
        (mirror.status(uri, idx).await == 1).then_some(())
    })
    .await;
    let (after, later, _) = mirror.list("/crl").await;
    assert!(after > number && later > dated, "{number} {dated} {after} {later}");

    // The same list in PEM, for OpenSSL's kin, and as files.
    let pem = mirror.get("/crl.pem").await;
    assert_eq!(pem.header("content-type"), "application/x-pem-file");
    assert!(String::from_utf8(pem.body).expect("text").starts_with("-----BEGIN X509 CRL-----"));
    let bad = mirror.introspect("nobody", &jwt).await;
    assert_eq!((bad.status, bad.header("www-authenticate")), (401, "Bearer"));
    let other = token(&broker.workload(), "somebody-else").await;
    assert_eq!(mirror.introspect(&other, &jwt).await.status, 401, "a token for somebody else");
}

fn jti(token: &str) -> String {
    claims(token)["jti"].as_str().expect("a jti").to_owned()
}

/// However many tasks end, a list is signed at most once a second, and no two share a date.
#[tokio::test]
async fn lists_are_signed_at_most_once_a_second_while_tasks_end_all_the_time() {
    let (_site, _broker, mut operator, mirror) = stand().await;
    let start = tokio::time::Instant::now();
    let mut lists = BTreeMap::new();
    let mut ends = 0;
    while start.elapsed() < std::time::Duration::from_secs(3) {
        let (task, client) = booth(&mut operator).await;
        client.fetch_x509().await.expect("an identity");
        operator.end(&task, "completed").await.expect("it ends");
        ends += 1;
        let (number, date, listed) = mirror.list("/crl").await;
        let before = lists.insert(number, (date, listed.len()));
        assert!(before.is_none_or(|before| before == (date, listed.len())), "one number, one list");
    }
    let took = start.elapsed().as_secs_f64();
    let dates: std::collections::BTreeSet<_> = lists.values().map(|(date, _)| *date).collect();
    assert_eq!(dates.len(), lists.len(), "no two share a date: {lists:?}");
    assert!(dates.iter().eq(lists.values().map(|(date, _)| date)), "dates rise with numbers");
    // One may have been signed just before the first look.
    assert!(lists.len() as f64 <= took + 2.0, "{ends} ends, {} lists in {took} s", lists.len());
    assert!(lists.len() >= 2, "{ends} ends, {lists:?}");
}

/// Points 64, 80 and 81, and the shape that OIDC relying parties want.
#[tokio::test]
async fn points_64_and_80_documents_are_whole_cached_and_rise_across_a_restart() {
    let port = free_port();
    let mirror = Mirror(port);
    let site = site_with(port, "");
    let broker = site.start().await;
    let issuer = format!("https://{port}");
    let found = mirror.get("/.well-known/openid-configuration").await;
    assert_eq!(found.header("content-type"), "application/json");
    let found = found.json();
    assert_eq!(found["issuer"], issuer.as_str());
    let jwks = found["jwks_uri"].as_str().expect("a uri").to_owned();
    assert_eq!(jwks, format!("{issuer}/keys"));

    // A token of this issuer, verified with nothing but what discovery leads to.
    let jwt = token(&broker.workload(), AUDIENCE).await;
    assert_eq!(claims(&jwt)["iss"], issuer.as_str());
    let answer = mirror.get(path_of(&jwks)).await;
    let mut keys = JwkSets::default();
    let domain = SpiffeId::parse("spiffe://example.org/x").expect("an id").trust_domain().clone();
    keys.insert(domain, JwkSet::parse(&answer.body).expect("keys"));
    jwt::validate(&jwt, AUDIENCE, &keys, mayfly::clock::now()).expect("a good token");

    let etag = answer.header("etag").to_owned();
    let again = mirror.ask("GET", "/keys", &[("if-none-match", &etag)], "").await;
    assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, etag.as_str()));
    let head = mirror.ask("HEAD", "/bundle", &[], "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    let refused = mirror.ask("POST", "/bundle", &[], "").await;
    assert_eq!((refused.status, refused.header("content-type")), (405, "application/problem+json"));

    let sequence = async || {
        let bundle = mirror.get("/bundle").await.json();
        let uses: Vec<_> =
            bundle["keys"].as_array().expect("keys").iter().map(|key| key["use"].clone()).collect();
        assert_eq!(uses, ["x509-svid", "jwt-svid"]);
        bundle["spiffe_sequence"].as_u64().expect("a number")
    };
    let (first, (number, date, _)) = (sequence().await, mirror.list("/crl").await);
    broker.kill().await;
    let broker = site.start().await;
    assert!(sequence().await > first, "or it is the same content under a lower number");
    let (after, later, _) = mirror.list("/crl").await;
    assert!(after > number && later > date, "{number} {date} {after} {later}");
    assert_eq!(mirror.get("/keys").await.header("etag"), etag, "the same keys, the same tag");

    for path in ["/healthz", "/readyz"] {
        assert_eq!(mirror.get(path).await.status, 200, "{path}");
    }
    let missing = mirror.get("/nowhere").await;
    assert_eq!((missing.status, missing.json()["code"].as_str()), (404, Some("no_such_path")));
    assert_eq!(mirror.get("/status/1").await.status, 404, "a window that is long over");
    drop(broker);
}

/// What is measured is what happened.
#[tokio::test]
async fn measurements_agree_with_what_was_done() {
    let (_site, broker, mut operator, mirror) = stand().await;
    let (task, client) = booth(&mut operator).await;
    client.fetch_x509().await.expect("an identity");
    token(&client, AUDIENCE).await;
    operator.end(&task, "failed").await.expect("it ends");
    client.fetch_x509().await.expect_err("it is over");
    let measured = async || {
        let text = String::from_utf8(mirror.get("/metrics").await.body).expect("text");
        let of = |name: &str| -> Option<f64> {
            let line =
                text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(n, _)| n == name));
            line?.rsplit_once(' ')?.1.parse().ok()
        };
        let told = of("mayfly_tasks_ended_remembered{cause=\"failed\"}") == Some(1.0)
            && of("mayfly_credentials_issued_total{kind=\"jwt\"}") == Some(1.0)
            && of("mayfly_credentials_issued_total{kind=\"x509\"}") == Some(2.0)
            && of("mayfly_crl_entries") == Some(1.0)
            && of("mayfly_journal_commit_seconds_count").is_some_and(|count| count > 0.0)
            && of("mayfly_issuing") == Some(1.0)
            && of("mayfly_tasks_live{state=\"active\"}") == Some(1.0);
        told.then_some(())
    };
    until("numbers that agree", measured).await;
    drop(broker);
}
