//! Authorities, from the wire and back.

use mayfly_core::{InvalidId, Kind};
use mayfly_proto::mayfly::v1 as wire;

use super::field;
use crate::office::{AuthorityLine, AuthorityOrder, AuthorityWish};

pub(super) fn wish(request: wire::ChangeAuthorityRequest) -> Result<AuthorityWish, InvalidId> {
    let kind = match request.kind.as_str() {
        "x509" => Kind::X509,
        "jwt" => Kind::Jwt,
        _ => return Err(field("kind", "it has to be x509 or jwt")),
    };
    let id = Some(request.id).filter(|id| !id.is_empty());
    let named = |id: Option<String>| id.ok_or(field("id", "it is missing"));
    let order = match (request.order.as_str(), id) {
        ("prepare", None) => AuthorityOrder::Prepare,
        ("prepare", Some(_)) => {
            return Err(field("id", "a successor has no name before it is made"));
        }
        ("activate", id) => AuthorityOrder::Activate(id),
        ("taint", id) => AuthorityOrder::Taint(named(id)?),
        ("revoke", id) => AuthorityOrder::Revoke(named(id)?),
        _ => return Err(field("order", "it has to be prepare, activate, taint or revoke")),
    };
    Ok(AuthorityWish { kind, order })
}

pub(super) fn line(line: AuthorityLine) -> wire::Authority {
    wire::Authority {
        kind: line.kind.to_owned(),
        id: line.id,
        state: line.state.to_owned(),
        not_after_ms: line.not_after.0,
    }
}
