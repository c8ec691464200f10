package main

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"
)

const secret = "a secret of the tests"

// pair starts a server and a client that trusts it by pin.
func pair(t *testing.T, server, client fields) (*peer, *peer) {
	t.Helper()
	s := spawn(t, "server", with(fields{"password": secret}, server))
	return s, spawn(t, "client", toServer(s, client))
}

func toServer(s *peer, extra fields) fields {
	return with(fields{
		"server": s.ready["addr"], "auth": secret,
		"tls": fields{"sni": "localhost", "insecure": true, "pin": s.ready["pin"]},
	}, extra)
}

func with(base, extra fields) fields {
	for k, v := range extra {
		base[k] = v
	}
	return base
}

func TestTCPCommands(t *testing.T) {
	o := spawn(t, "origin", fields{})
	s, c := pair(t, nil, nil)
	info := c.ok("connect", nil)
	want(t, "udp", info["udp"].(bool), true)
	want(t, "tx", number(t, info, "tx"), 0)
	s.event("auth", func(e map[string]any) bool { return e["accepted"] == true })
	s.event("connect", func(e map[string]any) bool { return e["user"] == "user" })

	echo := fields{"addr": o.ready["echo"], "bytes": 3 << 20, "seed": 7}
	want(t, "echoed", number(t, c.ok("tcp_echo", echo), "bytes"), 3<<20)
	s.event("tcp_request", func(e map[string]any) bool { return e["target"] == o.ready["echo"] })
	s.event("tcp_end", func(e map[string]any) bool { return e["error"] == nil })

	down := c.ok("tcp_download", fields{"addr": o.ready["source"], "bytes": 8 << 20, "seed": 3})
	up := c.ok("tcp_upload", fields{"addr": o.ready["sink"], "bytes": 8 << 20, "seed": 3})
	want(t, "sums", down["sha256"], up["remote_sha256"])
	c.ok("tcp_download", fields{"addr": o.ready["source"], "bytes": 1 << 20, "hash": false, "pause_after": 1000, "pause_ms": 50})
	slow := c.ok("tcp_upload", fields{"addr": o.ready["sink"], "bytes": 100})
	want(t, "small upload", number(t, slow, "remote_bytes"), 100)

	streams := 1000
	if testing.Short() { // for the race detector, which is some 20 times slower
		streams = 100
	}
	many := c.ok("many_streams", fields{"addr": o.ready["echo"], "n": streams, "bytes": 2000, "warm_up": true})
	want(t, "completed", number(t, many, "completed"), float64(streams))
	c.ok("sequential", fields{"addr": o.ready["echo"], "n": 200, "bytes": 100})

	spoke := c.ok("server_speaks", fields{"addr": o.ready["banner"], "bytes": len(bannerText)})
	want(t, "banner", spoke["text"], any(bannerText))
	c.ok("zero_bytes", fields{"addr": o.ready["echo"], "n": 10})
	c.ok("server_speaks", fields{"addr": o.ready["closer"]})
	c.ok("dial", fields{"addr": o.ready["silent"]})

	c.fails("dial", fields{"addr": o.ready["refused"]}, "dial", "connection refused")
	c.fails("dial", fields{"addr": "nowhere.invalid:80"}, "dial", "lookup nowhere.invalid")
	c.fails("dial", fields{"addr": "192.0.2.1:80"}, "dial", "not a loopback address")
	c.fails("tcp_echo", fields{"addr": o.ready["resetter"], "bytes": 10}, "other", "")
	c.fails("dial", fields{"adr": "typo"}, "usage", "unknown field")
	c.fails("no_such", nil, "usage", "unknown command")
	c.fails("dial", fields{"addr": o.ready["silent"], "read": true, "timeout_ms": 200}, "timeout", "")

	stats := s.ok("stats", nil)
	if rx := number(t, stats, "traffic", "user", "rx"); rx < 12<<20 {
		t.Fatalf("the traffic logger counted %v bytes", rx)
	}
	waitNumber(t, 0, func() float64 { return number(t, o.ok("stats", nil), "ports", "echo", "open") })
	c.ok("close", nil)
	s.event("disconnect", nil)
	c.fails("dial", fields{"addr": o.ready["echo"]}, "closed", "")
}

