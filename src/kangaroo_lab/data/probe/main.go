// Probe observes how a file system behaves to a program: each observation is a
// name and a short outcome, so that two mounts can be compared by comparing text.
//
//	probe run -dir DIR     make every observation, each in a new directory of DIR, and print a line
//	                       of JSON for each: {"observation", "outcome", "seconds"}
//	probe crowd -dir DIR   list a directory of very many files, print what was found
//	probe act -dir DIR     do what standard input says, line by line (act.go)
//
// The other verbs are what a probe starts as another process.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// Longer than any lock or event takes on an emulated machine; a probe that takes as long hangs.
const patience = 60 * time.Second

type probe struct {
	name string
	run  func(place) string
}

var suites = [][]probe{
	nameProbes, linkProbes, specialProbes, removeProbes, createProbes, spaceProbes, attributeProbes,
	lockProbes, memoryProbes, eventProbes, directoryProbes, userProbes, systemProbes,
}

func main() {
	if err := dispatch(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func dispatch(arguments []string) error {
	if len(arguments) == 0 {
		return errors.New("run, crowd or act?")
	}
	verb, rest := arguments[0], arguments[1:]
	if child, known := children[verb]; known {
		fmt.Println(child(rest))
		return nil
	}
	flags := flag.NewFlagSet(verb, flag.ContinueOnError)
	dir := flags.String("dir", "/data", "directory to work in")
	only := flags.String("only", "", "observations to make, separated by commas; all when empty")
	if err := flags.Parse(rest); err != nil {
		return err
	}
	switch verb {
	case "run":
		return observe(*dir, *only)
	case "crowd":
		return json.NewEncoder(os.Stdout).Encode(crowd(*dir))
	case "act":
		return act(*dir, os.Stdin, os.Stdout)
	}
	return fmt.Errorf("no verb %q", verb)
}

// observation is one line of output.
type observation struct {
	Observation string  `json:"observation"`
	Outcome     string  `json:"outcome"`
	Seconds     float64 `json:"seconds"`
}

func observe(dir, only string) error {
	wanted := map[string]bool{}
	for _, each := range strings.FieldsFunc(only, func(r rune) bool { return r == ',' }) {
		wanted[each] = true
	}
	for _, suite := range suites {
		for _, each := range suite {
			if only != "" && !wanted[each.name] {
				continue
			}
			delete(wanted, each.name)
			start := time.Now()
			said := observation{each.name, outcome(dir, each), time.Since(start).Seconds()}
			if err := json.NewEncoder(os.Stdout).Encode(said); err != nil {
				return err
			}
		}
	}
	for each := range wanted {
		return fmt.Errorf("no observation %q", each)
	}
	return nil
}

// outcome runs one probe in a directory of its own, which is removed again.
func outcome(dir string, each probe) string {
	path := filepath.Join(dir, "probe-"+each.name)
	if err := os.Mkdir(path, 0o755); err != nil {
		return "no directory: " + name(err)
	}
	defer os.RemoveAll(path)
	done := make(chan string, 1)
	go func() {
		defer func() {
			if failure := recover(); failure != nil {
				done <- fmt.Sprint(failure)
			}
		}()
		done <- each.run(place(path))
	}()
	select {
	case said := <-done:
		return said
	case <-time.After(patience):
		return "hangs"
	}
}

// crowd lists the directory as `ls` does, in the order of the file system, and
// looks at every hundredth file.
func crowd(dir string) map[string]int {
	directory := must(os.Open(dir))
	defer directory.Close()
	seen := map[string]bool{}
	found := map[string]int{"listed": 0, "different": 0, "stat": 0}
	for {
		batch, err := directory.Readdirnames(1000)
		for _, entry := range batch {
			seen[entry] = true
			found["listed"]++
		}
		if err != nil {
			break
		}
	}
	found["different"] = len(seen)
	all := make([]string, 0, len(seen))
	for entry := range seen {
		all = append(all, entry)
	}
	sort.Strings(all)
	for n := 0; n < len(all); n += 100 {
		if _, err := os.Lstat(filepath.Join(dir, all[n])); err == nil {
			found["stat"]++
		}
	}
	return found
}
