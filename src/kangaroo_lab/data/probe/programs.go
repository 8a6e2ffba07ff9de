package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strings"
)

// copyOfSelf puts this program into the place, to be run from there.
func copyOfSelf(p place) string {
	source := must(os.Open("/proc/self/exe"))
	defer source.Close()
	target := must(os.OpenFile(p.path("program"), os.O_CREATE|os.O_WRONLY, 0o755))
	must(io.Copy(target, source))
	check(target.Close())
	return target.Name()
}

func childOf(program string) string {
	said, err := exec.Command(program, "hello").CombinedOutput()
	if err != nil {
		return name(err)
	}
	return strings.TrimSpace(string(said))
}

// program is one that runs until its end.
type program struct {
	command *exec.Cmd
	input   io.Closer
}

// started runs a program that has begun when this returns.
func started(path string) program {
	command := exec.Command(path, "hold", "flock", path+".lock")
	check(os.WriteFile(path+".lock", nil, 0o644))
	input, output := must(command.StdinPipe()), must(command.StdoutPipe())
	check(command.Start())
	must(bufio.NewReader(output).ReadString('\n'))
	return program{command, input}
}

func (p program) end() {
	p.input.Close()
	p.command.Wait()
}
