//! R47: two trust domains, each with a broker of its own, which fetch each other's bundle; and what that
//! does not allow. Points are those of the SPIFFE checklist.

use std::{net::SocketAddr, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use mayfly_core::{SpiffeId, TrustDomain};
use mayfly_verify::{
    Authorize, Follower, Guarded, KeySource, Party, Patience, Remote, WorkloadClient, X509Source,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{client, server};

use crate::{
    common::{Broker, Site, own_uid, until, within},
    dial::free_port,
};

/// One trust domain and its broker.
struct Realm {
    domain: &'static str,
    site: Site,
    broker: Option<Broker>,
    pages: SocketAddr,
    streams: SocketAddr,
}

/// How a realm's document port shows who it is.
const SPIFFE: &str = "\"spiffe\"";
const FILES: &str = "{ cert = \"cert.pem\", key = \"key.pem\" }";

impl Realm {
    /// A realm that has ports and nobody to be friends with.
    fn new(domain: &'static str) -> Self {
        let (pages, streams) = (free_port(), free_port());
        Self { domain, site: Site::new(""), broker: None, pages, streams }
    }

    /// Its configuration, with `tls` at its document port and `friends` for those it federates with.
    fn configure(&self, tls: &str, friends: &[String]) {
        self.configure_with(tls, friends, ("24h", "5m"));
    }

    fn configure_with(&self, tls: &str, friends: &[String], (ca, ttl): (&str, &str)) {
        let uid = own_uid();
        let named = |wanted: bool| {
            let friend = self.other();
            if wanted { format!("federates_with = [\"{friend}\"]") } else { String::new() }
        };
        let (friendly, friends) = (named(!friends.is_empty()), friends.concat());
        let text = format!(
            r#"trust_domain = "{}"
[workload]
socket = "workload.sock"
[authority]
ca_ttl = "{ca}"
jwt_key_ttl = "{ca}"
[http]
listen = "{}"
tls = {tls}
[broker]
listen = "{}"
{friendly}
{friends}
[[profile]]
name = "web"
path = "/shop/web"
selectors = ["unix:uid:{uid}"]
owner = "team"
hint = "web"
x509_ttl = "{ttl}"
jwt_ttl = "{ttl}"
{friendly}
[[profile]]
name = "webhook"
path = "/shop/webhook"
selectors = ["unix:uid:{uid}"]
owner = "team"
hint = "webhook"
x509_ttl = "{ttl}"
jwt_ttl = "{ttl}"
"#,
            self.domain, self.pages, self.streams
        );
        std::fs::write(self.site.config(), text).expect("ours");
    }

    fn other(&self) -> &'static str {
        if self.domain == "a.example" { "b.example" } else { "a.example" }
    }

    /// A federation entry for `friend`, whose endpoint is known by `profile`.
    fn friend(&self, friend: &Self, profile: &str) -> String {
        format!(
            "[[federation]]\ntrust_domain = \"{}\"\nbundle = \"friend.json\"\n\
             bundle_endpoint = {{ url = \"https://localhost:{}/bundle\", profile = {profile} }}\n",
            friend.domain,
            friend.pages.port()
        )
    }

    async fn start(&mut self) {
        self.broker = Some(self.site.start().await);
    }

    fn broker(&self) -> &Broker {
        self.broker.as_ref().expect("it was started")
    }

    /// Hands its bundle to `friend` by another way, as two operators would at the beginning.
    async fn introduce_to(&self, friend: &Self) {
        let bundle = self.broker().workload().fetch_x509().await.expect("an identity");
        let own = bundle.default_svid().expect("never empty").bundle.clone();
        let key = |der: &[u8]| {
            let der = BASE64_STANDARD.encode(der);
            json!({ "use": "x509-svid", "kty": "EC", "x5c": [der] })
        };
        let keys: Vec<_> = own.authorities.iter().map(|der| key(der)).collect();
        let document = json!({ "keys": keys, "spiffe_refresh_hint": 1 }).to_string();
        std::fs::write(friend.site.root().join("friend.json"), document).expect("ours");
    }

    fn fetched(&self, friend: &Self) -> std::path::PathBuf {
        self.site.data().join("bundles").join(format!("{}.json", friend.domain))
    }

    async fn has_fetched(&self, friend: &Self) {
        let there = async || self.fetched(friend).exists().then_some(());
        until("a fetched bundle", there).await;
    }

    fn id(&self, path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://{}{path}", self.domain)).expect("an id")
    }

    fn trust_domain(&self) -> TrustDomain {
        TrustDomain::parse(self.domain).expect("a trust domain")
    }
}

fn spiffe(of: &Realm) -> String {
    format!("{{ https_spiffe = \"{}\" }}", of.id("/mayfly/broker"))
}

/// Two realms that have fetched each other's bundle by `https_spiffe`.
async fn friends() -> (Realm, Realm) {
    let (mut a, mut b) = (Realm::new("a.example"), Realm::new("b.example"));
    a.configure(SPIFFE, &[a.friend(&b, &spiffe(&b))]);
    b.configure(SPIFFE, &[b.friend(&a, &spiffe(&a))]);
    a.start().await;
    b.start().await;
    a.introduce_to(&b).await;
    b.introduce_to(&a).await;
    a.has_fetched(&b).await;
    b.has_fetched(&a).await;
    (a, b)
}

/// A workload of one realm: this process as that realm's broker knows it.
struct Workload {
    source: X509Source,
    follower: Follower,
    keys: KeySource,
}

impl Workload {
    async fn of(realm: &Realm) -> Self {
        let client: WorkloadClient = realm.broker().workload();
        let source = client.watch_x509();
        source.ready().await.expect("an identity");
        let follower = Follower::connect(&realm.broker().endpoint(), Patience::default());
        follower.ready().await;
        Self { source, follower, keys: client.watch_jwt_bundles() }
    }

    async fn knows(&self, domain: &TrustDomain) {
        let mut held = self.source.held();
        let known = held.wait_for(|held| {
            held.context().is_some_and(|context| context.bundle(domain).is_some())
        });
        within("a foreign bundle", known).await.expect("the source lives");
    }

    fn party(&self, authorize: Authorize) -> Party {
        Party::new(self.source.held(), authorize, Arc::clone(self.follower.view()))
    }

    /// A party that shows the identity of this hint.
    fn as_profile(&self, hint: &str, authorize: Authorize) -> Party {
        let held = self.source.held().borrow().clone();
        let mut context = (**held.context().expect("an identity")).clone();
        context.svids.retain(|svid| svid.hint == hint);
        let held = mayfly_verify::Held::Context(Arc::new(context));
        // The sender may go: what was sent last stays.
        let held = tokio::sync::watch::channel(held).1;
        Party::new(held, authorize, Arc::clone(self.follower.view()))
    }

    /// The task of the default identity.
    fn task(&self) -> String {
        let held = self.source.held().borrow().clone();
        let svid = held.context().and_then(|held| held.default_svid().cloned()).expect("one");
        svid.spiffe_id.path().rsplit('/').next().expect("a path").to_owned()
    }
}

pub(crate) type Called = Guarded<client::TlsStream<TcpStream>>;
type Heard = Guarded<server::TlsStream<TcpStream>>;

/// A service that answers one byte with the next for as long as it likes its caller.
pub(crate) async fn serve(party: Party) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut calls = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let party = party.clone();
            calls.spawn(async move {
                let now = mayfly::clock::now();
                let Ok(mut heard): Result<Heard, _> = party.accept(stream, now).await else {
                    return;
                };
                while let Ok(byte) = heard.read_u8().await {
                    if heard.write_u8(byte + 1).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, serving)
}

pub(crate) async fn call(party: &Party, address: SocketAddr) -> std::io::Result<Called> {
    let stream = TcpStream::connect(address).await?;
    let mut live = within("a handshake", party.connect(stream, mayfly::clock::now())).await?;
    ask(&mut live).await?;
    Ok(live)
}

pub(crate) async fn ask(live: &mut Called) -> std::io::Result<()> {
    live.write_u8(41).await?;
    let answer = within("an answer", live.read_u8()).await?;
    assert_eq!(answer, 42);
    Ok(())
}

/// Points 82 to 86 on the way: each side is known by its SVID, fetches begin with a bundle that was
/// handed over and go on with what was fetched.
#[tokio::test]
async fn r47_a_workload_of_one_trust_domain_calls_a_service_of_another() {
    let (a, b) = friends().await;
    let (caller, service) = (Workload::of(&a).await, Workload::of(&b).await);
    caller.knows(&b.trust_domain()).await;
    service.knows(&a.trust_domain()).await;
    // What was handed over has done its duty; nobody needs it any more.
    for realm in [&a, &b] {
        std::fs::write(realm.site.root().join("friend.json"), "rubbish").expect("ours");
    }
    let (address, _serving) =
        serve(service.as_profile("web", Authorize::Profile(a.id("/shop/web")))).await;
    let to = |hint| caller.as_profile(hint, Authorize::Profile(b.id("/shop/web")));
    let live = call(&to("web"), address).await.expect("friends");
    assert!(live.peer().leaf.id.as_str().starts_with("spiffe://b.example/shop/web/task/"));
    assert!(!live.peer().own);

    // Authority does not widen. A name that only looks alike, a name of the other side of it:
    call(&to("webhook"), address).await.expect_err("`/shop/webhook` is not `/shop/web`");
    let own_only = service.as_profile("web", Authorize::TrustDomain(b.trust_domain()));
    let (closed, _serving) = serve(own_only).await;
    call(&to("web"), closed).await.expect_err("it is of another trust domain");
}

/// A token of a friend is good for those alone whose profile federates with the friend.
#[tokio::test]
async fn point_40_a_foreign_token_is_validated_with_bundles_of_the_caller_alone() {
    let (a, b) = friends().await;
    let tokens = a.broker().workload().fetch_jwt(&["shop"], None).await.expect("tokens");
    let (asks, token) = (b.broker().workload(), &tokens[0].token);
    let told = until("the friend's keys", async || asks.validate_jwt("shop", token).await.ok());
    assert_eq!(told.await.trust_domain(), &a.trust_domain());
    let text = std::fs::read_to_string(b.site.config()).expect("ours");
    let profiles = text.split_once("[[profile]]").expect("profiles").1;
    // A task keeps the terms under which it began, so the caller is met under another profile.
    let profiles = profiles.replace("federates_with = [\"a.example\"]", "");
    let profiles = profiles.replace("name = \"web\"", "name = \"shop\"");
    let mut operator = b.broker().operator().await;
    operator.apply(&format!("[[profile]]{profiles}")).await.expect("a good file");
    asks.validate_jwt("shop", token).await.expect_err("it federates with nobody");
}

/// Keys decide, not names: a broker that calls itself by somebody else's trust domain is nobody.
#[tokio::test]
async fn r47_an_impostor_of_a_friends_trust_domain_is_refused() {
    let (a, b) = friends().await;
    let mut impostor = Realm::new("a.example");
    impostor.configure(SPIFFE, &[impostor.friend(&b, &spiffe(&b))]);
    impostor.start().await;
    b.introduce_to(&impostor).await;
    let (caller, service) = (Workload::of(&impostor).await, Workload::of(&b).await);
    caller.knows(&b.trust_domain()).await;
    service.knows(&a.trust_domain()).await;
    let (address, _serving) = serve(service.party(Authorize::Any)).await;
    let refused = call(&caller.party(Authorize::Any), address).await;
    refused.expect_err("the same name, and other keys");
    // Nor does the impostor's endpoint give a bundle to anybody who knows the true one (point 82).
    let mut fooled = Realm::new("b.example");
    fooled.configure(SPIFFE, &[fooled.friend(&impostor, &spiffe(&a))]);
    a.introduce_to(&fooled).await;
    fooled.start().await;
    let said =
        async || fooled.site.said().contains("no federated bundle was fetched").then_some(());
    until("a complaint", said).await;
    assert!(!fooled.fetched(&impostor).exists());
}

/// An endpoint that shows another SVID of the right trust domain is not the one that was named.
#[tokio::test]
async fn point_82_exactly_the_spiffe_id_that_was_named_is_believed() {
    let (mut a, mut b) = (Realm::new("a.example"), Realm::new("b.example"));
    a.configure(SPIFFE, &[]);
    a.start().await;
    a.introduce_to(&b).await;
    let other = format!("{{ https_spiffe = \"{}\" }}", a.id("/mayfly"));
    b.configure(SPIFFE, &[b.friend(&a, &other)]);
    b.start().await;
    let said = async || b.site.said().contains("no federated bundle was fetched").then_some(());
    until("a complaint", said).await;
    assert!(!b.fetched(&a).exists());
    assert!(b.site.said().contains("cannot connect to `https://localhost:"), "{}", b.site.said());
}

/// A bundle says who somebody is. Who may follow is another question, and it has to be answered.
#[tokio::test]
async fn point_89_workloads_of_a_trust_domain_that_was_not_named_may_not_follow() {
    let (mut a, mut b) = (Realm::new("a.example"), Realm::new("b.example"));
    b.configure(SPIFFE, &[b.friend(&a, &spiffe(&a))]);
    // They are friends, but `[broker]` names nobody.
    a.configure(SPIFFE, &[a.friend(&b, &spiffe(&b))]);
    let text = std::fs::read_to_string(a.site.config()).expect("ours");
    let named = format!("listen = \"{}\"\nfederates_with = [\"b.example\"]", a.streams);
    let unnamed = text.replace(&named, &format!("listen = \"{}\"", a.streams));
    assert_ne!(text, unnamed);
    std::fs::write(a.site.config(), unnamed).expect("ours");
    a.start().await;
    b.start().await;
    a.introduce_to(&b).await;
    b.introduce_to(&a).await;
    b.has_fetched(&a).await;
    a.has_fetched(&b).await;
    let stranger = Workload::of(&b).await;
    stranger.knows(&a.trust_domain()).await;
    let party = stranger.party(Authorize::Id(a.id("/mayfly/broker"))).with_alpn(&[b"h2"]);
    let stream = TcpStream::connect(a.streams).await.expect("a port");
    let refused = match party.connect(stream, mayfly::clock::now()).await {
        Err(_) => true,
        Ok(mut stream) => within("an end", stream.read_u8()).await.is_err(),
    };
    assert!(refused);
}

/// Point 86: who is taken out of the configuration is a stranger from then on.
#[tokio::test]
async fn r47_a_trust_domain_that_is_withdrawn_is_refused() {
    let (a, mut b) = friends().await;
    let (caller, service) = (Workload::of(&a).await, Workload::of(&b).await);
    caller.knows(&b.trust_domain()).await;
    service.knows(&a.trust_domain()).await;
    let (address, _serving) = serve(service.party(Authorize::Any)).await;
    let mut live = call(&caller.party(Authorize::Any), address).await.expect("friends");
    b.broker.take().expect("it runs").stop().await;
    b.configure(SPIFFE, &[]);
    b.start().await;
    assert!(!b.fetched(&a).exists(), "what was fetched goes with the relation");
    let refused =
        async || call(&caller.party(Authorize::Any), address).await.is_err().then_some(());
    until("a refusal", refused).await;
    within("the end of what was live", async { while ask(&mut live).await.is_ok() {} }).await;
}

/// Keys change, and nobody has to carry them: each fetch is judged by what the one before brought.
#[tokio::test]
async fn point_83_a_friends_new_keys_come_by_themselves_and_old_ones_go() {
    let (mut a, mut b) = (Realm::new("a.example"), Realm::new("b.example"));
    a.configure(SPIFFE, &[a.friend(&b, &spiffe(&b))]);
    b.configure_with(SPIFFE, &[b.friend(&a, &spiffe(&a))], ("16s", "2s"));
    a.start().await;
    b.start().await;
    a.introduce_to(&b).await;
    b.introduce_to(&a).await;
    a.has_fetched(&b).await;
    b.has_fetched(&a).await;
    let first = b.broker().workload().fetch_x509().await.expect("an identity");
    let first = first.default_svid().expect("never empty").bundle.authorities.clone();
    let first = BASE64_STANDARD.encode(first.first().expect("an authority"));
    let gone = async || {
        let document = std::fs::read_to_string(a.fetched(&b)).expect("it was fetched");
        let keys = document.matches("x509-svid").count();
        (keys > 0 && !document.contains(&first)).then_some(())
    };
    until("a bundle without the first authority", gone).await;
    let (caller, service) = (Workload::of(&a).await, Workload::of(&b).await);
    service.knows(&a.trust_domain()).await;
    caller.knows(&b.trust_domain()).await;
    let (address, _serving) = serve(service.party(Authorize::Any)).await;
    let called = async || call(&caller.party(Authorize::Any), address).await.ok().map(drop);
    until("a call by keys that nobody carried", called).await;
}

/// `https_web`, and what is known is there after a restart.
#[tokio::test]
async fn points_82_and_85_a_bundle_comes_by_the_webs_rules_and_outlives_a_restart() {
    let (mut a, mut b) = (Realm::new("a.example"), Realm::new("b.example"));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("papers");
    for (name, pem) in
        [("cert.pem", made.cert.pem()), ("key.pem", made.signing_key.serialize_pem())]
    {
        std::fs::write(b.site.root().join(name), pem).expect("ours");
    }
    b.configure(FILES, &[]);
    b.start().await;
    // Without the root in `ca` the web's authorities are asked, and they know nothing of it.
    a.configure(SPIFFE, &[a.friend(&b, "\"https_web\"").replace("bundle = \"friend.json\"\n", "")]);
    a.start().await;
    let said = async || a.site.said().contains("no federated bundle was fetched").then_some(());
    until("a complaint", said).await;
    a.broker.take().expect("it runs").stop().await;

    let ca = b.site.root().join("cert.pem");
    let by_web = format!("\"https_web\", ca = \"{}\"", ca.display());
    a.configure(SPIFFE, &[a.friend(&b, &by_web).replace("bundle = \"friend.json\"\n", "")]);
    a.start().await;
    a.has_fetched(&b).await;
    let caller = Workload::of(&a).await;
    caller.knows(&b.trust_domain()).await;
    a.broker.take().expect("it runs").stop().await;
    b.broker.take().expect("it runs").stop().await;
    a.start().await;
    let context = a.broker().workload().fetch_x509().await.expect("an identity");
    assert!(context.bundle(&b.trust_domain()).is_some(), "nobody could be asked");
}

/// A foreign task's end counts here too, where its broker's feed is followed through its port.
#[tokio::test]
async fn r18_r47_a_foreign_task_that_has_ended_is_refused_and_cut_off() {
    let (a, b) = friends().await;
    let (caller, service) = (Workload::of(&a).await, Workload::of(&b).await);
    caller.knows(&b.trust_domain()).await;
    service.knows(&a.trust_domain()).await;
    let remote = Remote {
        address: format!("localhost:{}", a.streams.port()),
        broker: a.id("/mayfly/broker"),
        held: service.source.held(),
        keys: service.keys.keys(),
        clock: mayfly::clock::system(),
    };
    let foreign = remote.follow(Patience::default());
    within("a first word of the foreign feed", foreign.ready()).await;
    let party = service.party(Authorize::Any);
    let party = party.with_foreign_view(a.trust_domain(), Arc::clone(foreign.view()));
    let (address, _serving) = serve(party).await;
    let mut live = call(&caller.party(Authorize::Any), address).await.expect("friends");
    // A thief keeps what it has.
    let stolen = caller.as_profile("web", Authorize::Any);
    let mut operator = a.broker().operator().await;
    operator.end(&caller.task(), "revoked").await.expect("an operator may");
    within("the end of a live connection", async { while ask(&mut live).await.is_ok() {} }).await;
    let refused = async || call(&stolen, address).await.is_err().then_some(());
    until("a refusal", refused).await;
}

/// The same, within one trust domain: a verifier on another machine has nothing but the port.
#[tokio::test]
async fn r18_a_verifier_elsewhere_follows_over_the_brokers_port() {
    let mut a = Realm::new("a.example");
    a.configure(SPIFFE, &[]);
    a.start().await;
    let workload = Workload::of(&a).await;
    let remote = Remote {
        address: a.streams.to_string(),
        broker: a.id("/mayfly/broker"),
        held: workload.source.held(),
        keys: workload.keys.keys(),
        clock: mayfly::clock::system(),
    };
    let wrong = Remote { broker: a.id("/mayfly/other"), ..remote.clone() };
    let (far, deaf) = (remote.follow(Patience::default()), wrong.follow(Patience::default()));
    within("a first word", far.ready()).await;
    let mut operator = a.broker().operator().await;
    let held = workload.source.held().borrow().clone();
    let serial = held.context().and_then(|held| held.default_svid()?.leaf.serial).expect("one");
    operator.end(&workload.task(), "revoked").await.expect("an operator may");
    let revoked = async || far.view().admit(&serial).is_err().then_some(());
    until("the news of an end", revoked).await;
    let sight = deaf.view().sight(tokio::time::Instant::now());
    assert_eq!(sight, mayfly_verify::Sight::Dark, "another name is another broker");
}