func TestStalledTarget(t *testing.T) {
	o := spawn(t, "origin", fields{"hash": false})
	_, c := pair(t, nil, nil)
	stall := fields{"addr": o.ready["stall"], "bytes": 4 << 20, "first": 1000, "stall_ms": 500}
	r := c.ok("tcp_upload", stall)
	want(t, "bytes", number(t, r, "remote_bytes"), 4<<20)
	if ms := number(t, r, "transfer_ms"); ms < 500 {
		t.Fatalf("the target did not stall: %v ms", ms)
	}
}

func TestFastOpen(t *testing.T) {
	o := spawn(t, "origin", fields{})
	_, c := pair(t, fields{"outbound": fields{"dial_delay_ms": 300}}, fields{"fast_open": true})
	c.ok("connect", nil)
	early := c.ok("early_data", fields{"addr": o.ready["echo"], "bytes": 5000, "seed": 1})
	if ms := number(t, early, "open_ms"); ms > 200 {
		t.Fatalf("the open waited %v ms", ms)
	}
	c.ok("dial", fields{"addr": o.ready["refused"]})
	c.fails("dial", fields{"addr": o.ready["refused"], "read": true}, "dial", "connection refused")
}

func TestUDPCommands(t *testing.T) {
	o := spawn(t, "origin", fields{})
	s, c := pair(t, fields{"udp_idle_timeout_ms": 2000}, nil)
	target := o.ready["udp_echo"].([]any)[0].(string)
	largest := 4096 - 8 - 1 - len(target)
	r := c.ok("udp_echo", fields{"addr": target, "sizes": []int{1, 2, 100, 1100, 1200, 1400, 2000, 4000, largest}, "count": 3})
	want(t, "received", number(t, r, "received"), 27)
	c.fails("udp_echo", fields{"addr": target, "sizes": []int{largest + 1}, "wait_ms": 300}, "partial", "0 of 1")
	s.event("udp_request", func(e map[string]any) bool { return e["target"] == target })
	burst := c.ok("udp_burst", fields{"addr": target, "size": 600, "n": 200, "gap_us": 200})
	if n := number(t, burst, "received"); n < 190 {
		t.Fatalf("burst: %v", burst)
	}
	c.ok("udp_sessions", fields{"addr": target, "n": 200, "size": 100})
	c.ok("udp_multi_target", fields{"addrs": o.ready["udp_echo"], "size": 50, "rounds": 3})

	c.ok("udp_open", fields{"tag": "a"})
	c.ok("udp_send", fields{"tag": "a", "addr": o.ready["udp_cone"], "hex": "68656c6c6f"})
	got := c.ok("udp_recv", fields{"tag": "a"})
	want(t, "from", got["from"], o.ready["udp_cone_reply"])
	want(t, "hex", got["hex"], any("68656c6c6f"))
	s.event("udp_end", nil) // idle expiry
	c.fails("udp_recv", fields{"tag": "a", "timeout_ms": 100}, "timeout", "")
	c.ok("udp_close", fields{"tag": "a"})
}

func TestReorderedFragments(t *testing.T) {
	o := spawn(t, "origin", fields{})
	s, c := pair(t, fields{"tamper": true}, fields{"tamper": true})
	target := o.ready["udp_echo"].([]any)[0]
	c.ok("connect", nil)
	s.ok("tamper", fields{"reverse_ms": 5})
	c.ok("tamper", fields{"reverse_ms": 5})
	r := c.ok("udp_echo", fields{"addr": target, "sizes": []int{3000, 4000}, "count": 20})
	want(t, "received", number(t, r, "received"), 40)
	wire := c.ok("stats", nil)
	if n := number(t, wire, "wire", "sent", "packets"); n < 80 {
		t.Fatalf("wire: %v", wire)
	}
	c.ok("tamper", fields{"drop_every": 10})
	c.ok("tcp_upload", fields{"addr": o.ready["sink"], "bytes": 1 << 20})
	if n := number(t, c.ok("stats", nil), "wire", "dropped"); n < 10 {
		t.Fatalf("dropped %v packets", n)
	}
}

