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
const overflowPatience = 4 * time.Minute

// Report writes the result document; one that is too large for the file goes to object storage, and only when that fails
// are its outputs dropped, which is told as a failure.
func (r *reporting) Report(job *Job, result *Result) error {
	file, whole, err := result.encode(job.MessageLimit, job.Overflow)
	if err != nil {
		return err
	}
	if whole != nil {
		if err := r.store(job, whole); err != nil {
			outputs := result.Outputs
			result.Outputs = map[string]string{}
			result.fail(outcomeWrapperFailed, phaseResult, fmt.Sprintf("the result document has %d bytes, more than the %d that the runtime takes, and could not be stored elsewhere (%v). Its %d outputs are lost; run the job again once object storage answers", len(whole), job.MessageLimit, err, len(outputs)))
			file = result.shrink(job.MessageLimit)
		}
	} else if len(file) > job.MessageLimit {
		file = result.shrink(job.MessageLimit)
	}
	err = r.place.write(file)
	if err != nil && job.Overflow != nil && whole == nil {
		if storeErr := r.store(job, file); storeErr == nil {
			return fmt.Errorf("%w (it is in object storage instead, as %s)", err, job.Overflow.Key)
		}
	}
	return err
}

// store puts a whole result document into object storage, as long as the grace after a stop from outside allows.
func (r *reporting) store(job *Job, whole []byte) error {
	client := newClient(job.CAFile)
	told, cancel := r.relay.context(job.grace())
	defer cancel()
	ctx, cancelLate := context.WithTimeout(told, overflowPatience)
	defer cancelLate()
	return client.put(ctx, job.Overflow.PutURL, "application/json", whole)
}
