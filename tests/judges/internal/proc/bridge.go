package proc

import (
	"io"
	"net"
	"sync"
)

// Bridge passes TCP connections on to a server until it is cut.
type Bridge struct {
	listener net.Listener
	target   string
	mu       sync.Mutex
	cut      bool
	conns    map[net.Conn]bool
}

// NewBridge listens on a loopback port of the kernel's choice.
func NewBridge(target string) (*Bridge, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &Bridge{listener: l, target: target, conns: map[net.Conn]bool{}}
	go b.accept()
	return b, nil
}

// Addr is the address clients use.
func (b *Bridge) Addr() string { return b.listener.Addr().String() }

// Cut closes all connections, and new ones at once, until Mend.
func (b *Bridge) Cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cut = true
	for c := range b.conns {
		c.Close()
	}
}

// Mend passes new connections on again.
func (b *Bridge) Mend() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cut = false
}

// Close ends the bridge.
func (b *Bridge) Close() {
	b.listener.Close()
	b.Cut()
}

func (b *Bridge) accept() {
	for {
		near, err := b.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", b.target)
		if err != nil || !b.keep(near, far) {
			near.Close()
			continue
		}
		go b.copy(near, far)
		go b.copy(far, near)
	}
}

// keep registers both ends, unless the bridge is cut: then it closes them.
func (b *Bridge) keep(near, far net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cut {
		far.Close()
		return false
	}
	b.conns[near], b.conns[far] = true, true
	return true
}

func (b *Bridge) copy(to, from net.Conn) {
	// Either end's closing ends both.
	_, _ = io.Copy(to, from)
	to.Close()
	from.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, from)
}
