//! Leases of an agent: any file, and any grants, recalls, releases and restarts. Parts of a user's
//! counter add up to the whole, and nobody is billed more for a slice than was granted.
//!
//! Planted bug: a slice that was recalled kept counting to its end.

use std::{collections::BTreeMap, fs};

use arbitrary::Unstructured;
use hy2_agent_sdk::fuzzing::leases::Loans;
use hy2_proto::control::rpc::{DeviceLease, LeaseResponse, LeaseUse, QuotaLease};

use crate::{folder::Folder, read, take};

/// Takes the length of a file, its content, and a program.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let len = usize::from(read::<u8>(&mut input));
    let content = take(&mut input, len);
    let folder = Folder::new();
    if !content.is_empty() {
        fs::write(folder.path().join("leases"), content).expect("room");
    }
    let now = u64::from(read::<u16>(&mut input));
    let mut world = World {
        loans: Loans::open(folder.path(), now).expect("a damaged file is not used"),
        folder,
        now,
        // An end of 0 means none, so a slice that ends there is cut a byte too late.
        total: 1,
        granted: BTreeMap::new(),
        recalled: BTreeMap::new(),
        own: content.is_empty(),
    };
    for _ in 0..40 {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
        world.check(&mut input);
    }
}

/// Few users, so that they meet often.
const USERS: u64 = 3;

struct World {
    loans: Loans,
    folder: Folder,
    now: u64,
    /// Where all counters stand; they never go back.
    total: u64,
    /// Most that was granted, by user and lease.
    granted: BTreeMap<(u64, u64), u64>,
    /// What had been used of a lease of a user when it was taken back.
    recalled: BTreeMap<(u64, u64), u64>,
    /// Nothing came from a file of others.
    own: bool,
}

/// Small numbers, and some at the end of the range.
fn number(input: &mut Unstructured<'_>) -> u64 {
    let (mantissa, exponent) = (read::<u16>(input), read::<u8>(input));
    match exponent % 32 {
        31 => u64::MAX - u64::from(mantissa),
        exponent @ 24.. => u64::from(mantissa) << (exponent + 20),
        exponent => u64::from(mantissa) << (exponent % 12),
    }
}

impl World {
    fn step(&mut self, input: &mut Unstructured<'_>) {
        let user = u64::from(read::<u8>(input)) % USERS;
        match read::<u8>(input) % 10 {
            0..=2 => self.grant(input, user),
            3 => {
                self.total = self.total.saturating_add(number(input));
            }
            4 => {
                let lease = u64::from(read::<u8>(input) % 8);
                for user in 0..USERS {
                    let key = (user, lease);
                    if self.granted.contains_key(&key) && !self.recalled.contains_key(&key) {
                        let used = self.loans.used(user, 0, self.total);
                        self.recalled.insert(key, of(&used, lease));
                    }
                }
                self.loans.recall(&[lease], self.total);
            }
            5 => self.loans.release(user, self.total),
            6 => {
                self.loans.want(user, read::<u8>(input).into());
                if let Some(request) = self.loans.request(self.total)
                    && read::<u8>(input) % 2 == 0
                {
                    self.loans.again(request);
                }
            }
            7 => {
                self.loans.set_online(read::<u8>(input) % 2 == 0);
                let ms = u64::from(read::<u16>(input));
                self.loans.advance(ms);
                self.now += ms;
            }
            8 => {
                self.loans = Loans::open(self.folder.path(), self.now).expect("our own file");
            }
            _ => {
                self.loans.prune(self.total.min(number(input)));
                // What was forgotten is used no more.
                self.recalled.clear();
            }
        }
    }

    fn grant(&mut self, input: &mut Unstructured<'_>, user_id: u64) {
        // A lease is one user's.
        let lease_id = u64::from(read::<u8>(input) % 8) * USERS + user_id;
        let granted_bytes = number(input);
        let seconds = i64::from(read::<u8>(input));
        let expires_at = (seconds != 0).then(|| prost_types::Timestamp { seconds, nanos: 0 });
        let quota = QuotaLease {
            lease_id,
            user_id,
            granted_bytes,
            expires_at,
            billing_multiplier: number(input),
        };
        let response = LeaseResponse {
            quotas: vec![quota],
            devices: vec![DeviceLease {
                user_id,
                slots: read::<u8>(input).into(),
                expires_at,
            }],
            exhausted: if seconds == 1 { vec![user_id] } else { Vec::new() },
            ..LeaseResponse::default()
        };
        // Granted anew, what was used beyond its old end counts into it.
        self.recalled.remove(&(user_id, lease_id));
        let most = self.granted.entry((user_id, lease_id)).or_default();
        *most = (*most).max(granted_bytes);
        self.loans.grant(&response, self.total);
    }

    fn check(&self, input: &mut Unstructured<'_>) {
        for user in 0..USERS {
            let _ = (self.loans.allowance(user), self.loans.figures(user));
            let whole = self.loans.used(user, 0, u64::MAX);
            let middle = number(input);
            let (before, after) = (
                self.loans.used(user, 0, middle),
                self.loans.used(user, middle, u64::MAX),
            );
            for used in &whole {
                let lease = used.lease_id;
                if !self.own || whole.iter().filter(|it| it.lease_id == lease).count() > 1 {
                    continue;
                }
                assert_eq!(of(&before, lease) + of(&after, lease), used.billed_bytes);
                if let Some(granted) = self.granted.get(&(user, lease)) {
                    assert!(used.billed_bytes <= *granted, "{used:?} of {granted}");
                }
            }
            if !self.own {
                continue;
            }
            for ((_, lease), then) in self.recalled.iter().filter(|((it, _), _)| *it == user) {
                assert!(of(&whole, *lease) <= *then, "goes on after it was recalled");
            }
        }
    }
}

fn of(uses: &[LeaseUse], lease: u64) -> u64 {
    let uses = uses.iter().filter(|used| used.lease_id == lease);
    uses.fold(0, |sum, used| sum.saturating_add(used.billed_bytes))
}
