// Package notyet knows the RPCs that the server under test may still leave out (not-yet.txt). What fails
// only because of them is counted apart; what is left out and not listed, or listed and answered, fails.
package notyet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"ringkv.dev/judges/internal/report"
)

// askMax bounds the question whether one RPC is still left out; Lock and Campaign wait when they work.
const askMax = 5 * time.Second

// List is the RPCs of the file as /service/method, in its order. An empty list excuses nothing.
type List []string

// Load reads a file of lines "/service/method reason"; lines that begin with # are comments. Stock etcd
// leaves nothing out: its list is empty.
func Load(path, server, stock string) (List, error) {
	if server == stock {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parse(string(text))
}

func parse(text string) (list List, err error) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		method, reason, _ := strings.Cut(line, " ")
		switch {
		case method[0] != '/' || strings.Count(method, "/") != 2:
			err = fmt.Errorf("%q is no /service/method", method)
		case reason == "":
			err = fmt.Errorf("%s has no reason", method)
		case slices.Contains(list, method):
			err = fmt.Errorf("%s stands there twice", method)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, method)
	}
	return list, nil
}

var (
	noMethod  = regexp.MustCompile(`unknown method (\w+) for service ([\w.]+)`)
	noService = regexp.MustCompile(`unknown service ([\w.]+)`)
)

// Named are the RPCs (or /service/ alone) that a text of grpc's says are left out.
func Named(text string) (methods []string) {
	for _, m := range noMethod.FindAllStringSubmatch(text, -1) {
		methods = append(methods, "/"+m[2]+"/"+m[1])
	}
	for _, m := range noService.FindAllStringSubmatch(text, -1) {
		methods = append(methods, "/"+m[1]+"/")
	}
	slices.Sort(methods)
	return slices.Compact(methods)
}

// Check records a check during which the server left out the RPCs missing: a failure of it is excused
// if all of them are listed.
func (l List) Check(table *report.Table, name string, err error, missing []string) {
	if err == nil || len(missing) == 0 {
		table.Check(name, err)
		return
	}
	for _, method := range missing {
		if !l.has(method) {
			table.Check(name, errors.Join(err, fmt.Errorf("%s is left out and not listed", method)))
			return
		}
	}
	table.NotYet(name, strings.Join(missing, ", "))
}

// has takes /service/ too: one whose RPCs are all left out may be unknown as a whole.
func (l List) has(method string) bool {
	return slices.ContainsFunc(l, func(listed string) bool {
		return listed == method || strings.HasSuffix(method, "/") && strings.HasPrefix(listed, method)
	})
}

// Ask fails each listed RPC that the server answers, with an empty request.
func (l List) Ask(table *report.Table, endpoint string) {
	if len(l) == 0 {
		return
	}
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		table.Check("not-yet.txt", err)
		return
	}
	defer conn.Close()
	for _, method := range l {
		ctx, cancel := context.WithTimeout(context.Background(), askMax)
		err := conn.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
		cancel()
		switch {
		case status.Code(err) == codes.Unavailable:
			table.Check("not-yet.txt", err)
			return
		case leftOut(err) == nil:
			table.Check("not-yet.txt: "+method, errors.New("works: take it off the list"))
		}
	}
}

// leftOut is Named for an error. A service may say Unimplemented of a request, in its own words.
func leftOut(err error) []string {
	if status.Code(err) != codes.Unimplemented {
		return nil
	}
	return Named(status.Convert(err).Message())
}

// Seen collects the RPCs that a client's calls met left out.
type Seen struct {
	mu      sync.Mutex
	methods []string
}

// Option is what the client must be dialed with.
func (s *Seen) Option() grpc.DialOption { return grpc.WithStatsHandler(s) }

// Take is what was met, each RPC once, and forgets it.
func (s *Seen) Take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	methods := s.methods
	s.methods = nil
	slices.Sort(methods)
	return slices.Compact(methods)
}

// TagRPC is of stats.Handler.
func (s *Seen) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC is of stats.Handler: a call's end comes before its caller knows.
func (s *Seen) HandleRPC(_ context.Context, event stats.RPCStats) {
	if end, ok := event.(*stats.End); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.methods = append(s.methods, leftOut(end.Error)...)
	}
}

// TagConn is of stats.Handler.
func (s *Seen) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn is of stats.Handler.
func (s *Seen) HandleConn(context.Context, stats.ConnStats) {}
