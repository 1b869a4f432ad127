//! What a member is before its first entry: ids as etcd computes them.
//!
//! A member's id is the first 8 bytes of a SHA-1 over its peer URLs, sorted and joined, and the
//! cluster token; the cluster's id likewise over the member ids in order.

use ringkv_engine::types::MemberId;
use sha1::{Digest, Sha1};

/// Id of the member with these peer URLs in the cluster with this token.
#[must_use]
pub fn member_id(peer_urls: &[String], token: &str) -> MemberId {
    let mut urls: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    urls.sort_unstable();
    first_8_bytes(&[urls.concat().as_bytes(), token.as_bytes()].concat())
}

/// Id of the cluster of these members.
#[must_use]
pub fn cluster_id(members: &[MemberId]) -> u64 {
    let mut ids = members.to_vec();
    ids.sort_unstable();
    first_8_bytes(
        &ids.iter()
            .flat_map(|id| id.to_be_bytes())
            .collect::<Vec<u8>>(),
    )
}

fn first_8_bytes(bytes: &[u8]) -> u64 {
    let digest = Sha1::digest(bytes);
    u64::from_be_bytes(digest[..8].try_into().expect("20 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_etcds() {
        // What etcd 3.7.1 started with its defaults reports (`etcdctl endpoint status -w json`).
        let member = member_id(&["http://localhost:2380".to_owned()], "etcd-cluster");
        assert_eq!(member, 0x8e9e_05c5_2164_694d);
        assert_eq!(cluster_id(&[member]), 0xcdf8_1819_4e3a_8c32);
    }
}
