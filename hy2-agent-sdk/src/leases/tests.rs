use std::{cell::Cell, time::Duration};

use hy2_proto::control::rpc::QuotaLease;

use super::*;
use crate::clock::ManualClock;

/// What was counted, and what of it was cut.
struct At(Cell<u64>, Cell<u64>);

impl At {
    fn new(total: u64) -> Self {
        Self(Cell::new(total), Cell::new(0))
    }
}

impl Counters for At {
    fn total(&self, _: u64) -> u64 {
        self.0.get()
    }

    fn spooled(&self, _: u64) -> u64 {
        self.1.get()
    }
}

fn quota(lease_id: u64, granted_bytes: u64, multiplier: u64) -> LeaseResponse {
    LeaseResponse {
        quotas: vec![QuotaLease {
            lease_id,
            user_id: 1,
            granted_bytes,
            expires_at: Some(prost_types::Timestamp {
                seconds: 2000,
                nanos: 0,
            }),
            billing_multiplier: multiplier,
        }],
        ..Default::default()
    }
}

fn open(folder: &Path) -> (Leases, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(crate::clock::from_unix_ms(1_000_000)));
    (Leases::open(folder, clock.clone()).unwrap(), clock)
}

/// After a restart nobody would know what was used of it.
#[test]
fn a_slice_that_cannot_be_kept_is_not_taken_until_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, _) = open(folder.path());
    let at = At::new(500);
    leases.grant(&quota(7, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    assert_eq!((leases.allowance(1), leases.not_kept()), (1500, None));
    // Neither can be written.
    for name in ["leases.0", "leases.1"] {
        let file = folder.path().join(name);
        std::fs::rename(&file, folder.path().join(format!("{name}.aside"))).unwrap();
        std::fs::create_dir(&file).unwrap();
    }
    at.0.set(1400);
    leases.want(1);
    leases.request(&at).expect("a want");
    for lease in [8, 7] {
        let more = quota(lease, 2000, MULTIPLIER_ONE);
        leases.grant(&more, &at, &NoCut::NO_COUNTERS);
        assert_eq!(leases.allowance(1), 1500);
        assert!(leases.not_kept().is_some());
    }
    for name in ["leases.0", "leases.1"] {
        let file = folder.path().join(name);
        std::fs::remove_dir(&file).unwrap();
        std::fs::rename(folder.path().join(format!("{name}.aside")), &file).unwrap();
    }
    leases.grant(&quota(8, 2000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    assert_eq!((leases.allowance(1), leases.not_kept()), (3500, None));
    drop(leases);
    assert_eq!(open(folder.path()).0.allowance(1), 3500);
}

/// As versions before wrote it.
#[test]
fn a_file_of_an_earlier_version_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, _) = open(folder.path());
    leases.grant(
        &quota(7, 1000, MULTIPLIER_ONE),
        &At::new(0),
        &NoCut::NO_COUNTERS,
    );
    drop(leases);
    let path = folder.path().join("leases");
    let (_, content) = Pair::open(&path).unwrap();
    let Content::Whole(bytes) = content else {
        panic!("{content:?}");
    };
    for name in ["leases.0", "leases.1"] {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    std::fs::write(&path, bytes).unwrap();
    for _ in 0..2 {
        assert_eq!(open(folder.path()).0.allowance(1), 1000);
        assert!(!path.exists());
    }
}

#[test]
fn slices_follow_each_other_and_uses_add_up_to_what_was_granted() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, _) = open(folder.path());
    let at = At::new(500);
    assert_eq!(leases.allowance(1), 0);
    leases.grant(&quota(7, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    assert_eq!((leases.allowance(1), leases.renew_at(1)), (1500, 1000));
    at.0.set(1600);
    leases.grant(
        &quota(8, 3000, 3 * MULTIPLIER_ONE),
        &at,
        &NoCut::NO_COUNTERS,
    );
    assert_eq!(leases.allowance(1), 2500);
    let mut sums = HashMap::new();
    let cuts = [500, 501, 777, 1499, 1501, 1600, 2000, 2500, 9999];
    for cut in cuts.windows(2) {
        for used in leases.used(1, cut[0], cut[1]) {
            *sums.entry(used.lease_id).or_insert(0) += used.billed_bytes;
        }
    }
    assert_eq!(sums, HashMap::from([(7, 1000), (8, 3000)]));
    // The same after a restart.
    drop(leases);
    let (leases, _) = open(folder.path());
    assert_eq!(leases.allowance(1), 2500);
    assert_eq!(
        leases.used(1, 0, 600),
        [LeaseUse {
            lease_id: 7,
            billed_bytes: 100
        }]
    );
}

#[test]
fn parts_of_a_fraction_are_not_lost_to_rounding() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, _) = open(folder.path());
    let at = At::new(0);
    leases.grant(&quota(1, 100, MULTIPLIER_ONE / 3), &at, &NoCut::NO_COUNTERS);
    let end = leases.allowance(1);
    let sum: u64 = (0..end)
        .flat_map(|byte| leases.used(1, byte, byte + 1))
        .map(|used| used.billed_bytes)
        .sum();
    assert!((99..=100).contains(&sum), "{sum}");
}

