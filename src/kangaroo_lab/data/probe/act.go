package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// actor is one of several programs that a test leads step by step. A line of
// its input is a JSON array, the verb and its arguments, all text; its answer is a line
// with a JSON string. Files are opened under a name of the test's choice.
type actor struct {
	place
	open     map[string]*os.File
	watchers map[string]watcher
}

func act(dir string, input io.Reader, output io.Writer) error {
	acting := actor{place(dir), map[string]*os.File{}, map[string]watcher{}}
	lines := bufio.NewScanner(input)
	for lines.Scan() {
		var words []string
		if err := json.Unmarshal(lines.Bytes(), &words); err != nil || len(words) == 0 {
			return fmt.Errorf("not an order: %q", lines.Text())
		}
		answer := acting.answer(words[0], words[1:])
		if err := json.NewEncoder(output).Encode(answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (a actor) answer(verb string, words []string) (said string) {
	defer func() {
		if failure := recover(); failure != nil {
			said = fmt.Sprint(failure)
		}
	}()
	do, known := verbs[verb]
	if !known {
		return "no verb " + verb
	}
	return do(a, words)
}

var verbs = map[string]func(actor, []string) string{
	"put": func(a actor, w []string) string {
		return name(os.WriteFile(a.path(w[0]), []byte(w[1]), 0o666))
	},
	"get": func(a actor, w []string) string {
		data, err := os.ReadFile(a.path(w[0]))
		return said(data, err)
	},
	"mkdir":  func(a actor, w []string) string { return name(os.Mkdir(a.path(w[0]), 0o777)) },
	"remove": func(a actor, w []string) string { return name(os.Remove(a.path(w[0]))) },
	"rename": func(a actor, w []string) string { return name(os.Rename(a.path(w[0]), a.path(w[1]))) },
	"list": func(a actor, w []string) string {
		return strings.Join(place(a.path(w[0])).names(), " ")
	},
	"size": func(a actor, w []string) string { return fmt.Sprint(stat(a.path(w[0])).Size) },
	"open": func(a actor, w []string) string {
		flags := os.O_RDWR | os.O_CREATE
		if len(w) > 2 && w[2] == "append" {
			flags |= os.O_APPEND
		}
		file, err := os.OpenFile(a.path(w[1]), flags, 0o666)
		a.open[w[0]] = file
		return name(err)
	},
	"write": func(a actor, w []string) string {
		_, err := a.open[w[0]].WriteString(w[1])
		return name(err)
	},
	"read": func(a actor, w []string) string {
		data := make([]byte, 65536)
		n, err := a.open[w[0]].ReadAt(data, 0)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return said(data[:n], err)
	},
	// Through memory, which is written back neither when the file is closed nor when the program ends.
	"map": func(a actor, w []string) string {
		file := a.open[w[0]]
		check(file.Truncate(int64(len(w[1]))))
		memory := must(syscall.Mmap(int(file.Fd()), 0, len(w[1]), readWrite, syscall.MAP_SHARED))
		copy(memory, w[1])
		return name(syscall.Munmap(memory))
	},
	"sync":   func(a actor, w []string) string { return name(a.open[w[0]].Sync()) },
	"close":  func(a actor, w []string) string { return name(a.open[w[0]].Close()) },
	"lock":   func(a actor, w []string) string { return name(take(w[1], a.open[w[0]])) },
	"unlock": func(a actor, w []string) string { return name(release(w[1], a.open[w[0]])) },
	"watch": func(a actor, w []string) string {
		a.watchers[w[0]] = watch(a.path(w[0]))
		return "ok"
	},
	"events": func(a actor, w []string) string { return a.watchers[w[0]].events(time.Second) },
	"race":   func(a actor, w []string) string { return race(a, w[0], w[1], number(w[2])) },
	"count":  func(a actor, w []string) string { return count(a.path(w[0]), w[1], number(w[2])) },
	"append": func(a actor, w []string) string {
		return appendUnderLock(a.path(w[0]), w[1], w[2], number(w[3]))
	},
}

// race tries to be the one who makes each of many names in a directory; the names that it made.
func race(a actor, kind, directory string, names int) string {
	source := a.path(directory + "-source-" + strconv.Itoa(os.Getpid()))
	if kind == "link" {
		check(os.WriteFile(source, nil, 0o666))
	}
	var made []string
	for n := 0; n < names; n++ {
		path := a.path(fmt.Sprintf("%s/%d", directory, n))
		var err error
		switch kind {
		case "create":
			var file *os.File
			if file, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666); err == nil {
				check(file.Close())
			}
		case "mkdir":
			err = os.Mkdir(path, 0o777)
		case "link":
			err = os.Link(source, path)
		}
		if err == nil {
			made = append(made, strconv.Itoa(n))
		} else if !errors.Is(err, os.ErrExist) {
			return name(err)
		}
	}
	sort.Strings(made)
	return strings.Join(made, " ")
}

// count adds one to the number in a file, each time under a lock.
func count(path, kind string, times int) string {
	file := must(os.OpenFile(path, os.O_RDWR, 0))
	defer file.Close()
	for n := 0; n < times; n++ {
		check(insist(kind, file))
		data := make([]byte, 20)
		read, err := file.ReadAt(data, 0)
		if err != nil && err != io.EOF {
			return name(err)
		}
		value := number(strings.TrimSpace(string(data[:read])))
		must(file.WriteAt([]byte(fmt.Sprintf("%10d", value+1)), 0))
		check(release(kind, file))
	}
	return "ok"
}

// appendUnderLock appends lines by O_APPEND, each under a lock.
func appendUnderLock(path, kind, line string, times int) string {
	file := must(os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0))
	defer file.Close()
	for n := 0; n < times; n++ {
		check(insist(kind, file))
		must(file.WriteString(line + "\n"))
		check(release(kind, file))
	}
	return "ok"
}

func number(text string) int {
	if text == "" {
		return 0
	}
	return must(strconv.Atoi(text))
}
