//! What the registrar hears (events, in the past tense) and what it orders (effects, imperative).

use alloc::{string::String, vec::Vec};
use core::fmt;

use crate::{
    evidence::{Caller, Holder},
    grant::Grant,
    id::{PolicyEpoch, Sequence, SpiffeId, TaskId, TaskVersion, Ticket},
    ledger::{Kind, Serial},
    mandate::{Amendment, Author, Mandate, RequestKey},
    misuse::{Finding, Showing},
    record::Record,
    revocation::Delta,
    task::{Cause, Terms},
    time::{Span, Timestamp},
};

/// What the judge found: which profiles match, in the order of their file, and at which epoch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// The edition of the profiles that was read.
    pub epoch: PolicyEpoch,
    /// One entry per identity that the evidence earns; none is a No.
    pub permits: Vec<Terms>,
}

/// What a caller wants for one of its tasks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ask {
    /// A certificate.
    X509,
    /// A token for these audiences.
    Jwt {
        /// All of them stand in `aud`.
        audience: Vec<String>,
    },
}

/// What a caller wants as soon as it is known who it is. Most have one identity and come for one
/// credential, and are spared the way back and forth between the two.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wish {
    /// What.
    pub ask: Ask,
    /// For whom, where it says so.
    pub spiffe_id: Option<SpiffeId>,
    /// Chance for the serial.
    pub luck: u64,
}

impl Ask {
    /// What kind of credential that is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::X509 => Kind::X509,
            Self::Jwt { .. } => Kind::Jwt,
        }
    }

    /// Whom the credential is for; nobody in particular, if it is a certificate.
    pub(crate) fn audience(self) -> Vec<String> {
        match self {
            Self::X509 => Vec::new(),
            Self::Jwt { audience } => audience,
        }
    }
}

/// What an introduction rests on. If any of it has moved, the caller is judged again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Basis {
    /// The task that was introduced.
    pub task: TaskId,
    /// Its version then.
    pub version: TaskVersion,
    /// The edition of the profiles that the verdict rests on.
    pub epoch: PolicyEpoch,
}

/// A wish to begin a task by name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Begin {
    /// Its profile's terms.
    pub terms: Terms,
    /// What holds it.
    pub holder: Holder,
    /// The task it is part of.
    pub parent: Option<TaskId>,
    /// Whether it has to be strictly narrower than its parent.
    pub delegated: bool,
    /// Who is accountable, if not whom the profile names.
    pub owner: Option<String>,
    /// What it declares.
    pub mandate: Mandate,
    /// When it ends at the latest.
    pub deadline: Option<Timestamp>,
    /// How long it lives without a heartbeat.
    pub lease: Option<Span>,
    /// A name of this wish, so that telling it twice begins one task.
    pub key: Option<RequestKey>,
    /// On whose word.
    pub author: Author,
}

impl Begin {
    /// A task under `terms`, held by `holder`, that says nothing else.
    #[must_use]
    pub fn new(terms: Terms, holder: Holder) -> Self {
        Self {
            terms,
            holder,
            parent: None,
            delegated: false,
            owner: None,
            mandate: Mandate::default(),
            deadline: None,
            lease: None,
            key: None,
            author: Author::default(),
        }
    }
}

