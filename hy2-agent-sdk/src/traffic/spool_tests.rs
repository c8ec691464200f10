use std::{collections::BTreeMap, time::UNIX_EPOCH};

use hy2_proto::control::rpc::LeaseUse;
use proptest::prelude::*;

use super::*;

fn row(user_id: u64, tx: u64, rx: u64) -> UserTraffic {
    UserTraffic {
        user_id,
        tx,
        rx,
        leases: vec![LeaseUse {
            lease_id: user_id,
            billed_bytes: tx + rx,
        }],
        ..Default::default()
    }
}

fn append(spool: &mut Spool, rows: Vec<UserTraffic>) {
    spool.append(rows, UNIX_EPOCH, UNIX_EPOCH).unwrap();
}

/// The store of a master: takes the next batch only.
#[derive(Default)]
struct Store {
    cursors: BTreeMap<Vec<u8>, u64>,
    bytes: BTreeMap<u64, (u64, u64)>,
    leases: BTreeMap<u64, u64>,
}

impl Store {
    fn take(&mut self, outgoing: &Outgoing) -> u64 {
        assert_eq!(crc32c::crc32c(&outgoing.batch), outgoing.crc32c);
        let batch = decode(&outgoing.batch).unwrap();
        let cursor = self.cursors.entry(batch.spool_id.to_vec()).or_default();
        if batch.first_seq == *cursor + 1 {
            *cursor = batch.last_seq;
            for row in batch.users {
                let bytes = self.bytes.entry(row.user_id).or_default();
                bytes.0 += row.tx;
                bytes.1 += row.rx;
                for used in row.leases {
                    *self.leases.entry(used.lease_id).or_default() += used.billed_bytes;
                }
            }
        }
        *cursor
    }
}

#[test]
fn batches_leave_in_order_and_the_newest_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    assert_eq!(spool.next().unwrap(), None);
    for n in 1..=3 {
        append(&mut spool, vec![row(1, n, 0)]);
    }
    assert_eq!(spool.next().unwrap().unwrap().last, 1);
    assert_eq!(spool.next().unwrap().unwrap().last, 1, "until acknowledged");
    spool.acknowledged(2);
    assert_eq!(spool.next().unwrap().unwrap().last, 3);
    spool.acknowledged(3);
    assert_eq!(spool.next().unwrap(), None);
    assert_eq!(spool.waiting(), (0, 0));
    let id = spool.id();
    drop(spool);
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    assert_eq!(spool.id(), id);
    assert_eq!(spool.contents().count(), 1);
    assert_eq!(spool.resync(3, None).unwrap(), Resync::Fits);
    append(&mut spool, vec![row(1, 4, 0)]);
    assert_eq!(spool.next().unwrap().unwrap().last, 4);
}

#[test]
fn a_restored_master_gets_a_new_spool_with_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    for n in 1..=5 {
        append(&mut spool, vec![row(1, n, 0)]);
    }
    spool.acknowledged(3);
    let id = spool.id();
    assert_eq!(
        spool.resync(1, None).unwrap(),
        Resync::Restarted { lost: 2 }
    );
    assert_ne!(spool.id(), id);
    let mut store = Store::default();
    while let Some(outgoing) = spool.next().unwrap() {
        let durable = store.take(&outgoing);
        spool.acknowledged(durable);
    }
    assert_eq!(store.bytes[&1], (9, 0));
    drop(spool);
    let spool = Spool::open(folder.path(), 1 << 20).unwrap();
    assert_ne!(spool.id(), id);
    assert_eq!(spool.next, 3);
}

#[test]
fn a_restored_master_may_step_over_the_gap() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    for n in 1..=5 {
        append(&mut spool, vec![row(1, n, 0)]);
    }
    spool.acknowledged(3);
    assert!(spool.rewind(1, None));
    assert_eq!(spool.next().unwrap().unwrap().last, 4, "numbers stay");
    assert!(!spool.rewind(9, None), "nothing here follows");
}

