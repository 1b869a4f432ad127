//! What crosses the service boundary besides the generated messages: the status of a call, and a
//! key-value that travels as its encoded bytes.
//!
//! Plain values, owned by the call that made them. An [`EncodedKv`] holds a well-formed
//! `mvccpb.KeyValue` or nothing; it is encoded once by the reader that finds it, and copied once,
//! into the reply. No sockets and no HTTP here.

use core::fmt;
use std::borrow::Cow;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::DecodeError;
use prost::encoding::{
    DecodeContext, WireType, bytes as pb_bytes, decode_key, int64 as pb_int64, skip_field,
};
use ringkv_engine::error::{ApiError, Code};

/// How a call failed: gRPC status code and message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Status code, never 0: a call that succeeds has no `Status`.
    pub code: Code,
    /// For people, and for clients that compare etcd's texts.
    pub message: Cow<'static, str>,
}

impl Status {
    /// A status of `code` with `message`.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// What grpc-go answers for a method that `service` does not have.
    #[must_use]
    pub fn unknown_method(service: &str, method: &str) -> Self {
        let message = format!("unknown method {method} for service {service}");
        Self::new(Code::Unimplemented, message)
    }

    /// The caller's deadline has passed; the text is Go's.
    #[must_use]
    pub const fn deadline_exceeded() -> Self {
        Self {
            code: Code::DeadlineExceeded,
            message: Cow::Borrowed("context deadline exceeded"),
        }
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        Self {
            code: error.code(),
            message: Cow::Borrowed(error.text()),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl core::error::Error for Status {}

/// Field numbers of `mvccpb.KeyValue`.
mod field {
    pub const KEY: u32 = 1;
    pub const CREATE_REVISION: u32 = 2;
    pub const MOD_REVISION: u32 = 3;
    pub const VERSION: u32 = 4;
    pub const VALUE: u32 = 5;
    pub const LEASE: u32 = 6;
}

/// A `mvccpb.KeyValue` as its encoded protobuf bytes, shared by reference count.
///
/// As a field of a reply it encodes to the very bytes that the plain message would give.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct EncodedKv(pub Bytes);

/// The fields of a `mvccpb.KeyValue`, borrowed from wherever they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KvFields<'a> {
    /// Key, at least one byte in stored pairs.
    pub key: &'a [u8],
    /// Value; empty in tombstones and keys-only answers.
    pub value: &'a [u8],
    /// Main revision at which the key's current generation began.
    pub create_revision: i64,
    /// Main revision of the newest change.
    pub mod_revision: i64,
    /// Changes in the current generation.
    pub version: i64,
    /// Attached lease, 0 for none.
    pub lease: i64,
}

impl KvFields<'_> {
    /// Bytes that [`KvFields::encode_into`] writes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let bytes_len = |tag, bytes: &[u8]| {
            if bytes.is_empty() {
                0
            } else {
                key_len(tag) + varint_len(bytes.len()) + bytes.len()
            }
        };
        let int_len = |tag, value: i64| {
            if value == 0 {
                0
            } else {
                pb_int64::encoded_len(tag, &value)
            }
        };
        bytes_len(field::KEY, self.key)
            + int_len(field::CREATE_REVISION, self.create_revision)
            + int_len(field::MOD_REVISION, self.mod_revision)
            + int_len(field::VERSION, self.version)
            + bytes_len(field::VALUE, self.value)
            + int_len(field::LEASE, self.lease)
    }

    /// Writes the message in field order, leaving out default values as proto3 does.
    pub fn encode_into(&self, out: &mut impl BufMut) {
        let put_int = |tag, value: i64, out: &mut _| {
            if value != 0 {
                pb_int64::encode(tag, &value, out);
            }
        };
        put_bytes(field::KEY, self.key, out);
        put_int(field::CREATE_REVISION, self.create_revision, out);
        put_int(field::MOD_REVISION, self.mod_revision, out);
        put_int(field::VERSION, self.version, out);
        put_bytes(field::VALUE, self.value, out);
        put_int(field::LEASE, self.lease, out);
    }
}

impl EncodedKv {
    /// Encodes `fields` into one allocation of exactly the right size.
    #[must_use]
    pub fn encode(fields: &KvFields<'_>) -> Self {
        let len = fields.encoded_len();
        let mut out = BytesMut::with_capacity(len);
        fields.encode_into(&mut out);
        assert_eq!(out.len(), len, "encoded_len and encode_into disagree");
        Self(out.freeze())
    }

