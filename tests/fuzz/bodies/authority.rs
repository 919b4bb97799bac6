//! The mend of `:authority`: it stands before h2 on every connection, so it must never change a
//! length, depend on how the octets arrive, or touch anything but the octets of header blocks.

use mayfly_serve::authority::Mend;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// The input is a connection; then the frames of one after its preface; then one header block, whole
/// and in two frames; then the value of an `:authority`.
pub(crate) fn mend(input: &[u8]) {
    check(input);
    check(&[PREFACE, input].concat());
    let block = input.get(..16_000).unwrap_or(input);
    check(&[PREFACE, &frame(HEADERS, 4, block)].concat());
    let (one, two) = block.split_at(block.len() / 2);
    check(&[PREFACE, &frame(HEADERS, 0, one), &frame(CONTINUATION, 4, two)].concat());
    value(input.get(..126).unwrap_or(input));
}

fn check(octets: &[u8]) {
    let whole = mended(octets, octets.len().max(1));
    assert_eq!(whole.len(), octets.len(), "a length changed");
    for stride in [1, 2, 3, 7, 64] {
        assert_eq!(mended(octets, stride), whole, "it depends on how the octets arrive: {stride}");
    }
    assert_eq!(mended(&whole, octets.len().max(1)), whole, "what was mended is mended again");
    let blocks = in_blocks(octets);
    for (at, (before, after)) in octets.iter().zip(&whole).enumerate() {
        assert!(
            before == after || blocks.get(at) == Some(&true),
            "octet {at} is none of its business"
        );
    }
}

fn mended(octets: &[u8], stride: usize) -> Vec<u8> {
    let mut mend = Mend::default();
    let mut out = Vec::with_capacity(octets.len());
    for chunk in octets.chunks(stride) {
        let mut chunk = chunk.to_vec();
        let fed = mend.feed(&mut chunk);
        out.extend(fed.before);
        out.extend_from_slice(chunk.get(..fed.pass).expect("it passes on what it was fed"));
    }
    out.extend(mend.finish());
    out
}

/// Which octets stand in the payload of a frame with header fields: RFC 9113 §4.1 and nothing more.
fn in_blocks(octets: &[u8]) -> Vec<bool> {
    let mut inside = vec![false; octets.len()];
    let mut at = PREFACE.len();
    if !octets.starts_with(PREFACE) {
        return inside;
    }
    while let Some(&[high, middle, low, kind]) = octets.get(at..at + 4) {
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let payload = at + 9;
        if kind == HEADERS || kind == CONTINUATION {
            inside.iter_mut().skip(payload).take(length).for_each(|octet| *octet = true);
        }
        at = payload + length;
    }
    inside
}

/// `:authority` in each of its literal forms, and the same value under another name.
fn value(text: &[u8]) {
    let length = u8::try_from(text.len()).expect("it is short");
    let names: [(&[u8], bool); 6] = [
        (&[0x41], true),
        (&[0x01], true),
        (&[0x11], true),
        (b"\x00\x0a:authority", true),
        (&[0x44], false),
        (b"\x00\x0a:authoritx", false),
    ];
    for (name, is_authority) in names {
        let head = [PREFACE, &frame(HEADERS, 4, &[]), name, &[length]].concat();
        let block = [name, &[length], text, b"\x82\x00\x01/\x01%"].concat();
        let octets = [PREFACE, &frame(HEADERS, 4, &block)].concat();
        let whole = mended(&octets, octets.len());
        let (front, back) = whole.split_at(head.len());
        let (value, rest) = back.split_at(text.len());
        assert!(octets.starts_with(front), "something before the value changed");
        assert_eq!(rest, b"\x82\x00\x01/\x01%", "something after the value changed");
        // What has a meaning in an authority keeps it, except in a path, which has none of it.
        let of_path = text.first() == Some(&b'/');
        for (before, after) in text.iter().zip(value) {
            let meant = b":[]@".contains(before);
            let plain = before.is_ascii_alphanumeric() || b"-._~".contains(before);
            let plain = plain || (meant && !of_path);
            let broken = b"/% \"?#<>\\".contains(before) || !before.is_ascii();
            let broken = broken || (meant && of_path);
            match (is_authority, before == after) {
                (true, true) => assert!(!broken, "{before:#x} was left"),
                (true, false) => assert!(!plain && *after == b'-', "{before:#x} became {after:#x}"),
                (false, unchanged) => assert!(unchanged, "another field was mended"),
            }
        }
    }
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("it is short");
    let [_, length @ ..] = length.to_be_bytes();
    [&length[..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}
