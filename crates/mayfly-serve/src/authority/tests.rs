use proptest::prelude::*;

use super::{
    CONTINUATION, HEADERS, Mend, PADDED, PREFACE, PRIORITY, field::AUTHORITY_CODED, huffman,
};

/// Characters by the length of their code, in the order of their codes (RFC 7541 appendix B).
const BY_LENGTH: [(u32, &str); 10] = [
    (5, "012aceiost"),
    (6, " %-./3456789=A_bdfghlmnpru"),
    (7, ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, "&*,;XZ"),
    (10, "!\"()?"),
    (11, "'+|"),
    (12, "#>"),
    (13, "\0$@[]~"),
    (14, "^}"),
    (15, "<`{"),
];

fn code_of(wanted: char) -> (u32, u32) {
    let (mut code, mut length) = (0, 5);
    for (bits, characters) in BY_LENGTH {
        code <<= bits - length;
        length = bits;
        for character in characters.chars() {
            if character == wanted {
                return (bits, code);
            }
            code += 1;
        }
    }
    panic!("no code for {wanted:?}");
}

fn coded(text: &str) -> Vec<u8> {
    let mut bits = String::new();
    for character in text.chars() {
        let (length, code) = code_of(character);
        bits.push_str(&format!("{code:0width$b}", width = length as usize));
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    bits.as_bytes()
        .chunks(8)
        .map(|octet| u8::from_str_radix(str::from_utf8(octet).unwrap(), 2).unwrap())
        .collect()
}

fn octet(value: usize) -> u8 {
    u8::try_from(value).unwrap()
}

fn number(value: usize, bits: u32, top: u8) -> Vec<u8> {
    let full = (1 << bits) - 1;
    if value < full {
        return vec![top | octet(value)];
    }
    let mut octets = vec![top | octet(full)];
    let mut rest = value - full;
    while rest >= 128 {
        octets.push(octet(rest % 128) | 0x80);
        rest /= 128;
    }
    octets.push(octet(rest));
    octets
}

fn string(text: &str, huffman: bool) -> Vec<u8> {
    let octets = if huffman { coded(text) } else { text.as_bytes().to_vec() };
    let mut all = number(octets.len(), 7, if huffman { 0x80 } else { 0 });
    all.extend(octets);
    all
}

/// Every way in which a client may write a field named `:authority`.
fn authority_fields(value: &str) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for huffman in [false, true] {
        for by_index in [0x41, 0x01, 0x11] {
            all.push([vec![by_index], string(value, huffman)].concat());
        }
        for by_name in [0x40, 0x00, 0x10] {
            for name_huffman in [false, true] {
                let name = string(":authority", name_huffman);
                all.push([vec![by_name], name, string(value, huffman)].concat());
            }
        }
    }
    all
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}

/// A connection with one request: settings, headers with `field` among others, data.
fn connection(field: &[u8], flags: u8) -> Vec<u8> {
    let path = [vec![0x44], string("/SpiffeWorkloadAPI/Fetch%X", true)].concat();
    let long = [vec![0x40], string("x-long", false), string(&"a/b%".repeat(60), true)].concat();
    let block = [&[0x83, 0x86, 0x3f, 0xe1, 0x1f], &*path, field, &*long, &[0xbe]].concat();
    let mut payload = Vec::new();
    if flags & PADDED != 0 {
        payload.push(7);
    }
    if flags & PRIORITY != 0 {
        payload.extend([0, 0, 0, 0, 16]);
    }
    payload.extend(block);
    if flags & PADDED != 0 {
        payload.extend([b'/'; 7]);
    }
    let data = frame(0, 1, b"\0\0\0\0\x05%/%/ ");
    [PREFACE, &frame(4, 0, b"\0\x03\0\0\0/"), &frame(HEADERS, 4 | flags, &payload), &data].concat()
}

/// Mends `octets`, fed in chunks that end at `cuts`.
fn mend(octets: &[u8], cuts: &[usize]) -> (Vec<u8>, Mend) {
    let mut mend = Mend::default();
    let mut out = Vec::new();
    let mut ends: Vec<_> = cuts.iter().map(|cut| cut % (octets.len() + 1)).collect();
    ends.push(octets.len());
    ends.sort_unstable();
    let mut start = 0;
    for end in ends {
        let mut chunk = octets[start..end].to_vec();
        let fed = mend.feed(&mut chunk);
        // An empty chunk must not lose what is kept.
        out.extend(fed.before);
        out.extend(&chunk[..fed.pass]);
        start = end;
    }
    out.extend(mend.finish());
    (out, mend)
}

fn expected(value: &str, in_code: bool) -> String {
    let twin = |c: char| match c {
        ' ' | '%' | '/' => '-',
        '"' | '?' if in_code => '!',
        '|' if in_code => '+',
        '"' | '?' | '|' => '-',
        other => other,
    };
    value.chars().map(twin).collect()
}

#[test]
fn the_name_in_huffman_code_is_the_name() {
    assert_eq!(coded(":authority"), AUTHORITY_CODED);
}

