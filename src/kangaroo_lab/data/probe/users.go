package main

import (
	"fmt"
	"os"
	"syscall"
)

var nobody = &syscall.Credential{Uid: 65534, Gid: 65534}

var userProbes = []probe{
	{"user-reads-what-is-not-its-own", func(p place) string {
		path := p.file("a", "one")
		check(os.Chmod(path, 0o600))
		return childAs(nobody, "read", path)
	}},
	{"user-creates", func(p place) string {
		check(os.Chmod(string(p), 0o777))
		made := childAs(nobody, "create", p.path("a"))
		if made != "ok" {
			return made
		}
		found := stat(p.path("a"))
		return fmt.Sprint("owner ", found.Uid, ":", found.Gid)
	}},
	{"user-changes-what-is-not-its-own", func(p place) string {
		path := p.file("a", "one")
		check(os.Chmod(path, 0o666))
		return childAs(nobody, "chmod", path)
	}},
	{"user-writes-a-setuid-file", func(p place) string {
		path := p.file("a", "one")
		check(syscall.Chmod(path, 0o6777))
		written := childAs(nobody, "append", path)
		return joined(written, fmt.Sprintf("mode %o", stat(path).Mode&0o7777))
	}},
	{"user-in-a-sticky-directory", func(p place) string {
		check(syscall.Chmod(string(p), 0o1777))
		p.file("a", "one")
		return childAs(nobody, "remove", p.path("a"))
	}},
	{"user-with-a-supplementary-group", func(p place) string {
		return grouped(p, []uint32{4321})
	}},
	{"user-with-the-20th-supplementary-group", func(p place) string {
		// AUTH_SYS carries 16 of them (RFC 5531, appendix A).
		groups := []uint32{}
		for n := uint32(0); n < 19; n++ {
			groups = append(groups, 1000+n)
		}
		return grouped(p, append(groups, 4321))
	}},
}

// grouped has a user whom only a supplementary group helps read, write and create.
func grouped(p place, groups []uint32) string {
	who := &syscall.Credential{Uid: 65534, Gid: 65534, Groups: groups}
	path := p.file("a", "one")
	check(os.Chown(path, 0, 4321))
	check(os.Chmod(path, 0o060))
	check(os.Mkdir(p.path("d"), 0o755))
	check(os.Chown(p.path("d"), 0, 4321))
	check(os.Chmod(p.path("d"), 0o070))
	return joined("reads "+childAs(who, "read", path), "appends "+childAs(who, "append", path),
		"creates "+childAs(who, "create", p.path("d/b")))
}

func init() {
	children["remove"] = func(arguments []string) string { return name(syscall.Unlink(arguments[0])) }
}
