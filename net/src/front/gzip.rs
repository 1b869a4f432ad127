//! Decompression of requests: etcd registers gzip, so its clients may send it.
//!
//! Stateless. Replies are never compressed: a client must take them plain, and values are mostly
//! small or already compressed.

use std::io::Read;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use ringkv_engine::error::Code;

use crate::wire::Status;

/// Unpacks one message, which may have at most `bytes_max` bytes.
///
/// # Errors
/// grpc-go's: if it is no gzip, or larger.
pub fn unpack(packed: &[u8], bytes_max: usize) -> Result<Bytes, Status> {
    let mut plain = Vec::new();
    // One byte more than allowed, to tell the largest message from a larger one.
    let mut reader = MultiGzDecoder::new(packed).take((bytes_max as u64).saturating_add(1));
    reader.read_to_end(&mut plain).map_err(|error| {
        let message = format!("grpc: failed to decompress the received message: {error}");
        Status::new(Code::Internal, message)
    })?;
    if plain.len() > bytes_max {
        let message =
            format!("grpc: received message after decompression larger than max {bytes_max}");
        return Err(Status::new(Code::ResourceExhausted, message));
    }
    Ok(Bytes::from(plain))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn pack(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_was_packed_comes_back_up_to_the_limit() {
        let plain = vec![7; 1000];
        assert_eq!(unpack(&pack(&plain), 1000).unwrap(), plain);
        let error = unpack(&pack(&plain), 999).unwrap_err();
        assert_eq!(error.code, Code::ResourceExhausted);
        assert_eq!(
            error.message,
            "grpc: received message after decompression larger than max 999"
        );
    }

    #[test]
    fn what_is_no_gzip_is_refused() {
        assert_eq!(unpack(b"nonsense", 9).unwrap_err().code, Code::Internal);
        assert_eq!(
            unpack(&pack(&[7; 1000])[..20], 1000).unwrap_err().code,
            Code::Internal
        );
    }
}
