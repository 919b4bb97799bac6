//! Where the Workload API is: `SPIFFE_ENDPOINT_SOCKET` and its strict reading (Workload Endpoint §4).

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::Channel;

/// The environment variable that names the endpoint.
pub const SOCKET_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// The address of a Workload API.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Endpoint {
    /// A unix socket, by its absolute path.
    Unix(PathBuf),
    /// An IP address and port; names are not allowed, because a name server would choose the broker.
    Tcp(SocketAddr),
}

/// An address that cannot be a Workload API's.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// The address breaks a rule.
    #[error("invalid endpoint `{uri}`: {rule}")]
    Uri {
        /// What was given.
        uri: String,
        /// The rule, as a sentence.
        rule: &'static str,
    },
    /// Nothing was given.
    #[error("`SPIFFE_ENDPOINT_SOCKET` is not set")]
    Unset,
}

impl Endpoint {
    /// Reads `unix:///path` or `tcp://ip:port`.
    ///
    /// # Errors
    /// [`InvalidEndpoint`] names the rule that is broken.
    pub fn parse(uri: &str) -> Result<Self, InvalidEndpoint> {
        let wrong = |rule| InvalidEndpoint::Uri { uri: uri.to_owned(), rule };
        if let Some(rest) = uri.strip_prefix("unix:") {
            return unix_path(rest).map(Self::Unix).map_err(wrong);
        }
        if let Some(rest) = uri.strip_prefix("tcp://") {
            return rest.parse().map(Self::Tcp).map_err(|_not_an_address| {
                wrong("`tcp` takes an IP address and a port, nothing else")
            });
        }
        Err(wrong("the scheme is neither `unix` nor `tcp`"))
    }

    /// Reads `SPIFFE_ENDPOINT_SOCKET`.
    ///
    /// # Errors
    /// [`InvalidEndpoint`] if it is not set or breaks a rule.
    pub fn from_env() -> Result<Self, InvalidEndpoint> {
        let uri = std::env::var(SOCKET_VARIABLE).map_err(|_unset| InvalidEndpoint::Unset)?;
        Self::parse(&uri)
    }

    /// A channel that connects on its first call, and again whenever the connection is lost.
    #[must_use]
    pub fn channel(&self) -> Channel {
        // The URI only fills `:authority`; the connector decides where to go.
        let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
        match self.clone() {
            Self::Unix(path) => {
                let path: Arc<std::path::Path> = path.into();
                endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
                    let path = Arc::clone(&path);
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                }))
            }
            Self::Tcp(address) => {
                endpoint.connect_with_connector_lazy(tower::service_fn(move |_| async move {
                    TcpStream::connect(address).await.map(TokioIo::new)
                }))
            }
        }
    }
}

fn unix_path(rest: &str) -> Result<PathBuf, &'static str> {
    // `unix:/path` is not in the specification's letter, but every client takes it.
    let path = match rest.strip_prefix("//") {
        Some(path) if path.starts_with('/') => path,
        Some(_) => return Err("`unix` takes no authority"),
        None => rest,
    };
    if !path.starts_with('/') || path.len() == 1 {
        return Err("`unix` takes an absolute path");
    }
    if path.contains(['?', '#']) {
        return Err("`unix` takes neither query nor fragment");
    }
    if path.contains(['%', '\0']) {
        return Err("percent-encoding is not supported");
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_specification_are_accepted() {
        for (uri, path) in [
            ("unix:///a/b.sock", "/a/b.sock"),
            ("unix:/a/b.sock", "/a/b.sock"),
            ("unix:///a", "/a"),
        ] {
            assert_eq!(Endpoint::parse(uri), Ok(Endpoint::Unix(path.into())), "{uri}");
        }
        for (uri, address) in
            [("tcp://127.0.0.1:8081", "127.0.0.1:8081"), ("tcp://[::1]:8081", "[::1]:8081")]
        {
            let address = address.parse().unwrap();
            assert_eq!(Endpoint::parse(uri), Ok(Endpoint::Tcp(address)), "{uri}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for uri in [
            "",
            "unix:",
            "unix:/",
            "unix://",
            "unix:///",
            "unix://host/a",
            "unix:a.sock",
            "unix:///a?x",
            "unix:///a#f",
            "unix:///a%20b",
            "unix://u@/a",
            "tcp://localhost:1",
            "tcp://1.2.3.4",
            "tcp://1.2.3.4:1/foo",
            "tcp://1.2.3.4:1?x",
            "tcp://u@1.2.3.4:1",
            "tcp:1.2.3.4:1",
            "http://1.2.3.4:1",
            "/a/b.sock",
        ] {
            assert!(Endpoint::parse(uri).is_err(), "{uri}");
        }
    }
}
