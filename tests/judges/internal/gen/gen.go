// Package gen draws random requests from a seed. The key space is small so that requests collide, and
// every option of every request is drawn, valid or not. What it draws depends only on the seed and on
// State, which the caller takes from the stock server's answers.
package gen

import (
	"bytes"
	"fmt"
	"math/rand/v2"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// State is what has been seen so far.
type State struct {
	// Revision is the store's, Compacted the last compacted one (0 before the first).
	Revision, Compacted int64
	// Leases are ids known to live or to have lived, Chosen those among them the server chose.
	Leases []int64
	Chosen map[int64]bool
}

// Gen is one seeded source.
type Gen struct {
	*rand.Rand
	State
	// MaxTxnOps is the servers' limit, drawn around.
	MaxTxnOps int
	// AttachChosen lets keys carry chosen leases: hashes of the store then differ by right.
	AttachChosen bool
	// Big makes values of hundreds of KiB likely enough for fragmented watches.
	Big bool
}

// New is a source for a seed.
func New(seed uint64) *Gen {
	return &Gen{
		Rand:  rand.New(rand.NewPCG(seed, 0x6a756467)),
		State: State{Revision: 1, Chosen: map[int64]bool{}}, MaxTxnOps: 128,
	}
}

// One says yes once in n.
func (g *Gen) One(n int) bool { return g.IntN(n) == 0 }

// Pick is one of the choices, each as likely.
func Pick[T any](g *Gen, choices ...T) T { return choices[g.IntN(len(choices))] }

const letters = "abcd"

// Key is rarely empty, sometimes a boundary.
func (g *Gen) Key() []byte {
	switch g.IntN(40) {
	case 0:
		return nil
	case 1:
		return []byte{0}
	case 2:
		return []byte{0xff}
	case 3:
		return []byte("a\x00")
	case 4:
		return []byte("b\xff")
	}
	key := []byte{letters[g.IntN(len(letters))]}
	for g.One(2) && len(key) < 3 {
		key = append(key, letters[g.IntN(len(letters))])
	}
	return key
}

// End is a range end for key: none, from-key, prefix, any key (also one before it), or itself.
func (g *Gen) End(key []byte) []byte {
	switch g.IntN(8) {
	case 0, 1, 2:
		return nil
	case 3:
		return []byte{0}
	case 4, 5:
		return prefixEnd(key)
	case 6:
		return bytes.Clone(key)
	}
	return g.Key()
}

func prefixEnd(key []byte) []byte {
	if len(key) == 0 || key[len(key)-1] == 0xff {
		return []byte{0}
	}
	end := bytes.Clone(key)
	end[len(end)-1]++
	return end
}

// Rev is 0 half of the time, else old, compacted, current, future or negative.
func (g *Gen) Rev() int64 {
	if g.One(2) {
		return 0
	}
	switch g.IntN(16) {
	case 0:
		return g.Revision + 1
	case 1:
		return g.Revision + 1000
	case 2:
		return -1
	case 3:
		return g.Compacted
	case 4:
		return g.Compacted - 1
	case 5:
		return g.Revision
	case 6:
		return 1 + g.Int64N(g.Revision)
	}
	return g.Compacted + 1 + g.Int64N(max(1, g.Revision-g.Compacted))
}

// bound is a filter's revision: mostly none.
func (g *Gen) bound() int64 {
	if !g.One(6) {
		return 0
	}
	return Pick(g, 1, g.Revision, g.Revision-g.Int64N(20), -3, g.Revision+5)
}

// Value is small, empty or, when Big, large.
func (g *Gen) Value() []byte {
	switch {
	case g.One(12):
		return nil
	case g.Big && g.One(12):
		return bytes.Repeat([]byte{byte('A' + g.IntN(26))}, 200_000+g.IntN(400_000))
	case g.One(300):
		return bytes.Repeat([]byte{'x'}, 1+g.IntN(60_000))
	case g.One(2):
		return fmt.Appendf(nil, "v%d", g.IntN(10))
	}
	value := make([]byte, 1+g.IntN(24))
	for i := range value {
		value[i] = byte(g.IntN(256))
	}
	return value
}

// Lease is mostly none, else a known id, else one never granted.
func (g *Gen) Lease() int64 {
	switch {
	case !g.One(5):
		return 0
	case g.One(12) || len(g.Leases) == 0:
		return Pick[int64](g, 999_999, -7)
	}
	id := Pick(g, g.Leases...)
	if g.Chosen[id] && !g.AttachChosen {
		return 0
	}
	return id
}

// Range draws every option of a range.
func (g *Gen) Range() *pb.RangeRequest {
	r := &pb.RangeRequest{Key: g.Key(), Revision: g.Rev(), Serializable: g.One(2)}
	r.RangeEnd = g.End(r.Key)
	if g.One(3) {
		r.Limit = Pick[int64](g, 1, 2, 3, 10, -1, 1<<62)
	}
	if g.One(2) {
		r.SortOrder = pb.RangeRequest_SortOrder(g.IntN(3))
		r.SortTarget = pb.RangeRequest_SortTarget(g.IntN(5))
	}
	if g.One(200) {
		r.SortOrder = 5
	}
	if g.One(200) {
		r.SortTarget = 9
	}
	r.KeysOnly, r.CountOnly = g.One(8), g.One(8)
	r.MinModRevision, r.MaxModRevision = g.bound(), g.bound()
	r.MinCreateRevision, r.MaxCreateRevision = g.bound(), g.bound()
	return r
}

// Put draws every option of a put.
func (g *Gen) Put() *pb.PutRequest {
	r := &pb.PutRequest{Key: g.Key(), Value: g.Value(), Lease: g.Lease(), PrevKv: g.One(3)}
	if g.One(10) {
		r.IgnoreValue = true
		if !g.One(6) {
			r.Value = nil
		}
	}
	if g.One(10) {
		r.IgnoreLease = true
		if !g.One(6) {
			r.Lease = 0
		}
	}
	return r
}

// DeleteRange draws every option of a deletion.
func (g *Gen) DeleteRange() *pb.DeleteRangeRequest {
	r := &pb.DeleteRangeRequest{Key: g.Key(), PrevKv: g.One(3)}
	if g.One(3) {
		r.RangeEnd = g.End(r.Key)
	}
	return r
}
