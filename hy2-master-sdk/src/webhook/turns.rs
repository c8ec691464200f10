//! Who is sent to next. No I/O.
//!
//! Webhooks take turns: whoever has the least under way comes first, so a receiver that hangs keeps
//! its own share of the slots and no more. One whose last tries all failed is probed, one delivery at
//! a time, when nobody else waits; all that are probed together have a part of the slots.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

/// Deliveries under way at once, of all webhooks.
pub(super) const AT_ONCE: usize = 32;

/// Deliveries of one webhook under way at once.
pub(super) const OF_ONE: usize = 4;

/// Probes under way at once.
const PROBES: usize = 8;

/// So many tries that failed, one after the other, make a webhook one that is probed.
const FAILING: u32 = 3;

#[derive(Debug, Default)]
struct Standing {
    under_way: usize,
    failures: u32,
    last_turn: u64,
}

impl Standing {
    fn fails(&self) -> bool {
        self.failures >= FAILING
    }
}

/// What is under way, and who failed of late. Of this master alone: another one has its own, and a
/// start begins with trust in everybody.
#[derive(Debug, Default)]
pub(super) struct Turns {
    hooks: HashMap<Uuid, Standing>,
    turn: u64,
}

impl Turns {
    /// Returns how many deliveries each of the webhooks that have some due may send now.
    pub(super) fn share(&mut self, due: &[Uuid]) -> Vec<(Uuid, i64)> {
        let under_way = |of: &Standing| of.under_way;
        let mut free = AT_ONCE.saturating_sub(self.hooks.values().map(under_way).sum());
        let probes: usize = self
            .hooks
            .values()
            .filter(|of| of.fails())
            .map(under_way)
            .sum();
        let mut probes = PROBES.saturating_sub(probes);
        let mut given = HashMap::<Uuid, usize>::new();
        while free > 0 {
            let next = due
                .iter()
                .filter_map(|hook| {
                    let of = self.hooks.entry(*hook).or_default();
                    let busy = of.under_way + given.get(hook).copied().unwrap_or(0);
                    let room = match of.fails() {
                        true => busy < 1 && probes > 0,
                        false => busy < OF_ONE,
                    };
                    room.then_some(((of.fails(), busy, of.last_turn), *hook))
                })
                .min();
            let Some(((is_probe, ..), hook)) = next else {
                break;
            };
            self.turn += 1;
            self.hooks.entry(hook).or_default().last_turn = self.turn;
            *given.entry(hook).or_default() += 1;
            free -= 1;
            probes -= usize::from(is_probe);
        }
        given
            .into_iter()
            .map(|(hook, count)| (hook, i64::try_from(count).unwrap_or(i64::MAX)))
            .collect()
    }

    /// Notes that a delivery is under way.
    pub(super) fn begin(&mut self, hook: Uuid) {
        self.hooks.entry(hook).or_default().under_way += 1;
    }

    /// Notes that a delivery is over: the receiver took it, did not, or was not asked.
    pub(super) fn end(&mut self, hook: Uuid, taken: Option<bool>) {
        let of = self.hooks.entry(hook).or_default();
        of.under_way = of.under_way.saturating_sub(1);
        match taken {
            Some(true) => of.failures = 0,
            Some(false) => of.failures = of.failures.saturating_add(1),
            None => {}
        }
    }

    /// Forgets webhooks that are gone and have nothing under way.
    pub(super) fn keep(&mut self, known: &HashSet<Uuid>) {
        self.hooks
            .retain(|hook, of| of.under_way > 0 || known.contains(hook));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn begin(turns: &mut Turns, due: &[Uuid]) -> HashMap<Uuid, i64> {
        let shares: HashMap<_, _> = turns.share(due).into_iter().collect();
        for (hook, count) in &shares {
            (0..*count).for_each(|_| turns.begin(*hook));
        }
        shares
    }

    #[test]
    fn one_has_a_few_under_way_and_what_is_over_makes_room_at_once() {
        let mut turns = Turns::default();
        let (a, b) = (hook(1), hook(2));
        assert_eq!(begin(&mut turns, &[a]), [(a, 4)].into());
        assert_eq!(begin(&mut turns, &[a, b]), [(b, 4)].into());
        turns.end(b, Some(true));
        assert_eq!(begin(&mut turns, &[a, b]), [(b, 1)].into());
    }

    #[test]
    fn who_fails_is_probed_one_at_a_time_until_it_takes_one() {
        let mut turns = Turns::default();
        let a = hook(1);
        begin(&mut turns, &[a]);
        for _ in 0..OF_ONE {
            assert!(begin(&mut turns, &[a]).values().sum::<i64>() <= 1);
            turns.end(a, Some(false));
        }
        assert_eq!(
            begin(&mut turns, &[a]).len(),
            0,
            "what began before is a probe"
        );
        while turns.hooks[&a].under_way > 0 {
            turns.end(a, None);
        }
        assert_eq!(begin(&mut turns, &[a]), [(a, 1)].into());
        assert_eq!(begin(&mut turns, &[a]), [].into());
        turns.end(a, Some(true));
        assert_eq!(begin(&mut turns, &[a]), [(a, 4)].into());
    }

    #[test]
    fn however_many_fail_the_others_have_slots_and_turns() {
        let mut turns = Turns::default();
        let all: Vec<_> = (0..100).map(hook).collect();
        for hook in &all[..90] {
            (0..FAILING).for_each(|_| turns.end(*hook, Some(false)));
        }
        let shares = begin(&mut turns, &all);
        let of = |part: &[Uuid]| -> i64 { part.iter().filter_map(|hook| shares.get(hook)).sum() };
        assert_eq!((of(&all[..90]), of(&all[90..])), (0, 32));
        assert!(all[90..].iter().all(|hook| shares[hook] >= 3), "in turn");
        // With room to spare they are probed, each in its turn.
        for hook in &all[90..] {
            (0..shares[hook]).for_each(|_| turns.end(*hook, Some(true)));
        }
        let mut probed = HashSet::new();
        for _ in 0..12 {
            let shares = begin(&mut turns, &all[..90]);
            assert!(shares.len() <= PROBES && shares.values().all(|count| *count == 1));
            for hook in shares.keys() {
                turns.end(*hook, Some(false));
                probed.insert(*hook);
            }
        }
        assert_eq!(probed.len(), 90);
        turns.keep(&HashSet::new());
        assert!(turns.hooks.is_empty());
    }
}
