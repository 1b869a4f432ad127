//! HPACK (RFC 7541) as a load generator needs it, both directions of one connection.
//!
//! Requests: the same few fields each time. The first block sends them literally *with indexing*,
//! each later block is one byte a field. Replies: every block is decoded in full, because the
//! dynamic table depends on all of it, but only `:status`, `grpc-status` and `grpc-message` are
//! kept; of all other fields only the size.
//!
//! Owned by one session (one connection, one thread). Not here: Huffman encoding, sensitive fields.

use std::collections::VecDeque;

use crate::huffman;

/// Table size both sides start with (RFC 7540, 6.5.2); we never announce another.
const TABLE_BYTES: usize = 4096;
/// What an entry costs beside its name and value (RFC 7541, 4.1).
const ENTRY_BYTES: usize = 32;
const STATIC_ENTRIES: usize = 61;

/// Names of the static table, 1-based in the RFC.
#[rustfmt::skip]
const STATIC_NAMES: [&str; STATIC_ENTRIES] = [
    ":authority", ":method", ":method", ":path", ":path", ":scheme", ":scheme", ":status",
    ":status", ":status", ":status", ":status", ":status", ":status", "accept-charset",
    "accept-encoding", "accept-language", "accept-ranges", "accept",
    "access-control-allow-origin", "age", "allow", "authorization", "cache-control",
    "content-disposition", "content-encoding", "content-language", "content-length",
    "content-location", "content-range", "content-type", "cookie", "date", "etag", "expect",
    "expires", "from", "host", "if-match", "if-modified-since", "if-none-match", "if-range",
    "if-unmodified-since", "last-modified", "link", "location", "max-forwards",
    "proxy-authenticate", "proxy-authorization", "range", "referer", "refresh", "retry-after",
    "server", "set-cookie", "strict-transport-security", "transfer-encoding", "user-agent", "vary",
    "via", "www-authenticate",
];
/// Values of the `:status` entries, static indices 8 to 14.
const STATIC_STATUS: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
const STATIC_STATUS_FIRST: usize = 8;

/// What a reply's header block said, as far as a gRPC client cares.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Fields {
    /// `:status`, the HTTP status.
    pub http_status: Option<u16>,
    /// `grpc-status`.
    pub grpc_status: Option<u32>,
    /// `grpc-message`, percent-decoded.
    pub grpc_message: Option<String>,
}

/// One field of the dynamic table, or the result of reading one.
#[derive(Debug, Clone)]
enum Field {
    HttpStatus(u16),
    GrpcStatus(u32),
    GrpcMessage(String),
    Other { name_bytes: u32 },
}

#[derive(Debug, Clone, Copy)]
enum Name {
    HttpStatus,
    GrpcStatus,
    GrpcMessage,
    Other { bytes: u32 },
}

/// Decoder of one connection's reply blocks.
#[derive(Debug)]
pub struct Decoder {
    /// Newest first, with each entry's size in bytes.
    table: VecDeque<(Field, usize)>,
    table_bytes: usize,
    table_bytes_max: usize,
}

impl Decoder {
    /// A decoder with the empty table both sides start with.
    pub fn new() -> Decoder {
        Decoder {
            table: VecDeque::new(),
            table_bytes: 0,
            table_bytes_max: TABLE_BYTES,
        }
    }

