//! The configuration file: what the reference says, and what is refused in which words.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

use std::{path::Path, sync::Arc};

use mayfly::config::{
    BrokerApiPort, BundleEndpoint, Config, ConfigError, EndpointProfile, Federation, FeedPort,
    HttpPort, KeyStorage, OidcRule, PortTls, Subject,
};
use mayfly_core::{Act, Binding, Principal, Span, SpiffeId, TrustDomain};
use mayfly_policy::rights::Object;
use mayfly_serve::{Allowance, Brokers, sds::Names};

/// The reference configuration, which documents every key.
const REFERENCE: &str = include_str!("../../../deploy/mayfly.toml");
const HOURS_24: Span = Span::from_secs(24 * 3600);
const PROFILE: &str =
    "[[profile]]\nname = \"a\"\npath = \"/a\"\nowner = \"o\"\nselectors = [\"unix:uid:1\"]\n";

#[test]
fn the_reference_configuration_means_what_its_comments_say() {
    let config = parse(REFERENCE).expect("the reference is good");
    assert_eq!(config.trust_domain.as_str(), "example.org");
    assert_eq!(config.workload_socket, Path::new("/run/mayfly/workload.sock"));
    assert_eq!(config.workload_mode, 0o777);
    assert_eq!(config.key_storage, KeyStorage::Disk);
    assert_eq!((config.ca_ttl, config.jwt_key_ttl), (HOURS_24, HOURS_24));
    assert_eq!(config.public_url, None);
    assert_eq!(config.dbus, None, "the system bus");
    assert_eq!(config.admission, mayfly_core::Admission::default());
    assert_eq!(config.secret_names, Names::default());
    let partner = TrustDomain::parse("partner.example").expect("a trust domain");
    let bundle = Some(Path::new("/etc/mayfly/partner.json").to_owned());
    let partners = [Federation { trust_domain: partner.clone(), bundle, endpoint: None }];
    assert_eq!(config.federation, partners);
    assert_eq!((config.http, config.feed_port), (None, None), "no port is open by itself");
    assert_eq!(config.broker_api, None, "nor is anybody a broker");
    let names: Vec<_> = config.profiles.names().collect();
    assert_eq!(names, ["web", "job", "sandbox"]);
    let web = config.profiles.terms("web").expect("it is there");
    assert_eq!(web.binding, Binding::Cgroup);
    assert!(!web.stable_identity);
    assert_eq!(web.hint, "internal");
    assert_eq!(web.task_ttl, Some(Span::from_secs(12 * 3600)));
    assert_eq!(web.federates_with, [partner]);
}

#[test]
fn the_reference_shows_the_defaults_where_it_says_so() {
    let (reference, silent) =
        (parse(REFERENCE).expect("the reference is good"), parse("").expect("nothing is fine"));
    assert_eq!(reference.trust_domain, silent.trust_domain);
    assert_eq!(reference.workload_mode, silent.workload_mode);
    assert_eq!(reference.key_storage, silent.key_storage);
    assert_eq!(reference.ca_ttl, silent.ca_ttl);
    assert_eq!(reference.jwt_key_ttl, silent.jwt_key_ttl);
    let terms = |config: &Config, name: &str| {
        let terms = config.profiles.terms(name).expect("it is there");
        (terms.x509_ttl, terms.jwt_ttl, terms.stable_identity)
    };
    assert_eq!(terms(&reference, "web"), terms(&silent, "dev"));
}

#[test]
fn the_reference_says_who_orchestrates_and_silence_says_nobody() {
    let rights = parse(REFERENCE).expect("the reference is good").rights;
    let supervisor = SpiffeId::parse("spiffe://example.org/supervisor").expect("an id");
    let job = Object::Profile { name: "job", path: "/elsewhere" };
    let web = Object::Profile { name: "web", path: "/shop/web" };
    let sandbox = Object::Profile { name: "sandbox", path: "/lab/sandbox" };
    for who in [Principal::User(1001), Principal::Spiffe(supervisor)] {
        for (object, wanted) in [(job, true), (web, true), (sandbox, false)] {
            assert_eq!(rights.judge(&who, Act::Begin, object).is_ok(), wanted, "{who} {object:?}");
            assert!(rights.judge(&who, Act::Release, object).is_err(), "{who} {object:?}");
        }
    }
    let silent = parse("").expect("nothing is fine").rights;
    assert!(silent.judge(&Principal::User(1001), Act::Read, job).is_err());
}

