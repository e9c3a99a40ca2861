//! etcd as a target: the two calls of its KV service that are measured.

use bytes::Bytes;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use quorate_bench::Target;

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

/// An answer whose content is not looked at; what is unknown to prost it skips.
#[derive(Clone, PartialEq, prost::Message)]
struct Ignored {}

/// Connections to an etcd cluster, spread over its members.
pub struct Etcd {
    channels: Vec<Channel>,
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
        Ok(Etcd { channels })
    }

    async fn call<M: prost::Message + 'static>(
        &self,
        client: usize,
        path: &'static str,
        message: M,
    ) -> Result<(), String> {
        let mut grpc = Grpc::new(self.channels[client % self.channels.len()].clone());
        grpc.ready().await.map_err(|e| e.to_string())?;
        let codec = ProstCodec::<M, Ignored>::default();
        let path = PathAndQuery::from_static(path);
        let called = grpc.unary(tonic::Request::new(message), path, codec).await;
        called.map(|_| ()).map_err(|status| status.to_string())
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
}