func TestUDPDisabled(t *testing.T) {
	_, c := pair(t, fields{"disable_udp": true}, nil)
	want(t, "udp", c.ok("connect", nil)["udp"], any(false))
	c.fails("udp_open", fields{"tag": "a"}, "dial", "UDP not enabled")
}

func TestAuthentication(t *testing.T) {
	s := spawn(t, "server", fields{"users": fields{"ann": "one", "bob": "two"}})
	want(t, "tx", number(t, spawn(t, "client", toServer(s, fields{"auth": "ann:one"})).ok("connect", nil), "tx"), 0)
	s.event("connect", func(e map[string]any) bool { return e["user"] == "ann" })
	e := spawn(t, "client", toServer(s, fields{"auth": "ann:two"})).fails("connect", nil, "auth", "404")
	want(t, "status", e.Status, 404)
	pin := spawn(t, "client", with(toServer(s, fields{"auth": "ann:one"}), fields{"tls": fields{"insecure": true, "pin": strings.Repeat("00", 32)}}))
	want(t, "cause", pin.fails("connect", nil, "connect", "pinned hash").Cause, "transport_close")
	ca := spawn(t, "client", toServer(s, fields{"auth": "bob:two", "tls": fields{"sni": "localhost", "ca": s.ready["cert"]}}))
	ca.ok("connect", nil)
}

func TestMutualTLS(t *testing.T) {
	other := spawn(t, "server", fields{"password": "x"}) // only for its certificate
	s := spawn(t, "server", fields{"password": secret, "client_ca": other.ready["cert"]})
	tlsConfig := fields{"insecure": true, "cert": other.ready["cert"], "key": other.ready["key"]}
	spawn(t, "client", toServer(s, fields{"tls": tlsConfig})).ok("connect", nil)
	spawn(t, "client", toServer(s, nil)).fails("connect", nil, "connect", "certificate")
}

func TestBandwidth(t *testing.T) {
	const mb = 1_000_000
	s, c := pair(t, fields{"tx": 5 * mb, "rx": 3 * mb}, fields{"tx": 10 * mb, "rx": 20 * mb})
	want(t, "client tx", number(t, c.ok("connect", nil), "tx"), 3*mb)
	auth := s.event("auth", nil)
	want(t, "client rx", number(t, auth, "client_rx"), 20*mb)
	want(t, "server tx", number(t, s.event("connect", nil), "tx"), 5*mb)

	s, c = pair(t, fields{"tx": 5 * mb, "ignore_client_bandwidth": true, "congestion": fields{"type": "reno"}}, fields{"tx": 10 * mb, "rx": 20 * mb})
	want(t, "client tx", number(t, c.ok("connect", nil), "tx"), 0)
	want(t, "server tx", number(t, s.event("connect", nil), "tx"), 0)
}

func TestObfuscation(t *testing.T) {
	o := spawn(t, "origin", fields{})
	for _, kind := range []string{"salamander", "gecko"} {
		obfs := fields{"type": kind, "password": "cry_me_a_r1ver"}
		_, c := pair(t, fields{"obfs": obfs}, fields{"obfs": obfs})
		c.ok("tcp_upload", fields{"addr": o.ready["sink"], "bytes": 1 << 20})
		c.ok("udp_echo", fields{"addr": o.ready["udp_echo"].([]any)[0], "sizes": []int{100, 3000}})
	}
}

