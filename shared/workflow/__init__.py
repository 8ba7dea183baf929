"""The workflow file: model, parser, checks with line and column, and the plan that the scheduler follows."""
