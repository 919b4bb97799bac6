//! Tokens and who shows them: R4, R18 and R20.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as B64};
use http::{HeaderMap, HeaderValue, header};
use mayfly_core::{SpiffeId, Status, Timestamp, TrustDomain};
use mayfly_verify::{
    JwkSets, ListError, Patience, Peer, Refused, StatusLists, View,
    jwt::{self, InvalidToken, Verifier},
    x509::Leaf,
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

use crate::{
    common::{CALM, NOW, delta, serial, view},
    token::{AUDIENCE, Signer, claims, header, sets, with},
};

const LIST: &str = "https://example.org/status/1";

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).expect("a name")
}

fn peer(id: &str) -> Peer {
    let id = SpiffeId::parse(id).expect("an id");
    let (not_before, not_after) = (Timestamp(0), Timestamp(u64::MAX));
    Peer { leaf: Leaf { id, serial: Some(serial(5)), not_before, not_after }, own: true }
}

struct Stage {
    signer: Signer,
    keys: watch::Sender<JwkSets>,
    view: Arc<View>,
}

impl Stage {
    fn new(patience: Patience) -> Self {
        let signer = Signer::p256();
        let keys = watch::Sender::new(sets("example.org", json!([signer.jwk("k1")])));
        Self { signer, keys, view: view(patience) }
    }

    fn bare(&self) -> Verifier {
        Verifier::offline(AUDIENCE, self.keys.subscribe())
    }

    fn verifier(&self) -> Verifier {
        self.bare().with_view(domain("example.org"), Arc::clone(&self.view))
    }

    fn token(&self) -> String {
        self.signer.sign(&header(), &claims())
    }

    fn tell(&self, from: u64, status: Status) {
        let delta = delta(from, from + 1, &[(5, status)]);
        self.view.apply(&delta, Instant::now()).expect("the next delta");
    }
}

/// R4: a stolen token, and the thief has a connection of his own in perfect order.
#[tokio::test]
async fn r4_a_token_that_another_peer_shows_is_refused_and_both_are_named() {
    let stage = Stage::new(CALM);
    let bearer = stage.verifier().verify(&stage.token(), NOW).await.unwrap();
    let owner = peer("spiffe://example.org/a");
    assert_eq!(bearer.presented_by(&owner, NOW).unwrap().id, owner.leaf.id);
    for thief in ["spiffe://example.org/thief", "spiffe://example.org/a/b", "spiffe://other.org/a"]
    {
        let thief = peer(thief);
        let log = Log::default();
        let refused = {
            let _here = log.listen();
            bearer.presented_by(&thief, NOW).unwrap_err()
        };
        let (subject, presenter) = (owner.leaf.id.clone(), thief.leaf.id.clone());
        assert_eq!(refused, Refused::NotTheSubject { subject, presenter });
        let said = log.said();
        for party in [&owner.leaf.id, &thief.leaf.id] {
            assert!(said.contains(&format!("`{party}`")), "{said} does not name {party}");
        }
        assert!(said.contains("not_the_subject"), "{said}");
    }
}

/// R18: what an application keeps is asked again at each use.
#[tokio::test]
async fn r18_a_cached_token_dies_with_its_task() {
    let stage = Stage::new(CALM);
    let (verifier, token) = (stage.verifier(), stage.token());
    let kept = verifier.verify(&token, NOW).await.unwrap();
    let keys = stage.keys.borrow().clone();
    // The hole: a validated token in a cache of the application's own.
    let cached = jwt::validate(&token, AUDIENCE, &keys, NOW).unwrap();
    stage.tell(1, Status::Suspended);
    assert_eq!(kept.claims(NOW).map(drop), Err(Refused::Suspended));
    stage.tell(2, Status::Valid);
    assert_eq!(kept.claims(NOW).unwrap(), &cached);
    stage.tell(3, Status::Revoked);
    assert!(cached.expires_at > NOW, "which says nothing of the end");
    assert_eq!(kept.claims(NOW).map(drop), Err(Refused::Revoked));
    let subject = peer("spiffe://example.org/a");
    assert_eq!(kept.presented_by(&subject, NOW).map(drop), Err(Refused::Revoked));
    assert_eq!(verifier.verify(&token, NOW).await.map(drop), Err(Refused::Revoked));
}

