package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const posixFadvDontNeed = 4

// clock measures a loop and says when its time is up.
type clock struct {
	start time.Time
	limit time.Duration
}

func startClock(limit time.Duration) clock { return clock{time.Now(), limit} }

func (c clock) expired() bool {
	return c.limit > 0 && time.Since(c.start) >= c.limit
}

func (c clock) seconds() float64 { return time.Since(c.start).Seconds() }

func (s Settings) path() string { return filepath.Join(s.Dir, s.File) }

// block returns n reproducible bytes.
func block(seed int64, n int) []byte {
	data := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(data)
	return data
}

func smallWrites(s Settings) (Result, error) {
	return timedWrites(s, os.O_APPEND, func(file *os.File, data []byte) error {
		_, err := file.Write(data)
		return err
	}, s.Count)
}

func sequentialWrite(s Settings) (Result, error) {
	blocks := int((s.Size + int64(s.Block) - 1) / int64(s.Block))
	return timedWrites(s, 0, func(file *os.File, data []byte) error {
		_, err := file.Write(data)
		return err
	}, blocks)
}

func randomWrite(s Settings) (Result, error) {
	places := s.Size / int64(s.Block)
	if places < 1 {
		return Result{}, errors.New("-size is smaller than -block")
	}
	order := rand.New(rand.NewSource(s.Seed))
	return timedWrites(s, 0, func(file *os.File, data []byte) error {
		_, err := file.WriteAt(data, order.Int63n(places)*int64(s.Block))
		return err
	}, s.Count)
}

// timedWrites creates the file anew, calls write up to count times, and counts
// the fsync that follows as part of the work.
func timedWrites(
	s Settings, flags int, write func(*os.File, []byte) error, count int,
) (Result, error) {
	file, err := os.OpenFile(s.path(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY|flags, 0o644)
	if err != nil {
		return Result{}, err
	}
	defer file.Close()
	data := block(s.Seed, s.Block)
	var done int
	clock := startClock(s.Limit)
	for done < count && !clock.expired() {
		if err := write(file, data); err != nil {
			return Result{}, err
		}
		done++
	}
	if err := file.Sync(); err != nil {
		return Result{}, err
	}
	return Result{
		Ops: int64(done), Bytes: int64(done) * int64(s.Block), Seconds: clock.seconds(),
	}, file.Close()
}

func sequentialRead(s Settings) (Result, error) {
	file, err := os.Open(s.path())
	if err != nil {
		return Result{}, err
	}
	defer file.Close()
	_, _, errno := syscall.Syscall6(
		syscall.SYS_FADVISE64, file.Fd(), 0, 0, posixFadvDontNeed, 0, 0)
	if errno != 0 {
		return Result{}, fmt.Errorf("posix_fadvise %s: %w", s.path(), errno)
	}
	data := make([]byte, s.Block)
	var result Result
	clock := startClock(s.Limit)
	for !clock.expired() {
		n, err := io.ReadFull(file, data)
		result.Bytes += int64(n)
		if n > 0 {
			result.Ops++
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return Result{}, err
		}
	}
	result.Seconds = clock.seconds()
	return result, nil
}

// metadata makes -count empty files in a directory of its own, stats each, and
// removes each. Every one of the three is one operation.
func metadata(s Settings) (Result, error) {
	dir, err := os.MkdirTemp(s.Dir, "metadata-")
	if err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(dir)
	var ops int64
	clock := startClock(s.Limit)
	for n := 0; n < s.Count && !clock.expired(); n++ {
		name := filepath.Join(dir, fmt.Sprintf("file-%06d", n))
		if err := createStatUnlink(name); err != nil {
			return Result{}, err
		}
		ops += 3
	}
	return Result{Ops: ops, Seconds: clock.seconds()}, nil
}

func createStatUnlink(name string) error {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	if _, err := os.Stat(name); err != nil {
		return err
	}
	return os.Remove(name)
}

func fill(s Settings) (Result, error) {
	file, err := os.OpenFile(s.path(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return Result{}, err
	}
	defer file.Close()
	sum := sha256.New()
	clock := startClock(0)
	source := io.LimitReader(rand.New(rand.NewSource(s.Seed)), s.Size)
	written, err := io.CopyBuffer(
		struct{ io.Writer }{io.MultiWriter(file, sum)}, source, make([]byte, s.Block))
	if err != nil {
		return Result{}, err
	}
	if err := file.Sync(); err != nil {
		return Result{}, err
	}
	return Result{
		Ops: 1, Bytes: written, Seconds: clock.seconds(), SHA256: hex.EncodeToString(sum.Sum(nil)),
	}, file.Close()
}

func verify(s Settings) (Result, error) {
	file, err := os.Open(s.path())
	if err != nil {
		return Result{}, err
	}
	defer file.Close()
	sum := sha256.New()
	clock := startClock(0)
	read, err := io.CopyBuffer(struct{ io.Writer }{sum}, file, make([]byte, s.Block))
	if err != nil {
		return Result{}, err
	}
	return Result{
		Ops: 1, Bytes: read, Seconds: clock.seconds(), SHA256: hex.EncodeToString(sum.Sum(nil)),
	}, nil
}
