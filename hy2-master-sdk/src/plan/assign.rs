//! Which nodes serve a user: simple, by region and load.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::domain::{NodeId, RegionId};

/// A node that may be given users.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Which node.
    pub node: NodeId,
    /// Where.
    pub region: Option<RegionId>,
    /// How much of the load it should carry, relative to others; none with 0.
    pub weight: i64,
    /// Users that it serves.
    pub assigned: i64,
    /// Users that it should serve at most.
    pub capacity: Option<i64>,
    /// Whether its control link is up. A silent one still serves, and ranks lower.
    pub reachable: bool,
}

/// A user who needs nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Where the user is.
    pub region: Option<RegionId>,
    /// Nodes that already serve the user.
    pub has: Vec<NodeId>,
    /// Nodes that the user was taken off.
    pub never: Vec<NodeId>,
    /// How many should.
    pub wanted: usize,
    /// The only nodes that may; absent: any.
    pub among: Option<Arc<BTreeSet<NodeId>>>,
}

/// Chooses nodes for a user, best first, and counts them in, so that the next choice sees them.
/// Never chooses a node without weight, full, already serving the user or one that the user was taken off. The first ones come from
/// the user's region; one is kept from elsewhere when there is room for more than one, so that a
/// region that fails does not take the user with it.
pub fn choose(need: &Need, candidates: &mut [Candidate]) -> Vec<(NodeId, f64)> {
    let mut chosen: Vec<(NodeId, f64)> = Vec::new();
    let missing = need.wanted.saturating_sub(need.has.len());
    let has_elsewhere = |chosen: &[(NodeId, f64)], candidates: &[Candidate]| {
        candidates.iter().any(|candidate| {
            candidate.region != need.region
                && (need.has.contains(&candidate.node)
                    || chosen.iter().any(|(node, _)| *node == candidate.node))
        })
    };
    for step in 0..missing {
        let last = step + 1 == missing && need.wanted > 1;
        let spread = last && need.region.is_some() && !has_elsewhere(&chosen, candidates);
        let best = candidates
            .iter()
            .enumerate()
            .filter(|(_, candidate)| {
                candidate.weight > 0
                    && need
                        .among
                        .as_ref()
                        .is_none_or(|among| among.contains(&candidate.node))
                    && candidate
                        .capacity
                        .is_none_or(|capacity| candidate.assigned < capacity)
                    && !need.has.contains(&candidate.node)
                    && !need.never.contains(&candidate.node)
                    && !chosen.iter().any(|(node, _)| *node == candidate.node)
            })
            .map(|(index, candidate)| (index, score(candidate, need.region, spread)))
            .max_by(|(a, a_score), (b, b_score)| {
                a_score
                    .total_cmp(b_score)
                    // Equal ones by number: the same state gives the same choice.
                    .then_with(|| candidates[*b].node.cmp(&candidates[*a].node))
            });
        let Some((index, score)) = best else { break };
        candidates[index].assigned += 1;
        chosen.push((candidates[index].node, score));
    }
    chosen
}

/// Higher is better: the region decides first, then whether the node is reachable, then its load
/// relative to its weight.
fn score(candidate: &Candidate, region: Option<RegionId>, spread: bool) -> f64 {
    let near = region.is_some() && candidate.region == region;
    let load = to_f64(candidate.assigned) / to_f64(candidate.weight);
    let region = if near != spread { 2.0 } else { 0.0 };
    let reachable = if candidate.reachable { 1.0 } else { 0.0 };
    region + reachable + 1.0 / (1.0 + load) * 0.9
}

/// Users and weights are small numbers.
fn to_f64(value: i64) -> f64 {
    f64::from(i32::try_from(value).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: i64, region: i64, assigned: i64) -> Candidate {
        Candidate {
            node: NodeId(id),
            region: Some(RegionId(region)),
            weight: 100,
            assigned,
            capacity: None,
            reachable: true,
        }
    }

    fn ids(chosen: &[(NodeId, f64)]) -> Vec<i64> {
        chosen.iter().map(|(node, _)| node.0).collect()
    }

    #[test]
    fn the_users_region_comes_first_and_the_last_is_elsewhere() {
        let mut nodes = [node(1, 1, 50), node(2, 1, 10), node(3, 2, 0), node(4, 1, 0)];
        let need = Need {
            region: Some(RegionId(1)),
            has: vec![],
            never: vec![],
            wanted: 3,
            among: None,
        };
        assert_eq!(ids(&choose(&need, &mut nodes)), [4, 2, 3]);
    }

    #[test]
    fn full_weightless_and_present_nodes_are_left_out_and_silent_ones_come_last() {
        let mut nodes = [
            node(1, 1, 0),
            node(2, 1, 5),
            node(3, 1, 0),
            node(4, 1, 0),
            node(5, 1, 9),
        ];
        nodes[0].weight = 0;
        nodes[1].capacity = Some(5);
        nodes[3].reachable = false;
        let need = Need {
            region: None,
            has: vec![NodeId(3)],
            never: vec![],
            wanted: 5,
            among: None,
        };
        assert_eq!(ids(&choose(&need, &mut nodes.clone())), [5, 4]);
        let need = Need {
            never: vec![NodeId(5)],
            ..need
        };
        assert_eq!(ids(&choose(&need, &mut nodes)), [4]);
    }

    #[test]
    fn many_users_spread_by_weight() {
        let mut nodes = [node(1, 1, 0), node(2, 1, 0)];
        nodes[1].weight = 300;
        let need = Need {
            region: None,
            has: vec![],
            never: vec![],
            wanted: 1,
            among: None,
        };
        for _ in 0..400 {
            assert_eq!(choose(&need, &mut nodes).len(), 1);
        }
        assert!(
            (nodes[0].assigned - 100).abs() <= 1,
            "{}",
            nodes[0].assigned
        );
        assert_eq!(nodes[0].assigned + nodes[1].assigned, 400);
    }

    #[test]
    fn who_is_kept_to_some_nodes_gets_no_others() {
        let mut nodes = [node(1, 1, 0), node(2, 1, 9), node(3, 2, 9)];
        let mut need = Need {
            region: Some(RegionId(1)),
            has: vec![],
            never: vec![],
            wanted: 3,
            among: Some(Arc::new([NodeId(2), NodeId(3), NodeId(9)].into())),
        };
        assert_eq!(ids(&choose(&need, &mut nodes)), [2, 3]);
        need.among = Some(Arc::default());
        assert!(choose(&need, &mut nodes).is_empty());
    }

    #[test]
    fn who_has_enough_gets_nothing() {
        let mut nodes = [node(1, 1, 0)];
        let need = Need {
            region: None,
            has: vec![NodeId(8), NodeId(9)],
            never: vec![],
            wanted: 2,
            among: None,
        };
        assert!(choose(&need, &mut nodes).is_empty());
    }
}