#[test]
fn a_broker_may_be_told_to_do_less_at_once_and_not_more() {
    let narrow = parse("[admission]\nsigning = 1\nwaiting = 100").expect("the least").admission;
    assert_eq!((narrow.signing_max, narrow.waiting_max), (1, 100));
    for (text, wanted) in [
        ("signing = 513", "`admission.signing` has to be from 1 to 512"),
        ("signing = 0", "`admission.signing` has to be from 1 to 512"),
        ("waiting = 99", "`admission.waiting` has to be from 100 to 16384"),
    ] {
        assert!(refusal(&format!("[admission]\n{text}")).contains(wanted), "{text}");
    }
}

#[test]
fn a_role_that_makes_no_sense_is_refused_by_its_key() {
    let all = "subjects = [\"uid:1\"]";
    for (role, wanted) in [
        (format!("role = \"admin\"\n{all}"), "`role.role` has to be one of \"orchestrator\""),
        ("role = \"auditor\"\nsubjects = []".into(), "`role.subjects` has to name somebody"),
        ("role = \"auditor\"\nsubjects = [\"root\"]".into(), "`role.subjects` holds \"root\""),
        (format!("role = \"orchestrator\"\n{all}"), "which tasks are its own?"),
        (format!("role = \"orchestrator\"\n{all}\npaths = [\"x\"]"), "`role.paths` \"x\""),
        (format!("role = \"operator\"\n{all}\nprofiles = [\"a\"]"), "are for orchestrators"),
        (format!("role = \"auditor\"\n{all}\nx = 1"), "unknown field `x`"),
        ("role = \"auditor\"".into(), "missing field `subjects`"),
    ] {
        let told = refusal(&format!("[[role]]\n{role}"));
        assert!(told.contains(wanted), "{role}\nsays   {told}\nwanted {wanted}");
    }
}

#[test]
fn the_key_that_the_reference_leaves_out_can_be_taken_as_it_stands() {
    let told = REFERENCE.replace("# public_url", "public_url");
    let config = parse(&told).expect("it is still good");
    assert_eq!(config.public_url.as_deref(), Some("https://mayfly.example.org"));
}

/// Takes the `# ` away from every line of the reference that is a key or a table when it is gone.
fn uncommented(whole: &str) -> String {
    let key = |line: &str| {
        line.starts_with('[')
            || line.split_once(" = ").is_some_and(|(key, _)| {
                !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            })
    };
    let line = |line: &str| match line.strip_prefix("# ") {
        Some(bare) if key(bare) => format!("{bare}\n"),
        _ => format!("{line}\n"),
    };
    whole.lines().map(line).collect()
}

