package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"
)

// place is the directory of one probe.
type place string

func (p place) path(name string) string { return filepath.Join(string(p), name) }

// file makes a file with this content and returns its path.
func (p place) file(name, content string) string {
	path := p.path(name)
	check(os.WriteFile(path, []byte(content), 0o644))
	return path
}

func (p place) open(name string, flags int) *os.File {
	return must(os.OpenFile(p.path(name), flags, 0o644))
}

// names are all entries, sorted.
func (p place) names() []string {
	var found []string
	for _, entry := range must(os.ReadDir(string(p))) {
		found = append(found, entry.Name())
	}
	sort.Strings(found)
	return found
}

// silly counts the names that an NFS client gives to files that are open but unlinked.
func (p place) silly() int {
	count := 0
	for _, name := range p.names() {
		if strings.HasPrefix(name, ".nfs") {
			count++
		}
	}
	return count
}

// settled says whether the names of silly renames go, which an NFS client sees to in the background.
func (p place) settled() string {
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		if p.silly() == 0 {
			return "then gone"
		}
		time.Sleep(50 * time.Millisecond)
	}
	return "then still there"
}

// child runs this program as another process and returns what it says.
func child(arguments ...string) string { return childAs(nil, arguments...) }

func childAs(who *syscall.Credential, arguments ...string) string {
	command := exec.Command("/proc/self/exe", arguments...)
	command.SysProcAttr = &syscall.SysProcAttr{Credential: who}
	said, err := command.CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v: %s", err, said)
	}
	return strings.TrimSpace(string(said))
}

// children are the verbs for another process; each returns an outcome.
var children = map[string]func([]string) string{
	"try-lock": func(arguments []string) string { return tryLock(arguments[0], arguments[1]) },
	"hold":     func(arguments []string) string { return hold(arguments[0], arguments[1]) },
	"read": func(arguments []string) string {
		data, err := os.ReadFile(arguments[0])
		if err != nil {
			return name(err)
		}
		return string(data)
	},
	"create": func(arguments []string) string {
		return name(os.WriteFile(arguments[0], nil, 0o644))
	},
	"append": func(arguments []string) string {
		file, err := os.OpenFile(arguments[0], os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return name(err)
		}
		_, err = file.WriteString("more")
		return name(errors.Join(err, file.Close()))
	},
	"chmod": func(arguments []string) string { return name(os.Chmod(arguments[0], 0o600)) },
	"hello": func([]string) string { return "hello" },
}

// check ends a probe whose preparation failed; the outcome says at what, without
// the path, which is another one in each pod.
func check(err error) {
	if err == nil {
		return
	}
	operation := "call"
	var onPath *os.PathError
	var onLink *os.LinkError
	if errors.As(err, &onPath) {
		operation = onPath.Op
	} else if errors.As(err, &onLink) {
		operation = onLink.Op
	}
	panic(fmt.Sprintf("unexpected: %s %s", operation, name(err)))
}

func must[T any](value T, err error) T {
	check(err)
	return value
}

// name is "ok", or the error number's name, or its text.
func name(err error) string {
	if err == nil {
		return "ok"
	}
	var number syscall.Errno
	if !errors.As(err, &number) {
		return err.Error()
	}
	if known, found := errorNames[number]; found {
		return known
	}
	return fmt.Sprintf("errno %d", int(number))
}

var errorNames = map[syscall.Errno]string{
	syscall.EPERM: "EPERM", syscall.ENOENT: "ENOENT", syscall.EIO: "EIO", syscall.ENXIO: "ENXIO",
	syscall.EBADF: "EBADF", syscall.EAGAIN: "EAGAIN", syscall.ENOMEM: "ENOMEM",
	syscall.EACCES: "EACCES", syscall.EBUSY: "EBUSY", syscall.EEXIST: "EEXIST",
	syscall.EXDEV: "EXDEV", syscall.ENODEV: "ENODEV", syscall.ENOTDIR: "ENOTDIR",
	syscall.EISDIR: "EISDIR", syscall.EINVAL: "EINVAL", syscall.ENOTTY: "ENOTTY",
	syscall.ETXTBSY: "ETXTBSY", syscall.EFBIG: "EFBIG", syscall.ENOSPC: "ENOSPC",
	syscall.EROFS: "EROFS", syscall.EMLINK: "EMLINK", syscall.ENAMETOOLONG: "ENAMETOOLONG",
	syscall.ENOLCK: "ENOLCK", syscall.ENOSYS: "ENOSYS", syscall.ENOTEMPTY: "ENOTEMPTY",
	syscall.ELOOP: "ELOOP", syscall.ENODATA: "ENODATA", syscall.EOVERFLOW: "EOVERFLOW",
	syscall.EILSEQ: "EILSEQ", syscall.EOPNOTSUPP: "EOPNOTSUPP", syscall.ESTALE: "ESTALE",
	syscall.EDQUOT: "EDQUOT", syscall.EREMOTEIO: "EREMOTEIO", 524: "ENOTSUPP",
}

// joined says several outcomes as one: "first ok, second EPERM".
func joined(parts ...string) string { return strings.Join(parts, ", ") }

func fact(label string, value any) string { return fmt.Sprintf("%s %v", label, value) }

func stat(path string) syscall.Stat_t {
	var found syscall.Stat_t
	check(syscall.Lstat(path, &found))
	return found
}

func content(path string) string { return string(must(os.ReadFile(path))) }

// pages is memory as O_DIRECT wants it.
func pages(count int) []byte {
	return must(syscall.Mmap(
		-1, 0, count*os.Getpagesize(), syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE))
}
