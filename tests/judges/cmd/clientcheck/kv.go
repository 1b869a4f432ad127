package main

import (
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var kvChecks = []check{
	{"kv-put-get", kvPutGet},
	{"kv-range", kvRange},
	{"kv-delete", kvDelete},
	{"kv-txn", kvTxn},
	{"kv-txn-nested", kvTxnNested},
	{"kv-do", kvDo},
	{"kv-stream", kvStream},
	{"kv-compact", kvCompact},
	{"kv-errors", kvErrors},
}

func (p *probe) get(name string, opts ...clientv3.OpOption) *clientv3.GetResponse {
	return ok[*clientv3.GetResponse](p)(p.cli.Get(p.ctx, p.key(name), opts...))
}

func kvPutGet(p *probe) {
	first := p.put("k", "1")
	second := p.put("k", "2")
	want(p, "next revision", second, first+1)
	kv := p.get("k").Kvs[0]
	want(p, "value", string(kv.Value), "2")
	want(p, "version", kv.Version, 2)
	want(p, "create revision", kv.CreateRevision, first)
	want(p, "mod revision", kv.ModRevision, second)
	want(p, "old value", string(p.get("k", clientv3.WithRev(first)).Kvs[0].Value), "1")
	r := ok[*clientv3.PutResponse](p)(p.cli.Put(p.ctx, p.key("k"), "3", clientv3.WithPrevKV()))
	want(p, "previous value", string(r.PrevKv.Value), "2")
	ok[*clientv3.PutResponse](p)(p.cli.Put(p.ctx, p.key("k"), "", clientv3.WithIgnoreValue()))
	want(p, "ignored value", string(p.get("k").Kvs[0].Value), "3")
}

func kvRange(p *probe) {
	for i := range 10 {
		p.put(fmt.Sprintf("k%d", i), fmt.Sprint(9-i))
	}
	all := p.get("", clientv3.WithPrefix())
	want(p, "count", all.Count, 10)
	page := p.get("", clientv3.WithPrefix(), clientv3.WithLimit(3))
	want(p, "page", len(page.Kvs), 3)
	want(p, "more", page.More, true)
	want(p, "page's count", page.Count, 10)
	byValue := p.get("", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend))
	want(p, "least value", string(byValue.Kvs[0].Key), p.key("k9"))
	last := p.get("", clientv3.WithLastKey()...)
	want(p, "last key", string(last.Kvs[0].Key), p.key("k9"))
	count := p.get("", clientv3.WithPrefix(), clientv3.WithCountOnly())
	want(p, "count only", fmt.Sprint(count.Count, len(count.Kvs)), "10 0")
	rev := all.Kvs[5].ModRevision
	want(p, "since a revision", len(p.get("", clientv3.WithPrefix(), clientv3.WithMinModRev(rev)).Kvs), 5)
	want(p, "serializable", len(p.get("", clientv3.WithPrefix(), clientv3.WithSerializable()).Kvs), 10)
	keys := p.get("", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	want(p, "keys only", len(keys.Kvs[0].Value), 0)
}

func kvDelete(p *probe) {
	for _, name := range []string{"a", "b", "c"} {
		p.put(name, name)
	}
	r := ok[*clientv3.DeleteResponse](p)(p.cli.Delete(p.ctx, p.key("a"), clientv3.WithRange(p.key("c")), clientv3.WithPrevKV()))
	want(p, "deleted", r.Deleted, 2)
	want(p, "previous", string(r.PrevKvs[1].Value), "b")
	again := ok[*clientv3.DeleteResponse](p)(p.cli.Delete(p.ctx, p.key("a")))
	want(p, "deleted again", again.Deleted, 0)
	want(p, "revision of no deletion", again.Header.Revision, r.Header.Revision)
	p.put("a", "new")
	want(p, "version after deletion", p.get("a").Kvs[0].Version, 1)
}

func kvTxn(p *probe) {
	rev := p.put("k", "1")
	txn := func(cmp clientv3.Cmp) *clientv3.TxnResponse {
		return ok[*clientv3.TxnResponse](p)(p.cli.Txn(p.ctx).If(cmp).
			Then(clientv3.OpPut(p.key("yes"), "y"), clientv3.OpGet(p.key("yes"))).
			Else(clientv3.OpGet(p.key("k")), clientv3.OpDelete(p.key("yes"))).Commit())
	}
	yes := txn(clientv3.Compare(clientv3.Value(p.key("k")), "=", "1"))
	want(p, "then", yes.Succeeded, true)
	want(p, "one revision", yes.Header.Revision, rev+1)
	want(p, "reads its write", string(yes.Responses[1].GetResponseRange().Kvs[0].Value), "y")
	no := txn(clientv3.Compare(clientv3.ModRevision(p.key("k")), ">", rev))
	want(p, "else", no.Succeeded, false)
	want(p, "deleted", no.Responses[1].GetResponseDeleteRange().Deleted, 1)
	want(p, "missing key", txn(clientv3.Compare(clientv3.Version(p.key("none")), "=", 0)).Succeeded, true)
	want(p, "range compare", txn(clientv3.Compare(
		clientv3.CreateRevision(p.key("")), ">", 0).WithPrefix()).Succeeded, true)
}

func kvTxnNested(p *probe) {
	inner := clientv3.OpTxn(
		[]clientv3.Cmp{clientv3.Compare(clientv3.Version(p.key("k")), "=", 1)},
		[]clientv3.Op{clientv3.OpPut(p.key("inner"), "then")},
		[]clientv3.Op{clientv3.OpPut(p.key("inner"), "else")})
	r := ok[*clientv3.TxnResponse](p)(p.cli.Txn(p.ctx).Then(clientv3.OpPut(p.key("k"), "v"), inner).Commit())
	want(p, "inner branch is chosen before the writes", r.Responses[1].GetResponseTxn().Succeeded, false)
	want(p, "inner write", string(p.get("inner").Kvs[0].Value), "else")
	want(p, "same revision", p.get("inner").Kvs[0].ModRevision, p.get("k").Kvs[0].ModRevision)
}

func kvDo(p *probe) {
	put := ok[clientv3.OpResponse](p)(p.cli.Do(p.ctx, clientv3.OpPut(p.key("k"), "v")))
	get := ok[clientv3.OpResponse](p)(p.cli.Do(p.ctx, clientv3.OpGet(p.key("k"))))
	want(p, "mod revision", get.Get().Kvs[0].ModRevision, put.Put().Header.Revision)
	del := ok[clientv3.OpResponse](p)(p.cli.Do(p.ctx, clientv3.OpDelete(p.key("k"))))
	want(p, "deleted", del.Del().Deleted, 1)
	txn := ok[clientv3.OpResponse](p)(p.cli.Do(p.ctx, clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpGet(p.key("k"))}, nil)))
	want(p, "txn", txn.Txn().Succeeded, true)
}

