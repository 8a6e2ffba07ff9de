package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// fcntl(2): locks of an open file description.
const (
	ofdSetLock     = 37
	ofdSetLockWait = 38
	setLease       = 1024
)

var lockProbes = []probe{
	{"flock-by-two-opens", func(p place) string {
		p.file("a", "")
		first, second := p.open("a", os.O_RDWR), p.open("a", os.O_RDWR)
		defer first.Close()
		defer second.Close()
		check(take("flock", first))
		held := take("flock", second)
		check(release("flock", first))
		return joined("held "+name(held), "released "+name(take("flock", second)))
	}},
	{"flock-by-another-process", func(p place) string { return contended(p, "flock", "flock") }},
	{"flock-exclusive-on-a-read-only-descriptor", func(p place) string {
		p.file("a", "")
		file := p.open("a", os.O_RDONLY)
		defer file.Close()
		return name(take("flock", file))
	}},
	{"flock-of-a-directory", func(p place) string {
		directory := must(os.Open(string(p)))
		defer directory.Close()
		return name(take("flock", directory))
	}},
	{"flock-against-fcntl", func(p place) string { return contended(p, "flock", "fcntl") }},
	{"fcntl-against-flock", func(p place) string { return contended(p, "fcntl", "flock") }},
	{"fcntl-by-another-process", func(p place) string { return contended(p, "fcntl", "fcntl") }},
	{"fcntl-of-ranges", func(p place) string {
		p.file("a", "")
		file := p.open("a", os.O_RDWR)
		defer file.Close()
		lock := syscall.Flock_t{Type: syscall.F_WRLCK, Start: 1 << 40, Len: 10}
		check(syscall.FcntlFlock(file.Fd(), syscall.F_SETLK, &lock))
		return joined("beside "+child("try-lock", "fcntl", p.path("a")+":0:10"),
			"overlapping "+child("try-lock", "fcntl", p.path("a")+":1099511627781:10"))
	}},
	{"fcntl-write-lock-on-a-read-only-descriptor", func(p place) string {
		p.file("a", "")
		file := p.open("a", os.O_RDONLY)
		defer file.Close()
		return name(take("fcntl", file))
	}},
	{"fcntl-lost-by-any-close", func(p place) string {
		// fcntl(2): closing any descriptor of the file lets go of the process's locks.
		p.file("a", "")
		file, other := p.open("a", os.O_RDWR), p.open("a", os.O_RDWR)
		defer file.Close()
		check(take("fcntl", file))
		check(other.Close())
		return "then " + child("try-lock", "fcntl", p.path("a"))
	}},
	{"ofd-by-two-opens", func(p place) string {
		p.file("a", "")
		first, second := p.open("a", os.O_RDWR), p.open("a", os.O_RDWR)
		defer first.Close()
		defer second.Close()
		check(take("ofd", first))
		return "held " + name(take("ofd", second))
	}},
	{"lock-that-is-waited-for", func(p place) string {
		p.file("a", "")
		first, second := p.open("a", os.O_RDWR), p.open("a", os.O_RDWR)
		defer first.Close()
		defer second.Close()
		check(take("ofd", first))
		waited := make(chan error, 1)
		go func() {
			lock := syscall.Flock_t{Type: syscall.F_WRLCK}
			waited <- syscall.FcntlFlock(second.Fd(), ofdSetLockWait, &lock)
		}()
		early := false
		select {
		case <-waited:
			early = true
		case <-time.After(300 * time.Millisecond):
		}
		check(release("ofd", first))
		if early {
			return "not waited for"
		}
		return "got " + name(<-waited)
	}},
	{"flock-of-a-killed-process", func(p place) string { return killed(p, "flock") }},
	{"fcntl-of-a-killed-process", func(p place) string { return killed(p, "fcntl") }},
	{"lease", func(p place) string {
		p.file("a", "")
		file := p.open("a", os.O_RDONLY)
		defer file.Close()
		_, err := fcntl(file, setLease, syscall.F_RDLCK)
		return name(err)
	}},
}

// take tries to get an exclusive lock on the whole file, without waiting.
func take(kind string, file *os.File) error {
	lock := syscall.Flock_t{Type: syscall.F_WRLCK}
	switch kind {
	case "flock":
		return syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	case "ofd":
		return syscall.FcntlFlock(file.Fd(), ofdSetLock, &lock)
	}
	return syscall.FcntlFlock(file.Fd(), syscall.F_SETLK, &lock)
}

const askAgain = 20 * time.Millisecond

// insist gets the lock by asking again and again. One that is waited for (F_SETLKW) ends with EIO
// where the client is Linux 6.12 and the server nfs-ganesha 6.5, on a node's own mount, too.
func insist(kind string, file *os.File) error {
	for {
		err := take(kind, file)
		if err != syscall.EAGAIN {
			return err
		}
		time.Sleep(askAgain)
	}
}

func release(kind string, file *os.File) error {
	lock := syscall.Flock_t{Type: syscall.F_UNLCK}
	switch kind {
	case "flock":
		return syscall.Flock(int(file.Fd()), syscall.LOCK_UN)
	case "ofd":
		return syscall.FcntlFlock(file.Fd(), ofdSetLock, &lock)
	}
	return syscall.FcntlFlock(file.Fd(), syscall.F_SETLK, &lock)
}

// contended holds a lock of one kind while another process tries the other kind.
func contended(p place, held, tried string) string {
	p.file("a", "")
	file := p.open("a", os.O_RDWR)
	defer file.Close()
	check(take(held, file))
	during := child("try-lock", tried, p.path("a"))
	check(release(held, file))
	return joined("held "+during, "released "+child("try-lock", tried, p.path("a")))
}

// tryLock is the other process. A path may name a range: PATH:START:LENGTH.
func tryLock(kind, path string) string {
	lock := syscall.Flock_t{Type: syscall.F_WRLCK}
	if n := lastColon(path); n > 0 {
		fmt.Sscanf(path[n:], ":%d:%d", &lock.Start, &lock.Len)
		path = path[:n]
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return name(err)
	}
	defer file.Close()
	if kind == "flock" {
		return name(take(kind, file))
	}
	return name(syscall.FcntlFlock(file.Fd(), syscall.F_SETLK, &lock))
}

func lastColon(path string) int {
	colons := 0
	for n := len(path) - 1; n >= 0; n-- {
		if path[n] == ':' {
			if colons++; colons == 2 {
				return n
			}
		}
	}
	return -1
}

// hold is a process that has a lock until it is killed.
func hold(kind, path string) string {
	file := must(os.OpenFile(path, os.O_RDWR, 0))
	fmt.Println(name(take(kind, file)))
	io.Copy(io.Discard, os.Stdin)
	return name(file.Close())
}

func killed(p place, kind string) string {
	p.file("a", "")
	holder := exec.Command("/proc/self/exe", "hold", kind, p.path("a"))
	input := must(holder.StdinPipe())
	defer input.Close()
	output := must(holder.StdoutPipe())
	check(holder.Start())
	taken := must(bufio.NewReader(output).ReadString('\n'))
	during := tryLock(kind, p.path("a"))
	check(holder.Process.Kill())
	holder.Wait()
	return joined("taken "+taken[:len(taken)-1], "held "+during, "killed "+tryLock(kind, p.path("a")))
}
