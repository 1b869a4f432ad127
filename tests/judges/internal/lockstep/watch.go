package lockstep

import (
	"context"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"ringkv.dev/judges/internal/masks"
)

// inbox is what one side of one stream has received and nobody has compared yet.
type inbox struct {
	mu        sync.Mutex
	changed   chan struct{} // one waiter; holds at most one wake-up
	events    map[int64][]*mvccpb.Event
	control   []*pb.WatchResponse // created, canceled and progress answers, in order
	lastRev   map[int64]int64     // mod revision of a watch's last event
	open      map[int64]bool      // the watch's last response was a fragment, more of it follows
	fragments int                 // responses that said that more of them follows
	broken    error
	violated  error
}

func newInbox() *inbox {
	return &inbox{
		changed: make(chan struct{}, 1), events: map[int64][]*mvccpb.Event{},
		lastRev: map[int64]int64{}, open: map[int64]bool{},
	}
}

func (b *inbox) receive(stream pb.Watch_WatchClient) {
	for {
		r, err := stream.Recv()
		b.mu.Lock()
		if err != nil {
			b.broken = err
		} else {
			b.file(r)
		}
		b.mu.Unlock()
		select {
		case b.changed <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// file puts a response where it belongs and checks what must hold on each side by itself: revisions
// rise, a revision is split only over fragments, the header is not behind the events.
func (b *inbox) file(r *pb.WatchResponse) {
	if len(r.Events) == 0 {
		b.control = append(b.control, r)
		return
	}
	id, first, last := r.WatchId, r.Events[0].Kv.ModRevision, r.Events[len(r.Events)-1].Kv.ModRevision
	if first < b.lastRev[id] || first == b.lastRev[id] && !b.open[id] {
		b.violated = fmt.Errorf("watch %d: revision %d after %d, and no fragment", id, first, b.lastRev[id])
	}
	if r.Header.GetRevision() < last {
		b.violated = fmt.Errorf("watch %d: header revision %d behind event %d", id, r.Header.GetRevision(), last)
	}
	if r.Fragment {
		b.fragments++
	}
	b.lastRev[id], b.open[id] = last, r.Fragment
	b.events[id] = append(b.events[id], r.Events...)
}

// forget drops what is known of a watch id, which may be used again.
func (b *inbox) forget(id int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.events, id)
	delete(b.lastRev, id)
	delete(b.open, id)
}

// wait blocks until enough holds (under the lock), the stream breaks, or answerMax has passed.
func (b *inbox) wait(enough func() bool) error {
	timer := time.NewTimer(answerMax)
	defer timer.Stop()
	for {
		b.mu.Lock()
		ok, broken, violated := enough(), b.broken, b.violated
		b.mu.Unlock()
		switch {
		case violated != nil:
			return violated
		case ok:
			return nil
		case broken != nil:
			return broken
		}
		select {
		case <-b.changed:
		case <-timer.C:
			return fmt.Errorf("nothing more within %v", answerMax)
		}
	}
}

// half is one side of a stream.
type half struct {
	inbox *inbox
	send  pb.Watch_WatchClient
}

// Stream is one watch stream, opened on both sides.
type Stream struct {
	pair          *Pair
	stock, server half
	cancel        context.CancelFunc
}

// OpenStream opens a watch stream on both sides.
func (p *Pair) OpenStream() (*Stream, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Stream{pair: p, cancel: cancel}
	for _, h := range []struct {
		side *Side
		half *half
	}{{p.Stock, &s.stock}, {p.Server, &s.server}} {
		stream, err := pb.NewWatchClient(h.side.conn).Watch(ctx)
		if err != nil {
			cancel()
			return nil, fmt.Errorf("%s: %w", h.side.Name, err)
		}
		*h.half = half{inbox: newInbox(), send: stream}
		go h.half.inbox.receive(stream)
	}
	return s, nil
}

// Close ends the stream on both sides.
func (s *Stream) Close() { s.cancel() }

// Send sends a request on both sides.
func (s *Stream) Send(r *pb.WatchRequest) error {
	if err := s.stock.send.Send(r); err != nil {
		return fmt.Errorf("stock: %w", err)
	}
	if err := s.server.send.Send(r); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	return nil
}

// Control waits for the next control answer of both sides and compares it.
func (s *Stream) Control() (*pb.WatchResponse, error) {
	stock, server := s.stock.inbox.nextControl(), s.server.inbox.nextControl()
	if _, err := s.pair.compare(stock, server); err != nil {
		return nil, err
	}
	if stock.Err != nil {
		return nil, stock.Err
	}
	return stock.Msg.(*pb.WatchResponse), nil
}

func (b *inbox) nextControl() Answer {
	if err := b.wait(func() bool { return len(b.control) > 0 }); err != nil {
		return Answer{Err: err}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.control[0]
	b.control = b.control[1:]
	return Answer{Msg: r}
}

// Quiet reports a control answer nobody expected.
func (s *Stream) Quiet() error {
	var extra [2]proto.Message
	for i, b := range []*inbox{s.stock.inbox, s.server.inbox} {
		b.mu.Lock()
		if len(b.control) > 0 {
			extra[i] = b.control[0]
		}
		b.mu.Unlock()
	}
	if extra[0] == nil && extra[1] == nil {
		return nil
	}
	return &Difference{What: "a control answer that was not due", Stock: text(extra[0]), Server: text(extra[1])}
}

// Events waits until both sides have delivered n uncompared events to the watch, then compares all
// there are: more than n is a difference too. Unrequested says that prev_kv was not asked for.
func (s *Stream) Events(id int64, n int, unrequested bool) ([]*mvccpb.Event, error) {
	stock, stockErr := s.stock.inbox.take(id, n)
	server, serverErr := s.server.inbox.take(id, n)
	for i, ev := range server {
		s.pair.Leases.Answer(ev)
		if unrequested && i < len(stock) {
			masks.UnrequestedPrevKv(stock[i], ev)
		}
		if i >= len(stock) || !masks.Equal(stock[i], ev) {
			break
		}
		if i == n-1 && len(stock) == n && len(server) == n && stockErr == nil && serverErr == nil {
			return stock, nil
		}
	}
	if n == 0 && len(stock) == 0 && len(server) == 0 && stockErr == nil && serverErr == nil {
		return nil, nil
	}
	return stock, eventsDiffer(id, n, stock, server, stockErr, serverErr)
}

func eventsDiffer(id int64, n int, stock, server []*mvccpb.Event, stockErr, serverErr error) error {
	i := 0
	for i < len(stock) && i < len(server) && masks.Equal(stock[i], server[i]) {
		i++
	}
	describe := func(events []*mvccpb.Event, err error) string {
		at := "no event"
		if i < len(events) {
			at = text(events[i])
		}
		return fmt.Sprintf("%d events, at %d: %s (wait: %v)", len(events), i, at, err)
	}
	return &Difference{
		What:   fmt.Sprintf("watch %d: %d events were due, they differ from %d on", id, n, i),
		Stock:  describe(stock, stockErr),
		Server: describe(server, serverErr),
	}
}

func (b *inbox) take(id int64, n int) ([]*mvccpb.Event, error) {
	err := b.wait(func() bool { return len(b.events[id]) >= n })
	b.mu.Lock()
	defer b.mu.Unlock()
	events := b.events[id]
	b.events[id] = nil
	return events, err
}

// delivered reports a side that announced progress before it had delivered the n events due.
func (s *Stream) delivered(id int64, n int) error {
	for name, b := range map[string]*inbox{"stock": s.stock.inbox, "server": s.server.inbox} {
		b.mu.Lock()
		have := len(b.events[id])
		b.mu.Unlock()
		if have < n {
			return fmt.Errorf("%s: progress ahead of watch %d: %d of %d events", name, id, have, n)
		}
	}
	return nil
}
