//! First placement: which nodes get the replicas of new shards.
//!
//! Greedy and deterministic: each shard takes the nodes that hold the fewest replicas, and makes
//! the one of them that is first in the fewest shards its first replica, the preferred leader.

use std::collections::BTreeMap;

use crate::{Error, NodeId, Result};

/// What a node already holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeLoad {
    /// Replicas on it.
    pub replicas: u64,
    /// Those of them that are their shard's first.
    pub firsts: u64,
}

/// Places `shards` shards of `replicas` replicas on empty nodes: for each shard its nodes, the
/// preferred leader first.
///
/// # Errors
/// [`Error::InvalidArgument`] if there are fewer nodes than replicas, or no replicas.
pub fn place(nodes: &[NodeId], shards: usize, replicas: usize) -> Result<Vec<Vec<NodeId>>> {
    let loads = nodes.iter().map(|n| (*n, NodeLoad::default())).collect();
    place_with_loads(loads, shards, replicas)
}

/// Like [`place`], on nodes that hold something already.
///
/// # Errors
/// [`Error::InvalidArgument`] if there are fewer nodes than replicas, or no replicas.
pub fn place_with_loads(
    mut loads: BTreeMap<NodeId, NodeLoad>,
    shards: usize,
    replicas: usize,
) -> Result<Vec<Vec<NodeId>>> {
    if replicas == 0 {
        return Err(Error::InvalidArgument(
            "a shard has at least one replica".into(),
        ));
    }
    if loads.len() < replicas {
        return Err(Error::InvalidArgument(format!(
            "{replicas} replicas need {replicas} nodes, and there are {}",
            loads.len()
        )));
    }
    let mut order: Vec<NodeId> = loads.keys().copied().collect();
    let mut placed = Vec::with_capacity(shards);
    for _ in 0..shards {
        // Rotating breaks ties differently each time, so that the same nodes do not always pair.
        order.rotate_left(1);
        let mut chosen = order.clone();
        chosen.sort_by_key(|n| (loads[n].replicas, loads[n].firsts));
        chosen.truncate(replicas);
        let first = (0..replicas)
            .min_by_key(|i| loads[&chosen[*i]].firsts)
            .unwrap_or_default();
        chosen.swap(0, first);
        for (i, node) in chosen.iter().enumerate() {
            let load = loads.entry(*node).or_default();
            load.replicas += 1;
            load.firsts += u64::from(i == 0);
        }
        placed.push(chosen);
    }
    even_out_firsts(&mut placed, &mut loads);
    Ok(placed)
}

/// Swaps first replicas inside shards for as long as that takes load from a node that is first
/// more often than another one of the shard. Each swap lowers the sum of squares, so it ends.
fn even_out_firsts(placed: &mut [Vec<NodeId>], loads: &mut BTreeMap<NodeId, NodeLoad>) {
    let mut changed = true;
    while changed {
        changed = false;
        for nodes in placed.iter_mut() {
            let least = (0..nodes.len())
                .min_by_key(|i| loads[&nodes[*i]].firsts)
                .unwrap_or_default();
            if loads[&nodes[0]].firsts > loads[&nodes[least]].firsts + 1 {
                loads.entry(nodes[0]).or_default().firsts -= 1;
                loads.entry(nodes[least]).or_default().firsts += 1;
                nodes.swap(0, least);
                changed = true;
            }
        }
    }
}
