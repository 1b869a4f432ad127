// Command killjudge kills a server by SIGKILL under writing clients, starts it again on the same data dir
// and ports, and checks each time that no acknowledged write is lost, changed or done twice, that no
// revision goes back or is used again, and that watches miss and repeat nothing over all restarts.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"ringkv.dev/judges/internal/proc"
	"ringkv.dev/judges/internal/report"
)

// watchersMax bounds the watches that live through all rounds; one is added a round.
const watchersMax = 6

type options struct {
	server          string
	rounds, clients int
	least, most     time.Duration
	seed            uint64
	control         bool
	ports           proc.Ports
}

func main() {
	var o options
	stock := flag.String("stock", "bin/etcd", "stock etcd, judged when -server is not given")
	flag.StringVar(&o.server, "server", "", "binary under test")
	flag.IntVar(&o.rounds, "rounds", 50, "kills")
	flag.IntVar(&o.clients, "clients", 100, "writing clients")
	flag.DurationVar(&o.least, "least", 500*time.Millisecond, "least time between start and kill")
	flag.DurationVar(&o.most, "most", 2*time.Second, "greatest time between start and kill")
	flag.Uint64Var(&o.seed, "seed", 1, "seed of the times of the kills")
	flag.BoolVar(&o.control, "control", false, "put an older copy of the data dir back and pass only if that is noticed")
	flag.IntVar(&o.ports.Base, "port-base", 0, "first port to use (default: the kernel's choice)")
	flag.Parse()
	if o.server == "" {
		o.server = *stock
	}
	var table report.Table
	if err := o.judge(&table); err != nil {
		report.Fatal(err)
	}
	if o.control {
		table.Control("older copy of the data dir")
	}
	table.Exit()
}

// judge stops at the first failed round: what follows would follow from it.
func (o *options) judge(table *report.Table) error {
	config, err := proc.NewConfig(o.server, "kill", &o.ports)
	if err != nil {
		return err
	}
	defer os.RemoveAll(config.Dir)
	server, err := proc.Start(config)
	if err != nil {
		return err
	}
	defer func() { server.Kill() }()
	rng := rand.New(rand.NewPCG(o.seed, 0x6b696c6c))
	l := newLedger()
	var watchers []*watcher
	defer func() {
		for _, w := range watchers {
			w.close()
		}
	}()
	for round := 1; round <= o.rounds; round++ {
		if len(watchers) < watchersMax {
			w, err := startWatcher(config.Endpoint(), 2+rng.Int64N(l.last+1))
			if err != nil {
				return err
			}
			watchers = append(watchers, w)
		}
		lived := o.least + time.Duration(rng.Int64N(int64(o.most-o.least)+1))
		if err := writeUntilKilled(server, l, round, o.clients, lived); err != nil {
			table.Check(fmt.Sprintf("round %d, writes", round), err)
			return nil
		}
		if err := o.swapCopy(config, round); err != nil {
			return err
		}
		again, err := proc.Start(config)
		if err != nil {
			table.Check(fmt.Sprintf("round %d, restart", round), err)
			return nil
		}
		server = again
		err = l.verify(config.Endpoint(), watchers)
		table.Check(fmt.Sprintf("round %d", round), err)
		if err != nil {
			return nil
		}
	}
	table.Check("history from the first revision", l.verifyAll(config.Endpoint()))
	fmt.Printf("%d rounds, %d acknowledged writes, last revision %d\n", o.rounds, len(l.acked), l.last)
	return nil
}

// swapCopy, in the control, keeps a copy of the data dir at the first kill and puts it back at the third.
func (o *options) swapCopy(config proc.Config, round int) error {
	saved := config.DataDir() + ".old"
	switch {
	case !o.control:
		return nil
	case round == 1:
		return os.CopyFS(saved, os.DirFS(config.DataDir()))
	case round == 3:
		if err := os.RemoveAll(config.DataDir()); err != nil {
			return err
		}
		return os.Rename(saved, config.DataDir())
	}
	return nil
}
