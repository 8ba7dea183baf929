package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// T52: large and many, with the memory that the wrapper took at most. HUBFLOW_TEST_STRESS=7 is the full size in GB (and tens of
// thousands of files); without it a small one runs with every test.

func stressSize() (gigabytes float64, files int) {
	if size, err := strconv.ParseFloat(os.Getenv("HUBFLOW_TEST_STRESS"), 64); err == nil {
		return size, int(size * 10_000)
	}
	return 0.1, 1_000
}

const peakLimitMiB = 64

func TestT52LargeArtifactWithFlatMemory(t *testing.T) {
	gigabytes, _ := stressSize()
	roundTripWithin(t, func(b *bench) {
		os.Mkdir(b.path("d"), 0o755)
		file, err := os.Create(b.path("d/large"))
		if err != nil {
			t.Fatal(err)
		}
		out := bufio.NewWriterSize(file, 1<<20)
		for i := 0; float64(i)*100 < gigabytes*1e9; i++ {
			fmt.Fprintf(out, "%08x %090x\n", i*2654435761&0xffffffff, i)
		}
		if err := out.Flush(); err != nil {
			t.Fatal(err)
		}
		file.Close()
	}, 1)
}

func TestT52ManyFilesWithFlatMemory(t *testing.T) {
	_, files := stressSize()
	roundTripWithin(t, func(b *bench) {
		for i := range files {
			directory := b.path(fmt.Sprintf("d/%d/%d", i/1000, i/50%20))
			if i%50 == 0 {
				os.MkdirAll(directory, 0o755)
			}
			if err := os.WriteFile(fmt.Sprintf("%s/file-%d", directory, i), []byte(strings.Repeat(fmt.Sprintln("content", i), 100)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}, int64(files))
}

// Directories in the layout of pnpm, or of names as long as can be: what is saved is restored, and costs no memory that grows with names.
func TestT52ManyDirectoriesWithFlatMemory(t *testing.T) {
	above, wide, name := strings.Repeat("/"+strings.Repeat("n", 230), 12), 12_000, "%d"
	if os.Getenv("HUBFLOW_TEST_STRESS") != "" {
		above, wide, name = "", 200_000, ".pnpm/some-quite-long-package-name-%[2]d@1.2.3_peer-dependency@4.5.6/node_modules/some-quite-long-package-name/dir-%[3]d"
	}
	roundTripWithin(t, func(b *bench) {
		top := b.path("d" + above)
		for i := range wide {
			path := fmt.Sprintf("%s/"+name, top, i%400, i/400)
			if above != "" {
				path = fmt.Sprintf("%s/"+name, top, i)
			}
			if os.Mkdir(path, 0o755) == nil {
				continue
			}
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}, 0)
}

// One folder with very many files, into a target that has the folder already: neither the moves nor the names may pile up.
func TestT52FlatFolderWithFlatMemory(t *testing.T) {
	_, files := stressSize()
	if files > 1_000 {
		files = 200_000
	}
	roundTripWithin(t, func(b *bench) {
		os.Mkdir(b.path("d"), 0o755)
		for i := range files {
			if err := os.WriteFile(fmt.Sprintf("%s/%s%06d", b.path("d"), strings.Repeat("n", 120), i), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}, int64(files))
}

func roundTripWithin(t *testing.T, fill func(*bench), files int64) {
	s := newStore(t)
	from := newBench(t, "true")
	fill(from)
	spec := with(save(s, "cache", "big", "d"), "upload", s.upload("big", 16<<20, 1000))
	peak := peakOf(from.set("save", []any{with(spec, "index_upload", map[string]any{"put_url": s.url("index")})}))
	from.expect(outcomeExited, 0).expectNoWarnings()
	to := newBench(t, "true").set("restore", []any{restore(s, "cache", "big", ".", true)})
	if os.Getenv("HUBFLOW_TEST_STRESS") != "" {
		os.Mkdir(to.path("d"), 0o755) // what is moved into it is moved one by one
	}
	peakBack := peakOf(to)
	to.expect(outcomeExited, 0).expectNoWarnings()
	if to.result.Restored[0].Files != files {
		t.Errorf("%d files came back, %d were sent", to.result.Restored[0].Files, files)
	}
	t.Logf("%d bytes packed, peak resident %d MiB saving, %d MiB restoring; saved in %.1f s, restored in %.1f s", len(s.object("big")), peak, peakBack, from.result.Saved[0].Seconds, to.result.Restored[0].Seconds)
	// The test binary that plays the wrapper is some MiB larger than the wrapper itself.
	if peak > peakLimitMiB || peakBack > peakLimitMiB {
		t.Errorf("peak resident %d and %d MiB, the limit is %d", peak, peakBack, peakLimitMiB)
	}
	if os.Getenv("HUBFLOW_TEST_STRESS") == "" {
		compareTrees(t, from.path("d"), to.path("d"))
	}
}

// peakOf runs a job and returns the most memory that the wrapper itself had, in MiB: its last words in /proc before it ends.
func peakOf(b *bench) (peak int) {
	b.start()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.cmd.Process.Pid))
			_, rest, found := strings.Cut(string(status), "VmHWM:")
			if err != nil || !found {
				return // it is gone, or a zombie
			}
			kib, _ := strconv.Atoi(strings.Fields(rest)[0])
			peak = max(peak, kib/1024)
			time.Sleep(2 * time.Millisecond)
		}
	}()
	b.wait()
	<-done
	return peak
}