/// Something happened.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "what is large is as frequent as the rest; a box would cost every one"
)]
pub enum Event {
    /// An attested caller wants to know which identities it has. Tasks are opened on first contact.
    Met {
        /// Whom to answer.
        ticket: Ticket,
        /// What the caller can stand for.
        caller: Caller,
        /// What its evidence earns.
        verdict: Verdict,
        /// Names for the tasks that may be opened, one per permit.
        luck: Vec<TaskId>,
        /// What it wants at once, if it turns out to have one identity.
        wish: Option<Wish>,
    },
    /// Somebody who may act for a task names it, without being seen as it.
    TaskNamed {
        /// Whom to answer.
        ticket: Ticket,
        /// Which.
        task: TaskId,
        /// Which version of it, where one is meant.
        version: Option<TaskVersion>,
        /// The edition of the profiles that the caller goes by.
        epoch: PolicyEpoch,
    },
    /// A caller that was introduced wants a credential.
    Asked {
        /// Whom to answer.
        ticket: Ticket,
        /// What its introduction rests on.
        basis: Basis,
        /// What it wants.
        ask: Ask,
        /// 64 random bits for the serial.
        luck: u64,
    },
    /// Somebody wants to begin a task by name.
    BeginAsked {
        /// Whom to answer.
        ticket: Ticket,
        /// What to begin.
        begin: Begin,
        /// The new task's name.
        luck: TaskId,
        /// 64 random bits for the serial of a certificate that is promised with the beginning, where the
        /// task is held by a socket to which somebody will come for one.
        first: Option<u64>,
    },
    /// A heartbeat arrived.
    HeartbeatHeard {
        /// Whom to answer.
        ticket: Ticket,
        /// Whose lease.
        task: TaskId,
    },
    /// Somebody wants a task to have another intent or scope, and so a new version.
    AmendAsked {
        /// Whom to answer.
        ticket: Ticket,
        /// Which task.
        task: TaskId,
        /// What is to be different.
        amendment: Amendment,
        /// On whose word.
        author: Author,
    },
    /// A task is over: somebody says so.
    EndAsked {
        /// Whom to answer.
        ticket: Ticket,
        /// Which.
        task: TaskId,
        /// Why.
        cause: Cause,
        /// On whose word.
        author: Author,
    },
    /// The eyes saw that a task's holder is gone.
    HolderGone {
        /// Whose.
        task: TaskId,
        /// Exit code, or 128 + signal, where it was seen.
        exit: Option<i32>,
    },
    /// The eyes can no longer see a task's holder.
    WatcherBlinded {
        /// Whose.
        task: TaskId,
    },
    /// An operator suspends a task.
    QuarantineAsked {
        /// Whom to answer.
        ticket: Ticket,
        /// Which.
        task: TaskId,
        /// On whose word.
        author: Author,
    },
    /// An operator lifts a quarantine.
    ReleaseAsked {
        /// Whom to answer.
        ticket: Ticket,
        /// Which.
        task: TaskId,
        /// On whose word.
        author: Author,
    },
    /// An operator revokes one credential.
    RevokeAsked {
        /// Whom to answer.
        ticket: Ticket,
        /// Which.
        serial: Serial,
        /// On whose word.
        author: Author,
    },
    /// A signature was made.
    Signed {
        /// For whom.
        ticket: Ticket,
    },
    /// A signature could not be made, or what was signed did not read back as it should.
    SigningFailed {
        /// For whom.
        ticket: Ticket,
    },
    /// Everything up to here is on disk.
    Journaled {
        /// The last durable record.
        upto: Sequence,
    },
    /// The journal can take no more. Nothing is issued until a restart.
    JournalFailed,
    /// The profiles were replaced.
    PolicyChanged {
        /// The new edition.
        epoch: PolicyEpoch,
        /// Profiles that no longer exist; their tasks end.
        gone: Vec<String>,
        /// Who is accountable for nothing any more; their tasks end, unless somebody takes them.
        left: Vec<String>,
        /// Who takes the tasks of whom: the old owner, then the new one.
        transfers: Vec<(String, String)>,
    },
    /// A verifier reports a credential that it has turned away.
    Shown(Showing),
    /// Something to testify.
    NoteAsked {
        /// A stable word.
        what: String,
        /// Free text.
        detail: String,
    },
}

/// One identity of a caller.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// Its task.
    pub task: TaskId,
    /// The task's version.
    pub version: TaskVersion,
    /// Whom its credentials name.
    pub spiffe_id: SpiffeId,
    /// The Workload API's hint.
    pub hint: String,
    /// Foreign trust domains it may verify.
    pub federates_with: Vec<crate::id::TrustDomain>,
}

/// Why the streams of a task are woken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Closing {
    /// Its task is over.
    Ended,
    /// Its task is quarantined.
    Suspended,
    /// Its task has a new version, a released quarantine or a credential revoked on its own.
    Changed,
}

/// Something to be done, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Append this record; answer with [`Event::Journaled`].
    Journal(Sequence, Record),
    /// Remember who the caller of [`Event::Met`] is: what it wished for is on its way, and its answer
    /// will be a credential or a No.
    Recognise {
        /// Whom to answer later.
        ticket: Ticket,
        /// Its only identity.
        identity: Identity,
    },
    /// Answer [`Event::Met`] or [`Event::TaskNamed`].
    Introduce {
        /// Whom to answer.
        ticket: Ticket,
        /// In the order of the profiles; never empty.
        identities: Vec<Identity>,
    },
    /// Judge again: the profiles or the task have moved since the verdict.
    Reconsider {
        /// Whose verdict.
        ticket: Ticket,
    },
    /// Sign; answer with [`Event::Signed`] or [`Event::SigningFailed`].
    Sign {
        /// For whom.
        ticket: Ticket,
        /// The permission.
        grant: Grant,
    },
    /// Hand out what was signed.
    Release {
        /// To whom.
        ticket: Ticket,
    },
    /// Answer with a No; what was signed for this ticket, if anything, is destroyed.
    Withhold {
        /// Whom to answer.
        ticket: Ticket,
        /// Why.
        denial: Denial,
    },
    /// Answer with a Yes: what was asked is on disk.
    Acknowledge {
        /// Whom to answer.
        ticket: Ticket,
        /// About which task.
        task: TaskId,
        /// The version that holds now.
        version: TaskVersion,
    },
    /// Tell the followers.
    Publish(Delta),
    /// Statuses or the list of revoked certificates have changed; sign revocation and status lists anew
    /// when the pace allows.
    RefreshCrl,
    /// Keep an eye on a holder; answer with [`Event::HolderGone`].
    Watch {
        /// Whose.
        task: TaskId,
        /// What.
        holder: Holder,
    },
    /// Wake the task's streams.
    Close {
        /// Which.
        task: TaskId,
        /// Why.
        why: Closing,
    },
    /// Give the task a Workload API socket of its own.
    OpenSocket {
        /// Which.
        task: TaskId,
    },
    /// Take that socket away.
    CloseSocket {
        /// Which.
        task: TaskId,
    },
    /// A credential was used that should not have been: tell the operator.
    Alert {
        /// What is wrong.
        finding: Finding,
        /// With whose credential, if that is known.
        task: Option<TaskId>,
        /// Which, if it has a name of ours.
        serial: Option<Serial>,
    },
    /// A task is forgotten: drop what the shell keeps about it, the eye on its holder included.
    Forget {
        /// Which.
        task: TaskId,
    },
}

