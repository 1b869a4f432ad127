// Package lockstep sends each request to the stock server and to the server under test, waits for both
// answers and compares them field by field, apart from what package masks allows. Watch streams are
// compared as ordered lists of events per watch; see watch.go for how waiting is bounded without sleeping.
package lockstep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"ringkv.dev/judges/internal/masks"
)

// answerMax bounds the wait for one answer of either server.
const answerMax = 15 * time.Second

// Side is one of the two servers.
type Side struct {
	Name      string
	conn      *grpc.ClientConn
	keepAlive pb.Lease_LeaseKeepAliveClient
	cancel    context.CancelFunc
}

// Dial connects a side; opts may carry a mutant's interceptors.
func Dial(name, endpoint string, opts ...grpc.DialOption) (*Side, error) {
	opts = append(opts,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32)))
	conn, err := grpc.NewClient("passthrough:///"+endpoint, opts...)
	if err != nil {
		return nil, err
	}
	return &Side{Name: name, conn: conn, cancel: func() {}}, nil
}

// Close ends all streams and the connection.
func (s *Side) Close() {
	s.cancel()
	s.conn.Close()
}

// Answer is a message or a gRPC error.
type Answer struct {
	Msg proto.Message
	Err error
}

func (a Answer) String() string {
	if a.Err != nil {
		return fmt.Sprintf("error %v: %q", status.Code(a.Err), status.Convert(a.Err).Message())
	}
	return text(a.Msg)
}

// textMax cuts reports: values may be large.
const textMax = 3000

func text(m proto.Message) string {
	if m == nil {
		return "nothing"
	}
	s := prototext.MarshalOptions{}.Format(m)
	if len(s) > textMax {
		s = fmt.Sprintf("%s... (%d bytes)", s[:textMax], len(s))
	}
	return fmt.Sprintf("%s{%s}", m.ProtoReflect().Descriptor().Name(), s)
}

// Difference is what a judge reports.
type Difference struct{ What, Stock, Server string }

func (d *Difference) Error() string {
	return fmt.Sprintf("%s\n  stock:  %s\n  server: %s", d.What, d.Stock, d.Server)
}

// Pair is both sides and the leases they named differently.
type Pair struct {
	Stock, Server *Side
	Leases        *masks.Leases
}

// Close closes both sides.
func (p *Pair) Close() {
	p.Stock.Close()
	p.Server.Close()
}

// both runs call on the two sides at once.
func (p *Pair) both(call func(*Side) Answer) (stock, server Answer) {
	done := make(chan Answer, 1)
	go func() { done <- call(p.Server) }()
	stock = call(p.Stock)
	return stock, <-done
}

// compare masks and compares; the answer handed back is stock's, unmasked in its lease id.
func (p *Pair) compare(stock, server Answer) (Answer, error) {
	if server.Msg != nil {
		p.Leases.Answer(server.Msg)
	}
	for _, a := range []Answer{stock, server} {
		if a.Err == nil {
			masks.Normalize(a.Msg)
		}
	}
	if !same(stock, server) {
		return stock, &Difference{What: "the answers differ", Stock: stock.String(), Server: server.String()}
	}
	return stock, nil
}

func same(a, b Answer) bool {
	if a.Err != nil || b.Err != nil {
		return a.Err != nil && b.Err != nil && status.Code(a.Err) == status.Code(b.Err) &&
			status.Convert(a.Err).Message() == status.Convert(b.Err).Message()
	}
	return masks.Equal(a.Msg, b.Msg)
}

// request is what a side must be sent for req.
func (p *Pair) request(s *Side, req proto.Message) proto.Message {
	if s == p.Server {
		return p.Leases.Request(req)
	}
	return req
}

// Unary sends req by the gRPC method on both sides and compares; answer makes an empty answer.
func (p *Pair) Unary(method string, req proto.Message, answer func() proto.Message) (Answer, error) {
	return p.compare(p.UnaryRaw(method, req, answer))
}

// UnaryRaw is Unary without the comparison.
func (p *Pair) UnaryRaw(method string, req proto.Message, answer func() proto.Message) (stock, server Answer) {
	return p.both(func(s *Side) Answer {
		ctx, cancel := context.WithTimeout(context.Background(), answerMax)
		defer cancel()
		msg := answer()
		if err := s.conn.Invoke(ctx, method, p.request(s, req), msg); err != nil {
			return Answer{Err: err}
		}
		return Answer{Msg: msg}
	})
}

// RangeStream compares the merged chunks: their borders are each server's own.
func (p *Pair) RangeStream(req *pb.RangeRequest) (Answer, error) {
	return p.compare(p.both(func(s *Side) Answer {
		ctx, cancel := context.WithTimeout(context.Background(), answerMax)
		defer cancel()
		stream, err := pb.NewKVClient(s.conn).RangeStream(ctx, req)
		if err != nil {
			return Answer{Err: err}
		}
		merged := &pb.RangeResponse{}
		for {
			chunk, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return Answer{Msg: merged}
			}
			if err != nil {
				return Answer{Err: err}
			}
			proto.Merge(merged, chunk.RangeResponse)
		}
	}))
}

// KeepAlive renews a lease over one long stream per side.
func (p *Pair) KeepAlive(id int64) (Answer, error) {
	req := &pb.LeaseKeepAliveRequest{ID: id}
	return p.compare(p.both(func(s *Side) Answer {
		return s.renew(p.request(s, req).(*pb.LeaseKeepAliveRequest))
	}))
}

func (s *Side) renew(req *pb.LeaseKeepAliveRequest) Answer {
	if s.keepAlive == nil {
		ctx, cancel := context.WithCancel(context.Background())
		stream, err := pb.NewLeaseClient(s.conn).LeaseKeepAlive(ctx)
		if err != nil {
			cancel()
			return Answer{Err: err}
		}
		s.keepAlive, s.cancel = stream, cancel
	}
	timer := time.AfterFunc(answerMax, s.cancel)
	defer timer.Stop()
	err := s.keepAlive.Send(req)
	if err == nil {
		var msg *pb.LeaseKeepAliveResponse
		if msg, err = s.keepAlive.Recv(); err == nil {
			return Answer{Msg: msg}
		}
	}
	s.cancel()
	s.keepAlive = nil
	return Answer{Err: err}
}