func TestHoppingAndRebinding(t *testing.T) {
	o := spawn(t, "origin", fields{})
	s := spawn(t, "server", fields{"password": secret})
	f := spawn(t, "fan", fields{"target": s.ready["addr"], "ports": 3})
	var ports []string
	for _, p := range f.ready["ports"].([]any) {
		ports = append(ports, fmt.Sprint(p))
	}
	c := spawn(t, "client", toServer(s, fields{
		"server": "127.0.0.1:" + strings.Join(ports, ","), "hop_interval_ms": 5000, "tx": 1_000_000,
	}))
	// 7 MB at 1 MB/s outlast one hop; the rebinding comes in between.
	done := make(chan map[string]any, 1)
	go func() { done <- c.ok("tcp_upload", fields{"addr": o.ready["sink"], "bytes": 7_000_000}) }()
	c.event("connected", nil)
	f.ok("rebind", nil)
	want(t, "bytes", number(t, <-done, "remote_bytes"), 7_000_000)
	if n := number(t, f.ok("stats", nil), "flows_opened"); n < 3 {
		t.Fatalf("%v flows: no hop or no rebinding", n)
	}
}

func TestKick(t *testing.T) {
	o := spawn(t, "origin", fields{})
	s, c := pair(t, nil, nil)
	c.ok("hold", fields{"addr": o.ready["silent"], "n": 3, "tag": "k"})
	want(t, "online", number(t, s.ok("stats", nil), "online", "user"), 1)
	s.ok("kick", fields{"user": "user"})
	c.do("poke", fields{"tag": "k"})
	// The stream whose byte met the kick may see a plain end just before.
	ended := c.event("stream_ended", func(e map[string]any) bool {
		return e["error"].(map[string]any)["cause"] == "application_close"
	})
	want(t, "code", number(t, ended, "error", "code"), 0x107)
	s.event("disconnect", nil)

	r := c.ok("reconnect", fields{"addr": o.ready["echo"]})
	want(t, "connections", number(t, r, "connections"), 2)
	s.ok("kick", fields{"user": "user", "sticky": true})
	c.fails("tcp_echo", fields{"addr": o.ready["echo"], "bytes": 10}, "other", "")
	s.ok("unkick", fields{"user": "user"})
	c.ok("reconnect", fields{"addr": o.ready["echo"]})
}

func TestStopAndStart(t *testing.T) {
	o := spawn(t, "origin", fields{})
	// With the same reset key the client hears of the restart at once; without
	// (core 2.10 has none) its idle timeout has to tell it.
	server, client := fields{}, fields{"quic": fields{"max_idle_timeout_ms": 4000}}
	if hasParrot {
		server["fixed_reset_key"] = true
	}
	s, c := pair(t, server, client)
	c.ok("tcp_echo", fields{"addr": o.ready["echo"], "bytes": 10})
	s.ok("stop", nil)
	s.event("serve_ended", nil)
	s.ok("start", nil)
	r := c.ok("reconnect", fields{"addr": o.ready["echo"]})
	want(t, "connections", number(t, r, "connections"), 2)
}

func TestHookAndSpeedtest(t *testing.T) {
	o := spawn(t, "origin", fields{})
	_, c := pair(t, fields{"hook_tcp": true, "speedtest": true, "no_traffic": true, "events": "connections"}, fields{"no_parrot": true})
	want(t, "parrot", c.ready["parrot"], any(false))
	c.ok("tcp_echo", fields{"addr": o.ready["echo"], "bytes": 10})
	c.ok("dial", fields{"addr": o.ready["refused"]})
	c.fails("dial", fields{"addr": o.ready["refused"], "read": true}, "other", "EOF")
	for _, cmd := range []string{"speedtest_download", "speedtest_upload"} {
		want(t, cmd, number(t, c.ok(cmd, fields{"bytes": 2 << 20}), "bytes"), 2<<20)
	}
	c.ok("speedtest_download", fields{"duration_ms": 300})
}

