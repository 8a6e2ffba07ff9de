package main

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

const sysNameToHandle = 303

var systemProbes = []probe{
	{"statfs-type", func(p place) string {
		var found syscall.Statfs_t
		check(syscall.Statfs(string(p), &found))
		return fmt.Sprintf("%#x, names of %d bytes", found.Type, found.Namelen)
	}},
	{"file-handle", func(p place) string {
		path := must(syscall.BytePtrFromString(p.file("a", "")))
		handle := struct {
			size, kind uint32
			data       [128]byte
		}{size: 128}
		var mount int32
		_, _, errno := syscall.Syscall6(sysNameToHandle, atFdCwd,
			uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(&handle)),
			uintptr(unsafe.Pointer(&mount)), 0, 0)
		return name(succeeded(errno))
	}},
	{"open-files", func(p place) string {
		p.file("a", "one")
		var open []*os.File
		defer func() {
			for _, file := range open {
				file.Close()
			}
		}()
		for n := 0; n < 100; n++ {
			file, err := os.Open(p.path("a"))
			if err != nil {
				return fmt.Sprint(n, " then ", name(err))
			}
			open = append(open, file)
		}
		return fmt.Sprint(len(open), " at once")
	}},
}
