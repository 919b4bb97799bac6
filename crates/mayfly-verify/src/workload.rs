//! A client of the SPIFFE Workload API, for services in Rust.
//!
//! It asks and checks; it decides nothing. Who the caller is, the broker sees by itself from the
//! socket, so there is nothing to configure but the socket's address.

use std::collections::BTreeMap;

use mayfly_core::{SpiffeId, TrustDomain};
use mayfly_proto::spiffe::workload as wire;
use tonic::{Request, Status, metadata::MetadataValue, transport::Channel};
use wire::spiffe_workload_api_client::SpiffeWorkloadApiClient;

use crate::{
    endpoint::{Endpoint, InvalidEndpoint},
    jwk::{JwkSet, JwkSets},
    source::{KeySource, X509Source},
    svid::{self, Bundle, X509Context},
    x509::InvalidSvid,
};

/// Why the Workload API gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The address is wrong.
    #[error(transparent)]
    Endpoint(#[from] InvalidEndpoint),
    /// The server refused or could not be reached.
    #[error("workload api answered `{:?}`: {}", .0.code(), .0.message())]
    Status(#[from] Status),
    /// The server sent an identity that breaks SPIFFE's rules.
    #[error("workload api sent an invalid x.509-svid: {0}")]
    Svid(#[from] InvalidSvid),
    /// The server ended a stream or left out what it must send.
    #[error("workload api sent no `{0}`")]
    Empty(&'static str),
}

/// A JWT-SVID as it was issued.
#[derive(Clone)]
pub struct JwtSvid {
    /// Who it is about.
    pub spiffe_id: SpiffeId,
    /// The token, in compact serialisation.
    pub token: String,
    /// Tells several identities apart.
    pub hint: String,
}

impl std::fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtSvid")
            .field("spiffe_id", &self.spiffe_id)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

/// A client of one Workload API. Cheap to clone; connects on first use.
#[derive(Clone, Debug)]
pub struct WorkloadClient {
    inner: SpiffeWorkloadApiClient<Channel>,
}

impl WorkloadClient {
    /// A client of the Workload API at `endpoint`. To be called within a tokio runtime.
    #[must_use]
    pub fn new(endpoint: &Endpoint) -> Self {
        Self { inner: SpiffeWorkloadApiClient::new(endpoint.channel()) }
    }

    /// A client of the Workload API that `SPIFFE_ENDPOINT_SOCKET` names.
    ///
    /// # Errors
    /// [`WorkloadError::Endpoint`] if it names none.
    pub fn from_env() -> Result<Self, WorkloadError> {
        Ok(Self::new(&Endpoint::from_env()?))
    }

    /// The caller's X.509 identities at this moment.
    ///
    /// # Errors
    /// [`WorkloadError`] if there are none.
    pub async fn fetch_x509(&self) -> Result<X509Context, WorkloadError> {
        let mut stream = self.stream_x509().await?;
        let message = stream.message().await?.ok_or(WorkloadError::Empty("identity"))?;
        Ok(X509Context::parse(message)?)
    }

    /// The caller's X.509 identities from here on, renewed by themselves.
    #[must_use]
    pub fn watch_x509(&self) -> X509Source {
        X509Source::follow(self.clone())
    }

    pub(crate) async fn stream_x509(
        &self,
    ) -> Result<tonic::Streaming<wire::X509svidResponse>, Status> {
        let request = request(wire::X509svidRequest {});
        Ok(self.inner.clone().fetch_x509svid(request).await?.into_inner())
    }

    /// Tokens for `audience`: one for each identity of the caller, or for `spiffe_id` alone.
    ///
    /// # Errors
    /// [`WorkloadError`] if there are none.
    pub async fn fetch_jwt(
        &self,
        audience: &[&str],
        spiffe_id: Option<&SpiffeId>,
    ) -> Result<Vec<JwtSvid>, WorkloadError> {
        let request = request(wire::JwtsvidRequest {
            audience: audience.iter().map(|one| (*one).to_owned()).collect(),
            spiffe_id: spiffe_id.map(ToString::to_string).unwrap_or_default(),
        });
        let answer = self.inner.clone().fetch_jwtsvid(request).await?;
        let read = |mut svid: wire::Jwtsvid| {
            let spiffe_id =
                SpiffeId::parse(&svid.spiffe_id).map_err(|_rule| InvalidSvid::SpiffeId)?;
            Ok(JwtSvid {
                spiffe_id,
                token: std::mem::take(&mut svid.svid),
                hint: std::mem::take(&mut svid.hint),
            })
        };
        let svids = answer.into_inner().svids;
        if svids.is_empty() {
            return Err(WorkloadError::Empty("token"));
        }
        svids.into_iter().map(read).collect()
    }

    /// The authorities of the caller's own and its federated trust domains.
    ///
    /// # Errors
    /// [`WorkloadError`] if there are none.
    pub async fn fetch_x509_bundles(&self) -> Result<BTreeMap<TrustDomain, Bundle>, WorkloadError> {
        let request = request(wire::X509BundlesRequest {});
        let mut stream = self.inner.clone().fetch_x509_bundles(request).await?.into_inner();
        let message = stream.message().await?.ok_or(WorkloadError::Empty("bundle"))?;
        Ok(svid::bundles(message.bundles))
    }

    /// The token keys of the caller's own and its federated trust domains.
    ///
    /// # Errors
    /// [`WorkloadError`] if there are none.
    pub async fn fetch_jwt_bundles(&self) -> Result<JwkSets, WorkloadError> {
        let mut stream = self.stream_jwt_bundles().await?;
        let message = stream.message().await?.ok_or(WorkloadError::Empty("bundle"))?;
        Ok(key_sets(&message))
    }

    /// The token keys from here on, renewed by themselves.
    #[must_use]
    pub fn watch_jwt_bundles(&self) -> KeySource {
        KeySource::follow(self.clone())
    }

    pub(crate) async fn stream_jwt_bundles(
        &self,
    ) -> Result<tonic::Streaming<wire::JwtBundlesResponse>, Status> {
        let request = request(wire::JwtBundlesRequest {});
        Ok(self.inner.clone().fetch_jwt_bundles(request).await?.into_inner())
    }

    /// Asks the broker whether a token is genuine, meant for `audience`, and its task going on.
    ///
    /// # Errors
    /// [`WorkloadError::Status`] with the reason if it is not.
    pub async fn validate_jwt(
        &self,
        audience: &str,
        token: &str,
    ) -> Result<SpiffeId, WorkloadError> {
        let request = request(wire::ValidateJwtsvidRequest {
            audience: audience.to_owned(),
            svid: token.to_owned(),
        });
        let answer = self.inner.clone().validate_jwtsvid(request).await?.into_inner();
        Ok(SpiffeId::parse(&answer.spiffe_id).map_err(|_rule| InvalidSvid::SpiffeId)?)
    }
}

/// The key sets of one message; a malformed one is left out, and its trust domain with it.
pub(crate) fn key_sets(message: &wire::JwtBundlesResponse) -> JwkSets {
    let sets = message.bundles.iter().filter_map(|(id, json)| {
        let read = svid::trust_domain(id).zip(JwkSet::parse(json).ok());
        if read.is_none() {
            tracing::warn!(trust_domain = %id, "key set left out, it is malformed");
        }
        read
    });
    sets.collect()
}

/// Every request says that it means to be one: this is what keeps a browser from being talked into it.
pub(crate) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}
