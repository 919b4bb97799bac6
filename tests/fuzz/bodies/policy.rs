//! Profile files: a refusal says where and what to do, and what is accepted can be relied upon.

use std::collections::BTreeSet;

use mayfly_core::{
    Binding, Caller, Evidence, PolicyEpoch, Reach, SpiffeId, TaskId, TrustDomain, limits,
};
use mayfly_policy::{Profile, Profiles, duration};

/// Profile files.
pub(crate) fn profile(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Some(span) = duration::parse(&text) {
        assert_eq!(duration::parse(&duration::format(span)), Some(span));
    }
    let domain = TrustDomain::parse("example.org").expect("a good name");
    match Profiles::parse(&text, &domain, PolicyEpoch(1)) {
        Ok(profiles) => check(&profiles, &domain),
        Err(invalid) => {
            let lines = text.split('\n').count();
            assert!(!invalid.problems().is_empty(), "refused without a reason");
            for problem in invalid.problems() {
                assert!((1..=lines).contains(&problem.line), "{problem}: there is no such line");
                assert!(!problem.why.is_empty() && !problem.remedy.is_empty());
            }
            let told = invalid.to_string();
            assert!(!told.chars().any(|c| c.is_control() && c != '\n'), "{told:?}");
        }
    }
}

fn check(profiles: &Profiles, domain: &TrustDomain) {
    let names: BTreeSet<_> = profiles.names().collect();
    assert_eq!(names.len(), profiles.names().len(), "two profiles have one name");
    let hints = || profiles.iter().map(|p| p.terms.hint.as_str()).filter(|hint| !hint.is_empty());
    assert_eq!(hints().collect::<BTreeSet<_>>().len(), hints().count(), "two have one hint");
    assert!(profiles.judge(&Evidence::default()).permits.is_empty(), "P8: silence is No");
    assert!(profiles.diff(profiles).is_empty() && profiles.gone_since(profiles).is_empty());
    for (old, new) in profiles.transfers() {
        assert!(profiles.knows_owner(new) && !profiles.knows_owner(old), "{old} -> {new}");
    }
    assert!(profiles.left_of(profiles.owners()).is_empty(), "somebody left who is there");
    for profile in profiles.iter() {
        assert!(profiles.knows_owner(&profile.terms.owner));
        for name in profile.terms.bounds.delegates_to.iter().flatten() {
            assert!(names.contains(name.as_str()), "it delegates to nobody");
        }
        check_terms(profile, domain);
        let evidence = Evidence {
            selectors: profile.selectors.clone(),
            caller: Caller { socket: Some(TaskId::from_bytes([1; 16])), ..Caller::default() },
        };
        let permits = profiles.judge(&evidence).permits;
        assert!(permits.contains(&profile.terms), "a profile refuses what it asks for");
    }
}

fn check_terms(profile: &Profile, domain: &TrustDomain) {
    let terms = &profile.terms;
    let longest = format!("{}/task/{}", terms.path, TaskId::from_bytes([0; 16]));
    assert!(SpiffeId::new(domain, &longest).is_ok(), "{longest} is no path for a task");
    assert!(terms.path.len() > 1 && !terms.path.contains("/task/"), "{}", terms.path);
    assert!(!terms.owner.is_empty() && terms.owner.len() <= limits::OWNER_BYTES_MAX);
    assert!(!profile.selectors.is_empty() || terms.binding == Binding::Socket);
    for ttl in [terms.x509_ttl, terms.jwt_ttl] {
        assert!((limits::CREDENTIAL_TTL_MIN..=limits::CREDENTIAL_TTL_MAX).contains(&ttl));
        assert_eq!(ttl.as_millis() % 1000, 0, "part of a second");
    }
    assert!(!terms.federates_with.contains(domain), "it federates with itself");
    let bounds = &terms.bounds;
    assert!(terms.x509_ttl.max(terms.jwt_ttl) <= bounds.tier.ttl_max(), "beyond its tier");
    assert!(bounds.scope.is_well_formed() && bounds.reach.is_within(&Reach::MAX));
    let budget = bounds.budget;
    assert!(budget.issuances != Some(0) && budget.per_minute != Some(0));
    assert!(budget.attempts != Some(0), "a job that could never be tried");
}
