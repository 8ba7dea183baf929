package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The compressed form of archives: every length comes back, every cut and every flipped bit is noticed.

func compressed(t testing.TB, content []byte) ([]byte, *compressor) {
	t.Helper()
	var out bytes.Buffer
	c, err := newCompressor(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), c
}

func expanded(data []byte) ([]byte, error) {
	stream, err := openArchive(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	return io.ReadAll(stream)
}

// textOf makes content that compresses, and differs everywhere.
func textOf(size int) []byte {
	random := rand.New(rand.NewPCG(1, uint64(size)))
	content := make([]byte, size)
	for i := range content {
		content[i] = "etaoin shrdlu\n"[random.IntN(14)]
	}
	return content
}

func TestFramesOfEveryLength(t *testing.T) {
	for _, size := range []int{0, 1, 511, 512, chunkBytes - 1, chunkBytes, chunkBytes + 1, 2 * chunkBytes, 3*chunkBytes + 17, 9 * chunkBytes} {
		if size == 0 && writesFormat != "zstd" {
			continue // nothing becomes no member at all; a tar stream always has its end
		}
		content := textOf(size)
		packed, c := compressed(t, content)
		if got, err := expanded(packed); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d: %d bytes came back, %v", size, len(got), err)
		}
		sum := sha256.Sum256(packed)
		if c.size != int64(len(packed)) || c.sum() != hex.EncodeToString(sum[:]) || len(c.offsets) != (size+chunkBytes-1)/chunkBytes {
			t.Errorf("%d: told %d bytes, %s, %d chunks", size, c.size, c.sum(), len(c.offsets))
		}
	}
}

func TestFramesInAnyPieces(t *testing.T) {
	content := textOf(2*chunkBytes + 100)
	whole, _ := compressed(t, content)
	for _, piece := range []int{1000, 4096, chunkBytes - 1, chunkBytes, chunkBytes + 1, len(content)} {
		var out bytes.Buffer
		c, _ := newCompressor(&out)
		for rest := content; len(rest) > 0; rest = rest[min(piece, len(rest)):] {
			if n, err := c.Write(rest[:min(piece, len(rest))]); err != nil || n != min(piece, len(rest)) {
				t.Fatal(n, err)
			}
		}
		if err := c.Close(); err != nil || !bytes.Equal(out.Bytes(), whole) {
			t.Errorf("in pieces of %d it becomes something else: %v", piece, err)
		}
	}
}

// The bytes do not depend on how many work on them.
func TestFramesAreTheSameEveryTime(t *testing.T) {
	content := textOf(5 * chunkBytes)
	first, _ := compressed(t, content)
	for range 3 {
		if again, _ := compressed(t, content); !bytes.Equal(first, again) {
			t.Fatal("they differ")
		}
	}
}

func TestEveryCutIsNoticed(t *testing.T) {
	if writesFormat != "zstd" {
		t.Skip("gzip has no trailer of ours; the end of the tar stream is checked (TestDamagedArchivesLeaveNothing)")
	}
	packed, _ := compressed(t, textOf(chunkBytes+300))
	cuts := []int{}
	for i := range 60 {
		cuts = append(cuts, i, len(packed)-1-i, len(packed)*i/60)
	}
	for _, cut := range cuts {
		if _, err := expanded(packed[:cut]); err == nil {
			t.Errorf("cut to %d of %d bytes, it is taken for whole", cut, len(packed))
		}
	}
}

func TestEveryFlippedBitIsNoticed(t *testing.T) {
	if writesFormat != "zstd" {
		t.Skip("gzip has checksums of its own")
	}
	content := textOf(300)
	packed, _ := compressed(t, content)
	for at := range packed {
		for _, bit := range []byte{1, 0x80} {
			damaged := bytes.Clone(packed)
			damaged[at] ^= bit
			// (With another first byte it is a zstd stream of others, whose frames have checksums too.)
			if got, err := expanded(damaged); err == nil && !(at == 0 && bytes.Equal(got, content)) {
				t.Errorf("byte %d of %d: %d bytes are taken for good", at, len(packed), len(got))
			}
		}
	}
}

func TestFramesThatLie(t *testing.T) {
	if writesFormat != "zstd" {
		t.Skip("zstd only")
	}
	packed, _ := compressed(t, textOf(1000))
	body := packed[12 : len(packed)-8-len(trailerMark)-sha256.Size]
	sized := func(size uint32, frame []byte) []byte {
		return append(binary.LittleEndian.AppendUint32(skippable(sizeFrame, 4), size), frame...)
	}
	ended := func(data []byte) []byte { // with the trailer that it should have
		sum := sha256.Sum256(data)
		return append(append(append(bytes.Clone(data), skippable(trailerFrame, len(trailerMark)+sha256.Size)...), trailerMark...), sum[:]...)
	}
	large, _ := exec.Command("sh", "-c", "head -c 3000000 /dev/zero | zstd -q -c").Output()
	for name, c := range map[string]struct {
		data []byte
		says string
	}{
		"good":                           {ended(sized(uint32(len(body)), body)), ""},
		"claims 4 GiB":                   {sized(0xffffffff, body), "claims"},
		"claims a little too much":       {sized(chunkBytes+chunkBytes/8+1, body), "claims"},
		"claims more than there is":      {ended(sized(uint32(len(body))+100, body)), "not whole"},
		"claims less":                    {ended(sized(uint32(len(body))-1, body)), "damaged"},
		"claims nothing":                 {ended(sized(0, nil)), ""},
		"no size before a frame":         {append(sized(uint32(len(body)), body), body...), "no size"},
		"a bomb in one frame":            {ended(sized(uint32(len(large)), large)), "damaged"},
		"another trailer's mark":         {bytes.Replace(ended(sized(uint32(len(body)), body)), []byte(trailerMark), []byte("HUBFLOW9"), 1), "checksum"},
		"two trailers":                   {append(ended(sized(uint32(len(body)), body)), ended(nil)...), "checksum"},
		"a trailer alone":                {ended(nil), "neither"}, // no size frame first: some other zstd stream, which holds nothing
		"the size of a size is not four": {append(skippable(sizeFrame, 8), make([]byte, 8)...), ""},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "a bomb in one frame" && len(large) == 0 {
				t.Skip("needs zstd")
			}
			got, err := expanded(c.data)
			if name == "a trailer alone" || name == "the size of a size is not four" {
				if len(got) > 0 {
					t.Errorf("%d bytes out of nothing", len(got))
				}
				return
			}
			if (c.says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%d bytes, %v; want %q", len(got), err, c.says)
			}
		})
	}
}