#[test]
fn the_ports_and_endpoints_that_the_reference_leaves_out_can_be_taken_as_they_stand() {
    let config = parse(&uncommented(REFERENCE)).expect("it is still good");
    let listen = "0.0.0.0:8443".parse().expect("an address");
    assert_eq!(config.http, Some(HttpPort { listen, tls: PortTls::Spiffe }));
    let listen = "0.0.0.0:8444".parse().expect("an address");
    let partner = TrustDomain::parse("partner.example").expect("a trust domain");
    assert_eq!(config.feed_port, Some(FeedPort { listen, federates_with: vec![partner] }));
    let endpoint = config.federation.first().and_then(|entry| entry.endpoint.clone());
    let id = SpiffeId::parse("spiffe://partner.example/mayfly/broker").expect("an id");
    let url = "https://mayfly.partner.example:8443/bundle".parse().expect("a url");
    let profile = EndpointProfile::HttpsSpiffe { id };
    assert_eq!(endpoint, Some(BundleEndpoint { url, profile }));
    let [issuer] = config.oidc.as_slice() else { panic!("one issuer: {:?}", config.oidc) };
    assert_eq!(issuer.issuer, "https://token.actions.githubusercontent.com");
    assert_eq!(issuer.audience, "spiffe://example.org");
    assert!(issuer.jwks_uri.is_some());
    assert_eq!(issuer.server, EndpointProfile::HttpsWeb { ca: None });
    let subject = Subject::Exactly("repo:acme/shop:environment:production".to_owned());
    let claims = [("ref", "refs/heads/main"), ("repository", "acme/shop")];
    let claims = claims.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    assert_eq!(issuer.rules, [OidcRule { subject, claims, profile: "ci-job".to_owned() }]);
}

#[test]
fn an_issuer_vouches_for_subjects_of_roles_and_no_role_is_of_subjects_of_nobody() {
    let issuer = "[[oidc]]\nissuer = \"https://i.org\"\naudience = \"a\"\n";
    let role = "[[role]]\nrole = \"auditor\"\nsubjects = [\"oidc:https://i.org#alice\"]\n";
    let config = parse(&format!("{issuer}{role}")).expect("people need no port for pipelines");
    assert!(config.oidc.first().expect("an issuer").rules.is_empty());
    let told = refusal(role);
    assert!(told.contains("subjects of `https://i.org`, which has no [[oidc]] entry"), "{told}");
    let told = refusal(&format!("{issuer}{}", role.replace("i.org#", "j.org#")));
    assert!(told.contains("has no [[oidc.rule]] and no [[role]] names its subjects"), "{told}");
}

#[test]
fn r5_an_issuer_is_told_whole_and_lets_nobody_in_by_mistake() {
    let http = "[http]\nlisten = \"127.0.0.1:1\"\ntls = \"spiffe\"\n";
    let rule = "[[oidc.rule]]\nsubject = \"s\"\nprofile = \"p\"\n";
    let good = "[[oidc]]\nissuer = \"https://i.org\"\naudience = \"a\"\n";
    let whole = format!("{http}{good}{rule}");
    let issuer = parse(&whole).expect("a good file").oidc.pop().expect("an issuer");
    assert_eq!(issuer.discovery, "https://i.org/.well-known/openid-configuration");
    let starred = parse(&whole.replace("\"s\"", "\"repo:a/b:*\"")).expect("a good file");
    let subject = &starred.oidc.first().and_then(|one| one.rules.first()).expect("a rule").subject;
    assert!(subject.covers("repo:a/b:ref:x") && subject.covers("repo:a/b:"));
    assert!(!subject.covers("repo:a/bc:ref:x") && !subject.covers("xrepo:a/b:"));
    for (from, to, wanted) in [
        (http, "", "`oidc` needs an [http] table"),
        (rule, "", "has no [[oidc.rule]]"),
        ("https://i.org", "http://i.org", "has to begin with `https://`"),
        ("https://i.org", "https://u@i.org", "neither user nor password"),
        ("https://i.org", "https://i.org?x=1", "may have no query"),
        ("https://i.org", "i.org", "`oidc.issuer`"),
        ("audience = \"a\"", "audience = \"\"", "`oidc.audience` has to be a text"),
        ("audience = \"a\"\n", "", "missing field `audience`"),
        ("audience = \"a\"\n", "audience = \"a\"\naudiences = []\n", "unknown field `audiences`"),
        (
            "audience = \"a\"\n",
            "audience = \"a\"\njwks_uri = \"http://i.org\"\n",
            "`oidc.jwks_uri`",
        ),
        ("audience = \"a\"\n", "audience = \"a\"\nprofile = \"web\"\n", "`oidc.profile` has to be"),
        (
            "audience = \"a\"\n",
            "audience = \"a\"\nprofile = { https_spiffe = \"spiffe://x.y/z\" }\n",
            "needs a [[federation]] entry",
        ),
        ("\"s\"", "\"*\"", "may not be everybody"),
        ("\"s\"", "\"a*b\"", "may have a `*` at its end alone"),
        ("\"s\"", "\"\"", "`oidc.rule.subject` has to be a text"),
        ("\"s\"", "\"s\"\nclaims = { n = 7 }", "invalid type: integer"),
        ("\"s\"", "\"s\"\nclaim = {}", "unknown field `claim`"),
        ("profile = \"p\"\n", "", "missing field `profile`"),
    ] {
        let text = whole.replace(from, to);
        let told = refusal(&text);
        assert!(told.contains(wanted), "{text}\nsays   {told}\nwanted {wanted}");
    }
    let twice = format!("{whole}{good}{rule}");
    assert!(refusal(&twice).contains("names `https://i.org` twice"));
    let own = format!("{whole}[status]\npublic_url = \"https://i.org/\"\n");
    assert!(refusal(&own).contains("is our own `status.public_url`"));
}

