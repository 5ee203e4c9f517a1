// Command demo is what "make run" shows: it starts the real sidecar and the
// real scaler as two processes joined by the real socket, asks the scaler what
// KEDA would ask, and shows the answers until it is interrupted. It ends both
// by their handles, and they end with it, however it ends.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

type options struct {
	Bin     string        `default:"bin" help:"Folder with scaler, nvmlsidecar and the fake libnvidia-ml.so.1."`
	Fixture string        `env:"FIXTURE" default:"testdata/h100x8-uneven.csv" help:"Recording to play where there is no GPU."`
	RunFor  time.Duration `env:"RUN_FOR" help:"End after this time, with status 0."`
	Listen  string        `env:"LISTEN" default:"127.0.0.1:6000" help:"Address for KEDA's calls. A taken port is replaced by a free one."`
	HTTP    string        `name:"http" env:"HTTP" default:"127.0.0.1:8080" help:"Address for HTTP. A taken port is replaced by a free one."`
}

func main() {
	var o options
	kong.Parse(&o, kong.Name("demo"), kong.Description("Run sidecar and scaler on this machine and show what KEDA would be told."))
	if err := run(o); err != nil {
		fmt.Fprintf(os.Stderr, "make run: %v\n", err)
		os.Exit(1)
	}
}

func run(o options) error {
	// The kernel ends the children with the thread that started them.
	runtime.LockOSThread()
	// And us with make, which cannot pass on a kill -9.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if o.RunFor > 0 {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, o.RunFor)
		defer cancel()
	}
	dir, err := os.MkdirTemp("", "gpuscaler-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	source, environment, err := o.source(ctx)
	if err != nil || ctx.Err() != nil {
		return err
	}
	o.Listen, o.HTTP = free(o.Listen), free(o.HTTP)
	socket := filepath.Join(dir, "nvml.sock")
	scaler := start("scaler", dir, nil, filepath.Join(o.Bin, "scaler"), "serve",
		"--nvml-socket", socket, "--listen", o.Listen, "--http", o.HTTP)
	defer scaler.end()
	sidecar := start("nvmlsidecar", dir, environment, filepath.Join(o.Bin, "nvmlsidecar"),
		"--socket", socket, "--nvml-library", source.library)
	defer sidecar.end()

	view, err := newView(o, source.title)
	if err != nil {
		return err
	}
	defer view.close()
	view.live = term.IsTerminal(int(os.Stdout.Fd()))
	view.intro(os.Stdout)
	err = watch(ctx, view, scaler, sidecar)
	if view.live {
		fmt.Println()
	}
	return err
}

// watch shows the answers once a second until ctx is done or a process ends.
func watch(ctx context.Context, v *view, processes ...*process) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			v.show(ctx, os.Stdout)
		case <-processes[0].done:
			return processes[0].failure()
		case <-processes[1].done:
			return processes[1].failure()
		}
	}
}

// readings is where the sidecar's readings come from.
type readings struct{ title, library string }

// source prefers the machine's own GPUs and takes the fake driver otherwise.
func (o options) source(ctx context.Context) (readings, []string, error) {
	probe := exec.CommandContext(ctx, filepath.Join(o.Bin, "nvmlsidecar"), "--once", "--interval", "100ms", "--log-level", "error")
	if probe.Run() == nil {
		return readings{"this machine's GPUs, through NVML", "libnvidia-ml.so.1"}, nil, nil
	}
	library, err := filepath.Abs(filepath.Join(o.Bin, "libnvidia-ml.so.1"))
	if err != nil {
		return readings{}, nil, err
	}
	fixture, err := filepath.Abs(o.Fixture)
	if err != nil {
		return readings{}, nil, err
	}
	if _, err := os.Stat(fixture); err != nil {
		return readings{}, nil, fmt.Errorf("FIXTURE: %w", err)
	}
	return readings{"no GPU here; the fake driver plays " + o.Fixture, library}, []string{"FAKENVML_FIXTURE=" + fixture}, nil
}

// free is the address itself, or one with a free port if its port is taken.
func free(address string) string {
	l, err := net.Listen("tcp", address)
	if err != nil {
		host, _, splitErr := net.SplitHostPort(address)
		if splitErr != nil {
			return address
		}
		if l, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err != nil {
			return address
		}
	}
	defer l.Close()
	return l.Addr().String()
}

// process is a child with its log in a file.
type process struct {
	name, log string
	cmd       *exec.Cmd
	done      chan struct{}
	err       error
}

func start(name, dir string, environment []string, path string, args ...string) *process {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	p.cmd = exec.Command(path, args...)
	// Settings for a real node are not meant for these two.
	p.cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "GPUSCALER_") }), environment...)
	// In a group of their own, so that Ctrl-C reaches us first and they are
	// ended in order, and not without us.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	log, err := os.Create(p.log)
	if err == nil {
		p.cmd.Stderr = log
		err = p.cmd.Start()
		_ = log.Close()
	}
	if err != nil {
		p.err = err
		p.cmd = nil
		close(p.done)
		return p
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p
}

// end asks the process to stop and, after 5 s, makes it.
func (p *process) end() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// failure says why a process ended by itself, with the last of its log.
func (p *process) failure() error {
	if p.cmd == nil {
		return p.err
	}
	text := ""
	if file, err := os.Open(p.log); err == nil {
		defer file.Close()
		all, _ := io.ReadAll(io.LimitReader(file, 64<<10))
		lines := strings.Split(strings.TrimSpace(string(all)), "\n")
		text = strings.Join(lines[max(0, len(lines)-5):], "\n  ")
	}
	return fmt.Errorf("%s ended by itself (%s)\n  %s", p.name, p.cmd.ProcessState, text)
}
