//! `application/x-www-form-urlencoded`, read leniently and without surprises: pairs in their order, a
//! broken escape stands for itself.

/// The pairs of a form or a query.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (String, String)> {
    text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

fn decode(text: &str) -> String {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)).map(|(h, l)| h * 16 + l),
            _ => None,
        };
        octets.push(match (escaped, first) {
            (Some(octet), _) => octet,
            (None, b'+') => b' ',
            (None, other) => *other,
        });
        rest = if escaped.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&octets).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_form_is_read() {
        let read: Vec<_> = pairs("token=a.b-c_d&hint=x+y%21&&empty&bad=%zz%4").collect();
        let read: Vec<_> = read.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let wanted = [("token", "a.b-c_d"), ("hint", "x y!"), ("empty", ""), ("bad", "%zz%4")];
        assert_eq!(read, wanted);
    }

    proptest! {
        #[test]
        fn no_text_confuses_the_reader(text in ".{0,64}") {
            prop_assert!(pairs(&text).count() <= text.len());
        }
    }
}
