// Command common runs etcd's own tests/common suite with a server under test in etcd's place and compares
// the tests that passed with those that pass with stock etcd (stock-common.txt, written by -save). Tests
// that fail, are skipped or do not run where stock passes all count as differences.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"ringkv.dev/judges/internal/report"
)

// single are the tests that have a case of one member without TLS, or no other.
const single = "^(TestKVPut|TestKVGet|TestKVGetStream|TestKVDelete|TestTxnSucc|TestTxnFail|TestWatch|TestLease.*|" +
	"TestVerifyHashKV.*|TestStatus|TestMemberList|TestAlarm|TestAlarmlistOnMemberRestart|TestWaitLeader)$"

// tlsCases leaves out the three-member TLS case of each test, at whatever depth it is.
const tlsCases = "/PeerTLS|//PeerTLS|///PeerTLS"

func main() {
	server := flag.String("server", "", "binary under test")
	stock := flag.String("stock", "bin/etcd", "stock etcd, for -save")
	bin := flag.String("bin", "bin", "directory of common.test, etcdctl, etcdutl and fixtures")
	list := flag.String("list", "stock-common.txt", "tests that pass with stock etcd")
	run := flag.String("run", single, "names of the tests, a regular expression without slashes")
	all := flag.Bool("clusters", false, "run the three-member TLS cases too")
	save := flag.Bool("save", false, "run stock etcd and write the list")
	control := flag.Bool("control", false, "judge /bin/false and pass only if every test of the list is missing")
	timeout := flag.Duration("timeout", 20*time.Minute, "bound of the whole suite")
	flag.Parse()

	switch {
	case *control:
		*server = "/bin/false"
	case *save || *server == "":
		*server = *stock
	}
	s := suite{bin: *bin, server: *server, run: *run, timeout: *timeout}
	if !*all {
		s.skip = tlsCases
	}
	passed, output, err := s.passes()
	if err != nil {
		report.Fatal(err)
	}
	if *save {
		if err := os.WriteFile(*list, []byte(strings.Join(passed, "\n")+"\n"), 0o644); err != nil {
			report.Fatal(err)
		}
		fmt.Printf("%s\n%d passed, 0 failed\n", *list, len(passed))
		return
	}
	due, err := expected(*list, *run, *all)
	if err != nil {
		report.Fatal(err)
	}
	if *control {
		judgeControl(passed)
	}
	compare(due, passed, output)
}

// expected is the part of the list that the flags select.
func expected(list, run string, all bool) ([]string, error) {
	text, err := os.ReadFile(list)
	if err != nil {
		return nil, err
	}
	selected, err := regexp.Compile(run)
	if err != nil {
		return nil, err
	}
	var due []string
	for name := range strings.FieldsSeq(string(text)) {
		top, rest, _ := strings.Cut(name, "/")
		if selected.MatchString(top) && (all || !strings.Contains(rest, "PeerTLS")) {
			due = append(due, name)
		}
	}
	return due, nil
}

func compare(due, passed []string, output string) {
	var table report.Table
	for _, name := range due {
		var err error
		if !slices.Contains(passed, name) {
			err = fmt.Errorf("passes with stock and not with the server")
		}
		table.Check(name, err)
	}
	for _, name := range passed {
		if !slices.Contains(due, name) {
			fmt.Printf("also passed: %s\n", name)
		}
	}
	if table.Failed() > 0 {
		path := filepath.Join(os.TempDir(), "common.out")
		if err := os.WriteFile(path, []byte(output), 0o644); err != nil {
			report.Fatal(err)
		}
		fmt.Println("the suite's output is in", path)
	}
	table.Exit()
}

func judgeControl(passed []string) {
	var table report.Table
	for _, name := range passed {
		table.Check(name, fmt.Errorf("passed without a server"))
	}
	if len(passed) == 0 {
		table.Check("no server, no pass", nil)
	}
	table.Exit()
}
