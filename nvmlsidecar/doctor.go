package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"gpuscaler/nvmlsidecar/doctor"
	"gpuscaler/nvmlsidecar/nvml"
)

// doctorCommand is for a person on a node, or in the container.
type doctorCommand struct {
	Output string `short:"o" enum:"text,json" default:"text" help:"${enum}; with json nothing else is on standard output."`
}

// smiTimeout bounds nvidia-smi, which can hang on a broken driver.
const smiTimeout = 20 * time.Second

// errUnfit is that scaling would not work: the lines say why.
var errUnfit = errors.New("scaling would not work here")

// run examines, and prints what it finds. The error is errUnfit, or that it cannot be printed.
func (c *doctorCommand) run(ctx context.Context, shared *command) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	driver := nvml.New(nvml.Options{Library: shared.NVMLLibrary, Log: log})
	examined := make(chan *nvml.Examination, 1)
	go func() { examined <- driver.Examine() }()
	var x *nvml.Examination
	select {
	case x = <-examined:
	case <-ctx.Done(): // the call into the driver cannot be interrupted, and the process ends anyway
		return ctx.Err()
	case <-time.After(2 * shared.HangTimeout):
		return fmt.Errorf("a call into the driver has not returned for %v: see the kernel's log for what it waits for", 2*shared.HangTimeout)
	}
	around := &doctor.Around{Version: version, UID: os.Getuid(), Files: deviceFiles()}
	around.SMI, around.SMIError = askSMI(ctx)
	report := doctor.Examine(x, around)
	if err := c.print(report); err != nil {
		return err
	}
	if shared.Record != "" {
		if err := record(ctx, shared.Record, driver); err != nil {
			return err
		}
	}
	if !report.Works {
		return errUnfit
	}
	return nil
}

func (c *doctorCommand) print(r *doctor.Report) error {
	if c.Output == "json" {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		return out.Encode(r)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, l := range r.Lines {
		fmt.Fprintf(w, "%s\t%s\t%s\n", strings.ToUpper(string(l.Status)), l.Check, l.Detail)
		if l.Remedy != "" {
			fmt.Fprintf(w, "\t\t-> %s\n", l.Remedy)
		}
	}
	return w.Flush()
}

// record writes ten readings, a second apart.
func record(ctx context.Context, path string, driver *nvml.Driver) error {
	write, err := recordTo(path, time.Second, driver)
	if err != nil {
		return err
	}
	for range 10 {
		s, err := driver.Read(time.Now())
		if err == nil && s.Error != "" {
			err = errors.New(s.Error)
		}
		if err == nil {
			err = write(s)
		}
		if err != nil {
			return fmt.Errorf("--record: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
	return nil
}

// deviceFiles are those of the driver, with why each cannot be opened, or "".
func deviceFiles() map[string]string {
	names, _ := filepath.Glob("/dev/nvidia*")
	files := map[string]string{}
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil || info.IsDir() || filepath.Base(name) == "nvidia-modeset" {
			continue
		}
		files[name] = ""
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			files[name] = err.Error()
			continue
		}
		_ = f.Close()
	}
	return files
}

func askSMI(ctx context.Context) (map[string]doctor.SMI, string) {
	path, err := exec.LookPath("nvidia-smi")
	if err != nil {
		return nil, ""
	}
	limited, cancel := context.WithTimeout(ctx, smiTimeout)
	defer cancel()
	out, err := exec.CommandContext(limited, path, "--query-gpu="+doctor.SMIQuery, "--format=csv,noheader,nounits").Output()
	if err != nil {
		return nil, fmt.Sprintf("%s: %v", path, err)
	}
	all, err := doctor.ParseSMI(string(out))
	if err != nil {
		return nil, err.Error()
	}
	return all, ""
}