#[test]
fn a_damaged_batch_costs_itself_and_not_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    for n in 1..=3 {
        append(&mut spool, vec![row(1, n, 0)]);
    }
    let path = spool.path(&spool.batches[1]);
    fs::write(&path, b"hy2b and nonsense").unwrap();
    for _ in 0..2 {
        spool = Spool::open(folder.path(), 1 << 20).unwrap();
        assert_eq!(spool.batches.len(), 2);
    }
    assert!(
        path.with_extension("damaged").exists(),
        "for whoever looks into it"
    );
    let mut store = Store::default();
    while let Some(outgoing) = spool.next().unwrap() {
        let durable = store.take(&outgoing);
        if durable == outgoing.last {
            spool.acknowledged(durable);
        } else {
            assert_eq!(
                spool.resync(durable, None).unwrap(),
                Resync::Restarted { lost: 1 }
            );
        }
    }
    assert_eq!(store.bytes[&1], (4, 0));
}

#[test]
fn files_with_impossible_numbers_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    append(&mut spool, vec![row(1, 1, 0)]);
    let whole = fs::read(spool.path(&spool.batches[0])).unwrap();
    for (first, last) in [(2, u64::MAX), (9, 3), (0, 5), (7, 7)] {
        let name = format!("{first:020}-{last:020}.batch");
        fs::write(spool.folder.join(name), &whole).unwrap();
    }
    fs::write(spool.folder.join("8-8.batch"), &whole).unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    assert_eq!(spool.batches.len(), 1);
    append(&mut spool, vec![row(1, 1, 0)]);
    assert!(spool.contents().all(|batch| batch.unwrap().last_seq < 10));
}

#[test]
fn sums_that_no_number_holds_stay_at_the_largest() {
    let batch = |tx| TrafficBatch {
        users: vec![row(1, tx, 0)],
        ..Default::default()
    };
    let both = merged(batch(u64::MAX), batch(5));
    assert_eq!(both.users[0].tx, u64::MAX);
    assert_eq!(both.users[0].leases[0].billed_bytes, u64::MAX);
}

#[test]
fn a_disk_from_the_past_does_not_repeat_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    append(&mut spool, vec![row(1, 1, 0)]);
    let id = spool.id();
    assert_eq!(
        spool.resync(9, None).unwrap(),
        Resync::Restarted { lost: 0 }
    );
    assert_ne!(spool.id(), id);
    assert_eq!(spool.next().unwrap(), None);
}

#[test]
fn a_bit_that_flips_while_the_agent_runs_costs_its_batch_and_a_torn_file_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    append(&mut spool, vec![row(1, 1, 0)]);
    append(&mut spool, vec![row(1, 10, 0)]);
    let first = spool.batches[0];
    let path = spool.path(&first);
    let whole = fs::read(&path).unwrap();
    let beside = path.with_extension("damaged");
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(spool.next().unwrap().unwrap().first, 2, "byte {at}");
        fs::rename(&beside, &path).unwrap();
        spool.batches.insert(0, first);
    }
    // Set aside, it is a gap as one that was found at the start.
    let mut store = Store::default();
    let outgoing = spool.next().unwrap().unwrap();
    assert_eq!(store.take(&outgoing), 0);
    let resync = spool.resync(0, None).unwrap();
    assert_eq!(resync, Resync::Restarted { lost: 1 });
    assert_eq!(deliver(&mut spool, &mut store), 0);
    assert_eq!(store.bytes[&1], (10, 0));
    let torn = spool.path(&spool.batches[0]).with_extension("tmp");
    fs::write(&torn, b"half").unwrap();
    drop(spool);
    let spool = Spool::open(folder.path(), 1 << 20).unwrap();
    assert_eq!(spool.contents().count(), 1);
    assert!(!torn.exists());
}

