//! The service boundary: every RPC as a plain async function over prost messages.
//!
//! One [`Services`] value per shard answers all calls of its core. It may be `!Send`, knows no
//! HTTP, no gRPC framing and no socket; the front owns those and can be replaced without touching a
//! service. An RPC that an implementation leaves out answers `Unimplemented`.
//!
//! A call is cancelled (its future dropped at the next await) when its client resets the stream,
//! disconnects, or its deadline passes. What was already submitted stays submitted.
//!
//! Deliberately not here: checks, tokens and admission (the implementation's), and who awaits what.

use core::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use crate::pb::etcdserverpb::*;
use crate::pb::health::*;
use crate::pb::v3electionpb::*;
use crate::pb::v3lockpb::*;
use crate::wire::Status;

mod stream;

pub use stream::{Closed, Outbox, PREFIX_BYTES, Replies, Requests, Source, decode, encode};

/// What a connection's calls have in common.
#[derive(Debug)]
pub struct Peer {
    /// Remote address as `ip:port`, for logs and tokens.
    pub remote: Box<str>,
    /// Last client version seen: clients repeat it with every call.
    api_version: RefCell<Rc<str>>,
}

impl Peer {
    /// A client connected from `remote`.
    #[must_use]
    pub fn new(remote: impl Into<Box<str>>) -> Rc<Self> {
        Rc::new(Self {
            remote: remote.into(),
            api_version: RefCell::new(Rc::from("")),
        })
    }

    /// `version` as a shared string; allocates only when it differs from the last one.
    pub fn intern_api_version(&self, version: &str) -> Rc<str> {
        let mut last = self.api_version.borrow_mut();
        if **last != *version {
            *last = Rc::from(version);
        }
        last.clone()
    }
}

/// What a service may know of a call besides its message.
#[derive(Clone, Debug)]
pub struct Ctx {
    /// The connection.
    pub peer: Rc<Peer>,
    /// Metadata `token`, else `authorization`: what Authenticate gave out.
    pub token: Option<Box<str>>,
    /// Metadata `hasleader: true`: fail with `NoLeader` when there is none.
    pub require_leader: bool,
    /// Metadata `client-api-version`.
    pub client_api_version: Option<Rc<str>>,
    /// When the client stops waiting; the front ends the call then, so services need not.
    pub deadline: Option<Instant>,
}

impl Ctx {
    /// A call without metadata or deadline.
    #[must_use]
    pub const fn new(peer: Rc<Peer>) -> Self {
        Self {
            peer,
            token: None,
            require_leader: false,
            client_api_version: None,
            deadline: None,
        }
    }
}

