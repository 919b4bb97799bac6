//! What a verifier says about itself: one line in the log and one count for each refusal.
//!
//! The names are API and stand in `docs/telemetry.md`. Where nobody collects metrics, a count costs a
//! look at an empty place.

use std::time::Duration;

use metrics::{counter, gauge};

use crate::{patience::Sight, peer::Peer, refused::Refused};

/// Where somebody was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    /// In a handshake.
    Handshake,
    /// On a live connection, which was cut.
    Connection,
    /// At a request over a live connection.
    Request,
    /// In the middle of a response.
    Stream,
    /// At a token.
    Token,
}

impl Place {
    const fn word(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Connection => "connection",
            Self::Request => "request",
            Self::Stream => "stream",
            Self::Token => "token",
        }
    }
}

/// Somebody is turned away. `peer` is who showed the credential, where a certificate told.
pub(crate) fn refused(place: Place, refused: &Refused, peer: Option<&Peer>) {
    let (place, code) = (place.word(), refused.code());
    counter!("mayfly_verify_refusals_total", "place" => place, "reason" => code).increment(1);
    let id = peer.map(|peer| tracing::field::display(&peer.leaf.id));
    let serial = peer.and_then(|peer| peer.leaf.serial).map(tracing::field::display);
    tracing::info!(place, code, peer = id, serial, reason = %refused, "refused");
}

/// How well a view sees.
pub(crate) fn sight(sight: Sight) {
    let value = match sight {
        Sight::Clear => 0.0,
        Sight::Grace => 1.0,
        Sight::Dark => 2.0,
    };
    gauge!("mayfly_verify_sight").set(value);
}

/// How long before it was heard the broker said the newest thing.
pub(crate) fn feed_lag(lag: Duration) {
    gauge!("mayfly_verify_feed_lag_seconds").set(lag.as_secs_f64());
}

/// A misuse was reported to the broker, or could not be.
pub(crate) fn reported(outcome: &'static str) {
    counter!("mayfly_verify_reports_total", "outcome" => outcome).increment(1);
}
