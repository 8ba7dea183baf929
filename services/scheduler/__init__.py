"""The only writer of run, stage and job state. README.md tells what it hears, tells and owns."""
