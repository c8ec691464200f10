// Command peer drives the reference Hysteria 2 library for the interop tests
// and the paired benches. It speaks JSON lines: the first line on stdin is the
// configuration, each further line one command; answers and events leave on
// stdout. It ends when stdin closes, so a test that dies leaves nothing behind.
// README.md beside this directory is the contract.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes. A peer that ends because it was told to (quit, end of stdin,
// SIGTERM) exits with exitDone.
const (
	exitDone    = 0
	exitUsage   = 2
	exitStartup = 3
)

// mode is one subcommand. It reads its configuration from in, prints the ready
// event, serves commands and returns when ctx ends or stdin does.
type mode func(ctx context.Context, in *input, out *output) error

var modes = map[string]mode{
	"server": runServer,
	"client": runClient,
	"raw":    runRaw,
	"origin": runOrigin,
	"fan":    runFan,
}

func main() {
	// The library prints a paragraph to stderr whenever the kernel grants less
	// than 8 MB of socket buffer; the stats command reports what was granted.
	_ = os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	if len(args) != 1 || modes[args[0]] == nil {
		fmt.Fprintln(os.Stderr, "usage: peer server|client|raw|origin|fan   (configuration: one JSON line on stdin)")
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	out := newOutput(os.Stdout)
	if err := modes[args[0]](ctx, newInput(os.Stdin), out); err != nil {
		out.emit("failed", fields{"error": describe(err)})
		if _, ok := err.(usageError); ok {
			return exitUsage
		}
		return exitStartup
	}
	return exitDone
}
