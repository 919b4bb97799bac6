//! What every example begins with: an identity that renews itself, the feed, and whom we mean.

use std::error::Error;

use mayfly_core::{SpiffeId, Timestamp};
use mayfly_verify::{
    Authorize, Endpoint, Follower, Party, Reporter, Tier, Tiers, WorkloadClient, X509Source,
};

pub(crate) type Fault = Box<dyn Error + Send + Sync>;

/// What was asked for on the command line: `server ADDRESS PEER` or `client ADDRESS PEER`, where `PEER`
/// is the SPIFFE ID of the other side's profile, such as `spiffe://example.org/client`.
pub(crate) struct Wish {
    pub(crate) is_server: bool,
    pub(crate) address: String,
    pub(crate) peer: SpiffeId,
}

pub(crate) fn wish() -> Result<Wish, Fault> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [role, address, peer] = words.as_slice() else {
        return Err("usage: server|client ADDRESS spiffe://TRUST-DOMAIN/PROFILE".into());
    };
    let is_server = match role.as_str() {
        "server" => true,
        "client" => false,
        _ => return Err("the first word is `server` or `client`".into()),
    };
    Ok(Wish { is_server, address: address.clone(), peer: SpiffeId::parse(peer)? })
}

/// Everything that has to live as long as the service.
pub(crate) struct Side {
    pub(crate) party: Party,
    pub(crate) follower: Follower,
    pub(crate) workload: WorkloadClient,
    pub(crate) reporter: Reporter,
    _source: X509Source,
}

/// Fetches an identity, follows the feed, and is ready to talk to the tasks of profile `peer`.
pub(crate) async fn side(peer: &SpiffeId) -> Result<Side, Fault> {
    let endpoint = Endpoint::from_env()?;
    let workload = WorkloadClient::new(&endpoint);
    let source = workload.watch_x509();
    let own = source.ready().await.ok_or("no identity issued")?;
    // One follower for all tiers; each use says how much patience it has.
    let tiers = Tiers::default();
    let follower = Follower::connect(&endpoint, tiers.together());
    follower.ready().await;
    let name = own.default_svid().map(|svid| svid.spiffe_id.to_string()).unwrap_or_default();
    let reporter = Reporter::connect(&endpoint, &name);
    let whom = Authorize::Profile(peer.clone());
    let party = Party::new(source.held(), whom, follower.view().clone())
        .with_patience(tiers.of(Tier::Medium))
        .reporting(reporter.clone());
    Ok(Side { party, follower, workload, reporter, _source: source })
}

#[expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

#[expect(
    clippy::disallowed_methods,
    reason = "an example is its own shell, and the shell owns the clock"
)]
pub(crate) fn now() -> Timestamp {
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
