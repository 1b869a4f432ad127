package main

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

var concurrencyChecks = []check{
	{"session", sessionEnds},
	{"mutex", mutexExcludes},
	{"mutex-two-sessions", mutexTwoSessions},
	{"election", election},
	{"stm", stmTransfers},
}

func (p *probe) session() *concurrency.Session {
	return ok[*concurrency.Session](p)(concurrency.NewSession(p.cli, concurrency.WithTTL(10), concurrency.WithContext(p.ctx)))
}

func sessionEnds(p *probe) {
	s := p.session()
	p.put("k", "v", clientv3.WithLease(s.Lease()))
	ok[*clientv3.LeaseRevokeResponse](p)(p.cli.Revoke(p.ctx, s.Lease()))
	select {
	case <-s.Done():
	case <-p.ctx.Done():
		p.must(p.ctx.Err())
	}
	want(p, "keys of the session", p.get("k").Count, 0)
}

// mutexExcludes: ten sessions increment a plain counter under a lock.
func mutexExcludes(p *probe) {
	const workers, rounds = 10, 5
	var holders atomic.Int32
	counter, errs := 0, make(chan error, workers)
	for range workers {
		s := p.session()
		defer s.Close()
		go func() {
			m := concurrency.NewMutex(s, p.prefix)
			for range rounds {
				if err := m.Lock(p.ctx); err != nil {
					errs <- err
					return
				}
				if holders.Add(1) != 1 {
					errs <- errors.New("two holders")
					return
				}
				counter++
				holders.Add(-1)
				if err := m.Unlock(p.ctx); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range workers {
		p.must(next(p, errs))
	}
	want(p, "counter", counter, workers*rounds)
}

// mutexTwoSessions: the second waits until the first's lease is gone.
func mutexTwoSessions(p *probe) {
	one, two := p.session(), p.session()
	defer two.Close()
	first, second := concurrency.NewMutex(one, p.prefix), concurrency.NewMutex(two, p.prefix)
	p.must(first.Lock(p.ctx))
	p.wantErr(second.TryLock(p.ctx), concurrency.ErrLocked)
	locked := make(chan error, 1)
	go func() { locked <- second.Lock(p.ctx) }()
	select {
	case err := <-locked:
		p.must(errors.Join(errors.New("locked twice"), err))
	default:
	}
	p.must(one.Close())
	p.must(next(p, locked))
	holder := ok[*clientv3.TxnResponse](p)(p.cli.Txn(p.ctx).If(second.IsOwner()).Commit())
	want(p, "second owns the lock", holder.Succeeded, true)
	p.must(second.Unlock(p.ctx))
}

func election(p *probe) {
	one, two := p.session(), p.session()
	defer one.Close()
	defer two.Close()
	first, second := concurrency.NewElection(one, p.prefix), concurrency.NewElection(two, p.prefix)
	observed := second.Observe(p.ctx)
	p.must(first.Campaign(p.ctx, "a"))
	want(p, "observed", leaderOf(next(p, observed)), "a")
	p.must(first.Proclaim(p.ctx, "a2"))
	want(p, "observed", leaderOf(next(p, observed)), "a2")
	won := make(chan error, 1)
	go func() { won <- second.Campaign(p.ctx, "b") }()
	p.must(first.Resign(p.ctx))
	p.must(next(p, won))
	want(p, "observed", leaderOf(next(p, observed)), "b")
	want(p, "leader", leaderOf(ok[*clientv3.GetResponse](p)(second.Leader(p.ctx))), "b")
	p.must(second.Resign(p.ctx))
	_, err := first.Leader(p.ctx)
	p.wantErr(err, concurrency.ErrElectionNoLeader)
}

func leaderOf(r *clientv3.GetResponse) string { return string(r.Kvs[0].Value) }

// stmTransfers: concurrent transfers keep the sum.
func stmTransfers(p *probe) {
	const accounts, workers, rounds = 5, 6, 15
	for i := range accounts {
		p.put(strconv.Itoa(i), "100")
	}
	var all sync.WaitGroup
	errs := make(chan error, workers)
	for w := range workers {
		all.Go(func() {
			for i := range rounds {
				from, to := p.key(strconv.Itoa((w+i)%accounts)), p.key(strconv.Itoa((w+2*i+1)%accounts))
				_, err := concurrency.NewSTM(p.cli, transfer(from, to), concurrency.WithAbortContext(p.ctx))
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		p.must(err)
	}
	sum := 0
	for _, kv := range p.get("", clientv3.WithPrefix()).Kvs {
		sum += ok[int](p)(strconv.Atoi(string(kv.Value)))
	}
	want(p, "sum", sum, accounts*100)
}

func transfer(from, to string) func(concurrency.STM) error {
	return func(s concurrency.STM) error {
		if from == to {
			return nil
		}
		a, err := strconv.Atoi(s.Get(from))
		if err != nil {
			return err
		}
		b, err := strconv.Atoi(s.Get(to))
		if err != nil {
			return err
		}
		s.Put(from, fmt.Sprint(a-1))
		s.Put(to, fmt.Sprint(b+1))
		return nil
	}
}
