package main

import (
	"bytes"
	"crypto/sha256"
	"io"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

var serviceChecks = []check{
	{"maintenance", maintenance},
	{"snapshot", snapshotSum},
	{"members", members},
	{"health-service", healthService},
	{"lock-service", lockService},
	{"election-service", electionService},
}

func maintenance(p *probe) {
	rev := p.put("k", "v")
	status := ok[*clientv3.StatusResponse](p)(p.cli.Status(p.ctx, p.host.Endpoint()))
	want(p, "version", status.Version, "3.7.1")
	want(p, "leads itself", status.Leader, status.Header.MemberId)
	want(p, "learner", status.IsLearner, false)
	hash := ok[*clientv3.HashKVResponse](p)(p.cli.HashKV(p.ctx, p.host.Endpoint(), rev))
	again := ok[*clientv3.HashKVResponse](p)(p.cli.HashKV(p.ctx, p.host.Endpoint(), rev))
	want(p, "hash", again.Hash, hash.Hash)
	want(p, "hash revision", hash.HashRevision, rev)
	want(p, "alarms", len(ok[*clientv3.AlarmResponse](p)(p.cli.AlarmList(p.ctx)).Alarms), 0)
	ok[*clientv3.DefragmentResponse](p)(p.cli.Defragment(p.ctx, p.host.Endpoint()))
	want(p, "value after defragmentation", string(p.get("k").Kvs[0].Value), "v")
}

// snapshotSum: the stream ends with the SHA-256 of what came before.
func snapshotSum(p *probe) {
	p.put("k", "v")
	stream := ok[io.ReadCloser](p)(p.cli.Snapshot(p.ctx))
	defer stream.Close()
	all := ok[[]byte](p)(io.ReadAll(stream))
	want(p, "longer than its sum", len(all) > sha256.Size, true)
	body, tail := all[:len(all)-sha256.Size], all[len(all)-sha256.Size:]
	sum := sha256.Sum256(body)
	want(p, "sum", bytes.Equal(sum[:], tail), true)
}

func members(p *probe) {
	list := ok[*clientv3.MemberListResponse](p)(p.cli.MemberList(p.ctx))
	want(p, "members", len(list.Members), 1)
	want(p, "name", list.Members[0].Name, "judged")
	want(p, "client URL", list.Members[0].ClientURLs[0], "http://"+p.host.Endpoint())
	p.must(p.cli.Sync(p.ctx))
}

func healthService(p *probe) {
	r := ok[*healthpb.HealthCheckResponse](p)(healthpb.NewHealthClient(p.cli.ActiveConnection()).
		Check(p.ctx, &healthpb.HealthCheckRequest{}))
	want(p, "health", r.Status, healthpb.HealthCheckResponse_SERVING)
}

func lockService(p *probe) {
	locks := v3lockpb.NewLockClient(p.cli.ActiveConnection())
	one, two := p.grant(1000), p.grant(1000)
	held := ok[*v3lockpb.LockResponse](p)(locks.Lock(p.ctx, &v3lockpb.LockRequest{Name: []byte(p.prefix), Lease: int64(one)}))
	second := make(chan error, 1)
	go func() {
		_, err := locks.Lock(p.ctx, &v3lockpb.LockRequest{Name: []byte(p.prefix), Lease: int64(two)})
		second <- err
	}()
	want(p, "lock key", bytes.HasPrefix(held.Key, []byte(p.prefix)), true)
	ok[*v3lockpb.UnlockResponse](p)(locks.Unlock(p.ctx, &v3lockpb.UnlockRequest{Key: held.Key}))
	p.must(next(p, second))
}

func electionService(p *probe) {
	elections := v3electionpb.NewElectionClient(p.cli.ActiveConnection())
	won := ok[*v3electionpb.CampaignResponse](p)(elections.Campaign(p.ctx, &v3electionpb.CampaignRequest{
		Name: []byte(p.prefix), Lease: int64(p.grant(1000)), Value: []byte("a")}))
	lead := ok[*v3electionpb.LeaderResponse](p)(elections.Leader(p.ctx, &v3electionpb.LeaderRequest{Name: []byte(p.prefix)}))
	want(p, "leader", string(lead.Kv.Value), "a")
	ok[*v3electionpb.ProclaimResponse](p)(elections.Proclaim(p.ctx, &v3electionpb.ProclaimRequest{
		Leader: won.Leader, Value: []byte("b")}))
	lead = ok[*v3electionpb.LeaderResponse](p)(elections.Leader(p.ctx, &v3electionpb.LeaderRequest{Name: []byte(p.prefix)}))
	want(p, "proclaimed", string(lead.Kv.Value), "b")
	ok[*v3electionpb.ResignResponse](p)(elections.Resign(p.ctx, &v3electionpb.ResignRequest{Leader: won.Leader}))
}
