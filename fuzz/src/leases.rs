//! Leases of an agent: any file, and any grants, recalls, releases, restarts and restores of the master. Parts of a user's
//! counter add up to the whole, no byte comes out of two slices, and nobody is billed more for a slice than was granted.
//! What goes back of a slice is said until the master knows, and never after that; so is that a slice was not heard of,
//! once everything before that is delivered. A restored master is owed nothing. With state.
//!
//! Planted bug: a slice that was recalled kept counting to its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use arbitrary::Unstructured;
use hy2_agent_sdk::fuzzing::leases::Loans;
use hy2_proto::control::{
    MULTIPLIER_ONE,
    rpc::{DeviceLease, LeaseRequest, LeaseResponse, LeaseUse, QuotaLease},
};

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
        asked: Vec::new(),
        returned: BTreeSet::new(),
        unheard: BTreeSet::new(),
        unsaid: BTreeSet::new(),
        longer: BTreeSet::new(),
        epoch: 0,
        own: content.is_empty(),
    };
    for _ in 0..40 {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
        world.check(&mut input);
    }
    // Everything that is owed is said.
    world.loans.delivered();
    world.unsaid.clear();
    while world.ask() {}
    if world.own {
        let said = world.in_flight().filter(|(user, _)| *user == NOBODY);
        let said: BTreeSet<_> = said.map(|(_, lease)| lease).collect();
        // One that came after that was said goes back unused, which says the same once more.
        assert!(said.is_superset(&world.unheard));
    }
}

/// Few users, so that they meet often.
const USERS: u64 = 3;

