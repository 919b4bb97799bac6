//! The deciding part of Mayfly.
//!
//! [`Registrar`] is a function of time and events. It has no clock, no luck, no disk and no socket:
//! what it needs comes in as an [`Event`], what it wants done goes out as an [`Effect`]. The compiler
//! holds it to that, because this crate is `no_std` and depends on nothing.
//!
//! Three rules explain most of what stands here:
//!
//! 1. *No at once, yes on disk.* A denial or an end takes effect the moment it is heard. A credential,
//!    an acknowledgement or a publication waits until its record is durable.
//! 2. *A signature costs a [`Grant`].* Only the registrar makes grants, and signing uses them up.
//! 3. *A task's end is one fact.* Revocation lists, closed streams and feeds are projections of it.
//!
//! Read [`registrar`] next, then `docs/invariants.md` for the properties P1–P14 named here.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod batch;
mod credentials;
pub mod dwelling;
pub mod event;
pub mod evidence;
pub mod grant;
pub mod id;
pub mod ledger;
pub mod limits;
pub mod mandate;
pub mod misuse;
pub mod principal;
pub mod record;
pub mod registrar;
pub mod revocation;
pub mod scope;
pub mod task;
pub mod time;

pub use dwelling::{CgroupKey, Container, Pod, Unit};
pub use event::{Ask, Basis, Begin, Closing, Denial, Effect, Event, Identity, Verdict, Wish};
pub use evidence::{Caller, Evidence, Holder, ProcessKey, Selector};
pub use grant::Grant;
pub use id::{
    InvalidId, PolicyEpoch, Position, Sequence, Shard, SpiffeId, TaskId, TaskVersion, Ticket,
    TrustDomain,
};
pub use ledger::{Credential, Kind, Place, Serial, Slot, Window};
pub use mandate::{
    Amendment, Author, Bounds, Budget, Mandate, OnFailure, Part, Reach, RequestKey, Spent, Tier,
    Trigger,
};
pub use misuse::{Claim, Finding, Showing};
pub use principal::{Act, Principal};
pub use record::{Fact, Record, Snapshot};
pub use registrar::{Admission, Charter, Registrar};
pub use revocation::{Bitmap, Change, Delta, RevocationSet, Status};
pub use scope::{Dimension, Extent, Scope};
pub use task::{Binding, Cause, State, Task, Terms};
pub use time::{Span, Timestamp};
