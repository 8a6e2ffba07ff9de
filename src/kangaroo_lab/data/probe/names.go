package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	renameNoReplace = 1
	renameExchange  = 2
	sysRenameat2    = 316
)

var nameProbes = []probe{
	{"name-of-255-bytes", func(p place) string {
		p.file(strings.Repeat("x", 255), "")
		return fact("listed with", fmt.Sprint(len(p.names()[0]), " bytes"))
	}},
	{"name-of-256-bytes", func(p place) string {
		return name(os.WriteFile(p.path(strings.Repeat("x", 256)), nil, 0o644))
	}},
	{"name-of-any-bytes", func(p place) string {
		wanted := []string{
			"new\nline", "\u00fc", "u\u0308", "\xff\xfe", " blank ", "a:b", `back\slash`, "Case", "case",
		}
		var refused []string
		for _, each := range wanted {
			if err := os.WriteFile(p.path(each), nil, 0o644); err != nil {
				refused = append(refused, fmt.Sprintf("%q %s", each, name(err)))
			}
		}
		found := map[string]bool{}
		for _, each := range p.names() {
			found[each] = true
		}
		listed := 0
		for _, each := range wanted {
			if found[each] {
				listed++
			}
		}
		return joined(append([]string{fact("listed as written", listed)}, refused...)...)
	}},
}

var linkProbes = []probe{
	{"hard-link", func(p place) string {
		file := p.file("a", "one")
		check(os.Link(file, p.path("b")))
		a, b := stat(file), stat(p.path("b"))
		p.file("a", "two")
		return joined(
			fact("links", b.Nlink), fact("same inode", a.Ino == b.Ino), fact("reads", content(p.path("b"))))
	}},
	{"hard-link-after-unlink-of-the-first", func(p place) string {
		file := p.file("a", "one")
		check(os.Link(file, p.path("b")))
		check(os.Remove(file))
		return joined(fact("links", stat(p.path("b")).Nlink), fact("reads", content(p.path("b"))))
	}},
	{"hard-link-of-a-directory", func(p place) string {
		check(os.Mkdir(p.path("d"), 0o755))
		return name(os.Link(p.path("d"), p.path("e")))
	}},
	{"symlink", func(p place) string {
		p.file("a", "one")
		check(os.Symlink("a", p.path("b")))
		target := must(os.Readlink(p.path("b")))
		return joined(fact("to", target), fact("size", stat(p.path("b")).Size), content(p.path("b")))
	}},
	{"symlink-to-nothing", func(p place) string {
		check(os.Symlink("../none", p.path("b")))
		_, err := os.Open(p.path("b"))
		return joined(fact("to", must(os.Readlink(p.path("b")))), name(err))
	}},
	{"symlink-to-itself", func(p place) string {
		check(os.Symlink("b", p.path("b")))
		_, err := os.Open(p.path("b"))
		return name(err)
	}},
	{"symlink-of-4000-bytes", func(p place) string {
		target := strings.Repeat("0123456789/abcdef/../", 190) + "end"
		if err := os.Symlink(target, p.path("b")); err != nil {
			return name(err)
		}
		return fact("as written", must(os.Readlink(p.path("b"))) == target)
	}},
}

var specialProbes = []probe{
	{"fifo", func(p place) string {
		check(syscall.Mkfifo(p.path("f"), 0o644))
		go func() { os.WriteFile(p.path("f"), []byte("through"), 0) }()
		said := content(p.path("f"))
		return joined(fact("is fifo", stat(p.path("f")).Mode&syscall.S_IFMT == syscall.S_IFIFO), said)
	}},
	{"unix-socket", func(p place) string {
		// The address has room for 108 bytes.
		check(os.Chdir(string(p)))
		defer os.Chdir("/")
		listener, caller := socket(), socket()
		defer syscall.Close(listener)
		defer syscall.Close(caller)
		address := &syscall.SockaddrUnix{Name: "s"}
		check(syscall.Bind(listener, address))
		check(syscall.Listen(listener, 1))
		isSocket := stat("s").Mode&syscall.S_IFMT == syscall.S_IFSOCK
		check(syscall.Connect(caller, address))
		must(syscall.Write(caller, []byte("through")))
		called, _, err := syscall.Accept(listener)
		check(err)
		defer syscall.Close(called)
		data := make([]byte, 16)
		n := must(syscall.Read(called, data))
		return joined(fact("is socket", isSocket), string(data[:n]))
	}},
	{"device", func(p place) string {
		null := p.path("null")
		if err := syscall.Mknod(null, syscall.S_IFCHR|0o666, 1<<8|3); err != nil {
			return name(err)
		}
		file, err := os.OpenFile(null, os.O_WRONLY, 0)
		if err == nil {
			file.Close()
		}
		return joined("made", fact("is device", stat(null).Rdev == 1<<8|3), "open "+name(err))
	}},
}

