//! `Debug` for messages that carry a secret: whom it belongs to, never what it is.

use std::fmt;

use crate::spiffe::workload;

impl fmt::Debug for workload::X509svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509svid")
            .field("spiffe_id", &self.spiffe_id)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for workload::Jwtsvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwtsvid")
            .field("spiffe_id", &self.spiffe_id)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for workload::Witsvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Witsvid")
            .field("spiffe_id", &self.spiffe_id)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for workload::ValidateJwtsvidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateJwtsvidRequest")
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_response_shows_no_key_and_no_token() {
        let x509 = workload::X509svidResponse {
            svids: vec![workload::X509svid {
                spiffe_id: "spiffe://td/a".into(),
                x509_svid_key: b"KEYBYTES".as_slice().into(),
                ..workload::X509svid::default()
            }],
            ..workload::X509svidResponse::default()
        };
        let jwt = workload::Jwtsvid { svid: "TOKEN".into(), ..workload::Jwtsvid::default() };
        let ask = workload::ValidateJwtsvidRequest { audience: "a".into(), svid: "TOKEN".into() };
        let wit =
            workload::Witsvid { wit_svid_key: "KEYBYTES".into(), ..workload::Witsvid::default() };
        let text = format!("{x509:?}{jwt:?}{ask:?}{wit:?}");
        assert!(text.contains("spiffe://td/a"), "{text}");
        assert!(!text.contains("KEY") && !text.contains("TOKEN"), "{text}");
    }
}
