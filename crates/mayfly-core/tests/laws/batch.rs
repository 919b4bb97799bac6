//! The one form of a batch: what is written reads back, and nothing else can be read.

use mayfly_core::{
    Change, Delta, Place, Position, RevocationSet, Sequence, Serial, Shard, Slot, Status,
    Timestamp, Window, batch, limits,
};
use proptest::{collection::vec, prelude::*};

fn place() -> impl Strategy<Value = Place> {
    let window = prop_oneof![0..4_u32, any::<u32>()];
    let slot = prop_oneof![40 => 0..40_u32, 1 => 0..limits::SLOTS_PER_WINDOW_MAX];
    (window, slot).prop_map(|(window, slot)| Place { window: Window(window), slot: Slot(slot) })
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (place(), 0..3_u8)
            .prop_map(|(place, bits)| Change::Place(place, Status::from_bits(bits))),
        1 => (place(), any::<u64>(), any::<u64>())
            .prop_map(|(place, luck, until)| {
                Change::Serial(Serial::new(place, luck), Timestamp(until))
            }),
    ]
}

fn position(sequence: u64) -> Position {
    Position { shard: Shard(0), sequence: Sequence(sequence) }
}

proptest! {
    #[test]
    fn what_was_written_has_the_effect_of_what_was_meant(
        before in vec(change(), 0..20),
        changes in vec(change(), 0..60),
    ) {
        let mut start = RevocationSet::at(position(1));
        before.into_iter().for_each(|change| start.take(change));
        let read = batch::decode(&batch::encode(&changes)).expect("it was written by us");
        let follow = |changes: Vec<Change>| {
            let mut set = start.clone();
            let delta = Delta { from: position(1), to: position(2), changes };
            assert!(set.apply(&delta));
            // A valid slot and one that was never named are the same fact.
            let windows: Vec<_> = set
                .windows()
                .map(|(window, bitmap)| {
                    let used = bitmap.as_packed().iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
                    (window, bitmap.as_packed()[..used].to_vec())
                })
                .collect();
            (windows, set.serials().collect::<Vec<_>>())
        };
        prop_assert_eq!(follow(read), follow(changes));
    }

    #[test]
    fn order_and_repetition_of_unlike_places_leave_no_trace(
        changes in vec(change(), 0..40).prop_shuffle(),
    ) {
        let once = batch::encode(&changes);
        let read = batch::decode(&once).expect("it was written by us");
        prop_assert_eq!(&batch::encode(read.iter().rev()), &once);
        prop_assert_eq!(batch::encode(read.iter().chain(&read)), once);
    }

    #[test]
    fn whatever_can_be_read_was_written_like_that(bytes in vec(any::<u8>(), 0..64)) {
        if let Ok(read) = batch::decode(&bytes) {
            prop_assert_eq!(batch::encode(&read), bytes);
        }
    }

    #[test]
    fn a_change_of_one_bit_is_refused_or_means_something_else(
        changes in vec(change(), 1..20),
        at: prop::sample::Index,
        bit in 0..8_u8,
    ) {
        let mut bytes = batch::encode(&changes);
        let read = batch::decode(&bytes).expect("it was written by us");
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert_ne!(batch::decode(&bytes), Ok(read));
    }

    #[test]
    fn what_is_cut_off_is_refused(changes in vec(change(), 0..20), at: prop::sample::Index) {
        let bytes = batch::encode(&changes);
        prop_assert!(batch::decode(&bytes[..at.index(bytes.len())]).is_err());
    }
}

#[test]
fn the_bytes_are_those_of_the_document() {
    let revoked = |window, slot| {
        let place = Place { window: Window(window), slot: Slot(slot) };
        Change::Place(place, Status::Revoked)
    };
    let changes = [revoked(300, 7), revoked(300, 5), revoked(301, 0)];
    // Two windows. 300 takes two bytes; slots 5 and 7, the second with a gap of one between them. The
    // window after 300 has gap 0. No serials.
    let bytes = [2, 0xac, 2, 2, 5 << 2 | 1, 1 << 2 | 1, 0, 1, 1, 0];
    assert_eq!(batch::encode(&changes), bytes);
}

#[test]
fn an_end_beside_another_costs_one_byte() {
    let ended = |slot| {
        let place = Place { window: Window(2_900_000), slot: Slot(slot) };
        Change::Place(place, Status::Revoked)
    };
    let one: Vec<_> = (1_000..2_000).map(ended).collect();
    assert!(batch::encode(&one).len() < 1_010);
}

#[test]
fn every_other_form_is_refused() {
    let serial = Serial::new(Place::default(), 9);
    let with_serials = |count: u8, untils: &[u8]| {
        let mut bytes = vec![0, count];
        for until in untils {
            bytes.extend_from_slice(serial.as_bytes());
            bytes.push(*until);
        }
        bytes
    };
    let cases: [(&str, Vec<u8>); 13] = [
        ("nothing", vec![]),
        ("no serials", vec![0]),
        ("left over", vec![0, 0, 0]),
        ("a padded zero", vec![0x80, 0, 0]),
        ("a padded one", vec![0x81, 0, 1, 1, 1, 0]),
        ("an endless number", vec![0xff; 11]),
        ("more than 64 bits", [&[0xff; 9][..], &[2, 0]].concat()),
        ("an empty window", vec![1, 7, 0, 0]),
        ("an unassigned status", vec![1, 7, 1, 3, 0]),
        ("a slot out of bounds", vec![1, 7, 1, 0x80, 0x80, 0x80, 0x20, 0]),
        ("a window out of bounds", vec![1, 0x80, 0x80, 0x80, 0x80, 0x10, 1, 1, 0]),
        ("a serial twice", with_serials(2, &[1, 1])),
        ("too many changes", vec![1, 7, 0x81, 0x80, 4, 0]),
    ];
    for (what, bytes) in cases {
        assert!(batch::decode(&bytes).is_err(), "{what} was read");
    }
    assert_eq!(
        batch::decode(&with_serials(1, &[1])),
        Ok(vec![Change::Serial(serial, Timestamp(1))])
    );
}
