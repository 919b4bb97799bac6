//! PEM, as OpenSSL writes it.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

/// Label of a certificate's block.
pub const CERTIFICATE: &str = "CERTIFICATE";
/// Label of an unencrypted PKCS#8 key's block.
pub const PRIVATE_KEY: &str = "PRIVATE KEY";
/// Label of a revocation list's block.
pub const X509_CRL: &str = "X509 CRL";

/// Characters of base64 in a line.
const LINE: usize = 64;

/// One block. Wiped when dropped, since it may be a key's.
#[must_use]
pub fn block(label: &str, der: &[u8]) -> Zeroizing<String> {
    let text = Zeroizing::new(BASE64_STANDARD.encode(der));
    // Room for all of it, so that growing leaves no copies behind.
    let mut out = Zeroizing::new(String::with_capacity(room(label, &text)));
    put(&mut out, label, &text);
    out
}

/// Several blocks of one kind, one after the other. Nothing of it is wiped: what comes in numbers is public.
#[must_use]
pub fn blocks<D: AsRef<[u8]>>(label: &str, all: impl IntoIterator<Item = D>) -> String {
    let mut out = String::new();
    for der in all {
        let text = BASE64_STANDARD.encode(der);
        out.reserve(room(label, &text));
        put(&mut out, label, &text);
    }
    out
}

/// At least what a block takes.
const fn room(label: &str, text: &str) -> usize {
    text.len() + text.len() / LINE + 2 * label.len() + 40
}

fn put(out: &mut String, label: &str, text: &str) {
    out.push_str("-----BEGIN ");
    out.push_str(label);
    out.push_str("-----\n");
    let mut rest = text;
    while let Some((line, next)) = rest.split_at_checked(LINE) {
        out.push_str(line);
        out.push('\n');
        rest = next;
    }
    if !rest.is_empty() {
        out.push_str(rest);
        out.push('\n');
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
}

/// The content of the first block with this label, if there is one and it is whole.
#[must_use]
pub fn first(label: &str, text: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once("-----END ")?;
    let body: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    BASE64_STANDARD.decode(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_written_in_lines_of_64_and_read_back() {
        for bytes in [0, 1, 47, 48, 49, 96, 500] {
            let der: Vec<u8> = (0..bytes).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let text = block(CERTIFICATE, &der);
            assert!(text.lines().all(|line| line.len() <= 64), "{}", *text);
            assert!(!text.contains("\n\n"), "{}", *text);
            assert_eq!(first(CERTIFICATE, &text), Some(der.clone()));
            let two = format!("{}{}", *block(X509_CRL, b"other"), *text);
            assert_eq!(first(CERTIFICATE, &two), Some(der));
            assert_eq!(first(PRIVATE_KEY, &two), None);
        }
    }
}
