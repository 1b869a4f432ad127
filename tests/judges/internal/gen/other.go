package gen

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// LongTTL is the least TTL, in seconds, of a lease that lives on: none may expire during a judgement.
const LongTTL = 10_000

// Compact is mostly a little behind the current revision, else compacted, future, 0 or negative.
func (g *Gen) Compact() *pb.CompactionRequest {
	r := &pb.CompactionRequest{Physical: g.One(3)}
	if g.One(3) {
		r.Revision = Pick(g, 0, -1, g.Compacted, g.Compacted-1, g.Revision+1, g.Revision)
	} else {
		r.Revision = max(1, g.Revision-g.Int64N(60))
	}
	return r
}

// LeaseGrant draws a long-lived lease, or a refused one.
func (g *Gen) LeaseGrant() *pb.LeaseGrantRequest {
	r := &pb.LeaseGrantRequest{TTL: LongTTL + g.Int64N(LongTTL), ID: 1 + g.Int64N(12)}
	switch g.IntN(10) {
	case 0, 1:
		r.ID = 0
	case 2:
		r.TTL = Pick[int64](g, 9_000_000_001, 1<<62)
	case 3:
		r.TTL = 9_000_000_000
	case 4:
		r.ID = -1 - g.Int64N(3)
	}
	return r
}

// ShortTTL is a TTL at or below the least one a server grants.
func (g *Gen) ShortTTL() int64 { return Pick[int64](g, 0, -1, 1, -1<<62) }

// LeaseID is mostly known, else never granted or 0.
func (g *Gen) LeaseID() int64 {
	if len(g.Leases) == 0 || g.One(8) {
		return Pick[int64](g, 0, 424_242, -9)
	}
	return Pick(g, g.Leases...)
}

// HashKV asks for any revision.
func (g *Gen) HashKV() *pb.HashKVRequest {
	return &pb.HashKVRequest{Revision: g.Rev()}
}

// WatchCreate draws every option of a watch; start revisions of all kinds.
func (g *Gen) WatchCreate() *pb.WatchCreateRequest {
	r := &pb.WatchCreateRequest{
		Key: g.Key(), PrevKv: g.One(2), Fragment: g.One(3), ProgressNotify: g.One(3),
	}
	r.RangeEnd = g.End(r.Key)
	if g.One(3) {
		r.Key, r.RangeEnd = []byte(letters[:1]), []byte{0}
	}
	switch g.IntN(8) {
	case 0, 1, 2:
	case 3:
		r.StartRevision = g.Revision + 1 + g.Int64N(30)
	case 4:
		r.StartRevision = Pick(g, g.Compacted, g.Compacted-1, -1, 1)
	default:
		r.StartRevision = g.Compacted + 1 + g.Int64N(max(1, g.Revision-g.Compacted))
	}
	if g.One(5) {
		r.Filters = append(r.Filters, pb.WatchCreateRequest_FilterType(g.IntN(2)))
	}
	if g.One(4) {
		r.WatchId = Pick[int64](g, 1, 2, 3, 5, 100, -1, -4)
	}
	return r
}