    /// Decodes one whole header block.
    ///
    /// # Errors
    /// What is malformed; the connection is then unusable.
    pub fn decode(&mut self, block: &[u8]) -> Result<Fields, &'static str> {
        let mut fields = Fields::default();
        let mut input = block;
        while let Some(&first) = input.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut input, 7)?;
                keep(&mut fields, &self.indexed(index)?);
            } else if first & 0x40 != 0 {
                let (field, bytes) = self.literal(&mut input, 6)?;
                keep(&mut fields, &field);
                self.insert(field, bytes);
            } else if first & 0x20 != 0 {
                let bytes_max = integer(&mut input, 5)?;
                if bytes_max > TABLE_BYTES {
                    return Err("header table larger than we allow");
                }
                self.table_bytes_max = bytes_max;
                self.evict();
            } else {
                let (field, _) = self.literal(&mut input, 4)?;
                keep(&mut fields, &field);
            }
        }
        Ok(fields)
    }

    fn indexed(&self, index: usize) -> Result<Field, &'static str> {
        if index == 0 {
            return Err("header index 0");
        }
        if index > STATIC_ENTRIES {
            let entry = self.table.get(index - STATIC_ENTRIES - 1);
            return entry
                .map(|(field, _)| field.clone())
                .ok_or("header index beyond the table");
        }
        let status = index
            .checked_sub(STATIC_STATUS_FIRST)
            .and_then(|at| STATIC_STATUS.get(at));
        Ok(match status {
            Some(&status) => Field::HttpStatus(status),
            None => Field::Other {
                name_bytes: STATIC_NAMES[index - 1].len() as u32,
            },
        })
    }

    /// Reads a literal field whose name index has `prefix_bits`; also its size as a table entry.
    fn literal(&self, input: &mut &[u8], prefix_bits: u32) -> Result<(Field, usize), &'static str> {
        let index = integer(input, prefix_bits)?;
        let name = match index {
            0 => name_of(&string(input)?),
            _ => match self.indexed(index)? {
                Field::HttpStatus(_) => Name::HttpStatus,
                Field::GrpcStatus(_) => Name::GrpcStatus,
                Field::GrpcMessage(_) => Name::GrpcMessage,
                Field::Other { name_bytes } => Name::Other { bytes: name_bytes },
            },
        };
        let value = string(input)?;
        let (field, name_bytes) = match name {
            Name::HttpStatus => (
                Field::HttpStatus(number(&value).ok_or("malformed :status")?),
                ":status".len(),
            ),
            Name::GrpcStatus => (
                Field::GrpcStatus(number(&value).ok_or("malformed grpc-status")?),
                "grpc-status".len(),
            ),
            Name::GrpcMessage => (Field::GrpcMessage(percent(&value)), "grpc-message".len()),
            Name::Other { bytes } => (Field::Other { name_bytes: bytes }, bytes as usize),
        };
        Ok((field, name_bytes + value.len() + ENTRY_BYTES))
    }

    fn insert(&mut self, field: Field, bytes: usize) {
        self.table.push_front((field, bytes));
        self.table_bytes += bytes;
        // An entry larger than the whole table empties it, itself included (RFC 7541, 4.4).
        self.evict();
    }

    fn evict(&mut self) {
        while self.table_bytes > self.table_bytes_max {
            let (_, bytes) = self.table.pop_back().expect("a positive size has entries");
            self.table_bytes -= bytes;
        }
    }
}

fn keep(fields: &mut Fields, field: &Field) {
    match field {
        Field::HttpStatus(status) => fields.http_status = Some(*status),
        Field::GrpcStatus(status) => fields.grpc_status = Some(*status),
        Field::GrpcMessage(text) => fields.grpc_message = Some(text.clone()),
        Field::Other { .. } => {}
    }
}

fn name_of(name: &[u8]) -> Name {
    match name {
        b":status" => Name::HttpStatus,
        b"grpc-status" => Name::GrpcStatus,
        b"grpc-message" => Name::GrpcMessage,
        _ => Name::Other {
            bytes: name.len() as u32,
        },
    }
}

fn number<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    str::from_utf8(value).ok()?.parse().ok()
}

