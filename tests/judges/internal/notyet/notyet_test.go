package notyet

import (
	"errors"
	"slices"
	"testing"

	"ringkv.dev/judges/internal/report"
)

func TestParse(t *testing.T) {
	list, err := parse("# comment\n\n/a.B/C why\n/a.B/D why not\n")
	if err != nil || !slices.Equal(list, List{"/a.B/C", "/a.B/D"}) {
		t.Fatal(list, err)
	}
	for _, bad := range []string{"/a.B/C", "a.B/C why", "/a.B why", "/a.B/C why\n/a.B/C why"} {
		if list, err := parse(bad); err == nil {
			t.Fatal(bad, list)
		}
	}
}

func TestNamed(t *testing.T) {
	text := "Error: rpc error: code = Unimplemented desc = unknown method C for service a.B\n" +
		"unknown method C for service a.B, unknown service d.E"
	if got := Named(text); !slices.Equal(got, []string{"/a.B/C", "/d.E/"}) {
		t.Fatal(got)
	}
	if got := Named("RangeStream does not support custom sort orders"); len(got) != 0 {
		t.Fatal(got)
	}
}

// Only a failed check, and only for listed RPCs, is excused.
func TestCheck(t *testing.T) {
	failed := errors.New("failed")
	for _, c := range []struct {
		err     error
		missing []string
		failed  int
	}{
		{nil, []string{"/a.B/C"}, 0},
		{failed, nil, 1},
		{failed, []string{"/a.B/C"}, 0},
		{failed, []string{"/a.B/"}, 0},
		{failed, []string{"/a.B/D"}, 1},
		{failed, []string{"/a.B/C", "/a.B/D"}, 1},
		{failed, []string{"/a/"}, 1},
	} {
		var table report.Table
		List{"/a.B/C"}.Check(&table, "check", c.err, c.missing)
		if table.Failed() != c.failed {
			t.Fatal(c, table.Failed())
		}
	}
}
