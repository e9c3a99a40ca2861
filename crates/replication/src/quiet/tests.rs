//! What pulses say.

use super::*;

fn led(groups: &[(GroupId, &[NodeId])]) -> BTreeMap<GroupId, Vec<NodeId>> {
    let of = |(group, nodes): &(GroupId, &[NodeId])| (*group, nodes.to_vec());
    groups.iter().map(of).collect()
}

#[test]
fn pulses_name_what_is_not_led_any_more_until_that_was_heard() {
    let pulses = Pulses::default();
    let none = Vec::new;
    assert_eq!(pulses.lead(led(&[])), []);
    let both = led(&[(7, &[2, 3]), (8, &[2])]);
    assert_eq!(pulses.lead(both), [(2, none()), (3, none())]);
    // Group 7 woke. Node 3 hears a pulse for that alone.
    let one = || led(&[(8, &[2])]);
    assert_eq!(pulses.lead(one()), [(2, vec![7]), (3, vec![7])]);
    pulses.told(2, &[7]);
    assert_eq!(pulses.lead(one()), [(2, none()), (3, vec![7])]);
    pulses.told(3, &[]);
    assert_eq!(pulses.lead(one()), [(2, none()), (3, vec![7])]);
    pulses.told(3, &[7]);
    assert_eq!(pulses.lead(one()), [(2, none())]);
}

#[test]
fn pulses_do_not_name_what_is_quiet_again_and_name_what_never_was() {
    let pulses = Pulses::default();
    pulses.not_led(7, &[2, 3]);
    assert_eq!(pulses.lead(led(&[])), [(2, vec![7]), (3, vec![7])]);
    let again = led(&[(7, &[2, 3])]);
    assert_eq!(pulses.lead(again), [(2, Vec::new()), (3, Vec::new())]);
}