var removeProbes = []probe{
	{"rename-over", func(p place) string {
		p.file("old", "old")
		inode := stat(p.file("new", "new")).Ino
		check(os.Rename(p.path("new"), p.path("old")))
		found := stat(p.path("old"))
		return joined(content(p.path("old")), fact("same inode", found.Ino == inode),
			fact("left", strings.Join(p.names(), " ")))
	}},
	{"rename-over-open-file", func(p place) string {
		p.file("old", "old")
		open := p.open("old", os.O_RDWR)
		p.file("new", "new")
		check(os.Rename(p.path("new"), p.path("old")))
		data := make([]byte, 3)
		_, readError := open.ReadAt(data, 0)
		_, writeError := open.WriteAt([]byte("OLD"), 0)
		silly := p.silly()
		check(open.Close())
		return joined("reads "+said(data, readError), "writes "+name(writeError),
			fact("the name has", content(p.path("old"))), fact(".nfs while open", silly),
			p.settled())
	}},
	{"rename-of-open-file", func(p place) string {
		p.file("a", "one")
		open := p.open("a", os.O_RDWR)
		check(os.Rename(p.path("a"), p.path("b")))
		_, err := open.WriteAt([]byte("two"), 0)
		check(open.Close())
		return joined(name(err), content(p.path("b")))
	}},
	{"rename-no-replace", func(p place) string {
		return renamed(p.file("a", "one"), p.file("b", "two"), renameNoReplace)
	}},
	{"rename-no-replace-to-new-name", func(p place) string {
		return renamed(p.file("a", "one"), p.path("b"), renameNoReplace)
	}},
	{"rename-exchange", func(p place) string {
		return renamed(p.file("a", "one"), p.file("b", "two"), renameExchange)
	}},
	{"rename-over-directory", func(p place) string {
		check(os.MkdirAll(p.path("a/inside"), 0o755))
		check(os.MkdirAll(p.path("b/inside"), 0o755))
		full := syscall.Rename(p.path("a"), p.path("b"))
		check(os.Remove(p.path("b/inside")))
		return joined("full "+name(full), "empty "+name(syscall.Rename(p.path("a"), p.path("b"))))
	}},
	{"rename-into-itself", func(p place) string {
		check(os.Mkdir(p.path("a"), 0o755))
		return name(syscall.Rename(p.path("a"), p.path("a/b")))
	}},
	{"unlink-open-file", func(p place) string {
		p.file("a", "one")
		open := p.open("a", os.O_RDWR)
		check(os.Remove(p.path("a")))
		_, writeError := open.WriteAt([]byte("two"), 0)
		data := make([]byte, 3)
		_, readError := open.ReadAt(data, 0)
		var found syscall.Stat_t
		statError := syscall.Fstat(int(open.Fd()), &found)
		silly := p.silly()
		check(open.Close())
		return joined("writes "+name(writeError), "reads "+said(data, readError),
			"fstat "+name(statError), fact("links", found.Nlink), fact(".nfs while open", silly),
			p.settled())
	}},
	{"unlink-mapped-file", func(p place) string {
		p.file("a", "one")
		open := p.open("a", os.O_RDWR)
		memory := must(syscall.Mmap(int(open.Fd()), 0, 3, syscall.PROT_READ|syscall.PROT_WRITE,
			syscall.MAP_SHARED))
		check(open.Close())
		check(os.Remove(p.path("a")))
		copy(memory, "two")
		read, silly := string(memory), p.silly()
		// What is not written back holds the file, for half a minute.
		check(syncMemory(memory))
		check(syscall.Munmap(memory))
		return joined("reads "+read, fact(".nfs while mapped", silly), p.settled())
	}},
	{"reopen-unlinked-by-proc", func(p place) string {
		p.file("a", "one")
		open := p.open("a", os.O_RDONLY)
		defer open.Close()
		check(os.Remove(p.path("a")))
		again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", open.Fd()))
		if err != nil {
			return name(err)
		}
		defer again.Close()
		data := make([]byte, 3)
		_, err = again.ReadAt(data, 0)
		return said(data, err)
	}},
	{"rmdir-with-open-unlinked-file", func(p place) string {
		check(os.Mkdir(p.path("d"), 0o755))
		p.file("d/a", "one")
		open := p.open("d/a", os.O_RDONLY)
		check(os.Remove(p.path("d/a")))
		during := syscall.Rmdir(p.path("d"))
		check(open.Close())
		if during == nil {
			return "ok"
		}
		settled := (p + "/d").settled()
		return joined("while open "+name(during), settled, "after "+name(syscall.Rmdir(p.path("d"))))
	}},
	{"rmdir-of-full-directory", func(p place) string {
		check(os.MkdirAll(p.path("d/inside"), 0o755))
		return name(syscall.Rmdir(p.path("d")))
	}},
	{"remove-of-working-directory", func(p place) string {
		check(os.Mkdir(p.path("d"), 0o755))
		check(os.Chdir(p.path("d")))
		defer os.Chdir("/")
		removed := syscall.Rmdir(p.path("d"))
		_, err := os.Create("inside")
		return joined("removed "+name(removed), "create in it "+name(err))
	}},
}

