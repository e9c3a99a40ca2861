//! `/health`: whether this node serves all that it should. `/live`: whether the process does anything
//! at all.
//!
//! The first is for who sends requests or restarts nodes one by one; it is 503 while a shard lacks a
//! quorum, though nothing is wrong with the process. The second is for who would kill and restart
//! one that hangs, which would not bring a quorum back.

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use quorate_node::Node;
use serde_json::{Value, json};

use super::host::Host;

/// Ready: this server is a node, its replicas run, and their groups have a leader that works.
pub fn health(host: &Host) -> impl IntoResponse + use<> {
    let (code, body) = match host.node() {
        Err(error) => (
            StatusCode::SERVICE_UNAVAILABLE,
            json!({ "status": "waiting", "reason": error.message() }),
        ),
        Ok(node) => of_node(&node),
    };
    (
        code,
        [(CONTENT_TYPE, "application/json")],
        format!("{body}\n"),
    )
}

fn of_node(node: &Node) -> (StatusCode, Value) {
    let status = node.status();
    let (map, id) = (node.map(), status.identity.node);
    let faults = status.faults();
    if faults.is_empty() {
        return (StatusCode::OK, json!({ "status": "ok", "node": id }));
    }
    let faults = faults.iter().map(|fault| {
        let namespace = map
            .shard(fault.shard)
            .and_then(|shard| map.namespace(shard.namespace));
        let mut said = json!({ "shard": fault.shard, "fault": fault.kind.name() });
        if let Some(namespace) = namespace {
            said["namespace"] = namespace.name.as_str().into();
        }
        if !fault.reason.is_empty() {
            said["reason"] = fault.reason.as_str().into();
        }
        said
    });
    let faults: Vec<Value> = faults.collect();
    (
        StatusCode::SERVICE_UNAVAILABLE,
        json!({ "status": "faults", "node": id, "faults": faults }),
    )
}