/// Whose a slice is that was never heard of.
const NOBODY: u64 = 0;

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
    /// Requests without an answer.
    asked: Vec<LeaseRequest>,
    /// Leases of which the master knows what came back.
    returned: BTreeSet<u64>,
    /// Leases that were taken back and never came here, as long as the master does not know.
    unheard: BTreeSet<u64>,
    /// Those of them that are not to be said yet.
    unsaid: BTreeSet<u64>,
    /// Users of whom a slice became longer that may have had others behind it.
    longer: BTreeSet<u64>,
    /// The master's; 0: none was heard of.
    epoch: u64,
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
        let user = u64::from(read::<u8>(input)) % USERS + 1;
        match read::<u8>(input) % 14 {
            0..=2 => self.grant(input, user),
            3 => {
                self.total = self.total.saturating_add(number(input));
            }
            4 => {
                let named: Vec<u64> = (0..=read::<u8>(input) % 3)
                    .map(|_| self.number_of(read::<u8>(input) % 32))
                    .collect();
                let held = self.loans.held();
                for lease in &named {
                    self.ends(|(_, it)| it == *lease);
                    if !held.contains(lease) && self.unheard.insert(*lease) {
                        self.unsaid.insert(*lease);
                    }
                }
                self.loans.recall(&named, self.total);
            }
            5 => self.loans.release(user, self.total),
            6 => {
                self.loans.want(user, read::<u8>(input).into());
                self.ask();
            }
            7 => {
                self.loans.set_online(read::<u8>(input) % 2 == 0);
                let ms = u64::from(read::<u16>(input));
                self.loans.advance(ms);
                self.now += ms;
            }
            8 => {
                self.loans = Loans::open(self.folder.path(), self.now).expect("our own file");
                // The master recalls again what it has not heard of.
                self.asked.clear();
                self.unheard.clear();
                self.unsaid.clear();
            }
            9 => {
                self.loans.prune(self.total.min(number(input)));
                // What was forgotten is used no more.
                self.recalled.clear();
            }
            10 => {
                if let Some(request) = self.asked.pop() {
                    self.loans.again(request);
                }
            }
            11 => {
                if let Some(request) = self.asked.pop() {
                    self.loans.released(&request);
                    for want in request.quotas.iter().filter(|want| want.release) {
                        match want.user_id {
                            NOBODY => self.unheard.remove(&want.lease_id),
                            _ => self.returned.insert(want.lease_id),
                        };
                    }
                }
            }
            12 => {
                self.loans.delivered();
                self.unsaid.clear();
            }
            _ => self.restored(1 + u64::from(read::<u8>(input) % 3)),
        }
    }

    /// Leases of a restored master have other numbers.
    fn number_of(&self, lease: u8) -> u64 {
        u64::from(lease) + self.epoch * 64
    }

    /// Notes what was used of leases that end where the counter stands.
    fn ends(&mut self, which: impl Fn((u64, u64)) -> bool) {
        let granted = self.granted.keys().copied();
        for key in granted.filter(|key| which(*key)).collect::<Vec<_>>() {
            let used = self.loans.used(key.0, 0, self.total);
            self.recalled.entry(key).or_insert_with(|| of(&used, key.1));
        }
    }

    /// Hears of the master's epoch.
    fn restored(&mut self, epoch: u64) {
        let was_another = self.epoch != 0 && self.epoch != epoch;
        if was_another {
            self.ends(|_| true);
        }
        let restored = self.loans.enter_epoch(epoch, self.total);
        if self.own {
            assert_eq!(restored, was_another);
        }
        self.epoch = epoch;
        if !restored {
            return;
        }
        self.unheard.clear();
        self.unsaid.clear();
        for user in 1..=USERS {
            assert_eq!(self.loans.allowance(user), 0, "lent by the one before");
            assert_eq!(self.loans.figures(user).3, 0, "places of the one before");
        }
        // What was on its way goes back, and nothing of it is owed.
        for request in self.asked.drain(..) {
            self.loans.again(request);
        }
        self.returned.extend(self.loans.held());
    }

    /// Users and leases of what is on its way back.
    fn in_flight(&self) -> impl Iterator<Item = (u64, u64)> {
        let wants = self.asked.iter().flat_map(|request| &request.quotas);
        wants
            .filter(|want| want.release)
            .map(|want| (want.user_id, want.lease_id))
    }

    /// Sends what there is to ask; returns whether there was something.
    fn ask(&mut self) -> bool {
        let Some(request) = self.loans.request(self.total) else {
            return false;
        };
        let back = request.quotas.iter().filter(|want| want.release);
        let mut nobody = BTreeSet::new();
        for want in back.filter(|_| self.own) {
            let (user, lease) = (want.user_id, want.lease_id);
            let used = want.used_bytes.expect("how much was used");
            let is_known = self.returned.contains(&lease) && user != NOBODY;
            assert!(!is_known, "the master knows what came back of {lease}");
            assert!(!self.in_flight().any(|it| it == (user, lease)), "said twice");
            if user == NOBODY {
                assert_eq!((used, want.remaining_bytes), (0, 0));
                assert!(nobody.insert(lease), "said twice");
                continue;
            }
            let granted = self.granted[&(user, lease)];
            assert!(used + want.remaining_bytes <= granted, "{want:?} of {granted}");
            let whole = self.loans.used(user, 0, u64::MAX);
            assert_eq!(of(&whole, lease), used, "what came back is used");
        }
        if self.own {
            let said: BTreeSet<_> = self.in_flight().filter(|(user, _)| *user == NOBODY).collect();
            let due = self.unheard.difference(&self.unsaid);
            let due = due.filter(|lease| !said.contains(&(NOBODY, **lease)));
            assert_eq!(nobody, due.copied().collect());
        }
        self.asked.push(request);
        true
    }

    fn grant(&mut self, input: &mut Unstructured<'_>, user_id: u64) {
        // A lease is one user's.
        let lease_id = self.number_of(read::<u8>(input) % 8 * USERS as u8 + user_id as u8 - 1);
        let granted_bytes = number(input);
        let seconds = i64::from(read::<u8>(input));
        let expires_at = (seconds != 0).then(|| prost_types::Timestamp { seconds, nanos: 0 });
        let quota = QuotaLease {
            lease_id,
            user_id,
            granted_bytes,
            expires_at,
            billing_multiplier: match number(input) {
                0 => MULTIPLIER_ONE,
                1 => 0,
                other => other,
            },
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
        if self.loans.held().contains(&lease_id) {
            self.longer.insert(user_id);
        } else {
            // It may have been forgotten, and then comes anew.
            self.returned.remove(&lease_id);
        }
        let most = self.granted.entry((user_id, lease_id)).or_default();
        *most = (*most).max(granted_bytes);
        let end = self.loans.allowance(user_id);
        self.loans.grant(&response, self.total);
        self.unsaid.remove(&lease_id);
        if self.unheard.remove(&lease_id) && self.own {
            // It was taken back before it came: of it is only what went over the end of the one before.
            let used = of(&self.loans.used(user_id, 0, u64::MAX), lease_id);
            let is_over = end != 0 && end < self.total;
            assert!(used == 0 || is_over, "used after it was taken back");
            self.recalled.insert((user_id, lease_id), used);
        }
    }

    fn check(&self, input: &mut Unstructured<'_>) {
        for user in 1..=USERS {
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
            if !self.longer.contains(&user) {
                let byte = self.loans.used(user, middle, middle.saturating_add(1));
                assert!(byte.len() <= 1, "byte {middle} comes out of {byte:?}");
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