/// Undoes gRPC's percent-encoding; a lone `%` stays, as the gRPC specification wants.
fn percent(value: &[u8]) -> String {
    let mut out = Vec::with_capacity(value.len());
    let mut at = 0;
    while at < value.len() {
        let code = value
            .get(at + 1..at + 3)
            .and_then(|hex| str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if value[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(value[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Reads an integer with `prefix_bits` in its first byte (RFC 7541, 5.1), at most 28 bits more.
fn integer(input: &mut &[u8], prefix_bits: u32) -> Result<usize, &'static str> {
    let mask = (1usize << prefix_bits) - 1;
    let (&first, mut rest) = input.split_first().ok_or("header block ends early")?;
    let mut value = usize::from(first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (&byte, tail) = rest.split_first().ok_or("header block ends early")?;
            rest = tail;
            if shift > 21 {
                return Err("header integer too large");
            }
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *input = rest;
    Ok(value)
}

/// Reads a string, plain or Huffman-coded.
fn string(input: &mut &[u8]) -> Result<Vec<u8>, &'static str> {
    let huffman_coded = input.first().is_some_and(|first| first & 0x80 != 0);
    let bytes = integer(input, 7)?;
    let (raw, rest) = input
        .split_at_checked(bytes)
        .ok_or("header string ends early")?;
    *input = rest;
    if !huffman_coded {
        return Ok(raw.to_vec());
    }
    let mut out = Vec::with_capacity(bytes * 2);
    huffman::decode(raw, &mut out).ok_or("malformed Huffman string")?;
    Ok(out)
}

/// Encoder of one connection's request blocks, all with the same fields.
#[derive(Debug)]
pub struct Encoder {
    /// Every field as a literal with indexing, with the table-size update they may need in front.
    literal: Vec<u8>,
    /// Every field as an index, valid after `literal` was sent once; the literal block without
    /// indexing where the server's table is too small.
    indexed: Vec<u8>,
    literal_is_due: bool,
    path: String,
    authority: String,
}

impl Encoder {
    /// An encoder for gRPC requests to `path` at `authority` (`host:port`).
    pub fn new(path: &str, authority: &str) -> Encoder {
        let (path, authority) = (path.to_owned(), authority.to_owned());
        let (literal, indexed) = (Vec::new(), Vec::new());
        let mut encoder = Encoder {
            literal,
            indexed,
            literal_is_due: true,
            path,
            authority,
        };
        encoder.rebuild(None);
        encoder
    }

    /// The server's SETTINGS_HEADER_TABLE_SIZE: start over with an emptied table of that size.
    pub fn resize(&mut self, table_bytes: u32) {
        self.rebuild(Some(TABLE_BYTES.min(table_bytes as usize)));
    }

    /// The next request's header block.
    pub fn block(&mut self) -> &[u8] {
        if std::mem::take(&mut self.literal_is_due) {
            &self.literal
        } else {
            &self.indexed
        }
    }

    fn rebuild(&mut self, resize: Option<usize>) {
        /// Name indices in the static table; 0: the name follows.
        const FIELDS: [(u8, &str); 5] = [
            (4, ":path"),
            (1, ":authority"),
            (31, "content-type"),
            (58, "user-agent"),
            (0, "te"),
        ];
        let values = [
            &self.path,
            &self.authority,
            "application/grpc",
            "ringbench",
            "trailers",
        ];
        let pairs = || FIELDS.into_iter().zip(values);
        let bytes: usize = pairs()
            .map(|((_, n), v)| n.len() + v.len() + ENTRY_BYTES)
            .sum();
        let fits = bytes <= resize.unwrap_or(TABLE_BYTES);

        self.literal.clear();
        if let Some(table_bytes) = resize {
            // To zero first: whatever the server still holds is gone, so indices start over.
            put_integer(&mut self.literal, 0x20, 5, 0);
            put_integer(&mut self.literal, 0x20, 5, table_bytes);
        }
        // Static table: 3 is `:method: POST`, 6 is `:scheme: http`.
        self.indexed.clear();
        self.indexed.extend([0x83, 0x86]);
        self.literal.extend([0x83, 0x86]);
        for (at, ((index, name), value)) in pairs().enumerate() {
            put_literal(&mut self.literal, fits, index, name, value);
            if fits {
                // The newest entry is number 62, so the first of five is number 66.
                let age = FIELDS.len() - 1 - at;
                put_integer(&mut self.indexed, 0x80, 7, STATIC_ENTRIES + 1 + age);
            } else {
                put_literal(&mut self.indexed, false, index, name, value);
            }
        }
        self.literal_is_due = true;
    }
}

fn put_integer(out: &mut Vec<u8>, flags: u8, prefix_bits: u32, value: usize) {
    let mask = (1usize << prefix_bits) - 1;
    if value < mask {
        out.push(flags | value as u8);
        return;
    }
    out.push(flags | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn put_literal(out: &mut Vec<u8>, indexing: bool, index: u8, name: &str, value: &str) {
    let (flags, prefix_bits) = if indexing { (0x40, 6) } else { (0x00, 4) };
    put_integer(out, flags, prefix_bits, usize::from(index));
    if index == 0 {
        put_integer(out, 0, 7, name.len());
        out.extend_from_slice(name.as_bytes());
    }
    put_integer(out, 0, 7, value.len());
    out.extend_from_slice(value.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: String = text.split_whitespace().collect();
        (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
            .collect()
    }

    fn status(fields: &Fields) -> Option<u16> {
        fields.http_status
    }

    /// RFC 7541 C.6: three replies with Huffman strings and a 256-byte table that evicts.
    #[test]
    fn replies_of_the_rfc() {
        let mut decoder = Decoder::new();
        decoder.table_bytes_max = 256;
        let first = "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 \
                     82a6 2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3";
        assert_eq!(status(&decoder.decode(&hex(first)).unwrap()), Some(302));
        assert_eq!((decoder.table.len(), decoder.table_bytes), (4, 222));
        assert_eq!(
            status(&decoder.decode(&hex("4883 640e ffc1 c0bf")).unwrap()),
            Some(307)
        );
        assert_eq!((decoder.table.len(), decoder.table_bytes), (4, 222));
        let third = "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b \
                     d9ab 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 \
                     0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07";
        assert_eq!(status(&decoder.decode(&hex(third)).unwrap()), Some(200));
        assert_eq!((decoder.table.len(), decoder.table_bytes), (3, 215));
    }

    #[test]
    fn trailers_literal_then_indexed() {
        let mut decoder = Decoder::new();
        let mut block = vec![0x40, 11];
        block.extend_from_slice(b"grpc-status\x0214");
        block.extend_from_slice(&[0x40, 12]);
        block.extend_from_slice(b"grpc-message\x09a%20b%zz%");
        let expected = Fields {
            http_status: None,
            grpc_status: Some(14),
            grpc_message: Some("a b%zz%".into()),
        };
        assert_eq!(decoder.decode(&block).unwrap(), expected);
        assert_eq!(
            decoder.decode(&[0xbf, 0xbe]).unwrap(),
            expected,
            "both from the table"
        );
        let renamed = decoder.decode(&[0x0f, 63 - 15, 1, b'0']).unwrap();
        assert_eq!(
            renamed.grpc_status,
            Some(0),
            "a name from the table, not indexed anew"
        );
        let huffman_name = hex("00 88 9acac8b21234da8f 0130");
        assert_eq!(decoder.decode(&huffman_name).unwrap().grpc_status, Some(0));
    }

    #[test]
    fn malformed_blocks_are_refused() {
        let refused = |block: &[u8]| Decoder::new().decode(block).unwrap_err();
        assert_eq!(refused(&[0x80]), "header index 0");
        assert_eq!(refused(&[0xbe]), "header index beyond the table");
        assert_eq!(refused(&[0x48, 5, b'2']), "header string ends early");
        assert_eq!(refused(&[0x48, 1, b'x']), "malformed :status");
        assert_eq!(refused(&[0x48]), "header block ends early");
        assert_eq!(
            refused(&[0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            "header integer too large"
        );
        assert_eq!(
            refused(&[0x3f, 0xe2, 0x1f]),
            "header table larger than we allow"
        );
    }

    #[test]
    fn an_entry_larger_than_the_table_empties_it() {
        let mut decoder = Decoder::new();
        decoder.decode(&hex("4882 6402")).unwrap();
        assert_eq!(decoder.table.len(), 1);
        let mut block = vec![0x58];
        put_integer(&mut block, 0, 7, 5000);
        block.resize(block.len() + 5000, b'x');
        decoder.decode(&block).unwrap();
        assert_eq!((decoder.table.len(), decoder.table_bytes), (0, 0));
    }

    /// Our own blocks through our own decoder: the tables of both sides must agree.
    #[test]
    fn requests_are_literal_once_then_indices() {
        let mut encoder = Encoder::new("/etcdserverpb.KV/Put", "127.0.0.1:2379");
        let mut decoder = Decoder::new();
        decoder.decode(encoder.block()).unwrap();
        assert_eq!(decoder.table.len(), 5);
        assert_eq!(encoder.block(), [0x83, 0x86, 0xc2, 0xc1, 0xc0, 0xbf, 0xbe]);
        decoder.decode(encoder.block()).unwrap();
        assert_eq!(decoder.table.len(), 5, "indices add nothing");

        encoder.resize(1 << 20);
        decoder.decode(encoder.block()).unwrap();
        assert_eq!(
            (decoder.table.len(), decoder.table_bytes_max),
            (5, TABLE_BYTES)
        );
        assert_eq!(encoder.block().len(), 7);

        encoder.resize(64);
        for _ in 0..2 {
            decoder.decode(encoder.block()).unwrap();
            assert_eq!((decoder.table.len(), decoder.table_bytes_max), (0, 64));
        }
    }
}
