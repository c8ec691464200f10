package main

import (
	"context"
	"time"

	"github.com/apernet/hysteria/extras/v2/outbounds/speedtest"
)

// speedtestTarget is the destination that the reference serves itself.
const speedtestTarget = speedtestHost + ":0"

type speedtestArgs struct {
	Bytes      uint32 `json:"bytes"`       // size mode
	DurationMS uint64 `json:"duration_ms"` // time mode when set
}

func (u *user) speedtestDownload(ctx context.Context, a speedtestArgs) (any, error) {
	return u.speedtest(ctx, a, (*speedtest.Client).Download)
}

func (u *user) speedtestUpload(ctx context.Context, a speedtestArgs) (any, error) {
	return u.speedtest(ctx, a, (*speedtest.Client).Upload)
}

type speedtestRun func(c *speedtest.Client, size uint32, d time.Duration, report func(time.Duration, uint64, bool)) error

// speedtest runs the reference's own speed test client and returns its totals.
func (u *user) speedtest(ctx context.Context, a speedtestArgs, run speedtestRun) (any, error) {
	conn, err := u.open(ctx, speedtestTarget)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// The report function is called from two goroutines, the final report only
	// from this one.
	var total fields
	err = run(&speedtest.Client{Conn: conn}, a.Bytes, time.Duration(a.DurationMS)*time.Millisecond,
		func(d time.Duration, bytes uint64, done bool) {
			if done {
				total = fields{"bytes": bytes, "transfer_ms": float64(d.Microseconds()) / 1000}
			}
		})
	return total, err
}
