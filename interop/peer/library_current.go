//go:build !core210

package main

import (
	"github.com/apernet/hysteria/core/v2/client"
	"github.com/apernet/hysteria/core/v2/server"
	"github.com/apernet/quic-go"
)

// hasParrot says that this library can look like Chrome.
const hasParrot = true

// The fields below do not exist in core 2.10; library_210.go is the other half.

func tuneServer(config *server.Config, disableGSO bool, key *quic.StatelessResetKey) error {
	config.StatelessResetKey = key
	config.QUICConfig.DisableGSO = disableGSO
	return nil
}

func tuneClient(config *client.Config, parrot, disableGSO bool) error {
	config.QUICConfig.DisableChromeParrot = !parrot
	config.QUICConfig.DisableGSO = disableGSO
	return nil
}

func tuneRaw(transport *quic.Transport, config *quic.Config, parrot bool) {
	config.ChromeParrot = parrot
	if parrot {
		transport.ConnectionIDGenerator = quic.ZeroLengthConnectionIDGenerator{}
	}
}
