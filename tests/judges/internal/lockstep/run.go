package lockstep

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"ringkv.dev/judges/internal/gen"
)

// recentMax is how many requests a report shows.
const recentMax = 15

// Run is one seed's sequence against one pair of fresh servers.
type Run struct {
	*Pair
	*gen.Gen
	// Skip names steps that are not drawn.
	Skip map[string]bool
	// Met counts answers by request and error, and compared watch events: proof that a seed reached things.
	Met map[string]int

	recent  []fmt.Stringer
	done    int
	history []*mvccpb.Event // every event since the start, from stock
	oracle  *inbox
	cancel  context.CancelFunc
	streams []*openStream
	short   int64
}

// NewRun opens a watch over everything on stock: from it follows what each other watch must deliver.
func NewRun(p *Pair, g *gen.Gen) (*Run, error) {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := pb.NewWatchClient(p.Stock.conn).Watch(ctx)
	if err == nil {
		err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
			CreateRequest: &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}},
		}})
	}
	if err != nil {
		cancel()
		return nil, err
	}
	r := &Run{Pair: p, Gen: g, oracle: newInbox(), cancel: cancel, Met: map[string]int{}}
	go r.oracle.receive(stream)
	if a := r.oracle.nextControl(); a.Err != nil {
		cancel()
		return nil, a.Err
	}
	return r, nil
}

// Ops runs n random steps and compares what is left of the watches at the end.
func (r *Run) Ops(n int) error {
	defer r.cancel()
	for r.done = 0; r.done < n; r.done++ {
		if err := r.step(); err != nil {
			return r.explain(err)
		}
	}
	r.note(note("final comparison of all watches"))
	if err := r.pokeAll(); err != nil {
		return r.explain(err)
	}
	for _, s := range r.streams {
		r.close(s)
	}
	return nil
}

// note keeps what a report shows; it is formatted only then.
func (r *Run) note(s fmt.Stringer) {
	if len(r.recent) == recentMax {
		r.recent = append(r.recent[:0], r.recent[1:]...)
	}
	r.recent = append(r.recent, s)
}

type note string

func (n note) String() string { return string(n) }

type request struct {
	op  int
	msg proto.Message
}

func (q request) String() string { return fmt.Sprintf("op %d: %s", q.op, text(q.msg)) }

func (r *Run) explain(err error) error {
	out := fmt.Sprintf("op %d, revision %d, compacted %d\n", r.done, r.Revision, r.Compacted)
	for _, s := range r.recent {
		out += "  " + s.String() + "\n"
	}
	return fmt.Errorf("%s%w", out, err)
}

type step struct {
	name   string
	weight int
	do     func(*Run) error
}

var steps = []step{
	{"range", 300, func(r *Run) error { return r.unary(pb.KV_Range_FullMethodName, r.Range(), new(pb.RangeResponse)) }},
	{"range-stream", 25, (*Run).rangeStream},
	{"put", 200, func(r *Run) error { return r.unary(pb.KV_Put_FullMethodName, r.Put(), new(pb.PutResponse)) }},
	{"delete", 60, func(r *Run) error {
		return r.unary(pb.KV_DeleteRange_FullMethodName, r.DeleteRange(), new(pb.DeleteRangeResponse))
	}},
	{"txn", 150, func(r *Run) error { return r.unary(pb.KV_Txn_FullMethodName, r.Txn(), new(pb.TxnResponse)) }},
	{"compact", 4, (*Run).compact},
	{"large", 1, (*Run).large},
	{"lease-grant", 12, (*Run).leaseGrant},
	{"lease-revoke", 10, (*Run).leaseRevoke},
	{"lease-short", 2, (*Run).leaseShort},
	{"lease-keepalive", 15, (*Run).leaseKeepAlive},
	{"lease-ttl", 20, (*Run).leaseTTL},
	{"lease-list", 8, func(r *Run) error {
		return r.unary(pb.Lease_LeaseLeases_FullMethodName, new(pb.LeaseLeasesRequest), new(pb.LeaseLeasesResponse))
	}},
	{"hashkv", 15, (*Run).hashKV},
	{"status", 4, func(r *Run) error {
		return r.unary(pb.Maintenance_Status_FullMethodName, new(pb.StatusRequest), new(pb.StatusResponse))
	}},
	{"members", 3, func(r *Run) error {
		return r.unary(pb.Cluster_MemberList_FullMethodName,
			&pb.MemberListRequest{Linearizable: r.One(2)}, new(pb.MemberListResponse))
	}},
	{"alarm", 2, (*Run).alarm},
	{"watch-create", 20, (*Run).watchCreate},
	{"watch-cancel", 10, (*Run).watchCancel},
	{"watch-progress", 10, (*Run).watchProgress},
	{"watch-close", 1, (*Run).watchClose},
	{"watch-settle", 10, (*Run).settle},
}

// Steps are the names -skip takes.
func Steps() []string {
	var names []string
	for _, s := range steps {
		names = append(names, s.name)
	}
	return names
}

func (r *Run) step() error {
	total := 0
	for _, s := range steps {
		total += s.weight
	}
	for {
		n := r.IntN(total)
		for _, s := range steps {
			if n -= s.weight; n >= 0 {
				continue
			}
			if r.Skip[s.name] {
				break
			}
			return s.do(r)
		}
	}
}

// unary sends, compares and takes the revision from stock's answer.
func (r *Run) unary(method string, req, empty proto.Message) error {
	_, err := r.ask(method, req, empty)
	return err
}

func (r *Run) ask(method string, req, empty proto.Message) (Answer, error) {
	r.note(request{r.done, req})
	a, err := r.Unary(method, req, func() proto.Message { return empty.ProtoReflect().New().Interface() })
	r.meet(req, a)
	return a, err
}

