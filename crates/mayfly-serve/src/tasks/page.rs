//! Filters, and the tokens by which a long listing goes on.
//!
//! A token names the last task that was told and a digest of the filter. It says nothing that its holder
//! was not told, and gives no right: the next page is judged like the first.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use mayfly_core::{Denial, TaskId};
use mayfly_proto::mayfly::v1 as wire;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::wish;
use crate::{asking::Query, office::Refusal};

/// Enough to tell queries apart that nobody makes to collide.
const DIGEST_BYTES: usize = 8;

pub(super) type Digest = [u8; DIGEST_BYTES];

/// Reads a filter, and gives the digest by which its next page is known.
pub(super) fn query(filter: Option<wire::Filter>) -> Result<(Query, Digest), Refusal> {
    let filter = filter.unwrap_or_default();
    let whole = Sha256::digest(filter.encode_to_vec());
    let mut digest = Digest::default();
    digest.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
    let id = |field, text: &String| {
        let told = Some(text).filter(|text| !text.is_empty());
        told.map(|text| wish::task(field, text)).transpose()
    };
    let state = match filter.state.as_str() {
        "" => None,
        "active" => Some("active"),
        "quarantined" => Some("quarantined"),
        "ended" => Some("ended"),
        _ => return Err(wish::wrong("state", "it has to be active, quarantined or ended")),
    };
    let query = Query {
        ended: filter.ended,
        parent: id("parent", &filter.parent)?,
        tree: id("tree", &filter.tree)?,
        profile: filter.profile,
        owner: filter.owner,
        spiffe_id_prefix: filter.spiffe_id_prefix,
        state,
    };
    Ok((query, digest))
}

pub(super) fn token(digest: Digest, last: TaskId) -> String {
    BASE64_URL_SAFE_NO_PAD.encode([digest.as_slice(), last.as_bytes()].concat())
}

/// The task behind which a page begins.
pub(super) fn after(token: &str, digest: Digest) -> Result<Option<TaskId>, Refusal> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).ok();
    let last = bytes.and_then(|bytes| {
        let last = bytes.strip_prefix(digest.as_slice())?;
        Some(TaskId::from_bytes(last.try_into().ok()?))
    });
    last.map(Some).ok_or_else(|| Denial::PageInvalid.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_own_query_only() {
        let filter =
            |profile: &str| wire::Filter { profile: profile.to_owned(), ..Default::default() };
        let (_, digest) = query(Some(filter("a"))).unwrap();
        let last = TaskId::from_bytes([7; 16]);
        let token = token(digest, last);
        assert_eq!(after(&token, digest), Ok(Some(last)));
        assert_eq!(after("", digest), Ok(None));
        let (_, other) = query(Some(filter("b"))).unwrap();
        for (bad, digest) in
            [(token.as_str(), other), ("x", digest), ("AAAA", digest), ("é", digest)]
        {
            assert_eq!(after(bad, digest), Err(Denial::PageInvalid.into()), "{bad}");
        }
        assert!(
            query(Some(wire::Filter { state: "odd".to_owned(), ..Default::default() })).is_err()
        );
        assert!(
            query(Some(wire::Filter { tree: "odd".to_owned(), ..Default::default() })).is_err()
        );
    }
}
