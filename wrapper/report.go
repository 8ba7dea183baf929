package main

import (
	"context"
	"fmt"
	"time"
)

// reporting is the real reporter.
type reporting struct {
	place *resultFile
	relay *signalRelay
}

// overflowPatience is how long object storage may be away before a large result document is given up.
const overflowPatience = 2 * time.Minute

// Report writes the result document; one that is too large for the file goes to object storage, and only when that fails
// are its outputs dropped, which is told as a failure.
func (r *reporting) Report(job *Job, result *Result) error {
	file, whole, err := result.encode(job.MessageLimit, job.Overflow)
	if err != nil {
		return err
	}
	if whole != nil {
		client, err := newClient(job.CAFile)
		if err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), overflowPatience)
			err = client.put(ctx, job.Overflow.PutURL, "application/json", whole)
			cancel()
		}
		if err != nil {
			outputs := result.Outputs
			result.Outputs = map[string]string{}
			result.fail(outcomeWrapperFailed, phaseResult, fmt.Sprintf("the result document has %d bytes, more than the %d that the runtime takes, and could not be stored elsewhere (%v). Its %d outputs are lost; run the job again once object storage answers", len(whole), job.MessageLimit, err, len(outputs)))
			file = result.shrink(job.MessageLimit)
		}
	} else if len(file) > job.MessageLimit {
		file = result.shrink(job.MessageLimit)
	}
	return r.place.write(file)
}
