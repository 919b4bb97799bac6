//! Core's words to the protocol's and back: the only place that fills in or reads messages.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mayfly_core::{
    Denial, InvalidId, Serial, SpiffeId, Timestamp, TrustDomain,
    limits::{AUDIENCE_BYTES_MAX, AUDIENCES_MAX},
};
use mayfly_proto::{
    mayfly::v1,
    spiffe::{broker, workload},
};
use prost_types::{ListValue, Struct, Value, value::Kind};

use crate::{
    desk::{Bundles, Introduced, JwtSvid, Report, Use, Validated, X509Svid},
    guest::Guest,
    limits,
};

/// Reads the optional `spiffe_id` of a request; empty is none.
pub(crate) fn wanted_id(text: &str) -> Result<Option<SpiffeId>, InvalidId> {
    if text.is_empty() { Ok(None) } else { SpiffeId::parse(text).map(Some) }
}

/// Reads the audiences of a request.
pub(crate) fn audience(audience: Vec<String>) -> Result<Vec<String>, Denial> {
    let fits = |one: &String| !one.is_empty() && one.len() <= AUDIENCE_BYTES_MAX;
    let good = (1..=AUDIENCES_MAX).contains(&audience.len()) && audience.iter().all(fits);
    if good { Ok(audience) } else { Err(Denial::AudienceInvalid) }
}

/// Hints as they may be sent: not empty ones are unique, and the first of several keeps its own. The
/// others lose the hint and not the identity, because a client that asks for the hint gets the first
/// either way, and one that takes them all should have all.
fn hints<'a>(all: impl Iterator<Item = &'a Introduced>) -> impl Iterator<Item = String> {
    let mut seen = BTreeSet::new();
    all.map(move |one| {
        let hint = one.identity.hint.as_str();
        let fits = !hint.is_empty() && hint.len() <= limits::HINT_BYTES_MAX;
        if fits && seen.insert(hint) { hint.to_owned() } else { String::new() }
    })
}

/// The bundle of a trust domain. An empty one counts as none: the Python client ends its watch for good
/// when it meets one.
fn bundle<'a>(
    bundles: &'a BTreeMap<TrustDomain, Bytes>,
    domain: &TrustDomain,
) -> Option<&'a Bytes> {
    bundles.get(domain).filter(|bundle| !bundle.is_empty())
}

/// Our revocation lists, as an extra that no shipped client reads. All of them or none: a list that
/// grew too long is left out rather than making the whole answer too long for its clients; it stands in
/// the data directory in any case.
fn revocation_lists(bundles: &Bundles, bytes_max: usize) -> Vec<Bytes> {
    let total: usize = bundles.crls.iter().map(Bytes::len).sum();
    if total <= bytes_max { bundles.crls.clone() } else { Vec::new() }
}

/// Bundles of the foreign trust domains that these identities may verify.
fn federated(
    bundles: &BTreeMap<TrustDomain, Bytes>,
    who: &[&Introduced],
) -> BTreeMap<TrustDomain, Bytes> {
    let own: BTreeSet<_> = who.iter().map(|one| one.identity.spiffe_id.trust_domain()).collect();
    let foreign: BTreeSet<_> = who.iter().flat_map(|one| &one.identity.federates_with).collect();
    foreign
        .into_iter()
        .filter(|domain| !own.contains(domain))
        .filter_map(|domain| Some((domain.clone(), bundle(bundles, domain)?.clone())))
        .take(limits::TRUST_DOMAINS_PER_RESPONSE_MAX - own.len().max(1))
        .collect()
}

/// The own bundle and the foreign ones. Without an own bundle there is nothing to say yet.
pub(crate) fn all_bundles(
    bundles: &BTreeMap<TrustDomain, Bytes>,
    who: &[&Introduced],
) -> Result<BTreeMap<TrustDomain, Bytes>, Denial> {
    let mut all = federated(bundles, who);
    for one in who {
        let domain = one.identity.spiffe_id.trust_domain();
        let own = bundle(bundles, domain).ok_or(Denial::NotServing)?;
        all.insert(domain.clone(), own.clone());
    }
    Ok(all)
}

/// Bundles as the Workload API sends them: by the SPIFFE ID of the trust domain.
fn by_uri(bundles: BTreeMap<TrustDomain, Bytes>) -> BTreeMap<String, Bytes> {
    bundles.into_iter().map(|(domain, bundle)| (domain.uri(), bundle)).collect()
}

/// `FetchX509SVID`: every identity with its certificate, in the desk's order.
pub(crate) fn x509_svids(
    held: &[(Introduced, X509Svid)],
    bundles: &Bundles,
) -> Result<workload::X509svidResponse, Denial> {
    let who: Vec<_> = held.iter().map(|(one, _)| one).collect();
    let mut svids = Vec::with_capacity(held.len());
    for ((_, svid), hint) in held.iter().zip(hints(who.iter().copied())) {
        let own = bundle(&bundles.x509, svid.spiffe_id.trust_domain()).ok_or(Denial::NotServing)?;
        svids.push(workload::X509svid {
            spiffe_id: svid.spiffe_id.as_str().to_owned(),
            x509_svid: svid.chain.clone(),
            x509_svid_key: svid.key.clone(),
            bundle: own.clone(),
            hint,
        });
    }
    Ok(workload::X509svidResponse {
        svids,
        crl: revocation_lists(bundles, limits::SVID_CRL_BYTES_MAX),
        federated_bundles: by_uri(federated(&bundles.x509, &who)),
    })
}