    /// Decodes all fields; `key` and `value` borrow from `self`.
    ///
    /// # Errors
    /// If the bytes are no `mvccpb.KeyValue`.
    pub fn fields(&self) -> Result<KvFields<'_>, DecodeError> {
        let mut fields = KvFields::default();
        let mut rest: &[u8] = &self.0;
        let context = DecodeContext::default();
        while !rest.is_empty() {
            let (tag, wire_type) = decode_key(&mut rest)?;
            let ctx = context.clone();
            match tag {
                field::KEY => fields.key = take_bytes(wire_type, &mut rest)?,
                field::VALUE => fields.value = take_bytes(wire_type, &mut rest)?,
                field::CREATE_REVISION => {
                    pb_int64::merge(wire_type, &mut fields.create_revision, &mut rest, ctx)?;
                }
                field::MOD_REVISION => {
                    pb_int64::merge(wire_type, &mut fields.mod_revision, &mut rest, ctx)?;
                }
                field::VERSION => {
                    pb_int64::merge(wire_type, &mut fields.version, &mut rest, ctx)?;
                }
                field::LEASE => pb_int64::merge(wire_type, &mut fields.lease, &mut rest, ctx)?,
                _ => skip_field(wire_type, tag, &mut rest, ctx)?,
            }
        }
        Ok(fields)
    }

    /// The key.
    ///
    /// # Errors
    /// If the bytes are no `mvccpb.KeyValue`.
    pub fn key(&self) -> Result<Bytes, DecodeError> {
        Ok(self.0.slice_ref(self.fields()?.key))
    }

    /// The value.
    ///
    /// # Errors
    /// If the bytes are no `mvccpb.KeyValue`.
    pub fn value(&self) -> Result<Bytes, DecodeError> {
        Ok(self.0.slice_ref(self.fields()?.value))
    }
}

impl fmt::Debug for EncodedKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fields() {
            Ok(fields) => fields.fmt(f),
            Err(_) => write!(f, "EncodedKv({:?})", self.0),
        }
    }
}

/// A `mvccpb.Event` as its encoded bytes: encoded once a shard, shared by its watchers.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct EncodedEvent(pub Bytes);

/// A message that is its own encoding. Decoding takes the fields over as they come: unknown ones
/// stay, and of repeated ones whoever reads them takes the last.
macro_rules! encoded_message {
    ($name:ident) => {
        impl prost::Message for $name {
            fn encode_raw(&self, buf: &mut impl BufMut) {
                buf.put_slice(&self.0);
            }

            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: WireType,
                buf: &mut impl Buf,
                ctx: DecodeContext,
            ) -> Result<(), DecodeError> {
                keep_field(&mut self.0, tag, wire_type, buf, ctx)
            }

            fn encoded_len(&self) -> usize {
                self.0.len()
            }

            fn clear(&mut self) {
                self.0.clear();
            }
        }
    };
}

encoded_message!(EncodedKv);
encoded_message!(EncodedEvent);

/// Appends a field to an encoded message as it came.
fn keep_field(
    message: &mut Bytes,
    tag: u32,
    wire_type: WireType,
    buf: &mut impl Buf,
    ctx: DecodeContext,
) -> Result<(), DecodeError> {
    let mut out = BytesMut::from(core::mem::take(message));
    match wire_type {
        WireType::LengthDelimited => {
            let mut bytes = Bytes::new();
            pb_bytes::merge(wire_type, &mut bytes, buf, ctx)?;
            pb_bytes::encode(tag, &bytes, &mut out);
        }
        WireType::Varint => {
            let mut value = 0;
            pb_int64::merge(wire_type, &mut value, buf, ctx)?;
            pb_int64::encode(tag, &value, &mut out);
        }
        WireType::SixtyFourBit
        | WireType::ThirtyTwoBit
        | WireType::StartGroup
        | WireType::EndGroup => skip_field(wire_type, tag, buf, ctx)?,
    }
    *message = out.freeze();
    Ok(())
}

fn key_len(tag: u32) -> usize {
    prost::encoding::key_len(tag)
}

fn varint_len(value: usize) -> usize {
    prost::encoding::encoded_len_varint(value as u64)
}

fn put_bytes(tag: u32, bytes: &[u8], out: &mut impl BufMut) {
    if bytes.is_empty() {
        return;
    }
    prost::encoding::encode_key(tag, WireType::LengthDelimited, out);
    prost::encoding::encode_varint(bytes.len() as u64, out);
    out.put_slice(bytes);
}

