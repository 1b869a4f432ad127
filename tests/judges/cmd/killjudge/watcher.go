package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// watcher is a clientv3 watch that lives through the restarts.
type watcher struct {
	from   int64
	cli    *clientv3.Client
	cancel context.CancelFunc

	mu      sync.Mutex
	changed chan struct{} // holds at most one wake-up
	told    []write
	err     error
	// checked is how many of told have been compared.
	checked int
}

func startWatcher(endpoint string, from int64) (*watcher, error) {
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: []string{endpoint}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{
			BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, MaxDelay: 500 * time.Millisecond,
		}})},
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{from: from, cli: cli, cancel: cancel, changed: make(chan struct{}, 1)}
	go w.receive(cli.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(from)))
	return w, nil
}

func (w *watcher) close() {
	w.cancel()
	w.cli.Close()
}

func (w *watcher) receive(ch clientv3.WatchChan) {
	for open := true; open; {
		var r clientv3.WatchResponse
		r, open = <-ch
		w.mu.Lock()
		switch {
		case !open:
			w.err = errors.Join(w.err, errors.New("the watch ended"))
		case r.Err() != nil:
			w.err = errors.Join(w.err, r.Err())
		case w.err == nil:
			w.told, w.err = appendEvents(w.told, w.from, r.Events)
		}
		w.mu.Unlock()
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

// verify waits until the watch has told everything up to the ledger's last revision, and compares.
func (w *watcher) verify(l *ledger) error {
	timer := time.NewTimer(verifyMax)
	defer timer.Stop()
	for {
		w.mu.Lock()
		due, told, err := int(l.last-w.from+1), w.told, w.err
		w.mu.Unlock()
		if err != nil {
			return err
		}
		if len(told) > due {
			return fmt.Errorf("told %v, which is not in the history", told[due])
		}
		for ; w.checked < len(told); w.checked++ {
			rev := w.from + int64(w.checked)
			if held := l.history[rev-firstRevision]; told[w.checked] != held {
				return fmt.Errorf("revision %d was told as %v and holds %v", rev, told[w.checked], held)
			}
		}
		if len(told) == due {
			return nil
		}
		select {
		case <-w.changed:
		case <-timer.C:
			return fmt.Errorf("told %d of %d events within %v", len(told), due, verifyMax)
		}
	}
}