// kvStream reads more than one chunk.
func kvStream(p *probe) {
	const n, size = 40, 100_000
	value := strings.Repeat("x", size)
	for i := range n {
		p.put(fmt.Sprintf("k%02d", i), value)
	}
	chunks := ok[clientv3.GetStreamChan](p)(p.cli.GetStream(p.ctx, p.prefix, clientv3.WithPrefix()))
	all := ok[*clientv3.GetResponse](p)(clientv3.GetStreamToGetResponse(chunks))
	want(p, "keys", len(all.Kvs), n)
	want(p, "count", all.Count, n)
	for i, kv := range all.Kvs {
		want(p, "key", string(kv.Key), p.key(fmt.Sprintf("k%02d", i)))
		want(p, "size", len(kv.Value), size)
	}
}

func kvCompact(p *probe) {
	first := p.put("k", "1")
	second := p.put("k", "2")
	ok[*clientv3.CompactResponse](p)(p.cli.Compact(p.ctx, second, clientv3.WithCompactPhysical()))
	_, err := p.cli.Get(p.ctx, p.key("k"), clientv3.WithRev(first))
	p.wantErr(err, rpctypes.ErrCompacted)
	want(p, "at the compacted revision", string(p.get("k", clientv3.WithRev(second)).Kvs[0].Value), "2")
	_, err = p.cli.Compact(p.ctx, second)
	p.wantErr(err, rpctypes.ErrCompacted)
	_, err = p.cli.Compact(p.ctx, second+1000)
	p.wantErr(err, rpctypes.ErrFutureRev)
}

func kvErrors(p *probe) {
	_, err := p.cli.Put(p.ctx, "", "v")
	p.wantErr(err, rpctypes.ErrEmptyKey)
	_, err = p.cli.Put(p.ctx, p.key("k"), "v", clientv3.WithLease(987654))
	p.wantErr(err, rpctypes.ErrLeaseNotFound)
	_, err = p.cli.Put(p.ctx, p.key("none"), "", clientv3.WithIgnoreValue())
	p.wantErr(err, rpctypes.ErrKeyNotFound)
	_, err = p.cli.Txn(p.ctx).Then(clientv3.OpPut(p.key("k"), "1"), clientv3.OpPut(p.key("k"), "2")).Commit()
	p.wantErr(err, rpctypes.ErrDuplicateKey)
	_, err = p.cli.Txn(p.ctx).Then(make129Puts(p)...).Commit()
	p.wantErr(err, rpctypes.ErrTooManyOps)
	_, err = p.cli.Put(p.ctx, p.key("k"), strings.Repeat("x", 1_600_000))
	p.wantErr(err, rpctypes.ErrRequestTooLarge)
	_, err = p.cli.Get(p.ctx, p.key("k"), clientv3.WithRev(1<<40))
	p.wantErr(err, rpctypes.ErrFutureRev)
}

func make129Puts(p *probe) []clientv3.Op {
	var ops []clientv3.Op
	for i := range 129 {
		ops = append(ops, clientv3.OpPut(p.key(fmt.Sprint(i)), ""))
	}
	return ops
}
