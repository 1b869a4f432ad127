package gen

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

const txnDepthMax = 3

// Txn draws compares and operations; most pass etcd's checks, some break each of them.
func (g *Gen) Txn() *pb.TxnRequest {
	if g.One(150) {
		return g.hugeTxn()
	}
	return g.txn(1)
}

func (g *Gen) txn(depth int) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range g.IntN(3) {
		r.Compare = append(r.Compare, g.compare())
	}
	r.Success, r.Failure = g.ops(depth), g.ops(depth)
	return r
}

func (g *Gen) ops(depth int) []*pb.RequestOp {
	var ops []*pb.RequestOp
	for range g.IntN(4) {
		ops = append(ops, g.op(depth))
	}
	return ops
}

func (g *Gen) op(depth int) *pb.RequestOp {
	switch n := g.IntN(20); {
	case n < 8:
		return putOp(g.Put())
	case n < 14:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: g.Range()}}
	case n < 17:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.DeleteRange()}}
	case n < 19 && depth < txnDepthMax:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.txn(depth + 1)}}
	case g.One(10):
		return &pb.RequestOp{}
	}
	return putOp(&pb.PutRequest{Key: g.Key(), Value: g.Value()})
}

func putOp(r *pb.PutRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: r}}
}

// hugeTxn has as many operations as the limit allows, or one more, and no duplicate among them.
func (g *Gen) hugeTxn() *pb.TxnRequest {
	n := g.MaxTxnOps + g.IntN(2)
	r := &pb.TxnRequest{}
	for i := range n {
		key := []byte{letters[i%4], letters[i/4%4], letters[i/16%4], letters[i/64%4], letters[i/256%4]}
		r.Success = append(r.Success, putOp(&pb.PutRequest{Key: key, Value: []byte{byte(i)}}))
	}
	if g.One(3) {
		r.Compare = append(r.Compare, &pb.Compare{
			Key: []byte("a"), Result: pb.Compare_EQUAL, Target: pb.Compare_VERSION,
			TargetUnion: &pb.Compare_Version{Version: 0},
		})
	}
	return r
}

func (g *Gen) compare() *pb.Compare {
	c := &pb.Compare{
		Key:    g.Key(),
		Result: pb.Compare_CompareResult(g.IntN(4)),
		Target: pb.Compare_CompareTarget(g.IntN(5)),
	}
	if g.One(4) {
		c.RangeEnd = g.End(c.Key)
	}
	switch {
	case g.One(60):
		c.Result = 7
	case g.One(60):
		c.Target = 9
	}
	target := c.Target
	if g.One(40) {
		target = pb.Compare_CompareTarget(g.IntN(6))
	}
	switch target {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: Pick[int64](g, 0, 1, 2, 3, -1)}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: Pick(g, 0, 1, g.Rev(), g.Revision)}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: Pick(g, 0, g.Rev(), g.Revision)}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: g.Value()}
	case pb.Compare_LEASE:
		g.compareLease(c)
	}
	return c
}

// compareLease keeps to (in)equality where ids chosen by the servers could meet: their order differs.
func (g *Gen) compareLease(c *pb.Compare) {
	c.TargetUnion = &pb.Compare_Lease{Lease: g.Lease()}
	if len(g.Chosen) != 0 && c.Result != pb.Compare_NOT_EQUAL {
		c.Result = pb.Compare_EQUAL
	}
}