/// `FetchX509Bundles`.
pub(crate) fn x509_bundles(
    who: &[Introduced],
    bundles: &Bundles,
) -> Result<workload::X509BundlesResponse, Denial> {
    let who: Vec<_> = who.iter().collect();
    let all = all_bundles(&bundles.x509, &who)?;
    let crl = revocation_lists(bundles, limits::CRL_BYTES_MAX);
    Ok(workload::X509BundlesResponse { crl, bundles: by_uri(all) })
}

/// `FetchJWTBundles`.
pub(crate) fn jwt_bundles(
    who: &[Introduced],
    bundles: &Bundles,
) -> Result<workload::JwtBundlesResponse, Denial> {
    let who: Vec<_> = who.iter().collect();
    Ok(workload::JwtBundlesResponse { bundles: by_uri(all_bundles(&bundles.jwt, &who)?) })
}

/// `FetchJWTSVID`.
pub(crate) fn jwt_svids(held: Vec<(Introduced, JwtSvid)>) -> workload::JwtsvidResponse {
    let hints: Vec<_> = hints(held.iter().map(|(one, _)| one)).collect();
    let svids = held.into_iter().zip(hints).map(|((_, svid), hint)| workload::Jwtsvid {
        spiffe_id: svid.spiffe_id.as_str().to_owned(),
        svid: svid.token,
        hint,
    });
    workload::JwtsvidResponse { svids: svids.collect() }
}

/// `SubscribeToX509SVID`: the same in the Broker API's words.
pub(crate) fn brokered_x509(
    said: workload::X509svidResponse,
) -> broker::SubscribeToX509svidResponse {
    let svids = said.svids.into_iter().map(|svid| broker::X509svid {
        spiffe_id: svid.spiffe_id,
        x509_svid: svid.x509_svid,
        x509_svid_key: svid.x509_svid_key,
        bundle: svid.bundle,
        hint: svid.hint,
    });
    broker::SubscribeToX509svidResponse {
        svids: svids.collect(),
        crl: said.crl,
        federated_bundles: said.federated_bundles,
    }
}

/// `SubscribeToX509Bundles`.
pub(crate) fn brokered_x509_bundles(
    said: workload::X509BundlesResponse,
) -> broker::SubscribeToX509BundlesResponse {
    broker::SubscribeToX509BundlesResponse { crl: said.crl, bundles: said.bundles }
}

/// `FetchJWTSVID` of the Broker API.
pub(crate) fn brokered_jwt(said: workload::JwtsvidResponse) -> broker::FetchJwtsvidResponse {
    let svids = said.svids.into_iter().map(|svid| broker::Jwtsvid {
        spiffe_id: svid.spiffe_id,
        svid: svid.svid,
        hint: svid.hint,
    });
    broker::FetchJwtsvidResponse { svids: svids.collect() }
}

/// `SubscribeToJWTBundles`.
pub(crate) fn brokered_jwt_bundles(
    said: workload::JwtBundlesResponse,
) -> broker::SubscribeToJwtBundlesResponse {
    broker::SubscribeToJwtBundlesResponse { bundles: said.bundles }
}

/// `ValidateJWTSVID`.
pub(crate) fn validated(validated: Validated) -> workload::ValidateJwtsvidResponse {
    workload::ValidateJwtsvidResponse {
        spiffe_id: validated.spiffe_id.as_str().to_owned(),
        claims: Some(object(validated.claims)),
    }
}

fn object(map: serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct { fields: map.into_iter().map(|(name, json)| (name, value(json))).collect() }
}

fn value(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(flag) => Kind::BoolValue(flag),
        // Protobuf has no other number; seconds since 1970 fit a double exactly.
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(list) => {
            Kind::ListValue(ListValue { values: list.into_iter().map(value).collect() })
        }
        Json::Object(map) => Kind::StructValue(object(map)),
    };
    Value { kind: Some(kind) }
}

/// Reads a verifier's report.
pub(crate) fn report(report: v1::ReportRequest, guest: &Guest) -> Result<Report, InvalidId> {
    let rule = |what, rule| Err(InvalidId { what, rule });
    let usage = match v1::Use::try_from(report.r#use) {
        Ok(v1::Use::AfterEnd) => Use::AfterEnd,
        Ok(v1::Use::WhileSuspended) => Use::WhileSuspended,
        Ok(v1::Use::ByAnother) => Use::ByAnother,
        Ok(v1::Use::Unknown) => Use::Unknown,
        Ok(v1::Use::Unspecified) | Err(_) => return rule("use", "it is not one of the known ones"),
    };
    for (what, name) in [("presenter", &report.presenter), ("verifier", &report.verifier)] {
        if name.len() > limits::REPORT_NAME_BYTES_MAX {
            return rule(what, "it is longer than 2048 bytes");
        }
    }
    let serial = (!report.serial.is_empty()).then(|| Serial::from_bytes(&report.serial));
    Ok(Report {
        serial: serial.transpose()?,
        spiffe_id: wanted_id(&report.spiffe_id)?,
        usage,
        presenter: report.presenter,
        at: Timestamp(report.at_ms),
        verifier: report.verifier,
        sender: guest.id().cloned(),
        user: guest.user(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn point_32_a_revocation_list_never_makes_an_answer_too_long() {
        let with =
            |bytes: usize| Bundles { crls: vec![vec![0; bytes].into()], ..Bundles::default() };
        for most in [limits::SVID_CRL_BYTES_MAX, limits::CRL_BYTES_MAX] {
            assert_eq!(revocation_lists(&with(most), most).len(), 1);
            assert_eq!(revocation_lists(&with(most + 1), most), Vec::<Bytes>::new());
        }
    }
}
