package main

import (
	"os"
	"syscall"
	"unsafe"
)

// What the standard library does not have, for x86-64.

const atFdCwd = 0xffffffffffffff9c // -100

func syscallPaths(number uintptr, from, to string, flags uintptr) syscall.Errno {
	a, b := must(syscall.BytePtrFromString(from)), must(syscall.BytePtrFromString(to))
	_, _, errno := syscall.Syscall6(number, atFdCwd, uintptr(unsafe.Pointer(a)), atFdCwd,
		uintptr(unsafe.Pointer(b)), flags, 0)
	return errno
}

func ioctl(file *os.File, request uintptr, argument unsafe.Pointer) error {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, file.Fd(), request, uintptr(argument))
	return succeeded(errno)
}

func fcntl(file *os.File, command, argument uintptr) (uintptr, error) {
	result, _, errno := syscall.Syscall(syscall.SYS_FCNTL, file.Fd(), command, argument)
	return result, succeeded(errno)
}

func succeeded(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}
