package main

import (
	"bytes"
	"net"
	"strings"
	"testing"
)

func TestDialSaysWhetherSomebodyListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	var stdout, stderr bytes.Buffer
	if status := dispatch([]string{"hubflow-wrapper", "dial", port}, &stdout, &stderr); status != 0 {
		t.Fatalf("status %d: %s", status, &stderr)
	}
	listener.Close()
	if status := dispatch([]string{"hubflow-wrapper", "dial", port}, &stdout, &stderr); status != 1 || !strings.Contains(stderr.String(), port) {
		t.Fatalf("nobody listens, but status %d: %s", status, &stderr)
	}
}
