package main

import (
	_ "embed"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

//go:embed script.txt
var scriptText string

// step is one line of script.txt with its standard input; exactly one of args, end and let is set.
type step struct {
	line  int
	args  []string
	bg    string
	input string
	end   string
	lines int
	let   string
	match *regexp.Regexp
}

func (s step) String() string {
	return fmt.Sprintf("script.txt:%d: etcdctl %q", s.line, s.args)
}

func parse(text string) ([]step, error) {
	var steps []step
	for i, line := range strings.Split(text, "\n") {
		if input, ok := strings.CutPrefix(line, "> "); ok {
			steps[len(steps)-1].input += input + "\n"
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		s, err := parseStep(split(line))
		if err != nil {
			return nil, fmt.Errorf("script.txt:%d: %w", i+1, err)
		}
		s.line = i + 1
		steps = append(steps, s)
	}
	return steps, nil
}

func parseStep(words []string) (s step, err error) {
	switch words[0] {
	case "bg":
		s.bg, s.args = words[1], words[2:]
	case "end":
		s.end = words[1]
		s.lines, err = strconv.Atoi(words[2])
	case "let":
		s.let = words[1]
		s.match, err = regexp.Compile(strings.Join(words[2:], " "))
	default:
		s.args = words
	}
	return s, err
}

// split cuts at spaces outside single quotes.
func split(line string) []string {
	var words []string
	var word strings.Builder
	quoted, started := false, false
	for _, c := range line {
		switch {
		case c == '\'':
			quoted, started = !quoted, true
		case c == ' ' && !quoted:
			if started {
				words = append(words, word.String())
			}
			word.Reset()
			started = false
		default:
			word.WriteRune(c)
			started = true
		}
	}
	if started {
		words = append(words, word.String())
	}
	return words
}
