// Command scaler is gpuscaler's part without C: it takes the readings of the
// node's readers, or a recording, and answers KEDA. This file and serve.go are
// the only ones that know all the parts.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// version is set by the linker.
var version = "dev"

type commands struct {
	Serve        serveCommand        `cmd:"" help:"Answer KEDA from this node's readers, or from a recording."`
	PodResources podresourcesCommand `cmd:"" name:"podresources" help:"Tell the scaler which pods hold which GPUs, from the kubelet."`
	Version      kong.VersionFlag    `env:"-" help:"Print the version and exit."`
}

type logOptions struct {
	Format string `name:"log-format" enum:"text,json" default:"text" help:"How log lines look: ${enum}."`
	Level  string `name:"log-level" enum:"debug,info,warn,error" default:"info" help:"The least level logged: ${enum}."`
}

func (o logOptions) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(o.Level)) // kong allows nothing else
	options := &slog.HandlerOptions{Level: level}
	if o.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

func main() { os.Exit(run(os.Args[1:])) }

// run is main with an exit status: 0 after a clean end, 1 when something
// failed, 2 for a wrong command line.
func run(args []string) int {
	var cli commands
	parser := kong.Must(&cli,
		kong.Name("scaler"),
		kong.Description("KEDA external scaler for GPU workloads. Every flag can also be set in the environment."),
		kong.DefaultEnvars("GPUSCALER"),
		kong.Vars{"version": version},
	)
	parsed, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "scaler: %v\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	parsed.BindTo(ctx, (*context.Context)(nil))
	if err := parsed.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "scaler: %v\n", err)
		return 1
	}
	return 0
}
