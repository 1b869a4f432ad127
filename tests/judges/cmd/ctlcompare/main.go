// Command ctlcompare drives stock etcdctl through script.txt against a server under test and against
// stock etcd, and compares standard output, standard error and exit code of each command.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"ringkv.dev/judges/internal/masks"
	"ringkv.dev/judges/internal/notyet"
	"ringkv.dev/judges/internal/proc"
	"ringkv.dev/judges/internal/report"
)

// side is one server and what the judge calls things on it.
type side struct {
	server *proc.Server
	// names maps what only this server prints (its addresses, ids, lease ids) to a common name.
	names [][2]string
	// vars are the {NAME} of the script.
	vars    map[string]string
	running map[string]*command
	last    outcome
}

func main() {
	server := flag.String("server", "", "binary under test")
	stock := flag.String("stock", "bin/etcd", "stock etcd")
	ctl := flag.String("etcdctl", "bin/etcdctl", "stock etcdctl")
	control := flag.Bool(
		"control",
		false,
		"damage some of the server's answers and pass only if that is noticed",
	)
	list := flag.String("not-yet", "not-yet.txt", "RPCs that the server may leave out")
	verbose := flag.Bool("v", false, "print each command and its masked output")
	var ports proc.Ports
	flag.IntVar(&ports.Base, "port-base", 0, "first port to use (default: the kernel's choice)")
	flag.Parse()
	if *server == "" {
		*server = *stock
	}
	etcdctl, err := filepath.Abs(*ctl)
	if err != nil {
		report.Fatal(err)
	}
	missing, err := notyet.Load(*list, *server, *stock)
	if err != nil {
		report.Fatal(err)
	}
	steps, err := parse(scriptText)
	if err != nil {
		report.Fatal(err)
	}
	var table report.Table
	j := judge{etcdctl: etcdctl, verbose: *verbose, control: *control, notYet: missing}
	if err := j.run(*stock, *server, &ports, steps, &table); err != nil {
		table.Check("servers", err)
	}
	if *control {
		table.Control("damaged answers")
	}
	table.Exit()
}

type judge struct {
	etcdctl          string
	verbose, control bool
	notYet           notyet.List
}

func (j *judge) run(stock, server string, ports *proc.Ports, steps []step, table *report.Table) error {
	var sides []*side
	for i, path := range []string{stock, server} {
		config, err := proc.NewConfig(path, []string{"stock", "server"}[i], ports,
			"--watch-progress-notify-interval=200ms")
		if err != nil {
			return err
		}
		defer os.RemoveAll(config.Dir)
		s := &side{vars: map[string]string{}, running: map[string]*command{}}
		if s.server, err = proc.Start(config); err != nil {
			return err
		}
		defer s.server.Kill()
		if err := s.learnNames(j.etcdctl); err != nil {
			return err
		}
		sides = append(sides, s)
	}
	for _, st := range steps {
		if st.let != "" {
			for _, s := range sides {
				if err := s.bind(st); err != nil {
					table.Check(st.String(), err)
				}
			}
			continue
		}
		if err, compared := j.step(st, sides); compared {
			last := sides[1].last
			j.notYet.Check(table, st.String(), err, notyet.Named(last.Stdout+last.Stderr))
		}
	}
	j.notYet.Ask(table, sides[1].server.Endpoint())
	return nil
}

// step runs one line on both sides at once; lines that only start something are not compared.
func (j *judge) step(st step, sides []*side) (err error, compared bool) {
	type result struct {
		err  error
		done bool
	}
	results := [2]chan result{make(chan result, 1), make(chan result, 1)}
	for i, s := range sides {
		go func() {
			done, err := s.do(j.etcdctl, st)
			results[i] <- result{err, done}
		}()
	}
	stock, server := <-results[0], <-results[1]
	if stock.err != nil || server.err != nil {
		return fmt.Errorf("stock: %v; server: %v", stock.err, server.err), true
	}
	if !stock.done {
		return nil, false
	}
	a, b := sides[0].masked(), sides[1].masked()
	if j.control {
		b.Stdout = strings.Replace(b.Stdout, "bar", "baz", 1)
	}
	if j.verbose {
		fmt.Printf("%v\n  %v\n", st, a)
	}
	if a != b {
		return fmt.Errorf("\n  stock:  %v\n  server: %v", a, b), true
	}
	return nil, true
}

func (s *side) do(etcdctl string, st step) (compared bool, err error) {
	if st.end != "" {
		c := s.running[st.end]
		if c == nil {
			return false, fmt.Errorf("%s is not running", st.end)
		}
		delete(s.running, st.end)
		s.last, err = c.interrupt(st.lines)
		return true, err
	}
	args := make([]string, len(st.args))
	for i, arg := range st.args {
		args[i] = s.expand(arg)
	}
	c, err := start(etcdctl, s.server.Endpoint(), args, s.expand(st.input), st.bg != "")
	if err != nil {
		return false, err
	}
	if st.bg != "" {
		s.running[st.bg] = c
		return false, nil
	}
	s.last, err = c.finish()
	return true, err
}

func (s *side) expand(text string) string {
	for name, value := range s.vars {
		text = strings.ReplaceAll(text, "{"+name+"}", value)
	}
	return text
}

// bind takes a hexadecimal id from the last output; its decimal form is renamed as well.
func (s *side) bind(st step) error {
	found := st.match.FindStringSubmatch(s.last.Stdout)
	if found == nil {
		return fmt.Errorf("no %v in %q", st.match, s.last.Stdout)
	}
	s.vars[st.let] = found[1]
	id, err := strconv.ParseUint(found[1], 16, 64)
	s.rename(id, st.let)
	return err
}

func (s *side) rename(id uint64, name string) {
	// etcdctl pads ids to 16 digits in one place and not in another.
	s.names = append(s.names, [2]string{fmt.Sprintf("%016x", id), name},
		[2]string{strconv.FormatUint(id, 16), name},
		[2]string{strconv.FormatUint(id, 10), name})
}

var idPattern = regexp.MustCompile(`"(cluster_id|member_id)":(\d+)`)

// learnNames asks for the ids that a server draws from its addresses.
func (s *side) learnNames(etcdctl string) error {
	s.names = [][2]string{
		{s.server.Endpoint(), "CLIENT"},
		{fmt.Sprintf("127.0.0.1:%d", s.server.PeerPort), "PEER"},
	}
	c, err := start(etcdctl, s.server.Endpoint(), []string{"member", "list", "-w", "json"}, "", false)
	if err != nil {
		return err
	}
	o, err := c.finish()
	if err != nil {
		return err
	}
	found := idPattern.FindAllStringSubmatch(o.Stdout, -1)
	if len(found) != 2 {
		return fmt.Errorf("no ids in %v", o)
	}
	for _, f := range found {
		id, err := strconv.ParseUint(f[2], 10, 64)
		if err != nil {
			return err
		}
		s.rename(id, strings.ToUpper(f[1]))
	}
	return nil
}

func (s *side) masked() outcome {
	o := s.last
	for _, n := range s.names {
		o.Stdout = strings.ReplaceAll(o.Stdout, n[0], n[1])
		o.Stderr = strings.ReplaceAll(o.Stderr, n[0], n[1])
	}
	o.Stdout, o.Stderr = masks.Text(o.Stdout), masks.Text(o.Stderr)
	return o
}
