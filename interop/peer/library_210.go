//go:build core210

package main

import (
	"github.com/apernet/hysteria/core/v2/client"
	"github.com/apernet/hysteria/core/v2/server"
	"github.com/apernet/quic-go"
)

// hasParrot: core 2.10 predates the Chrome parrot.
const hasParrot = false

func tuneServer(_ *server.Config, disableGSO bool, key *quic.StatelessResetKey) error {
	if disableGSO || key != nil {
		return usage("core 2.10 has neither quic.disable_gso nor fixed_reset_key")
	}
	return nil
}

func tuneClient(_ *client.Config, _, disableGSO bool) error {
	if disableGSO {
		return usage("core 2.10 has no quic.disable_gso")
	}
	return nil
}

func tuneRaw(*quic.Transport, *quic.Config, bool) {}