#[test]
fn the_broker_api_that_the_reference_leaves_out_can_be_taken_as_it_stands() {
    let config = parse(&uncommented(REFERENCE)).expect("it is still good");
    let id = SpiffeId::parse("spiffe://example.org/orchestrator").expect("an id");
    let within = Some(Arc::new(["job".to_owned()].into()));
    let wanted = BrokerApiPort {
        socket: "/run/mayfly-broker/broker.sock".into(),
        listen: Some("127.0.0.1:8445".parse().expect("an address")),
        brokers: Brokers::from([(id, Allowance { pid: true, task: true, within })]),
    };
    assert_eq!(config.broker_api, Some(wanted));
}

#[test]
fn point_89_brokers_are_listed_by_exact_name_and_with_what_they_may_do() {
    const BROKER: &str = "[[broker_api.broker]]\nspiffe_id = \"spiffe://example.org/o\"\n";
    let with = |references: &str| format!("[broker_api]\n{BROKER}references = {references}\n");
    let port = parse(&with("[\"task\"]")).expect("a good file").broker_api.expect("a port");
    assert_eq!(
        (port.listen, port.socket.as_path()),
        (None, Path::new("/var/lib/mayfly/broker/broker.sock"))
    );
    let allowances: Vec<_> = port.brokers.into_values().collect();
    assert_eq!(allowances, [Allowance { pid: false, task: true, within: None }]);
    let named = |id: &str| with("[\"pid\"]").replace("spiffe://example.org/o", id);
    for (text, wanted) in [
        ("[broker_api]".to_owned(), "`broker_api.broker` has to name at least one broker"),
        (with("[\"pid\"]") + &with("[\"pid\"]").replace("[broker_api]\n", ""), "twice"),
        (format!("[broker_api]\n{BROKER}"), "missing field `references`"),
        (with("[]"), "has to name \"pid\", \"task\" or both"),
        (with("[\"kubernetes\"]"), "knows \"pid\" and \"task\", not `kubernetes`"),
        (with("[\"pid\"]\nprofiles = []"), "has to name a profile; leave it out to mean all"),
        (with("[\"pid\"]\nadmin = true"), "unknown field `admin`"),
        (named("orchestrator"), "`broker_api.broker.spiffe_id` `orchestrator`: "),
        (named("spiffe://example.org"), "names a trust domain, not a broker"),
        (named("spiffe://stranger.org/o"), "which has no [[federation]] entry"),
        (
            with("[\"pid\"]").replace("_api]\n", "_api]\nlisten = \"localhost:1\"\n"),
            "has to be an IP address",
        ),
    ] {
        let told = refusal(&text);
        assert!(told.contains(wanted), "{text}\nsays   {told}\nwanted {wanted}");
    }
}

