//! The Huffman code of HPACK (RFC 7541, appendix B): decoding only, for header strings of servers.
//!
//! The code is canonical: within one length codes rise with the symbol. So the 257 lengths are the
//! whole table and the codes are computed from them at compile time. Pure, no state, any thread.
//!
//! Not here: encoding. Our requests send plain strings once and indices ever after.

/// Symbols of the code: 256 bytes and the end-of-string mark.
const SYMBOLS: usize = 257;
/// The end-of-string mark; a string that contains it is malformed.
const END: u16 = 256;
const CODE_BITS_MIN: usize = 5;
const CODE_BITS_MAX: usize = 30;

/// Length in bits of each symbol's code.
#[rustfmt::skip]
const CODE_BITS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28,
    30, 28, 28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11,
    8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20,
    22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21,
    22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23,
    22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26,
    28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27,
    26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// Canonical decoding tables: per length the first code, how many codes, and where their symbols
/// start in `symbols` (all symbols ordered by code).
struct Canon {
    first: [u32; CODE_BITS_MAX + 1],
    count: [u32; CODE_BITS_MAX + 1],
    start: [u32; CODE_BITS_MAX + 1],
    symbols: [u16; SYMBOLS],
}

static CANON: Canon = canon();

const fn canon() -> Canon {
    let mut canon = Canon {
        first: [0; CODE_BITS_MAX + 1],
        count: [0; CODE_BITS_MAX + 1],
        start: [0; CODE_BITS_MAX + 1],
        symbols: [0; SYMBOLS],
    };
    let mut placed = 0;
    let mut code = 0;
    let mut bits = 1;
    while bits <= CODE_BITS_MAX {
        code <<= 1;
        canon.first[bits] = code;
        canon.start[bits] = placed as u32;
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if CODE_BITS[symbol] as usize == bits {
                canon.symbols[placed] = symbol as u16;
                placed += 1;
                canon.count[bits] += 1;
                code += 1;
            }
            symbol += 1;
        }
        bits += 1;
    }
    assert!(placed == SYMBOLS);
    assert!(
        code == 1 << CODE_BITS_MAX,
        "the code must use every bit pattern"
    );
    canon
}

/// Appends the decoded string to `out`; `None` when `input` is malformed (end mark inside, padding
/// of 8 bits or more, padding that is not all ones).
pub fn decode(input: &[u8], out: &mut Vec<u8>) -> Option<()> {
    // `held` holds the `held_bits` undecoded bits in its low end.
    let mut held: u64 = 0;
    let mut held_bits = 0;
    for &byte in input {
        held = (held << 8) | u64::from(byte);
        held_bits += 8;
        while let Some((symbol, bits)) = symbol(held, held_bits) {
            if symbol == END {
                return None;
            }
            out.push(symbol as u8);
            held_bits -= bits;
            held &= (1 << held_bits) - 1;
        }
        debug_assert!(held_bits < CODE_BITS_MAX);
    }
    let padding_is_ones = held == (1 << held_bits) - 1;
    (held_bits < 8 && padding_is_ones).then_some(())
}

/// The symbol at the high end of the `held_bits` low bits of `held`, and its length in bits.
fn symbol(held: u64, held_bits: usize) -> Option<(u16, usize)> {
    for bits in CODE_BITS_MIN..=CODE_BITS_MAX.min(held_bits) {
        let code = (held >> (held_bits - bits)) as u32;
        let offset = code.wrapping_sub(CANON.first[bits]);
        if code >= CANON.first[bits] && offset < CANON.count[bits] {
            return Some((CANON.symbols[(CANON.start[bits] + offset) as usize], bits));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(hex: &str) -> Option<String> {
        let bytes: Vec<u8> = hex
            .split_whitespace()
            .flat_map(|word| (0..word.len()).step_by(2).map(move |at| &word[at..at + 2]))
            .map(|pair| u8::from_str_radix(pair, 16).unwrap())
            .collect();
        let mut out = Vec::new();
        decode(&bytes, &mut out)?;
        Some(String::from_utf8(out).unwrap())
    }

    /// The naive encoder: each symbol's code as text of 0 and 1.
    fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = String::new();
        for &byte in text {
            let rank = CANON
                .symbols
                .iter()
                .position(|&s| s == u16::from(byte))
                .unwrap() as u32;
            let length = usize::from(CODE_BITS[usize::from(byte)]);
            let code = CANON.first[length] + rank - CANON.start[length];
            bits.push_str(&format!("{code:0length$b}"));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        let octets = bits.as_bytes().chunks(8);
        octets
            .map(|o| u8::from_str_radix(str::from_utf8(o).unwrap(), 2).unwrap())
            .collect()
    }

    #[test]
    fn examples_of_the_rfc() {
        assert_eq!(
            decoded("f1e3 c2e5 f23a 6ba0 ab90 f4ff").unwrap(),
            "www.example.com"
        );
        assert_eq!(decoded("a8eb 1064 9cbf").unwrap(), "no-cache");
        assert_eq!(decoded("6402").unwrap(), "302");
        assert_eq!(decoded("aec3 771a 4b").unwrap(), "private");
        assert_eq!(
            decoded("d07a be94 1054 d444 a820 0595 040b 8166 e082 a62d 1bff").unwrap(),
            "Mon, 21 Oct 2013 20:13:21 GMT"
        );
        assert_eq!(
            decoded(
                "94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 \
                 3160 65c0 03ed 4ee5 b106 3d50 07"
            )
            .unwrap(),
            "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
        );
    }

    #[test]
    fn malformed_strings_are_refused() {
        assert_eq!(decoded("ffff ffff"), None, "end of string mark");
        assert_eq!(
            decoded("f1e3 c2e5 f23a 6ba0 ab90 f4ff ff"),
            None,
            "a whole byte of padding"
        );
        assert_eq!(decoded("07").unwrap(), "0");
        assert_eq!(decoded("00"), None, "padding of zeros");
    }

    proptest! {
        #[test]
        fn every_byte_string_survives(text in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut out = Vec::new();
            prop_assert!(decode(&encode(&text), &mut out).is_some());
            prop_assert_eq!(out, text);
        }
    }
}
