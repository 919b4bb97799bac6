//! Which certificates are an X.509-SVID's leaf (facts of X509-SVID §2–5).

use crate::common::{Authority, serial, uri};
use mayfly_verify::{
    X509Context,
    x509::{InvalidSvid, Leaf, split},
};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, KeyUsagePurpose, SanType};

type Change = fn(&mut CertificateParams);

fn parse(change: Change) -> Result<Leaf, InvalidSvid> {
    let authority = Authority::new("example.org");
    let mut params = authority.leaf("/a", serial(1).as_bytes());
    change(&mut params);
    Leaf::parse(&authority.issue(&params).0)
}

fn key_usage(bits: &[u8], critical: bool) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 15], bits.to_vec());
    extension.set_criticality(critical);
    extension
}

#[test]
fn a_good_leaf_tells_who_and_which_and_until_when() {
    let leaf = parse(|_| {}).unwrap();
    assert_eq!(leaf.id.as_str(), "spiffe://example.org/a");
    assert_eq!(leaf.serial, Some(serial(1)));
    assert!(leaf.not_before < leaf.not_after);
}

#[test]
fn what_the_specification_allows_is_accepted() {
    let cases: [(&str, Change); 4] = [
        ("a dns name beside the uri", |p| {
            p.subject_alt_names.push(SanType::DnsName("example.org".try_into().unwrap()));
        }),
        ("a subject", |p| {
            p.distinguished_name.push(rcgen::DnType::CommonName, "x");
        }),
        ("no extended key usage", |p| p.extended_key_usages.clear()),
        ("key encipherment", |p| {
            p.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }),
    ];
    for (what, change) in cases {
        assert!(parse(change).is_ok(), "{what}");
    }
}

#[test]
fn what_the_specification_forbids_is_refused() {
    let cases: [(&str, Change, InvalidSvid); 15] = [
        ("no names", |p| p.subject_alt_names.clear(), InvalidSvid::UriNames),
        (
            "a dns name alone",
            |p| p.subject_alt_names = vec![SanType::DnsName("a.b".try_into().unwrap())],
            InvalidSvid::UriNames,
        ),
        (
            "two uris",
            |p| p.subject_alt_names.push(uri("spiffe://example.org/b")),
            InvalidSvid::UriNames,
        ),
        (
            "a second uri that is not spiffe",
            |p| p.subject_alt_names.push(uri("https://example.org/b")),
            InvalidSvid::UriNames,
        ),
        (
            "a uri that is not spiffe",
            |p| p.subject_alt_names = vec![uri("https://example.org/b")],
            InvalidSvid::SpiffeId,
        ),
        (
            "a root path",
            |p| p.subject_alt_names = vec![uri("spiffe://example.org")],
            InvalidSvid::RootPath,
        ),
        (
            "a trailing slash",
            |p| p.subject_alt_names = vec![uri("spiffe://example.org/")],
            InvalidSvid::SpiffeId,
        ),
        (
            "an authority",
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            InvalidSvid::Authority,
        ),
        ("no basic constraints", |p| p.is_ca = IsCa::NoCa, InvalidSvid::BasicConstraintsMissing),
        ("no key usage", |p| p.key_usages.clear(), InvalidSvid::KeyUsageMissing),
        (
            "key usage that is not critical",
            |p| {
                p.key_usages.clear();
                p.custom_extensions = vec![key_usage(&[3, 2, 7, 0x80], false)];
            },
            InvalidSvid::KeyUsageMissing,
        ),
        (
            "two key usages",
            |p| p.custom_extensions = vec![key_usage(&[3, 2, 7, 0x80], true)],
            InvalidSvid::Extension,
        ),
        (
            "no digital signature",
            |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment],
            InvalidSvid::KeyUsage,
        ),
        (
            "may sign certificates",
            |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
            InvalidSvid::KeyUsage,
        ),
        ("may sign lists", |p| p.key_usages.push(KeyUsagePurpose::CrlSign), InvalidSvid::KeyUsage),
    ];
    for (what, change, reason) in cases {
        assert_eq!(parse(change), Err(reason), "{what}");
    }
}

#[test]
fn malformed_basic_constraints_are_refused() {
    let refused = parse(|p| {
        p.is_ca = IsCa::NoCa;
        let malformed = vec![0x30, 0x03, 0x01, 0x01];
        p.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 19], malformed)];
    });
    assert!(refused.is_err());
}

#[test]
fn bytes_around_or_within_a_certificate_never_pass_and_never_panic() {
    let authority = Authority::new("example.org");
    let (der, _) = authority.issue(&authority.leaf("/a", serial(1).as_bytes()));
    let mut longer = der.to_vec();
    longer.push(0);
    assert_eq!(Leaf::parse(&longer), Err(InvalidSvid::Encoding));
    assert_eq!(split(&longer), Err(InvalidSvid::Encoding));
    assert_eq!(split(&[der.as_ref(), authority.der.as_ref()].concat()).map(|c| c.len()), Ok(2));
    for length in 0..der.len() {
        assert!(Leaf::parse(&der[..length]).is_err(), "cut at {length}");
    }
    for at in 0..der.len() {
        let mut bent = der.to_vec();
        bent[at] ^= 0x55;
        // Whatever it says, it is an answer.
        let _answer = Leaf::parse(&bent).is_ok();
    }
}

#[test]
fn a_message_that_contradicts_itself_is_refused() {
    let authority = Authority::new("example.org");
    let params = authority.leaf("/a", serial(1).as_bytes());
    let good = authority.message("/a", &params);
    assert!(X509Context::parse(good.clone()).is_ok());

    let refused = |change: &dyn Fn(&mut mayfly_proto::spiffe::workload::X509svid)| {
        let mut message = good.clone();
        change(message.svids.first_mut().expect("one"));
        X509Context::parse(message).map(|_| ()).unwrap_err()
    };
    let other = rcgen::KeyPair::generate().unwrap();
    assert_eq!(
        refused(&|svid| svid.spiffe_id = "spiffe://example.org/b".into()),
        InvalidSvid::OtherId
    );
    assert_eq!(
        refused(&|svid| svid.x509_svid_key = other.serialize_der().into()),
        InvalidSvid::Key
    );
    assert_eq!(
        refused(&|svid| svid.x509_svid_key = b"not a key".to_vec().into()),
        InvalidSvid::Key
    );
    assert_eq!(refused(&|svid| svid.x509_svid.clear()), InvalidSvid::Chain);
    assert_eq!(refused(&|svid| svid.bundle = b"x".to_vec().into()), InvalidSvid::Encoding);
    let mut empty = good.clone();
    empty.svids.clear();
    assert!(X509Context::parse(empty).is_err());
}