/// Splits a length-delimited field off `rest` without copying.
fn take_bytes<'a>(wire_type: WireType, rest: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    prost::encoding::check_wire_type(WireType::LengthDelimited, wire_type)?;
    let len = prost::encoding::decode_varint(rest)?;
    let len = usize::try_from(len).ok().filter(|&len| len <= rest.len());
    let Some((bytes, after)) = len.and_then(|len| rest.split_at_checked(len)) else {
        #[allow(
            deprecated,
            reason = "prost gives hand-written decoders no other constructor"
        )]
        return Err(DecodeError::new("buffer underflow"));
    };
    *rest = after;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::pb::etcdserverpb::{RangeResponse, ResponseHeader};

    /// `mvccpb.KeyValue` as prost derives it.
    #[derive(Clone, PartialEq, Message)]
    struct PlainKv {
        #[prost(bytes = "bytes", tag = "1")]
        key: Bytes,
        #[prost(int64, tag = "2")]
        create_revision: i64,
        #[prost(int64, tag = "3")]
        mod_revision: i64,
        #[prost(int64, tag = "4")]
        version: i64,
        #[prost(bytes = "bytes", tag = "5")]
        value: Bytes,
        #[prost(int64, tag = "6")]
        lease: i64,
    }

    #[derive(Clone, PartialEq, Message)]
    struct PlainRange {
        #[prost(message, optional, tag = "1")]
        header: Option<ResponseHeader>,
        #[prost(message, repeated, tag = "2")]
        kvs: Vec<PlainKv>,
        #[prost(bool, tag = "3")]
        more: bool,
        #[prost(int64, tag = "4")]
        count: i64,
    }

    fn samples() -> Vec<PlainKv> {
        let big = Bytes::from(vec![7; 300]);
        vec![
            PlainKv::default(),
            PlainKv {
                key: Bytes::from_static(b"k"),
                create_revision: 2,
                mod_revision: 300,
                version: 4,
                value: Bytes::from_static(b"v"),
                lease: -1,
            },
            PlainKv {
                key: big.clone(),
                mod_revision: i64::MAX,
                value: big,
                ..PlainKv::default()
            },
        ]
    }

    fn fields(kv: &PlainKv) -> KvFields<'_> {
        KvFields {
            key: &kv.key,
            value: &kv.value,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
        }
    }

    #[test]
    fn a_range_with_encoded_pairs_has_the_bytes_of_a_plain_one() {
        let header = Some(ResponseHeader {
            cluster_id: 9,
            member_id: 8,
            revision: 7,
            raft_term: 6,
        });
        let kvs = samples();
        let encoded = RangeResponse {
            header,
            kvs: kvs
                .iter()
                .map(|kv| EncodedKv::encode(&fields(kv)))
                .collect(),
            more: true,
            count: 3,
        };
        let plain = PlainRange {
            header,
            kvs,
            more: true,
            count: 3,
        };
        assert_eq!(encoded.encode_to_vec(), plain.encode_to_vec());
        assert_eq!(
            RangeResponse::decode(&plain.encode_to_vec()[..]),
            Ok(encoded)
        );
    }

    #[test]
    fn fields_come_back_and_share_the_buffer() {
        for kv in samples() {
            let encoded = EncodedKv::encode(&fields(&kv));
            assert_eq!(encoded.0, kv.encode_to_vec());
            assert_eq!(encoded.fields(), Ok(fields(&kv)));
            assert_eq!(encoded.key(), Ok(kv.key));
            assert_eq!(encoded.value(), Ok(kv.value));
        }
    }

    #[test]
    fn broken_bytes_are_an_error_and_not_a_panic() {
        let whole = EncodedKv::encode(&fields(&samples()[1]));
        let cut = EncodedKv(whole.0.slice(..2));
        assert!(cut.fields().is_err());
        assert!(
            EncodedKv(Bytes::from_static(&[0x0a, 0xff, 0xff, 0xff]))
                .key()
                .is_err()
        );
        assert!(
            EncodedKv(Bytes::from_static(&[0x0d, 0, 0, 0, 0]))
                .fields()
                .is_err()
        );
    }

    #[test]
    fn every_api_error_keeps_its_code_and_text() {
        for &error in ApiError::ALL {
            let status = Status::from(error);
            assert_eq!(
                (status.code, &*status.message),
                (error.code(), error.text())
            );
        }
    }
}
