//! Generated from `proto/` by `cargo xtask codegen`: do not edit.
#![allow(missing_docs, clippy::all)]

#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct ShardEpoch {
    #[prost(uint64, tag = "1")]
    pub range: u64,
    #[prost(uint64, tag = "2")]
    pub members: u64,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Replica {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(uint64, tag = "2")]
    pub node: u64,
}
/// A range of encoded keys; an empty end is no end.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Shard {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(uint32, tag = "2")]
    pub namespace: u32,
    #[prost(bytes = "bytes", tag = "3")]
    pub start: ::prost::bytes::Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub end: ::prost::bytes::Bytes,
    #[prost(message, optional, tag = "5")]
    pub epoch: ::core::option::Option<ShardEpoch>,
    #[prost(message, repeated, tag = "6")]
    pub replicas: ::prost::alloc::vec::Vec<Replica>,
    /// On their way out: the group may still count on them.
    #[prost(message, repeated, tag = "7")]
    pub leaving: ::prost::alloc::vec::Vec<Replica>,
    /// The members version that the group is known to have taken on.
    #[prost(uint64, tag = "8")]
    pub settled: u64,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Layout {
    #[prost(enumeration = "NamespaceKind", tag = "1")]
    pub kind: i32,
    #[prost(enumeration = "EncodingKind", tag = "2")]
    pub encoding: i32,
    /// One byte, with ENCODING_KIND_HASHED_UNTIL.
    #[prost(uint32, tag = "3")]
    pub delimiter: u32,
}
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Namespace {
    #[prost(uint32, tag = "1")]
    pub id: u32,
    #[prost(string, tag = "2")]
    pub name: ::prost::alloc::string::String,
    #[prost(message, optional, tag = "3")]
    pub layout: ::core::option::Option<Layout>,
    #[prost(uint32, tag = "4")]
    pub replicas: u32,
    #[prost(uint32, tag = "5")]
    pub incarnation: u32,
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct NodeInfo {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub address: ::prost::alloc::string::String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: ::prost::alloc::collections::BTreeMap<
        ::prost::alloc::string::String,
        ::prost::alloc::string::String,
    >,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct NextIds {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(uint64, tag = "2")]
    pub shard: u64,
    #[prost(uint64, tag = "3")]
    pub replica: u64,
    #[prost(uint32, tag = "4")]
    pub namespace: u32,
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct ShardMap {
    /// 16 bytes, big-endian.
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster: ::prost::bytes::Bytes,
    #[prost(uint64, tag = "2")]
    pub version: u64,
    #[prost(message, optional, tag = "3")]
    pub next: ::core::option::Option<NextIds>,
    #[prost(message, repeated, tag = "4")]
    pub nodes: ::prost::alloc::vec::Vec<NodeInfo>,
    #[prost(message, repeated, tag = "5")]
    pub namespaces: ::prost::alloc::vec::Vec<Namespace>,
    #[prost(message, repeated, tag = "6")]
    pub shards: ::prost::alloc::vec::Vec<Shard>,
}
/// Where to go instead.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Redirect {
    /// Shards as they are now, where the client's were old.
    #[prost(message, repeated, tag = "1")]
    pub shards: ::prost::alloc::vec::Vec<Shard>,
    /// The leader's node; 0: not known.
    #[prost(uint64, tag = "2")]
    pub leader: u64,
}
/// An error. In a status it is its details, in a response its result.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Error {
    /// 1 invalid argument, 2 too large, 3 unknown namespace, 4 already exists, 5 cross shard,
    /// 6 wrong domain, 7 unsupported, 8 wrong epoch, 9 not leader, 10 no quorum,
    /// 11 deadline exceeded, 12 overloaded, 13 disk full, 14 unavailable, 15 corruption, 16 internal.
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    /// What is known of a write: 0 not applied, 1 applied, 2 unknown.
    #[prost(uint32, tag = "2")]
    pub outcome: u32,
    /// 0: no hint.
    #[prost(uint32, tag = "3")]
    pub retry_after_ms: u32,
    #[prost(string, tag = "4")]
    pub message: ::prost::alloc::string::String,
    #[prost(message, optional, tag = "5")]
    pub redirect: ::core::option::Option<Redirect>,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
#[repr(i32)]
pub enum NamespaceKind {
    Unspecified = 0,
    Compact = 1,
    Wide = 2,
}
impl NamespaceKind {
    /// String value of the enum field names used in the ProtoBuf definition.
    ///
    /// The values are not transformed in any way and thus are considered stable
    /// (if the ProtoBuf definition does not change) and safe for programmatic use.
    pub fn as_str_name(&self) -> &'static str {
        match self {
            Self::Unspecified => "NAMESPACE_KIND_UNSPECIFIED",
            Self::Compact => "NAMESPACE_KIND_COMPACT",
            Self::Wide => "NAMESPACE_KIND_WIDE",
        }
    }
    /// Creates an enum from field names used in the ProtoBuf definition.
    pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
        match value {
            "NAMESPACE_KIND_UNSPECIFIED" => Some(Self::Unspecified),
            "NAMESPACE_KIND_COMPACT" => Some(Self::Compact),
            "NAMESPACE_KIND_WIDE" => Some(Self::Wide),
            _ => None,
        }
    }
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
#[repr(i32)]
pub enum EncodingKind {
    Ordered = 0,
    /// Hashed by the whole key.
    Hashed = 1,
    /// Hashed by what stands before the delimiter.
    HashedUntil = 2,
}
impl EncodingKind {
    /// String value of the enum field names used in the ProtoBuf definition.
    ///
    /// The values are not transformed in any way and thus are considered stable
    /// (if the ProtoBuf definition does not change) and safe for programmatic use.
    pub fn as_str_name(&self) -> &'static str {
        match self {
            Self::Ordered => "ENCODING_KIND_ORDERED",
            Self::Hashed => "ENCODING_KIND_HASHED",
            Self::HashedUntil => "ENCODING_KIND_HASHED_UNTIL",
        }
    }
    /// Creates an enum from field names used in the ProtoBuf definition.
    pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
        match value {
            "ENCODING_KIND_ORDERED" => Some(Self::Ordered),
            "ENCODING_KIND_HASHED" => Some(Self::Hashed),
            "ENCODING_KIND_HASHED_UNTIL" => Some(Self::HashedUntil),
            _ => None,
        }
    }
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct RequestFrame {
    #[prost(message, repeated, tag = "1")]
    pub requests: ::prost::alloc::vec::Vec<Request>,
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct ResponseFrame {
    #[prost(message, repeated, tag = "1")]
    pub responses: ::prost::alloc::vec::Vec<Response>,
}
/// One operation, routed to one shard.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Request {
    #[prost(uint64, tag = "1")]
    pub request_id: u64,
    #[prost(uint32, tag = "2")]
    pub namespace: u32,
    #[prost(uint64, tag = "3")]
    pub shard: u64,
    /// The state of the shard that the client assumed.
    #[prost(message, optional, tag = "4")]
    pub epoch: ::core::option::Option<ShardEpoch>,
    /// (client, sequence) names a write; zero for a read.
    #[prost(uint64, tag = "5")]
    pub client_id: u64,
    #[prost(uint64, tag = "6")]
    pub sequence: u64,
    /// Time left, never a wall-clock deadline.
    #[prost(uint32, tag = "7")]
    pub timeout_ms: u32,
    /// W3C traceparent; empty: none.
    #[prost(string, tag = "8")]
    pub trace_context: ::prost::alloc::string::String,
    #[prost(oneof = "request::Operation", tags = "16, 17, 18, 19, 20, 21")]
    pub operation: ::core::option::Option<request::Operation>,
}
/// Nested message and enum types in `Request`.
pub mod request {
    #[derive(Clone, PartialEq, ::prost::Oneof)]
    pub enum Operation {
        #[prost(message, tag = "16")]
        Get(super::Get),
        #[prost(message, tag = "17")]
        Put(super::Put),
        #[prost(message, tag = "18")]
        Delete(super::Delete),
        #[prost(message, tag = "19")]
        Batch(super::Batch),
        #[prost(message, tag = "20")]
        Compare(super::Compare),
        #[prost(message, tag = "21")]
        Scan(super::Scan),
    }
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Condition {
    #[prost(enumeration = "ConditionKind", tag = "1")]
    pub kind: i32,
    /// With CONDITION_KIND_VERSION.
    #[prost(uint64, tag = "2")]
    pub version: u64,
}
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Get {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: ::prost::bytes::Bytes,
    #[prost(enumeration = "ReadLevel", tag = "2")]
    pub level: i32,
    /// With READ_LEVEL_AT_LEAST.
    #[prost(bytes = "bytes", tag = "3")]
    pub token: ::prost::bytes::Bytes,
}
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Put {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: ::prost::bytes::Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: ::prost::bytes::Bytes,
    #[prost(message, optional, tag = "3")]
    pub condition: ::core::option::Option<Condition>,
}
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Delete {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: ::prost::bytes::Bytes,
    #[prost(message, optional, tag = "2")]
    pub condition: ::core::option::Option<Condition>,
}
/// A put, or with `delete` a removal.
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Mutation {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: ::prost::bytes::Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: ::prost::bytes::Bytes,
    #[prost(bool, tag = "3")]
    pub delete: bool,
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Batch {
    #[prost(message, repeated, tag = "1")]
    pub mutations: ::prost::alloc::vec::Vec<Mutation>,
}
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct KeyCondition {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: ::prost::bytes::Bytes,
    #[prost(message, optional, tag = "2")]
    pub condition: ::core::option::Option<Condition>,
}
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Op {
    #[prost(oneof = "op::Op", tags = "1, 2")]
    pub op: ::core::option::Option<op::Op>,
}
/// Nested message and enum types in `Op`.
pub mod op {
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Oneof)]
    pub enum Op {
        #[prost(bytes, tag = "1")]
        Get(::prost::bytes::Bytes),
        #[prost(message, tag = "2")]
        Mutate(super::Mutation),
    }
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Compare {
    #[prost(message, repeated, tag = "1")]
    pub conditions: ::prost::alloc::vec::Vec<KeyCondition>,
    #[prost(message, repeated, tag = "2")]
    pub then_ops: ::prost::alloc::vec::Vec<Op>,
    #[prost(message, repeated, tag = "3")]
    pub else_ops: ::prost::alloc::vec::Vec<Op>,
}
/// Bounds are encoded keys.
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Scan {
    #[prost(bytes = "bytes", tag = "1")]
    pub start: ::prost::bytes::Bytes,
    /// Exclusive; empty: to the end.
    #[prost(bytes = "bytes", tag = "2")]
    pub end: ::prost::bytes::Bytes,
    #[prost(uint32, tag = "3")]
    pub limit: u32,
    #[prost(uint32, tag = "4")]
    pub limit_bytes: u32,
    #[prost(bool, tag = "5")]
    pub reverse: bool,
    #[prost(enumeration = "ReadLevel", tag = "6")]
    pub level: i32,
    #[prost(bytes = "bytes", tag = "7")]
    pub token: ::prost::bytes::Bytes,
}
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Entry {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: ::prost::bytes::Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: ::prost::bytes::Bytes,
    #[prost(uint64, tag = "3")]
    pub version: u64,
    #[prost(uint64, tag = "4")]
    pub create_version: u64,
    #[prost(uint64, tag = "5")]
    pub write_count: u64,
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Response {
    #[prost(uint64, tag = "1")]
    pub request_id: u64,
    #[prost(oneof = "response::Result", tags = "16, 17, 18, 19, 20, 21")]
    pub result: ::core::option::Option<response::Result>,
}
/// Nested message and enum types in `Response`.
pub mod response {
    #[derive(Clone, PartialEq, ::prost::Oneof)]
    pub enum Result {
        #[prost(message, tag = "16")]
        Error(super::Error),
        #[prost(message, tag = "17")]
        Found(super::Found),
        #[prost(message, tag = "18")]
        Written(super::Written),
        #[prost(message, tag = "19")]
        Batch(super::BatchDone),
        #[prost(message, tag = "20")]
        Compare(super::CompareDone),
        #[prost(message, tag = "21")]
        Scan(super::ScanDone),
    }
}
/// The answer to a get; no entry: the key is absent.
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Found {
    #[prost(message, optional, tag = "1")]
    pub entry: ::core::option::Option<Entry>,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Written {
    #[prost(bool, tag = "1")]
    pub applied: bool,
    /// The key's version now; 0: absent.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    #[prost(uint64, tag = "3")]
    pub group_version: u64,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct BatchDone {
    #[prost(uint64, tag = "1")]
    pub version: u64,
}
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct OpResult {
    #[prost(oneof = "op_result::Result", tags = "1, 2")]
    pub result: ::core::option::Option<op_result::Result>,
}
/// Nested message and enum types in `OpResult`.
pub mod op_result {
    #[derive(Clone, PartialEq, Eq, Hash, ::prost::Oneof)]
    pub enum Result {
        #[prost(message, tag = "1")]
        Found(super::Found),
        #[prost(bool, tag = "2")]
        Done(bool),
    }
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct CompareDone {
    #[prost(bool, tag = "1")]
    pub succeeded: bool,
    #[prost(message, repeated, tag = "2")]
    pub results: ::prost::alloc::vec::Vec<OpResult>,
    #[prost(uint64, tag = "3")]
    pub version: u64,
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct ScanDone {
    #[prost(message, repeated, tag = "1")]
    pub entries: ::prost::alloc::vec::Vec<Entry>,
    #[prost(bool, tag = "2")]
    pub more: bool,
    /// The encoded key of the last entry; empty: there was none.
    #[prost(bytes = "bytes", tag = "3")]
    pub last: ::prost::bytes::Bytes,
}
/// How fresh a read is. 3 and 4 are kept for bounded staleness and reads at a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
#[repr(i32)]
pub enum ReadLevel {
    Linearizable = 0,
    AtLeast = 1,
    Stale = 2,
}
impl ReadLevel {
    /// String value of the enum field names used in the ProtoBuf definition.
    ///
    /// The values are not transformed in any way and thus are considered stable
    /// (if the ProtoBuf definition does not change) and safe for programmatic use.
    pub fn as_str_name(&self) -> &'static str {
        match self {
            Self::Linearizable => "READ_LEVEL_LINEARIZABLE",
            Self::AtLeast => "READ_LEVEL_AT_LEAST",
            Self::Stale => "READ_LEVEL_STALE",
        }
    }
    /// Creates an enum from field names used in the ProtoBuf definition.
    pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
        match value {
            "READ_LEVEL_LINEARIZABLE" => Some(Self::Linearizable),
            "READ_LEVEL_AT_LEAST" => Some(Self::AtLeast),
            "READ_LEVEL_STALE" => Some(Self::Stale),
            _ => None,
        }
    }
}
/// What the key's state must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
#[repr(i32)]
pub enum ConditionKind {
    None = 0,
    Absent = 1,
    Present = 2,
    Version = 3,
}
impl ConditionKind {
    /// String value of the enum field names used in the ProtoBuf definition.
    ///
    /// The values are not transformed in any way and thus are considered stable
    /// (if the ProtoBuf definition does not change) and safe for programmatic use.
    pub fn as_str_name(&self) -> &'static str {
        match self {
            Self::None => "CONDITION_KIND_NONE",
            Self::Absent => "CONDITION_KIND_ABSENT",
            Self::Present => "CONDITION_KIND_PRESENT",
            Self::Version => "CONDITION_KIND_VERSION",
        }
    }
    /// Creates an enum from field names used in the ProtoBuf definition.
    pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
        match value {
            "CONDITION_KIND_NONE" => Some(Self::None),
            "CONDITION_KIND_ABSENT" => Some(Self::Absent),
            "CONDITION_KIND_PRESENT" => Some(Self::Present),
            "CONDITION_KIND_VERSION" => Some(Self::Version),
            _ => None,
        }
    }
}
/// Generated client implementations.
pub mod kv_client {
    #![allow(
        unused_variables,
        dead_code,
        missing_docs,
        clippy::wildcard_imports,
        clippy::let_unit_value,
    )]
    use tonic::codegen::*;
    use tonic::codegen::http::Uri;
    /// Operations on keys. Every node takes requests for the replicas it holds.
    #[derive(Debug, Clone)]
    pub struct KvClient<T> {
        inner: tonic::client::Grpc<T>,
    }
    impl KvClient<tonic::transport::Channel> {
        /// Attempt to create a new client by connecting to a given endpoint.
        pub async fn connect<D>(dst: D) -> Result<Self, tonic::transport::Error>
        where
            D: TryInto<tonic::transport::Endpoint>,
            D::Error: Into<StdError>,
        {
            let conn = tonic::transport::Endpoint::new(dst)?.connect().await?;
            Ok(Self::new(conn))
        }
    }
    impl<T> KvClient<T>
    where
        T: tonic::client::GrpcService<tonic::body::Body>,
        T::Error: Into<StdError>,
        T::ResponseBody: Body<Data = Bytes> + std::marker::Send + 'static,
        <T::ResponseBody as Body>::Error: Into<StdError> + std::marker::Send,
    {
        pub fn new(inner: T) -> Self {
            let inner = tonic::client::Grpc::new(inner);
            Self { inner }
        }
        pub fn with_origin(inner: T, origin: Uri) -> Self {
            let inner = tonic::client::Grpc::with_origin(inner, origin);
            Self { inner }
        }
        pub fn with_interceptor<F>(
            inner: T,
            interceptor: F,
        ) -> KvClient<InterceptedService<T, F>>
        where
            F: tonic::service::Interceptor,
            T::ResponseBody: Default,
            T: tonic::codegen::Service<
                http::Request<tonic::body::Body>,
                Response = http::Response<
                    <T as tonic::client::GrpcService<tonic::body::Body>>::ResponseBody,
                >,
            >,
            <T as tonic::codegen::Service<
                http::Request<tonic::body::Body>,
            >>::Error: Into<StdError> + std::marker::Send + std::marker::Sync,
        {
            KvClient::new(InterceptedService::new(inner, interceptor))
        }
        /// Compress requests with the given encoding.
        ///
        /// This requires the server to support it otherwise it might respond with an
        /// error.
        #[must_use]
        pub fn send_compressed(mut self, encoding: CompressionEncoding) -> Self {
            self.inner = self.inner.send_compressed(encoding);
            self
        }
        /// Enable decompressing responses.
        #[must_use]
        pub fn accept_compressed(mut self, encoding: CompressionEncoding) -> Self {
            self.inner = self.inner.accept_compressed(encoding);
            self
        }
        /// Limits the maximum size of a decoded message.
        ///
        /// Default: `4MB`
        #[must_use]
        pub fn max_decoding_message_size(mut self, limit: usize) -> Self {
            self.inner = self.inner.max_decoding_message_size(limit);
            self
        }
        /// Limits the maximum size of an encoded message.
        ///
        /// Default: `usize::MAX`
        #[must_use]
        pub fn max_encoding_message_size(mut self, limit: usize) -> Self {
            self.inner = self.inner.max_encoding_message_size(limit);
            self
        }
        /// Frames of requests in, frames of responses out. Responses come in any order and are matched by
        /// request_id. When the stream breaks, the outcome of unanswered writes is unknown.
        pub async fn stream(
            &mut self,
            request: impl tonic::IntoStreamingRequest<Message = super::RequestFrame>,
        ) -> std::result::Result<
            tonic::Response<tonic::codec::Streaming<super::ResponseFrame>>,
            tonic::Status,
        > {
            self.inner
                .ready()
                .await
                .map_err(|e| {
                    tonic::Status::unknown(
                        format!("Service was not ready: {}", e.into()),
                    )
                })?;
            let codec = tonic_prost::ProstCodec::default();
            let path = http::uri::PathAndQuery::from_static("/quorate.v1.Kv/Stream");
            let mut req = request.into_streaming_request();
            req.extensions_mut().insert(GrpcMethod::new("quorate.v1.Kv", "Stream"));
            self.inner.streaming(req, path, codec).await
        }
        /// One frame; the response frame has one response for each request.
        pub async fn execute(
            &mut self,
            request: impl tonic::IntoRequest<super::RequestFrame>,
        ) -> std::result::Result<tonic::Response<super::ResponseFrame>, tonic::Status> {
            self.inner
                .ready()
                .await
                .map_err(|e| {
                    tonic::Status::unknown(
                        format!("Service was not ready: {}", e.into()),
                    )
                })?;
            let codec = tonic_prost::ProstCodec::default();
            let path = http::uri::PathAndQuery::from_static("/quorate.v1.Kv/Execute");
            let mut req = request.into_request();
            req.extensions_mut().insert(GrpcMethod::new("quorate.v1.Kv", "Execute"));
            self.inner.unary(req, path, codec).await
        }
    }
}
/// Generated server implementations.
pub mod kv_server {
    #![allow(
        unused_variables,
        dead_code,
        missing_docs,
        clippy::wildcard_imports,
        clippy::let_unit_value,
    )]
    use tonic::codegen::*;
    /// Generated trait containing gRPC methods that should be implemented for use with KvServer.
    #[async_trait]
    pub trait Kv: std::marker::Send + std::marker::Sync + 'static {
        /// Server streaming response type for the Stream method.
        type StreamStream: tonic::codegen::tokio_stream::Stream<
                Item = std::result::Result<super::ResponseFrame, tonic::Status>,
            >
            + std::marker::Send
            + 'static;
        /// Frames of requests in, frames of responses out. Responses come in any order and are matched by
        /// request_id. When the stream breaks, the outcome of unanswered writes is unknown.
        async fn stream(
            &self,
            request: tonic::Request<tonic::Streaming<super::RequestFrame>>,
        ) -> std::result::Result<tonic::Response<Self::StreamStream>, tonic::Status>;
        /// One frame; the response frame has one response for each request.
        async fn execute(
            &self,
            request: tonic::Request<super::RequestFrame>,
        ) -> std::result::Result<tonic::Response<super::ResponseFrame>, tonic::Status>;
    }
    /// Operations on keys. Every node takes requests for the replicas it holds.
    #[derive(Debug)]
    pub struct KvServer<T> {
        inner: Arc<T>,
        accept_compression_encodings: EnabledCompressionEncodings,
        send_compression_encodings: EnabledCompressionEncodings,
        max_decoding_message_size: Option<usize>,
        max_encoding_message_size: Option<usize>,
    }
    impl<T> KvServer<T> {
        pub fn new(inner: T) -> Self {
            Self::from_arc(Arc::new(inner))
        }
        pub fn from_arc(inner: Arc<T>) -> Self {
            Self {
                inner,
                accept_compression_encodings: Default::default(),
                send_compression_encodings: Default::default(),
                max_decoding_message_size: None,
                max_encoding_message_size: None,
            }
        }
        pub fn with_interceptor<F>(
            inner: T,
            interceptor: F,
        ) -> InterceptedService<Self, F>
        where
            F: tonic::service::Interceptor,
        {
            InterceptedService::new(Self::new(inner), interceptor)
        }
        /// Enable decompressing requests with the given encoding.
        #[must_use]
        pub fn accept_compressed(mut self, encoding: CompressionEncoding) -> Self {
            self.accept_compression_encodings.enable(encoding);
            self
        }
        /// Compress responses with the given encoding, if the client supports it.
        #[must_use]
        pub fn send_compressed(mut self, encoding: CompressionEncoding) -> Self {
            self.send_compression_encodings.enable(encoding);
            self
        }
        /// Limits the maximum size of a decoded message.
        ///
        /// Default: `4MB`
        #[must_use]
        pub fn max_decoding_message_size(mut self, limit: usize) -> Self {
            self.max_decoding_message_size = Some(limit);
            self
        }
        /// Limits the maximum size of an encoded message.
        ///
        /// Default: `usize::MAX`
        #[must_use]
        pub fn max_encoding_message_size(mut self, limit: usize) -> Self {
            self.max_encoding_message_size = Some(limit);
            self
        }
    }
    impl<T, B> tonic::codegen::Service<http::Request<B>> for KvServer<T>
    where
        T: Kv,
        B: Body + std::marker::Send + 'static,
        B::Error: Into<StdError> + std::marker::Send + 'static,
    {
        type Response = http::Response<tonic::body::Body>;
        type Error = std::convert::Infallible;
        type Future = BoxFuture<Self::Response, Self::Error>;
        fn poll_ready(
            &mut self,
            _cx: &mut Context<'_>,
        ) -> Poll<std::result::Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, req: http::Request<B>) -> Self::Future {
            match req.uri().path() {
                "/quorate.v1.Kv/Stream" => {
                    #[allow(non_camel_case_types)]
                    struct StreamSvc<T: Kv>(pub Arc<T>);
                    impl<T: Kv> tonic::server::StreamingService<super::RequestFrame>
                    for StreamSvc<T> {
                        type Response = super::ResponseFrame;
                        type ResponseStream = T::StreamStream;
                        type Future = BoxFuture<
                            tonic::Response<Self::ResponseStream>,
                            tonic::Status,
                        >;
                        fn call(
                            &mut self,
                            request: tonic::Request<
                                tonic::Streaming<super::RequestFrame>,
                            >,
                        ) -> Self::Future {
                            let inner = Arc::clone(&self.0);
                            let fut = async move {
                                <T as Kv>::stream(&inner, request).await
                            };
                            Box::pin(fut)
                        }
                    }
                    let accept_compression_encodings = self.accept_compression_encodings;
                    let send_compression_encodings = self.send_compression_encodings;
                    let max_decoding_message_size = self.max_decoding_message_size;
                    let max_encoding_message_size = self.max_encoding_message_size;
                    let inner = self.inner.clone();
                    let fut = async move {
                        let method = StreamSvc(inner);
                        let codec = tonic_prost::ProstCodec::default();
                        let mut grpc = tonic::server::Grpc::new(codec)
                            .apply_compression_config(
                                accept_compression_encodings,
                                send_compression_encodings,
                            )
                            .apply_max_message_size_config(
                                max_decoding_message_size,
                                max_encoding_message_size,
                            );
                        let res = grpc.streaming(method, req).await;
                        Ok(res)
                    };
                    Box::pin(fut)
                }
                "/quorate.v1.Kv/Execute" => {
                    #[allow(non_camel_case_types)]
                    struct ExecuteSvc<T: Kv>(pub Arc<T>);
                    impl<T: Kv> tonic::server::UnaryService<super::RequestFrame>
                    for ExecuteSvc<T> {
                        type Response = super::ResponseFrame;
                        type Future = BoxFuture<
                            tonic::Response<Self::Response>,
                            tonic::Status,
                        >;
                        fn call(
                            &mut self,
                            request: tonic::Request<super::RequestFrame>,
                        ) -> Self::Future {
                            let inner = Arc::clone(&self.0);
                            let fut = async move {
                                <T as Kv>::execute(&inner, request).await
                            };
                            Box::pin(fut)
                        }
                    }
                    let accept_compression_encodings = self.accept_compression_encodings;
                    let send_compression_encodings = self.send_compression_encodings;
                    let max_decoding_message_size = self.max_decoding_message_size;
                    let max_encoding_message_size = self.max_encoding_message_size;
                    let inner = self.inner.clone();
                    let fut = async move {
                        let method = ExecuteSvc(inner);
                        let codec = tonic_prost::ProstCodec::default();
                        let mut grpc = tonic::server::Grpc::new(codec)
                            .apply_compression_config(
                                accept_compression_encodings,
                                send_compression_encodings,
                            )
                            .apply_max_message_size_config(
                                max_decoding_message_size,
                                max_encoding_message_size,
                            );
                        let res = grpc.unary(method, req).await;
                        Ok(res)
                    };
                    Box::pin(fut)
                }
                _ => {
                    Box::pin(async move {
                        let mut response = http::Response::new(
                            tonic::body::Body::default(),
                        );
                        let headers = response.headers_mut();
                        headers
                            .insert(
                                tonic::Status::GRPC_STATUS,
                                (tonic::Code::Unimplemented as i32).into(),
                            );
                        headers
                            .insert(
                                http::header::CONTENT_TYPE,
                                tonic::metadata::GRPC_CONTENT_TYPE,
                            );
                        Ok(response)
                    })
                }
            }
        }
    }
    impl<T> Clone for KvServer<T> {
        fn clone(&self) -> Self {
            let inner = self.inner.clone();
            Self {
                inner,
                accept_compression_encodings: self.accept_compression_encodings,
                send_compression_encodings: self.send_compression_encodings,
                max_decoding_message_size: self.max_decoding_message_size,
                max_encoding_message_size: self.max_encoding_message_size,
            }
        }
    }
    /// Generated gRPC service name
    pub const SERVICE_NAME: &str = "quorate.v1.Kv";
    impl<T> tonic::server::NamedService for KvServer<T> {
        const NAME: &'static str = SERVICE_NAME;
    }
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct InitRequest {}
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct InitResponse {
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster: ::prost::bytes::Bytes,
    #[prost(uint64, tag = "2")]
    pub node: u64,
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct JoinRequest {
    /// 16 bytes; empty: not known yet.
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster: ::prost::bytes::Bytes,
    /// The id it had; 0: it is new.
    #[prost(uint64, tag = "2")]
    pub node: u64,
    #[prost(string, tag = "3")]
    pub address: ::prost::alloc::string::String,
    #[prost(btree_map = "string, string", tag = "4")]
    pub labels: ::prost::alloc::collections::BTreeMap<
        ::prost::alloc::string::String,
        ::prost::alloc::string::String,
    >,
    #[prost(uint32, tag = "5")]
    pub protocol: u32,
    /// Drawn when its data directory was made: a wiped node cannot come back as the old one.
    #[prost(uint64, tag = "6")]
    pub data_id: u64,
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct JoinResponse {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(message, optional, tag = "2")]
    pub map: ::core::option::Option<ShardMap>,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct MapRequest {
    /// The version that the caller has; 0: none.
    #[prost(uint64, tag = "1")]
    pub known_version: u64,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct LeaderHint {
    #[prost(uint64, tag = "1")]
    pub shard: u64,
    #[prost(uint64, tag = "2")]
    pub node: u64,
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct MapResponse {
    /// Absent: the caller's is the newest that this node knows.
    #[prost(message, optional, tag = "1")]
    pub map: ::core::option::Option<ShardMap>,
    /// The leaders that this node knows of.
    #[prost(message, repeated, tag = "2")]
    pub leaders: ::prost::alloc::vec::Vec<LeaderHint>,
}
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct CreateNamespaceRequest {
    #[prost(string, tag = "1")]
    pub name: ::prost::alloc::string::String,
    #[prost(message, optional, tag = "2")]
    pub layout: ::core::option::Option<Layout>,
    #[prost(uint32, tag = "3")]
    pub shards: u32,
    #[prost(uint32, tag = "4")]
    pub replicas: u32,
    /// Encoded keys between the shards; empty: even bounds.
    #[prost(bytes = "bytes", repeated, tag = "5")]
    pub splits: ::prost::alloc::vec::Vec<::prost::bytes::Bytes>,
    #[prost(uint32, tag = "6")]
    pub timeout_ms: u32,
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct CreateNamespaceResponse {
    #[prost(uint32, tag = "1")]
    pub namespace: u32,
    #[prost(message, optional, tag = "2")]
    pub map: ::core::option::Option<ShardMap>,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct MoveReplicaRequest {
    #[prost(uint64, tag = "1")]
    pub shard: u64,
    /// The node whose replica goes; 0: none.
    #[prost(uint64, tag = "2")]
    pub from: u64,
    /// The node that gets a new one; 0: none.
    #[prost(uint64, tag = "3")]
    pub to: u64,
    #[prost(uint32, tag = "4")]
    pub timeout_ms: u32,
    /// Not 0: this replica of the shard was found damaged and is to go; `from` and `to` do not count.
    #[prost(uint64, tag = "5")]
    pub damaged: u64,
    /// Whether that need not wait until no other shard's members change.
    #[prost(bool, tag = "6")]
    pub beside: bool,
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct MoveReplicaResponse {
    /// 0: none was made.
    #[prost(uint64, tag = "1")]
    pub replica: u64,
    #[prost(message, optional, tag = "2")]
    pub map: ::core::option::Option<ShardMap>,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct SettleMembersRequest {
    #[prost(uint64, tag = "1")]
    pub shard: u64,
    /// The members version.
    #[prost(uint64, tag = "2")]
    pub members: u64,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct SettleMembersResponse {}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct RemoveNodeRequest {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(uint32, tag = "2")]
    pub timeout_ms: u32,
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct RemoveNodeResponse {
    #[prost(message, optional, tag = "1")]
    pub map: ::core::option::Option<ShardMap>,
}
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct DropNamespaceRequest {
    #[prost(string, tag = "1")]
    pub name: ::prost::alloc::string::String,
    #[prost(uint32, tag = "2")]
    pub timeout_ms: u32,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct DropNamespaceResponse {}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct StatusRequest {}
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct GroupStatus {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(uint32, tag = "2")]
    pub namespace: u32,
    #[prost(uint64, tag = "3")]
    pub replica: u64,
    #[prost(enumeration = "Role", tag = "4")]
    pub role: i32,
    /// 0: none that works is known.
    #[prost(uint64, tag = "5")]
    pub leader: u64,
    #[prost(uint64, tag = "6")]
    pub term: u64,
    #[prost(uint64, tag = "7")]
    pub last_index: u64,
    #[prost(uint64, tag = "8")]
    pub committed_index: u64,
    #[prost(uint64, tag = "9")]
    pub applied_index: u64,
    #[prost(uint64, tag = "10")]
    pub version: u64,
    #[prost(message, optional, tag = "11")]
    pub epoch: ::core::option::Option<ShardEpoch>,
    #[prost(uint64, tag = "12")]
    pub size_bytes: u64,
    /// Why it has stopped or could not be opened; else empty.
    #[prost(string, tag = "13")]
    pub fault: ::prost::alloc::string::String,
    #[prost(enumeration = "Health", tag = "14")]
    pub health: i32,
}
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct StatusResponse {
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster: ::prost::bytes::Bytes,
    #[prost(uint64, tag = "2")]
    pub node: u64,
    #[prost(string, tag = "3")]
    pub address: ::prost::alloc::string::String,
    #[prost(string, tag = "4")]
    pub binary_version: ::prost::alloc::string::String,
    #[prost(uint64, tag = "5")]
    pub uptime_ms: u64,
    #[prost(uint64, tag = "6")]
    pub map_version: u64,
    #[prost(uint64, tag = "7")]
    pub engine_bytes: u64,
    #[prost(uint64, tag = "8")]
    pub log_bytes: u64,
    #[prost(uint64, tag = "9")]
    pub free_bytes: u64,
    #[prost(message, repeated, tag = "10")]
    pub groups: ::prost::alloc::vec::Vec<GroupStatus>,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct ReplicaHashesRequest {
    #[prost(uint64, tag = "1")]
    pub shard: u64,
    /// 0: the leader writes a hash command and answers with its index; else: the hash that this
    /// replica took at that index, waiting until it has applied it.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    #[prost(uint32, tag = "3")]
    pub timeout_ms: u32,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct ReplicaHash {
    #[prost(uint64, tag = "1")]
    pub shard: u64,
    #[prost(uint64, tag = "2")]
    pub replica: u64,
    #[prost(uint64, tag = "3")]
    pub node: u64,
    #[prost(uint64, tag = "4")]
    pub index: u64,
    #[prost(fixed64, tag = "5")]
    pub hash: u64,
    #[prost(uint64, tag = "6")]
    pub keys: u64,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct ReplicaHashesResponse {
    #[prost(message, optional, tag = "1")]
    pub hash: ::core::option::Option<ReplicaHash>,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
#[repr(i32)]
pub enum Role {
    Unknown = 0,
    Follower = 1,
    Candidate = 2,
    Leader = 3,
    Learner = 4,
}
impl Role {
    /// String value of the enum field names used in the ProtoBuf definition.
    ///
    /// The values are not transformed in any way and thus are considered stable
    /// (if the ProtoBuf definition does not change) and safe for programmatic use.
    pub fn as_str_name(&self) -> &'static str {
        match self {
            Self::Unknown => "ROLE_UNKNOWN",
            Self::Follower => "ROLE_FOLLOWER",
            Self::Candidate => "ROLE_CANDIDATE",
            Self::Leader => "ROLE_LEADER",
            Self::Learner => "ROLE_LEARNER",
        }
    }
    /// Creates an enum from field names used in the ProtoBuf definition.
    pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
        match value {
            "ROLE_UNKNOWN" => Some(Self::Unknown),
            "ROLE_FOLLOWER" => Some(Self::Follower),
            "ROLE_CANDIDATE" => Some(Self::Candidate),
            "ROLE_LEADER" => Some(Self::Leader),
            "ROLE_LEARNER" => Some(Self::Learner),
            _ => None,
        }
    }
}
/// Whether a group serves, as one replica sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
#[repr(i32)]
pub enum Health {
    Unknown = 0,
    Works = 1,
    NoLeader = 2,
    NoQuorum = 3,
    Stopped = 4,
}
impl Health {
    /// String value of the enum field names used in the ProtoBuf definition.
    ///
    /// The values are not transformed in any way and thus are considered stable
    /// (if the ProtoBuf definition does not change) and safe for programmatic use.
    pub fn as_str_name(&self) -> &'static str {
        match self {
            Self::Unknown => "HEALTH_UNKNOWN",
            Self::Works => "HEALTH_WORKS",
            Self::NoLeader => "HEALTH_NO_LEADER",
            Self::NoQuorum => "HEALTH_NO_QUORUM",
            Self::Stopped => "HEALTH_STOPPED",
        }
    }
    /// Creates an enum from field names used in the ProtoBuf definition.
    pub fn from_str_name(value: &str) -> ::core::option::Option<Self> {
        match value {
            "HEALTH_UNKNOWN" => Some(Self::Unknown),
            "HEALTH_WORKS" => Some(Self::Works),
            "HEALTH_NO_LEADER" => Some(Self::NoLeader),
            "HEALTH_NO_QUORUM" => Some(Self::NoQuorum),
            "HEALTH_STOPPED" => Some(Self::Stopped),
            _ => None,
        }
    }
}
/// Generated client implementations.
pub mod cluster_client {
    #![allow(
        unused_variables,
        dead_code,
        missing_docs,
        clippy::wildcard_imports,
        clippy::let_unit_value,
    )]
    use tonic::codegen::*;
    use tonic::codegen::http::Uri;
    /// A call that fails answers a status whose details are an encoded Error.
    #[derive(Debug, Clone)]
    pub struct ClusterClient<T> {
        inner: tonic::client::Grpc<T>,
    }
    impl ClusterClient<tonic::transport::Channel> {
        /// Attempt to create a new client by connecting to a given endpoint.
        pub async fn connect<D>(dst: D) -> Result<Self, tonic::transport::Error>
        where
            D: TryInto<tonic::transport::Endpoint>,
            D::Error: Into<StdError>,
        {
            let conn = tonic::transport::Endpoint::new(dst)?.connect().await?;
            Ok(Self::new(conn))
        }
    }
    impl<T> ClusterClient<T>
    where
        T: tonic::client::GrpcService<tonic::body::Body>,
        T::Error: Into<StdError>,
        T::ResponseBody: Body<Data = Bytes> + std::marker::Send + 'static,
        <T::ResponseBody as Body>::Error: Into<StdError> + std::marker::Send,
    {
        pub fn new(inner: T) -> Self {
            let inner = tonic::client::Grpc::new(inner);
            Self { inner }
        }
        pub fn with_origin(inner: T, origin: Uri) -> Self {
            let inner = tonic::client::Grpc::with_origin(inner, origin);
            Self { inner }
        }
        pub fn with_interceptor<F>(
            inner: T,
            interceptor: F,
        ) -> ClusterClient<InterceptedService<T, F>>
        where
            F: tonic::service::Interceptor,
            T::ResponseBody: Default,
            T: tonic::codegen::Service<
                http::Request<tonic::body::Body>,
                Response = http::Response<
                    <T as tonic::client::GrpcService<tonic::body::Body>>::ResponseBody,
                >,
            >,
            <T as tonic::codegen::Service<
                http::Request<tonic::body::Body>,
            >>::Error: Into<StdError> + std::marker::Send + std::marker::Sync,
        {
            ClusterClient::new(InterceptedService::new(inner, interceptor))
        }
        /// Compress requests with the given encoding.
        ///
        /// This requires the server to support it otherwise it might respond with an
        /// error.
        #[must_use]
        pub fn send_compressed(mut self, encoding: CompressionEncoding) -> Self {
            self.inner = self.inner.send_compressed(encoding);
            self
        }
        /// Enable decompressing responses.
        #[must_use]
        pub fn accept_compressed(mut self, encoding: CompressionEncoding) -> Self {
            self.inner = self.inner.accept_compressed(encoding);
            self
        }
        /// Limits the maximum size of a decoded message.
        ///
        /// Default: `4MB`
        #[must_use]
        pub fn max_decoding_message_size(mut self, limit: usize) -> Self {
            self.inner = self.inner.max_decoding_message_size(limit);
            self
        }
        /// Limits the maximum size of an encoded message.
        ///
        /// Default: `usize::MAX`
        #[must_use]
        pub fn max_encoding_message_size(mut self, limit: usize) -> Self {
            self.inner = self.inner.max_encoding_message_size(limit);
            self
        }
        /// Makes the cluster, once: its id, and the coordinator's group on the node that is called.
        pub async fn init(
            &mut self,
            request: impl tonic::IntoRequest<super::InitRequest>,
        ) -> std::result::Result<tonic::Response<super::InitResponse>, tonic::Status> {
            self.inner
                .ready()
                .await
                .map_err(|e| {
                    tonic::Status::unknown(
                        format!("Service was not ready: {}", e.into()),
                    )
                })?;
            let codec = tonic_prost::ProstCodec::default();
            let path = http::uri::PathAndQuery::from_static("/quorate.v1.Cluster/Init");
            let mut req = request.into_request();
            req.extensions_mut().insert(GrpcMethod::new("quorate.v1.Cluster", "Init"));
            self.inner.unary(req, path, codec).await
        }
        /// A node registers itself, or comes back.
        pub async fn join(
            &mut self,
            request: impl tonic::IntoRequest<super::JoinRequest>,
        ) -> std::result::Result<tonic::Response<super::JoinResponse>, tonic::Status> {
            self.inner
                .ready()
                .await
                .map_err(|e| {
                    tonic::Status::unknown(
                        format!("Service was not ready: {}", e.into()),
                    )
                })?;
            let codec = tonic_prost::ProstCodec::default();
            let path = http::uri::PathAndQuery::from_static("/quorate.v1.Cluster/Join");
            let mut req = request.into_request();
            req.extensions_mut().insert(GrpcMethod::new("quorate.v1.Cluster", "Join"));
            self.inner.unary(req, path, codec).await
        }
        /// The shard map as the node that is called knows it.
        pub async fn map(
            &mut self,
            request: impl tonic::IntoRequest<super::MapRequest>,
        ) -> std::result::Result<tonic::Response<super::MapResponse>, tonic::Status> {
            self.inner
                .ready()
                .await
                .map_err(|e| {
                    tonic::Status::unknown(
                        format!("Service was not ready: {}", e.into()),
                    )
                })?;
            let codec = tonic_prost::ProstCodec::default();
            let path = http::uri::PathAndQuery::from_static("/quorate.v1.Cluster/Map");
            let mut req = request.into_request();
            req.extensions_mut().insert(GrpcMethod::new("quorate.v1.Cluster", "Map"));
            self.inner.unary(req, path, codec).await
        }
        pub async fn create_namespace(
            &mut self,
            request: impl tonic::IntoRequest<super::CreateNamespaceRequest>,
        ) -> std::result::Result<
            tonic::Response<super::CreateNamespaceResponse>,
            tonic::Status,
        > {
            self.inner
                .ready()
                .await
                .map_err(|e| {
                    tonic::Status::unknown(
                        format!("Service was not ready: {}", e.into()),
                    )
                })?;
            let codec = tonic_prost::ProstCodec::default();
            let path = http::uri::PathAndQuery::from_static(
                "/quorate.v1.Cluster/CreateNamespace",
            );
            let mut req = request.into_request();
            req.extensions_mut()
                .insert(GrpcMethod::new("quorate.v1.Cluster", "CreateNamespace"));
            self.inner.unary(req, path, codec).await
        }
        pub async fn drop_namespace(
            &mut self,
            request: impl tonic::IntoRequest<super::DropNamespaceRequest>,
        ) -> std::result::Result<
            tonic::Response<super::DropNamespaceResponse>,
            tonic::Status,
        > {
            self.inner
                .ready()
                .await
                .map_err(|e| {
                    tonic::Status::unknown(
                        format!("Service was not ready: {}", e.into()),
                    )
                })?;
            let codec = tonic_prost::ProstCodec::default();
            let path = http::uri::PathAndQuery::from_static(
                "/quorate.v1.Cluster/DropNamespace",
            );
            let mut req = request.into_request();
            req.extensions_mut()
                .insert(GrpcMethod::new("quorate.v1.Cluster", "DropNamespace"));
            self.inner.unary(req, path, codec).await
        }
        /// Gives a shard a replica on one node, takes that on another away, or both.
        pub async fn move_replica(
            &mut self,
            request: impl tonic::IntoRequest<super::MoveReplicaRequest>,
        ) -> std::result::Result<
            tonic::Response<super::MoveReplicaResponse>,
            tonic::Status,
        > {
            self.inner
                .ready()
                .await
                .map_err(|e| {
                    tonic::Status::unknown(
                        format!("Service was not ready: {}", e.into()),
                    )
                })?;
            let codec = tonic_prost::ProstCodec::default();
            let path = http::uri::PathAndQuery::from_static(
                "/quorate.v1.Cluster/MoveReplica",
            );
            let mut req = request.into_request();
            req.extensions_mut()
                .insert(GrpcMethod::new("quorate.v1.Cluster", "MoveReplica"));
            self.inner.unary(req, path, codec).await
        }
        /// A shard's leader says that its group has taken on the members that the map names.
        pub async fn settle_members(
            &mut self,
            request: impl tonic::IntoRequest<super::SettleMembersRequest>,
        ) -> std::result::Result<
            tonic::Response<super::SettleMembersResponse>,
            tonic::Status,
        > {
            self.inner
                .ready()
                .await
                .map_err(|e| {
                    tonic::Status::unknown(
                        format!("Service was not ready: {}", e.into()),
                    )
                })?;
            let codec = tonic_prost::ProstCodec::default();
            let path = http::uri::PathAndQuery::from_static(
                "/quorate.v1.Cluster/SettleMembers",
            );
            let mut req = request.into_request();
            req.extensions_mut()
                .insert(GrpcMethod::new("quorate.v1.Cluster", "SettleMembers"));
            self.inner.unary(req, path, codec).await
        }
        /// Removes a node that holds nothing any more.
        pub async fn remove_node(
            &mut self,
            request: impl tonic::IntoRequest<super::RemoveNodeRequest>,
        ) -> std::result::Result<
            tonic::Response<super::RemoveNodeResponse>,
            tonic::Status,
        > {
            self.inner
                .ready()
                .await
                .map_err(|e| {
                    tonic::Status::unknown(
                        format!("Service was not ready: {}", e.into()),
                    )
                })?;
            let codec = tonic_prost::ProstCodec::default();
            let path = http::uri::PathAndQuery::from_static(
                "/quorate.v1.Cluster/RemoveNode",
            );
            let mut req = request.into_request();
            req.extensions_mut()
                .insert(GrpcMethod::new("quorate.v1.Cluster", "RemoveNode"));
            self.inner.unary(req, path, codec).await
        }
        /// The state of the node that is called.
        pub async fn status(
            &mut self,
            request: impl tonic::IntoRequest<super::StatusRequest>,
        ) -> std::result::Result<tonic::Response<super::StatusResponse>, tonic::Status> {
            self.inner
                .ready()
                .await
                .map_err(|e| {
                    tonic::Status::unknown(
                        format!("Service was not ready: {}", e.into()),
                    )
                })?;
            let codec = tonic_prost::ProstCodec::default();
            let path = http::uri::PathAndQuery::from_static(
                "/quorate.v1.Cluster/Status",
            );
            let mut req = request.into_request();
            req.extensions_mut().insert(GrpcMethod::new("quorate.v1.Cluster", "Status"));
            self.inner.unary(req, path, codec).await
        }
        /// The hash of one replica at one index, for comparing the replicas of a shard.
        pub async fn replica_hashes(
            &mut self,
            request: impl tonic::IntoRequest<super::ReplicaHashesRequest>,
        ) -> std::result::Result<
            tonic::Response<super::ReplicaHashesResponse>,
            tonic::Status,
        > {
            self.inner
                .ready()
                .await
                .map_err(|e| {
                    tonic::Status::unknown(
                        format!("Service was not ready: {}", e.into()),
                    )
                })?;
            let codec = tonic_prost::ProstCodec::default();
            let path = http::uri::PathAndQuery::from_static(
                "/quorate.v1.Cluster/ReplicaHashes",
            );
            let mut req = request.into_request();
            req.extensions_mut()
                .insert(GrpcMethod::new("quorate.v1.Cluster", "ReplicaHashes"));
            self.inner.unary(req, path, codec).await
        }
    }
}
/// Generated server implementations.
pub mod cluster_server {
    #![allow(
        unused_variables,
        dead_code,
        missing_docs,
        clippy::wildcard_imports,
        clippy::let_unit_value,
    )]
    use tonic::codegen::*;
    /// Generated trait containing gRPC methods that should be implemented for use with ClusterServer.
    #[async_trait]
    pub trait Cluster: std::marker::Send + std::marker::Sync + 'static {
        /// Makes the cluster, once: its id, and the coordinator's group on the node that is called.
        async fn init(
            &self,
            request: tonic::Request<super::InitRequest>,
        ) -> std::result::Result<tonic::Response<super::InitResponse>, tonic::Status>;
        /// A node registers itself, or comes back.
        async fn join(
            &self,
            request: tonic::Request<super::JoinRequest>,
        ) -> std::result::Result<tonic::Response<super::JoinResponse>, tonic::Status>;
        /// The shard map as the node that is called knows it.
        async fn map(
            &self,
            request: tonic::Request<super::MapRequest>,
        ) -> std::result::Result<tonic::Response<super::MapResponse>, tonic::Status>;
        async fn create_namespace(
            &self,
            request: tonic::Request<super::CreateNamespaceRequest>,
        ) -> std::result::Result<
            tonic::Response<super::CreateNamespaceResponse>,
            tonic::Status,
        >;
        async fn drop_namespace(
            &self,
            request: tonic::Request<super::DropNamespaceRequest>,
        ) -> std::result::Result<
            tonic::Response<super::DropNamespaceResponse>,
            tonic::Status,
        >;
        /// Gives a shard a replica on one node, takes that on another away, or both.
        async fn move_replica(
            &self,
            request: tonic::Request<super::MoveReplicaRequest>,
        ) -> std::result::Result<
            tonic::Response<super::MoveReplicaResponse>,
            tonic::Status,
        >;
        /// A shard's leader says that its group has taken on the members that the map names.
        async fn settle_members(
            &self,
            request: tonic::Request<super::SettleMembersRequest>,
        ) -> std::result::Result<
            tonic::Response<super::SettleMembersResponse>,
            tonic::Status,
        >;
        /// Removes a node that holds nothing any more.
        async fn remove_node(
            &self,
            request: tonic::Request<super::RemoveNodeRequest>,
        ) -> std::result::Result<
            tonic::Response<super::RemoveNodeResponse>,
            tonic::Status,
        >;
        /// The state of the node that is called.
        async fn status(
            &self,
            request: tonic::Request<super::StatusRequest>,
        ) -> std::result::Result<tonic::Response<super::StatusResponse>, tonic::Status>;
        /// The hash of one replica at one index, for comparing the replicas of a shard.
        async fn replica_hashes(
            &self,
            request: tonic::Request<super::ReplicaHashesRequest>,
        ) -> std::result::Result<
            tonic::Response<super::ReplicaHashesResponse>,
            tonic::Status,
        >;
    }
    /// A call that fails answers a status whose details are an encoded Error.
    #[derive(Debug)]
    pub struct ClusterServer<T> {
        inner: Arc<T>,
        accept_compression_encodings: EnabledCompressionEncodings,
        send_compression_encodings: EnabledCompressionEncodings,
        max_decoding_message_size: Option<usize>,
        max_encoding_message_size: Option<usize>,
    }
    impl<T> ClusterServer<T> {
        pub fn new(inner: T) -> Self {
            Self::from_arc(Arc::new(inner))
        }
        pub fn from_arc(inner: Arc<T>) -> Self {
            Self {
                inner,
                accept_compression_encodings: Default::default(),
                send_compression_encodings: Default::default(),
                max_decoding_message_size: None,
                max_encoding_message_size: None,
            }
        }
        pub fn with_interceptor<F>(
            inner: T,
            interceptor: F,
        ) -> InterceptedService<Self, F>
        where
            F: tonic::service::Interceptor,
        {
            InterceptedService::new(Self::new(inner), interceptor)
        }
        /// Enable decompressing requests with the given encoding.
        #[must_use]
        pub fn accept_compressed(mut self, encoding: CompressionEncoding) -> Self {
            self.accept_compression_encodings.enable(encoding);
            self
        }
        /// Compress responses with the given encoding, if the client supports it.
        #[must_use]
        pub fn send_compressed(mut self, encoding: CompressionEncoding) -> Self {
            self.send_compression_encodings.enable(encoding);
            self
        }
        /// Limits the maximum size of a decoded message.
        ///
        /// Default: `4MB`
        #[must_use]
        pub fn max_decoding_message_size(mut self, limit: usize) -> Self {
            self.max_decoding_message_size = Some(limit);
            self
        }
        /// Limits the maximum size of an encoded message.
        ///
        /// Default: `usize::MAX`
        #[must_use]
        pub fn max_encoding_message_size(mut self, limit: usize) -> Self {
            self.max_encoding_message_size = Some(limit);
            self
        }
    }
    impl<T, B> tonic::codegen::Service<http::Request<B>> for ClusterServer<T>
    where
        T: Cluster,
        B: Body + std::marker::Send + 'static,
        B::Error: Into<StdError> + std::marker::Send + 'static,
    {
        type Response = http::Response<tonic::body::Body>;
        type Error = std::convert::Infallible;
        type Future = BoxFuture<Self::Response, Self::Error>;
        fn poll_ready(
            &mut self,
            _cx: &mut Context<'_>,
        ) -> Poll<std::result::Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, req: http::Request<B>) -> Self::Future {
            match req.uri().path() {
                "/quorate.v1.Cluster/Init" => {
                    #[allow(non_camel_case_types)]
                    struct InitSvc<T: Cluster>(pub Arc<T>);
                    impl<T: Cluster> tonic::server::UnaryService<super::InitRequest>
                    for InitSvc<T> {
                        type Response = super::InitResponse;
                        type Future = BoxFuture<
                            tonic::Response<Self::Response>,
                            tonic::Status,
                        >;
                        fn call(
                            &mut self,
                            request: tonic::Request<super::InitRequest>,
                        ) -> Self::Future {
                            let inner = Arc::clone(&self.0);
                            let fut = async move {
                                <T as Cluster>::init(&inner, request).await
                            };
                            Box::pin(fut)
                        }
                    }
                    let accept_compression_encodings = self.accept_compression_encodings;
                    let send_compression_encodings = self.send_compression_encodings;
                    let max_decoding_message_size = self.max_decoding_message_size;
                    let max_encoding_message_size = self.max_encoding_message_size;
                    let inner = self.inner.clone();
                    let fut = async move {
                        let method = InitSvc(inner);
                        let codec = tonic_prost::ProstCodec::default();
                        let mut grpc = tonic::server::Grpc::new(codec)
                            .apply_compression_config(
                                accept_compression_encodings,
                                send_compression_encodings,
                            )
                            .apply_max_message_size_config(
                                max_decoding_message_size,
                                max_encoding_message_size,
                            );
                        let res = grpc.unary(method, req).await;
                        Ok(res)
                    };
                    Box::pin(fut)
                }
                "/quorate.v1.Cluster/Join" => {
                    #[allow(non_camel_case_types)]
                    struct JoinSvc<T: Cluster>(pub Arc<T>);
                    impl<T: Cluster> tonic::server::UnaryService<super::JoinRequest>
                    for JoinSvc<T> {
                        type Response = super::JoinResponse;
                        type Future = BoxFuture<
                            tonic::Response<Self::Response>,
                            tonic::Status,
                        >;
                        fn call(
                            &mut self,
                            request: tonic::Request<super::JoinRequest>,
                        ) -> Self::Future {
                            let inner = Arc::clone(&self.0);
                            let fut = async move {
                                <T as Cluster>::join(&inner, request).await
                            };
                            Box::pin(fut)
                        }
                    }
                    let accept_compression_encodings = self.accept_compression_encodings;
                    let send_compression_encodings = self.send_compression_encodings;
                    let max_decoding_message_size = self.max_decoding_message_size;
                    let max_encoding_message_size = self.max_encoding_message_size;
                    let inner = self.inner.clone();
                    let fut = async move {
                        let method = JoinSvc(inner);
                        let codec = tonic_prost::ProstCodec::default();
                        let mut grpc = tonic::server::Grpc::new(codec)
                            .apply_compression_config(
                                accept_compression_encodings,
                                send_compression_encodings,
                            )
                            .apply_max_message_size_config(
                                max_decoding_message_size,
                                max_encoding_message_size,
                            );
                        let res = grpc.unary(method, req).await;
                        Ok(res)
                    };
                    Box::pin(fut)
                }
                "/quorate.v1.Cluster/Map" => {
                    #[allow(non_camel_case_types)]
                    struct MapSvc<T: Cluster>(pub Arc<T>);
                    impl<T: Cluster> tonic::server::UnaryService<super::MapRequest>
                    for MapSvc<T> {
                        type Response = super::MapResponse;
                        type Future = BoxFuture<
                            tonic::Response<Self::Response>,
                            tonic::Status,
                        >;
                        fn call(
                            &mut self,
                            request: tonic::Request<super::MapRequest>,
                        ) -> Self::Future {
                            let inner = Arc::clone(&self.0);
                            let fut = async move {
                                <T as Cluster>::map(&inner, request).await
                            };
                            Box::pin(fut)
                        }
                    }
                    let accept_compression_encodings = self.accept_compression_encodings;
                    let send_compression_encodings = self.send_compression_encodings;
                    let max_decoding_message_size = self.max_decoding_message_size;
                    let max_encoding_message_size = self.max_encoding_message_size;
                    let inner = self.inner.clone();
                    let fut = async move {
                        let method = MapSvc(inner);
                        let codec = tonic_prost::ProstCodec::default();
                        let mut grpc = tonic::server::Grpc::new(codec)
                            .apply_compression_config(
                                accept_compression_encodings,
                                send_compression_encodings,
                            )
                            .apply_max_message_size_config(
                                max_decoding_message_size,
                                max_encoding_message_size,
                            );
                        let res = grpc.unary(method, req).await;
                        Ok(res)
                    };
                    Box::pin(fut)
                }
                "/quorate.v1.Cluster/CreateNamespace" => {
                    #[allow(non_camel_case_types)]
                    struct CreateNamespaceSvc<T: Cluster>(pub Arc<T>);
                    impl<
                        T: Cluster,
                    > tonic::server::UnaryService<super::CreateNamespaceRequest>
                    for CreateNamespaceSvc<T> {
                        type Response = super::CreateNamespaceResponse;
                        type Future = BoxFuture<
                            tonic::Response<Self::Response>,
                            tonic::Status,
                        >;
                        fn call(
                            &mut self,
                            request: tonic::Request<super::CreateNamespaceRequest>,
                        ) -> Self::Future {
                            let inner = Arc::clone(&self.0);
                            let fut = async move {
                                <T as Cluster>::create_namespace(&inner, request).await
                            };
                            Box::pin(fut)
                        }
                    }
                    let accept_compression_encodings = self.accept_compression_encodings;
                    let send_compression_encodings = self.send_compression_encodings;
                    let max_decoding_message_size = self.max_decoding_message_size;
                    let max_encoding_message_size = self.max_encoding_message_size;
                    let inner = self.inner.clone();
                    let fut = async move {
                        let method = CreateNamespaceSvc(inner);
                        let codec = tonic_prost::ProstCodec::default();
                        let mut grpc = tonic::server::Grpc::new(codec)
                            .apply_compression_config(
                                accept_compression_encodings,
                                send_compression_encodings,
                            )
                            .apply_max_message_size_config(
                                max_decoding_message_size,
                                max_encoding_message_size,
                            );
                        let res = grpc.unary(method, req).await;
                        Ok(res)
                    };
                    Box::pin(fut)
                }
                "/quorate.v1.Cluster/DropNamespace" => {
                    #[allow(non_camel_case_types)]
                    struct DropNamespaceSvc<T: Cluster>(pub Arc<T>);
                    impl<
                        T: Cluster,
                    > tonic::server::UnaryService<super::DropNamespaceRequest>
                    for DropNamespaceSvc<T> {
                        type Response = super::DropNamespaceResponse;
                        type Future = BoxFuture<
                            tonic::Response<Self::Response>,
                            tonic::Status,
                        >;
                        fn call(
                            &mut self,
                            request: tonic::Request<super::DropNamespaceRequest>,
                        ) -> Self::Future {
                            let inner = Arc::clone(&self.0);
                            let fut = async move {
                                <T as Cluster>::drop_namespace(&inner, request).await
                            };
                            Box::pin(fut)
                        }
                    }
                    let accept_compression_encodings = self.accept_compression_encodings;
                    let send_compression_encodings = self.send_compression_encodings;
                    let max_decoding_message_size = self.max_decoding_message_size;
                    let max_encoding_message_size = self.max_encoding_message_size;
                    let inner = self.inner.clone();
                    let fut = async move {
                        let method = DropNamespaceSvc(inner);
                        let codec = tonic_prost::ProstCodec::default();
                        let mut grpc = tonic::server::Grpc::new(codec)
                            .apply_compression_config(
                                accept_compression_encodings,
                                send_compression_encodings,
                            )
                            .apply_max_message_size_config(
                                max_decoding_message_size,
                                max_encoding_message_size,
                            );
                        let res = grpc.unary(method, req).await;
                        Ok(res)
                    };
                    Box::pin(fut)
                }
                "/quorate.v1.Cluster/MoveReplica" => {
                    #[allow(non_camel_case_types)]
                    struct MoveReplicaSvc<T: Cluster>(pub Arc<T>);
                    impl<
                        T: Cluster,
                    > tonic::server::UnaryService<super::MoveReplicaRequest>
                    for MoveReplicaSvc<T> {
                        type Response = super::MoveReplicaResponse;
                        type Future = BoxFuture<
                            tonic::Response<Self::Response>,
                            tonic::Status,
                        >;
                        fn call(
                            &mut self,
                            request: tonic::Request<super::MoveReplicaRequest>,
                        ) -> Self::Future {
                            let inner = Arc::clone(&self.0);
                            let fut = async move {
                                <T as Cluster>::move_replica(&inner, request).await
                            };
                            Box::pin(fut)
                        }
                    }
                    let accept_compression_encodings = self.accept_compression_encodings;
                    let send_compression_encodings = self.send_compression_encodings;
                    let max_decoding_message_size = self.max_decoding_message_size;
                    let max_encoding_message_size = self.max_encoding_message_size;
                    let inner = self.inner.clone();
                    let fut = async move {
                        let method = MoveReplicaSvc(inner);
                        let codec = tonic_prost::ProstCodec::default();
                        let mut grpc = tonic::server::Grpc::new(codec)
                            .apply_compression_config(
                                accept_compression_encodings,
                                send_compression_encodings,
                            )
                            .apply_max_message_size_config(
                                max_decoding_message_size,
                                max_encoding_message_size,
                            );
                        let res = grpc.unary(method, req).await;
                        Ok(res)
                    };
                    Box::pin(fut)
                }
                "/quorate.v1.Cluster/SettleMembers" => {
                    #[allow(non_camel_case_types)]
                    struct SettleMembersSvc<T: Cluster>(pub Arc<T>);
                    impl<
                        T: Cluster,
                    > tonic::server::UnaryService<super::SettleMembersRequest>
                    for SettleMembersSvc<T> {
                        type Response = super::SettleMembersResponse;
                        type Future = BoxFuture<
                            tonic::Response<Self::Response>,
                            tonic::Status,
                        >;
                        fn call(
                            &mut self,
                            request: tonic::Request<super::SettleMembersRequest>,
                        ) -> Self::Future {
                            let inner = Arc::clone(&self.0);
                            let fut = async move {
                                <T as Cluster>::settle_members(&inner, request).await
                            };
                            Box::pin(fut)
                        }
                    }
                    let accept_compression_encodings = self.accept_compression_encodings;
                    let send_compression_encodings = self.send_compression_encodings;
                    let max_decoding_message_size = self.max_decoding_message_size;
                    let max_encoding_message_size = self.max_encoding_message_size;
                    let inner = self.inner.clone();
                    let fut = async move {
                        let method = SettleMembersSvc(inner);
                        let codec = tonic_prost::ProstCodec::default();
                        let mut grpc = tonic::server::Grpc::new(codec)
                            .apply_compression_config(
                                accept_compression_encodings,
                                send_compression_encodings,
                            )
                            .apply_max_message_size_config(
                                max_decoding_message_size,
                                max_encoding_message_size,
                            );
                        let res = grpc.unary(method, req).await;
                        Ok(res)
                    };
                    Box::pin(fut)
                }
                "/quorate.v1.Cluster/RemoveNode" => {
                    #[allow(non_camel_case_types)]
                    struct RemoveNodeSvc<T: Cluster>(pub Arc<T>);
                    impl<
                        T: Cluster,
                    > tonic::server::UnaryService<super::RemoveNodeRequest>
                    for RemoveNodeSvc<T> {
                        type Response = super::RemoveNodeResponse;
                        type Future = BoxFuture<
                            tonic::Response<Self::Response>,
                            tonic::Status,
                        >;
                        fn call(
                            &mut self,
                            request: tonic::Request<super::RemoveNodeRequest>,
                        ) -> Self::Future {
                            let inner = Arc::clone(&self.0);
                            let fut = async move {
                                <T as Cluster>::remove_node(&inner, request).await
                            };
                            Box::pin(fut)
                        }
                    }
                    let accept_compression_encodings = self.accept_compression_encodings;
                    let send_compression_encodings = self.send_compression_encodings;
                    let max_decoding_message_size = self.max_decoding_message_size;
                    let max_encoding_message_size = self.max_encoding_message_size;
                    let inner = self.inner.clone();
                    let fut = async move {
                        let method = RemoveNodeSvc(inner);
                        let codec = tonic_prost::ProstCodec::default();
                        let mut grpc = tonic::server::Grpc::new(codec)
                            .apply_compression_config(
                                accept_compression_encodings,
                                send_compression_encodings,
                            )
                            .apply_max_message_size_config(
                                max_decoding_message_size,
                                max_encoding_message_size,
                            );
                        let res = grpc.unary(method, req).await;
                        Ok(res)
                    };
                    Box::pin(fut)
                }
                "/quorate.v1.Cluster/Status" => {
                    #[allow(non_camel_case_types)]
                    struct StatusSvc<T: Cluster>(pub Arc<T>);
                    impl<T: Cluster> tonic::server::UnaryService<super::StatusRequest>
                    for StatusSvc<T> {
                        type Response = super::StatusResponse;
                        type Future = BoxFuture<
                            tonic::Response<Self::Response>,
                            tonic::Status,
                        >;
                        fn call(
                            &mut self,
                            request: tonic::Request<super::StatusRequest>,
                        ) -> Self::Future {
                            let inner = Arc::clone(&self.0);
                            let fut = async move {
                                <T as Cluster>::status(&inner, request).await
                            };
                            Box::pin(fut)
                        }
                    }
                    let accept_compression_encodings = self.accept_compression_encodings;
                    let send_compression_encodings = self.send_compression_encodings;
                    let max_decoding_message_size = self.max_decoding_message_size;
                    let max_encoding_message_size = self.max_encoding_message_size;
                    let inner = self.inner.clone();
                    let fut = async move {
                        let method = StatusSvc(inner);
                        let codec = tonic_prost::ProstCodec::default();
                        let mut grpc = tonic::server::Grpc::new(codec)
                            .apply_compression_config(
                                accept_compression_encodings,
                                send_compression_encodings,
                            )
                            .apply_max_message_size_config(
                                max_decoding_message_size,
                                max_encoding_message_size,
                            );
                        let res = grpc.unary(method, req).await;
                        Ok(res)
                    };
                    Box::pin(fut)
                }
                "/quorate.v1.Cluster/ReplicaHashes" => {
                    #[allow(non_camel_case_types)]
                    struct ReplicaHashesSvc<T: Cluster>(pub Arc<T>);
                    impl<
                        T: Cluster,
                    > tonic::server::UnaryService<super::ReplicaHashesRequest>
                    for ReplicaHashesSvc<T> {
                        type Response = super::ReplicaHashesResponse;
                        type Future = BoxFuture<
                            tonic::Response<Self::Response>,
                            tonic::Status,
                        >;
                        fn call(
                            &mut self,
                            request: tonic::Request<super::ReplicaHashesRequest>,
                        ) -> Self::Future {
                            let inner = Arc::clone(&self.0);
                            let fut = async move {
                                <T as Cluster>::replica_hashes(&inner, request).await
                            };
                            Box::pin(fut)
                        }
                    }
                    let accept_compression_encodings = self.accept_compression_encodings;
                    let send_compression_encodings = self.send_compression_encodings;
                    let max_decoding_message_size = self.max_decoding_message_size;
                    let max_encoding_message_size = self.max_encoding_message_size;
                    let inner = self.inner.clone();
                    let fut = async move {
                        let method = ReplicaHashesSvc(inner);
                        let codec = tonic_prost::ProstCodec::default();
                        let mut grpc = tonic::server::Grpc::new(codec)
                            .apply_compression_config(
                                accept_compression_encodings,
                                send_compression_encodings,
                            )
                            .apply_max_message_size_config(
                                max_decoding_message_size,
                                max_encoding_message_size,
                            );
                        let res = grpc.unary(method, req).await;
                        Ok(res)
                    };
                    Box::pin(fut)
                }
                _ => {
                    Box::pin(async move {
                        let mut response = http::Response::new(
                            tonic::body::Body::default(),
                        );
                        let headers = response.headers_mut();
                        headers
                            .insert(
                                tonic::Status::GRPC_STATUS,
                                (tonic::Code::Unimplemented as i32).into(),
                            );
                        headers
                            .insert(
                                http::header::CONTENT_TYPE,
                                tonic::metadata::GRPC_CONTENT_TYPE,
                            );
                        Ok(response)
                    })
                }
            }
        }
    }
    impl<T> Clone for ClusterServer<T> {
        fn clone(&self) -> Self {
            let inner = self.inner.clone();
            Self {
                inner,
                accept_compression_encodings: self.accept_compression_encodings,
                send_compression_encodings: self.send_compression_encodings,
                max_decoding_message_size: self.max_decoding_message_size,
                max_encoding_message_size: self.max_encoding_message_size,
            }
        }
    }
    /// Generated gRPC service name
    pub const SERVICE_NAME: &str = "quorate.v1.Cluster";
    impl<T> tonic::server::NamedService for ClusterServer<T> {
        const NAME: &'static str = SERVICE_NAME;
    }
}
/// Who speaks; the first frame of the caller.
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Hello {
    /// 16 bytes, big-endian.
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster: ::prost::bytes::Bytes,
    #[prost(uint64, tag = "2")]
    pub from_node: u64,
    #[prost(uint64, tag = "3")]
    pub to_node: u64,
    #[prost(uint32, tag = "4")]
    pub protocol: u32,
}
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct PeerFrame {
    /// Matches a reply with its frame.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The traffic class: append, heartbeat and vote, snapshot.
    #[prost(uint32, tag = "2")]
    pub class: u32,
    #[prost(uint64, tag = "3")]
    pub group: u64,
    #[prost(uint64, tag = "4")]
    pub from_node: u64,
    #[prost(bytes = "bytes", tag = "5")]
    pub payload: ::prost::bytes::Bytes,
    #[prost(bool, tag = "6")]
    pub reply: bool,
    /// Of a reply: why it failed; empty: it did not.
    #[prost(string, tag = "7")]
    pub error: ::prost::alloc::string::String,
    #[prost(message, optional, tag = "8")]
    pub hello: ::core::option::Option<Hello>,
}
/// Generated client implementations.
pub mod peer_client {
    #![allow(
        unused_variables,
        dead_code,
        missing_docs,
        clippy::wildcard_imports,
        clippy::let_unit_value,
    )]
    use tonic::codegen::*;
    use tonic::codegen::http::Uri;
    /// One channel for each peer and traffic class.
    #[derive(Debug, Clone)]
    pub struct PeerClient<T> {
        inner: tonic::client::Grpc<T>,
    }
    impl PeerClient<tonic::transport::Channel> {
        /// Attempt to create a new client by connecting to a given endpoint.
        pub async fn connect<D>(dst: D) -> Result<Self, tonic::transport::Error>
        where
            D: TryInto<tonic::transport::Endpoint>,
            D::Error: Into<StdError>,
        {
            let conn = tonic::transport::Endpoint::new(dst)?.connect().await?;
            Ok(Self::new(conn))
        }
    }
    impl<T> PeerClient<T>
    where
        T: tonic::client::GrpcService<tonic::body::Body>,
        T::Error: Into<StdError>,
        T::ResponseBody: Body<Data = Bytes> + std::marker::Send + 'static,
        <T::ResponseBody as Body>::Error: Into<StdError> + std::marker::Send,
    {
        pub fn new(inner: T) -> Self {
            let inner = tonic::client::Grpc::new(inner);
            Self { inner }
        }
        pub fn with_origin(inner: T, origin: Uri) -> Self {
            let inner = tonic::client::Grpc::with_origin(inner, origin);
            Self { inner }
        }
        pub fn with_interceptor<F>(
            inner: T,
            interceptor: F,
        ) -> PeerClient<InterceptedService<T, F>>
        where
            F: tonic::service::Interceptor,
            T::ResponseBody: Default,
            T: tonic::codegen::Service<
                http::Request<tonic::body::Body>,
                Response = http::Response<
                    <T as tonic::client::GrpcService<tonic::body::Body>>::ResponseBody,
                >,
            >,
            <T as tonic::codegen::Service<
                http::Request<tonic::body::Body>,
            >>::Error: Into<StdError> + std::marker::Send + std::marker::Sync,
        {
            PeerClient::new(InterceptedService::new(inner, interceptor))
        }
        /// Compress requests with the given encoding.
        ///
        /// This requires the server to support it otherwise it might respond with an
        /// error.
        #[must_use]
        pub fn send_compressed(mut self, encoding: CompressionEncoding) -> Self {
            self.inner = self.inner.send_compressed(encoding);
            self
        }
        /// Enable decompressing responses.
        #[must_use]
        pub fn accept_compressed(mut self, encoding: CompressionEncoding) -> Self {
            self.inner = self.inner.accept_compressed(encoding);
            self
        }
        /// Limits the maximum size of a decoded message.
        ///
        /// Default: `4MB`
        #[must_use]
        pub fn max_decoding_message_size(mut self, limit: usize) -> Self {
            self.inner = self.inner.max_decoding_message_size(limit);
            self
        }
        /// Limits the maximum size of an encoded message.
        ///
        /// Default: `usize::MAX`
        #[must_use]
        pub fn max_encoding_message_size(mut self, limit: usize) -> Self {
            self.inner = self.inner.max_encoding_message_size(limit);
            self
        }
        pub async fn channel(
            &mut self,
            request: impl tonic::IntoStreamingRequest<Message = super::PeerFrame>,
        ) -> std::result::Result<
            tonic::Response<tonic::codec::Streaming<super::PeerFrame>>,
            tonic::Status,
        > {
            self.inner
                .ready()
                .await
                .map_err(|e| {
                    tonic::Status::unknown(
                        format!("Service was not ready: {}", e.into()),
                    )
                })?;
            let codec = tonic_prost::ProstCodec::default();
            let path = http::uri::PathAndQuery::from_static("/quorate.v1.Peer/Channel");
            let mut req = request.into_streaming_request();
            req.extensions_mut().insert(GrpcMethod::new("quorate.v1.Peer", "Channel"));
            self.inner.streaming(req, path, codec).await
        }
    }
}
/// Generated server implementations.
pub mod peer_server {
    #![allow(
        unused_variables,
        dead_code,
        missing_docs,
        clippy::wildcard_imports,
        clippy::let_unit_value,
    )]
    use tonic::codegen::*;
    /// Generated trait containing gRPC methods that should be implemented for use with PeerServer.
    #[async_trait]
    pub trait Peer: std::marker::Send + std::marker::Sync + 'static {
        /// Server streaming response type for the Channel method.
        type ChannelStream: tonic::codegen::tokio_stream::Stream<
                Item = std::result::Result<super::PeerFrame, tonic::Status>,
            >
            + std::marker::Send
            + 'static;
        async fn channel(
            &self,
            request: tonic::Request<tonic::Streaming<super::PeerFrame>>,
        ) -> std::result::Result<tonic::Response<Self::ChannelStream>, tonic::Status>;
    }
    /// One channel for each peer and traffic class.
    #[derive(Debug)]
    pub struct PeerServer<T> {
        inner: Arc<T>,
        accept_compression_encodings: EnabledCompressionEncodings,
        send_compression_encodings: EnabledCompressionEncodings,
        max_decoding_message_size: Option<usize>,
        max_encoding_message_size: Option<usize>,
    }
    impl<T> PeerServer<T> {
        pub fn new(inner: T) -> Self {
            Self::from_arc(Arc::new(inner))
        }
        pub fn from_arc(inner: Arc<T>) -> Self {
            Self {
                inner,
                accept_compression_encodings: Default::default(),
                send_compression_encodings: Default::default(),
                max_decoding_message_size: None,
                max_encoding_message_size: None,
            }
        }
        pub fn with_interceptor<F>(
            inner: T,
            interceptor: F,
        ) -> InterceptedService<Self, F>
        where
            F: tonic::service::Interceptor,
        {
            InterceptedService::new(Self::new(inner), interceptor)
        }
        /// Enable decompressing requests with the given encoding.
        #[must_use]
        pub fn accept_compressed(mut self, encoding: CompressionEncoding) -> Self {
            self.accept_compression_encodings.enable(encoding);
            self
        }
        /// Compress responses with the given encoding, if the client supports it.
        #[must_use]
        pub fn send_compressed(mut self, encoding: CompressionEncoding) -> Self {
            self.send_compression_encodings.enable(encoding);
            self
        }
        /// Limits the maximum size of a decoded message.
        ///
        /// Default: `4MB`
        #[must_use]
        pub fn max_decoding_message_size(mut self, limit: usize) -> Self {
            self.max_decoding_message_size = Some(limit);
            self
        }
        /// Limits the maximum size of an encoded message.
        ///
        /// Default: `usize::MAX`
        #[must_use]
        pub fn max_encoding_message_size(mut self, limit: usize) -> Self {
            self.max_encoding_message_size = Some(limit);
            self
        }
    }
    impl<T, B> tonic::codegen::Service<http::Request<B>> for PeerServer<T>
    where
        T: Peer,
        B: Body + std::marker::Send + 'static,
        B::Error: Into<StdError> + std::marker::Send + 'static,
    {
        type Response = http::Response<tonic::body::Body>;
        type Error = std::convert::Infallible;
        type Future = BoxFuture<Self::Response, Self::Error>;
        fn poll_ready(
            &mut self,
            _cx: &mut Context<'_>,
        ) -> Poll<std::result::Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, req: http::Request<B>) -> Self::Future {
            match req.uri().path() {
                "/quorate.v1.Peer/Channel" => {
                    #[allow(non_camel_case_types)]
                    struct ChannelSvc<T: Peer>(pub Arc<T>);
                    impl<T: Peer> tonic::server::StreamingService<super::PeerFrame>
                    for ChannelSvc<T> {
                        type Response = super::PeerFrame;
                        type ResponseStream = T::ChannelStream;
                        type Future = BoxFuture<
                            tonic::Response<Self::ResponseStream>,
                            tonic::Status,
                        >;
                        fn call(
                            &mut self,
                            request: tonic::Request<tonic::Streaming<super::PeerFrame>>,
                        ) -> Self::Future {
                            let inner = Arc::clone(&self.0);
                            let fut = async move {
                                <T as Peer>::channel(&inner, request).await
                            };
                            Box::pin(fut)
                        }
                    }
                    let accept_compression_encodings = self.accept_compression_encodings;
                    let send_compression_encodings = self.send_compression_encodings;
                    let max_decoding_message_size = self.max_decoding_message_size;
                    let max_encoding_message_size = self.max_encoding_message_size;
                    let inner = self.inner.clone();
                    let fut = async move {
                        let method = ChannelSvc(inner);
                        let codec = tonic_prost::ProstCodec::default();
                        let mut grpc = tonic::server::Grpc::new(codec)
                            .apply_compression_config(
                                accept_compression_encodings,
                                send_compression_encodings,
                            )
                            .apply_max_message_size_config(
                                max_decoding_message_size,
                                max_encoding_message_size,
                            );
                        let res = grpc.streaming(method, req).await;
                        Ok(res)
                    };
                    Box::pin(fut)
                }
                _ => {
                    Box::pin(async move {
                        let mut response = http::Response::new(
                            tonic::body::Body::default(),
                        );
                        let headers = response.headers_mut();
                        headers
                            .insert(
                                tonic::Status::GRPC_STATUS,
                                (tonic::Code::Unimplemented as i32).into(),
                            );
                        headers
                            .insert(
                                http::header::CONTENT_TYPE,
                                tonic::metadata::GRPC_CONTENT_TYPE,
                            );
                        Ok(response)
                    })
                }
            }
        }
    }
    impl<T> Clone for PeerServer<T> {
        fn clone(&self) -> Self {
            let inner = self.inner.clone();
            Self {
                inner,
                accept_compression_encodings: self.accept_compression_encodings,
                send_compression_encodings: self.send_compression_encodings,
                max_decoding_message_size: self.max_decoding_message_size,
                max_encoding_message_size: self.max_encoding_message_size,
            }
        }
    }
    /// Generated gRPC service name
    pub const SERVICE_NAME: &str = "quorate.v1.Peer";
    impl<T> tonic::server::NamedService for PeerServer<T> {
        const NAME: &'static str = SERVICE_NAME;
    }
}
