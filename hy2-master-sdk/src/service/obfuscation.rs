//! Clients use the obfuscation they know until they fetch their subscriptions anew: a node that gets another one
//! accepts for a day the one it had, whichever scope brings the change. What follows belongs to the transaction
//! that changes a body or a region, under the lock of configurations.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::ServiceError;
use crate::domain::config::{self, ObfsBody};
use crate::domain::{ConfigScope, NodeId, RegionId, Timestamp};
use crate::secrets::{OpenError, Vault};
use crate::store::{Tx, config_list};

/// For how long an obfuscation is accepted beside the one that follows it: by then clients have
/// fetched their subscriptions.
const KEPT: Duration = Duration::from_secs(86_400);

/// Where a body is in force.
pub(super) type Place = (ConfigScope, i64);

/// Where the bodies of all nodes are in force.
pub(super) const FLEET: Place = (ConfigScope::Fleet, 0);

/// Returns whose bodies a node runs with, the most general first.
pub(super) fn places(node: NodeId, region: Option<RegionId>) -> Vec<Place> {
    let region = region.map(|region| (ConfigScope::Region, region.0));
    let node = Some((ConfigScope::Node, node.0));
    [Some(FLEET), region, node].into_iter().flatten().collect()
}

/// Bodies, as they are in force or would be.
#[derive(Debug, Clone, Default)]
pub(super) struct Bodies(HashMap<Place, Value>);

impl Bodies {
    /// Reads the newest body of every place that is not read yet.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub(super) async fn load(&mut self, tx: &mut Tx, places: &[Place]) -> Result<(), ServiceError> {
        for &(scope, id) in places {
            if self.0.contains_key(&(scope, id)) {
                continue;
            }
            let newest = config_list::newest(tx, scope, id).await?;
            let body = newest.map_or_else(|| json!({}), |row| row.body.0);
            self.0.insert((scope, id), body);
        }
        Ok(())
    }

    pub(super) fn put(&mut self, at: Place, body: Value) {
        self.0.insert(at, body);
    }

    pub(super) fn of(&self, at: Place) -> Value {
        self.0.get(&at).cloned().unwrap_or_else(|| json!({}))
    }

    pub(super) fn merged(&self, places: &[Place]) -> Value {
        let mut merged = json!({});
        for body in places.iter().filter_map(|place| self.0.get(place)) {
            config::merge(&mut merged, body);
        }
        merged
    }
}

/// Why an obfuscation is not kept.
#[derive(Debug)]
pub(super) enum KeepError {
    /// Until then the node accepts one from before the last change, and a third one it cannot accept.
    Taken(Timestamp),
    /// A password does not open.
    Open(OpenError),
}

/// What a merged body says of obfuscation.
struct View {
    obfs: Obfs,
    previous: Option<(Obfs, i64)>,
}

/// An obfuscation as it is stored and as it can be compared; plain is null.
#[derive(Clone)]
struct Obfs {
    stored: Value,
    plain: Value,
}

impl Obfs {
    fn new(vault: &Vault, stored: Option<&Value>) -> Result<Self, KeepError> {
        let stored = stored.cloned().unwrap_or_default();
        let mut plain = stored.clone();
        config::open(vault, &mut plain).map_err(KeepError::Open)?;
        // With the defaults filled in, so that what is the same is equal.
        if let Ok(Some(read)) = serde_json::from_value::<Option<ObfsBody>>(plain.clone()) {
            plain = serde_json::to_value(read).unwrap_or(plain);
        }
        Ok(Self { stored, plain })
    }

    fn is(&self, other: &Self) -> bool {
        self.plain == other.plain
    }
}

impl View {
    fn new(vault: &Vault, merged: &Value) -> Result<Self, KeepError> {
        let previous = match merged.get("previous_obfs") {
            Some(window) => window["until"]
                .as_i64()
                .map(|until| Ok((Obfs::new(vault, window.get("obfs"))?, until)))
                .transpose()?,
            None => None,
        };
        Ok(Self {
            obfs: Obfs::new(vault, merged.get("obfs"))?,
            previous,
        })
    }

    fn open_at(&self, now: Timestamp) -> Option<(Obfs, i64)> {
        self.previous.clone().filter(|(_, until)| *until > now.0)
    }

    /// Tells whether `obfs` is accepted until `until`.
    fn accepts(&self, obfs: &Obfs, until: i64) -> bool {
        let kept = self.previous.as_ref();
        kept.is_some_and(|(kept, end)| kept.is(obfs) && *end >= until)
    }
}

