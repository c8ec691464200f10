//! Files of batches in an agent's spool: what a file holds, and what two of them add up to.
//!
//! Planted bug: a lease that both batches used was counted from the newer one only.

use std::collections::BTreeMap;

use hy2_agent_sdk::fuzzing::spool::{batch, file, merged};
use hy2_proto::control::rpc::TrafficBatch;

/// Takes the input as a file, and as two encoded batches behind the length of the first.
pub fn target(data: &[u8]) {
    if let Some(read) = batch(data) {
        assert!(data.starts_with(b"hy2b"));
        assert_eq!(batch(&file(&data[8..])), Some(read));
    }
    let [a, b, rest @ ..] = data else { return };
    let (one, two) = rest.split_at(usize::from(u16::from_le_bytes([*a, *b])).min(rest.len()));
    let mut whole = file(one);
    let (Some(one), Some(two)) = (batch(&whole), batch(&file(two))) else {
        return;
    };
    let at = usize::from(*b) % whole.len();
    whole[at] ^= 1;
    assert_eq!(batch(&whole), None, "a flipped bit in byte {at}");
    add_up(one, two);
}

fn add_up(one: TrafficBatch, two: TrafficBatch) {
    // A spool writes each user and each lease once.
    if sums(&one).is_none() || sums(&two).is_none() {
        let _ = merged(one, two);
        return;
    }
    let both = merged(one.clone(), two.clone());
    assert_eq!((both.first_seq, both.last_seq), (one.first_seq, two.last_seq));
    assert_eq!(both.spool_id, one.spool_id);
    let (one, two) = (sums(&one).expect("once"), sums(&two).expect("once"));
    let mut expected = one;
    for (key, amount) in two {
        let sum = expected.entry(key).or_default();
        *sum = sum.saturating_add(amount);
    }
    assert_eq!(sums(&both), Some(expected));
    assert!(both.users.is_sorted_by_key(|user| user.user_id));
}

/// Bytes by user and direction, and by user and lease; `None` where one is there twice.
fn sums(batch: &TrafficBatch) -> Option<BTreeMap<(u64, Option<u64>, bool), u64>> {
    let mut sums = BTreeMap::new();
    for user in &batch.users {
        let id = user.user_id;
        let mut new = sums.insert((id, None, false), user.tx).is_none();
        new &= sums.insert((id, None, true), user.rx).is_none();
        for used in &user.leases {
            let key = (id, Some(used.lease_id), false);
            new &= sums.insert(key, used.billed_bytes).is_none();
        }
        if !new {
            return None;
        }
    }
    Some(sums)
}
