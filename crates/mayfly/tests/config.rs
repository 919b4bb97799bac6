//! The configuration file: what the reference says, and what is refused in which words.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

use std::path::Path;

use mayfly::config::{Config, ConfigError, Federation, KeyStorage};
use mayfly_core::{Binding, Span, TrustDomain};

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
    let partner = TrustDomain::parse("partner.example").expect("a trust domain");
    let bundle = Path::new("/etc/mayfly/partner.json").to_owned();
    assert_eq!(config.federation, [Federation { trust_domain: partner.clone(), bundle }]);
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
fn the_key_that_the_reference_leaves_out_can_be_taken_as_it_stands() {
    let told = REFERENCE.replace("# public_url", "public_url");
    let config = parse(&told).expect("it is still good");
    assert_eq!(config.public_url.as_deref(), Some("https://mayfly.example.org"));
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
fn the_command_lines_trust_domain_wins() {
    let text = "trust_domain = \"of.file\"";
    let paths = (Path::new("/etc/mayfly"), Path::new("/var/lib/mayfly"));
    let config = Config::parse(text, paths, Some("of.command.line"), 1000).expect("a good file");
    assert_eq!(config.trust_domain.as_str(), "of.command.line");
}

#[test]
fn a_relative_path_starts_at_the_files_own_folder() {
    let text = "[workload]\nsocket = \"run/w.sock\"\n[[federation]]\ntrust_domain = \"b.c\"\n\
                bundle = \"b.pem\"";
    let config = parse(text).expect("a good file");
    assert_eq!(config.workload_socket, Path::new("/etc/mayfly/run/w.sock"));
    let bundles: Vec<_> = config.federation.iter().map(|one| one.bundle.as_path()).collect();
    assert_eq!(bundles, [Path::new("/etc/mayfly/b.pem")]);
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
        ("[[federation]]\ntrust_domain = \"b.c\"", "missing field `bundle`"),
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
