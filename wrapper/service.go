package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const dialTimeout = 2 * time.Second

// hold does nothing until it is told to end. A container that runs it keeps a network that a job and its services share.
func hold() int {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM, syscall.SIGINT)
	<-told
	return 0
}

// dial says whether something takes connections at a port of this network, for images that have no tool to ask.
func dial(port string, stderr io.Writer) int {
	connection, err := net.DialTimeout("tcp", net.JoinHostPort("localhost", port), dialTimeout)
	if err != nil {
		fmt.Fprintf(stderr, "hubflow-wrapper: %v\n", err)
		return 1
	}
	connection.Close()
	return 0
}
