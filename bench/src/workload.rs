//! What is asked of the server: the calls' bodies, key by key.
//!
//! A body is built once; each call only rewrites the key's digits in it. Keys are decimal numbers
//! below the key space, zero-padded to the key size, so they sort by number. Each load thread owns
//! its own `Bodies`. Not here: when a call starts (pace), how it travels (session).

use crate::session::GRPC_PREFIX_BYTES;

/// The call to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Write one key.
    Put {
        /// Value size in bytes.
        value_bytes: usize,
    },
    /// Read one key.
    Range {
        /// Read the member's own state instead of the cluster's.
        serializable: bool,
    },
}

impl Operation {
    /// The gRPC method.
    pub fn path(self) -> &'static str {
        match self {
            Operation::Put { .. } => "/etcdserverpb.KV/Put",
            Operation::Range { .. } => "/etcdserverpb.KV/Range",
        }
    }

    /// The word of the command line.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Put { .. } => "put",
            Operation::Range { .. } => "range",
        }
    }

    /// What a session checks in a reply: for a range, that it holds a key.
    pub fn inspect(self) -> fn(&[u8]) -> bool {
        match self {
            Operation::Put { .. } => |_| true,
            Operation::Range { .. } => range_found,
        }
    }
}

/// Which keys are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keys {
    /// Size of the key space, at least 1.
    pub count: u64,
    /// Key size in bytes, at least the digits of `count - 1`.
    pub bytes: usize,
    /// The seed of random keys; `None`: one after the other, then again from the first.
    pub seed: Option<u64>,
}

/// The bodies of one load thread.
#[derive(Debug)]
pub struct Bodies {
    body: Vec<u8>,
    key_at: usize,
    keys: Keys,
    random: u64,
    next: u64,
    step: u64,
}

impl Bodies {
    /// The bodies of thread `thread` of `threads`: sequential threads share the key space out.
    ///
    /// # Panics
    /// When the key size cannot hold the key space: arguments are checked before.
    pub fn new(operation: Operation, keys: Keys, thread: u64, threads: u64) -> Bodies {
        assert!(keys.count > 0);
        assert!((keys.count - 1).to_string().len() <= keys.bytes);
        let mut body = vec![0; GRPC_PREFIX_BYTES];
        put_tag(&mut body, 1, keys.bytes);
        let key_at = body.len();
        body.resize(key_at + keys.bytes, b'0');
        match operation {
            Operation::Put { value_bytes } => {
                put_tag(&mut body, 2, value_bytes);
                let mut state = 0x5eed;
                body.extend((0..value_bytes).map(|_| 0x20 + (random(&mut state) % 0x5f) as u8));
            }
            // Field 7 of RangeRequest, a varint.
            Operation::Range { serializable: true } => body.extend([7 << 3, 1]),
            Operation::Range {
                serializable: false,
            } => {}
        }
        let message_bytes = u32::try_from(body.len() - GRPC_PREFIX_BYTES).expect("checked sizes");
        body[1..GRPC_PREFIX_BYTES].copy_from_slice(&message_bytes.to_be_bytes());
        // Distinct streams for distinct threads of one seed.
        let random = keys
            .seed
            .unwrap_or(0)
            .wrapping_add(thread.wrapping_mul(0xa076_1d64_78bd_642f));
        Bodies {
            body,
            key_at,
            keys,
            random,
            next: thread % keys.count,
            step: threads,
        }
    }

    /// The next call's body: gRPC prefix and message.
    pub fn next(&mut self) -> &[u8] {
        let mut number = match self.keys.seed {
            // Multiply-shift instead of a remainder: no division, bias below 2^-32.
            Some(_) => {
                ((u128::from(random(&mut self.random)) * u128::from(self.keys.count)) >> 64) as u64
            }
            None => {
                let number = self.next;
                self.next = (self.next + self.step) % self.keys.count;
                number
            }
        };
        for digit in self.body[self.key_at..self.key_at + self.keys.bytes]
            .iter_mut()
            .rev()
        {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        debug_assert_eq!(number, 0);
        &self.body
    }
}

/// splitmix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Appends the tag and length of a bytes field.
fn put_tag(out: &mut Vec<u8>, field: u8, bytes: usize) {
    out.push(field << 3 | 2);
    let mut rest = bytes;
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Whether a RangeResponse holds a key: field 2 follows the header, field 1. One length byte is
/// enough for the header: four integers of at most 11 bytes each.
fn range_found(message: &[u8]) -> bool {
    let rest = match message {
        [0x0a, bytes, rest @ ..] => rest.get(usize::from(*bytes)..).unwrap_or(&[]),
        other => other,
    };
    rest.first() == Some(&0x12)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: u64, seed: Option<u64>) -> Keys {
        Keys {
            count,
            bytes: 4,
            seed,
        }
    }

    fn key_of(body: &[u8]) -> u64 {
        str::from_utf8(&body[7..11]).unwrap().parse().unwrap()
    }

    #[test]
    fn bodies_are_protobuf() {
        let put = Operation::Put { value_bytes: 300 };
        let mut bodies = Bodies::new(put, keys(10, None), 3, 8);
        let body = bodies.next();
        assert_eq!(body.len(), 5 + 6 + 3 + 300);
        assert_eq!(body[..14], *b"\0\0\0\x01\x35\x0a\x040003\x12\xac\x02");
        let range = Operation::Range { serializable: true };
        let mut bodies = Bodies::new(range, keys(10, None), 0, 1);
        assert_eq!(bodies.next(), b"\0\0\0\0\x08\x0a\x040000\x38\x01");
    }

    #[test]
    fn sequential_threads_cover_the_key_space_together() {
        let range = Operation::Range {
            serializable: false,
        };
        let mut seen: Vec<u64> = (0..3)
            .flat_map(|thread| {
                let mut bodies = Bodies::new(range, keys(12, None), thread, 3);
                (0..4).map(|_| key_of(bodies.next())).collect::<Vec<_>>()
            })
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..12).collect::<Vec<_>>());
    }

    #[test]
    fn random_keys_follow_the_seed_and_stay_in_the_key_space() {
        let range = Operation::Range {
            serializable: false,
        };
        let draw = |seed, thread| {
            let mut bodies = Bodies::new(range, keys(100, Some(seed)), thread, 2);
            (0..1000).map(|_| key_of(bodies.next())).collect::<Vec<_>>()
        };
        assert_eq!(draw(7, 0), draw(7, 0));
        assert_ne!(draw(7, 0), draw(8, 0));
        assert_ne!(draw(7, 0), draw(7, 1));
        let mut distinct = draw(7, 0);
        distinct.sort_unstable();
        distinct.dedup();
        assert!(distinct.len() > 90, "{} of 100 keys drawn", distinct.len());
        assert!(*distinct.last().unwrap() < 100);
    }

    #[test]
    fn a_miss_is_told_from_a_hit() {
        assert!(range_found(b"\x0a\x02\x18\x05\x12\x03\x0a\x01k\x20\x01"));
        assert!(!range_found(b"\x0a\x02\x18\x05"));
        assert!(
            !range_found(b"\x0a\x02\x18\x05\x20\x01"),
            "count without keys"
        );
        assert!(!range_found(b""));
        assert!(!range_found(b"\x0a\x7f\x18"));
    }
}
