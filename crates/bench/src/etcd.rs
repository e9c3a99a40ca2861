//! etcd as a target: the calls of its KV service that are measured.

use bytes::Bytes;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use quorate_bench::Target;
use tokio::time::timeout;

use crate::failover::Leader;

/// How long a member's status is waited for.
const ANSWER: std::time::Duration = std::time::Duration::from_millis(500);

/// `etcdserverpb.PutRequest`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `etcdserverpb.RangeRequest`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bool, tag = "7")]
    serializable: bool,
}

/// `etcdserverpb.RequestOp`, of which only puts are used.
#[derive(Clone, PartialEq, prost::Message)]
struct RequestOp {
    #[prost(message, optional, tag = "2")]
    put: Option<PutRequest>,
}

/// `etcdserverpb.TxnRequest`, without conditions.
#[derive(Clone, PartialEq, prost::Message)]
struct TxnRequest {
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOp>,
}

/// `etcdserverpb.StatusRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

/// `etcdserverpb.ResponseHeader`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

/// `etcdserverpb.StatusResponse`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// An answer whose content is not looked at; what is unknown to prost it skips.
#[derive(Clone, PartialEq, prost::Message)]
struct Ignored {}

/// Connections to an etcd cluster, spread over its members.
pub struct Etcd {
    channels: Vec<Channel>,
    members: usize,
}

impl Etcd {
    /// Opens so many connections.
    pub async fn connect(endpoints: &[String], connections: usize) -> anyhow::Result<Etcd> {
        let mut channels = Vec::new();
        for n in 0..connections {
            let url = format!("http://{}", endpoints[n % endpoints.len()]);
            channels.push(
                Endpoint::from_shared(url)?
                    .tcp_nodelay(true)
                    .connect()
                    .await?,
            );
        }
        Ok(Etcd {
            channels,
            members: endpoints.len(),
        })
    }

    async fn ask<M: prost::Message + 'static, A: prost::Message + Default + 'static>(
        &self,
        client: usize,
        path: &'static str,
        message: M,
    ) -> Result<A, String> {
        let mut grpc = Grpc::new(self.channels[client % self.channels.len()].clone());
        grpc.ready().await.map_err(|e| e.to_string())?;
        let codec = ProstCodec::<M, A>::default();
        let path = PathAndQuery::from_static(path);
        let called = grpc.unary(tonic::Request::new(message), path, codec).await;
        called
            .map(tonic::Response::into_inner)
            .map_err(|status| status.to_string())
    }

    async fn call<M: prost::Message + 'static>(
        &self,
        client: usize,
        path: &'static str,
        message: M,
    ) -> Result<(), String> {
        self.ask::<M, Ignored>(client, path, message)
            .await
            .map(|_| ())
    }
}

impl Leader for Etcd {
    async fn leader(&self) -> Option<usize> {
        let mut leader = None;
        // The first connections go to the members in turn.
        for member in 0..self.members {
            let path = "/etcdserverpb.Maintenance/Status";
            let asked = self.ask::<_, StatusResponse>(member, path, StatusRequest {});
            let status = timeout(ANSWER, asked).await.ok()?.ok()?;
            if status.leader == 0 {
                return None;
            }
            if status.header.is_some_and(|h| h.member_id == status.leader) {
                leader = Some(member);
            }
        }
        leader
    }
}

impl Target for Etcd {
    async fn put(&self, client: usize, key: Bytes, value: Bytes) -> Result<(), String> {
        self.call(client, "/etcdserverpb.KV/Put", PutRequest { key, value })
            .await
    }

    async fn get(&self, client: usize, key: Bytes) -> Result<(), String> {
        let range = RangeRequest {
            key,
            serializable: false,
        };
        self.call(client, "/etcdserverpb.KV/Range", range).await
    }

    async fn stale_get(&self, client: usize, key: Bytes) -> Result<(), String> {
        let range = RangeRequest {
            key,
            serializable: true,
        };
        self.call(client, "/etcdserverpb.KV/Range", range).await
    }

    async fn put_all(&self, client: usize, pairs: Vec<(Bytes, Bytes)>) -> Result<(), String> {
        // A transaction of etcd takes a key once.
        let keys: std::collections::BTreeMap<Bytes, Bytes> = pairs.into_iter().collect();
        let puts = keys.into_iter().map(|(key, value)| RequestOp {
            put: Some(PutRequest { key, value }),
        });
        let success = puts.collect();
        self.call(client, "/etcdserverpb.KV/Txn", TxnRequest { success })
            .await
    }
}