#[test]
fn a_new_spool_is_made_without_what_was_damaged_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    for n in [1, 10, 100] {
        append(&mut spool, vec![row(1, n, 0)]);
    }
    spool.acknowledged(1);
    fs::write(spool.path(&spool.batches[0]), b"hy2b and nonsense").unwrap();
    // The master has less than it said once.
    let resync = spool.resync(0, None).unwrap();
    assert_eq!(resync, Resync::Restarted { lost: 2 });
    let mut store = Store::default();
    deliver(&mut spool, &mut store);
    assert_eq!(store.bytes[&1], (100, 0));
}

#[test]
fn a_new_spool_that_finds_no_room_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    append(&mut spool, vec![row(1, 1, 0)]);
    let in_the_way = folder.path().join("current.tmp");
    fs::create_dir(&in_the_way).unwrap();
    let id = spool.id();
    for _ in 0..3 {
        spool.resync(9, None).unwrap_err();
        assert_eq!((spool.id(), spool.waiting().0), (id, 1));
    }
    assert_eq!(spools(folder.path()).unwrap(), [id]);
    fs::remove_dir(&in_the_way).unwrap();
    let resync = spool.resync(9, None).unwrap();
    assert_eq!(resync, Resync::Restarted { lost: 0 });
}

#[test]
fn batches_are_read_one_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    for n in 1..=3 {
        append(&mut spool, vec![row(1, n, 0)]);
    }
    let mut contents = spool.contents();
    for (at, stored) in spool.batches.iter().enumerate() {
        assert_eq!(contents.next().unwrap().unwrap().first_seq, at as u64 + 1);
        // Only the next that is asked for has to be there.
        fs::remove_file(spool.path(stored)).unwrap();
    }
    assert!(contents.next().is_none());
    let mut contents = spool.contents();
    assert!(contents.next().unwrap().is_err(), "nothing is kept");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the cap, and wherever the agent is killed and answers are lost, the store ends
    /// with what was cut, once.
    #[test]
    fn merging_and_repeating_counts_every_byte_once(
        steps in proptest::collection::vec((1u64..6, 0u64..1000, 0u64..1000, 0u8..10), 1..60),
        cap in 200u64..4000,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path(), cap).unwrap();
        let mut store = Store::default();
        let mut truth: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (user, tx, rx, event) in steps {
            append(&mut spool, vec![row(user, tx, rx)]);
            let bytes = truth.entry(user).or_default();
            bytes.0 += tx;
            bytes.1 += rx;
            match event {
                // The answer is lost.
                0 => {
                    if let Some(outgoing) = spool.next().unwrap() {
                        store.take(&outgoing);
                    }
                }
                1 => {
                    if let Some(outgoing) = spool.next().unwrap() {
                        store.take(&outgoing);
                        let durable = store.take(&outgoing);
                        spool.acknowledged(durable);
                    }
                }
                // Killed: what it knew is gone.
                2 => {
                    drop(spool);
                    spool = Spool::open(folder.path(), cap).unwrap();
                    let cursor = store.cursors.get(spool.id().as_slice()).copied();
                    let fits = spool.resync(cursor.unwrap_or(0), None).unwrap();
                    prop_assert_eq!(fits, Resync::Fits);
                }
                _ => {}
            }
        }
        while let Some(outgoing) = spool.next().unwrap() {
            let durable = store.take(&outgoing);
            spool.acknowledged(durable);
        }
        for (user, (tx, rx)) in truth {
            prop_assert_eq!(store.bytes[&user], (tx, rx));
            prop_assert_eq!(store.leases[&user], tx + rx);
        }
    }
}

/// Delivers everything to a store, over a new spool where the numbers do not fit. Returns how often that was so.
fn deliver(spool: &mut Spool, store: &mut Store) -> usize {
    let mut restarts = 0;
    let cursor = |spool: &Spool, store: &Store| {
        let cursor = store.cursors.get(spool.id().as_slice());
        cursor.copied().unwrap_or(0)
    };
    let known = cursor(spool, store);
    // The master's last batch came at 100 s.
    let moved_at = Some(at(100));
    if !spool.rewind(known, moved_at) {
        assert!(matches!(
            spool.resync(known, moved_at).unwrap(),
            Resync::Restarted { .. }
        ));
        restarts += 1;
    }
    while let Some(outgoing) = spool.next().unwrap() {
        let durable = store.take(&outgoing);
        spool.acknowledged(durable);
        assert!(durable >= outgoing.last, "{outgoing:?}");
    }
    restarts
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + std::time::Duration::from_secs(seconds)
}

