//! `Debug` for messages that carry a secret: whom it belongs to, never what it is. And `Drop` for those
//! that hold a private key in bytes of their own: it is overwritten. What tonic encodes them into is
//! out of reach.

use std::fmt;

use zeroize::Zeroize as _;

use crate::{
    envoy::{core, discovery},
    spiffe::{broker, workload},
};

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

impl fmt::Debug for broker::X509svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509svid")
            .field("spiffe_id", &self.spiffe_id)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for broker::Jwtsvid {
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

impl fmt::Debug for core::DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataSource").finish_non_exhaustive()
    }
}

impl fmt::Debug for core::data_source::Specifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Specifier").finish_non_exhaustive()
    }
}

impl Drop for core::DataSource {
    fn drop(&mut self) {
        match &mut self.specifier {
            Some(core::data_source::Specifier::InlineBytes(bytes)) => bytes.zeroize(),
            Some(core::data_source::Specifier::InlineString(text)) => text.zeroize(),
            Some(core::data_source::Specifier::Filename(_)) | None => {}
        }
    }
}

impl fmt::Debug for discovery::DiscoveryResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscoveryResponse")
            .field("version_info", &self.version_info)
            .field("resources", &self.resources.len())
            .field("nonce", &self.nonce)
            .finish_non_exhaustive()
    }
}

impl Drop for discovery::DiscoveryResponse {
    fn drop(&mut self) {
        for resource in &mut self.resources {
            resource.value.zeroize();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_secret_of_envoy_shows_no_key_wherever_it_stands() {
        use crate::envoy::tls;
        let source = |text: &str| core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineBytes(text.into())),
        };
        let secret = tls::Secret {
            name: "default".into(),
            r#type: Some(tls::secret::Type::TlsCertificate(tls::TlsCertificate {
                certificate_chain: Some(source("CHAIN")),
                private_key: Some(source("KEYBYTES")),
            })),
        };
        let packed = prost_types::Any { type_url: "t".into(), value: b"KEYBYTES".to_vec() };
        let mut response = discovery::DiscoveryResponse::default();
        response.resources.push(packed);
        let text = format!("{secret:?}{response:?}{:?}", source("KEYBYTES").specifier);
        assert!(text.contains("default"), "{text}");
        let bytes = format!("{:?}", b"KEYBYTES");
        let bytes = bytes.trim_matches(['[', ']']);
        assert!(!text.contains("KEY") && !text.contains(bytes), "{text}");
    }

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
        let brokered = broker::X509svid {
            x509_svid_key: b"KEYBYTES".as_slice().into(),
            ..broker::X509svid::default()
        };
        let token = broker::Jwtsvid { svid: "TOKEN".into(), ..broker::Jwtsvid::default() };
        let text = format!("{x509:?}{jwt:?}{ask:?}{wit:?}{brokered:?}{token:?}");
        assert!(text.contains("spiffe://td/a"), "{text}");
        assert!(!text.contains("KEY") && !text.contains("TOKEN"), "{text}");
    }
}
