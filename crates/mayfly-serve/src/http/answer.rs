//! How a ready-made document is sent: conditional requests, caches, and what a client accepts.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};

use super::published::{Asset, Media};

/// Sends `asset`, or says that the client has it already.
pub(super) fn of(asset: &Asset, asked: &HeaderMap) -> Response {
    let mut response = if has_it(asked, asset.etag()) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let mut response = Body::from(asset.body().clone()).into_response();
        let media = HeaderValue::from_static(asset.media().name());
        response.headers_mut().insert(header::CONTENT_TYPE, media);
        response
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, asset.etag().clone());
    headers.insert(header::CACHE_CONTROL, asset.cache().clone());
    // What everybody may read, scripts in a browser may read too (status list §8.3).
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// RFC 9110 §13.1.2: any of the tags, compared weakly, or `*`.
fn has_it(asked: &HeaderMap, etag: &HeaderValue) -> bool {
    let tags = list(asked, &header::IF_NONE_MATCH);
    let ours = etag.to_str().unwrap_or_default();
    tags.into_iter().any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == ours)
}

/// Whether the client takes `media`. Who does not say takes everything.
pub(super) fn accepts(asked: &HeaderMap, media: Media) -> bool {
    let ranges = list(asked, &header::ACCEPT);
    let (class, _) = media.name().split_once('/').unwrap_or_default();
    let mut fits = ranges.iter().map(|range| {
        let (range, parameters) = range.split_once(';').unwrap_or((range, ""));
        let range = range.trim().to_ascii_lowercase();
        let refused = parameters.split(';').any(|p| is_zero(p.trim()));
        let named = range == media.name();
        let wild = range == "*/*" || range.strip_suffix("/*").is_some_and(|c| c == class);
        (named || wild) && !refused
    });
    ranges.is_empty() || fits.any(|fits| fits)
}

/// Whether a parameter is a quality of nought, which is a refusal (RFC 9110 §12.4.2).
fn is_zero(parameter: &str) -> bool {
    let quality = parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q="));
    quality.and_then(|quality| quality.parse::<f32>().ok()).is_some_and(|quality| quality <= 0.0)
}

/// The members of a header that is a list, over all its lines.
fn list<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Vec<&'a str> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn with(name: header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn a_status_list_is_given_to_whoever_takes_it() {
        for takes in [
            "application/statuslist+jwt",
            "*/*",
            "application/*;q=0.1",
            "text/html, APPLICATION/STATUSLIST+JWT",
        ] {
            assert!(accepts(&with(header::ACCEPT, takes), Media::StatusList), "{takes}");
        }
        assert!(accepts(&HeaderMap::new(), Media::StatusList));
        for refuses in
            ["application/statuslist+cwt", "text/*", "application/statuslist+jwt;q=0", "*/*; q=0.0"]
        {
            assert!(!accepts(&with(header::ACCEPT, refuses), Media::StatusList), "{refuses}");
        }
    }

    #[test]
    fn what_a_client_has_is_not_sent_again() {
        let asset = Asset::new("x", Media::Json, Duration::from_secs(5));
        let tag = asset.etag().to_str().unwrap().to_owned();
        let asked = |value: String| {
            HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::try_from(value).unwrap())])
        };
        for held in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            let response = of(&asset, &asked(held.clone()));
            assert_eq!(response.status(), StatusCode::NOT_MODIFIED, "{held}");
            assert_eq!(response.headers()[header::ETAG], *asset.etag());
            assert!(!response.headers().contains_key(header::CONTENT_TYPE));
        }
        assert_eq!(of(&asset, &asked("\"other\"".to_owned())).status(), StatusCode::OK);
        let other = Asset::new("y", Media::Json, Duration::from_secs(5));
        assert_ne!(other.etag(), asset.etag());
    }
}