#[test]
fn point_90_brokers_and_workloads_do_not_meet_in_one_folder() {
    let text = "[workload]\nsocket = \"/run/m/w.sock\"\n[broker_api]\nsocket = \"/run/m/b.sock\"\n\
                [[broker_api.broker]]\nspiffe_id = \"spiffe://example.org/o\"\nreferences = [\"pid\"]";
    assert!(refusal(text).contains("`broker_api.socket` has to be in another folder"));
    assert!(parse(&text.replace("/m/b.sock", "/b/b.sock")).is_ok());
}

#[test]
fn a_port_shows_the_brokers_own_svid_or_what_is_in_files() {
    let text = "[http]\nlisten = \"[::1]:1\"\ntls = { cert = \"c.pem\", key = \"/k.pem\" }";
    let http = parse(text).expect("a good file").http.expect("a port");
    let (cert, key) = (Path::new("/etc/mayfly/c.pem").into(), Path::new("/k.pem").into());
    assert_eq!(http.tls, PortTls::Files { cert, key });
    const TLS: &str = "`http.tls` has to be \"spiffe\" or { cert = \"FILE\", key = \"FILE\" }";
    const LISTEN: &str = "has to be an IP address and a port such as";
    for (port, wanted) in [
        ("[http]\nlisten = \"[::1]:1\"\ntls = \"none\"", TLS),
        ("[http]\nlisten = \"[::1]:1\"\ntls = { cert = \"c\" }", TLS),
        ("[http]\nlisten = \"[::1]:1\"\ntls = { cert = \"c\", key = 1 }", TLS),
        ("[http]\nlisten = \"[::1]:1\"\ntls = { cert = \"c\", key = \"k\", ca = \"x\" }", TLS),
        ("[http]\nlisten = \"[::1]:1\"", "missing field `tls`"),
        ("[http]\nlisten = \"localhost:1\"\ntls = \"spiffe\"", LISTEN),
        ("[http]\nlisten = \"127.0.0.1\"\ntls = \"spiffe\"", LISTEN),
        ("[http]\nlisten = \"127.0.0.1:1\"\ntls = \"spiffe\"\nx = 1", "unknown field `x`"),
        ("[broker]\nlisten = \"8443\"", LISTEN),
        ("[broker]\nlisten = \"127.0.0.1:1\"\nfederates_with = [\"b.c\"]", "no [[federation]]"),
    ] {
        let told = refusal(port);
        assert!(told.contains(wanted), "{port:?}\nsays   {told}\nwanted {wanted}");
    }
}

#[test]
fn point_86_an_endpoint_is_told_whole_and_nothing_of_it_is_guessed() {
    let with = |endpoint: &str| {
        format!(
            "[[federation]]\ntrust_domain = \"b.c\"\nbundle = \"b.json\"\nbundle_endpoint = {endpoint}"
        )
    };
    let good = parse(&with(
        "{ url = \"https://elsewhere.org/x\", profile = \"https_web\", ca = \"r.pem\" }",
    ));
    let entry = good.expect("a good file").federation.pop().expect("an entry");
    let profile = entry.endpoint.expect("an endpoint").profile;
    let ca = Some(Path::new("/etc/mayfly/r.pem").into());
    assert_eq!(profile, EndpointProfile::HttpsWeb { ca });
    let spiffe =
        |id: &str| format!("{{ url = \"https://b.c/\", profile = {{ https_spiffe = \"{id}\" }} }}");
    assert!(parse(&with(&spiffe("spiffe://b.c/endpoint"))).is_ok());
    assert!(parse(&with(&spiffe("spiffe://example.org/endpoint"))).is_ok(), "our own may vouch");
    for (endpoint, wanted) in [
        ("{ profile = \"https_web\" }", "missing field `url`"),
        ("{ url = \"https://b.c/\" }", "missing field `profile`"),
        ("{ url = \"http://b.c/\", profile = \"https_web\" }", "has to begin with `https://`"),
        ("{ url = \"https://u:p@b.c/\", profile = \"https_web\" }", "neither user nor password"),
        ("{ url = \"https://\", profile = \"https_web\" }", "is not a URL"),
        ("{ url = \"https://b.c/\", profile = \"web\" }", "has to be \"https_web\" or"),
        (&spiffe("b.c/x"), "is not a SPIFFE ID"),
        (&spiffe("spiffe://b.c"), "names a trust domain, not a server"),
        (&spiffe("spiffe://stranger.org/x"), "has to be the own trust domain or another entry"),
        (
            "{ url = \"https://b.c/\", profile = { https_spiffe = \"spiffe://b.c/x\" }, ca = \"r\" }",
            "is for the profile \"https_web\" alone",
        ),
    ] {
        let told = refusal(&with(endpoint));
        assert!(told.contains(wanted), "{endpoint}\nsays   {told}\nwanted {wanted}");
    }
    let without = with(&spiffe("spiffe://b.c/x")).replace("bundle = \"b.json\"\n", "");
    assert!(refusal(&without).contains("a `bundle` to begin with has to be told"));
}

