package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
)

// programHeader is what we want to know of an ELF file that could not be started. (debug/elf insists on whole files, and is
// larger than all the rest of command.go.)
type programHeader struct {
	machine string
	loader  string // its dynamic loader, "" for a static program
}

func readProgramHeader(path string) (header programHeader, ok bool) {
	file, err := os.Open(path)
	if err != nil {
		return header, false
	}
	defer file.Close()
	head := make([]byte, 64)
	if n, _ := file.Read(head); n < 52 || string(head[:4]) != "\x7fELF" {
		return header, false
	}
	var order binary.ByteOrder = binary.LittleEndian
	if head[5] == 2 {
		order = binary.BigEndian
	}
	header.machine = machineName(order.Uint16(head[18:]))
	if head[4] == 2 { // 64 bit
		header.loader = readLoader(file, order, int64(order.Uint64(head[32:])), int(order.Uint16(head[56:])))
	}
	return header, true
}

// readLoader finds the segment PT_INTERP among the program headers of a 64 bit file.
func readLoader(file *os.File, order binary.ByteOrder, at int64, count int) string {
	const interp, size = 3, 56
	for i := range min(count, 64) {
		entry := make([]byte, size)
		if _, err := file.ReadAt(entry, at+int64(i)*size); err != nil {
			return ""
		}
		if order.Uint32(entry) != interp {
			continue
		}
		loader := make([]byte, min(order.Uint64(entry[32:]), 256))
		if _, err := file.ReadAt(loader, int64(order.Uint64(entry[8:]))); err != nil {
			return ""
		}
		return strings.TrimRight(string(loader), "\x00")
	}
	return ""
}

func machineName(machine uint16) string {
	names := map[uint16]string{3: "386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64", 258: "loong64"}
	if name, known := names[machine]; known {
		return name
	}
	return fmt.Sprintf("another machine (ELF number %d)", machine)
}
