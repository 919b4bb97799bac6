//! Revocation lists, as webpki and x509-parser read them.

use mayfly_core::{Cause, Serial, Span, Timestamp};
use mayfly_sign::{KeyRing, LeafKey, Reason, crl, x509};
use webpki::{BorrowedCertRevocationList, CertRevocationList, RevocationOptionsBuilder};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

use crate::common::{NOW, id, ring, serial, webpki, x509_grant};

fn contents(revoked: &[(Serial, Timestamp, Reason)]) -> crl::Contents<'_> {
    crl::Contents {
        number: 7,
        this_update: NOW,
        next_update: NOW.plus(Span::from_secs(3600)),
        revoked,
    }
}

fn leaf(ring: &KeyRing, slot: u32) -> Vec<u8> {
    let key = LeafKey::generate().expect("a key");
    x509::issue(x509_grant(slot, id("/agent"), NOW), &ring.signer(), key).expect("svid").chain_der
}

fn judge(leaf: &[u8], ring: &KeyRing, lists: &[(String, Vec<u8>)]) -> Result<(), webpki::Error> {
    let lists: Vec<CertRevocationList<'_>> = lists
        .iter()
        .map(|(_, der)| BorrowedCertRevocationList::from_der(der).expect("a list").into())
        .collect();
    let lists: Vec<_> = lists.iter().collect();
    let options = RevocationOptionsBuilder::new(&lists).expect("lists").build();
    webpki(leaf, &ring.x509_bundle(), NOW, Some(options))
}

/// A ring in the middle of a rotation: with an old, an active and a prepared authority in turn.
fn rotating() -> KeyRing {
    let mut ring = ring();
    while ring.x509_bundle().len() < 2 {
        ring.handle_timeout(ring.poll_timeout()).expect("a step");
    }
    ring
}

#[test]
fn a_listed_leaf_is_refused_and_the_others_are_not() {
    let ring = rotating();
    let (ended, alive) = (leaf(&ring, 1), leaf(&ring, 2));
    let revoked = [(serial(1), NOW, Reason::from(Cause::Exited))];
    let lists = ring.crls(&contents(&revoked)).expect("lists");
    assert_eq!(judge(&ended, &ring, &lists), Err(webpki::Error::CertRevoked));
    assert_eq!(judge(&alive, &ring, &lists), Ok(()));
    let empty = ring.crls(&contents(&[])).expect("lists");
    assert_eq!(judge(&ended, &ring, &empty), Ok(()));
}

#[test]
fn every_published_authority_speaks_for_itself() {
    let ring = rotating();
    let lists = ring.crls(&contents(&[])).expect("lists");
    let bundle = ring.x509_bundle();
    assert_eq!((lists.len(), bundle.len()), (2, 2));
    for (authority, (key_id, list)) in bundle.iter().zip(&lists) {
        let (_, authority) = x509_parser::parse_x509_certificate(authority).expect("a certificate");
        let (rest, list) = CertificateRevocationList::from_der(list).expect("a list");
        assert!(rest.is_empty());
        assert_eq!(list.issuer().as_raw(), authority.subject().as_raw());
        list.verify_signature(authority.public_key()).expect("its signature");
        assert!(authority.subject().to_string().contains(key_id.as_str()));
    }
    // One list alone leaves the other authority's leaves unknown, which is a refusal.
    let active = leaf(&ring, 1);
    let (first, second) = lists.split_at(1);
    assert_eq!(judge(&active, &ring, first), Ok(()));
    assert_eq!(judge(&active, &ring, second), Err(webpki::Error::UnknownRevocationStatus));
}

#[test]
fn a_list_says_when_and_why_and_its_number() {
    let ring = ring();
    let revoked = [
        (serial(1), NOW, Reason::CessationOfOperation),
        (serial(2), NOW.minus(Span::from_secs(5)), Reason::Unspecified),
    ];
    let lists = ring.crls(&contents(&revoked)).expect("lists");
    let (_, der) = lists.first().expect("a list");
    let (_, list) = CertificateRevocationList::from_der(der).expect("a list");
    assert_eq!(list.crl_number().map(ToString::to_string), Some("7".to_owned()));
    let seconds = |at: Timestamp| i64::try_from(at.seconds()).expect("a date");
    assert_eq!(list.last_update().timestamp(), seconds(NOW));
    let next = list.next_update().expect("a date").timestamp();
    assert_eq!(next, seconds(NOW) + 3600);
    let entries: Vec<_> = list
        .iter_revoked_certificates()
        .map(|entry| {
            let why = entry.reason_code().map(|(_, reason)| reason.0);
            let serial = Serial::from_bytes(entry.raw_serial()).expect("one of ours");
            (serial, entry.revocation_date.timestamp(), why)
        })
        .collect();
    assert_eq!(entries, [(serial(1), seconds(NOW), Some(5)), (serial(2), seconds(NOW) - 5, None)]);
}

#[test]
fn a_list_that_ends_before_it_begins_is_not_signed() {
    let backwards = crl::Contents { next_update: NOW, ..contents(&[]) };
    assert!(ring().crls(&backwards).is_err());
}

#[test]
fn every_cause_has_a_reason() {
    let named = Cause::ALL.map(|cause| Reason::from(cause) != Reason::Unspecified);
    assert_eq!(named.iter().filter(|named| !**named).count(), 1, "only a blind watcher has none");
}
