// Package mutant makes a correct server answer wrongly now and then, by gRPC interceptors on the judge's
// own connection: a judge that does not notice proves nothing.
package mutant

import (
	"context"
	"slices"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Mutant alters one field of one kind of answer.
type Mutant struct {
	Name string
	// rare says that few answers can be altered: all of them are.
	rare bool
	// alter changes the answer in place and says whether it found something to change.
	alter func(answer any) bool
	// fail, where set, changes an error instead.
	fail func(error) (error, bool)
}

// All are the mutants, each of which a judge must catch.
var All = []Mutant{
	{Name: "version", alter: on(func(r *pb.RangeResponse) bool {
		if len(r.Kvs) == 0 {
			return false
		}
		r.Kvs[len(r.Kvs)-1].Version++
		return true
	})},
	{Name: "count", alter: on(func(r *pb.RangeResponse) bool { r.Count++; return true })},
	{Name: "more", alter: on(func(r *pb.RangeResponse) bool { r.More = !r.More; return true })},
	{Name: "order", alter: on(func(r *pb.RangeResponse) bool {
		if len(r.Kvs) < 2 {
			return false
		}
		r.Kvs[0], r.Kvs[1] = r.Kvs[1], r.Kvs[0]
		return true
	})},
	{Name: "revision", alter: on(func(r *pb.PutResponse) bool { r.Header.Revision++; return true })},
	{Name: "prev-kv", alter: on(func(r *pb.PutResponse) bool {
		had := r.PrevKv != nil
		r.PrevKv = nil
		return had
	})},
	{Name: "deleted", alter: on(func(r *pb.DeleteRangeResponse) bool { r.Deleted++; return true })},
	{Name: "succeeded", alter: on(func(r *pb.TxnResponse) bool { r.Succeeded = !r.Succeeded; return true })},
	{Name: "hash", rare: true, alter: on(func(r *pb.HashKVResponse) bool { r.Hash++; return true })},
	{Name: "granted-ttl", alter: on(func(r *pb.LeaseTimeToLiveResponse) bool { r.GrantedTTL++; return true })},
	{Name: "lease-missing", rare: true, alter: on(func(r *pb.LeaseLeasesResponse) bool {
		had := len(r.Leases) > 0
		r.Leases = r.Leases[min(1, len(r.Leases)):]
		return had
	})},
	{Name: "event-dropped", alter: on(func(r *pb.WatchResponse) bool {
		had := len(r.Events) > 1
		if had {
			r.Events = slices.Delete(r.Events, 0, 1)
		}
		return had
	})},
	{Name: "event-doubled", alter: on(func(r *pb.WatchResponse) bool {
		had := len(r.Events) > 0
		if had {
			r.Events = append(r.Events, r.Events[0])
		}
		return had
	})},
	{Name: "event-value", alter: on(func(r *pb.WatchResponse) bool {
		for _, ev := range r.Events {
			ev.Kv.Value = append(ev.Kv.Value, '!')
		}
		return len(r.Events) > 0
	})},
	{Name: "compact-revision", rare: true, alter: on(func(r *pb.WatchResponse) bool {
		had := r.CompactRevision > 0
		if had {
			r.CompactRevision++
		}
		return had
	})},
	{Name: "error-text", fail: func(err error) (error, bool) {
		return status.Error(status.Code(err), status.Convert(err).Message()+"."), true
	}},
	{Name: "error-code", fail: func(err error) (error, bool) {
		return status.Error(codes.Unknown, status.Convert(err).Message()), status.Code(err) != codes.Unknown
	}},
}

func on[T any](alter func(*T) bool) func(any) bool {
	return func(answer any) bool {
		r, ok := answer.(*T)
		return ok && alter(r)
	}
}

// Options alter one answer in n that the mutant can alter, or all where those are rare.
func (m Mutant) Options(n int64) []grpc.DialOption {
	if m.rare {
		n = 1
	}
	var met atomic.Int64
	hit := func() bool { return met.Add(1)%n == 0 }
	return []grpc.DialOption{
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
			invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return m.apply(reply, invoke(ctx, method, req, reply, cc, opts...), hit)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn,
			method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := open(ctx, desc, cc, method, opts...)
			return &stream{s, func(msg any) { _ = m.apply(msg, nil, hit) }}, err
		}),
	}
}

func (m Mutant) apply(reply any, err error, hit func() bool) error {
	switch {
	case err == nil && m.alter != nil:
		altered := proto.Clone(reply.(proto.Message))
		if m.alter(altered) && hit() {
			proto.Reset(reply.(proto.Message))
			proto.Merge(reply.(proto.Message), altered)
		}
	case err != nil && m.fail != nil:
		if failed, ok := m.fail(err); ok && hit() {
			return failed
		}
	}
	return err
}

type stream struct {
	grpc.ClientStream
	alter func(any)
}

func (s *stream) RecvMsg(msg any) error {
	err := s.ClientStream.RecvMsg(msg)
	if err == nil {
		s.alter(msg)
	}
	return err
}