#[test]
fn a_socket_path_is_mended_in_every_form_and_however_it_is_cut() {
    let values = ["tmp%2Fp.sock", "/run/my dir/w.sock", "a?b\"c|d%", "%", "///%%%///", "x%0"];
    for value in values {
        let forms = authority_fields(value).len();
        for form in 0..forms {
            let wanted = expected(value, form >= forms / 2);
            for flags in [0, PADDED, PRIORITY, PADDED | PRIORITY] {
                let sent = connection(&authority_fields(value)[form], flags);
                let good = connection(&authority_fields(&wanted)[form], flags);
                assert_eq!(mend(&sent, &[]).0, good, "{value} form {form} flags {flags}");
                let every: Vec<_> = (0..sent.len()).collect();
                assert_eq!(mend(&sent, &every).0, good, "{value} form {form} octet by octet");
                for cut in 0..sent.len() {
                    assert_eq!(mend(&sent, &[cut]).0, good, "{value} form {form} cut at {cut}");
                }
            }
        }
    }
}

#[test]
fn a_plain_path_loses_whatever_an_authority_may_have_only_in_its_place() {
    for (value, wanted) in
        [("/run/a:b:c@d/[x].sock", "-run-a-b-c-d--x-.sock"), ("/", "-"), ("[::1]:80/", "[::1]:80-")]
    {
        let forms = authority_fields(value);
        for (form, field) in forms.iter().enumerate().take(forms.len() / 2) {
            let good = connection(&authority_fields(wanted)[form], 0);
            assert_eq!(mend(&connection(field, 0), &[]).0, good, "{value}");
        }
    }
}

#[test]
fn an_authority_that_h2_takes_is_left_alone() {
    for value in ["localhost", "spire_agent", "[::]:50051", "a.b:80", "u@h", "x~!$&'()*+,;=-_"] {
        for field in authority_fields(value) {
            let sent = connection(&field, 0);
            assert_eq!(mend(&sent, &[]).0, sent, "{value}");
        }
    }
}

#[test]
fn a_block_in_two_frames_is_mended_up_to_the_character_between_them() {
    let forms = authority_fields("tmp%2Fp.sock").len();
    for form in 0..forms {
        let block = authority_fields("tmp%2Fp.sock")[form].clone();
        let good = authority_fields("tmp-2Fp.sock")[form].clone();
        for cut in 1..block.len() {
            let build = |block: &[u8]| {
                let headers = frame(HEADERS, 0, &block[..cut]);
                [PREFACE, &headers, &frame(CONTINUATION, 4, &block[cut..])].concat()
            };
            let out = mend(&build(&block), &[]).0;
            let straddles = form >= forms / 2 && out == build(&block);
            assert!(out == build(&good) || straddles, "form {form} cut {cut}");
        }
    }
}

#[test]
fn every_plain_octet_that_h2_refuses_on_its_own_is_replaced() {
    for octet in 0x20..=0xff_u8 {
        let taken = |of_path| {
            let text = [b'a', huffman::plain_twin(octet, of_path), b'b'];
            http::uri::Authority::try_from(text.as_slice()).is_ok()
        };
        assert_eq!(taken(false), !matches!(octet, b'[' | b']' | 0x7f), "{octet:#x}");
        assert_eq!(taken(true), octet != 0x7f, "{octet:#x} in a path");
    }
}

#[test]
fn what_is_not_http2_is_let_through_unread() {
    let sent = b"GET /a%2Fb HTTP/1.1\r\nhost: /x/y\r\n\r\n";
    let (out, mend) = mend(sent, &[5, 9]);
    assert!(out == sent && mend.is_blind());
}

#[test]
fn an_endless_number_blinds_and_does_not_overflow() {
    let sent = [PREFACE, &frame(HEADERS, 4, &[0xff; 40]), &frame(HEADERS, 4, &[0x01])].concat();
    let (out, mend) = mend(&sent, &[]);
    assert!(out == sent && mend.is_blind());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn hostile_octets_neither_panic_nor_change_their_number_nor_depend_on_cuts(
        frames in prop::collection::vec(
            (prop_oneof![Just(HEADERS), Just(CONTINUATION), any::<u8>()], any::<u8>(),
             prop::collection::vec(prop_oneof![Just(0x41), Just(0x01), any::<u8>()], 0..80)),
            0..6),
        rest in prop::collection::vec(any::<u8>(), 0..80),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut sent = PREFACE.to_vec();
        for (kind, flags, payload) in frames {
            sent.extend(frame(kind, flags, &payload));
        }
        sent.extend(rest);
        let whole = mend(&sent, &[]).0;
        prop_assert_eq!(whole.len(), sent.len());
        prop_assert_eq!(mend(&sent, &cuts).0, whole);
    }

    #[test]
    fn any_authority_in_huffman_code_is_mended_whatever_surrounds_it(
        value in "[ -~]{1,60}",
        cuts in prop::collection::vec(any::<usize>(), 0..6),
    ) {
        let value: String = value.chars().filter(|c| *c != '\\').collect();
        for (form, field) in authority_fields(&value).iter().enumerate().skip(9) {
            let good = authority_fields(&expected(&value, true))[form].clone();
            prop_assert_eq!(mend(&connection(field, 0), &cuts).0, connection(&good, 0));
        }
    }
}
