// Package proc starts and ends etcd-like servers, each with its own data dir and loopback ports.
// Nothing here knows whether a binary is stock etcd or the server under test.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// ReadyLine is what a member logs once it serves clients, and never before.
const ReadyLine = "ready to serve client requests"

const (
	startMax = 30 * time.Second
	stopMax  = 10 * time.Second
	tailMax  = 4096
)

// Config describes one single-member server.
type Config struct {
	// Path of the binary.
	Path string
	// Dir holds the data dir ("data") and the log; it must exist.
	Dir string
	// ClientPort and PeerPort are loopback ports, kept over restarts.
	ClientPort, PeerPort int
	// Args are flags put after the usual ones.
	Args []string
}

// NewConfig takes a new directory under the system's temporary one and two free ports.
func NewConfig(path, label string, ports *Ports, args ...string) (Config, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return Config{}, err
	}
	dir, err := os.MkdirTemp("", "judge-"+label+"-")
	if err != nil {
		return Config{}, err
	}
	client, err := ports.Next()
	if err != nil {
		return Config{}, err
	}
	peer, err := ports.Next()
	if err != nil {
		return Config{}, err
	}
	return Config{Path: abs, Dir: dir, ClientPort: client, PeerPort: peer, Args: args}, nil
}

// DataDir is where the server keeps its state.
func (c Config) DataDir() string { return filepath.Join(c.Dir, "data") }

// Endpoint is the client address without a scheme.
func (c Config) Endpoint() string { return fmt.Sprintf("127.0.0.1:%d", c.ClientPort) }

func (c Config) flags() []string {
	client := "http://" + c.Endpoint()
	peer := fmt.Sprintf("http://127.0.0.1:%d", c.PeerPort)
	return append([]string{
		"--name=judged", "--data-dir=" + c.DataDir(),
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=judged=" + peer, "--initial-cluster-token=judges",
		"--initial-cluster-state=new", "--log-level=info",
	}, c.Args...)
}

// Server is a running process. It dies with the judge.
type Server struct {
	Config
	cmd  *exec.Cmd
	log  *logWriter
	done chan struct{}
	err  error
}

// Start runs the binary and waits for ReadyLine, for the process to end, or for startMax.
func Start(c Config) (*Server, error) {
	file, err := os.OpenFile(filepath.Join(c.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	s := &Server{
		Config: c,
		cmd:    exec.Command(c.Path, c.flags()...),
		log:    &logWriter{file: file, ready: make(chan struct{})},
		done:   make(chan struct{}),
	}
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.Env = append(os.Environ(), "ETCD_UNSUPPORTED_ARCH=amd64")
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		file.Close()
		return nil, err
	}
	go func() {
		s.err = s.cmd.Wait()
		file.Close()
		close(s.done)
	}()
	timer := time.NewTimer(startMax)
	defer timer.Stop()
	select {
	case <-s.log.ready:
		return s, nil
	case <-s.done:
		return nil, fmt.Errorf("%s ended before it was ready: %v\n%s", c.Path, s.err, s.Tail())
	case <-timer.C:
		s.Kill()
		return nil, fmt.Errorf("%s was not ready within %v\n%s", c.Path, startMax, s.Tail())
	}
}

// Done is closed when the process has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Kill ends the process by SIGKILL and waits for it.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill()
	<-s.done
}

// Stop ends the process by SIGTERM, by SIGKILL after stopMax; an error says that it came to that.
func (s *Server) Stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); errors.Is(err, os.ErrProcessDone) {
		<-s.done
		return fmt.Errorf("%s ended by itself: %v", s.Path, s.err)
	}
	select {
	case <-s.done:
		return nil
	case <-time.After(stopMax):
		s.Kill()
		return fmt.Errorf("%s ignored SIGTERM for %v", s.Path, stopMax)
	}
}

// Tail is the end of the log, at most tailMax bytes.
func (s *Server) Tail() string {
	log, err := os.ReadFile(filepath.Join(s.Dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(log[max(0, len(log)-tailMax):])
}

// logWriter copies to a file and closes ready at the first ReadyLine.
type logWriter struct {
	file  *os.File
	once  sync.Once
	tail  []byte
	ready chan struct{}
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.tail = append(w.tail, p...)
	if bytes.Contains(w.tail, []byte(ReadyLine)) {
		w.once.Do(func() { close(w.ready) })
	}
	w.tail = append(w.tail[:0], w.tail[max(0, len(w.tail)-len(ReadyLine)):]...)
	return w.file.Write(p)
}

// Ports hands out loopback ports nobody listens on: from Base upwards, or the kernel's choice when
// Base is 0. Each number is given once.
type Ports struct{ Base int }

// Next is a free port.
func (p *Ports) Next() (int, error) {
	for range 1000 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p.Base))
		if p.Base != 0 {
			p.Base++
		}
		if err != nil {
			continue
		}
		defer l.Close()
		return l.Addr().(*net.TCPAddr).Port, nil
	}
	return 0, fmt.Errorf("no free port below %d", p.Base)
}