#[tokio::test]
async fn a_kept_token_dies_with_its_key_and_with_its_date() {
    let stage = Stage::new(CALM);
    let kept = stage.verifier().verify(&stage.token(), NOW).await.unwrap();
    let expired = Timestamp(NOW.0 + 60_000);
    assert_eq!(kept.claims(expired).map(drop), Err(InvalidToken::Expired.into()));
    stage.keys.send_replace(sets("example.org", json!([stage.signer.jwk("k2")])));
    let gone = InvalidToken::UnknownKey("k1".into());
    assert_eq!(kept.claims(NOW).map(drop), Err(gone.into()));
    stage.keys.send_replace(JwkSets::default());
    let gone = InvalidToken::Untrusted(domain("example.org"));
    assert_eq!(kept.claims(NOW).map(drop), Err(gone.into()));
}

#[tokio::test(start_paused = true)]
async fn a_token_is_not_believed_in_the_dark() {
    const SECOND: Duration = Duration::from_secs(1);
    let stage = Stage::new(Patience::Closed { after: 3 * SECOND });
    let hurried = stage.verifier().with_patience(Patience::Closed { after: SECOND });
    let (patient, token) = (stage.verifier(), stage.token());
    let kept = patient.verify(&token, NOW).await.unwrap();
    hurried.verify(&token, NOW).await.unwrap();
    tokio::time::advance(SECOND).await;
    assert_eq!(hurried.verify(&token, NOW).await.map(drop), Err(Refused::Dark));
    assert!(kept.claims(NOW).is_ok());
    tokio::time::advance(2 * SECOND).await;
    assert_eq!(kept.claims(NOW).map(drop), Err(Refused::Dark));
}

/// A signature says who made a token, not whether its task goes on.
#[tokio::test]
async fn a_token_whose_status_nobody_tells_is_refused() {
    let stage = Stage::new(CALM);
    let none = Err(Refused::NoStatus(domain("example.org")));
    assert_eq!(stage.bare().verify(&stage.token(), NOW).await.map(drop), none);
    let elsewhere = stage.bare().with_view(domain("other.org"), Arc::clone(&stage.view));
    assert_eq!(elsewhere.verify(&stage.token(), NOW).await.map(drop), none);
    let said = stage.bare().until_expiry(domain("example.org"));
    assert!(said.verify(&stage.token(), NOW).await.is_ok(), "the caller's own choice");
    let other = stage.bare().until_expiry(domain("other.org"));
    assert_eq!(other.verify(&stage.token(), NOW).await.map(drop), none);
    // One of ours whose identifier has no place cannot be looked up, so its end could not be learned.
    let unplaced = stage.signer.sign(&header(), &with(claims(), "jti", json!("x")));
    let refused = stage.verifier().verify(&unplaced, NOW).await.map(drop);
    assert!(matches!(refused, Err(Refused::ForeignSerial(_))), "{refused:?}");
}

// ---- by status list ----

fn list_header() -> Value {
    with(header(), "typ", json!("statuslist+jwt"))
}

/// A list of eight places: valid, revoked, suspended, revoked, and four that are valid.
fn list_claims() -> Value {
    json!({
        "sub": LIST,
        "iat": NOW.seconds(),
        "exp": NOW.seconds() + 3600,
        "ttl": 10,
        "status_list": {"bits": 2, "lst": packed(&[0b01_10_01_00, 0])},
    })
}

fn packed(bytes: &[u8]) -> String {
    use std::io::Read as _;
    let mut encoder = flate2::read::ZlibEncoder::new(bytes, flate2::Compression::default());
    let mut packed = Vec::new();
    encoder.read_to_end(&mut packed).expect("it can be packed");
    B64.encode(packed)
}

struct Lists {
    stage: Stage,
    lists: Arc<StatusLists>,
}

impl Lists {
    fn new() -> Self {
        Self { stage: Stage::new(CALM), lists: StatusLists::new() }
    }

    fn insert(&self, header: &Value, claims: &Value) -> Result<(), ListError> {
        let token = self.stage.signer.sign(header, claims);
        let keys = self.stage.keys.borrow();
        self.lists.insert(&token, LIST, &domain("example.org"), (&keys, NOW))
    }

    async fn judge(&self, idx: u64, uri: &str) -> Result<(), Refused> {
        let status = json!({"status_list": {"idx": idx, "uri": uri}});
        let token = self.stage.signer.sign(&header(), &with(claims(), "status", status));
        let verifier = self.stage.bare().with_lists(Arc::clone(&self.lists));
        verifier.verify(&token, NOW).await.map(drop)
    }
}