func TestForwards(t *testing.T) {
	o := spawn(t, "origin", fields{})
	_, direct := pair(t, nil, nil)
	_, c := pair(t, nil, nil)
	tcp := c.ok("forward_tcp", fields{"target": o.ready["sink"]})
	udp := c.ok("forward_udp", fields{"target": o.ready["udp_echo"].([]any)[0]})
	// The other pair reaches the forwards as its targets.
	direct.ok("tcp_upload", fields{"addr": tcp["addr"], "bytes": 1 << 20})
	direct.ok("udp_echo", fields{"addr": udp["addr"], "sizes": []int{1, 1000, 3000}})
}

func TestRaw(t *testing.T) {
	o := spawn(t, "origin", fields{})
	s := spawn(t, "server", fields{"password": secret, "masquerade": fields{"content": "hello", "headers": fields{"server": "none"}}})
	p := spawn(t, "raw", toServer(s, nil))
	p.fails("auth", nil, "usage", "not connected")
	up := p.ok("connect", nil)
	want(t, "leaf", up["leaf"], s.ready["pin"])
	want(t, "page", p.ok("request", fields{"path": "/x"})["body"], any("hello"))
	want(t, "status", number(t, p.ok("auth", fields{"auth": "wrong"}), "status"), 200)

	// Before authentication a request stream is an unknown frame: silence.
	target := o.ready["echo"].(string)
	request := "4401" + hex.EncodeToString([]byte{byte(len(target))}) + hex.EncodeToString([]byte(target)) + "00"
	want(t, "end", p.ok("stream", fields{"hex": []string{request}, "wait_ms": 200})["end"], any("silence"))

	yes := p.ok("auth", fields{"rx": 0})
	want(t, "status", number(t, yes, "status"), 233)
	r := p.ok("stream", fields{"hex": []string{request + "68656c6c6f"}, "wait_ms": 1000})
	if got := r["hex"].(string); !strings.HasPrefix(got, "0009") || !strings.HasSuffix(got, "68656c6c6f") {
		t.Fatalf("stream: %v", r)
	}

	// Two fragments of one message, the last one first.
	udp := o.ready["udp_echo"].([]any)[0].(string)
	head := func(frag int) string {
		return fmt.Sprintf("00000009%04x%02x02%02x%x", 4321, frag, len(udp), udp)
	}
	r = p.ok("datagrams", fields{"hex": []string{head(1) + "6c6f", head(0) + "68656c"}, "expect": 1})
	if got := r["hex"].([]any); len(got) != 1 || !strings.HasSuffix(got[0].(string), "68656c6c6f") {
		t.Fatalf("datagrams: %v", r)
	}

	p.ok("hang_up", fields{"code": 0x100})
	how := p.ok("closed", nil)["error"].(map[string]any)
	want(t, "cause", how["cause"], any("application_close"))
	want(t, "remote", how["remote"], any(false))
	s.event("disconnect", nil)
	s.ok("stop", nil)
	q := spawn(t, "raw", toServer(s, nil))
	q.fails("connect", fields{"timeout_ms": 300}, "timeout", "")
}

func TestMistakes(t *testing.T) {
	for _, c := range []struct {
		mode   string
		config fields
		code   int
	}{
		{"server", fields{}, exitUsage},
		{"server", fields{"password": "x", "lisen": "y"}, exitUsage},
		{"server", fields{"password": "x", "obfs": fields{"type": "xor"}}, exitUsage},
		{"server", fields{"password": "x", "tx": 1}, exitStartup},
		{"client", fields{"server": "127.0.0.1:99999"}, exitStartup},
		{"fan", fields{"target": "x"}, exitUsage},
	} {
		code, line := runOnce(t, c.mode, c.config)
		if code != c.code || !strings.Contains(line, `"failed"`) {
			t.Errorf("%s %v: exit %d, said %s", c.mode, c.config, code, line)
		}
	}
}

func waitNumber(t *testing.T, expected float64, read func() float64) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		got := read()
		if got == expected {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still %v, want %v", got, expected)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
