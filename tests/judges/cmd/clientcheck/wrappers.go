package main

import (
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/ordering"
)

var wrapperChecks = []check{
	{"namespace", namespaced},
	{"ordering", ordered},
	{"mirror", mirrored},
	{"leasing", leased},
}

func namespaced(p *probe) {
	kv := namespace.NewKV(p.cli.KV, p.prefix)
	watcher := namespace.NewWatcher(p.cli.Watcher, p.prefix)
	lease := namespace.NewLease(p.cli.Lease, p.prefix)
	granted := ok[*clientv3.LeaseGrantResponse](p)(lease.Grant(p.ctx, 1000))
	put := ok[*clientv3.PutResponse](p)(kv.Put(p.ctx, "k", "v", clientv3.WithLease(granted.ID)))
	want(p, "below the prefix", string(p.get("k").Kvs[0].Value), "v")
	all := ok[*clientv3.GetResponse](p)(kv.Get(p.ctx, "", clientv3.WithFromKey()))
	want(p, "keys seen", all.Count, 1)
	want(p, "key without prefix", string(all.Kvs[0].Key), "k")
	events := p.collect(watcher.Watch(p.ctx, "", clientv3.WithPrefix(), clientv3.WithRev(put.Header.Revision)), 1)
	want(p, "watched key", string(events[0].Kv.Key), "k")
	left := ok[*clientv3.LeaseTimeToLiveResponse](p)(lease.TimeToLive(p.ctx, granted.ID, clientv3.WithAttachedKeys()))
	want(p, "leased key", string(left.Keys[0]), "k")
	txn := ok[*clientv3.TxnResponse](p)(kv.Txn(p.ctx).If(clientv3.Compare(clientv3.Value("k"), "=", "v")).
		Then(clientv3.OpDelete("k")).Commit())
	want(p, "txn", txn.Succeeded, true)
}

func ordered(p *probe) {
	kv := ordering.NewKV(p.cli.KV, ordering.NewOrderViolationSwitchEndpointClosure(p.cli))
	for i := range 20 {
		ok[*clientv3.PutResponse](p)(kv.Put(p.ctx, p.key("k"), fmt.Sprint(i)))
		ok[*clientv3.GetResponse](p)(kv.Get(p.ctx, p.key("k")))
		read := ok[*clientv3.GetResponse](p)(kv.Get(p.ctx, p.key("k"), clientv3.WithSerializable()))
		want(p, "value", string(read.Kvs[0].Value), fmt.Sprint(i))
	}
}

// mirrored copies more keys than one page, then follows.
func mirrored(p *probe) {
	const n = 50
	for i := range n {
		p.put(fmt.Sprint(i), "v")
	}
	syncer := mirror.NewSyncer(p.cli, p.prefix, 0)
	pages, errs := syncer.SyncBase(p.ctx)
	copied := 0
	for page := range pages {
		copied += len(page.Kvs)
	}
	for err := range errs {
		p.must(err)
	}
	want(p, "copied", copied, n)
	updates := syncer.SyncUpdates(p.ctx)
	p.put("later", "v")
	want(p, "followed", string(p.collect(updates, 1)[0].Kv.Key), p.key("later"))
}

// leased: two caching clients agree, the second's write takes the key from the first's cache.
func leased(p *probe) {
	one, closeOne, err := leasing.NewKV(p.cli, p.prefix+"leases/")
	p.must(err)
	defer closeOne()
	two, closeTwo, err := leasing.NewKV(p.cli, p.prefix+"leases/")
	p.must(err)
	defer closeTwo()
	for i := range 5 {
		ok[*clientv3.PutResponse](p)(one.Put(p.ctx, p.key("k"), fmt.Sprint("one", i)))
		read := ok[*clientv3.GetResponse](p)(two.Get(p.ctx, p.key("k")))
		want(p, "second reads", string(read.Kvs[0].Value), fmt.Sprint("one", i))
		ok[*clientv3.PutResponse](p)(two.Put(p.ctx, p.key("k"), fmt.Sprint("two", i)))
		read = ok[*clientv3.GetResponse](p)(one.Get(p.ctx, p.key("k")))
		want(p, "first reads", string(read.Kvs[0].Value), fmt.Sprint("two", i))
	}
}
