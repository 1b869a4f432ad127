package masks

import (
	"regexp"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Rules says what to do to a field wherever it occurs, however deep.
type Rules map[protoreflect.FullName]func(protoreflect.Message, protoreflect.FieldDescriptor)

// Normalize masks one answer in place.
func Normalize(m proto.Message) { fieldWalk.apply(m.ProtoReflect()) }

// Equal compares two normalized answers; remaining seconds may be TTLSlack apart.
func Equal(a, b proto.Message) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	alignClocks(a.ProtoReflect(), b.ProtoReflect())
	return proto.Equal(a, b)
}

// Leases translates ids the servers chose themselves: the stock server's id is the judge's name for it.
type Leases struct {
	toServer, toStock map[int64]int64
	out, in           *walk
}

// NewLeases knows no lease yet.
func NewLeases() *Leases {
	l := &Leases{toServer: map[int64]int64{}, toStock: map[int64]int64{}}
	l.out, l.in = newLeaseWalk(l.toServer), newLeaseWalk(l.toStock)
	return l
}

// Learn binds the id stock chose to the one the server under test chose.
func (l *Leases) Learn(stock, server int64) {
	l.toServer[stock], l.toStock[server] = server, stock
}

// Request is m as the server under test must see it: m itself or a changed copy.
func (l *Leases) Request(m proto.Message) proto.Message {
	if len(l.toServer) == 0 || !l.out.touches(m.ProtoReflect().Descriptor()) {
		return m
	}
	m = proto.Clone(m)
	l.out.apply(m.ProtoReflect())
	return m
}

// Answer renames in place the ids in an answer of the server under test.
func (l *Leases) Answer(m proto.Message) {
	if len(l.toStock) != 0 {
		l.in.apply(m.ProtoReflect())
	}
}

func newLeaseWalk(ids map[int64]int64) *walk {
	rules := Rules{}
	for _, name := range leaseFields {
		rules[name] = func(m protoreflect.Message, f protoreflect.FieldDescriptor) {
			if to, ok := ids[m.Get(f).Int()]; ok {
				m.Set(f, protoreflect.ValueOfInt64(to))
			}
		}
	}
	return newWalk(rules)
}

func alignClocks(a, b protoreflect.Message) {
	for _, name := range clocks {
		if name.Parent() != a.Descriptor().FullName() || a.Descriptor() != b.Descriptor() {
			continue
		}
		f := a.Descriptor().Fields().ByName(name.Name())
		if d := a.Get(f).Int() - b.Get(f).Int(); -TTLSlack <= d && d <= TTLSlack {
			b.Set(f, a.Get(f))
		}
	}
}

var fieldWalk = newWalk(fields)

// walk applies rules to a message tree, entering only messages below which a rule can match.
// Not for concurrent use, except that fieldWalk is used by one judge goroutine at a time.
type walk struct {
	rules Rules
	known map[protoreflect.FullName]bool
}

func newWalk(rules Rules) *walk {
	return &walk{rules: rules, known: map[protoreflect.FullName]bool{}}
}

func (w *walk) touches(d protoreflect.MessageDescriptor) bool {
	if t, ok := w.known[d.FullName()]; ok {
		return t
	}
	t := w.reach(d, map[protoreflect.FullName]bool{})
	w.known[d.FullName()] = t
	return t
}

func (w *walk) reach(d protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) bool {
	if seen[d.FullName()] {
		return false
	}
	seen[d.FullName()] = true
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if w.rules[f.FullName()] != nil || f.Message() != nil && w.reach(f.Message(), seen) {
			return true
		}
	}
	return false
}

func (w *walk) apply(m protoreflect.Message) {
	if !w.touches(m.Descriptor()) {
		return
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if rule := w.rules[f.FullName()]; rule != nil {
			rule(m, f)
			return true
		}
		if f.Message() == nil || f.IsMap() || !w.touches(f.Message()) {
			return true
		}
		if !f.IsList() {
			w.apply(v.Message())
			return true
		}
		for i := range v.List().Len() {
			w.apply(v.List().Get(i).Message())
		}
		return true
	})
}

// Text masks etcdctl's output.
func Text(s string) string {
	for i, rule := range texts {
		s = compiled[i].ReplaceAllString(s, rule.with)
	}
	return s
}

var compiled = func() (all []*regexp.Regexp) {
	for _, rule := range texts {
		all = append(all, regexp.MustCompile(rule.pattern))
	}
	return all
}()

// UnrequestedPrevKv drops the previous value from the event of a watch that did not ask for it. Stock
// 3.7.1 shares one event among watchers, so that prev_kv leaks from one that asked to others; the server
// under test may not, unless it is stock itself.
func UnrequestedPrevKv(stock, server *mvccpb.Event) {
	stock.PrevKv = nil
	if ServerIsStock {
		server.PrevKv = nil
	}
}

// ServerIsStock is set once, by a judge whose two binaries are the same file.
var ServerIsStock bool
