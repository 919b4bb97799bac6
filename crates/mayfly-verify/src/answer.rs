//! How a refusal looks on the wire, in HTTP and in gRPC.
//!
//! A stranger is told the code and no more; why exactly stands in our log. HTTP hears `403` with the
//! header `mayfly-refused`, gRPC the status `PERMISSION_DENIED`, also in the middle of a stream, where
//! HTTP can only break off.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use tonic::codegen::StdError;

use crate::{
    peer::Vigil,
    refused::Refused,
    telemetry::{self, Place},
};

/// The header that carries a refusal's code.
pub const REFUSED_HEADER: &str = "mayfly-refused";
/// `PERMISSION_DENIED`.
const GRPC_STATUS: HeaderValue = HeaderValue::from_static("7");

/// What the caller speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Style {
    Http,
    Grpc,
}

impl Style {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        let is_grpc = kind.is_some_and(|kind| kind.starts_with(b"application/grpc"));
        if is_grpc { Self::Grpc } else { Self::Http }
    }
}

/// A refusal as an answer.
pub(crate) fn refusal<P>(style: Style, refused: &Refused) -> Response<LiveBody<P>> {
    let code = HeaderValue::from_static(refused.code());
    let kind = match style {
        Style::Http => "text/plain; charset=utf-8",
        Style::Grpc => "application/grpc",
    };
    let said = match style {
        Style::Http => Bytes::from_static(refused.code().as_bytes()),
        Style::Grpc => Bytes::new(),
    };
    let mut response = Response::new(LiveBody::said(said));
    if style == Style::Http {
        *response.status_mut() = StatusCode::FORBIDDEN;
    } else {
        response.headers_mut().extend(grpc_status(refused));
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFUSED_HEADER, code);
    response
}

/// The status fields, as headers of a refusal or as trailers of a stream that is cut.
fn grpc_status(refused: &Refused) -> HeaderMap {
    let mut status = HeaderMap::new();
    status.insert("grpc-status", GRPC_STATUS);
    status.insert("grpc-message", HeaderValue::from_static(refused.code()));
    status
}

/// A response body that ends with its peer's time.
#[derive(Debug)]
pub struct LiveBody<P>(Kind<P>);

#[derive(Debug)]
enum Kind<P> {
    /// The handler's, watched over.
    Over { body: Pin<Box<P>>, vigil: Box<Vigil>, style: Style },
    /// The handler's, when nobody is there to be watched.
    Unguarded(Pin<Box<P>>),
    /// Ours: a refusal's text, until it is sent.
    Said(Option<Bytes>),
}

impl<P> LiveBody<P> {
    pub(crate) fn over(body: P, vigil: Vigil, style: Style) -> Self {
        Self(Kind::Over { body: Box::pin(body), vigil: Box::new(vigil), style })
    }

    pub(crate) fn unguarded(body: P) -> Self {
        Self(Kind::Unguarded(Box::pin(body)))
    }

    const fn said(text: Bytes) -> Self {
        Self(Kind::Said(Some(text)))
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, StdError>>>;

impl<P> Body for LiveBody<P>
where
    P: Body<Data = Bytes>,
    P::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let (refused, style) = match &mut self.0 {
            Kind::Said(text) => {
                let text = text.take().filter(|text| !text.is_empty());
                return Poll::Ready(text.map(|text| Ok(Frame::data(text))));
            }
            Kind::Unguarded(body) => return body.as_mut().poll_frame(cx).map_err(Into::into),
            Kind::Over { body, vigil, style } => match vigil.look() {
                Err(refused) => {
                    telemetry::refused(Place::Stream, &refused, Some(vigil.standing().peer()));
                    (refused, *style)
                }
                Ok(()) => match body.as_mut().poll_frame(cx) {
                    Poll::Ready(frame) => {
                        return Poll::Ready(frame.map(|one| one.map_err(Into::into)));
                    }
                    Poll::Pending => match vigil.poll_end(cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(refused) => {
                            let peer = vigil.standing().peer();
                            telemetry::refused(Place::Stream, &refused, Some(peer));
                            (refused, *style)
                        }
                    },
                },
            },
        };
        // The handler's stream is dropped here; nothing of it is sent any more.
        self.0 = Kind::Said(None);
        Poll::Ready(Some(match style {
            Style::Http => Err(refused.into()),
            Style::Grpc => Ok(Frame::trailers(grpc_status(&refused))),
        }))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Over { body, .. } | Kind::Unguarded(body) => body.is_end_stream(),
            Kind::Said(text) => text.as_ref().is_none_or(Bytes::is_empty),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Over { body, .. } | Kind::Unguarded(body) => body.size_hint(),
            Kind::Said(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
        }
    }
}
