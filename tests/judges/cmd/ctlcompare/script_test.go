package main

import (
	"slices"
	"testing"
)

func TestSplit(t *testing.T) {
	got := split("put 'two words' '' x'y z'")
	if want := []string{"put", "two words", "", "xy z"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestParse(t *testing.T) {
	steps, err := parse("# note\n\nbg w watch -i\n> watch a\n> \nend w 3\nlet L lease (\\w+) granted\n")
	if err != nil || len(steps) != 3 {
		t.Fatal(steps, err)
	}
	if s := steps[0]; s.bg != "w" || s.input != "watch a\n\n" || s.line != 3 {
		t.Errorf("got %+v", s)
	}
	if s := steps[1]; s.end != "w" || s.lines != 3 {
		t.Errorf("got %+v", s)
	}
	if s := steps[2]; s.let != "L" || s.match.String() != `lease (\w+) granted` {
		t.Errorf("got %+v", s)
	}
	if _, err := parse(scriptText); err != nil {
		t.Error(err)
	}
}