#[test]
fn the_brokers_own_profile_cannot_be_defined() {
    let named = PROFILE.replace("name = \"a\"", "name = \"mayfly\"");
    assert!(refusal(&named).contains("`mayfly` is the broker's own profile"));
    let placed = PROFILE.replace("\"/a\"", "\"/mayfly/broker\"");
    assert!(refusal(&placed).contains("`/mayfly/broker` belongs to the broker itself"));
}

#[test]
fn a_file_that_says_nothing_means_what_no_file_means() {
    let config = parse("").expect("nothing is fine");
    assert_eq!(config.workload_socket, Path::new("/var/lib/mayfly/workload.sock"));
    assert_eq!(config.workload_mode, 0o777);
    assert_eq!(config.key_storage, KeyStorage::Disk);
    assert_eq!(config.ca_ttl, HOURS_24);
    assert!(config.federation.is_empty());
    assert_eq!(config.profiles.names().collect::<Vec<_>>(), ["dev"]);
}

#[test]
fn one_profile_of_ones_own_replaces_the_built_in_one() {
    let config = parse(PROFILE).expect("a good file");
    assert_eq!(config.profiles.names().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn point_109_the_names_of_secrets_can_be_chosen_if_they_can_be_told_apart() {
    let config = parse("[envoy]\ndefault = \"me\"\nall = \"everybody\"").expect("good names");
    let names = Names { default: "me".into(), all: "everybody".into(), ..Names::default() };
    assert_eq!(config.secret_names, names);
    for (text, complaint) in [
        ("default = \"\"", "`envoy.default` has to be a name and no SPIFFE ID"),
        ("root = \"spiffe://td\"", "`envoy.root` has to be a name and no SPIFFE ID"),
        ("all = \"ROOTCA\"", "`envoy.root` has to differ from the other two names"),
    ] {
        let refusal = refusal(&format!("[envoy]\n{text}"));
        assert!(refusal.contains(complaint), "{refusal}");
    }
}

#[test]
fn the_command_lines_trust_domain_wins() {
    let text = "trust_domain = \"of.file\"";
    let paths = (Path::new("/etc/mayfly"), Path::new("/var/lib/mayfly"));
    let config = Config::parse(text, paths, Some("of.command.line"), 1000).expect("a good file");
    assert_eq!(config.trust_domain.as_str(), "of.command.line");
}

#[test]
fn a_relative_path_starts_at_the_files_own_folder() {
    let text = "[workload]\nsocket = \"run/w.sock\"\ntask_sockets = \"run\"\n[[federation]]\ntrust_domain = \"b.c\"\n\
                bundle = \"b.pem\"";
    let config = parse(text).expect("a good file");
    assert_eq!(config.workload_socket, Path::new("/etc/mayfly/run/w.sock"));
    assert_eq!(config.task_sockets.as_deref(), Some(Path::new("/etc/mayfly/run")));
    let bundles: Vec<_> = config.federation.iter().map(|one| one.bundle.as_deref()).collect();
    assert_eq!(bundles, [Some(Path::new("/etc/mayfly/b.pem"))]);
}

#[test]
fn the_task_api_can_stand_where_other_users_reach_it() {
    assert_eq!(parse("").expect("nothing is fine").tasks_socket, None);
    let config = parse("[tasks]\nsocket = \"run/tasks.sock\"").expect("a good file");
    assert_eq!(config.tasks_socket, Some(("/etc/mayfly/run/tasks.sock".into(), 0o666)));
    let narrow = parse("[tasks]\nsocket = \"/run/t.sock\"\nmode = \"0660\"").expect("a good file");
    assert_eq!(narrow.tasks_socket, Some(("/run/t.sock".into(), 0o660)));
    for (text, complaint) in [
        ("socket = \"/var/lib/mayfly/tasks.sock\"", "`tasks.socket` has to be a path of its own"),
        ("socket = \"/var/lib/mayfly/admin.sock\"", "`tasks.socket` has to be a path of its own"),
        (
            "socket = \"/var/lib/mayfly/workload.sock\"",
            "`tasks.socket` has to be a path of its own",
        ),
        ("mode = \"0600\"", "`tasks.mode` is that of `tasks.socket`, which is missing"),
        ("socket = \"t\"\nmode = \"rw\"", "`tasks.mode` has to be an octal number"),
        ("path = \"t\"", "unknown field"),
    ] {
        let refusal = refusal(&format!("[tasks]\n{text}"));
        assert!(refusal.contains(complaint), "{refusal}");
    }
}

#[test]
fn systemd_is_asked_over_a_local_bus_or_not_at_all() {
    let local = "unix:path=/run/dbus/system_bus_socket";
    let config = parse(&format!("[attest]\ndbus = \"{local}\"")).expect("a local bus");
    assert_eq!(config.dbus.as_deref(), Some(local));
    let engine = parse("[attest]\nengine = \"/run/docker.sock\"").expect("a path").engine;
    assert_eq!(engine.as_deref(), Some(Path::new("/run/docker.sock")));
    assert!(refusal("[attest]\nengine = \"docker.sock\"").contains("`attest.engine` has to be"));
    for address in
        ["", "tcp:host=127.0.0.1,port=4000", "/run/bus", "unix:path=bus", "unixexec:path=/x"]
    {
        let refusal = refusal(&format!("[attest]\ndbus = \"{address}\""));
        assert!(refusal.contains("`attest.dbus` has to be an address"), "{address}: {refusal}");
    }
    assert!(refusal("[attest]\nbus = \"x\"").contains("unknown field `bus`"));
}

#[test]
fn every_malformed_value_is_refused_with_its_key_and_rule() {
    const MODE: &str = "`workload.mode` has to be an octal number such as \"0770\"";
    const STORAGE: &str = "`authority.storage` has to be \"disk\" or \"memory\"";
    const CA_TTL: &str = "`authority.ca_ttl` has to be a duration such as \"24h\"";
    const TWICE: &str = "`federation.trust_domain` names `b.c` twice, or the own trust domain";
    let friend = |domain: &str| {
        format!("[[federation]]\ntrust_domain = \"{domain}\"\nbundle = \"b.json\"\n")
    };
    let cases = [
        ("trust_domain = \"\"".to_owned(), "`trust_domain` ``: "),
        ("trust_domain = \"Exa mple\"".to_owned(), "`trust_domain` `Exa mple`: "),
        ("trust_domain = \"spiffe://a.b\"".to_owned(), "`trust_domain` `spiffe://a.b`: "),
        ("[workload]\nmode = \"rwxrwx---\"".to_owned(), MODE),
        ("[workload]\nmode = \"0999\"".to_owned(), MODE),
        ("[workload]\nmode = \"4755\"".to_owned(), MODE),
        ("[workload]\nmode = \"-1\"".to_owned(), MODE),
        ("[authority]\nstorage = \"tpm\"".to_owned(), STORAGE),
        ("[authority]\nstorage = \"Disk\"".to_owned(), STORAGE),
        ("[authority]\nca_ttl = \"a day\"".to_owned(), CA_TTL),
        ("[authority]\nca_ttl = \"\"".to_owned(), CA_TTL),
        ("[authority]\nca_ttl = \"1s\"".to_owned(), "`authority.ca_ttl` has to be at least 2s"),
        (
            "[authority]\njwt_key_ttl = \"500ms\"".to_owned(),
            "`authority.jwt_key_ttl` has to be at least 2s",
        ),
        (friend("b/c"), "`federation.trust_domain` `b/c`: "),
        (friend("b.c").repeat(2), TWICE),
        (format!("trust_domain = \"b.c\"\n{}", friend("b.c")), TWICE),
    ];
    for (text, message) in cases {
        let told = refusal(&text);
        let wanted = format!("invalid configuration: {message}");
        assert!(told.starts_with(&wanted), "{text:?}\nsays   {told}\nwanted {wanted}");
    }
}

#[test]
fn every_unknown_missing_or_mistyped_key_is_named() {
    for (text, names) in [
        ("trust-domain = \"a.b\"", "unknown field `trust-domain`"),
        ("[workloads]", "unknown field `workloads`"),
        ("[workload]\nsockets = \"/s\"", "unknown field `sockets`"),
        ("[workload]\nmode = 0o770", "invalid type: integer"),
        ("[authority]\nca_lifetime = \"1d\"", "unknown field `ca_lifetime`"),
        ("[authority]\nca_ttl = 86400", "invalid type: integer"),
        ("[status]\nurl = \"https://a.b\"", "unknown field `url`"),
        ("[[federation]]\nbundle = \"b\"", "missing field `trust_domain`"),
        (
            "[[federation]]\ntrust_domain = \"b.c\"",
            "needs a `bundle`, a `bundle_endpoint`, or both",
        ),
        ("[federation]\ntrust_domain = \"b.c\"\nbundle = \"b\"", "invalid type: map"),
        ("[profile]\nname = \"a\"", "invalid type: map"),
        ("trust_domain = \"a.b\"\ntrust_domain = \"a.b\"", "duplicate key"),
        ("trust_domain = ", "TOML parse error at line 1"),
    ] {
        let told = refusal(text);
        assert!(told.starts_with("invalid configuration: "), "{text:?}: {told}");
        assert!(told.contains(names), "{text:?}\nsays   {told}\nwanted {names}");
    }
}

#[test]
fn every_wrong_profile_of_the_file_is_told_with_its_line_and_remedy() {
    let text = format!(
        "trust_domain = \"a.b\"\n{PROFILE}x509_tll = \"5m\"\n\
         [[profile]]\nname = \"b\"\npath = \"b\"\nowner = \"o\"\nselectors = []\n"
    );
    let told = refusal(&text);
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(lines.len(), 3, "{told}");
    for (line, parts) in lines.iter().zip([
        ["line 7: profile `a`: ", "unknown key `x509_tll`; did you mean `x509_ttl`?"],
        ["line 10: profile `b`: ", "`path`"],
        ["line 12: profile `b`: ", "without selectors everybody would match"],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{line}\nlacks one of {parts:?}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let path = Path::new("/nonexistent/mayfly.toml");
    let error = Config::read(path, Path::new("/var/lib/mayfly"), None, 1000);
    let told = error.expect_err("there is no such file").to_string();
    assert!(told.starts_with("cannot read `/nonexistent/mayfly.toml`: "), "{told}");
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    let paths = (Path::new("/etc/mayfly"), Path::new("/var/lib/mayfly"));
    Config::parse(text, paths, None, 1000)
}

fn refusal(text: &str) -> String {
    parse(text).map(|_| text.to_owned()).expect_err("it is malformed").to_string()
}