#[test]
fn what_goes_over_the_end_waits_for_the_answer_and_is_owed_once() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, _) = open(folder.path());
    let at = At::new(0);
    leases.set_online(true);
    leases.grant(&quota(1, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    assert_eq!(leases.complete(1, 1200), 1200, "nobody was asked");
    leases.want(1);
    assert_eq!(leases.complete(1, 900), 900);
    assert_eq!(leases.complete(1, 1200), 1000);
    let request = leases.request(&at).unwrap();
    assert_eq!(leases.complete(1, 1200), 1000);
    leases.set_online(false);
    assert_eq!(leases.complete(1, 1200), 1200);
    leases.set_online(true);
    leases.again(request);
    assert_eq!(leases.complete(1, 1200), 1000);
    leases.request(&at).unwrap();
    leases.settle(&[1], &NoCut::NO_COUNTERS);
    assert_eq!(leases.complete(1, 1200), 1200, "there was no answer to it");
    // It was cut, without a slice: the next begins behind it.
    at.0.set(1300);
    at.1.set(1200);
    leases.grant(&quota(2, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    let owed = |lease_id, billed_bytes| LeaseUse {
        lease_id,
        billed_bytes,
    };
    assert_eq!(leases.used(1, 0, 1200), [owed(1, 1000)]);
    assert_eq!(leases.used(1, 1200, 9999), [owed(2, 1000)]);
}

#[test]
fn the_last_cut_of_a_node_that_ends_waits_for_no_slice() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, _) = open(folder.path());
    leases.set_online(true);
    leases.grant(
        &quota(1, 1000, MULTIPLIER_ONE),
        &At::new(0),
        &NoCut::NO_COUNTERS,
    );
    leases.want(1);
    assert_eq!(leases.complete(1, 1200), 1000);
    leases.finish();
    leases.set_online(true);
    assert_eq!(leases.complete(1, 1200), 1200);
}

#[test]
fn what_ran_out_or_was_taken_back_is_worth_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, clock) = open(folder.path());
    let at = At::new(0);
    leases.grant(&quota(1, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    at.0.set(300);
    assert_eq!(leases.recall(&[1], &at), BTreeSet::from([1]));
    assert_eq!(leases.allowance(1), 0);
    assert_eq!(
        leases.used(1, 0, 900),
        [LeaseUse {
            lease_id: 1,
            billed_bytes: 300
        }]
    );
    leases.grant(&quota(2, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    assert_eq!(leases.allowance(1), 1300);
    clock.advance(Duration::from_secs(1001));
    assert_eq!(leases.allowance(1), 0);
}

/// Found by fuzzing: the byte behind the counter belonged to both.
#[test]
fn a_slice_that_ran_out_unused_leaves_every_byte_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, clock) = open(folder.path());
    let at = At::new(7);
    leases.grant(&quota(1, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    clock.advance(Duration::from_secs(1001));
    let mut next = quota(2, 1000, MULTIPLIER_ONE);
    next.quotas[0].expires_at = None;
    leases.grant(&next, &at, &NoCut::NO_COUNTERS);
    let used = leases.used(1, 0, 9999);
    assert_eq!(
        used,
        [LeaseUse {
            lease_id: 2,
            billed_bytes: 1000
        }]
    );
}

#[test]
fn what_a_user_leaves_goes_back_and_counts_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, _) = open(folder.path());
    let at = At::new(100);
    leases.grant(
        &quota(1, 1000, 2 * MULTIPLIER_ONE),
        &at,
        &NoCut::NO_COUNTERS,
    );
    assert_eq!(leases.allowance(1), 600);
    leases.release(1, 250);
    assert_eq!(leases.allowance(1), 0);
    let request = leases.request(&at).unwrap();
    let want = request.quotas[0];
    assert_eq!(
        (want.lease_id, want.remaining_bytes, want.release),
        (1, 700, true)
    );
    assert_eq!(leases.used(1, 0, 9999)[0].billed_bytes, 300);
    leases.again(request.clone());
    assert_eq!(leases.request(&at), Some(request));
    assert!(leases.request(&at).is_none());
}

#[test]
fn a_file_with_impossible_slices_is_worth_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let slice = |start, granted, ended| Slice {
        lease: 1,
        user: 1,
        start,
        granted,
        multiplier: MULTIPLIER_ONE,
        expires_ms: 1,
        ended,
        settled: false,
        unused: false,
    };
    let stored = Stored {
        // Ended before it began, and begins where numbers end.
        slices: vec![slice(1000, 500, 10), slice(u64::MAX, u64::MAX, 0)],
        places: Vec::new(),
        epoch: 0,
    };
    std::fs::write(folder.path().join("leases"), stored.encode_to_vec()).unwrap();
    let (leases, _) = open(folder.path());
    assert_eq!((leases.allowance(1), leases.slack(1)), (0, 0));
    assert_eq!(leases.used(1, 0, u64::MAX), []);
    assert_eq!(leases.used(1, 9, 3), [], "a counter that went back");
    let at = At::new(100);
    leases.grant(&quota(2, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    assert_eq!(leases.allowance(1), 1100);
}

#[test]
fn what_is_wanted_is_asked_once_and_again_after_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, _) = open(folder.path());
    let at = At::new(0);
    assert!(leases.request(&at).is_none());
    leases.want(1);
    leases.want(1);
    leases.want_places(2, 1, 2);
    let request = leases.request(&at).unwrap();
    assert_eq!((request.quotas.len(), request.devices.len()), (1, 1));
    assert!(leases.request(&at).is_none());
    leases.again(request.clone());
    assert_eq!(leases.request(&at), Some(request));
}

