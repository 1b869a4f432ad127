package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// commandMax bounds one etcdctl run and each wait for output.
const commandMax = 20 * time.Second

// command is one running etcdctl.
type command struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout output
	stderr output
	done   chan struct{}
}

// outcome is what is compared.
type outcome struct {
	Code           int
	Stdout, Stderr string
}

func (o outcome) String() string {
	return fmt.Sprintf("exit code %d\n    stdout: %q\n    stderr: %q", o.Code, o.Stdout, o.Stderr)
}

// start runs etcdctl against an endpoint. Typed input is written at once; it is closed too unless the
// command goes on in the background.
func start(etcdctl, endpoint string, args []string, input string, background bool) (*command, error) {
	c := &command{cmd: exec.Command(etcdctl, args...), done: make(chan struct{})}
	c.stdout.changed, c.stderr.changed = make(chan struct{}, 1), make(chan struct{}, 1)
	c.cmd.Stdout, c.cmd.Stderr = &c.stdout, &c.stderr
	c.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "ETCDCTL_ENDPOINTS=" + endpoint}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	// A command that ends before it has read its input is compared by what it printed.
	_, _ = io.WriteString(c.stdin, input)
	if !background {
		c.stdin.Close()
	}
	go func() {
		_ = c.cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

// finish waits for the end and takes what was printed.
func (c *command) finish() (outcome, error) {
	select {
	case <-c.done:
	case <-time.After(commandMax):
		_ = c.cmd.Process.Kill()
		<-c.done
		return outcome{}, fmt.Errorf(
			"did not end within %v, printed %q %q",
			commandMax,
			c.stdout.String(),
			c.stderr.String(),
		)
	}
	return outcome{c.cmd.ProcessState.ExitCode(), c.stdout.String(), c.stderr.String()}, nil
}

// interrupt waits for lines of output, or for the command to end by itself, and ends it by SIGTERM: SIGINT
// is ignored where the judge runs in the background.
func (c *command) interrupt(lines int) (outcome, error) {
	timer := time.NewTimer(commandMax)
	defer timer.Stop()
	var err error
	for err == nil && c.stdout.lines() < lines {
		select {
		case <-c.stdout.changed:
		case <-c.done:
			return c.finish()
		case <-timer.C:
			err = fmt.Errorf(
				"%d of %d lines within %v: %q",
				c.stdout.lines(),
				lines,
				commandMax,
				c.stdout.String(),
			)
		}
	}
	if sigErr := c.cmd.Process.Signal(syscall.SIGTERM); sigErr != nil &&
		!errors.Is(sigErr, os.ErrProcessDone) {
		return outcome{}, sigErr
	}
	o, endErr := c.finish()
	return o, errors.Join(err, endErr)
}

// output collects a stream and wakes one waiter at each write.
type output struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.changed <- struct{}{}:
	default:
	}
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func (o *output) lines() int { return strings.Count(o.String(), "\n") }
