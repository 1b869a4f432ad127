package lockstep

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

func put(key string, rev int64) *mvccpb.Event {
	return &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: rev}}
}

func TestWatchWants(t *testing.T) {
	for _, c := range []struct {
		key, end, event string
		want            bool
	}{
		{"b", "", "b", true}, {"b", "", "ba", false}, {"b", "\x00", "zz", true}, {"b", "\x00", "a", false},
		{"b", "c", "bz", true}, {"b", "c", "c", false}, {"", "\x00", "a", true}, {"", "", "\x00", true},
	} {
		w := &watch{req: &pb.WatchCreateRequest{Key: []byte(c.key), RangeEnd: []byte(c.end)}, from: 5}
		if got := w.wants(put(c.event, 5)); got != c.want {
			t.Errorf("[%q, %q) wants %q: %v", c.key, c.end, c.event, got)
		}
		if w.wants(put(c.event, 4)) {
			t.Errorf("[%q, %q) wants an event before its start", c.key, c.end)
		}
	}
}

func TestWatchFilters(t *testing.T) {
	w := &watch{req: &pb.WatchCreateRequest{Key: []byte("a")}}
	w.req.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}
	if w.wants(put("a", 5)) {
		t.Error("NOPUT wants a put")
	}
	w.req.Filters[0] = pb.WatchCreateRequest_NODELETE
	if !w.wants(put("a", 5)) {
		t.Error("NODELETE does not want a put")
	}
}

// TestInboxViolations: each sequence breaks one rule that holds on a side by itself.
func TestInboxViolations(t *testing.T) {
	created := &pb.WatchResponse{Created: true}
	events := func(fragment bool, revs ...int64) *pb.WatchResponse {
		r := &pb.WatchResponse{Fragment: fragment, Header: &pb.ResponseHeader{Revision: 100}}
		for _, rev := range revs {
			r.Events = append(r.Events, put("a", rev))
		}
		return r
	}
	progress := func(rev int64) *pb.WatchResponse {
		return &pb.WatchResponse{WatchId: anyWatch, Header: &pb.ResponseHeader{Revision: rev}}
	}
	behind := events(false, 7)
	behind.Header.Revision = 6
	for name, c := range map[string]struct {
		wrong     bool
		responses []*pb.WatchResponse
	}{
		"in order":        {false, []*pb.WatchResponse{created, events(false, 4, 5), progress(5), events(false, 6)}},
		"fragments":       {false, []*pb.WatchResponse{created, events(true, 4), events(false, 4)}},
		"not created":     {true, []*pb.WatchResponse{events(false, 4)}},
		"canceled":        {true, []*pb.WatchResponse{created, {Canceled: true}, events(false, 4)}},
		"goes back":       {true, []*pb.WatchResponse{created, events(false, 5), events(false, 4)}},
		"split revision":  {true, []*pb.WatchResponse{created, events(false, 4), events(false, 4)}},
		"after progress":  {true, []*pb.WatchResponse{created, progress(6), events(false, 6)}},
		"header is older": {true, []*pb.WatchResponse{created, behind}},
	} {
		b := newInbox()
		for _, r := range c.responses {
			b.file(r)
		}
		if (b.violated != nil) != c.wrong {
			t.Errorf("%s: %v", name, b.violated)
		}
	}
}
