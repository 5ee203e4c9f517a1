package binaries

import (
	"context"
	"fmt"
	"os"
	"os/exec"
)

// Product builds what ships, and the fake driver, into a folder by the command
// that makes it: "make build" in the repository's root.
func Product(ctx context.Context, repo, to string) error {
	c := exec.CommandContext(ctx, "make", "-C", repo, "build", "BIN="+to, "VERSION=e2e")
	// This module's settings are not the product's.
	c.Env = append(os.Environ(), "GOWORK=off", "MAKEFLAGS=")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("make build: %w\n%s", err, out)
	}
	return nil
}
