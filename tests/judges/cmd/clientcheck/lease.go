package main

import (
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var leaseChecks = []check{
	{"lease-expiry", leaseExpiry},
	{"lease-keepalive", leaseKeepAlive},
	{"lease-revoke", leaseRevoke},
	{"lease-list", leaseList},
}

func (p *probe) grant(ttl int64) clientv3.LeaseID {
	return ok[*clientv3.LeaseGrantResponse](p)(p.cli.Grant(p.ctx, ttl)).ID
}

// leaseExpiry: the key goes away by itself, not before the TTL, and a watch says so.
func leaseExpiry(p *probe) {
	granted := ok[*clientv3.LeaseGrantResponse](p)(p.cli.Grant(p.ctx, 2))
	start := time.Now()
	rev := p.put("k", "v", clientv3.WithLease(granted.ID))
	r := next(p, p.cli.Watch(p.ctx, p.key("k"), clientv3.WithRev(rev+1)))
	want(p, "event", r.Events[0].Type, mvccpb.Event_DELETE)
	want(p, "lived for its TTL", time.Since(start) > time.Duration(granted.TTL)*time.Second-500*time.Millisecond, true)
	left := ok[*clientv3.LeaseTimeToLiveResponse](p)(p.cli.TimeToLive(p.ctx, granted.ID))
	want(p, "time left", left.TTL, -1)
}

// leaseKeepAlive: the client renews a short lease in the background and the key outlives its TTL.
func leaseKeepAlive(p *probe) {
	granted := ok[*clientv3.LeaseGrantResponse](p)(p.cli.Grant(p.ctx, 2))
	p.put("k", "v", clientv3.WithLease(granted.ID))
	renewals := ok[<-chan *clientv3.LeaseKeepAliveResponse](p)(p.cli.KeepAlive(p.ctx, granted.ID))
	for start := time.Now(); time.Since(start) < 2*time.Duration(granted.TTL)*time.Second; {
		r := next(p, renewals)
		want(p, "renewed TTL", r.TTL, granted.TTL)
	}
	want(p, "keys after twice the TTL", p.get("k").Count, 1)
	once := ok[*clientv3.LeaseKeepAliveResponse](p)(p.cli.KeepAliveOnce(p.ctx, granted.ID))
	want(p, "renewed once", once.TTL, granted.TTL)
	_, err := p.cli.KeepAliveOnce(p.ctx, 4711)
	p.wantErr(err, rpctypes.ErrLeaseNotFound)
}

func leaseRevoke(p *probe) {
	id := p.grant(1000)
	rev := p.put("a", "v", clientv3.WithLease(id))
	p.put("b", "v", clientv3.WithLease(id))
	p.put("b", "v")
	watch := p.cli.Watch(p.ctx, p.prefix, clientv3.WithPrefix(), clientv3.WithRev(rev+3))
	ok[*clientv3.LeaseRevokeResponse](p)(p.cli.Revoke(p.ctx, id))
	events := next(p, watch).Events
	want(p, "deleted", len(events), 1)
	want(p, "the attached key", string(events[0].Kv.Key), p.key("a"))
	want(p, "left", p.get("", clientv3.WithPrefix()).Count, 1)
	_, err := p.cli.Revoke(p.ctx, id)
	p.wantErr(err, rpctypes.ErrLeaseNotFound)
}

func leaseList(p *probe) {
	id := p.grant(1000)
	p.put("k", "v", clientv3.WithLease(id))
	list := ok[*clientv3.LeaseLeasesResponse](p)(p.cli.Leases(p.ctx))
	found := slices.ContainsFunc(list.Leases, func(s clientv3.LeaseStatus) bool { return s.ID == id })
	want(p, "listed", found, true)
	left := ok[*clientv3.LeaseTimeToLiveResponse](p)(p.cli.TimeToLive(p.ctx, id, clientv3.WithAttachedKeys()))
	want(p, "granted TTL", left.GrantedTTL, 1000)
	want(p, "keys", len(left.Keys), 1)
	want(p, "key", string(left.Keys[0]), p.key("k"))
	_, err := p.cli.Grant(p.ctx, 9_000_000_001)
	p.wantErr(err, rpctypes.ErrLeaseTTLTooLarge)
}
