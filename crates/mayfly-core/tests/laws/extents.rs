//! The algebra of extents and budgets: what "narrower" means.

use mayfly_core::{Budget, Extent, Scope};
use proptest::{option, prelude::*};

use crate::narrow::{WORDS, extents, reaches};

fn budgets() -> impl Strategy<Value = Budget> {
    (option::of(0..3_u64), option::of(0..3_u32), option::of(0..3_u32))
        .prop_map(|(issuances, per_minute, attempts)| Budget { issuances, per_minute, attempts })
}

fn means(extent: &Extent) -> Vec<bool> {
    WORDS.iter().map(|word| reaches(extent, word)).collect()
}

proptest! {
    #[test]
    fn to_be_within_is_a_partial_order_of_extents(a in extents(), b in extents(), c in extents()) {
        prop_assert!(a.is_within(&a), "reflexive");
        if a.is_within(&b) && b.is_within(&a) {
            prop_assert_eq!(means(&a), means(&b), "antisymmetric, up to what they mean");
        }
        if a.is_within(&b) && b.is_within(&c) {
            prop_assert!(a.is_within(&c), "transitive");
        }
        prop_assert!(a.is_within(&Extent::Any) && Extent::only([""; 0]).is_within(&a));
    }

    #[test]
    fn what_is_permitted_and_what_is_within_agree(a in extents(), b in extents()) {
        let subset = WORDS.iter().all(|word| !a.permits(word) || b.permits(word));
        prop_assert_eq!(a.is_within(&b), subset, "{:?} and {:?}", a, b);
        for word in WORDS {
            prop_assert_eq!(a.permits(word), reaches(&a, word), "{:?} of {}", a, word);
            prop_assert_eq!(a.permits(word), Extent::only([word]).is_within(&a));
        }
    }

    /// Silence takes what is above; whatever was said stays as it was said.
    #[test]
    fn silence_inherits(a in extents(), b in extents()) {
        let both = a.clone().or(&b);
        prop_assert_eq!(&both, if a.is_told() { &a } else { &b });
        let scope = Scope { tools: a.clone(), ..Scope::default() };
        let outer = Scope { tools: b.clone(), ..Scope::default() };
        prop_assert_eq!(scope.exceeds(&outer).is_none(), a.is_within(&b));
        prop_assert_eq!(scope.is_narrower_than(&outer), a.is_within(&b) && !b.is_within(&a));
        prop_assert!(!scope.is_narrower_than(&scope), "strict");
    }

    #[test]
    fn to_be_within_is_a_partial_order_of_budgets(a in budgets(), b in budgets(), c in budgets()) {
        prop_assert!(a.is_within(&a) && a.is_within(&Budget::default()));
        if a.is_within(&b) && b.is_within(&a) {
            prop_assert_eq!(a, b);
        }
        if a.is_within(&b) && b.is_within(&c) {
            prop_assert!(a.is_within(&c));
        }
    }
}

/// A star alone is as wide as silence, so it is no narrower.
#[test]
fn a_star_alone_is_everything() {
    let star = Extent::only(["*", "a"]);
    assert!(Extent::Any.is_within(&star) && star.is_within(&Extent::Any));
    assert!(!Extent::Any.is_within(&Extent::only(["a*"])));
}

/// Names that no record could hold, or that nobody could read.
#[test]
fn a_scope_that_cannot_be_written_down_is_malformed() {
    let only = |name: &str| Scope { actions: Extent::only([name]), ..Scope::default() };
    for good in ["a", "*", "a*", "spiffe://x/y", &"x".repeat(256)] {
        assert!(only(good).is_well_formed(), "{good:?}");
    }
    for bad in ["", "a*b", "**", "*a", "a\n", "a\u{7f}", &"x".repeat(257)] {
        assert!(!only(bad).is_well_formed(), "{bad:?}");
    }
    let many = |count: usize| (0..count).map(|number| number.to_string());
    let tools = |count| Scope { tools: Extent::only(many(count)), ..Scope::default() };
    assert!(tools(64).is_well_formed() && !tools(65).is_well_formed());
    assert!(Scope { tools: Extent::only([""; 0]), ..Scope::default() }.is_well_formed());
}