// meet counts stock's answer and takes the revision from it.
func (r *Run) meet(req proto.Message, a Answer) {
	what := string(req.ProtoReflect().Descriptor().Name())
	if a.Err != nil {
		what += ": " + status.Convert(a.Err).Message()
	}
	r.Met[what]++
	if m, ok := a.Msg.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		r.Revision = max(r.Revision, m.GetHeader().GetRevision())
	}
}

func (r *Run) rangeStream() error {
	req := r.Range()
	if !r.One(4) {
		req.SortOrder, req.SortTarget = pb.RangeRequest_NONE, pb.RangeRequest_KEY
		req.MinModRevision, req.MaxModRevision, req.MinCreateRevision, req.MaxCreateRevision = 0, 0, 0, 0
	}
	r.note(request{r.done, req})
	a, err := r.RangeStream(req)
	r.Met["RangeStream"]++
	if a.Err != nil {
		r.Met["RangeStream: "+status.Convert(a.Err).Message()]++
	}
	return err
}

// compact first makes each watch deliver what it owes: afterwards stock may cancel one that lags.
func (r *Run) compact() error {
	if err := r.pokeAll(); err != nil {
		return err
	}
	req := r.Compact()
	a, err := r.ask(pb.KV_Compact_FullMethodName, req, new(pb.CompactionResponse))
	if err == nil && a.Err == nil {
		r.Compacted = req.Revision
	}
	return err
}

// large sends a put past the request limit: refused by the server, or already by gRPC.
func (r *Run) large() error {
	req := &pb.PutRequest{Key: []byte("a"), Value: make([]byte, gen.Pick(r.Gen, 1_700_000, 2_500_000))}
	return r.unary(pb.KV_Put_FullMethodName, req, new(pb.PutResponse))
}

func (r *Run) leaseGrant() error {
	req := r.LeaseGrant()
	r.note(request{r.done, req})
	stock, server := r.UnaryRaw(pb.Lease_LeaseGrant_FullMethodName, req,
		func() proto.Message { return new(pb.LeaseGrantResponse) })
	if req.ID == 0 && stock.Err == nil && server.Err == nil {
		ours, theirs := stock.Msg.(*pb.LeaseGrantResponse).ID, server.Msg.(*pb.LeaseGrantResponse).ID
		if theirs <= 0 {
			return &Difference{What: "a chosen lease id must be positive", Stock: stock.String(), Server: server.String()}
		}
		r.Pair.Leases.Learn(ours, theirs)
		r.Chosen[ours] = true
	}
	a, err := r.compare(stock, server)
	r.meet(req, a)
	if err == nil && a.Err == nil {
		r.Gen.Leases = append(r.Gen.Leases, a.Msg.(*pb.LeaseGrantResponse).ID)
	}
	return err
}

func (r *Run) leaseRevoke() error {
	req := &pb.LeaseRevokeRequest{ID: r.LeaseID()}
	return r.unary(pb.Lease_LeaseRevoke_FullMethodName, req, new(pb.LeaseRevokeResponse))
}

// leaseShort grants a TTL below the least one and revokes it before it can expire.
func (r *Run) leaseShort() error {
	r.short++
	id := 1_000_000 + r.short
	grant := &pb.LeaseGrantRequest{ID: id, TTL: r.ShortTTL()}
	return errors.Join(
		r.unary(pb.Lease_LeaseGrant_FullMethodName, grant, new(pb.LeaseGrantResponse)),
		r.unary(pb.Lease_LeaseRevoke_FullMethodName, &pb.LeaseRevokeRequest{ID: id}, new(pb.LeaseRevokeResponse)))
}

func (r *Run) leaseKeepAlive() error {
	id := r.LeaseID()
	r.note(request{r.done, &pb.LeaseKeepAliveRequest{ID: id}})
	_, err := r.KeepAlive(id)
	return err
}

func (r *Run) leaseTTL() error {
	req := &pb.LeaseTimeToLiveRequest{ID: r.LeaseID(), Keys: r.One(2)}
	return r.unary(pb.Lease_LeaseTimeToLive_FullMethodName, req, new(pb.LeaseTimeToLiveResponse))
}

// hashKV is asked where no key carries an id that the servers chose each for itself.
func (r *Run) hashKV() error {
	if r.AttachChosen {
		return nil
	}
	return r.unary(pb.Maintenance_HashKV_FullMethodName, r.HashKV(), new(pb.HashKVResponse))
}

// alarm raises an alarm, tries what it forbids and what it does not, and clears it.
func (r *Run) alarm() error {
	alarm := func(action pb.AlarmRequest_AlarmAction, kind pb.AlarmType) error {
		return r.unary(pb.Maintenance_Alarm_FullMethodName,
			&pb.AlarmRequest{Action: action, Alarm: kind, MemberID: 7777}, new(pb.AlarmResponse))
	}
	kind := gen.Pick(r.Gen, pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT)
	return errors.Join(
		alarm(pb.AlarmRequest_ACTIVATE, kind),
		alarm(pb.AlarmRequest_GET, pb.AlarmType_NONE),
		r.unary(pb.KV_Put_FullMethodName, r.Put(), new(pb.PutResponse)),
		r.unary(pb.KV_Txn_FullMethodName, r.Txn(), new(pb.TxnResponse)),
		r.unary(pb.KV_Range_FullMethodName, r.Range(), new(pb.RangeResponse)),
		r.unary(pb.KV_DeleteRange_FullMethodName, r.DeleteRange(), new(pb.DeleteRangeResponse)),
		r.leaseShort(),
		alarm(pb.AlarmRequest_DEACTIVATE, kind),
		alarm(pb.AlarmRequest_GET, pb.AlarmType_NONE),
	)
}
