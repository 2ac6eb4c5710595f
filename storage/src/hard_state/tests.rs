use proptest::prelude::*;

use super::*;
use crate::disk::sim::{Faults, SimDisk};

fn key(partition: i32) -> GroupKey {
    GroupKey {
        topic_id: [7; 16],
        partition,
    }
}

fn state(term: u64) -> SavedState {
    SavedState {
        term,
        vote: 1,
        voters: vec![1, 2, 3],
        ..SavedState::default()
    }
}

fn open(disk: &SimDisk) -> HardStates {
    HardStates::open(Arc::new(disk.clone()), Path::new("/data")).unwrap()
}

#[test]
fn states_are_there_after_reopening_and_removed_ones_are_not() {
    let disk = SimDisk::new();
    let mut states = open(&disk);
    states.put(key(0), state(1)).unwrap();
    states.put(key(1), state(2)).unwrap();
    states.put(key(0), state(3)).unwrap();
    states.remove(key(1)).unwrap();
    let settled = SavedState {
        settled: 7,
        joins_after: 9,
        learners: vec![4],
        ..state(4)
    };
    states.put(key(2), settled.clone()).unwrap();
    let states = open(&disk);
    assert_eq!(states.get(key(0)), Some(&state(3)));
    assert_eq!(states.get(key(1)), None);
    assert_eq!(states.get(key(2)), Some(&settled));
}

#[test]
fn a_file_of_superseded_states_is_written_anew() {
    let disk = SimDisk::new();
    let mut states = open(&disk);
    let mut largest = 0;
    for term in 0..40_000 {
        states.put(key((term % 3) as i32), state(term)).unwrap();
        largest = largest.max(states.end);
    }
    assert!(largest <= REWRITE_BYTES_MIN + 200);
    let again = open(&disk);
    assert_eq!(again.states, states.states);
}

proptest! {
    #[test]
    fn what_was_synced_survives_a_crash(
        steps in prop::collection::vec((0i32..4, 1u64..100, any::<bool>()), 1..40),
        stop_after in 0u64..60,
        seed in any::<u64>(),
    ) {
        let disk = SimDisk::new();
        let mut states = open(&disk);
        if let Some(ticket) = states.sync_ticket() {
            ticket.run().unwrap();
        }
        disk.set_faults(Faults { stop_after: Some(stop_after), ..Faults::default() });
        let mut written: Vec<Vec<SavedState>> = vec![Vec::new(); 4];
        let mut durable = [0; 4];
        for (partition, term, sync) in steps {
            if states.put(key(partition), state(term)).is_ok() {
                written[partition as usize].push(state(term));
            }
            if sync && states.sync_ticket().is_some_and(|ticket| ticket.run().is_ok()) {
                for (durable, written) in durable.iter_mut().zip(&written) {
                    *durable = written.len();
                }
            }
        }
        let mut random = seed | 1;
        disk.crash(&mut || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        });
        let states = open(&disk);
        for (partition, (durable, written)) in durable.iter().zip(&written).enumerate() {
            let found = states.get(key(partition as i32));
            let allowed = &written[durable.saturating_sub(1)..];
            match found {
                Some(found) => prop_assert!(allowed.contains(found)),
                None => prop_assert_eq!(*durable, 0),
            }
        }
    }
}

#[test]
fn damage_to_what_was_synced_is_an_error_and_nothing_is_cut() {
    let path = Path::new("/data/raft-state");
    for reopened in [false, true] {
        let disk = SimDisk::new();
        let mut states = open(&disk);
        for term in 1..5 {
            states.put(key(term as i32), state(term)).unwrap();
        }
        let synced = states.end;
        states.sync_ticket().unwrap().run().unwrap();
        assert!(states.sync_ticket().is_none());
        if reopened {
            states = open(&disk);
        }
        let len = disk.open(path).unwrap().len().unwrap();
        drop(states);
        for bit in 0..synced as usize * 8 {
            disk.flip_bit(path, bit);
            let opened = HardStates::open(Arc::new(disk.clone()), Path::new("/data"));
            assert!(matches!(opened, Err(StorageError::Corrupt(_))), "bit {bit}");
            assert_eq!(disk.open(path).unwrap().len().unwrap(), len);
            disk.flip_bit(path, bit);
        }
        assert_eq!(open(&disk).get(key(4)), Some(&state(4)));
    }
}

#[test]
fn a_hole_in_what_was_never_synced_is_a_torn_tail() {
    let disk = SimDisk::new();
    let mut states = open(&disk);
    states.put(key(0), state(1)).unwrap();
    states.sync_ticket().unwrap().run().unwrap();
    let synced = states.end;
    for term in 2..6 {
        states.put(key(term as i32), state(term)).unwrap();
    }
    disk.flip_bit(Path::new("/data/raft-state"), synced as usize * 8 + 100);
    let states = open(&disk);
    assert_eq!(states.states.len(), 1);
    assert_eq!(states.get(key(0)), Some(&state(1)));
}

#[test]
fn a_full_disk_refuses_a_state_and_keeps_the_others() {
    for spare in 0..400 {
        let disk = SimDisk::new();
        let mut states = open(&disk);
        let mut written = HashMap::new();
        let used = states.end;
        disk.set_faults(Faults {
            capacity_bytes: Some(used + spare),
            ..Faults::default()
        });
        for term in 1..8 {
            let key = key(term as i32 % 3);
            if states.put(key, state(term)).is_ok() {
                written.insert(key, state(term));
            }
            assert_eq!(states.states, written, "spare {spare}");
        }
        assert_eq!(open(&disk).states, written, "spare {spare}");
        disk.set_faults(Faults::default());
        states.put(key(0), state(9)).unwrap();
        written.insert(key(0), state(9));
        assert_eq!(open(&disk).states, written, "spare {spare}");
    }
}

#[test]
fn a_rewrite_without_room_leaves_the_old_file_in_force() {
    let disk = SimDisk::new();
    let mut states = open(&disk);
    let groups = 3;
    let mut term = 0;
    while states.end + 200 < REWRITE_BYTES_MIN {
        term += 1;
        states
            .put(key((term % groups) as i32), state(term))
            .unwrap();
    }
    let end = states.end;
    // Room for the next three records and for the half of a new file that a failed write leaves, not
    // for all of one beside the first records.
    let room = record_bytes(&state(term)) as u64 * 11 / 2;
    disk.set_faults(Faults {
        capacity_bytes: Some(end + room),
        ..Faults::default()
    });
    for _ in 0..3 {
        term += 1;
        states
            .put(key((term % groups) as i32), state(term))
            .unwrap();
    }
    assert!(states.rewrite_bytes_min > REWRITE_BYTES_MIN);
    assert_eq!(open(&disk).states, states.states);
}
