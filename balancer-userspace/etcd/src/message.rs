//! The messages of etcd's API, version 3, with only those fields that this driver uses. The field numbers are those in
//! `etcdserverpb/rpc.proto` and `mvccpb/kv.proto`. The decoder skips all other fields.

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Header {
    #[prost(uint64, tag = "1")]
    pub(crate) cluster_id: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) member_id: u64,
    #[prost(int64, tag = "3")]
    pub(crate) revision: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) key: Vec<u8>,
    #[prost(int64, tag = "2")]
    pub(crate) create_revision: i64,
    #[prost(int64, tag = "3")]
    pub(crate) mod_revision: i64,
    #[prost(bytes = "vec", tag = "5")]
    pub(crate) value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    pub(crate) limit: i64,
    #[prost(int64, tag = "4")]
    pub(crate) revision: i64,
    #[prost(bool, tag = "8")]
    pub(crate) keys_only: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<Header>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) kvs: Vec<KeyValue>,
    #[prost(bool, tag = "3")]
    pub(crate) more: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) value: Vec<u8>,
    #[prost(int64, tag = "3")]
    pub(crate) lease: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeleteRangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) range_end: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RequestOp {
    #[prost(oneof = "Op", tags = "2, 3")]
    pub(crate) op: Option<Op>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Op {
    #[prost(message, tag = "2")]
    Put(PutRequest),
    #[prost(message, tag = "3")]
    Delete(DeleteRangeRequest),
}

/// A comparison for equality, which is the default.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Compare {
    #[prost(int32, tag = "2")]
    pub(crate) target: i32,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) key: Vec<u8>,
    #[prost(oneof = "Target", tags = "5, 6")]
    pub(crate) value: Option<Target>,
}

impl Compare {
    const CREATED: i32 = 1;
    const MODIFIED: i32 = 2;

    pub(crate) fn created(key: Vec<u8>, revision: i64) -> Self {
        Self { target: Self::CREATED, key, value: Some(Target::CreateRevision(revision)) }
    }

    pub(crate) fn modified(key: Vec<u8>, revision: i64) -> Self {
        Self { target: Self::MODIFIED, key, value: Some(Target::ModRevision(revision)) }
    }
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Target {
    #[prost(int64, tag = "5")]
    CreateRevision(i64),
    #[prost(int64, tag = "6")]
    ModRevision(i64),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    pub(crate) compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) success: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TxnResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<Header>,
    #[prost(bool, tag = "2")]
    pub(crate) succeeded: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    pub(crate) start_revision: i64,
    #[prost(bool, tag = "4")]
    pub(crate) progress_notify: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WatchResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<Header>,
    #[prost(bool, tag = "3")]
    pub(crate) created: bool,
    #[prost(bool, tag = "4")]
    pub(crate) canceled: bool,
    #[prost(int64, tag = "5")]
    pub(crate) compact_revision: i64,
    #[prost(string, tag = "6")]
    pub(crate) cancel_reason: String,
    #[prost(message, repeated, tag = "11")]
    pub(crate) events: Vec<Event>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Event {
    #[prost(int32, tag = "1")]
    pub(crate) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) kv: Option<KeyValue>,
}

impl Event {
    pub(crate) const PUT: i32 = 0;
    pub(crate) const DELETE: i32 = 1;
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LeaseGrantRequest {
    /// The requested time to live in seconds.
    #[prost(int64, tag = "1")]
    pub(crate) ttl: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LeaseGrantResponse {
    #[prost(int64, tag = "2")]
    pub(crate) id: i64,
    /// The granted time to live in seconds, which may exceed the requested time.
    #[prost(int64, tag = "3")]
    pub(crate) ttl: i64,
    #[prost(string, tag = "4")]
    pub(crate) error: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LeaseRevokeRequest {
    #[prost(int64, tag = "1")]
    pub(crate) id: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LeaseRevokeResponse {}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LeaseKeepAliveRequest {
    #[prost(int64, tag = "1")]
    pub(crate) id: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LeaseKeepAliveResponse {
    /// The new time to live of the lease in seconds; 0 if the lease does not exist.
    #[prost(int64, tag = "3")]
    pub(crate) ttl: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<Header>,
    #[prost(string, tag = "2")]
    pub(crate) version: String,
    /// The size of the database on disk, in bytes.
    #[prost(int64, tag = "3")]
    pub(crate) db_size: i64,
    /// The id of the leader; 0 if the server knows no leader.
    #[prost(uint64, tag = "4")]
    pub(crate) leader: u64,
    /// Errors that the server reports, such as `memberID:10501334649042878790 alarm:NOSPACE`.
    #[prost(string, repeated, tag = "8")]
    pub(crate) errors: Vec<String>,
    /// The size of the data in the database, in bytes. Only defragmentation frees the other bytes of the database.
    #[prost(int64, tag = "9")]
    pub(crate) db_size_in_use: i64,
    /// The limit on the size of the database; 0 if the server is older than etcd 3.6 and does not report the limit.
    #[prost(int64, tag = "12")]
    pub(crate) db_size_quota: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_message_is_encoded_then_it_matches_protoc() {
        let txn = TxnRequest {
            compare: vec![Compare::created(b"a".to_vec(), 0), Compare::modified(b"b".to_vec(), 7)],
            success: vec![RequestOp {
                op: Some(Op::Put(PutRequest { key: b"c".to_vec(), value: b"d".to_vec(), lease: 9 })),
            }],
        };
        // The expected bytes are the output of `protoc --encode=etcdserverpb.TxnRequest`.
        let bytes = b"\x0a\x07\x10\x01\x1a\x01a\x28\x00\x0a\x07\x10\x02\x1a\x01b\x30\x07\x12\x0a\x12\x08\x0a\x01c\x12\x01d\x18\x09";
        assert_eq!(txn.encode_to_vec(), bytes);
    }

    #[test]
    fn when_fields_are_unknown_then_they_are_skipped_and_broken_messages_are_refused() {
        let status = StatusResponse::decode(&b"\x12\x063.4.23\x18\x05\x48\x04\xa2\x06\x03abc"[..]);
        assert_eq!(status.map(|status| (status.version, status.db_size)), Ok(("3.4.23".to_owned(), 5)));
        assert!(StatusResponse::decode(&b"\x12\xff\xff\xff\x0f"[..]).is_err());
        let event = Event::decode(&b"\x08\x63"[..]).map(|event| event.kind);
        assert_eq!(event, Ok(99), "a kind of event that nobody knows is a number");
    }
}
