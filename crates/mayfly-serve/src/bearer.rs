//! Tokens of the issuers that the configuration names: who shows one asks as its subject.
//!
//! People and machines that have no SVID and share a user of the machine are told apart like that. A token
//! is taken on a unix socket alone: over a port the SVID says who asks, and two answers to one question
//! would leave open which of them counts. The process behind the connection stays known, so whoever is
//! part of a suspended task does not free it with somebody's token (R19).

use mayfly_core::{Denial, Span};
use tonic::metadata::MetadataMap;

use crate::{
    asking::{Asker, Bearer},
    guest::Guest,
    office::{Office, Refusal},
};

/// Who asks, and for how long, where that is not as long as the connection lasts.
pub(crate) type Shown = (Asker, Option<Span>);

/// Who asks: the subject of the token that comes along, else whoever is at the other end.
pub(crate) async fn shown(
    office: &dyn Office,
    guest: &Guest,
    metadata: &MetadataMap,
) -> Result<Shown, Refusal> {
    let asker = Asker::of(guest);
    let Some(token) = token(metadata)? else { return Ok((asker, None)) };
    if asker.peer.is_none() {
        return Err(invalid("over a port the SVID says who asks"));
    }
    let Bearer { principal, lasts } = office.recognise(token).await?;
    Ok((Asker { principal, ..asker }, Some(lasts)))
}

/// The one token of a call (RFC 6750 §2.1).
fn token(metadata: &MetadataMap) -> Result<Option<String>, Refusal> {
    let mut values = metadata.get_all("authorization").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid("`authorization` comes twice"));
    }
    let text = value.to_str().ok().and_then(|text| text.split_once(' '));
    match text {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            Ok(Some(token.trim().to_owned()))
        }
        Some(_) | None => Err(invalid("`authorization` has to be `Bearer TOKEN`")),
    }
}

fn invalid(why: &str) -> Refusal {
    Refusal { denial: Denial::OidcTokenInvalid, detail: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bearer_token_is_taken_and_nothing_else() {
        let with = |values: &[&str]| {
            let mut metadata = MetadataMap::new();
            for value in values {
                metadata.append("authorization", value.parse().unwrap());
            }
            token(&metadata).map_err(|refusal| refusal.denial)
        };
        assert_eq!(with(&[]), Ok(None));
        assert_eq!(with(&["Bearer a.b.c"]), Ok(Some("a.b.c".to_owned())));
        assert_eq!(with(&["bearer a.b.c"]), Ok(Some("a.b.c".to_owned())));
        for bad in [&["a.b.c"][..], &["Basic eA=="], &["Bearer"], &["Bearer a", "Bearer b"]] {
            assert_eq!(with(bad), Err(Denial::OidcTokenInvalid), "{bad:?}");
        }
    }
}
