//! HTTP/2 frame layout (RFC 7540): heads, kinds, flags, padding, names of error codes.
//!
//! ```text
//! | length 24 | kind 8 | flags 8 | 0 + stream 31 | payload, `length` bytes |
//! ```
//! All integers big-endian. Pure functions; state is the session's.

/// Bytes of a frame's head.
pub const HEAD_BYTES: usize = 9;
/// Largest payload either side may send before it allows more; we never do.
pub const PAYLOAD_BYTES_MAX: usize = 16_384;
/// Largest flow-control window, and the one we open for the server.
pub const WINDOW_BYTES_MAX: u32 = (1 << 31) - 1;
/// The window each connection and stream starts with.
pub const WINDOW_BYTES_DEFAULT: u32 = 65_535;

/// Frame kinds.
pub mod kind {
    /// Message bytes.
    pub const DATA: u8 = 0;
    /// A header block or its beginning.
    pub const HEADERS: u8 = 1;
    /// The server gives up a stream.
    pub const RST_STREAM: u8 = 3;
    /// Parameters of the sender.
    pub const SETTINGS: u8 = 4;
    /// Unwanted: we announce that we take none.
    pub const PUSH_PROMISE: u8 = 5;
    /// To be echoed.
    pub const PING: u8 = 6;
    /// The server takes no more streams.
    pub const GOAWAY: u8 = 7;
    /// Flow-control credit.
    pub const WINDOW_UPDATE: u8 = 8;
    /// The rest of a header block.
    pub const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub mod flag {
    /// SETTINGS, PING: an answer.
    pub const ACK: u8 = 0x1;
    /// DATA, HEADERS: the sender's last frame of the stream.
    pub const END_STREAM: u8 = 0x1;
    /// HEADERS, CONTINUATION: the header block is complete.
    pub const END_HEADERS: u8 = 0x4;
    /// DATA, HEADERS: a pad length byte and padding.
    pub const PADDED: u8 = 0x8;
    /// HEADERS: five bytes of priority.
    pub const PRIORITY: u8 = 0x20;
}

/// Numbers of the settings we read or send.
pub mod setting {
    /// Bytes of the header table the sender keeps for blocks it receives.
    pub const HEADER_TABLE_SIZE: u16 = 1;
    /// Whether the sender takes pushed streams.
    pub const ENABLE_PUSH: u16 = 2;
    /// Streams the sender allows at a time.
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    /// Window of each new stream, bytes.
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    /// Largest payload the sender takes, bytes.
    pub const MAX_FRAME_SIZE: u16 = 5;
}

/// A frame's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Payload length in bytes, below 2^24.
    pub length: usize,
    /// One of `kind`, or a kind to ignore.
    pub kind: u8,
    /// Bits of `flag`, meaning by kind.
    pub flags: u8,
    /// Stream id, 0 for the connection.
    pub stream: u32,
}

impl Head {
    /// Reads the head at the start of `bytes`; `None` while it is incomplete.
    pub fn parse(bytes: &[u8]) -> Option<Head> {
        let &[l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes.first_chunk::<HEAD_BYTES>()?;
        Some(Head {
            length: u32::from_be_bytes([0, l0, l1, l2]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        })
    }

    /// The head as it goes on the wire.
    pub fn encode(self) -> [u8; HEAD_BYTES] {
        debug_assert!(self.length < 1 << 24);
        debug_assert!(self.stream <= WINDOW_BYTES_MAX);
        let [_, l0, l1, l2] = (self.length as u32).to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, self.kind, self.flags, s0, s1, s2, s3]
    }

    /// Whether `bits` of `flag` are set.
    pub fn has(self, bits: u8) -> bool {
        self.flags & bits != 0
    }
}

/// Appends a whole frame.
pub fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(
        &Head {
            length: payload.len(),
            kind,
            flags,
            stream,
        }
        .encode(),
    );
    out.extend_from_slice(payload);
}

/// The payload of a DATA or HEADERS frame without padding and priority.
pub fn unpad(head: Head, payload: &[u8]) -> Option<&[u8]> {
    let mut inner = payload;
    if head.has(flag::PADDED) {
        let (&pad, rest) = inner.split_first()?;
        inner = rest.get(..rest.len().checked_sub(usize::from(pad))?)?;
    }
    if head.kind == kind::HEADERS && head.has(flag::PRIORITY) {
        inner = inner.get(5..)?;
    }
    Some(inner)
}

/// The 32-bit integer at the start of `payload` of the frame kinds that have one.
pub fn integer(payload: &[u8]) -> Option<u32> {
    payload
        .first_chunk()
        .map(|bytes| u32::from_be_bytes(*bytes))
}

/// Name of an HTTP/2 error code.
pub fn error_name(code: u32) -> &'static str {
    const NAMES: [&str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    NAMES.get(code as usize).copied().unwrap_or("unknown error")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn head_layout() {
        let head = Head {
            length: 0x01_0203,
            kind: 9,
            flags: 4,
            stream: 0x7fff_fffe,
        };
        assert_eq!(head.encode(), [1, 2, 3, 9, 4, 0x7f, 0xff, 0xff, 0xfe]);
        assert_eq!(Head::parse(&[0; 8]), None);
        let reserved_bit = Head::parse(&[0, 0, 0, 0, 0, 0x80, 0, 0, 1]).unwrap();
        assert_eq!(reserved_bit.stream, 1);
    }

    #[test]
    fn padding_and_priority_are_cut() {
        let head = |kind, flags| Head {
            length: 0,
            kind,
            flags,
            stream: 1,
        };
        let padded = head(kind::DATA, flag::PADDED);
        assert_eq!(unpad(padded, &[2, 7, 0, 0]), Some(&[7][..]));
        assert_eq!(
            unpad(padded, &[4, 7, 0, 0]),
            None,
            "padding longer than the frame"
        );
        assert_eq!(unpad(padded, &[]), None);
        let both = head(kind::HEADERS, flag::PADDED | flag::PRIORITY);
        assert_eq!(unpad(both, &[1, 0, 0, 0, 0, 0, 8, 0]), Some(&[8][..]));
        assert_eq!(unpad(both, &[1, 0, 0, 0, 0, 0]), None);
        assert_eq!(
            unpad(head(kind::DATA, flag::PRIORITY), &[1]),
            Some(&[1][..])
        );
    }

    proptest! {
        #[test]
        fn heads_survive(
            length in 0usize..1 << 24, kind: u8, flags: u8, stream in 0u32..1 << 31,
        ) {
            let head = Head { length, kind, flags, stream };
            prop_assert_eq!(Head::parse(&head.encode()), Some(head));
        }
    }
}
