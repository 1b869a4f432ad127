//! The Cluster service: who the members are. Changes of membership are not there yet.

use crate::node::Node;
use crate::pb::etcdserverpb::*;
use crate::wire::Status;

/// Cluster.MemberList.
///
/// # Errors
/// etcd's.
pub async fn member_list(
    node: &Node,
    request: &MemberListRequest,
) -> Result<MemberListResponse, Status> {
    if request.linearizable {
        node.shard.read_gate().await?;
    }
    let registry = node.shard.registry();
    let members = registry.members.iter().map(|(id, member)| Member {
        id: *id,
        name: member.name.clone(),
        peer_ur_ls: member.peer_urls.clone(),
        client_ur_ls: member.client_urls.clone(),
        is_learner: member.learner,
    });
    // etcd leaves the revision out here.
    let header = node.header().at(0);
    Ok(MemberListResponse {
        header,
        members: members.collect(),
    })
}
