//! Profiles and owners: replaced live, listed, and explained.

use std::{collections::BTreeSet, sync::Arc};

use mayfly_attest::Peer;
use mayfly_core::{Denial, Event, PolicyEpoch, Registrar};
use mayfly_policy::Profiles;
use mayfly_serve::office::{Applied, Diagnosis, Edition, Explained, ProfileLine, Refusal};
use mayfly_sign::RotationPolicy;

use super::{LocalOffice, refusal};
use crate::{config, paths::write_private};

impl LocalOffice {
    pub(super) async fn apply(&self, text: String) -> Result<Applied, Refusal> {
        let office = &self.0;
        let _one_at_a_time = office.applying.write().await;
        let old = office.policy.current();
        let epoch = PolicyEpoch(old.epoch().0 + 1);
        let profiles = config::parse_profiles(&text, &office.about.trust_domain, epoch)
            .map_err(|error| refusal(Denial::Malformed, error.to_string()))?;
        self.check_ttls(&profiles)?;
        let held = self.0.inbox.read(in_force).await?;
        // Kept before it counts: a profile that was taken away must not come back with a restart.
        let kept = write_private(&office.about.paths.applied_profiles(), text.as_bytes());
        kept.map_err(|error| {
            refusal(Denial::JournalFailed, format!("the profiles could not be kept: {error}"))
        })?;
        let gone = profiles.gone_since(&old);
        let left = profiles
            .left_of(old.owners().into_iter().chain(held.iter().map(|(_, owner)| owner.as_str())));
        let differences = profiles.diff(&old).iter().map(ToString::to_string).collect();
        let names = profiles.names().collect::<Vec<_>>().join(" ");
        // The registrar hears of the new edition before the first verdict rests on it; verdicts of the
        // old one are reconsidered from then on.
        let changed = changed(&profiles, gone.clone(), left.clone());
        let detail = format!("epoch {} {names}", epoch.0);
        let noted = Event::NoteAsked { what: "profiles_applied".to_owned(), detail };
        if !office.inbox.tell(changed).await || !office.inbox.tell(noted).await {
            return Err(Denial::NotServing.into());
        }
        office.policy.replace(Arc::new(profiles));
        Ok(Applied { epoch, gone, left, differences })
    }

    fn check_ttls(&self, profiles: &Profiles) -> Result<(), Refusal> {
        let max = self.0.about.authority_ttl.0 / RotationPolicy::CREDENTIALS_PER_AUTHORITY;
        let long = profiles.iter().find(|p| p.terms.x509_ttl.0.max(p.terms.jwt_ttl.0) > max);
        match long {
            None => Ok(()),
            Some(profile) => {
                let name = &profile.terms.profile;
                let detail = format!(
                    "profile `{name}`: with these authorities a credential lives for {} at most",
                    mayfly_policy::duration::format(mayfly_core::Span(max))
                );
                Err(refusal(Denial::Malformed, detail))
            }
        }
    }

    pub(super) async fn diagnose(
        &self,
        peer: Peer,
        pid: Option<i32>,
    ) -> Result<Diagnosis, Refusal> {
        let failed =
            |e: mayfly_attest::AttestError| refusal(Denial::AttestationFailed, e.to_string());
        let peer = pid.map_or(Ok(peer), Peer::of_pid).map_err(failed)?;
        let evidence = self.0.eyes.look(&peer).await.map_err(failed)?;
        let explained = self.0.policy.current().explain(&evidence);
        let profiles = explained.into_iter().map(|one| Explained {
            matches: one.matches(),
            missing: one.missing.iter().map(|missing| missing.wanted.to_string()).collect(),
            instead: one.missing.into_iter().flat_map(|missing| missing.had).collect(),
            profile: one.profile,
        });
        Ok(Diagnosis {
            pid: peer.key().pid,
            profiles: profiles.collect(),
            evidence: evidence.selectors.into_iter().collect(),
        })
    }

    pub(super) fn profiles(&self) -> Edition {
        let profiles = self.0.policy.current();
        let line = |profile: &mayfly_policy::Profile| ProfileLine {
            terms: profile.terms.clone(),
            selectors: profile.selectors.iter().cloned().collect(),
        };
        Edition {
            epoch: profiles.epoch(),
            profiles: profiles.iter().map(line).collect(),
            owners: profiles.owners().into_iter().map(str::to_owned).collect(),
        }
    }
}

/// What the registrar is told of an edition: whose tasks end, and whose go to somebody else.
pub(crate) fn changed(profiles: &Profiles, gone: Vec<String>, left: Vec<String>) -> Event {
    let transfers = profiles.transfers().map(|(old, new)| (old.to_owned(), new.to_owned()));
    Event::PolicyChanged { epoch: profiles.epoch(), gone, left, transfers: transfers.collect() }
}

/// The profiles of what goes on, and who is accountable for it. The broker answers for itself: its own
/// stands in no edition and ends with its process, like that of the last run.
pub(crate) fn in_force(registrar: &Registrar) -> BTreeSet<(String, String)> {
    let live = registrar.tasks().filter(|task| !task.state.is_ended());
    // A million tasks have few terms, and most have those of the one before.
    let terms = live.map(|task| &task.terms).scan(None, |before, terms| {
        let is_same = before.replace(terms).is_some_and(|before| Arc::ptr_eq(before, terms));
        Some((!is_same).then_some(terms))
    });
    let pairs: BTreeSet<_> = terms.flatten().map(|terms| (&terms.profile, &terms.owner)).collect();
    let pairs = pairs.into_iter().filter(|(profile, _)| *profile != mayfly_policy::own::PROFILE);
    pairs.map(|(profile, owner)| (profile.clone(), owner.clone())).collect()
}
