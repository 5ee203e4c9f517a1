// Package process runs programs that must not outlive the one that started
// them: each has a log file, is ended by its own handle, and is killed by the
// kernel should its parent die first.
package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stopGrace is how long a program may take to end after SIGTERM.
const stopGrace = 10 * time.Second

// Group is a number of programs with their logs in one folder.
type Group struct {
	logs string

	mu      sync.Mutex
	started []*Process
}

// NewGroup keeps logs in a folder, which must exist.
func NewGroup(logs string) *Group { return &Group{logs: logs} }

// Spec is a program to run.
type Spec struct {
	// Name is that of the log file.
	Name string
	Path string
	Args []string
	// Env is added to the few variables that every program gets (PATH, HOME).
	Env []string
	Dir string
}

// Process is a program that was started.
type Process struct {
	Name string
	Log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid when done is closed
}

// starts are run by one thread for ever: the kernel ties the parent-death signal to the
// thread that forked, and Go ends threads as it likes.
var starts = sync.OnceValue(func() chan<- func() {
	c := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range c {
			f()
		}
	}()
	return c
})

// Start starts a program. Its output goes to a log file, after what a program
// of that name wrote before.
func (g *Group) Start(s Spec) (*Process, error) {
	path := filepath.Join(g.logs, s.Name+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the child has its own
	c := exec.Command(s.Path, s.Args...)
	c.Dir = s.Dir
	c.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, s.Env...)
	c.Stdout, c.Stderr = log, log
	// A group of its own: Ctrl-C is for the parent, which ends its children in order.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	result := make(chan error)
	starts() <- func() { result <- c.Start() }
	if err := <-result; err != nil {
		return nil, fmt.Errorf("starting %s: %w", s.Name, err)
	}
	p := &Process{Name: s.Name, Log: path, cmd: c, done: make(chan struct{})}
	go func() {
		p.err = c.Wait()
		close(p.done)
	}()
	g.mu.Lock()
	defer g.mu.Unlock()
	// It takes the place of one of its name that has ended, so that it ends after
	// those that need it.
	if i := slices.IndexFunc(g.started, func(old *Process) bool { return old.Name == s.Name && old.Ended() != nil }); i >= 0 {
		g.started[i] = p
	} else {
		g.started = append(g.started, p)
	}
	return p, nil
}

// Stop ends all programs, the last started first.
func (g *Group) Stop() error {
	g.mu.Lock()
	started := g.started
	g.started = nil
	g.mu.Unlock()
	var errs []error
	for i := len(started) - 1; i >= 0; i-- {
		errs = append(errs, started[i].Stop())
	}
	return errors.Join(errs...)
}

// Pid is the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stop ends the program with SIGTERM, or with SIGKILL when that takes too
// long, which is an error. A program that has ended already is none.
func (p *Process) Stop() error { return p.StopWithin(stopGrace) }

// StopWithin is Stop with another time until the program is killed.
func (p *Process) StopWithin(grace time.Duration) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails when it has ended
	select {
	case <-p.done:
		return nil
	case <-time.After(grace):
		p.Kill()
		return fmt.Errorf("%s did not end within %s of SIGTERM and was killed", p.Name, grace)
	}
}

// Kill ends the program at once and waits for it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // fails when it has ended
	<-p.done
}

// Signal sends a signal.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Ended says how the program ended, nil while it runs.
func (p *Process) Ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended (%v); the end of its log:\n%s", p.Name, p.cmd.ProcessState, p.Tail(15))
	default:
		return nil
	}
}

// Tail is the end of the log.
func (p *Process) Tail(lines int) string {
	text, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
