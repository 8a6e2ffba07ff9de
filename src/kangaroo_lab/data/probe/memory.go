package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"syscall"
	"unsafe"
)

const readWrite = syscall.PROT_READ | syscall.PROT_WRITE

var memoryProbes = []probe{
	{"mmap-shared-write", func(p place) string {
		p.file("a", "one two three")
		file := p.open("a", os.O_RDWR)
		memory := must(syscall.Mmap(int(file.Fd()), 0, 13, readWrite, syscall.MAP_SHARED))
		copy(memory, "ONE")
		read := content(p.path("a"))
		synced := syncMemory(memory)
		check(syscall.Munmap(memory))
		check(file.Close())
		return joined(fact("read", read), "msync "+name(synced), fact("closed", content(p.path("a"))))
	}},
	{"mmap-shared-sees-write", func(p place) string {
		p.file("a", "one two three")
		file := p.open("a", os.O_RDWR)
		defer file.Close()
		memory := must(syscall.Mmap(int(file.Fd()), 0, 13, syscall.PROT_READ, syscall.MAP_SHARED))
		defer syscall.Munmap(memory)
		before := string(memory)
		must(file.WriteAt([]byte("ONE"), 0))
		return joined(before, string(memory))
	}},
	{"mmap-shared-by-two-processes", func(p place) string {
		p.file("a", "one two three")
		file := p.open("a", os.O_RDWR)
		defer file.Close()
		memory := must(syscall.Mmap(int(file.Fd()), 0, 13, readWrite, syscall.MAP_SHARED))
		defer syscall.Munmap(memory)
		copy(memory, "ONE")
		return child("read", p.path("a"))
	}},
	{"mmap-private-write", func(p place) string {
		p.file("a", "one two three")
		file := p.open("a", os.O_RDWR)
		defer file.Close()
		memory := must(syscall.Mmap(int(file.Fd()), 0, 13, readWrite, syscall.MAP_PRIVATE))
		defer syscall.Munmap(memory)
		copy(memory, "ONE")
		return joined(string(memory), content(p.path("a")))
	}},
	{"mmap-behind-the-end", func(p place) (outcome string) {
		p.file("a", "one")
		file := p.open("a", os.O_RDWR)
		defer file.Close()
		memory := must(syscall.Mmap(int(file.Fd()), 0, 2*os.Getpagesize(), readWrite, syscall.MAP_SHARED))
		defer syscall.Munmap(memory)
		debug.SetPanicOnFault(true)
		defer func() {
			if recover() != nil {
				outcome = "SIGBUS"
			}
		}()
		return fmt.Sprint("reads ", memory[os.Getpagesize()])
	}},
	{"direct-io", func(p place) string {
		file, err := os.OpenFile(p.path("a"), os.O_CREATE|os.O_RDWR|syscall.O_DIRECT, 0o644)
		if err != nil {
			return "open " + name(err)
		}
		defer file.Close()
		memory := pages(2)
		copy(memory, "one")
		_, aligned := file.WriteAt(memory[:4096], 0)
		read := content(p.path("a"))[:3]
		copy(memory[1:], "two")
		_, unaligned := file.WriteAt(memory[1:101], 4097)
		_, back := file.ReadAt(memory[:4096], 0)
		return joined("aligned "+name(aligned), fact("buffered read", read),
			"unaligned "+name(unaligned), "read "+name(back), fact("size", stat(p.path("a")).Size))
	}},
	{"direct-io-switched-on-later", func(p place) string {
		p.file("a", "one")
		file := p.open("a", os.O_RDONLY)
		defer file.Close()
		_, err := fcntl(file, syscall.F_SETFL, syscall.O_DIRECT)
		return name(err)
	}},
	{"synchronous-write", func(p place) string {
		file := p.open("a", os.O_CREATE|os.O_WRONLY|syscall.O_SYNC)
		_, written := file.WriteString("one")
		return joined(name(written), "fsync "+name(file.Sync()),
			"fdatasync "+name(syscall.Fdatasync(int(file.Fd()))), "close "+name(file.Close()))
	}},
	{"fsync-of-a-directory", func(p place) string {
		directory := must(os.Open(string(p)))
		defer directory.Close()
		return name(directory.Sync())
	}},
	{"program-in-the-volume", func(p place) string {
		program := copyOfSelf(p)
		return childOf(program)
	}},
	{"write-to-a-running-program", func(p place) string {
		program := copyOfSelf(p)
		running := started(program)
		defer running.end()
		file, err := os.OpenFile(program, os.O_WRONLY, 0)
		if err == nil {
			file.Close()
		}
		return name(err)
	}},
}

func syncMemory(memory []byte) error {
	_, _, errno := syscall.Syscall(syscall.SYS_MSYNC, uintptr(unsafe.Pointer(&memory[0])),
		uintptr(len(memory)), syscall.MS_SYNC)
	return succeeded(errno)
}
