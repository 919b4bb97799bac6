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
        let _one_at_a_time = office.applying.lock().await;
        let old = office.policy.current();
        let epoch = PolicyEpoch(old.epoch().0 + 1);
        let profiles = config::parse_profiles(&text, &office.about.trust_domain, epoch)
            .map_err(|error| refusal(Denial::Malformed, error.to_string()))?;
        self.check_ttls(&profiles)?;
        let held = self.0.inbox.read(owners_of_live_tasks).await?;
        // Kept before it counts: a profile that was taken away must not come back with a restart.
        let kept = write_private(&office.about.paths.applied_profiles(), text.as_bytes());
        kept.map_err(|error| {
            refusal(Denial::JournalFailed, format!("the profiles could not be kept: {error}"))
        })?;
        let gone = profiles.gone_since(&old);
        let left =
            profiles.left_of(old.owners().into_iter().chain(held.iter().map(String::as_str)));
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

    /// Ends what was begun on the word of an edition that was replaced meanwhile, if the one in force
    /// knows nothing of it.
    pub(super) async fn hold_to_edition(&self, basis: PolicyEpoch) -> Result<(), Refusal> {
        let profiles = self.0.policy.current();
        if profiles.epoch() == basis {
            return Ok(());
        }
        let _one_at_a_time = self.0.applying.lock().await;
        let profiles = self.0.policy.current();
        let held = self.0.inbox.read(owners_of_live_tasks).await?;
        let left = profiles.left_of(held.iter().map(String::as_str));
        let judged = Arc::clone(&profiles);
        let gone = move |r: &Registrar| vanished_profiles(r, &judged);
        let gone = self.0.inbox.read(gone).await?;
        let told = self.0.inbox.tell(changed(&profiles, gone, left)).await;
        told.then_some(()).ok_or_else(|| Denial::NotServing.into())
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

/// Who is accountable for something that goes on. The broker answers for itself.
pub(crate) fn owners_of_live_tasks(registrar: &Registrar) -> BTreeSet<String> {
    let live = registrar.tasks().filter(|task| !task.state.is_ended());
    let live = live.filter(|task| task.terms.profile != mayfly_policy::own::PROFILE);
    live.map(|task| task.terms.owner.clone()).collect()
}

/// Profiles of live tasks that an edition does not have.
pub(crate) fn vanished_profiles(registrar: &Registrar, profiles: &Profiles) -> Vec<String> {
    let live = registrar.tasks().filter(|task| !task.state.is_ended());
    let names = live.map(|task| &task.terms.profile);
    // The broker's own stands in no edition and ends with its process, like the one of the last run.
    let names = names.filter(|name| *name != mayfly_policy::own::PROFILE);
    let gone: BTreeSet<_> = names.filter(|name| profiles.find(name).is_none()).cloned().collect();
    gone.into_iter().collect()
}