fn until(mut quota: LeaseResponse, seconds: i64) -> LeaseResponse {
    quota.quotas[0].expires_at = Some(prost_types::Timestamp { seconds, nanos: 0 });
    quota
}

#[test]
fn a_slice_whose_time_is_over_goes_on_when_it_is_prolonged() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, clock) = open(folder.path());
    let at = At::new(500);
    let seven = quota(7, 1000, MULTIPLIER_ONE);
    leases.grant(&until(seven.clone(), 200_000), &at, &NoCut::NO_COUNTERS);
    assert!(!leases.is_ending(1));
    // A day before its end, and at its end.
    assert_eq!(leases.due(1), Some((200_000 - 86_400) * 1000));
    clock.advance(Duration::from_secs(198_000));
    assert!(leases.is_ending(1));
    assert_eq!(leases.due(1), Some(200_000_000));
    clock.advance(Duration::from_secs(2_000));
    at.0.set(600);
    assert_eq!(leases.allowance(1), 0);
    leases.want(1);
    let asked = leases.request(&at).unwrap().quotas;
    assert_eq!((asked[0].lease_id, asked[0].remaining_bytes), (7, 900));
    leases.grant(&until(seven, 900_000), &at, &NoCut::NO_COUNTERS);
    assert_eq!(leases.allowance(1), 1500);
    assert!(leases.request(&at).is_none());
}

