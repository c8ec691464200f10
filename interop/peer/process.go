package main

import (
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
)

// processStats is what this process used so far, for the paired benches.
func processStats() fields {
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return fields{
		"pid":          os.Getpid(),
		"cpu_user_s":   float64(ru.Utime.Nano()) / 1e9,
		"cpu_system_s": float64(ru.Stime.Nano()) / 1e9,
		"max_rss_kib":  ru.Maxrss,
		"goroutines":   runtime.NumGoroutine(),
		"gomaxprocs":   runtime.GOMAXPROCS(0),
	}
}

// coreVersion is the version of the reference library in this binary.
func coreVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if dep.Path == "github.com/apernet/hysteria/core/v2" {
				return dep.Version
			}
		}
	}
	return "unknown"
}

// grantedBuffers reads what the kernel granted for a UDP socket, in the
// kernel's own (doubled) accounting.
func grantedBuffers(conn *net.UDPConn) fields {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil
	}
	f := fields{}
	_ = raw.Control(func(fd uintptr) {
		if n, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF); err == nil {
			f["rcvbuf"] = n
		}
		if n, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF); err == nil {
			f["sndbuf"] = n
		}
	})
	return f
}
