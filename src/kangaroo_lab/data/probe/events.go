package main

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// watcher is an inotify instance on one directory or file.
type watcher struct{ file *os.File }

const watched = syscall.IN_CREATE | syscall.IN_MODIFY | syscall.IN_CLOSE_WRITE | syscall.IN_ATTRIB |
	syscall.IN_MOVED_FROM | syscall.IN_MOVED_TO | syscall.IN_DELETE

var eventNames = []struct {
	mask uint32
	name string
}{
	{syscall.IN_CREATE, "create"}, {syscall.IN_MODIFY, "modify"}, {syscall.IN_CLOSE_WRITE, "close"},
	{syscall.IN_ATTRIB, "attributes"}, {syscall.IN_MOVED_FROM, "from"}, {syscall.IN_MOVED_TO, "to"},
	{syscall.IN_DELETE, "delete"},
}

var eventProbes = []probe{
	{"inotify", func(p place) string {
		watch := watch(string(p))
		defer watch.file.Close()
		file := p.open("a", os.O_CREATE|os.O_WRONLY)
		must(file.WriteString("one"))
		check(file.Close())
		check(os.Chmod(p.path("a"), 0o600))
		check(os.Rename(p.path("a"), p.path("b")))
		check(os.Remove(p.path("b")))
		return watch.events(time.Second)
	}},
	{"inotify-of-another-process", func(p place) string {
		p.file("a", "")
		watch := watch(string(p))
		defer watch.file.Close()
		child("append", p.path("a"))
		return watch.events(time.Second)
	}},
	{"inotify-of-unlinked-open-file", func(p place) string {
		p.file("a", "")
		open := p.open("a", os.O_RDWR)
		watch := watch(string(p))
		defer watch.file.Close()
		check(os.Remove(p.path("a")))
		check(open.Close())
		return watch.events(time.Second)
	}},
}

// watch begins to watch a path.
func watch(path string) watcher {
	fd := must(syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK))
	must(syscall.InotifyAddWatch(fd, path, watched))
	return watcher{os.NewFile(uintptr(fd), "inotify")}
}

// events are those that came, until none comes for a while; of equal ones in a row only the first.
func (w watcher) events(quiet time.Duration) string {
	var found []string
	data := make([]byte, 65536)
	for {
		w.file.SetReadDeadline(time.Now().Add(quiet))
		n, err := w.file.Read(data)
		if err != nil {
			break
		}
		for rest := data[:n]; len(rest) > 0; {
			event := (*syscall.InotifyEvent)(unsafe.Pointer(&rest[0]))
			end := syscall.SizeofInotifyEvent + int(event.Len)
			said := describe(event, rest[syscall.SizeofInotifyEvent:end])
			if len(found) == 0 || found[len(found)-1] != said {
				found = append(found, said)
			}
			rest = rest[end:]
		}
	}
	if len(found) == 0 {
		return "none"
	}
	return strings.Join(found, ", ")
}

func describe(event *syscall.InotifyEvent, label []byte) string {
	label = bytes.TrimRight(label, "\x00")
	if bytes.HasPrefix(label, []byte(".nfs")) {
		label = []byte(".nfs")
	}
	for _, each := range eventNames {
		if event.Mask&each.mask != 0 {
			return strings.TrimSpace(each.name + " " + string(label))
		}
	}
	return "other"
}
