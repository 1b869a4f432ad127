package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"
)

// suite is one run of common.test.
type suite struct {
	bin, server, run, skip string
	timeout                time.Duration
}

var passLine = regexp.MustCompile(`(?m)^ *--- PASS: (\S+) \(`)

// passes runs the suite and is the sorted names of the tests that passed, and all output. That tests fail
// is no error.
func (s *suite) passes() ([]string, string, error) {
	dir, err := os.MkdirTemp("", "judge-common-")
	if err != nil {
		return nil, "", err
	}
	defer os.RemoveAll(dir)
	if err := s.layOut(dir); err != nil {
		return nil, "", err
	}
	cmd, err := s.command(dir)
	if err != nil {
		return nil, "", err
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	runErr := cmd.Run()
	if exit := (*exec.ExitError)(nil); runErr != nil && !errors.As(runErr, &exit) {
		return nil, "", runErr
	}
	var names []string
	for _, m := range passLine.FindAllStringSubmatch(out.String(), -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	return names, out.String(), nil
}

// layOut makes what the suite looks for: binaries by their names, and its working directory beside a
// writable copy of its fixtures.
func (s *suite) layOut(dir string) error {
	for _, sub := range []string{"bin", "common"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	for name, path := range map[string]string{
		"etcd": s.server, "etcdctl": filepath.Join(s.bin, "etcdctl"), "etcdutl": filepath.Join(s.bin, "etcdutl"),
	} {
		abs, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		if err := os.Symlink(abs, filepath.Join(dir, "bin", name)); err != nil {
			return err
		}
	}
	return os.CopyFS(filepath.Join(dir, "fixtures"), os.DirFS(filepath.Join(s.bin, "fixtures")))
}

// command runs the suite in a network namespace of its own where that is allowed: its ports are fixed.
func (s *suite) command(dir string) (*exec.Cmd, error) {
	test, err := filepath.Abs(filepath.Join(s.bin, "common.test"))
	if err != nil {
		return nil, err
	}
	args := []string{
		test, "-test.v", "-test.run=" + s.run, fmt.Sprintf("-test.timeout=%v", s.timeout),
		"-bin-dir=" + filepath.Join(dir, "bin"),
	}
	if s.skip != "" {
		args = append(args, "-test.skip="+s.skip)
	}
	if exec.Command("unshare", "-n", "ip", "link", "set", "lo", "up").Run() == nil {
		args = append([]string{"unshare", "-n", "sh", "-c", `ip link set lo up; exec "$@"`, "sh"}, args...)
	} else {
		fmt.Println("no network namespace: the suite uses ports from 20000 on")
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = filepath.Join(dir, "common")
	cmd.Env = append(os.Environ(), "E2E_TEST_MINIMAL=true", "ETCD_VERIFY=all")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, nil
}
