package main

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

const (
	sysStatx   = 332
	statxBirth = 0x800
)

var attributeProbes = []probe{
	{"xattr-user", func(p place) string { return attributed(p, "user.kangaroo") }},
	{"xattr-trusted", func(p place) string { return attributed(p, "trusted.kangaroo") }},
	{"xattr-list", func(p place) string {
		data := make([]byte, 4096)
		n, err := syscall.Listxattr(p.file("a", ""), data)
		if err != nil {
			return name(err)
		}
		names := strings.FieldsFunc(string(data[:n]), func(r rune) bool { return r == 0 })
		sort.Strings(names)
		return "lists " + strings.Join(append(names, "no more"), ", ")
	}},
	{"acl-posix", func(p place) string {
		// Version 2 of linux/posix_acl_xattr.h: u::rw, u:1234:r, g::r, m::r, o::-.
		acl := []byte{2, 0, 0, 0}
		for _, entry := range [][3]uint32{
			{0x01, 6, 0xffffffff}, {0x02, 4, 1234}, {0x04, 4, 0xffffffff}, {0x10, 4, 0xffffffff},
			{0x20, 0, 0xffffffff},
		} {
			acl = append(acl, byte(entry[0]), 0, byte(entry[1]), 0, byte(entry[2]),
				byte(entry[2]>>8), byte(entry[2]>>16), byte(entry[2]>>24))
		}
		return name(syscall.Setxattr(p.file("a", ""), "system.posix_acl_access", acl, 0))
	}},
	{"capability-of-a-file", func(p place) string {
		// linux/capability.h, VFS_CAP_REVISION_2: cap_net_raw permitted and effective.
		value := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		return name(syscall.Setxattr(p.file("a", ""), "security.capability", value, 0))
	}},
	{"times-set", func(p place) string {
		path := p.file("a", "one")
		wanted := []syscall.Timespec{{Sec: 1e9, Nsec: 123456789}, {Sec: 1e9 + 1, Nsec: 987654321}}
		check(syscall.UtimesNano(path, wanted))
		found := stat(path)
		return fmt.Sprintf("read %d.%09d, written %d.%09d", found.Atim.Sec, found.Atim.Nsec,
			found.Mtim.Sec, found.Mtim.Nsec)
	}},
	{"times-before-1970-and-after-2106", func(p place) string {
		path := p.file("a", "one")
		wanted := []syscall.Timespec{{Sec: -86400}, {Sec: 1 << 33}}
		if err := syscall.UtimesNano(path, wanted); err != nil {
			return name(err)
		}
		found := stat(path)
		return fmt.Sprintf("read %d, written %d", found.Atim.Sec, found.Mtim.Sec)
	}},
	{"times-of-a-symlink", func(p place) string {
		check(os.Symlink("a", p.path("b")))
		before := stat(p.path("b")).Mtim
		wanted := [2]syscall.Timespec{{Sec: 1e9}, {Sec: 1e9}}
		path := must(syscall.BytePtrFromString(p.path("b")))
		const noFollow = 0x100
		_, _, errno := syscall.Syscall6(syscall.SYS_UTIMENSAT, atFdCwd,
			uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(&wanted)), noFollow, 0, 0)
		return joined(name(succeeded(errno)), fact("changed", stat(p.path("b")).Mtim != before))
	}},
	{"time-of-a-write", func(p place) string {
		path := p.file("a", "one")
		old := []syscall.Timespec{{Sec: 1e9}, {Sec: 1e9}}
		check(syscall.UtimesNano(path, old))
		file := p.open("a", os.O_WRONLY)
		must(file.WriteAt([]byte("two"), 0))
		check(file.Close())
		written := stat(path).Mtim
		age := time.Since(time.Unix(written.Sec, written.Nsec))
		return fact("now", age > -time.Minute && age < time.Minute)
	}},
	{"time-of-a-directory", func(p place) string {
		check(os.Mkdir(p.path("d"), 0o755))
		old := []syscall.Timespec{{Sec: 1e9}, {Sec: 1e9}}
		check(syscall.UtimesNano(p.path("d"), old))
		p.file("d/a", "")
		return fact("changed by a new file", stat(p.path("d")).Mtim.Sec != 1e9)
	}},
	{"time-of-birth", func(p place) string {
		path := must(syscall.BytePtrFromString(p.file("a", "")))
		var found [256]byte
		_, _, errno := syscall.Syscall6(sysStatx, atFdCwd, uintptr(unsafe.Pointer(path)), 0,
			statxBirth, uintptr(unsafe.Pointer(&found)), 0)
		mask := *(*uint32)(unsafe.Pointer(&found))
		return joined(name(succeeded(errno)), fact("known", mask&statxBirth != 0))
	}},
	{"modes", func(p place) string {
		path := p.file("a", "")
		var found []string
		for _, mode := range []uint32{0, 0o777, 0o4755, 0o2755, 0o1644} {
			check(syscall.Chmod(path, mode))
			found = append(found, fmt.Sprintf("%o", stat(path).Mode&0o7777))
		}
		return strings.Join(found, " ")
	}},
	{"modes-after-chown", func(p place) string {
		path := p.file("a", "")
		check(syscall.Chmod(path, 0o6755))
		check(os.Chown(path, 1234, 5678))
		return fmt.Sprintf("%o", stat(path).Mode&0o7777)
	}},
	{"owner", func(p place) string {
		path := p.file("a", "")
		if err := os.Chown(path, 1234, 567890); err != nil {
			return name(err)
		}
		found := stat(path)
		return fmt.Sprint(found.Uid, ":", found.Gid)
	}},
}

func attributed(p place, key string) string {
	path := p.file("a", "")
	if err := syscall.Setxattr(path, key, []byte("value"), 0); err != nil {
		return name(err)
	}
	data := make([]byte, 64)
	n, err := syscall.Getxattr(path, key, data)
	if err != nil {
		return "set, get " + name(err)
	}
	removed := syscall.Removexattr(path, key)
	_, gone := syscall.Getxattr(path, key, data[n:])
	return joined("set", string(data[:n]), "removed "+name(removed), "then "+name(gone))
}