/// The table of all RPCs, applied to the macro `$define`.
///
/// `unary` takes a message and gives one, `server` gives a stream, `bidi` takes and gives streams.
/// `hot` is a unary call whose future lives inside the caller's; the others are boxed, so that one
/// rare, large future does not make every put's task large.
macro_rules! rpc_table {
    ($define:ident) => {
        $define! {
            "etcdserverpb.KV" {
                hot "Range" range(RangeRequest) -> RangeResponse;
                server "RangeStream" range_stream(RangeRequest) -> RangeStreamResponse;
                hot "Put" put(PutRequest) -> PutResponse;
                hot "DeleteRange" delete_range(DeleteRangeRequest) -> DeleteRangeResponse;
                hot "Txn" txn(TxnRequest) -> TxnResponse;
                unary "Compact" compact(CompactionRequest) -> CompactionResponse;
            }
            "etcdserverpb.Watch" {
                bidi "Watch" watch(WatchRequest) -> WatchResponse;
            }
            "etcdserverpb.Lease" {
                unary "LeaseGrant" lease_grant(LeaseGrantRequest) -> LeaseGrantResponse;
                unary "LeaseRevoke" lease_revoke(LeaseRevokeRequest) -> LeaseRevokeResponse;
                bidi "LeaseKeepAlive"
                    lease_keep_alive(LeaseKeepAliveRequest) -> LeaseKeepAliveResponse;
                unary "LeaseTimeToLive"
                    lease_time_to_live(LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse;
                unary "LeaseLeases" lease_leases(LeaseLeasesRequest) -> LeaseLeasesResponse;
            }
            "etcdserverpb.Cluster" {
                unary "MemberAdd" member_add(MemberAddRequest) -> MemberAddResponse;
                unary "MemberRemove" member_remove(MemberRemoveRequest) -> MemberRemoveResponse;
                unary "MemberUpdate" member_update(MemberUpdateRequest) -> MemberUpdateResponse;
                unary "MemberList" member_list(MemberListRequest) -> MemberListResponse;
                unary "MemberPromote" member_promote(MemberPromoteRequest) -> MemberPromoteResponse;
            }
            "etcdserverpb.Maintenance" {
                unary "Alarm" alarm(AlarmRequest) -> AlarmResponse;
                unary "Status" status(StatusRequest) -> StatusResponse;
                unary "Defragment" defragment(DefragmentRequest) -> DefragmentResponse;
                unary "Hash" hash(HashRequest) -> HashResponse;
                unary "HashKV" hash_kv(HashKvRequest) -> HashKvResponse;
                server "Snapshot" snapshot(SnapshotRequest) -> SnapshotResponse;
                unary "MoveLeader" move_leader(MoveLeaderRequest) -> MoveLeaderResponse;
                unary "Downgrade" downgrade(DowngradeRequest) -> DowngradeResponse;
            }
            "etcdserverpb.Auth" {
                unary "AuthEnable" auth_enable(AuthEnableRequest) -> AuthEnableResponse;
                unary "AuthDisable" auth_disable(AuthDisableRequest) -> AuthDisableResponse;
                unary "AuthStatus" auth_status(AuthStatusRequest) -> AuthStatusResponse;
                unary "Authenticate" authenticate(AuthenticateRequest) -> AuthenticateResponse;
                unary "UserAdd" user_add(AuthUserAddRequest) -> AuthUserAddResponse;
                unary "UserGet" user_get(AuthUserGetRequest) -> AuthUserGetResponse;
                unary "UserList" user_list(AuthUserListRequest) -> AuthUserListResponse;
                unary "UserDelete" user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse;
                unary "UserChangePassword" user_change_password(AuthUserChangePasswordRequest)
                    -> AuthUserChangePasswordResponse;
                unary "UserGrantRole"
                    user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse;
                unary "UserRevokeRole"
                    user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse;
                unary "RoleAdd" role_add(AuthRoleAddRequest) -> AuthRoleAddResponse;
                unary "RoleGet" role_get(AuthRoleGetRequest) -> AuthRoleGetResponse;
                unary "RoleList" role_list(AuthRoleListRequest) -> AuthRoleListResponse;
                unary "RoleDelete" role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse;
                unary "RoleGrantPermission" role_grant_permission(AuthRoleGrantPermissionRequest)
                    -> AuthRoleGrantPermissionResponse;
                unary "RoleRevokePermission" role_revoke_permission(AuthRoleRevokePermissionRequest)
                    -> AuthRoleRevokePermissionResponse;
            }
            "v3lockpb.Lock" {
                unary "Lock" lock(LockRequest) -> LockResponse;
                unary "Unlock" unlock(UnlockRequest) -> UnlockResponse;
            }
            "v3electionpb.Election" {
                unary "Campaign" campaign(CampaignRequest) -> CampaignResponse;
                unary "Proclaim" proclaim(ProclaimRequest) -> ProclaimResponse;
                unary "Leader" leader(LeaderRequest) -> LeaderResponse;
                server "Observe" observe(LeaderRequest) -> LeaderResponse;
                unary "Resign" resign(ResignRequest) -> ResignResponse;
            }
            "grpc.health.v1.Health" {
                unary "Check" health_check(HealthCheckRequest) -> HealthCheckResponse;
                unary "List" health_list(HealthListRequest) -> HealthListResponse;
                server "Watch" health_watch(HealthCheckRequest) -> HealthCheckResponse;
            }
        }
    };
}
pub(crate) use rpc_table;

/// The method of [`Services`] for one line of the table.
macro_rules! rpc_method {
    ($service:literal, server, $method:literal, $name:ident, $req:ty, $resp:ty) => {
        #[doc = concat!("`", $service, "/", $method, "`: replies until it returns.")]
        #[doc = "\n\n# Errors\nThe status that ends the stream."]
        async fn $name(
            &self,
            ctx: &Ctx,
            request: $req,
            replies: &Replies<$resp>,
        ) -> Result<(), Status> {
            let _ = (ctx, request, replies);
            Err(Status::unknown_method($service, $method))
        }
    };
    ($service:literal, bidi, $method:literal, $name:ident, $req:ty, $resp:ty) => {
        #[doc = concat!("`", $service, "/", $method, "`: both streams stay open until it returns.")]
        #[doc = "\n\n# Errors\nThe status that ends the stream."]
        async fn $name(
            &self,
            ctx: &Ctx,
            requests: Requests<$req>,
            replies: &Replies<$resp>,
        ) -> Result<(), Status> {
            let _ = (ctx, requests, replies);
            Err(Status::unknown_method($service, $method))
        }
    };
    ($service:literal, $unary:ident, $method:literal, $name:ident, $req:ty, $resp:ty) => {
        #[doc = concat!("`", $service, "/", $method, "`.")]
        #[doc = "\n\n# Errors\nThe status that the client is given."]
        async fn $name(&self, ctx: &Ctx, request: $req) -> Result<$resp, Status> {
            let _ = (ctx, request);
            Err(Status::unknown_method($service, $method))
        }
    };
}

macro_rules! define_services {
    ($($service:literal {
        $($kind:ident $method:literal $name:ident($req:ty) -> $resp:ty;)*
    })*) => {
        /// Every RPC of etcd's API. See the module for when a call is cancelled.
        #[allow(async_fn_in_trait, reason = "a shard's futures never leave its core")]
        pub trait Services: 'static {
            $($(rpc_method!($service, $kind, $method, $name, $req, $resp);)*)*
        }

        /// Names of the services, as in request paths.
        pub const SERVICES: &[&str] = &[$($service,)*];

        /// Service, kind, method, request and reply type of each RPC, for the table's test.
        #[cfg(test)]
        const TABLE: &[(&str, &str, &str, &str, &str)] = &[
            $($(($service, stringify!($kind), $method, stringify!($req), stringify!($resp)),)*)*
        ];
    };
}

