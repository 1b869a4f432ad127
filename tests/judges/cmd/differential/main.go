// Command differential sends seeded random requests to a server under test and to stock etcd in lockstep
// and reports the first difference of each seed. With -mutant it alters answers of the server under test
// and passes only if every mutant is reported.
package main

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"ringkv.dev/judges/internal/gen"
	"ringkv.dev/judges/internal/lockstep"
	"ringkv.dev/judges/internal/masks"
	"ringkv.dev/judges/internal/mutant"
	"ringkv.dev/judges/internal/proc"
	"ringkv.dev/judges/internal/report"
)

type options struct {
	server, stock       string
	first, seeds        uint64
	ops                 int
	skip, only, mutants string
	every               int64
	fsync, verbose      bool
	ports               proc.Ports
}

func main() {
	var o options
	flag.StringVar(&o.server, "server", "", "binary under test")
	flag.StringVar(&o.stock, "stock", "bin/etcd", "stock etcd")
	flag.Uint64Var(&o.first, "first-seed", 1, "first seed")
	flag.Uint64Var(&o.seeds, "seeds", 20, "number of seeds")
	flag.IntVar(&o.ops, "ops", 10_000, "operations per seed")
	steps := strings.Join(lockstep.Steps(), " ")
	flag.StringVar(&o.skip, "skip", "", "steps left out, comma-separated: "+steps)
	flag.StringVar(&o.only, "only", "", "the only steps drawn, comma-separated")
	flag.StringVar(&o.mutants, "mutant", "", "alter answers: a mutant's name, or all")
	flag.Int64Var(&o.every, "mutant-every", 20, "alter one answer in N")
	flag.BoolVar(&o.fsync, "fsync", false, "let the servers flush (default: --unsafe-no-fsync)")
	flag.BoolVar(&o.verbose, "v", false, "say how long each seed took and what it met")
	flag.IntVar(&o.ports.Base, "port-base", 0, "first port to use (default: the kernel's choice)")
	flag.Parse()
	if o.server == "" {
		o.server = o.stock
	}
	same, err := sameFile(o.server, o.stock)
	if err != nil {
		report.Fatal(err)
	}
	masks.ServerIsStock = same
	if err := o.checkSteps(); err != nil {
		report.Fatal(err)
	}

	var table report.Table
	if o.mutants != "" {
		o.judgeMutants(&table)
	} else {
		o.judge(&table)
	}
	table.Exit()
}

func sameFile(a, b string) (bool, error) {
	x, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y), err
}

func (o *options) judge(table *report.Table) {
	for seed := o.first; seed < o.first+o.seeds; seed++ {
		start := time.Now()
		err := o.run(seed, nil)
		if err != nil {
			err = fmt.Errorf(
				"%w\n  again: differential -server %s -stock %s -first-seed %d -seeds 1 -ops %d%s",
				err,
				o.server,
				o.stock,
				seed,
				o.ops,
				o.again(),
			)
		}
		table.Check(fmt.Sprintf("seed %d", seed), err)
		if o.verbose {
			fmt.Printf("seed %d: %v\n", seed, time.Since(start).Round(time.Millisecond))
		}
	}
}

func (o *options) again() (flags string) {
	if o.skip != "" {
		flags += " -skip " + o.skip
	}
	if o.only != "" {
		flags += " -only " + o.only
	}
	if o.fsync {
		flags += " -fsync"
	}
	return flags
}

// judgeMutants passes a mutant if one of the seeds reports it.
func (o *options) judgeMutants(table *report.Table) {
	for _, m := range mutant.All {
		if o.mutants != "all" && o.mutants != m.Name {
			continue
		}
		err := fmt.Errorf("nothing reported by %d seeds of %d operations", o.seeds, o.ops)
		for seed := o.first; seed < o.first+o.seeds && err != nil; seed++ {
			if found := o.run(seed, m.Options(o.every)); found != nil {
				err = nil
				if o.verbose {
					fmt.Printf("mutant %s: %v\n", m.Name, found)
				}
			}
		}
		table.Check("mutant "+m.Name, err)
	}
}

// run judges one seed on fresh servers. Some seeds lower --max-txn-ops, announce watch progress often,
// have big values, or attach leases whose ids the servers chose.
func (o *options) run(seed uint64, extra []grpc.DialOption) error {
	g := gen.New(seed)
	g.Big, g.AttachChosen = seed%4 == 0, seed%2 == 1
	var flags []string
	if seed%3 == 0 {
		g.MaxTxnOps = 5
		flags = append(flags, "--max-txn-ops=5")
	}
	if seed%2 == 0 {
		flags = append(flags, "--watch-progress-notify-interval=100ms")
	}
	if !o.fsync {
		flags = append(flags, "--unsafe-no-fsync")
	}
	pair, stop, err := o.start(flags, extra)
	if err != nil {
		return err
	}
	defer stop()
	run, err := lockstep.NewRun(pair, g)
	if err != nil {
		return err
	}
	run.Skip = o.skipped()
	err = run.Ops(o.ops)
	if o.verbose && extra == nil {
		for _, what := range slices.Sorted(maps.Keys(run.Met)) {
			fmt.Printf("  %7d %s\n", run.Met[what], what)
		}
	}
	return err
}

// checkSteps refuses names that -skip and -only do not know.
func (o *options) checkSteps() error {
	for name := range strings.SplitSeq(o.skip+","+o.only, ",") {
		if name != "" && !slices.Contains(lockstep.Steps(), name) {
			return fmt.Errorf("no step %q, there are %v", name, lockstep.Steps())
		}
	}
	return nil
}

// skipped are the steps that -skip and -only leave out.
func (o *options) skipped() map[string]bool {
	skip, only := strings.Split(o.skip, ","), strings.Split(o.only, ",")
	out := map[string]bool{}
	for _, name := range lockstep.Steps() {
		out[name] = slices.Contains(skip, name) || o.only != "" && !slices.Contains(only, name)
	}
	return out
}

// start runs both servers on fresh data dirs; stop ends them and removes the dirs.
func (o *options) start(flags []string, extra []grpc.DialOption) (*lockstep.Pair, func(), error) {
	var stops []func()
	stop := func() {
		for i := len(stops) - 1; i >= 0; i-- {
			stops[i]()
		}
	}
	side := func(name, path string, extra ...grpc.DialOption) (*lockstep.Side, error) {
		config, err := proc.NewConfig(path, name, &o.ports, flags...)
		if err != nil {
			return nil, err
		}
		server, err := proc.Start(config)
		if err != nil {
			os.RemoveAll(config.Dir)
			return nil, err
		}
		side, err := lockstep.Dial(name, config.Endpoint(), extra...)
		stops = append(stops, func() {
			select {
			case <-server.Done():
				fmt.Printf("%s ended by itself:\n%s\n", name, server.Tail())
			default:
			}
			side.Close()
			server.Kill()
			os.RemoveAll(config.Dir)
		})
		return side, err
	}
	stock, err := side("stock", o.stock)
	if err != nil {
		return nil, stop, err
	}
	server, err := side("server", o.server, extra...)
	if err != nil {
		stop()
		return nil, stop, err
	}
	return &lockstep.Pair{Stock: stock, Server: server, Leases: masks.NewLeases()}, stop, nil
}
