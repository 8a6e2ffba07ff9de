package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"
)

// fallocate(2), linux/falloc.h
const (
	keepSize = 0x01
	punch    = 0x02
	collapse = 0x08
	zero     = 0x10
)

// lseek(2)
const (
	seekData = 3
	seekHole = 4
)

const (
	sysCopyFileRange = 326
	ficlone          = 0x40049409 // linux/fs.h, FICLONE
	fiemap           = 0xc020660b // linux/fiemap.h, FS_IOC_FIEMAP
	fsGetFlags       = 0x80086601 // linux/fs.h, FS_IOC_GETFLAGS
	unit             = 64 << 10
)

var spaceProbes = []probe{
	{"sparse-file", func(p place) string {
		file := p.open("a", os.O_CREATE|os.O_RDWR)
		defer file.Close()
		must(file.WriteAt([]byte("end"), 16*unit))
		check(file.Sync())
		data := make([]byte, 4096)
		must(file.ReadAt(data, 8*unit))
		found := stat(p.path("a"))
		return joined(fact("size", found.Size), fact("holes take no space", found.Blocks < 8*unit/512),
			fact("holes are zero", empty(data)))
	}},
	{"truncate-to-longer", func(p place) string {
		path := p.file("a", "one")
		check(os.Truncate(path, unit))
		return joined(fact("size", stat(path).Size), fact("tail is zero", empty(must(os.ReadFile(path))[3:])))
	}},
	{"truncate-to-shorter-and-back", func(p place) string {
		path := p.file("a", "one two")
		check(os.Truncate(path, 3))
		check(os.Truncate(path, 7))
		return fmt.Sprintf("%q", content(path))
	}},
	{"offset-beyond-4-GiB", func(p place) string {
		file := p.open("a", os.O_CREATE|os.O_RDWR)
		defer file.Close()
		must(file.WriteAt([]byte("end"), 5<<30))
		data := make([]byte, 3)
		must(file.ReadAt(data, 5<<30))
		check(file.Sync())
		return joined(fact("size", stat(p.path("a")).Size), string(data))
	}},
	{"allocate", func(p place) string {
		return allocated(p, 0, 0, 2*unit, func(file *os.File) string {
			return fact("size", stat(file.Name()).Size)
		})
	}},
	{"allocate-keeping-the-size", func(p place) string {
		return allocated(p, keepSize, 0, 2*unit, func(file *os.File) string {
			return fact("size", stat(file.Name()).Size)
		})
	}},
	{"punch-hole", func(p place) string {
		return allocated(p, punch|keepSize, unit/4, unit/2, holes)
	}},
	{"zero-range", func(p place) string {
		return allocated(p, zero|keepSize, unit/4, unit/2, holes)
	}},
	{"collapse-range", func(p place) string {
		return allocated(p, collapse, unit/4, unit/2, holes)
	}},
	{"seek-hole-and-data", func(p place) string {
		file := p.open("a", os.O_CREATE|os.O_RDWR)
		defer file.Close()
		must(file.WriteAt(bytes.Repeat([]byte("x"), unit), 0))
		must(file.WriteAt(bytes.Repeat([]byte("x"), unit), 8*unit))
		check(file.Sync())
		hole, holeError := file.Seek(0, seekHole)
		data, dataError := file.Seek(4*unit, seekData)
		return joined(fact("hole", fmt.Sprint(hole, " ", name(holeError))),
			fact("data", fmt.Sprint(data, " ", name(dataError))))
	}},
	{"copy-file-range", func(p place) string {
		p.file("a", string(bytes.Repeat([]byte("0123456789abcdef"), 8192)))
		from, to := p.open("a", os.O_RDONLY), p.open("b", os.O_CREATE|os.O_RDWR)
		defer from.Close()
		defer to.Close()
		copied, _, errno := syscall.Syscall6(
			sysCopyFileRange, from.Fd(), 0, to.Fd(), 0, 131072, 0)
		if errno != 0 {
			return name(errno)
		}
		same := bytes.Equal(must(os.ReadFile(p.path("a")))[:copied], must(os.ReadFile(p.path("b"))))
		return joined("ok", fact("some copied", copied > 0), fact("same", same))
	}},
	{"clone", func(p place) string {
		p.file("a", string(bytes.Repeat([]byte("x"), 65536)))
		from, to := p.open("a", os.O_RDONLY), p.open("b", os.O_CREATE|os.O_RDWR)
		defer from.Close()
		defer to.Close()
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, to.Fd(), ficlone, from.Fd())
		return name(succeeded(errno))
	}},
	{"extent-map", func(p place) string {
		p.file("a", "one")
		file := p.open("a", os.O_RDONLY)
		defer file.Close()
		var request [32]byte
		return name(ioctl(file, fiemap, unsafe.Pointer(&request)))
	}},
	{"inode-flags", func(p place) string {
		p.file("a", "one")
		file := p.open("a", os.O_RDONLY)
		defer file.Close()
		var flags uint64
		return name(ioctl(file, fsGetFlags, unsafe.Pointer(&flags)))
	}},
}

// allocated calls fallocate(2) on a file of one unit of text.
func allocated(
	p place, mode uint32, offset, length int64, after func(*os.File) string,
) string {
	file := p.open("a", os.O_CREATE|os.O_RDWR)
	defer file.Close()
	must(file.Write(bytes.Repeat([]byte("x"), unit)))
	check(file.Sync())
	if err := syscall.Fallocate(int(file.Fd()), mode, offset, length); err != nil {
		return name(err)
	}
	return joined("ok", after(file))
}

// holes says where the zeros of a file are.
func holes(file *os.File) string {
	check(file.Sync())
	data := must(io.ReadAll(io.NewSectionReader(file, 0, 1<<40)))
	first, last := bytes.IndexByte(data, 0), bytes.LastIndexByte(data, 0)
	return fmt.Sprintf("size %d, zeros from %d to %d", len(data), first, last+1)
}

func empty(data []byte) bool { return len(bytes.Trim(data, "\x00")) == 0 }
