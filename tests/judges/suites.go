//go:build suites

// Package judges pins etcd's own test suites, which build compiles with go test -c.
package judges

import (
	_ "go.etcd.io/etcd/tests/v3/common"
	_ "go.etcd.io/etcd/tests/v3/framework/e2e"
	_ "go.etcd.io/etcd/tests/v3/robustness/report"
)
