package masks

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

func TestNormalizeReachesNestedHeaders(t *testing.T) {
	inner := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: 3, MemberId: 9}}
	r := &pb.TxnResponse{
		Header:    &pb.ResponseHeader{ClusterId: 7, RaftTerm: 2, Revision: 4},
		Responses: []*pb.ResponseOp{{Response: &pb.ResponseOp_ResponseRange{ResponseRange: inner}}},
	}
	Normalize(r)
	if r.Header.ClusterId != 0 || r.Header.RaftTerm != 0 || inner.Header.MemberId != 0 {
		t.Errorf("not masked: %v", r)
	}
	if r.Header.Revision != 4 || inner.Header.Revision != 3 {
		t.Errorf("masked too much: %v", r)
	}
}

func TestRemainingSecondsMayDiffer(t *testing.T) {
	left := func(ttl, granted int64) proto.Message {
		return &pb.LeaseTimeToLiveResponse{TTL: ttl, GrantedTTL: granted}
	}
	if !Equal(left(100, 200), left(100+TTLSlack, 200)) {
		t.Error("slack not granted")
	}
	if Equal(left(100, 200), left(101+TTLSlack, 200)) {
		t.Error("too much slack")
	}
	if Equal(left(100, 200), left(100, 201)) {
		t.Error("slack for the granted TTL")
	}
}

func TestLeaseIDsAreTranslatedBothWays(t *testing.T) {
	l := NewLeases()
	put := &pb.PutRequest{Lease: 10}
	if l.Request(put) != put {
		t.Error("copied without need")
	}
	l.Learn(10, 77)
	if got := l.Request(put).(*pb.PutRequest).Lease; got != 77 || put.Lease != 10 {
		t.Errorf("sent lease %d, original %d", got, put.Lease)
	}
	r := &pb.RangeResponse{Kvs: []*mvccpb.KeyValue{{Lease: 77}, {Lease: 5}}}
	l.Answer(r)
	if r.Kvs[0].Lease != 10 || r.Kvs[1].Lease != 5 {
		t.Errorf("got %v", r.Kvs)
	}
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"lease 2f48a1fe granted with TTL(10s)":     "lease _ granted with TTL(10s)",
		`{"revision":4,"raft_term":2,"count":1}`:   `{"revision":4,"raft_term":_,"count":1}`,
		"is healthy: took = 1.98ms":                "is healthy: took = _",
		"E, M, 3.7.1, 3.7.0, 25 kB, 16 kB, 34%, 0": "E, M, 3.7.1, 3.7.0, _, _, _, 0",
		"true, false, 2, 7, 7, , ":                 "true, false, _, _, _, , ",
		"PUT\nfoo\nbar":                            "PUT\nfoo\nbar",
	} {
		if got := Text(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