func TestStreamsOfOtherPrograms(t *testing.T) {
	content := textOf(400_000)
	for name, script := range map[string]string{
		"gzip": "gzip", "gzip -9": "gzip -9", "two gzip members": "(head -c 200000 | gzip; gzip)", "zstd": "zstd -q", "zstd -19": "zstd -q -19", "zstd with threads": "zstd -q -T2",
		"two zstd frames": "(head -c 200000 | zstd -q; zstd -q)", "zstd without checksum": "zstd -q --no-check", "zstd of a long window": "zstd -q --long=25",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath("zstd"); strings.Contains(script, "zstd") && (err != nil || writesFormat != "zstd") {
				t.Skip("needs zstd")
			}
			cmd := exec.Command("bash", "-c", script)
			cmd.Stdin = bytes.NewReader(content)
			packed, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := expanded(packed); err != nil || !bytes.Equal(got, content) {
				if strings.Contains(name, "two") && len(got) > 0 && err == nil {
					t.Skipf("head took more than its part of the pipe: %d bytes", len(got))
				}
				t.Errorf("%d bytes, %v", len(got), err)
			}
			for _, cut := range []int{len(packed) / 2, len(packed) - 1, 5} {
				if _, err := expanded(packed[:cut]); err == nil {
					t.Errorf("cut to %d bytes, it is taken for whole", cut)
				}
			}
		})
	}
}

func TestWindowThatIsTooLarge(t *testing.T) {
	if _, err := exec.LookPath("zstd"); err != nil || writesFormat != "zstd" {
		t.Skip("needs zstd")
	}
	cmd := exec.Command("bash", "-c", "head -c 300000000 /dev/zero | zstd -q --long=28")
	packed, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := expanded(packed); err == nil {
		t.Error("a window of 256 MiB was taken, and so that much memory")
	}
}

func TestWhatIsNoArchive(t *testing.T) {
	for _, text := range []string{"", "x", "<html>", "PK\x03\x04", "\x1f", "\x1f\x8b", "BZh9", "\xfd7zXZ\x00", "\x28\xb5\x2f", "{\"error\":true}"} {
		if _, err := expanded([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// A failing store ends the packing soon, and with its reason.
func TestWriterThatFails(t *testing.T) {
	reason := errors.New("the store is gone")
	for _, room := range []int{0, 10, chunkBytes, 3 * chunkBytes} {
		c, err := newCompressor(&failingWriter{room, reason})
		if err != nil {
			t.Fatal(err)
		}
		random := make([]byte, chunkBytes)
		for i := range random {
			random[i] = byte(rand.Uint32())
		}
		written := 0
		for written < 200 && err == nil {
			_, err = c.Write(random)
			written++
		}
		if closeErr := c.Close(); !errors.Is(closeErr, reason) || written == 200 {
			t.Errorf("room for %d: %d chunks were taken, %v", room, written, closeErr)
		}
	}
}

type failingWriter struct {
	room   int
	reason error
}

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.room -= len(p); w.room < 0 {
		return 0, w.reason
	}
	return len(p), nil
}

// Whoever stops reading in the middle leaves no worker behind.
func TestReaderThatGoesAway(t *testing.T) {
	packed, _ := compressed(t, textOf(20*chunkBytes))
	begin := time.Now()
	for range 5 {
		stream, err := openArchive(bytes.NewReader(packed))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(stream, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if err := stream.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestGzipIsTheFallback(t *testing.T) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write([]byte("x"))
	_ = w.Close()
	if got, err := expanded(out.Bytes()); err != nil || string(got) != "x" {
		t.Error(err)
	}
	if got, err := expanded(append(out.Bytes(), "garbage behind it"...)); err == nil {
		t.Errorf("%q and garbage behind it", got)
	}
}

// An archive that some zstd made with a large window is refused with the way out.
func TestLargeWindow(t *testing.T) {
	zstd, err := exec.LookPath("zstd")
	if err != nil || writesFormat != "zstd" {
		t.Skip("needs zstd")
	}
	for options, says := range map[string]string{"-19": "", "-1 --long=27": "more than 32 MiB"} {
		command := exec.Command(zstd, append(strings.Fields(options), "-q", "-c")...)
		command.Stdin = bytes.NewReader(textOf(100_000))
		packed, err := command.Output()
		if err != nil {
			t.Fatal(err)
		}
		stream, err := openArchive(bytes.NewReader(packed))
		if err == nil {
			_, err = io.Copy(io.Discard, stream)
		}
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "--long")) {
			t.Errorf("%s: %v", options, err)
		}
	}
}
