//! The inventory, a page at a time.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use mayfly_core::{Denial, Kind, Serial, TaskId};
use mayfly_proto::mayfly::v1 as wire;
use tonic::Status;

use crate::{
    office::{Holding, Holdings, InventoryWish},
    status,
    story::held_by,
};

/// Credentials on one page.
const PAGE_MAX: usize = 1000;

/// Reads a request, and says of which query its pages are.
pub(super) fn wish(request: wire::InventoryRequest) -> Result<(InventoryWish, String), Status> {
    let query = query(&request);
    let told = |text: String| Some(text).filter(|text| !text.is_empty());
    let tree = told(request.tree).as_deref().map(TaskId::parse).transpose();
    let after = told(request.page_token).map(|token| place(&token, &query)).transpose()?;
    let count = match usize::try_from(request.page_size).unwrap_or(PAGE_MAX) {
        0 => PAGE_MAX,
        count => count.min(PAGE_MAX),
    };
    let wish = InventoryWish {
        owner: told(request.owner),
        profile: told(request.profile),
        tree: tree.map_err(|e| status::of_field(&e))?,
        after,
        count,
    };
    Ok((wish, query))
}

pub(super) fn page(found: Holdings, query: &str) -> wire::InventoryResponse {
    let last = found.holdings.last().filter(|_| found.has_more);
    let next = last.map(|last| format!("{query}-{}-{}", last.task, last.credential.serial));
    wire::InventoryResponse {
        holdings: found.holdings.into_iter().map(holding).collect(),
        next_page_token: next.unwrap_or_default(),
    }
}

/// What a query asks for, short: a token of another query is a mistake, not an attack.
fn query(request: &wire::InventoryRequest) -> String {
    let mut hasher = DefaultHasher::new();
    (&request.owner, &request.profile, &request.tree).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn place(token: &str, query: &str) -> Result<(TaskId, Serial), Status> {
    let place = token.split_once('-').filter(|(of, _)| *of == query).and_then(|(_, rest)| {
        let (task, serial) = rest.split_once('-')?;
        Some((TaskId::parse(task).ok()?, Serial::parse(serial).ok()?))
    });
    place.ok_or_else(|| status::of(Denial::PageInvalid))
}

fn holding(holding: Holding) -> wire::Holding {
    let Holding { credential, .. } = holding;
    let kind = match credential.kind {
        Kind::X509 => "x509",
        Kind::Jwt => "jwt",
    };
    wire::Holding {
        serial: credential.serial.to_string(),
        kind: kind.to_owned(),
        spiffe_id: holding.spiffe_id.to_string(),
        task: holding.task.to_string(),
        version: credential.version.0,
        profile: holding.profile,
        owner: holding.owner,
        holder: held_by(&holding.holder),
        intent: holding.intent,
        not_after_ms: credential.not_after.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_to_its_place_in_its_own_query_and_nowhere_else() {
        let of = |owner: &str| wire::InventoryRequest {
            owner: owner.to_owned(),
            ..wire::InventoryRequest::default()
        };
        let (task, serial) = (TaskId::from_bytes([7; 16]), "01".repeat(17));
        let token = format!("{}-{task}-{serial}", query(&of("a")));
        let read = |owner: &str, token: &str| {
            wish(wire::InventoryRequest { page_token: token.to_owned(), ..of(owner) })
        };
        let (wish, _) = read("a", &token).expect("its own");
        let (at, of) = wish.after.expect("a place");
        assert_eq!((at, of.to_string()), (task, serial));
        let cut = token.get(..40).unwrap();
        for (owner, token) in [("b", token.as_str()), ("a", "x"), ("a", cut), ("a", "-")] {
            let refused = read(owner, token).expect_err("another query's, or nobody's");
            assert!(refused.message().starts_with("page_invalid"), "{refused:?}");
        }
    }
}
