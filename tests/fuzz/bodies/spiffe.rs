//! Identifiers: what parses prints, and what prints parses to the same.

use mayfly_core::{Selector, Serial, SpiffeId, TaskId, TrustDomain, id};

/// SPIFFE IDs and the other names that strangers send as text.
pub(crate) fn spiffe_id(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(id) = SpiffeId::parse(&text) {
        check_id(&text, &id);
    }
    if let Ok(domain) = TrustDomain::parse(&text) {
        assert!(text.eq_ignore_ascii_case(domain.as_str()), "a trust domain changed its name");
        assert_eq!(TrustDomain::parse(domain.as_str()).as_ref(), Ok(&domain));
        assert!(SpiffeId::parse(&domain.uri()).is_ok(), "{domain} has no id");
    }
    assert_eq!(id::check_path(&text).is_ok(), is_path(&text), "two readings of the path {text:?}");
    if let Ok(task) = TaskId::parse(&text) {
        assert!(text.eq_ignore_ascii_case(&task.to_string()), "a task changed its name");
    }
    if let Ok(serial) = Serial::parse(&text) {
        assert_eq!(Serial::parse(&serial.to_string()).as_ref(), Ok(&serial));
        assert!(text.replace(':', "").eq_ignore_ascii_case(&serial.to_string()));
    }
    if let Ok(serial) = Serial::from_bytes(input) {
        assert_eq!(serial.as_bytes().as_slice(), input);
        assert_eq!(Serial::parse(&serial.to_string()), Ok(serial));
    }
    if let Ok(selector) = Selector::parse(&text) {
        assert!(Selector::KINDS.contains(&selector.kind()), "{selector} has a kind of its own");
        assert!(!selector.value().is_empty(), "{selector} has no value");
        assert_eq!(Selector::new(selector.kind(), selector.value()), selector);
        assert_eq!(selector.as_str(), text);
    }
}

fn check_id(text: &str, id: &SpiffeId) {
    assert_eq!(SpiffeId::parse(id.as_str()).as_ref(), Ok(id), "what was printed does not parse");
    assert_eq!(SpiffeId::new(id.trust_domain(), id.path()).as_ref(), Ok(id));
    assert!(id.as_str().len() <= 2048, "it is too long");
    assert!(is_path(id.path()), "{id} has no good path");
    assert!(id.as_str().starts_with("spiffe://"));
    assert!(text.eq_ignore_ascii_case(id.as_str()), "it is not what was asked for");
    // Only scheme and trust domain may have changed their case.
    assert!(text.ends_with(id.path()), "the path changed");
    let domain = id.trust_domain().as_str();
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    assert!(!domain.is_empty() && domain.len() <= 255 && domain.bytes().all(good), "{domain}");
}

/// SPIFFE-ID §2.2, said a second time.
fn is_path(path: &str) -> bool {
    let segment = |s: &str| {
        !matches!(s, "" | "." | "..")
            && s.chars().all(|c| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_'))
    };
    path.is_empty() || (path.starts_with('/') && path.split('/').skip(1).all(segment))
}