rpc_table!(define_services);

/// What the plain HTTP endpoints ask of the member they run in.
#[allow(async_fn_in_trait, reason = "a shard's futures never leave its core")]
pub trait Member: 'static {
    /// Cluster version as `3.7.0`, `None` while it is not decided.
    fn cluster_version(&self) -> Option<String>;
    /// Storage version as `3.7.0`, `None` while it is unknown.
    fn storage_version(&self) -> Option<String>;
    /// Alarms raised in the cluster.
    fn alarms(&self) -> Vec<AlarmMember>;
    /// Whether this member knows a leader.
    fn has_leader(&self) -> bool;
    /// Whether this member has no vote.
    fn is_learner(&self) -> bool;
    /// Reads one key as root, linearizable unless `serializable`.
    ///
    /// # Errors
    /// What a client's range would be answered.
    async fn probe_read(&self, serializable: bool) -> Result<(), Status>;
    /// Counts one outcome: `kind` is `health`, `livez` or `readyz`, `check` the name of a check of
    /// the last two.
    fn health_checked(&self, kind: &'static str, check: &'static str, passed: bool);
    /// Writes all metrics to `out` in Prometheus' text format.
    fn write_metrics(&self, out: &mut String);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (service, client streams, server streams, method, request, reply) of each `rpc` line.
    fn declared() -> Vec<(String, bool, bool, String, String, String)> {
        let files = [
            include_str!("../proto/rpc.proto"),
            include_str!("../proto/v3lock.proto"),
            include_str!("../proto/v3election.proto"),
            include_str!("../proto/health.proto"),
        ];
        let mut found = Vec::new();
        for text in files {
            let (mut package, mut service) = ("", "");
            for line in text.lines() {
                let words: Vec<&str> = line
                    .split([' ', '(', ')', ';'])
                    .filter(|word| !word.is_empty())
                    .collect();
                match words[..] {
                    ["package", name] => package = name,
                    ["service", name, "{"] => service = name,
                    ["rpc", method, ref types @ ..] => {
                        let at = types.iter().position(|&word| word == "returns").unwrap();
                        let (request, reply) = (&types[..at], &types[at + 1..]);
                        found.push((
                            format!("{package}.{service}"),
                            request[0] == "stream",
                            reply[0] == "stream",
                            method.to_owned(),
                            request.last().unwrap().replace("HashKV", "HashKv"),
                            reply.last().unwrap().replace("HashKV", "HashKv"),
                        ));
                    }
                    _ => {}
                }
            }
        }
        found
    }

    #[test]
    fn the_table_is_what_the_proto_files_declare() {
        let table: Vec<_> = TABLE
            .iter()
            .map(|&(service, kind, method, request, reply)| {
                (
                    service.to_owned(),
                    kind == "bidi",
                    kind == "bidi" || kind == "server",
                    method.to_owned(),
                    request.to_owned(),
                    reply.to_owned(),
                )
            })
            .collect();
        assert_eq!(table, declared());
        assert_eq!(table.len(), 52);
    }

    #[test]
    fn a_client_version_is_shared_between_calls() {
        let peer = Peer::new("127.0.0.1:1");
        let first = peer.intern_api_version("3.7.1");
        assert!(Rc::ptr_eq(&first, &peer.intern_api_version("3.7.1")));
        assert_eq!(&*peer.intern_api_version("3.6.0"), "3.6.0");
    }
}
