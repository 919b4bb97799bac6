//! The rules of the plan, one by one.

use super::*;
use crate::sidecar::{
    Part,
    fixtures::{Authority, LATER, token},
};

const NOW: Timestamp = Timestamp(1_700_000_000_000);
const SOON: Timestamp = Timestamp(1_700_000_060_000);

fn kept(step: Step) -> Kept {
    match step {
        Step::Write(set) => Kept { until: Some(set.not_after()), set: Some(set) },
        other @ (Step::Wait | Step::Remove(_)) => panic!("nothing is written: {other:?}"),
    }
}

fn removed(step: &Step) -> Option<&Why> {
    match step {
        Step::Remove(why) => Some(why),
        Step::Wait | Step::Write(_) => None,
    }
}

#[test]
fn nothing_is_written_until_it_is_whole_and_then_once() {
    let authority = Authority::new();
    let whole = authority.heard(LATER);
    let audiences = vec!["a".to_owned(), "b".to_owned()];
    let none = Kept::default();
    for part in [
        Heard::default(),
        Heard { bundles: None, ..whole.clone() },
        Heard { identities: None, ..whole.clone() },
    ] {
        assert!(matches!(step(&part, &[], &none, NOW), Step::Wait));
    }
    let mut heard = whole;
    heard.tokens.insert("a".to_owned(), token(LATER));
    assert!(matches!(step(&heard, &audiences, &none, NOW), Step::Wait), "a token is missing");
    heard.tokens.insert("b".to_owned(), token(LATER));
    let first = kept(step(&heard, &audiences, &none, NOW));
    let names: Vec<&str> = first.set.as_ref().unwrap().files().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "bundle.pem",
            "credential-bundle.pem",
            "crl.pem",
            "example.org.spiffe-trust-bundle.pem",
            "jwt.a.token",
            "jwt.b.token",
            "svid.pem",
            "svid_key.pem",
        ]
    );
    assert!(matches!(step(&heard, &audiences, &first, NOW), Step::Wait), "it lies there already");
}

#[test]
fn a_changed_list_alone_is_a_new_set_and_only_its_part_is_new() {
    let authority = Authority::new();
    let mut heard = authority.heard(LATER);
    let first = kept(step(&heard, &[], &Kept::default(), NOW));
    heard.bundles = Some(authority.bundles(&["example.org"], &[b"list", b"another"]));
    let second = kept(step(&heard, &[], &first, NOW)).set.unwrap();
    assert_eq!(second.changed_since(first.set.as_ref()), [Part::Crl]);
    heard.bundles = Some(authority.bundles(&["example.org", "partner.example"], &[b"list"]));
    let third = kept(step(&heard, &[], &first, NOW)).set.unwrap();
    assert_eq!(third.changed_since(first.set.as_ref()), [Part::Bundle]);
    assert_eq!(third.changed_since(None), [Part::Certificate, Part::Bundle, Part::Crl]);
    assert_eq!(third.changed_since(Some(&second)), [Part::Bundle, Part::Crl]);
}

#[test]
fn a_no_removes_everything_and_silence_nothing() {
    let authority = Authority::new();
    let heard = authority.heard(LATER);
    let first = kept(step(&heard, &[], &Kept::default(), NOW));
    let silence = Heard { trouble: Some("gone".to_owned()), ..heard.clone() };
    assert!(matches!(step(&silence, &[], &first, NOW), Step::Wait));
    for (words, last) in [("task_ended: begin a new task", true), ("task_quarantined: wait", false)]
    {
        let heard = Heard { refused: Some(words.to_owned()), ..heard.clone() };
        let done = step(&heard, &[], &first, NOW);
        let why = removed(&done).expect("a no removes");
        assert_eq!(
            (why.code(), why.is_final().is_some()),
            (words.split(':').next().unwrap(), last)
        );
        assert!(matches!(step(&heard, &[], &Kept::default(), NOW), Step::Wait), "nothing is there");
    }
}

#[test]
fn files_do_not_outlive_their_certificate() {
    let authority = Authority::new();
    let heard = authority.heard(SOON);
    let first = kept(step(&heard, &[], &Kept::default(), NOW));
    assert_eq!(due(&heard, &first, NOW), Some(SOON));
    assert!(matches!(step(&heard, &[], &first, Timestamp(SOON.0 - 1)), Step::Wait));
    assert_eq!(removed(&step(&heard, &[], &first, SOON)), Some(&Why::Expired));
    // A predecessor's too, before anything was heard, and at once if nobody can tell until when.
    let left = Kept { set: None, until: Some(SOON) };
    assert!(matches!(step(&Heard::default(), &[], &left, NOW), Step::Wait));
    assert_eq!(removed(&step(&Heard::default(), &[], &left, SOON)), Some(&Why::Expired));
    let unreadable = Kept { set: None, until: Some(Timestamp::default()) };
    assert_eq!(removed(&step(&Heard::default(), &[], &unreadable, NOW)), Some(&Why::Expired));
}

#[test]
fn an_expired_token_drops_out_and_the_rest_serves_on() {
    let authority = Authority::new();
    let audiences = vec!["a".to_owned()];
    let mut heard = authority.heard(LATER);
    heard.tokens.insert("a".to_owned(), token(SOON));
    let first = kept(step(&heard, &audiences, &Kept::default(), NOW));
    assert!(first.set.as_ref().unwrap().contains("jwt.a.token"));
    assert_eq!(due(&heard, &first, NOW), Some(SOON));
    let second = kept(step(&heard, &audiences, &first, SOON)).set.unwrap();
    assert!(!second.contains("jwt.a.token") && second.contains("svid.pem"));
    assert_eq!(second.changed_since(first.set.as_ref()), [Part::Jwt]);
}
