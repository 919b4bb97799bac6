//! Status lists, as somebody reads them who knows only the draft.

use std::io::Read as _;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use flate2::read::ZlibDecoder;
use mayfly_core::{Bitmap, Slot, Span, Status, Window};
use mayfly_sign::{KeyRing, PublicUrl, status};
use serde_json::json;

use crate::common::{NOW, TTL, jwt_grant, ring, serial, verify};

const SLOTS: u32 = 1 << 20;

fn inflate(encoded: &str) -> Vec<u8> {
    let compressed = URL_SAFE_NO_PAD.decode(encoded).expect("base64url");
    let mut octets = Vec::new();
    ZlibDecoder::new(compressed.as_slice()).read_to_end(&mut octets).expect("zlib");
    octets
}

/// What the draft's own pseudocode finds at an index (§4.1), for any number of bits.
fn at(octets: &[u8], bits: usize, index: usize) -> u8 {
    let octet = octets.get(index * bits / 8).copied().expect("an index within the list");
    let mask = u8::try_from((1_u16 << bits) - 1).expect("bits of an octet");
    (octet >> (index * bits % 8)) & mask
}

fn public_ring() -> KeyRing {
    let url = PublicUrl::parse("https://mayfly.example.org").expect("a url");
    ring().with_public_url(Some(url))
}

fn contents(list: &str) -> status::Contents<'_> {
    status::Contents {
        uri: "",
        aggregation: "",
        issued_at: NOW,
        expires_at: NOW.plus(Span::from_secs(3600)),
        ttl: Span::from_secs(5),
        list,
    }
}

/// The draft's test vectors (§4.1 and §4.2): sixteen statuses of one bit, twelve of two.
#[test]
fn the_draft_s_vectors_read_as_the_draft_says() {
    let one_bit = inflate("eNrbuRgAAhcBXQ");
    assert_eq!(one_bit, [0xb9, 0xa3]);
    let read: Vec<_> = (0..16).map(|index| at(&one_bit, 1, index)).collect();
    assert_eq!(read, [1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 1]);

    let two_bits = inflate("eNo76fITAAPfAgc");
    assert_eq!(two_bits, [0xc9, 0x44, 0xf9]);
    let vector = [1, 2, 0, 3, 0, 1, 0, 1, 1, 2, 3, 3];
    let read: Vec<_> = (0..12).map(|index| at(&two_bits, 2, index)).collect();
    assert_eq!(read, vector);
    // Our own bitmap holds the same octets for the same statuses, and reads them alike. (Status 3 is
    // application specific in the draft; nobody writes it here, and it is read as revoked.)
    let ours = Bitmap::from_packed(two_bits.clone()).expect("a bitmap");
    for (slot, wanted) in (0..).map(Slot).zip(vector) {
        assert_eq!(ours.get(slot), Status::from_bits(wanted), "{slot:?}");
    }
    let encoded = status::encode(&two_bits, 12);
    assert_eq!(inflate(&encoded), two_bits, "our own compression loses nothing");
}

#[test]
fn a_list_token_is_what_the_draft_wants() {
    let ring = public_ring();
    let mut bitmap = Bitmap::default();
    bitmap.set(Slot(5), Status::Revoked);
    bitmap.set(Slot(9), Status::Suspended);
    let list = status::encode(bitmap.as_packed(), status::slots_for(10));
    let window = serial(5).place().window;
    let token = ring.publisher().status_list(window, contents(&list)).expect("a signature");
    let token = token.expect("a public url");
    let (header, claims) = verify(&token, &ring.jwks()).expect("a valid token");
    let kid = ring.signer().jwt().key_id().to_owned();
    assert_eq!(header, json!({"alg": "ES256", "kid": kid, "typ": "statuslist+jwt"}));

    // The referenced token's `uri` and the list's `sub` are the same octets.
    let svid =
        mayfly_sign::jwt::issue(jwt_grant(5, NOW, &["db"]), &ring.signer()).expect("a token");
    let (_, referenced) = verify(&svid.token, &ring.jwks()).expect("a valid token");
    let pointer = referenced["status"]["status_list"].clone();
    assert_eq!(claims["sub"], pointer["uri"]);
    assert_eq!(referenced["iss"], "https://mayfly.example.org");
    let lst = claims["status_list"]["lst"].as_str().expect("a list");
    let seconds = NOW.seconds();
    assert_eq!(
        claims,
        json!({
            "sub": format!("https://mayfly.example.org/status/{}", window.0),
            "iat": seconds,
            "exp": seconds + 3600,
            "ttl": 5,
            "status_list": {
                "bits": 2,
                "lst": lst,
                "aggregation_uri": "https://mayfly.example.org/status",
            },
        })
    );
    let octets = inflate(lst);
    let index = pointer["idx"].as_u64().and_then(|idx| usize::try_from(idx).ok()).expect("an idx");
    assert_eq!((at(&octets, 2, index), at(&octets, 2, 9), at(&octets, 2, 10)), (1, 2, 0));
    let slots = u32::try_from(octets.len() * 4).expect("a length");
    assert_eq!(slots, status::slots_for(10), "indices that are handed out later are within it");
    assert!(NOW.plus(TTL) < NOW.plus(Span::from_secs(3600)));
}

#[test]
fn without_a_public_url_there_is_no_list_because_nothing_points_to_one() {
    let publisher = ring().publisher();
    let list = status::encode(&[], 1 << 18);
    assert_eq!(publisher.status_list(Window(1), contents(&list)).expect("no error"), None);
    assert_eq!((publisher.discovery(), publisher.aggregation([Window(1)])), (None, None));
}

/// The claim of the issue: 2^20 slots at one percent in at most 20 KB.
#[test]
fn a_million_slots_at_one_percent_are_at_most_twenty_kilobytes() {
    let mut bitmap = Bitmap::default();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut set = 0;
    for slot in 0..SLOTS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if state.is_multiple_of(100) {
            bitmap.set(Slot(slot), Status::Revoked);
            set += 1;
        }
    }
    assert!((9_000..12_000).contains(&set), "{set}");
    let list = status::encode(bitmap.as_packed(), SLOTS);
    let compressed = list.len() / 4 * 3;
    eprintln!("2^20 slots, {set} set: {compressed} octets compressed, {} encoded", list.len());
    assert!(compressed <= 20_000, "{compressed}");
    let empty = status::encode(&[], SLOTS);
    assert!(empty.len() < 512, "{}", empty.len());
    assert_eq!(inflate(&list).len(), SLOTS as usize / 4);
}
