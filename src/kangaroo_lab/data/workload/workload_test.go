package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func settings(t *testing.T) Settings {
	t.Helper()
	return Settings{Dir: t.TempDir(), File: "f", Size: 64 << 10, Block: 4096, Count: 20, Seed: 7}
}

func TestWritesDoTheWorkAskedFor(t *testing.T) {
	s := settings(t)
	for name, want := range map[string]int64{
		"small-writes": 20, "seq-write": 16, "random-write": 20, "metadata": 60,
	} {
		got, err := tests[name].run(s)
		if err != nil || got.Ops != want {
			t.Errorf("%s: %d operations (%v), want %d", name, got.Ops, err, want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(s.Dir, "metadata-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestReadCountsTheWholeFile(t *testing.T) {
	s := settings(t)
	if err := os.WriteFile(s.path(), make([]byte, 10000), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := sequentialRead(s)
	if err != nil || got.Bytes != 10000 || got.Ops != 3 {
		t.Errorf("read %+v (%v)", got, err)
	}
}

func TestFillAndVerifyAgreeAndFollowTheSeed(t *testing.T) {
	s := settings(t)
	filled, err := fill(s)
	if err != nil {
		t.Fatal(err)
	}
	read, err := verify(s)
	if err != nil || read.SHA256 != filled.SHA256 || read.Bytes != s.Size {
		t.Errorf("filled %+v, read %+v (%v)", filled, read, err)
	}
	s.Seed++
	if other, _ := fill(s); other.SHA256 == filled.SHA256 {
		t.Error("another seed gave the same bytes")
	}
}

func TestLimitStopsTheLoop(t *testing.T) {
	s := settings(t)
	s.Count, s.Limit = 1<<30, time.Millisecond
	got, err := smallWrites(s)
	if err != nil || got.Ops >= 1<<30 || got.Ops < 1 {
		t.Errorf("stopped after %d operations (%v)", got.Ops, err)
	}
}

func TestBadArgumentsAreRefused(t *testing.T) {
	for _, arguments := range [][]string{
		{}, {"nothing"}, {"fill", "-size", "0"}, {"fill", "extra"}, {"fill", "-limit", "-1"},
	} {
		if err := run(arguments); err == nil {
			t.Errorf("%q was accepted", arguments)
		}
	}
}
