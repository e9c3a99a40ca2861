//! Nodes in three cities: nobody is elected without need, and soon when there is need.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_env::Random;
use quorate_replication::Timing;
use quorate_sharding::{COORDINATOR_GROUP, NodeId};

use crate::cluster::Cluster;
use crate::switches::Board;
use crate::trace::Trace;

/// How long a message takes between two of the nodes, in microseconds.
const APART_US: [(NodeId, NodeId, u64); 3] = [(1, 2, 15_000), (1, 3, 40_000), (2, 3, 75_000)];
const NODES: [NodeId; 3] = [1, 2, 3];

/// All links as they are, those of one city so much slower.
fn links(cluster: &Cluster, slow: Option<(NodeId, u64)>) {
    for (a, b, apart_us) in APART_US {
        let more_us = slow.map_or(0, |(city, by_us)| match city == a || city == b {
            true => by_us,
            false => 0,
        });
        cluster.network.clog(a, b, apart_us + more_us);
        cluster.network.clog(b, a, apart_us + more_us);
    }
}

fn run_for(cluster: &mut Cluster, time: Duration) {
    let end_us = cluster.now_us + time.as_micros() as u64;
    while cluster.now_us < end_us {
        cluster.step().expect("nothing is violated");
    }
}

/// Three cities that have known each other for a while.
fn cities(timing: Timing) -> Cluster {
    let random = Random::from_seed(7);
    let board = Board::install(Random::from_seed(random.next_u64()), &[]);
    let mut cluster = Cluster::new(3, random, board, Trace::default());
    cluster.sizes.timing = timing;
    cluster.sizes.quiet_after_ms = 0;
    links(&cluster, None);
    cluster.set_up(0).expect("is set up");
    let whole = cluster.step_until("three voters each", Duration::from_secs(60), |cluster| {
        cluster.all_have_three_voters()
    });
    whole.expect("all groups have three voters");
    run_for(&mut cluster, Duration::from_secs(30));
    cluster
}

fn groups(cluster: &Cluster) -> Vec<u64> {
    let mut groups = cluster.shards();
    groups.push(COORDINATOR_GROUP);
    groups
}

/// The term of each group, as its newest leader knows.
fn terms(cluster: &Cluster) -> BTreeMap<u64, u64> {
    let term = |group: &u64| {
        let lives = cluster.hosts.values().filter_map(|host| host.life.as_ref());
        let replicas = lives.filter_map(|life| life.node.group(*group));
        let newest = replicas.map(|replica| replica.status().term).max();
        (*group, newest.unwrap_or(0))
    };
    groups(cluster).iter().map(term).collect()
}

/// Two minutes in which a city's packets are lost once in a while and sent again: all that is on its links is late by
/// 300 to 500 ms. How many elections there were.
fn elections_in_bad_weather(cluster: &mut Cluster) -> u64 {
    let before = terms(cluster);
    for storm in 0..40 {
        links(
            cluster,
            Some((NODES[storm % 3], 300_000 + storm as u64 * 5_000)),
        );
        run_for(cluster, Duration::from_millis(300));
        links(cluster, None);
        run_for(cluster, Duration::from_millis(2_700));
    }
    let after = terms(cluster);
    after.iter().map(|(group, term)| term - before[group]).sum()
}

#[test]
fn cities_far_apart_elect_nobody_without_need_and_follow_one_that_is_cut_off() {
    let mut cluster = cities(Timing::FAR);
    assert_eq!(elections_in_bad_weather(&mut cluster), 0);
    let lost = cluster.leads(COORDINATOR_GROUP).expect("is led");
    let others = NODES.into_iter().filter(|node| *node != lost);
    for other in others.clone() {
        cluster.network.cut(lost, other);
        cluster.network.cut(other, lost);
    }
    let followed = cluster.step_until("others lead all", Duration::from_secs(5), |cluster| {
        let leads = |node: NodeId, group: &u64| {
            let life = cluster.hosts[&node].life.as_ref();
            let group = life.and_then(|life| life.node.group(*group));
            group.is_some_and(|group| group.is_leader())
        };
        let is_led = |group: &u64| others.clone().any(|node| leads(node, group));
        groups(cluster).iter().all(is_led)
    });
    followed.expect("the others lead");
    // The same weather does depose leaders whose times are for one building.
    let mut near = cities(Timing::FAST);
    assert!(elections_in_bad_weather(&mut near) > 0);
}