macro_rules! denials {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal, $remedy:literal;)*) => {
        /// Why a caller leaves with nothing. Codes are API: add, never reuse. `docs/denials.md` lists
        /// them.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum Denial { $($(#[doc = $doc])* $name,)* }

        impl Denial {
            /// Every denial.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable code.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// What to do about it, as a sentence without a full stop.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)* }
            }
        }
    };
}

denials! {
    /// No profile matches the caller.
    NoIdentity = "no_identity", "run `mayfly doctor` as the caller to see which selector did not match";
    /// A profile matches, but only for tasks that are begun by name.
    NotBound = "not_bound", "begin a task for this profile, for example with `mayfly run --as PROFILE`";
    /// No such task, or it is long over.
    TaskUnknown = "task_unknown", "list tasks with `mayfly task list --all`";
    /// The task has ended; nothing is issued for it again.
    TaskEnded = "task_ended", "begin a new task";
    /// The task is quarantined.
    TaskQuarantined = "task_quarantined", "an operator may release it";
    /// The task has a newer version than the caller was introduced to.
    TaskVersion = "task_version", "ask again";
    /// No such profile.
    ProfileUnknown = "profile_unknown", "list profiles with `mayfly profile list`";
    /// What remains of the lease is too short for a credential.
    LeaseTooShort = "lease_too_short", "send a heartbeat, or ask for a longer lease";
    /// What remains until the deadline is too short for a credential.
    DeadlineNear = "deadline_near", "begin a task with a later deadline";
    /// A deadline that has passed already.
    DeadlinePassed = "deadline_passed", "choose a deadline in the future";
    /// A lease outside the permitted range.
    LeaseOutOfRange = "lease_out_of_range", "choose a lease from 100 ms to 24 h";
    /// A heartbeat for a task that has no lease.
    NoLease = "no_lease", "send heartbeats only for tasks begun with a lease";
    /// The parent is not active.
    ParentInactive = "parent_inactive", "begin the task without a parent or under a live one";
    /// The tree of tasks is too deep.
    TooDeep = "too_deep", "delegate less deeply";
    /// The parent has too many children.
    TooManyChildren = "too_many_children", "end children that are done";
    /// The holder has a live task of this profile already.
    HolderTaken = "holder_taken", "use the task that exists, or end it first";
    /// The holder does not fit the profile's binding.
    HolderUnfit = "holder_unfit", "bind the task as its profile says";
    /// Text that is too long or a name that cannot be part of a SPIFFE ID.
    Malformed = "malformed", "shorten or correct the named field";
    /// A token needs at least one audience, and not too many.
    AudienceInvalid = "audience_invalid", "name 1 to 32 audiences of 1 to 1024 bytes";
    /// The SPIFFE ID asked for is not one of the caller's.
    IdentityNotHeld = "identity_not_held", "leave the SPIFFE ID out, or ask for one of your own";
    /// The serial is not one of ours, or it has expired.
    SerialUnknown = "serial_unknown", "check the serial with `mayfly task show`";
    /// Too much at once.
    Overloaded = "overloaded", "try again with backoff";
    /// The journal cannot be written; nothing is issued.
    JournalFailed = "journal_failed", "see the broker's log; free disk space or replace the disk, then restart";
    /// A signature failed or did not read back.
    SigningFailed = "signing_failed", "see the broker's log";
    /// The broker is starting or stopping.
    NotServing = "not_serving", "try again with backoff";
    /// The calling process is gone, or is not the one that connected.
    PeerGone = "peer_gone", "connect from the process that uses the credential";
    /// The caller could not be attested.
    AttestationFailed = "attestation_failed", "see the broker's log; try again";
    /// The token does not validate.
    TokenInvalid = "token_invalid", "fetch a fresh token for this audience";
    /// The profile demands something that the task does not declare.
    DeclarationMissing = "declaration_missing", "declare what the profile demands: see `mayfly profile list`";
    /// Nobody of that name is accountable for anything.
    OwnerUnknown = "owner_unknown", "name an owner of the profiles, or add one to `owners`";
    /// Wider than the profile allows.
    ExceedsProfile = "exceeds_profile", "ask for no more than the profile's scope, budget and reach";
    /// Wider than the parent, or ends after it.
    ExceedsParent = "exceeds_parent", "ask for no more than the parent has, and for no longer";
    /// As wide as the parent.
    NotNarrower = "not_narrower", "leave out at least one action, resource, audience or tool of the parent";
    /// The parent may not delegate, or not to this profile.
    DelegationNotPermitted = "delegation_not_permitted", "delegate to a profile that the parent's profile names in `delegates_to`";
    /// Later than the profile's longest life of a task.
    DeadlineTooLate = "deadline_too_late", "choose a deadline within the profile's `max_task`";
    /// The token's audience is not in the task's scope.
    AudienceOutOfScope = "audience_out_of_scope", "ask for an audience that the task declared, or amend the task";
    /// The key of a wish was used for another wish.
    IdempotencyConflict = "idempotency_conflict", "use a new key for a new wish";
    /// The task has another version than the one that the wish is about.
    VersionConflict = "version_conflict", "read the task again and decide anew";
    /// The caller's role does not cover this.
    NotEntitled = "not_entitled", "ask an operator for a role that covers it: see `[[role]]` in the configuration";
    /// The task has had all the credentials that it may have.
    BudgetSpent = "budget_spent", "begin a new task with a budget that suffices";
    /// The task has had all the credentials that it may have in this minute.
    RateExceeded = "rate_exceeded", "wait for the next minute";
    /// The job has had all its attempts.
    AttemptsSpent = "attempts_spent", "begin a new job";
    /// An attempt of the job is still going on.
    AttemptRunning = "attempt_running", "wait for its end, or end it first";
    /// A job issues nothing by itself.
    JobHoldsNothing = "job_holds_nothing", "begin an attempt below the job";
    /// The token of a page is of another query.
    PageInvalid = "page_invalid", "repeat the query from its first page";
    /// There is no machine of that name here.
    NodeUnknown = "node_unknown", "name the machine that this broker runs on";
    /// No authority has that key.
    AuthorityUnknown = "authority_unknown", "list authorities with `mayfly authority show`";
    /// The authority signs at this moment.
    AuthorityActive = "authority_active", "prepare and activate another one first";
    /// There is no successor that could be activated.
    AuthorityNotPrepared = "authority_not_prepared", "prepare one first";
    /// The authority has not signed anything yet.
    AuthorityNotOld = "authority_not_old", "activate it and then another one first, or leave it unused";
    /// The certificate or token has been revoked on its own.
    CredentialRevoked = "credential_revoked", "fetch a fresh one";
    /// The reference names no workload: it is missing, of an unknown type, or malformed.
    ReferenceInvalid = "reference_invalid", "name exactly one workload, by a type that docs/broker-api.md lists";
    /// This broker may not refer to workloads like that.
    ReferenceDenied = "reference_denied", "an operator may permit this type of reference in [broker_api]";
    /// The workload that is referred to does not run, or no longer.
    WorkloadGone = "workload_gone", "refer to a workload that runs";
    /// The task that is referred to was ended over its head, and it is still there.
    TaskRevoked = "task_revoked", "stop the workload; an operator knows why";
    /// The task that is referred to has another version.
    VersionUnmatched = "version_unmatched", "refer to the version that the task has, or to none";
    /// The token is not one of a configured issuer's, or not in order.
    OidcTokenInvalid = "oidc_token_invalid", "fetch a token of an issuer and for the audience that stand in the broker's `[[oidc]]`; its log says what is wrong with this one";
    /// The token has begun a task already.
    OidcTokenReplayed = "oidc_token_replayed", "fetch another token: each begins one task";
    /// No rule lets this subject begin a task of this profile.
    OidcNotPermitted = "oidc_not_permitted", "an operator may add an `[[oidc.rule]]` for this subject and profile";
    /// The issuer's keys are not known.
    OidcIssuerUnavailable = "oidc_issuer_unavailable", "try again with backoff; the broker's log says why the issuer's keys are not known";
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl Denial {
    /// Finds a denial by its code.
    #[must_use]
    pub fn parse(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|denial| denial.code() == code)
    }
}
