package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"ringkv.dev/judges/internal/proc"
)

const (
	// prefix holds every key: each revision of the store is one put below it.
	prefix = "w/"
	// connections carry the clients of a round.
	connections = 10
	// answerMax bounds one call, verifyMax the check after a restart.
	answerMax = 10 * time.Second
	verifyMax = 60 * time.Second
	// firstRevision is that of the first put.
	firstRevision = 2
)

// write is a key and the value, which names the client, the round and the attempt: no two are alike.
type write struct{ key, value string }

// ledger is what the servers have acknowledged, and what their history said.
type ledger struct {
	mu    sync.Mutex
	acked map[int64]write
	most  int64 // greatest acknowledged revision
	// history[i] is the write at revision firstRevision+i as read after a restart; last is its end.
	history []write
	last    int64
	seen    map[string]int64
}

func newLedger() *ledger {
	return &ledger{acked: map[int64]write{}, last: firstRevision - 1, seen: map[string]int64{}}
}

func (l *ledger) floor() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.most
}

// ack records an acknowledged write; floor is the greatest revision acknowledged before it was sent.
func (l *ledger) ack(w write, rev, floor int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if other, used := l.acked[rev]; used {
		return fmt.Errorf("revision %d was given to %v and to %v", rev, other, w)
	}
	if rev <= floor {
		return fmt.Errorf("revision %d was given to %v after %d had been acknowledged", rev, w, floor)
	}
	l.acked[rev], l.most = w, max(l.most, rev)
	return nil
}

func dial(endpoint string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// writeUntilKilled lets the clients write for a while, kills the server and waits for the clients, each of
// which ends at its first error.
func writeUntilKilled(server *proc.Server, l *ledger, round, clients int, lived time.Duration) error {
	var conns []*grpc.ClientConn
	for range connections {
		conn, err := dial(server.Endpoint())
		if err != nil {
			return err
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	var all sync.WaitGroup
	errs := make(chan error, clients)
	before := len(l.acked)
	for c := range clients {
		all.Go(func() {
			if err := writeOn(pb.NewKVClient(conns[c%connections]), l, round, c); err != nil {
				errs <- err
			}
		})
	}
	select {
	case <-time.After(lived):
	case <-server.Done():
		return fmt.Errorf("the server ended by itself\n%s", server.Tail())
	}
	server.Kill()
	all.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return err
	}
	if len(l.acked) == before {
		return errors.New("no write was acknowledged")
	}
	return nil
}

func writeOn(kv pb.KVClient, l *ledger, round, client int) error {
	for n := 0; ; n++ {
		w := write{fmt.Sprintf("%s%d/%d", prefix, client, n%20), ""}
		w.value = fmt.Sprintf("%s at %d.%d", w.key, round, n)
		floor := l.floor()
		ctx, cancel := context.WithTimeout(context.Background(), answerMax)
		r, err := kv.Put(ctx, &pb.PutRequest{Key: []byte(w.key), Value: []byte(w.value)})
		cancel()
		if err != nil {
			return nil // not acknowledged: it may have happened or not
		}
		if err := l.ack(w, r.Header.Revision, floor); err != nil {
			return err
		}
	}
}

// verify reads the history since the last restart and compares it with the acknowledged writes and with
// what each watcher has been told.
func (l *ledger) verify(endpoint string, watchers []*watcher) error {
	from := l.last + 1
	added, err := readHistory(endpoint, from, l.most)
	if err != nil {
		return err
	}
	for _, w := range added {
		l.last++
		if at, again := l.seen[w.value]; again {
			return fmt.Errorf("%v was written at revision %d and again at %d", w, at, l.last)
		}
		l.seen[w.value] = l.last
		l.history = append(l.history, w)
	}
	for rev := from; rev <= l.last; rev++ {
		if w, acked := l.acked[rev]; acked && w != l.history[rev-firstRevision] {
			return fmt.Errorf("revision %d was acknowledged for %v and holds %v", rev, w, l.history[rev-firstRevision])
		}
	}
	for i, w := range watchers {
		if err := w.verify(l); err != nil {
			return fmt.Errorf("watch %d: %w", i+1, err)
		}
	}
	return nil
}

// verifyAll reads the whole history once more.
func (l *ledger) verifyAll(endpoint string) error {
	all, err := readHistory(endpoint, firstRevision, l.last)
	if err != nil {
		return err
	}
	for i, w := range all {
		if w != l.history[i] {
			return fmt.Errorf("revision %d held %v and now holds %v", firstRevision+i, l.history[i], w)
		}
	}
	return nil
}

// readHistory watches from a revision up to the store's current one: no write is under way. The store must
// reach at least the revision least.
func readHistory(endpoint string, from, least int64) ([]write, error) {
	ctx, cancel := context.WithTimeout(context.Background(), verifyMax)
	defer cancel()
	conn, err := dial(endpoint)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	head, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte(prefix), CountOnly: true})
	if err != nil {
		return nil, err
	}
	current := head.Header.Revision
	if current < least {
		return nil, fmt.Errorf("acknowledged writes are lost: the store is at revision %d, acknowledged was %d", current, least)
	}
	if current < from {
		return nil, nil
	}
	stream, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		return nil, err
	}
	create := &pb.WatchCreateRequest{Key: []byte(prefix), RangeEnd: []byte("w0"), StartRevision: from}
	err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
	var all []write
	for err == nil && from+int64(len(all)) <= current {
		var r *pb.WatchResponse
		if r, err = stream.Recv(); err == nil {
			all, err = appendEvents(all, from, r.Events)
		}
	}
	return all, err
}

// appendEvents demands that the events go on without a gap or a repeat.
func appendEvents(all []write, from int64, events []*mvccpb.Event) ([]write, error) {
	for _, ev := range events {
		w := write{string(ev.Kv.Key), string(ev.Kv.Value)}
		if rev := from + int64(len(all)); ev.Kv.ModRevision != rev {
			return all, fmt.Errorf("event at revision %d where %d was due: %v", ev.Kv.ModRevision, rev, w)
		}
		if !strings.HasPrefix(w.value, w.key+" at ") {
			return all, fmt.Errorf("key %q holds %q, which nobody wrote", w.key, w.value)
		}
		all = append(all, w)
	}
	return all, nil
}
