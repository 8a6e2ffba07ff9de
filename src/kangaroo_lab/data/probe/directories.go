package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Names so long that it takes several calls of getdents64(2) to list them.
const many = 60

var directoryProbes = []probe{
	{"directory-of-many", func(p place) string {
		fill(p)
		seen := map[string]bool{}
		listed := 0
		for _, entry := range p.names() {
			seen[entry] = true
			listed++
		}
		return joined(fact("listed", listed), fact("different", len(seen)))
	}},
	{"directory-emptied-while-listed", func(p place) string {
		fill(p)
		directory := must(os.Open(string(p)))
		defer directory.Close()
		seen := map[string]bool{}
		twice := 0
		for {
			batch, err := directory.Readdirnames(10)
			for _, entry := range batch {
				if seen[entry] {
					twice++
				}
				seen[entry] = true
				check(os.Remove(p.path(entry)))
			}
			if err == io.EOF {
				break
			}
			check(err)
		}
		return joined(fact("seen", len(seen)), fact("twice", twice), fact("left", len(p.names())))
	}},
	{"directory-listed-again", func(p place) string {
		fill(p)
		directory := must(os.Open(string(p)))
		defer directory.Close()
		first := len(must(directory.Readdirnames(-1)))
		check(os.Remove(numbered(p, 0)))
		p.file("later", "")
		must(directory.Seek(0, io.SeekStart))
		return fmt.Sprint(first, " then ", len(must(directory.Readdirnames(-1))))
	}},
	{"directory-entry-types", func(p place) string {
		p.file("file", "")
		check(os.Mkdir(p.path("directory"), 0o755))
		check(os.Symlink("file", p.path("symlink")))
		check(syscall.Mkfifo(p.path("fifo"), 0o644))
		return entryTypes(p)
	}},
	{"directory-entry-inodes", func(p place) string {
		p.file("file", "")
		check(os.Mkdir(p.path("directory"), 0o755))
		for entry, inode := range entries(p) {
			if stat(filepath.Join(string(p), entry.name)).Ino != inode {
				return entry.name + " has another inode than is listed"
			}
		}
		return "as listed"
	}},
	{"directory-links", func(p place) string {
		check(os.Mkdir(p.path("a"), 0o755))
		check(os.Mkdir(p.path("b"), 0o755))
		return fact("links", stat(string(p)).Nlink)
	}},
	{"inode-after-write-and-rename", func(p place) string {
		before := stat(p.file("a", "one")).Ino
		p.file("a", "two")
		check(os.Rename(p.path("a"), p.path("b")))
		return fact("same", stat(p.path("b")).Ino == before)
	}},
}

func fill(p place) {
	for n := 0; n < many; n++ {
		check(os.WriteFile(numbered(p, n), nil, 0o644))
	}
}

func numbered(p place, n int) string {
	return p.path(fmt.Sprintf("%03d-%s", n, strings.Repeat("x", 200)))
}

type entry struct {
	name string
	kind byte
}

// entries are what getdents64(2) says, with the inode numbers.
func entries(p place) map[entry]uint64 {
	directory := must(os.Open(string(p)))
	defer directory.Close()
	found := map[entry]uint64{}
	data := make([]byte, 65536)
	for {
		n := must(syscall.ReadDirent(int(directory.Fd()), data))
		if n <= 0 {
			return found
		}
		for rest := data[:n]; len(rest) > 0; {
			length := int(rest[16]) | int(rest[17])<<8
			label := string(rest[19:length])
			for end := range label {
				if label[end] == 0 {
					label = label[:end]
					break
				}
			}
			inode := uint64(0)
			for n := 7; n >= 0; n-- {
				inode = inode<<8 | uint64(rest[n])
			}
			if label != "." && label != ".." {
				found[entry{label, rest[18]}] = inode
			}
			rest = rest[length:]
		}
	}
}

func entryTypes(p place) string {
	kinds := map[byte]string{
		syscall.DT_REG: "file", syscall.DT_DIR: "directory", syscall.DT_LNK: "symlink",
		syscall.DT_FIFO: "fifo",
	}
	for each := range entries(p) {
		if kinds[each.kind] != each.name {
			return fmt.Sprintf("%s is listed as type %d", each.name, each.kind)
		}
	}
	return "as they are"
}