var createProbes = []probe{
	{"create-exclusive", func(p place) string {
		flags := os.O_CREATE | os.O_EXCL | os.O_WRONLY
		first := p.open("a", flags)
		check(first.Close())
		_, err := os.OpenFile(p.path("a"), flags, 0o644)
		return "again " + name(err)
	}},
	{"create-without-a-name", func(p place) string {
		const tmpfile = 0o20000000 | syscall.O_DIRECTORY
		fd, err := syscall.Open(string(p), tmpfile|syscall.O_RDWR, 0o600)
		if err != nil {
			return name(err)
		}
		syscall.Close(fd)
		return "ok"
	}},
	{"create-modes", func(p place) string {
		before := syscall.Umask(0o027)
		defer syscall.Umask(before)
		file := must(os.OpenFile(p.path("a"), os.O_CREATE, 0o666))
		file.Close()
		check(os.Mkdir(p.path("d"), 0o777))
		return fmt.Sprintf("file %o, directory %o",
			stat(p.path("a")).Mode&0o7777, stat(p.path("d")).Mode&0o7777)
	}},
	{"create-read-only-writable", func(p place) string {
		file, err := os.OpenFile(p.path("a"), os.O_CREATE|os.O_WRONLY, 0o400)
		if err != nil {
			return name(err)
		}
		_, err = file.WriteString("one")
		return joined(name(err), name(file.Close()))
	}},
	{"directory-with-setgid", func(p place) string {
		check(os.Mkdir(p.path("d"), 0o755))
		check(os.Chown(p.path("d"), 0, 4321))
		check(syscall.Chmod(p.path("d"), 0o2775))
		check(os.Mkdir(p.path("d/e"), 0o755))
		p.file("d/a", "")
		return fmt.Sprintf("file %d, directory %d mode %o", stat(p.path("d/a")).Gid,
			stat(p.path("d/e")).Gid, stat(p.path("d/e")).Mode&0o7777)
	}},
	{"append-by-two-descriptors", func(p place) string {
		first, second := p.open("a", appending), p.open("a", appending)
		for n := 0; n < 10; n++ {
			must(first.WriteString("1"))
			must(second.WriteString("2"))
		}
		check(first.Close())
		check(second.Close())
		return content(p.path("a"))
	}},
	{"append-moves-pwrite", func(p place) string {
		// pwrite(2), BUGS: on Linux, O_APPEND beats the offset.
		file := p.open("a", appending)
		must(file.WriteString("one"))
		must(syscall.Pwrite(int(file.Fd()), []byte("two"), 0))
		check(file.Close())
		return content(p.path("a"))
	}},
}

const appending = os.O_CREATE | os.O_WRONLY | os.O_APPEND

func renamed(from, to string, flags uintptr) string {
	before := content(from)
	number := syscallPaths(sysRenameat2, from, to, flags)
	if number != 0 {
		return name(number)
	}
	swapped := "gone"
	if data, err := os.ReadFile(from); err == nil {
		swapped = string(data)
	}
	return joined("ok", fact("moved", content(to) == before), filepath.Base(from)+" "+swapped)
}

func socket() int { return must(syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)) }

func said(data []byte, err error) string {
	if err != nil {
		return name(err)
	}
	return string(data)
}
