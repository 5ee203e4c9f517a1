// Command nvmlsidecar reads the node's GPUs through NVML and writes the
// readings to the scaler's Unix socket. It has no listener and reads nothing
// from anybody: it is the only process of gpuscaler that runs C code.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"gpuscaler/nvmlsidecar/nvml"
	"gpuscaler/nvmlsidecar/sampler"
	"gpuscaler/shared/fixture"
	"gpuscaler/shared/snapshot"
	"gpuscaler/shared/snapshotpb"
	"gpuscaler/shared/stream"
)

// version is set by the linker.
var version = "dev"

const program = "nvmlsidecar"

// commands are what the program does; all share the flags.
type commands struct {
	command

	Read    struct{}         `cmd:"" default:"1" help:"Read the GPUs and write to the scaler (the default)."`
	Doctor  doctorCommand    `cmd:"" help:"Print what of the driver works here, line by line, with what to do about the rest. The exit status is 1 if scaling would not work. With --record it writes ten readings, too."`
	Version kong.VersionFlag `env:"-" help:"Print the version and exit."`
}

type command struct {
	Socket           string        `default:"/run/gpuscaler/nvml.sock" help:"Unix socket of the scaler. Empty: none."`
	Interval         time.Duration `default:"1s" help:"Time between two readings, 100ms to 1m."`
	NVMLLibrary      string        `name:"nvml-library" placeholder:"PATH" help:"The driver's library. Default: libnvidia-ml.so.1, as the dynamic linker finds it."`
	Record           string        `placeholder:"FILE" help:"Write the readings to this new file as a fixture."`
	Once             bool          `help:"Print one reading as JSON and exit. Takes one interval, because rates need two."`
	HangTimeout      time.Duration `default:"30s" help:"Exit when a call into the driver takes longer, so that the process is restarted; 1s at least."`
	ContainerTimeout time.Duration `default:"0s" help:"Exit when only a new container can help for that long: no driver, no right to open it, or a MIG layout younger than the container; 0s: never. The image sets it to 2m."`
	LogFormat        string        `enum:"text,json" default:"text" help:"How log lines look: ${enum}."`
	LogLevel         string        `enum:"debug,info,warn,error" default:"info" help:"The least level logged: ${enum}."`
}

func main() { os.Exit(run(os.Args[1:])) }

// run is main with an exit status: 0 after a clean end, 1 when something
// failed, 2 for a wrong command line.
func run(args []string) int {
	var c commands
	parser := kong.Must(&c,
		kong.Name(program),
		kong.Description("Reads GPUs through NVML and writes to gpuscaler's scaler. Every flag can also be set in the environment."),
		kong.DefaultEnvars("GPUSCALER"),
		kong.Vars{"version": version},
	)
	parsed, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", program, err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if parsed.Command() == "doctor" {
		err = c.Doctor.run(ctx, &c.command)
	} else {
		err = c.run(ctx)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", program, err)
		return 1
	}
	return 0
}

// Validate is called by kong.
func (c *command) Validate() error {
	if c.Interval < 100*time.Millisecond || c.Interval > time.Minute {
		return fmt.Errorf("--interval: %v is outside 100ms to 1m", c.Interval)
	}
	if c.HangTimeout < time.Second {
		return fmt.Errorf("--hang-timeout: %v is less than 1s", c.HangTimeout)
	}
	if c.ContainerTimeout != 0 && c.ContainerTimeout < time.Second {
		return fmt.Errorf("--container-timeout: %v is less than 1s, and not 0s", c.ContainerTimeout)
	}
	if c.Socket == "" && c.Record == "" && !c.Once {
		return errors.New("--socket and --record are both empty, there is nothing to do")
	}
	return nil
}

func (c *command) run(ctx context.Context) error {
	if !c.Once {
		c.logger().Info("started", "version", version, "interval", c.Interval, "hang_timeout", c.HangTimeout)
	}
	driver := nvml.New(nvml.Options{Library: c.NVMLLibrary, ContainerTimeout: c.ContainerTimeout, Log: c.logger()})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go driver.ReadSlow(ctx, c.Interval)

	consumers, err := c.consumers(ctx, cancel, driver)
	if err != nil {
		return err
	}
	s := &sampler.Sampler{Reader: driver, Interval: c.Interval, HangTimeout: c.HangTimeout, Writer: program, Version: version}
	var failed error
	err = s.Run(ctx, func(sample *snapshot.Sample) {
		for _, consume := range consumers {
			if err := consume(sample); err != nil && failed == nil {
				failed = err
				cancel()
			}
		}
	})
	// The driver is not closed here: a call into it may be in progress or hang,
	// and the process ends anyway.
	return errors.Join(err, failed)
}

// consumers are what the samples are for: the socket, a recording, or to be
// printed once.
func (c *command) consumers(ctx context.Context, done func(), driver *nvml.Driver) ([]func(*snapshot.Sample) error, error) {
	if c.Once {
		return []func(*snapshot.Sample) error{second(func(s *snapshot.Sample) error {
			done()
			return show(s)
		})}, nil
	}
	var all []func(*snapshot.Sample) error
	if c.Socket != "" {
		out := stream.New(c.Socket, max(c.Interval, time.Second), c.logger())
		go out.Run(ctx)
		all = append(all, func(s *snapshot.Sample) error { out.Send(s); return nil })
	}
	if c.Record != "" {
		record, err := recordTo(c.Record, c.Interval, driver)
		if err != nil {
			return nil, err
		}
		all = append(all, second(record))
	}
	return all, nil
}

// second passes on from the second sample: rates and activities are
// differences, which the first has none of. An error ends the waiting.
func second(consume func(*snapshot.Sample) error) func(*snapshot.Sample) error {
	n := 0
	return func(s *snapshot.Sample) error {
		if n++; n < 2 && s.Error == "" {
			return nil
		}
		return consume(s)
	}
}

func show(s *snapshot.Sample) error {
	out, err := snapshotpb.JSON(s)
	if err != nil {
		return err
	}
	_, err = fmt.Println(string(out))
	return err
}

// recordTo writes samples to a new file, which it creates at once, so that a
// path that cannot be written is known before hours of recording.
func recordTo(path string, interval time.Duration, driver *nvml.Driver) (func(*snapshot.Sample) error, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // a recording is for everybody
	if err != nil {
		return nil, fmt.Errorf("--record: %w", err)
	}
	var w *fixture.Writer
	return func(s *snapshot.Sample) error {
		if len(s.Devices) == 0 {
			return nil // the header is for when the driver is there to be asked
		}
		if w == nil {
			kernel, library := driver.Versions()
			var err error
			if w, err = fixture.NewWriter(file, []string{
				"provenance: recorded",
				"recorded by: " + program + " " + version,
				"recorded at: " + time.Now().UTC().Format(time.RFC3339),
				"driver: " + kernel + ", NVML " + library,
				"interval: " + interval.String(),
				"load: not said (describe it here)",
			}); err != nil {
				return fmt.Errorf("--record: %w", err)
			}
		}
		if err := w.Write(s); err != nil {
			return fmt.Errorf("--record: %w", err)
		}
		return nil
	}, nil
}

func (c *command) logger() *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.LogLevel)) // kong allows nothing else
	options := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}
