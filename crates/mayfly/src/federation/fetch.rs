//! One GET of a bundle endpoint, over a connection of its own.
//!
//! The client is small on purpose: no proxies, no cookies, no compression, no kept connections. It follows
//! redirects that say "for now" and begins at the configured URL every time, so nobody can move an
//! endpoint for good but the operator (SPIFFE Federation §5.1.3).

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::document::BUNDLE_BYTES_MAX;
use crate::config;

/// The longest that a fetch may take, redirects included.
const FETCH_MAX: Duration = Duration::from_secs(30);
/// Redirects that are followed.
const REDIRECTS_MAX: usize = 5;
const HTTPS_PORT: u16 = 443;

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It took too long.
    #[error("it took longer than {} s", FETCH_MAX.as_secs())]
    Elapsed,
    /// No connection, or no handshake.
    #[error("cannot connect to `{url}`: {source}")]
    Connect {
        /// Where.
        url: Uri,
        /// Why.
        source: io::Error,
    },
    /// The host cannot be a server's name.
    #[error("`{0}` has no host that a certificate could name")]
    Host(Uri),
    /// HTTP was broken off or spoken badly.
    #[error("http: {0}")]
    Http(#[from] hyper::Error),
    /// Something else than a document.
    #[error("`{url}` answers `{status}`")]
    Status {
        /// Where.
        url: Uri,
        /// What.
        status: StatusCode,
    },
    /// It points somewhere where we do not go.
    #[error("`{url}` points elsewhere, and that {rule}")]
    Redirect {
        /// Who points.
        url: Uri,
        /// The rule, as the rest of a sentence.
        rule: &'static str,
    },
    /// It points on and on.
    #[error("more than {REDIRECTS_MAX} redirects")]
    Redirects,
    /// The document is too long.
    #[error("it is longer than {} KiB", BUNDLE_BYTES_MAX >> 10)]
    TooLong,
    /// The body was broken off.
    #[error("the document broke off: {0}")]
    Body(String),
    /// There is nobody to be believed.
    #[error("no certificate to believe in: {0}")]
    Roots(String),
    /// rustls' own.
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
}

/// Fetches the document at `url` from servers that `tls` believes.
///
/// # Errors
/// [`FetchError`].
pub(crate) async fn fetch(url: &Uri, tls: Arc<ClientConfig>) -> Result<Bytes, FetchError> {
    let following = async {
        let mut at = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            match get(&at, Arc::clone(&tls)).await? {
                Answer::Document(document) => return Ok(document),
                Answer::Elsewhere(next) => at = next,
            }
        }
        Err(FetchError::Redirects)
    };
    tokio::time::timeout(FETCH_MAX, following).await.unwrap_or(Err(FetchError::Elapsed))
}

enum Answer {
    Document(Bytes),
    Elsewhere(Uri),
}

async fn get(url: &Uri, tls: Arc<ClientConfig>) -> Result<Answer, FetchError> {
    let nameless = || FetchError::Host(url.clone());
    let connect = |source| FetchError::Connect { url: url.clone(), source };
    let host = url.host().ok_or_else(nameless)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(|_neither_name_nor_ip| nameless())?;
    let port = url.port_u16().unwrap_or(HTTPS_PORT);
    let stream = TcpStream::connect((host, port)).await.map_err(connect)?;
    let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(connect)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let asking = async {
        let answer = sender.send_request(request(url)).await?;
        read(url, answer).await
    };
    tokio::pin!(asking);
    tokio::select! {
        answer = &mut asking => answer,
        // The connection may close itself once it has handed over everything.
        broken = connection => match broken {
            Ok(()) => asking.await,
            Err(error) => Err(error.into()),
        },
    }
}

fn request(url: &Uri) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    // A part of a URL is a URL, and its host was a header's value before it was parsed.
    if let Ok(path) = path.parse() {
        *request.uri_mut() = path;
    }
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let headers = request.headers_mut();
    for (name, value) in [
        (header::HOST, authority),
        (header::ACCEPT, "application/json"),
        (header::USER_AGENT, concat!("mayfly/", env!("CARGO_PKG_VERSION"))),
    ] {
        if let Ok(value) = value.parse() {
            headers.insert(name, value);
        }
    }
    request
}

async fn read(
    url: &Uri,
    answer: http::Response<hyper::body::Incoming>,
) -> Result<Answer, FetchError> {
    let status = answer.status();
    match status {
        StatusCode::OK => {}
        StatusCode::FOUND | StatusCode::SEE_OTHER | StatusCode::TEMPORARY_REDIRECT => {
            let location = answer.headers().get(header::LOCATION);
            let location = location.and_then(|location| location.to_str().ok());
            return elsewhere(url, location.unwrap_or_default()).map(Answer::Elsewhere);
        }
        StatusCode::MOVED_PERMANENTLY | StatusCode::PERMANENT_REDIRECT => {
            let rule = "for good: only the configuration can move an endpoint";
            return Err(FetchError::Redirect { url: url.clone(), rule });
        }
        _ => return Err(FetchError::Status { url: url.clone(), status }),
    }
    let limit = usize::try_from(BUNDLE_BYTES_MAX).unwrap_or(usize::MAX);
    let body = Limited::new(answer.into_body(), limit).collect().await;
    body.map(|body| Answer::Document(body.to_bytes())).map_err(|error| {
        if error.is::<LengthLimitError>() {
            FetchError::TooLong
        } else {
            FetchError::Body(error.to_string())
        }
    })
}

/// Where a redirect leads: a whole URL, or a path of the same host.
fn elsewhere(url: &Uri, location: &str) -> Result<Uri, FetchError> {
    let rule = |rule| FetchError::Redirect { url: url.clone(), rule };
    if location.starts_with('/') && !location.starts_with("//") {
        let mut parts = url.clone().into_parts();
        let path = location.parse().map_err(|_malformed| rule("is not a URL"))?;
        parts.path_and_query = Some(path);
        return Uri::from_parts(parts).map_err(|_malformed| rule("is not a URL"));
    }
    config::endpoint_url(location).map_err(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn point_84_a_redirect_leads_to_https_or_nowhere() {
        let url: Uri = "https://a.org:8443/bundle?x=1".parse().unwrap();
        let to = |location| elsewhere(&url, location).map(|uri| uri.to_string());
        assert_eq!(to("/other?y=2").unwrap(), "https://a.org:8443/other?y=2");
        assert_eq!(to("https://b.org/x").unwrap(), "https://b.org/x");
        for nowhere in ["http://a.org/", "//b.org/x", "https://u:p@b.org/", "ftp://a.org/", "", "x"]
        {
            assert!(to(nowhere).is_err(), "{nowhere:?}");
        }
    }

    #[test]
    fn a_request_names_its_host_and_its_path_and_nothing_else() {
        let asked = request(&"https://a.org:8443/bundle?x=1".parse().unwrap());
        assert_eq!(asked.uri(), "/bundle?x=1");
        assert_eq!(asked.headers().get(header::HOST).unwrap(), "a.org:8443");
        assert_eq!(request(&"https://[::1]".parse().unwrap()).uri(), "/");
    }
}
