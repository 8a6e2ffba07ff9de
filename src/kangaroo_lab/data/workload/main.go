// Workload does one measured piece of file work beneath a directory and prints
// what it did as one line of JSON: {"test", "ops", "bytes", "seconds", ...}.
//
// The same seed gives the same bytes and the same order of offsets, so two runs
// over two mounts do the same work. A -limit stops the loop early, so a slow
// mount costs bounded time: compare rates (ops or bytes per second), not times.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"time"
)

// Settings are the sizes of one run. Byte counts are in bytes.
type Settings struct {
	Dir   string
	File  string
	Size  int64
	Block int
	Count int
	Seed  int64
	Limit time.Duration
}

// Result is what a run did. Seconds include the closing fsync.
type Result struct {
	Test    string  `json:"test"`
	Ops     int64   `json:"ops"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	SHA256  string  `json:"sha256,omitempty"`
}

type test struct {
	about string
	run   func(Settings) (Result, error)
}

var tests = map[string]test{
	"small-writes": {"append -block bytes -count times, then fsync", smallWrites},
	"seq-write":    {"write -size bytes in blocks of -block, then fsync", sequentialWrite},
	"seq-read":     {"read -file in blocks of -block, own page cache dropped", sequentialRead},
	"random-write": {"write -count blocks of -block within -size, then fsync", randomWrite},
	"metadata":     {"create, stat and unlink -count files", metadata},
	"fill":         {"write -size seeded bytes to -file, fsync, print their sha256", fill},
	"verify":       {"read -file, print its sha256", verify},
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) == 0 {
		return errors.New("which test? one of " + strings.Join(names(), ", "))
	}
	chosen, known := tests[arguments[0]]
	if !known {
		return fmt.Errorf("no test %q; one of %s", arguments[0], strings.Join(names(), ", "))
	}
	settings, err := parse(arguments[0], arguments[1:])
	if err != nil {
		return err
	}
	result, err := chosen.run(settings)
	if err != nil {
		return err
	}
	result.Test = arguments[0]
	return json.NewEncoder(os.Stdout).Encode(result)
}

func parse(name string, arguments []string) (Settings, error) {
	var s Settings
	var seconds float64
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.StringVar(&s.Dir, "dir", "/data", "directory to work in")
	flags.StringVar(&s.File, "file", name+".dat", "file beneath -dir")
	flags.Int64Var(&s.Size, "size", 16<<20, "bytes of the file")
	flags.IntVar(&s.Block, "block", 1<<20, "bytes of one operation")
	flags.IntVar(&s.Count, "count", 1000, "operations")
	flags.Int64Var(&s.Seed, "seed", 1, "seed of the bytes and offsets")
	flags.Float64Var(&seconds, "limit", 0, "seconds after which the loop stops; 0: never")
	if err := flags.Parse(arguments); err != nil {
		return s, err
	}
	if flags.NArg() > 0 {
		return s, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if s.Size < 1 || s.Block < 1 || s.Count < 1 || seconds < 0 {
		return s, errors.New("-size, -block and -count must be positive, -limit not negative")
	}
	s.Limit = time.Duration(seconds * float64(time.Second))
	return s, nil
}

func names() []string {
	all := make([]string, 0, len(tests))
	for name := range tests {
		all = append(all, name)
	}
	sort.Strings(all)
	return all
}
