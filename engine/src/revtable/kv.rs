//! `mvccpb.KeyValue` as bytes: the one form in which a revision is kept, hashed, sent and exported.
//!
//! Fields in ascending order, zero fields left out, as etcd's own encoder writes them: HashKV is
//! computed over these bytes and must equal etcd's.
//! Field numbers: 1 key, 2 create_revision, 3 mod_revision, 4 version, 5 value, 6 lease.

const KEY: u8 = 0x0a;
const CREATE: u8 = 0x10;
const MOD: u8 = 0x18;
const VERSION: u8 = 0x20;
const VALUE: u8 = 0x2a;
const LEASE: u8 = 0x30;

/// A few bytes on the stack.
#[derive(Clone, Copy)]
pub struct Small<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Small<N> {
    /// Empty.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    /// Appends one byte. # Panics: beyond N bytes.
    pub fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    /// Appends a protobuf varint.
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    fn field(&mut self, tag: u8, value: u64) {
        if value != 0 {
            self.push(tag);
            self.varint(value);
        }
    }

    /// What was appended.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl<const N: usize> Default for Small<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// The pieces round key and value; `parts` puts them together.
pub struct Encoder<'a> {
    key_head: Small<6>,
    key: &'a [u8],
    numbers: Small<39>,
    value: &'a [u8],
    lease: Small<11>,
}

impl<'a> Encoder<'a> {
    /// Of a live revision.
    #[must_use]
    pub fn put(
        key: &'a [u8],
        created: u64,
        modified: u64,
        version: u64,
        value: &'a [u8],
        lease: i64,
    ) -> Self {
        let mut e = Self::tombstone(key);
        e.numbers.field(CREATE, created);
        e.numbers.field(MOD, modified);
        e.numbers.field(VERSION, version);
        if !value.is_empty() {
            e.numbers.push(VALUE);
            e.numbers.varint(value.len() as u64);
        }
        e.value = value;
        e.lease.field(LEASE, lease as u64);
        e
    }

    /// Of a tombstone: only the key.
    #[must_use]
    pub fn tombstone(key: &'a [u8]) -> Self {
        assert!(!key.is_empty(), "etcd has no empty key");
        let mut key_head = Small::new();
        key_head.push(KEY);
        key_head.varint(key.len() as u64);
        Self {
            key_head,
            key,
            numbers: Small::new(),
            value: &[],
            lease: Small::new(),
        }
    }

    /// Of a delete event: key and mod revision, as etcd's watch sends it.
    #[must_use]
    pub fn deleted(key: &'a [u8], modified: u64) -> Self {
        let mut e = Self::tombstone(key);
        e.numbers.field(MOD, modified);
        e
    }

    /// To be concatenated.
    #[must_use]
    pub fn parts(&self) -> [&[u8]; 5] {
        [
            self.key_head.as_slice(),
            self.key,
            self.numbers.as_slice(),
            self.value,
            self.lease.as_slice(),
        ]
    }

    /// Bytes of all parts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts().iter().map(|p| p.len()).sum()
    }

    /// Never: there is always a key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// The fields of an encoded KeyValue, borrowed from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "etcd's field names")]
pub struct Fields<'a> {
    pub key: &'a [u8],
    pub created: u64,
    pub modified: u64,
    pub version: u64,
    pub value: &'a [u8],
    pub lease: i64,
}

impl<'a> Fields<'a> {
    /// Reads what [`Encoder`] wrote.
    ///
    /// # Panics
    /// When `kv` is anything else: records are checked where bytes enter (disk, network).
    #[must_use]
    pub fn of(kv: &'a [u8]) -> Self {
        Self::checked(kv).expect("a record is checked before it is kept")
    }

    /// Reads an encoded KeyValue of unknown origin; `None` if it is not one that [`Encoder`]
    /// writes.
    #[must_use]
    pub fn checked(kv: &'a [u8]) -> Option<Self> {
        let mut f = Self::default();
        let mut rest = kv;
        let mut last_tag = 0;
        while let Some((&tag, after)) = rest.split_first() {
            if tag <= last_tag {
                return None;
            }
            last_tag = tag;
            let (number, after) = varint(after)?;
            rest = after;
            match tag {
                KEY | VALUE => {
                    let (bytes, after) = rest.split_at_checked(usize::try_from(number).ok()?)?;
                    rest = after;
                    *(if tag == KEY { &mut f.key } else { &mut f.value }) = bytes;
                }
                CREATE => f.created = number,
                MOD => f.modified = number,
                VERSION => f.version = number,
                LEASE => f.lease = number as i64,
                _ => return None,
            }
        }
        (!f.key.is_empty()).then_some(f)
    }
}

/// The key of an encoded KeyValue, without looking at the rest.
#[must_use]
pub fn key(kv: &[u8]) -> &[u8] {
    assert_eq!(kv[0], KEY, "a KeyValue begins with its key");
    let (len, rest) = varint(&kv[1..]).expect("a record is checked before it is kept");
    &rest[..len as usize]
}

/// Reads a protobuf varint; the value and what follows it.
#[must_use]
pub fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (i, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * i as u32)?;
        if byte < 0x80 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

/// Bytes that `value` takes as a protobuf varint.
#[must_use]
pub const fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back() {
        let e = Encoder::put(b"k", 2, 300, 7, b"value", -1);
        let bytes = e.parts().concat();
        assert_eq!(bytes.len(), e.len());
        let f = Fields::of(&bytes);
        let want = Fields {
            key: b"k",
            created: 2,
            modified: 300,
            version: 7,
            value: b"value",
            lease: -1,
        };
        assert_eq!(f, want);
        assert_eq!(key(&bytes), b"k");
    }

    #[test]
    fn bytes_are_etcds() {
        // protoc's own encoding of KeyValue{key:"foo" create:2 mod:2 version:1 value:"bar"}.
        let bytes = Encoder::put(b"foo", 2, 2, 1, b"bar", 0).parts().concat();
        assert_eq!(bytes, b"\x0a\x03foo\x10\x02\x18\x02\x20\x01\x2a\x03bar");
        assert_eq!(Encoder::tombstone(b"foo").parts().concat(), b"\x0a\x03foo");
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            &b""[..],
            b"\x10\x02",
            b"\x0a\x05foo",
            b"\x0a\x03foo\x10",
            b"\x0a\x03foo\x3a\x00",
        ] {
            assert_eq!(Fields::checked(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn varint_lengths() {
        for v in [0, 1, 127, 128, 16383, 16384, u64::MAX] {
            let mut s = Small::<10>::new();
            s.varint(v);
            assert_eq!(s.as_slice().len(), varint_len(v));
            assert_eq!(varint(s.as_slice()), Some((v, &[][..])));
        }
    }
}