#[test]
fn what_is_left_of_a_slice_whose_time_is_over_goes_back_with_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, clock) = open(folder.path());
    let at = At::new(500);
    leases.grant(&quota(7, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    clock.advance(Duration::from_secs(2_000));
    at.0.set(600);
    let eight = until(quota(8, 300, MULTIPLIER_ONE), 900_000);
    leases.grant(&eight, &at, &NoCut::NO_COUNTERS);
    assert_eq!(leases.allowance(1), 900);
    let back = leases.request(&at).unwrap().quotas;
    assert_eq!(back.len(), 1);
    assert!(back[0].release);
    assert_eq!((back[0].lease_id, back[0].remaining_bytes), (7, 900));
    let used = leases.used(1, 500, 900);
    let of = |lease| {
        used.iter()
            .find(|used| used.lease_id == lease)
            .unwrap()
            .billed_bytes
    };
    assert_eq!((of(7), of(8)), (100, 300));
}

#[test]
fn what_is_left_of_a_slice_that_is_taken_back_goes_back_until_the_master_knows() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, _) = open(folder.path());
    let at = At::new(0);
    leases.grant(
        &quota(1, 1000, 2 * MULTIPLIER_ONE),
        &at,
        &NoCut::NO_COUNTERS,
    );
    at.0.set(300);
    leases.recall(&[1], &at);
    let back = LeaseWant {
        user_id: 1,
        lease_id: 1,
        remaining_bytes: 400,
        release: true,
        used_bytes: Some(600),
    };
    let request = leases.request(&at).unwrap();
    assert_eq!(request.quotas, [back]);
    // Taken back again, and cut: nothing more. A node that is killed before the answer says it again, and a slice
    // whose use is in the spool is kept for that.
    leases.recall(&[1], &at);
    assert!(leases.request(&at).is_none());
    leases.grant(&quota(2, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    leases.prune(|_| 300);
    drop(leases);
    let (leases, _) = open(folder.path());
    assert_eq!(leases.request(&at), Some(request.clone()));
    leases.released(&request);
    assert!(leases.request(&at).is_none());
    drop(leases);
    let (leases, _) = open(folder.path());
    assert!(leases.request(&at).is_none(), "known");
    leases.prune(|_| 300);
    assert_eq!(leases.used(1, 0, 300), []);
    assert_eq!(leases.allowance(1), 1300);
}

#[test]
fn what_comes_back_is_said_before_what_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, _) = open(folder.path());
    let at = At::new(100);
    leases.grant(&quota(1, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    leases.want(1);
    leases.release(1, 250);
    let request = leases.request(&at).unwrap();
    let releases: Vec<bool> = request.quotas.iter().map(|want| want.release).collect();
    assert_eq!(releases, [true, false]);
}

#[test]
fn what_an_earlier_slice_gave_back_is_lent_to_nobody() {
    const MIB: u64 = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let (leases, clock) = open(folder.path());
    let at = At::new(0);
    let one = MULTIPLIER_ONE;
    let first = until(quota(1, 16 * MIB, one), 2_000);
    leases.grant(&first, &at, &NoCut::NO_COUNTERS);
    at.0.set(12 * MIB);
    for (lease, seconds) in [(2, 3_000), (3, 900_000)] {
        let next = until(quota(lease, 8 * MIB, one), seconds);
        leases.grant(&next, &at, &NoCut::NO_COUNTERS);
    }
    assert_eq!(leases.allowance(1), 32 * MIB);
    // The first runs out, and the second is prolonged: 4 MiB go back.
    clock.advance(Duration::from_secs(1_500));
    let second = until(quota(2, 8 * MIB, one), 900_000);
    leases.grant(&second, &at, &NoCut::NO_COUNTERS);
    let back = leases.request(&at).unwrap().quotas;
    assert_eq!((back[0].lease_id, back[0].remaining_bytes), (1, 4 * MIB));
    assert_eq!(leases.allowance(1), 28 * MIB);
    let lent = |from: u64| {
        let used = leases.used(1, from, u64::MAX).into_iter();
        used.map(|used| used.billed_bytes).sum::<u64>()
    };
    assert_eq!(lent(0), 28 * MIB);
    // So it is for one that is taken back, of which some is used, and after a restart.
    at.0.set(13 * MIB);
    leases.recall(&[2], &at);
    assert_eq!((leases.allowance(1), lent(0)), (21 * MIB, 21 * MIB));
    drop(leases);
    let (leases, _) = open(folder.path());
    assert_eq!(leases.allowance(1), 21 * MIB);
}

#[test]
fn a_slice_does_not_begin_inside_another() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, _) = open(folder.path());
    let at = At::new(0);
    leases.grant(&quota(1, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    leases.grant(&quota(2, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    at.0.set(600);
    leases.recall(&[2], &at);
    leases.grant(&quota(3, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    assert_eq!(leases.allowance(1), 2000);
}

#[test]
fn a_slice_that_is_taken_back_and_never_came_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, _) = open(folder.path());
    let at = At::new(100);
    assert_eq!(leases.recall(&[7, 8], &at), BTreeSet::new());
    // Whether it was used, the spool may say.
    assert!(leases.request(&at).is_none());
    leases.delivered();
    let request = leases.request(&at).unwrap();
    let nothing_of = |lease_id| LeaseWant {
        user_id: 0,
        lease_id,
        remaining_bytes: 0,
        release: true,
        used_bytes: Some(0),
    };
    assert_eq!(request.quotas, [nothing_of(7), nothing_of(8)]);
    // Taken back once more, or the answer is lost: it is said again.
    leases.recall(&[7], &at);
    leases.delivered();
    assert!(leases.request(&at).is_none());
    leases.again(request.clone());
    assert_eq!(leases.request(&at), Some(request.clone()));
    leases.released(&request);
    leases.again(request);
    assert!(leases.request(&at).is_none(), "known");
}

#[test]
fn a_slice_that_comes_after_it_was_taken_back_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, _) = open(folder.path());
    let at = At::new(100);
    leases.want(1);
    leases.request(&at).unwrap();
    leases.recall(&[7], &at);
    leases.delivered();
    let seven = quota(7, 1000, MULTIPLIER_ONE);
    leases.grant(&seven, &at, &NoCut::NO_COUNTERS);
    leases.settle(&[1], &NoCut::NO_COUNTERS);
    assert_eq!(leases.allowance(1), 0);
    assert!(leases.is_awaited(1), "another is asked for");
    let back = leases.request(&at).unwrap().quotas;
    let said: Vec<_> = back
        .iter()
        .map(|want| (want.user_id, want.lease_id, want.release, want.used_bytes))
        .collect();
    assert_eq!(said, [(1, 7, true, Some(0)), (1, 7, false, None)]);
    leases.grant(&quota(8, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    assert_eq!(leases.allowance(1), 1100);
}

#[test]
fn a_restored_master_lends_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (leases, _) = open(folder.path());
    let at = At::new(100);
    assert!(!leases.enter_epoch(1, &at), "the first that it is in");
    leases.grant(&quota(7, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    let exhausted = LeaseResponse {
        exhausted: vec![2],
        ..LeaseResponse::default()
    };
    leases.grant(&exhausted, &at, &NoCut::NO_COUNTERS);
    at.0.set(400);
    assert!(!leases.enter_epoch(1, &at));
    assert_eq!(leases.allowance(1), 1100);
    drop(leases);
    let (leases, _) = open(folder.path());
    assert!(leases.enter_epoch(2, &at));
    assert!(!leases.is_exhausted(2));
    assert_eq!(leases.allowance(1), 0);
    assert!(leases.request(&at).is_none(), "nobody is owed the rest");
    // The number may have been given out before, for another.
    leases.grant(&quota(8, 1000, MULTIPLIER_ONE), &at, &NoCut::NO_COUNTERS);
    assert_eq!(leases.allowance(1), 1400);
    let of = |lease, from, to| {
        let used = leases.used(1, from, to);
        used.iter()
            .find(|used| used.lease_id == lease)
            .map_or(0, |used| used.billed_bytes)
    };
    assert_eq!((of(7, 100, 500), of(8, 100, 500)), (300, 100));
}
