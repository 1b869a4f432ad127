package lockstep

import (
	"bytes"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"ringkv.dev/judges/internal/gen"
)

const (
	streamsMax = 3
	watchesMax = 8
)

// watch is one watch and how far it has been compared.
type watch struct {
	id  int64
	req *pb.WatchCreateRequest
	// from is the first revision to deliver, seen the index in history of the first event not compared.
	from int64
	seen int
	// created is the revision of its creation; synced says that it surely has caught up.
	created int64
	synced  bool
	// compacted says that the server has canceled it.
	compacted bool
}

// openStream is a stream and the watches on it, in order of creation.
type openStream struct {
	*Stream
	watches []*watch
}

func (w *watch) wants(ev *mvccpb.Event) bool {
	if w.compacted || ev.Kv.ModRevision < w.from {
		return false
	}
	drop := pb.WatchCreateRequest_NOPUT
	if ev.Type == mvccpb.Event_DELETE {
		drop = pb.WatchCreateRequest_NODELETE
	}
	if slices.Contains(w.req.Filters, drop) {
		return false
	}
	key, end := w.key(), w.req.RangeEnd
	switch {
	case len(end) == 0:
		return bytes.Equal(ev.Kv.Key, key)
	case len(end) == 1 && end[0] == 0:
		return bytes.Compare(key, ev.Kv.Key) <= 0
	}
	return bytes.Compare(key, ev.Kv.Key) <= 0 && bytes.Compare(ev.Kv.Key, end) < 0
}

// key is the watched key: an empty one means the smallest.
func (w *watch) key() []byte {
	if len(w.req.Key) == 0 {
		return []byte{0}
	}
	return w.req.Key
}

// due counts the events in history that have not been compared.
func (w *watch) due(history []*mvccpb.Event) int {
	n := 0
	for _, ev := range history[w.seen:] {
		if w.wants(ev) {
			n++
		}
	}
	return n
}

// catchUp waits until stock has told the history up to the current revision.
func (r *Run) catchUp() error {
	r.note(note("compare watches"))
	err := r.oracle.wait(func() bool { return r.Revision == 1 || r.oracle.lastRev[0] >= r.Revision })
	r.oracle.mu.Lock()
	defer r.oracle.mu.Unlock()
	r.history = append(r.history, r.oracle.events[0]...)
	r.oracle.events[0] = nil
	return err
}

// settle compares all that is due on every stream.
func (r *Run) settle() error {
	if err := r.catchUp(); err != nil {
		return err
	}
	for _, s := range r.streams {
		for _, w := range s.watches {
			if err := r.settleWatch(s, w); err != nil {
				return err
			}
		}
		if err := s.Quiet(); err != nil {
			return err
		}
	}
	return nil
}

func (r *Run) settleWatch(s *openStream, w *watch) error {
	events, err := s.Events(w.id, w.due(r.history), !w.req.PrevKv)
	w.seen = len(r.history)
	r.Met["watch events"] += len(events)
	if n := len(events); n > 0 && events[n-1].Kv.ModRevision > w.created {
		w.synced = true
	}
	return err
}

// pokeAll makes every watch that may still be catching up deliver an event made after its creation,
// then compares: all have caught up.
func (r *Run) pokeAll() error {
	for _, s := range r.streams {
		if err := r.poke(s); err != nil {
			return err
		}
	}
	return r.settle()
}

func (r *Run) poke(s *openStream) error {
	for _, w := range s.watches {
		if w.synced || w.compacted {
			continue
		}
		put := &pb.PutRequest{Key: w.key(), Value: []byte("poke")}
		if err := r.unary(pb.KV_Put_FullMethodName, put, new(pb.PutResponse)); err != nil {
			return err
		}
		if !slices.Contains(w.req.Filters, pb.WatchCreateRequest_NOPUT) {
			continue
		}
		del := &pb.DeleteRangeRequest{Key: w.key()}
		if err := r.unary(pb.KV_DeleteRange_FullMethodName, del, new(pb.DeleteRangeResponse)); err != nil {
			return err
		}
	}
	return nil
}