/// Sees to it that whoever runs with `after` of `places` accepts what it accepted with `before`, by a `previous_obfs`
/// in the most specific body of `after`, where one is needed. Returns whether that body is another one then.
///
/// `said` is what the change itself says of `previous_obfs`: it counts, whatever was accepted before.
///
/// # Errors
///
/// [`KeepError::Taken`] of nodes only: nobody runs with the bodies of a fleet or a region alone.
pub(super) fn keep(
    vault: &Vault,
    now: Timestamp,
    (before, old_places): (&Bodies, &[Place]),
    (after, places): (&mut Bodies, &[Place]),
    said: Option<&Value>,
) -> Result<bool, KeepError> {
    let Some(&last) = places.last() else {
        return Ok(false);
    };
    let had = View::new(vault, &before.merged(old_places))?;
    let has = View::new(vault, &after.merged(places))?;
    let wanted = match (has.obfs.is(&had.obfs), said) {
        (true, None) => had.open_at(now),
        (true, Some(_)) => None,
        (false, Some(window)) => {
            let window = json!({"previous_obfs": window});
            View::new(vault, &window)?.open_at(now)
        }
        (false, None) => {
            if let Some((open, until)) = had.open_at(now)
                && last.0 == ConfigScope::Node
                && !open.is(&has.obfs)
                && !open.is(&had.obfs)
            {
                return Err(KeepError::Taken(Timestamp(until)));
            }
            Some((had.obfs, now.plus(KEPT).0))
        }
    };
    let Some((obfs, until)) = wanted.filter(|(obfs, until)| !has.accepts(obfs, *until)) else {
        return Ok(false);
    };
    // A window of its own that is over may hide the one that is needed.
    let mut own = after.of(last);
    if let Some(fields) = own.as_object_mut() {
        fields.remove("previous_obfs");
    }
    after.put(last, own.clone());
    if !View::new(vault, &after.merged(places))?.accepts(&obfs, until) {
        // Plain is said as such, for whoever reads it.
        own["previous_obfs"] = json!({"obfs": obfs.stored, "until": until});
        after.put(last, own);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::MasterKeys;

    const NOW: Timestamp = Timestamp(1_000_000);
    const DAY: i64 = 1_000_000 + 86_400_000;
    const NODE: Place = (ConfigScope::Node, 7);

    fn obfs(letter: char) -> Value {
        json!({"salamander": {"password": letter.to_string().repeat(16)}})
    }

    fn window(letter: char, until: i64) -> Value {
        json!({"obfs": obfs(letter), "until": until})
    }

    /// Changes the fleet's body and returns the node's, if it has to be another one.
    fn change(
        fleet: [Value; 2],
        node: Value,
        said: Option<Value>,
    ) -> Result<Option<Value>, KeepError> {
        let vault = Vault::new(MasterKeys::generate().unwrap());
        let places = [FLEET, NODE];
        let [old, new] = fleet;
        let mut before = Bodies::default();
        before.put(FLEET, old);
        before.put(NODE, node);
        let mut after = before.clone();
        after.put(FLEET, new);
        let both = (&mut after, places.as_slice());
        let is_other = keep(&vault, NOW, (&before, &places), both, said.as_ref())?;
        Ok(is_other.then(|| after.of(NODE)))
    }

    #[test]
    fn a_window_of_the_node_that_is_over_does_not_hide_the_one_of_the_fleet() {
        let fleet = [
            json!({"obfs": obfs('a')}),
            json!({"obfs": obfs('b'), "previous_obfs": window('a', DAY)}),
        ];
        for over in [window('x', 1), Value::Null] {
            let node = json!({"speed_test": true, "previous_obfs": over});
            let own = change(fleet.clone(), node, None).unwrap();
            assert_eq!(own, Some(json!({"speed_test": true})));
        }
        assert_eq!(change(fleet, json!({}), None).unwrap(), None);
    }

    #[test]
    fn what_the_change_says_reaches_the_nodes_whatever_they_accepted() {
        let node = json!({"previous_obfs": window('x', DAY)});
        let fleet = |said: &Value| {
            let new = json!({"obfs": obfs('b'), "previous_obfs": said});
            [json!({"obfs": obfs('a')}), new]
        };
        let said = window('a', DAY + 5);
        let own = change(fleet(&said), node.clone(), Some(said)).unwrap();
        assert_eq!(own, Some(json!({})));
        let refused = change(fleet(&Value::Null), node.clone(), None);
        assert!(matches!(refused, Err(KeepError::Taken(Timestamp(DAY)))));
        let none = change(fleet(&Value::Null), node, Some(Value::Null)).unwrap();
        assert_eq!(none, None);
    }

    #[test]
    fn an_open_window_stays_and_a_change_back_keeps_both() {
        let open = json!({"obfs": obfs('a'), "previous_obfs": window('x', DAY - 5)});
        // The fleet's body loses it, and the node does not.
        let own = change([open.clone(), json!({"obfs": obfs('a')})], json!({}), None);
        let kept = json!({"previous_obfs": window('x', DAY - 5)});
        assert_eq!(own.unwrap(), Some(kept));
        let back = change([open, json!({"obfs": obfs('x')})], json!({}), None);
        let kept = json!({"previous_obfs": window('a', DAY)});
        assert_eq!(back.unwrap(), Some(kept));
    }

    #[test]
    fn a_size_that_is_the_default_is_no_other_obfuscation() {
        let gecko = json!({"gecko": {"password": "b-password-of-16"}});
        let mut same = gecko.clone();
        same["gecko"]["min_packet_size"] = json!(0);
        let open = |obfs: Value| json!({"obfs": obfs, "previous_obfs": window('x', DAY)});
        let own = change([open(gecko), open(same)], json!({}), None).unwrap();
        assert_eq!(own, None);
    }
}