#[test]
fn a_disk_that_was_set_back_loses_nothing_that_it_counts_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let earlier = tempfile::tempdir().unwrap();
    let mut store = Store::default();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    append(&mut spool, vec![row(1, 1, 0)]);
    deliver(&mut spool, &mut store);
    // Was sent by the disk that went on, and is not again.
    append(&mut spool, vec![row(1, 5, 0)]);
    let copy = std::process::Command::new("cp")
        .arg("-a")
        .args([folder.path().join("."), earlier.path().to_owned()])
        .status();
    assert!(copy.unwrap().success());
    for n in [10, 100] {
        append(&mut spool, vec![row(1, n, 0)]);
        deliver(&mut spool, &mut store);
    }
    drop(spool);
    // Fewer, as many and more batches than the master has: each time some of the old numbers are given out again.
    for batches in 1..=5 {
        let again = tempfile::tempdir().unwrap();
        let copy = std::process::Command::new("cp")
            .arg("-a")
            .args([earlier.path().join("."), again.path().to_owned()])
            .status();
        assert!(copy.unwrap().success());
        let mut spool = Spool::open(again.path(), 1 << 20).unwrap();
        let before = store.bytes[&1].0;
        for n in 0..batches {
            let to = at(200 + n);
            spool.append(vec![row(1, 1000, 0)], to, to).unwrap();
        }
        assert_eq!(deliver(&mut spool, &mut store), 1);
        assert_eq!(store.bytes[&1].0, before + 1000 * batches, "{batches}");
    }
}

#[test]
fn numbers_of_batches_that_were_set_aside_are_not_given_out_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::default();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    for n in 1..=4 {
        append(&mut spool, vec![row(1, n, 0)]);
    }
    deliver(&mut spool, &mut store);
    assert_eq!(spool.batches.len(), 1, "the newest");
    fs::write(spool.path(&spool.batches[0]), b"hy2b and nonsense").unwrap();
    drop(spool);
    for _ in 0..3 {
        let spool = Spool::open(folder.path(), 1 << 20).unwrap();
        assert_eq!((spool.batches.len(), spool.next), (0, 5));
    }
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    for _ in 0..3 {
        append(&mut spool, vec![row(1, 1000, 0)]);
    }
    assert_eq!(deliver(&mut spool, &mut store), 0);
    assert_eq!(store.bytes[&1], (3010, 0));
}

#[test]
fn a_damaged_note_of_the_spool_in_use_is_made_up_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 1 << 20).unwrap();
    append(&mut spool, vec![row(1, 1, 0)]);
    let id = spool.id();
    for damaged in ["", "nonsense"] {
        fs::write(folder.path().join("current"), damaged).unwrap();
        let spool = Spool::open(folder.path(), 1 << 20).unwrap();
        assert_eq!((spool.id(), spool.batches.len()), (id, 1));
    }
    fs::remove_file(folder.path().join("current")).unwrap();
    let spool = Spool::open(folder.path(), 1 << 20).unwrap();
    assert_eq!((spool.id(), spool.waiting().0), (id, 1));
    // Which of two it was, nobody knows here.
    fs::create_dir(folder.path().join("0".repeat(32))).unwrap();
    fs::write(folder.path().join("current"), "").unwrap();
    let error = Spool::open(folder.path(), 1 << 20).unwrap_err().to_string();
    assert!(error.contains("write the name of the folder"), "{error}");
    fs::remove_file(folder.path().join("current")).unwrap();
    Spool::open(folder.path(), 1 << 20).unwrap_err();
    assert!(spool.folder.is_dir());
}