// pickStream is an open stream, a new one while there are few.
func (r *Run) pickStream() (*openStream, error) {
	if len(r.streams) == 0 || len(r.streams) < streamsMax && r.One(4) {
		s, err := r.OpenStream()
		if err != nil {
			return nil, err
		}
		r.streams = append(r.streams, &openStream{Stream: s})
	}
	return gen.Pick(r.Gen, r.streams...), nil
}

func (r *Run) watchCreate() error {
	s, err := r.pickStream()
	if err != nil || len(s.watches) >= watchesMax {
		return err
	}
	req := r.WatchCreate()
	r.note(request{r.done, req})
	err = s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}})
	if err != nil {
		return err
	}
	created, err := s.Control()
	if err != nil {
		return err
	}
	r.Met["WatchCreateRequest: "+created.CancelReason]++
	if created.Canceled {
		return nil
	}
	w := &watch{
		id: created.WatchId, req: req, from: req.StartRevision, created: r.Revision,
		synced: req.StartRevision == 0 || req.StartRevision > r.Revision,
	}
	if w.from == 0 {
		w.from = r.Revision + 1
	}
	s.watches = append(s.watches, w)
	if !w.synced && w.from < r.Compacted {
		w.compacted = true
		r.Met["watch below the compacted revision"]++
		_, err = s.Control()
	}
	return err
}

// watchCancel cancels a watch that has caught up, one the server has canceled, or an unknown one.
func (r *Run) watchCancel() error {
	s, err := r.pickStream()
	if err != nil {
		return err
	}
	send := func(id int64) error {
		req := &pb.WatchCancelRequest{WatchId: id}
		r.note(request{r.done, req})
		return s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: req}})
	}
	if len(s.watches) == 0 || r.One(8) {
		return send(77)
	}
	if err := r.poke(s); err != nil {
		return err
	}
	if err := r.settle(); err != nil {
		return err
	}
	i := r.IntN(len(s.watches))
	id := s.watches[i].id
	if err := send(id); err != nil {
		return err
	}
	r.Met["WatchCancelRequest"]++
	if _, err := s.Control(); err != nil {
		return err
	}
	s.watches = slices.Delete(s.watches, i, i+1)
	s.stock.inbox.forget(id)
	s.server.inbox.forget(id)
	return nil
}

// watchProgress asks for progress where the answer does not depend on how fast stock catches up.
func (r *Run) watchProgress() error {
	s, err := r.pickStream()
	if err != nil {
		return err
	}
	answered := len(s.watches) > 0
	for _, w := range s.watches {
		if !w.synced || w.compacted {
			return nil
		}
		answered = answered && w.req.StartRevision <= r.Revision
	}
	if err := r.catchUp(); err != nil {
		return err
	}
	req := &pb.WatchProgressRequest{}
	r.note(request{r.done, req})
	err = s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: req}})
	if err != nil || !answered {
		return err
	}
	r.Met["WatchProgressRequest, answered"]++
	if _, err := s.Control(); err != nil {
		return err
	}
	for _, w := range s.watches {
		if err := s.delivered(w.id, w.due(r.history)); err != nil {
			return err
		}
	}
	return nil
}

func (r *Run) watchClose() error {
	if len(r.streams) == 0 {
		return nil
	}
	if err := r.settle(); err != nil {
		return err
	}
	i := r.IntN(len(r.streams))
	r.close(r.streams[i])
	r.streams = slices.Delete(r.streams, i, i+1)
	return nil
}

func (r *Run) close(s *openStream) {
	s.Close()
	s.stock.inbox.mu.Lock()
	defer s.stock.inbox.mu.Unlock()
	r.Met["watch fragments"] += s.stock.inbox.fragments
}
