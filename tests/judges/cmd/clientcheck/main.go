// Command clientcheck runs named checks of the official Go client (clientv3 and its companions) against a
// server under test, and against stock etcd so that a check that is wrong itself shows.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"ringkv.dev/judges/internal/mutant"
	"ringkv.dev/judges/internal/notyet"
	"ringkv.dev/judges/internal/proc"
	"ringkv.dev/judges/internal/report"
)

// checkMax bounds one check.
const checkMax = 20 * time.Second

// unnoticeable are the mutants that need stock beside it: a hash is opaque, leases of others may be any,
// and the client goes by an error's text.
var unnoticeable = []string{"hash", "lease-missing", "error-code"}

// progressInterval is the servers' --watch-progress-notify-interval.
const progressInterval = "200ms"

// check is one named check.
type check struct {
	name string
	run  func(*probe)
}

var checks = slices.Concat(kvChecks, leaseChecks, watchChecks, concurrencyChecks, wrapperChecks,
	serviceChecks, restartChecks)

// probe is what a check works with. Its prefix is its own.
type probe struct {
	ctx    context.Context
	cli    *clientv3.Client
	host   *host
	prefix string
}

// failure is how a probe leaves a check.
type failure struct{ error }

func (p *probe) must(err error) {
	if err != nil {
		panic(failure{err})
	}
}

// want fails unless got equals wanted.
func want[T comparable](p *probe, what string, got, wanted T) {
	if got != wanted {
		p.must(fmt.Errorf("%s: got %v, want %v", what, got, wanted))
	}
}

// wantErr fails unless err is the wanted one.
func (p *probe) wantErr(err, wanted error) {
	if !errors.Is(err, wanted) {
		p.must(fmt.Errorf("got error %v, want %v", err, wanted))
	}
}

// must is value, unless err fails the check.
func must[T any](value T, err error) T {
	if err != nil {
		panic(failure{err})
	}
	return value
}

func (p *probe) key(name string) string { return p.prefix + name }

// put writes a key and is its revision.
func (p *probe) put(name, value string, opts ...clientv3.OpOption) int64 {
	return must(p.cli.Put(p.ctx, p.key(name), value, opts...)).Header.Revision
}

// next is the next item of a channel, within the check's time.
func next[T any](p *probe, ch <-chan T) T {
	select {
	case item, open := <-ch:
		if !open {
			p.must(errors.New("channel closed"))
		}
		return item
	case <-p.ctx.Done():
		p.must(p.ctx.Err())
	}
	panic("unreachable")
}

// host is a running server, the options of its clients and what they met left out.
type host struct {
	*proc.Server
	*tools
	dial []grpc.DialOption
	seen notyet.Seen
}

// tools are the paths and ports of what a check starts besides.
type tools struct {
	stock, etcdutl string
	ports          proc.Ports
}

func (h *host) client(endpoint string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{
			endpoint,
		}, DialTimeout: 5 * time.Second, Logger: zap.NewNop(), DialOptions: slices.Concat(h.dial, []grpc.DialOption{h.seen.Option()}),
	})
}

func (h *host) run(c check, n int) (err error) {
	cli, err := h.client(h.Endpoint())
	if err != nil {
		return err
	}
	defer cli.Close()
	ctx, cancel := context.WithTimeout(context.Background(), checkMax)
	defer cancel()
	defer func() {
		f := recover()
		if failed, known := f.(failure); known {
			err = failed.error
		} else if f != nil {
			// An answer without what the check looks into, or one the client library cannot take.
			err = fmt.Errorf("panic: %v\n%s", f, debug.Stack())
		}
	}()
	c.run(&probe{ctx: ctx, cli: cli, host: h, prefix: fmt.Sprintf("%s-%d/", c.name, n)})
	return nil
}

func main() {
	server := flag.String("server", "", "binary under test")
	var with tools
	flag.StringVar(&with.stock, "stock", "bin/etcd", "stock etcd")
	flag.StringVar(&with.etcdutl, "etcdutl", "bin/etcdutl", "stock etcdutl")
	only := flag.String("run", "", "checks whose name contains this")
	control := flag.Bool(
		"control",
		false,
		"alter the server's answers and pass only if each alteration is noticed",
	)
	list := flag.String("not-yet", "not-yet.txt", "RPCs that the server may leave out")
	verbose := flag.Bool("v", false, "say how long each check took")
	flag.IntVar(&with.ports.Base, "port-base", 0, "first port to use (default: the kernel's choice)")
	flag.Parse()
	if *server == "" {
		*server = with.stock
	}
	missing, err := notyet.Load(*list, *server, with.stock)
	if err != nil {
		report.Fatal(err)
	}
	var table report.Table
	r := run{with: &with, only: *only, verbose: *verbose}
	if *control {
		for _, m := range mutant.All {
			if slices.Contains(unnoticeable, m.Name) {
				continue
			}
			var noticed report.Table
			r.all("altered "+m.Name, *server, missing, m.Options(1), &noticed)
			noticed.Control(m.Name)
			table.Add(&noticed)
		}
		table.Exit()
	}
	r.all("stock", with.stock, nil, nil, &table)
	r.all("server", *server, missing, nil, &table)
	table.Exit()
}

// run is what the flags say of all servers.
type run struct {
	with    *tools
	only    string
	verbose bool
}

// all runs the checks on a fresh server; with altered answers only up to the first that fails.
func (r *run) all(
	label, path string,
	missing notyet.List,
	dial []grpc.DialOption,
	table *report.Table,
) {
	config, err := proc.NewConfig(
		path,
		"clientcheck",
		&r.with.ports,
		"--watch-progress-notify-interval="+progressInterval,
	)
	if err != nil {
		report.Fatal(err)
	}
	defer os.RemoveAll(config.Dir)
	running, err := proc.Start(config)
	if err != nil {
		table.Check(label+": start", err)
		return
	}
	h := &host{Server: running, tools: r.with, dial: dial}
	defer func() { h.Kill() }()
	for i, c := range checks {
		if !strings.Contains(c.name, r.only) {
			continue
		}
		start := time.Now()
		err := h.run(c, i)
		missing.Check(table, label+": "+c.name, err, h.seen.Take())
		if table.Failed() > 0 && dial != nil {
			return
		}
		if r.verbose {
			fmt.Printf("%s: %s %v\n", label, c.name, time.Since(start).Round(time.Millisecond))
		}
	}
	if dial == nil {
		missing.Ask(table, h.Endpoint())
	}
}
