package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"ringkv.dev/judges/internal/proc"
)

var serviceChecks = []check{
	{"maintenance", maintenance},
	{"snapshot", snapshotSum},
	{"snapshot-restored-by-stock", snapshotRestored},
	{"members", members},
	{"health-service", healthService},
	{"lock-service", lockService},
	{"election-service", electionService},
}

func maintenance(p *probe) {
	rev := p.put("k", "v")
	status := must(p.cli.Status(p.ctx, p.host.Endpoint()))
	want(p, "version", status.Version, "3.7.1")
	want(p, "leads itself", status.Leader, status.Header.MemberId)
	want(p, "learner", status.IsLearner, false)
	hash := must(p.cli.HashKV(p.ctx, p.host.Endpoint(), rev))
	again := must(p.cli.HashKV(p.ctx, p.host.Endpoint(), rev))
	want(p, "hash", again.Hash, hash.Hash)
	want(p, "hash revision", hash.HashRevision, rev)
	want(p, "alarms", len(must(p.cli.AlarmList(p.ctx)).Alarms), 0)
	must(p.cli.Defragment(p.ctx, p.host.Endpoint()))
	want(p, "value after defragmentation", string(p.get("k").Kvs[0].Value), "v")
}

// snapshotSum: the stream ends with the SHA-256 of what came before.
func snapshotSum(p *probe) {
	p.put("k", "v")
	stream := must(p.cli.Snapshot(p.ctx))
	defer stream.Close()
	all := must(io.ReadAll(stream))
	want(p, "longer than its sum", len(all) > sha256.Size, true)
	body, tail := all[:len(all)-sha256.Size], all[len(all)-sha256.Size:]
	sum := sha256.Sum256(body)
	want(p, "sum", bytes.Equal(sum[:], tail), true)
}

// snapshotRestored: stock etcdutl restores what the server streamed, stock etcd serves it: same revision, same
// hash, same keys.
func snapshotRestored(p *probe) {
	p.put("k", "1")
	p.put("gone", "x", clientv3.WithLease(p.grant(1000)))
	must(p.cli.Delete(p.ctx, p.key("gone")))
	rev := p.put("k", "2")
	config := must(proc.NewConfig(p.host.stock, "restored", &p.host.ports))
	defer os.RemoveAll(config.Dir)
	file := filepath.Join(config.Dir, "snapshot.db")
	stream := must(p.cli.Snapshot(p.ctx))
	p.must(os.WriteFile(file, must(io.ReadAll(stream)), 0o600))
	status := must(
		exec.CommandContext(p.ctx, p.host.etcdutl, "snapshot", "status", file, "-w", "json").Output(),
	)
	want(
		p,
		"status has the revision",
		bytes.Contains(status, fmt.Appendf(nil, `"revision":%d,`, rev)),
		true,
	)
	peer := fmt.Sprintf("http://127.0.0.1:%d", config.PeerPort)
	restore := exec.CommandContext(p.ctx, p.host.etcdutl, "snapshot", "restore", file,
		"--data-dir="+config.DataDir(), "--name=judged", "--initial-cluster=judged="+peer,
		"--initial-advertise-peer-urls="+peer, "--initial-cluster-token=judges")
	if out, err := restore.CombinedOutput(); err != nil {
		p.must(fmt.Errorf("%w: %s", err, out))
	}
	restored := must(proc.Start(config))
	defer restored.Kill()
	cli := must(p.host.client(config.Endpoint()))
	defer cli.Close()
	kept := must(cli.Get(p.ctx, p.prefix, clientv3.WithPrefix()))
	want(p, "revision", kept.Header.Revision, rev)
	want(p, "keys", kept.Count, 1)
	want(p, "value", string(kept.Kvs[0].Value), "2")
	before, after := must(
		p.cli.HashKV(p.ctx, p.host.Endpoint(), rev),
	), must(
		cli.HashKV(p.ctx, config.Endpoint(), rev),
	)
	want(p, "hash", after.Hash, before.Hash)
	want(p, "compact revision", after.CompactRevision, before.CompactRevision)
}

func members(p *probe) {
	list := must(p.cli.MemberList(p.ctx))
	want(p, "members", len(list.Members), 1)
	want(p, "name", list.Members[0].Name, "judged")
	want(p, "client URL", list.Members[0].ClientURLs[0], "http://"+p.host.Endpoint())
	p.must(p.cli.Sync(p.ctx))
}

func healthService(p *probe) {
	r := must(healthpb.NewHealthClient(p.cli.ActiveConnection()).
		Check(p.ctx, &healthpb.HealthCheckRequest{}))
	want(p, "health", r.Status, healthpb.HealthCheckResponse_SERVING)
}

func lockService(p *probe) {
	locks := v3lockpb.NewLockClient(p.cli.ActiveConnection())
	one, two := p.grant(1000), p.grant(1000)
	held := must(locks.Lock(p.ctx, &v3lockpb.LockRequest{Name: []byte(p.prefix), Lease: int64(one)}))
	second := make(chan error, 1)
	go func() {
		_, err := locks.Lock(p.ctx, &v3lockpb.LockRequest{Name: []byte(p.prefix), Lease: int64(two)})
		second <- err
	}()
	want(p, "lock key", bytes.HasPrefix(held.Key, []byte(p.prefix)), true)
	must(locks.Unlock(p.ctx, &v3lockpb.UnlockRequest{Key: held.Key}))
	p.must(next(p, second))
}

func electionService(p *probe) {
	elections := v3electionpb.NewElectionClient(p.cli.ActiveConnection())
	won := must(elections.Campaign(p.ctx, &v3electionpb.CampaignRequest{
		Name: []byte(p.prefix), Lease: int64(p.grant(1000)), Value: []byte("a")}))
	lead := must(elections.Leader(p.ctx, &v3electionpb.LeaderRequest{Name: []byte(p.prefix)}))
	want(p, "leader", string(lead.Kv.Value), "a")
	must(elections.Proclaim(p.ctx, &v3electionpb.ProclaimRequest{
		Leader: won.Leader, Value: []byte("b")}))
	lead = must(elections.Leader(p.ctx, &v3electionpb.LeaderRequest{Name: []byte(p.prefix)}))
	want(p, "proclaimed", string(lead.Kv.Value), "b")
	must(elections.Resign(p.ctx, &v3electionpb.ResignRequest{Leader: won.Leader}))
}
