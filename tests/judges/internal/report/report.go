// Package report prints what the judges found: one line per failure, one summary line at the end.
package report

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// Table counts checks. It may be used by several goroutines.
type Table struct {
	mu             sync.Mutex
	passed, failed int
	notYet         int
}

// Check records one check and prints it when it failed.
func (t *Table) Check(name string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.passed++
		return
	}
	t.failed++
	fmt.Printf("FAIL %s: %v\n", name, err)
}

// NotYet records a check that needs RPCs which the server is known to leave out, and prints it.
func (t *Table) NotYet(name, methods string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.notYet++
	fmt.Printf("not yet %s: needs %s\n", name, methods)
}

// Control turns the table into that of a negative control: the checks so far had to fail.
func (t *Table) Control(name string) {
	var err error
	if t.Failed() == 0 {
		err = errors.New("nothing was noticed")
	}
	t.mu.Lock()
	t.passed, t.failed = 0, 0
	t.mu.Unlock()
	t.Check("negative control: "+name, err)
}

// Failed is the number of failed checks.
func (t *Table) Failed() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed
}

// Exit prints the summary as the last line and ends the process: 0 when checks passed and none failed.
func (t *Table) Exit() {
	if t.notYet > 0 {
		fmt.Printf("%d not yet\n", t.notYet)
	}
	fmt.Printf("%d passed, %d failed\n", t.passed, t.failed)
	if t.failed > 0 || t.passed == 0 {
		os.Exit(1)
	}
	os.Exit(0)
}

// Fatal ends a judge that could not judge.
func Fatal(err error) {
	fmt.Fprintln(os.Stderr, "cannot judge:", err)
	fmt.Println("0 passed, 1 failed")
	os.Exit(2)
}

// Add counts another table's checks in this one.
func (t *Table) Add(other *Table) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.passed += other.passed
	t.notYet += other.notYet
	t.failed += other.failed
}
