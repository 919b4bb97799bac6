//! Names: SPIFFE IDs by the letter of the standard, serials that carry their place.

use mayfly_core::{Place, Serial, Slot, SpiffeId, TrustDomain, Window};
use proptest::prelude::*;

/// SPIFFE-ID §2.1 and §2.2, over every byte that there is.
#[test]
fn every_byte_is_decided_upon_in_domain_and_path() {
    for byte in 0..=255_u8 {
        // A byte that is no ASCII cannot stand alone in a string; the character stands for it.
        let c = char::from(byte);
        let in_domain =
            matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        let domain = SpiffeId::parse(&format!("spiffe://t{c}d/x"));
        // A slash ends the domain: then the rest is the path.
        assert_eq!(domain.is_ok(), in_domain || byte == b'/', "{byte:#04x} in a trust domain");
        let path = SpiffeId::parse(&format!("spiffe://td/a{c}b"));
        assert_eq!(path.is_ok(), in_domain || byte == b'/', "{byte:#04x} in a path");
        let bare = TrustDomain::parse(&format!("t{c}d"));
        assert_eq!(bare.is_ok(), in_domain, "{byte:#04x} in a bare trust domain");
    }
}

#[test]
fn the_table_of_the_standard_is_kept() {
    let long_domain = "d".repeat(255);
    let long = format!("spiffe://td/{}", "p".repeat(2048 - "spiffe://td/".len()));
    let good = [
        "spiffe://td",
        "spiffe://a_b-c.d/x",
        "spiffe://1.2.3.4/x",
        "spiffe://td/.path",
        "spiffe://td/..path",
        "spiffe://td/...",
        "spiffe://td/UPPER/Case",
        &format!("spiffe://{long_domain}"),
        &long,
    ];
    for uri in good {
        let id = SpiffeId::parse(uri).expect(uri);
        assert_eq!(id.as_str(), uri);
    }
    let bad = [
        "",
        "spiffe:/",
        "spiffe://",
        "spiffe:///x",
        "spiffe://td/",
        "spiffe://td//",
        "spiffe://td//x",
        "spiffe://td/./x",
        "spiffe://td/../x",
        "spiffe://td/x/.",
        "spiffe://td/x/..",
        "spiffe://td/x/",
        "spiffe://td/%41",
        "spiffe://td:80/x",
        "spiffe://u@td/x",
        "spiffe://td/x?q",
        "spiffe://td?q",
        "spiffe://td/x#f",
        "spiffe://td#f",
        "spiffe://td/a b",
        "spiffe://td/a+b",
        "spiffe://td/~",
        "spiffe://td/é",
        "spiffe://té/x",
        "spiffe://td/\0",
        "spiffe://[::1]/x",
        "http://td/x",
        "spiffe:td/x",
        "//td/x",
        " spiffe://td/x",
        &format!("spiffe://{long_domain}d"),
        &format!("{long}p"),
    ];
    for uri in bad {
        assert!(SpiffeId::parse(uri).is_err(), "{uri:?} is no SPIFFE ID");
    }
}

#[test]
fn scheme_and_domain_are_normalised_and_the_path_is_not() {
    let id = SpiffeId::parse("SPIFFE://TD/Path").expect("case-insensitive where the standard says");
    assert_eq!(id.as_str(), "spiffe://td/Path");
    assert_eq!((id.trust_domain().as_str(), id.path()), ("td", "/Path"));
}

proptest! {
    #[test]
    fn a_serial_carries_its_place(window: u32, slot: u32, luck: u64) {
        let place = Place { window: Window(window), slot: Slot(slot) };
        let serial = Serial::new(place, luck);
        prop_assert_eq!(serial.place(), place);
        prop_assert_eq!(Serial::from_bytes(serial.as_bytes()), Ok(serial));
        prop_assert_eq!(Serial::parse(&serial.to_string()), Ok(serial));
        // RFC 5280: positive, at most 20 octets.
        prop_assert!(serial.as_bytes().len() <= 20 && serial.as_bytes()[0] < 0x80);
    }

    #[test]
    fn different_places_or_luck_are_different_serials(a: (u32, u32, u64), b: (u32, u32, u64)) {
        let serial = |(window, slot, luck)| {
            Serial::new(Place { window: Window(window), slot: Slot(slot) }, luck)
        };
        prop_assert_eq!(a == b, serial(a) == serial(b));
    }

    #[test]
    fn what_parses_as_a_spiffe_id_prints_as_itself(text in "(?i)spiffe://[ -~]{0,40}") {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(SpiffeId::parse(id.as_str()), Ok(id.clone()));
            prop_assert!(id.as_str().eq_ignore_ascii_case(&text));
        }
    }
}
