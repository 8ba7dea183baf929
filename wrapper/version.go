package main

import (
	"fmt"
	"runtime"
)

// version is that of the whole of Hubflow; the release sets it: -ldflags "-X main.version=1.2.3".
var version = "1.0.0"

func versionText() string {
	return fmt.Sprintf("hubflow-wrapper %s %s/%s (%s), job document 1, result document 1, writes %s, reads %s",
		version, runtime.GOOS, runtime.GOARCH, runtime.Version(), writesFormat, readsFormats)
}
