//! The algebra of the revocation set: echoes, holes and order.

use mayfly_core::{
    Bitmap, Change, Delta, Place, Position, RevocationSet, Sequence, Serial, Shard, Slot, Status,
    Timestamp, Window,
};
use proptest::{collection::vec, prelude::*};

fn position(sequence: u64) -> Position {
    Position { shard: Shard(0), sequence: Sequence(sequence) }
}

fn change() -> impl Strategy<Value = Change> {
    let place = (0..3_u32, 0..40_u32)
        .prop_map(|(window, slot)| Place { window: Window(window), slot: Slot(slot) });
    prop_oneof![
        4 => (place.clone(), 0..3_u8)
            .prop_map(|(place, bits)| Change::Place(place, Status::from_bits(bits))),
        1 => (place, 0..4_u64, any::<u32>()).prop_map(|(place, luck, until)| {
            Change::Serial(Serial::new(place, luck), Timestamp(u64::from(until)))
        }),
    ]
}

/// A chain without holes that begins at zero.
fn chain() -> impl Strategy<Value = Vec<Delta>> {
    vec((1..5_u64, vec(change(), 0..6)), 1..12).prop_map(|parts| {
        let mut at = 0;
        let delta = |(step, changes)| {
            let from = at;
            at += step;
            Delta { from: position(from), to: position(at), changes }
        };
        parts.into_iter().map(delta).collect()
    })
}

fn follow<'a>(deltas: impl IntoIterator<Item = &'a Delta>) -> RevocationSet {
    let mut set = RevocationSet::at(position(0));
    for delta in deltas {
        assert!(set.apply(delta), "a chain has no holes");
    }
    set
}

proptest! {
    #[test]
    fn an_echo_changes_nothing(chain in chain(), again: prop::sample::Index) {
        let set = follow(&chain);
        let mut echoed = set.clone();
        let delta = &chain[again.index(chain.len())];
        prop_assert!(echoed.apply(delta));
        prop_assert_eq!(echoed, set);
    }

    #[test]
    fn a_hole_is_noticed_and_changes_nothing(chain in chain(), lost: prop::sample::Index) {
        let lost = lost.index(chain.len());
        prop_assume!(lost + 1 < chain.len());
        let mut set = follow(&chain[..lost]);
        let before = set.clone();
        for delta in &chain[lost + 1..] {
            prop_assert!(!set.apply(delta), "P9: a delta was applied over a hole");
        }
        prop_assert_eq!(set, before);
    }

    #[test]
    fn in_any_order_nothing_wrong_is_learned(
        (chain, order) in chain().prop_flat_map(|chain| {
            let order = Just((0..chain.len()).collect::<Vec<_>>()).prop_shuffle();
            (Just(chain), order)
        }),
    ) {
        // What a follower holds is always what a prefix of the chain says, and it goes only forward.
        let mut set = RevocationSet::at(position(0));
        for at in order {
            let before = set.position();
            let _heard = set.apply(&chain[at]);
            prop_assert!(set.position() >= before, "P9");
            let prefix = chain.iter().take_while(|delta| delta.to <= set.position());
            prop_assert_eq!(&set, &follow(prefix));
        }
    }

    #[test]
    fn what_is_revoked_stays_revoked(chain in chain()) {
        let mut set = RevocationSet::at(position(0));
        let mut revoked = Vec::new();
        for delta in &chain {
            prop_assert!(set.apply(delta));
            for change in &delta.changes {
                match change {
                    Change::Place(place, Status::Revoked) => revoked.push(Serial::new(*place, 99)),
                    Change::Serial(serial, _) => revoked.push(*serial),
                    Change::Place(_, Status::Valid | Status::Suspended) => {}
                }
            }
            for serial in &revoked {
                prop_assert_eq!(set.status(serial), Status::Revoked);
            }
        }
    }

    #[test]
    fn another_shard_is_never_applied(chain in chain(), shard in 1..9_u16) {
        let mut set = RevocationSet::at(position(0));
        for delta in &chain {
            let mut stranger = delta.clone();
            stranger.to.shard = Shard(shard);
            stranger.from.shard = Shard(shard);
            prop_assert!(!set.apply(&stranger));
        }
        prop_assert_eq!(set, RevocationSet::at(position(0)));
    }

    #[test]
    fn a_snapshot_is_as_good_as_the_chain(chain in chain(), cut: prop::sample::Index) {
        let cut = cut.index(chain.len());
        let early = follow(&chain[..cut]);
        let mut set = RevocationSet::at(early.position());
        for (window, bitmap) in early.windows() {
            let packed = Bitmap::from_packed(bitmap.as_packed().to_vec());
            set.insert_window(window, packed.expect("a short bitmap"));
        }
        for (serial, until) in early.serials() {
            set.take(Change::Serial(serial, until));
        }
        for delta in &chain[cut..] {
            prop_assert!(set.apply(delta));
        }
        prop_assert_eq!(set, follow(&chain));
    }

    #[test]
    fn forgetting_drops_only_what_has_expired(chain in chain(), now in 0..3_000_000_u64) {
        let set = follow(&chain);
        let mut later = set.clone();
        let now = Timestamp(now);
        later.forget(now);
        for window in 0..3 {
            for slot in 0..40 {
                let place = Place { window: Window(window), slot: Slot(slot) };
                let serial = Serial::new(place, 99);
                let kept = Window(window).forget_at() > now;
                let expected = if kept { set.status(&serial) } else { Status::Valid };
                prop_assert_eq!(later.status(&serial), expected);
            }
        }
    }

    #[test]
    fn a_bitmap_holds_what_was_set(values in vec((0..200_u32, 0..4_u8), 0..50)) {
        let mut bitmap = Bitmap::default();
        let mut model = std::collections::BTreeMap::new();
        for (slot, bits) in values {
            bitmap.set(Slot(slot), Status::from_bits(bits));
            model.insert(slot, Status::from_bits(bits));
        }
        for slot in 0..210 {
            let expected = model.get(&slot).copied().unwrap_or(Status::Valid);
            prop_assert_eq!(bitmap.get(Slot(slot)), expected);
        }
    }
}
