//! Every request of a live connection, checked: for tonic, axum, and whatever else is a tower service.
//!
//! HTTP/2 keeps one connection for thousands of requests, so what a handshake found out is old by the
//! second of them. [`CheckLayer`] asks at each request whether the peer may still be talked to
//! ([`Standing`]) and whether it may do this ([`Actions`]; what no rule allows is denied). A request
//! that is under way when the peer's time is over ends there: its handler is dropped, and what it was
//! streaming breaks off.
//!
//! The layer finds the [`Standing`] in the request's extensions, where tonic puts it by itself for a
//! [`Guarded`](crate::Guarded) connection, and [`Standing::introduce`] puts it elsewhere. A request
//! without one came over a connection that nobody guards, and is refused.
//!
//! What the layer cannot reach is what has left it: a task that a handler has spawned, and a connection
//! that was upgraded, for example to a web socket. The latter ends if the stream below is a
//! [`Guarded`](crate::Guarded) one; both together are what the examples have.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::Body;
use tokio::sync::watch;
use tower::{Layer, Service};

use crate::{
    actions::Actions,
    answer::{self, LiveBody, Style},
    patience::Patience,
    peer::{Standing, Vigil},
    refused::Refused,
    telemetry::{self, Place},
};

/// Puts a check before each request of a service.
#[derive(Clone, Debug)]
pub struct CheckLayer {
    rules: Rules,
}

#[derive(Clone, Debug)]
struct Rules {
    actions: watch::Receiver<Arc<Actions>>,
    patience: Option<Patience>,
}

impl CheckLayer {
    /// Allows what `actions` allows.
    #[must_use]
    pub fn new(actions: Actions) -> Self {
        Self::following(watch::Sender::new(Arc::new(actions)).subscribe())
    }

    /// The same with rules that may change: the next request is judged by the new ones.
    #[must_use]
    pub const fn following(actions: watch::Receiver<Arc<Actions>>) -> Self {
        Self { rules: Rules { actions, patience: None } }
    }

    /// Less patience with a silent feed than the connection's party has, for what is risky.
    #[must_use]
    pub const fn with_patience(mut self, patience: Patience) -> Self {
        self.rules.patience = Some(patience);
        self
    }
}

impl<S> Layer<S> for CheckLayer {
    type Service = Checked<S>;

    fn layer(&self, inner: S) -> Checked<S> {
        Checked { inner, rules: self.rules.clone() }
    }
}

/// A service behind a [`CheckLayer`]. Handlers find the [`Peer`](crate::Peer) in the request's
/// extensions.
#[derive(Clone, Debug)]
pub struct Checked<S> {
    inner: S,
    rules: Rules,
}

impl Rules {
    /// Whether this request may pass; then somebody watches over it.
    fn judge<B>(&self, request: &mut Request<B>) -> Result<Vigil, Refused> {
        let standing = request.extensions().get::<Standing>().cloned().ok_or(Refused::NoPeer)?;
        let mut vigil = Vigil::over(standing, None);
        if let Some(patience) = self.patience {
            vigil = vigil.with_patience(patience);
        }
        vigil.look()?;
        let peer = vigil.standing().peer();
        let (method, path) = (request.method(), request.uri().path());
        if !self.actions.borrow().permit(method, path, peer) {
            return Err(Refused::NotPermitted {
                id: peer.leaf.id.clone(),
                action: action(method, path),
            });
        }
        let peer = peer.clone();
        request.extensions_mut().insert(peer);
        Ok(vigil)
    }
}

/// An action as it stands in the log. A path may be as long as a header allows; a line may not.
fn action(method: &http::Method, path: &str) -> String {
    const SHOWN: usize = 256;
    format!("{method} {}", path.get(..SHOWN).unwrap_or(path))
}

impl<S, Q, P> Service<Request<Q>> for Checked<S>
where
    S: Service<Request<Q>, Response = Response<P>>,
    P: Body<Data = bytes::Bytes>,
    P::Error: Into<tonic::codegen::StdError>,
{
    type Response = Response<LiveBody<P>>;
    type Error = S::Error;
    type Future = CheckedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let style = Style::of(request.headers());
        let state = match self.rules.judge(&mut request) {
            Ok(vigil) => State::Running(Box::pin(self.inner.call(request)), vigil),
            Err(refused) => {
                // Looked up again: the request may have been refused for lack of one.
                tell(request.extensions().get::<Standing>(), &refused);
                State::Refused(refused)
            }
        };
        CheckedFuture { style, state }
    }
}

fn tell(standing: Option<&Standing>, refused: &Refused) {
    telemetry::refused(Place::Request, refused, standing.map(Standing::peer));
    if let Some(standing) = standing {
        standing.report(refused);
    }
}

/// The answer of a [`Checked`] service: the inner one's, or a refusal.
pub struct CheckedFuture<F> {
    style: Style,
    state: State<F>,
}

enum State<F> {
    Refused(Refused),
    Running(Pin<Box<F>>, Vigil),
    Done,
}

impl<F> fmt::Debug for CheckedFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckedFuture").field("style", &self.style).finish_non_exhaustive()
    }
}

impl<F, P, E> Future for CheckedFuture<F>
where
    F: Future<Output = Result<Response<P>, E>>,
    P: Body<Data = bytes::Bytes>,
{
    type Output = Result<Response<LiveBody<P>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let style = self.style;
        let refused = match &mut self.state {
            State::Refused(refused) => refused.clone(),
            State::Running(future, vigil) => match future.as_mut().poll(cx) {
                Poll::Ready(outcome) => return Poll::Ready(self.finish(outcome)),
                Poll::Pending => {
                    let refused = ready!(vigil.poll_end(cx));
                    telemetry::refused(Place::Request, &refused, Some(vigil.standing().peer()));
                    refused
                }
            },
            // Whoever polls a future that has finished waits for ever; he must not get an answer.
            State::Done => return Poll::Pending,
        };
        // The handler is dropped here, in the middle of what it was doing.
        self.state = State::Done;
        Poll::Ready(Ok(answer::refusal(style, &refused)))
    }
}

impl<F> CheckedFuture<F> {
    fn finish<P, E>(
        &mut self,
        outcome: Result<Response<P>, E>,
    ) -> Result<Response<LiveBody<P>>, E> {
        let State::Running(_, vigil) = std::mem::replace(&mut self.state, State::Done) else {
            return outcome.map(|response| response.map(LiveBody::unguarded));
        };
        let response = outcome?;
        // What the handler has found out after the end is not told.
        if let Err(refused) = vigil.look() {
            telemetry::refused(Place::Request, &refused, Some(vigil.standing().peer()));
            return Ok(answer::refusal(self.style, &refused));
        }
        let style = self.style;
        Ok(response.map(|body| LiveBody::over(body, vigil, style)))
    }
}

impl Standing {
    /// A service for this connection alone, whose requests carry this standing. For hyper and axum,
    /// which do not ask a connection who it is; tonic does.
    #[must_use]
    pub fn introduce<S>(&self, inner: S) -> Introduced<S> {
        Introduced { inner, standing: self.clone() }
    }
}

/// A service whose requests carry the [`Standing`] of one connection.
#[derive(Clone, Debug)]
pub struct Introduced<S> {
    inner: S,
    standing: Standing,
}

impl<S, Q> Service<Request<Q>> for Introduced<S>
where
    S: Service<Request<Q>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> S::Future {
        request.extensions_mut().insert(self.standing.clone());
        self.inner.call(request)
    }
}
