package main

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"ringkv.dev/judges/internal/proc"
)

var watchChecks = []check{
	{"watch-live", watchLive},
	{"watch-history", watchHistory},
	{"watch-many", watchMany},
	{"watch-cancel", watchCancel},
	{"watch-progress-requested", watchProgressRequested},
	{"watch-progress-notify", watchProgressNotify},
	{"watch-compacted", watchCompacted},
	{"watch-resume", watchResume},
	{"watch-resume-compacted", watchResumeCompacted},
}

var restartChecks = []check{{"watch-resume-restart", watchResumeRestart}}

// collect is the next n events.
func (p *probe) collect(ch clientv3.WatchChan, n int) (events []*clientv3.Event) {
	for len(events) < n {
		r := next(p, ch)
		p.must(r.Err())
		events = append(events, r.Events...)
	}
	want(p, "events", len(events), n)
	return events
}

func watchLive(p *probe) {
	watch := p.cli.Watch(p.ctx, p.prefix, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	want(p, "created", next(p, watch).Created, true)
	rev := p.put("a", "1")
	p.put("a", "2")
	ok[*clientv3.DeleteResponse](p)(p.cli.Delete(p.ctx, p.key("a")))
	events := p.collect(watch, 3)
	want(p, "create", events[0].IsCreate(), true)
	want(p, "modify", events[1].IsModify(), true)
	want(p, "previous", string(events[1].PrevKv.Value), "1")
	want(p, "delete", events[2].Type, mvccpb.Event_DELETE)
	want(p, "deleted value", string(events[2].PrevKv.Value), "2")
	want(p, "revision of the deletion", events[2].Kv.ModRevision, rev+2)
}

func watchHistory(p *probe) {
	rev := p.put("k", "0")
	for i := range 30 {
		p.put("k", fmt.Sprint(i+1))
	}
	ok[*clientv3.TxnResponse](p)(p.cli.Txn(p.ctx).Then(clientv3.OpPut(p.key("x"), ""), clientv3.OpPut(p.key("y"), "")).Commit())
	events := p.collect(p.cli.Watch(p.ctx, p.prefix, clientv3.WithPrefix(), clientv3.WithRev(rev)), 33)
	for i, ev := range events[:31] {
		want(p, "value in order", string(ev.Kv.Value), fmt.Sprint(i))
	}
	want(p, "one txn, one revision", events[31].Kv.ModRevision, events[32].Kv.ModRevision)
	deletes := p.cli.Watch(p.ctx, p.key("k"), clientv3.WithRev(rev), clientv3.WithFilterPut())
	ok[*clientv3.DeleteResponse](p)(p.cli.Delete(p.ctx, p.key("k")))
	want(p, "filtered", p.collect(deletes, 1)[0].Type, mvccpb.Event_DELETE)
}

// watchMany opens watches on one stream and on streams of their own, each of which sees its key only.
func watchMany(p *probe) {
	const n = 50
	var watches []clientv3.WatchChan
	for i := range n {
		ctx := p.ctx
		if i%5 == 0 {
			ctx = metadata.AppendToOutgoingContext(ctx, "stream", fmt.Sprint(i))
		}
		watches = append(watches, p.cli.Watch(ctx, p.key(fmt.Sprint(i)), clientv3.WithCreatedNotify()))
	}
	for _, w := range watches {
		want(p, "created", next(p, w).Created, true)
	}
	for i := range n {
		p.put(fmt.Sprint(i), fmt.Sprint(i))
	}
	for i, w := range watches {
		want(p, "value", string(p.collect(w, 1)[0].Kv.Value), fmt.Sprint(i))
	}
}

func watchCancel(p *probe) {
	ctx, cancel := context.WithCancel(p.ctx)
	watch := p.cli.Watch(ctx, p.key("k"), clientv3.WithCreatedNotify())
	next(p, watch)
	other := p.cli.Watch(p.ctx, p.key("k"), clientv3.WithCreatedNotify())
	next(p, other)
	cancel()
	for open := true; open; {
		select {
		case _, open = <-watch:
		case <-p.ctx.Done():
			p.must(p.ctx.Err())
		}
	}
	p.put("k", "v")
	p.collect(other, 1)
}

// watchProgressRequested: progress comes after the events it covers.
func watchProgressRequested(p *probe) {
	watch := p.cli.Watch(p.ctx, p.key("k"), clientv3.WithCreatedNotify())
	next(p, watch)
	p.put("k", "v")
	rev := p.put("elsewhere", "v")
	p.must(p.cli.RequestProgress(p.ctx))
	seen := 0
	for {
		r := next(p, watch)
		p.must(r.Err())
		seen += len(r.Events)
		if r.IsProgressNotify() {
			want(p, "events before progress", seen, 1)
			want(p, "progress", r.Header.Revision >= rev, true)
			return
		}
	}
}

// watchProgressNotify: without asking, a quiet watch learns the store's revision.
func watchProgressNotify(p *probe) {
	watch := p.cli.Watch(p.ctx, p.key("quiet"), clientv3.WithProgressNotify())
	rev := p.put("elsewhere", "v")
	for {
		r := next(p, watch)
		p.must(r.Err())
		want(p, "events", len(r.Events), 0)
		if r.IsProgressNotify() && r.Header.Revision >= rev {
			return
		}
	}
}

func watchCompacted(p *probe) {
	rev := p.put("k", "1")
	last := p.put("k", "2")
	ok[*clientv3.CompactResponse](p)(p.cli.Compact(p.ctx, last))
	r := next(p, p.cli.Watch(p.ctx, p.key("k"), clientv3.WithRev(rev)))
	p.wantErr(r.Err(), rpctypes.ErrCompacted)
	want(p, "compact revision", r.CompactRevision, last)
	want(p, "canceled", r.Canceled, true)
	at := p.collect(p.cli.Watch(p.ctx, p.key("k"), clientv3.WithRev(last)), 1)
	want(p, "at the compacted revision", string(at[0].Kv.Value), "2")
}

// cuttable watches through a bridge whose connections can be cut.
func (p *probe) cuttable(opts ...clientv3.OpOption) (clientv3.WatchChan, *proc.Bridge, func()) {
	bridge := ok[*proc.Bridge](p)(proc.NewBridge(p.host.Endpoint()))
	cli := ok[*clientv3.Client](p)(p.host.client(bridge.Addr()))
	watch := cli.Watch(p.ctx, p.prefix, append(opts, clientv3.WithPrefix(), clientv3.WithCreatedNotify())...)
	next(p, watch)
	return watch, bridge, func() {
		cli.Close()
		bridge.Close()
	}
}

// watchResume: a watch whose connection is cut goes on without a gap or a repeat.
func watchResume(p *probe) {
	watch, bridge, done := p.cuttable()
	defer done()
	n := 0
	for round := range 3 {
		for range 5 {
			p.put("k", fmt.Sprint(n))
			n++
		}
		for i, ev := range p.collect(watch, 5) {
			want(p, "value", string(ev.Kv.Value), fmt.Sprint(n-5+i))
		}
		bridge.Cut()
		p.put("k", fmt.Sprint(n))
		n++
		bridge.Mend()
		want(p, fmt.Sprintf("value after cut %d", round), string(p.collect(watch, 1)[0].Kv.Value), fmt.Sprint(n-1))
	}
}

// watchResumeCompacted: what was missed has been compacted; the watch must say so and not skip it.
func watchResumeCompacted(p *probe) {
	watch, bridge, done := p.cuttable()
	defer done()
	p.put("k", "seen")
	p.collect(watch, 1)
	bridge.Cut()
	p.put("k", "missed")
	p.put("k", "missed too")
	last := p.put("k", "last")
	ok[*clientv3.CompactResponse](p)(p.cli.Compact(p.ctx, last))
	bridge.Mend()
	r := next(p, watch)
	p.wantErr(r.Err(), rpctypes.ErrCompacted)
	want(p, "compact revision", r.CompactRevision, last)
}

// watchResumeRestart: the server is killed and started again below an open watch.
func watchResumeRestart(p *probe) {
	watch := p.cli.Watch(p.ctx, p.prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	next(p, watch)
	rev := p.put("k", "before")
	p.collect(watch, 1)
	p.host.Kill()
	again, err := proc.Start(p.host.Config)
	p.must(err)
	p.host.Server = again
	for {
		after, err := p.cli.Put(p.ctx, p.key("k"), "after")
		if err == nil {
			want(p, "revision after the restart", after.Header.Revision > rev, true)
			break
		}
		if p.ctx.Err() != nil {
			p.must(errors.Join(err, p.ctx.Err()))
		}
	}
	want(p, "value", string(p.collect(watch, 1)[0].Kv.Value), "after")
}