#[tokio::test]
async fn a_status_list_answers_for_what_it_holds_and_for_nothing_else() {
    let lists = Lists::new();
    let unknown = Refused::List(ListError::Unknown(LIST.into()));
    assert_eq!(lists.judge(0, LIST).await, Err(unknown.clone()));
    lists.insert(&list_header(), &list_claims()).unwrap();
    for (idx, expected) in [
        (0, Ok(())),
        (1, Err(Refused::Revoked)),
        (2, Err(Refused::Suspended)),
        (3, Err(Refused::Revoked)),
        (7, Ok(())),
        (8, Err(Refused::List(ListError::OutOfRange(8)))),
    ] {
        assert_eq!(lists.judge(idx, LIST).await, expected, "{idx}");
    }
    let elsewhere = "https://example.org/status/2";
    let unknown = Refused::List(ListError::Unknown(elsewhere.into()));
    assert_eq!(lists.judge(0, elsewhere).await, Err(unknown));
}

#[tokio::test(start_paused = true)]
async fn a_status_list_is_not_used_beyond_its_time() {
    let lists = Lists::new();
    lists.insert(&list_header(), &list_claims()).unwrap();
    tokio::time::advance(Duration::from_millis(9_999)).await;
    assert_eq!(lists.judge(0, LIST).await, Ok(()));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(lists.judge(0, LIST).await, Err(ListError::Stale.into()), "its `ttl` is over");
    let forever = with(list_claims(), "ttl", Value::Null);
    lists.insert(&list_header(), &forever).unwrap();
    tokio::time::advance(Duration::from_secs(86_400)).await;
    assert_eq!(lists.judge(0, LIST).await, Ok(()));
    let over = with(list_claims(), "exp", json!(NOW.seconds()));
    assert_eq!(lists.insert(&list_header(), &over), Err(ListError::Expired));
}

#[tokio::test]
async fn a_status_list_that_is_forged_older_or_anothers_is_not_taken() {
    let lists = Lists::new();
    lists.insert(&list_header(), &list_claims()).unwrap();
    let older = with(list_claims(), "iat", json!(NOW.seconds() - 1));
    let all_valid = with(older, "status_list", json!({"bits": 2, "lst": packed(&[0, 0])}));
    assert_eq!(lists.insert(&list_header(), &all_valid), Err(ListError::Older));
    // A token of the same key that is no list.
    let svid = lists.insert(&header(), &list_claims());
    assert_eq!(svid, Err(InvalidToken::Type.into()));
    let other = with(list_claims(), "sub", json!("https://example.org/status/2"));
    let other = lists.insert(&list_header(), &other);
    assert_eq!(other, Err(ListError::Subject("https://example.org/status/2".into())));
    let forger = Signer::p256().sign(&list_header(), &list_claims());
    let keys = lists.stage.keys.borrow().clone();
    let forged = lists.lists.insert(&forger, LIST, &domain("example.org"), (&keys, NOW));
    assert_eq!(forged, Err(InvalidToken::Signature.into()));
    for (name, value) in [
        ("sub", Value::Null),
        ("iat", Value::Null),
        ("status_list", Value::Null),
        ("status_list", json!({"bits": 2})),
        ("status_list", json!({"bits": 3, "lst": packed(&[0])})),
        ("status_list", json!({"bits": 2, "lst": "AAAA"})),
        ("status_list", json!({"bits": 2, "lst": "="})),
    ] {
        let claims = with(list_claims(), name, value);
        assert!(lists.insert(&list_header(), &claims).is_err(), "{claims}");
    }
    assert_eq!(lists.judge(1, LIST).await, Err(Refused::Revoked), "what was held stays");

    // Another trust domain publishes a list under the same address.
    let foreign = Signer::p256();
    let keys = sets("other.org", json!([foreign.jwk("k1")]));
    let all_valid = with(list_claims(), "status_list", json!({"bits": 2, "lst": packed(&[0, 0])}));
    let token = foreign.sign(&list_header(), &all_valid);
    lists.lists.insert(&token, LIST, &domain("other.org"), (&keys, NOW)).unwrap();
    assert_eq!(lists.judge(1, LIST).await, Err(Refused::Revoked), "it speaks of its own alone");
}

// ---- the header ----

#[test]
fn exactly_one_bearer_token_is_taken_from_the_headers() {
    let headers = |values: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        headers
    };
    for good in ["Bearer a.b.c", "bearer a.b.c"] {
        assert_eq!(jwt::bearer(&headers(&[good])), Ok("a.b.c"));
    }
    for bad in [&[][..], &["Bearer a", "Bearer b"], &["Basic a"], &["Bearer"], &["Bearer "], &[""]]
    {
        assert_eq!(jwt::bearer(&headers(bad)), Err(Refused::NoToken), "{bad:?}");
    }
}

/// What is logged on this thread while somebody listens.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl Log {
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn said(&self) -> String {
        String::from_utf8(self.0.lock().expect("not poisoned").clone()).expect("text")
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
